//! Frames from a stream.

use bytes::Bytes;
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
    let mut body = vec![0; body_bytes];
    stream.read_exact(&mut body).await?;
    Ok((Frame::decode(kind, &Bytes::from(body))?, HEADER_BYTES + body_bytes))
}
