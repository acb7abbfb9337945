//! Several machines with a network between them that loses, delays and cuts: no disk, no time but ticks.

use std::collections::BTreeMap;

use raft::eraftpb::{ConfState, MessageType};
use velum_protocol::{
    format::raft::{EntryKind, Membership},
    peer::{Placement, agreement::MessageKind},
};

use super::*;
use crate::actor::Machine as _;

/// A journal that forgets what was not synced, and the state machine behind it.
struct Member {
    machine: Machine,
    durable: Vec<(Position, Vec<u8>)>,
    unsynced: Vec<(Position, Vec<u8>)>,
    syncs: VecDeque<u64>,
    /// The snapshot file.
    snapshot: (u64, u64, format::Snapshot),
    installs: VecDeque<(u64, u64, format::Snapshot)>,
    applied: Vec<(u64, Bytes)>,
    answers: Vec<(u64, bool)>,
    caught_up: bool,
    halted: Option<&'static str>,
}

/// On its way from one node to another.
struct Parcel {
    from: u64,
    to: u64,
    frame: Frame,
    state: Bytes,
}

impl Parcel {
    fn kind(&self) -> Option<MessageKind> {
        if let Frame::Raft(message) = &self.frame { Some(message.kind) } else { None }
    }
}

struct Group {
    members: BTreeMap<u64, Member>,
    network: VecDeque<Parcel>,
    cut: Option<u64>,
    chance: u64,
}

fn begun(node_count: u64) -> (u64, u64, format::Snapshot) {
    let snapshot = format::Snapshot {
        hard_state: format::HardState { term: 1, vote: 0, commit: 1 },
        from_record: 1,
        membership: Membership { voters: (1..=node_count).collect(), ..Membership::default() },
        state: Bytes::new(),
    };
    (1, 1, snapshot)
}

/// The state machine is the list of what was applied: index, length, bytes.
fn save(applied: &[(u64, Bytes)]) -> Bytes {
    let one =
        |(index, entry): &(u64, Bytes)| [&index.to_le_bytes()[..], &u64_of(entry.len()).to_le_bytes(), entry].concat();
    applied.iter().flat_map(one).collect::<Vec<u8>>().into()
}

fn load(mut state: Bytes) -> Vec<(u64, Bytes)> {
    let mut applied = Vec::new();
    while !state.is_empty() {
        let head = state.split_to(16);
        let index = u64::from_le_bytes(*head.first_chunk().unwrap());
        let length = usize::try_from(u64::from_le_bytes(*head.last_chunk().unwrap())).unwrap();
        applied.push((index, state.split_to(length)));
    }
    applied
}

fn machine(
    node: u64,
    (index, term, snapshot): (u64, u64, format::Snapshot),
    durable: &[(Position, Vec<u8>)],
) -> Machine {
    let mut log = Log::new((index, term), convert::raft_members(snapshot.membership), HardState::default());
    let mut hard_state = snapshot.hard_state;
    let mut records = Vec::new();
    for (at, record) in durable.iter().filter(|(at, _)| at.number >= snapshot.from_record) {
        let record = format::Record::decode(record).unwrap();
        let entries = convert::raft_entries(record.first, record.entries).unwrap();
        assert!(log.append(&entries), "the log of {node} does not join its snapshot");
        hard_state = super::super::merge(hard_state, record.hard_state);
        records.push((*at, entries.last().map_or(0, |entry| entry.index), 100));
    }
    log.set_hard_state(convert::raft_hard_state(hard_state));
    let first_start = false;
    let journal = JournalBounds { record_bytes_max: 1 << 20, bytes_max: 1 << 30 };
    Machine::new(Start { node, nonce: 7, log, applied: index, records, first_start, journal }).unwrap()
}

fn member(node: u64, snapshot: (u64, u64, format::Snapshot)) -> Member {
    Member {
        machine: machine(node, snapshot.clone(), &[]),
        durable: Vec::new(),
        unsynced: Vec::new(),
        syncs: VecDeque::new(),
        snapshot,
        installs: VecDeque::new(),
        applied: Vec::new(),
        answers: Vec::new(),
        caught_up: false,
        halted: None,
    }
}

