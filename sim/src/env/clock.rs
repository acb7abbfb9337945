//! A node's own clock: an offset and a rate of its own, on top of simulated time.

use std::{rc::Rc, time::Duration};

use velum_node::env::{Clock, Instant, Local, WallTime};

use crate::runtime::{Sim, sleep};

/// 2026-01-01, so that displayed times look plausible.
const WALL_BASE_MS: u64 = 1_767_225_600_000;

/// The clock of one node.
pub struct NodeClock {
    sim: Rc<Sim>,
    offset_ms: u64,
    rate_ppm: i64,
}

impl NodeClock {
    /// A clock that began `offset_ms` before the world and runs `rate_ppm` millionths too fast.
    #[must_use]
    pub fn new(sim: Rc<Sim>, offset_ms: u64, rate_ppm: i64) -> Self {
        assert!(rate_ppm.abs() <= 50_000, "clocks run at most 5 % off");
        Self { sim, offset_ms, rate_ppm }
    }

    fn own_us(&self) -> u64 {
        let passed_us = i128::from(self.sim.now_ms()) * 1_000;
        let skewed = passed_us + passed_us * i128::from(self.rate_ppm) / 1_000_000;
        self.offset_ms * 1_000 + u64::try_from(skewed).expect("time is not negative")
    }
}

impl Clock for NodeClock {
    fn now(&self) -> Instant {
        Instant(self.own_us())
    }

    fn wall(&self) -> WallTime {
        WallTime(WALL_BASE_MS + self.own_us() / 1_000)
    }

    /// Rounds up to whole milliseconds of simulated time: the timers of the runtime know nothing finer, and what is finer
    /// would fire in an order that depends on the phase of the real clock.
    fn sleep(&self, duration: Duration) -> Local<()> {
        Box::pin(sleep(Duration::from_millis(slept_ms(duration, self.rate_ppm))))
    }
}

/// Milliseconds of simulated time that `duration` takes by a clock that runs `rate_ppm` millionths too fast; none for nothing
/// only, or whoever sleeps for what is left of a pause would do so for ever.
fn slept_ms(duration: Duration, rate_ppm: i64) -> u64 {
    let rate = u128::try_from(1_000_000 + rate_ppm).expect("a clock never runs backwards");
    let ms = (duration.as_micros() * 1_000).div_ceil(rate);
    u64::try_from(ms).unwrap_or(u64::MAX).min(u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pause had a microsecond left by a fast clock, which was slept for in no time at all, again and again.
    #[test]
    fn no_sleep_takes_no_time() {
        for rate_ppm in [-50_000, 0, 30_923, 50_000] {
            assert_eq!(slept_ms(Duration::ZERO, rate_ppm), 0);
            assert_eq!(slept_ms(Duration::from_micros(1), rate_ppm), 1, "{rate_ppm}");
        }
        assert_eq!([slept_ms(Duration::from_secs(1), 0), slept_ms(Duration::from_secs(1), 50_000)], [1_000, 953]);
    }
}
