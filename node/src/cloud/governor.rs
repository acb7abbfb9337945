//! How many requests one cloud gets, and what is known of how it does: a pure machine.
//!
//! * The window of requests in flight grows by one per window's worth of answers while it is in use, and halves at most once
//!   a second when the cloud throttles or does not answer (AIMD). After a throttling answer nothing is sent for a pause that
//!   doubles up to a minute.
//! * Reads go before writes, and writes leave a quarter of the window to them: a guest may be waiting for a read.
//! * A cloud is down after three failures in a row or one refusal of the credentials, and up with the next answer. Down is
//!   an opinion for choosing among clouds, not a ban: requests still go out. A cloud that may be read and not written to is up.
//! * How long reads took lately: a running mean, and the 95th percentile of the last ones.
//!
//! Invariants after each step: no more requests in flight than the window at the moment they were admitted; nothing waits
//! while the window has room for it and no pause holds.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{actor::Machine, env::Instant};

/// Requests in flight at first.
const WINDOW_START: u64 = 16;
/// Most requests in flight: enough for 100 MB/s of 64 KiB reads at 40 ms.
const WINDOW_MAX: u64 = 64;
/// The window is kept in thousandths, so that it can grow by less than one request.
const WHOLE: u64 = 1000;
/// The window shrinks at most once in this time, for one cause fails many requests at once.
const CUT_INTERVAL: Duration = Duration::from_secs(1);
/// First pause after a throttling answer.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest pause after a throttling answer, whatever the cloud asks for.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Failures in a row that make a cloud count as down.
const DOWN_AFTER: u32 = 3;
/// Read times kept for the percentile.
const SAMPLES: usize = 64;

/// What a request is to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Somebody may be waiting for the bytes.
    Read,
    /// Everything else.
    Write,
}

/// How a request ended, as far as the cloud's state is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The cloud answered; "no such object" is an answer too.
    Answered,
    /// It asked for fewer requests.
    Throttled,
    /// It did not answer, or with a passing fault.
    Away,
    /// It refused the credentials.
    Denied,
    /// It refused them for a change; whether it can be read from is another question.
    Unsaid,
}

/// What happens to a cloud's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A request wants to go out.
    Ask {
        /// The request.
        ticket: u64,
        /// Its class.
        class: Class,
    },
    /// A request that was admitted has ended.
    Ended {
        /// The request.
        ticket: u64,
        /// How.
        verdict: Verdict,
    },
    /// A request is given up by its caller, waiting or under way.
    Withdrawn {
        /// The request.
        ticket: u64,
    },
    /// The pause asked for by [`Effect::WakeAfter`] is over.
    Woken,
}

/// What the shell is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send the request.
    Admit {
        /// The request.
        ticket: u64,
    },
    /// Give [`Input::Woken`] after a delay.
    WakeAfter {
        /// How long from now.
        delay: Duration,
    },
    /// The cloud went up or down.
    Turned {
        /// Now up.
        up: bool,
    },
}

/// What choosing among clouds needs to know of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Not down.
    pub up: bool,
    /// Running mean of read times; `None` before the first read.
    pub read_time: Option<Duration>,
    /// 95th percentile of the last read times.
    pub read_time_p95: Option<Duration>,
    /// When a read time was last learned.
    pub read_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    class: Class,
    since: Instant,
}

/// The machine.
#[derive(Debug)]
pub struct Governor {
    window: u64,
    running: BTreeMap<u64, Running>,
    running_writes: u64,
    reads: VecDeque<u64>,
    writes: VecDeque<u64>,
    cut_at: Option<Instant>,
    pause: Duration,
    paused_until: Option<Instant>,
    failures: u32,
    up: bool,
    mean: Option<Duration>,
    samples: VecDeque<Duration>,
    sampled_at: Option<Instant>,
}

impl Default for Governor {
    fn default() -> Self {
        Self {
            window: WINDOW_START * WHOLE,
            running: BTreeMap::new(),
            running_writes: 0,
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            cut_at: None,
            pause: Duration::ZERO,
            paused_until: None,
            failures: 0,
            up: true,
            mean: None,
            samples: VecDeque::with_capacity(SAMPLES),
            sampled_at: None,
        }
    }
}

impl Machine for Governor {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Ask { ticket, class: Class::Read } => self.reads.push_back(ticket),
            Input::Ask { ticket, class: Class::Write } => self.writes.push_back(ticket),
            Input::Ended { ticket, verdict } => self.ended(now, ticket, verdict, effects),
            Input::Withdrawn { ticket } => self.withdrawn(now, ticket),
            Input::Woken => self.woken(now, effects),
        }
        self.admit(now, effects);
    }
}

