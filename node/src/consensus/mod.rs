//! What the nodes agree on: raft-rs driven as a machine. It knows nothing of what a command means.
//!
//! Log and hard state are records of the journal's raft stream, the state machine's bytes a snapshot file beside it; both
//! sealed under the cluster-state key. A start reads the snapshot and the records behind it, which changes nothing
//! ([`Consensus::examine`]); then it goes on from there and, alone in its group, leads at once: [`Consensus::start`] returns
//! when everything committed before has been applied. Others of a group are reached through a [`Transport`]; a group of one
//! needs none.
//!
//! Crash behaviour: an entry is applied, and its proposer answered, only after a sync that covers it, so an acked entry is
//! there after any crash, in order, once. A proposal that got no answer may or may not have been agreed; whoever repeats it
//! must recognise it. A failed journal stops raft for the rest of this life.

mod conf_change;
mod convert;
mod log;
mod logger;
mod machine;
mod shell;
mod snapshot;

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    rc::Rc,
};

use bytes::Bytes;
use futures_util::FutureExt;
use raft::eraftpb::HardState;
use tokio::sync::oneshot;
use velum_protocol::{
    format::raft::{HardState as StoredHardState, Membership, Record, Snapshot},
    id::{ClusterId, NodeId},
    peer::{Frame, agreement as peer},
    version::LeadError,
};

use crate::{
    actor::{self, Handle},
    env::{Env, Local},
    journal::{self, Journal, JournalError, Loss, Position, Replay, StreamId},
    keyring::SealKey,
};
use log::Log;
use machine::{Input, JournalBounds, Machine, Start};
use shell::{Shared, Shell, open_record};
use snapshot::{Owner, Placed};

/// The state machine that entries are applied to. Applying is a function of entry and state alone.
pub trait Applier {
    /// Applies a committed entry and gives the answer for its proposer.
    fn apply(&mut self, index: u64, entry: &[u8]) -> Bytes;
    /// All of the state, to be read by [`Applier::restore`].
    fn snapshot(&self) -> Bytes;
    /// Whether this build can take on the state of a snapshot.
    ///
    /// # Errors
    /// When the bytes are no state this build reads.
    fn check(&self, snapshot: &[u8]) -> Result<(), RestoreError>;
    /// Takes on the state of a snapshot.
    ///
    /// # Errors
    /// When the bytes are no state this build reads.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError>;
}

/// The way to the other members.
pub trait Transport {
    /// Sends a frame; it may be lost, and never overtakes one that was sent to the same member before.
    fn send(&self, to: NodeId, frame: Frame);
    /// Sends a snapshot: its head, then its state in pieces. True when all of it was taken.
    fn send_snapshot(&self, to: NodeId, head: peer::Message, state: Bytes) -> Local<bool>;
}

/// The transport of a group of one.
pub struct Alone;

impl Transport for Alone {
    fn send(&self, to: NodeId, _frame: Frame) {
        tracing::debug!(%to, "no link to the peer");
    }

    fn send_snapshot(&self, _to: NodeId, _head: peer::Message, _state: Bytes) -> Local<bool> {
        async { false }.boxed_local()
    }
}

/// Another membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A newcomer learns. Its number must never have been another node's.
    AddLearner(NodeId),
    /// A learner that has caught up gets a vote.
    Promote(NodeId),
    /// A voter only learns from now on.
    Demote(NodeId),
    /// A learner is no member any more, for ever.
    Remove(NodeId),
}

/// Why a state machine does not take its snapshot; what it says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RestoreError(pub String);

