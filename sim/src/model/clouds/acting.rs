//! What a step makes of a state.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use velum_node::{
    actor::Machine as _,
    array::reclaim::machine::{Effect, Input, Survey},
    env::Instant,
    metadata::{Answer, Rejection},
};
use velum_protocol::{
    format::metadata::{CheckpointRef, CloudName, Command, CondemnedObject, NumberedKind, ObjectRef},
    id::{Hash, Incarnation, KeyEpoch, ObjectNumber, Seq},
};

use super::{
    Bug, Step,
    world::{CLOUDS, Draft, Flush, Owner, QUORUM, Sweep, World, apply, cloud, volume},
};
use crate::{ensemble::machine::VOLUME, model::explore::Taken};

/// What a cloud lacks next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lacking {
    Segment(u64),
    Record(u64),
    Root(u64),
    /// Records that a cloud that jumps to a checkpoint leaves behind.
    Rest(u64),
    /// Raft does not know yet.
    Cursor(u64),
    CheckpointCursor(u64),
}

const LIFE: Incarnation = Incarnation(1);

fn object(kind: NumberedKind, number: u64, is_orphan: bool) -> CondemnedObject {
    let hash = if is_orphan { Hash::ZERO } else { hash(number) };
    CondemnedObject { kind, object: ObjectRef { incarnation: LIFE, number: ObjectNumber(number), bytes: 1, hash } }
}

fn hash(number: u64) -> Hash {
    let mut hash = [0xff; 32];
    hash[..8].copy_from_slice(&number.to_le_bytes());
    Hash(hash)
}

impl World {
    pub(super) fn act(&self, step: Step, bug: Option<Bug>) -> Taken<Self> {
        let mut world = self.clone();
        let mut reached = BTreeSet::new();
        let verdict = world.step(step, bug, &mut reached).and_then(|()| world.judge());
        Taken { state: world, reached, broken: verdict.err() }
    }

    fn step(&mut self, step: Step, bug: Option<Bug>, reached: &mut BTreeSet<&'static str>) -> Result<(), String> {
        match step {
            Step::Agree(index) => return self.agree(index, reached),
            Step::Learn(owner) => {
                let view = self.raft.clone();
                let owner = self.owners[owner].edit();
                owner.is_over = volume(&view).epoch != owner.epoch;
                owner.view = view;
            }
            Step::Grant => {
                self.left.grants -= 1;
                self.grant();
            }
            Step::Flush(owner) => self.flush(owner),
            Step::Store(owner, to) => {
                let flush = self.owners[owner].edit().flush.as_mut().expect("a window is under way");
                flush.stored[to] = true;
                let segment = flush.segment;
                self.clouds[to].edit().segments.insert(segment);
            }
            Step::Append(owner) => self.append(owner),
            Step::Bring(owner, to) => self.bring(owner, to, bug),
            Step::Draft(owner) => self.draft(owner),
            Step::Root(owner, to) => {
                let draft = self.owners[owner].edit().draft.as_mut().expect("a checkpoint is under way");
                draft.stored[to] = true;
                let root = draft.root;
                self.clouds[to].edit().roots.insert(root);
            }
            Step::Commit(owner) => self.commit(owner, bug),
            Step::Survey(owner) => self.survey(owner, bug),
            Step::Sweep(owner, to) => self.sweep(owner, to, bug, reached),
        }
        Ok(())
    }

    fn propose(&mut self, owner: usize, command: Command) {
        let is_there = self.flying.iter().any(|(by, other)| *by == owner && **other == command);
        if !is_there {
            self.flying.push((owner, std::rc::Rc::new(command)));
        }
    }

    fn flush(&mut self, place: usize) {
        self.left.flushes -= 1;
        let epoch = self.owners[place].epoch;
        let grant = Command::GrantFlush { volume: VOLUME, epoch, key_epoch: KeyEpoch(1) };
        let answer = apply(self.raft.edit(), grant);
        let owner = self.owners[place].edit();
        match (answer, owner.numbers.pop_front()) {
            (Ok(Answer::Grant(grant)), Some(segment)) => {
                owner.flush = Some(Flush { grant, segment, stored: [false; CLOUDS], is_proposed: false });
            }
            _ => owner.is_over = true,
        }
    }

    fn append(&mut self, place: usize) {
        let owner = self.owners[place].edit();
        let (epoch, head) = (owner.epoch, volume(&owner.view).head);
        let flush = owner.flush.as_mut().expect("a window is under way");
        flush.is_proposed = true;
        let position = head.last.next();
        let segment = object(NumberedKind::Segment, flush.segment, false).object;
        let append = Command::AppendSequence {
            volume: VOLUME,
            epoch,
            grant: flush.grant,
            seq: head.seq.next(),
            prev_hash: head.chain,
            hash: hash(flush.segment),
            first: position,
            last: position,
            journal_chain: hash(flush.segment),
            record: Bytes::from_static(b"sealed"),
            objects: vec![segment],
        };
        self.propose(place, append);
    }

