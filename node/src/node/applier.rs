//! Joins agreement and meaning: what raft commits is applied to the replicated metadata.

use std::{cell::RefCell, rc::Rc};

use bytes::Bytes;

use super::changes::{Changes, Follower};
use crate::{
    consensus::{Applier, Consensus, RestoreError},
    env::{Clock, Local},
    metadata::{Proposer, State, Unknown},
    metrics::{RaftMetrics, WorkOutcome},
};

pub(super) struct MetadataApplier {
    state: Rc<RefCell<State>>,
    changes: Changes,
}

impl MetadataApplier {
    pub(super) fn new(state: Rc<RefCell<State>>) -> Self {
        Self { state, changes: Changes::default() }
    }

    /// Tells of changes from now on. What is told of is applied; several changes may be told of as one.
    pub(super) fn changes(&self) -> Follower {
        self.changes.follow()
    }
}

impl Applier for MetadataApplier {
    fn apply(&mut self, _index: u64, entry: &[u8]) -> Bytes {
        let answer = self.state.borrow_mut().apply_encoded(entry);
        self.changes.tell();
        answer
    }

    fn snapshot(&self) -> Bytes {
        self.state.borrow().save()
    }

    fn check(&self, snapshot: &[u8]) -> Result<(), RestoreError> {
        State::load(snapshot).map(drop).map_err(|error| RestoreError(error.to_string()))
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        let state = State::load(snapshot).map_err(|error| RestoreError(error.to_string()))?;
        *self.state.borrow_mut() = state;
        self.changes.tell();
        Ok(())
    }
}

/// Proposes through raft, and measures how long agreement takes.
pub(super) struct RaftProposer {
    pub(super) consensus: Consensus,
    pub(super) clock: Rc<dyn Clock>,
    pub(super) metrics: RaftMetrics,
}

impl Proposer for RaftProposer {
    fn propose(&self, entry: Bytes) -> Local<Result<Bytes, Unknown>> {
        let answer = self.consensus.propose(entry);
        let (clock, metrics, began) = (Rc::clone(&self.clock), self.metrics.clone(), self.clock.now());
        Box::pin(async move {
            let answer = answer.await;
            metrics.proposal_seconds.observe(clock.now().since(began).as_secs_f64());
            let outcome = if answer.is_ok() { WorkOutcome::Done } else { WorkOutcome::Failed };
            metrics.proposals.of(outcome).inc();
            answer.map_err(|error| Unknown(error.to_string()))
        })
    }
}
