//! Every metric of a node: its name, its labels and what it counts, in one place (those of the cluster in `metrics/cluster.rs`).
//!
//! Names are `velum_<module>_<what>_<unit>[_total]` in base units. Label values come from enums, from the names of the
//! configured clouds, or from the first [`VOLUMES_LABELLED_MAX`] volumes, so that nothing a guest sends can make a series.
//! Constructors are given an `Arc<Metrics>`; counting is one atomic addition and never waits. `docs/metrics.md` tells an
//! operator what each one means.

use std::{collections::BTreeSet, sync::Mutex};

use prometheus::{Encoder, Gauge, GaugeVec, Histogram, IntGaugeVec, Opts, Registry, TextEncoder};
pub use prometheus::{IntCounter, IntGauge};

mod cluster;
mod forward;
mod label;
mod make;
mod series;

pub use cluster::{AttachmentMetrics, ClusterMetrics, EnsembleMetrics, PeerMetrics};
pub use forward::ForwardMetrics;
pub use label::{
    By, CloudOutcome, CloudRequest, CloudState, FlushPhase, Gate, GuestOutcome, GuestRequest, Label, NodeRole, ReadsBy,
    RefusedInput, Side, Tier, WorkOutcome,
};
use make::Make;
use series::{CloudSeries, VolumeSeries};

/// Volumes beyond this many share the label value `other`: a series of each costs about 2 KiB here and more in Prometheus.
pub const VOLUMES_LABELLED_MAX: usize = 256;

