//! The greeting, the client's flags, and the answer to the one option without an option reply.

use bytes::{BufMut, BytesMut};

use super::{
    Malformed,
    flags::{ClientFlags, HandshakeFlags, TransmissionFlags},
    wire::Reader,
};

/// First eight bytes a server sends: `NBDMAGIC`.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;

/// Marks the newstyle greeting and every option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;

/// Length of the greeting.
pub const GREETING_BYTES: usize = 18;

/// Length of the client's answer to it.
pub const CLIENT_FLAGS_BYTES: usize = 4;

/// Length of the answer to an export name, without its zeros.
pub const EXPORT_BYTES: usize = 10;

/// Zeros after it, unless both sides agreed to leave them out.
pub const EXPORT_ZEROES: usize = 124;

/// Writes the newstyle greeting.
pub fn encode_greeting(flags: HandshakeFlags, out: &mut BytesMut) {
    out.put_u64(INIT_MAGIC);
    out.put_u64(OPTION_MAGIC);
    out.put_u16(flags.0);
}

/// Reads the newstyle greeting.
///
/// # Errors
/// When it is the oldstyle greeting or none at all.
pub fn decode_greeting(bytes: &[u8; GREETING_BYTES]) -> Result<HandshakeFlags, Malformed> {
    let mut reader = Reader::new(bytes);
    reader.magic(INIT_MAGIC)?;
    reader.magic(OPTION_MAGIC)?;
    Ok(HandshakeFlags(reader.u16()?))
}

/// Writes the client's flags.
pub fn encode_client_flags(flags: ClientFlags, out: &mut BytesMut) {
    out.put_u32(flags.0);
}

/// Reads the client's flags.
///
/// # Errors
/// When a flag is set that does not exist: the protocol tells the server to drop such a connection.
pub const fn decode_client_flags(bytes: [u8; CLIENT_FLAGS_BYTES]) -> Result<ClientFlags, Malformed> {
    let flags = ClientFlags(u32::from_be_bytes(bytes));
    if flags.only(ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES)) { Ok(flags) } else { Err(Malformed::Flags) }
}

/// Size and abilities of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes.
    pub size_bytes: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
}

impl ExportInfo {
    /// Writes the answer to an export name.
    pub fn encode(self, no_zeroes: bool, out: &mut BytesMut) {
        out.put_u64(self.size_bytes);
        out.put_u16(self.flags.0);
        if !no_zeroes {
            out.put_bytes(0, EXPORT_ZEROES);
        }
    }

    /// Reads the answer to an export name, without its zeros.
    ///
    /// # Errors
    /// Never for the full length; the signature follows the other decoders.
    pub fn decode(bytes: &[u8; EXPORT_BYTES]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        Ok(Self { size_bytes: reader.u64()?, flags: TransmissionFlags(reader.u16()?) })
    }
}
