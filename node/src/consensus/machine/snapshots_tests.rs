//! When a member stores its state.

use velum_protocol::format::raft::Membership;

use super::{
    super::{Input, JournalBounds, Log, Start},
    *,
};
use crate::{actor::Machine as _, env::Instant};

/// A member that is alone and does at once what its machine says, but for snapshots.
struct Alone {
    machine: Machine,
    /// Of snapshots it was to store.
    snapshots: Vec<u64>,
    trimmed: u64,
}

impl Alone {
    fn new() -> Self {
        let membership = Membership { voters: vec![1], ..Membership::default() };
        let hard_state = format::HardState { term: 1, vote: 0, commit: 1 };
        let mut log = Log::new((1, 1), convert::raft_members(membership), raft::eraftpb::HardState::default());
        log.set_hard_state(convert::raft_hard_state(hard_state));
        let journal = JournalBounds { record_bytes_max: 1 << 20, bytes_max: 1 << 30 };
        let start = Start { node: 1, nonce: 7, log, applied: 1, records: Vec::new(), first_start: false, journal };
        let mut alone = Self { machine: Machine::new(start).unwrap(), snapshots: Vec::new(), trimmed: 0 };
        alone.step(Input::Begin);
        alone
    }

    fn step(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut effects = Vec::new();
            self.machine.step(Instant(0), input, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Sync { through } => inputs.push(Input::Synced { through }),
                    Effect::Snapshot { index, .. } => self.snapshots.push(index),
                    Effect::Trim { through } => self.trimmed = through.number,
                    _ => {}
                }
            }
        }
    }

    fn propose(&mut self, count: u64) {
        for ticket in 0..count {
            self.step(Input::Propose { ticket, entry: Bytes::from_static(b"x") });
        }
    }
}

/// Raft's few records lay in every file of a small ring, far fewer than call for a snapshot by themselves, and nothing
/// else could give volumes room again.
#[test]
fn a_crowded_journal_calls_for_a_snapshot_once() {
    let mut alone = Alone::new();
    alone.propose(10);
    assert_eq!(alone.snapshots, [] as [u64; 0]);
    alone.step(Input::Crowded);
    assert_eq!(alone.snapshots.len(), 1);
    let index = alone.machine.applied;
    alone.step(Input::Snapshotted { index, bytes: 100 });
    assert_eq!(alone.trimmed + 1, alone.machine.record_synced, "all but the last durable record may go");
    alone.propose(10);
    assert_eq!(alone.snapshots, [index], "it is crowded no more");
}

#[test]
fn a_snapshot_that_could_not_be_written_is_tried_again_without_anything_being_proposed() {
    let mut alone = Alone::new();
    alone.propose(10);
    alone.step(Input::Crowded);
    alone.step(Input::SnapshotFailed);
    (1..RETRY_TICKS).for_each(|_| alone.step(Input::Tick));
    assert_eq!(alone.snapshots.len(), 1, "not at once");
    alone.step(Input::Tick);
    assert_eq!(alone.snapshots.len(), 2);
}
