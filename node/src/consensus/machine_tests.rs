//! Several machines with a network between them that loses, delays and cuts: no disk, no time but ticks.

use std::collections::BTreeMap;

use raft::eraftpb::ConfState;

use super::*;
use crate::actor::Machine as _;

/// A journal that forgets what was not synced, and the state machine behind it.
struct Member {
    machine: Machine,
    durable: Vec<(Position, Vec<u8>)>,
    unsynced: Vec<(Position, Vec<u8>)>,
    syncs: VecDeque<u64>,
    applied: Vec<(u64, Bytes)>,
    answers: Vec<(u64, bool)>,
    caught_up: bool,
}

struct Group {
    members: BTreeMap<u64, Member>,
    network: VecDeque<Message>,
    cut: Option<u64>,
    chance: u64,
}

fn log(node_count: u64) -> Log {
    let members = ConfState { voters: (1..=node_count).collect(), ..ConfState::default() };
    let hard_state = convert::raft_hard_state(format::HardState { term: 1, vote: 0, commit: 1 });
    Log::new((1, 1), members, hard_state)
}

fn machine(node: u64, node_count: u64, durable: &[(Position, Vec<u8>)]) -> Machine {
    let mut log = log(node_count);
    let mut hard_state = convert::hard_state(log.hard_state());
    let mut records = Vec::new();
    for (at, record) in durable {
        let record = format::Record::decode(record).unwrap();
        let entries = convert::raft_entries(record.first, record.entries);
        assert!(log.append(&entries));
        hard_state = super::super::merge(hard_state, record.hard_state);
        records.push((*at, entries.last().map_or(0, |entry| entry.index), 100));
    }
    log.set_hard_state(convert::raft_hard_state(hard_state));
    let first_start = false;
    let journal = JournalBounds { record_bytes_max: 1 << 20, bytes_max: 1 << 30 };
    Machine::new(Start { node, log, applied: 1, records, first_start, journal }).unwrap()
}

impl Group {
    fn new(count: u64, seed: u64) -> Self {
        let mut group = Self { members: BTreeMap::new(), network: VecDeque::new(), cut: None, chance: seed | 1 };
        for node in 1..=count {
            let member = Member {
                machine: machine(node, count, &[]),
                durable: Vec::new(),
                unsynced: Vec::new(),
                syncs: VecDeque::new(),
                applied: Vec::new(),
                answers: Vec::new(),
                caught_up: false,
            };
            group.members.insert(node, member);
            group.step(node, Input::Begin);
        }
        group
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        (self.chance >> 11) % bound
    }

