//! The event trace of a simulation and its 64-bit hash.
//!
//! Every event that could differ between two runs goes in, with its simulated time: the same seed must give the same hash
//! in every process.

use std::cell::{Cell, RefCell};

use crate::rng::mix;

/// Receives the text of an event when a trace is printed.
pub type Printer = Box<dyn Fn(&str)>;

/// The trace of one simulation.
#[derive(Default)]
pub struct Trace {
    hash: Cell<u64>,
    events: Cell<u64>,
    printer: RefCell<Option<Printer>>,
}

impl Trace {
    /// A trace that hands each event's text to `printer`.
    #[must_use]
    pub fn printing(printer: Option<Printer>) -> Self {
        Self { printer: RefCell::new(printer), ..Self::default() }
    }

    /// Records an event at `now_ms`: its kind, where it happened and its numbers.
    pub fn event(&self, now_ms: u64, kind: &str, place: &str, numbers: &[u64]) {
        let mut hash = mix(self.hash.get() ^ now_ms);
        for text in [kind, place] {
            for chunk in text.as_bytes().chunks(8) {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                hash = mix(hash.rotate_left(5) ^ u64::from_le_bytes(word));
            }
            hash = hash.wrapping_add(text.len() as u64);
        }
        for number in numbers {
            hash = mix(hash.rotate_left(5) ^ number);
        }
        self.hash.set(hash);
        self.events.set(self.events.get() + 1);
        if let Some(print) = &*self.printer.borrow() {
            print(&format!("{:>9}.{:03} {kind:<16} {place} {numbers:?}", now_ms / 1000, now_ms % 1000));
        }
    }

    /// The hash of all events so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash.get()
    }

    /// How many events there were.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events.get()
    }
}

/// A cheap fold of the bytes, so that the trace sees content.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(bytes.len() as u64, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (sum.rotate_left(7) ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_time_and_content_change_the_hash() {
        let hash = |events: &[(u64, &str, &str, &[u64])]| {
            let trace = Trace::default();
            for (at, kind, place, numbers) in events {
                trace.event(*at, kind, place, numbers);
            }
            trace.hash()
        };
        let first = hash(&[(1, "put", "a", &[1]), (1, "get", "b", &[2])]);
        assert_eq!(first, hash(&[(1, "put", "a", &[1]), (1, "get", "b", &[2])]));
        assert_ne!(first, hash(&[(1, "get", "b", &[2]), (1, "put", "a", &[1])]));
        assert_ne!(first, hash(&[(1, "put", "a", &[1]), (2, "get", "b", &[2])]));
        assert_ne!(first, hash(&[(1, "put", "a", &[1]), (1, "get", "b", &[3])]));
    }
}
