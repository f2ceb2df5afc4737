//! The log: where it goes, in which shape, and how its level changes while it runs.

use std::time::Instant;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

use super::repeats::{Repeats, Sparing};
use crate::config::schema::{Log, LogFormat};

/// Why the log cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("log.level is no filter: {0}")]
pub struct LogError(String);

/// What is logged, to be changed while it runs.
#[derive(Clone, Debug)]
pub struct LogLevel {
    filter: reload::Handle<EnvFilter, Registry>,
    repeats: Repeats,
}

impl LogLevel {
    /// Follows another level or filter from now on.
    pub fn follow(&self, level: &str) -> Result<(), LogError> {
        // A process whose log another has set up has none of its own to change.
        let _ = self.filter.reload(filter(level)?);
        Ok(())
    }

    /// Says how often failures were left out that had been said before. To be called every few seconds.
    pub fn tell_left_out(&self, now: Instant) {
        self.repeats.tell(now);
    }
}

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(level).map_err(|error| LogError(error.to_string()))
}

/// Sends the log to standard error. Later calls in one process change nothing.
pub fn init_log(log: &Log) -> Result<LogLevel, LogError> {
    let (filter, level) = reload::Layer::new(filter(&log.level)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let repeats = Repeats::default();
    let lines = match log.format {
        LogFormat::Text => lines
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .map_event_format(|lines| Sparing { lines, repeats: repeats.clone() })
            .boxed(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .map_event_format(|lines| Sparing { lines, repeats: repeats.clone() })
            .boxed(),
    };
    // A second subscriber is refused by tracing; the first one stays, which is what a test process wants.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
    Ok(LogLevel { filter: level, repeats })
}
