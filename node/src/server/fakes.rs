//! What the doors' tests stand on: a clock that moves by hand, a table of volumes, and a volume in memory.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use velum_protocol::{
    format::metadata::Right,
    id::{Handle, Pass, SessionId, VolumeId},
};

use super::gate::{Export, ExportInfo, Exports, Gate, Standing};
use crate::{
    audit::Audit,
    env::{Clock, Instant, Local, WallTime},
    metrics::Metrics,
    volume::messages::{Door, Entrant, Operation, Outcome, Principal, Refusal, Replies, Reply, Request, StatusExtent},
};

/// Time that passes only when a test says so.
#[derive(Default)]
pub(crate) struct ManualClock {
    now: Cell<Instant>,
    sleepers: RefCell<Vec<(Instant, tokio::sync::oneshot::Sender<()>)>>,
}

impl ManualClock {
    pub(crate) fn pass(&self, time: Duration) {
        self.now.set(self.now.get() + time);
        let now = self.now.get();
        let sleepers = self.sleepers.take();
        let (due, later): (Vec<_>, Vec<_>) = sleepers.into_iter().partition(|(at, _)| *at <= now);
        *self.sleepers.borrow_mut() = later;
        for (_, wake) in due {
            let _ = wake.send(());
        }
    }

    /// Sleeps that somebody still waits for.
    pub(crate) fn armed(&self) -> usize {
        self.sleepers.borrow().iter().filter(|(_, wake)| !wake.is_closed()).count()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.now.get()
    }

    fn wall(&self) -> WallTime {
        WallTime(0)
    }

    fn sleep(&self, duration: Duration) -> Local<()> {
        let (wake, woken) = tokio::sync::oneshot::channel();
        self.sleepers.borrow_mut().push((self.now.get() + duration, wake));
        woken.map(drop).boxed_local()
    }
}

/// Volumes by name, each with one right for everybody.
#[derive(Default)]
pub(crate) struct Table {
    volumes: RefCell<BTreeMap<String, Entry>>,
    /// Agreed on, and not known here yet.
    elsewhere: RefCell<Option<(String, Entry)>>,
}

type Entry = (VolumeId, Right, Rc<MemoryVolume>);

impl Table {
    /// A table, gate 1 before it, and its audit trail.
    pub(crate) fn gate(volumes: &[(&str, Right)], size: usize) -> (Rc<Self>, Rc<Gate>, Rc<Audit>) {
        let table = Rc::new(Self::default());
        for ((name, right), number) in volumes.iter().zip(1u8..) {
            let volume = (VolumeId([number; 16]), *right, Rc::new(MemoryVolume::new(size)));
            table.volumes.borrow_mut().insert((*name).to_owned(), volume);
        }
        let audit = Rc::new(Audit::new(Rc::new(ManualClock::default()), Arc::new(Metrics::new())));
        let gate = Rc::new(Gate::new(Rc::clone(&table) as Rc<dyn Exports>, Rc::clone(&audit)));
        (table, gate, audit)
    }

    /// A volume is not known here until somebody catches up.
    pub(crate) fn hide(&self, name: &str) {
        let entry = self.volumes.borrow_mut().remove(name).unwrap();
        self.elsewhere.replace(Some((name.to_owned(), entry)));
    }

    /// What is known here of a volume allows nothing, until somebody catches up.
    pub(crate) fn outdate(&self, name: &str) {
        let entry = self.volumes.borrow()[name].clone();
        self.elsewhere.replace(Some((name.to_owned(), entry)));
        self.set_right(name, Right::None);
    }

    pub(crate) fn set_right(&self, name: &str, right: Right) {
        self.volumes.borrow_mut().get_mut(name).unwrap().1 = right;
    }

    pub(crate) fn volume(&self, name: &str) -> Rc<MemoryVolume> {
        Rc::clone(&self.volumes.borrow()[name].2)
    }
}

impl Exports for Table {
    fn list(&self, _principal: &Principal) -> Vec<ExportInfo> {
        let volumes = self.volumes.borrow();
        let info = |(name, (volume, right, _)): (&String, &Entry)| ExportInfo {
            volume: *volume,
            name: name.clone(),
            right: *right,
        };
        volumes.iter().map(info).collect()
    }

    fn find(&self, name: &str, _principal: &Principal) -> Option<Export> {
        let (volume, right, door) = self.volumes.borrow().get(name).cloned()?;
        Some(Export { volume, name: name.to_owned(), right, door, attachment: None })
    }

    fn right(&self, volume: VolumeId, _principal: &Principal) -> Right {
        self.volumes.borrow().values().find(|(id, ..)| *id == volume).map_or(Right::None, |(_, right, _)| *right)
    }

    fn stands(&self, _volume: VolumeId, pass: Option<Pass>) -> Standing {
        // Those with an even number stand, and the highest odd one is not known yet.
        match pass {
            None => Standing::Live,
            Some(Pass { connection, .. }) if connection % 2 == 0 => Standing::Live,
            Some(Pass { connection: u64::MAX, .. }) => Standing::NotYet,
            Some(_) => Standing::Over,
        }
    }

    fn catch_up(&self) -> Local<()> {
        if let Some((name, volume)) = self.elsewhere.take() {
            self.volumes.borrow_mut().insert(name, volume);
        }
        std::future::ready(()).boxed_local()
    }

