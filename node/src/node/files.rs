//! Small files written whole: made complete under another name first, so that a crash leaves the old one or the new one.

use std::{io, path::Path};

use bytes::Bytes;

use crate::env::{Disk, OpenMode};

/// Replaces `path` by `contents`, durably.
///
/// # Errors
/// Whatever the disk says; the old file then still stands.
pub(super) async fn replace(disk: &dyn Disk, path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    match disk.remove(&new).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.open(&new, OpenMode::CreateNew).await?;
    file.write_at(0, contents)?;
    file.sync().await?;
    disk.rename(&new, path).await?;
    disk.sync_dir(dir).await
}

/// The contents of a small file, or `None` when there is none.
///
/// # Errors
/// `InvalidData` when it is longer than `bytes_max`; otherwise whatever the disk says.
pub(super) async fn read(disk: &dyn Disk, path: &Path, bytes_max: u64) -> io::Result<Option<Bytes>> {
    let file = match disk.open(path, OpenMode::Read).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let size = file.size()?;
    let len = usize::try_from(size).ok().filter(|_| size <= bytes_max).ok_or(io::ErrorKind::InvalidData)?;
    file.read_at(0, len).await.map(Some)
}
