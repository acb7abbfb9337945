//! Performs what a volume's machine decides: seals and journals records, fetches frames and pages, answers sessions.
//!
//! Sealing is done here and at once: 4 KiB take about as long as handing them to another thread would. Appending is a copy
//! into the journal's batch, submitting one write of it; both are direct calls, and what they give is stepped back into the
//! machine right behind the current step. Only syncs and fetches take time.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use velum_protocol::{
    format::{
        location::Frame,
        metadata::{AclEntry, ObjectRef, Right},
    },
    id::{BLOCK_BYTES, Epoch, Hash, Jseq, Pass, SessionId, VolumeId},
};

use super::{
    budget::{DirtyBudget, Wake, Wakes},
    machine::{Effect, FetchFailure, Fetched, Input, Parts, Room, Settings, Stats, VolumeMachine},
    messages::{Committed, DirtyStatus, Door, Entrant, FlushPort, Relocated, Replies, Request, Window},
    replay::{Lost, Replay, ReplayError, Start, Stored},
    sealing::{Owner, Sealer},
};
use crate::{
    actor::{self, Handle, Machine, Shell},
    audit::{Action, Audit, Gate as AuditGate},
    cache::{BlockLocation, MemoryCache, gate::Gate, permits::Permits},
    env::{Clock, Entropy, Env, Instant, Local},
    extent::ExtentMap,
    keyring::KeySet,
};

/// The first pause before a fetch is tried again, doubled up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest pause: a cloud that comes back is noticed within it.
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// The journal failed; it is poisoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal failed")]
pub struct JournalFailed;

/// Whether records that were submitted are at d0 already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// They are.
    Written,
    /// They will be when enough nodes have them; see [`Records::on_written`].
    OnTheWay,
}

/// Is told that everything up to a position, with the chain there, is at d0.
pub type OnWritten = Rc<dyn Fn(Jseq, Hash)>;

/// Where one volume's records are kept: the node's journal, or those of several nodes.
pub trait Records {
    /// Puts a sealed record into the journal's batch.
    ///
    /// # Errors
    /// When the journal does not take it; the volume acks nothing any more.
    fn append(&self, epoch: Epoch, jseq: Jseq, record: &[u8]) -> Result<(), JournalFailed>;
    /// Has the batch written: everything appended comes to d0.
    ///
    /// # Errors
    /// When the write failed.
    fn submit(&self) -> Result<Submitted, JournalFailed>;
    /// Has `written` called when records that were on the way are at d0.
    fn on_written(&self, written: OnWritten);
    /// Completes when everything submitted before the call is at d1.
    fn sync(&self) -> Local<Result<(), JournalFailed>>;
    /// So many reads are done. None when it is known already that nobody else can have had anything acked; else it completes when it is
    /// known that nobody could when this was called.
    fn confirm(&self, reads: u64) -> Option<Local<()>>;
    /// Forgets records up to a position.
    fn trim(&self, epoch: Epoch, through: Jseq);
    /// True when `bytes` of records fit.
    fn has_room(&self, bytes: u64) -> bool;
    /// Completes when `bytes` of records may fit.
    ///
    /// # Errors
    /// When the journal has failed: there will never be room.
    fn room(&self, bytes: u64) -> Local<Result<(), JournalFailed>>;
}

/// Where clean blocks and map pages come from: the disk cache and the clouds behind it.
pub trait FrameSource {
    /// The whole frame, or at least the blocks whose bits are set in `wanted`.
    fn frame(&self, frame: &Frame, wanted: u16) -> Local<Result<Fetched, FetchFailure>>;
    /// The opened payload of a page of the extent map.
    fn page(&self, page: &ObjectRef) -> Local<Result<Bytes, FetchFailure>>;
    /// Offers blocks that became clean; each is a buffer of its own.
    fn keep(&self, blocks: Vec<(BlockLocation, Bytes)>);
    /// Offers blocks that lie elsewhere now: from where, to where, and the contents, each in a buffer of its own.
    fn moved(&self, blocks: Vec<(BlockLocation, BlockLocation, Bytes)>);
}

