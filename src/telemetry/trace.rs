//! Traces: spans for requests, flights, fills and upstream calls, exported by OTLP over HTTP.
//!
//! Without a configured collector no span is enabled, and the check costs one atomic load.
//! Work that outlives its request, such as a fill, gets a remote parent in the trace instead of a `tracing` parent.
//! Otherwise the request's span would stay open until the fill ends.

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

use super::labels::RequestKind;
use crate::config::schema;
use crate::oci::{Digest, Repository};

/// Target of all spans. It distinguishes them from the spans of libraries.
pub(super) const TARGET: &str = module_path!();

/// Time-out of a request to the collector. Only the exporter's thread waits for it.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time for exporting the remaining spans at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Error of setting up the trace exporter.
#[derive(Debug, thiserror::Error)]
#[error("traces cannot be set up: {0}")]
pub struct TraceError(String);

/// Running trace exporter. Spans not exported before it is dropped are lost.
#[derive(Clone, Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Starts the exporter if a collector is configured. Call it inside a Tokio runtime, which runs the HTTP client.
    pub(super) fn start(trace: &schema::Trace) -> Result<Option<(Self, SdkTracer)>, TraceError> {
        let Some(endpoint) = &trace.endpoint else { return Ok(None) };
        let failed = |error: &dyn std::fmt::Display| TraceError(error.to_string());
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new().map_err(|error| failed(&error))?)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|error| failed(&error))?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder_empty()
            .with_service_name(trace.service.clone())
            .with_attribute(version)
            .build();
        // If the client sends a trace context, the client has decided about sampling.
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(trace.sample)));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(sampler)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("larder");
        Ok(Some((Self(provider), tracer)))
    }

    /// Exports the remaining spans, within a time-out. Blocking.
    pub fn finish(&self) {
        if let Err(error) = self.0.shutdown_with_timeout(SHUTDOWN_TIMEOUT) {
            tracing::debug!(%error, "remaining traces were not exported");
        }
    }
}

/// HTTP client for the collector. The exporter's thread has no runtime, so requests run on the server's runtime.
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
            .timeout(EXPORT_TIMEOUT)
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
                tracing::warn!(%error, "traces were lost: the collector did not accept them");
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Trace context in the headers of a client's request (`traceparent`, W3C Trace Context).
struct TraceHeaders<'h>(&'h HeaderMap);

impl Extractor for TraceHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// Returns the span of a client's request. The span ends when the body of the answer has ended.
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
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &TraceHeaders(headers));
        // A parent can be set because the span's context has not been used yet.
        let _ = span.set_parent(parent);
    }
    span
}

/// Records the result of a request.
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

/// Records the end of the body of an answer.
pub fn ended(span: &Span, bytes: u64, complete: bool) {
    span.record("larder.bytes", bytes);
    span.record("larder.complete", complete);
    if !complete {
        span.record("otel.status_code", "ERROR");
    }
}

/// Returns the span of a fill, as a child of the current span.
pub fn fill(repository: &Repository, digest: &Digest) -> Span {
    detached(tracing::info_span!(
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

/// Adds an event to the current span: a state machine has entered this state.
pub fn state(name: &'static str) {
    let span = Span::current();
    if !span.is_disabled() {
        span.add_event(name, Vec::new());
    }
}

/// Records the result of a fill. Every result but `ok` is an error.
pub fn filled(span: &Span, result: &str) {
    span.record("larder.result", result);
    if result != "ok" {
        span.record("otel.status_code", "ERROR");
    }
}

/// Returns the span of a flight, as a child of the current span.
pub fn flight() -> Span {
    detached(tracing::info_span!(target: TARGET, parent: None, "flight", otel.kind = "internal"))
}

/// Returns the span of background work that a request has started.
pub fn background(name: &'static str) -> Span {
    detached(
        tracing::info_span!(target: TARGET, parent: None, "background", otel.name = name, otel.kind = "internal"),
    )
}

/// Returns the span of one request to an upstream, up to the response head, as a child of the current span. `path` is `None` if
/// it may be secret.
pub fn call(upstream: &str, method: &str, host: Option<&str>, path: Option<&str>) -> Span {
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

/// Records the result of a request to an upstream.
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

/// Links the current span and `other`: the current request waits for work that another request has started.
pub fn join(other: &Span) {
    let own = Span::current();
    if own.is_disabled() || other.is_disabled() {
        return;
    }
    let (here, there) = (context(&own), context(other));
    own.add_link(there);
    other.add_link(here);
}

/// Makes a span a child of the current one without keeping the current one open.
fn detached(span: Span) -> Span {
    let parent = Span::current();
    if !span.is_disabled() && !parent.is_disabled() {
        // A parent can be set because the span's context has not been used yet.
        let _ = span.set_parent(Context::new().with_remote_span_context(context(&parent)));
    }
    span
}

fn context(span: &Span) -> SpanContext {
    span.context().span().span_context().clone()
}