/// Local work, from a memory hit (about 20 us over a socket) to a guest that waits for a cloud.
const LOCAL_SECONDS: &[f64] = &[
    25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0,
];
/// Requests to clouds and what is made of them.
const CLOUD_SECONDS: &[f64] =
    &[1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Requests of guests.
#[derive(Clone, Debug)]
pub struct NbdMetrics {
    /// `velum_nbd_requests_total`
    pub requests: By<GuestRequest, By<GuestOutcome, IntCounter>>,
    /// `velum_nbd_request_seconds`: from the request's last byte to its reply.
    pub seconds: By<GuestRequest, Histogram>,
    /// `velum_nbd_read_bytes_total`
    pub read_bytes: IntCounter,
    /// `velum_nbd_written_bytes_total`
    pub written_bytes: IntCounter,
    /// `velum_nbd_sessions`
    pub sessions: IntGauge,
    /// `velum_nbd_sessions_opened_total`
    pub sessions_opened: IntCounter,
    /// `velum_nbd_in_flight_requests`
    pub in_flight: IntGauge,
    /// `velum_nbd_refused_inputs_total`
    pub refused_inputs: By<RefusedInput, IntCounter>,
}

/// Requests of operators.
#[derive(Clone, Debug)]
pub struct AdminMetrics {
    /// `velum_admin_requests_total`
    pub requests: IntCounter,
    /// `velum_admin_refused_requests_total`
    pub refused: IntCounter,
}

/// The node's dirty extents.
#[derive(Clone, Debug)]
pub struct DirtyMetrics {
    /// `velum_dirty_bytes`
    pub bytes: IntGauge,
    /// `velum_dirty_max_bytes`
    pub bytes_max: IntGauge,
    /// `velum_dirty_oldest_seconds`: age of the oldest byte that is not cloud-durable, 0 when there is none.
    pub oldest_seconds: Gauge,
    /// `velum_dirty_waiting_requests`: writes that wait for room now.
    pub waiting: IntGauge,
    /// `velum_dirty_waits_total`: writes that had to wait for room.
    pub waits: IntCounter,
}

/// One volume.
#[derive(Clone, Debug)]
pub struct VolumeMetrics {
    /// `velum_volume_size_bytes`
    pub size_bytes: IntGauge,
    /// `velum_volume_dirty_bytes`
    pub dirty_bytes: IntGauge,
    /// `velum_volume_oldest_dirty_seconds`
    pub oldest_dirty_seconds: Gauge,
    /// `velum_volume_head_seq`
    pub head_seq: IntGauge,
    /// `velum_volume_durable_seq`
    pub durable_seq: IntGauge,
    /// `velum_volume_stored_bytes`
    pub stored_bytes: IntGauge,
    /// `velum_volume_live_bytes`
    pub live_bytes: IntGauge,
    /// `velum_volume_lineage`
    pub lineage: IntGauge,
}

/// The write-ahead log.
#[derive(Clone, Debug)]
pub struct JournalMetrics {
    /// `velum_journal_appended_bytes_total`
    pub appended_bytes: IntCounter,
    /// `velum_journal_appended_records_total`
    pub appended_records: IntCounter,
    /// `velum_journal_moved_bytes_total`: live records copied out of nearly dead files.
    pub moved_bytes: IntCounter,
    /// `velum_journal_writes_total`
    pub writes: IntCounter,
    /// `velum_journal_syncs_total`
    pub syncs: IntCounter,
    /// `velum_journal_sync_seconds`
    pub sync_seconds: Histogram,
    /// `velum_journal_live_bytes`
    pub live_bytes: IntGauge,
    /// `velum_journal_free_bytes`
    pub free_bytes: IntGauge,
    /// `velum_journal_poisoned`
    pub poisoned: IntGauge,
}

/// From dirty to clean.
#[derive(Clone, Debug)]
pub struct FlushMetrics {
    /// `velum_flush_windows_total`
    pub windows: By<WorkOutcome, IntCounter>,
    /// `velum_flush_seconds`
    pub seconds: By<FlushPhase, Histogram>,
    /// `velum_flush_exposed_seconds`: age of a window's oldest byte when the window became cloud-durable.
    pub exposed_seconds: Histogram,
    /// `velum_flush_bytes_total`: contents of flushed blocks.
    pub bytes: IntCounter,
    /// `velum_flush_stored_bytes_total`: bytes of the segments made of them, once however many clouds there are.
    pub stored_bytes: IntCounter,
}

/// Reads and where they were served from.
#[derive(Clone, Debug)]
pub struct CacheMetrics {
    /// `velum_cache_hit_blocks_total`
    pub hits: By<Tier, IntCounter>,
    /// `velum_cache_missed_blocks_total`: blocks fetched from a cloud.
    pub misses: IntCounter,
    /// `velum_cache_zero_blocks_total`: blocks that nothing is stored for.
    pub zeros: IntCounter,
    /// `velum_cache_bytes`
    pub bytes: By<Tier, IntGauge>,
    /// `velum_cache_evicted_blocks_total`
    pub evicted: By<Tier, IntCounter>,
    /// `velum_cache_discarded_blocks_total`: disk slots that were damaged and fetched again.
    pub discarded: IntCounter,
}

/// Agreement.
#[derive(Clone, Debug)]
pub struct RaftMetrics {
    /// `velum_raft_term`
    pub term: IntGauge,
    /// `velum_raft_commit_index`
    pub commit_index: IntGauge,
    /// `velum_raft_applied_index`
    pub applied_index: IntGauge,
    /// `velum_raft_leader`: 1 on the leader.
    pub leader: IntGauge,
    /// `velum_raft_has_leader`: 1 while the node knows of one.
    pub has_leader: IntGauge,
    /// `velum_raft_halted`
    pub halted: IntGauge,
    /// `velum_raft_voters`
    pub voters: IntGauge,
    /// `velum_raft_refused_messages_total`
    pub refused_messages: IntCounter,
    /// `velum_raft_proposals_total`
    pub proposals: By<WorkOutcome, IntCounter>,
    /// `velum_raft_proposal_seconds`: from proposed to applied.
    pub proposal_seconds: Histogram,
}

/// Checkpoints and reclaim.
#[derive(Clone, Debug)]
pub struct UpkeepMetrics {
    /// `velum_checkpoint_runs_total`
    pub checkpoints: By<WorkOutcome, IntCounter>,
    /// `velum_checkpoint_seconds`
    pub checkpoint_seconds: Histogram,
    /// `velum_checkpoint_pages_total`
    pub pages: IntCounter,
    /// `velum_checkpoint_stored_bytes_total`
    pub stored_bytes: IntCounter,
    /// `velum_reclaim_condemned_objects`: objects that wait to be deleted.
    pub condemned: IntGauge,
}

/// Compaction.
#[derive(Clone, Debug)]
pub struct CompactMetrics {
    /// `velum_compact_steps_total`
    pub steps: By<WorkOutcome, IntCounter>,
    /// `velum_compact_read_bytes_total`
    pub read_bytes: IntCounter,
    /// `velum_compact_moved_bytes_total`
    pub moved_bytes: IntCounter,
    /// `velum_compact_stored_bytes_total`
    pub stored_bytes: IntCounter,
}

/// One cloud.
#[derive(Clone, Debug)]
pub struct CloudMetrics {
    /// `velum_cloud_requests_total`: attempts.
    pub requests: By<CloudRequest, By<CloudOutcome, IntCounter>>,
    /// `velum_cloud_request_seconds`: attempts that were answered.
    pub seconds: By<CloudRequest, Histogram>,
    /// `velum_cloud_sent_bytes_total`
    pub sent_bytes: IntCounter,
    /// `velum_cloud_received_bytes_total`
    pub received_bytes: IntCounter,
    /// `velum_cloud_up`: 1 when it answers, takes what is stored, and is the cluster's.
    pub up: IntGauge,
    /// `velum_cloud_state`: 1 for the state it is in.
    pub states: By<CloudState, IntGauge>,
    /// `velum_cloud_in_flight_requests`
    pub in_flight: IntGauge,
    /// `velum_cloud_retries_total`
    pub retries: IntCounter,
    /// `velum_cloud_hedged_reads_total`: reads that went to another cloud because this one was slow or in doubt.
    pub hedged: IntCounter,
    /// `velum_cloud_lag_records`: sequence records it lacks, over all volumes.
    pub lag_records: IntGauge,
    /// `velum_cloud_lag_bytes`
    pub lag_bytes: IntGauge,
    /// `velum_cloud_reclaimed_objects_total`
    pub reclaimed_objects: IntCounter,
    /// `velum_cloud_reclaimed_bytes_total`
    pub reclaimed_bytes: IntCounter,
    /// `velum_cloud_repaired_objects_total`: segments that were missing or damaged and stored again.
    pub repaired: IntCounter,
}

/// Every metric of a node.
pub struct Metrics {
    registry: Registry,
    /// Requests of guests.
    pub nbd: NbdMetrics,
    /// Requests of operators.
    pub admin: AdminMetrics,
    /// `velum_audit_refusals_total`: what each gate turned down.
    pub refusals: By<Gate, IntCounter>,
    /// Dirty extents.
    pub dirty: DirtyMetrics,
    /// The write-ahead log.
    pub journal: JournalMetrics,
    /// From dirty to clean.
    pub flush: FlushMetrics,
    /// Reads.
    pub cache: CacheMetrics,
    /// Agreement.
    pub raft: RaftMetrics,
    /// Links to the other nodes.
    pub peer: PeerMetrics,
    /// The nodes of the cluster.
    pub cluster: ClusterMetrics,
    /// Who keeps journals.
    pub ensemble: EnsembleMetrics,
    /// Who is attached to this node's volumes.
    pub attachment: AttachmentMetrics,
    /// Requests for volumes that another node owns.
    pub forward: ForwardMetrics,
    /// Checkpoints and reclaim.
    pub upkeep: UpkeepMetrics,
    /// Compaction.
    pub compact: CompactMetrics,
    volumes: VolumeSeries,
    clouds: CloudSeries,
    cursor: IntGaugeVec,
    labelled: Mutex<BTreeSet<String>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics of a node, at zero.
    ///
    /// # Panics
    /// Never: the names here are valid and each is given once.
    #[must_use]
    pub fn new() -> Self {
        let make = Make(Registry::new());
        let build = make.gauges("velum_node_build", "Always 1; says which version runs", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Self {
            nbd: make.nbd(),
            admin: make.admin(),
            refusals: make.counter_by("velum_audit_refusals_total", "Requests that a gate turned down"),
            dirty: DirtyMetrics {
                bytes: make.gauge("velum_dirty_bytes", "Bytes not cloud-durable yet"),
                bytes_max: make.gauge("velum_dirty_max_bytes", "Dirty bytes at which guests wait"),
                oldest_seconds: make
                    .float("velum_dirty_oldest_seconds", "Age of the oldest byte not cloud-durable yet"),
                waiting: make.gauge("velum_dirty_waiting_requests", "Writes that wait for room now"),
                waits: make.counter("velum_dirty_waits_total", "Writes that had to wait for room"),
            },
            journal: make.journal(),
            flush: make.flush(),
            cache: make.cache(),
            raft: make.raft(),
            peer: make.peer(),
            cluster: make.cluster(),
            ensemble: make.ensemble(),
            attachment: make.attachment(),
            forward: make.forward(),
            upkeep: make.upkeep(),
            compact: make.compact(),
            volumes: make.volumes(),
            clouds: make.clouds(),
            cursor: make.gauges(
                "velum_cloud_cursor_seq",
                "Sequence record up to which a cloud is complete",
                &["cloud", "volume"],
            ),
            labelled: Mutex::new(BTreeSet::new()),
            registry: make.0,
        }
    }

    /// The metrics of one cloud.
    #[must_use]
    pub fn cloud(&self, name: &str) -> CloudMetrics {
        let (series, label) = (&self.clouds, &[name]);
        CloudMetrics {
            requests: By::new(|kind: &CloudRequest| {
                By::new(|outcome: &CloudOutcome| {
                    series.requests.with_label_values(&[name, kind.text(), outcome.text()])
                })
            }),
            seconds: By::new(|kind: &CloudRequest| series.seconds.with_label_values(&[name, kind.text()])),
            sent_bytes: series.sent_bytes.with_label_values(label),
            received_bytes: series.received_bytes.with_label_values(label),
            up: series.up.with_label_values(label),
            states: By::new(|state: &CloudState| series.states.with_label_values(&[name, state.text()])),
            in_flight: series.in_flight.with_label_values(label),
            retries: series.retries.with_label_values(label),
            hedged: series.hedged.with_label_values(label),
            lag_records: series.lag_records.with_label_values(label),
            lag_bytes: series.lag_bytes.with_label_values(label),
            reclaimed_objects: series.reclaimed_objects.with_label_values(label),
            reclaimed_bytes: series.reclaimed_bytes.with_label_values(label),
            repaired: series.repaired.with_label_values(label),
        }
    }

    /// The metrics of one volume.
    #[must_use]
    pub fn volume(&self, name: &str) -> VolumeMetrics {
        let label = &[self.volume_label(name)];
        VolumeMetrics {
            size_bytes: self.volumes.size_bytes.with_label_values(label),
            dirty_bytes: self.volumes.dirty_bytes.with_label_values(label),
            oldest_dirty_seconds: self.volumes.oldest_dirty_seconds.with_label_values(label),
            head_seq: self.volumes.head_seq.with_label_values(label),
            durable_seq: self.volumes.durable_seq.with_label_values(label),
            stored_bytes: self.volumes.stored_bytes.with_label_values(label),
            live_bytes: self.volumes.live_bytes.with_label_values(label),
            lineage: self.volumes.lineage.with_label_values(label),
        }
    }

    /// `velum_cloud_cursor_seq` of one cloud and volume.
    #[must_use]
    pub fn cursor(&self, cloud: &str, volume: &str) -> IntGauge {
        self.cursor.with_label_values(&[cloud, self.volume_label(volume)])
    }

    /// Ends the series of a deleted volume.
    pub fn forget_volume(&self, name: &str, clouds: &[&str]) {
        if !self.labelled().remove(name) {
            return;
        }
        // A series that was never made is no fault: the volume may have been deleted before its first use.
        let _ = self.volumes.size_bytes.remove_label_values(&[name]);
        let _ = self.volumes.dirty_bytes.remove_label_values(&[name]);
        let _ = self.volumes.oldest_dirty_seconds.remove_label_values(&[name]);
        let _ = self.volumes.head_seq.remove_label_values(&[name]);
        let _ = self.volumes.durable_seq.remove_label_values(&[name]);
        let _ = self.volumes.stored_bytes.remove_label_values(&[name]);
        let _ = self.volumes.live_bytes.remove_label_values(&[name]);
        let _ = self.volumes.lineage.remove_label_values(&[name]);
        for cloud in clouds {
            let _ = self.cursor.remove_label_values(&[cloud, name]);
        }
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Panics
    /// Never: writing to memory does not fail.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("writing to memory does not fail");
        String::from_utf8(text).expect("metrics are text")
    }

    fn volume_label<'a>(&self, name: &'a str) -> &'a str {
        let mut labelled = self.labelled();
        if labelled.contains(name) {
            return name;
        }
        if labelled.len() >= VOLUMES_LABELLED_MAX {
            return "other";
        }
        labelled.insert(name.to_owned());
        name
    }

    fn labelled(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.labelled.lock().expect("no thread panics while it holds the label set")
    }
}

