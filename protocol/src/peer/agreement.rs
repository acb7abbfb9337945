//! Messages of raft in a layout of our own. raft-rs would have them parsed as protobuf 2, whose parser can be made to
//! overflow its stack; bytes of peers never reach it.
//!
//! What is decoded here is well-formed, not yet plausible: whether a message can be at all, given the receiver's log and
//! group, is judged by consensus before raft sees it.

use bytes::Bytes;

use super::{share, zeros};
use crate::{
    format::raft::{ENTRY_BYTES_MAX, Entry, EntryKind, Membership, SNAPSHOT_BYTES_MAX},
    format::reader::{ReadError, Reader},
    id::{Hash, NodeId},
};

/// The longest context: the name of a read, or what a campaign is for.
pub const CONTEXT_BYTES_MAX: usize = 64;

/// State bytes in one piece of a snapshot.
pub const PIECE_BYTES_MAX: usize = 1 << 20;

/// Bytes of an entry beside its data.
const ENTRY_HEADER_BYTES: usize = 13;

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum MessageKind {
    /// Entries from the leader.
    Append = 1,
    /// The answer.
    AppendResponse = 2,
    /// A candidate asks for a vote.
    RequestVote = 3,
    /// The answer.
    RequestVoteResponse = 4,
    /// A snapshot from the leader: this head first, then its [`Piece`]s.
    Snapshot = 5,
    /// The leader lives.
    Heartbeat = 6,
    /// The answer.
    HeartbeatResponse = 7,
    /// The leader hands over.
    TimeoutNow = 8,
    /// A follower asks the leader how far a read has to look.
    ReadIndex = 9,
    /// The answer.
    ReadIndexResponse = 10,
    /// A node asks whether it would get votes.
    RequestPreVote = 11,
    /// The answer.
    RequestPreVoteResponse = 12,
}

impl MessageKind {
    /// All kinds.
    pub const ALL: [Self; 12] = [
        Self::Append,
        Self::AppendResponse,
        Self::RequestVote,
        Self::RequestVoteResponse,
        Self::Snapshot,
        Self::Heartbeat,
        Self::HeartbeatResponse,
        Self::TimeoutNow,
        Self::ReadIndex,
        Self::ReadIndexResponse,
        Self::RequestPreVote,
        Self::RequestPreVoteResponse,
    ];

    /// Most entries a message of this kind has.
    const fn entries_max(self) -> usize {
        match self {
            Self::Append => super::BODY_BYTES_MAX / ENTRY_HEADER_BYTES,
            Self::ReadIndex | Self::ReadIndexResponse => 1,
            _ => 0,
        }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it says.
    pub kind: MessageKind,
    /// To whom.
    pub to: NodeId,
    /// From whom.
    pub from: NodeId,
    /// The speaker's term; zero when a read asks.
    pub term: u64,
    /// Term of the entry at `index`.
    pub log_term: u64,
    /// The entry before those that come, or the one that is spoken of.
    pub index: u64,
    /// Entries up to here are committed.
    pub commit: u64,
    /// Term of that entry.
    pub commit_term: u64,
    /// No, in answers.
    pub reject: bool,
    /// Where to try next.
    pub reject_hint: u64,
    /// Of a read or a campaign; given back in answers.
    pub context: Bytes,
    /// Of an append: entries behind `index`, in order. Of a read: one, its data the read's name.
    pub entries: Vec<Entry>,
    /// Of a snapshot.
    pub snapshot: Option<SnapshotHead>,
}

/// What a snapshot holds; its state follows in pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHead {
    /// The entry up to which it includes everything.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// The group there.
    pub membership: Membership,
    /// Bytes of the state.
    pub state_bytes: u64,
    /// Their BLAKE3.
    pub state_hash: Hash,
}

