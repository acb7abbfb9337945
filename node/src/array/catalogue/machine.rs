//! Decides when the catalogue gets a record, and brings it to every cloud.
//!
//! A record is sealed once and agreed on through Raft before any cloud gets it, so that a number never names two. It is
//! *published* when enough clouds hold it; those that fail are tried again for ever. Only the newest record is brought to a
//! cloud at once; the shell fills in older ones that the cloud missed, so that a gallop over the numbers finds no gap.
//!
//! After a crash every cloud is looked at again: storing a record once more stores the same bytes.

use std::{collections::BTreeMap, time::Duration};

use velum_protocol::format::metadata::CloudName;

use crate::{actor, env::Instant};

/// First pause after a failure.
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// Longest pause after failures.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How often the metadata is looked at when nobody says that it changed.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Where the catalogue stands in the metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The newest record of this life; zero for none.
    pub number: u64,
    /// The change it shows.
    pub shown: u64,
    /// The newest change.
    pub wanted: u64,
}

/// A message, a completion or a timer.
#[derive(Clone, Debug)]
pub enum Input {
    /// The interval's timer.
    Tick,
    /// Somebody changed the metadata and wants it shown.
    Changed,
    /// The metadata as it stands.
    Looked(Standing),
    /// The proposal of a record has ended, one way or the other.
    Appended(Standing),
    /// A cloud holds a record with all before it.
    Published {
        /// Which cloud.
        cloud: CloudName,
        /// Which record.
        number: u64,
    },
    /// A cloud failed.
    NotPublished {
        /// Which cloud.
        cloud: CloudName,
    },
    /// The pause of a cloud is over.
    Retry {
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
    /// Step with [`Input::Tick`] after [`LOOK_INTERVAL`].
    Arm,
    /// Read where the catalogue stands.
    Look,
    /// Seal a record of the metadata as it is and append it.
    Append,
    /// Bring the newest record to a cloud.
    Publish {
        /// Which cloud.
        cloud: CloudName,
    },
    /// Step with [`Input::Retry`] after a pause.
    Pause {
        /// For which cloud.
        cloud: CloudName,
        /// How long.
        pause: Duration,
    },
    /// Tell who waits: enough clouds show everything up to this change.
    Shown(u64),
}

#[derive(Debug, Default)]
struct Copy {
    held: u64,
    busy: bool,
    failures: u32,
}

/// The catalogue of the cluster.
#[derive(Debug)]
pub struct Machine {
    standing: Standing,
    appending: bool,
    quorum: usize,
    published: u64,
    copies: BTreeMap<CloudName, Copy>,
}

impl Machine {
    /// Over these clouds.
    #[must_use]
    pub fn new(clouds: impl Iterator<Item = CloudName>, quorum: usize) -> Self {
        let copies = clouds.map(|cloud| (cloud, Copy::default())).collect();
        Self { standing: Standing::default(), appending: false, quorum, published: 0, copies }
    }

    fn go_on(&mut self, effects: &mut Vec<Effect>) {
        if self.standing.shown < self.standing.wanted && !self.appending {
            self.appending = true;
            effects.push(Effect::Append);
        }
        let number = self.standing.number;
        for (cloud, copy) in &mut self.copies {
            if copy.held < number && !copy.busy {
                copy.busy = true;
                effects.push(Effect::Publish { cloud: cloud.clone() });
            }
        }
        let holders = self.copies.values().filter(|copy| copy.held >= number).count();
        if number > self.published && holders >= self.quorum {
            self.published = number;
            effects.push(Effect::Shown(self.standing.shown));
        }
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
            Input::Tick => effects.extend([Effect::Look, Effect::Arm]),
            Input::Changed => effects.push(Effect::Look),
            Input::Looked(standing) => self.standing = standing,
            Input::Appended(standing) => {
                self.standing = standing;
                self.appending = false;
            }
            Input::Published { cloud, number } => {
                if let Some(copy) = self.copies.get_mut(&cloud) {
                    *copy = Copy { held: copy.held.max(number), ..Copy::default() };
                }
            }
            Input::NotPublished { cloud } => {
                if let Some(copy) = self.copies.get_mut(&cloud) {
                    effects.push(Effect::Pause { cloud, pause: pause(copy.failures) });
                    copy.failures = copy.failures.saturating_add(1);
                }
            }
            Input::Retry { cloud } => {
                if let Some(copy) = self.copies.get_mut(&cloud) {
                    copy.busy = false;
                }
            }
            Input::StartOver { cloud } => {
                if let Some(copy) = self.copies.get_mut(&cloud) {
                    copy.held = 0;
                }
            }
        }
        self.go_on(effects);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actor::Machine as _;

