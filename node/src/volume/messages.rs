//! What doors ask of a volume and what it answers; what the cloud array application asks and gets.

use std::{rc::Rc, sync::Arc};

use bytes::Bytes;
use velum_protocol::{
    format::{
        location::{Frame, RunUpdate},
        metadata::ObjectRef,
    },
    id::{BlockCount, BlockIndex, Epoch, Hash, Jseq, Pass, Seq, SessionId, VolumeId},
};

use crate::{
    env::{Instant, Local},
    extent::ExtentMap,
};

/// The authenticated user behind a session, as ACLs name it: `anonymous`, or `uid:1000` for a local process on the
/// unix socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Principal(pub Rc<str>);

/// Who a session is of: the user behind it, and by what it was let in, if somebody is attached to the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entrant {
    /// The user.
    pub principal: Principal,
    /// The attachment and the connection on it.
    pub pass: Option<Pass>,
}

/// Which request of which session; comes back with the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The session that asked.
    pub session: SessionId,
    /// The session's own number for the request.
    pub tag: u64,
}

/// One request of a guest. Offsets and lengths are in bytes; length zero is done without effect.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where the reply goes.
    pub origin: Origin,
    /// What is asked.
    pub operation: Operation,
}

/// What a guest can ask of a volume.
#[expect(missing_docs, reason = "offsets and lengths are in bytes; the variant says what they bound")]
#[derive(Clone, Debug)]
pub enum Operation {
    /// Bytes at an offset.
    Read { offset: u64, length: u32 },
    /// Stores the payload at an offset; acked at d0, or at d1 with `fua`.
    Write { offset: u64, payload: Bytes, fua: bool },
    /// Gives a range up; it reads as zeros afterwards.
    Trim { offset: u64, length: u64, fua: bool },
    /// Makes a range read as zeros. `no_hole` asks to keep it allocated: it is then written as data.
    WriteZeroes { offset: u64, length: u64, no_hole: bool, fua: bool },
    /// Acked when every write acked before is at d1.
    Barrier,
    /// Brings a range into the cache.
    Prefetch { offset: u64, length: u32 },
    /// Which parts of a range hold data; at most `extents_max` extents are answered.
    Status { offset: u64, length: u32, extents_max: usize },
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The request answered.
    pub origin: Origin,
    /// How it went.
    pub outcome: Outcome,
}

/// How a request went.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The bytes read, in order, as pieces whose lengths add up to the request's.
    Data(Vec<Bytes>),
    /// Done, at the durability asked for.
    Done,
    /// Allocation of a range, from its start, without gaps.
    Status(Vec<StatusExtent>),
    /// Not done; nothing changed.
    Refused(Refusal),
}

/// A stretch of a volume and whether it holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Length in bytes.
    pub length: u64,
    /// True when nothing is stored there: it is a hole and reads as zeros.
    pub hole: bool,
}

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Gate 1 or gate 2 said no.
    #[error("the principal may not do this here")]
    NotAllowed,
    /// The range leaves the volume.
    #[error("the range ends beyond the volume")]
    OutOfRange,
    /// The volume or the node is going away.
    #[error("the volume is closing")]
    Closing,
    /// The data cannot be had or the journal is poisoned.
    #[error("the volume cannot serve this now")]
    Failed,
}

/// Where a volume puts the replies of one session.
pub trait Replies {
    /// Takes one reply; called on the volume's thread, possibly from within [`Door::submit`].
    fn reply(&self, reply: Reply);
    /// The session is over: no more replies come, and what it has under way may be done or not. Its guest must not be told that
    /// anything failed, for it may have not; the connection is to end.
    fn end(&self);
}

/// A volume as its doors see it. Sessions share the volume's thread, so these are direct calls.
pub trait Door {
    /// The volume's size in bytes now.
    fn size_bytes(&self) -> u64;
    /// Lets a session in. Gate 1 has passed; gate 2 will judge each request by who it is of.
    fn attach(&self, session: SessionId, entrant: Entrant, replies: Rc<dyn Replies>);
    /// Hands in a request; the reply comes through the session's [`Replies`], in any order.
    fn submit(&self, request: Request);
    /// Says that no more requests are at hand: everything submitted goes to the journal in one write now.
    fn end_burst(&self);
    /// Lets a session go: none of its requests that are not in the journal takes effect any more, and no reply comes.
    fn detach(&self, session: SessionId);
    /// Completes when somebody serves the volume, or with false when nobody who does is reached from here; none when somebody does. A
    /// session may attach all the same.
    fn opening(&self) -> Option<Local<bool>> {
        None
    }
}