impl Message {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        assert!(self.context.len() <= CONTEXT_BYTES_MAX, "contexts are ours and short");
        assert_eq!(self.snapshot.is_some(), self.kind == MessageKind::Snapshot, "a snapshot has a head");
        out.extend_from_slice(&[self.kind as u8, u8::from(self.reject), 0, 0, 0, 0, 0, 0]);
        let Self { to, from, term, log_term, index, commit, commit_term, reject_hint, .. } = *self;
        for field in [to.0, from.0, term, log_term, index, commit, commit_term, reject_hint] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&count(self.context.len()));
        out.extend_from_slice(&self.context);
        out.extend_from_slice(&count(self.entries.len()));
        for entry in &self.entries {
            out.extend_from_slice(&entry.term.to_le_bytes());
            out.push(entry.kind as u8);
            out.extend_from_slice(&count(entry.data.len()));
            out.extend_from_slice(&entry.data);
        }
        if let Some(SnapshotHead { index, term, membership, state_bytes, state_hash }) = &self.snapshot {
            for field in [index, term, state_bytes] {
                out.extend_from_slice(&field.to_le_bytes());
            }
            out.extend_from_slice(&state_hash.0);
            membership.put(out);
        }
    }

    pub(super) fn read(body: &Bytes, fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let [kind, reject] = fields.array()?;
        let known = MessageKind::ALL.into_iter().find(|known| *known as u8 == kind);
        let kind = known.ok_or(ReadError::Field("message kind"))?;
        let reject = boolean(reject)?;
        zeros::<6>(fields)?;
        let (to, from) = (NodeId(fields.u64()?), NodeId(fields.u64()?));
        let (term, log_term, index) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (commit, commit_term, reject_hint) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let context_bytes = length(fields)?;
        if context_bytes > CONTEXT_BYTES_MAX {
            return Err(ReadError::Field("context"));
        }
        let context = share(body, fields, context_bytes)?;
        let entries = read_entries(kind, body, fields)?;
        let snapshot = if kind == MessageKind::Snapshot { Some(SnapshotHead::read(fields)?) } else { None };
        Ok(Self {
            kind,
            to,
            from,
            term,
            log_term,
            index,
            commit,
            commit_term,
            reject,
            reject_hint,
            context,
            entries,
            snapshot,
        })
    }
}

impl SnapshotHead {
    fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let (index, term, state_bytes) = (fields.u64()?, fields.u64()?, fields.u64()?);
        if state_bytes > SNAPSHOT_BYTES_MAX {
            return Err(ReadError::Field("state bytes"));
        }
        let state_hash = fields.hash()?;
        Ok(Self { index, term, membership: Membership::read(fields)?, state_bytes, state_hash })
    }
}

/// A stretch of a snapshot's state. Pieces follow their head on the same link, in order, without a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The snapshot's index.
    pub index: u64,
    /// Where in the state it belongs.
    pub offset: u64,
    /// The bytes; never none.
    pub bytes: Bytes,
}

impl Piece {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        assert!(self.bytes.len() <= PIECE_BYTES_MAX, "states are cut into bounded pieces");
        out.extend_from_slice(&self.index.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.bytes);
    }

    pub(super) fn read(body: &Bytes, fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let (index, offset) = (fields.u64()?, fields.u64()?);
        if fields.left() == 0 || fields.left() > PIECE_BYTES_MAX {
            return Err(ReadError::Field("piece"));
        }
        Ok(Self { index, offset, bytes: share(body, fields, fields.left())? })
    }
}

fn read_entries(kind: MessageKind, body: &Bytes, fields: &mut Reader<'_>) -> Result<Vec<Entry>, ReadError> {
    let entries = length(fields)?;
    // No allocation on the word of a count: each entry has a header at least.
    if entries > kind.entries_max() || entries > fields.left() / ENTRY_HEADER_BYTES {
        return Err(ReadError::Field("entries"));
    }
    let mut read = Vec::with_capacity(entries);
    for _ in 0..entries {
        let term = fields.u64()?;
        let [entry_kind] = fields.array()?;
        let entry_kind = match entry_kind {
            0 => EntryKind::Normal,
            2 => EntryKind::MembershipV2,
            _ => return Err(ReadError::Field("entry kind")),
        };
        let bytes = length(fields)?;
        if bytes > ENTRY_BYTES_MAX {
            return Err(ReadError::Field("entry length"));
        }
        read.push(Entry { term, kind: entry_kind, data: share(body, fields, bytes)? });
    }
    Ok(read)
}

fn boolean(byte: u8) -> Result<bool, ReadError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(ReadError::Field("flag")),
    }
}

fn length(fields: &mut Reader<'_>) -> Result<usize, ReadError> {
    Ok(usize::try_from(fields.u32()?).unwrap_or(usize::MAX))
}

fn count(count: usize) -> [u8; 4] {
    u32::try_from(count).expect("lengths are bounded").to_le_bytes()
}
