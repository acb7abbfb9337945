//! The owner's side: it ships its records to each member on its own, within a window, and counts how far they are kept.
//!
//! Records are held once, from d2 on. A member that is slow or gone holds up nothing but its own copy.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use velum_protocol::{
    format::record::{HEADER_BYTES, chain},
    id::{Epoch, Hash, Jseq, NodeId, VolumeId},
    peer::{
        Frame,
        ensemble::{Append, Appended, Marks, Point, RECORDS_MAX, Verdict},
    },
};

use super::batch::FRAME_BYTES;

/// How often the machine wants to be told that time passes.
pub const TICK: Duration = Duration::from_millis(100);

/// What an owner begins with.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The volume.
    pub volume: VolumeId,
    /// The owner.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The epoch's ensemble, the owner among them.
    pub members: Vec<NodeId>,
    /// What the first record follows: d2.
    pub base: Point,
    /// Sealed records from there to the end, oldest first.
    pub records: Vec<Bytes>,
    /// The d1 mark known so far.
    pub durable: Jseq,
}

/// What the machine is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// Raft has opened the epoch. Until then no member's copy is called whole; a record that was made says it, too.
    Opened,
    /// The volume's next record, sealed.
    Made {
        /// It.
        record: Bytes,
    },
    /// A batch ends: what was made is shipped.
    Push,
    /// Somebody waits for d1 of everything made.
    Sync,
    /// d2 rose.
    Trimmed(Jseq),
    /// A member's answer.
    Appended(NodeId, Appended),
    /// What was sent to the member last may be lost.
    Lost(NodeId),
    /// [`TICK`] has passed.
    Tick,
}

/// What the shell is to do, in order.
#[expect(missing_docs, reason = "each field is an id, a position or a frame; the variant says what for")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send; to the own member by loopback.
    Send { to: NodeId, frame: Frame },
    /// d0 rose.
    Written(Point),
    /// d1 rose.
    Durable(Jseq),
    /// A member has promised a later epoch: the machine has stopped for good.
    Deposed(Epoch),
    /// The member holds what cannot be; it counts for nothing.
    Conflict(NodeId),
}

/// How a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberStanding {
    /// Which member.
    pub node: NodeId,
    /// Its copy agrees up to here.
    pub at: Jseq,
    /// Synced up to here.
    pub synced: Jseq,
    /// It does not count for d0.
    pub amnesic: bool,
    /// Ticks since it was heard of last.
    pub heard: u32,
}

/// Bytes on the way to one member.
const WINDOW_BYTES: usize = 4 << 20;

/// Ticks without progress after which what was sent is taken for lost.
const PATIENCE_TICKS: u32 = 5;

#[derive(Debug)]
struct Copy {
    process: [u8; 16],
    at: Jseq,
    synced: Jseq,
    amnesic: bool,
    /// Shipped up to here.
    sent: Jseq,
    /// It has said where it stands.
    known: bool,
    conflict: bool,
    heard: u32,
    stalled: u32,
}

/// The machine.
#[derive(Debug)]
pub struct Owner {
    volume: VolumeId,
    epoch: Epoch,
    opened: bool,
    stopped: bool,
    base: Point,
    records: VecDeque<(Hash, Bytes)>,
    written: Jseq,
    durable: Jseq,
    wanted: Jseq,
    copies: BTreeMap<NodeId, Copy>,
}

impl Owner {
    /// An owner with what it begins with; asks the members where they stand.
    #[must_use]
    pub fn new(opening: Opening, effects: &mut Vec<Effect>) -> Self {
        let Opening { volume, node: _, epoch, members, base, records, durable } = opening;
        let copy = |node: NodeId| {
            let copy = Copy {
                process: [0; 16],
                at: Jseq(0),
                synced: Jseq(0),
                amnesic: true,
                sent: Jseq(0),
                known: false,
                conflict: false,
                heard: 0,
                stalled: 0,
            };
            (node, copy)
        };
        let records = records.into_iter().map(|record| (link(&record), record)).collect();
        let mut own = Self {
            volume,
            epoch,
            opened: false,
            stopped: false,
            base,
            records,
            written: durable.max(base.at),
            durable: durable.max(base.at),
            wanted: Jseq(0),
            copies: members.into_iter().map(copy).collect(),
        };
        own.wanted = own.last();
        let nodes: Vec<NodeId> = own.copies.keys().copied().collect();
        nodes.into_iter().for_each(|node| own.probe(node, effects));
        own
    }