/// Why a proposal was not answered by the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another node leads, or none does at the moment. The proposal has no effect.
    #[error("this node does not lead the raft group")]
    NotLeader {
        /// Who does, if it is known.
        leader: Option<u64>,
    },
    /// Empty, or longer than an entry may be. The proposal has no effect.
    #[error("a raft entry of {0} bytes is out of bounds")]
    Length(usize),
    /// Too much is proposed and not yet agreed. The proposal has no effect; try again later.
    #[error("too many proposals are under way")]
    Busy,
    /// Another leader's entry took its place. The proposal has no effect.
    #[error("another leader's entry took the place of the proposal")]
    Superseded,
    /// The group is not in a state for this. Nothing has changed.
    #[error("{0}")]
    NotPossible(&'static str),
    /// The leader did not answer in time, or the answer went by. Whether the proposal takes effect is not known.
    #[error("what became of the proposal is not known")]
    Lost,
    /// The node stops or its journal failed. Whether the proposal takes effect is not known.
    #[error("raft has stopped on this node")]
    Stopped,
}

/// Why raft does not start.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    /// There is no snapshot, so this node is in no group.
    #[error("{} does not exist: the node has not been initialised", path.display())]
    NoGroup {
        /// Where it should be.
        path: PathBuf,
    },
    /// There is a group already.
    #[error("{} exists: the node has been initialised before", path.display())]
    GroupExists {
        /// Where it is.
        path: PathBuf,
    },
    /// The snapshot cannot be read.
    #[error("the raft snapshot {} is damaged: {what}; replace the node or recover from the clouds", path.display())]
    SnapshotDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The snapshot is of another node or cluster.
    #[error("{} belongs to node {found_node} of cluster {found_cluster}, not to this node", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The cluster it names.
        found_cluster: ClusterId,
        /// The node it names.
        found_node: NodeId,
    },
    /// The group has other members, and there is no way to them.
    #[error("this node is one of several, and its settings say nothing of the others; add a [peers] table to them")]
    NotAlone,
    /// A newer Velum wrote the snapshot.
    #[error("{}: {source}; start the newer version", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The versions.
        source: LeadError,
    },
    /// A record of the log is missing or not authentic, below what was durable.
    #[error("the raft log is damaged at record {record}: {what}; replace the node or recover from the clouds")]
    LogDamaged {
        /// The record's number.
        record: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The state machine does not take its snapshot.
    #[error("the replicated state cannot be restored: {0}")]
    Restore(#[from] RestoreError),
    /// raft-rs does not take its state.
    #[error("raft does not take its state: {0}")]
    Raft(String),
    /// Raft stopped while it was starting.
    #[error("raft stopped while it was starting: {0}")]
    Halted(&'static str),
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A file system operation failed.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
}

/// How things stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RaftStatus {
    /// The term.
    pub term: u64,
    /// Who leads, if known.
    pub leader: Option<u64>,
    /// Whether this node does.
    pub is_leader: bool,
    /// Entries up to this index are committed.
    pub commit: u64,
    /// Entries up to this index are applied.
    pub applied: u64,
    /// Entries up to this index are durable on this node.
    pub persisted: u64,
    /// Entries behind the last snapshot.
    pub log_entries: usize,
    /// Messages of peers that were not let through to raft.
    pub refused_messages: u64,
    /// Why raft has stopped for the rest of this process, if it has.
    pub halted: Option<&'static str>,
}

/// The way to raft on this node. Cheap to clone.
#[derive(Clone)]
pub struct Consensus {
    handle: Handle<Input>,
    shared: Rc<Shared>,
    applier: Rc<RefCell<dyn Applier>>,
}

/// Who starts raft, and with what.
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// The cluster-state key.
    pub seal: SealKey,
}

impl From<Member> for Owner {
    fn from(member: Member) -> Self {
        let Member { node, cluster, seal } = member;
        Self { cluster, node, seal }
    }
}

/// Whether `dir` holds a raft group that [`bootstrap`] made.
///
/// # Errors
/// When the directory cannot be read.
pub async fn is_bootstrapped(env: &Env, dir: &Path) -> Result<bool, ConsensusError> {
    let listed = snapshot::exists(&*env.disk, dir).await;
    listed.map_err(|source| ConsensusError::Io { path: dir.to_path_buf(), source })
}

