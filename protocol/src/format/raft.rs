//! Raft's log, hard state and snapshot as they lie on a node's disk. Own layouts: raft-rs would store protobuf, whose parser
//! is not fit for bytes that somebody else may have written.
//!
//! A [`Record`] is one step of the log: entries that replace everything from the first one's index on, and the hard state
//! after them. Records are numbered without gaps, so that a lost one shows; replaying them in order gives the log. The
//! encodings here are plaintexts: both are sealed under the cluster-state key, bound by [`super::bind::RaftRecord`].

use std::collections::BTreeSet;

use bytes::Bytes;

use super::reader::{ReadError, Reader};
use crate::{
    checksum::crc32c,
    id::{ClusterId, NodeId},
    version::{LEAD_BYTES, LeadError, RAFT_SNAPSHOT},
};

/// The longest entry. A sequence record with all it names is below 1 MiB.
pub const ENTRY_BYTES_MAX: usize = 4 << 20;

/// Entry bytes after which a record is closed and the next one begun, so that every record fits a small journal file.
pub const RECORD_ENTRIES_BYTES: usize = 1 << 20;

/// The longest snapshot file.
pub const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;

/// The most voters, or learners, of a group.
pub const MEMBERS_MAX: usize = 64;

/// Bytes of the snapshot file's header.
pub const SNAPSHOT_HEADER_BYTES: usize = 64;

/// Bytes of an entry beside its data.
const ENTRY_HEADER_BYTES: usize = 13;

/// What raft must never forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The term.
    pub term: u64,
    /// Who got the vote in it; zero for nobody.
    pub vote: u64,
    /// Entries up to this index are committed.
    pub commit: u64,
}

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// A command of the state machine; empty when a leader begins its term.
    Normal = 0,
    /// A change of membership, old form.
    Membership = 1,
    /// A change of membership.
    MembershipV2 = 2,
}

/// One entry of the raft log; its index follows from its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The term it was proposed in.
    pub term: u64,
    /// What it is for.
    pub kind: EntryKind,
    /// The command; of a membership change, a [`MembershipChange`].
    pub data: Bytes,
}

/// One step of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The hard state after the step.
    pub hard_state: HardState,
    /// Index of the first entry. Whatever the log holds at and behind it gives way to the entries, if there are any.
    pub first: u64,
    /// The entries.
    pub entries: Vec<Entry>,
}

impl Record {
    /// The plaintext of a journal body.
    ///
    /// # Panics
    /// When an entry is longer than [`ENTRY_BYTES_MAX`]; proposals are checked against it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let bytes: usize = self.entries.iter().map(|entry| entry.data.len() + ENTRY_HEADER_BYTES).sum();
        let mut out = Vec::with_capacity(36 + bytes);
        put_hard_state(&mut out, &self.hard_state);
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&length(self.entries.len()));
        for entry in &self.entries {
            assert!(entry.data.len() <= ENTRY_BYTES_MAX, "proposals are bounded");
            out.extend_from_slice(&entry.term.to_le_bytes());
            out.push(entry.kind as u8);
            out.extend_from_slice(&length(entry.data.len()));
            out.extend_from_slice(&entry.data);
        }
        out
    }

    /// Reads a plaintext.
    ///
    /// # Errors
    /// When the bytes are no record, or hold an index or term that no log has.
    pub fn decode(bytes: &[u8]) -> Result<Self, ReadError> {
        let mut fields = Reader::new(bytes);
        let hard_state = hard_state(&mut fields)?;
        let first = fields.u64()?;
        let count = fields.u32()?;
        // No allocation on the word of a count: each entry has a header at least.
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > fields.left() / ENTRY_HEADER_BYTES || (count > 0 && first == 0) {
            return Err(ReadError::Field("entries"));
        }
        if first.checked_add(u64::try_from(count).unwrap_or(u64::MAX)).is_none() {
            return Err(ReadError::Field("first index"));
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let term = fields.u64()?;
            let [kind] = fields.array()?;
            let kind = match kind {
                0 => EntryKind::Normal,
                1 => EntryKind::Membership,
                2 => EntryKind::MembershipV2,
                _ => return Err(ReadError::Field("entry kind")),
            };
            let data = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
            if data > ENTRY_BYTES_MAX {
                return Err(ReadError::Field("entry length"));
            }
            entries.push(Entry { term, kind, data: Bytes::copy_from_slice(fields.take(data)?) });
        }
        fields.end()?;
        Ok(Self { hard_state, first, entries })
    }
}