impl Make {
    fn nbd(&self) -> NbdMetrics {
        let requests = self.counters("velum_nbd_requests_total", "Requests of guests", &["kind", "outcome"]);
        NbdMetrics {
            requests: By::new(|kind: &GuestRequest| {
                By::new(|outcome: &GuestOutcome| requests.with_label_values(&[kind.text(), outcome.text()]))
            }),
            seconds: self.histogram_by("velum_nbd_request_seconds", "Time from request to reply", LOCAL_SECONDS),
            read_bytes: self.counter("velum_nbd_read_bytes_total", "Bytes read by guests"),
            written_bytes: self.counter("velum_nbd_written_bytes_total", "Bytes written by guests"),
            sessions: self.gauge("velum_nbd_sessions", "Guest connections now"),
            sessions_opened: self
                .counter("velum_nbd_sessions_opened_total", "Guest connections that got past the handshake"),
            in_flight: self.gauge("velum_nbd_in_flight_requests", "Requests not answered yet"),
            refused_inputs: self.counter_by("velum_nbd_refused_inputs_total", "Input of NBD clients turned away"),
        }
    }

    fn journal(&self) -> JournalMetrics {
        JournalMetrics {
            appended_bytes: self.counter("velum_journal_appended_bytes_total", "Bytes appended to the journal"),
            appended_records: self.counter("velum_journal_appended_records_total", "Records appended to the journal"),
            moved_bytes: self.counter("velum_journal_moved_bytes_total", "Live bytes copied forward to free a file"),
            writes: self.counter("velum_journal_writes_total", "Writes to journal files"),
            syncs: self.counter("velum_journal_syncs_total", "Syncs of journal files"),
            sync_seconds: self.histogram("velum_journal_sync_seconds", "Time of one sync", LOCAL_SECONDS),
            live_bytes: self.gauge("velum_journal_live_bytes", "Bytes of records still needed"),
            free_bytes: self.gauge("velum_journal_free_bytes", "Bytes that may still be appended"),
            poisoned: self.gauge("velum_journal_poisoned", "1 after a failed write or sync: nothing is acked any more"),
        }
    }

