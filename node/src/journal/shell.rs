//! Carries out what the machine decides: one buffer, one write per submit, one sync in flight, chores one at a time.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
    rc::Rc,
};

use futures_util::{FutureExt, future};
use tokio::sync::{Notify, oneshot};
use velum_protocol::format::journal::{Mark, Position, RECORD_ALIGN_BYTES, RecordKind, StreamId};

use super::{
    JournalError,
    machine::{Admission, Chore, Machine, NewHeader, SyncPlan},
    reach::ReachFile,
    recover::file_name,
    scan::{Found, Scanner, Step},
};
use crate::{
    actor::spawn,
    env::{Env, File, Local},
    metrics::JournalMetrics,
};

/// Appended bytes that are written without waiting for a submit, so that the buffer stays small.
const BUFFER_BYTES_MAX: usize = 4 << 20;

/// Bytes of records copied forward before the data path gets its turn.
const COPY_STEP_BYTES: usize = 256 << 10;

/// The journal's state, shared between its handle and the tasks that sync and tidy.
#[derive(Clone)]
pub(super) struct Shared(pub(super) Rc<RefCell<Inner>>);

/// What waits for a sync.
struct Waiter {
    target: Mark,
    reply: oneshot::Sender<Result<(), JournalError>>,
}

/// Machine, files and buffer.
pub(super) struct Inner {
    pub(super) machine: Machine,
    env: Env,
    dir: PathBuf,
    files: BTreeMap<u32, Rc<dyn File>>,
    /// Records placed and not yet written, from `buffer_at` of the active file on.
    buffer: Vec<u8>,
    buffer_at: u64,
    /// Where the last record ends that was written.
    written: Mark,
    /// Where is noted how far all this reaches; none while a start sets up the ring.
    reach: Option<ReachFile>,
    waiters: Vec<Waiter>,
    poison: Option<Rc<str>>,
    sync_running: bool,
    chore_running: bool,
    /// Told whenever there may be more room.
    room: Rc<Notify>,
    /// Told when only raft can make room.
    crowded: Rc<Notify>,
    pub(super) syncs: u64,
    pub(super) bytes_written: u64,
    /// Counted in from the moment the node has metrics: replay comes before.
    pub(super) metrics: Option<JournalMetrics>,
}

impl Inner {
    fn check(&self) -> Result<(), JournalError> {
        match &self.poison {
            Some(cause) => Err(JournalError::Poisoned { cause: Rc::clone(cause) }),
            None => Ok(()),
        }
    }

    pub(super) fn poison(&self) -> Option<Rc<str>> {
        self.poison.clone()
    }

    /// Appends to the buffer.
    pub(super) fn append(&mut self, stream: StreamId, at: Position, body: &[u8]) -> Result<Admission, JournalError> {
        self.check()?;
        let admission = self.machine.admit(stream, at, body.len())?;
        self.append_admitted(admission, stream, at, body)
    }

    /// The same for a copy of another node's record.
    pub(super) fn append_foreign(
        &mut self,
        stream: StreamId,
        at: Position,
        body: &[u8],
    ) -> Result<Admission, JournalError> {
        self.check()?;
        let admission = self.machine.admit_foreign(body.len())?;
        self.append_admitted(admission, stream, at, body)
    }

    fn append_admitted(
        &mut self,
        admission: Admission,
        stream: StreamId,
        at: Position,
        body: &[u8],
    ) -> Result<Admission, JournalError> {
        if admission == Admission::Roll {
            self.roll()?;
        }
        self.put(RecordKind::Stream(stream, at), body)?;
        self.count(|metrics| metrics.appended_records.inc());
        Ok(admission)
    }

    /// Appends a record that stands elsewhere already.
    pub(super) fn append_again(&mut self, stream: StreamId, at: Position, body: &[u8]) -> Result<(), JournalError> {
        self.check()?;
        if self.machine.admit_bytes(body.len(), 0)? == Admission::Roll {
            self.roll()?;
        }
        self.put(RecordKind::Stream(stream, at), body)
    }

