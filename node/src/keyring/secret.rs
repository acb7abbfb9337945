//! Secrets in memory: boxed, so that no move leaves a copy behind; wiped when dropped; never printed, copied or compared
//! carelessly.

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::env::Entropy;

/// A secret of `N` bytes. Deliberately neither `Clone`, `Debug`, `Display`, `PartialEq` nor `Serialize`.
#[derive(ZeroizeOnDrop)]
pub struct Secret<const N: usize>(Box<[u8; N]>);

impl<const N: usize> Secret<N> {
    /// Fresh random bytes.
    pub fn random(entropy: &dyn Entropy) -> Self {
        Self::fill_with(|bytes| entropy.fill(bytes))
    }

    /// A secret written in place, so that it never stands elsewhere.
    pub(super) fn fill_with(fill: impl FnOnce(&mut [u8; N])) -> Self {
        let mut bytes = Box::new([0; N]);
        fill(&mut bytes);
        Self(bytes)
    }

    /// Takes a secret over from a buffer and wipes the buffer. `None` when the length is not `N`.
    pub(super) fn take_from(buffer: &mut [u8]) -> Option<Self> {
        let taken = <&[u8; N]>::try_from(&*buffer).ok().map(|bytes| Self::fill_with(|place| *place = *bytes));
        buffer.zeroize();
        taken
    }

    /// The bytes; for the keyring only.
    pub(super) fn expose(&self) -> &[u8; N] {
        &self.0
    }

    /// Compares in constant time.
    #[must_use]
    pub fn is(&self, bytes: &[u8; N]) -> bool {
        self.0.ct_eq(bytes).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_a_secret_over_wipes_the_buffer() {
        let mut buffer = [7; 32];
        let secret = Secret::<32>::take_from(&mut buffer).unwrap();
        assert!(secret.is(&[7; 32]));
        assert!(!secret.is(&[8; 32]));
        assert_eq!(buffer, [0; 32]);
    }

    #[test]
    fn a_buffer_of_another_length_is_no_secret_and_is_wiped_too() {
        let mut buffer = [7; 31];
        assert!(Secret::<32>::take_from(&mut buffer).is_none());
        assert_eq!(buffer, [0; 31]);
    }
}
