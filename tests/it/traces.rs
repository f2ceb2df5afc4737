//! Traces at a collector, and failing collectors.

use crate::support;

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use support::collector::attribute;
use support::fixture::{MIB, TAG};
use support::{Blob, Collector, Fault, Gate, Image, Larder, Registry, Setup, When};

const FAILED: &str = "traces were lost: the collector did not accept them";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn start(registry: &Registry, collector: &Collector) -> Larder {
    Setup::with(registry).set("trace.endpoint", collector.url()).set("trace.service", "pantry").start()
}

/// Returns all spans, after the server has exited.
fn spans(mut larder: Larder, collector: &Collector) -> Vec<Span> {
    larder.wait_idle();
    larder.stop();
    collector.spans()
}

#[track_caller]
fn one<'s>(spans: &'s [Span], what: &str, fits: impl Fn(&Span) -> bool) -> &'s Span {
    let found: Vec<_> = spans.iter().filter(|span| fits(span)).collect();
    assert_eq!(
        found.len(),
        1,
        "{what}: {found:#?} among {:?}",
        spans.iter().map(|s| &s.name).collect::<Vec<_>>()
    );
    found[0]
}

fn is(span: &Span, key: &str, value: &str) -> bool {
    attribute(span, key).as_deref() == Some(value)
}

fn links(span: &Span, to: &Span) -> bool {
    span.links.iter().any(|link| link.span_id == to.span_id && link.trace_id == to.trace_id)
}

#[test]
fn cold_pull_is_one_trace() {
    let registry = Registry::start();
    let layer = Blob::random(1, MIB);
    let image = Image::oci(1, "linux/amd64", vec![layer.clone()]);
    registry.add_image("library/app", "v1", &image);
    let collector = Collector::start();
    let larder = start(&registry, &collector);
    larder.get(TAG).assert_body(&image.manifest.bytes);
    let path = format!("/v2/library/app/blobs/{}", layer.digest);
    let answer = larder.api().send("GET", &path, &[("X-Request-Id", "cold")]);
    answer.assert_body(&layer.bytes);
    assert_eq!(larder.get("/v2/library/app/manifests/none").status(), 404);
    // The span of the fill ends after the clients have the last byte.
    larder.wait_idle();
    larder.get(&path).assert_outcome("larder; hit");
    let spans = spans(larder, &collector);
    assert_eq!(collector.services()[0], "pantry");

    let request = one(&spans, "the cold blob", |span| is(span, "larder.request_id", "cold"));
    assert_eq!((request.name.as_str(), request.kind()), ("GET blob", SpanKind::Server));
    assert!(request.parent_span_id.is_empty());
    for (key, value) in [
        ("http.request.method", "GET"),
        ("url.path", path.as_str()),
        ("http.response.status_code", "200"),
        ("larder.upstream", "docker.io"),
        ("larder.repository", "library/app"),
        ("larder.outcome", "miss"),
        ("larder.bytes", &MIB.to_string()),
        ("larder.complete", "true"),
    ] {
        assert!(is(request, key, value), "{key}: {request:#?}");
    }
    let fill = one(&spans, "the fill", |span| span.name == "fill");
    assert_eq!((&fill.parent_span_id, &fill.trace_id), (&request.span_id, &request.trace_id));
    assert!(is(fill, "larder.digest", layer.digest.as_str()) && is(fill, "larder.result", "ok"), "{fill:#?}");
    let call = one(&spans, "the fill's call", |span| span.parent_span_id == fill.span_id);
    assert_eq!(
        (call.name.as_str(), call.kind(), &call.trace_id),
        ("GET", SpanKind::Client, &request.trace_id)
    );
    assert!(is(call, "url.path", &path) && is(call, "http.response.status_code", "200"), "{call:#?}");
    assert!(fill.start_time_unix_nano <= call.start_time_unix_nano);
    assert!(call.end_time_unix_nano <= fill.end_time_unix_nano);

    // A tag is resolved by a flight. A 404 is not an error of the server.
    let tag = one(&spans, "the tag", |span| is(span, "url.path", TAG) && span.kind() == SpanKind::Server);
    let flight = one(&spans, "its flight", |span| span.parent_span_id == tag.span_id);
    assert_eq!(flight.name, "flight");
    assert!(
        spans.iter().any(|span| span.parent_span_id == flight.span_id && span.kind() == SpanKind::Client)
    );
    let missing = one(&spans, "the missing tag", |span| {
        span.kind() == SpanKind::Server && is(span, "http.response.status_code", "404")
    });
    assert_eq!(missing.status.as_ref().map_or(0, |status| status.code), 0);
    let hit = one(&spans, "the hit", |span| is(span, "larder.outcome", "hit"));
    assert!(!spans.iter().any(|span| span.parent_span_id == hit.span_id), "a hit sends no request");
}

