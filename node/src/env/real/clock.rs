//! The machine's clocks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::env::{Clock, Instant, Local, WallTime};

/// Monotonic time that also counts while the machine is suspended, from the start of the node.
pub(super) struct RealClock {
    start_micros: u64,
}

impl RealClock {
    pub(super) fn start() -> Self {
        Self { start_micros: boot_micros() }
    }
}

impl Clock for RealClock {
    fn now(&self) -> Instant {
        Instant(boot_micros().saturating_sub(self.start_micros))
    }

    #[expect(clippy::disallowed_methods, reason = "this is where wall time comes from")]
    fn wall(&self) -> WallTime {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    #[expect(clippy::disallowed_methods, reason = "this is where sleeping is done")]
    fn sleep(&self, duration: Duration) -> Local<()> {
        // Made lazily, so that the call itself needs no runtime.
        Box::pin(async move { tokio::time::sleep(duration).await })
    }
}

/// `CLOCK_BOOTTIME` in microseconds.
fn boot_micros() -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(tv_sec).expect("the machine booted in the past");
    let nanos = u64::try_from(tv_nsec).expect("nanoseconds within a second are not negative");
    seconds * 1_000_000 + nanos / 1_000
}