    fn cloud(name: &str) -> CloudName {
        CloudName(name.into())
    }

    fn machine() -> Machine {
        Machine::new(["a", "b", "c"].map(cloud).into_iter(), 2)
    }

    fn step(machine: &mut Machine, input: Input) -> Vec<String> {
        let mut effects = Vec::new();
        machine.step(Instant(0), input, &mut effects);
        let name = |effect: &Effect| match effect {
            Effect::Arm => "arm".into(),
            Effect::Look => "look".into(),
            Effect::Append => "append".into(),
            Effect::Publish { cloud } => format!("publish {}", cloud.0),
            Effect::Pause { cloud, pause } => format!("pause {} {} ms", cloud.0, pause.as_millis()),
            Effect::Shown(change) => format!("shown {change}"),
        };
        effects.iter().map(name).collect()
    }

    fn standing(number: u64, shown: u64, wanted: u64) -> Standing {
        Standing { number, shown, wanted }
    }

    fn published(name: &str, number: u64) -> Input {
        Input::Published { cloud: cloud(name), number }
    }

    #[test]
    fn a_change_is_appended_then_published_and_shown_at_the_quorum() {
        let mut machine = machine();
        assert_eq!(step(&mut machine, Input::Looked(standing(0, 0, 1))), ["append"]);
        let effects = step(&mut machine, Input::Appended(standing(1, 1, 1)));
        assert_eq!(effects, ["publish a", "publish b", "publish c"]);
        assert!(step(&mut machine, published("a", 1)).is_empty());
        assert_eq!(step(&mut machine, published("c", 1)), ["shown 1"]);
        assert!(step(&mut machine, published("b", 1)).is_empty());
    }

    #[test]
    fn a_change_made_meanwhile_gets_a_record_of_its_own() {
        let mut machine = machine();
        step(&mut machine, Input::Looked(standing(0, 0, 1)));
        assert!(step(&mut machine, Input::Looked(standing(0, 0, 2))).is_empty(), "one record at a time");
        assert_eq!(step(&mut machine, Input::Appended(standing(1, 1, 2)))[0], "append");
    }

    #[test]
    fn a_cloud_that_fails_is_tried_again_with_what_is_newest_then() {
        let mut machine = machine();
        step(&mut machine, Input::Looked(standing(1, 1, 1)));
        assert_eq!(step(&mut machine, Input::NotPublished { cloud: cloud("b") }), ["pause b 500 ms"]);
        step(&mut machine, published("a", 1));
        step(&mut machine, published("c", 1));
        assert_eq!(step(&mut machine, Input::Looked(standing(2, 2, 2))), ["publish a", "publish c"]);
        assert_eq!(step(&mut machine, Input::Retry { cloud: cloud("b") }), ["publish b"]);
        step(&mut machine, published("b", 2));
        assert_eq!(step(&mut machine, published("a", 2)), ["shown 2"]);
    }

    #[test]
    fn a_cloud_that_starts_over_gets_the_newest_record_again() {
        let mut machine = machine();
        step(&mut machine, Input::Looked(standing(1, 1, 1)));
        for name in ["a", "b", "c"] {
            step(&mut machine, published(name, 1));
        }
        assert_eq!(step(&mut machine, Input::StartOver { cloud: cloud("c") }), ["publish c"]);
        assert!(step(&mut machine, published("c", 1)).is_empty(), "it was shown before");
    }

    #[test]
    fn nothing_is_published_before_the_first_record() {
        assert!(step(&mut machine(), Input::Looked(standing(0, 0, 0))).is_empty());
    }
}
