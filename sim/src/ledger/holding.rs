//! One cloud's objects, and which of them are whole: nothing is missing that they name, or that those name in turn.
//!
//! Wholeness is kept up with every change instead of walked at every question: a checkpoint names all that a volume holds, and
//! a long run asks after every single object that is stored or deleted.

use std::collections::{BTreeMap, BTreeSet};

use velum_node::keyring::{ObjectId, ObjectKind};
use velum_protocol::id::{Hash, Incarnation, VolumeId};

/// What an object names, with the hash of its bytes where it vouches for one.
pub type Names = Vec<(ObjectId, Option<Hash>)>;

/// One cloud's objects, as the ledger knows them.
#[derive(Clone, Debug, Default)]
pub struct Holding {
    objects: BTreeMap<ObjectId, Held>,
    /// What was deleted there at some time.
    gone: BTreeSet<ObjectId>,
    /// What it was given and lost by no fault of the node's.
    lost: BTreeMap<ObjectId, Hash>,
    /// By an object that is held or not: those held that name it.
    named_by: BTreeMap<ObjectId, BTreeSet<ObjectId>>,
}

#[derive(Clone, Debug)]
struct Held {
    hash: Hash,
    names: Names,
    is_whole: bool,
}

impl Holding {
    /// True when it holds an object, with these bytes if a hash is given.
    #[must_use]
    pub fn holds(&self, id: &ObjectId, hash: Option<&Hash>) -> bool {
        self.objects.get(id).is_some_and(|held| hash.is_none_or(|hash| *hash == held.hash))
    }

    /// True when it holds an object with these bytes, or held it before it was emptied.
    #[must_use]
    pub fn was_given(&self, id: &ObjectId, hash: &Hash) -> bool {
        self.holds(id, Some(hash)) || self.lost.get(id) == Some(hash)
    }

    /// What is left when the cloud is emptied: nothing but the knowledge of what it was given.
    #[must_use]
    pub fn emptied(&self) -> Self {
        let given = self.objects.iter().map(|(id, held)| (*id, held.hash));
        Self { gone: self.gone.clone(), lost: self.lost.clone().into_iter().chain(given).collect(), ..Self::default() }
    }

    /// Takes over the knowledge of what another place was given in this one's stead.
    pub fn learn_from(&mut self, other: &Self) {
        self.lost.extend(other.lost.iter().map(|(id, hash)| (*id, *hash)));
        self.lost.extend(other.objects.iter().map(|(id, held)| (*id, held.hash)));
        self.gone.extend(&other.gone);
    }

    /// The hash of an object it holds.
    #[must_use]
    pub fn hash(&self, id: &ObjectId) -> Option<&Hash> {
        self.objects.get(id).map(|held| &held.hash)
    }

    /// What an object it holds names.
    #[must_use]
    pub fn names(&self, id: &ObjectId) -> &[(ObjectId, Option<Hash>)] {
        self.objects.get(id).map_or(&[], |held| &held.names)
    }

    /// True when it holds an object and all that it needs, with the bytes that are vouched for.
    #[must_use]
    pub fn is_whole(&self, id: &ObjectId) -> bool {
        self.objects.get(id).is_some_and(|held| held.is_whole)
    }

    /// Those it holds that name an object.
    pub fn named_by(&self, id: &ObjectId) -> impl Iterator<Item = &ObjectId> {
        self.named_by.get(id).into_iter().flatten()
    }

    /// True for what was deleted and came back: a request that had been under way since before, and took effect at last. Nobody
    /// can prevent that, and nobody reads it, for only what is behind a checkpoint is ever deleted.
    #[must_use]
    pub fn came_back(&self, id: &ObjectId) -> bool {
        self.gone.contains(id) && self.objects.contains_key(id)
    }

    /// Its objects of one kind and volume, in order of incarnation and number.
    pub fn of(&self, kind: ObjectKind, volume: VolumeId) -> impl DoubleEndedIterator<Item = (&ObjectId, &Hash)> {
        let id = |incarnation, number| ObjectId { kind, volume, incarnation, number };
        let range = self.objects.range(id(Incarnation(0), 0)..=id(Incarnation(u32::MAX), u64::MAX));
        range.map(|(id, held)| (id, &held.hash))
    }

    /// Takes in an object.
    pub fn put(&mut self, id: ObjectId, hash: Hash, names: Names) {
        if self.holds(&id, Some(&hash)) {
            return;
        }
        self.take_out(&id);
        for (named, _) in &names {
            self.named_by.entry(*named).or_default().insert(id);
        }
        self.objects.insert(id, Held { hash, names, is_whole: false });
        let mut left = vec![id];
        while let Some(id) = left.pop() {
            if !self.is_whole(&id) && self.has_all(&id) {
                self.set_whole(&id, true);
                left.extend(self.named_by(&id));
            }
        }
    }

    /// Takes in a deletion.
    pub fn delete(&mut self, id: &ObjectId) {
        self.take_out(id);
        self.gone.insert(*id);
    }