    /// Takes one input.
    pub fn step(&mut self, input: Input, effects: &mut Vec<Effect>) {
        if self.stopped {
            return;
        }
        match input {
            Input::Opened => self.opened = true,
            Input::Made { record } => {
                self.opened = true;
                self.records.push_back((link(&record), record));
            }
            Input::Push => self.ship_all(effects),
            Input::Sync => {
                self.wanted = self.last();
                let nodes: Vec<NodeId> = self.copies.keys().copied().collect();
                for node in nodes {
                    self.ship(node, effects);
                    self.ask_sync(node, effects);
                }
            }
            Input::Trimmed(at) => self.trim(at),
            Input::Appended(from, appended) => self.appended(from, appended, effects),
            Input::Lost(to) => {
                if let Some(copy) = self.copies.get_mut(&to) {
                    copy.known = false;
                }
            }
            Input::Tick => self.tick(effects),
        }
    }

    fn last(&self) -> Jseq {
        Jseq(self.base.at.0 + u64::try_from(self.records.len()).unwrap_or(u64::MAX))
    }

    fn point(&self, at: Jseq) -> Option<Point> {
        if at == self.base.at {
            return Some(self.base);
        }
        let place = usize::try_from(at.0.checked_sub(self.base.at.0)?.checked_sub(1)?).ok()?;
        self.records.get(place).map(|(chain, _)| Point { at, chain: *chain })
    }

    fn marks(&self) -> Marks {
        Marks { written: self.written, durable: self.durable, trimmed: self.base.at }
    }

    /// Asks where a member stands.
    fn probe(&mut self, node: NodeId, effects: &mut Vec<Effect>) {
        let prev = self.point(self.last()).expect("the end is held");
        self.send(node, prev, Vec::new(), false, effects);
    }

    fn ask_sync(&mut self, node: NodeId, effects: &mut Vec<Effect>) {
        let Some(copy) = self.copies.get(&node).filter(|copy| copy.known && copy.synced < self.wanted) else { return };
        if copy.at == copy.sent || self.wanted <= copy.sent {
            let Some(prev) = self.point(copy.sent) else { return };
            self.send(node, prev, Vec::new(), true, effects);
        }
    }

    fn send(&mut self, to: NodeId, prev: Point, records: Vec<Bytes>, sync: bool, effects: &mut Vec<Effect>) {
        let marks = self.marks();
        let heals =
            self.copies.get(&to).filter(|copy| self.opened && copy.amnesic && copy.known).map(|copy| copy.process);
        let frame = Append { volume: self.volume, epoch: self.epoch, prev, marks, heals, sync, records };
        effects.push(Effect::Send { to, frame: Frame::Append(frame) });
    }

