//! Requests to a registry, and the interpretation of its answers.

use std::io::Write as _;
use std::time::{Duration, SystemTime};

use larder::config::schema::{Endpoint, Upstream as Settings};
use larder::oci::content::media::CANONICAL_ACCEPT;
use larder::source::{ByteRange, Denial, MANIFEST_MAX, Source as _, SourceError};
use larder::upstream::Timeouts;

use crate::support::{Port, TIME_LIMIT};
use crate::upstream::registry::{
    Piece, Registry, Reply, TIMEOUTS, answer, at, counted, digest, name, open, read, tag, upstream,
};

#[tokio::test]
async fn manifest_is_fetched_unchanged() {
    let registry = Registry::start(|_, _| {
        let digest = digest().to_string();
        let headers = [("content-type", "text/odd; charset=x"), ("docker-content-digest", &digest)];
        answer(200, &headers, b"{}")
    })
    .await;
    let (upstream, metrics) = upstream(at(&registry.url()), TIMEOUTS);
    let document = upstream.manifest(&name(), &tag(), CANONICAL_ACCEPT, None).await.expect("a document");
    assert_eq!(document.body, "{}");
    assert_eq!(document.content_type.as_deref(), Some("text/odd; charset=x"));
    assert_eq!(document.digest, Some(digest()));

    let head = upstream.head(&name(), &tag(), CANONICAL_ACCEPT, None).await.expect("a head");
    let head = head.expect("an answer");
    assert_eq!(head.digest, Some(digest()));
    assert_eq!(head.size, Some(2));

    let seen = registry.seen();
    assert_eq!(seen[0].target, "/v2/org/app/manifests/latest");
    assert_eq!(seen[0].header("accept"), Some(CANONICAL_ACCEPT));
    assert_eq!(seen[0].header("accept-encoding"), Some("identity"));
    assert!(seen[0].header("user-agent").is_some_and(|agent| agent.starts_with("larder/")));
    assert_eq!(seen[0].header("authorization"), None);
    assert_eq!(seen[1].method, "HEAD");

    let get = r#"larder_upstream_requests_total{method="GET",status="200",upstream="reg.test"}"#;
    assert_eq!(counted(&metrics, get).as_deref(), Some("1"));
    let fetched = r#"larder_fetched_bytes_total{kind="manifest",upstream="reg.test"}"#;
    assert_eq!(counted(&metrics, fetched).as_deref(), Some("2"));
}

#[tokio::test]
async fn endpoint_path_is_kept() {
    let registry = Registry::start(|_, _| answer(200, &[], b"{}")).await;
    let (upstream, _) = upstream(at(&format!("{}/proxy/hub/", registry.url())), TIMEOUTS);
    upstream.blob_size(&name(), &digest(), None).await.expect("a blob");
    assert_eq!(registry.seen()[0].target, format!("/proxy/hub/v2/org/app/blobs/{}", digest()));
}

#[tokio::test]
async fn oversized_manifest_is_refused_with_and_without_length() {
    let registry = Registry::start(|_, before| {
        let body = vec![b' '; MANIFEST_MAX + 1];
        if before == 0 {
            return answer(200, &[], &body);
        }
        let (first, second) = body.split_at(MANIFEST_MAX);
        let pieces = vec![Piece::Data(first.to_vec()), Piece::Data(second.to_vec())];
        Reply::Answer { status: 200, headers: Vec::new(), pieces }
    })
    .await;
    let upstream = open(&registry);
    for _ in 0..2 {
        let error = upstream.manifest(&name(), &tag(), CANONICAL_ACCEPT, None).await.expect_err("refused");
        assert!(matches!(&error, SourceError::Invalid(text) if text.contains("larger")), "{error}");
    }
    assert_eq!(registry.seen().len(), 2, "it is not asked for again");
}