    fn take_out(&mut self, id: &ObjectId) {
        let Some(held) = self.objects.remove(id) else { return };
        for (named, _) in &held.names {
            if let Some(parents) = self.named_by.get_mut(named) {
                parents.remove(id);
            }
        }
        let mut left: Vec<ObjectId> = self.named_by(id).copied().collect();
        while let Some(id) = left.pop() {
            if self.is_whole(&id) {
                self.set_whole(&id, false);
                left.extend(self.named_by(&id));
            }
        }
    }

    /// True when all that a held object names is whole.
    fn has_all(&self, id: &ObjectId) -> bool {
        let has = |(named, hash): &(ObjectId, Option<Hash>)| self.is_whole(named) && self.holds(named, hash.as_ref());
        self.objects.get(id).is_some_and(|held| held.names.iter().all(has))
    }

    fn set_whole(&mut self, id: &ObjectId, is_whole: bool) {
        if let Some(held) = self.objects.get_mut(id) {
            held.is_whole = is_whole;
        }
    }
}

#[cfg(test)]
mod tests {
    use velum_node::keyring::ObjectKind::{Page, Root, Segment, Stub};

    use super::*;
    use crate::ledger::example::{hash, id};

    fn put(holding: &mut Holding, kind: ObjectKind, number: u64, names: &[(ObjectKind, u64)]) {
        let names = names.iter().map(|(kind, number)| (id(*kind, *number), Some(hash(*kind, *number)))).collect();
        holding.put(id(kind, number), hash(kind, number), names);
    }

    /// An object and what it names.
    type Told = (ObjectKind, u64, &'static [(ObjectKind, u64)]);

    /// Stub 1 to root 2 to pages 3 and 4, which share segment 5; told from the top or from the bottom.
    fn tree(from_top: bool) -> Holding {
        let mut told: Vec<Told> = vec![
            (Segment, 5, &[]),
            (Page, 3, &[(Segment, 5)]),
            (Page, 4, &[(Segment, 5)]),
            (Root, 2, &[(Page, 3), (Page, 4)]),
            (Stub, 1, &[(Root, 2)]),
        ];
        if from_top {
            told.reverse();
        }
        let mut holding = Holding::default();
        for (kind, number, names) in told {
            put(&mut holding, kind, number, names);
        }
        holding
    }

    fn whole(holding: &Holding) -> Vec<u64> {
        let all = [(Stub, 1), (Root, 2), (Page, 3), (Page, 4), (Segment, 5)];
        all.iter().filter(|(kind, number)| holding.is_whole(&id(*kind, *number))).map(|(_, number)| *number).collect()
    }

    #[test]
    fn a_tree_is_whole_in_whatever_order_it_was_told() {
        assert_eq!(whole(&tree(false)), [1, 2, 3, 4, 5]);
        assert_eq!(whole(&tree(true)), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_deletion_breaks_all_above_it_and_a_return_mends_them() {
        let mut holding = tree(false);
        holding.delete(&id(Page, 3));
        assert_eq!(whole(&holding), [4, 5]);
        holding.delete(&id(Segment, 5));
        assert_eq!(whole(&holding), [0_u64; 0]);
        put(&mut holding, Page, 3, &[(Segment, 5)]);
        assert_eq!(whole(&holding), [0_u64; 0]);
        put(&mut holding, Segment, 5, &[]);
        assert_eq!(whole(&holding), [1, 2, 3, 4, 5]);
        assert!(holding.came_back(&id(Segment, 5)) && !holding.came_back(&id(Page, 4)));
    }

    #[test]
    fn an_emptied_cloud_holds_nothing_and_nothing_in_it_has_come_back() {
        let before = tree(false);
        let mut holding = before.emptied();
        assert_eq!(whole(&holding), [0_u64; 0]);
        assert!(holding.was_given(&id(Segment, 5), &hash(Segment, 5)));
        assert!(!holding.was_given(&id(Segment, 6), &hash(Segment, 6)));
        put(&mut holding, Segment, 5, &[]);
        assert!(!holding.came_back(&id(Segment, 5)), "nobody deleted it");
        // In the stead of the right place one object was stored; it is not in the right one.
        put(&mut holding, Segment, 7, &[]);
        let mut right = before;
        right.learn_from(&holding);
        assert_eq!(whole(&right), [1, 2, 3, 4, 5]);
        assert!(!right.holds(&id(Segment, 7), None) && right.was_given(&id(Segment, 7), &hash(Segment, 7)));
    }

    #[test]
    fn other_bytes_than_those_vouched_for_do_not_count() {
        let mut holding = tree(false);
        holding.put(id(Page, 4), hash(Page, 99), Vec::new());
        assert_eq!(whole(&holding), [3, 4, 5]);
        assert_eq!(holding.named_by(&id(Segment, 5)).collect::<Vec<_>>(), [&id(Page, 3)]);
    }
}
