//! The journal's reach file: how far it was written, and how far it was synced, by the word of the process that did it.
//!
//! Records say what was durable when they were made, so nothing but this file tells what the last sync covered. It is never
//! synced for a barrier: after a crash of the process the page cache has it, after a loss of power an older one that the disk
//! holds claims less. `written` counts only in the boot it was written in; `durable` counts in any.

use super::{
    journal::{Mark, Position},
    reader::{ReadError, Reader},
};
use crate::{
    checksum::crc32c,
    id::{BootId, ClusterId, NodeId},
    version::{JOURNAL_REACH, LEAD_BYTES, LeadError},
};

/// Bytes of a place that count.
pub const REACH_BYTES: usize = 128;

/// Bytes from one of the two places to the other: pages of their own, so that what spoils one leaves the other.
pub const REACH_PLACE_BYTES: usize = 4096;

/// Bytes of the file: two places, written in turn.
pub const REACH_FILE_BYTES: usize = 2 * REACH_PLACE_BYTES;

/// Where the checksum stands, in every version.
const CRC_AT: usize = REACH_BYTES - 4;

/// Why a place is not accepted. A newer one must be left alone; any other says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReachError {
    /// Another kind of file, or a newer version.
    #[error(transparent)]
    Lead(#[from] LeadError),
    /// Too short, or reserved bytes in use.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The checksum does not match, or nothing was ever written there.
    #[error("the checksum does not match")]
    Damaged,
}

/// How far the journal reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node whose journal it is.
    pub node: NodeId,
    /// The boot it was written in.
    pub boot: BootId,
    /// The end of the last record that was written.
    pub written: Mark,
    /// What was durable then.
    pub durable: Durable,
}

/// What a completed sync covers, to the byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    /// The file of the ring that the sync ended in.
    pub file: u32,
    /// The end of the last record covered.
    pub end: Mark,
    /// The last record of raft covered; zero when there is none.
    pub raft: Position,
}

impl Reach {
    /// The bytes of a place.
    #[must_use]
    pub fn encode(&self) -> [u8; REACH_BYTES] {
        let Durable { file, end, raft } = self.durable;
        let mut out = Vec::with_capacity(REACH_BYTES);
        out.extend_from_slice(&JOURNAL_REACH.lead());
        out.extend_from_slice(&self.cluster.0);
        out.extend_from_slice(&self.node.0.to_le_bytes());
        out.extend_from_slice(&self.boot.0);
        out.extend_from_slice(&file.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for number in [self.written.lap, self.written.offset, end.lap, end.offset, raft.epoch, raft.number] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.resize(CRC_AT, 0);
        out.extend_from_slice(&crc32c(&out).to_le_bytes());
        out.try_into().expect("the fields and the reserved bytes make up the place")
    }

    /// Reads a place. The checksum is looked at first, so `Newer` is the word of a newer build and not of a flipped bit.
    ///
    /// # Errors
    /// When `bytes` do not begin with what a version that this program reads has written.
    pub fn decode(bytes: &[u8]) -> Result<Self, ReachError> {
        let place: &[u8; REACH_BYTES] = bytes.first_chunk().ok_or(ReadError::Truncated)?;
        let (covered, crc) = place.split_last_chunk::<4>().ok_or(ReadError::Truncated)?;
        if u32::from_le_bytes(*crc) != crc32c(covered) {
            return Err(ReachError::Damaged);
        }
        JOURNAL_REACH.check(place)?;
        let mut reader = Reader::new(covered);
        reader.take(LEAD_BYTES)?;
        let (cluster, node, boot) = (ClusterId(reader.array()?), NodeId(reader.u64()?), BootId(reader.array()?));
        let file = reader.u32()?;
        if reader.u32()? != 0 {
            return Err(ReadError::Field("reserved").into());
        }
        let written = Mark { lap: reader.u64()?, offset: reader.u64()? };
        let end = Mark { lap: reader.u64()?, offset: reader.u64()? };
        let raft = Position { epoch: reader.u64()?, number: reader.u64()? };
        reader.zeros("reserved")?;
        Ok(Self { cluster, node, boot, written, durable: Durable { file, end, raft } })
    }
}

/// What the two places of a reach file say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReachPlaces {
    /// The one that reaches farther.
    pub newest: Option<Reach>,
    /// Both can be read. What cannot be read may have reached farther.
    pub whole: bool,
}