    fn step(&mut self, node: u64, input: Input) {
        let member = self.members.get_mut(&node).unwrap();
        let mut effects = Vec::new();
        member.machine.step(Instant(0), input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Append { at, record } => member.unsynced.push((at, record)),
                Effect::Sync { through } => member.syncs.push_back(through),
                Effect::Send(message) => self.network.push_back(*message.0),
                Effect::Apply { index, entry, ticket } => {
                    member.applied.push((index, entry));
                    member.answers.extend(ticket.map(|ticket| (ticket, true)));
                }
                Effect::Refuse { ticket, .. } => member.answers.push((ticket, false)),
                Effect::CaughtUp => member.caught_up = true,
                Effect::Halt(reason) => panic!("{reason}"),
                Effect::Snapshot { .. } | Effect::Trim { .. } | Effect::ArmTick | Effect::Report(_) => {}
            }
        }
    }

    /// The oldest sync of a node ends.
    fn finish_sync(&mut self, node: u64) {
        let member = self.members.get_mut(&node).unwrap();
        let Some(through) = member.syncs.pop_front() else { return };
        let covered = member.unsynced.iter().take_while(|(at, _)| at.number <= through).count();
        member.durable.extend(member.unsynced.drain(..covered));
        self.step(node, Input::Synced { through });
    }

    /// A node loses what it did not sync, and starts again.
    fn crash(&mut self, node: u64) {
        let count = u64::try_from(self.members.len()).unwrap();
        let member = self.members.get_mut(&node).unwrap();
        member.unsynced.clear();
        member.syncs.clear();
        member.applied.clear();
        member.machine = machine(node, count, &member.durable);
        self.step(node, Input::Begin);
    }

    /// Something happens.
    fn happen(&mut self) {
        let count = u64::try_from(self.members.len()).unwrap();
        let node = 1 + self.below(count);
        match self.below(100) {
            0..=29 => self.finish_sync(node),
            30..=39 => self.step(node, Input::Tick),
            _ => {
                let Some(message) = self.network.pop_front() else { return self.step(node, Input::Tick) };
                let is_cut = self.cut.is_some_and(|cut| message.from == cut || message.to == cut);
                if !is_cut && self.below(50) != 0 {
                    self.step(message.to, Input::Receive(Box::new(message)));
                }
            }
        }
    }

    fn leader(&self) -> Option<u64> {
        let leads = |member: &Member| member.machine.reported.is_leader;
        let newest = self.members.iter().filter(|(_, member)| leads(member));
        newest.max_by_key(|(_, member)| member.machine.reported.term).map(|(node, _)| *node)
    }

    fn check_agreement(&self, context: &str) {
        let mut agreed: BTreeMap<u64, &Bytes> = BTreeMap::new();
        for member in self.members.values() {
            for (index, entry) in &member.applied {
                assert_eq!(*agreed.entry(*index).or_insert(entry), entry, "{context}: two entries at {index}");
            }
        }
    }
}

#[test]
fn alone_it_leads_catches_up_and_answers_only_after_the_sync() {
    let mut group = Group::new(1, 1);
    assert!(!group.members[&1].caught_up, "its own first entry is not durable yet");
    group.finish_sync(1);
    assert!(group.members[&1].caught_up);
    group.step(1, Input::Propose { ticket: 7, entry: Bytes::from_static(b"x") });
    assert_eq!(group.members[&1].answers, []);
    group.finish_sync(1);
    assert_eq!(group.members[&1].answers, [(7, true)]);
}

#[test]
fn one_sync_is_in_flight_and_the_next_covers_what_came_meanwhile() {
    let mut group = Group::new(1, 1);
    group.finish_sync(1);
    for ticket in 0..10 {
        group.step(1, Input::Propose { ticket, entry: Bytes::from_static(b"x") });
        assert_eq!(group.members[&1].syncs.len(), 1);
    }
    group.finish_sync(1);
    assert_eq!(group.members[&1].answers, [(0, true)]);
    group.finish_sync(1);
    assert_eq!(group.members[&1].answers.len(), 10);
}

#[test]
fn a_restart_applies_again_what_was_durable() {
    let mut group = Group::new(1, 1);
    group.finish_sync(1);
    for ticket in 0..5 {
        group.step(1, Input::Propose { ticket, entry: Bytes::from(vec![u8::try_from(ticket).unwrap()]) });
        group.finish_sync(1);
    }
    let before = group.members[&1].applied.clone();
    group.step(1, Input::Propose { ticket: 6, entry: Bytes::from_static(b"lost") });
    group.crash(1);
    group.finish_sync(1);
    assert_eq!(group.members[&1].applied, before);
}

#[test]
fn a_vote_leaves_only_after_its_sync() {
    let mut group = Group::new(3, 1);
    for _ in 0..60 {
        group.step(1, Input::Tick);
    }
    // Two rounds of questions; the answers to the binding one wait for a sync.
    for _ in 0..20 {
        if let Some(message) = group.network.pop_front() {
            let kind = message.get_msg_type();
            if kind == MessageType::MsgRequestVoteResponse {
                assert!(!group.members[&message.from].durable.is_empty(), "a vote that could be forgotten was sent");
            }
            group.step(message.to, Input::Receive(Box::new(message)));
        } else {
            (1..=3).for_each(|node| group.finish_sync(node));
        }
    }
    assert_eq!(group.leader(), Some(1));
}

