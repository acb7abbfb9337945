//! The node as operators see it: volumes with their exposure, clouds with their lag.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use velum_protocol::{
    admin::{CloudCheck, CloudLag, CloudState, CloudStatus, Exposure, Holdings, Reads, VolumeStatus, VolumeSummary},
    format::metadata::CloudName,
    id::VolumeId,
};

use super::Assembly;
use crate::{cloud::Cloud, config, metadata::state::VolumeState, metrics};

/// What a check writes into each cloud.
const PROBE: &[u8] = b"velum cloud check: this object may be deleted\n";

pub(super) fn volumes(node: &Assembly) -> Vec<VolumeSummary> {
    node.metadata.with(|state| {
        let live = state.volumes.iter().filter(|(_, volume)| !volume.deleted);
        live.map(|(id, volume)| VolumeSummary {
            name: volume.name.clone(),
            id: id.to_string(),
            size_bytes: volume.size_bytes,
            exposure: exposure(node, *id, volume),
        })
        .collect()
    })
}

pub(super) fn volume(node: &Assembly, id: VolumeId) -> Option<VolumeStatus> {
    node.metadata.with(|state| {
        let volume = state.volumes.get(&id).filter(|volume| !volume.deleted)?;
        Some(VolumeStatus {
            name: volume.name.clone(),
            id: id.to_string(),
            size_bytes: volume.size_bytes,
            epoch: volume.epoch.0,
            lineage: volume.lineage.0,
            sessions: sessions(node, id),
            checkpoint_seq: volume.checkpoint.as_ref().map(|checkpoint| checkpoint.seq.0),
            exposure: exposure(node, id, volume),
            holdings: holdings(node, id),
            reads: reads(node, id),
            clouds: state.clouds.iter().map(|cloud| lag(volume, &cloud.name)).collect(),
        })
    })
}

fn sessions(node: &Assembly, id: VolumeId) -> u64 {
    let count = node.open.get(id).map_or(0, |open| open.volume.session_count());
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// How reads are answered, where a volume may have another owner tomorrow.
fn reads(node: &Assembly, id: VolumeId) -> Option<Reads> {
    Some(if node.open.get(id)?.owning.as_ref()?.reads_by_lease() { Reads::Lease } else { Reads::Strict })
}

/// What the volume's segments hold, once they were looked at.
fn holdings(node: &Assembly, id: VolumeId) -> Option<Holdings> {
    let found = node.open.get(id)?.array.holdings()?;
    Some(Holdings { stored_bytes: found.stored_bytes, live_bytes: found.live_bytes })
}

/// What would be lost with this node.
pub(super) fn exposure(node: &Assembly, id: VolumeId, volume: &VolumeState) -> Exposure {
    let dirty = node.open.get(id).map(|open| open.volume.port().dirty()).unwrap_or_default();
    let now = node.env.clock.now();
    Exposure {
        dirty_bytes: dirty.buffered_bytes,
        oldest_dirty_seconds: dirty.exposed_since.map(|since| now.since(since).as_secs_f64()),
        head_seq: volume.head.seq.0,
        durable_seq: node.metadata.with(|state| volume.durable_seq(state.quorum)).0,
    }
}

/// How far one cloud is with one volume.
pub(super) fn lag(volume: &VolumeState, cloud: &CloudName) -> CloudLag {
    let cursor = volume.cursors.get(cloud).copied().unwrap_or_default();
    let lacking = volume.records.range(cursor.next()..).map(|(_, entry)| entry);
    let bytes = |entry: &crate::metadata::state::RecordEntry| {
        let record = u64::try_from(entry.record.len()).unwrap_or(u64::MAX);
        entry.objects.iter().fold(record, |sum, object| sum.saturating_add(object.bytes))
    };
    CloudLag {
        cloud: cloud.0.clone(),
        cursor_seq: cursor.0,
        lag_records: volume.head.seq.0.saturating_sub(cursor.0),
        lag_bytes: lacking.map(bytes).fold(0, u64::saturating_add),
    }
}

pub(super) fn clouds(node: &Assembly) -> Vec<CloudStatus> {
    node.metadata.with(|state| {
        let places = node.config.placed_clouds().into_iter().map(|cloud| cloud.url);
        let known = node.clouds.clouds.iter().zip(&state.clouds).zip(places);
        known
            .map(|((cloud, entry), url)| {
                let lags =
                    || state.volumes.values().filter(|volume| !volume.deleted).map(|volume| lag(volume, &entry.name));
                let health = cloud.health();
                CloudStatus {
                    name: entry.name.0.clone(),
                    state: state_of(health.state),
                    in_memory: config::is_in_memory(&url),
                    url,
                    last_error: health.last_error.map(|(_, error)| error),
                    read_seconds: health.read_time.map(|time| time.as_secs_f64()),
                    write_seconds: health.write_time.map(|time| time.as_secs_f64()),
                    lag_records: lags().map(|lag| lag.lag_records).sum(),
                    lag_bytes: lags().map(|lag| lag.lag_bytes).fold(0, u64::saturating_add),
                }
            })
            .collect()
    })
}

/// One cloud of [`clouds`].
pub(super) fn cloud(node: &Assembly, name: &str) -> Option<CloudStatus> {
    clouds(node).into_iter().find(|cloud| cloud.name == name)
}

const fn state_of(state: metrics::CloudState) -> CloudState {
    match state {
        metrics::CloudState::Up => CloudState::Up,
        metrics::CloudState::Away => CloudState::Away,
        metrics::CloudState::ReadOnly => CloudState::ReadOnly,
        metrics::CloudState::Emptied => CloudState::Emptied,
        metrics::CloudState::Foreign => CloudState::Foreign,
        metrics::CloudState::Returned => CloudState::Returned,
    }
}

/// Writes, reads back and deletes a small object in every cloud.
pub(super) async fn check_clouds(node: &Rc<Assembly>) -> Vec<CloudCheck> {
    let name = format!("velum/check/{}", VolumeId(node.env.entropy.fresh16()));
    join_all(node.clouds.clouds.iter().map(|cloud| check_cloud(node, cloud, &name))).await
}

async fn check_cloud(node: &Assembly, cloud: &Cloud, name: &str) -> CloudCheck {
    let clock = &node.env.clock;
    let began = clock.now();
    // Also for what becomes of a place that the node thinks is right.
    let written = match cloud.confirm().await {
        Ok(()) => cloud.put(name, Bytes::from_static(PROBE)).await,
        Err(error) => Err(error),
    };
    let wrote = clock.now();
    let read = cloud.get(name, 1 << 16).await;
    let ended = clock.now();
    let deleted = cloud.delete(name).await;
    let outcome = match (written, read, deleted) {
        (Err(error), _, _) => Err(format!("writing failed: {error}; look at its URL, options and credentials")),
        (_, Err(error), _) => Err(format!("reading back failed: {error}; look at the rights of its credentials")),
        (_, Ok(body), _) if body != PROBE => Err("it gave back other bytes than were stored".to_owned()),
        (_, _, Err(error)) => Err(format!("deleting failed: {error}; nothing will be reclaimed there")),
        _ => Ok(()),
    };
    let seconds = |time: Duration| outcome.is_ok().then_some(time.as_secs_f64());
    CloudCheck {
        name: cloud.name().0.clone(),
        ok: outcome.is_ok(),
        write_seconds: seconds(wrote.since(began)),
        read_seconds: seconds(ended.since(wrote)),
        detail: outcome.err(),
    }
}