    fn flush(&self) -> FlushMetrics {
        FlushMetrics {
            windows: self.counter_by("velum_flush_windows_total", "Windows flushed"),
            seconds: self.histogram_by("velum_flush_seconds", "Time of each part of a flush", CLOUD_SECONDS),
            exposed_seconds: self.histogram(
                "velum_flush_exposed_seconds",
                "Age of a window's oldest byte when it became cloud-durable",
                CLOUD_SECONDS,
            ),
            bytes: self.counter("velum_flush_bytes_total", "Contents of flushed blocks"),
            stored_bytes: self
                .counter("velum_flush_stored_bytes_total", "Bytes of segments made, counted once for all clouds"),
        }
    }

    fn cache(&self) -> CacheMetrics {
        CacheMetrics {
            hits: self.counter_by("velum_cache_hit_blocks_total", "Blocks read without a cloud"),
            misses: self.counter("velum_cache_missed_blocks_total", "Blocks fetched from a cloud for a read"),
            zeros: self.counter("velum_cache_zero_blocks_total", "Blocks read that nothing is stored for"),
            bytes: {
                let bytes = self.gauges("velum_cache_bytes", "Bytes held", &[Tier::NAME]);
                By::new(|tier: &Tier| bytes.with_label_values(&[tier.text()]))
            },
            evicted: self.counter_by("velum_cache_evicted_blocks_total", "Blocks dropped for others"),
            discarded: self
                .counter("velum_cache_discarded_blocks_total", "Blocks on disk that were damaged and dropped"),
        }
    }

