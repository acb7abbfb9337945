//! How much may happen, and what can happen in a state.

use velum_protocol::{
    id::{Epoch, NodeId},
    peer::Frame,
};

use super::{
    Step,
    world::{Flying, Letter, NODES, World, place},
};
use crate::ensemble::machine::{Machine, Role, VOLUME};

/// In which order messages come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// In any: more than links do.
    Any,
    /// As links have them: what is of one kind between two nodes keeps its order, and what a node says to itself it hears at once.
    Lanes,
}

/// What the owner on the first node has done before anything is counted.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    /// Writes that were acked.
    pub writes: u8,
    /// They are at d1.
    pub is_synced: bool,
    /// The node, by place, to which nothing of it has come.
    pub absent: Option<usize>,
    /// Then it has asked for leases, and half of their time has passed before the answers came.
    pub is_leased: bool,
}

impl Before {
    /// Nothing at all.
    pub const NOTHING: Self = Self { writes: 0, is_synced: false, absent: None, is_leased: false };
}

/// Bounds of what may happen after an owner was opened on the first node.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// What it is called.
    pub name: &'static str,
    /// What it is for.
    pub what: &'static str,
    /// In which order messages come.
    pub order: Order,
    /// How far the owner is when it begins.
    pub before: Before,
    /// To whom raft grants the volume, one after the other, by place.
    pub grants: &'static [usize],
    /// How often all else may happen.
    pub at_most: Left,
    /// What must have happened on some way when it was explored: otherwise it shows less than it says.
    pub reaches: &'static [&'static str],
}

/// How often each thing may still happen.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Left {
    /// Grants that were made.
    pub granted: u8,
    /// Writes of guests.
    pub writes: u8,
    /// Barriers.
    pub barriers: u8,
    /// Records of the sequence.
    pub flushes: u8,
    /// Killed processes.
    pub kills: u8,
    /// Losses of power.
    pub power_losses: u8,
    /// Damaged journals.
    pub damages: u8,
    /// Broken links.
    pub breaks: u8,
    /// Messages that come twice.
    pub repeats: u8,
    /// Times at which an owner gets impatient.
    pub ticks: u8,
    /// The same of takeovers.
    pub waits: u8,
    /// Reads of guests.
    pub reads: u8,
    /// Times at which half of the time for which leases are granted passes.
    pub passes: u8,
}

impl Left {
    /// Nothing at all.
    pub const NOTHING: Self = Self {
        granted: 0,
        writes: 0,
        barriers: 0,
        flushes: 0,
        kills: 0,
        power_losses: 0,
        damages: 0,
        breaks: 0,
        repeats: 0,
        ticks: 0,
        waits: 0,
        reads: 0,
        passes: 0,
    };
}