#[test]
fn three_nodes_agree_through_crashes_cuts_and_loss() {
    for seed in 1..16 {
        let mut group = Group::new(3, seed * 0x9e37_79b9);
        let mut ticket = 0;
        for turn in 0..6000 {
            group.happen();
            if turn % 7 == 0
                && let Some(leader) = group.leader()
            {
                ticket += 1;
                let entry = Bytes::from(u64::to_le_bytes(ticket).to_vec());
                group.step(leader, Input::Propose { ticket, entry });
            }
            if group.below(400) == 0 {
                let node = 1 + group.below(3);
                group.crash(node);
            }
            if group.below(300) == 0 {
                group.cut = Some(1 + group.below(4));
            }
        }
        group.check_agreement(&format!("seed {seed}"));
        // Once faults stop, everybody comes to hold the same.
        group.cut = None;
        (0..15_000).for_each(|_| group.happen());
        let leader = group.leader().expect("a leader is found once faults stop");
        group.step(leader, Input::Propose { ticket: 0, entry: Bytes::from_static(b"last") });
        (0..10_000).for_each(|_| group.happen());
        group.check_agreement(&format!("seed {seed}"));
        for (node, member) in &group.members {
            assert!(member.applied.iter().any(|(_, entry)| entry == "last"), "seed {seed}: {node} does not follow");
        }
    }
}

#[test]
fn the_same_inputs_give_the_same_effects() {
    let run = || {
        let mut group = Group::new(3, 99);
        (0..5000).for_each(|_| group.happen());
        let durable: Vec<_> = group.members.values().map(|member| member.durable.clone()).collect();
        (durable, group.leader())
    };
    assert_eq!(run(), run());
}

#[test]
fn messages_that_cannot_be_are_dropped() {
    let mut group = Group::new(3, 1);
    let message = |kind, from, to| Message { msg_type: kind, from, to, term: 1, ..Message::default() };
    let mut beyond = message(MessageType::MsgHeartbeat, 2, 1);
    beyond.commit = 1000;
    let mut disjoint = message(MessageType::MsgAppend, 2, 1);
    disjoint.index = 1;
    disjoint.log_term = 1;
    disjoint.entries = vec![Entry { index: 9, term: 1, ..Entry::default() }].into();
    for bad in [
        beyond,
        disjoint,
        message(MessageType::MsgHup, 2, 1),
        message(MessageType::MsgSnapshot, 2, 1),
        message(MessageType::MsgHeartbeat, 9, 1),
        message(MessageType::MsgHeartbeat, 1, 1),
        message(MessageType::MsgHeartbeat, 2, 3),
    ] {
        let kind = bad.get_msg_type();
        group.step(1, Input::Receive(Box::new(bad)));
        assert!(group.network.is_empty(), "{kind:?} was answered");
    }
}

#[test]
fn a_long_batch_is_stored_in_records_of_bounded_length() {
    let mut group = Group::new(1, 1);
    group.finish_sync(1);
    let member = group.members.get_mut(&1).unwrap();
    let entries: Vec<Entry> =
        (3..200).map(|index| Entry { index, term: 2, data: vec![0; 30_000].into(), ..Entry::default() }).collect();
    let mut effects = Vec::new();
    member.machine.store(&entries, &HardState::default(), &mut effects);
    assert!(effects.len() > 5);
    let mut next = 3;
    for effect in effects {
        let Effect::Append { record, .. } = effect else { panic!("only records are stored") };
        assert!(record.len() <= 1 << 20);
        let record = format::Record::decode(&record).unwrap();
        assert_eq!(record.first, next);
        next += u64::try_from(record.entries.len()).unwrap();
    }
    assert_eq!(next, 200);
}