    fn raft(&self) -> RaftMetrics {
        RaftMetrics {
            term: self.gauge("velum_raft_term", "Term"),
            commit_index: self.gauge("velum_raft_commit_index", "Last committed entry"),
            applied_index: self.gauge("velum_raft_applied_index", "Last applied entry"),
            leader: self.gauge("velum_raft_leader", "1 on the leader"),
            has_leader: self.gauge("velum_raft_has_leader", "1 while a leader is known"),
            halted: self.gauge("velum_raft_halted", "1 when raft has stopped until a restart: nothing is flushed"),
            voters: self.gauge("velum_raft_voters", "Members with a vote"),
            refused_messages: self.counter("velum_raft_refused_messages_total", "Messages of peers not let through"),
            proposals: self.counter_by("velum_raft_proposals_total", "Proposals"),
            proposal_seconds: self.histogram(
                "velum_raft_proposal_seconds",
                "Time from proposed to applied",
                LOCAL_SECONDS,
            ),
        }
    }

    fn forward(&self) -> ForwardMetrics {
        ForwardMetrics {
            requests: self.counter_by("velum_forward_requests_total", "Requests for volumes that another node owns"),
            bytes: self.counter_by("velum_forward_bytes_total", "Payload of forwarded requests, either way"),
            sessions: {
                let name = "velum_forward_sessions";
                let sessions = self.gauges(name, "Guests' sessions forwarded now", &[Side::NAME]);
                By::new(|side: &Side| sessions.with_label_values(&[side.text()]))
            },
        }
    }

