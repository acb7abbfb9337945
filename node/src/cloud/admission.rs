//! The shell of the governor: requests wait here for their turn, and their ends are told to it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    governor::{Class, Effect, Governor, Input, Verdict},
    layer::{Answer, Asked, Attempt, Call, Layer},
};
use crate::{
    actor::{self, Machine},
    env::{Clock, CloudStoreError, Instant, Local},
    metrics::{CloudMetrics, CloudRequest},
};

/// Lets requests out as the governor admits them.
pub(super) struct Admission {
    clock: Rc<dyn Clock>,
    metrics: CloudMetrics,
    governor: RefCell<Governor>,
    waiting: RefCell<BTreeMap<u64, oneshot::Sender<()>>>,
    tickets: Cell<u64>,
    turned_at: Cell<Instant>,
    last_error: RefCell<Option<(Instant, CloudStoreError)>>,
    takes_writes: Cell<bool>,
    write_time: Cell<Option<Duration>>,
}

impl Admission {
    pub(super) fn new(clock: Rc<dyn Clock>, metrics: CloudMetrics) -> Rc<Self> {
        let turned_at = Cell::new(clock.now());
        Rc::new(Self {
            clock,
            metrics,
            governor: RefCell::default(),
            waiting: RefCell::default(),
            tickets: Cell::default(),
            turned_at,
            last_error: RefCell::default(),
            takes_writes: Cell::new(true),
            write_time: Cell::default(),
        })
    }

    /// Looks at the governor.
    pub(super) fn governor(&self) -> std::cell::Ref<'_, Governor> {
        self.governor.borrow()
    }

    /// When the cloud last went up or down.
    pub(super) fn turned_at(&self) -> Instant {
        self.turned_at.get()
    }

    /// The newest failure.
    pub(super) fn last_error(&self) -> Option<(Instant, CloudStoreError)> {
        self.last_error.borrow().clone()
    }

    fn step(self: &Rc<Self>, input: Input) {
        let mut effects = Vec::new();
        let now = self.clock.now();
        self.governor.borrow_mut().step(now, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Admit { ticket } => {
                    if let Some(waiting) = self.waiting.borrow_mut().remove(&ticket) {
                        // A caller that went away withdraws its ticket.
                        let _ = waiting.send(());
                    }
                }
                Effect::WakeAfter { delay } => {
                    let (own, sleep) = (Rc::clone(self), self.clock.sleep(delay));
                    actor::spawn(async move {
                        sleep.await;
                        own.step(Input::Woken);
                    });
                }
                Effect::Turned { .. } => self.turned_at.set(now),
            }
        }
        self.metrics.in_flight.set(i64::try_from(self.governor.borrow().in_flight()).unwrap_or(i64::MAX));
    }

    /// False from the moment that it refused to store an object until it stores one again.
    pub(super) fn takes_writes(&self) -> bool {
        self.takes_writes.get()
    }

    /// Running mean of the last times in which an object was stored.
    pub(super) fn write_time(&self) -> Option<Duration> {
        self.write_time.get()
    }

    /// Learns from an attempt to store an object that began at `began`.
    fn wrote<T>(&self, result: &Attempt<T>, began: Instant) {
        match result {
            Ok(_) => {
                let took = self.clock.now().since(began);
                self.write_time.set(Some(self.write_time.get().map_or(took, |mean| (mean * 7 + took) / 8)));
                self.takes_writes.set(true);
            }
            Err(CloudStoreError::AlreadyExists) => self.takes_writes.set(true),
            Err(CloudStoreError::Denied(_) | CloudStoreError::Refused(_)) => self.takes_writes.set(false),
            Err(_) => {}
        }
    }

    async fn admit(self: &Rc<Self>, class: Class) -> Ticket {
        let number = self.tickets.get() + 1;
        self.tickets.set(number);
        let (sender, admitted) = oneshot::channel();
        self.waiting.borrow_mut().insert(number, sender);
        let ticket = Ticket { admission: Rc::clone(self), number, ended: false };
        self.step(Input::Ask { ticket: number, class });
        admitted.await.expect("a waiting request is dropped by nobody but its caller");
        ticket
    }

    fn remember<T>(&self, kind: CloudRequest, result: &Attempt<T>) -> Verdict {
        let is_change = matches!(kind, CloudRequest::Put | CloudRequest::Create | CloudRequest::Delete);
        let verdict = match result {
            Ok(_) | Err(CloudStoreError::NotFound | CloudStoreError::AlreadyExists) => return Verdict::Answered,
            Err(CloudStoreError::Refused(_) | CloudStoreError::NotOurs(_)) => Verdict::Answered,
            Err(CloudStoreError::Unavailable(_)) => Verdict::Away,
            Err(CloudStoreError::Throttled(_)) => Verdict::Throttled,
            Err(CloudStoreError::Denied(_)) if is_change => Verdict::Unsaid,
            Err(CloudStoreError::Denied(_)) => Verdict::Denied,
        };
        if let Err(error) = result {
            *self.last_error.borrow_mut() = Some((self.clock.now(), error.clone()));
        }
        verdict
    }
}

impl Layer for Admission {
    fn around<T: Answer>(self: Rc<Self>, asked: Asked, call: Call<T>) -> Local<Attempt<T>> {
        let class = match asked.kind {
            CloudRequest::Get | CloudRequest::GetRange => Class::Read,
            _ => Class::Write,
        };
        Box::pin(async move {
            let ticket = self.admit(class).await;
            let began = self.clock.now();
            let result = call().await;
            if matches!(asked.kind, CloudRequest::Put | CloudRequest::Create) {
                self.wrote(&result, began);
            }
            ticket.end(self.remember(asked.kind, &result));
            result
        })
    }
}

/// A request's place; dropping it before its end gives the place up.
struct Ticket {
    admission: Rc<Admission>,
    number: u64,
    ended: bool,
}

impl Ticket {
    fn end(mut self, verdict: Verdict) {
        self.ended = true;
        self.admission.step(Input::Ended { ticket: self.number, verdict });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.ended {
            self.admission.waiting.borrow_mut().remove(&self.number);
            self.admission.step(Input::Withdrawn { ticket: self.number });
        }
    }
}
