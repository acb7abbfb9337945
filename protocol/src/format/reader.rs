//! Reading hand-laid bytes: every step is bounded, nothing panics, and what is left over is an error.

use crate::id::Hash;

/// Why hand-laid bytes do not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The bytes end before the value does.
    #[error("the bytes end early")]
    Truncated,
    /// Bytes are left over after the value.
    #[error("bytes are left over after the value")]
    Trailing,
    /// A number in more bytes than it needs, or beyond 64 bits.
    #[error("a number is not in its shortest form")]
    Number,
    /// A field holds what its place does not allow.
    #[error("the field {0} holds a value that is not allowed")]
    Field(&'static str),
}

/// Walks over bytes from their start.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not read yet.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], ReadError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(ReadError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(ReadError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// A little-endian 32-bit number.
    ///
    /// # Errors
    /// When the bytes end early.
    pub fn u32(&mut self) -> Result<u32, ReadError> {
        self.array().map(u32::from_le_bytes)
    }

    /// A little-endian 64-bit number.
    ///
    /// # Errors
    /// When the bytes end early.
    pub fn u64(&mut self) -> Result<u64, ReadError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A hash.
    ///
    /// # Errors
    /// When the bytes end early.
    pub fn hash(&mut self) -> Result<Hash, ReadError> {
        self.array().map(Hash)
    }

    /// A number of variable length, as [`put_varint`] writes it; longer forms of the same number are refused, so that equal
    /// values have equal bytes.
    ///
    /// # Errors
    /// When the bytes end early, or the number is not in its shortest form or too large.
    pub fn varint(&mut self) -> Result<u64, ReadError> {
        let mut value: u64 = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array::<1>()?;
            let bits = u64::from(byte & 0x7f);
            if bits.leading_zeros() < shift {
                return Err(ReadError::Number);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return if byte == 0 && shift > 0 { Err(ReadError::Number) } else { Ok(value) };
            }
        }
        Err(ReadError::Number)
    }

    /// A number of variable length that must fit 32 bits.
    ///
    /// # Errors
    /// As [`Reader::varint`]; a larger number is [`ReadError::Field`].
    pub fn varint32(&mut self, field: &'static str) -> Result<u32, ReadError> {
        u32::try_from(self.varint()?).map_err(|_| ReadError::Field(field))
    }

    /// Requires that nothing is left.
    ///
    /// # Errors
    /// When something is.
    pub const fn end(&self) -> Result<(), ReadError> {
        if self.rest.is_empty() { Ok(()) } else { Err(ReadError::Trailing) }
    }

    /// Requires that only zero bytes are left, and takes them.
    ///
    /// # Errors
    /// When another byte is found.
    pub fn zeros(&mut self, field: &'static str) -> Result<(), ReadError> {
        if self.rest.iter().any(|byte| *byte != 0) {
            return Err(ReadError::Field(field));
        }
        self.rest = &[];
        Ok(())
    }
}

/// Appends a number, seven bits a byte, lowest first; the top bit says that more follow.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = u8::try_from(value & 0x7f).expect("seven bits fit a byte");
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_at_the_edges_read_back() {
        for value in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut reader = Reader::new(&bytes);
            assert_eq!(reader.varint(), Ok(value));
            assert_eq!(reader.end(), Ok(()));
        }
    }

    #[test]
    fn a_number_in_a_longer_form_than_needed_is_refused() {
        for bytes in [&[0x80, 0x00][..], &[0xff, 0x80, 0x00], &[0xff; 10], &[0x80; 11]] {
            assert_eq!(Reader::new(bytes).varint(), Err(ReadError::Number), "{bytes:?}");
        }
    }

    #[test]
    fn a_number_beyond_64_bits_is_refused() {
        let mut bytes = vec![0xff; 9];
        bytes.push(0x02);
        assert_eq!(Reader::new(&bytes).varint(), Err(ReadError::Number));
    }

    proptest! {
        #[test]
        fn any_number_reads_back(value: u64) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            prop_assert_eq!(Reader::new(&bytes).varint(), Ok(value));
        }
    }
}
