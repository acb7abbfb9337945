//! The boot file of a node's directory: the boot in which acked writes may be in the page cache alone.
//!
//! A node that starts and finds another boot here than the one it runs in cannot know what the page cache of that boot still
//! held. A node that stopped cleanly had synced everything and says so here; a start that finds acked writes lost notes that
//! here before it changes anything else, so that the next one still tells of it when this one is broken off.

use super::reader::{ReadError, Reader};
use crate::{
    checksum::crc32c,
    id::{BootId, ClusterId, NodeId},
    version::{BOOT_FILE, LEAD_BYTES, LeadError},
};

/// Bytes of the file.
pub const BOOT_BYTES: usize = 64;

/// How a node that holds its directory in a boot stands to what it acked there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootState {
    /// It runs, or ended without a word: what it acked may be in the page cache alone.
    InUse,
    /// It has stopped, and everything was synced.
    Stopped,
    /// A start found that acked writes may be lost, and lineages have not changed yet.
    Doubtful,
    /// The cluster has removed it: it never starts again.
    Removed,
    /// A later life of the cluster has begun without it: it never starts again.
    Outlived,
}

impl BootState {
    const fn byte(self) -> u8 {
        match self {
            Self::InUse => 1,
            Self::Stopped => 2,
            Self::Doubtful => 3,
            Self::Removed => 4,
            Self::Outlived => 5,
        }
    }

    fn of(byte: u8) -> Option<Self> {
        let known = [Self::InUse, Self::Stopped, Self::Doubtful, Self::Removed, Self::Outlived];
        known.into_iter().find(|state| state.byte() == byte)
    }
}

/// Why a boot file is not accepted. A newer one must be left alone; any other says nothing about the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootError {
    /// Another kind of file, or a newer version.
    #[error(transparent)]
    Lead(#[from] LeadError),
    /// Too short, or reserved bytes in use.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The length or the checksum does not match.
    #[error("the boot file is damaged")]
    Damaged,
}

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootFile {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The boot of the machine in which the node last started.
    pub boot: BootId,
    /// What became of it since.
    pub state: BootState,
}

impl BootFile {
    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; BOOT_BYTES] {
        let mut out = Vec::with_capacity(BOOT_BYTES);
        out.extend_from_slice(&BOOT_FILE.lead());
        out.extend_from_slice(&self.cluster.0);
        out.extend_from_slice(&self.node.0.to_le_bytes());
        out.extend_from_slice(&self.boot.0);
        out.push(self.state.byte());
        out.resize(BOOT_BYTES - 4, 0);
        out.extend_from_slice(&crc32c(&out).to_le_bytes());
        out.try_into().expect("the fields and the reserved bytes make up the file")
    }

    /// Reads the file.
    ///
    /// # Errors
    /// When `bytes` are not exactly one boot file of a version this program reads.
    pub fn decode(bytes: &[u8]) -> Result<Self, BootError> {
        BOOT_FILE.check(bytes)?;
        let (covered, crc) = bytes.split_last_chunk::<4>().ok_or(ReadError::Truncated)?;
        if bytes.len() != BOOT_BYTES || u32::from_le_bytes(*crc) != crc32c(covered) {
            return Err(BootError::Damaged);
        }
        let mut reader = Reader::new(covered);
        reader.take(LEAD_BYTES)?;
        let (cluster, node, boot) = (ClusterId(reader.array()?), NodeId(reader.u64()?), BootId(reader.array()?));
        let [state] = reader.array()?;
        let state = BootState::of(state).ok_or(ReadError::Field("state"))?;
        reader.zeros("reserved")?;
        Ok(Self { cluster, node, boot, state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(state: BootState) -> BootFile {
        BootFile { cluster: ClusterId([0xc1; 16]), node: NodeId(2), boot: BootId([0xb0; 16]), state }
    }

    #[test]
    fn it_reads_back_and_any_change_shows() {
        let states =
            [BootState::InUse, BootState::Stopped, BootState::Doubtful, BootState::Removed, BootState::Outlived];
        for state in states {
            let bytes = file(state).encode();
            assert_eq!(BootFile::decode(&bytes), Ok(file(state)));
            for at in 0..bytes.len() {
                let mut changed = bytes;
                changed[at] ^= 0x10;
                assert!(BootFile::decode(&changed).is_err(), "byte {at}");
                assert!(BootFile::decode(&bytes[..at]).is_err(), "length {at}");
            }
            assert!(BootFile::decode(&[&bytes[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn what_is_whole_and_makes_no_sense_is_refused() {
        for (at, value) in [(48, 0), (48, 6), (49, 1), (59, 1)] {
            let mut bytes = file(BootState::InUse).encode();
            bytes[at] = value;
            let crc = crc32c(&bytes[..60]).to_le_bytes();
            bytes[60..].copy_from_slice(&crc);
            assert!(matches!(BootFile::decode(&bytes), Err(BootError::Read(_))), "byte {at}");
        }
    }

    #[test]
    fn a_newer_file_is_told_from_damage() {
        let mut bytes = file(BootState::InUse).encode();
        bytes[4] = 2;
        let newer = LeadError::Newer { found: 2, known: 1 };
        assert_eq!(BootFile::decode(&bytes), Err(BootError::Lead(newer)));
    }

    #[test]
    fn version_1_is_written_and_read_as_it_was_released() {
        for (state, golden) in [
            (BootState::InUse, include_bytes!("../../tests/golden/boot-in-use-1.bin")),
            (BootState::Stopped, include_bytes!("../../tests/golden/boot-stopped-1.bin")),
            (BootState::Doubtful, include_bytes!("../../tests/golden/boot-doubtful-1.bin")),
            (BootState::Removed, include_bytes!("../../tests/golden/boot-removed-1.bin")),
            (BootState::Outlived, include_bytes!("../../tests/golden/boot-outlived-1.bin")),
        ] {
            assert_eq!(file(state).encode(), *golden);
            assert_eq!(BootFile::decode(golden), Ok(file(state)));
        }
    }
}
