//! The sections about what is told of larder's work: the log, and traces.

use serde::{Deserialize, Serialize};

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A level, or a filter in tracing's syntax (`info,larder::upstream=debug`).
    pub level: String,
    /// The shape of a line.
    pub format: LogFormat,
    /// Whether each request gets a line.
    pub requests: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text, requests: true }
    }
}

/// Where traces go, if anywhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trace {
    /// The collector's URL for OTLP over HTTP, without `/v1/traces`; no traces if it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The share of requests, from 0 to 1, that are traced, of those whose client has not decided it.
    pub sample: f64,
    /// What larder is called there.
    pub service: String,
}

impl Default for Trace {
    fn default() -> Self {
        Self { endpoint: None, sample: 1.0, service: "larder".to_owned() }
    }
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines, one object per line.
    Json,
}