/// Makes a group of one in `dir`, with `state` as the state machine's first snapshot: for a new or a recovered node.
///
/// # Errors
/// When there is a group already, or the file cannot be written.
pub async fn bootstrap(env: &Env, dir: &Path, member: Member, state: Bytes) -> Result<(), ConsensusError> {
    let snapshot = Snapshot {
        hard_state: StoredHardState { term: 1, vote: 0, commit: 1 },
        from_record: 0,
        membership: Membership { voters: vec![member.node.0], ..Membership::default() },
        state,
    };
    begin_in(env, dir, member, Placed { index: 1, term: 1, snapshot }).await
}

/// Makes a member in `dir` that knows nothing yet: the group's leader will tell it everything, once it has made it a
/// learner.
///
/// # Errors
/// When there is a group already, or the file cannot be written.
pub async fn join(env: &Env, dir: &Path, member: Member) -> Result<(), ConsensusError> {
    begin_in(env, dir, member, Placed { index: 0, term: 0, snapshot: Snapshot::default() }).await
}

async fn begin_in(env: &Env, dir: &Path, member: Member, placed: Placed) -> Result<(), ConsensusError> {
    let failed = |source| ConsensusError::Io { path: dir.to_path_buf(), source };
    env.disk.create_dir_all(dir).await.map_err(failed)?;
    if is_bootstrapped(env, dir).await? {
        return Err(ConsensusError::GroupExists { path: dir.to_path_buf() });
    }
    let file = snapshot::encode(&member.into(), &env.entropy.fresh32(), &placed);
    snapshot::replace(Rc::clone(&env.disk), dir.to_path_buf(), file).await.map_err(failed)
}

/// Whether a raft record's body is the member's own, at this place of its log.
#[must_use]
pub fn is_authentic(member: Member, at: Position, body: &[u8]) -> bool {
    open_record(&member.into(), at, body).is_some()
}

/// Raft's state as it was found whole, before anything is changed.
pub struct Examined {
    dir: PathBuf,
    owner: Owner,
    machine: Machine,
}

impl Examined {
    /// The group as the log has it; empty for one that knows nothing yet.
    #[must_use]
    pub fn members(&self) -> Membership {
        self.machine.members()
    }
}

impl Consensus {
    /// Looks at the snapshot in `dir` and takes raft's records out of `replay`, which came of `journal`. `applier` takes on
    /// the snapshot, and nothing yet of what is committed behind it.
    ///
    /// # Errors
    /// When snapshot or log are damaged, lost, or not this node's. A node that lost its log must not go on under its id.
    pub async fn examine(
        env: &Env,
        dir: &Path,
        member: Member,
        (journal, replay): (&journal::Examined, &mut Replay),
        applier: &RefCell<dyn Applier>,
    ) -> Result<Examined, ConsensusError> {
        let owner = Owner::from(member);
        let placed = snapshot::read(&*env.disk, dir, &owner).await?;
        // One that knows nothing yet will be told everything.
        if placed.index > 0 {
            applier.borrow_mut().restore(&placed.snapshot.state)?;
        }
        let found = Found {
            records: replay.records.remove(&StreamId::Raft).unwrap_or_default(),
            loss: replay.loss(StreamId::Raft),
        };
        // Sealing makes records longer; a quarter of a KiB is more than enough.
        let record_bytes_max = journal.body_bytes_max().saturating_sub(256);
        let bounds = JournalBounds { record_bytes_max, bytes_max: journal.bytes_max() };
        let start = Start { nonce: env.entropy.number(), ..replay_log(&owner, placed, &found, bounds)? };
        let machine = Machine::new(start).map_err(|error| ConsensusError::Raft(error.to_string()))?;
        Ok(Examined { dir: dir.to_path_buf(), owner, machine })
    }

