//! Metrics with a series for each volume or cloud, before a name picks one.

use prometheus::{GaugeVec, HistogramVec, IntCounterVec, IntGaugeVec};

/// Of volumes.
pub(super) struct VolumeSeries {
    pub(super) size_bytes: IntGaugeVec,
    pub(super) dirty_bytes: IntGaugeVec,
    pub(super) oldest_dirty_seconds: GaugeVec,
    pub(super) head_seq: IntGaugeVec,
    pub(super) durable_seq: IntGaugeVec,
    pub(super) stored_bytes: IntGaugeVec,
    pub(super) live_bytes: IntGaugeVec,
    pub(super) lineage: IntGaugeVec,
}

/// Of clouds.
pub(super) struct CloudSeries {
    pub(super) requests: IntCounterVec,
    pub(super) seconds: HistogramVec,
    pub(super) sent_bytes: IntCounterVec,
    pub(super) received_bytes: IntCounterVec,
    pub(super) up: IntGaugeVec,
    pub(super) states: IntGaugeVec,
    pub(super) in_flight: IntGaugeVec,
    pub(super) retries: IntCounterVec,
    pub(super) hedged: IntCounterVec,
    pub(super) lag_records: IntGaugeVec,
    pub(super) lag_bytes: IntGaugeVec,
    pub(super) reclaimed_objects: IntCounterVec,
    pub(super) reclaimed_bytes: IntCounterVec,
    pub(super) repaired: IntCounterVec,
}
