//! Sealing and opening under one key of one purpose.

use std::{fmt, sync::Arc};

use hkdf::Hkdf;
use sha2::Sha256;

use super::{
    cipher::{Cipher, Fast, NONCE_BYTES, Plain, TAG_BYTES},
    secret::Secret,
};

/// Bytes that sealing adds: the nonce before and the tag after.
pub const SEAL_OVERHEAD_BYTES: usize = NONCE_BYTES + TAG_BYTES;

/// Why sealed bytes do not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Shorter than a nonce and a tag.
    #[error("{0} bytes are too short to be sealed")]
    TooShort(usize),
    /// Damaged, forged, sealed under another key, or bound to something else. Which of these cannot be told.
    #[error("the sealed bytes are not authentic for what they are bound to")]
    NotAuthentic,
}

/// A key that seals one kind of thing. Cheap to clone; may cross threads, so that sealing can run on the compute pool.
///
/// Nonces are hedged: drawn from a keyed hash over fresh random bytes, the associated data and the plaintext. With sound
/// randomness they are uniform; with a random source that repeats itself (a cloned machine), two nonces are the same only
/// for the same bytes bound to the same place.
#[derive(Clone)]
pub struct SealKey(Arc<Keys>);

struct Keys {
    cipher: Secret<32>,
    hedge: Secret<32>,
    form: Form,
}

#[derive(Clone, Copy)]
enum Form {
    Data,
    Keys,
}

impl Form {
    fn cipher(self) -> &'static dyn Cipher {
        match self {
            Self::Data => &Fast,
            Self::Keys => &Plain,
        }
    }
}

impl SealKey {
    /// The key for data with the label `purpose`, derived from `secret`.
    pub(super) fn derive(secret: &Secret<32>, salt: &[u8], purpose: &[&[u8]]) -> Self {
        Self::derive_form(secret, salt, purpose, Form::Data)
    }

    /// The same for wrapping other keys.
    pub(super) fn derive_wrapping(secret: &Secret<32>, salt: &[u8], purpose: &[&[u8]]) -> Self {
        Self::derive_form(secret, salt, purpose, Form::Keys)
    }

    fn derive_form(secret: &Secret<32>, salt: &[u8], purpose: &[&[u8]], form: Form) -> Self {
        let cipher = expand(secret, salt, purpose, b"/aead");
        let hedge = expand(secret, salt, purpose, b"/hedge");
        Self(Arc::new(Keys { cipher, hedge, form }))
    }

    /// Seals `plaintext`, bound to `aad`: nonce, ciphertext, tag. `fresh` comes from [`crate::env::Entropy::fresh32`].
    #[must_use]
    pub fn seal(&self, fresh: &[u8; 32], aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(plaintext.len() + SEAL_OVERHEAD_BYTES);
        self.seal_into(fresh, aad, plaintext, &mut out);
        out
    }

    /// Like [`SealKey::seal`], appending to `out`.
    pub fn seal_into(&self, fresh: &[u8; 32], aad: &[u8], plaintext: &[u8], out: &mut Vec<u8>) {
        let nonce = self.nonce(fresh, aad, plaintext);
        out.reserve(plaintext.len() + SEAL_OVERHEAD_BYTES);
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(plaintext);
        let (_, buffer) = out.split_at_mut(start);
        let tag = self.0.form.cipher().seal(&self.0.cipher, &nonce, aad, buffer);
        out.extend_from_slice(&tag);
    }

    /// Opens what [`SealKey::seal`] gave for the same `aad`.
    ///
    /// # Errors
    /// When the bytes are not exactly that; no plaintext is released then.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let too_short = OpenError::TooShort(sealed.len());
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(too_short)?;
        let (ciphertext, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(too_short)?;
        let cipher = self.0.form.cipher();
        cipher.open(&self.0.cipher, nonce, aad, ciphertext, tag).ok_or(OpenError::NotAuthentic)
    }

