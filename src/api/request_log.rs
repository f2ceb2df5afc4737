//! One record per request: counted, and logged as one structured line when its body has ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue};
use tracing::Span;

use crate::oci::Name;
use crate::telemetry::{Metrics, Outcome, RequestKind, trace};

/// What is known of a request when its answer begins.
#[derive(Debug)]
pub(super) struct RequestLog {
    pub(super) metrics: Arc<Metrics>,
    pub(super) logged: bool,
    pub(super) begin: Instant,
    pub(super) method: http::Method,
    /// Path only: queries may carry what is nobody's business.
    pub(super) path: String,
    /// Where the client is, unless it came by a socket in the file system.
    pub(super) client: Option<SocketAddr>,
    /// The request's name, for whoever looks for it in several logs.
    pub(super) id: HeaderValue,
    pub(super) repository: Option<Name>,
    /// The tag or digest, as it was asked for.
    pub(super) reference: Option<String>,
    pub(super) upstream: Option<Arc<str>>,
    pub(super) kind: RequestKind,
    pub(super) outcome: Outcome,
    pub(super) status: u16,
    /// Why there is no content, if there is none.
    pub(super) reason: Option<String>,
    /// Whether the end was noted.
    pub(super) over: bool,
    /// Its span, which ends with it.
    pub(super) span: Span,
}

/// What a request counts as whose client left before there was an answer; no client ever sees it.
const CLIENT_LEFT: u16 = 499;

impl Drop for RequestLog {
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

impl RequestLog {
    /// Counts the head of the answer.
    pub(super) fn answered(&self) {
        self.metrics.request(self.kind, self.outcome, self.status, self.begin.elapsed());
        let repository = self.repository.as_ref().map(Name::as_str);
        trace::answered(&self.span, self.status, self.outcome.as_str(), self.upstream.as_deref(), repository);
    }

    /// Counts and logs the end of the body, complete or not.
    pub(super) fn ended(&mut self, bytes: u64, complete: bool) {
        self.over = true;
        self.metrics.served(self.kind, bytes);
        trace::ended(&self.span, bytes, complete);
        if !self.logged {
            return;
        }
        let ms = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
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

/// The name of a request, as clients and the proxies before us have it.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// No longer name is taken from a client.
const ID_LONGEST: usize = 128;

/// The request's name: the client's own if it is one that can stand in every log, else one that is made here.
///
/// Upstreams never see it: what they are asked is for all who wait, and is nobody's business there.
pub(super) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let mut given = headers.get_all(REQUEST_ID).iter();
    let only = given.next().filter(|_| given.next().is_none());
    let sane = |id: &&HeaderValue| {
        (1..=ID_LONGEST).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    match only.filter(sane) {
        Some(id) => id.clone(),
        None => HeaderValue::try_from(format!("{:032x}", fastrand::u128(..)))
            // Hexadecimal digits always are a header's value.
            .unwrap_or_else(|_| HeaderValue::from_static("-")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_keeps_a_sane_name_and_gets_one_otherwise() {
        let id = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(REQUEST_ID, HeaderValue::from_bytes(value).expect("a value"));
            }
            request_id(&headers)
        };
        assert_eq!(id(&[b"0af7-6519/x"]), "0af7-6519/x");
        assert_eq!(id(&[&[b'x'; ID_LONGEST]]).len(), ID_LONGEST);
        let long = [b'x'; ID_LONGEST + 1];
        let insane: [&[&[u8]]; 6] = [&[], &[b""], &[b"a b"], &[b"caf\xe9"], &[&long], &[b"one", b"two"]];
        for insane in insane {
            let made = id(insane);
            assert!(made.len() == 32 && made.as_bytes().iter().all(u8::is_ascii_hexdigit), "{made:?}");
            assert_ne!(made, id(insane));
        }
    }
}
