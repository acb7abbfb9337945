//! A volume as the array sees it, without guests: a dirty buffer over a journal that survives crashes.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;
use velum_node::{
    env::{Clock, Instant},
    extent::ExtentMap,
    volume::messages::{Change, Committed, DirtyStatus, FlushPort, Moved, Relocated, Window},
};
use velum_protocol::{
    checksum,
    id::{BlockCount, BlockIndex, Epoch, Hash, Jseq, VolumeId},
};

/// One write of the guest: new contents of a block, or none for a trim.
pub(crate) type Write = (BlockIndex, Option<Bytes>);

/// What survives a crash: every write ever made. Positions count from one.
#[derive(Default)]
pub(crate) struct Journal {
    pub(crate) writes: RefCell<Vec<Write>>,
    pub(crate) trimmed: Cell<Jseq>,
}

impl Journal {
    pub(crate) fn last(&self) -> Jseq {
        Jseq(self.writes.borrow().len() as u64)
    }

    /// What the volume holds after all writes up to `last`.
    pub(crate) fn image(&self, last: Jseq) -> BTreeMap<BlockIndex, Bytes> {
        let mut image = BTreeMap::new();
        for (block, contents) in self.writes.borrow().iter().take(usize::try_from(last.0).unwrap()) {
            match contents {
                Some(contents) => image.insert(*block, contents.clone()),
                None => image.remove(block),
            };
        }
        image
    }

    /// The journal's chain hash at a position: any function of the writes up to it will do.
    pub(crate) fn chain(last: Jseq) -> Hash {
        checksum::hash(&last.0.to_le_bytes())
    }
}

pub(crate) struct Port {
    volume: VolumeId,
    epoch: Epoch,
    clock: Rc<dyn Clock>,
    pub(crate) journal: Rc<Journal>,
    active: RefCell<BTreeMap<BlockIndex, Option<Bytes>>>,
    /// First position of the active window.
    first: Cell<Jseq>,
    since: Cell<Option<Instant>>,
    frozen: RefCell<VecDeque<Arc<Window>>>,
    pub(crate) map: RefCell<ExtentMap>,
    /// Compactions that moved something.
    pub(crate) relocations: Cell<u64>,
    durable: Cell<Jseq>,
    wake: RefCell<Option<Rc<dyn Fn()>>>,
}

impl Port {
    /// A volume whose map has taken in everything up to `last`; later writes are dirty again.
    pub(crate) fn open(
        volume: VolumeId,
        epoch: Epoch,
        clock: Rc<dyn Clock>,
        journal: Rc<Journal>,
        map: ExtentMap,
        last: Jseq,
    ) -> Rc<Self> {
        let port = Self {
            volume,
            epoch,
            clock,
            journal: Rc::clone(&journal),
            active: RefCell::default(),
            first: Cell::new(last.next()),
            since: Cell::default(),
            frozen: RefCell::default(),
            map: RefCell::new(map),
            relocations: Cell::default(),
            durable: Cell::default(),
            wake: RefCell::default(),
        };
        for (block, contents) in journal.writes.borrow().iter().skip(usize::try_from(last.0).unwrap()) {
            port.active.borrow_mut().insert(*block, contents.clone());
            port.since.set(Some(port.clock.now()));
        }
        assert!(journal.trimmed.get() <= last, "nothing that is not in the sequence was trimmed");
        Rc::new(port)
    }

    pub(crate) fn write(&self, block: u64, contents: Option<Bytes>) {
        self.journal.writes.borrow_mut().push((BlockIndex(block), contents.clone()));
        self.active.borrow_mut().insert(BlockIndex(block), contents);
        if self.since.get().is_none() {
            self.since.set(Some(self.clock.now()));
        }
    }

    pub(crate) fn wake(&self) {
        let wake = self.wake.borrow().clone();
        if let Some(wake) = wake {
            wake();
        }
    }

    pub(crate) fn durable_last(&self) -> Jseq {
        self.durable.get()
    }
}

impl FlushPort for Port {
    fn dirty(&self) -> DirtyStatus {
        let bytes = self.active.borrow().len() as u64 * 4096;
        DirtyStatus {
            bytes,
            oldest: self.since.get(),
            buffered_bytes: bytes,
            exposed_since: self.since.get(),
            last: self.journal.last(),
            durable: self.durable.get(),
            short: false,
        }
    }

    fn freeze(&self) -> Option<Arc<Window>> {
        let active = std::mem::take(&mut *self.active.borrow_mut());
        if active.is_empty() {
            return None;
        }
        self.since.set(None);
        let last = self.journal.last();
        let change = |(block, contents): (BlockIndex, Option<Bytes>)| match contents {
            Some(contents) => Change::Data { block, contents },
            None => Change::Unmap { start: block, count: BlockCount(1) },
        };
        let window = Arc::new(Window {
            volume: self.volume,
            epoch: self.epoch,
            first: self.first.replace(last.next()),
            last,
            chain: Journal::chain(last),
            changes: active.into_iter().map(change).collect(),
        });
        self.frozen.borrow_mut().push_back(Arc::clone(&window));
        Some(window)
    }

    fn committed(&self, committed: Committed) {
        let window = self.frozen.borrow_mut().pop_front().expect("a window was frozen");
        assert_eq!(window.last, committed.last, "windows are committed in order");
        let mut map = self.map.borrow_mut();
        committed.segments.iter().for_each(|segment| map.add_segment(segment));
        committed.updates.iter().for_each(|update| map.apply(update).unwrap());
    }

    fn relocated(&self, relocated: Relocated) {
        let mut map = self.map.borrow_mut();
        for Moved { block, from, .. } in &relocated.moved {
            let mut now = Vec::new();
            // A page that is away cannot be asked here.
            if map.lookup(*block, 1, &mut now).is_ok() {
                assert_eq!(
                    now[0].location.as_ref(),
                    Some(from),
                    "block {block} does not lie where it was found any more"
                );
            }
        }
        self.relocations.set(self.relocations.get() + 1);
        map.add_segment(&relocated.segment);
        relocated.updates.iter().for_each(|update| map.apply(update).unwrap());
    }

    fn durable(&self, last: Jseq) {
        self.durable.set(self.durable.get().max(last));
        self.journal.trimmed.set(self.journal.trimmed.get().max(last));
    }

    fn on_dirty(&self, wake: Rc<dyn Fn()>) {
        *self.wake.borrow_mut() = Some(wake);
    }

    fn with_map(&self, read: &mut dyn FnMut(&mut ExtentMap)) {
        read(&mut self.map.borrow_mut());
    }
}