/// Who is in the group, as raft knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Members that vote.
    pub voters: Vec<u64>,
    /// Members that only learn.
    pub learners: Vec<u64>,
    /// Voters of the membership that is being left.
    pub voters_outgoing: Vec<u64>,
    /// Learners once that is left.
    pub learners_next: Vec<u64>,
    /// Whether it is left without being told.
    pub auto_leave: bool,
}

impl Membership {
    /// Appends the encoding.
    ///
    /// # Panics
    /// When the group has more than [`MEMBERS_MAX`] of a kind.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let Self { voters, learners, voters_outgoing, learners_next, auto_leave } = self;
        out.push(u8::from(*auto_leave));
        for members in [voters, learners, voters_outgoing, learners_next] {
            assert!(members.len() <= MEMBERS_MAX, "groups are small");
            out.extend_from_slice(&length(members.len()));
            members.iter().for_each(|member| out.extend_from_slice(&member.to_le_bytes()));
        }
    }

    /// Reads what [`Membership::put`] wrote.
    pub(crate) fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let auto_leave = match fields.array()? {
            [0] => false,
            [1] => true,
            _ => return Err(ReadError::Field("auto leave")),
        };
        let mut members = || {
            let count = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
            if count > MEMBERS_MAX {
                return Err(ReadError::Field("members"));
            }
            (0..count).map(|_| fields.u64()).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            voters: members()?,
            learners: members()?,
            voters_outgoing: members()?,
            learners_next: members()?,
            auto_leave,
        })
    }

    /// Whether a group can be like this. Raft stops at one that cannot.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        let Self { voters, learners, voters_outgoing, learners_next, auto_leave } = self;
        let distinct = |members: &[u64]| {
            let set: BTreeSet<u64> = members.iter().copied().collect();
            set.len() == members.len() && !set.contains(&0)
        };
        let votes = |member: &u64| voters.contains(member) || voters_outgoing.contains(member);
        let is_joint = !voters_outgoing.is_empty();
        !voters.is_empty()
            && [voters, learners, voters_outgoing, learners_next].into_iter().all(|members| distinct(members))
            && !learners.iter().any(votes)
            && learners_next.iter().all(|member| voters_outgoing.contains(member) && !voters.contains(member))
            && (is_joint || (learners_next.is_empty() && !auto_leave))
    }
}

/// What a step of a membership change does to one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MemberChange {
    /// It votes.
    Voter = 0,
    /// It is no member any more.
    Remove = 1,
    /// It learns.
    Learner = 2,
}

/// How a membership that needs two majorities for a while is entered and left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Transition {
    /// Only when more than one vote changes; left by itself.
    Auto = 0,
    /// In any case; left by itself.
    Implicit = 1,
    /// In any case; left when told so.
    Explicit = 2,
}

/// The data of a membership entry. One without changes leaves the membership that needs two majorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipChange {
    /// The way there.
    pub transition: Transition,
    /// What becomes of whom.
    pub changes: Vec<(MemberChange, u64)>,
}

impl MembershipChange {
    /// The data.
    ///
    /// # Panics
    /// When more than [`MEMBERS_MAX`] members change.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.changes.len() <= MEMBERS_MAX, "groups are small");
        let mut out = vec![self.transition as u8, 0, 0, 0];
        out.extend_from_slice(&length(self.changes.len()));
        for (change, node) in &self.changes {
            out.push(*change as u8);
            out.extend_from_slice(&node.to_le_bytes());
        }
        out
    }

    /// Reads data.
    ///
    /// # Errors
    /// When the bytes are no membership change.
    pub fn decode(bytes: &[u8]) -> Result<Self, ReadError> {
        let mut fields = Reader::new(bytes);
        let transition = match fields.array()? {
            [0, 0, 0, 0] => Transition::Auto,
            [1, 0, 0, 0] => Transition::Implicit,
            [2, 0, 0, 0] => Transition::Explicit,
            _ => return Err(ReadError::Field("transition")),
        };
        let count = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
        if count > MEMBERS_MAX {
            return Err(ReadError::Field("changes"));
        }
        let mut changes = Vec::with_capacity(count);
        for _ in 0..count {
            let change = match fields.array()? {
                [0] => MemberChange::Voter,
                [1] => MemberChange::Remove,
                [2] => MemberChange::Learner,
                _ => return Err(ReadError::Field("change")),
            };
            let node = fields.u64()?;
            if node == 0 {
                return Err(ReadError::Field("node"));
            }
            changes.push((change, node));
        }
        fields.end()?;
        Ok(Self { transition, changes })
    }
}