    /// What a cloud lacks next, as far as the owner can give it.
    pub(super) fn lacks(&self, owner: &Owner, to: usize, bug: Option<Bug>) -> Option<Lacking> {
        let (known, store) = (volume(&owner.view), &self.clouds[to]);
        let cursor = known.cursors.get(&cloud(to)).copied().unwrap_or_default();
        let held = known.checkpoint_cursors.get(&cloud(to)).copied().unwrap_or_default();
        let can_give = |segment: u64| self.clouds.iter().any(|store| store.segments.contains(&segment));
        let lacking = |segment: u64| (!store.segments.contains(&segment)).then_some(Lacking::Segment(segment));
        let possible = |lacking: Lacking| match lacking {
            Lacking::Segment(segment) => can_give(segment),
            _ => true,
        };
        let newest = known.checkpoint.as_ref().filter(|checkpoint| checkpoint.number > held);
        let jumps = newest.is_some_and(|newest| cursor < newest.seq && !known.records.contains_key(&cursor.next()));
        if let Some(newest) = newest.filter(|newest| jumps || cursor >= newest.seq) {
            let root = newest.root.number.0;
            let segment = lacking(self.facts.roots[&root]);
            let rest =
                store.records.iter().find(|seq| **seq < newest.seq.0 && jumps).map(|_| Lacking::Rest(newest.seq.0));
            let root = (!store.roots.contains(&root)).then_some(Lacking::Root(root));
            let next = segment.or(root).or(rest).unwrap_or(Lacking::CheckpointCursor(newest.number));
            return Some(next).filter(|next| possible(*next));
        }
        // A record that raft keeps no more is given to no cloud.
        if cursor >= known.head.seq || !known.records.contains_key(&cursor.next()) {
            return None;
        }
        let seq = cursor.next().0;
        let record = (!store.records.contains(&seq)).then_some(Lacking::Record(seq));
        let segment = lacking(self.facts.records[&seq]).filter(|_| bug != Some(Bug::RecordBeforeSegment));
        let next = segment.or(record).unwrap_or(Lacking::Cursor(seq));
        // A cloud that has the record was given its segment before.
        Some(if store.records.contains(&seq) { Lacking::Cursor(seq) } else { next }).filter(|next| possible(*next))
    }

    fn bring(&mut self, place: usize, to: usize, bug: Option<Bug>) {
        let Some(lacking) = self.lacks(&self.owners[place], to, bug) else { return };
        let (epoch, beginning, cloud) = (self.owners[place].epoch, 0, cloud(to));
        let store = &mut self.clouds[to];
        match lacking {
            Lacking::Segment(segment) => drop(store.edit().segments.insert(segment)),
            Lacking::Record(seq) => drop(store.edit().records.insert(seq)),
            Lacking::Root(root) => drop(store.edit().roots.insert(root)),
            Lacking::Rest(through) => store.edit().records.retain(|seq| *seq > through),
            Lacking::Cursor(seq) => {
                let advance = Command::AdvanceCursor { volume: VOLUME, epoch, cloud, beginning, seq: Seq(seq) };
                self.propose(place, advance);
            }
            Lacking::CheckpointCursor(number) => {
                let advance = Command::AdvanceCheckpointCursor { volume: VOLUME, epoch, cloud, beginning, number };
                self.propose(place, advance);
            }
        }
    }

    /// A cloud has a checkpoint; when it jumped to it, its cursor is agreed on next.
    fn jumped(&mut self, place: usize, to: &CloudName, number: u64) -> bool {
        let (epoch, known) = (self.owners[place].epoch, volume(&self.raft));
        let kept = [&known.checkpoint, &known.previous_checkpoint].into_iter().flatten();
        let seq = kept.filter(|kept| kept.number == number).map(|kept| kept.seq).next();
        let Some(seq) = seq.filter(|seq| known.cursors.get(to).is_none_or(|cursor| cursor < seq)) else { return false };
        let cloud = to.clone();
        self.propose(place, Command::AdvanceCursor { volume: VOLUME, epoch, cloud, beginning: 0, seq });
        true
    }