/// The scopes that are explored, smallest first. Only the last three are larger than a machine of a few GiB can explore to the end.
pub const SCOPES: [Scope; 13] = [
    Scope {
        name: "race",
        what: "two take over, one after the other or at once",
        order: Order::Lanes,
        before: Before::NOTHING,
        grants: &[1, 2],
        at_most: Left::NOTHING,
        reaches: &["a takeover is overtaken", "an owner is deposed"],
    },
    Scope {
        name: "flush",
        what: "a record comes into the sequence, and journals are trimmed, while another one takes over",
        order: Order::Lanes,
        before: Before::NOTHING,
        grants: &[1],
        at_most: Left { writes: 1, flushes: 1, ..Left::NOTHING },
        reaches: &["a takeover finds a tail", "a record of the sequence is refused", "records are trimmed"],
    },
    Scope {
        name: "kill",
        what: "a process is killed while another one takes over",
        order: Order::Lanes,
        before: Before::NOTHING,
        grants: &[1],
        at_most: Left { writes: 1, kills: 1, ..Left::NOTHING },
        reaches: &["a takeover finds a tail", "an owner is deposed"],
    },
    Scope {
        name: "repetition",
        what: "a message comes twice, the second time as late as can be",
        order: Order::Lanes,
        before: Before::NOTHING,
        grants: &[1],
        at_most: Left { writes: 1, repeats: 1, ..Left::NOTHING },
        reaches: &["a takeover finds a tail", "an owner is deposed"],
    },
    Scope {
        name: "writes",
        what: "an owner goes on writing while another one takes over and writes",
        order: Order::Lanes,
        before: Before::NOTHING,
        grants: &[1],
        at_most: Left { writes: 2, ..Left::NOTHING },
        reaches: &["a takeover finds a tail", "an end is void", "a later owner acks a write"],
    },
    Scope {
        name: "any-order",
        what: "the same with one write, and messages come in any order",
        order: Order::Any,
        before: Before::NOTHING,
        grants: &[1],
        at_most: Left { writes: 1, ..Left::NOTHING },
        reaches: &["a takeover finds a tail", "a later owner acks a write", "an owner is deposed"],
    },
    Scope {
        name: "barrier",
        what: "a barrier is asked for while another one takes over",
        order: Order::Lanes,
        before: Before::NOTHING,
        grants: &[1],
        at_most: Left { writes: 1, barriers: 1, ..Left::NOTHING },
        reaches: &["a takeover finds a tail", "a barrier is acked", "a later owner acks a write"],
    },
    Scope {
        name: "lease",
        what: "a guest reads by leases that end, while another one takes over and writes",
        order: Order::Lanes,
        before: Before { is_leased: true, ..Before::NOTHING },
        grants: &[1],
        at_most: Left { writes: 1, reads: 1, passes: 1, ..Left::NOTHING },
        reaches: &["a read is answered by a lease", "a fence waits for a lease", "a later owner acks a write"],
    },
    Scope {
        name: "absent",
        what: "one member lacks what was acked, a barrier is asked for, and a machine loses power",
        order: Order::Lanes,
        before: Before { writes: 1, absent: Some(2), ..Before::NOTHING },
        grants: &[1],
        at_most: Left { barriers: 1, power_losses: 1, waits: 1, ..Left::NOTHING },
        reaches: &["a barrier is acked", "an amnesic copy answers a fence", "the lineage changes"],
    },
    Scope {
        name: "damage",
        what: "one member lacks what is synced, and a journal is damaged",
        order: Order::Lanes,
        before: Before { writes: 1, is_synced: true, absent: Some(2), ..Before::NOTHING },
        grants: &[1],
        at_most: Left { damages: 1, ticks: 1, waits: 1, ..Left::NOTHING },
        reaches: &["a takeover finds a tail", "a damaged copy answers a fence", "a damaged copy is filled"],
    },
    Scope {
        name: "power",
        what: "machines lose power, and what they had not synced",
        order: Order::Lanes,
        before: Before::NOTHING,
        grants: &[1],
        at_most: Left { writes: 1, barriers: 1, power_losses: 2, waits: 1, ..Left::NOTHING },
        reaches: &["a takeover finds a tail", "an amnesic copy answers a fence", "the lineage changes"],
    },
    Scope {
        name: "links",
        what: "links break, and owners ask again",
        order: Order::Lanes,
        before: Before::NOTHING,
        grants: &[1],
        at_most: Left { writes: 1, barriers: 1, breaks: 1, ticks: 1, ..Left::NOTHING },
        reaches: &["a takeover finds a tail", "a barrier is acked"],
    },
    Scope {
        name: "wide",
        what: "two take over, with crashes, a flush, and time that passes",
        order: Order::Lanes,
        before: Before::NOTHING,
        grants: &[1, 0],
        at_most: Left {
            writes: 2,
            barriers: 1,
            flushes: 1,
            kills: 1,
            power_losses: 1,
            ticks: 1,
            waits: 1,
            ..Left::NOTHING
        },
        reaches: &["a takeover finds a tail", "a takeover is overtaken", "the lineage changes"],
    },
];

impl Scope {
    pub(super) fn steps(&self, world: &World) -> Vec<Step> {
        let left = &world.left;
        let mut steps = Vec::new();
        for (index, flying) in world.flying.iter().enumerate().filter(|(index, _)| world.may_come(*index, self.order)) {
            steps.push(Step::Deliver(index));
            steps.extend((left.repeats > 0 && flying.is_on_link()).then_some(Step::Repeat(index)));
            steps.extend((left.breaks > 0 && flying.is_on_link()).then_some(Step::Break(index)));
        }
        for place in 0..NODES {
            self.steps_of(world, place, &mut steps);
        }
        steps.extend((left.passes > 0).then_some(Step::Pass));
        steps.extend((usize::from(left.granted) < self.grants.len()).then_some(Step::Grant));
        let (volume, ensemble) = (&world.raft.state.volumes[&VOLUME], &world.raft.state.ensembles[&VOLUME]);
        let lags = volume.durable_seq(1) < volume.head.seq;
        steps.extend((lags && ensemble.opened == volume.epoch).then_some(Step::Advance));
        steps
    }

