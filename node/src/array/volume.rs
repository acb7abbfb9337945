//! The array of one volume: its flush, sequence, checkpoints and reclaim, wired to each other.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

use velum_protocol::{
    format::metadata::CloudName,
    id::{Epoch, Seq, VolumeId},
};

use super::{
    checkpoint::{
        machine as checkpoint,
        shell::{CheckpointShell, Waiters},
    },
    compact::{
        machine::{self as compact, Holdings},
        shell::CompactShell,
    },
    context::{ArrayContext, VolumeContext},
    flush::{
        machine as flush,
        shell::{Demands, FlushShell},
    },
    reclaim::{
        machine as reclaim,
        shell::{Older, ReclaimShell},
    },
    sequence::{machine as sequence, shell::SequenceShell},
};
use crate::{
    actor::{self, Handle},
    metadata::state::VolumeState,
    volume::messages::FlushPort,
};

/// The volume does not reach d2 under this owner any more: it was deleted, or another node owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the volume is not flushed by this node any more")]
pub struct Fenced;

/// How exposed a volume is, and what its array is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeArrayStatus {
    /// Bytes that are not in the extent map yet.
    pub dirty_bytes: u64,
    /// Age of the oldest write that is not at d2.
    pub exposed: Option<Duration>,
    /// The newest sequence record.
    pub head: Seq,
    /// The newest one at d2.
    pub durable: Seq,
    /// Where the windows under way stand, oldest first.
    pub windows: Vec<flush::Phase>,
    /// Per cloud.
    pub clouds: BTreeMap<CloudName, CloudLag>,
    /// The newest committed checkpoint; zero for none.
    pub checkpoint: u64,
    /// Objects that wait to be deleted.
    pub condemned: usize,
    /// True when this node may not flush the volume any more.
    pub fenced: bool,
}

/// How far one cloud's copy of a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloudLag {
    /// Its cursor.
    pub cursor: Seq,
    /// Records it lacks.
    pub records: u64,
    /// Bytes of records and segments it lacks, as far as the metadata still lists them.
    pub bytes: u64,
    /// The checkpoint it holds.
    pub checkpoint: u64,
}

struct Wiring {
    flush: OnceCell<Handle<flush::Input>>,
    sequence: OnceCell<Handle<sequence::Input>>,
    checkpoint: OnceCell<Handle<checkpoint::Input>>,
    windows: RefCell<Vec<flush::Phase>>,
    fenced: Cell<bool>,
    older: Rc<Older>,
    holdings: Rc<Cell<Option<Holdings>>>,
}

/// See the module. Lives as long as the `LocalSet` it was started on; dropping this handle stops nothing.
#[derive(Clone)]
pub struct VolumeArray {
    context: VolumeContext,
    demands: Rc<Demands>,
    waiters: Rc<Waiters>,
    wiring: Rc<Wiring>,
}

impl VolumeArray {
    /// Starts the array of a volume that this node owns in `epoch`. The volume's map has taken in every record that the
    /// metadata knows.
    ///
    /// # Errors
    /// When the volume is gone or the epoch is over already.
    pub fn start(
        array: &ArrayContext,
        volume: VolumeId,
        epoch: Epoch,
        port: Rc<dyn FlushPort>,
    ) -> Result<Self, Fenced> {
        let state = array.with_volume(volume, |state| (state.epoch == epoch && !state.deleted).then(|| state.clone()));
        let state = state.flatten().ok_or(Fenced)?;
        let context = VolumeContext::new(array, volume, epoch, port, state.head);
        let own = Self {
            context,
            demands: Rc::default(),
            waiters: Rc::default(),
            wiring: Rc::new(Wiring {
                flush: OnceCell::new(),
                sequence: OnceCell::new(),
                checkpoint: OnceCell::new(),
                windows: RefCell::default(),
                fenced: Cell::new(false),
                older: Rc::default(),
                holdings: Rc::default(),
            }),
        };
        own.start_checkpoints(&state);
        own.start_sequence(&state);
        own.start_flush(&state);
        own.start_reclaim();
        own.start_compaction();
        own.grown();
        Ok(own)
    }