    fn nonce(&self, fresh: &[u8; 32], aad: &[u8], plaintext: &[u8]) -> [u8; NONCE_BYTES] {
        // By itself first: blocks are whole chunks, which are hashed side by side only where they begin one.
        let hashed = blake3::keyed_hash(self.0.hedge.expose(), plaintext);
        // All but the binding have a fixed width, so where it ends is unambiguous.
        let mut hasher = blake3::Hasher::new_keyed(self.0.hedge.expose());
        hasher.update(fresh).update(aad).update(hashed.as_bytes());
        let mut nonce = [0; NONCE_BYTES];
        hasher.finalize_xof().fill(&mut nonce);
        nonce
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(..)")
    }
}

/// HKDF-SHA256 of `secret`: 32 bytes for `purpose` and `part`.
pub(super) fn expand(secret: &Secret<32>, salt: &[u8], purpose: &[&[u8]], part: &[u8]) -> Secret<32> {
    let info = [&purpose.concat()[..], part].concat();
    let hkdf = Hkdf::<Sha256>::new(Some(salt), secret.expose());
    Secret::fill_with(|place| hkdf.expand(&info, place).expect("32 bytes are within what HKDF gives"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SealKey {
        SealKey::derive(&Secret::fill_with(|bytes| bytes.fill(byte)), b"salt", &[b"test"])
    }

    #[test]
    fn what_is_sealed_opens_for_the_same_binding() {
        let sealed = key(1).seal(&[9; 32], b"bound", b"text");
        assert_eq!(sealed.len(), 4 + SEAL_OVERHEAD_BYTES);
        assert_eq!(key(1).open(b"bound", &sealed), Ok(b"text".to_vec()));
    }

    #[test]
    fn the_derivation_and_the_nonce_are_frozen() {
        let sealed = key(1).seal(&[9; 32], b"bound", b"text");
        let golden = "1a7baa5d9187203f3b1fcc4f4df5db06088fe1435409fca1d9ec23f57d1b92fcc6095a6e98fae46c8044b105";
        let hex: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden);
    }

    #[test]
    fn nothing_opens_under_another_binding_key_or_purpose() {
        let sealed = key(1).seal(&[9; 32], b"bound", b"text");
        assert_eq!(key(1).open(b"other", &sealed), Err(OpenError::NotAuthentic));
        assert_eq!(key(2).open(b"bound", &sealed), Err(OpenError::NotAuthentic));
        let other = SealKey::derive(&Secret::fill_with(|bytes| bytes.fill(1)), b"salt", &[b"tent"]);
        assert_eq!(other.open(b"bound", &sealed), Err(OpenError::NotAuthentic));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_found() {
        let sealed = key(1).seal(&[9; 32], b"bound", b"text");
        for at in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert_eq!(key(1).open(b"bound", &bad), Err(OpenError::NotAuthentic), "bit {at}");
        }
    }

    #[test]
    fn every_other_length_is_refused() {
        let sealed = key(1).seal(&[9; 32], b"bound", b"text");
        for length in 0..sealed.len() {
            assert!(key(1).open(b"bound", &sealed[..length]).is_err(), "{length} bytes");
        }
        assert!(key(1).open(b"bound", &[&sealed[..], &[0]].concat()).is_err());
        assert_eq!(key(1).open(b"bound", b""), Err(OpenError::TooShort(0)));
    }

    #[test]
    fn a_stuck_random_source_repeats_no_nonce_for_other_bytes_or_places() {
        let stuck = [0; 32];
        let nonce = |aad: &[u8], text: &[u8]| key(1).seal(&stuck, aad, text)[..NONCE_BYTES].to_vec();
        assert_ne!(nonce(b"a1", b"text"), nonce(b"a2", b"text"));
        assert_ne!(nonce(b"a1", b"text"), nonce(b"a1", b"next"));
        assert_eq!(nonce(b"a1", b"text"), nonce(b"a1", b"text"));
    }

    #[test]
    fn sealing_the_same_bytes_twice_looks_different() {
        assert_ne!(key(1).seal(&[1; 32], b"a", b"text"), key(1).seal(&[2; 32], b"a", b"text"));
    }

    #[test]
    fn wrapping_and_data_forms_are_the_same_construction() {
        let secret = Secret::fill_with(|bytes| bytes.fill(1));
        let wrapping = SealKey::derive_wrapping(&secret, b"salt", &[b"test"]);
        assert_eq!(wrapping.seal(&[9; 32], b"bound", b"text"), key(1).seal(&[9; 32], b"bound", b"text"));
    }
}