    /// Goes on from what was examined, with the journal that was begun since; `applier` takes on all that is committed behind
    /// the snapshot. Returns when that is done.
    ///
    /// # Errors
    /// When the journal fails meanwhile, or the directory cannot be written.
    pub async fn start(
        env: &Env,
        examined: Examined,
        journal: Rc<Journal>,
        applier: Rc<RefCell<dyn Applier>>,
    ) -> Result<Self, ConsensusError> {
        let own = examined.owner.node;
        let started = Self::begin(env, examined, journal, applier, Rc::new(Alone)).await?;
        // What is committed in the log may have changed the group behind the snapshot.
        if started.members().voters != [own.0] {
            return Err(ConsensusError::NotAlone);
        }
        started.caught_up().await?;
        Ok(started)
    }

    /// The same for a member of a group, which it reaches through `transport`. Returns at once: what is committed is known
    /// to be applied after [`Consensus::caught_up`], which for a newcomer takes until a leader has found it.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub async fn begin(
        env: &Env,
        examined: Examined,
        journal: Rc<Journal>,
        applier: Rc<RefCell<dyn Applier>>,
        transport: Rc<dyn Transport>,
    ) -> Result<Self, ConsensusError> {
        let Examined { dir, owner, machine } = examined;
        let leftover = snapshot::remove_leftover(&*env.disk, &dir).await;
        leftover.map_err(|source| ConsensusError::Io { path: dir.clone(), source })?;
        let shared = Rc::new(Shared::default());
        let (caught_up, done) = oneshot::channel();
        *shared.caught_up.borrow_mut() = Some(caught_up);
        *shared.waiting.borrow_mut() = Some(done);
        let shell = Shell {
            env: env.clone(),
            dir,
            owner,
            journal,
            applier: Rc::clone(&applier),
            shared: Rc::clone(&shared),
            transport,
        };
        let handle = actor::start(Rc::clone(&env.clock), machine, shell);
        handle.call(Input::Begin);
        Ok(Self { handle, shared, applier })
    }

    /// Completes when everything that was committed before this life began has been applied.
    ///
    /// # Errors
    /// When raft stops before.
    pub async fn caught_up(&self) -> Result<(), ConsensusError> {
        let waiting = self.shared.waiting.borrow_mut().take();
        let Some(waiting) = waiting else { return Ok(()) };
        match waiting.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(ConsensusError::Halted(reason)),
            Err(_) => Err(ConsensusError::Halted("the node is stopping")),
        }
    }

    /// Proposes an entry, through the leader if this node does not lead; completes with the state machine's answer once it
    /// is applied here. Dropping the future does not take the proposal back.
    pub fn propose(&self, entry: Bytes) -> Local<Result<Bytes, ProposeError>> {
        self.ask(|ticket| Input::Propose { ticket, entry })
    }

    /// Completes once this node has applied everything that was agreed anywhere when it was called: what is read after that
    /// is not stale.
    pub fn read(&self) -> Local<Result<(), ProposeError>> {
        let read = self.ask(|ticket| Input::Read { ticket });
        async move { read.await.map(drop) }.boxed_local()
    }

    /// As the leader, changes the membership; completes when the change is applied here.
    pub fn change(&self, change: Change) -> Local<Result<(), ProposeError>> {
        let change = self.ask(|ticket| Input::Change { ticket, change });
        async move { change.await.map(drop) }.boxed_local()
    }

    /// As the leader, begins to hand over to another voter. The status tells whether it came to that.
    pub fn transfer(&self, to: NodeId) -> Local<Result<(), ProposeError>> {
        let transfer = self.ask(|ticket| Input::Transfer { ticket, to });
        async move { transfer.await.map(drop) }.boxed_local()
    }

    fn ask(&self, input: impl FnOnce(u64) -> Input) -> Local<Result<Bytes, ProposeError>> {
        let ticket = self.shared.next_ticket.get();
        self.shared.next_ticket.set(ticket + 1);
        let (reply, answer) = oneshot::channel();
        if self.handle.is_alive() {
            self.shared.replies.borrow_mut().insert(ticket, reply);
            self.handle.call(input(ticket));
        }
        async move { answer.await.unwrap_or(Err(ProposeError::Stopped)) }.boxed_local()
    }

    /// Hands in what a peer says; with the head of a snapshot comes its whole `state`, else nothing. Lost or repeated frames
    /// do no harm; those of one peer come in the order it sent them.
    pub fn receive(&self, from: NodeId, frame: Frame, state: Bytes) {
        if let Frame::Raft(message) = &frame
            && message.kind == peer::MessageKind::Snapshot
            && let Err(error) = self.applier.borrow().check(&state)
        {
            tracing::error!(%from, %error, "the leader's snapshot cannot be read; is this node older than the others?");
            return;
        }
        self.handle.call(Input::Receive { from, frame, state });
    }

    /// What was sent to a peer may be lost.
    pub fn unreachable(&self, node: NodeId) {
        self.handle.call(Input::Unreachable(node));
    }

    /// The group as this node knows it.
    #[must_use]
    pub fn members(&self) -> Membership {
        self.shared.members.borrow().clone()
    }

    /// How many agreed entries another member is not known to have; only the leader knows.
    #[must_use]
    pub fn lag(&self, node: NodeId) -> Option<u64> {
        self.shared.lags.borrow().get(&node.0).copied()
    }

    /// How things stand.
    #[must_use]
    pub fn status(&self) -> RaftStatus {
        self.shared.status.get()
    }
}

