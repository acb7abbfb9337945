//! Decides when a window is cut off and what happens to it until it is in the sequence.
//!
//! ```text
//! granting -> storing -> stored -> appending -> in the sequence
//!     ^                                |
//!     +-- grant taken back, no room ---+
//! ```
//!
//! Invariants:
//! * Windows are contiguous and enter the sequence in order: only the oldest is appended.
//! * One record is appended at a time, be it a window's or a compaction's.
//! * Nothing leaves the node for a window before gate 3 has let it through, and a window whose grant was taken back asks
//!   again before it is appended.
//! * A window that was cut off stays here until it is in the sequence or this owner is fenced; nothing is given up.
//!
//! Nothing here is stored: after a crash the journal gives the windows again, and objects stored for the lost ones are
//! orphans of an epoch that is over.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use velum_protocol::{
    format::{location::Frame, metadata::ObjectRef},
    id::{Jseq, Seq},
};

use crate::{
    actor,
    env::Instant,
    keyring::SealedRecord,
    volume::messages::{DirtyStatus, Window},
};

/// Windows under way at once: while one is being appended the next is sealed and stored.
pub const WINDOWS_MAX: usize = 2;

/// A window is cut off behind another one only at this multiple of the flush threshold: under a steady stream windows
/// grow, and a large window needs fewer requests per byte than small ones (one record and one short segment each).
const BEHIND_FACTOR: u64 = 4;

/// How often the dirty status is looked at when nobody wakes the flush.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// When a flush starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Triggers {
    /// Dirty bytes that start one.
    pub bytes: u64,
    /// Age of the oldest dirty byte that starts one.
    pub interval: Duration,
}

/// Names one window under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Job(pub u64);

/// Names one caller who waits for d2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Demand(pub u64);

/// A segment that enough clouds hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSegment {
    /// Number, length and hash.
    pub object: ObjectRef,
    /// Where each of its frames lies.
    pub frames: Vec<Frame>,
}

/// What gate 3 said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granted {
    /// It may go on under this grant.
    Allowed(u64),
    /// Not now; ask again later.
    Refused,
    /// This node is not the owner any more, or the volume is deleted.
    Fenced,
}

/// How an append went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// In the sequence, and the volume knows.
    Done {
        /// The record's place.
        seq: Seq,
    },
    /// The grant was taken back; the record is as it was.
    GrantGone,
    /// There is no room for records until checkpoints are made; the record is as it was.
    NoRoom,
    /// Another owner's record stands there, or this node is not the owner any more.
    Fenced,
}

/// How the append of a compaction's record went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relocated {
    /// In the sequence, and the volume knows.
    Done {
        /// The record's place.
        seq: Seq,
    },
    /// Nothing was left to move, or it may not be appended now. It is not tried again: a later compaction finds the blocks.
    GivenUp,
    /// Another owner's record stands there, or this node is not the owner any more.
    Fenced,
}

