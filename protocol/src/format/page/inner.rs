//! The inner page: names of pages one level down.

use super::{
    FAN_OUT, LEVEL_MAX, PAGE_BYTES_MAX, PageError, VERSION, bytes,
    bytes::{OBJECT_BYTES, Reader},
    check_first,
};
use crate::{format::metadata::ObjectRef, id::BlockIndex};

pub(super) const KIND: u8 = 2;
const HEADER_BYTES: usize = 16;
/// Bytes of one child in an inner page or a root.
pub(super) const CHILD_BYTES: usize = 4 + OBJECT_BYTES;

/// One named page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// Which part of the page's range it covers, 0 to 255.
    pub slot: u8,
    /// Its object.
    pub page: ObjectRef,
}

/// A decoded inner page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InnerPayload {
    /// Its level, from 1 and below [`LEVEL_MAX`]; its children are of the level below, leaves are level 0.
    pub level: u8,
    /// First block it covers, a multiple of what a page of its level covers.
    pub first: BlockIndex,
    /// Sorted by slot; a slot that is not named holds no mapped block.
    pub children: Vec<Child>,
}

impl InnerPayload {
    /// The page's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.children.len() * CHILD_BYTES);
        out.extend_from_slice(&[KIND, VERSION, self.level, 0]);
        out.extend_from_slice(&self.first.0.to_le_bytes());
        out.extend_from_slice(&bytes::count_u16(self.children.len()).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        put_children(&mut out, &self.children);
        out
    }

    /// Reads an inner page.
    ///
    /// # Errors
    /// When the bytes are not exactly one inner page.
    pub fn decode(payload: &[u8]) -> Result<Self, PageError> {
        let mut reader = Reader::open(payload, PAGE_BYTES_MAX)?;
        let level = reader.u8()?;
        if !(1..LEVEL_MAX).contains(&level) {
            return Err(PageError::Bounds("level"));
        }
        reader.zeros::<1>()?;
        let first = BlockIndex(reader.u64()?);
        check_first(first, level)?;
        let count = usize::from(reader.u16()?);
        reader.zeros::<2>()?;
        reader.expect_left(count * CHILD_BYTES)?;
        let children = read_children(&mut reader, count)?;
        Ok(Self { level, first, children })
    }
}

pub(super) fn put_children(out: &mut Vec<u8>, children: &[Child]) {
    for child in children {
        out.extend_from_slice(&[child.slot, 0, 0, 0]);
        bytes::put_object(out, &child.page);
    }
}

/// Reads `count` children; the caller has checked that their bytes are there.
pub(super) fn read_children(reader: &mut Reader<'_>, count: usize) -> Result<Vec<Child>, PageError> {
    if count as u64 > FAN_OUT {
        return Err(PageError::Bounds("number of children"));
    }
    let mut children: Vec<Child> = Vec::with_capacity(count);
    for _ in 0..count {
        let slot = reader.u8()?;
        reader.zeros::<3>()?;
        if children.last().is_some_and(|last| last.slot >= slot) {
            return Err(PageError::Order("children"));
        }
        children.push(Child { slot, page: reader.object()? });
    }
    Ok(children)
}
