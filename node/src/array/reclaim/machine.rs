//! Decides which objects may be deleted from which cloud, and when.
//!
//! An object is condemned when a committed checkpoint does not refer to it any more. From there:
//!
//! 1. *wait*: until that checkpoint is on enough clouds, and then for the grace. The grace is counted on the node's own
//!    clock and starts anew with the node; it only ever delays.
//! 2. *approve*: Raft checks the owner's epoch and the clouds' cursors once more and marks the objects.
//! 3. *sweep*, cloud by cloud: a cloud's floor is the second newest checkpoint it holds. Records and roots below the floor
//!    go first, then orphans, then objects that were dead at the floor, what earlier lives left at last. So what is left in a
//!    cloud never refers to what is gone from it. A cloud that does not hold the newest checkpoint is left alone, whatever the others hold.
//! 4. *finish*: Raft is told what is gone from which cloud.
//!
//! Nothing here trusts a cloud's word: which checkpoints a cloud holds is what this cluster stored there and Raft agreed on.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use velum_protocol::{
    format::metadata::{CloudName, CondemnedObject, NumberedKind},
    id::{Hash, Incarnation, ObjectNumber, Seq},
};

use crate::{
    actor,
    env::Instant,
    metadata::state::{Condemned, LEAVINGS, VolumeState},
};

/// Objects approved or swept in one go.
pub const BATCH: usize = 512;

/// Condemned objects looked at in one survey; more wait for the next.
const SURVEY_MAX: usize = 8192;

/// Shortest time between two looks at the ledger.
const LOOK_MIN: Duration = Duration::from_secs(1);

/// Longest time between two looks at the ledger.
const LOOK_MAX: Duration = Duration::from_secs(60);

/// Names a condemned object.
pub type Name = (Incarnation, ObjectNumber);

/// A condemned object as the ledger has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What and which.
    pub object: CondemnedObject,
    /// The first checkpoint without it.
    pub checkpoint: u64,
    /// Deletion is approved.
    pub committed: bool,
    /// Clouds it is gone from.
    pub gone_from: BTreeSet<CloudName>,
}

impl Entry {
    /// True for what no checkpoint ever referred to: only its number is known.
    #[must_use]
    pub fn is_orphan(&self) -> bool {
        self.object.object.hash == Hash::ZERO && !self.is_leavings()
    }

    /// True for all that an earlier life left.
    #[must_use]
    pub fn is_leavings(&self) -> bool {
        self.object.object.number == LEAVINGS
    }
}

/// What is to be known of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Number of the newest checkpoint; zero for none.
    pub newest: u64,
    /// The one before it, with its seq.
    pub previous: Option<(u64, Seq)>,
    /// The checkpoint each cloud holds.
    pub held: BTreeMap<CloudName, u64>,
    /// How many clouds must hold a checkpoint.
    pub quorum: usize,
    /// Condemned objects.
    pub condemned: BTreeMap<Name, Entry>,
    /// There is something for a checkpoint to condemn: segments that nothing refers to, numbers of an epoch that is over, or
    /// what earlier lives left.
    pub dead: bool,
}

impl Survey {
    /// What a volume's metadata say, in this `life` of the cluster. `dead` is true when the map has segments that nothing refers to.
    #[must_use]
    pub fn of(state: &VolumeState, quorum: usize, life: Incarnation, dead: bool) -> Self {
        let entry = |(name, condemned): (&Name, &Condemned)| {
            let entry = Entry {
                object: condemned.object.clone(),
                checkpoint: condemned.checkpoint,
                committed: condemned.committed,
                gone_from: condemned.gone_from.clone(),
            };
            (*name, entry)
        };
        // Roots and orphans hold back what they may refer to, so none may be missed.
        let is_first = |condemned: &Condemned| {
            condemned.object.kind == NumberedKind::Root || condemned.object.object.hash == Hash::ZERO
        };
        let first = state.condemned.iter().filter(|(_, condemned)| is_first(condemned));
        let others = state.condemned.iter().filter(|(_, condemned)| !is_first(condemned)).take(SURVEY_MAX);
        let epochs_over = state.ranges.values().any(|range| range.epoch < state.epoch);
        let unlisted = state.was_recovered(life) && state.lacks_checkpoint_of(life);
        Self {
            newest: state.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.number),
            previous: state.previous_checkpoint.as_ref().map(|checkpoint| (checkpoint.number, checkpoint.seq)),
            held: state.checkpoint_cursors.clone(),
            quorum,
            condemned: first.chain(others).map(entry).collect(),
            dead: dead || epochs_over || unlisted,
        }
    }
}

/// A message, a completion or a timer.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time for a look.
    Tick,
    /// The ledger as it stands.
    Surveyed(Survey),
    /// Raft has approved, or not.
    Approved,
    /// A cloud's sweep ended, wholly or not.
    Swept {
        /// Which cloud.
        cloud: CloudName,
        /// Records up to here are gone from it.
        records_gone: Seq,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Read the ledger and come back with it.
    Survey,
    /// Step with [`Input::Tick`] after a pause.
    Arm(Duration),
    /// Have Raft approve the deletion.
    Approve(Vec<Name>),
    /// Delete from one cloud, in this order; then tell Raft.
    Sweep {
        /// Which cloud.
        cloud: CloudName,
        /// Its floor; the roots that earlier lives left below it go too.
        floor: u64,
        /// Records above the first and up to the second, lowest first.
        records: (Seq, Seq),
        /// Then these objects: roots first, then orphans; what earlier lives left at last.
        objects: Vec<CondemnedObject>,
    },
    /// Ask for a checkpoint, so that the floor rises.
    Checkpoint,
}

