//! How many bytes are let onto the way to one peer, so that what is urgent never waits long behind what is not.
//!
//! A beat is answered at once, with all that was taken before it: how long that takes is what whatever is sent behind would wait. On a
//! narrow way that is nearly all queue, so the window shrinks to what the way carries in a moment; while it holds back and
//! waits are short, it doubles. In the manner of LEDBAT (RFC 6817), with the wait bounded in place of the yielding.

use std::time::Duration;

use crate::{env::Instant, limits::PEER_CREDIT_BYTES};

/// The window of a link that begins, and the bounds it keeps. The upper one leaves room in the peer's credit for what goes first.
const START_BYTES: u64 = 1 << 20;
const BYTES_MIN: u64 = 256 << 10;
const BYTES_MAX: u64 = PEER_CREDIT_BYTES / 4 * 3;

/// How long bytes may wait on the way, beyond the shortest time that it ever took. Longer than a busy peer takes to come to it, and
/// short for a guest that waits.
const WAIT_MAX: Duration = Duration::from_millis(150);

/// The window shrinks at most to a part of so many at once: a peer that stood still for a moment does not make a way narrow.
const PARTS_MAX: u32 = 4;

/// The window.
#[derive(Debug)]
pub(super) struct Window {
    bytes: u64,
    /// The shortest time that an answer took.
    least: Duration,
    /// Asked behind so many bytes, and when.
    asked: Option<(u64, Instant)>,
    /// It held something back since.
    has_held: bool,
}

impl Window {
    /// The window of a link whose greeting took so long.
    pub(super) const fn new(least: Duration) -> Self {
        Self { bytes: START_BYTES, least, asked: None, has_held: false }
    }

    /// Bytes that may be on the way.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// It holds something back. True when the peer is to be asked what it took, since nothing else may tell.
    pub(super) const fn hold(&mut self) -> bool {
        self.has_held = true;
        self.asked.is_none()
    }

    /// A beat was handed over, the last of `written_bytes`.
    pub(super) fn ask(&mut self, written_bytes: u64, now: Instant) {
        self.asked.get_or_insert((written_bytes, now));
    }

    /// The peer has taken so many bytes.
    pub(super) fn taken(&mut self, taken_bytes: u64, now: Instant) {
        let Some((_, since)) = self.asked.take_if(|(behind, _)| *behind <= taken_bytes) else { return };
        let took = now.since(since);
        self.least = self.least.min(took);
        let most = self.least + WAIT_MAX;
        let has_held = std::mem::take(&mut self.has_held);
        if took > most {
            let took = took.min(most * PARTS_MAX);
            let bytes = u128::from(self.bytes) * most.as_micros() / took.as_micros();
            self.bytes = u64::try_from(bytes).unwrap_or(self.bytes).max(BYTES_MIN);
        } else if has_held {
            self.bytes = (self.bytes * 2).min(BYTES_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds in which the window is full, over a way that takes `least_ms` and carries so many bytes in a millisecond; the last wait.
    fn rounds(window: &mut Window, count: usize, least_ms: u64, bytes_per_ms: u64) -> u64 {
        let (mut written, mut now_ms, mut wait_ms) = (0, 0, 0);
        for _ in 0..count {
            window.hold();
            written += window.bytes();
            window.ask(written, Instant(now_ms * 1000));
            wait_ms = least_ms + window.bytes() / bytes_per_ms;
            now_ms += wait_ms;
            window.taken(written, Instant(now_ms * 1000));
        }
        wait_ms
    }

    #[test]
    fn a_wide_way_is_filled_and_a_narrow_one_is_not_queued_on() {
        let mut window = Window::new(Duration::from_millis(1));
        rounds(&mut window, 10, 1, 1 << 20);
        assert_eq!(window.bytes(), BYTES_MAX);
        let wait_ms = rounds(&mut window, 10, 1, 4 << 10);
        assert!(wait_ms <= 300, "after {wait_ms} ms");
        assert!(rounds(&mut window, 10, 1, 64) > 300, "one that is hopeless keeps a least window");
        assert_eq!(window.bytes(), BYTES_MIN);
        rounds(&mut window, 10, 1, 1 << 20);
        assert_eq!(window.bytes(), BYTES_MAX, "and grows again when the way is wide");
    }

    #[test]
    fn a_long_way_is_not_taken_for_a_narrow_one() {
        let mut window = Window::new(Duration::from_millis(200));
        rounds(&mut window, 10, 200, 1 << 20);
        assert_eq!(window.bytes(), BYTES_MAX);
    }

    #[test]
    fn one_pause_costs_a_part_and_nothing_is_learnt_from_what_was_not_asked() {
        let mut window = Window::new(Duration::from_millis(1));
        window.ask(10, Instant(0));
        window.taken(9, Instant(10_000_000));
        assert_eq!(window.bytes(), START_BYTES);
        window.taken(10, Instant(20_000_000));
        assert_eq!(window.bytes(), (START_BYTES / u64::from(PARTS_MAX)).max(BYTES_MIN));
        let small = window.bytes();
        window.ask(20, Instant(30_000_000));
        window.taken(20, Instant(30_001_000));
        assert_eq!(window.bytes(), small, "it grows only when it holds something back");
    }
}