    fn upkeep(&self) -> UpkeepMetrics {
        UpkeepMetrics {
            checkpoints: self.counter_by("velum_checkpoint_runs_total", "Checkpoints"),
            checkpoint_seconds: self.histogram("velum_checkpoint_seconds", "Time of one checkpoint", CLOUD_SECONDS),
            pages: self.counter("velum_checkpoint_pages_total", "Map pages written"),
            stored_bytes: self.counter(
                "velum_checkpoint_stored_bytes_total",
                "Bytes of map pages and roots written, counted once for all clouds",
            ),
            condemned: self.gauge("velum_reclaim_condemned_objects", "Objects that wait to be deleted"),
        }
    }

    fn compact(&self) -> CompactMetrics {
        CompactMetrics {
            steps: self.counter_by("velum_compact_steps_total", "Steps that move live blocks out of dead segments"),
            read_bytes: self.counter("velum_compact_read_bytes_total", "Bytes of segments read to be emptied"),
            moved_bytes: self.counter("velum_compact_moved_bytes_total", "Contents of blocks moved"),
            stored_bytes: self
                .counter("velum_compact_stored_bytes_total", "Bytes of segments made, counted once for all clouds"),
        }
    }

    fn volumes(&self) -> VolumeSeries {
        let label = &["volume"];
        VolumeSeries {
            size_bytes: self.gauges("velum_volume_size_bytes", "Size of a volume", label),
            dirty_bytes: self.gauges("velum_volume_dirty_bytes", "Bytes of a volume not cloud-durable yet", label),
            oldest_dirty_seconds: self.register(GaugeVec::new(
                Opts::new("velum_volume_oldest_dirty_seconds", "Age of a volume's oldest byte not cloud-durable yet"),
                label,
            )),
            head_seq: self.gauges("velum_volume_head_seq", "Newest sequence record", label),
            stored_bytes: self.gauges("velum_volume_stored_bytes", "Bytes of the segments that hold a volume", label),
            live_bytes: self.gauges("velum_volume_live_bytes", "Bytes of live blocks in them", label),
            lineage: self.gauges("velum_volume_lineage", "Rises when acked writes may have been lost", label),
            durable_seq: self.gauges("velum_volume_durable_seq", "Newest sequence record in enough clouds", label),
        }
    }

