//! Payloads of checkpoint pages: what stands inside the sealed objects that hold a volume's extent map.
//!
//! Four kinds. A *leaf* maps up to [`LEAF_BLOCKS`] blocks to frames. An *inner* page names up to [`FAN_OUT`] pages one
//! level down. A *usage* page counts the live blocks of up to [`USAGE_SEGMENTS`] segments and holds the segments' lengths
//! and hashes. A *root* names the top pages and all usage pages and says which instant of the volume they are of.
//! Children are named by object number and hash, so the root's hash vouches for the whole tree.
//!
//! The bytes are canonical: equal contents have equal bytes, and a decoder refuses everything an encoder would not write
//! (unsorted runs, unused table entries, non-zero reserved bytes). The layouts are drawn in `docs/format.md`.

mod bytes;
mod inner;
mod leaf;
mod root;
mod summary;
mod usage;

pub use inner::{Child, InnerPayload};
pub use leaf::{LeafPayload, Run, SegmentId};
pub use root::{Cut, RootPayload, UsageRef};
pub use summary::{Summary, summarise};
pub use usage::{SegmentUsage, UsagePayload};

use crate::{
    format::metadata::ObjectRef,
    id::{BLOCK_BYTES, BlockIndex, Incarnation, VOLUME_BYTES_MAX},
};

/// Blocks a leaf covers: 16 MiB of the volume. A leaf is 4 KiB when the volume was written in sequence and 64 KiB to
/// 128 KiB when every block lies in a frame of its own, so that one request fetches it either way.
pub const LEAF_BLOCKS: u64 = 4096;

/// Pages an inner page or a root may name.
pub const FAN_OUT: u64 = 256;

/// Object numbers a usage page covers. Small, because a page is written anew when one of its counts changes.
pub const USAGE_SEGMENTS: u64 = 1024;

/// The highest level a root can stand on: 4,096 x 256^3 blocks are more than the largest volume has.
pub const LEVEL_MAX: u8 = 3;

/// The longest payload of a leaf, an inner or a usage page.
pub const PAGE_BYTES_MAX: usize = 192 << 10;

/// Usage pages a root may name: half as many again as live segments of the largest volume would fill if each page held but
/// 200 of its 1,024.
pub const USAGE_PAGES_MAX: usize = 60_000;

/// The longest payload of a root.
pub const ROOT_BYTES_MAX: usize = 120 + 256 * 56 + USAGE_PAGES_MAX * 64;

/// The version every payload starts with.
const VERSION: u8 = 1;

/// The most blocks a volume has.
pub const VOLUME_BLOCKS_MAX: u64 = VOLUME_BYTES_MAX / BLOCK_BYTES;

/// Blocks that a page of `level` covers; leaves are level 0.
///
/// # Panics
/// When `level` is above [`LEVEL_MAX`], which decoders refuse.
#[must_use]
pub const fn level_blocks(level: u8) -> u64 {
    assert!(level <= LEVEL_MAX + 1, "levels end above the largest volume");
    LEAF_BLOCKS << (8 * level)
}

/// The level a root stands on for a volume of `size_blocks`: its children are one level lower. At least 1.
#[must_use]
pub const fn root_level(size_blocks: u64) -> u8 {
    let mut level = 1;
    while level < LEVEL_MAX && level_blocks(level) < size_blocks {
        level += 1;
    }
    level
}

/// Why bytes are not a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// Longer than any page of its kind.
    #[error("the page is longer than any page may be")]
    TooLong,
    /// The bytes end before what they announce, or go on after it.
    #[error("the page's length is not what its counts say")]
    Length,
    /// No such kind of page.
    #[error("there is no kind of page {0}")]
    Kind(u8),
    /// A version this program does not know.
    #[error("page version {0} is not known")]
    Version(u8),
    /// A reserved byte is not zero.
    #[error("a reserved byte of the page is not zero")]
    Reserved,
    /// A field is outside its bounds.
    #[error("the page's {0} is out of bounds")]
    Bounds(&'static str),
    /// Entries are not in rising order, or overlap.
    #[error("the page's {0} are not in order")]
    Order(&'static str),
}

/// A decoded page of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Blocks to frames.
    Leaf(LeafPayload),
    /// Names of pages one level down.
    Inner(InnerPayload),
    /// The top of a checkpoint.
    Root(RootPayload),
    /// Live blocks of segments.
    Usage(UsagePayload),
}

impl Payload {
    /// Reads a page of any kind.
    ///
    /// # Errors
    /// When the bytes are not exactly one page.
    pub fn decode(payload: &[u8]) -> Result<Self, PageError> {
        match payload.first() {
            None => Err(PageError::Length),
            Some(&leaf::KIND) => LeafPayload::decode(payload).map(Self::Leaf),
            Some(&inner::KIND) => InnerPayload::decode(payload).map(Self::Inner),
            Some(&root::KIND) => RootPayload::decode(payload).map(Self::Root),
            Some(&usage::KIND) => UsagePayload::decode(payload).map(Self::Usage),
            Some(&other) => Err(PageError::Kind(other)),
        }
    }

    /// The objects this page names by hash: child pages, usage pages, segments. Walking from the root over child and
    /// usage pages reaches every object a checkpoint needs.
    #[must_use]
    pub fn objects(&self) -> Vec<ObjectRef> {
        match self {
            Self::Leaf(_) => Vec::new(),
            Self::Inner(inner) => inner.children.iter().map(|child| child.page.clone()).collect(),
            Self::Root(root) => root.objects().cloned().collect(),
            Self::Usage(usage) => usage.segments.iter().map(|segment| segment.object.clone()).collect(),
        }
    }
}

/// Checks that `first` is where a page of `level` can begin.
fn check_first(first: BlockIndex, level: u8) -> Result<(), PageError> {
    if first.0.is_multiple_of(level_blocks(level)) && first.0 < VOLUME_BLOCKS_MAX {
        Ok(())
    } else {
        Err(PageError::Bounds("first block"))
    }
}

/// Names a usage page: the segments of `incarnation` with numbers `index * 1024 .. (index + 1) * 1024`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UsageIndex {
    /// The cluster life that wrote the segments.
    pub incarnation: Incarnation,
    /// Segment number / [`USAGE_SEGMENTS`].
    pub index: u64,
}
