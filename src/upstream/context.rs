//! Values that every endpoint needs: metrics, clock, time-outs, and the budget for documents.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::schema::Upstream;
use crate::source::DocumentBudget;
use crate::telemetry::Metrics;

use super::via::ServerId;

/// Time-outs of requests to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Time-out of a connection, including name look-up and TLS.
    pub connect: Duration,
    /// Time-out of the head of one response, other than a blob's.
    pub head: Duration,
    /// Time-out of the head of a blob. Some registries fetch the whole blob before they send the head. The download is
    /// the server's own, so it waits longer than a client.
    pub blob_head: Duration,
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
            blob_head: Duration::from_mins(2),
            total: Duration::from_secs(9),
            idle: Duration::from_secs(30),
        }
    }
}

impl Timeouts {
    /// Returns the time-outs with those that an upstream configures.
    pub(crate) fn with(self, upstream: &Upstream) -> Self {
        let head = upstream.head_timeout.unwrap_or(self.head);
        Self {
            head,
            blob_head: upstream.head_timeout.unwrap_or(self.blob_head),
            total: self.total.max(head),
            idle: upstream.idle_timeout.unwrap_or(self.idle),
            ..self
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
    pub(crate) identity: ServerId,
}
