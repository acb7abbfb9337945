//! The secret that opens a key slot, as a person or a file gives it.
//!
//! Pure: the caller reads the file or asks the terminal, and passes on what it got.

use std::fmt::Write;

use zeroize::{Zeroize, Zeroizing};

use super::secret::Secret;
use crate::env::Entropy;

/// Fewest characters of a passphrase of fewer than [`PASSPHRASE_WORDS_MIN`] words.
pub const PASSPHRASE_CHARS_MIN: usize = 12;
/// Fewest words of a passphrase of fewer than [`PASSPHRASE_CHARS_MIN`] characters.
pub const PASSPHRASE_WORDS_MIN: usize = 5;
/// Most bytes of a passphrase.
pub const PASSPHRASE_BYTES_MAX: usize = 1024;

/// Passphrases everybody knows; compared without case and spaces.
const KNOWN: [&str; 8] = [
    "passwordpassword",
    "correcthorsebatterystaple",
    "changemechangeme",
    "123456789012",
    "administrator",
    "qwertyuiopasdf",
    "letmeinletmein",
    "thisisapassphrase",
];

/// Opens a key slot.
pub enum ProviderSecret {
    /// 32 random bytes.
    Keyfile(Secret<32>),
    /// Something a person remembers.
    Passphrase(Passphrase),
}

/// A passphrase that kept the rules when it was read.
pub struct Passphrase(Zeroizing<String>);

/// Why a secret is not accepted. Never says what the secret is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// Others than the owner can use the keyfile.
    #[error("the keyfile's mode is {mode:04o}: others than its owner can use it; run `chmod 600` on it")]
    OpenToOthers {
        /// Permission bits found.
        mode: u32,
    },
    /// Not 32 raw bytes and not 64 hexadecimal digits.
    #[error("a keyfile holds 32 raw bytes or 64 hexadecimal digits; this one holds {bytes} bytes")]
    KeyfileForm {
        /// Bytes found.
        bytes: usize,
    },
    /// One byte value all over, or another key nobody drew at random.
    #[error("the keyfile holds no random key")]
    KeyfileNotRandom,
    /// Too short.
    #[error("a passphrase has at least {PASSPHRASE_CHARS_MIN} characters or {PASSPHRASE_WORDS_MIN} words")]
    PassphraseShort,
    /// Too long.
    #[error("a passphrase has at most {PASSPHRASE_BYTES_MAX} bytes")]
    PassphraseLong,
    /// One that everybody knows, or one character all over.
    #[error("this passphrase is one that others would try first")]
    PassphraseKnown,
}

impl ProviderSecret {
    /// Reads a keyfile's contents, given the permission bits of its metadata. `contents` is wiped.
    ///
    /// # Errors
    /// When others can use the file or it holds no key.
    pub fn from_keyfile(mode: u32, mut contents: Vec<u8>) -> Result<Self, ProviderError> {
        let secret = check_mode(mode).and_then(|()| keyfile_secret(&contents));
        contents.zeroize();
        secret.map(Self::Keyfile)
    }

    /// Takes a passphrase; one line ending is cut off. `text` is wiped.
    ///
    /// # Errors
    /// When it is too short, too long or known to everybody.
    pub fn from_passphrase(text: String) -> Result<Self, ProviderError> {
        let mut text = Zeroizing::new(text);
        let length = text.trim_end_matches(['\r', '\n']).len();
        text.truncate(length);
        if text.len() > PASSPHRASE_BYTES_MAX {
            return Err(ProviderError::PassphraseLong);
        }
        if text.chars().count() < PASSPHRASE_CHARS_MIN && text.split_whitespace().count() < PASSPHRASE_WORDS_MIN {
            return Err(ProviderError::PassphraseShort);
        }
        let plain: Zeroizing<String> =
            Zeroizing::new(text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect());
        let first = text.chars().next();
        if KNOWN.contains(&plain.as_str()) || text.chars().all(|c| Some(c) == first) {
            return Err(ProviderError::PassphraseKnown);
        }
        Ok(Self::Passphrase(Passphrase(text)))
    }
}

