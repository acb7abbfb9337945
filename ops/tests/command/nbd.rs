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
    let (mut stream, mut kind) = ask_for(address, name);
    while kind != ACK {
        assert_eq!(kind, INFO, "the export is there");
        kind = option_reply(&mut stream);
    }
    let length = u32::try_from(bytes.len()).expect("a short write");
    let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
    request.extend([0, 0, 0, 1]);
    request.extend(7_u64.to_be_bytes());
    request.extend(offset.to_be_bytes());
    request.extend(length.to_be_bytes());
    request.extend(bytes);
    stream.write_all(&request).expect("a request can be sent");
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).expect("a reply");
    assert_eq!(reply[4..8], [0; 4], "the write is acked");
}
