//! What is counted of other nodes: the links to them and what is forwarded on these.

use super::{By, IntCounter, IntGauge, Side};

/// Links to the other nodes.
#[derive(Clone, Debug)]
pub struct PeerMetrics {
    /// `velum_peer_links`
    pub links: IntGauge,
    /// `velum_peer_dropped_frames_total`
    pub dropped_frames: IntCounter,
    /// `velum_peer_refused_connections_total`
    pub refused_connections: IntCounter,
    /// `velum_peer_sent_bytes_total`
    pub sent_bytes: IntCounter,
    /// `velum_peer_received_bytes_total`
    pub received_bytes: IntCounter,
}

/// Requests for volumes that another node owns.
#[derive(Clone, Debug)]
pub struct ForwardMetrics {
    /// `velum_forward_requests_total`
    pub requests: By<Side, IntCounter>,
    /// `velum_forward_bytes_total`: payload either way.
    pub bytes: By<Side, IntCounter>,
    /// `velum_forward_sessions`
    pub sessions: By<Side, IntGauge>,
}