#[tokio::test]
async fn encoded_body_is_refused_by_name() {
    let registry = Registry::start(|_, _| answer(200, &[("content-encoding", "br")], b"x")).await;
    let upstream = open(&registry);
    let error = upstream.manifest(&name(), &tag(), CANONICAL_ACCEPT, None).await.expect_err("refused");
    assert!(matches!(&error, SourceError::Invalid(text) if text.contains("br")), "{error}");
    let error = upstream.blob(&name(), &digest(), ByteRange::ALL, None).await.expect_err("refused");
    assert!(matches!(error, SourceError::Invalid(_)), "{error}");
}

#[tokio::test]
async fn gzip_is_decoded_on_request() {
    let registry = Registry::start(|_, _| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"{\"a\": 1}").expect("written");
        let headers = [("content-encoding", "gzip"), ("docker-content-digest", "sha256:nonsense")];
        answer(200, &headers, &encoder.finish().expect("finished"))
    })
    .await;
    let upstream = open(&registry);
    let document = upstream.manifest(&name(), &tag(), CANONICAL_ACCEPT, None).await.expect("a document");
    assert_eq!(document.body, "{\"a\": 1}");
    let head = upstream.head(&name(), &tag(), CANONICAL_ACCEPT, None).await.expect("a head");
    assert_eq!(head.expect("an answer").size, None, "it would be the encoded one");
    assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(None));
    for decoded in [false, true] {
        let mut body = upstream.blob(&name(), &digest(), ByteRange::ALL, None).await.expect("a body");
        assert!(body.gzip && body.total.is_some());
        if decoded {
            body = body.decoded();
            assert_eq!(body.total, None);
        }
        let bytes = read(&mut body).await.expect("the bytes");
        assert_eq!(bytes == b"{\"a\": 1}", decoded);
        assert_eq!(body.chunk().await, Ok(None), "an end stays an end");
    }
}

#[tokio::test]
async fn registry_without_head_is_inconclusive() {
    let registry = Registry::start(|_, before| match before {
        0 => answer(405, &[], b""),
        1 => answer(501, &[], b""),
        _ => answer(200, &[("docker-content-digest", "sha256:nonsense")], b""),
    })
    .await;
    let upstream = open(&registry);
    for _ in 0..2 {
        let head = upstream.head(&name(), &tag(), CANONICAL_ACCEPT, None).await;
        assert_eq!(head, Ok(None));
    }
    let head = upstream.head(&name(), &tag(), CANONICAL_ACCEPT, None).await.expect("a head");
    assert_eq!(head.expect("an answer").digest, None);
    // The length of a blob has no other source, so here this is an error.
    let registry = Registry::start(|_, _| answer(405, &[], b"")).await;
    assert_eq!(
        open(&registry).blob_size(&name(), &digest(), None).await,
        Err(SourceError::Unsupported("status 405".to_owned()))
    );
}

#[tokio::test]
async fn statuses_map_to_errors() {
    for (status, expected) in [
        (404, SourceError::NotFound),
        (403, SourceError::Denied(Denial::Forbidden)),
        (401, SourceError::Denied(Denial::Unauthenticated)),
        (410, SourceError::Unsupported("status 410".to_owned())),
        (416, SourceError::RangeNotSatisfiable),
        (304, SourceError::Unsupported("status 304".to_owned())),
    ] {
        let registry = Registry::start(move |_, _| answer(status, &[], b"")).await;
        let error = open(&registry).blob_size(&name(), &digest(), None).await.expect_err("an error");
        assert_eq!(error, expected);
        assert_eq!(registry.seen().len(), 1, "{status} is final");
    }
}

#[tokio::test]
async fn retry_after_is_reported() {
    let registry = Registry::start(|_, before| match before {
        0 => answer(429, &[("retry-after", "30")], b"slow down"),
        1 => {
            let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_mins(10));
            answer(429, &[("retry-after", &date)], b"")
        }
        _ => answer(429, &[], b""),
    })
    .await;
    // A new upstream for each case: an upstream that was told to wait sends no requests.
    let ask = async || open(&registry).blob_size(&name(), &digest(), None).await.expect_err("refused");
    let after = |seconds| SourceError::RateLimited { retry_after: Some(Duration::from_secs(seconds)) };
    assert_eq!(ask().await, after(30));
    let SourceError::RateLimited { retry_after: Some(dated) } = ask().await else { panic!("no date") };
    assert!(dated > Duration::from_mins(9) && dated <= Duration::from_mins(10), "{dated:?}");
    // Without a time, the pause of the upstream is told.
    let SourceError::RateLimited { retry_after: Some(pause) } = ask().await else { panic!("no pause") };
    assert!(!pause.is_zero() && pause <= Duration::from_secs(1), "{pause:?}");
    assert_eq!(registry.seen().len(), 3, "a quota is never hammered");
}

