//! CRY1: a nonce is never used for two different seals. Nonces are 24 bytes and hedged, so the ledger does not even ask under
//! which key: the same nonce with other bytes after it, anywhere in a run, is a broken promise.

use std::collections::BTreeMap;

use velum_protocol::{
    checksum,
    format::{object::PRELUDE_BYTES, record, segment::Entry},
    version::{JOURNAL_RECORD, LEAD_BYTES, SEGMENT},
};

use super::Verdict;

/// Bytes of a nonce, which come first in everything sealed.
const NONCE_BYTES: usize = 24;

/// Every nonce seen, with a hash of what was sealed under it.
#[derive(Debug, Default)]
pub struct Nonces {
    seen: BTreeMap<[u8; NONCE_BYTES], u64>,
}

impl Nonces {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// True when nothing was seen yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// Notes one sealed thing: nonce, ciphertext and tag.
    ///
    /// # Errors
    /// When its nonce was used for something else.
    pub fn note(&mut self, sealed: &[u8], place: &str) -> Verdict {
        let Some((nonce, rest)) = sealed.split_first_chunk::<NONCE_BYTES>() else { return Ok(()) };
        let hash = checksum::hash(rest);
        let word = u64::from_le_bytes(*hash.0.first_chunk().expect("a hash has 32 bytes"));
        match self.seen.insert(*nonce, word) {
            Some(before) if before != word => Err(format!("a nonce was used twice, the second time in {place}")),
            _ => Ok(()),
        }
    }

    /// Notes everything sealed in a cloud object; `entries` are the frames of a segment.
    ///
    /// # Errors
    /// When a nonce in it was used for something else.
    pub fn note_object(&mut self, stored: &[u8], entries: &[Entry], place: &str) -> Verdict {
        let Some((prelude, body)) = stored.split_at_checked(PRELUDE_BYTES) else { return Ok(()) };
        self.note(&prelude[LEAD_BYTES..], place)?;
        if SEGMENT.check(stored).is_err() {
            return self.note(body, place);
        }
        let mut rest = body;
        for entry in entries {
            let (frame, after) = rest.split_at_checked(entry.sealed_bytes() as usize).unwrap_or((rest, &[]));
            self.note(frame, place)?;
            rest = after;
        }
        self.note(rest, place)
    }

    /// Notes every guest's write among bytes that go to a journal file.
    ///
    /// # Errors
    /// When a nonce in them was used for something else.
    pub fn note_journal(&mut self, bytes: &[u8], place: &str) -> Verdict {
        let lead = JOURNAL_RECORD.lead();
        let mut from = 0;
        while let Some(at) = bytes[from..].windows(LEAD_BYTES).position(|window| window == lead) {
            let start = from + at;
            if let Some((body, length)) = body_at(&bytes[start..]) {
                self.note(&bytes[start + body..start + body + length], place)?;
            }
            from = start + LEAD_BYTES;
        }
        Ok(())
    }
}

/// Where the sealed body of the journal record at the start of `bytes` begins, and how long it is.
fn body_at(bytes: &[u8]) -> Option<(usize, usize)> {
    // The decoder wants a record's exact bytes: find the length by asking for a body too short first.
    let header = bytes.get(..record::HEADER_BYTES)?;
    let length = match record::RecordHeader::decode(header) {
        Err(record::RecordError::BodyLength { expected, .. }) => usize::try_from(expected).ok()?,
        _ => return None,
    };
    (bytes.len() >= record::HEADER_BYTES + length).then_some((record::HEADER_BYTES, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seal_again_is_kept_and_another_under_its_nonce_is_rejected() {
        let mut nonces = Nonces::default();
        let sealed = [7; 60];
        assert_eq!(nonces.note(&sealed, "here"), Ok(()));
        assert_eq!(nonces.note(&sealed, "there"), Ok(()));
        let mut other = sealed;
        other[50] = 8;
        assert!(nonces.note(&other, "there").is_err());
        other[0] = 8;
        assert_eq!(nonces.note(&other, "there"), Ok(()));
    }
}