/// The reclaim of one volume.
#[derive(Clone, Debug, Hash)]
pub struct Machine {
    grace: Duration,
    /// When each condemned object was first seen with its checkpoint on enough clouds.
    seen: BTreeMap<Name, Instant>,
    /// Since when dead segments wait for a checkpoint.
    dead_since: Option<Instant>,
    asked_at: Option<Instant>,
    approving: bool,
    sweeping: BTreeSet<CloudName>,
    records_gone: BTreeMap<CloudName, Seq>,
}

impl Machine {
    /// Deletes nothing before `grace` has passed.
    #[must_use]
    pub const fn new(grace: Duration) -> Self {
        Self {
            grace,
            seen: BTreeMap::new(),
            dead_since: None,
            asked_at: None,
            approving: false,
            sweeping: BTreeSet::new(),
            records_gone: BTreeMap::new(),
        }
    }

    fn surveyed(&mut self, now: Instant, survey: &Survey, effects: &mut Vec<Effect>) {
        self.seen.retain(|name, _| survey.condemned.contains_key(name));
        for (name, entry) in &survey.condemned {
            let holders = survey.held.values().filter(|held| **held >= entry.checkpoint).count();
            if holders >= survey.quorum {
                self.seen.entry(*name).or_insert(now);
            }
        }
        self.approve(now, survey, effects);
        for (cloud, held) in &survey.held {
            self.sweep(cloud, *held, survey, effects);
        }
        self.ask_for_checkpoint(now, survey, effects);
    }

    fn is_due(&self, now: Instant, name: &Name) -> bool {
        self.seen.get(name).is_some_and(|since| now.since(*since) >= self.grace)
    }

    fn approve(&mut self, now: Instant, survey: &Survey, effects: &mut Vec<Effect>) {
        let due = survey.condemned.iter().filter(|(name, entry)| !entry.committed && self.is_due(now, name));
        let names: Vec<Name> = due.map(|(name, _)| *name).take(BATCH).collect();
        if !self.approving && !names.is_empty() {
            self.approving = true;
            effects.push(Effect::Approve(names));
        }
    }

    fn sweep(&mut self, cloud: &CloudName, held: u64, survey: &Survey, effects: &mut Vec<Effect>) {
        let Some((floor, floor_seq)) = survey.previous.filter(|_| held == survey.newest) else { return };
        let waiting = |entry: &&Entry| !entry.gone_from.contains(cloud);
        let dead = |entry: &&Entry| entry.checkpoint <= floor || entry.is_orphan();
        let (first, others): (Vec<_>, Vec<_>) = survey
            .condemned
            .values()
            .filter(dead)
            .filter(waiting)
            .partition(|entry| entry.is_orphan() || entry.object.kind == NumberedKind::Root);
        let (roots, orphans): (Vec<_>, Vec<_>) = first.into_iter().partition(|entry| !entry.is_orphan());
        // As long as a root may not go, nothing that it refers to may; an orphan may be a root that was never committed, or
        // a page, which was numbered after whatever it names.
        let blocked = roots.iter().chain(&orphans).any(|entry| !entry.committed);
        let (leavings, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|entry| entry.is_leavings());
        let objects: Vec<CondemnedObject> = roots
            .into_iter()
            .chain(orphans.into_iter().rev())
            .chain(others.into_iter().chain(leavings).filter(|_| !blocked))
            .filter(|entry| entry.committed)
            .map(|entry| entry.object.clone())
            .take(BATCH)
            .collect();
        let gone = self.records_gone.get(cloud).copied().unwrap_or_default();
        if (objects.is_empty() && gone >= floor_seq) || !self.sweeping.insert(cloud.clone()) {
            return;
        }
        effects.push(Effect::Sweep { cloud: cloud.clone(), floor, records: (gone, floor_seq), objects });
    }

    /// What was condemned last goes only once a later checkpoint makes the floor rise, and what is dead only once a
    /// checkpoint condemns it. A volume at rest makes none by itself, so one is asked for: not oftener than the grace, and
    /// only for segments, since every checkpoint condemns a few pages of the one before.
    fn ask_for_checkpoint(&mut self, now: Instant, survey: &Survey, effects: &mut Vec<Effect>) {
        let floor = survey.previous.map_or(0, |(floor, _)| floor);
        let waits_for_floor = |entry: &Entry| if entry.is_orphan() { floor == 0 } else { entry.checkpoint > floor };
        let stuck = |(name, entry): (&Name, &Entry)| {
            entry.object.kind == NumberedKind::Segment && waits_for_floor(entry) && self.is_due(now, name)
        };
        let stuck = survey.condemned.iter().any(stuck);
        self.dead_since = if survey.dead { self.dead_since.or(Some(now)) } else { None };
        let dead = self.dead_since.is_some_and(|since| now.since(since) >= self.grace);
        let asked = self.asked_at.is_some_and(|asked| now.since(asked) < self.grace.max(LOOK_MIN));
        if (stuck || dead) && !asked {
            self.asked_at = Some(now);
            effects.push(Effect::Checkpoint);
        }
    }
}

impl actor::Machine for Machine {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Tick => {
                effects.push(Effect::Survey);
                effects.push(Effect::Arm((self.grace / 10).clamp(LOOK_MIN, LOOK_MAX)));
            }
            Input::Surveyed(survey) => self.surveyed(now, &survey, effects),
            Input::Approved => self.approving = false,
            Input::Swept { cloud, records_gone } => {
                self.sweeping.remove(&cloud);
                let gone = self.records_gone.entry(cloud).or_default();
                *gone = (*gone).max(records_gone);
            }
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