/// All that a volume is opened with.
pub struct Opening {
    /// The keys, which also name cluster and volume.
    pub keys: KeySet,
    /// Settings.
    pub settings: Settings,
    /// Size in bytes, a multiple of the block size.
    pub size_bytes: u64,
    /// The ACL and its version.
    pub acl: (Vec<AclEntry>, u64),
    /// This node's epoch and the volume's lineage.
    pub owner: Owner,
    /// Where the sequence stands.
    pub head: Start,
    /// The last position that is at d2.
    pub durable: Jseq,
    /// The extent map at the head.
    pub map: ExtentMap,
    /// What the journal holds of the volume, in order.
    pub stored: Vec<Stored>,
    /// What the journal lacks of it.
    pub lost: Lost,
    /// The journal.
    pub records: Rc<dyn Records>,
    /// Disk cache and clouds.
    pub frames: Rc<dyn FrameSource>,
    /// The node's cache of clean blocks.
    pub memory: Rc<RefCell<MemoryCache>>,
    /// The node's dirty budget.
    pub budget: Rc<DirtyBudget>,
    /// Where gate 2 reports.
    pub audit: Rc<Audit>,
}

/// Why a volume does not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenVolumeError {
    /// It has no keys.
    #[error("the volume has no keys")]
    NoKeys,
    /// The journal does not hold what it must: the volume is faulted, nothing of it was changed.
    #[error("the volume is faulted: {0}; its journal was left as it is")]
    Faulted(#[from] ReplayError),
}

/// What replay found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Records put back into the buffer.
    pub records: usize,
    /// Records beyond a gap that were given up. Not zero: acked writes that were not at d1 may be lost, so the lineage must
    /// change before guests are let in.
    pub given_up: usize,
}

/// An open volume: the way in for doors, flusher and node. Cheap to clone.
#[derive(Clone)]
pub struct Volume {
    id: VolumeId,
    handle: Handle<Input>,
    machine: Rc<RefCell<VolumeMachine>>,
    shared: Rc<Shared>,
    budget: Rc<DirtyBudget>,
}

/// A session: by what it was let in, and where its replies go.
type Attached = (Option<Pass>, Rc<dyn Replies>);

/// What the way in and the shell share.
#[derive(Default)]
struct Shared {
    sessions: RefCell<BTreeMap<SessionId, Attached>>,
    wake_flush: RefCell<Option<Rc<dyn Fn()>>>,
}

impl Volume {
    /// Replays the journal and starts the volume on the current `LocalSet`.
    ///
    /// # Errors
    /// When the volume must not start.
    pub fn open(env: &Env, opening: Opening) -> Result<(Self, Replayed), OpenVolumeError> {
        let id = opening.keys.volume();
        let replay = Replay::plan(opening.head, opening.owner, opening.stored, &opening.lost)?;
        let mut machine = VolumeMachine::new(Parts {
            id,
            settings: opening.settings,
            size_blocks: opening.size_bytes / BLOCK_BYTES,
            gate: Gate::compile(&opening.acl.0, opening.acl.1),
            map: opening.map,
            epoch: opening.owner.epoch,
            last: opening.head.last,
            chain: opening.head.chain,
            durable: opening.durable,
            epochs: replay.epochs.clone(),
            memory: opening.memory,
            budget: Rc::clone(&opening.budget),
            room: Rc::new(JournalRoom(Rc::clone(&opening.records))),
        });
        let chain = replay.run(env.clock.now(), &opening.keys, &mut machine)?;
        let sealer = Sealer::new(&opening.keys, opening.owner, Rc::clone(&env.entropy) as Rc<dyn Entropy>, chain)
            .ok_or(OpenVolumeError::NoKeys)?;
        let machine = Rc::new(RefCell::new(machine));
        let shared = Rc::new(Shared::default());
        let records = Rc::clone(&opening.records);
        let shell = VolumeShell {
            id,
            clock: Rc::clone(&env.clock),
            sealer,
            records: opening.records,
            frames: opening.frames,
            audit: opening.audit,
            budget: Rc::clone(&opening.budget),
            shared: Rc::clone(&shared),
        };
        let handle = actor::start(Rc::clone(&env.clock), Stepped(Rc::clone(&machine)), shell);
        let own = handle.clone();
        records.on_written(Rc::new(move |through, chain| own.call(Input::Submitted { through, chain })));
        let (room, pressure) = (handle.clone(), handle.clone());
        let room: Wake = Rc::new(move || room.call(Input::Room));
        let pressure: Wake = Rc::new(move || pressure.call(Input::Pressure));
        opening.budget.register(id, Wakes { room, pressure });
        let replayed = Replayed { records: replay.len(), given_up: replay.given_up };
        Ok((Self { id, handle, machine, shared, budget: opening.budget }, replayed))
    }

    /// The way in for the cloud array application.
    #[must_use]
    pub fn port(&self) -> Rc<dyn FlushPort> {
        Rc::new(self.clone())
    }

    /// The version of the ACL that gate 2 judges by.
    #[must_use]
    pub fn acl_version(&self) -> u64 {
        self.machine.borrow().acl_version()
    }

