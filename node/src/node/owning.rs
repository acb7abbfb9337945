//! An open volume's records among the members of its ensemble: the owner's machine in its actor, and the volume's seam to it.
//!
//! A record is at d0 when enough members have it in their page caches, at d1 when enough have it on their disks. Both marks
//! come from the machine. Once a member has promised a later epoch, nothing more comes to any mark: what waits is answered by
//! nobody here, and whoever watches ownership ends the sessions.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use bytes::Bytes;
use tokio::sync::oneshot;
use velum_protocol::{
    id::{Epoch, Hash, Jseq, NodeId, VolumeId},
    peer::{
        Frame,
        ensemble::{Condition, Point},
    },
};

use super::{
    copies::{Copies, Ear},
    quota::Quota,
    stoppable::Stoppable,
};
use crate::{
    actor::{self, Handle, Shell},
    ensemble::{
        confirm::{self, Confirming},
        owner::{Effect, Input, MemberStanding, Opening, Owner, TICK},
    },
    env::{Clock, Env, Local},
    journal::Journal,
    metrics::{By, IntCounter, ReadsBy},
    volume::{JournalFailed, OnWritten, Records, Submitted},
};

/// An owner among the members. Cheap to clone.
#[derive(Clone)]
pub(super) struct Owning {
    handle: Handle<Input>,
    asking: Handle<confirm::Input>,
    asker: Stoppable<Confirming>,
    reading: Rc<Reading>,
    clock: Rc<dyn Clock>,
    machine: Stoppable<Owner>,
    marks: Rc<Marks>,
    journal: Rc<Journal>,
    quota: Rc<Quota>,
}

/// How reads are answered.
pub(super) struct Reading {
    /// Whether leases may answer them, now.
    pub(super) may_lease: Box<dyn Fn() -> bool>,
    pub(super) reads: By<ReadsBy, IntCounter>,
}

/// Ticks without a word after which a member is gone.
const GONE_TICKS: u32 = 20;

/// How a member's copy stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It holds everything acked.
    Current,
    /// The member answers, and its copy holds less, or what it holds does not count yet.
    Lagging,
    /// The member does not answer.
    Gone,
}

/// How far the records are, and who waits for them.
#[derive(Default)]
struct Marks {
    /// The last record made.
    made: Cell<Jseq>,
    /// Bytes of records that the quota knows of.
    counted: Cell<u64>,
    written: Cell<Jseq>,
    durable: Cell<Jseq>,
    on_written: RefCell<Option<OnWritten>>,
    waiting: RefCell<Vec<(Jseq, oneshot::Sender<()>)>>,
    /// Whom the round of questions under way is for.
    asked: RefCell<Vec<oneshot::Sender<()>>>,
    /// Who asked since it began.
    asked_since: RefCell<Vec<oneshot::Sender<()>>>,
    /// A member has promised a later epoch. The owner's machine and the asking one learn it each on its own.
    is_deposed: Cell<bool>,
}

impl Owning {
    /// Starts shipping to the members.
    pub(super) fn start(env: &Env, copies: &Copies, journal: &Rc<Journal>, opening: Opening, reading: Reading) -> Self {
        let volume = opening.volume;
        let marks = Rc::new(Marks::default());
        // What earlier ensembles kept, this one may not keep yet.
        marks.durable.set(opening.base.at);
        marks.written.set(opening.base.at);
        let records = u64::try_from(opening.records.len()).expect("a length in memory fits 64 bits");
        marks.made.set(Jseq(opening.base.at.0 + records));
        let asker = Confirming::new(volume, opening.epoch, opening.members.clone());
        let asker = Stoppable::new(asker, Vec::new());
        let asker_shell = AskerShell { volume, copies: copies.clone(), marks: Rc::clone(&marks) };
        let asking = actor::start(Rc::clone(&env.clock), asker.clone(), asker_shell);
        let mut first = Vec::new();
        let owner = Owner::new(opening, &mut first);
        let machine = Stoppable::new(owner, first);
        let shell = OwnerShell { volume, copies: copies.clone(), marks: Rc::clone(&marks), asking: asking.clone() };
        let handle = actor::start(Rc::clone(&env.clock), machine.clone(), shell);
        copies.listen(volume, Rc::new(OwnerEar(handle.clone(), asking.clone())));
        let (journal, quota) = (Rc::clone(journal), copies.quota());
        let (reading, clock) = (Rc::new(reading), Rc::clone(&env.clock));
        let own = Self { handle, asking, asker, reading, clock, machine, marks, journal, quota };
        own.handle.call(Input::Tick);
        own.count();
        own.tick(env);
        own
    }

