//! The lead of every stored thing: eight bytes in the clear that say what it is and how to read it.
//!
//! ```text
//! 0..4  magic
//! 4..6  version, u16 little-endian
//! 6..8  reserved, zero
//! ```
//!
//! A newer version than this build knows is refused and left untouched; an older one is read as long as its reader is kept.
//! The version fixes the cipher suite too: no algorithm field is ever honoured.

/// Bytes of the lead.
pub const LEAD_BYTES: usize = 8;

/// A kind of stored thing, in the version this build writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// The first four bytes.
    pub magic: [u8; 4],
    /// The version written, and the highest one read.
    pub version: u16,
}

/// Who the clouds belong to.
pub const IDENTITY: Format = Format { magic: *b"VLid", version: 1 };
/// Key slots and wrapped cluster keys.
pub const SLOTS: Format = Format { magic: *b"VLks", version: 1 };
/// Segment object.
pub const SEGMENT: Format = Format { magic: *b"VLsg", version: 1 };
/// Sequence record.
pub const SEQUENCE_RECORD: Format = Format { magic: *b"VLsq", version: 1 };
/// Checkpoint page.
pub const CHECKPOINT_PAGE: Format = Format { magic: *b"VLcp", version: 1 };
/// Checkpoint root.
pub const CHECKPOINT_ROOT: Format = Format { magic: *b"VLcr", version: 1 };
/// Checkpoint stub.
pub const CHECKPOINT_STUB: Format = Format { magic: *b"VLcs", version: 1 };
/// Catalogue record.
pub const CATALOGUE: Format = Format { magic: *b"VLca", version: 1 };
/// Incarnation claim.
pub const CLAIM: Format = Format { magic: *b"VLcl", version: 1 };
/// Journal file.
pub const JOURNAL_FILE: Format = Format { magic: *b"VLjf", version: 1 };
/// Journal record of a guest's write.
pub const JOURNAL_RECORD: Format = Format { magic: *b"VLjr", version: 1 };
/// Journal record of raft's log and hard state.
pub const RAFT_RECORD: Format = Format { magic: *b"VLrl", version: 1 };
/// How far the journal reaches.
pub const JOURNAL_REACH: Format = Format { magic: *b"VLre", version: 1 };
/// Raft snapshot file.
pub const RAFT_SNAPSHOT: Format = Format { magic: *b"VLrs", version: 1 };
/// What a node keeps until it has joined a cluster.
pub const JOIN_FILE: Format = Format { magic: *b"VLjn", version: 1 };
/// A member's promise.
pub const PROMISE: Format = Format { magic: *b"VLpm", version: 1 };
/// Boot file.
pub const BOOT_FILE: Format = Format { magic: *b"VLbt", version: 1 };
/// Disk cache file.
pub const CACHE_FILE: Format = Format { magic: *b"VLdc", version: 1 };
/// A frame between nodes.
pub const PEER_FRAME: Format = Format { magic: *b"VLpr", version: 1 };

/// Why a lead is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeadError {
    /// Too short, or another magic: this is something else.
    #[error("this is no {} object or file", .expected.escape_ascii())]
    OtherKind {
        /// The magic looked for.
        expected: [u8; 4],
    },
    /// Written by a newer version of Velum.
    #[error("format version {found} is newer than {known}, the newest this build reads")]
    Newer {
        /// Version found.
        found: u16,
        /// Newest version known.
        known: u16,
    },
    /// Version zero, or reserved bytes in use: damage.
    #[error("the lead of the object or file is damaged")]
    Damaged,
}

impl Format {
    /// The eight bytes to write.
    #[must_use]
    pub const fn lead(self) -> [u8; LEAD_BYTES] {
        let [a, b, c, d] = self.magic;
        let [low, high] = self.version.to_le_bytes();
        [a, b, c, d, low, high, 0, 0]
    }

    /// Checks the lead of `bytes`; gives the version found and what follows the lead.
    ///
    /// # Errors
    /// When the bytes are of another kind, newer, or damaged.
    pub fn check(self, bytes: &[u8]) -> Result<(u16, &[u8]), LeadError> {
        let Some(([a, b, c, d, low, high, reserved @ ..], rest)) = bytes.split_first_chunk::<LEAD_BYTES>() else {
            return Err(LeadError::OtherKind { expected: self.magic });
        };
        if [*a, *b, *c, *d] != self.magic {
            return Err(LeadError::OtherKind { expected: self.magic });
        }
        let found = u16::from_le_bytes([*low, *high]);
        if found > self.version {
            return Err(LeadError::Newer { found, known: self.version });
        }
        if found == 0 || *reserved != [0, 0] {
            return Err(LeadError::Damaged);
        }
        Ok((found, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lead_reads_back() {
        let mut bytes = SEGMENT.lead().to_vec();
        bytes.push(9);
        assert_eq!(bytes, b"VLsg\x01\0\0\0\x09");
        assert_eq!(SEGMENT.check(&bytes), Ok((1, &[9][..])));
    }

    #[test]
    fn other_newer_and_damaged_leads_are_told_apart() {
        assert_eq!(SEGMENT.check(&CLAIM.lead()), Err(LeadError::OtherKind { expected: *b"VLsg" }));
        assert_eq!(SEGMENT.check(b"VLsg\x01\0\0"), Err(LeadError::OtherKind { expected: *b"VLsg" }));
        assert_eq!(SEGMENT.check(b"VLsg\x02\0\0\0"), Err(LeadError::Newer { found: 2, known: 1 }));
        assert_eq!(SEGMENT.check(b"VLsg\x00\0\0\0"), Err(LeadError::Damaged));
        assert_eq!(SEGMENT.check(b"VLsg\x01\0\0\x01"), Err(LeadError::Damaged));
    }

    #[test]
    fn no_two_kinds_share_a_magic() {
        let mut magics = [
            IDENTITY,
            SLOTS,
            SEGMENT,
            SEQUENCE_RECORD,
            CHECKPOINT_PAGE,
            CHECKPOINT_ROOT,
            CHECKPOINT_STUB,
            CATALOGUE,
            CLAIM,
            JOURNAL_FILE,
            JOURNAL_RECORD,
            RAFT_RECORD,
            RAFT_SNAPSHOT,
            JOIN_FILE,
            BOOT_FILE,
            CACHE_FILE,
            PEER_FRAME,
            PROMISE,
        ]
        .map(|format| format.magic);
        magics.sort_unstable();
        assert!(magics.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
