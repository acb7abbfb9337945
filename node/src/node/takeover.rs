//! A volume taken over by this node: fence, read, choose, write back, close; durability.md calls it failover.
//!
//! Raft has granted the epoch before. What is asked and awaited here goes on until it is done or the epoch is over: members
//! come back, and nobody else may decide what the open epoch left.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use bytes::Bytes;
use futures_util::future::{Either, select};
use tokio::sync::oneshot;
use velum_protocol::{
    admin::Reads,
    format::metadata::Command,
    id::{Epoch, Jseq, NodeId, VolumeId},
    peer::{Frame, ensemble::Point},
};

use super::{
    Assembly,
    copies::{Copies, Ear},
    opening::OpenError,
    owning::{Owning, Reading},
    stoppable::Stoppable,
};
use crate::{
    actor::{self, Handle, Shell},
    ensemble::{
        owner,
        takeover::{Effect, Input, Opening, Reason, Takeover},
    },
    metadata::{MetadataError, Rejection},
};

/// How often it is looked whether the epoch is over.
const LOOK: Duration = Duration::from_millis(50);

/// A volume whose journal is this node's to go on with.
pub(super) struct TakenOver {
    pub(super) owning: Owning,
    /// The sealed records behind the base, oldest first.
    pub(super) records: Vec<Bytes>,
}

/// Why volumes that were granted to this node are not taken over yet.
#[derive(Default)]
pub(super) struct Waiting(RefCell<BTreeMap<VolumeId, Reason>>);

impl Waiting {
    pub(super) fn reason(&self, volume: VolumeId) -> Option<String> {
        self.0.borrow().get(&volume).map(Reason::to_string)
    }
}

/// The wait for one takeover; it is over with this, however that ends.
struct Wait {
    waiting: Rc<Waiting>,
    volume: VolumeId,
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.waiting.0.borrow_mut().remove(&self.volume);
    }
}

/// What fencing and reading gave.
struct Chosen {
    base: Point,
    records: Vec<Bytes>,
    end: Point,
    durable: Jseq,
    lineage_changes: bool,
}

impl Assembly {
    /// Takes over a volume in the epoch that was granted to this node and is not open yet. Opens the epoch.
    ///
    /// # Errors
    /// When the epoch is over, or raft does not close the one before.
    pub(super) async fn take_over(&self, copies: &Copies, id: VolumeId, epoch: Epoch) -> Result<TakenOver, OpenError> {
        let (began, quorum) = (self.env.clock.now(), self.metadata.with(|state| state.quorum));
        let opening = self.with_ensemble(id, epoch, |volume, ensemble| Opening {
            volume: id,
            node: self.node,
            epoch,
            closes: ensemble.opened,
            fenced: ensemble.opened_members.clone(),
            base: Point { at: ensemble.base.0, chain: ensemble.base.1 },
            head: Point { at: volume.head.last, chain: volume.head.journal_chain },
            durable: (volume.durable_jseq(quorum) == volume.head.last)
                .then_some(Point { at: volume.head.last, chain: volume.head.journal_chain }),
        })?;
        let closes = opening.closes;
        let chosen = self.until_over(id, epoch, self.choose(copies, opening)).await??;
        let Chosen { base, records, end, durable, lineage_changes } = chosen;
        let members = self.with_ensemble(id, epoch, |_, ensemble| ensemble.members.clone())?;
        let back =
            owner::Opening { volume: id, node: self.node, epoch, members, base, records: records.clone(), durable };
        let owning = Owning::start(&self.env, copies, &self.journal, back, self.reading(id));
        let opened = async {
            self.until_over(id, epoch, owning.durable()).await?;
            let (last, chain) = (end.at, end.chain);
            let close = Command::CloseEpoch { volume: id, epoch, closes, last, chain, lineage_changes };
            self.close_epoch(id, epoch, close).await?;
            owning.opened();
            Ok(())
        };
        if let Err(error) = opened.await {
            owning.stop();
            return Err(error);
        }
        let took = self.env.clock.now().since(began);
        let metrics = &self.metrics.ensemble;
        metrics.takeover_seconds.observe(took.as_secs_f64());
        if lineage_changes {
            tracing::warn!(volume = %id, %epoch, "acked writes that were not synced may be lost; the lineage changes");
        }
        tracing::info!(volume = %id, %epoch, records = records.len(), ?took, "the journal goes on here");
        Ok(TakenOver { owning, records })
    }

    /// How reads of a volume of this node's are answered.
    fn reading(&self, id: VolumeId) -> Reading {
        let (metadata, setting) = (self.metadata.clone(), self.config.reads);
        let may_lease = move || setting == Reads::Lease && metadata.with(|state| state.is_attached_once(id));
        Reading { may_lease: Box::new(may_lease), reads: self.metrics.ensemble.reads.clone() }
    }

