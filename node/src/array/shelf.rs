//! What is known of the newest objects: which clouds hold them, and their bytes while some cloud still lacks them.
//!
//! A shelf only saves work. What has fallen off it is asked of the clouds again, so it is bounded in entries and in bytes
//! and may be empty at any time, as it is after a start.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use velum_protocol::format::metadata::CloudName;

use crate::keyring::ObjectId;

/// Objects remembered; beyond that the oldest are forgotten.
const ENTRIES_MAX: usize = 8192;

/// Bytes kept for clouds that lag; beyond that the oldest are dropped and read from another cloud when needed.
const BYTES_MAX: usize = 64 << 20;

#[derive(Debug, Default)]
struct Entry {
    held: BTreeSet<CloudName>,
    busy: BTreeSet<CloudName>,
    stored: Option<Bytes>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    entries: BTreeMap<ObjectId, Entry>,
    /// In the order they came.
    order: VecDeque<ObjectId>,
    /// Objects whose bytes are here, in the order they came.
    with_bytes: VecDeque<ObjectId>,
    bytes: usize,
}

impl Shelf {
    /// Puts an object's bytes up.
    pub(super) fn put_up(&mut self, id: ObjectId, stored: Bytes) {
        let length = stored.len();
        let entry = self.entry(id);
        if entry.stored.replace(stored).is_none() {
            self.bytes += length;
            self.with_bytes.push_back(id);
        }
        while self.bytes > BYTES_MAX {
            let Some(oldest) = self.with_bytes.pop_front() else { break };
            self.drop_bytes(&oldest);
        }
    }

    /// The bytes of an object, if they are still here.
    pub(super) fn bytes_of(&self, id: &ObjectId) -> Option<Bytes> {
        self.entries.get(id).and_then(|entry| entry.stored.clone())
    }

    /// A copy is on its way to a cloud.
    pub(super) fn set_busy(&mut self, id: ObjectId, cloud: &CloudName) {
        self.entry(id).busy.insert(cloud.clone());
    }

    /// The copy that was on its way has arrived, or has not.
    pub(super) fn set_done(&mut self, id: ObjectId, cloud: &CloudName, held: bool) {
        let entry = self.entry(id);
        entry.busy.remove(cloud);
        if held {
            entry.held.insert(cloud.clone());
        }
    }

    /// True while a copy is on its way to a cloud.
    pub(super) fn is_busy(&self, id: &ObjectId, cloud: &CloudName) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.busy.contains(cloud))
    }

    /// True when a cloud is known to hold an object.
    pub(super) fn is_held(&self, id: &ObjectId, cloud: &CloudName) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.held.contains(cloud))
    }

    /// How many clouds are known to hold an object.
    pub(super) fn holders(&self, id: &ObjectId) -> usize {
        self.entries.get(id).map_or(0, |entry| entry.held.len())
    }

    /// No cloud needs the object from here any more.
    pub(super) fn take_down(&mut self, id: &ObjectId) {
        self.drop_bytes(id);
        self.with_bytes.retain(|other| other != id);
    }

    /// The object is about to be deleted: nothing that is known of it holds any more.
    pub(super) fn forget(&mut self, id: &ObjectId) {
        self.take_down(id);
        if self.entries.remove(id).is_some() {
            self.order.retain(|other| other != id);
        }
    }

    /// Nothing is known any more to be in a cloud.
    pub(super) fn forget_cloud(&mut self, cloud: &CloudName) {
        for entry in self.entries.values_mut() {
            entry.held.remove(cloud);
        }
    }

    fn entry(&mut self, id: ObjectId) -> &mut Entry {
        if !self.entries.contains_key(&id) {
            self.order.push_back(id);
            if self.order.len() > ENTRIES_MAX {
                self.forget_oldest();
            }
        }
        self.entries.entry(id).or_default()
    }

    /// Forgets the oldest object that is not on its way anywhere.
    fn forget_oldest(&mut self) {
        let idle = self.order.iter().position(|id| self.entries.get(id).is_none_or(|entry| entry.busy.is_empty()));
        if let Some(id) = idle.and_then(|place| self.order.remove(place)) {
            self.take_down(&id);
            self.entries.remove(&id);
        }
    }

    fn drop_bytes(&mut self, id: &ObjectId) {
        if let Some(stored) = self.entries.get_mut(id).and_then(|entry| entry.stored.take()) {
            self.bytes -= stored.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use velum_protocol::id::{Incarnation, VolumeId};

    use super::*;
    use crate::keyring::ObjectKind;

    fn id(number: u64) -> ObjectId {
        ObjectId { kind: ObjectKind::Segment, volume: VolumeId::ZERO, incarnation: Incarnation(1), number }
    }

    fn cloud(name: &str) -> CloudName {
        CloudName(name.into())
    }

    #[test]
    fn bytes_stay_within_their_bound_and_the_newest_are_kept() {
        let mut shelf = Shelf::default();
        for number in 0..20 {
            shelf.put_up(id(number), Bytes::from(vec![0; 8 << 20]));
        }
        assert!(shelf.bytes <= BYTES_MAX);
        assert!(shelf.bytes_of(&id(19)).is_some());
        assert!(shelf.bytes_of(&id(0)).is_none());
    }

    #[test]
    fn entries_stay_within_their_bound_and_what_is_on_its_way_is_kept() {
        let mut shelf = Shelf::default();
        shelf.set_busy(id(0), &cloud("a"));
        for number in 1..=u64::try_from(ENTRIES_MAX).unwrap() + 10 {
            shelf.set_done(id(number), &cloud("a"), true);
        }
        assert_eq!(shelf.order.len(), ENTRIES_MAX);
        assert!(shelf.is_busy(&id(0), &cloud("a")));
        assert!(!shelf.is_held(&id(1), &cloud("a")));
    }

    #[test]
    fn a_copy_that_did_not_arrive_is_not_held() {
        let mut shelf = Shelf::default();
        shelf.set_busy(id(1), &cloud("a"));
        shelf.set_done(id(1), &cloud("a"), false);
        assert!(!shelf.is_busy(&id(1), &cloud("a")));
        assert_eq!(shelf.holders(&id(1)), 0);
    }

    #[test]
    fn bytes_taken_down_are_counted_out_once() {
        let mut shelf = Shelf::default();
        shelf.put_up(id(1), Bytes::from(vec![0; 10]));
        shelf.take_down(&id(1));
        shelf.take_down(&id(1));
        shelf.forget(&id(1));
        assert_eq!((shelf.bytes, shelf.order.len(), shelf.with_bytes.len()), (0, 0, 0));
    }
}