    /// The next piece of tidying. When none helps and raft's records take room that is needed, raft is told.
    fn next_chore(&mut self) -> Option<Chore> {
        let chore = self.machine.next_chore();
        if chore.is_none() && self.machine.is_crowded_by(StreamId::Raft) {
            self.crowded.notify_one();
        }
        chore
    }

    /// Goes on in the next ready file.
    pub(super) fn roll(&mut self) -> Result<(), JournalError> {
        self.submit()?;
        let ring = self.machine.roll()?;
        self.put(RecordKind::Ring, &ring.encode())
    }

    /// Says anew which files are live.
    pub(super) fn append_ring(&mut self) -> Result<(), JournalError> {
        let ring = self.machine.ring().encode();
        if self.machine.admit_bytes(ring.len(), 0)? == Admission::Roll {
            return self.roll();
        }
        self.put(RecordKind::Ring, &ring)
    }

    fn put(&mut self, kind: RecordKind, body: &[u8]) -> Result<(), JournalError> {
        if self.buffer.is_empty() {
            self.buffer_at = self.machine.next_offset();
        }
        let header = self.machine.place(kind, body);
        self.buffer.extend_from_slice(&header);
        self.buffer.extend_from_slice(body);
        let align = usize::try_from(RECORD_ALIGN_BYTES).expect("a small constant");
        self.buffer.resize(self.buffer.len().next_multiple_of(align), 0);
        if self.buffer.len() >= BUFFER_BYTES_MAX { self.submit() } else { Ok(()) }
    }

    /// Writes the buffer with one call.
    pub(super) fn submit(&mut self) -> Result<(), JournalError> {
        self.check()?;
        if self.buffer.is_empty() {
            return Ok(());
        }
        let file = self.files.get(&self.machine.active()).expect("the active file is open");
        if let Err(error) = file.write_at(self.buffer_at, &self.buffer) {
            return Err(self.fail(format!("write of {}: {error}", file_name(self.machine.active()))));
        }
        let bytes = u64::try_from(self.buffer.len()).expect("a buffer fits 64 bits");
        self.bytes_written += bytes;
        self.count(|metrics| {
            metrics.writes.inc();
            metrics.appended_bytes.inc_by(bytes);
        });
        self.buffer.clear();
        // Records first: what is noted as written is there.
        self.written = self.machine.records_end();
        self.note_reach()
    }

    /// Notes how far the ring was written and synced.
    fn note_reach(&mut self) -> Result<(), JournalError> {
        let (written, durable) = (self.written, self.machine.covered());
        let Some(reach) = &mut self.reach else { return Ok(()) };
        if let Err(error) = reach.note(written, durable) {
            let cause = format!("write of {}: {error}", reach.path().display());
            return Err(self.fail(cause));
        }
        Ok(())
    }

    fn count(&self, event: impl FnOnce(&JournalMetrics)) {
        if let Some(metrics) = &self.metrics {
            event(metrics);
        }
    }

    /// Poisons the journal: what the failed call touched is never written or synced again, and every waiter hears of it.
    fn fail(&mut self, cause: String) -> JournalError {
        let cause: Rc<str> = cause.into();
        tracing::error!(%cause, "the journal is poisoned");
        self.poison.get_or_insert(Rc::clone(&cause));
        for waiter in self.waiters.drain(..) {
            // A waiter that has gone away needs no answer.
            let _ = waiter.reply.send(Err(JournalError::Poisoned { cause: Rc::clone(&cause) }));
        }
        self.room.notify_waiters();
        JournalError::Poisoned { cause }
    }

    /// Answers the waiters that a finished sync covers.
    fn settle(&mut self) {
        let durable = self.machine.durable();
        let (done, waiting) = self.waiters.drain(..).partition(|waiter| waiter.target <= durable);
        self.waiters = waiting;
        let done: Vec<Waiter> = done;
        for waiter in done {
            let _ = waiter.reply.send(Ok(()));
        }
    }
}