/// A message, a completion or a timer.
#[derive(Debug)]
pub enum Input {
    /// What the volume has; read by the shell on a wake, on a timer and after each step of a window.
    Looked(DirtyStatus),
    /// The interval's timer.
    Tick,
    /// The short timer's.
    LookSoon,
    /// Someone waits until everything at d0 now is at d2.
    Demanded {
        /// Who.
        demand: Demand,
        /// What is at d0 now, and what at d2.
        status: DirtyStatus,
    },
    /// The window cut off; none when there was nothing.
    Frozen(Option<Arc<Window>>),
    /// Gate 3's answer.
    Granted {
        /// For which window.
        job: Job,
        /// What it said.
        outcome: Granted,
    },
    /// The pause after a refusal is over.
    AskAgain {
        /// For which window.
        job: Job,
    },
    /// All segments of a window are stored on enough clouds.
    Stored {
        /// Of which window.
        job: Job,
        /// The segments, in block order.
        segments: Vec<StoredSegment>,
    },
    /// The window's record is sealed; it stays the same bytes from now on.
    RecordSealed {
        /// Of which window.
        job: Job,
        /// The record.
        record: SealedRecord,
    },
    /// The append's end.
    Appended {
        /// Of which window.
        job: Job,
        /// How it went.
        outcome: Appended,
    },
    /// Everything up to here is at d2.
    Durable {
        /// The last position.
        last: Jseq,
    },
    /// A compaction has stored what it moves and wants its record appended.
    RelocationOffered,
    /// The end of the append of a compaction's record.
    Relocated {
        /// How it went.
        outcome: Relocated,
    },
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Read the dirty status and come back with it.
    Look,
    /// Step with [`Input::LookSoon`] in a moment.
    LookSoon,
    /// Cut off a window and come back with it.
    Freeze,
    /// Ask gate 3.
    Ask {
        /// For which window.
        job: Job,
    },
    /// Step with [`Input::AskAgain`] after a pause.
    Pause {
        /// For which window.
        job: Job,
    },
    /// Seal the window into segments and store them.
    Store {
        /// Which window.
        job: Job,
        /// Its contents.
        window: Arc<Window>,
    },
    /// Seal the window's record, unless that is done, and append it.
    Append {
        /// Which window.
        job: Job,
        /// Its contents.
        window: Arc<Window>,
        /// The segments that hold it.
        segments: Vec<StoredSegment>,
        /// Its record, when it was sealed for an earlier attempt.
        record: Option<SealedRecord>,
        /// The grant to append under.
        grant: u64,
    },
    /// Append the record of the compaction that was offered.
    Relocate,
    /// Nobody takes the compaction that was offered.
    DropRelocation,
    /// Tell who waits: d2 is reached, or it never will be by this owner.
    Answer {
        /// Who.
        demand: Demand,
        /// True when d2 is reached.
        durable: bool,
    },
    /// Show where the windows stand.
    Show {
        /// Oldest first.
        phases: Vec<Phase>,
        /// This owner may not flush any more.
        fenced: bool,
    },
    /// Step with [`Input::Tick`] after [`LOOK_INTERVAL`].
    ArmTick,
}

/// Where a window stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Gate 3 is asked, or will be after a pause.
    Granting,
    /// Segments are sealed and stored.
    Storing,
    /// Stored; waits for the windows before it.
    Stored,
    /// The record goes through Raft.
    Appending,
}

/// Where the record of a compaction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offer {
    /// There is none.
    None,
    /// It waits for its turn.
    Waiting {
        /// A window went before it.
        passed_over: bool,
    },
    /// It goes through Raft.
    Appending,
}

#[derive(Debug)]
struct Flight {
    job: Job,
    window: Arc<Window>,
    phase: Phase,
    grant: Option<u64>,
    segments: Option<Vec<StoredSegment>>,
    record: Option<SealedRecord>,
}

/// The flush of one volume.
#[derive(Debug)]
pub struct Machine {
    triggers: Triggers,
    status: DirtyStatus,
    /// The last position that a window under way or done has taken.
    taken: Jseq,
    durable: Jseq,
    flights: VecDeque<Flight>,
    freezing: bool,
    offer: Offer,
    /// Callers and what they wait for, in no order.
    demands: Vec<(Demand, Jseq)>,
    next_job: u64,
    fenced: bool,
}

impl Machine {
    /// A flush that goes on behind `last`, the last position in the sequence; everything up to `durable` is at d2.
    #[must_use]
    pub fn new(triggers: Triggers, last: Jseq, durable: Jseq) -> Self {
        Self {
            triggers,
            status: DirtyStatus::default(),
            taken: last,
            durable,
            flights: VecDeque::new(),
            freezing: false,
            offer: Offer::None,
            demands: Vec::new(),
            next_job: 1,
            fenced: false,
        }
    }

    fn phases(&self) -> impl Iterator<Item = Phase> {
        self.flights.iter().map(|flight| flight.phase)
    }

    /// True when this owner may not flush any more.
    #[must_use]
    pub const fn is_fenced(&self) -> bool {
        self.fenced
    }

    fn flight(&mut self, job: Job) -> Option<&mut Flight> {
        self.flights.iter_mut().find(|flight| flight.job == job)
    }

    fn demand(&mut self, demand: Demand, status: DirtyStatus, effects: &mut Vec<Effect>) {
        self.status = status;
        self.durable = self.durable.max(status.durable);
        self.demands.push((demand, status.last));
        self.answer_demands(effects);
    }

