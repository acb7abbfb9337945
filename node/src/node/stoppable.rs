//! A machine that its actor shares with whoever started it: that one may look at it, and stop it for good.

use std::{cell::RefCell, rc::Rc};

use crate::{actor::Machine, env::Instant};

/// The machine, until it is stopped. Cheap to clone; all clones are the same machine.
pub(super) struct Stoppable<M: Machine>(Rc<RefCell<Inner<M>>>);

struct Inner<M: Machine> {
    machine: Option<M>,
    /// What it wanted done when it was made; done with its first step, when it can be answered.
    first: Vec<M::Effect>,
}

impl<M: Machine> Clone for Stoppable<M> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<M: Machine> Stoppable<M> {
    pub(super) fn new(machine: M, first: Vec<M::Effect>) -> Self {
        Self(Rc::new(RefCell::new(Inner { machine: Some(machine), first })))
    }

    /// Frees the machine; whatever comes to it from now on is for nothing.
    pub(super) fn stop(&self) {
        self.0.borrow_mut().machine = None;
    }

    /// Something of the machine; none when it was stopped.
    pub(super) fn with<T>(&self, read: impl FnOnce(&M) -> T) -> Option<T> {
        self.0.borrow().machine.as_ref().map(read)
    }
}

impl<M: Machine> Machine for Stoppable<M> {
    type Input = M::Input;
    type Effect = M::Effect;

    fn step(&mut self, now: Instant, input: M::Input, effects: &mut Vec<M::Effect>) {
        let Inner { machine, first } = &mut *self.0.borrow_mut();
        effects.append(first);
        if let Some(machine) = machine {
            machine.step(now, input, effects);
        }
    }
}
