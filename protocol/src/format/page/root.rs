//! The root: the top of one checkpoint.

use super::{
    Child, LEVEL_MAX, PageError, ROOT_BYTES_MAX, UsageIndex, VERSION, VOLUME_BLOCKS_MAX,
    bytes::{self, OBJECT_BYTES, Reader},
    inner::{self, CHILD_BYTES},
    level_blocks,
};
use crate::{
    format::metadata::ObjectRef,
    id::{Epoch, Hash, Incarnation, Jseq, Seq},
};

pub(super) const KIND: u8 = 3;
const HEADER_BYTES: usize = 120;
const USAGE_BYTES: usize = 12 + OBJECT_BYTES;

/// The instant of a volume that a checkpoint is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The last sequence record it includes.
    pub seq: Seq,
    /// The chain hash of that record.
    pub chain: Hash,
    /// The owner epoch of that record.
    pub epoch: Epoch,
    /// The last journal position it includes.
    pub last: Jseq,
    /// The journal's chain hash there.
    pub journal_chain: Hash,
}

/// A usage page and which segments it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRef {
    /// The segments.
    pub index: UsageIndex,
    /// The page's object.
    pub page: ObjectRef,
}

/// A decoded root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootPayload {
    /// What it is a checkpoint of.
    pub cut: Cut,
    /// The volume's size.
    pub size_blocks: u64,
    /// Blocks that are mapped.
    pub mapped_blocks: u64,
    /// Its level, 1 to [`LEVEL_MAX`]: its children are of the level below. Covers the volume's size.
    pub level: u8,
    /// The top pages, sorted by slot.
    pub children: Vec<Child>,
    /// All usage pages, sorted.
    pub usage: Vec<UsageRef>,
}

impl RootPayload {
    /// The pages it names.
    pub fn objects(&self) -> impl Iterator<Item = &ObjectRef> {
        self.children.iter().map(|child| &child.page).chain(self.usage.iter().map(|usage| &usage.page))
    }

    /// The root's bytes.
    ///
    /// # Panics
    /// When there are more than [`USAGE_PAGES_MAX`](super::USAGE_PAGES_MAX) usage pages.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out =
            Vec::with_capacity(HEADER_BYTES + self.children.len() * CHILD_BYTES + self.usage.len() * USAGE_BYTES);
        out.extend_from_slice(&[KIND, VERSION, self.level, 0]);
        out.extend_from_slice(&bytes::count_u16(self.children.len()).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.cut.seq.0.to_le_bytes());
        out.extend_from_slice(&self.cut.chain.0);
        out.extend_from_slice(&self.cut.epoch.0.to_le_bytes());
        out.extend_from_slice(&self.cut.last.0.to_le_bytes());
        out.extend_from_slice(&self.cut.journal_chain.0);
        out.extend_from_slice(&self.size_blocks.to_le_bytes());
        out.extend_from_slice(&self.mapped_blocks.to_le_bytes());
        out.extend_from_slice(&u32::try_from(self.usage.len()).expect("usage pages are counted in u32").to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        inner::put_children(&mut out, &self.children);
        for usage in &self.usage {
            out.extend_from_slice(&usage.index.incarnation.0.to_le_bytes());
            out.extend_from_slice(&usage.index.index.to_le_bytes());
            bytes::put_object(&mut out, &usage.page);
        }
        assert!(out.len() <= ROOT_BYTES_MAX, "usage pages are counted before a checkpoint begins");
        out
    }

    /// Reads a root.
    ///
    /// # Errors
    /// When the bytes are not exactly one root.
    pub fn decode(payload: &[u8]) -> Result<Self, PageError> {
        let mut reader = Reader::open(payload, ROOT_BYTES_MAX)?;
        let level = reader.u8()?;
        if !(1..=LEVEL_MAX).contains(&level) {
            return Err(PageError::Bounds("level"));
        }
        reader.zeros::<1>()?;
        let child_count = usize::from(reader.u16()?);
        reader.zeros::<2>()?;
        let cut = Cut {
            seq: Seq(reader.u64()?),
            chain: Hash(reader.array()?),
            epoch: Epoch(reader.u64()?),
            last: Jseq(reader.u64()?),
            journal_chain: Hash(reader.array()?),
        };
        let size_blocks = reader.u64()?;
        if size_blocks > level_blocks(level) || size_blocks > VOLUME_BLOCKS_MAX {
            return Err(PageError::Bounds("size"));
        }
        let mapped_blocks = reader.u64()?;
        let usage_count = usize::try_from(reader.u32()?).map_err(|_| PageError::Length)?;
        reader.zeros::<4>()?;
        let usage_bytes = usage_count.checked_mul(USAGE_BYTES).ok_or(PageError::Length)?;
        reader.expect_left(usage_bytes.checked_add(child_count * CHILD_BYTES).ok_or(PageError::Length)?)?;
        let children = inner::read_children(&mut reader, child_count)?;
        let mut usage: Vec<UsageRef> = Vec::with_capacity(usage_count);
        for _ in 0..usage_count {
            let index = UsageIndex { incarnation: Incarnation(reader.u32()?), index: reader.u64()? };
            if usage.last().is_some_and(|last| last.index >= index) {
                return Err(PageError::Order("usage pages"));
            }
            usage.push(UsageRef { index, page: reader.object()? });
        }
        Ok(Self { cut, size_blocks, mapped_blocks, level, children, usage })
    }
}
