//! Sections `[log]` and `[trace]`.

use serde::{Deserialize, Serialize};

/// Section `[log]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Level, or filter in the syntax of tracing (`info,larder::upstream=debug`).
    pub level: String,
    /// Format of a log line.
    pub format: LogFormat,
    /// True to log each request.
    pub requests: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text, requests: true }
    }
}

/// Section `[trace]`: export of traces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trace {
    /// URL of the collector (OTLP over HTTP), without `/v1/traces`. Default: no traces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Share of requests that are traced, from 0 to 1. Does not apply to requests whose client has decided.
    pub sample: f64,
    /// Service name in traces.
    pub service: String,
}

impl Default for Trace {
    fn default() -> Self {
        Self { endpoint: None, sample: 1.0, service: "larder".to_owned() }
    }
}

/// Format of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text for humans.
    #[default]
    Text,
    /// JSON, one object for each line.
    Json,
}