/// The plaintext of a snapshot: the state machine at one index, and what raft needs to go on from there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The hard state when it was taken; its commit is not below the snapshot's index.
    pub hard_state: HardState,
    /// The journal record of raft with which a replay begins; zero before the first start.
    pub from_record: u64,
    /// The group at the snapshot's index.
    pub membership: Membership,
    /// The state machine's own bytes.
    pub state: Bytes,
}

impl Snapshot {
    /// The plaintext.
    ///
    /// # Panics
    /// When the group has more than [`MEMBERS_MAX`] of a kind.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.state.len() + 256);
        put_hard_state(&mut out, &self.hard_state);
        out.extend_from_slice(&self.from_record.to_le_bytes());
        self.membership.put(&mut out);
        out.extend_from_slice(&self.state);
        out
    }

    /// Reads a plaintext.
    ///
    /// # Errors
    /// When the bytes are no snapshot.
    pub fn decode(bytes: Bytes) -> Result<Self, ReadError> {
        let mut fields = Reader::new(&bytes);
        let hard_state = hard_state(&mut fields)?;
        let from_record = fields.u64()?;
        let membership = Membership::read(&mut fields)?;
        let state = bytes.slice(bytes.len() - fields.left()..);
        Ok(Self { hard_state, from_record, membership, state })
    }
}

/// The first 64 bytes of the snapshot file; the sealed [`Snapshot`] follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The index the state machine stands at.
    pub index: u64,
    /// The term of the entry at that index.
    pub term: u64,
    /// Length of the sealed body.
    pub body_bytes: u64,
    /// Checksum of the sealed body.
    pub body_crc: u32,
}

/// Why a snapshot file's header is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotHeaderError {
    /// Another kind of file, or a newer version.
    #[error(transparent)]
    Lead(#[from] LeadError),
    /// The checksum does not match.
    #[error("the header's checksum does not match")]
    Checksum,
    /// The file is shorter than a header.
    #[error("the header is cut off")]
    Short,
}

impl SnapshotHeader {
    /// The bytes to write.
    #[must_use]
    pub fn encode(&self) -> [u8; SNAPSHOT_HEADER_BYTES] {
        let mut out = Vec::with_capacity(SNAPSHOT_HEADER_BYTES);
        out.extend_from_slice(&RAFT_SNAPSHOT.lead());
        out.extend_from_slice(&self.cluster.0);
        out.extend_from_slice(&self.node.0.to_le_bytes());
        out.extend_from_slice(&self.index.to_le_bytes());
        out.extend_from_slice(&self.term.to_le_bytes());
        out.extend_from_slice(&self.body_bytes.to_le_bytes());
        out.extend_from_slice(&self.body_crc.to_le_bytes());
        out.extend_from_slice(&crc32c(&out).to_le_bytes());
        out.try_into().expect("the fields are as long as the header")
    }

    /// Reads a header.
    ///
    /// # Errors
    /// When the bytes are no snapshot file header this build reads.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotHeaderError> {
        let bytes: &[u8; SNAPSHOT_HEADER_BYTES] = bytes.first_chunk().ok_or(SnapshotHeaderError::Short)?;
        let (covered, crc) = bytes.split_at(SNAPSHOT_HEADER_BYTES - 4);
        if crc32c(covered).to_le_bytes() != *crc {
            return Err(SnapshotHeaderError::Checksum);
        }
        RAFT_SNAPSHOT.check(covered)?;
        let mut fields = Reader::new(covered.get(LEAD_BYTES..).unwrap_or_default());
        let mut read = || {
            Ok(Self {
                cluster: ClusterId(fields.array()?),
                node: NodeId(fields.u64()?),
                index: fields.u64()?,
                term: fields.u64()?,
                body_bytes: fields.u64()?,
                body_crc: fields.u32()?,
            })
        };
        read().map_err(|_: ReadError| SnapshotHeaderError::Short)
    }
}

fn put_hard_state(out: &mut Vec<u8>, state: &HardState) {
    out.extend_from_slice(&state.term.to_le_bytes());
    out.extend_from_slice(&state.vote.to_le_bytes());
    out.extend_from_slice(&state.commit.to_le_bytes());
}

fn hard_state(fields: &mut Reader<'_>) -> Result<HardState, ReadError> {
    Ok(HardState { term: fields.u64()?, vote: fields.u64()?, commit: fields.u64()? })
}

fn length(count: usize) -> [u8; 4] {
    u32::try_from(count).expect("lengths are bounded").to_le_bytes()
}

#[cfg(test)]
#[path = "raft_tests.rs"]
mod tests;