    fn frozen(&mut self, window: Option<Arc<Window>>, effects: &mut Vec<Effect>) {
        self.freezing = false;
        let Some(window) = window else { return };
        assert_eq!(window.first, self.taken.next(), "windows are contiguous");
        self.taken = window.last;
        let job = Job(self.next_job);
        self.next_job += 1;
        effects.push(Effect::Ask { job });
        effects.push(Effect::Look);
        self.flights.push_back(Flight {
            job,
            window,
            phase: Phase::Granting,
            grant: None,
            segments: None,
            record: None,
        });
    }

    fn granted(&mut self, job: Job, outcome: Granted, effects: &mut Vec<Effect>) {
        let Some(flight) = self.flight(job).filter(|flight| flight.phase == Phase::Granting) else { return };
        match outcome {
            Granted::Allowed(grant) => {
                flight.grant = Some(grant);
                if flight.segments.is_some() {
                    // The grant before was taken back; what it let through is stored already.
                    flight.phase = Phase::Stored;
                } else {
                    flight.phase = Phase::Storing;
                    effects.push(Effect::Store { job, window: Arc::clone(&flight.window) });
                }
            }
            Granted::Refused => effects.push(Effect::Pause { job }),
            Granted::Fenced => self.fence(effects),
        }
    }

    fn appended(&mut self, job: Job, outcome: Appended, effects: &mut Vec<Effect>) {
        let Some(flight) = self.flight(job).filter(|flight| flight.phase == Phase::Appending) else { return };
        match outcome {
            Appended::Done { .. } => {
                let done = self.flights.pop_front().expect("the window appended is the oldest");
                assert_eq!(done.job, job, "only the oldest window is appended");
                effects.push(Effect::Look);
            }
            Appended::GrantGone => {
                flight.phase = Phase::Granting;
                flight.grant = None;
                effects.push(Effect::Ask { job });
            }
            Appended::NoRoom => {
                flight.phase = Phase::Granting;
                flight.grant = None;
                effects.push(Effect::Pause { job });
            }
            Appended::Fenced => self.fence(effects),
        }
    }

    /// This owner can do nothing more. The windows stay in the journal; the next owner finds them there.
    fn fence(&mut self, effects: &mut Vec<Effect>) {
        self.fenced = true;
        self.flights.clear();
        if matches!(self.offer, Offer::Waiting { .. }) {
            effects.push(Effect::DropRelocation);
        }
        self.offer = Offer::None;
        effects.extend(self.demands.drain(..).map(|(demand, _)| Effect::Answer { demand, durable: false }));
    }

    fn answer_demands(&mut self, effects: &mut Vec<Effect>) {
        let durable = self.durable;
        self.demands.retain(|(demand, last)| {
            if *last <= durable {
                effects.push(Effect::Answer { demand: *demand, durable: true });
            }
            *last > durable
        });
    }

    /// Appends what is next, one record at a time: the oldest window once it is stored, or a compaction between two windows.
    /// Windows go first, but not two of them. A window whose record is sealed has its place in the sequence, and the record
    /// would not fit behind another one.
    fn append_next(&mut self, effects: &mut Vec<Effect>) {
        let oldest = self.flights.front().map(|flight| (flight.phase, flight.record.is_some()));
        let (stored, placed) = oldest.map_or((false, false), |(phase, placed)| (phase == Phase::Stored, placed));
        let busy = self.offer == Offer::Appending || oldest.is_some_and(|(phase, _)| phase == Phase::Appending);
        match self.offer {
            _ if busy => {}
            Offer::Waiting { passed_over } if !placed && (passed_over || !stored) => {
                self.offer = Offer::Appending;
                effects.push(Effect::Relocate);
            }
            Offer::Waiting { .. } if stored => {
                self.offer = Offer::Waiting { passed_over: true };
                self.append_oldest(effects);
            }
            _ if stored => self.append_oldest(effects),
            _ => {}
        }
    }

