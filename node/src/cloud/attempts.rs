//! The layers without a state of their own: a deadline for each attempt, counting, and a few more attempts.

use std::{rc::Rc, time::Duration};

use futures_util::future::{Either, select};

use super::layer::{Answer, Asked, Attempt, Call, Layer};
use crate::{
    env::{Clock, CloudStoreError, Entropy, Local},
    metrics::{CloudMetrics, CloudOutcome},
};

/// Time for an attempt that carries no bytes.
const DEADLINE_BASE: Duration = Duration::from_secs(10);
/// Slowest transfer that is waited for, in bytes a millisecond (256 KB/s).
const BYTES_PER_MS_MIN: u64 = 256;
/// Time for any attempt; an endless body ends here.
const DEADLINE_MAX: Duration = Duration::from_secs(120);

/// Ends an attempt that takes too long.
pub(super) struct Deadline {
    pub(super) clock: Rc<dyn Clock>,
}

impl Layer for Deadline {
    fn around<T: Answer>(self: Rc<Self>, asked: Asked, call: Call<T>) -> Local<Attempt<T>> {
        let limit = deadline(asked);
        Box::pin(async move {
            match select(call(), self.clock.sleep(limit)).await {
                Either::Left((result, _)) => result,
                Either::Right(((), _)) => {
                    Err(CloudStoreError::Unavailable(format!("no answer within {} s", limit.as_secs())))
                }
            }
        })
    }
}

fn deadline(asked: Asked) -> Duration {
    let bytes = asked.expected.saturating_add(u64::try_from(asked.sent).unwrap_or(u64::MAX));
    DEADLINE_MAX.min(DEADLINE_BASE + Duration::from_millis(bytes / BYTES_PER_MS_MIN))
}

/// Counts attempts, their bytes and their times.
pub(super) struct Meter {
    pub(super) clock: Rc<dyn Clock>,
    pub(super) metrics: CloudMetrics,
}

impl Layer for Meter {
    fn around<T: Answer>(self: Rc<Self>, asked: Asked, call: Call<T>) -> Local<Attempt<T>> {
        Box::pin(async move {
            let began = self.clock.now();
            let result = call().await;
            let outcome = match &result {
                Ok(answer) => {
                    self.metrics.sent_bytes.inc_by(u64::try_from(asked.sent).unwrap_or(u64::MAX));
                    self.metrics.received_bytes.inc_by(u64::try_from(answer.received()).unwrap_or(u64::MAX));
                    CloudOutcome::Done
                }
                Err(CloudStoreError::NotFound) => CloudOutcome::NotFound,
                Err(CloudStoreError::AlreadyExists) => CloudOutcome::AlreadyExists,
                Err(CloudStoreError::Unavailable(_)) => CloudOutcome::Unavailable,
                Err(CloudStoreError::Throttled(_)) => CloudOutcome::Throttled,
                Err(CloudStoreError::Denied(_)) => CloudOutcome::Denied,
                Err(CloudStoreError::Refused(_) | CloudStoreError::NotOurs(_)) => CloudOutcome::Refused,
            };
            self.metrics.requests.of(asked.kind).of(outcome).inc();
            if outcome != CloudOutcome::Unavailable {
                self.metrics.seconds.of(asked.kind).observe(self.clock.now().since(began).as_secs_f64());
            }
            result
        })
    }
}

/// Attempts at one request.
const ATTEMPTS_MAX: u32 = 3;
/// No attempt begins later than this after the first.
const ATTEMPTS_TIME_MAX: Duration = Duration::from_secs(10);
/// Pause after the first attempt; doubles, plus or minus half.
const PAUSE: Duration = Duration::from_millis(100);

/// Bridges a short fault. The longer loop is the caller's, who knows whether the request still matters.
pub(super) struct Retry {
    pub(super) clock: Rc<dyn Clock>,
    pub(super) entropy: Rc<dyn Entropy>,
    pub(super) metrics: CloudMetrics,
}

impl Layer for Retry {
    fn around<T: Answer>(self: Rc<Self>, _asked: Asked, call: Call<T>) -> Local<Attempt<T>> {
        Box::pin(async move {
            let began = self.clock.now();
            let mut attempt = 1;
            loop {
                let result = call().await;
                let passing = matches!(result, Err(CloudStoreError::Unavailable(_) | CloudStoreError::Throttled(_)));
                let late = self.clock.now().since(began) >= ATTEMPTS_TIME_MAX;
                if !passing || attempt == ATTEMPTS_MAX || late {
                    return result;
                }
                self.clock.sleep(pause(attempt, self.entropy.number())).await;
                self.metrics.retries.inc();
                attempt += 1;
            }
        })
    }
}

/// The pause after attempt number `attempt`: doubling, spread by `chance` so that many callers do not come back together.
fn pause(attempt: u32, chance: u64) -> Duration {
    let whole = PAUSE * 2_u32.pow(attempt.saturating_sub(1));
    let spread = u64::try_from(whole.as_micros()).expect("pauses are short");
    whole / 2 + Duration::from_micros(chance % (spread + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::CloudRequest;

    #[test]
    fn pauses_double_and_are_spread() {
        for (attempt, millis) in [(1, 100), (2, 200)] {
            let whole = Duration::from_millis(millis);
            assert_eq!((pause(attempt, 0), pause(attempt, millis * 1000)), (whole / 2, whole * 3 / 2));
        }
    }

    #[test]
    fn deadlines_grow_with_the_bytes_and_end() {
        let asked = |sent, expected| Asked { kind: CloudRequest::Put, sent, expected };
        assert_eq!(deadline(asked(0, 0)), Duration::from_secs(10));
        assert_eq!(deadline(asked(8 << 20, 0)), Duration::from_millis(10_000 + 32_768));
        assert_eq!(deadline(asked(0, u64::MAX)), Duration::from_secs(120));
    }
}
