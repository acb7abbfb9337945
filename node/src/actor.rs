//! Machines and the one wrapper that makes actors of them.
//!
//! A [`Machine`] decides: one synchronous `step` takes an input and names effects. A [`Shell`] performs the effects. This
//! file joins the two into an actix actor, and nothing else in the project names actix.
//!
//! An actor is reached through its [`Handle`], in two ways. [`Handle::call`] steps the machine at once, on the caller's
//! stack: for the data path, where the session, the volume and the journal of a volume share a thread and a mailbox hop
//! would cost more than the work (0.45 us beside 2 ns). [`Handle::tell`] goes through the actor's bounded mailbox: for
//! everything between actors that may be busy. A call made while the machine is already stepping (an effect led back to
//! it) waits in line until that step's effects are performed; so steps never nest, and their order is the order of the
//! calls.
//!
//! Crash behaviour: an actor belongs to the `LocalSet` it was started on; dropping that drops the actor, its timers and its
//! I/O at one instant, and handles left elsewhere do nothing. Stopping hooks do nothing either, so a crash cleans nothing up.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    rc::{Rc, Weak},
    time::Duration,
};

use actix::{Actor, Context, Handler, Message, Recipient};

use crate::{
    env::{Clock, Instant},
    limits::MAILBOX_MESSAGES_MAX,
};

/// A pure state machine: no I/O, clock, chance, locks or logging of its own.
pub trait Machine: 'static {
    /// A message, a completion or a timer.
    type Input: Send + 'static;
    /// Data that says what the shell is to do.
    type Effect: 'static;

    /// Takes one input at `now` and appends what is to be done, in order, to `effects`.
    fn step(&mut self, now: Instant, input: Self::Input, effects: &mut Vec<Self::Effect>);
}

/// Performs a machine's effects against the environment and other actors.
pub trait Shell<M: Machine>: 'static {
    /// Performs one effect. Work that takes time is started with [`Handle::spawn`] and comes back as an input.
    fn perform(&mut self, effect: M::Effect, own: &Handle<M::Input>);
}

/// The way to an actor. Cheap to clone; does not keep the actor alive.
pub struct Handle<I: Send + 'static> {
    target: Weak<dyn Deliver<I>>,
    mailbox: Recipient<Envelope<I>>,
}

impl<I: Send + 'static> Clone for Handle<I> {
    fn clone(&self) -> Self {
        Self { target: Weak::clone(&self.target), mailbox: self.mailbox.clone() }
    }
}

/// The actor's mailbox is full or the actor is gone; the input comes back.
#[derive(Debug)]
pub struct Undelivered<I>(pub I);

impl<I: Send + 'static> Handle<I> {
    /// Steps the machine now, on this stack; in line behind the current step when called from within one.
    /// Does nothing when the actor is gone.
    pub fn call(&self, input: I) {
        if let Some(target) = self.target.upgrade() {
            target.deliver(input);
        }
    }

    /// Puts the input into the actor's mailbox.
    ///
    /// # Errors
    /// Gives the input back when the mailbox is full or the actor is gone.
    pub fn tell(&self, input: I) -> Result<(), Undelivered<I>> {
        self.mailbox.try_send(Envelope(input)).map_err(|refused| match refused {
            actix::prelude::SendError::Full(Envelope(input)) | actix::prelude::SendError::Closed(Envelope(input)) => {
                Undelivered(input)
            }
        })
    }

    /// Runs `work` beside the actor and steps the machine with its result.
    pub fn spawn(&self, work: impl Future<Output = I> + 'static) {
        let own = self.clone();
        spawn(async move { own.call(work.await) });
    }

    /// Steps the machine with `input` after `delay`.
    pub fn after(&self, clock: &dyn Clock, delay: Duration, input: I) {
        let sleep = clock.sleep(delay);
        self.spawn(async move {
            sleep.await;
            input
        });
    }

    /// True when the actor still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.target.strong_count() > 0
    }
}

/// Runs a future on this thread until it ends or the process (or simulated process) does.
pub fn spawn(work: impl Future<Output = ()> + 'static) {
    drop(actix::spawn(work));
}

/// Starts an actor of a machine and its shell on the current `LocalSet`.
pub fn start<M: Machine, S: Shell<M>>(clock: Rc<dyn Clock>, machine: M, shell: S) -> Handle<M::Input> {
    let core = Rc::new(Core {
        clock,
        machine: RefCell::new(machine),
        shell: RefCell::new(shell),
        waiting: RefCell::new(VecDeque::new()),
        stepping: Cell::new(false),
        own: RefCell::new(None),
    });
    let target: Rc<dyn Deliver<M::Input>> = core.clone();
    let address = MachineActor { core: Rc::clone(&core) }.start();
    let handle = Handle { target: Rc::downgrade(&target), mailbox: address.recipient() };
    *core.own.borrow_mut() = Some(handle.clone());
    handle
}