/// What the journal holds of raft, and what it lost.
struct Found {
    records: Vec<(Position, Bytes)>,
    loss: Loss,
}

/// Puts the log together from the snapshot and the records behind it.
fn replay_log(owner: &Owner, placed: Placed, found: &Found, journal: JournalBounds) -> Result<Start, ConsensusError> {
    let Placed { index, term, snapshot } = placed;
    let first_start = snapshot.from_record == 0;
    let from_record = snapshot.from_record.max(1);
    let mut expected = from_record;
    let mut hard_state = snapshot.hard_state;
    let mut log = Log::new((index, term), convert::raft_members(snapshot.membership), HardState::default());
    let mut records = Vec::new();
    for (at, body) in found.records.iter().skip_while(|(at, _)| at.number < from_record) {
        let damaged = |what| ConsensusError::LogDamaged { record: expected, what };
        if at.number != expected {
            return Err(damaged("it is missing"));
        }
        let record = open_record(owner, *at, body).ok_or_else(|| damaged("it is not authentic"))?;
        let record = Record::decode(&record).map_err(|_| damaged("it does not decode"))?;
        let Record { hard_state: after, first, entries } = record;
        let entries = convert::raft_entries(first, entries).ok_or_else(|| damaged("it holds a change that is none"))?;
        records.push((*at, entries.last().map_or(0, |entry| entry.index), body.len()));
        if !log.append(&entries) {
            return Err(damaged("its entries do not join the log"));
        }
        hard_state = merge(hard_state, after);
        expected += 1;
    }
    // What is missing in the middle shows; the end must be there too, for whatever was synced has been promised.
    if found.loss.end || found.loss.records.iter().any(|at| at.number >= expected) {
        let what = "the journal is damaged where it stood, or may have stood";
        return Err(ConsensusError::LogDamaged { record: expected, what });
    }
    if records.is_empty() && !first_start {
        // One record is always left in the journal, so none at all means that the journal was lost.
        return Err(ConsensusError::LogDamaged { record: expected, what: "the journal holds no raft record at all" });
    }
    if hard_state.commit > log.last() {
        return Err(ConsensusError::LogDamaged { record: expected, what: "entries known to be committed are missing" });
    }
    log.set_hard_state(convert::raft_hard_state(hard_state));
    Ok(Start { node: owner.node.0, nonce: 0, log, applied: index, records, first_start, journal })
}

/// The later of two hard states. The snapshot's may be newer than that of the records it begins with.
fn merge(one: StoredHardState, other: StoredHardState) -> StoredHardState {
    let commit = one.commit.max(other.commit);
    let later = if (other.term, other.vote) >= (one.term, one.vote) { other } else { one };
    StoredHardState { commit, ..later }
}