#[tokio::test]
async fn transient_failures_are_retried() {
    let registry = Registry::start(|_, before| match before {
        0 => answer(503, &[], b""),
        1 => Reply::Reset,
        _ => answer(200, &[], b"content"),
    })
    .await;
    let (upstream, metrics) = upstream(at(&registry.url()), TIMEOUTS);
    assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)));
    assert_eq!(registry.seen().len(), 3);
    let broken = r#"larder_upstream_requests_total{method="HEAD",status="error",upstream="reg.test"}"#;
    assert_eq!(counted(&metrics, broken).as_deref(), Some("1"));
}

#[tokio::test]
async fn retries_are_limited_to_two() {
    let registry = Registry::start(|_, _| answer(502, &[], b"")).await;
    let error = open(&registry).blob_size(&name(), &digest(), None).await.expect_err("an error");
    assert_eq!(error, SourceError::Unavailable(502));
    assert_eq!(registry.seen().len(), 3);
}

#[tokio::test]
async fn request_time_out_of_the_registry_is_repeated_once() {
    let registry = Registry::start(|_, n| {
        if n == 0 { answer(408, &[("connection", "close")], b"") } else { answer(200, &[], b"content") }
    })
    .await;
    assert_eq!(open(&registry).blob_size(&name(), &digest(), None).await, Ok(Some(7)));
    assert_eq!(registry.seen().len(), 2);
    let registry = Registry::start(|_, _| answer(408, &[], b"")).await;
    let error = open(&registry).blob_size(&name(), &digest(), None).await.expect_err("an error");
    assert!(matches!(error, SourceError::Unsupported(_)), "{error}");
    assert_eq!(registry.seen().len(), 2);
}

#[tokio::test]
async fn silent_registry_is_not_retried() {
    let registry = Registry::start(|_, _| Reply::Hang).await;
    let timeouts = Timeouts { head: Duration::from_secs(1), ..TIMEOUTS };
    let (upstream, _) = upstream(at(&registry.url()), timeouts);
    let error = upstream.blob_size(&name(), &digest(), None).await.expect_err("an error");
    assert!(matches!(error, SourceError::Timeout(_)), "{error}");
    assert_eq!(registry.seen().len(), 1);
}

#[tokio::test]
async fn head_of_a_blob_may_take_longer_than_other_heads() {
    let registry = Registry::start(|_, _| Reply::Hang).await;
    let (short, long) = (Duration::from_millis(100), Duration::from_hours(1));
    let timeouts = Timeouts { head: short, total: short, blob_head: long, ..TIMEOUTS };
    let (slow, _) = upstream(at(&registry.url()), timeouts);
    let error = slow.manifest(&name(), &tag(), CANONICAL_ACCEPT, None).await.expect_err("late");
    assert!(matches!(error, SourceError::Timeout(_)), "{error}");
    let (repository, blob) = (name(), digest());
    let waiting = slow.blob(&repository, &blob, ByteRange::ALL, None);
    assert!(tokio::time::timeout(short * 5, waiting).await.is_err(), "the blob's time-out is longer");
    let configured = Settings { head_timeout: Some(short), ..at(&registry.url()) };
    let (slow, _) = upstream(configured, Timeouts { total: short, ..TIMEOUTS });
    let error = slow.blob(&repository, &blob, ByteRange::ALL, None).await.expect_err("late");
    assert!(matches!(error, SourceError::Timeout(_)), "{error}");
}