/// What a handle needs of its actor, with machine and shell erased.
trait Deliver<I> {
    /// Steps the machine with `input`, or queues it when a step is under way.
    fn deliver(&self, input: I);
}

struct Core<M: Machine, S> {
    clock: Rc<dyn Clock>,
    machine: RefCell<M>,
    shell: RefCell<S>,
    waiting: RefCell<VecDeque<M::Input>>,
    stepping: Cell<bool>,
    own: RefCell<Option<Handle<M::Input>>>,
}

impl<M: Machine, S: Shell<M>> Deliver<M::Input> for Core<M, S> {
    fn deliver(&self, input: M::Input) {
        self.waiting.borrow_mut().push_back(input);
        if self.stepping.replace(true) {
            return;
        }
        let own = self.own.borrow().clone().expect("an actor is reachable only after it knows itself");
        let mut effects = Vec::new();
        loop {
            let Some(input) = self.waiting.borrow_mut().pop_front() else { break };
            self.machine.borrow_mut().step(self.clock.now(), input, &mut effects);
            let mut shell = self.shell.borrow_mut();
            for effect in effects.drain(..) {
                shell.perform(effect, &own);
            }
        }
        self.stepping.set(false);
    }
}

struct Envelope<I>(I);

impl<I: Send + 'static> Message for Envelope<I> {
    type Result = ();
}

struct MachineActor<M: Machine, S> {
    core: Rc<Core<M, S>>,
}

impl<M: Machine, S: Shell<M>> Actor for MachineActor<M, S> {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX_MESSAGES_MAX);
    }
}

impl<M: Machine, S: Shell<M>> Handler<Envelope<M::Input>> for MachineActor<M, S> {
    type Result = ();

    fn handle(&mut self, Envelope(input): Envelope<M::Input>, _context: &mut Self::Context) {
        self.core.deliver(input);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{Local, WallTime};

    struct StoppedClock;

    impl Clock for StoppedClock {
        fn now(&self) -> Instant {
            Instant(0)
        }

        fn wall(&self) -> WallTime {
            WallTime(0)
        }

        fn sleep(&self, _duration: Duration) -> Local<()> {
            Box::pin(std::future::ready(()))
        }
    }

    /// Echoes every number; a number below ten leads back to the machine with ten times itself.
    struct Echo;

    impl Machine for Echo {
        type Input = u32;
        type Effect = u32;

        fn step(&mut self, _now: Instant, input: u32, effects: &mut Vec<u32>) {
            effects.push(input);
            effects.push(input + 1);
        }
    }

    struct Record(Rc<RefCell<Vec<u32>>>);

    impl Shell<Echo> for Record {
        fn perform(&mut self, effect: u32, own: &Handle<u32>) {
            self.0.borrow_mut().push(effect);
            if effect < 10 {
                own.call(effect * 10);
            }
        }
    }

    fn run(test: impl AsyncFnOnce(Handle<u32>, Rc<RefCell<Vec<u32>>>)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let seen = Rc::new(RefCell::new(Vec::new()));
            let handle = start(Rc::new(StoppedClock), Echo, Record(Rc::clone(&seen)));
            test(handle, seen).await;
        });
    }

    #[test]
    fn a_call_steps_at_once_and_calls_from_effects_wait_for_the_step_to_end() {
        run(async |handle, seen| {
            handle.call(1);
            assert_eq!(*seen.borrow(), [1, 2, 10, 11, 20, 21]);
        });
    }

    #[test]
    fn a_told_input_is_stepped_from_the_mailbox() {
        run(async |handle, seen| {
            handle.tell(50).unwrap();
            assert!(seen.borrow().is_empty());
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            assert_eq!(*seen.borrow(), [50, 51]);
        });
    }

    #[test]
    fn spawned_work_comes_back_as_an_input() {
        run(async |handle, seen| {
            handle.spawn(async { 70 });
            handle.after(&StoppedClock, Duration::from_secs(1), 80);
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            assert_eq!(*seen.borrow(), [70, 71, 80, 81]);
        });
    }

    #[test]
    fn a_handle_outlives_its_actor_and_then_does_nothing() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let seen = Rc::new(RefCell::new(Vec::new()));
        let set = tokio::task::LocalSet::new();
        let handle = set.block_on(&runtime, async { start(Rc::new(StoppedClock), Echo, Record(Rc::clone(&seen))) });
        drop(set);
        assert!(!handle.is_alive());
        handle.call(1);
        assert!(handle.tell(1).is_err());
        assert!(seen.borrow().is_empty());
    }
}