    /// Takes a newer ACL; one that is not newer changes nothing. When this returns, gate 2 judges by it, also what waits.
    pub fn set_acl(&self, entries: Vec<AclEntry>, version: u64) {
        self.handle.call(Input::SetAcl { entries, version });
    }

    /// Takes who shares the volume, and who may write where among them. When this returns, gate 2 judges by it, also what waits.
    pub fn set_permits(&self, permits: Permits) {
        self.handle.call(Input::SetPermits { permits });
    }

    /// Ends the sessions that may not be there any more, and says how many. When this returns, nothing of theirs that has no position
    /// takes effect.
    pub fn end_unless(&self, may_stay: impl Fn(Option<Pass>) -> bool) -> usize {
        let over: Vec<(SessionId, Rc<dyn Replies>)> = {
            let mut sessions = self.shared.sessions.borrow_mut();
            sessions.extract_if(.., |_, (pass, _)| !may_stay(*pass)).map(|(id, (_, replies))| (id, replies)).collect()
        };
        let ended = over.len();
        for (session, replies) in over {
            self.handle.call(Input::Detach { session });
            replies.end();
        }
        ended
    }

    /// Takes a new size in bytes, a multiple of the block size. To be called before a smaller size is agreed, which then
    /// waits for the journal to be synced; and after a larger one is, for which [`Volume::clear_beyond`] comes first.
    pub fn set_size(&self, size_bytes: u64) {
        self.handle.call(Input::SetSize { blocks: size_bytes / BLOCK_BYTES });
    }

    /// Gives up whatever may be left between the present size and a larger one from when the volume was larger before. To
    /// be called, and flushed, before the larger size is agreed.
    pub fn clear_beyond(&self, size_bytes: u64) {
        self.handle.call(Input::ClearBeyond { blocks: size_bytes / BLOCK_BYTES });
    }

    /// Takes no more requests; those that have a position are still answered. The budget forgets the volume when the last
    /// window is committed or the node stops.
    pub fn close(&self) {
        self.handle.call(Input::Close);
        self.budget.unregister(self.id);
    }

    /// Another node owns the volume: from here on nothing is answered or acked, and what was dirty here is let go, for it is
    /// that node's business. Sessions are to be ended by whoever calls.
    pub fn abandon(&self) {
        self.handle.call(Input::Abandon);
        self.shared.sessions.borrow_mut().clear();
        self.budget.unregister(self.id);
    }

    /// Counters since the volume was opened.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.machine.borrow().stats()
    }

    /// True once the journal failed under this volume.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.machine.borrow().is_poisoned()
    }

    /// Sessions attached now.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.shared.sessions.borrow().len()
    }

    /// Writes that wait for room now.
    #[must_use]
    pub fn waiting_writes(&self) -> usize {
        self.machine.borrow().waiting_writes()
    }
}

impl Door for Volume {
    fn size_bytes(&self) -> u64 {
        self.machine.borrow().size_bytes()
    }

    fn attach(&self, session: SessionId, entrant: Entrant, replies: Rc<dyn Replies>) {
        let Entrant { principal, pass } = entrant;
        self.shared.sessions.borrow_mut().insert(session, (pass, replies));
        let attachment = pass.map(|pass| pass.handle);
        self.handle.call(Input::Attach { session, principal: Box::from(&*principal.0), attachment });
    }

    fn submit(&self, request: Request) {
        self.handle.call(Input::Request(request));
    }

    fn end_burst(&self) {
        self.handle.call(Input::EndBurst);
    }

    fn detach(&self, session: SessionId) {
        self.shared.sessions.borrow_mut().remove(&session);
        self.handle.call(Input::Detach { session });
    }
}

impl FlushPort for Volume {
    fn dirty(&self) -> DirtyStatus {
        self.machine.borrow().dirty()
    }

    fn freeze(&self) -> Option<Arc<Window>> {
        // Everything appended goes to d0 first; the machine cuts nothing that is not.
        self.handle.call(Input::EndBurst);
        self.machine.borrow_mut().freeze()
    }

    fn committed(&self, committed: Committed) {
        self.handle.call(Input::Committed(committed));
    }

    fn relocated(&self, relocated: Relocated) {
        self.handle.call(Input::Relocated(relocated));
    }

    fn durable(&self, last: Jseq) {
        self.handle.call(Input::Durable(last));
    }

    fn on_dirty(&self, wake: Rc<dyn Fn()>) {
        *self.shared.wake_flush.borrow_mut() = Some(wake);
    }

    fn with_map(&self, read: &mut dyn FnMut(&mut ExtentMap)) {
        let mut machine = self.machine.borrow_mut();
        read(machine.map_mut());
        machine.evict_pages();
    }
}