    /// Completes when everything that is at d0 now is at d2.
    ///
    /// # Errors
    /// When this node may not flush the volume any more.
    pub async fn flush(&self) -> Result<(), Fenced> {
        let (demand, answer) = self.demands.enter();
        let status = self.context.port.dirty();
        self.flush_handle().call(flush::Input::Demanded { demand, status });
        match answer.await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(Fenced),
        }
    }

    /// Completes when a checkpoint of everything that is in the sequence now is committed.
    ///
    /// # Errors
    /// When this node may not make one any more.
    pub async fn checkpoint(&self) -> Result<(), Fenced> {
        let answer = self.waiters.enter();
        self.checkpoint_handle().call(checkpoint::Input::Demanded);
        match answer.await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(Fenced),
        }
    }

    /// Asks for a checkpoint and does not wait for it.
    pub fn ask_checkpoint(&self) {
        self.checkpoint_handle().call(checkpoint::Input::Demanded);
    }

    /// Brings everything to a cloud again in which nothing is believed to be any more, and nothing is under way.
    pub fn start_over(&self, cloud: &CloudName) {
        self.wiring.older.forget(cloud);
        self.checkpoint_handle().call(checkpoint::Input::StartOver { cloud: cloud.clone() });
        self.sequence_handle().call(sequence::Input::StartOver { cloud: cloud.clone() });
    }

    /// What the volume's segments hold, as of the last look; none before the first one.
    #[must_use]
    pub fn holdings(&self) -> Option<Holdings> {
        self.wiring.holdings.get()
    }

    /// How exposed the volume is.
    #[must_use]
    pub fn status(&self) -> VolumeArrayStatus {
        let dirty = self.context.port.dirty();
        let now = self.context.array.env.clock.now();
        let mut status = VolumeArrayStatus {
            dirty_bytes: dirty.buffered_bytes,
            exposed: dirty.exposed_since.map(|since| now.since(since)),
            windows: self.wiring.windows.borrow().clone(),
            fenced: self.wiring.fenced.get() || self.context.is_over(),
            ..VolumeArrayStatus::default()
        };
        let (clouds, quorum) = self
            .context
            .array
            .metadata
            .with(|state| (state.clouds.iter().map(|cloud| cloud.name.clone()).collect::<Vec<_>>(), state.quorum));
        self.context.state(|state| {
            status.head = state.head.seq;
            status.durable = state.durable_seq(quorum);
            status.checkpoint = state.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.number);
            status.condemned = state.condemned.len();
            status.clouds = clouds.into_iter().map(|cloud| (cloud.clone(), lag(state, &cloud))).collect();
        });
        status
    }

    fn start_checkpoints(&self, state: &VolumeState) {
        let held = self.per_cloud(|cloud| state.checkpoint_cursors.get(cloud).copied().unwrap_or_default());
        let settings = &self.context.array.settings;
        let triggers = checkpoint::Triggers { records: settings.checkpoint_records, bytes: settings.checkpoint_bytes };
        let newest = state.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.number);
        let machine = checkpoint::Machine::new(triggers, newest, &held);
        let own = self.clone();
        let on_published = Rc::new(move |cloud: &CloudName, seq| {
            own.sequence_handle().call(sequence::Input::Jumped { cloud: cloud.clone(), seq });
        });
        let shell = CheckpointShell::new(self.context.clone(), Rc::clone(&self.waiters), on_published);
        let handle = actor::start(Rc::clone(&self.context.array.env.clock), machine, shell);
        assert!(self.wiring.checkpoint.set(handle).is_ok(), "started once");
    }

    fn start_sequence(&self, state: &VolumeState) {
        let cursors = self.per_cloud(|cloud| state.cursors.get(cloud).copied().unwrap_or_default());
        let machine = sequence::Machine::new(&cursors, self.context.array.copies.clouds().quorum);
        let durable = machine.durable();
        let own = self.clone();
        let on_jump = Rc::new(move |cloud: &CloudName| {
            own.checkpoint_handle().call(checkpoint::Input::JumpAsked { cloud: cloud.clone() });
        });
        let own = self.clone();
        let on_durable = Rc::new(move |seq| own.durable(seq));
        let shell = SequenceShell::new(self.context.clone(), on_jump, on_durable);
        let handle = actor::start(Rc::clone(&self.context.array.env.clock), machine, shell);
        assert!(self.wiring.sequence.set(handle.clone()).is_ok(), "started once");
        handle.call(sequence::Input::Head(state.head.seq));
        self.context.port.durable(state.last_position(durable));
    }

    fn start_flush(&self, state: &VolumeState) {
        let durable = self.context.port.dirty().durable;
        let machine = flush::Machine::new(self.context.array.settings.flush, state.head.last, durable);
        let own = self.clone();
        let on_appended = Rc::new(move |seq| own.appended(seq));
        let wiring = Rc::clone(&self.wiring);
        let on_phases = Rc::new(move |phases: Vec<flush::Phase>, fenced| {
            *wiring.windows.borrow_mut() = phases;
            wiring.fenced.set(fenced);
        });
        let shell = FlushShell::new(self.context.clone(), Rc::clone(&self.demands), on_appended, on_phases);
        let handle = actor::start(Rc::clone(&self.context.array.env.clock), machine, shell);
        assert!(self.wiring.flush.set(handle.clone()).is_ok(), "started once");
        let woken = handle.clone();
        let clock = Rc::clone(&self.context.array.env.clock);
        // Not on the volume's own stack: the wake comes in the middle of its step.
        self.context.port.on_dirty(Rc::new(move || woken.after(&*clock, Duration::ZERO, flush::Input::LookSoon)));
        handle.call(flush::Input::Tick);
    }

    fn start_reclaim(&self) {
        let machine = reclaim::Machine::new(self.context.array.settings.reclaim_grace);
        let own = self.clone();
        let ask_checkpoint = Rc::new(move || own.ask_checkpoint());
        let shell = ReclaimShell::new(self.context.clone(), ask_checkpoint, Rc::clone(&self.wiring.older));
        let handle = actor::start(Rc::clone(&self.context.array.env.clock), machine, shell);
        handle.call(reclaim::Input::Tick);
    }

    fn start_compaction(&self) {
        let settings = &self.context.array.settings;
        let triggers = compact::Triggers {
            live_percent: settings.compact_live_percent,
            // As often as the reclaim looks: what it would delete sooner is not to be had sooner.
            interval: (settings.reclaim_grace / 10).clamp(Duration::from_secs(1), Duration::from_secs(60)),
        };
        let own = self.clone();
        let tell_flush = Rc::new(move |input| own.flush_handle().call(input));
        let shell = CompactShell::new(self.context.clone(), tell_flush, Rc::clone(&self.wiring.holdings));
        let handle = actor::start(Rc::clone(&self.context.array.env.clock), compact::Machine::new(triggers), shell);
        handle.after(&*self.context.array.env.clock, triggers.interval, compact::Input::Tick);
    }

    fn per_cloud<T>(&self, value: impl Fn(&CloudName) -> T) -> BTreeMap<CloudName, T> {
        let clouds = &self.context.array.copies.clouds().clouds;
        clouds.iter().map(|cloud| (cloud.name().clone(), value(cloud.name()))).collect()
    }

    /// A record is in the sequence.
    fn appended(&self, seq: Seq) {
        self.sequence_handle().call(sequence::Input::Head(seq));
        self.grown();
    }

    /// Tells the checkpoints how much has come since the last one. A map that holds too much that it cannot evict counts as
    /// enough, however few records there are.
    fn grown(&self) {
        let since = self.context.state(|state| {
            let seq = state.checkpoint.as_ref().map_or(Seq(0), |checkpoint| checkpoint.seq);
            let bytes: usize = state.records.range(seq.next()..).map(|(_, record)| record.record.len()).sum();
            (state.head.seq.0.saturating_sub(seq.0), u64::try_from(bytes).unwrap_or(u64::MAX))
        });
        let mut wanted = false;
        self.context.port.with_map(&mut |map| wanted = map.wants_checkpoint());
        if let Some((records, bytes)) = since {
            let records = if wanted { u64::MAX } else { records };
            self.checkpoint_handle().call(checkpoint::Input::Grown { records, bytes });
        }
    }

    /// Enough clouds have passed a record.
    fn durable(&self, seq: Seq) {
        let before = self.context.port.dirty();
        let Some(last) = self.context.state(|state| state.last_position(seq)) else { return };
        self.context.port.durable(last);
        // A compaction's record exposed nothing.
        if let Some(since) = before.exposed_since.filter(|_| last > before.durable) {
            let age = self.context.array.env.clock.now().since(since);
            self.context.array.metrics.flush.exposed_seconds.observe(age.as_secs_f64());
        }
        self.flush_handle().call(flush::Input::Durable { last });
    }

    fn flush_handle(&self) -> &Handle<flush::Input> {
        self.wiring.flush.get().expect("started with the array")
    }

    fn sequence_handle(&self) -> &Handle<sequence::Input> {
        self.wiring.sequence.get().expect("started with the array")
    }

    fn checkpoint_handle(&self) -> &Handle<checkpoint::Input> {
        self.wiring.checkpoint.get().expect("started with the array")
    }
}

fn lag(state: &VolumeState, cloud: &CloudName) -> CloudLag {
    let cursor = state.cursors.get(cloud).copied().unwrap_or_default();
    let bytes = state.records.range(cursor.next()..).map(|(_, record)| {
        let segments: u64 = record.objects.iter().map(|object| object.bytes).sum();
        segments.saturating_add(u64::try_from(record.record.len()).unwrap_or(u64::MAX))
    });
    CloudLag {
        cursor,
        records: state.head.seq.0.saturating_sub(cursor.0),
        bytes: bytes.sum(),
        checkpoint: state.checkpoint_cursors.get(cloud).copied().unwrap_or_default(),
    }
}
