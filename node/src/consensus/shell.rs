//! Does what the machine says: journal, snapshot file, state machine, answers.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::oneshot;
use velum_protocol::{
    format::{
        bind::{RaftKind, RaftRecord},
        raft::{Membership, Snapshot},
    },
    id::{Hash, NodeId},
    peer::agreement as peer,
    version::RAFT_RECORD,
};

use super::{
    Applier, ProposeError, RaftStatus, Transport,
    machine::{Effect, Input, Machine},
    snapshot::{self, Owner, Placed},
};
use crate::{
    actor::{Handle, Shell as ActorShell},
    env::Env,
    journal::{Journal, Position, StreamId},
};

/// One tick of raft's.
const TICK: Duration = Duration::from_millis(50);

/// An answer on its way to a proposer.
pub(super) type Reply = oneshot::Sender<Result<Bytes, ProposeError>>;

/// What the shell shares with the handles.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) replies: RefCell<BTreeMap<u64, Reply>>,
    pub(super) next_ticket: Cell<u64>,
    pub(super) status: Cell<RaftStatus>,
    pub(super) lags: RefCell<BTreeMap<u64, u64>>,
    pub(super) members: RefCell<Membership>,
    pub(super) caught_up: RefCell<Option<oneshot::Sender<Result<(), &'static str>>>>,
    pub(super) waiting: RefCell<Option<oneshot::Receiver<Result<(), &'static str>>>>,
}

impl Shared {
    fn answer(&self, ticket: u64, answer: Result<Bytes, ProposeError>) {
        let reply = self.replies.borrow_mut().remove(&ticket);
        if let Some(reply) = reply {
            // The proposer may have gone away.
            let _ = reply.send(answer);
        }
    }

    fn start_ended(&self, how: Result<(), &'static str>) {
        let waiting = self.caught_up.borrow_mut().take();
        if let Some(waiting) = waiting {
            let _ = waiting.send(how);
        }
    }
}

/// Binds and seals a record of raft as it goes into the journal.
pub(super) fn seal_record(owner: &Owner, fresh: &[u8; 32], at: Position, record: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(record.len() + 64);
    body.extend_from_slice(&RAFT_RECORD.lead());
    owner.seal.seal_into(fresh, &binding(owner, at), record, &mut body);
    body
}

/// The plaintext of a record, if it is this node's, at this place.
pub(super) fn open_record(owner: &Owner, at: Position, body: &[u8]) -> Option<Vec<u8>> {
    let (_, sealed) = RAFT_RECORD.check(body).ok()?;
    owner.seal.open(&binding(owner, at), sealed).ok()
}

fn binding(owner: &Owner, at: Position) -> [u8; 49] {
    let Owner { cluster, node, .. } = *owner;
    RaftRecord { cluster, node, kind: RaftKind::Entry, term: at.epoch, index: at.number }.aad()
}

/// The shell.
pub(super) struct Shell {
    pub(super) env: Env,
    pub(super) dir: PathBuf,
    pub(super) owner: Owner,
    pub(super) journal: Rc<Journal>,
    pub(super) applier: Rc<RefCell<dyn Applier>>,
    pub(super) shared: Rc<Shared>,
    pub(super) transport: Rc<dyn Transport>,
}

impl Shell {
    fn append(&self, at: Position, record: &[u8], own: &Handle<Input>) {
        let body = seal_record(&self.owner, &self.env.entropy.fresh32(), at, record);
        if let Err(error) = self.journal.append(StreamId::Raft, at, &body) {
            tracing::error!(%error, "raft cannot append to the journal");
            own.call(Input::JournalFailed);
        }
    }

    fn sync(&self, through: u64, own: &Handle<Input>) {
        let sync = self.journal.sync();
        own.spawn(async move {
            match sync.await {
                Ok(()) => Input::Synced { through },
                Err(_) => Input::JournalFailed,
            }
        });
    }

