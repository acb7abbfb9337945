//! Frames from a stream.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use velum_protocol::peer::{Frame, FrameError, HEADER_BYTES, Header};

/// Why there is no next frame.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadFault {
    /// The stream ended or broke.
    #[error("the connection ended: {0}")]
    Io(#[from] std::io::Error),
    /// What came is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// The next frame and its length. Bytes are waited for only after the header has been judged.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<(Frame, usize), ReadFault> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let Header { kind, body_bytes } = Header::decode(&header)?;
    // Not zeroed first: that would touch all of it once more.
    let mut body = BytesMut::with_capacity(body_bytes);
    let mut rest = stream.take(u64::try_from(body_bytes).expect("a length in memory fits 64 bits"));
    while body.len() < body_bytes {
        if rest.read_buf(&mut body).await? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
    }
    Ok((Frame::decode(kind, &body.freeze())?, HEADER_BYTES + body_bytes))
}
