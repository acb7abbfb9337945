//! Brings every cloud's copy of a volume's sequence up to the head, each at its own pace.
//!
//! Per cloud: records are stored in order, each after the objects it names; then its cursor is moved through Raft. A cloud
//! that fails is tried again after a pause that grows. A cloud that needs a record which Raft no longer keeps jumps: it is
//! given the newest checkpoint with all that it names, and goes on behind it.
//!
//! Invariants:
//! * A cloud's cursor never passes a record that is not stored there with everything before it and all that it names.
//! * d2 is what the cursors of enough clouds have passed; it never goes back, whatever becomes of those clouds afterwards.
//!
//! After a crash every cloud goes on from the cursor that Raft has; storing a record once more stores the same bytes. A cloud
//! that was emptied starts over, and is given everything again in the same ways.

use std::{collections::BTreeMap, time::Duration};

use velum_protocol::{format::metadata::CloudName, id::Seq};

use crate::{actor, env::Instant};

/// First pause after a failure.
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// Longest pause after failures.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Records one step brings to a cloud: their objects go there side by side, so that a cloud catches up at its bandwidth.
pub const RECORDS_PER_STEP: u64 = 16;

/// How a step towards the head ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All records up to here are there, with all that they name.
    Through(Seq),
    /// The cloud, or every source of what it lacks, failed; some records may be there.
    Failed {
        /// Records up to here are there.
        through: Seq,
    },
    /// The next record is not kept any more, or what it names is reclaimed.
    Unreachable,
}

/// A message, a completion or a timer.
#[derive(Clone, Debug)]
pub enum Input {
    /// The sequence reaches up to here.
    Head(Seq),
    /// A step's end.
    Stepped {
        /// Which cloud.
        cloud: CloudName,
        /// How it ended.
        outcome: Outcome,
    },
    /// Raft has moved a cursor.
    Moved {
        /// Which cloud.
        cloud: CloudName,
        /// To where.
        seq: Seq,
    },
    /// Raft could not be asked, or said no; it is asked again with the next record.
    NotMoved {
        /// Which cloud.
        cloud: CloudName,
    },
    /// The pause after a failure is over, or there is news that makes waiting pointless.
    Retry {
        /// Which cloud.
        cloud: CloudName,
    },
    /// The cloud was given a checkpoint of this seq and all that it names; Raft has moved its cursor.
    Jumped {
        /// Which cloud.
        cloud: CloudName,
        /// The checkpoint's seq.
        seq: Seq,
    },
    /// Nothing is believed to be in the cloud any more, and nothing is under way there.
    StartOver {
        /// Which cloud.
        cloud: CloudName,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Store what the records name, then the records, in order.
    Step {
        /// Where.
        cloud: CloudName,
        /// The first record to bring there.
        from: Seq,
        /// The last one.
        through: Seq,
    },
    /// Move the cursor through Raft.
    Move {
        /// Whose.
        cloud: CloudName,
        /// To where.
        seq: Seq,
    },
    /// Step with [`Input::Retry`] after a pause.
    Pause {
        /// For which cloud.
        cloud: CloudName,
        /// How long.
        pause: Duration,
    },
    /// Give the cloud the newest checkpoint; [`Input::Jumped`] comes when it is there.
    Jump {
        /// Which cloud.
        cloud: CloudName,
    },
    /// Everything up to here is at d2.
    Durable(Seq),
}

/// What a cloud is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// At the head.
    Idle,
    /// Records are on their way.
    Stepping,
    /// Waits after a failure.
    Pausing,
    /// Waits for a checkpoint.
    Jumping,
}

#[derive(Debug)]
struct Cursor {
    phase: Phase,
    /// Records up to here are there with all that they name.
    stored: Seq,
    /// As far as Raft knows.
    moved: Seq,
    moving: bool,
    failures: u32,
}

/// The sequence of one volume in all clouds.
#[derive(Debug)]
pub struct Machine {
    head: Seq,
    quorum: usize,
    durable: Seq,
    cursors: BTreeMap<CloudName, Cursor>,
}

impl Machine {
    /// Clouds with the cursors that Raft has for them.
    #[must_use]
    pub fn new(cursors: &BTreeMap<CloudName, Seq>, quorum: usize) -> Self {
        let cursors: BTreeMap<_, _> = cursors
            .iter()
            .map(|(cloud, seq)| {
                let cursor = Cursor { phase: Phase::Idle, stored: *seq, moved: *seq, moving: false, failures: 0 };
                (cloud.clone(), cursor)
            })
            .collect();
        let mut machine = Self { head: Seq(0), quorum, durable: Seq(0), cursors };
        machine.durable = machine.passed_by_quorum();
        machine.head = machine.cursors.values().map(|cursor| cursor.moved).max().unwrap_or_default();
        machine
    }