    fn snapshot(&self, index: u64, term: u64, mut snapshot: Snapshot, own: &Handle<Input>) {
        snapshot.state = self.applier.borrow().snapshot();
        self.put_in_place(Placed { index, term, snapshot }, own, Input::SnapshotFailed, |index, bytes| {
            Input::Snapshotted { index, bytes }
        });
    }

    fn put_in_place(
        &self,
        placed: Placed,
        own: &Handle<Input>,
        failed: Input,
        done: impl FnOnce(u64, u64) -> Input + 'static,
    ) {
        let index = placed.index;
        let file = snapshot::encode(&self.owner, &self.env.entropy.fresh32(), &placed);
        let bytes = u64::try_from(file.len()).expect("a file in memory fits 64 bits");
        let replace = snapshot::replace(Rc::clone(&self.env.disk), self.dir.clone(), file);
        own.spawn(async move {
            match replace.await {
                Ok(()) => done(index, bytes),
                Err(error) => {
                    tracing::warn!(%error, index, "the raft snapshot cannot be written; the log grows until it can");
                    failed
                }
            }
        });
    }

    fn send_snapshot(&self, to: NodeId, mut head: peer::Message, own: &Handle<Input>) {
        let state = self.applier.borrow().snapshot();
        if let Some(head) = &mut head.snapshot {
            head.state_bytes = u64::try_from(state.len()).expect("a state in memory fits 64 bits");
            head.state_hash = Hash(*blake3::hash(&state).as_bytes());
        }
        let sent = self.transport.send_snapshot(to, head, state);
        own.spawn(async move { Input::SnapshotSent { to, whole: sent.await } });
    }

    fn restore(&self, state: &[u8], own: &Handle<Input>) {
        let restored = self.applier.borrow_mut().restore(state);
        if let Err(error) = restored {
            tracing::error!(%error, "the state machine does not take the leader's snapshot, which it took for a state");
            own.call(Input::InstallFailed);
        }
    }
}

impl ActorShell<Machine> for Shell {
    fn perform(&mut self, effect: Effect, own: &Handle<Input>) {
        match effect {
            Effect::Append { at, record } => self.append(at, &record, own),
            Effect::Sync { through } => self.sync(through, own),
            Effect::Send { to, frame } => self.transport.send(to, frame),
            Effect::SendSnapshot { to, head } => self.send_snapshot(to, *head, own),
            Effect::Apply { index, entry, ticket } => {
                let answer = self.applier.borrow_mut().apply(index, &entry);
                if let Some(ticket) = ticket {
                    self.shared.answer(ticket, Ok(answer));
                }
            }
            Effect::Answer { ticket } => self.shared.answer(ticket, Ok(Bytes::new())),
            Effect::Refuse { ticket, error } => self.shared.answer(ticket, Err(error)),
            Effect::Snapshot { index, term, snapshot } => self.snapshot(index, term, *snapshot, own),
            Effect::Install { index, term, snapshot } => {
                let placed = Placed { index, term, snapshot: *snapshot };
                self.put_in_place(placed, own, Input::InstallFailed, |_, bytes| Input::Installed { bytes });
            }
            Effect::Restore { state } => self.restore(&state, own),
            Effect::Trim { through } => self.journal.trim(StreamId::Raft, through),
            Effect::ArmTick => own.after(&*self.env.clock, TICK, Input::Tick),
            Effect::WatchJournal => {
                let crowded = self.journal.crowded();
                own.spawn(async move {
                    crowded.await;
                    Input::Crowded
                });
            }
            Effect::CaughtUp => self.shared.start_ended(Ok(())),
            Effect::Members(members) => *self.shared.members.borrow_mut() = members,
            Effect::Report(status) => self.shared.status.set(status),
            Effect::ReportLags(lags) => *self.shared.lags.borrow_mut() = lags,
            Effect::Halt(reason) => {
                tracing::error!(reason, "raft has stopped; restart the node");
                self.shared.start_ended(Err(reason));
            }
        }
    }
}
