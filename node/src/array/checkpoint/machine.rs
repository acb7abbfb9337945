//! Decides when the extent map is saved, and brings each cloud's copy of the newest checkpoint about.
//!
//! ```text
//! idle -> writing -> committing -> idle           per cloud: behind -> publishing -> there
//! ```
//!
//! Writing stores the changed pages and the root on enough clouds that hold every record the checkpoint includes. Then Raft
//! commits it, and only then is its stub stored, cloud by cloud, each as soon as it holds all that the checkpoint names.
//!
//! Invariants:
//! * One checkpoint is written at a time.
//! * A stub is stored only for a committed checkpoint, so a number never names two.
//! * A cloud is given the newest checkpoint only; those it missed are skipped.
//!
//! After a crash the draft is lost: its objects are orphans. What is committed is published from the metadata alone.

use std::{collections::BTreeMap, time::Duration};

use velum_protocol::format::metadata::CloudName;

use crate::{actor, env::Instant};

/// Pause after a failed attempt.
const PAUSE: Duration = Duration::from_secs(2);

/// When a checkpoint is made without being asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Triggers {
    /// Records since the last one.
    pub records: u64,
    /// Bytes of sealed records since the last one.
    pub bytes: u64,
}

/// A message, a completion or a timer.
#[derive(Clone, Debug)]
pub enum Input {
    /// What the sequence has beyond the newest checkpoint.
    Grown {
        /// Records.
        records: u64,
        /// Their bytes, sealed.
        bytes: u64,
    },
    /// Somebody wants a checkpoint of what is in the sequence now.
    Demanded,
    /// The draft is on enough clouds.
    Written,
    /// The draft could not be made; it is abandoned.
    NotWritten,
    /// Raft has committed the draft.
    Committed {
        /// Its number.
        number: u64,
    },
    /// Raft refused the draft: this owner's epoch is over, or the volume is gone.
    Refused,
    /// The pause is over.
    TryAgain,
    /// A cloud holds a checkpoint with all that it names.
    Published {
        /// Which cloud.
        cloud: CloudName,
        /// Which checkpoint.
        number: u64,
    },
    /// A cloud could not be given the newest checkpoint now.
    NotPublished {
        /// Which cloud.
        cloud: CloudName,
    },
    /// The pause of a cloud is over.
    PublishAgain {
        /// Which cloud.
        cloud: CloudName,
    },
    /// A cloud lies below what the sequence keeps: it must be given the checkpoint's segments too.
    JumpAsked {
        /// Which cloud.
        cloud: CloudName,
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
    /// Make a draft and store it.
    Write,
    /// Commit the draft through Raft.
    Commit,
    /// Step with [`Input::TryAgain`] after a pause.
    Pause(Duration),
    /// Give a cloud the newest checkpoint with all that it names.
    Publish {
        /// Which cloud.
        cloud: CloudName,
        /// With the segments: the cloud lacks records too.
        jump: bool,
    },
    /// Step with [`Input::PublishAgain`] after a pause.
    PausePublish {
        /// Which cloud.
        cloud: CloudName,
        /// How long.
        pause: Duration,
    },
    /// Tell who asked that a checkpoint is committed, or never will be by this owner.
    Answer {
        /// True when it is committed.
        committed: bool,
    },
}

/// What is done about the next checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing.
    Idle,
    /// The draft is made and stored.
    Writing,
    /// Raft is asked.
    Committing,
    /// Waits after a failure.
    Pausing,
    /// This owner may not make any.
    Fenced,
}

#[derive(Debug, Default)]
struct Copy {
    held: u64,
    jump: bool,
    busy: bool,
}

/// The checkpoints of one volume.
#[derive(Debug)]
pub struct Machine {
    triggers: Triggers,
    phase: Phase,
    newest: u64,
    grown: (u64, u64),
    /// Asked for, and not begun yet.
    demanded: bool,
    /// The draft under way answers a demand.
    answering: bool,
    copies: BTreeMap<CloudName, Copy>,
}

