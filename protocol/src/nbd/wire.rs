//! A bounded big-endian reader over one message.

use super::{Malformed, STRING_BYTES_MAX};

/// Reads fields from the front of a message.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// A magic number that must be there.
    pub(super) fn magic(&mut self, magic: u64) -> Result<(), Malformed> {
        if self.u64()? == magic { Ok(()) } else { Err(Malformed::Magic) }
    }

    /// A string of a length that the message itself gave.
    pub(super) fn text(&mut self, length: u32) -> Result<&'a str, Malformed> {
        let length = usize::try_from(length).map_err(|_| Malformed::Short)?;
        let bytes = self.0.split_at_checked(length).ok_or(Malformed::Short)?;
        self.0 = bytes.1;
        text(bytes.0)
    }

    /// Everything that is left, as a string.
    pub(super) fn rest_text(&mut self) -> Result<&'a str, Malformed> {
        text(std::mem::take(&mut self.0))
    }

    /// Everything that is left, as bytes.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(super) const fn left(&self) -> usize {
        self.0.len()
    }

    /// The message must end here.
    pub(super) const fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed::Trailing) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(*head)
    }
}

/// A string of the protocol: at most 4,096 bytes of UTF-8 without NUL.
pub(super) fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > STRING_BYTES_MAX {
        return Err(Malformed::StringTooLong);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed::NotText)?;
    if text.contains('\0') { Err(Malformed::NotText) } else { Ok(text) }
}

/// The length of something this side made, for a 32-bit field.
///
/// # Panics
/// When it does not fit, which the bounds of every encoder exclude.
pub(super) fn length32(length: usize) -> u32 {
    u32::try_from(length).expect("encoders make no message of 4 GiB")
}
