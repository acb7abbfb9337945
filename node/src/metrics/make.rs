//! Registers metrics and hands out their values by label.

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::{Collector, GenericCounter, GenericGauge},
};

use super::{
    AdminMetrics,
    label::{By, Label},
};

/// Makes and registers metrics.
pub(super) struct Make(pub(super) Registry);

impl Make {
    pub(super) fn register<C: Collector + Clone + 'static>(&self, metric: Result<C, prometheus::Error>) -> C {
        let metric = metric.expect("names and labels here are valid");
        self.0.register(Box::new(metric.clone())).expect("each name is given once");
        metric
    }

    pub(super) fn admin(&self) -> AdminMetrics {
        AdminMetrics {
            requests: self.counter("velum_admin_requests_total", "Requests to the admin API"),
            refused: self.counter("velum_admin_refused_requests_total", "Requests to the admin API turned away"),
        }
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(GenericCounter::new(name, help))
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn counter_by<L: Label>(&self, name: &str, help: &str) -> By<L, IntCounter> {
        let counters = self.counters(name, help, &[L::NAME]);
        By::new(|value: &L| counters.with_label_values(&[value.text()]))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(GenericGauge::new(name, help))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn float(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::new(name, help))
    }

    pub(super) fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.register(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }

    pub(super) fn histograms(&self, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }

    pub(super) fn histogram_by<L: Label>(&self, name: &str, help: &str, buckets: &[f64]) -> By<L, Histogram> {
        let histograms = self.histograms(name, help, buckets, &[L::NAME]);
        By::new(|value: &L| histograms.with_label_values(&[value.text()]))
    }
}