    fn steps_of(&self, world: &World, node: usize, steps: &mut Vec<Step>) {
        let (left, state) = (&world.left, &*world.nodes[node]);
        steps.extend(state.syncing.map(|_| Step::Synced(node)));
        let storing = state.machine.disk.storing.len();
        steps.extend((storing > 0).then_some(Step::Stored(node)));
        steps.extend((!state.news.is_empty()).then_some(Step::Hear(node)));
        match state.machine.up.as_ref().map(|up| &up.role) {
            Some(Role::Owning(owning)) => {
                let volume = &world.raft.state.volumes[&VOLUME];
                let can_flush = owning.is_open && owning.written.at > volume.head.last;
                steps.extend((owning.is_open && left.writes > 0).then_some(Step::Write(node)));
                steps.extend((owning.is_open && left.barriers > 0).then_some(Step::Barrier(node)));
                steps.extend((can_flush && left.flushes > 0).then_some(Step::Flush(node)));
                steps.extend((owning.is_open && left.reads > 0).then_some(Step::Read(node)));
                steps.extend((left.ticks > 0).then_some(Step::Tick(node)));
            }
            Some(Role::Taking { .. }) => steps.extend((left.waits > 0).then_some(Step::Wait(node))),
            Some(Role::None) | None => {}
        }
        // One machine at a time may lack what it had synced.
        let can_lack = left.damages > 0 && world.nodes.iter().all(|node| node.machine.damaged_ms.is_none());
        // Of promises that are being stored none is durable, or all are.
        let stored: &[usize] = if storing == 0 { &[0] } else { &[0, storing] };
        for stored in stored.iter().copied() {
            steps.extend((left.kills > 0).then_some(Step::Kill { node, stored }));
            for keeps in [false, true].into_iter().filter(|_| left.power_losses > 0) {
                // All that was written is synced: both are one.
                let is_same = state.machine.disk.synced == state.machine.disk.log.len();
                steps.extend((keeps || !is_same).then_some(Step::LosePower { node, stored, keeps }));
            }
            let parts = damage(&state.machine).into_iter().filter(|_| can_lack);
            steps.extend(parts.map(|(from, to)| Step::Damage { node, stored, from, to }));
        }
    }
}

/// The parts of a journal that damage may take, with something in them that was synced. Behind what was synced nothing is left.
fn damage(machine: &Machine) -> Vec<(usize, usize)> {
    let (synced, all) = (machine.disk.synced, machine.disk.log.len());
    let ends = |from| (from + 1..synced).chain([all]).map(move |to| (from, to));
    (0..synced).flat_map(ends).collect()
}

impl World {
    /// Forgets messages that make no difference to anybody any more: answers for an owner or a takeover that is no more, and
    /// questions that would only bring such answers.
    pub(super) fn forget(&mut self) {
        let role = |node: NodeId| self.nodes[place(node)].machine.up.as_ref().map_or(&Role::None, |up| &up.role);
        let owns = |node, epoch| matches!(role(node), Role::Owning(owning) if owning.epoch == epoch);
        let promised =
            |node: NodeId| self.nodes[place(node)].machine.disk.promise.map_or(Epoch(0), |noted| noted.epoch);
        let makes_a_difference = |flying: &Flying| {
            let (from, to) = (flying.from, flying.to);
            match &flying.letter {
                Letter::Frame(Frame::Append(append)) => owns(from, append.epoch) || append.epoch >= promised(to),
                Letter::Frame(Frame::Appended(appended)) => owns(to, appended.epoch),
                Letter::Frame(Frame::Fence(fence)) => role(from).takes(fence.epoch) || fence.epoch >= promised(to),
                Letter::Frame(Frame::Fenced(fenced)) => {
                    matches!(role(to), Role::Taking { epoch, .. } if fenced.promise >= *epoch)
                }
                Letter::Frame(Frame::ReadTail(read)) => role(from).takes(read.epoch),
                Letter::Frame(Frame::Tail(tail)) => role(to).takes(tail.epoch),
                Letter::Frame(Frame::Confirm(confirm)) => owns(from, confirm.epoch),
                Letter::Frame(Frame::Confirmed(_)) => matches!(role(to), Role::Owning(_)),
                Letter::Frame(_) | Letter::Proposal(_) => true,
            }
        };
        let kept = self.flying.iter().filter(|flying| makes_a_difference(flying)).cloned().collect();
        self.flying = kept;
    }
}
