//! Proposals that a node hands to the leader. The answer of the state machine does not travel: once the proposer knows the
//! entry's place, it answers itself when it applies that entry.

use bytes::Bytes;

use super::share;
use crate::{
    format::raft::ENTRY_BYTES_MAX,
    format::reader::{ReadError, Reader},
    id::NodeId,
};

/// An entry for the leader to propose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Propose {
    /// Names it on the link; chosen by the proposer.
    pub ticket: u64,
    /// The entry.
    pub entry: Bytes,
}

impl Propose {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        assert!(self.entry.len() <= ENTRY_BYTES_MAX, "entries are bounded where they are proposed");
        out.extend_from_slice(&self.ticket.to_le_bytes());
        out.extend_from_slice(&self.entry);
    }

    pub(super) fn read(body: &Bytes, fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let ticket = fields.u64()?;
        if fields.left() == 0 || fields.left() > ENTRY_BYTES_MAX {
            return Err(ReadError::Field("entry length"));
        }
        Ok(Self { ticket, entry: share(body, fields, fields.left())? })
    }
}

/// What became of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// It stands in the leader's log; it may still give way to another leader's entry.
    At {
        /// Where.
        index: u64,
        /// In which term.
        term: u64,
    },
    /// The node does not lead; who does, if it knows.
    NotLeader(Option<NodeId>),
    /// The leader has too much under way.
    Busy,
}

/// The answer to [`Propose`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The proposer's name for it.
    pub ticket: u64,
    /// What became of it.
    pub placement: Placement,
}

impl Placed {
    pub(super) fn put(self, out: &mut Vec<u8>) {
        let (kind, first, second): (u8, u64, u64) = match self.placement {
            Placement::At { index, term } => (1, index, term),
            Placement::NotLeader(leader) => (2, leader.map_or(0, |leader| leader.0), 0),
            Placement::Busy => (3, 0, 0),
        };
        out.extend_from_slice(&self.ticket.to_le_bytes());
        out.push(kind);
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&second.to_le_bytes());
    }

    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let ticket = fields.u64()?;
        let [kind] = fields.array()?;
        let placement = match (kind, fields.u64()?, fields.u64()?) {
            (1, index, term) if index > 0 && term > 0 => Placement::At { index, term },
            (2, leader, 0) => Placement::NotLeader(Some(NodeId(leader)).filter(|leader| leader.0 != 0)),
            (3, 0, 0) => Placement::Busy,
            _ => return Err(ReadError::Field("placement")),
        };
        Ok(Self { ticket, placement })
    }
}
