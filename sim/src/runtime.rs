//! One thread, one paused clock, one `LocalSet` per simulated process.
//!
//! A simulation runs on a fresh OS thread in a current-thread tokio runtime whose clock stands still until nothing is left
//! to do, and then jumps to the next timer. The world (clouds, guests, the plan) lives on an outer `LocalSet`; each
//! simulated process has a `LocalSet` of its own inside, and dropping that is the crash: all its actors, timers and I/O
//! vanish at one instant. A panic anywhere fails the run, for tokio would otherwise swallow it with its task.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    rc::{Rc, Weak},
    sync::{
        Arc, Once,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::future::LocalBoxFuture;
use tokio::{
    sync::Notify,
    task::{AbortHandle, LocalSet},
};

use crate::{
    phases::{Crossings, Phases},
    trace::{Printer, Trace},
};

/// What the parts of one world share: time, the trace, the failures found and the tally of what happened.
pub struct Sim {
    seed: u64,
    trace: Trace,
    outer: Weak<LocalSet>,
    began: tokio::time::Instant,
    /// The time of the last event, for whoever waits for the end.
    reached_ms: Arc<AtomicU64>,
    failures: RefCell<Vec<String>>,
    tally: RefCell<BTreeMap<&'static str, u64>>,
    /// What the world is at.
    pub phases: Cell<Phases>,
    crossings: RefCell<Crossings>,
}

impl Sim {
    /// The seed of this world.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Simulated milliseconds since the world began.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        tokio::time::Instant::now().duration_since(self.began).as_millis() as u64
    }

    /// Records an event in the trace.
    pub fn event(&self, kind: &'static str, place: &str, numbers: &[u64]) {
        let now_ms = self.now_ms();
        self.reached_ms.store(now_ms, Ordering::Relaxed);
        self.trace.event(now_ms, kind, place, numbers);
    }

    /// Counts something that happened, for the summary of the run.
    pub fn count(&self, what: &'static str, times: u64) {
        *self.tally.borrow_mut().entry(what).or_default() += times;
        if times > 0 {
            self.crossings.borrow_mut().note(what, self.phases.get());
        }
    }

    /// Records a broken promise; the run goes on so that what follows from it can be seen, and fails.
    pub fn fail(&self, what: String) {
        let mut failures = self.failures.borrow_mut();
        if failures.len() < 20 {
            failures.push(format!("at {} ms: {what}", self.now_ms()));
        }
    }

    /// True when a promise was broken or something panicked.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        !self.failures.borrow().is_empty()
            || PANICS.with_borrow(|panics| panics.as_ref().is_some_and(|p| !p.is_empty()))
    }

    /// Waits `ms` simulated milliseconds.
    pub async fn sleep_ms(&self, ms: u64) {
        sleep(Duration::from_millis(ms)).await;
    }

    /// Runs `work` as part of the world: it outlives every simulated process. `None` when the world is being taken down.
    pub fn spawn(&self, work: impl Future<Output = ()> + 'static) -> Option<AbortHandle> {
        self.outer.upgrade().map(|outer| outer.spawn_local(work).abort_handle())
    }

    /// Runs `act` after `ms` milliseconds, whatever happens to the process that asked for it.
    pub fn later(&self, ms: u64, act: impl FnOnce() + 'static) {
        self.spawn(async move {
            sleep(Duration::from_millis(ms)).await;
            act();
        });
    }
}

/// The one place where the simulator waits.
#[expect(clippy::disallowed_methods, reason = "the simulated clock is tokio's paused clock")]
pub(crate) async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// The life of one simulated process. Once ended, nothing that its environment is asked for has any effect.
#[derive(Debug, Default)]
pub struct Life {
    ended: Cell<bool>,
    end: Notify,
    paused: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
}

impl Life {
    /// True until the process is killed.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.ended.get()
    }

    /// Ends the process: from now on it reaches nothing. Its memory goes a moment later, by [`Process`].
    pub fn end(&self) {
        if !self.ended.replace(true) {
            self.end.notify_waiters();
        }
    }

    /// Completes when the process has ended.
    pub async fn ended(&self) {
        let end = self.end.notified();
        if self.is_alive() {
            end.await;
        }
    }

    /// Lets the process take no step until [`resume`](Self::resume), as SIGSTOP does: timers run out, connections are taken and
    /// bytes arrive, and nobody looks.
    pub fn pause(&self) {
        self.paused.set(true);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.paused.set(false);
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }

    /// True while it takes no step.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused.get()
    }
}

