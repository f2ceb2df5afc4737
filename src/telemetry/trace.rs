//! Traces: a span per request, per flight and fill, and per call to an upstream, sent to a collector by OTLP over HTTP.
//!
//! Only if a collector is configured: without one no span is enabled, and to find that out costs one load.
//! What outlives the request that began it is its child by its trace alone: as long as a span of `tracing` lives, so do
//! those above it, and a request would seem to last as long as its fill.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{SpanContext, TraceContextExt as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Handle;
use tracing::{Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::RequestKind;
use crate::config::schema;
use crate::oci::{Digest, Repository};

/// The target of all spans, by which they are told from everything else.
pub(super) const TARGET: &str = module_path!();

/// No collector is waited for longer. Nobody waits for it but the thread that sends.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the end of the process may take for what was not sent yet.
const LAST: Duration = Duration::from_secs(2);

/// Why there can be no traces.
#[derive(Debug, thiserror::Error)]
#[error("the traces cannot be set up: {0}")]
pub struct TraceError(String);

/// Traces that are sent. What is not sent yet when it is dropped is lost.
#[derive(Clone, Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Sends to the collector that is configured, if one is. Belongs into a runtime, which does the sending.
    pub(super) fn start(trace: &schema::Trace) -> Result<Option<(Self, SdkTracer)>, TraceError> {
        let Some(endpoint) = &trace.endpoint else { return Ok(None) };
        let wrong = |error: &dyn std::fmt::Display| TraceError(error.to_string());
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new().map_err(|error| wrong(&error))?)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(PATIENCE)
            .build()
            .map_err(|error| wrong(&error))?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder_empty()
            .with_service_name(trace.service.clone())
            .with_attribute(version)
            .build();
        // Whoever traces on to us has decided already.
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(trace.sample)));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(sampler)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("larder");
        Ok(Some((Self(provider), tracer)))
    }

    /// Sends what is not sent yet, for a moment at most. Blocks.
    pub fn finish(&self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST) {
            tracing::debug!(%error, "the last traces were not sent");
        }
    }
}

/// The way to the collector. The exporter has a thread of its own, and no runtime.
#[derive(Debug)]
struct Collector {
    client: reqwest::Client,
    runtime: Handle,
}

impl Collector {
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(PATIENCE)
            .build()?;
        Ok(Self { client, runtime: Handle::try_current()? })
    }
}

#[async_trait::async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sending = self.runtime.spawn(async move {
            let request = reqwest::Request::try_from(request.map(reqwest::Body::from))?;
            let answer = client.execute(request).await?.error_for_status()?;
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = answer.status();
            Ok::<_, reqwest::Error>(response)
        });
        match sending.await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                tracing::warn!(%error, "traces could not be sent to the collector and are lost");
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// A client's own trace, if it sends one (`traceparent`, W3C Trace Context).
struct Sent<'h>(&'h HeaderMap);

impl Extractor for Sent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// A request's span. It lasts until it is dropped, which is when the answer's body has ended.
pub fn request(kind: RequestKind, method: &str, path: &str, id: &str, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        target: TARGET,
        parent: None,
        "request",
        otel.name = %format_args!("{method} {}", kind.as_str()),
        otel.kind = "server",
        otel.status_code = field::Empty,
        http.request.method = method,
        url.path = path,
        http.response.status_code = field::Empty,
        larder.request_id = id,
        larder.upstream = field::Empty,
        larder.repository = field::Empty,
        larder.outcome = field::Empty,
        larder.bytes = field::Empty,
        larder.complete = field::Empty,
    );
    if !span.is_disabled() {
        let sent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Sent(headers));
        // Nothing has asked for its context yet, so it can still be given.
        let _ = span.set_parent(sent);
    }
    span
}

/// Notes what became of a request.
pub fn answered(span: &Span, status: u16, outcome: &str, upstream: Option<&str>, repository: Option<&str>) {
    if span.is_disabled() {
        return;
    }
    span.record("http.response.status_code", status);
    span.record("larder.outcome", outcome);
    if let Some(upstream) = upstream {
        span.record("larder.upstream", upstream);
    }
    if let Some(repository) = repository {
        span.record("larder.repository", repository);
    }
    if status >= 500 {
        span.record("otel.status_code", "ERROR");
    }
}

/// Notes the end of an answer's body.
pub fn ended(span: &Span, bytes: u64, complete: bool) {
    span.record("larder.bytes", bytes);
    span.record("larder.complete", complete);
    if !complete {
        span.record("otel.status_code", "ERROR");
    }
}

/// The span of a fill, below the one that begins it.
pub fn fill(repository: &Repository, digest: &Digest) -> Span {
    apart(tracing::info_span!(
        target: TARGET,
        parent: None,
        "fill",
        otel.kind = "internal",
        otel.status_code = field::Empty,
        larder.upstream = repository.upstream.as_str(),
        larder.repository = repository.name.as_str(),
        larder.digest = %digest,
        larder.result = field::Empty,
    ))
}

/// Notes how a fill ended; `ok` is the only good end.
pub fn filled(span: &Span, result: &str) {
    span.record("larder.result", result);
    if result != "ok" {
        span.record("otel.status_code", "ERROR");
    }
}

/// The span of a flight, below the one that begins it.
pub fn flight() -> Span {
    apart(tracing::info_span!(target: TARGET, parent: None, "flight", otel.kind = "internal"))
}

/// The span of what a request leaves behind to be done in the background.
pub fn background(name: &'static str) -> Span {
    apart(
        tracing::info_span!(target: TARGET, parent: None, "background", otel.name = name, otel.kind = "internal"),
    )
}

/// The span of one call to an upstream, up to the head of its answer. Below the one that it is made in.
pub fn call(upstream: &str, method: &str, host: Option<&str>, path: &str) -> Span {
    tracing::info_span!(
        target: TARGET,
        "call",
        otel.name = method,
        otel.kind = "client",
        otel.status_code = field::Empty,
        http.request.method = method,
        server.address = host,
        url.path = path,
        http.response.status_code = field::Empty,
        larder.upstream = upstream,
        error.type = field::Empty,
    )
}

/// Notes what came of a call.
pub fn called(span: &Span, status: Option<u16>) {
    if let Some(status) = status {
        span.record("http.response.status_code", status);
    } else {
        span.record("error.type", "no answer");
    }
    if status.is_none_or(|status| status >= 400) {
        span.record("otel.status_code", "ERROR");
    }
}

/// The request that this is called in waits for `other`, which somebody else began: each is linked to the other.
pub fn join(other: &Span) {
    let own = Span::current();
    if own.is_disabled() || other.is_disabled() {
        return;
    }
    let (here, there) = (context(&own), context(other));
    own.add_link(there);
    other.add_link(here);
}

/// Puts a span below the current one without keeping that one open.
fn apart(span: Span) -> Span {
    let above = Span::current();
    if !span.is_disabled() && !above.is_disabled() {
        // Nothing has asked for its context yet, so it can still be given.
        let _ = span.set_parent(Context::new().with_remote_span_context(context(&above)));
    }
    span
}

fn context(span: &Span) -> SpanContext {
    span.context().span().span_context().clone()
}
