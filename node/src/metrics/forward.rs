//! What is counted of requests that go on to other nodes.

use super::{By, IntCounter, IntGauge, Side};

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
