//! Metrics that are states rather than events: looked at once a second and set.

use std::{
    collections::BTreeMap,
    rc::{Rc, Weak},
    time::Duration,
};

use velum_protocol::{
    admin::MemberRole,
    id::{Lineage, NodeId, VolumeId},
};

use super::{
    Assembly,
    owning::{Owning, Standing},
    views,
};
use crate::{
    actor,
    metadata::State,
    metrics::{IntCounter, IntGauge, Label, NodeRole, Tier},
    peer::LinkState,
};

/// How often the gauges are set; scrapes are far apart compared with it.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// Sets the gauges from now on, for as long as the node lives.
pub(super) fn start(node: &Rc<Assembly>) {
    let (weak, clock) = (Rc::downgrade(node), Rc::clone(&node.env.clock));
    // Before any volume is opened: what changes by that is counted.
    let mut seen = node.metadata.with(Seen::of);
    actor::spawn(async move {
        while observe(&weak, &mut seen) {
            clock.sleep(INTERVAL).await;
        }
    });
}

fn observe(node: &Weak<Assembly>, seen: &mut Seen) -> bool {
    let Some(node) = node.upgrade() else { return false };
    observe_journal(&node);
    observe_volumes(&node);
    observe_caches(&node);
    observe_raft(&node);
    observe_peers(&node);
    observe_ensembles(&node);
    observe_attachments(&node);
    observe_cluster(&node, seen);
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
            set(&metrics.lineage, volume.lineage.0);
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
    metrics.has_leader.set(i64::from(status.leader.is_some()));
    metrics.halted.set(i64::from(status.halted.is_some()));
    metrics.voters.set(count(node.consensus.members().voters.len()));
    raise(&metrics.refused_messages, status.refused_messages);
}

fn observe_ensembles(node: &Assembly) {
    let volumes = node.open.all();
    let copies = volumes.iter().filter_map(|(_, open)| open.owning.as_ref()).flat_map(Owning::copies);
    let standings: Vec<Standing> = copies.map(|(_, standing)| standing).collect();
    let of = |standing: Standing| count(standings.iter().filter(|held| **held == standing).count());
    let metrics = &node.metrics.ensemble;
    metrics.members_current.set(of(Standing::Current));
    metrics.members_lagging.set(of(Standing::Lagging));
    metrics.members_gone.set(of(Standing::Gone));
}

fn observe_attachments(node: &Assembly) {
    let metrics = &node.metrics.attachment;
    let (mut attachments, mut connections, mut permits) = (0, 0, 0);
    node.metadata.with(|state| {
        let own = state.attachments.iter().filter(|(id, _)| node.open.get(**id).is_some());
        for (_, of_volume) in own {
            attachments += of_volume.live.len();
            connections += of_volume.live.values().map(|attachment| attachment.connections.len()).sum::<usize>();
            permits += of_volume.permits.len();
        }
    });
    metrics.attachments.set(count(attachments));
    metrics.connections.set(count(connections));
    metrics.permits.set(count(permits));
}

fn observe_peers(node: &Assembly) {
    let (Some(peers), metrics) = (&node.peers, &node.metrics.peer) else { return };
    let links = &peers.links;
    let status = links.status();
    let up = status.iter().filter(|link| link.state == LinkState::Up).count();
    metrics.links.set(count(up));
    metrics.down_links.set(count(status.len() - up));
    let counts = links.counts();
    raise(&metrics.dropped_frames, counts.dropped_frames.get());
    raise(&metrics.refused_connections, counts.refused_connections.get());
    raise(&metrics.sent_bytes, counts.sent_bytes.get());
    raise(&metrics.received_bytes, counts.received_bytes.get());
}

fn observe_cluster(node: &Assembly, seen: &mut Seen) {
    let metrics = &node.metrics;
    let roles = node.cluster_status().nodes.into_iter().map(|member| match member.role {
        MemberRole::Leader | MemberRole::Voter => NodeRole::Voter,
        MemberRole::Learner => NodeRole::Learner,
        MemberRole::Joining => NodeRole::Joining,
        MemberRole::Leaving => NodeRole::Leaving,
    });
    let roles: Vec<NodeRole> = roles.collect();
    for role in NodeRole::ALL {
        metrics.cluster.nodes.of(*role).set(count(roles.iter().filter(|held| *held == role).count()));
    }
    let (now, wanted) = node.metadata.with(|state| {
        let own = |id: &VolumeId| state.volumes.get(id).is_some_and(|volume| volume.owner == Some(node.node));
        let kept = state.ensembles.iter().filter(|(id, _)| own(id));
        (Seen::of(state), kept.map(|(_, ensemble)| ensemble.members.len()).sum())
    });
    metrics.ensemble.members_wanted.set(count(wanted));
    let changes = now.since(seen);
    metrics.cluster.owner_changes.inc_by(changes.owners);
    metrics.ensemble.lineage_changes.inc_by(changes.lineages);
    *seen = now;
}

/// Owner and lineage of each volume, as they were seen last.
struct Seen(BTreeMap<VolumeId, (Option<NodeId>, Lineage)>);

/// What has changed since.
#[derive(Debug, PartialEq, Eq)]
struct Changes {
    owners: u64,
    lineages: u64,
}

impl Seen {
    fn of(state: &State) -> Self {
        Self(state.volumes.iter().map(|(id, volume)| (*id, (volume.owner, volume.lineage))).collect())
    }

    /// A volume that is new, or has its first owner, has changed nothing. Of several changes between two looks each lineage counts,
    /// and the last owner.
    fn since(&self, before: &Self) -> Changes {
        let mut changes = Changes { owners: 0, lineages: 0 };
        for (id, (owner, lineage)) in &self.0 {
            let Some((owner_before, lineage_before)) = before.0.get(id) else { continue };
            changes.owners += u64::from(owner_before.is_some() && owner_before != owner);
            changes.lineages += lineage.0.saturating_sub(lineage_before.0);
        }
        changes
    }
}

fn count(things: usize) -> i64 {
    i64::try_from(things).unwrap_or(i64::MAX)
}

fn set(gauge: &IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Brings a counter up to what its owner counted. A volume that was closed takes its count with it; the metric stays.
fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_owner_and_lineage_are_counted_and_beginnings_are_not() {
        let seen = |volumes: &[(u8, Option<u64>, u64)]| {
            let entry = |(id, owner, lineage): &(u8, Option<u64>, u64)| {
                (VolumeId([*id; 16]), (owner.map(NodeId), Lineage(*lineage)))
            };
            Seen(volumes.iter().map(entry).collect())
        };
        let before = seen(&[(1, Some(1), 1), (2, None, 1), (3, Some(1), 4)]);
        let after = seen(&[(1, Some(2), 1), (2, Some(1), 1), (3, Some(1), 6), (4, Some(3), 1)]);
        assert_eq!(after.since(&before), Changes { owners: 1, lineages: 2 });
        assert_eq!(after.since(&after), Changes { owners: 0, lineages: 0 });
    }
}
