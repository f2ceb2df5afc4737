//! Access log: counts each request, and logs one line when its response has ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue};
use tracing::Span;

use crate::clock;
use crate::oci::Name;
use crate::telemetry::{Metrics, Outcome, RequestKind, trace};

/// Log entry of a request. It is written when it is dropped, at the latest.
#[derive(Debug)]
pub(super) struct RequestLog {
    pub(super) metrics: Arc<Metrics>,
    /// False for the requests of `larder doctor`, which are no requests of clients.
    pub(super) counted: bool,
    pub(super) logged: bool,
    pub(super) started: Instant,
    pub(super) method: http::Method,
    /// Path without the query, which may contain secrets.
    pub(super) path: String,
    /// Address of the client; `None` on a unix socket.
    pub(super) client: Option<SocketAddr>,
    /// Request id, by which the request is found in the logs of several programs.
    pub(super) id: HeaderValue,
    pub(super) repository: Option<Name>,
    /// Tag or digest in the request.
    pub(super) reference: Option<String>,
    pub(super) upstream: Option<Arc<str>>,
    pub(super) kind: RequestKind,
    pub(super) outcome: Outcome,
    pub(super) status: u16,
    /// Reason for which there is no content.
    pub(super) reason: Option<String>,
    /// True after the end was recorded.
    pub(super) ended: bool,
    /// Trace span of the request.
    pub(super) span: Span,
}

/// Status of a request whose client disconnected before the response. It is logged and never sent.
const CLIENT_DISCONNECTED: u16 = 499;

impl Drop for RequestLog {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if self.status == 0 {
            self.status = CLIENT_DISCONNECTED;
            self.reason = Some("the client disconnected before the response".to_owned());
            self.record_head();
        }
        self.record_end(0, false);
    }
}

impl RequestLog {
    /// Counts the head of the response.
    pub(super) fn record_head(&self) {
        if self.counted {
            self.metrics.request(self.kind, self.outcome, self.status, self.started.elapsed());
        }
        let repository = self.repository.as_ref().map(Name::as_str);
        trace::answered(&self.span, self.status, self.outcome.as_str(), self.upstream.as_deref(), repository);
    }

    /// Counts and logs the end of the body, complete or not.
    pub(super) fn record_end(&mut self, bytes: u64, complete: bool) {
        self.ended = true;
        if self.counted {
            self.metrics.served(self.kind, bytes);
        }
        trace::ended(&self.span, bytes, complete);
        if !self.logged {
            return;
        }
        let ms = clock::millis(self.started.elapsed());
        tracing::info!(
            client = self.client.map(tracing::field::display),
            id = self.id.to_str().unwrap_or_default(),
            method = self.method.as_str(),
            path = %Printable(&self.path),
            upstream = self.upstream.as_deref(),
            repository = self.repository.as_ref().map(Name::as_str),
            reference = self.reference.as_deref().map(|text| tracing::field::display(Printable(text))),
            status = self.status,
            outcome = self.outcome.as_str(),
            bytes,
            complete,
            ms,
            reason = self.reason.as_deref(),
            "request"
        );
    }
}

/// Header with the request id, as clients and reverse proxies use it.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Maximum length of a request id from a client.
const ID_MAX: usize = 128;

/// Returns the request id: the client's own if it is printable and short, else a new one.
///
/// The id is not sent to upstreams, because one upstream request can serve many clients.
pub(super) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let mut given = headers.get_all(REQUEST_ID).iter();
    let only = given.next().filter(|_| given.next().is_none());
    let is_valid = |id: &&HeaderValue| {
        (1..=ID_MAX).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    match only.filter(is_valid) {
        Some(id) => id.clone(),
        None => HeaderValue::try_from(format!("{:032x}", fastrand::u128(..)))
            // Hexadecimal digits are always valid in a header.
            .unwrap_or_else(|_| HeaderValue::from_static("-")),
    }
}

/// Text from a client. In the log it is limited in length and printable.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_id_keeps_a_valid_id_and_replaces_others() {
        let id = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(REQUEST_ID, HeaderValue::from_bytes(value).expect("a value"));
            }
            request_id(&headers)
        };
        assert_eq!(id(&[b"0af7-6519/x"]), "0af7-6519/x");
        assert_eq!(id(&[&[b'x'; ID_MAX]]).len(), ID_MAX);
        let long = [b'x'; ID_MAX + 1];
        let invalid: [&[&[u8]]; 6] = [&[], &[b""], &[b"a b"], &[b"caf\xe9"], &[&long], &[b"one", b"two"]];
        for invalid in invalid {
            let made = id(invalid);
            assert!(made.len() == 32 && made.as_bytes().iter().all(u8::is_ascii_hexdigit), "{made:?}");
            assert_ne!(made, id(invalid));
        }
    }
}