impl ReachPlaces {
    /// Reads both places; what is missing counts as unreadable.
    ///
    /// # Errors
    /// When a newer version wrote one of them.
    pub fn decode(bytes: &[u8]) -> Result<Self, LeadError> {
        let mut places = Self { newest: None, whole: true };
        for place in [bytes, bytes.get(REACH_PLACE_BYTES..).unwrap_or_default()] {
            match Reach::decode(place) {
                Ok(found) => {
                    let is_newer =
                        |newest: Reach| (found.written, found.durable.end) > (newest.written, newest.durable.end);
                    if places.newest.is_none_or(is_newer) {
                        places.newest = Some(found);
                    }
                }
                Err(ReachError::Lead(newer @ LeadError::Newer { .. })) => return Err(newer),
                Err(_) => places.whole = false,
            }
        }
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(written: u64, durable: u64) -> Reach {
        let mark = |offset| Mark { lap: 7, offset };
        Reach {
            cluster: ClusterId([0xc1; 16]),
            node: NodeId(2),
            boot: BootId([0xb0; 16]),
            written: mark(written),
            durable: Durable { file: 3, end: mark(durable), raft: Position { epoch: 4, number: 5 } },
        }
    }

    fn file(places: [&[u8]; 2]) -> Vec<u8> {
        let mut bytes = vec![0; REACH_FILE_BYTES];
        for (at, place) in [0, REACH_PLACE_BYTES].into_iter().zip(places) {
            bytes[at..at + place.len()].copy_from_slice(place);
        }
        bytes
    }

    #[test]
    fn it_reads_back_and_any_change_shows() {
        let bytes = reach(4096, 2048).encode();
        assert_eq!(Reach::decode(&bytes), Ok(reach(4096, 2048)));
        for at in 0..bytes.len() {
            let mut changed = bytes;
            changed[at] ^= 0x10;
            assert!(Reach::decode(&changed).is_err(), "byte {at}");
            assert!(Reach::decode(&bytes[..at]).is_err(), "length {at}");
        }
        assert_eq!(Reach::decode(&[0; REACH_BYTES]), Err(ReachError::Damaged));
    }

    #[test]
    fn the_place_that_reaches_farther_counts() {
        let (old, new) = (reach(4096, 2048), reach(4096, 4096));
        for places in [[&old.encode()[..], &new.encode()], [&new.encode(), &old.encode()]] {
            assert_eq!(ReachPlaces::decode(&file(places)), Ok(ReachPlaces { newest: Some(new), whole: true }));
        }
        let spoiled = ReachPlaces::decode(&file([&old.encode(), &[1; 90]]));
        assert_eq!(spoiled, Ok(ReachPlaces { newest: Some(old), whole: false }));
        let cut = ReachPlaces::decode(&old.encode());
        assert_eq!(cut, Ok(ReachPlaces { newest: Some(old), whole: false }));
        assert_eq!(ReachPlaces::decode(&[]), Ok(ReachPlaces { newest: None, whole: false }));
    }

    #[test]
    fn a_newer_place_is_told_from_damage() {
        let mut bytes = reach(4096, 2048).encode();
        bytes[4] = 2;
        let newer = LeadError::Newer { found: 2, known: 1 };
        assert_eq!(Reach::decode(&bytes), Err(ReachError::Damaged));
        let crc = crc32c(&bytes[..CRC_AT]).to_le_bytes();
        bytes[CRC_AT..].copy_from_slice(&crc);
        assert_eq!(Reach::decode(&bytes), Err(ReachError::Lead(newer)));
        assert_eq!(ReachPlaces::decode(&file([&reach(1, 1).encode(), &bytes])), Err(newer));
    }

    #[test]
    fn version_1_is_written_and_read_as_it_was_released() {
        let golden = include_bytes!("../../tests/golden/journal-reach-1.bin");
        assert_eq!(reach(4096, 2048).encode(), *golden);
        assert_eq!(Reach::decode(golden), Ok(reach(4096, 2048)));
    }
}
