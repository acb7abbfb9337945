//! A state, what can happen in it, and what must be true of it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{Hash, Hasher},
    rc::Rc,
    time::Duration,
};

use velum_node::{
    array::reclaim::machine::Machine,
    metadata::{
        Answer, State,
        state::{CloudEntry, VolumeState},
    },
};
use velum_protocol::{
    codec,
    format::metadata::{CloudName, Command, CondemnedObject, Proposal, RequestId},
    id::{ClusterId, Epoch, NodeId, Seq},
};

use super::{Bug, Left, Step};
use crate::{
    ensemble::machine::{VOLUME, creation},
    model::print::{Printer, Shared, print_of},
};

/// Clouds, at most.
pub(super) const CLOUDS: usize = 2;

/// Clouds that are enough.
pub(super) const QUORUM: usize = 1;

/// Object numbers that an owner is given; without any left it is over.
const NUMBERS: u64 = 4;

#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) raft: Shared<Raft>,
    pub(super) clouds: [Shared<Store>; CLOUDS],
    pub(super) owners: Vec<Shared<Owner>>,
    /// What is proposed, and by whom.
    pub(super) flying: Vec<(usize, Rc<Command>)>,
    pub(super) facts: Shared<Facts>,
    pub(super) left: Left,
}

#[derive(Clone, Debug)]
pub(super) struct Raft(pub(super) State);

impl Hash for Raft {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.0.save().hash(hasher);
    }
}

/// What a cloud holds.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Store {
    pub(super) segments: BTreeSet<u64>,
    pub(super) roots: BTreeSet<u64>,
    pub(super) records: BTreeSet<u64>,
}

/// What things refer to, whoever has them.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Facts {
    /// The segment of each record.
    pub(super) records: BTreeMap<u64, u64>,
    /// The segment of each root.
    pub(super) roots: BTreeMap<u64, u64>,
}

#[derive(Clone, Debug, Hash)]
pub(super) struct Owner {
    pub(super) epoch: Epoch,
    pub(super) is_over: bool,
    /// Raft as it last looked at it.
    pub(super) view: Shared<Raft>,
    pub(super) numbers: VecDeque<u64>,
    pub(super) flush: Option<Flush>,
    pub(super) draft: Option<Draft>,
    pub(super) reclaim: Machine,
    pub(super) sweeps: BTreeMap<usize, Sweep>,
}

/// A window under way.
#[derive(Clone, Debug, Hash)]
pub(super) struct Flush {
    pub(super) grant: u64,
    pub(super) segment: u64,
    pub(super) stored: [bool; CLOUDS],
    pub(super) is_proposed: bool,
}

/// A checkpoint under way.
#[derive(Clone, Debug, Hash)]
pub(super) struct Draft {
    pub(super) seq: u64,
    pub(super) root: u64,
    pub(super) condemned: Vec<(u64, bool)>,
    pub(super) orphans: Vec<u64>,
    pub(super) stored: [bool; CLOUDS],
    pub(super) is_proposed: bool,
}

/// A cloud being swept.
#[derive(Clone, Debug)]
pub(super) struct Sweep {
    pub(super) through: Seq,
    pub(super) are_records_gone: bool,
    pub(super) objects: VecDeque<CondemnedObject>,
    pub(super) gone: Vec<CondemnedObject>,
}

impl Hash for Sweep {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let numbers = |object: &CondemnedObject| object.object.number.0;
        (self.through, self.are_records_gone).hash(hasher);
        self.objects.iter().map(numbers).collect::<Vec<_>>().hash(hasher);
        self.gone.iter().map(numbers).collect::<Vec<_>>().hash(hasher);
    }
}

impl<T: Clone + Hash> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.print().hash(hasher);
    }
}

pub(super) fn cloud(place: usize) -> CloudName {
    CloudName(["a", "b"][place].into())
}

pub(super) fn volume(raft: &Raft) -> &VolumeState {
    &raft.0.volumes[&VOLUME]
}

/// Applies a command that nobody asks for twice.
pub(super) fn apply(raft: &mut Raft, command: Command) -> Result<Answer, velum_node::metadata::Rejection> {
    let answer = raft.0.apply(&Proposal { request: RequestId([0; 16]), command });
    raft.0.answered.clear();
    answer
}

impl World {
    pub(super) fn new(left: Left) -> Self {
        let clouds = (0..usize::from(left.clouds))
            .map(|place| CloudEntry { name: cloud(place), url: "memory:///".to_owned() })
            .collect();
        let mut raft = Raft(State::new(ClusterId([1; 16]), clouds, QUORUM as u32));
        apply(&mut raft, creation()).expect("a first volume can be made");
        let clouds = std::array::from_fn(|_| Shared::new(Store::default()));
        let facts = Shared::new(Facts::default());
        let mut world = Self { raft: Shared::new(raft), clouds, owners: Vec::new(), flying: Vec::new(), facts, left };
        world.grant();
        world
    }

    /// The places of the clouds.
    pub(super) fn places(&self) -> std::ops::Range<usize> {
        0..usize::from(self.left.clouds)
    }

    /// The volume is granted to the next node, which begins.
    pub(super) fn grant(&mut self) {
        let node = NodeId(self.owners.len() as u64 + 1);
        let raft = self.raft.edit();
        let after = volume(raft).epoch;
        apply(raft, Command::GrantOwner { volume: VOLUME, node, after }).expect("grants fit");
        let epoch = after.next();
        let numbers = apply(raft, Command::GrantObjects { volume: VOLUME, epoch, count: NUMBERS });
        let Ok(Answer::Objects(first, count)) = numbers else { unreachable!("the owner is granted numbers") };
        self.owners.push(Shared::new(Owner {
            epoch,
            is_over: false,
            view: self.raft.clone(),
            numbers: (first.0..first.0 + count).collect(),
            flush: None,
            draft: None,
            reclaim: Machine::new(Duration::ZERO),
            sweeps: BTreeMap::new(),
        }));
    }