    fn draft(&mut self, place: usize) {
        self.left.checkpoints -= 1;
        let facts = &*self.facts;
        let owner = &*self.owners[place];
        let known = volume(&owner.view);
        let seq = known.head.seq.0;
        let live = facts.records[&seq];
        let is_known = |number: u64| known.condemned.contains_key(&(LIFE, ObjectNumber(number)));
        let old_root = known.checkpoint.as_ref().map(|checkpoint| checkpoint.root.number.0);
        let known_segments = facts.records.range(..=seq).map(|(_, segment)| *segment).collect::<BTreeSet<_>>();
        let mut condemned: Vec<(u64, bool)> = old_root.into_iter().map(|root| (root, true)).collect();
        let dead = known_segments.iter().filter(|segment| **segment != live && !is_known(**segment));
        condemned.extend(dead.map(|segment| (*segment, false)));
        let over = known.ranges.iter().filter(|(_, range)| range.epoch < known.epoch);
        let numbers = over.flat_map(|(first, range)| first.0..first.0 + range.count);
        let is_named = |number: &u64| known_segments.contains(number) || old_root == Some(*number) || is_known(*number);
        let orphans: Vec<u64> = numbers.filter(|number| !is_named(number)).collect();
        let owner = self.owners[place].edit();
        let Some(root) = owner.numbers.pop_front() else { return owner.is_over = true };
        owner.draft = Some(Draft { seq, root, condemned, orphans, stored: [false; CLOUDS], is_proposed: false });
        self.facts.edit().roots.insert(root, live);
    }