    fn connect(&self, _volume: VolumeId, handle: Handle) -> Local<Option<Pass>> {
        std::future::ready(Some(Pass { handle, connection: 2 })).boxed_local()
    }

    fn disconnect(&self, _volume: VolumeId, _pass: Pass) {}
}

pub(crate) fn somebody() -> Principal {
    Principal(Rc::from("uid:7"))
}

/// Somebody at a volume that nobody is attached to.
pub(crate) fn entrant() -> Entrant {
    Entrant { principal: somebody(), pass: None }
}

/// A volume that is a vector of bytes. It answers at once, or, held back, when told to.
pub(crate) struct MemoryVolume {
    contents: RefCell<Vec<u8>>,
    sessions: RefCell<BTreeMap<SessionId, Rc<dyn Replies>>>,
    /// Requests as they came in.
    pub(crate) asked: RefCell<Vec<Request>>,
    /// Bursts that ended.
    pub(crate) bursts: Cell<usize>,
    /// Requests are kept until [`MemoryVolume::answer`].
    pub(crate) hold: Cell<bool>,
    /// What every request is refused with, if anything.
    pub(crate) refusal: Cell<Option<Refusal>>,
    held: RefCell<Vec<Request>>,
    /// Nobody serves it before this was told.
    opens: RefCell<Option<tokio::sync::oneshot::Receiver<()>>>,
}

impl MemoryVolume {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            contents: RefCell::new(vec![0; size]),
            sessions: RefCell::default(),
            asked: RefCell::default(),
            bursts: Cell::new(0),
            hold: Cell::new(false),
            refusal: Cell::new(None),
            held: RefCell::default(),
            opens: RefCell::default(),
        }
    }

    /// The next session waits until the sender speaks.
    pub(crate) fn opens_later(&self) -> tokio::sync::oneshot::Sender<()> {
        let (opened, opens) = tokio::sync::oneshot::channel();
        *self.opens.borrow_mut() = Some(opens);
        opened
    }

    /// Ends every session, whatever it has under way.
    pub(crate) fn end_sessions(&self) {
        self.sessions.borrow().values().for_each(|session| session.end());
    }

    pub(crate) fn contents(&self, offset: usize, length: usize) -> Vec<u8> {
        self.contents.borrow()[offset..offset + length].to_vec()
    }

    pub(crate) fn sessions(&self) -> usize {
        self.sessions.borrow().len()
    }

    pub(crate) fn held(&self) -> usize {
        self.held.borrow().len()
    }

    /// Answers held requests, the newest first.
    pub(crate) fn answer(&self, count: usize) {
        for _ in 0..count {
            let request = self.held.borrow_mut().pop().expect("a request is held");
            self.perform(request);
        }
    }

    fn perform(&self, Request { origin, operation }: Request) {
        let outcome = match self.refusal.get() {
            Some(refusal) => Outcome::Refused(refusal),
            None => self.outcome(operation),
        };
        let replies = self.sessions.borrow().get(&origin.session).cloned();
        if let Some(replies) = replies {
            replies.reply(Reply { origin, outcome });
        }
    }

    fn outcome(&self, operation: Operation) -> Outcome {
        let mut contents = self.contents.borrow_mut();
        let range = |offset: u64, length: u64| {
            let start = usize::try_from(offset).unwrap();
            start..start + usize::try_from(length).unwrap()
        };
        match operation {
            Operation::Read { offset, length } => {
                let bytes = &contents[range(offset, u64::from(length))];
                Outcome::Data(bytes.chunks(4096).map(Bytes::copy_from_slice).collect())
            }
            Operation::Write { offset, payload, .. } => {
                contents[range(offset, payload.len() as u64)].copy_from_slice(&payload);
                Outcome::Done
            }
            Operation::Trim { offset, length, .. } | Operation::WriteZeroes { offset, length, .. } => {
                contents[range(offset, length)].fill(0);
                Outcome::Done
            }
            Operation::Barrier | Operation::Prefetch { .. } => Outcome::Done,
            Operation::Status { offset, length, extents_max } => {
                let blocks = contents[range(offset, u64::from(length))].chunks(4096);
                let mut extents: Vec<StatusExtent> = Vec::new();
                for block in blocks {
                    let (length, hole) = (block.len() as u64, block.iter().all(|byte| *byte == 0));
                    match extents.last_mut() {
                        Some(last) if last.hole == hole => last.length += length,
                        _ => extents.push(StatusExtent { length, hole }),
                    }
                }
                extents.truncate(extents_max);
                Outcome::Status(extents)
            }
        }
    }
}

impl Door for MemoryVolume {
    fn size_bytes(&self) -> u64 {
        self.contents.borrow().len() as u64
    }

    fn attach(&self, session: SessionId, _entrant: Entrant, replies: Rc<dyn Replies>) {
        self.sessions.borrow_mut().insert(session, replies);
    }

    fn submit(&self, request: Request) {
        self.asked.borrow_mut().push(request.clone());
        if self.hold.get() {
            self.held.borrow_mut().push(request);
        } else {
            self.perform(request);
        }
    }

    fn end_burst(&self) {
        self.bursts.set(self.bursts.get() + 1);
    }

    fn detach(&self, session: SessionId) {
        self.sessions.borrow_mut().remove(&session);
        self.held.borrow_mut().retain(|request| request.origin.session != session);
    }

    fn opening(&self) -> Option<Local<bool>> {
        self.opens.take().map(|opens| opens.map(|opened| opened.is_ok()).boxed_local())
    }
}
