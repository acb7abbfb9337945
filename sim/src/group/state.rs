//! The state machine of a simulated group: the list of all proposals applied, with a hash over their order.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use bytes::Bytes;
use velum_node::consensus::{Applier, RestoreError};

use crate::{
    checker::own7::{Applied, Led, check_applied, check_leader},
    rng::mix,
    runtime::Sim,
};

/// What all members of a world are judged by.
#[derive(Default)]
pub(super) struct Witness {
    agreed: RefCell<BTreeMap<u64, (u64, u64)>>,
    leaders: RefCell<BTreeMap<u64, u64>>,
}

impl Witness {
    /// Somebody leads.
    pub(super) fn led(&self, sim: &Sim, led: Led) {
        if let Err(why) = check_leader(&mut self.leaders.borrow_mut(), led) {
            sim.fail(format!("OWN7: {why}"));
        }
    }

    /// How many terms had a leader.
    pub(super) fn leaders(&self) -> usize {
        self.leaders.borrow().len()
    }
}

/// The list.
pub(super) struct State {
    sim: Rc<Sim>,
    witness: Rc<Witness>,
    node: u64,
    index: u64,
    hash: u64,
    numbers: Vec<u64>,
    /// Zeros that a snapshot carries along, so that it is longer than one piece.
    padding: usize,
    /// Snapshots taken on from others in this life.
    pub(super) restored: Cell<u64>,
    /// The key of the hash map that a state machine with a bug goes by, another one in each process.
    hash_key: Option<u64>,
}

impl State {
    /// An empty list.
    pub(super) fn new(sim: Rc<Sim>, witness: Rc<Witness>, node: u64, padding: usize) -> Self {
        Self {
            sim,
            witness,
            node,
            index: 0,
            hash: 0,
            numbers: Vec::new(),
            padding,
            restored: Cell::new(0),
            hash_key: None,
        }
    }

    /// From now on it looks at what it holds in the order of a hash map with this key.
    pub(super) fn go_by_hash(&mut self, key: u64) {
        self.hash_key = Some(key);
    }

    /// The hash once `number` has joined the list.
    fn hash_with(&self, number: u64) -> u64 {
        let join = |hash: u64, number: &u64| mix(hash.rotate_left(7) ^ number);
        let Some(key) = self.hash_key else { return join(self.hash, &number) };
        let mut numbers: Vec<u64> = self.numbers.iter().copied().chain([number]).collect();
        numbers.sort_by_key(|number| mix(key ^ number));
        numbers.iter().fold(0, join)
    }

    /// The proposals applied, in order.
    pub(super) fn numbers(&self) -> &[u64] {
        &self.numbers
    }

    /// The hash over their order.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }
}

/// The saved form of a list without entries.
pub(super) fn empty() -> Bytes {
    Bytes::from_static(&[0; 24])
}

fn load(snapshot: &[u8]) -> Option<(u64, u64, Vec<u64>)> {
    let mut words = snapshot.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    let (index, hash, count) = (words.next()?, words.next()?, words.next()?);
    let numbers: Vec<u64> = words.take(count as usize).collect();
    (numbers.len() as u64 == count).then_some((index, hash, numbers))
}

impl Applier for State {
    fn apply(&mut self, index: u64, entry: &[u8]) -> Bytes {
        let number = u64::from_le_bytes(*entry.first_chunk().expect("proposals begin with their number"));
        self.hash = self.hash_with(number);
        let applied = Applied { node: self.node, index, state: self.hash };
        if let Err(why) = check_applied(&mut self.witness.agreed.borrow_mut(), self.index, applied) {
            self.sim.fail(format!("OWN7: {why}"));
        }
        self.index = index;
        self.numbers.push(number);
        Bytes::copy_from_slice(&index.to_le_bytes())
    }

    fn snapshot(&self) -> Bytes {
        let head = [self.index, self.hash, self.numbers.len() as u64];
        let mut out: Vec<u8> = head.iter().chain(&self.numbers).flat_map(|word| word.to_le_bytes()).collect();
        out.resize(out.len() + self.padding, 0);
        out.into()
    }

    fn check(&self, snapshot: &[u8]) -> Result<(), RestoreError> {
        load(snapshot).map(drop).ok_or_else(|| RestoreError("it is no list".to_owned()))
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        let loaded = load(snapshot).ok_or_else(|| RestoreError("it is no list".to_owned()))?;
        (self.index, self.hash, self.numbers) = loaded;
        self.restored.set(self.restored.get() + 1);
        Ok(())
    }
}