impl Governor {
    /// What is known for choosing.
    #[must_use]
    pub fn view(&self) -> View {
        let mut sorted: Vec<Duration> = self.samples.iter().copied().collect();
        sorted.sort_unstable();
        let read_time_p95 = sorted.get((sorted.len() * 95 / 100).min(sorted.len().saturating_sub(1))).copied();
        View { up: self.up, read_time: self.mean, read_time_p95, read_at: self.sampled_at }
    }

    /// Requests under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.running.len()
    }

    /// Requests that wait for the window.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.reads.len() + self.writes.len()
    }

    /// Requests that may be under way at once.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.window / WHOLE
    }

    fn ended(&mut self, now: Instant, ticket: u64, verdict: Verdict, effects: &mut Vec<Effect>) {
        let in_use = self.running.len();
        let Some(running) = self.take(ticket) else { return };
        match verdict {
            Verdict::Answered => {
                if u64::try_from(in_use).is_ok_and(|in_use| in_use * 2 >= self.window()) {
                    self.window = (self.window + WHOLE * WHOLE / self.window).min(WINDOW_MAX * WHOLE);
                }
                if running.class == Class::Read {
                    self.sample(now, now.since(running.since));
                }
                self.failures = 0;
                self.pause = Duration::ZERO;
                self.turn(true, effects);
            }
            Verdict::Throttled => {
                self.cut(now);
                if self.paused_until.is_none_or(|until| until <= now) {
                    self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
                    self.paused_until = Some(now + self.pause);
                    effects.push(Effect::WakeAfter { delay: self.pause });
                }
            }
            Verdict::Away => {
                self.cut(now);
                self.failures = self.failures.saturating_add(1);
                if self.failures >= DOWN_AFTER {
                    self.turn(false, effects);
                }
            }
            Verdict::Denied => self.turn(false, effects),
            Verdict::Unsaid => {}
        }
    }

    fn withdrawn(&mut self, now: Instant, ticket: u64) {
        self.reads.retain(|waiting| *waiting != ticket);
        self.writes.retain(|waiting| *waiting != ticket);
        if let Some(Running { class: Class::Read, since }) = self.take(ticket) {
            // A read that another cloud answered first took at least this long here; without it a slow cloud, whose reads
            // are all given up, would go on looking fast.
            let passed = now.since(since);
            if self.mean.is_none_or(|mean| passed > mean) {
                self.sample(now, passed);
            }
        }
    }

    fn woken(&self, now: Instant, effects: &mut Vec<Effect>) {
        // Timers and this clock may disagree by a little; without another timer everything would wait for ever.
        if let Some(until) = self.paused_until.filter(|until| now < *until) {
            effects.push(Effect::WakeAfter { delay: until.since(now) });
        }
    }

    fn take(&mut self, ticket: u64) -> Option<Running> {
        let running = self.running.remove(&ticket)?;
        if running.class == Class::Write {
            self.running_writes -= 1;
        }
        Some(running)
    }

    fn cut(&mut self, now: Instant) {
        if self.cut_at.is_none_or(|at| now.since(at) >= CUT_INTERVAL) {
            self.cut_at = Some(now);
            self.window = (self.window / 2).max(WHOLE);
        }
    }

    fn sample(&mut self, now: Instant, took: Duration) {
        self.mean = Some(self.mean.map_or(took, |mean| (mean * 7 + took) / 8));
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(took);
        self.sampled_at = Some(now);
    }

    fn turn(&mut self, up: bool, effects: &mut Vec<Effect>) {
        if self.up != up {
            self.up = up;
            effects.push(Effect::Turned { up });
        }
    }

    fn admit(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.paused_until.is_some_and(|until| now < until) {
            return;
        }
        while let Some((ticket, class)) = self.next() {
            self.running.insert(ticket, Running { class, since: now });
            effects.push(Effect::Admit { ticket });
        }
    }

    fn next(&mut self) -> Option<(u64, Class)> {
        let window = self.window();
        if u64::try_from(self.running.len()).is_ok_and(|running| running >= window) {
            return None;
        }
        if let Some(ticket) = self.reads.pop_front() {
            return Some((ticket, Class::Read));
        }
        if self.running_writes >= (window - window / 4).max(1) {
            return None;
        }
        let ticket = self.writes.pop_front()?;
        self.running_writes += 1;
        Some((ticket, Class::Write))
    }
}

#[cfg(test)]
#[path = "governor_tests.rs"]
mod tests;
