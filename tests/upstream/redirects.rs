//! Where a registry may send its requests on to.

use larder::config::schema::Upstream as Settings;
use larder::upstream::UpstreamError;
use tokio::net::TcpListener;

use crate::registry::{PATIENT, Registry, answer, at, digest, name, open, read, upstream, with_password};

#[tokio::test]
async fn a_redirect_elsewhere_takes_no_credentials_along() {
    let storage = Registry::start(|_, _| answer(206, &[("content-range", "bytes 4-9/10")], b"456789")).await;
    let location = format!("{}/signed?X-Signature=hush", storage.url());
    let registry = Registry::start(move |seen, _| {
        if seen.header("authorization").is_none() {
            return answer(401, &[("www-authenticate", r#"Basic realm="reg""#)], b"");
        }
        if seen.target.starts_with("/moved") {
            return answer(302, &[("location", &location)], b"");
        }
        answer(307, &[("location", "/moved")], b"")
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let (upstream, _) = upstream(with_password(&registry.url(), folder.path(), "pw\n"), PATIENT);
    let mut body = upstream.get_blob(&name(), &digest(), 4, None).await.expect("a body");
    assert_eq!(read(&mut body).await.expect("the bytes"), b"456789");

    let basic = "Basic dXNlcjpwdw==";
    let sent: Vec<_> =
        registry.seen().iter().map(|seen| seen.header("authorization").map(str::to_owned)).collect();
    assert_eq!(sent, [None, Some(basic.to_owned()), Some(basic.to_owned())], "the same host keeps it");
    let seen = storage.seen();
    assert_eq!(seen[0].header("authorization"), None);
    assert_eq!(seen[0].header("range"), Some("bytes=4-"));
    assert_eq!(seen[0].target, "/signed?X-Signature=hush");
}

#[tokio::test]
async fn redirects_end() {
    let registry = Registry::start(|seen, _| answer(302, &[("location", &seen.target)], b"")).await;
    let error = open(&registry).head_blob(&name(), &digest()).await.expect_err("a loop");
    assert!(matches!(&error, UpstreamError::Invalid(text) if text.contains("10 times")), "{error}");
    assert_eq!(registry.seen().len(), 11);
}

#[tokio::test]
async fn a_redirect_may_not_lead_inside() {
    for target in [
        "http://169.254.169.254/latest/meta-data?key=hush",
        "http://127.0.0.2/?key=hush",
        "http://localhost:1/?key=hush",
        "http://user:hush@127.0.0.1:1/",
        "ftp://example.test/?key=hush",
        "http://[::1]:1/?key=hush",
    ] {
        let registry = Registry::start(move |_, _| answer(302, &[("location", target)], b"")).await;
        let error = open(&registry).head_blob(&name(), &digest()).await.expect_err("refused");
        assert!(matches!(error, UpstreamError::Invalid(_)), "{target}: {error}");
        assert!(!error.to_string().contains("hush"), "{error}");
    }
    let storage = Registry::start(|_, _| answer(200, &[], b"content")).await;
    let target = format!("http://localhost:{}/", storage.address.port());
    let registry = Registry::start(move |_, _| answer(302, &[("location", &target)], b"")).await;
    let settings = Settings { allow_private: true, ..at(&registry.url()) };
    let (upstream, _) = upstream(settings, PATIENT);
    assert_eq!(upstream.head_blob(&name(), &digest()).await, Ok(Some(7)), "unless that is permitted");
}

#[tokio::test]
async fn a_dead_signed_url_is_not_quoted() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let target = format!("http://{}/x?signature=hush", listener.local_addr().expect("an address"));
    drop(listener);
    let registry = Registry::start(move |_, _| answer(302, &[("location", &target)], b"")).await;
    let error = open(&registry).head_blob(&name(), &digest()).await.expect_err("nobody there");
    assert!(matches!(error, UpstreamError::Unreachable(_)), "{error}");
    assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
}
