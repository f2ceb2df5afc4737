//! Values that every endpoint needs: metrics, clock, time-outs, and the budget for documents.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::source::DocumentBudget;
use crate::telemetry::Metrics;

/// Time-outs of requests to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Time-out of a connection, including name look-up and TLS.
    pub connect: Duration,
    /// Time-out of the head of one response.
    pub head: Duration,
    /// Time-out of the head of the final response: waiting for a free connection, tokens, redirects and retries
    /// included. Common clients have no time-out of their own, so the default is below ten seconds.
    pub total: Duration,
    /// Longest pause between two chunks of a blob, and time-out of the whole body of a manifest.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            head: Duration::from_secs(8),
            total: Duration::from_secs(9),
            idle: Duration::from_secs(30),
        }
    }
}

/// Metrics, clock, time-outs and the budget for documents, shared by all endpoints.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    pub(crate) timeouts: Timeouts,
    pub(crate) documents: DocumentBudget,
}