#[test]
fn joined_request_links_to_the_fill_span() {
    let registry = Registry::start();
    let blob = Blob::random(1, 2 * MIB);
    registry.add_blob("library/app", &blob);
    let gate = Gate::new();
    registry.script(When::blobs(), Fault::HoldBody(MIB, gate.clone()));
    let collector = Collector::start();
    let larder = start(&registry, &collector);
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    let mut first = larder.api().open("GET", &path, &[("X-Request-Id", "first")]).unwrap();
    first.read_exactly(1000).unwrap();
    let second = larder.api().open("GET", &path, &[("X-Request-Id", "second")]).unwrap();
    // One client disconnects before the fill has finished, and its span ends then.
    drop(second);
    let third = larder.api().open("GET", &path, &[("X-Request-Id", "third")]).unwrap();
    gate.open();
    first.finish().unwrap();
    third.finish().unwrap();
    let spans = spans(larder, &collector);
    let named = |name| one(&spans, name, |span| is(span, "larder.request_id", name));
    let fill = one(&spans, "the fill", |span| span.name == "fill");
    assert_eq!(fill.parent_span_id, named("first").span_id);
    for joined in [named("second"), named("third")] {
        assert!(links(joined, fill) && links(fill, joined), "{joined:#?} {fill:#?}");
        assert_ne!(joined.trace_id, fill.trace_id);
        assert!(is(joined, "larder.outcome", "join"));
    }
    let second = named("second");
    assert!(is(second, "larder.complete", "false"), "{second:#?}");
    assert!(second.end_time_unix_nano < fill.end_time_unix_nano);
}

#[test]
fn signature_in_the_path_of_a_redirect_is_not_shown() {
    const SIGNATURE: &str = "secret-signature";
    let (registry, storage) = (Registry::start(), Registry::start());
    let blob = Blob::random(1, 1000);
    registry.add_blob("library/app", &blob);
    let signed = format!("{}/{SIGNATURE}", storage.url());
    registry.script(When::blobs(), Fault::Redirect(307, signed));
    let collector = Collector::start();
    let setup = Setup::with(&registry).set("trace.endpoint", collector.url()).set("log.level", "trace");
    let larder = setup.upstream_set("docker.io", "allow_private", true).start();
    // The storage does not have the blob.
    larder.get(&format!("/v2/library/app/blobs/{}", blob.digest)).assert_error(404, "BLOB_UNKNOWN");
    let request = larder.wait_for_line("the redirected request", |line| {
        line["message"] == "request sent" && line["status"] == 404
    });
    assert!(request["host"].is_string() && request["path"].is_null(), "{request}");
    assert!(storage.count("GET", SIGNATURE) > 0);
    let shown = larder.log_lines().iter().filter(|line| line.to_string().contains(SIGNATURE)).count();
    assert_eq!(shown, 0);
    let spans = spans(larder, &collector);
    assert!(spans.iter().all(|span| !format!("{span:?}").contains(SIGNATURE)), "{spans:#?}");
}

#[test]
fn client_trace_is_continued_and_not_forwarded() {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    let collector = Collector::start();
    let setup = Setup::with(&registry).set("trace.endpoint", collector.url());
    // Only requests that the client has sampled are traced.
    let larder = setup.set("trace.sample", 0.0).start();
    let sampled = format!("00-{TRACE}-{PARENT}-01");
    larder.api().send("GET", TAG, &[("traceparent", &sampled)]).assert_body(&image.manifest.bytes);
    let unsampled = format!("00-{TRACE}-{PARENT}-00");
    larder.api().send("GET", "/v2/", &[("traceparent", &unsampled)]);
    larder.api().send("GET", "/v2/", &[("traceparent", "nonsense")]);
    larder.get("/v2/");
    let seen = registry.requests();
    assert!(!seen.is_empty() && seen.iter().all(|seen| seen.header("traceparent").is_none()));
    let spans = spans(larder, &collector);
    let request = one(&spans, "the request", |span| span.kind() == SpanKind::Server);
    assert_eq!(request.trace_id, u128::from_str_radix(TRACE, 16).unwrap().to_be_bytes());
    assert_eq!(request.parent_span_id, u64::from_str_radix(PARENT, 16).unwrap().to_be_bytes());
    assert!(spans.iter().all(|span| span.trace_id == request.trace_id));
}