/// The machine in its actor; the way in holds it too, for what is answered on the spot.
struct Stepped(Rc<RefCell<VolumeMachine>>);

impl Machine for Stepped {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        self.0.borrow_mut().step(now, input, effects);
    }
}

/// The journal's room as the machine asks for it.
struct JournalRoom(Rc<dyn Records>);

impl Room for JournalRoom {
    fn has_room(&self, bytes: u64) -> bool {
        self.0.has_room(bytes)
    }
}

struct VolumeShell {
    id: VolumeId,
    clock: Rc<dyn Clock>,
    sealer: Sealer,
    records: Rc<dyn Records>,
    frames: Rc<dyn FrameSource>,
    audit: Rc<Audit>,
    budget: Rc<DirtyBudget>,
    shared: Rc<Shared>,
}

impl Shell<Stepped> for VolumeShell {
    fn perform(&mut self, effect: Effect, own: &Handle<Input>) {
        match effect {
            Effect::Append(record) => {
                let epoch = self.sealer.owner().epoch;
                if self.records.append(epoch, record.jseq, self.sealer.seal(&record)).is_err() {
                    own.call(Input::JournalFailed);
                }
            }
            Effect::Submit { through } => own.call(match self.records.submit() {
                Ok(Submitted::Written) => Input::Submitted { through, chain: self.sealer.chain() },
                Ok(Submitted::OnTheWay) => Input::Sealed { through, chain: self.sealer.chain() },
                Err(JournalFailed) => Input::JournalFailed,
            }),
            Effect::Sync { through } => {
                let synced = self.records.sync();
                own.spawn(async move {
                    match synced.await {
                        Ok(()) => Input::Synced { through },
                        Err(JournalFailed) => Input::JournalFailed,
                    }
                });
            }
            Effect::Confirm { reads } => match self.records.confirm(reads) {
                Some(confirmed) => own.spawn(async move {
                    confirmed.await;
                    Input::Confirmed
                }),
                None => own.call(Input::Confirmed),
            },
            Effect::Reply(reply) => {
                let session =
                    self.shared.sessions.borrow().get(&reply.origin.session).map(|(_, replies)| Rc::clone(replies));
                if let Some(session) = session {
                    session.reply(reply);
                }
            }
            Effect::FetchFrame { frame, wanted, attempt } => self.fetch_frame(frame, wanted, attempt, own),
            Effect::FetchPage { page, attempt } => self.fetch_page(page, attempt, own),
            Effect::Keep(blocks) => self.frames.keep(blocks),
            Effect::Moved(blocks) => self.frames.moved(blocks),
            Effect::WakeFlush => {
                let wake = self.shared.wake_flush.borrow().as_ref().map(Rc::clone);
                if let Some(wake) = wake {
                    wake();
                }
            }
            Effect::WakeWaiting => self.budget.wake_first(),
            Effect::Press => self.budget.press(),
            Effect::AwaitRoom { bytes } => {
                let room = self.records.room(bytes);
                own.spawn(async move {
                    match room.await {
                        Ok(()) => Input::Room,
                        Err(JournalFailed) => Input::JournalFailed,
                    }
                });
            }
            Effect::TrimJournal { epoch, through } => self.records.trim(epoch, through),
            Effect::Passed { requests } => self.audit.passed(AuditGate::Region, requests),
            Effect::Refused { principal, right, range } => {
                let action = if right == Right::Write { Action::Write } else { Action::Read };
                self.audit.refused(AuditGate::Region, &principal, action, Some(self.id), Some(range));
            }
        }
    }
}

impl VolumeShell {
    fn fetch_frame(&self, frame: Frame, wanted: u16, attempt: u32, own: &Handle<Input>) {
        let frames = Rc::clone(&self.frames);
        let pause = self.pause(attempt);
        own.spawn(async move {
            pause.await;
            let result = frames.frame(&frame, wanted).await;
            Input::Fetched { frame, result }
        });
    }

    fn fetch_page(&self, page: ObjectRef, attempt: u32, own: &Handle<Input>) {
        let frames = Rc::clone(&self.frames);
        let pause = self.pause(attempt);
        own.spawn(async move {
            pause.await;
            let result = frames.page(&page).await;
            Input::PageFetched { page, result }
        });
    }

    /// Lets time pass before another attempt; none before the first.
    fn pause(&self, attempt: u32) -> Local<()> {
        match attempt.checked_sub(1) {
            None => Box::pin(std::future::ready(())),
            Some(doublings) => {
                let pause = RETRY_FIRST.saturating_mul(1 << doublings.min(16));
                self.clock.sleep(pause.min(RETRY_LONGEST))
            }
        }
    }
}
