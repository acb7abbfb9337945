//! The governor, stepped by hand.

use proptest::prelude::*;

use super::*;

struct Bench {
    governor: Governor,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self { governor: Governor::default(), now: Instant(0) }
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.governor.step(self.now, input, &mut effects);
        effects
    }

    fn ask(&mut self, ticket: u64, class: Class) -> Vec<Effect> {
        self.step(Input::Ask { ticket, class })
    }

    /// Asks and, once admitted, ends after `millis`.
    fn request(&mut self, ticket: u64, class: Class, millis: u64, verdict: Verdict) -> Vec<Effect> {
        let effects = self.ask(ticket, class);
        assert!(effects.contains(&Effect::Admit { ticket }), "{effects:?}");
        self.pass(millis);
        self.step(Input::Ended { ticket, verdict })
    }

    fn pass(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
    }
}

fn admitted(effects: &[Effect]) -> Vec<u64> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Admit { ticket } => Some(*ticket),
            _ => None,
        })
        .collect()
}

#[test]
fn requests_past_the_window_wait_for_an_end() {
    let mut bench = Bench::new();
    for ticket in 0..16 {
        assert_eq!(bench.ask(ticket, Class::Read), [Effect::Admit { ticket }]);
    }
    assert_eq!(bench.ask(16, Class::Read), []);
    assert_eq!(bench.ask(17, Class::Read), []);
    let effects = bench.step(Input::Ended { ticket: 3, verdict: Verdict::Away });
    assert_eq!(admitted(&effects), [0_u64; 0], "the window was halved, so one end is not enough");
    assert_eq!(bench.governor.window(), 8);
}

#[test]
fn a_window_in_use_grows_and_an_idle_one_does_not() {
    let mut bench = Bench::new();
    for ticket in 0..100 {
        bench.request(ticket, Class::Read, 1, Verdict::Answered);
    }
    assert_eq!(bench.governor.window(), 16, "one request at a time needs no larger window");
    for ticket in 1000..1016 {
        bench.ask(ticket, Class::Read);
    }
    for ticket in 1016..1300 {
        bench.ask(ticket, Class::Read);
        bench.step(Input::Ended { ticket: ticket - 16, verdict: Verdict::Answered });
    }
    assert!(bench.governor.window() > 20, "{}", bench.governor.window());
    assert!(bench.governor.window() <= WINDOW_MAX);
}

#[test]
fn writes_leave_room_for_reads_and_wait_behind_them() {
    let mut bench = Bench::new();
    for ticket in 0..20 {
        bench.ask(ticket, Class::Write);
    }
    assert_eq!(bench.governor.in_flight(), 12);
    for ticket in 20..24 {
        assert_eq!(bench.ask(ticket, Class::Read), [Effect::Admit { ticket }]);
    }
    assert_eq!(bench.ask(24, Class::Read), []);
    let effects = bench.step(Input::Ended { ticket: 0, verdict: Verdict::Answered });
    assert_eq!(admitted(&effects), [24], "the read that came last goes before the writes that wait");
}

#[test]
fn throttling_halves_the_window_once_and_holds_everything_back() {
    let mut bench = Bench::new();
    for ticket in 0..4 {
        bench.ask(ticket, Class::Write);
    }
    let effects = bench.step(Input::Ended { ticket: 0, verdict: Verdict::Throttled });
    assert_eq!(effects, [Effect::WakeAfter { delay: Duration::from_millis(200) }]);
    assert_eq!(bench.step(Input::Ended { ticket: 1, verdict: Verdict::Throttled }), []);
    assert_eq!(bench.governor.window(), 8, "one cause cuts once");
    assert_eq!(bench.ask(10, Class::Read), []);
    bench.pass(199);
    let again = Effect::WakeAfter { delay: Duration::from_millis(1) };
    assert_eq!(bench.step(Input::Woken), [again], "a timer that fires early is armed again");
    bench.pass(1);
    assert_eq!(bench.step(Input::Woken), [Effect::Admit { ticket: 10 }]);
}

#[test]
fn pauses_double_up_to_a_minute_and_an_answer_ends_them() {
    let mut bench = Bench::new();
    let mut delays = Vec::new();
    for ticket in 0..12 {
        let effects = bench.request(ticket, Class::Write, 1, Verdict::Throttled);
        let Some(Effect::WakeAfter { delay }) = effects.first() else { panic!("{effects:?}") };
        delays.push(delay.as_millis());
        bench.pass(60_000);
    }
    assert_eq!(delays, [200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000, 60000]);
    assert_eq!(bench.governor.window(), 1, "a window never closes altogether");
    bench.request(100, Class::Write, 1, Verdict::Answered);
    let effects = bench.request(101, Class::Write, 1, Verdict::Throttled);
    assert_eq!(effects, [Effect::WakeAfter { delay: Duration::from_millis(200) }]);
}

#[test]
fn three_failures_in_a_row_are_down_and_one_answer_is_up() {
    let mut bench = Bench::new();
    assert_eq!(bench.request(1, Class::Write, 1, Verdict::Away), []);
    assert_eq!(bench.request(2, Class::Write, 1, Verdict::Away), []);
    assert_eq!(bench.request(3, Class::Write, 1, Verdict::Answered), []);
    assert_eq!(bench.request(4, Class::Write, 1, Verdict::Away), []);
    assert_eq!(bench.request(5, Class::Write, 1, Verdict::Away), []);
    assert_eq!(bench.request(6, Class::Write, 1, Verdict::Away), [Effect::Turned { up: false }]);
    assert_eq!(bench.request(7, Class::Write, 1, Verdict::Away), []);
    assert_eq!(bench.request(8, Class::Write, 1, Verdict::Answered), [Effect::Turned { up: true }]);
}

