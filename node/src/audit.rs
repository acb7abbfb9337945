//! What the gates decided: who asked for what of which volume, and the answer.
//!
//! Each of the three gates reports here. A refusal is always recorded, once, by the gate that made it; an allowed
//! attach or flush grant is recorded too. Allowed requests on the data path are only counted, for a record per write
//! would cost more than the write.
//!
//! Memory is bounded: the newest [`AUDIT_RECORDS_MAX`] records are kept for the admin interface and for checkers, the
//! counters are exact for the life of the node. Log lines pass a [`Throttle`], so that a guest that is refused a million
//! times cannot fill a disk; the line after a pause says how many were held back. Names and bytes that a guest sent are
//! never logged.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use velum_protocol::id::VolumeId;

use crate::{
    env::{Clock, Instant},
    limits::{AUDIT_RECORDS_MAX, LOG_LINES_BURST_MAX, LOG_LINES_INTERVAL},
    metrics::{Label, Metrics},
};

pub use crate::metrics::Gate;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// To learn about a volume without using it.
    Inspect,
    /// To open a session on a volume.
    Attach,
    /// To read, prefetch or ask for the status of a range.
    Read,
    /// To write, trim or zero a range, or to have one durable.
    Write,
    /// To seal dirty extents and move them to the clouds.
    Flush,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It may go on.
    Allowed,
    /// It went no further and changed nothing.
    Refused,
}

/// The bytes of a volume that a request named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// One decision of one gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When, on the node's clock.
    pub at: Instant,
    /// Which gate.
    pub gate: Gate,
    /// Who asked: a principal as ACLs name it, or a node for gate 3.
    pub who: Rc<str>,
    /// What was asked.
    pub action: Action,
    /// Of which volume; none when the name that was given belongs to no volume.
    pub volume: Option<VolumeId>,
    /// Which bytes of it, when the request named some.
    pub range: Option<ByteRange>,
    /// The answer.
    pub verdict: Verdict,
}

/// Decisions of one gate since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Allowed, counting data-path requests.
    pub allowed: u64,
    /// Refused.
    pub refused: u64,
}

/// Where gates report. One per node.
pub struct Audit {
    clock: Rc<dyn Clock>,
    metrics: Arc<Metrics>,
    counts: [Cell<Counts>; Gate::ALL.len()],
    records: RefCell<VecDeque<Record>>,
    throttle: Throttle,
}

impl Audit {
    /// An empty audit trail.
    #[must_use]
    pub fn new(clock: Rc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Self { clock, metrics, counts: Default::default(), records: RefCell::default(), throttle: Throttle::default() }
    }

    /// Counts `requests` that a gate let through on the data path, without a record of each.
    pub fn passed(&self, gate: Gate, requests: u64) {
        self.count(gate, |counts| counts.allowed = counts.allowed.saturating_add(requests));
    }

    /// Records an allowed decision.
    pub fn allowed(&self, gate: Gate, who: &Rc<str>, action: Action, volume: VolumeId, range: Option<ByteRange>) {
        self.passed(gate, 1);
        self.keep(gate, who, action, Some(volume), range, Verdict::Allowed);
    }

    /// Records a refusal. The gate that refuses calls this exactly once per refused request.
    pub fn refused(
        &self,
        gate: Gate,
        who: &Rc<str>,
        action: Action,
        volume: Option<VolumeId>,
        range: Option<ByteRange>,
    ) {
        self.count(gate, |counts| counts.refused = counts.refused.saturating_add(1));
        self.metrics.refusals.of(gate).inc();
        self.keep(gate, who, action, volume, range, Verdict::Refused);
    }

    /// Decisions of a gate so far.
    #[must_use]
    pub fn counts(&self, gate: Gate) -> Counts {
        self.counts.get(gate.index()).map(Cell::get).unwrap_or_default()
    }

    /// The newest records, oldest first.
    #[must_use]
    pub fn recent(&self) -> Vec<Record> {
        self.records.borrow().iter().cloned().collect()
    }

    fn count(&self, gate: Gate, change: impl FnOnce(&mut Counts)) {
        if let Some(cell) = self.counts.get(gate.index()) {
            let mut counts = cell.get();
            change(&mut counts);
            cell.set(counts);
        }
    }