impl Machine {
    /// Goes on from checkpoint `newest` (zero for none), of which each cloud holds what `held` says.
    #[must_use]
    pub fn new(triggers: Triggers, newest: u64, held: &BTreeMap<CloudName, u64>) -> Self {
        let copy = |held: &u64| Copy { held: *held, ..Copy::default() };
        Self {
            triggers,
            phase: Phase::Idle,
            newest,
            grown: (0, 0),
            demanded: false,
            answering: false,
            copies: held.iter().map(|(cloud, held)| (cloud.clone(), copy(held))).collect(),
        }
    }

    /// What is done about the next checkpoint.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// True when the newest checkpoint is on all clouds.
    #[must_use]
    pub fn is_everywhere(&self) -> bool {
        self.copies.values().all(|copy| copy.held == self.newest)
    }

    fn begin_when_due(&mut self, effects: &mut Vec<Effect>) {
        let (records, bytes) = self.grown;
        let due = self.demanded || records >= self.triggers.records || bytes >= self.triggers.bytes;
        if self.phase == Phase::Idle && due {
            self.phase = Phase::Writing;
            self.answering |= std::mem::take(&mut self.demanded);
            effects.push(Effect::Write);
        }
    }

    fn publish_where_due(&mut self, effects: &mut Vec<Effect>) {
        for (cloud, copy) in &mut self.copies {
            let behind = copy.held < self.newest || copy.jump;
            if behind && !copy.busy && self.newest > 0 {
                copy.busy = true;
                effects.push(Effect::Publish { cloud: cloud.clone(), jump: copy.jump });
            }
        }
    }

    fn answer(&mut self, committed: bool, effects: &mut Vec<Effect>) {
        if std::mem::take(&mut self.answering) {
            effects.push(Effect::Answer { committed });
        }
    }
}

impl actor::Machine for Machine {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, _now: Instant, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Grown { records, bytes } => self.grown = (records, bytes),
            Input::Demanded if self.phase == Phase::Fenced => effects.push(Effect::Answer { committed: false }),
            Input::Demanded => self.demanded = true,
            Input::Written => {
                assert_eq!(self.phase, Phase::Writing, "a draft is written before it is committed");
                self.phase = Phase::Committing;
                effects.push(Effect::Commit);
            }
            Input::NotWritten => {
                self.phase = Phase::Pausing;
                effects.push(Effect::Pause(PAUSE));
            }
            Input::Committed { number } => {
                assert!(number > self.newest, "checkpoints are numbered in order");
                self.newest = number;
                self.grown = (0, 0);
                self.phase = Phase::Idle;
                self.answer(true, effects);
            }
            Input::Refused => {
                self.phase = Phase::Fenced;
                self.answering |= std::mem::take(&mut self.demanded);
                self.answer(false, effects);
            }
            Input::TryAgain => {
                if self.phase == Phase::Pausing {
                    self.phase = Phase::Idle;
                    self.demanded |= self.answering;
                }
            }
            Input::Published { cloud, number } => {
                if let Some(copy) = self.copies.get_mut(&cloud) {
                    *copy = Copy { held: copy.held.max(number), jump: false, busy: false };
                }
            }
            Input::NotPublished { cloud } => effects.push(Effect::PausePublish { cloud, pause: PAUSE }),
            Input::PublishAgain { cloud } => {
                if let Some(copy) = self.copies.get_mut(&cloud) {
                    copy.busy = false;
                }
            }
            Input::JumpAsked { cloud } => {
                if let Some(copy) = self.copies.get_mut(&cloud) {
                    copy.jump = true;
                }
            }
            Input::StartOver { cloud } => {
                if let Some(copy) = self.copies.get_mut(&cloud) {
                    copy.held = 0;
                }
            }
        }
        self.begin_when_due(effects);
        self.publish_where_due(effects);
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
