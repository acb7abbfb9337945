//! CRY2: no 16 bytes of a guest's data, of a key or of a long name are readable in anything that leaves the node's memory:
//! cloud objects and their names, journal, raft and cache files.

use super::Verdict;
use crate::guest::pattern::{LEAK_BYTES, Leaks, distinct};

/// Secrets beside guests' data, cut into windows.
#[derive(Debug, Default)]
pub struct Canaries {
    windows: Vec<(String, [u8; LEAK_BYTES])>,
    /// Which first two bytes any window has.
    firsts: Vec<bool>,
}

impl Canaries {
    /// Looks for any 16 bytes with at least eight distinct values of each of `secrets`, which have names for verdicts.
    #[must_use]
    pub fn new(secrets: &[(&str, &[u8])]) -> Self {
        let mut canaries = Self { windows: Vec::new(), firsts: vec![false; 1 << 16] };
        for (name, secret) in secrets {
            for window in secret.windows(LEAK_BYTES).filter(|window| distinct(window) >= 8) {
                let window = *window.first_chunk::<LEAK_BYTES>().expect("windows have that length");
                canaries.firsts[usize::from(u16::from_le_bytes([window[0], window[1]]))] = true;
                canaries.windows.push(((*name).to_owned(), window));
            }
        }
        canaries
    }

    /// Judges `bytes`, which were found at `place`.
    ///
    /// # Errors
    /// What is readable in them.
    pub fn check(&self, bytes: &[u8], place: &str) -> Verdict {
        if let Some(at) = Leaks::find(bytes) {
            return Err(format!("a guest's data is readable at byte {at} of {place}"));
        }
        for (at, window) in bytes.windows(LEAK_BYTES).enumerate() {
            if !self.firsts[usize::from(u16::from_le_bytes([window[0], window[1]]))] {
                continue;
            }
            if let Some((name, _)) = self.windows.iter().find(|(_, canary)| canary == window) {
                return Err(format!("{name} is readable at byte {at} of {place}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::pattern::payload;

    #[test]
    fn data_keys_and_names_are_found_and_noise_is_not() {
        let key: Vec<u8> = (0..32).map(|at| at * 7 + 3).collect();
        let canaries = Canaries::new(&[("the root key", &key), ("the volume's name", b"a-long-volume-name")]);
        let noise = [0x55; 4096];
        assert_eq!(canaries.check(&noise, "noise"), Ok(()));
        let put = |secret: &[u8]| {
            let mut bytes = noise.to_vec();
            bytes[1000..1000 + secret.len()].copy_from_slice(secret);
            canaries.check(&bytes, "the file")
        };
        assert!(put(&payload(3, 1)[100..116]).unwrap_err().contains("guest's data"));
        assert!(put(&key[9..25]).unwrap_err().contains("the root key"));
        assert!(put(b"-long-volume-nam").unwrap_err().contains("the volume's name"));
        assert_eq!(put(&key[9..24]), Ok(()));
    }
}