impl Group {
    fn new(count: u64, seed: u64) -> Self {
        let mut group = Self { members: BTreeMap::new(), network: VecDeque::new(), cut: None, chance: seed | 1 };
        for node in 1..=count {
            group.members.insert(node, member(node, begun(count)));
            group.step(node, Input::Begin);
        }
        group
    }

    /// A newcomer.
    fn join(&mut self, node: u64) {
        self.members.insert(node, member(node, (0, 0, format::Snapshot::default())));
        self.step(node, Input::Begin);
    }

    /// Everything that can happen without time passing happens.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let nodes: Vec<u64> = self.members.keys().copied().collect();
            for node in nodes {
                self.finish_sync(node);
                self.finish_install(node);
            }
            let Some(parcel) = self.network.pop_front() else { continue };
            self.deliver(parcel);
        }
        assert!(self.network.is_empty(), "the group talks for ever");
    }

    fn deliver(&mut self, parcel: Parcel) {
        let Parcel { from, to, frame, state } = parcel;
        let is_cut = self.cut.is_some_and(|cut| from == cut || to == cut);
        if self.members.contains_key(&to) && !is_cut {
            self.step(to, Input::Receive { from: NodeId(from), frame, state });
        }
    }

    /// Lets time pass until somebody leads.
    fn elect(&mut self) -> u64 {
        for _ in 0..200 {
            let nodes: Vec<u64> = self.members.keys().copied().collect();
            nodes.into_iter().for_each(|node| self.step(node, Input::Tick));
            self.settle();
            let agreed = |leader: &u64| self.members.values().all(|member| member.machine.leader() == Some(*leader));
            if let Some(leader) = self.leader().filter(agreed) {
                return leader;
            }
        }
        panic!("nobody leads");
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        (self.chance >> 11) % bound
    }

    fn step(&mut self, node: u64, input: Input) {
        let member = self.members.get_mut(&node).unwrap();
        let (mut effects, mut sent) = (Vec::new(), Vec::new());
        member.machine.step(Instant(0), input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Append { at, record } => member.unsynced.push((at, record)),
                Effect::Sync { through } => member.syncs.push_back(through),
                Effect::Send { to, frame } => {
                    self.network.push_back(Parcel { from: node, to: to.0, frame, state: Bytes::new() });
                }
                Effect::SendSnapshot { to, head } => {
                    let frame = Frame::Raft(head);
                    let state = save(&member.applied);
                    self.network.push_back(Parcel { from: node, to: to.0, frame, state });
                    sent.push(to);
                }
                Effect::Apply { index, entry, ticket } => {
                    member.applied.push((index, entry));
                    member.answers.extend(ticket.map(|ticket| (ticket, true)));
                }
                Effect::Refuse { ticket, .. } => member.answers.push((ticket, false)),
                Effect::Answer { ticket } => member.answers.push((ticket, true)),
                Effect::CaughtUp => member.caught_up = true,
                Effect::Halt(reason) => member.halted = Some(reason),
                Effect::Install { index, term, snapshot } => member.installs.push_back((index, term, *snapshot)),
                Effect::Restore { state } => member.applied = load(state),
                Effect::Snapshot { .. }
                | Effect::Trim { .. }
                | Effect::ArmTick
                | Effect::WatchJournal
                | Effect::Members(_)
                | Effect::Report(_)
                | Effect::ReportLags(_) => {}
            }
        }
        for to in sent {
            self.step(node, Input::SnapshotSent { to, whole: true });
        }
    }

    /// A snapshot that is being installed is in place.
    fn finish_install(&mut self, node: u64) {
        let member = self.members.get_mut(&node).unwrap();
        if let Some(snapshot) = member.installs.pop_front() {
            member.snapshot = snapshot;
            self.step(node, Input::Installed { bytes: 100 });
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
        let member = self.members.get_mut(&node).unwrap();
        member.unsynced.clear();
        member.syncs.clear();
        member.installs.clear();
        member.applied = load(member.snapshot.2.state.clone());
        member.machine = machine(node, member.snapshot.clone(), &member.durable);
        self.step(node, Input::Begin);
    }

    /// Something happens.
    fn happen(&mut self) {
        let count = u64::try_from(self.members.len()).unwrap();
        let node = 1 + self.below(count);
        match self.below(100) {
            0..=24 => self.finish_sync(node),
            25..=29 => self.finish_install(node),
            30..=39 => self.step(node, Input::Tick),
            _ => {
                let Some(parcel) = self.network.pop_front() else { return self.step(node, Input::Tick) };
                if self.below(50) != 0 {
                    self.deliver(parcel);
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
        for (node, member) in &self.members {
            assert_eq!(member.halted, None, "{context}: {node} has stopped");
        }
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
        if let Some(parcel) = group.network.pop_front() {
            if parcel.kind() == Some(MessageKind::RequestVoteResponse) {
                assert!(!group.members[&parcel.from].durable.is_empty(), "a vote that could be forgotten was sent");
            }
            group.deliver(parcel);
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

fn message(kind: MessageType, from: u64, to: u64) -> peer::Message {
    // Local kinds have no form for others.
    convert::message(&Message { msg_type: kind, from, to, term: 1, ..Message::default() }).unwrap()
}

fn entry(term: u64) -> format::Entry {
    format::Entry { term, kind: EntryKind::Normal, data: Bytes::from_static(b"x") }
}

#[test]
fn messages_that_cannot_be_are_dropped() {
    let mut group = Group::new(3, 1);
    let membership = |voters: &[u64]| Membership { voters: voters.to_vec(), ..Membership::default() };
    let head = |index, term, membership| {
        let (state_bytes, state_hash) = (0, velum_protocol::id::Hash::ZERO);
        Some(peer::SnapshotHead { index, term, membership, state_bytes, state_hash })
    };
    let append = message(MessageType::MsgAppend, 2, 1);
    let snapshot = message(MessageType::MsgSnapshot, 2, 1);
    let read = message(MessageType::MsgReadIndex, 2, 1);
    let change = format::Entry { kind: EntryKind::MembershipV2, data: Bytes::from_static(b"\xff"), ..entry(1) };
    let bad = [
        peer::Message { entries: vec![entry(0)], index: 1, log_term: 1, ..append.clone() },
        peer::Message { entries: vec![entry(1), entry(0)], index: 1, log_term: 1, ..append.clone() },
        peer::Message { entries: vec![entry(2)], index: 1, log_term: 1, ..append.clone() },
        peer::Message { entries: vec![change], index: 1, log_term: 1, ..append.clone() },
        peer::Message { term: 0, ..append.clone() },
        peer::Message { term: u64::MAX, ..append.clone() },
        peer::Message { index: u64::MAX, ..append.clone() },
        peer::Message { log_term: 2, ..append },
        peer::Message { snapshot: head(0, 1, membership(&[1, 2])), ..snapshot.clone() },
        peer::Message { snapshot: head(9, 2, membership(&[1, 2])), ..snapshot.clone() },
        peer::Message { snapshot: head(9, 1, membership(&[])), ..snapshot.clone() },
        peer::Message { snapshot: head(9, 1, membership(&[1, 1])), ..snapshot },
        peer::Message { term: 0, ..read.clone() },
        peer::Message { term: 0, entries: vec![entry(0), entry(0)], ..read },
        message(MessageType::MsgTimeoutNow, 2, 1),
        message(MessageType::MsgReadIndexResp, 2, 1),
        message(MessageType::MsgAppendResponse, 9, 1),
        message(MessageType::MsgHeartbeat, 1, 1),
        message(MessageType::MsgHeartbeat, 2, 3),
        message(MessageType::MsgRequestVoteResponse, 9, 1),
    ];
    for (number, bad) in bad.into_iter().enumerate() {
        let (kind, from) = (bad.kind, bad.from);
        group.step(1, Input::Receive { from, frame: Frame::Raft(Box::new(bad)), state: Bytes::new() });
        assert!(group.network.is_empty(), "{number}: {kind:?} was answered");
        let refused = group.members[&1].machine.refused_messages;
        assert_eq!(refused, u64::try_from(number).unwrap() + 1, "{number}: {kind:?} was let through");
    }
    // Somebody else's word.
    let heartbeat = message(MessageType::MsgHeartbeat, 2, 1);
    let frame = Frame::Raft(Box::new(heartbeat));
    group.step(1, Input::Receive { from: NodeId(3), frame, state: Bytes::new() });
    assert!(group.network.is_empty());
    group.check_agreement("after bad messages");
}

/// raft-rs panicked on a heartbeat beyond the log, and a node that only ignored it went on voting without its log.
#[test]
fn a_leader_that_knows_of_more_stops_the_node_that_lost_its_log() {
    let mut group = Group::new(3, 1);
    let beyond = peer::Message { commit: 1000, ..message(MessageType::MsgHeartbeat, 2, 1) };
    group.step(1, Input::Receive { from: NodeId(2), frame: Frame::Raft(Box::new(beyond)), state: Bytes::new() });
    assert!(group.members[&1].halted.is_some_and(|reason| reason.contains("its log was lost")));
    group.step(1, Input::Propose { ticket: 1, entry: Bytes::from_static(b"x") });
    assert_eq!(group.members[&1].answers, [(1, false)]);
}

#[test]
fn a_leader_does_not_believe_a_follower_to_hold_more_than_there_is() {
    let mut group = Group::new(3, 1);
    let leader = group.elect();
    let term = group.members[&leader].machine.raft.raft.term;
    let follower = leader % 3 + 1;
    let ahead = peer::Message { term, index: 900, ..message(MessageType::MsgAppendResponse, follower, leader) };
    let frame = Frame::Raft(Box::new(ahead));
    group.step(leader, Input::Receive { from: NodeId(follower), frame, state: Bytes::new() });
    assert_eq!(group.members[&leader].machine.refused_messages, 1);
}

#[test]
fn a_followers_proposal_goes_through_the_leader_and_is_answered_at_home() {
    let mut group = Group::new(3, 1);
    let leader = group.elect();
    let follower = leader % 3 + 1;
    group.step(follower, Input::Propose { ticket: 5, entry: Bytes::from_static(b"from afar") });
    group.settle();
    // The commit comes with the next heartbeat.
    (0..3).for_each(|_| group.step(leader, Input::Tick));
    group.settle();
    assert_eq!(group.members[&follower].answers, [(5, true)]);
    assert_eq!(group.members[&leader].answers, []);
    assert!(group.members[&follower].applied.iter().any(|(_, entry)| entry == "from afar"));
}

#[test]
fn a_proposal_whose_leader_is_gone_is_given_up_in_time() {
    let mut group = Group::new(3, 1);
    let leader = group.elect();
    let follower = leader % 3 + 1;
    group.step(follower, Input::Propose { ticket: 5, entry: Bytes::from_static(b"lost") });
    group.network.clear();
    // It is told that the link broke.
    group.step(follower, Input::Unreachable(NodeId(leader)));
    assert_eq!(group.members[&follower].answers, [(5, false)]);
    // Or it misses the leader, and looks for another.
    group.step(follower, Input::Propose { ticket: 6, entry: Bytes::from_static(b"lost") });
    group.network.clear();
    (0..50).for_each(|_| group.step(follower, Input::Tick));
    assert_eq!(group.members[&follower].answers, [(5, false), (6, false)]);
}

/// A newcomer waited five seconds for a leader that it had not yet learned to be a member.
#[test]
fn only_the_leader_that_has_a_proposal_says_what_became_of_it_member_or_not() {
    let mut group = Group::new(3, 1);
    let leader = group.elect();
    let (follower, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    group.step(follower, Input::Propose { ticket: 5, entry: Bytes::from_static(b"x") });
    let placed = |from| {
        let frame = Frame::Placed(velum_protocol::peer::Placed { ticket: 5, placement: Placement::Busy });
        Input::Receive { from: NodeId(from), frame, state: Bytes::new() }
    };
    group.step(follower, placed(other));
    assert_eq!(group.members[&follower].answers, []);
    let members = ConfState { voters: vec![follower, other], ..ConfState::default() };
    group.members.get_mut(&follower).unwrap().machine.raft.mut_store().set_members(members);
    group.step(follower, placed(leader));
    assert_eq!(group.members[&follower].answers, [(5, false)]);
}

/// A leader that lives and forgets a proposal.
#[test]
fn a_proposal_that_is_never_placed_is_given_up_in_time() {
    let mut group = Group::new(3, 1);
    let leader = group.elect();
    let follower = leader % 3 + 1;
    group.step(follower, Input::Propose { ticket: 5, entry: Bytes::from_static(b"lost") });
    group.network.clear();
    for _ in 0..120 {
        group.step(leader, Input::Tick);
        group.step(follower, Input::Tick);
        group.settle();
    }
    assert_eq!(group.members[&follower].answers, [(5, false)]);
}

#[test]
fn a_read_waits_for_what_was_agreed_before_it() {
    let mut group = Group::new(3, 1);
    let leader = group.elect();
    let follower = leader % 3 + 1;
    group.step(leader, Input::Propose { ticket: 1, entry: Bytes::from_static(b"x") });
    group.settle();
    assert_eq!(group.members[&leader].answers, [(1, true)]);
    group.step(follower, Input::Read { ticket: 2 });
    assert_eq!(group.members[&follower].answers, []);
    (0..3).for_each(|_| {
        group.settle();
        group.step(leader, Input::Tick);
    });
    group.settle();
    assert_eq!(group.members[&follower].answers, [(2, true)]);
    assert!(group.members[&follower].applied.iter().any(|(_, entry)| entry == "x"));
}

#[test]
fn an_old_leader_that_nobody_hears_answers_no_read() {
    let mut group = Group::new(3, 1);
    let leader = group.elect();
    group.step(leader, Input::Read { ticket: 1 });
    for _ in 0..300 {
        group.network.clear();
        group.step(leader, Input::Tick);
    }
    assert_eq!(group.members[&leader].answers, [(1, false)]);
}

/// Answers to every question that the group is asked, in the order it takes.
fn ask(group: &mut Group, node: u64, input: Input) -> Option<bool> {
    let before = group.members[&node].answers.len();
    group.step(node, input);
    for _ in 0..10 {
        group.settle();
        group.step(node, Input::Tick);
    }
    group.settle();
    group.members[&node].answers.get(before).map(|(_, is_done)| *is_done)
}

fn change(group: &mut Group, node: u64, change: Change) -> Option<bool> {
    ask(group, node, Input::Change { ticket: 99, change })
}

#[test]
fn a_newcomer_gets_the_state_then_a_vote_and_is_removed_for_ever() {
    let mut group = Group::new(1, 1);
    group.settle();
    for ticket in 0..5 {
        group.step(1, Input::Propose { ticket, entry: Bytes::from(vec![u8::try_from(ticket).unwrap()]) });
        group.settle();
    }
    assert_eq!(change(&mut group, 1, Change::Promote(NodeId(2))), Some(false), "only learners get a vote");
    assert_eq!(change(&mut group, 1, Change::AddLearner(NodeId(2))), Some(true));
    assert_eq!(change(&mut group, 1, Change::AddLearner(NodeId(2))), Some(false), "it is a member");
    assert_eq!(change(&mut group, 1, Change::Promote(NodeId(2))), Some(false), "it has not caught up");
    group.join(2);
    assert!(!group.members[&2].caught_up);
    // Its sign of life lets the leader send the snapshot.
    (0..40).for_each(|_| {
        group.step(1, Input::Tick);
        group.settle();
    });
    assert!(group.members[&2].caught_up);
    assert_eq!(group.members[&2].applied, group.members[&1].applied);
    assert_eq!(change(&mut group, 1, Change::Promote(NodeId(2))), Some(true));
    let members = convert::membership(group.members[&2].machine.raft.store().members());
    assert_eq!((&members.voters[..], members.voters_outgoing.len()), (&[1, 2][..], 0), "both majorities were left");
    assert_eq!(change(&mut group, 1, Change::Remove(NodeId(2))), Some(false), "it has a vote");
    assert_eq!(change(&mut group, 1, Change::Demote(NodeId(1))), Some(false), "it leads");
    assert_eq!(change(&mut group, 1, Change::Demote(NodeId(2))), Some(true));
    assert_eq!(change(&mut group, 1, Change::Remove(NodeId(2))), Some(true));
    assert_eq!(change(&mut group, 1, Change::AddLearner(NodeId(2))), Some(false), "its number was used");
    let refused = group.members[&1].machine.refused_messages;
    let vote = Frame::Raft(Box::new(peer::Message { term: 50, ..message(MessageType::MsgRequestVote, 2, 1) }));
    group.step(1, Input::Receive { from: NodeId(2), frame: vote, state: Bytes::new() });
    assert_eq!(group.members[&1].machine.refused_messages, refused + 1, "nobody listens to it");
    group.check_agreement("at the end");
}

#[test]
fn leadership_is_handed_over_to_a_voter_that_has_everything() {
    let mut group = Group::new(3, 1);
    let leader = group.elect();
    let next = leader % 3 + 1;
    assert_eq!(ask(&mut group, leader, Input::Transfer { ticket: 1, to: NodeId(9) }), Some(false));
    assert_eq!(ask(&mut group, next, Input::Transfer { ticket: 1, to: NodeId(next) }), Some(false));
    assert_eq!(ask(&mut group, leader, Input::Transfer { ticket: 1, to: NodeId(next) }), Some(true));
    assert_eq!(group.leader(), Some(next));
}

/// A crash between any two steps of an install leaves a log that joins its snapshot.
#[test]
fn a_snapshot_is_installed_whole_or_not_at_all() {
    for crash_after in [0, 1, 2, 3, 5, 8] {
        let mut group = Group::new(3, 1);
        let leader = group.elect();
        let lagging = leader % 3 + 1;
        // Long entries, so that no tail of the log before its snapshot reaches back to where the other one stands.
        group.cut = Some(lagging);
        for ticket in 0..12 {
            group.step(leader, Input::Propose { ticket, entry: Bytes::from(vec![1; 600 << 10]) });
            group.settle();
        }
        group.cut = None;
        let applied = group.members[&leader].machine.applied;
        group.members.get_mut(&leader).unwrap().machine.raft.mut_store().compact(applied);
        let mut steps = 0;
        for _ in 0..200 {
            if steps > crash_after && group.members[&lagging].applied == group.members[&leader].applied {
                break;
            }
            (1..=3).for_each(|node| group.step(node, Input::Tick));
            while let Some(parcel) = group.network.pop_front() {
                group.deliver(parcel);
                (1..=3).filter(|node| *node != lagging).for_each(|node| group.finish_sync(node));
                for part in 0..2 {
                    if part == 0 {
                        group.finish_sync(lagging)
                    } else {
                        group.finish_install(lagging)
                    }
                    if group.members[&lagging].machine.install.is_some() || steps > 0 {
                        steps += 1;
                    }
                    if steps == crash_after + 1 {
                        steps += 1;
                        group.crash(lagging);
                    }
                }
            }
        }
        assert!(group.members[&lagging].applied == group.members[&leader].applied, "crash after {crash_after}");
        assert!(group.members[&lagging].snapshot.0 > 1, "a snapshot was installed");
        group.check_agreement("after a crash in an install");
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

/// A simulated group removed a member that had come to lead meanwhile: raft-rs panicked when it wanted to commit.
#[test]
fn a_leader_that_loses_its_vote_leads_no_more() {
    let mut group = Group::new(3, 1);
    let leader = group.elect();
    // Another leader has put it into the log; this one finds it there.
    let demote = format::MembershipChange {
        transition: format::Transition::Auto,
        changes: vec![(format::MemberChange::Remove, leader)],
    };
    let raft = &mut group.members.get_mut(&leader).unwrap().machine.raft;
    raft.propose_conf_change(Vec::new(), crate::consensus::conf_change::to_raft(&demote)).unwrap();
    group.step(leader, Input::Tick);
    group.settle();
    (0..5).for_each(|_| group.step(leader, Input::Tick));
    group.settle();
    assert!(!group.members[&leader].machine.is_leader());
    let next = group.members.keys().copied().find(|node| *node != leader).unwrap();
    for _ in 0..100 {
        group.members.keys().copied().collect::<Vec<_>>().into_iter().for_each(|node| group.step(node, Input::Tick));
        group.settle();
    }
    assert!(group.leader().is_some_and(|found| found != leader), "the others go on");
    assert_eq!(change(&mut group, leader, Change::Remove(NodeId(next))), Some(false), "it does not lead");
    group.check_agreement("at the end");
}