    fn clouds(&self) -> CloudSeries {
        let label = &["cloud"];
        CloudSeries {
            requests: self.counters("velum_cloud_requests_total", "Attempts at a cloud", &["cloud", "kind", "outcome"]),
            seconds: self.histograms(
                "velum_cloud_request_seconds",
                "Time of one attempt",
                CLOUD_SECONDS,
                &["cloud", "kind"],
            ),
            sent_bytes: self.counters("velum_cloud_sent_bytes_total", "Bytes stored", label),
            received_bytes: self.counters("velum_cloud_received_bytes_total", "Bytes read", label),
            up: self.gauges("velum_cloud_up", "1 when it answers, takes what is stored, and is the cluster's", label),
            states: self.gauges("velum_cloud_state", "1 for the state a cloud is in", &["cloud", "state"]),
            in_flight: self.gauges("velum_cloud_in_flight_requests", "Attempts under way", label),
            retries: self.counters("velum_cloud_retries_total", "Attempts after the first", label),
            hedged: self.counters(
                "velum_cloud_hedged_reads_total",
                "Reads that another cloud was asked for too",
                label,
            ),
            lag_records: self.gauges("velum_cloud_lag_records", "Sequence records a cloud lacks", label),
            lag_bytes: self.gauges("velum_cloud_lag_bytes", "Bytes a cloud lacks", label),
            reclaimed_objects: self.counters("velum_cloud_reclaimed_objects_total", "Objects deleted", label),
            reclaimed_bytes: self.counters("velum_cloud_reclaimed_bytes_total", "Bytes of objects deleted", label),
            repaired: self.counters(
                "velum_cloud_repaired_objects_total",
                "Segments that a read found missing or damaged and that were stored again",
                label,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_rendered() {
        let metrics = Metrics::new();
        metrics.nbd.requests.of(GuestRequest::Write).of(GuestOutcome::Done).inc_by(3);
        metrics.cloud("a").requests.of(CloudRequest::Put).of(CloudOutcome::Throttled).inc();
        metrics.volume("demo").dirty_bytes.set(4096);
        metrics.cursor("a", "demo").set(7);
        let text = metrics.render();
        for line in [
            r#"velum_nbd_requests_total{kind="write",outcome="done"} 3"#,
            r#"velum_cloud_requests_total{cloud="a",kind="put",outcome="throttled"} 1"#,
            r#"velum_volume_dirty_bytes{volume="demo"} 4096"#,
            r#"velum_cloud_cursor_seq{cloud="a",volume="demo"} 7"#,
            "velum_journal_poisoned 0",
        ] {
            assert!(text.lines().any(|given| given == line), "{line}");
        }
    }

    #[test]
    fn the_number_of_volume_series_is_bounded() {
        let metrics = Metrics::new();
        for number in 0..VOLUMES_LABELLED_MAX + 10 {
            metrics.volume(&format!("v{number}")).size_bytes.set(1);
        }
        let series = |text: &str| text.lines().filter(|line| line.starts_with("velum_volume_size_bytes{")).count();
        assert_eq!(series(&metrics.render()), VOLUMES_LABELLED_MAX + 1);
        metrics.forget_volume("v0", &["a"]);
        assert_eq!(series(&metrics.render()), VOLUMES_LABELLED_MAX);
        metrics.volume("late").size_bytes.set(2);
        assert!(metrics.render().contains(r#"velum_volume_size_bytes{volume="late"} 2"#));
    }

    #[test]
    fn metrics_can_be_shared_with_other_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Metrics>();
        shared::<CloudMetrics>();
    }
}
