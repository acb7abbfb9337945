//! Checks against accidents: CRC32C for what a disk or a wire may damage, BLAKE3 for what names an object or links a chain.
//!
//! Neither keeps an attacker out; sealing does.

use crate::id::Hash;

/// CRC32C (Castagnoli) of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    ::crc32c::crc32c(bytes)
}

/// CRC32C of `bytes` put after whatever gave `before`.
#[must_use]
pub fn crc32c_append(before: u32, bytes: &[u8]) -> u32 {
    ::crc32c::crc32c_append(before, bytes)
}

/// BLAKE3 of `bytes`.
#[must_use]
pub fn hash(bytes: &[u8]) -> Hash {
    Hash(*blake3::hash(bytes).as_bytes())
}

/// BLAKE3 of the concatenation of `parts`; the caller sees to it that the parts' bounds are unambiguous.
#[must_use]
pub fn hash_parts(parts: &[&[u8]]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    Hash(*hasher.finalize().as_bytes())
}

/// One link of a chain: BLAKE3 over the label, the sealed thing's header (which holds the link before) and its ciphertext.
/// The header's length goes in too, so that no byte can change sides.
#[must_use]
pub fn chain(header: &[u8], ciphertext: &[u8]) -> Hash {
    let header_bytes = u64::try_from(header.len()).expect("a length in memory fits 64 bits");
    hash_parts(&[b"ca1.chain", &header_bytes.to_le_bytes(), header, ciphertext])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_has_its_published_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c_append(crc32c(b"1234"), b"56789"), 0xe306_9283);
    }

    #[test]
    fn hash_is_blake3() {
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(hash(b"").to_string(), empty);
        assert_eq!(hash_parts(&[b"ab", b"c"]), hash(b"abc"));
    }

    #[test]
    fn a_byte_moved_from_header_to_ciphertext_changes_the_chain() {
        assert_ne!(chain(b"ab", b"c"), chain(b"a", b"bc"));
    }
}
