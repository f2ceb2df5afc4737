//! Registration of metric series in a Prometheus registry.

use prometheus::core::Collector;
use prometheus::{
    Counter, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// New registry, with a function for each type of series.
#[derive(Debug, Default)]
pub(super) struct SeriesRegistry(pub(super) Registry);

impl SeriesRegistry {
    /// Registers a series. This can fail only for a duplicate or malformed name, which every test would show.
    fn register<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        match made.and_then(|series| self.0.register(Box::new(series.clone())).map(|()| series)) {
            Ok(series) => series,
            Err(error) => unreachable!("invalid metric series: {error}"),
        }
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    pub(super) fn float_counter(&self, name: &str, help: &str) -> Counter {
        self.register(Counter::new(name, help))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    pub(super) fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let buckets = vec![
            0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
        ];
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels))
    }
}

/// Converts a value for a gauge. Values beyond the range become the largest one.
pub(super) fn saturating_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