/// A process that can be paused.
struct Pausable {
    set: LocalSet,
    life: Rc<Life>,
}

impl Future for Pausable {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.life.is_paused() {
            *self.life.waiting.borrow_mut() = Some(context.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.set).poll(context)
    }
}

/// A simulated process: its futures, actors and timers.
pub struct Process {
    life: Rc<Life>,
    task: Option<AbortHandle>,
}

impl Process {
    /// Starts a process whose `main` runs on a `LocalSet` of its own.
    pub fn start(sim: &Sim, life: Rc<Life>, main: impl Future<Output = ()> + 'static) -> Self {
        let set = LocalSet::new();
        set.spawn_local(main);
        let task = sim.spawn(Pausable { set, life: Rc::clone(&life) });
        Self { life, task }
    }

    /// The life its environment looks at.
    #[must_use]
    pub fn life(&self) -> &Rc<Life> {
        &self.life
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.life.end();
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// What a finished simulation leaves.
#[derive(Debug)]
pub struct Run<T> {
    /// What its main returned; `None` when it panicked or hung.
    pub result: Option<T>,
    /// Hash of the event trace.
    pub hash: u64,
    /// Events in the trace.
    pub events: u64,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// Broken promises and panics.
    pub failures: Vec<String>,
    /// What happened how often.
    pub tally: BTreeMap<&'static str, u64>,
    /// Which faults came in which phases.
    pub crossings: Crossings,
}

/// Wall time after which a simulation whose clock stands still counts as hung.
const STILL_MAX: Duration = Duration::from_secs(300);

/// Wall time after which a simulation that does not end counts as hung, on however busy a machine.
const RUN_MAX: Duration = Duration::from_secs(1200);

/// How often is looked whether the clock moves.
const LOOK: Duration = Duration::from_secs(1);

thread_local! {
    /// Panics on this thread, when it runs a simulation.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Runs a world under `seed` on a thread of its own and waits for its end.
pub fn simulate<T: Send + 'static>(
    seed: u64,
    printer: impl FnOnce() -> Option<Printer> + Send + 'static,
    main: impl FnOnce(Rc<Sim>) -> LocalBoxFuture<'static, T> + Send + 'static,
) -> Run<T> {
    collect_panics();
    let (done, ended) = mpsc::sync_channel(1);
    let reached_ms = Arc::<AtomicU64>::default();
    let progress = Arc::clone(&reached_ms);
    let thread = std::thread::Builder::new().name(format!("seed-{seed}")).spawn(move || {
        PANICS.with_borrow_mut(|panics| *panics = Some(Vec::new()));
        let run = on_this_thread(seed, reached_ms, printer(), main);
        drop(done.send(run));
    });
    let lost = |why: String| Run {
        result: None,
        hash: 0,
        events: 0,
        simulated_ms: 0,
        failures: vec![why],
        tally: BTreeMap::new(),
        crossings: Crossings::default(),
    };
    if let Err(error) = thread {
        return lost(format!("no thread to run on: {error}"));
    }
    let (mut waited, mut still, mut before_ms) = (Duration::ZERO, Duration::ZERO, 0);
    while waited < RUN_MAX && still < STILL_MAX {
        match ended.recv_timeout(LOOK) {
            Ok(run) => return run,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return lost("the simulation's own thread panicked".to_owned());
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        let now_ms = progress.load(Ordering::Relaxed);
        still = if now_ms == before_ms { still + LOOK } else { Duration::ZERO };
        (waited, before_ms) = (waited + LOOK, now_ms);
    }
    lost(format!("still running after {waited:?} of wall time, at {before_ms} simulated ms for {still:?}"))
}

fn on_this_thread<T: 'static>(
    seed: u64,
    reached_ms: Arc<AtomicU64>,
    printer: Option<Printer>,
    main: impl FnOnce(Rc<Sim>) -> LocalBoxFuture<'static, T>,
) -> Run<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing that could be missing");
    let _entered = runtime.enter();
    let outer = Rc::new(LocalSet::new());
    let sim = Rc::new(Sim {
        seed,
        trace: Trace::printing(printer),
        outer: Rc::downgrade(&outer),
        began: tokio::time::Instant::now(),
        reached_ms,
        failures: RefCell::default(),
        tally: RefCell::default(),
        phases: Cell::default(),
        crossings: RefCell::default(),
    });
    let world = std::panic::AssertUnwindSafe(|| runtime.block_on(outer.run_until(main(Rc::clone(&sim)))));
    let result = std::panic::catch_unwind(world).ok();
    // Tasks hold the world and the world knows the tasks: dropping the set breaks the circle.
    drop(outer);
    let simulated_ms = runtime.block_on(async { sim.now_ms() });
    let mut failures = sim.failures.take();
    failures.extend(PANICS.take().unwrap_or_default());
    // Every part of a world holds its simulation. One that outlives it would fill the memory of a soak.
    let left = Rc::strong_count(&sim) - 1;
    if left > 0 && failures.is_empty() {
        failures.push(format!("{left} parts of the world are still in memory after its end"));
    }
    let (hash, events) = (sim.trace.hash(), sim.trace.events());
    Run { result, hash, events, simulated_ms, failures, tally: sim.tally.take(), crossings: sim.crossings.take() }
}

/// Makes panics on simulation threads part of the run's failures; elsewhere they print as ever.
fn collect_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let collected = PANICS.try_with(|panics| {
                let Ok(mut panics) = panics.try_borrow_mut() else { return false };
                let Some(panics) = panics.as_mut() else { return false };
                panics.push(format!("panic: {panic}"));
                true
            });
            if collected != Ok(true) {
                print(panic);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_passes_without_waiting_for_it() {
        let run = simulate(
            1,
            || None,
            |sim| {
                Box::pin(async move {
                    sim.sleep_ms(3_600_000).await;
                    sim.now_ms()
                })
            },
        );
        assert_eq!(run.result, Some(3_600_000));
        assert!(run.failures.is_empty());
    }

    /// Clouds and those that watched them once held each other: a soak of a thousand worlds took 22 GiB.
    #[test]
    fn a_part_that_outlives_its_world_fails_the_run() {
        struct Part {
            _sim: Rc<Sim>,
            itself: RefCell<Option<Rc<Part>>>,
        }
        let run = simulate(
            1,
            || None,
            |sim| {
                Box::pin(async move {
                    let part = Rc::new(Part { _sim: sim, itself: RefCell::default() });
                    *part.itself.borrow_mut() = Some(Rc::clone(&part));
                })
            },
        );
        assert_eq!(run.failures, ["1 parts of the world are still in memory after its end"]);
    }

    #[test]
    fn a_panic_in_a_task_fails_the_run() {
        let run = simulate(
            1,
            || None,
            |sim| {
                Box::pin(async move {
                    sim.later(5, || panic!("broken"));
                    sim.sleep_ms(10).await;
                })
            },
        );
        assert!(run.failures.iter().any(|failure| failure.contains("broken")), "{:?}", run.failures);
    }

    #[test]
    fn a_paused_process_takes_no_step_until_it_goes_on() {
        let run = simulate(
            1,
            || None,
            |sim| {
                Box::pin(async move {
                    let (steps, life) = (Rc::new(Cell::new(0)), Rc::<Life>::default());
                    let (counted, clock) = (Rc::clone(&steps), Rc::clone(&sim));
                    let process = Process::start(&sim, Rc::clone(&life), async move {
                        loop {
                            clock.sleep_ms(1).await;
                            counted.set(counted.get() + 1);
                        }
                    });
                    sim.sleep_ms(10).await;
                    life.pause();
                    let before = steps.get();
                    sim.sleep_ms(1_000).await;
                    let paused = steps.get();
                    life.resume();
                    sim.sleep_ms(10).await;
                    let after = steps.get();
                    drop(process);
                    (before, paused, after)
                })
            },
        );
        let Some((before, paused, after)) = run.result else { panic!("{:?}", run.failures) };
        assert!(before >= 9 && paused == before && after >= paused + 9, "{before} {paused} {after}");
    }

    #[test]
    fn a_killed_process_does_nothing_more() {
        let run = simulate(
            1,
            || None,
            |sim| {
                Box::pin(async move {
                    let steps = Rc::new(Cell::new(0));
                    let (counted, clock) = (Rc::clone(&steps), Rc::clone(&sim));
                    let process = Process::start(&sim, Rc::default(), async move {
                        loop {
                            clock.sleep_ms(1).await;
                            counted.set(counted.get() + 1);
                        }
                    });
                    sim.sleep_ms(10).await;
                    drop(process);
                    sim.sleep_ms(10).await;
                    steps.get()
                })
            },
        );
        assert!(matches!(run.result, Some(9..=10)), "{:?}", run.result);
    }
}