impl Shared {
    /// A journal whose chores rest until [`Self::begin_chores`]: at a start, the first record that calls the new places of
    /// the tail durable is the ring record that declares the old ones void.
    pub(super) fn new(env: &Env, dir: &Path, machine: Machine, files: BTreeMap<u32, Rc<dyn File>>) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            machine,
            env: env.clone(),
            dir: dir.to_path_buf(),
            files,
            buffer: Vec::new(),
            buffer_at: 0,
            written: Mark::default(),
            reach: None,
            waiters: Vec::new(),
            poison: None,
            sync_running: false,
            chore_running: true,
            room: Rc::new(Notify::new()),
            crowded: Rc::new(Notify::new()),
            syncs: 0,
            bytes_written: 0,
            metrics: None,
        })))
    }

    pub(super) fn append(&self, stream: StreamId, at: Position, body: &[u8]) -> Result<(), JournalError> {
        let admission = self.0.borrow_mut().append(stream, at, body);
        self.appended(admission)
    }

    pub(super) fn append_foreign(&self, stream: StreamId, at: Position, body: &[u8]) -> Result<(), JournalError> {
        let admission = self.0.borrow_mut().append_foreign(stream, at, body);
        self.appended(admission)
    }

    fn appended(&self, admission: Result<Admission, JournalError>) -> Result<(), JournalError> {
        match admission {
            Ok(Admission::Here) => Ok(()),
            Ok(Admission::Roll) => {
                // The full file becomes durable soon, so that a start never finds more than a file or two unsynced.
                self.run_syncs();
                self.run_chores();
                Ok(())
            }
            Err(error) => {
                self.run_chores();
                Err(error)
            }
        }
    }

    /// Completes when everything appended before is durable.
    pub(super) fn sync(&self) -> Local<Result<(), JournalError>> {
        let mut inner = self.0.borrow_mut();
        if let Err(error) = inner.submit() {
            return future::ready(Err(error)).boxed_local();
        }
        let target = inner.machine.end_mark();
        if target <= inner.machine.durable() {
            return future::ready(Ok(())).boxed_local();
        }
        let (reply, answer) = oneshot::channel();
        inner.waiters.push(Waiter { target, reply });
        drop(inner);
        self.run_syncs();
        let stopped = JournalError::Poisoned { cause: "the node is stopping".into() };
        async move { answer.await.unwrap_or(Err(stopped)) }.boxed_local()
    }

    /// Syncs until nobody waits; one sync in flight, the next covers everything that came meanwhile.
    fn run_syncs(&self) {
        if std::mem::replace(&mut self.0.borrow_mut().sync_running, true) {
            return;
        }
        let shared = self.clone();
        spawn(async move {
            while shared.sync_once().await && !shared.0.borrow().waiters.is_empty() {}
            shared.0.borrow_mut().sync_running = false;
            shared.run_chores();
        });
    }

    /// One sync of everything written. False when it failed or there was nothing to do.
    async fn sync_once(&self) -> bool {
        let (plan, files, clock) = {
            let mut inner = self.0.borrow_mut();
            if inner.submit().is_err() {
                return false;
            }
            let Some(plan) = inner.machine.begin_sync() else { return false };
            let files: Vec<_> = plan.files.iter().filter_map(|id| inner.files.get(id).cloned()).collect();
            (plan, files, Rc::clone(&inner.env.clock))
        };
        let SyncPlan { through, .. } = plan;
        let began = clock.now();
        let results = future::join_all(files.iter().map(|file| file.sync())).await;
        let mut inner = self.0.borrow_mut();
        inner.syncs += 1;
        inner.count(|metrics| {
            metrics.syncs.inc();
            metrics.sync_seconds.observe(clock.now().since(began).as_secs_f64());
        });
        if let Some(error) = results.into_iter().find_map(Result::err) {
            inner.fail(format!("sync: {error}"));
            return false;
        }
        inner.machine.synced(through);
        // Before anybody hears of it: damage to what a barrier covered must show as such at the next start.
        if inner.note_reach().is_err() {
            return false;
        }
        inner.settle();
        true
    }

    /// Notes from now on in `reach`, in both places at once, and makes sure that the notes are durable.
    pub(super) async fn begin_notes(&self, reach: ReachFile) -> Result<(), JournalError> {
        {
            let mut inner = self.0.borrow_mut();
            inner.reach = Some(reach);
            inner.note_reach()?;
            inner.note_reach()?;
        }
        self.sync_notes().await
    }

    /// Makes what was noted durable: at a start, and when nothing will follow.
    pub(super) async fn sync_notes(&self) -> Result<(), JournalError> {
        let Some((path, file)) = self.0.borrow().reach.as_ref().map(|reach| (reach.path().to_path_buf(), reach.file()))
        else {
            return Ok(());
        };
        file.sync().await.map_err(JournalError::io("sync", path))
    }

    pub(super) fn trim(&self, stream: StreamId, through: Position) {
        self.0.borrow_mut().machine.trim(stream, through);
        self.run_chores();
    }

    /// Completes when a volume can append `bytes`.
    pub(super) fn room(&self, bytes: u64) -> Local<Result<(), JournalError>> {
        let shared = self.clone();
        async move {
            loop {
                let room = Rc::clone(&shared.0.borrow().room);
                let told = room.notified();
                {
                    let mut inner = shared.0.borrow_mut();
                    inner.check()?;
                    if inner.machine.has_room(bytes) {
                        inner.machine.want(0);
                        return Ok(());
                    }
                    inner.machine.want(bytes);
                }
                shared.run_chores();
                told.await;
            }
        }
        .boxed_local()
    }

    /// Completes when only raft can make room.
    pub(super) fn crowded(&self) -> Local<()> {
        let crowded = Rc::clone(&self.0.borrow().crowded);
        async move { crowded.notified().await }.boxed_local()
    }

    /// Lets chores run from now on.
    pub(super) fn begin_chores(&self) {
        self.0.borrow_mut().chore_running = false;
        self.run_chores();
    }

    /// Tidies until there is nothing to tidy. Every piece of work is bounded and the data path runs in between.
    fn run_chores(&self) {
        let mut inner = self.0.borrow_mut();
        if inner.chore_running || inner.poison.is_some() {
            return;
        }
        let Some(chore) = inner.next_chore() else { return };
        inner.chore_running = true;
        drop(inner);
        let shared = self.clone();
        spawn(async move {
            let mut next = Some(chore);
            while let Some(chore) = next {
                let go_on = shared.chore(chore).await;
                let mut inner = shared.0.borrow_mut();
                // A trim that came meanwhile may have freed a file. But whoever waits for room asks for chores at once, so
                // a chore that achieved nothing must wake nobody: it would be done over and over.
                let go_on = go_on || inner.machine.has_recyclable();
                if go_on {
                    inner.room.notify_waiters();
                }
                next = if go_on && inner.poison.is_none() { inner.next_chore() } else { None };
            }
            shared.0.borrow_mut().chore_running = false;
        });
    }

    /// Does one chore. False when it could not be finished and must not be tried again at once.
    async fn chore(&self, chore: Chore) -> bool {
        match chore {
            Chore::Prepare { file: id, header } => {
                let file = self.0.borrow().files.get(&id).cloned().expect("files of the ring are open");
                let prepared = perform::prepare(&*file, &header).await;
                let mut inner = self.0.borrow_mut();
                if let Err(error) = prepared {
                    inner.fail(format!("preparing {}: {error}", file_name(id)));
                    return false;
                }
                inner.machine.prepared(id);
                true
            }
            Chore::Create { file: id, bytes, header } => self.create(id, bytes, &header).await,
            Chore::CopyForward { file } => self.copy_forward(file).await,
        }
    }

    /// Adds a file to the ring. A full disk is no failure of the journal: it goes on with the files it has, and the next
    /// chore is another one.
    async fn create(&self, id: u32, bytes: u64, header: &NewHeader) -> bool {
        let (env, dir) = {
            let inner = self.0.borrow();
            (inner.env.clone(), inner.dir.clone())
        };
        let path = dir.join(file_name(id));
        let made = async {
            let file = perform::create(&*env.disk, &path, bytes, header).await?;
            env.disk.sync_dir(&dir).await?;
            Ok::<_, std::io::Error>(file)
        };
        let made = made.await;
        let mut inner = self.0.borrow_mut();
        match made {
            Ok(file) => {
                inner.files.insert(id, file);
                inner.machine.prepared(id);
                true
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the journal cannot grow and goes on with the files it has");
                inner.machine.create_refused(id);
                true
            }
        }
    }

    /// Appends a record again if it is live; gives the bytes copied.
    fn append_copy(&self, found: &Found) -> Result<usize, JournalError> {
        let RecordKind::Stream(stream, at) = found.header.kind else { return Ok(0) };
        let mut inner = self.0.borrow_mut();
        if !inner.machine.is_live(stream, at) {
            return Ok(0);
        }
        inner.append_again(stream, at, &found.body)?;
        inner.count(|metrics| metrics.moved_bytes.inc_by(found.body.len() as u64));
        Ok(found.body.len())
    }

    /// Appends the live records of a file again, the same bytes in a new place.
    async fn copy_forward(&self, id: u32) -> bool {
        let (clock, file, lap, end) = {
            let inner = self.0.borrow();
            let (lap, end) = inner.machine.extent_of(id);
            let file = inner.files.get(&id).cloned().expect("files of the ring are open");
            (Rc::clone(&inner.env.clock), file, lap, end)
        };
        let Ok(mut scanner) = Scanner::new(&clock, file, id, lap, None) else { return false };
        scanner.end_at(end);
        let mut copied = 0;
        while scanner.next < end {
            let Step::Record(found) = scanner.step().await else {
                tracing::warn!(file = id, offset = scanner.next, "a journal file cannot be read where it has records");
                self.0.borrow_mut().machine.found_damaged(id);
                return true;
            };
            match self.append_copy(&found) {
                Ok(bytes) => copied += bytes,
                Err(_) => return false,
            }
            if copied >= COPY_STEP_BYTES {
                copied = 0;
                tokio::task::yield_now().await;
            }
        }
        self.0.borrow_mut().machine.drained(id);
        // Asked for like a barrier, for a sync that is in flight already covers none of the copies.
        drop(self.sync());
        // The file is free once the copies are durable; the end of that sync looks for chores again.
        false
    }
}

