//! A state: nodes, what is on its way, raft, and the truth.

use std::{collections::VecDeque, hash::Hash, hash::Hasher, rc::Rc};

use velum_node::{ensemble::takeover, metadata::State};
use velum_protocol::{
    codec,
    format::metadata::Command,
    id::{Epoch, Jseq, NodeId},
    peer::Frame,
};

use super::scope::{Left, Order};
use crate::{
    ensemble::{ghost::Ghost, machine::Machine},
    model::print::{Printer, Shared, print_of},
};

/// Nodes, all of them members of every ensemble.
pub(super) const NODES: usize = 3;

/// A state.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) nodes: [Shared<Node>; NODES],
    pub(super) raft: Shared<Raft>,
    pub(super) ghost: Shared<Ghost>,
    /// What is on its way: each message once, in the order of their prints; or lane by lane, oldest first.
    pub(super) flying: Vec<Rc<Flying>>,
    pub(super) left: Left,
    /// How often half the time of a lease has passed.
    pub(super) halves: u32,
}

/// A machine with its process.
#[derive(Clone, Debug, Hash)]
pub(super) struct Node {
    pub(super) machine: Machine,
    /// A sync is under way, of so much of the log.
    pub(super) syncing: Option<usize>,
    /// What raft has for it, oldest first.
    pub(super) news: VecDeque<News>,
}

/// What raft has for a node, that applies it at a time of its own.
#[derive(Clone, Debug, Hash)]
pub(super) enum News {
    Granted { opening: Box<takeover::Opening>, members: Vec<NodeId> },
    Closed { epoch: Epoch, is_done: bool },
    Trimmed { through: Jseq },
}

/// Raft: a log of which only what it makes is told apart.
#[derive(Clone, Debug)]
pub(super) struct Raft {
    pub(super) state: State,
    pub(super) requests: u64,
}

impl Hash for Raft {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.state.save().hash(hasher);
    }
}

/// A message on its way.
#[derive(Debug)]
pub(super) struct Flying {
    pub(super) from: NodeId,
    /// Zero for raft.
    pub(super) to: NodeId,
    pub(super) letter: Letter,
    print: u128,
}

#[derive(Debug)]
pub(super) enum Letter {
    Frame(Frame),
    Proposal(Command),
}

/// Raft's address.
pub(super) const RAFT: NodeId = NodeId(0);

impl Flying {
    pub(super) fn frame(from: NodeId, to: NodeId, frame: Frame) -> Self {
        let print = print_of(&(from, to, frame.encode()));
        Self { from, to, letter: Letter::Frame(frame), print }
    }

    pub(super) fn proposal(from: NodeId, command: Command) -> Self {
        let print = print_of(&(from, RAFT, codec::encode(&command)));
        Self { from, to: RAFT, letter: Letter::Proposal(command), print }
    }

    /// Messages of one lane keep their order: words overtake records.
    pub(super) fn lane(&self) -> (NodeId, NodeId, bool) {
        let is_record = matches!(&self.letter, Letter::Frame(Frame::Append(_) | Frame::Tail(_)));
        (self.from, self.to, is_record)
    }

    /// It goes over a link, which may break.
    pub(super) fn is_on_link(&self) -> bool {
        self.to != RAFT && self.to != self.from
    }
}

/// A node's number.
pub(super) fn number(place: usize) -> NodeId {
    NodeId(place as u64 + 1)
}

/// The place of a node in a world.
pub(super) fn place(node: NodeId) -> usize {
    node.0 as usize - 1
}

impl World {
    pub(super) fn print(&self) -> u128 {
        let mut printer = Printer::default();
        self.nodes.iter().for_each(|node| printer.word(node.print()));
        printer.word(self.raft.print());
        printer.word(self.ghost.print());
        self.flying.iter().for_each(|flying| printer.word(flying.print));
        printer.word(print_of(&(&self.left, self.halves)));
        printer.print()
    }

    pub(super) fn send(&mut self, flying: Flying, order: Order) {
        let place = match order {
            Order::Any => self.flying.partition_point(|other| other.print < flying.print),
            Order::Lanes => self.flying.partition_point(|other| other.lane() <= flying.lane()),
        };
        // The same once more is what a repetition is for.
        if order == Order::Lanes || self.flying.get(place).is_none_or(|other| other.print != flying.print) {
            self.flying.insert(place, Rc::new(flying));
        }
    }

    /// True when the message may come next.
    pub(super) fn may_come(&self, index: usize, order: Order) -> bool {
        let before = index.checked_sub(1).map(|before| self.flying[before].lane());
        order == Order::Any || before != Some(self.flying[index].lane())
    }
}