    pub(super) fn print(&self) -> u128 {
        let mut printer = Printer::default();
        printer.word(self.raft.print());
        self.clouds.iter().for_each(|store| printer.word(store.print()));
        self.owners.iter().for_each(|owner| printer.word(owner.print()));
        for (owner, command) in &self.flying {
            printer.word(print_of(&(*owner, codec::encode(&**command))));
        }
        printer.word(self.facts.print());
        printer.word(print_of(&self.left));
        printer.print()
    }

    pub(super) fn steps(&self, bug: Option<Bug>) -> Vec<Step> {
        let mut steps: Vec<Step> = (0..self.flying.len()).map(Step::Agree).collect();
        steps.extend((self.left.grants > 0).then_some(Step::Grant));
        for place in 0..self.owners.len() {
            let owner = &*self.owners[place];
            if owner.is_over {
                continue;
            }
            steps.extend((owner.view.print() != self.raft.print()).then_some(Step::Learn(place)));
            self.steps_of_flush(place, owner, bug, &mut steps);
            self.steps_of_draft(place, owner, &mut steps);
            steps.push(Step::Survey(place));
            for to in self.places() {
                steps.extend(self.lacks(owner, to, bug).map(|_| Step::Bring(place, to)));
                // The grace is longer than any node goes on without hearing that it is not the owner any more.
                let is_grace_over = self.owners.iter().take(place).all(|earlier| earlier.is_over);
                steps.extend(owner.sweeps.get(&to).filter(|_| is_grace_over).map(|_| Step::Sweep(place, to)));
            }
        }
        steps
    }

    fn steps_of_flush(&self, place: usize, owner: &Owner, bug: Option<Bug>, steps: &mut Vec<Step>) {
        let Some(flush) = &owner.flush else {
            return steps.extend((self.left.flushes > 0).then_some(Step::Flush(place)));
        };
        let missing = self.places().filter(|to| !flush.stored[*to] && !flush.is_proposed);
        steps.extend(missing.map(|to| Step::Store(place, to)));
        let stored = flush.stored.iter().filter(|stored| **stored).count();
        let enough = if bug == Some(Bug::TooFewClouds) { QUORUM - 1 } else { QUORUM };
        steps.extend((stored >= enough && !flush.is_proposed).then_some(Step::Append(place)));
    }

    fn steps_of_draft(&self, place: usize, owner: &Owner, steps: &mut Vec<Step>) {
        let known = volume(&owner.view);
        let Some(draft) = &owner.draft else {
            // Reclaim asks for one, too, when something waits for the floor to rise.
            let is_new = known.checkpoint.as_ref().is_none_or(|checkpoint| checkpoint.seq < known.head.seq)
                || !known.condemned.is_empty();
            return steps
                .extend((self.left.checkpoints > 0 && known.head.seq.0 > 0 && is_new).then_some(Step::Draft(place)));
        };
        let is_there = |to: usize| known.cursors.get(&cloud(to)).is_some_and(|cursor| cursor.0 >= draft.seq);
        let missing = self.places().filter(|to| !draft.stored[*to] && !draft.is_proposed && is_there(*to));
        steps.extend(missing.map(|to| Step::Root(place, to)));
        let stored = draft.stored.iter().filter(|stored| **stored).count();
        steps.extend((stored >= QUORUM && !draft.is_proposed).then_some(Step::Commit(place)));
    }

    /// What a promise says of every state: each cloud is closed, and has all that raft says it has.
    pub(super) fn judge(&self) -> Result<(), String> {
        let state = volume(&self.raft);
        for (place, store) in self.clouds.iter().enumerate().take(usize::from(self.left.clouds)) {
            let name = cloud(place);
            let is_lost = |segment: &u64| !store.segments.contains(segment);
            if let Some(seq) = store.records.iter().find(|seq| is_lost(&self.facts.records[*seq])) {
                return Err(format!("SEQ3: cloud {} has record {seq} without its segment", name.0));
            }
            if let Some(root) = store.roots.iter().find(|root| is_lost(&self.facts.roots[*root])) {
                return Err(format!("SEQ3: cloud {} has root {root} without its segment", name.0));
            }
            let held = state.checkpoint_cursors.get(&name).copied().unwrap_or_default();
            let newest = state.checkpoint.as_ref().filter(|checkpoint| checkpoint.number <= held);
            if newest.is_some_and(|newest| !store.roots.contains(&newest.root.number.0)) {
                return Err(format!("GC1: cloud {} has lost the root of the newest checkpoint", name.0));
            }
            // What a recovery finds in this cloud alone: the newest checkpoint there, and the records behind it.
            let committed = [&state.checkpoint, &state.previous_checkpoint].into_iter().flatten();
            let there = committed.filter(|checkpoint| store.roots.contains(&checkpoint.root.number.0));
            let begin = there.map(|checkpoint| checkpoint.seq.0).max().unwrap_or_default();
            let end = (begin + 1..).find(|seq| !store.records.contains(seq)).unwrap_or_default();
            let cursor = state.cursors.get(&name).copied().unwrap_or_default();
            if end <= cursor.0 {
                return Err(format!("SEQ5: cloud {} is said to have {cursor} records and has {}", name.0, end - 1));
            }
        }
        Ok(())
    }
}