    /// What is at d2.
    #[must_use]
    pub const fn durable(&self) -> Seq {
        self.durable
    }

    /// Each cloud's phase and cursor.
    pub fn cursors(&self) -> impl Iterator<Item = (&CloudName, Phase, Seq)> {
        self.cursors.iter().map(|(cloud, cursor)| (cloud, cursor.phase, cursor.moved))
    }

    fn passed_by_quorum(&self) -> Seq {
        let mut moved: Vec<Seq> = self.cursors.values().map(|cursor| cursor.moved).collect();
        moved.sort_unstable_by(|left, right| right.cmp(left));
        self.quorum.checked_sub(1).and_then(|place| moved.get(place).copied()).unwrap_or_default()
    }

    /// Starts whatever each cloud can do next.
    fn go_on(&mut self, effects: &mut Vec<Effect>) {
        for (cloud, cursor) in &mut self.cursors {
            if cursor.stored > cursor.moved && !cursor.moving {
                cursor.moving = true;
                effects.push(Effect::Move { cloud: cloud.clone(), seq: cursor.stored });
            }
            if cursor.phase == Phase::Idle && cursor.stored < self.head {
                cursor.phase = Phase::Stepping;
                let from = cursor.stored.next();
                let through = self.head.min(Seq(cursor.stored.0.saturating_add(RECORDS_PER_STEP)));
                effects.push(Effect::Step { cloud: cloud.clone(), from, through });
            }
        }
        let durable = self.passed_by_quorum();
        if durable > self.durable {
            self.durable = durable;
            effects.push(Effect::Durable(durable));
        }
    }

    fn stepped(&mut self, cloud: CloudName, outcome: &Outcome, effects: &mut Vec<Effect>) {
        let Some(cursor) = self.cursors.get_mut(&cloud).filter(|cursor| cursor.phase == Phase::Stepping) else {
            return;
        };
        match *outcome {
            Outcome::Through(seq) => {
                cursor.stored = cursor.stored.max(seq);
                cursor.phase = Phase::Idle;
                cursor.failures = 0;
            }
            Outcome::Failed { through } => {
                let pause = pause(cursor.failures);
                cursor.stored = cursor.stored.max(through);
                cursor.phase = Phase::Pausing;
                cursor.failures = cursor.failures.saturating_add(1);
                effects.push(Effect::Pause { cloud, pause });
            }
            Outcome::Unreachable => {
                cursor.phase = Phase::Jumping;
                effects.push(Effect::Jump { cloud });
            }
        }
    }

    fn check(&self) {
        for cursor in self.cursors.values() {
            assert!(cursor.moved <= cursor.stored, "a cursor never passes what is stored");
            assert!(cursor.stored <= self.head, "no cloud is ahead of the sequence");
        }
        assert!(self.durable <= self.head, "nothing beyond the head is durable");
    }
}

/// Doubles with each failure.
fn pause(failures: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(PAUSE_MAX)
}

impl actor::Machine for Machine {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, _now: Instant, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Head(seq) => self.head = self.head.max(seq),
            Input::Stepped { cloud, outcome } => self.stepped(cloud, &outcome, effects),
            Input::Moved { cloud, seq } => {
                if let Some(cursor) = self.cursors.get_mut(&cloud) {
                    cursor.moving = false;
                    cursor.moved = cursor.moved.max(seq);
                }
            }
            Input::NotMoved { cloud } => {
                // Not asked again at once: Raft's trouble would make a busy loop of it.
                if let Some(cursor) = self.cursors.get_mut(&cloud).filter(|cursor| cursor.moving) {
                    effects.push(Effect::Pause { cloud, pause: pause(cursor.failures) });
                    cursor.failures = cursor.failures.saturating_add(1);
                }
            }
            Input::Retry { cloud } => {
                if let Some(cursor) = self.cursors.get_mut(&cloud) {
                    cursor.moving = false;
                    if cursor.phase == Phase::Pausing {
                        cursor.phase = Phase::Idle;
                    }
                }
            }
            Input::Jumped { cloud, seq } => {
                self.head = self.head.max(seq);
                if let Some(cursor) = self.cursors.get_mut(&cloud) {
                    cursor.stored = cursor.stored.max(seq);
                    cursor.moved = cursor.moved.max(seq);
                    cursor.failures = 0;
                    if cursor.phase == Phase::Jumping {
                        cursor.phase = Phase::Idle;
                    }
                }
            }
            Input::StartOver { cloud } => {
                if let Some(cursor) = self.cursors.get_mut(&cloud) {
                    assert!(cursor.phase != Phase::Stepping, "a cloud starts over when nothing is under way there");
                    (cursor.stored, cursor.moved, cursor.failures) = (Seq(0), Seq(0), 0);
                }
            }
        }
        self.go_on(effects);
        self.check();
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
