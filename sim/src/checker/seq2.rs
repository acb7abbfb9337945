//! SEQ2: when a record is committed, every segment it names lies byte-exact in at least w clouds. A record reaches a cloud
//! only after its commit, so the judgement is made when the first cloud gets it. What a cloud was given counts also when it
//! was emptied since: nobody can keep that from happening between the two.

use velum_node::keyring::{ObjectId, ObjectKind};

use super::Verdict;
use crate::ledger::{Holding, Record};

/// Judges a record that no cloud had before.
///
/// # Errors
/// The first segment that fewer than `quorum` of the clouds hold.
pub fn check<'a>(
    holdings: impl Iterator<Item = &'a Holding> + Clone,
    quorum: usize,
    id: &ObjectId,
    record: &Record,
) -> Verdict {
    for segment in &record.body.segments {
        let (kind, incarnation, number) = (ObjectKind::Segment, segment.incarnation, segment.number.0);
        let named = ObjectId { kind, volume: id.volume, incarnation, number };
        let held = holdings.clone().filter(|holding| holding.was_given(&named, &segment.hash)).count();
        if held < quorum {
            return Err(format!(
                "record {} of volume {} is committed and its segment {number} lies in {held} clouds instead of {quorum}",
                id.number, id.volume
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use velum_protocol::{
        format::{
            metadata::ObjectRef,
            sequence::{Body, Link},
        },
        id::{Epoch, Hash, Incarnation, Jseq, ObjectNumber, VolumeId},
    };

    use super::*;

    #[test]
    fn a_segment_in_one_cloud_of_two_needed_is_rejected() {
        let volume = VolumeId([1; 16]);
        let id = |kind, number| ObjectId { kind, volume, incarnation: Incarnation(0), number };
        let segment = ObjectRef { incarnation: Incarnation(0), number: ObjectNumber(7), bytes: 1, hash: Hash([7; 32]) };
        let record = Record {
            link: Link { epoch: Epoch(1), first: Jseq(1), last: Jseq(1), prev_hash: Hash::ZERO },
            body: Body { journal_chain: Hash::ZERO, segments: vec![segment], updates: Vec::new() },
            chain: Hash::ZERO,
        };
        let mut clouds = vec![Holding::default(); 3];
        clouds[0].put(id(ObjectKind::Segment, 7), Hash([7; 32]), Vec::new());
        assert!(check(clouds.iter(), 2, &id(ObjectKind::Record, 1), &record).is_err());
        clouds[2].put(id(ObjectKind::Segment, 7), Hash([8; 32]), Vec::new());
        assert!(check(clouds.iter(), 2, &id(ObjectKind::Record, 1), &record).is_err(), "other bytes do not count");
        clouds[1].put(id(ObjectKind::Segment, 7), Hash([7; 32]), Vec::new());
        assert_eq!(check(clouds.iter(), 2, &id(ObjectKind::Record, 1), &record), Ok(()));
        clouds[1] = clouds[1].emptied();
        assert_eq!(check(clouds.iter(), 2, &id(ObjectKind::Record, 1), &record), Ok(()), "it was given to the cloud");
    }
}
