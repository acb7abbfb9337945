//! Performs what the checkpoint machine decides.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use tokio::sync::oneshot;
use velum_protocol::{format::metadata::CloudName, id::Seq};

use super::{
    draft::{self, Draft, DraftError},
    machine::{Effect, Input, Machine},
    publish,
};
use crate::{
    actor::{Handle, Shell},
    array::context::VolumeContext,
    env::Instant,
    metadata::Rejection,
    metrics::WorkOutcome,
};

/// Called when a cloud has been given a checkpoint, with the seq it reaches.
pub(crate) type OnPublished = Rc<dyn Fn(&CloudName, Seq)>;

/// Who waits for a checkpoint to be committed.
#[derive(Default)]
pub(crate) struct Waiters {
    waiting: RefCell<Vec<oneshot::Sender<bool>>>,
}

impl Waiters {
    /// A place to wait.
    pub(crate) fn enter(&self) -> oneshot::Receiver<bool> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().push(sender);
        receiver
    }

    fn answer(&self, waiting: Vec<oneshot::Sender<bool>>, committed: bool) {
        for sender in waiting {
            // Who has gone meanwhile does not need the answer.
            let _ = sender.send(committed);
        }
    }
}

/// The shell of one volume's checkpoints.
pub(crate) struct CheckpointShell {
    context: VolumeContext,
    waiters: Rc<Waiters>,
    /// Who waited when the draft under way was begun.
    served: Rc<RefCell<Vec<oneshot::Sender<bool>>>>,
    draft: Rc<RefCell<Option<Draft>>>,
    began: Rc<Cell<Instant>>,
    on_published: OnPublished,
}

impl CheckpointShell {
    pub(crate) fn new(context: VolumeContext, waiters: Rc<Waiters>, on_published: OnPublished) -> Self {
        let draft = Rc::default();
        Self { context, waiters, served: Rc::default(), draft, began: Rc::default(), on_published }
    }

    fn write(&self, own: &Handle<Input>) {
        let (context, draft) = (self.context.clone(), Rc::clone(&self.draft));
        self.began.set(context.array.env.clock.now());
        self.served.borrow_mut().append(&mut self.waiters.waiting.borrow_mut());
        own.spawn(async move {
            match draft::write(&context).await {
                Ok(made) => {
                    context.array.metrics.upkeep.pages.inc_by(made.pages());
                    *draft.borrow_mut() = Some(made);
                    Input::Written
                }
                Err(DraftError::Over) => Input::Refused,
                Err(error) => {
                    context.array.metrics.upkeep.checkpoints.of(WorkOutcome::Failed).inc();
                    tracing::warn!(volume = %context.volume, %error, "no checkpoint could be made; it is tried again");
                    Input::NotWritten
                }
            }
        });
    }

    fn commit(&self, own: &Handle<Input>) {
        let context = self.context.clone();
        let draft = self.draft.borrow_mut().take().expect("a draft is written before it is committed");
        let began = self.began.get();
        own.spawn(async move {
            let upkeep = &context.array.metrics.upkeep;
            match draft.commit(&context).await {
                Ok(number) => {
                    upkeep.checkpoints.of(WorkOutcome::Done).inc();
                    let took = context.array.env.clock.now().since(began);
                    upkeep.checkpoint_seconds.observe(took.as_secs_f64());
                    Input::Committed { number }
                }
                Err(rejection) => {
                    upkeep.checkpoints.of(WorkOutcome::Failed).inc();
                    tracing::error!(volume = %context.volume, %rejection, "a checkpoint was refused");
                    let over = matches!(rejection, Rejection::StaleEpoch(_) | Rejection::NoSuchVolume);
                    if over { Input::Refused } else { Input::NotWritten }
                }
            }
        });
    }

    fn publish(&self, cloud: CloudName, jump: bool, own: &Handle<Input>) {
        let (context, on_published) = (self.context.clone(), Rc::clone(&self.on_published));
        // Entered at once: what began before a cloud was closed ends before it starts over.
        let Some((visit, target)) = context.array.copies.enter(&cloud) else {
            return own.call(Input::NotPublished { cloud });
        };
        own.spawn(async move {
            let published = publish::publish(&context, &target, jump).await;
            drop(visit);
            match published {
                Ok((number, seq)) => {
                    on_published(&cloud, seq);
                    Input::Published { cloud, number }
                }
                Err(error) => {
                    tracing::debug!(volume = %context.volume, cloud = cloud.0, %error, "the cloud lacks the checkpoint");
                    Input::NotPublished { cloud }
                }
            }
        });
    }
}

impl Shell<Machine> for CheckpointShell {
    fn perform(&mut self, effect: Effect, own: &Handle<Input>) {
        let clock = &*self.context.array.env.clock;
        match effect {
            Effect::Write => self.write(own),
            Effect::Commit => self.commit(own),
            Effect::Pause(pause) => own.after(clock, pause, Input::TryAgain),
            Effect::Publish { cloud, jump } => self.publish(cloud, jump, own),
            Effect::PausePublish { cloud, pause } => own.after(clock, pause, Input::PublishAgain { cloud }),
            Effect::Answer { committed } => {
                let mut served = std::mem::take(&mut *self.served.borrow_mut());
                if !committed {
                    served.append(&mut self.waiters.waiting.borrow_mut());
                }
                self.waiters.answer(served, committed);
            }
        }
    }
}