#[test]
fn refused_credentials_are_down_at_once() {
    let mut bench = Bench::new();
    assert_eq!(bench.request(1, Class::Read, 1, Verdict::Denied), [Effect::Turned { up: false }]);
    assert!(!bench.governor.view().up);
    assert_eq!(bench.request(2, Class::Write, 1, Verdict::Unsaid), []);
    assert!(!bench.governor.view().up, "a refused change says nothing either way");
    bench.request(3, Class::Read, 1, Verdict::Answered);
    assert_eq!(bench.request(4, Class::Write, 1, Verdict::Unsaid), []);
    assert!(bench.governor.view().up);
}

#[test]
fn read_times_follow_the_reads_and_not_the_writes() {
    let mut bench = Bench::new();
    assert_eq!(bench.governor.view(), View { up: true, ..View::default() });
    for ticket in 0..100 {
        bench.request(ticket, Class::Read, if ticket % 10 == 0 { 100 } else { 10 }, Verdict::Answered);
        bench.request(1000 + ticket, Class::Write, 500, Verdict::Answered);
    }
    let view = bench.governor.view();
    assert_eq!(view.read_time_p95, Some(Duration::from_millis(100)));
    let mean = view.read_time.unwrap();
    assert!(mean > Duration::from_millis(10) && mean < Duration::from_millis(40), "{mean:?}");
}

#[test]
fn a_read_given_up_late_counts_as_slow_and_one_given_up_early_does_not() {
    let mut bench = Bench::new();
    bench.request(1, Class::Read, 50, Verdict::Answered);
    bench.ask(2, Class::Read);
    bench.pass(10);
    bench.step(Input::Withdrawn { ticket: 2 });
    assert_eq!(bench.governor.view().read_time, Some(Duration::from_millis(50)));
    bench.ask(3, Class::Read);
    bench.pass(850);
    bench.step(Input::Withdrawn { ticket: 3 });
    assert_eq!(bench.governor.view().read_time, Some(Duration::from_millis(150)));
}

#[test]
fn a_withdrawn_request_gives_its_place_to_the_next() {
    let mut bench = Bench::new();
    for ticket in 0..18 {
        bench.ask(ticket, Class::Read);
    }
    assert_eq!(bench.step(Input::Withdrawn { ticket: 16 }), [], "it was only waiting");
    assert_eq!(bench.step(Input::Withdrawn { ticket: 0 }), [Effect::Admit { ticket: 17 }]);
    assert_eq!(bench.step(Input::Ended { ticket: 0, verdict: Verdict::Away }), [], "it is not known any more");
}

proptest! {
    #[test]
    fn no_request_is_lost_admitted_twice_or_past_the_window(script in prop::collection::vec((0..5_u8, 0..40_u64, 0..500_u64), 1..400)) {
        let mut bench = Bench::new();
        let (mut asked, mut waiting, mut running) = (0, std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        let mut wake_at = Instant(0);
        for (what, pick, millis) in script {
            bench.pass(millis);
            let pick = |set: &std::collections::BTreeSet<u64>| set.iter().copied().nth(usize::try_from(pick).unwrap() % set.len().max(1));
            let input = match what {
                0 | 1 => {
                    asked += 1;
                    waiting.insert(asked);
                    Input::Ask { ticket: asked, class: if what == 0 { Class::Read } else { Class::Write } }
                }
                2 => match pick(&running) {
                    Some(ticket) => { running.remove(&ticket); Input::Ended { ticket, verdict: Verdict::Answered } }
                    None => Input::Woken,
                },
                3 => match pick(&running) {
                    Some(ticket) => { running.remove(&ticket); Input::Ended { ticket, verdict: Verdict::Throttled } }
                    None => Input::Woken,
                },
                _ => match pick(&waiting) {
                    Some(ticket) => { waiting.remove(&ticket); Input::Withdrawn { ticket } }
                    None => Input::Woken,
                },
            };
            let effects = bench.step(input);
            for effect in effects {
                match effect {
                    Effect::Admit { ticket } => {
                        prop_assert!(bench.now >= wake_at, "admitted during a pause");
                        prop_assert!(waiting.remove(&ticket), "{ticket} was not waiting");
                        prop_assert!(running.insert(ticket));
                    }
                    Effect::WakeAfter { delay } => wake_at = wake_at.max(bench.now + delay),
                    Effect::Turned { .. } => {}
                }
            }
            prop_assert_eq!(bench.governor.in_flight(), running.len());
            prop_assert_eq!(bench.governor.waiting(), waiting.len());
            prop_assert!(bench.governor.window() >= 1 && bench.governor.window() <= WINDOW_MAX);
        }
        // Whatever happened, everything that waits gets its turn in the end.
        for _ in 0..1000 {
            bench.pass(60_000);
            let input = running.pop_first().map_or(Input::Woken, |ticket| Input::Ended { ticket, verdict: Verdict::Answered });
            running.extend(admitted(&bench.step(input)));
        }
        prop_assert_eq!(bench.governor.waiting(), 0);
    }
}