    fn ship_all(&mut self, effects: &mut Vec<Effect>) {
        let nodes: Vec<NodeId> = self.copies.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.ship(node, effects));
    }

    fn ship(&mut self, node: NodeId, effects: &mut Vec<Effect>) {
        loop {
            let last = self.last();
            let Some(copy) = self.copies.get(&node).filter(|copy| copy.known && !copy.conflict) else { return };
            if copy.sent >= last || self.bytes(copy.at.max(self.base.at), copy.sent) >= WINDOW_BYTES {
                return;
            }
            let from = copy.sent.max(self.base.at);
            let Some(prev) = self.point(from) else { return };
            let skip = usize::try_from(from.0 - self.base.at.0).unwrap_or(usize::MAX);
            let (mut records, mut bytes) = (Vec::new(), 0);
            for (_, record) in self.records.iter().skip(skip).take(RECORDS_MAX) {
                if !records.is_empty() && bytes + record.len() > FRAME_BYTES {
                    break;
                }
                bytes += record.len();
                records.push(record.clone());
            }
            let sent = Jseq(from.0 + u64::try_from(records.len()).unwrap_or(u64::MAX));
            let sync = self.wanted > self.durable && sent >= self.wanted;
            if let Some(copy) = self.copies.get_mut(&node) {
                copy.sent = sent;
            }
            self.send(node, prev, records, sync, effects);
        }
    }

    fn bytes(&self, after: Jseq, through: Jseq) -> usize {
        let place = |at: Jseq| usize::try_from(at.0.saturating_sub(self.base.at.0)).unwrap_or(usize::MAX);
        let (from, to) = (place(after), place(through));
        if from >= to {
            0
        } else {
            self.records.range(from..to.min(self.records.len())).map(|(_, record)| record.len()).sum()
        }
    }

    fn appended(&mut self, from: NodeId, appended: Appended, effects: &mut Vec<Effect>) {
        if appended.volume != self.volume || !self.copies.contains_key(&from) {
            return;
        }
        if appended.promise > self.epoch {
            self.stopped = true;
            return effects.push(Effect::Deposed(appended.promise));
        }
        let (base, last) = (self.base.at, self.last());
        let Some(copy) = self.copies.get_mut(&from).filter(|_| appended.epoch == self.epoch) else { return };
        copy.heard = 0;
        if copy.process != appended.life.process {
            *copy = Copy {
                process: appended.life.process,
                at: Jseq(0),
                synced: Jseq(0),
                amnesic: appended.amnesic,
                sent: Jseq(0),
                known: false,
                conflict: false,
                heard: 0,
                stalled: 0,
            };
        }
        copy.amnesic = appended.amnesic;
        match appended.verdict {
            Verdict::Took => {
                if appended.at > last {
                    return;
                }
                if appended.at > copy.at {
                    (copy.at, copy.stalled) = (appended.at, 0);
                }
                copy.synced = copy.synced.max(appended.synced.min(appended.at));
                if !copy.known {
                    (copy.known, copy.sent) = (true, copy.at.max(base));
                }
                copy.sent = copy.sent.max(copy.at);
            }
            Verdict::Lacks => {
                (copy.known, copy.stalled) = (true, 0);
                copy.sent = appended.at.clamp(base, last);
                if appended.at > last {
                    copy.sent = base;
                }
            }
            Verdict::Stale => {}
            Verdict::Conflict => {
                if !std::mem::replace(&mut copy.conflict, true) {
                    effects.push(Effect::Conflict(from));
                }
            }
        }
        self.count(effects);
        self.ship(from, effects);
    }

    fn count(&mut self, effects: &mut Vec<Effect>) {
        let enough = self.copies.len() / 2 + 1;
        let highest = |marks: &mut Vec<Jseq>| {
            marks.sort_unstable_by(|left, right| right.cmp(left));
            marks.get(enough - 1).copied().unwrap_or_default()
        };
        let counted = || self.copies.values().filter(|copy| !copy.conflict);
        let mut synced: Vec<Jseq> = counted().map(|copy| copy.synced).collect();
        let mut written: Vec<Jseq> = counted().filter(|copy| !copy.amnesic).map(|copy| copy.at).collect();
        let durable = highest(&mut synced).max(self.durable);
        let written = highest(&mut written).max(durable).max(self.written);
        if written > self.written {
            self.written = written;
            effects.push(Effect::Written(self.point(written).expect("a copy agrees with what is held")));
        }
        if durable > self.durable {
            self.durable = durable;
            effects.push(Effect::Durable(durable));
        }
    }

    fn trim(&mut self, at: Jseq) {
        while self.base.at < at.min(self.durable) {
            let Some((chain, _)) = self.records.pop_front() else { return };
            self.base = Point { at: self.base.at.next(), chain };
        }
    }

    fn tick(&mut self, effects: &mut Vec<Effect>) {
        let nodes: Vec<NodeId> = self.copies.keys().copied().collect();
        for node in nodes {
            let Some(copy) = self.copies.get_mut(&node) else { continue };
            copy.heard += 1;
            if copy.sent > copy.at {
                copy.stalled += 1;
                copy.known &= copy.stalled < PATIENCE_TICKS;
            }
            if !copy.known {
                (copy.stalled, copy.sent) = (0, copy.at);
                self.probe(node, effects);
                continue;
            }
            self.ship(node, effects);
            let Some(prev) = self.copies.get(&node).and_then(|copy| self.point(copy.sent)) else { continue };
            let sync = self.copies.get(&node).is_some_and(|copy| copy.synced < self.wanted);
            self.send(node, prev, Vec::new(), sync, effects);
        }
    }

    /// How the members stand.
    #[must_use]
    pub fn status(&self) -> Vec<MemberStanding> {
        let standing = |(node, copy): (&NodeId, &Copy)| MemberStanding {
            node: *node,
            at: copy.at,
            synced: copy.synced,
            amnesic: copy.amnesic,
            heard: copy.heard,
        };
        self.copies.iter().map(standing).collect()
    }
}

fn link(record: &Bytes) -> Hash {
    let (lead, sealed) = record.split_first_chunk::<HEADER_BYTES>().expect("a record begins with its header");
    chain(lead, sealed)
}
