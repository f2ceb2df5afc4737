//! Set-up of the log: output format, deduplication, and changes of the level at run time.

use std::time::Instant;

use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

use super::log_dedup::{DedupFormat, LogDedup};
use super::trace::{self, TraceError, Traces};
use super::warnings::Warnings;
use crate::config::schema::{self, Log, LogFormat};

/// Error of setting up the log or the traces.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `log.level` is not a valid filter.
    #[error("log.level is not a valid filter: {0}")]
    Level(String),
    /// The exporter of traces cannot be set up.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// Handle to the running log.
#[derive(Clone, Debug)]
pub struct LogLevel {
    filter: reload::Handle<EnvFilter, Registry>,
    dedup: LogDedup,
    warnings: Warnings,
}

impl LogLevel {
    /// Changes the level or filter.
    pub fn follow(&self, level: &str) -> Result<(), LogError> {
        // If another subscriber was installed first (in tests), there is nothing to change.
        let _ = self.filter.reload(filter(level)?);
        Ok(())
    }

    /// Returns the recent warnings.
    pub fn warnings(&self) -> Warnings {
        self.warnings.clone()
    }

    /// Logs how many repeated messages were suppressed. Call it every few seconds.
    pub fn report_suppressed(&self, now: Instant) {
        self.dedup.report_suppressed(now);
    }
}

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(level).map_err(|error| LogError::Level(error.to_string()))
}

/// Sends the log to standard error. Further calls in the same process have no effect.
pub fn init_log(log: &Log) -> Result<LogLevel, LogError> {
    init(log, &schema::Trace::default()).map(|(level, _)| level)
}

/// Sends the log to standard error and traces to the configured collector. Call it inside a Tokio runtime.
pub fn init(log: &Log, trace: &schema::Trace) -> Result<(LogLevel, Option<Traces>), LogError> {
    let (filter, level) = reload::Layer::new(filter(&log.level)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let dedup = LogDedup::default();
    let lines = match log.format {
        LogFormat::Text => lines
            .with_ansi(console::colors_enabled_stderr())
            .map_event_format(|lines| DedupFormat { lines, dedup: dedup.clone() })
            .boxed(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .map_event_format(|lines| DedupFormat { lines, dedup: dedup.clone() })
            .boxed(),
    };
    // Spans are not part of log lines, and `log.level` does not apply to them.
    let events = filter_fn(|of: &Metadata<'_>| of.is_event()).with_max_level_hint(LevelFilter::TRACE);
    let (traces, spans) = Traces::start(trace)?.unzip();
    let spans = spans.map(|tracer| {
        let ours = |of: &Metadata<'_>| of.is_span() && of.target() == trace::TARGET;
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(filter_fn(ours).with_max_level_hint(LevelFilter::INFO))
    });
    // tracing refuses a second subscriber. The first one stays, as tests need it.
    let warnings = Warnings::default();
    let kept = warnings.clone().with_filter(LevelFilter::WARN);
    let lines = lines.with_filter(filter.and(events));
    let _ = tracing_subscriber::registry().with(lines).with(spans).with(kept).try_init();
    Ok((LogLevel { filter: level, dedup, warnings }, traces))
}