    fn keep(
        &self,
        gate: Gate,
        who: &Rc<str>,
        action: Action,
        volume: Option<VolumeId>,
        range: Option<ByteRange>,
        verdict: Verdict,
    ) {
        let at = self.clock.now();
        let record = Record { at, gate, who: Rc::clone(who), action, volume, range, verdict };
        if let Some(held_back) = self.throttle.admit(at) {
            match verdict {
                Verdict::Allowed => tracing::info!(%record, held_back, "gate decision"),
                Verdict::Refused => tracing::warn!(%record, held_back, "gate decision"),
            }
        }
        let mut records = self.records.borrow_mut();
        if records.len() >= AUDIT_RECORDS_MAX {
            records.pop_front();
        }
        records.push_back(record);
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gate, who, action, volume, range, verdict, .. } = self;
        write!(f, "gate {} {verdict:?} {action:?} by {who} of ", number(*gate))?;
        match volume {
            Some(volume) => write!(f, "{volume}")?,
            None => f.write_str("no such volume")?,
        }
        match range {
            Some(ByteRange { offset, length }) => write!(f, " bytes {offset}+{length}"),
            None => Ok(()),
        }
    }
}

/// The number the claim knows a gate by.
const fn number(gate: Gate) -> u8 {
    match gate {
        Gate::Volume => 1,
        Gate::Region => 2,
        Gate::Flush => 3,
    }
}

/// Lets a burst of log lines through per interval and counts what it holds back.
#[derive(Debug, Default)]
pub struct Throttle {
    interval: Cell<Option<Instant>>,
    lines: Cell<u32>,
    held_back: Cell<u64>,
}

impl Throttle {
    /// `Some(n)` when a line may be written now, with `n` lines held back since the last one; `None` to hold this one back.
    #[must_use]
    pub fn admit(&self, now: Instant) -> Option<u64> {
        let fresh = self.interval.get().is_none_or(|began| now.since(began) >= LOG_LINES_INTERVAL);
        if fresh {
            self.interval.set(Some(now));
            self.lines.set(0);
        }
        if self.lines.get() >= LOG_LINES_BURST_MAX {
            self.held_back.set(self.held_back.get().saturating_add(1));
            return None;
        }
        self.lines.set(self.lines.get() + 1);
        Some(self.held_back.replace(0))
    }
}

const _: () = assert!(LOG_LINES_BURST_MAX > 0 && AUDIT_RECORDS_MAX > 0);
const _: () = assert!(LOG_LINES_INTERVAL.as_micros() > Duration::ZERO.as_micros());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{Local, WallTime};

    struct Still;

    impl Clock for Still {
        fn now(&self) -> Instant {
            Instant(7)
        }
        fn wall(&self) -> WallTime {
            WallTime(0)
        }
        fn sleep(&self, _duration: Duration) -> Local<()> {
            Box::pin(std::future::pending())
        }
    }

    fn audit() -> (Audit, Rc<str>) {
        (Audit::new(Rc::new(Still), Arc::new(Metrics::new())), Rc::from("uid:7"))
    }

    #[test]
    fn each_refusal_is_one_record_and_one_count_of_its_gate() {
        let (audit, who) = audit();
        let range = ByteRange { offset: 4096, length: 512 };
        audit.refused(Gate::Region, &who, Action::Write, Some(VolumeId([1; 16])), Some(range));
        audit.allowed(Gate::Volume, &who, Action::Attach, VolumeId([1; 16]), None);
        assert_eq!(audit.counts(Gate::Region), Counts { allowed: 0, refused: 1 });
        assert_eq!(audit.counts(Gate::Volume), Counts { allowed: 1, refused: 0 });
        let records = audit.recent();
        assert_eq!(records.len(), 2);
        assert_eq!((records[0].verdict, records[0].range), (Verdict::Refused, Some(range)));
        let line = records[0].to_string();
        assert!(line.contains("gate 2 Refused Write by uid:7") && line.contains("4096+512"), "{line}");
    }

    #[test]
    fn data_path_requests_are_counted_without_records() {
        let (audit, _) = audit();
        audit.passed(Gate::Volume, 32);
        assert_eq!(audit.counts(Gate::Volume).allowed, 32);
        assert!(audit.recent().is_empty());
    }

    #[test]
    fn the_trail_keeps_the_newest_records_and_exact_counts() {
        let (audit, who) = audit();
        for offset in 0..AUDIT_RECORDS_MAX as u64 + 5 {
            audit.refused(Gate::Volume, &who, Action::Read, None, Some(ByteRange { offset, length: 1 }));
        }
        let records = audit.recent();
        assert_eq!(records.len(), AUDIT_RECORDS_MAX);
        assert_eq!(records[0].range.unwrap().offset, 5);
        assert_eq!(audit.counts(Gate::Volume).refused, AUDIT_RECORDS_MAX as u64 + 5);
    }

    #[test]
    fn a_flood_of_lines_is_held_back_and_its_size_told_later() {
        let throttle = Throttle::default();
        let now = Instant(1_000_000);
        for _ in 0..LOG_LINES_BURST_MAX {
            assert_eq!(throttle.admit(now), Some(0));
        }
        assert_eq!(throttle.admit(now), None);
        assert_eq!(throttle.admit(now), None);
        assert_eq!(throttle.admit(now + LOG_LINES_INTERVAL), Some(2));
    }
}
