//! What a world is at: looked at time and again, so that faults know into what they come.

use std::{cell::Cell, rc::Rc};

use velum_node::metadata::state::VolumeState;

use super::{World, host::Condition};
use crate::phases::Phases;

/// How often is looked, in milliseconds.
const LOOK_MS: u64 = 10;

/// Counts what is under way for as long as it lives.
pub(super) struct UnderWay(Rc<Cell<u32>>);

impl UnderWay {
    pub(super) fn new(count: &Rc<Cell<u32>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl World {
    /// Keeps looking until the world ends.
    pub(super) fn look_at_phases(self: &Rc<Self>) {
        let (world, sim) = (Rc::downgrade(self), Rc::clone(&self.sim));
        self.sim.spawn(async move {
            while let Some(world) = world.upgrade() {
                world.sim.phases.set(world.phases());
                drop(world);
                sim.sleep_ms(LOOK_MS).await;
            }
        });
    }

    fn phases(&self) -> Phases {
        let hosts = self.hosts();
        let nodes: Vec<_> = hosts.iter().filter_map(|host| host.seen()).collect();
        let newest = nodes.iter().max_by_key(|node| node.raft().applied);
        let is_led = self.options.nodes == 1 || nodes.iter().any(|node| node.raft().is_leader);
        let mut at = [false; 6];
        if let Some(node) = newest {
            let state = node.metadata().state();
            for (id, volume) in &state.volumes {
                let is_taken = state.ensembles.get(id).is_some_and(|kept| kept.opened < volume.epoch);
                let quorum = self.options.clouds / 2 + 1;
                let now = [
                    is_taken,
                    !volume.grants.is_empty(),
                    reached(volume, quorum) < volume.head.seq.0,
                    is_checkpoint_under_way(volume),
                    !volume.condemned.is_empty(),
                    reached(volume, self.options.clouds) < volume.head.seq.0,
                ];
                at.iter_mut().zip(now).for_each(|(at, now)| *at |= now);
            }
        }
        let [takeover, segments, record, checkpoint, reclaim, lag] = at;
        Phases::of([
            self.guests.iter().any(|guest| guest.in_flight() > 0),
            self.asked.get() > 0,
            hosts.iter().any(|host| host.condition() == Condition::Starting),
            !is_led,
            takeover,
            segments,
            record,
            checkpoint,
            reclaim,
            lag,
        ])
    }
}

/// The newest record that so many clouds hold with all before it.
fn reached(volume: &VolumeState, clouds: usize) -> u64 {
    let mut cursors: Vec<u64> = volume.cursors.values().map(|seq| seq.0).collect();
    cursors.sort_unstable_by(|one, other| other.cmp(one));
    cursors.get(clouds - 1).copied().unwrap_or_default()
}

/// Some cloud has not got the newest checkpoint.
fn is_checkpoint_under_way(volume: &VolumeState) -> bool {
    let Some(newest) = &volume.checkpoint else { return false };
    volume.cursors.keys().any(|cloud| volume.checkpoint_cursors.get(cloud).is_none_or(|number| *number < newest.number))
}