/// A contiguous stretch of the journal, newest version per block, frozen for a flush.
#[derive(Clone, Debug)]
pub struct Window {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch of the owner that freezes it; the writes may come from an earlier one, found in the journal at start.
    pub epoch: Epoch,
    /// First position in the window.
    pub first: Jseq,
    /// Last position in the window.
    pub last: Jseq,
    /// The journal's chain hash at `last`.
    pub chain: Hash,
    /// What changed, in block order, disjoint.
    pub changes: Vec<Change>,
}

/// One change in a window.
#[expect(missing_docs, reason = "the variant says what its fields are")]
#[derive(Clone, Debug)]
pub enum Change {
    /// A block's new contents, 4,096 bytes.
    Data { block: BlockIndex, contents: Bytes },
    /// A run now reads as zeros.
    Unmap { start: BlockIndex, count: BlockCount },
}

impl Change {
    /// First block concerned.
    #[must_use]
    pub const fn start(&self) -> u64 {
        match self {
            Self::Data { block, .. } => block.0,
            Self::Unmap { start, .. } => start.0,
        }
    }

    /// One past the last block concerned.
    #[must_use]
    pub const fn end(&self) -> u64 {
        match self {
            Self::Data { block, .. } => block.0 + 1,
            Self::Unmap { start, count } => start.0 + count.0,
        }
    }
}

/// A window has been committed by Raft as sequence record `seq`: its blocks are clean and lie where `updates` say.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The record's place in the sequence.
    pub seq: Seq,
    /// The window's last position.
    pub last: Jseq,
    /// The segments that hold the window; the map is told of them before it is given `updates`.
    pub segments: Vec<ObjectRef>,
    /// The extent map's changes, in block order, disjoint.
    pub updates: Vec<RunUpdate>,
}

/// Blocks have been moved by a record that Raft has committed: they lie where `updates` say, with the contents they had.
#[derive(Clone, Debug)]
pub struct Relocated {
    /// The segment that holds them now; the map is told of it before it is given `updates`.
    pub segment: ObjectRef,
    /// The extent map's changes, in block order, disjoint.
    pub updates: Vec<RunUpdate>,
    /// The blocks, in block order.
    pub moved: Vec<Moved>,
}

/// One block that was moved.
#[derive(Clone, Debug)]
pub struct Moved {
    /// Which.
    pub block: BlockIndex,
    /// The frame that held it before.
    pub from: Frame,
    /// Its contents, 4,096 bytes in a buffer of their own.
    pub contents: Bytes,
}

/// What a volume has for a flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirtyStatus {
    /// Bytes charged for what no flush has taken yet.
    pub bytes: u64,
    /// Since when the oldest of them is dirty.
    pub oldest: Option<Instant>,
    /// Bytes charged for all that is not in the map yet, taken by a flush or not.
    pub buffered_bytes: u64,
    /// Since when the oldest write is not at d2; none when every write is.
    pub exposed_since: Option<Instant>,
    /// The last position that is at d0.
    pub last: Jseq,
    /// The last position that is at d2.
    pub durable: Jseq,
    /// True while a write waits for the dirty budget or the journal: a flush should not wait for its usual reasons.
    pub short: bool,
}

/// What the cloud array application asks of a volume. It shares the volume's thread, so these are direct calls, and none of
/// them is made from within [`FlushPort::on_dirty`]'s wake.
pub trait FlushPort {
    /// What there is to flush.
    fn dirty(&self) -> DirtyStatus;
    /// Cuts off what is dirty, or hands out the oldest window that was cut off already: one window, at d0. `None` when
    /// nothing is dirty or the journal is poisoned. Several windows may be out; they are committed in order.
    fn freeze(&self) -> Option<Arc<Window>>;
    /// The oldest frozen window is in the sequence: its blocks are found by the map from now on.
    fn committed(&self, committed: Committed);
    /// Blocks of the map lie elsewhere now; nothing of the buffer is concerned.
    fn relocated(&self, relocated: Relocated);
    /// Everything up to `last` is at d2; the journal may forget it.
    fn durable(&self, last: Jseq);
    /// Has `wake` called when the dirty bytes pass the flush threshold and when a write has to wait for a flush.
    fn on_dirty(&self, wake: Rc<dyn Fn()>);
    /// Lends the extent map, for a checkpoint or a compaction. `read` must not call back into the volume.
    fn with_map(&self, read: &mut dyn FnMut(&mut ExtentMap));
}