    fn commit(&mut self, place: usize, bug: Option<Bug>) {
        let owner = self.owners[place].edit();
        let (epoch, known) = (owner.epoch, volume(&owner.view));
        let number = known.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.number) + 1;
        let seq = owner.draft.as_ref().map_or(0, |draft| draft.seq);
        let chain = known.records.get(&Seq(seq)).map_or(known.head.chain, |record| record.hash);
        let draft = owner.draft.as_mut().expect("a checkpoint is under way");
        draft.is_proposed = true;
        if bug == Some(Bug::CondemnedByHead) && known.head.seq.0 > draft.seq {
            draft.condemned.push((self.facts.records[&draft.seq], false));
        }
        let root = object(NumberedKind::Root, draft.root, false).object;
        let kind = |is_root| if is_root { NumberedKind::Root } else { NumberedKind::Segment };
        let named = draft.condemned.iter().map(|(number, is_root)| object(kind(*is_root), *number, false));
        let orphans = draft.orphans.iter().map(|number| object(NumberedKind::Segment, *number, true));
        let condemned = named.chain(orphans).collect();
        let checkpoint = CheckpointRef { number, seq: Seq(draft.seq), chain, root };
        self.propose(place, Command::CommitCheckpoint { volume: VOLUME, epoch, checkpoint, condemned });
    }

    /// Raft comes to a proposal, and who made it hears of that at once.
    fn agree(&mut self, index: usize, reached: &mut BTreeSet<&'static str>) -> Result<(), String> {
        let (place, command) = self.flying.remove(index);
        let answer = apply(self.raft.edit(), (*command).clone());
        if let (Command::AppendSequence { seq, .. }, Ok(_)) = (&*command, &answer) {
            let segment = self.owners[place].flush.as_ref().map_or(0, |flush| flush.segment);
            if self.facts.edit().records.insert(seq.0, segment).is_some() {
                return Err(format!("SEQ7: there are two records {seq}"));
            }
            let copies = self.clouds.iter().filter(|store| store.segments.contains(&segment)).count();
            if copies < QUORUM {
                return Err(format!("SEQ2: record {seq} names a segment that {copies} clouds have"));
            }
        }
        let is_stale = matches!(answer, Err(Rejection::StaleEpoch(_)));
        if is_stale && matches!(&*command, Command::AppendSequence { .. }) {
            reached.insert("a stale record is refused");
        }
        let view = self.raft.clone();
        let owner = self.owners[place].edit();
        owner.view = view;
        owner.is_over |= is_stale;
        match &*command {
            Command::AppendSequence { .. } => owner.flush = None,
            Command::CommitCheckpoint { .. } => owner.draft = None,
            Command::AdvanceCheckpointCursor { cloud, number, .. } if answer.is_ok() => {
                let jumps = self.jumped(place, cloud, *number);
                reached.extend(jumps.then_some("a cloud jumps"));
            }
            Command::CommitReclaim { .. } => owner.reclaim.step(Instant(0), Input::Approved, &mut Vec::new()),
            _ => {}
        }
        let owner = self.owners[place].edit();
        if owner.is_over {
            // What it has under way in clouds goes on; nothing new is begun.
            (owner.flush, owner.draft) = (None, None);
        }
        Ok(())
    }

    fn survey(&mut self, place: usize, bug: Option<Bug>) {
        let places = self.places();
        let owner = self.owners[place].edit();
        let epoch = owner.epoch;
        let mut survey = Survey::of(volume(&owner.view), QUORUM, LIFE, false);
        if bug == Some(Bug::SweptLagging) {
            let newest = survey.newest;
            survey.held = places.map(|to| (cloud(to), newest)).collect();
        }
        let mut effects = Vec::new();
        owner.reclaim.step(Instant(0), Input::Surveyed(survey), &mut effects);
        for effect in effects {
            match effect {
                Effect::Approve(numbers) => {
                    self.propose(place, Command::CommitReclaim { volume: VOLUME, epoch, numbers });
                }
                Effect::Sweep { cloud: name, records, objects, .. } => {
                    let to = (0..CLOUDS).find(|to| cloud(*to) == name).expect("there are no other clouds");
                    let sweep = Sweep {
                        through: records.1,
                        are_records_gone: false,
                        objects: objects.into(),
                        gone: Vec::new(),
                    };
                    self.owners[place].edit().sweeps.insert(to, sweep);
                }
                Effect::Survey | Effect::Arm(_) | Effect::Checkpoint => {}
            }
        }
    }

    /// Records first, then what is condemned, one by one; then raft is told.
    fn sweep(&mut self, place: usize, to: usize, bug: Option<Bug>, reached: &mut BTreeSet<&'static str>) {
        let owner = self.owners[place].edit();
        let Some(sweep) = owner.sweeps.get_mut(&to) else { return };
        if bug == Some(Bug::SegmentsFirst) && !sweep.are_records_gone {
            sweep.objects = VecDeque::from_iter(sweep.objects.drain(..).rev());
        }
        let is_late = bug == Some(Bug::SegmentsFirst) && !sweep.objects.is_empty();
        if !sweep.are_records_gone && !is_late {
            sweep.are_records_gone = true;
            let through = sweep.through.0;
            return self.clouds[to].edit().records.retain(|seq| *seq > through);
        }
        while let Some(condemned) = sweep.objects.pop_front() {
            let number = condemned.object.number.0;
            let is_orphan = condemned.object.hash == Hash::ZERO;
            sweep.gone.push(condemned);
            let store = &mut self.clouds[to];
            // What is not there is gone without anybody noticing.
            if store.segments.contains(&number) || store.roots.contains(&number) {
                reached.insert(if is_orphan { "an orphan is reclaimed" } else { "an object is reclaimed" });
                let store = store.edit();
                store.segments.remove(&number);
                store.roots.remove(&number);
                return;
            }
        }
        let Some(sweep) = owner.sweeps.remove(&to) else { return };
        let swept = Input::Swept { cloud: cloud(to), records_gone: sweep.through };
        owner.reclaim.step(Instant(0), swept, &mut Vec::new());
        let numbers = sweep.gone.iter().map(|gone| (gone.object.incarnation, gone.object.number)).collect();
        self.propose(place, Command::FinishReclaim { volume: VOLUME, cloud: cloud(to), numbers });
    }

    pub(super) fn describe(&self, step: Step) -> String {
        let name = |to: usize| cloud(to).0;
        match step {
            Step::Agree(index) => {
                let (owner, command) = &self.flying[index];
                let words = format!("{command:?}");
                let kind = words.split(' ').next().unwrap_or_default().to_owned();
                format!("raft comes to {kind} of owner {}", owner + 1)
            }
            Step::Learn(owner) => format!("owner {} looks at what raft has come to", owner + 1),
            Step::Grant => format!("the volume is granted to owner {}", self.owners.len() + 1),
            Step::Flush(owner) => format!("owner {} cuts off a window", owner + 1),
            Step::Store(owner, to) => format!("owner {} stores its segment in cloud {}", owner + 1, name(to)),
            Step::Append(owner) => format!("owner {} proposes its record", owner + 1),
            Step::Bring(owner, to) => {
                let lacking = self.lacks(&self.owners[owner], to, None);
                format!("owner {} brings cloud {} {lacking:?}", owner + 1, name(to))
            }
            Step::Draft(owner) => format!("owner {} begins a checkpoint", owner + 1),
            Step::Root(owner, to) => format!("owner {} stores its root in cloud {}", owner + 1, name(to)),
            Step::Commit(owner) => format!("owner {} proposes its checkpoint", owner + 1),
            Step::Survey(owner) => format!("owner {} looks at what is condemned", owner + 1),
            Step::Sweep(owner, to) => {
                let next = self.owners[owner].sweeps.get(&to).and_then(|sweep| sweep.objects.front());
                let next = next.map(|next| (next.kind, next.object.number));
                format!("owner {} goes on ridding cloud {}; next is {next:?}", owner + 1, name(to))
            }
        }
    }
}
