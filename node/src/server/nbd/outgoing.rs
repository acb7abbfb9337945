//! Bytes that wait to be sent: heads of replies and the data between them, gathered for one vectored write.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes, BytesMut};

/// Data shorter than this is copied beside its head: a copy costs less than another slice to gather.
const COPY_BYTES_MAX: usize = 1024;

/// Slices handed to one vectored write.
pub const SLICES_MAX: usize = 128;

/// A queue of bytes. Data is held by reference, heads are packed together.
#[derive(Debug, Default)]
pub struct Outgoing {
    pieces: VecDeque<Bytes>,
    heads: BytesMut,
    length: usize,
}

impl Outgoing {
    /// Bytes that wait.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// True when nothing waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends what `encode` writes.
    pub fn head(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        let before = self.heads.len();
        encode(&mut self.heads);
        self.length += self.heads.len() - before;
    }

    /// Appends data.
    pub fn data(&mut self, data: Bytes) {
        if data.len() < COPY_BYTES_MAX {
            self.head(|heads| heads.extend_from_slice(&data));
        } else {
            self.seal_heads();
            self.length += data.len();
            self.pieces.push_back(data);
        }
    }

    /// The first slices in order; says how many there are.
    pub fn slices<'a>(&'a mut self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        self.seal_heads();
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// Forgets bytes that were sent.
    pub fn sent(&mut self, mut bytes: usize) {
        self.length = self.length.checked_sub(bytes).expect("no more is sent than was waiting");
        while bytes > 0 {
            let front = self.pieces.front_mut().expect("what was sent was in the pieces");
            if bytes < front.len() {
                front.advance(bytes);
                return;
            }
            bytes -= front.len();
            self.pieces.pop_front();
        }
    }

    fn seal_heads(&mut self) {
        if !self.heads.is_empty() {
            self.pieces.push_back(self.heads.split().freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_is_sent_how_it_arrives_in_order(
            parts in proptest::collection::vec((any::<bool>(), 0usize..2500), 0..160),
            steps in proptest::collection::vec(1usize..20_000, 8..20),
        ) {
            let mut outgoing = Outgoing::default();
            let (mut expected, mut received) = (Vec::new(), Vec::new());
            for ((is_head, length), fill) in parts.into_iter().zip((0..=255u8).cycle()) {
                let bytes = vec![fill; length];
                expected.extend_from_slice(&bytes);
                if is_head { outgoing.head(|heads| heads.extend_from_slice(&bytes)) } else { outgoing.data(Bytes::from(bytes)) }
            }
            prop_assert_eq!(outgoing.len(), expected.len());
            for step in steps.iter().cycle() {
                if outgoing.is_empty() { break }
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let count = outgoing.slices(&mut slices);
                let all: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
                let sent = (*step).min(all.len());
                received.extend_from_slice(&all[..sent]);
                outgoing.sent(sent);
            }
            prop_assert_eq!(received, expected);
        }
    }
}
