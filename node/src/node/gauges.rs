//! Metrics that are states rather than events: looked at once a second and set.

use std::{
    rc::{Rc, Weak},
    time::Duration,
};

use super::{Assembly, views};
use crate::{
    actor,
    metrics::{IntCounter, IntGauge, Tier},
    peer::LinkState,
};

/// How often the gauges are set; scrapes are far apart compared with it.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// Sets the gauges from now on, for as long as the node lives.
pub(super) fn start(node: &Rc<Assembly>) {
    let (weak, clock) = (Rc::downgrade(node), Rc::clone(&node.env.clock));
    actor::spawn(async move {
        while observe(&weak) {
            clock.sleep(INTERVAL).await;
        }
    });
}

fn observe(node: &Weak<Assembly>) -> bool {
    let Some(node) = node.upgrade() else { return false };
    observe_journal(&node);
    observe_volumes(&node);
    observe_caches(&node);
    observe_raft(&node);
    observe_peers(&node);
    for (cloud, status) in node.clouds.clouds.iter().zip(views::clouds(&node)) {
        cloud.show();
        let metrics = node.metrics.cloud(&cloud.name().0);
        set(&metrics.lag_records, status.lag_records);
        set(&metrics.lag_bytes, status.lag_bytes);
    }
    true
}

fn observe_journal(node: &Assembly) {
    let (status, metrics) = (node.journal.status(), &node.metrics.journal);
    set(&metrics.live_bytes, status.bytes_live);
    set(&metrics.free_bytes, status.bytes_max.saturating_sub(status.bytes_live));
    metrics.poisoned.set(i64::from(status.poisoned.is_some()));
}

fn observe_volumes(node: &Assembly) {
    let (mut oldest, mut waiting) = (0.0_f64, 0);
    node.metadata.with(|state| {
        for (id, volume) in state.volumes.iter().filter(|(_, volume)| !volume.deleted) {
            let exposure = views::exposure(node, *id, volume);
            let age = exposure.oldest_dirty_seconds.unwrap_or(0.0);
            oldest = oldest.max(age);
            waiting += node.open.get(*id).map_or(0, |open| open.volume.waiting_writes());
            let metrics = node.metrics.volume(&volume.name);
            set(&metrics.size_bytes, volume.size_bytes);
            set(&metrics.dirty_bytes, exposure.dirty_bytes);
            metrics.oldest_dirty_seconds.set(age);
            set(&metrics.head_seq, exposure.head_seq);
            set(&metrics.durable_seq, exposure.durable_seq);
            let holdings = node.open.get(*id).and_then(|open| open.array.holdings()).unwrap_or_default();
            set(&metrics.stored_bytes, holdings.stored_bytes);
            set(&metrics.live_bytes, holdings.live_bytes);
            for cloud in &state.clouds {
                set(&node.metrics.cursor(&cloud.name.0, &volume.name), views::lag(volume, &cloud.name).cursor_seq);
            }
        }
    });
    let metrics = &node.metrics.dirty;
    set(&metrics.bytes, node.budget.bytes_used());
    set(&metrics.bytes_max, node.budget.bytes_max());
    metrics.oldest_seconds.set(oldest);
    metrics.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    raise(&metrics.waits, node.open.all().iter().map(|(_, open)| open.volume.stats().stalls).sum());
}

fn observe_caches(node: &Assembly) {
    let (memory, disk) = (node.memory.borrow().stats(), node.disk_cache.stats());
    let metrics = &node.metrics.cache;
    set(metrics.bytes.of(Tier::Memory), memory.bytes);
    set(metrics.bytes.of(Tier::Disk), disk.bytes);
    raise(metrics.evicted.of(Tier::Memory), memory.evicted);
    raise(metrics.evicted.of(Tier::Disk), disk.evicted);
    raise(metrics.hits.of(Tier::Disk), disk.hits);
    raise(&metrics.discarded, disk.discarded);
    let volumes = node.open.all();
    let sum =
        |of: fn(&crate::volume::machine::Stats) -> u64| volumes.iter().map(|(_, open)| of(&open.volume.stats())).sum();
    raise(metrics.hits.of(Tier::Memory), sum(|stats| stats.memory_hits));
    raise(metrics.hits.of(Tier::Buffer), sum(|stats| stats.buffer_hits));
    raise(&metrics.misses, sum(|stats| stats.misses));
    raise(&metrics.zeros, sum(|stats| stats.zero_blocks));
}

fn observe_raft(node: &Assembly) {
    let (status, metrics) = (node.consensus.status(), &node.metrics.raft);
    set(&metrics.term, status.term);
    set(&metrics.commit_index, status.commit);
    set(&metrics.applied_index, status.applied);
    metrics.leader.set(i64::from(status.is_leader));
    metrics.halted.set(i64::from(status.halted.is_some()));
    metrics.voters.set(i64::try_from(node.consensus.members().voters.len()).unwrap_or(i64::MAX));
    raise(&metrics.refused_messages, status.refused_messages);
}

fn observe_peers(node: &Assembly) {
    let (Some(peers), metrics) = (&node.peers, &node.metrics.peer) else { return };
    let links = &peers.links;
    let up = links.status().iter().filter(|link| link.state == LinkState::Up).count();
    metrics.links.set(i64::try_from(up).unwrap_or(i64::MAX));
    let counts = links.counts();
    raise(&metrics.dropped_frames, counts.dropped_frames.get());
    raise(&metrics.refused_connections, counts.refused_connections.get());
    raise(&metrics.sent_bytes, counts.sent_bytes.get());
    raise(&metrics.received_bytes, counts.received_bytes.get());
}

fn set(gauge: &IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Brings a counter up to what its owner counted. A volume that was closed takes its count with it; the metric stays.
fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}
