//! The replicated truth of a cluster: volumes, owners, sequences, checkpoints, ACLs, keys (wrapped), what may be reclaimed.
//!
//! [`State`] is pure: the same commands in the same order give the same state on every node. It has no clock, chance or I/O;
//! ids and nonces are chosen by the proposer. A command that does not fit the state changes nothing and is answered with
//! a [`Rejection`], which every node computes alike. How the commands are agreed on (raft) is not known here.

pub mod acl;
mod apply;
pub mod attachments;
mod ensembles;
mod nodes;
mod reclaim;
mod sequence;
pub mod state;
mod volumes;

#[cfg(test)]
mod tests;

use std::{
    cell::{Ref, RefCell},
    rc::Rc,
};

use bytes::Bytes;
use velum_protocol::{
    codec::{self, CodecError},
    format::metadata::{Command, Proposal, RequestId},
};

pub use apply::{Answer, Rejection};
pub use state::State;

use crate::env::{Entropy, Local};

/// Longest encoded proposal: a sequence record of 512 KiB and the references beside it.
pub const PROPOSAL_BYTES_MAX: usize = 1 << 20;

/// Carries an encoded proposal to agreement and returns the encoded answer.
pub trait Proposer {
    /// Completes when the proposal has been applied on this node, or with an error when that is not known.
    fn propose(&self, entry: Bytes) -> Local<Result<Bytes, Unknown>>;
}

/// The proposal may or may not be applied; proposing the same bytes again is safe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cluster did not answer the proposal: {0}")]
pub struct Unknown(pub String);

/// Why a command has no good answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// Applied everywhere alike: the state does not allow it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// Not known whether it is applied; ask again with the same request id.
    #[error(transparent)]
    Unknown(#[from] Unknown),
}

/// A node's way to the replicated metadata: reads of the local copy, proposals to all.
#[derive(Clone)]
pub struct Metadata {
    state: Rc<RefCell<State>>,
    proposer: Rc<dyn Proposer>,
    entropy: Rc<dyn Entropy>,
}

impl Metadata {
    /// Joins the local copy with a way to propose.
    #[must_use]
    pub fn new(state: Rc<RefCell<State>>, proposer: Rc<dyn Proposer>, entropy: Rc<dyn Entropy>) -> Self {
        Self { state, proposer, entropy }
    }

    /// The local copy. Do not hold it across an await.
    #[must_use]
    pub fn state(&self) -> Ref<'_, State> {
        self.state.borrow()
    }

    /// Reads something of the local copy.
    pub fn with<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.borrow())
    }

    /// Proposes a command under a fresh request id.
    pub fn propose(&self, command: Command) -> Local<Result<Answer, MetadataError>> {
        self.propose_as(RequestId(self.entropy.fresh16()), command)
    }

    /// Proposes a command under a request id of the caller's, who may ask again with it after [`MetadataError::Unknown`].
    pub fn propose_as(&self, request: RequestId, command: Command) -> Local<Result<Answer, MetadataError>> {
        let entry = Bytes::from(codec::encode(&Proposal { request, command }));
        let proposer = Rc::clone(&self.proposer);
        Box::pin(async move {
            let answer = proposer.propose(entry).await?;
            let answer: Result<Answer, Rejection> = codec::decode(&answer, PROPOSAL_BYTES_MAX)
                .map_err(|error: CodecError| Unknown(format!("unreadable answer: {error}")))?;
            Ok(answer?)
        })
    }
}
