//! Which cloud is asked first: pure.

use std::time::Duration;

use crate::{cloud::governor::View, env::Instant};

/// Read time assumed of a cloud that has not been read from yet.
const READ_TIME_UNKNOWN: Duration = Duration::from_millis(50);
/// A cloud that has not been read from for this long is asked first once, to learn how it does now.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// Another cloud is asked when the first has not answered for the 95th percentile of its read times, within these bounds.
const HEDGE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_secs(2));
/// The same for a cloud that has not been read from yet.
const HEDGE_UNKNOWN: Duration = Duration::from_millis(100);

/// A cloud in its place in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its place in the set.
    pub cloud: usize,
    /// How long it is waited for before another is asked as well.
    pub patience: Duration,
}

/// Remembers when each cloud was last tried out.
#[derive(Debug, Default)]
pub struct Ranking {
    probed: Vec<Option<Instant>>,
}

impl Ranking {
    /// The clouds in the order in which to ask them: those that are up first, then by read time; now and then one that was
    /// not read from for long goes first.
    pub fn order(&mut self, now: Instant, views: &[View]) -> Vec<Candidate> {
        self.probed.resize(views.len(), None);
        let mut order: Vec<(usize, &View)> = views.iter().enumerate().collect();
        order.sort_by_key(|(cloud, view)| (!view.up, view.read_time.unwrap_or(READ_TIME_UNKNOWN), *cloud));
        let stale = |at: Option<Instant>| at.is_none_or(|at| now.since(at) >= PROBE_INTERVAL);
        let probe = order.iter().position(|(cloud, view)| {
            view.up && stale(view.read_at) && stale(self.probed.get(*cloud).copied().flatten())
        });
        if let Some(place) = probe {
            let (cloud, view) = order.remove(place);
            order.insert(0, (cloud, view));
            if let Some(probed) = self.probed.get_mut(cloud) {
                *probed = Some(now);
            }
        }
        let (least, most) = HEDGE;
        let patience = |view: &View| view.read_time_p95.map_or(HEDGE_UNKNOWN, |p95| p95.clamp(least, most));
        order.into_iter().map(|(cloud, view)| Candidate { cloud, patience: patience(view) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant(100_000_000);

    fn view(up: bool, millis: u64) -> View {
        let time = Some(Duration::from_millis(millis));
        View { up, read_time: time, read_time_p95: time.map(|time| time * 2), read_at: Some(NOW) }
    }

    fn clouds(order: &[Candidate]) -> Vec<usize> {
        order.iter().map(|candidate| candidate.cloud).collect()
    }

    #[test]
    fn the_fastest_that_is_up_goes_first() {
        let order = Ranking::default().order(NOW, &[view(true, 30), view(false, 1), view(true, 10)]);
        assert_eq!(clouds(&order), [2, 0, 1]);
        assert_eq!(order[0].patience, Duration::from_millis(20));
    }

    #[test]
    fn a_cloud_not_read_from_for_long_is_tried_once() {
        let mut ranking = Ranking::default();
        let mut old = view(true, 500);
        old.read_at = Some(Instant(0));
        let views = [view(true, 10), old];
        assert_eq!(clouds(&ranking.order(NOW, &views)), [1, 0]);
        assert_eq!(clouds(&ranking.order(NOW, &views)), [0, 1], "one read is enough to learn");
        assert_eq!(clouds(&ranking.order(NOW + PROBE_INTERVAL, &views))[0], 0);
    }

    #[test]
    fn a_cloud_that_is_down_is_not_tried_out() {
        let mut down = view(false, 1);
        down.read_at = None;
        assert_eq!(clouds(&Ranking::default().order(NOW, &[view(true, 10), down])), [0, 1]);
    }

    #[test]
    fn patience_has_bounds() {
        let order = Ranking::default().order(NOW, &[view(true, 0), view(true, 60_000)]);
        assert_eq!(order[0].patience, Duration::from_millis(2));
        assert_eq!(order[1].patience, Duration::from_secs(2));
    }
}
