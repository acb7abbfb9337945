//! Fingerprints of 128 bits, by which the explorer knows a state again, and parts of states that are shared until they change.

use std::{
    cell::Cell,
    hash::{Hash, Hasher},
    ops::Deref,
    rc::Rc,
};

/// The fractional bits of the golden ratio, made odd.
const FACTOR: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

/// Makes a fingerprint of what it is fed. With ten million states two of them share one with a chance of 1 in 10^24; it is no
/// defence against somebody who wants them to.
#[derive(Debug, Default)]
pub struct Printer(u128);

impl Printer {
    /// Takes in one word. Each step can be undone, so two states differ as long as what comes behind is the same.
    pub fn word(&mut self, word: u128) {
        let mixed = (self.0 ^ word).wrapping_mul(FACTOR);
        self.0 = mixed ^ (mixed >> 64);
    }

    /// The fingerprint.
    #[must_use]
    pub fn print(&self) -> u128 {
        let mixed = self.0.wrapping_mul(FACTOR);
        mixed ^ (mixed >> 64)
    }
}

impl Hasher for Printer {
    fn write(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u128 | 1 << 120);
        for chunk in bytes.chunks(16) {
            let mut word = [0; 16];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u128::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.word(u128::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.word(u128::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.word(u128::from(number));
    }

    fn write_usize(&mut self, number: usize) {
        self.word(number as u128);
    }

    fn finish(&self) -> u64 {
        self.print() as u64
    }
}

/// The fingerprint of one thing.
pub fn print_of(what: &impl Hash) -> u128 {
    let mut printer = Printer::default();
    what.hash(&mut printer);
    printer.print()
}

/// A part of a state: one in memory for all states that have it, with its fingerprint once somebody has asked for that.
#[derive(Debug)]
pub struct Shared<T>(Rc<Printed<T>>);

#[derive(Clone, Debug)]
struct Printed<T> {
    value: T,
    print: Cell<Option<u128>>,
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T: Clone + Hash> Shared<T> {
    /// A part that no other state has.
    pub fn new(value: T) -> Self {
        Self(Rc::new(Printed { value, print: Cell::new(None) }))
    }

    /// To change it in this state alone.
    pub fn edit(&mut self) -> &mut T {
        let printed = Rc::make_mut(&mut self.0);
        printed.print.set(None);
        &mut printed.value
    }

    /// Its fingerprint.
    pub fn print(&self) -> u128 {
        let print = self.0.print.get().unwrap_or_else(|| print_of(&self.0.value));
        self.0.print.set(Some(print));
        print
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn small_differences_make_other_prints() {
        let small: BTreeSet<u128> = (0..20_000_u64).map(|number| print_of(&(number % 200, number / 200))).collect();
        assert_eq!(small.len(), 20_000);
        let lengths = [vec![], vec![0_u8], vec![0, 0], vec![0; 16], vec![0; 17]];
        assert_eq!(lengths.iter().map(print_of).collect::<BTreeSet<_>>().len(), lengths.len());
        assert_ne!(print_of(&[1_u64, 2]), print_of(&[2_u64, 1]));
    }

    #[test]
    fn a_change_is_seen_in_one_state_only() {
        let before = Shared::new(vec![1_u64]);
        let mut after = before.clone();
        let print = before.print();
        after.edit().push(2);
        assert_eq!((before.print(), before.len(), after.len()), (print, 1, 2));
        assert_ne!(after.print(), print);
        after.edit().pop();
        assert_eq!(after.print(), print);
    }
}
