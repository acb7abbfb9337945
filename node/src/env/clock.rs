//! Time. No decision of the node rests on wall time; it is for log lines and people.

use std::{ops::Add, time::Duration};

use super::Local;

/// A point of monotonic time, in microseconds since the node's clock began. The simulator moves in whole milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// Time passed since `earlier`; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// Milliseconds since 1970-01-01 UTC, for display.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallTime(pub u64);

/// The node's clock.
pub trait Clock {
    /// Monotonic now. It goes on while the machine is suspended and while the process stands still: leases end meanwhile.
    fn now(&self) -> Instant;
    /// Wall time, for display only.
    fn wall(&self) -> WallTime;
    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> Local<()>;
}