    fn with_ensemble<T>(
        &self,
        id: VolumeId,
        epoch: Epoch,
        read: impl FnOnce(&crate::metadata::state::VolumeState, &crate::metadata::state::EnsembleState) -> T,
    ) -> Result<T, OpenError> {
        self.metadata.with(|state| {
            let volume = state.volumes.get(&id).filter(|volume| !volume.deleted).ok_or(OpenError::Gone)?;
            let ensemble = state.ensembles.get(&id).filter(|_| volume.epoch == epoch);
            ensemble.map(|ensemble| read(volume, ensemble)).ok_or(OpenError::Over)
        })
    }

    /// The outcome of `work`, unless the epoch is over before.
    pub(super) async fn until_over<T>(
        &self,
        id: VolumeId,
        epoch: Epoch,
        work: impl Future<Output = T>,
    ) -> Result<T, OpenError> {
        let over = async {
            while self.with_ensemble(id, epoch, |_, _| ()).is_ok() {
                self.env.clock.sleep(LOOK).await;
            }
        };
        match select(Box::pin(work), Box::pin(over)).await {
            Either::Left((done, _)) => Ok(done),
            Either::Right(_) => Err(OpenError::Over),
        }
    }

    async fn choose(&self, copies: &Copies, opening: Opening) -> Result<Chosen, OpenError> {
        let volume = opening.volume;
        let mut first = Vec::new();
        let machine = Takeover::new(opening, &mut first);
        let (done, chosen) = oneshot::channel();
        let machine = Stoppable::new(machine, first);
        let waiting = Rc::clone(&self.waiting);
        let _wait = Wait { waiting: Rc::clone(&waiting), volume };
        let shell = TakeoverShell { volume, copies: copies.clone(), waiting, done: Some(done) };
        let handle = actor::start(Rc::clone(&self.env.clock), machine.clone(), shell);
        copies.listen(volume, Rc::new(TakeoverEar(handle.clone())));
        handle.call(Input::Tick);
        let ticking = async {
            loop {
                self.env.clock.sleep(owner::TICK).await;
                handle.call(Input::Tick);
            }
        };
        let chosen = match select(chosen, Box::pin(ticking)).await {
            Either::Left((chosen, _)) => chosen,
            Either::Right((never, _)) => never,
        };
        machine.stop();
        chosen.map_err(|_| OpenError::Over)?
    }

    /// Proposes until it is known that the epoch is open.
    async fn close_epoch(&self, id: VolumeId, epoch: Epoch, close: Command) -> Result<(), OpenError> {
        loop {
            match self.metadata.propose(close.clone()).await {
                Ok(_) => return Ok(()),
                Err(MetadataError::Rejected(Rejection::NotOpen(opened))) if opened == epoch => return Ok(()),
                Err(MetadataError::Rejected(rejection)) => return Err(MetadataError::Rejected(rejection).into()),
                Err(MetadataError::Unknown(unknown)) => {
                    tracing::debug!(volume = %id, %unknown, "it is not known whether the epoch is open; asking again");
                }
            }
            self.with_ensemble(id, epoch, |_, _| ())?;
            self.env.clock.sleep(LOOK).await;
        }
    }
}

struct TakeoverEar(Handle<Input>);

impl Ear for TakeoverEar {
    fn told(&self, from: NodeId, frame: Frame) {
        match frame {
            Frame::Fenced(fenced) => self.0.call(Input::Fenced(from, fenced)),
            Frame::Tail(tail) => self.0.call(Input::Tail(from, tail)),
            _ => {}
        }
    }

    fn lost(&self, to: NodeId) {
        self.0.call(Input::Lost(to));
    }
}

struct TakeoverShell {
    volume: VolumeId,
    copies: Copies,
    waiting: Rc<Waiting>,
    done: Option<oneshot::Sender<Result<Chosen, OpenError>>>,
}

impl Shell<Stoppable<Takeover>> for TakeoverShell {
    fn perform(&mut self, effect: Effect, _own: &Handle<Input>) {
        let chosen = match effect {
            Effect::Send { to, frame } => return self.copies.send(to, frame),
            Effect::Waiting(why) => {
                tracing::warn!(volume = %self.volume, %why, "the volume is not taken over yet");
                // Nobody waits any more for what is over.
                if self.done.as_ref().is_some_and(|done| !done.is_closed()) {
                    self.waiting.0.borrow_mut().insert(self.volume, why);
                }
                return;
            }
            Effect::Chosen { base, records, end, durable, lineage_changes } => {
                Ok(Chosen { base, records, end, durable, lineage_changes })
            }
            Effect::Overtaken(_) => Err(OpenError::Over),
        };
        if let Some(done) = self.done.take() {
            // Whoever waited may have seen that the epoch is over.
            let _ = done.send(chosen);
        }
    }
}