/// Work on files that takes time.
pub(super) mod perform {
    use std::{io, path::Path, rc::Rc};

    use super::NewHeader;
    use crate::env::{Disk, File, OpenMode};

    /// Zeros written at once.
    const ZEROS_BYTES: u64 = 1 << 20;

    /// Writes zeros over the whole file and syncs: reserved space alone would still cost a metadata commit per sync.
    pub(in super::super) async fn write_through(file: &dyn File, bytes: u64) -> io::Result<()> {
        let zeros = vec![0; usize::try_from(ZEROS_BYTES.min(bytes)).expect("a small constant")];
        let mut at = 0;
        while at < bytes {
            let piece = zeros.get(..usize::try_from(bytes - at).unwrap_or(usize::MAX)).unwrap_or(&zeros);
            file.write_at(at, piece)?;
            at += ZEROS_BYTES;
            // Synced piece by piece, so that a barrier meanwhile waits for one piece at most.
            file.sync().await?;
        }
        Ok(())
    }

    /// Makes a file for the ring. What cannot be finished is removed.
    pub(in super::super) async fn create(
        disk: &dyn Disk,
        path: &Path,
        bytes: u64,
        header: &NewHeader,
    ) -> io::Result<Rc<dyn File>> {
        let file = disk.open(path, OpenMode::CreateNew).await?;
        let written = async {
            write_through(&*file, bytes).await?;
            prepare(&*file, header).await
        };
        match written.await {
            Ok(()) => Ok(file),
            Err(error) => {
                // Nothing was ever stored in it; a failure to remove it is the same trouble told twice.
                let _ = disk.remove(path).await;
                Err(error)
            }
        }
    }

    /// Gives a file the header of its next lap.
    pub(in super::super) async fn prepare(file: &dyn File, header: &NewHeader) -> io::Result<()> {
        file.write_at(header.offset, &header.bytes)?;
        file.sync().await
    }
}
