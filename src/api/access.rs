//! One record per request: counted, and logged as one structured line when its body has ended.

use std::sync::Arc;
use std::time::Instant;

use crate::telemetry::{Kind, Metrics, Outcome};

/// What is known of a request when its answer begins.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) metrics: Arc<Metrics>,
    pub(super) logged: bool,
    pub(super) begin: Instant,
    pub(super) method: http::Method,
    /// Path only: queries may carry what is nobody's business.
    pub(super) path: String,
    pub(super) upstream: Option<Arc<str>>,
    pub(super) kind: Kind,
    pub(super) outcome: Outcome,
    pub(super) status: u16,
    /// Why there is no content, if there is none.
    pub(super) reason: Option<String>,
    /// Whether the end was noted.
    pub(super) over: bool,
}

/// What a request counts as whose client left before there was an answer; no client ever sees it.
const CLIENT_LEFT: u16 = 499;

impl Drop for Record {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        if self.status == 0 {
            self.status = CLIENT_LEFT;
            self.reason = Some("the client left before there was an answer".to_owned());
            self.answered();
        }
        self.ended(0, false);
    }
}

impl Record {
    /// Counts the head of the answer.
    pub(super) fn answered(&self) {
        self.metrics.request(self.kind, self.outcome, self.status, self.begin.elapsed());
    }

    /// Counts and logs the end of the body, complete or not.
    pub(super) fn ended(&mut self, bytes: u64, complete: bool) {
        self.over = true;
        self.metrics.served(self.kind, bytes);
        if !self.logged {
            return;
        }
        let ms = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            method = self.method.as_str(),
            path = %Printable(&self.path),
            status = self.status,
            outcome = self.outcome.as_str(),
            bytes,
            complete,
            ms,
            upstream = self.upstream.as_deref(),
            reason = self.reason.as_deref(),
            "request"
        );
    }
}

/// A path comes from a client: what the log shows of it is bounded and printable.
struct Printable<'a>(&'a str);

impl std::fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.len() <= 512 && self.0.bytes().all(|b| b.is_ascii_graphic()) {
            return f.write_str(self.0);
        }
        for c in self.0.chars().take(512) {
            std::fmt::Write::write_char(f, if c.is_ascii_graphic() { c } else { '?' })?;
        }
        Ok(())
    }
}