#[tokio::test]
async fn slow_blob_is_asked_for_at_the_next_endpoint_first() {
    let slow = Registry::start(|_, n| if n == 0 { Reply::Hang } else { answer(200, &[], b"content") }).await;
    let other = Registry::start(|_, _| answer(404, &[], b"")).await;
    let settings =
        Settings { endpoints: vec![Endpoint::new(slow.url()), Endpoint::new(other.url())], ..at("") };
    let timeouts = Timeouts { total: Duration::from_millis(400), ..TIMEOUTS };
    let (both, _) = upstream(settings, timeouts);
    let mut body = both.blob(&name(), &digest(), ByteRange::ALL, None).await.expect("a body");
    assert_eq!(read(&mut body).await.expect("complete"), b"content");
    assert_eq!((slow.seen().len(), other.seen().len()), (2, 1));
}

#[tokio::test]
async fn closed_port_is_unreachable() {
    let port = Port::reserve();
    let (upstream, _) = upstream(at(&format!("http://{}", port.addr())), TIMEOUTS);
    let error = upstream.blob_size(&name(), &digest(), None).await.expect_err("an error");
    assert!(matches!(&error, SourceError::Unreachable(text) if text.contains("refused")), "{error}");
    assert!(!error.to_string().contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn cut_body_is_an_error() {
    let registry = Registry::start(|_, _| Reply::Answer {
        status: 200,
        headers: vec![("content-length", "10".to_owned())],
        pieces: vec![Piece::Data(b"01234".to_vec()), Piece::Flush, Piece::Cut],
    })
    .await;
    let upstream = open(&registry);
    let mut body = upstream.blob(&name(), &digest(), ByteRange::ALL, None).await.expect("a body");
    assert_eq!(body.total, Some(10));
    let (got, error) = read(&mut body).await.expect_err("cut");
    assert_eq!(got, b"01234");
    assert!(matches!(error, SourceError::Interrupted(_)), "{error}");

    let error = upstream.manifest(&name(), &tag(), CANONICAL_ACCEPT, None).await.expect_err("cut");
    assert!(matches!(error, SourceError::Interrupted(_)), "{error}");
}

#[tokio::test]
async fn stalled_body_times_out() {
    let registry = Registry::start(|_, _| Reply::Answer {
        status: 200,
        headers: vec![("content-length", "10".to_owned())],
        pieces: vec![Piece::Data(b"01234".to_vec()), Piece::Stall],
    })
    .await;
    let (upstream, _) = upstream(at(&registry.url()), Timeouts { idle: Duration::from_secs(1), ..TIMEOUTS });
    let mut body = upstream.blob(&name(), &digest(), ByteRange::ALL, None).await.expect("a body");
    let (got, error) = read(&mut body).await.expect_err("stalled");
    assert_eq!(got, b"01234");
    assert!(matches!(error, SourceError::Interrupted(_)), "{error}");
}

#[tokio::test]
async fn blob_transfers_leave_connections_for_manifests() {
    let registry = Registry::start(|seen, _| {
        if seen.target.contains("/blobs/") {
            let pieces = vec![Piece::Data(b"0".to_vec()), Piece::Stall];
            Reply::Answer { status: 200, headers: Vec::new(), pieces }
        } else {
            answer(200, &[], b"{}")
        }
    })
    .await;
    let settings = Settings { max_connections: 2, ..at(&registry.url()) };
    // The time-out applies to requests that wait for a connection, not to a running transfer.
    let timeouts = Timeouts { total: Duration::from_secs(3), idle: Duration::from_hours(1), ..TIMEOUTS };
    let (upstream, _) = upstream(settings, timeouts);
    let body = upstream.blob(&name(), &digest(), ByteRange::ALL, None).await.expect("a body");
    let (repository, blob) = (name(), digest());
    let refused = upstream.blob(&repository, &blob, ByteRange::ALL, None);
    let refused = tokio::time::timeout(TIME_LIMIT, refused).await.expect("an error");
    let error = refused.expect_err("no room");
    assert_eq!(error, SourceError::Busy);
    upstream.manifest(&name(), &tag(), CANONICAL_ACCEPT, None).await.expect("room for a manifest");
    drop(body);
    upstream.blob(&name(), &digest(), ByteRange::ALL, None).await.expect("room again");
}