impl Passphrase {
    pub(super) fn expose(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// The contents of a new keyfile: 64 hexadecimal digits and a line ending.
pub fn new_keyfile(entropy: &dyn Entropy) -> Zeroizing<Vec<u8>> {
    let secret = Secret::<32>::random(entropy);
    let mut text = Zeroizing::new(String::with_capacity(65));
    for byte in secret.expose() {
        write!(text, "{byte:02x}").expect("writing to a string never fails");
    }
    text.push('\n');
    Zeroizing::new(text.as_bytes().to_vec())
}

/// Checks a keyfile's permission bits.
///
/// # Errors
/// When group or others may use it.
pub fn check_mode(mode: u32) -> Result<(), ProviderError> {
    let mode = mode & 0o7777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(ProviderError::OpenToOthers { mode }) }
}

fn keyfile_secret(contents: &[u8]) -> Result<Secret<32>, ProviderError> {
    let form = ProviderError::KeyfileForm { bytes: contents.len() };
    let secret = if contents.len() == 32 {
        Secret::take_from(&mut Zeroizing::new(contents.to_vec())).ok_or(form)?
    } else {
        parse_hex(contents).ok_or(form)?
    };
    let first = secret.expose().first();
    if secret.expose().iter().all(|byte| Some(byte) == first) {
        return Err(ProviderError::KeyfileNotRandom);
    }
    Ok(secret)
}

fn parse_hex(contents: &[u8]) -> Option<Secret<32>> {
    let digits = contents.strip_suffix(b"\n").unwrap_or(contents);
    let digits = digits.strip_suffix(b"\r").unwrap_or(digits);
    let mut whole = digits.len() == 64;
    let secret = Secret::fill_with(|bytes| {
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            let mut digit = |at: usize| {
                let value = pair.get(at).and_then(|digit| char::from(*digit).to_digit(16));
                whole &= value.is_some();
                value.and_then(|value| u8::try_from(value).ok()).unwrap_or(0)
            };
            *byte = (digit(0) << 4) | digit(1);
        }
    });
    whole.then_some(secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::tests::Counting;

    fn error(result: Result<ProviderSecret, ProviderError>) -> Option<ProviderError> {
        result.err()
    }

    fn keyfile(contents: &[u8]) -> Result<ProviderSecret, ProviderError> {
        ProviderSecret::from_keyfile(0o100_600, contents.to_vec())
    }

    #[test]
    fn raw_and_hexadecimal_keyfiles_give_the_same_key() {
        let raw: [u8; 32] = std::array::from_fn(|index| u8::try_from(index * 7).unwrap());
        let hex: String = raw.iter().map(|byte| format!("{byte:02X}")).collect();
        for contents in [raw.to_vec(), hex.clone().into(), format!("{hex}\n").into(), format!("{hex}\r\n").into()] {
            let Ok(ProviderSecret::Keyfile(secret)) = keyfile(&contents) else { panic!("a keyfile is refused") };
            assert!(secret.is(&raw));
        }
    }

    #[test]
    fn a_new_keyfile_reads_back_and_is_not_the_next_one() {
        let entropy = Counting::default();
        let (one, two) = (new_keyfile(&entropy), new_keyfile(&entropy));
        assert_ne!(one, two);
        assert!(keyfile(&one).is_ok());
    }

    #[test]
    fn a_keyfile_others_can_use_is_refused() {
        for mode in [0o640, 0o604, 0o644, 0o660, 0o610, 0o100_644] {
            let refused = error(ProviderSecret::from_keyfile(mode, vec![1; 32]));
            assert_eq!(refused, Some(ProviderError::OpenToOthers { mode: mode & 0o7777 }));
        }
        assert_eq!(check_mode(0o100_400), Ok(()));
    }

    #[test]
    fn other_forms_are_refused() {
        for contents in [&b""[..], &[1; 31], &[1; 33], &[b'a'; 63], &[b'a'; 66], &[b'g'; 64], &[b'+'; 64], &[1; 64]] {
            assert_eq!(error(keyfile(contents)), Some(ProviderError::KeyfileForm { bytes: contents.len() }));
        }
    }

    #[test]
    fn a_key_nobody_drew_is_refused() {
        assert_eq!(error(keyfile(&[0; 32])), Some(ProviderError::KeyfileNotRandom));
        assert_eq!(error(keyfile(&[b'0'; 64])), Some(ProviderError::KeyfileNotRandom));
    }

    #[test]
    fn passphrase_rules() {
        let judge = |text: &str| error(ProviderSecret::from_passphrase(text.to_owned()));
        assert_eq!(judge("short"), Some(ProviderError::PassphraseShort));
        assert_eq!(judge("elevenchars"), Some(ProviderError::PassphraseShort));
        assert_eq!(judge("elevenchars\n"), Some(ProviderError::PassphraseShort));
        assert_eq!(judge("a b c d e"), None);
        assert_eq!(judge("twelve chars"), None);
        assert_eq!(judge("Correct Horse Battery Staple"), Some(ProviderError::PassphraseKnown));
        assert_eq!(judge("xxxxxxxxxxxxxxx"), Some(ProviderError::PassphraseKnown));
        assert_eq!(judge(&"ab".repeat(600)), Some(ProviderError::PassphraseLong));
    }
}