#[test]
fn failures_are_marked_in_spans() {
    let registry = Registry::start();
    registry.script(When::any(), Fault::CloseConnection);
    let collector = Collector::start();
    let larder = start(&registry, &collector);
    assert_eq!(larder.get(TAG).status(), 502);
    let spans = spans(larder, &collector);
    let failed = |span: &Span| span.status.as_ref().is_some_and(|status| status.code == 2);
    assert!(failed(one(&spans, "the request", |span| span.kind() == SpanKind::Server)));
    let calls: Vec<_> = spans.iter().filter(|span| span.kind() == SpanKind::Client).collect();
    assert!(calls.len() > 1, "each attempt is a call");
    assert!(calls.iter().all(|call| failed(call) && is(call, "error.type", "no answer")));
}

#[test]
fn dead_collector_does_not_delay_requests() {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    for silent in [false, true] {
        let collector = Collector::start();
        collector.stop_answering();
        let url = if silent { collector.url() } else { "http://127.0.0.1:1".to_owned() };
        let mut larder = Setup::with(&registry).set("trace.endpoint", url).start();
        larder.get(TAG).assert_body(&image.manifest.bytes);
        if silent {
            support::eventually("the collector gets a request", || collector.requests() > 0);
        } else {
            larder.wait_for_line("warning", |line| line["message"] == FAILED && line["level"] == "WARN");
        }
        // More spans than the queue holds.
        let mut connection = Keep::new(&larder);
        for _ in 0..3000 {
            connection.get("/v2/");
        }
        assert!(larder.count_lines(FAILED) <= 1, "{}", larder.count_lines(FAILED));
        larder.stop();
    }
}

/// A kept connection for many small requests.
struct Keep(std::io::BufReader<std::net::TcpStream>);

impl Keep {
    fn new(larder: &Larder) -> Self {
        Self(std::io::BufReader::new(larder.api().connect().unwrap()))
    }

    fn get(&mut self, path: &str) {
        use std::io::{BufRead as _, Read as _, Write as _};
        write!(self.0.get_mut(), "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            self.0.read_line(&mut line).unwrap();
        }
        self.0.read_exact(&mut [0; 2]).unwrap();
    }
}

#[test]
fn tracing_is_disabled_without_an_endpoint() {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    let collector = Collector::start();
    for traced in [true, false] {
        let setup = Setup::with(&registry).set("log.level", "debug");
        let setup = if traced { setup.set("trace.endpoint", collector.url()) } else { setup };
        let larder = setup.start();
        let id = larder.get(TAG).header("x-request-id").unwrap().to_owned();
        let line = larder
            .wait_for_line("line of the request", |line| line["message"] == "request" && line["id"] == id);
        let keys: Vec<_> = line.as_object().unwrap().keys().collect();
        assert!(!keys.iter().any(|key| key.contains("span")), "{keys:?}");
        let before = collector.requests();
        drop(spans(larder, &collector));
        assert_eq!(collector.requests() > before, traced);
    }
}

/// The first hit reads the facts about access from the store. Later hits find the blob in memory.
#[test]
fn repeated_hit_reads_no_facts() {
    let registry = Registry::start();
    let blob = Blob::random(1, 1000);
    registry.add_blob("library/app", &blob);
    let collector = Collector::start();
    let larder = start(&registry, &collector);
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    larder.get(&path).assert_body(&blob.bytes);
    larder.wait_idle();
    for name in ["first", "second"] {
        larder.api().send("GET", &path, &[("X-Request-Id", name)]).assert_outcome("larder; hit");
    }
    let spans = spans(larder, &collector);
    let states = |name| {
        let request = one(&spans, name, |span| is(span, "larder.request_id", name));
        request.events.iter().map(|event| event.name.clone()).collect::<Vec<_>>()
    };
    assert!(states("first").iter().any(|state| state == "blob.store"), "{:?}", states("first"));
    assert!(!states("second").iter().any(|state| state.starts_with("blob.")), "{:?}", states("second"));
}
