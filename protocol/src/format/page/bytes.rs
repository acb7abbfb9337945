//! Reading and writing the fixed-width little-endian fields of pages.

use super::{PageError, VERSION};
use crate::{
    format::metadata::ObjectRef,
    id::{Hash, Incarnation, ObjectNumber},
};

/// Bytes of an object's name, length and hash.
pub(super) const OBJECT_BYTES: usize = 52;

/// What is left to read of a page.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Begins a page: bounds its length, reads kind and version. The kind was looked at by the caller.
    pub(super) fn open(payload: &'a [u8], bytes_max: usize) -> Result<Self, PageError> {
        if payload.len() > bytes_max {
            return Err(PageError::TooLong);
        }
        let mut reader = Self(payload);
        let [_kind, version] = reader.array()?;
        if version == VERSION { Ok(reader) } else { Err(PageError::Version(version)) }
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], PageError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(PageError::Length)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, PageError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, PageError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, PageError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, PageError> {
        self.array().map(u64::from_le_bytes)
    }

    /// `N` bytes that must be zero.
    pub(super) fn zeros<const N: usize>(&mut self) -> Result<(), PageError> {
        if self.array::<N>()? == [0; N] { Ok(()) } else { Err(PageError::Reserved) }
    }

    pub(super) fn object(&mut self) -> Result<ObjectRef, PageError> {
        Ok(ObjectRef {
            incarnation: Incarnation(self.u32()?),
            number: ObjectNumber(self.u64()?),
            bytes: self.u64()?,
            hash: Hash(self.array()?),
        })
    }

    /// Says that exactly `bytes` must be left: called before anything is allocated for what follows.
    pub(super) fn expect_left(&self, bytes: usize) -> Result<(), PageError> {
        if self.0.len() == bytes { Ok(()) } else { Err(PageError::Length) }
    }
}

pub(super) fn put_object(out: &mut Vec<u8>, object: &ObjectRef) {
    out.extend_from_slice(&object.incarnation.0.to_le_bytes());
    out.extend_from_slice(&object.number.0.to_le_bytes());
    out.extend_from_slice(&object.bytes.to_le_bytes());
    out.extend_from_slice(&object.hash.0);
}

/// A count that fits its field because the collection is bounded far below it.
pub(super) fn count_u16(len: usize) -> u16 {
    u16::try_from(len).expect("page entries are bounded below 65,536")
}
