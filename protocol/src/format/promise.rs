//! The promise of a member of a volume's ensemble: which epochs it takes nothing of any more, in which boot of its machine its copy
//! was known to be whole, and whether the copy may lack what was synced.
//!
//! It is durable before the answer to a fence leaves: a member that forgot it could let an owner go on that was deposed.

use super::reader::{ReadError, Reader};
use crate::{
    checksum::crc32c,
    id::{BootId, ClusterId, Epoch, NodeId, VolumeId},
    version::{LEAD_BYTES, LeadError, PROMISE},
};

/// Bytes of the file.
pub const PROMISE_BYTES: usize = 80;

/// Why a promise is not accepted. Unlike other small files it is never made up again: without it the member must not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromiseError {
    /// Another kind of file, or a newer version.
    #[error(transparent)]
    Lead(#[from] LeadError),
    /// Too short, or reserved bytes in use.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The length or the checksum does not match.
    #[error("the promise is damaged")]
    Damaged,
}

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The cluster.
    pub cluster: ClusterId,
    /// The member.
    pub node: NodeId,
    /// The volume.
    pub volume: VolumeId,
    /// Nothing of an epoch below is taken.
    pub epoch: Epoch,
    /// The boot in which the copy was whole; in another one, what was not synced may be gone. Zero for none.
    pub whole_in: BootId,
    /// The copy may lack what was synced, too. It is whole in no boot then.
    pub is_damaged: bool,
}

impl Promise {
    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PROMISE_BYTES] {
        let mut out = Vec::with_capacity(PROMISE_BYTES);
        out.extend_from_slice(&PROMISE.lead());
        out.extend_from_slice(&self.cluster.0);
        out.extend_from_slice(&self.node.0.to_le_bytes());
        out.extend_from_slice(&self.volume.0);
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
        out.extend_from_slice(&self.whole_in.0);
        out.push(u8::from(self.is_damaged));
        out.resize(PROMISE_BYTES - 4, 0);
        out.extend_from_slice(&crc32c(&out).to_le_bytes());
        out.try_into().expect("the fields and the reserved bytes make up the file")
    }

    /// Reads the file.
    ///
    /// # Errors
    /// When `bytes` are not exactly one promise of a version this program reads.
    pub fn decode(bytes: &[u8]) -> Result<Self, PromiseError> {
        PROMISE.check(bytes)?;
        let (covered, crc) = bytes.split_last_chunk::<4>().ok_or(ReadError::Truncated)?;
        if bytes.len() != PROMISE_BYTES || u32::from_le_bytes(*crc) != crc32c(covered) {
            return Err(PromiseError::Damaged);
        }
        let mut reader = Reader::new(covered);
        reader.take(LEAD_BYTES)?;
        let (cluster, node) = (ClusterId(reader.array()?), NodeId(reader.u64()?));
        let (volume, epoch) = (VolumeId(reader.array()?), Epoch(reader.u64()?));
        let whole_in = BootId(reader.array()?);
        let is_damaged = match (reader.array()?, whole_in) {
            ([0], _) => false,
            ([1], BootId::ZERO) => true,
            _ => return Err(ReadError::Field("damaged").into()),
        };
        reader.zeros("reserved")?;
        Ok(Self { cluster, node, volume, epoch, whole_in, is_damaged })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMISED: Promise = Promise {
        cluster: ClusterId([0xc1; 16]),
        node: NodeId(2),
        volume: VolumeId([0x70; 16]),
        epoch: Epoch(9),
        whole_in: BootId([0xb0; 16]),
        is_damaged: false,
    };

    const DAMAGED: Promise = Promise { whole_in: BootId::ZERO, is_damaged: true, ..PROMISED };

    #[test]
    fn it_reads_back_and_any_change_shows() {
        let bytes = PROMISED.encode();
        assert_eq!(Promise::decode(&bytes), Ok(PROMISED));
        for at in 0..bytes.len() {
            let mut changed = bytes;
            changed[at] ^= 0x10;
            assert!(Promise::decode(&changed).is_err(), "byte {at}");
            assert!(Promise::decode(&bytes[..at]).is_err(), "length {at}");
        }
        assert!(Promise::decode(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn reserved_bytes_and_newer_files_are_refused() {
        let with = |promise: Promise, at: usize, byte: u8| {
            let mut bytes = promise.encode();
            bytes[at] = byte;
            let crc = crc32c(&bytes[..76]).to_le_bytes();
            bytes[76..].copy_from_slice(&crc);
            bytes
        };
        for bytes in [with(DAMAGED, 72, 2), with(DAMAGED, 73, 1), with(DAMAGED, 75, 1)] {
            assert!(matches!(Promise::decode(&bytes), Err(PromiseError::Read(_))));
        }
        let both = Promise::decode(&with(PROMISED, 72, 1));
        assert_eq!(both, Err(PromiseError::Read(ReadError::Field("damaged"))), "damaged, and whole in a boot");
        let mut bytes = PROMISED.encode();
        bytes[4] = 2;
        assert_eq!(Promise::decode(&bytes), Err(PromiseError::Lead(LeadError::Newer { found: 2, known: 1 })));
    }

    #[test]
    fn version_1_is_written_and_read_as_it_was_released() {
        let golden = include_bytes!("../../tests/golden/promise-1.bin");
        assert_eq!(PROMISED.encode(), *golden);
        assert_eq!(Promise::decode(golden), Ok(PROMISED));
        let golden = include_bytes!("../../tests/golden/promise-damaged-1.bin");
        assert_eq!(DAMAGED.encode(), *golden);
        assert_eq!(Promise::decode(golden), Ok(DAMAGED));
    }
}
