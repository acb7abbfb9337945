//! A node's clock: it began at some time, and runs at a rate of its own.

use std::time::Duration;

use velum_node::env::Instant;

use crate::rng::Rng;

/// Rates, in millionths too fast: as wrong as clocks may be, and less.
const RATES_PPM: [i64; 5] = [-50_000, -10_000, 0, 30_000, 50_000];

/// A clock, by which the world's time is read.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Clock {
    offset_us: u64,
    rate_ppm: i64,
}

impl Clock {
    /// The world's own time.
    pub(crate) const TRUE: Self = Self { offset_us: 0, rate_ppm: 0 };

    pub(super) fn draw(rng: &Rng) -> Self {
        Self { offset_us: rng.below(10_000_000), rate_ppm: *rng.pick(&RATES_PPM) }
    }

    pub(super) fn at(self, world_ms: u64) -> Instant {
        Instant(self.offset_us + world_ms * self.pace() / 1_000)
    }

    /// Milliseconds of the world's time until so much has passed by this clock.
    pub(super) fn world_ms(self, wait: Duration) -> u64 {
        let micros = u64::try_from(wait.as_micros()).expect("nobody waits for ages");
        (micros * 1_000).div_ceil(self.pace())
    }

    /// Millionths of the world's pace.
    fn pace(self) -> u64 {
        1_000_000_u64.saturating_add_signed(self.rate_ppm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_has_passed() {
        for rate_ppm in RATES_PPM {
            let clock = Clock { offset_us: 17, rate_ppm };
            for wait in [Duration::from_micros(1), Duration::from_millis(700), Duration::from_secs(1)] {
                let passed = clock.at(5_000 + clock.world_ms(wait)).since(clock.at(5_000));
                assert!(passed >= wait && passed < wait + Duration::from_millis(2), "{rate_ppm}: {passed:?}");
            }
        }
    }
}