    fn append_oldest(&mut self, effects: &mut Vec<Effect>) {
        let Some(flight) = self.flights.front_mut() else { return };
        flight.phase = Phase::Appending;
        effects.push(Effect::Append {
            job: flight.job,
            window: Arc::clone(&flight.window),
            segments: flight.segments.clone().expect("a stored window has its segments"),
            record: flight.record.clone(),
            grant: flight.grant.expect("a window is stored under a grant"),
        });
    }

    fn freeze_when_due(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.freezing || self.flights.len() >= WINDOWS_MAX || self.status.last <= self.taken {
            return;
        }
        let bytes = if self.flights.is_empty() {
            self.triggers.bytes
        } else {
            self.triggers.bytes.saturating_mul(BEHIND_FACTOR)
        };
        let old = self.status.oldest.is_some_and(|oldest| now.since(oldest) >= self.triggers.interval);
        let demanded = self.demands.iter().any(|(_, last)| *last > self.taken);
        if self.status.bytes >= bytes || old || demanded || self.status.short {
            self.freezing = true;
            effects.push(Effect::Freeze);
        }
    }

    fn relocated(&mut self, outcome: Relocated, effects: &mut Vec<Effect>) {
        assert_eq!(self.offer, Offer::Appending, "what was offered is appended once");
        self.offer = Offer::None;
        if outcome == Relocated::Fenced {
            self.fence(effects);
        }
    }

    fn check(&self) {
        assert!(self.flights.len() <= WINDOWS_MAX, "no more windows are under way than allowed");
        let appending = self.flights.iter().skip(1).any(|flight| flight.phase == Phase::Appending);
        assert!(!appending, "only the oldest window is appended");
        let oldest = self.flights.front().is_some_and(|flight| flight.phase == Phase::Appending);
        assert!(!oldest || self.offer != Offer::Appending, "one record is appended at a time");
        assert!(!self.fenced || self.flights.is_empty(), "a fenced owner has nothing under way");
    }
}

impl actor::Machine for Machine {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        if self.fenced {
            match input {
                Input::Demanded { demand, .. } => effects.push(Effect::Answer { demand, durable: false }),
                Input::RelocationOffered => effects.push(Effect::DropRelocation),
                _ => {}
            }
            return;
        }
        let before: Vec<Phase> = self.phases().collect();
        match input {
            Input::Looked(status) => self.status = status,
            Input::Tick => effects.extend([Effect::Look, Effect::ArmTick]),
            Input::LookSoon => effects.push(Effect::Look),
            Input::Demanded { demand, status } => self.demand(demand, status, effects),
            Input::Frozen(window) => {
                if window.is_none() {
                    // A burst is under way, or the journal is poisoned. The next look tells; until then nothing is due.
                    self.status = DirtyStatus { last: self.taken, ..self.status };
                    effects.push(Effect::LookSoon);
                }
                self.frozen(window, effects);
            }
            Input::Granted { job, outcome } => self.granted(job, outcome, effects),
            Input::AskAgain { job } => {
                if self.flight(job).is_some_and(|flight| flight.phase == Phase::Granting) {
                    effects.push(Effect::Ask { job });
                }
            }
            Input::Stored { job, segments } => {
                if let Some(flight) = self.flight(job).filter(|flight| flight.phase == Phase::Storing) {
                    flight.segments = Some(segments);
                    flight.phase = Phase::Stored;
                }
            }
            Input::RecordSealed { job, record } => {
                if let Some(flight) = self.flight(job) {
                    flight.record = Some(record);
                }
            }
            Input::Appended { job, outcome } => self.appended(job, outcome, effects),
            Input::Durable { last } => {
                self.durable = self.durable.max(last);
                self.answer_demands(effects);
            }
            Input::RelocationOffered => {
                assert_eq!(self.offer, Offer::None, "one compaction is offered at a time");
                self.offer = Offer::Waiting { passed_over: false };
            }
            Input::Relocated { outcome } => self.relocated(outcome, effects),
        }
        if !self.fenced {
            self.append_next(effects);
            self.freeze_when_due(now, effects);
        }
        let phases: Vec<Phase> = self.phases().collect();
        if phases != before || self.fenced {
            effects.push(Effect::Show { phases, fenced: self.fenced });
        }
        self.check();
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
