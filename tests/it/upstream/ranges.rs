//! Partial blobs.

use larder::source::{ByteRange, Source as _, SourceError};

use crate::upstream::registry::{
    Registry, TIMEOUTS, answer, at, counted, digest, name, open, read, upstream,
};

#[tokio::test]
async fn blob_resumes_at_the_offset() {
    let registry = Registry::start(|seen, _| match seen.header("range") {
        Some("bytes=4-") => answer(206, &[("content-range", "bytes 4-9/10")], b"456789"),
        Some("bytes=4-5") => answer(206, &[("content-range", "bytes 4-5/10")], b"45"),
        Some("bytes=10-") => answer(416, &[("content-range", "bytes */10")], b""),
        Some(_) => answer(400, &[], b""),
        None => answer(200, &[], b"0123456789"),
    })
    .await;
    let (upstream, metrics) = upstream(at(&registry.url()), TIMEOUTS);
    for (from, to, bytes) in
        [(4, None, &b"456789"[..]), (4, Some(5), &b"45"[..]), (0, None, &b"0123456789"[..])]
    {
        let mut body = upstream
            .blob(&name(), &digest(), ByteRange { first: from, last: to }, None)
            .await
            .expect("a body");
        assert_eq!((body.offset, body.total), (from, Some(10)));
        assert_eq!(read(&mut body).await.expect("the range"), bytes);
        assert_eq!(body.chunk().await, Ok(None), "an end stays an end");
    }
    let error = upstream.blob(&name(), &digest(), ByteRange::from(10), None).await.expect_err("beyond");
    assert_eq!(error, SourceError::RangeNotSatisfiable);
    let fetched = r#"larder_fetched_bytes_total{kind="blob",upstream="reg.test"}"#;
    assert_eq!(counted(&metrics, fetched).as_deref(), Some("18"));
}

#[tokio::test]
async fn ignored_range_starts_at_zero() {
    let registry = Registry::start(|_, _| answer(200, &[], b"0123456789")).await;
    let mut body = open(&registry).blob(&name(), &digest(), ByteRange::from(4), None).await.expect("a body");
    assert_eq!((body.offset, body.total), (0, Some(10)));
    assert_eq!(read(&mut body).await.expect("all of it"), b"0123456789");
}

#[tokio::test]
async fn wrong_range_is_refused() {
    for (range, body) in [
        (Some("bytes 5-9/10"), &b"56789"[..]),
        (Some("bytes 4-9/9"), b"456789"),
        (Some("bytes 4-9/10"), b"45678"),
        (Some("nonsense"), b"456789"),
        (None, b"456789"),
    ] {
        let registry = Registry::start(move |_, _| {
            let headers: Vec<_> = range.into_iter().map(|range| ("content-range", range)).collect();
            answer(206, &headers, body)
        })
        .await;
        let error =
            open(&registry).blob(&name(), &digest(), ByteRange::from(4), None).await.expect_err("refused");
        assert!(matches!(error, SourceError::Invalid(_)), "{range:?}: {error}");
    }
    let registry =
        Registry::start(|_, _| answer(206, &[("content-range", "bytes 0-9/10")], b"0123456789")).await;
    let error = open(&registry)
        .blob(&name(), &digest(), ByteRange::ALL, None)
        .await
        .expect_err("an unsolicited part");
    assert!(matches!(error, SourceError::Invalid(_)), "{error}");
}
