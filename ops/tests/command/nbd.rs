//! As much of an NBD client as these tests need, written from the protocol alone.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

/// The export name is one that the server does not have or does not show.
pub(crate) const UNKNOWN: u32 = (1 << 31) + 6;
/// The export is described.
pub(crate) const INFO: u32 = 3;

const ACK: u32 = 1;
const GO: u32 = 7;

/// Connects and asks to use an export; gives the type of the first reply.
pub(crate) fn ask_for(address: &str, name: &str) -> (TcpStream, u32) {
    let mut stream = TcpStream::connect(address).expect("the NBD door is open");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout can be set");
    stream.read_exact(&mut [0; 18]).expect("a greeting");
    let length = u32::try_from(name.len()).expect("a short name");
    let mut asked = 3_u32.to_be_bytes().to_vec();
    asked.extend(b"IHAVEOPT");
    asked.extend([GO, length + 6, length].into_iter().flat_map(u32::to_be_bytes));
    asked.extend(name.as_bytes());
    asked.extend([0, 0]);
    stream.write_all(&asked).expect("an option can be sent");
    let kind = option_reply(&mut stream);
    (stream, kind)
}

fn option_reply(stream: &mut TcpStream) -> u32 {
    let mut head = [0; 20];
    stream.read_exact(&mut head).expect("a reply to the option");
    let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let mut rest = vec![0; number(16) as usize];
    stream.read_exact(&mut rest).expect("the rest of the reply");
    number(12)
}

/// Writes `bytes` at an offset of an export.
pub(crate) fn write(address: &str, name: &str, offset: u64, bytes: &[u8]) {
    assert_eq!(Client::connect(address, name).write(offset, bytes), Ok(0), "the write is acked");
}

/// A client that has chosen an export.
pub(crate) struct Client {
    stream: TcpStream,
    cookie: u64,
}

/// The connection ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// Commands.
pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const FLUSH: u16 = 3;

/// The errors of replies.
pub(crate) const EPERM: u32 = 1;

impl Client {
    /// Connects and chooses an export.
    pub(crate) fn connect(address: &str, name: &str) -> Self {
        let (mut stream, mut kind) = ask_for(address, name);
        while kind != ACK {
            assert_eq!(kind, INFO, "the export is there");
            kind = option_reply(&mut stream);
        }
        Self { stream, cookie: 0 }
    }

    /// Sends a request without waiting for its reply; gives its cookie.
    pub(crate) fn ask(&mut self, command: u16, offset: u64, length: u32, payload: &[u8]) -> Result<u64, Gone> {
        self.cookie += 1;
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(command.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        request.extend(payload);
        self.stream.write_all(&request).map_err(|_| Gone)?;
        Ok(self.cookie)
    }

    /// The next reply: error and cookie.
    pub(crate) fn reply(&mut self) -> Result<(u32, u64), Gone> {
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).map_err(|_| Gone)?;
        let error = u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]]);
        let (_, cookie) = reply.split_last_chunk().expect("a reply has 16 bytes");
        Ok((error, u64::from_be_bytes(*cookie)))
    }

    /// Writes; gives the reply's error, 0 for none.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<u32, Gone> {
        let length = u32::try_from(bytes.len()).expect("a short write");
        let cookie = self.ask(WRITE, offset, length, bytes)?;
        let (error, answered) = self.reply()?;
        assert_eq!(answered, cookie);
        Ok(error)
    }

    /// Waits until what was acked lasts.
    pub(crate) fn flush(&mut self) -> Result<u32, Gone> {
        self.ask(FLUSH, 0, 0, &[])?;
        Ok(self.reply()?.0)
    }

    /// Reads.
    pub(crate) fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, Gone> {
        self.ask(READ, offset, length, &[])?;
        assert_eq!(self.reply()?.0, 0, "the read is answered");
        let mut bytes = vec![0; length as usize];
        self.stream.read_exact(&mut bytes).map_err(|_| Gone)?;
        Ok(bytes)
    }
}