    /// Tells the quota what the records take now.
    fn count(&self) {
        let now = self.machine.with(Owner::bytes).unwrap_or_default();
        self.quota.change(self.marks.counted.replace(now), now);
    }

    fn tick(&self, env: &Env) {
        let (own, clock) = (self.clone(), Rc::clone(&env.clock));
        actor::spawn(async move {
            while own.machine.with(|_| ()).is_some() {
                clock.sleep(TICK).await;
                own.handle.call(Input::Tick);
                own.asking.call(confirm::Input::Tick);
            }
        });
    }

    /// Completes when everything made so far is at d1.
    pub(super) fn durable(&self) -> Local<()> {
        let needed = self.marks.made.get();
        if self.marks.durable.get() >= needed {
            return Box::pin(std::future::ready(()));
        }
        let (done, wait) = oneshot::channel();
        self.marks.waiting.borrow_mut().push((needed, done));
        self.handle.call(Input::Sync);
        Box::pin(async move {
            if wait.await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }

    /// Raft has opened the epoch.
    pub(super) fn opened(&self) {
        self.handle.call(Input::Opened);
    }

    /// How the members' copies stand.
    pub(super) fn copies(&self) -> Vec<(NodeId, Standing)> {
        let written = self.marks.written.get();
        let standing = |member: MemberStanding| {
            let standing = match member {
                MemberStanding { heard, .. } if heard > GONE_TICKS => Standing::Gone,
                MemberStanding { at, condition: Condition::Whole, .. } if at >= written => Standing::Current,
                _ => Standing::Lagging,
            };
            (member.node, standing)
        };
        let members = self.machine.with(Owner::status).unwrap_or_default();
        members.into_iter().map(standing).collect()
    }

    /// Whether leases may answer reads now.
    pub(super) fn reads_by_lease(&self) -> bool {
        (self.reading.may_lease)()
    }

    /// Nothing is read here for now, or any more: whoever takes over need not wait for leases.
    pub(super) fn release(&self) {
        self.asking.call(confirm::Input::Release);
    }

    /// No more: what waits for a mark waits for ever.
    pub(super) fn stop(&self) {
        self.release();
        self.asker.stop();
        self.machine.stop();
        self.count();
        *self.marks.on_written.borrow_mut() = None;
        self.marks.asked.take();
        self.marks.asked_since.take();
    }
}

impl Records for Owning {
    fn append(&self, _epoch: Epoch, jseq: Jseq, record: &[u8]) -> Result<(), JournalFailed> {
        self.marks.made.set(jseq);
        self.handle.call(Input::Made { record: Bytes::copy_from_slice(record) });
        self.count();
        Ok(())
    }

    fn submit(&self) -> Result<Submitted, JournalFailed> {
        self.handle.call(Input::Push);
        Ok(Submitted::OnTheWay)
    }

    fn on_written(&self, written: OnWritten) {
        *self.marks.on_written.borrow_mut() = Some(written);
    }

    fn sync(&self) -> Local<Result<(), JournalFailed>> {
        let durable = self.durable();
        Box::pin(async move {
            durable.await;
            Ok(())
        })
    }

    fn confirm(&self, reads: u64) -> Option<Local<()>> {
        let wants_lease = self.reads_by_lease();
        // After the reads were done, whatever held them up: that is what makes the lease answer for them.
        let left = self.asker.with(|asker| asker.lease_left(self.clock.now())).filter(|_| wants_lease);
        if let Some(left) = left.filter(|left| !left.is_zero()) {
            self.reading.reads.of(ReadsBy::Lease).inc_by(reads);
            if Confirming::is_soon_over(left) {
                self.asking.call(confirm::Input::Renew);
            }
            return None;
        }
        self.reading.reads.of(ReadsBy::Question).inc_by(reads);
        let (done, wait) = oneshot::channel();
        self.marks.asked_since.borrow_mut().push(done);
        self.asking.call(confirm::Input::Ask { wants_lease });
        Some(Box::pin(async move {
            if wait.await.is_err() {
                std::future::pending::<()>().await;
            }
        }))
    }

    fn trim(&self, _epoch: Epoch, through: Jseq) {
        self.handle.call(Input::Trimmed(through));
        self.count();
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.quota.has_room(bytes) && self.journal.has_room(bytes)
    }

    fn room(&self, bytes: u64) -> Local<Result<(), JournalFailed>> {
        let (quota, journal) = (Rc::clone(&self.quota), Rc::clone(&self.journal));
        Box::pin(async move {
            quota.room(bytes).await;
            journal.room(bytes).await.map_err(|_| JournalFailed)
        })
    }
}

struct OwnerEar(Handle<Input>, Handle<confirm::Input>);

impl Ear for OwnerEar {
    fn told(&self, from: NodeId, frame: Frame) {
        match frame {
            Frame::Appended(appended) => self.0.call(Input::Appended(from, appended)),
            Frame::Confirmed(confirmed) => self.1.call(confirm::Input::Confirmed(from, confirmed)),
            _ => {}
        }
    }

    fn lost(&self, to: NodeId) {
        self.0.call(Input::Lost(to));
    }
}

struct OwnerShell {
    volume: VolumeId,
    copies: Copies,
    marks: Rc<Marks>,
    asking: Handle<confirm::Input>,
}

impl Shell<Stoppable<Owner>> for OwnerShell {
    fn perform(&mut self, effect: Effect, _own: &Handle<Input>) {
        match effect {
            Effect::Send { to, frame } => self.copies.send(to, frame),
            Effect::Written(Point { at, chain }) => self.marks.written(at, chain),
            Effect::Durable(at) => self.marks.durable(at),
            Effect::Deposed(by) => {
                self.marks.deposed(self.volume, by);
                self.asking.call(confirm::Input::Release);
            }
            Effect::Conflict(member) => {
                tracing::error!(volume = %self.volume, %member, "a copy of the journal holds what cannot be; it is not counted");
            }
        }
    }
}

struct AskerShell {
    volume: VolumeId,
    copies: Copies,
    marks: Rc<Marks>,
}

impl Shell<Stoppable<Confirming>> for AskerShell {
    fn perform(&mut self, effect: confirm::Effect, _own: &Handle<confirm::Input>) {
        match effect {
            confirm::Effect::Send { to, frame } => self.copies.send(to, frame),
            confirm::Effect::Began => self.marks.round_began(),
            confirm::Effect::Confirmed => self.marks.confirmed(),
            confirm::Effect::Deposed(by) => self.marks.deposed(self.volume, by),
        }
    }
}

impl Marks {
    fn deposed(&self, volume: VolumeId, by: Epoch) {
        if !self.is_deposed.replace(true) {
            tracing::warn!(%volume, epoch = %by, "a member has promised a later epoch: this node is not the owner any more");
        }
    }

    fn round_began(&self) {
        self.asked.borrow_mut().append(&mut self.asked_since.borrow_mut());
    }

    fn confirmed(&self) {
        for done in self.asked.take() {
            // Whoever asked may be gone.
            let _ = done.send(());
        }
    }

    fn written(&self, at: Jseq, chain: Hash) {
        self.written.set(at);
        let written = self.on_written.borrow().as_ref().map(Rc::clone);
        if let Some(written) = written {
            written(at, chain);
        }
    }

    fn durable(&self, at: Jseq) {
        self.durable.set(at);
        let (reached, waiting): (Vec<_>, Vec<_>) =
            self.waiting.take().into_iter().partition(|(needed, _)| *needed <= at);
        *self.waiting.borrow_mut() = waiting;
        for (_, done) in reached {
            // Whoever waited may be gone.
            let _ = done.send(());
        }
    }
}
