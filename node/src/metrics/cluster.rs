//! What is counted of the cluster: links between its nodes, the nodes, who owns volumes, and who keeps their journals.

use prometheus::{Histogram, IntCounter, IntGauge};

use super::{
    CLOUD_SECONDS,
    label::{By, Label, NodeRole, ReadsBy},
    make::Make,
};

/// Links to the other nodes.
#[derive(Clone, Debug)]
pub struct PeerMetrics {
    /// `velum_peer_links`
    pub links: IntGauge,
    /// `velum_peer_down_links`
    pub down_links: IntGauge,
    /// `velum_peer_dropped_frames_total`
    pub dropped_frames: IntCounter,
    /// `velum_peer_refused_connections_total`
    pub refused_connections: IntCounter,
    /// `velum_peer_sent_bytes_total`
    pub sent_bytes: IntCounter,
    /// `velum_peer_received_bytes_total`
    pub received_bytes: IntCounter,
}

/// The nodes as this one sees them.
#[derive(Clone, Debug)]
pub struct ClusterMetrics {
    /// `velum_cluster_nodes`
    pub nodes: By<NodeRole, IntGauge>,
    /// `velum_cluster_owner_changes_total`: volumes that came to another owner, anywhere in the cluster.
    pub owner_changes: IntCounter,
}

/// Who is attached to this node's volumes.
#[derive(Clone, Debug)]
pub struct AttachmentMetrics {
    /// `velum_attachments`
    pub attachments: IntGauge,
    /// `velum_attachment_connections`
    pub connections: IntGauge,
    /// `velum_attachment_permits`
    pub permits: IntGauge,
    /// `velum_attachment_ended_sessions_total`: sessions that ended because raft says that they may not be there any more.
    pub ended_sessions: IntCounter,
}

/// Who keeps the journals of this node's volumes. A volume that its owner keeps alone counts for nothing here.
#[derive(Clone, Debug)]
pub struct EnsembleMetrics {
    /// `velum_ensemble_members{state="current"}`: members that hold everything acked.
    pub members_current: IntGauge,
    /// `velum_ensemble_members{state="lagging"}`: members that answer and hold less.
    pub members_lagging: IntGauge,
    /// `velum_ensemble_members{state="gone"}`: members that do not answer.
    pub members_gone: IntGauge,
    /// `velum_ensemble_wanted_members`
    pub members_wanted: IntGauge,
    /// `velum_ensemble_takeovers_total`: volumes that this node took over from another one, and opened.
    pub takeovers: IntCounter,
    /// `velum_ensemble_takeover_seconds`: from the grant to the open epoch.
    pub takeover_seconds: Histogram,
    /// `velum_ensemble_lineage_changes_total`: counted where it is applied, on every node.
    pub lineage_changes: IntCounter,
    /// `velum_ensemble_reads_total`: reads of this node's volumes that were answered, or are to be, by what says that it is the owner.
    pub reads: By<ReadsBy, IntCounter>,
}

impl Make {
    pub(super) fn peer(&self) -> PeerMetrics {
        PeerMetrics {
            links: self.gauge("velum_peer_links", "Links to other nodes that are up"),
            down_links: self.gauge("velum_peer_down_links", "Links to other nodes that are not up"),
            dropped_frames: self.counter("velum_peer_dropped_frames_total", "Frames not sent: no link, or no room"),
            refused_connections: self.counter("velum_peer_refused_connections_total", "Connections turned away"),
            sent_bytes: self.counter("velum_peer_sent_bytes_total", "Bytes of frames sent"),
            received_bytes: self.counter("velum_peer_received_bytes_total", "Bytes of frames taken"),
        }
    }

    pub(super) fn cluster(&self) -> ClusterMetrics {
        let nodes = self.gauges("velum_cluster_nodes", "Nodes by what they are in the group", &[NodeRole::NAME]);
        ClusterMetrics {
            nodes: By::new(|role: &NodeRole| nodes.with_label_values(&[role.text()])),
            owner_changes: self.counter("velum_cluster_owner_changes_total", "Volumes that came to another owner"),
        }
    }

    pub(super) fn attachment(&self) -> AttachmentMetrics {
        AttachmentMetrics {
            attachments: self.gauge("velum_attachments", "Attachments of volumes that this node owns"),
            connections: self.gauge("velum_attachment_connections", "Connections on them"),
            permits: self.gauge("velum_attachment_permits", "Ranges of shared volumes that one of them may write"),
            ended_sessions: self.counter(
                "velum_attachment_ended_sessions_total",
                "Sessions ended because their attachment or connection is over",
            ),
        }
    }

    pub(super) fn ensemble(&self) -> EnsembleMetrics {
        let members = self.gauges("velum_ensemble_members", "Nodes that keep a journal of a volume here", &["state"]);
        let reads = self.counters(
            "velum_ensemble_reads_total",
            "Reads by what says that this node owns the volume",
            &[ReadsBy::NAME],
        );
        EnsembleMetrics {
            reads: By::new(|by: &ReadsBy| reads.with_label_values(&[by.text()])),
            members_current: members.with_label_values(&["current"]),
            members_lagging: members.with_label_values(&["lagging"]),
            members_gone: members.with_label_values(&["gone"]),
            members_wanted: self.gauge("velum_ensemble_wanted_members", "Nodes that should keep one"),
            takeovers: self.counter("velum_ensemble_takeovers_total", "Volumes taken over from another node"),
            takeover_seconds: self.histogram(
                "velum_ensemble_takeover_seconds",
                "Time from the grant to the open epoch",
                CLOUD_SECONDS,
            ),
            lineage_changes: self.counter(
                "velum_ensemble_lineage_changes_total",
                "Lineages that changed: acked writes may have been lost",
            ),
        }
    }
}
