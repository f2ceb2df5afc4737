//! Whom TLS trusts, and that nothing leaves it.

use larder::config::schema::Upstream as Settings;
use larder::upstream::UpstreamError;

use crate::registry::{
    Identity, PATIENT, Piece, Registry, Reply, answer, at, digest, name, open, read, upstream, with_password,
};

#[tokio::test]
async fn certificates_are_verified_unless_told_otherwise() {
    let identity = Identity::new();
    let registry = Registry::start_tls(&identity, |_, _| answer(200, &[], b"content")).await;
    let error = open(&registry).head_blob(&name(), &digest()).await.expect_err("a stranger");
    assert!(matches!(&error, UpstreamError::Unreachable(text) if text.contains("certificate")), "{error}");
    assert_eq!(registry.seen().len(), 0);

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, &identity.pem).expect("written");
    let (trusting, _) = upstream(Settings { ca_file: Some(file), ..at(&registry.url()) }, PATIENT);
    assert_eq!(trusting.head_blob(&name(), &digest()).await, Ok(Some(7)));

    let (blind, _) = upstream(Settings { insecure_skip_verify: true, ..at(&registry.url()) }, PATIENT);
    assert_eq!(blind.head_blob(&name(), &digest()).await, Ok(Some(7)));
}

#[tokio::test]
async fn a_cut_stream_of_http2_is_no_end() {
    let registry = Registry::start_tls(&Identity::new(), |_, _| Reply::Answer {
        status: 200,
        headers: Vec::new(),
        pieces: vec![Piece::Data(b"01234".to_vec()), Piece::Flush, Piece::Cut],
    })
    .await;
    let (upstream, _) = upstream(Settings { insecure_skip_verify: true, ..at(&registry.url()) }, PATIENT);
    let mut body = upstream.get_blob(&name(), &digest(), 0, None).await.expect("a body");
    assert_eq!(body.total, None);
    let (_, error) = read(&mut body).await.expect_err("cut");
    assert!(matches!(error, UpstreamError::Interrupted(_)), "{error}");
}

#[tokio::test]
async fn a_redirect_may_not_leave_tls() {
    let storage = Registry::start(|_, _| answer(200, &[], b"content")).await;
    let target = storage.url();
    let registry =
        Registry::start_tls(&Identity::new(), move |_, _| answer(307, &[("location", &target)], b"")).await;
    let settings = Settings { insecure_skip_verify: true, allow_private: true, ..at(&registry.url()) };
    let (upstream, _) = upstream(settings, PATIENT);
    let error = upstream.head_blob(&name(), &digest()).await.expect_err("refused");
    assert!(matches!(&error, UpstreamError::Invalid(text) if text.contains("https")), "{error}");
    assert_eq!(storage.seen().len(), 0);
}

#[tokio::test]
async fn a_realm_without_tls_sees_no_credentials() {
    let service = Registry::start(|_, _| answer(200, &[], br#"{"token":"t"}"#)).await;
    let challenge = format!(r#"Bearer realm="{}/token""#, service.url());
    let registry = Registry::start_tls(&Identity::new(), move |seen, _| match seen.header("authorization") {
        Some("Bearer t") => answer(200, &[], b"content"),
        _ => answer(401, &[("www-authenticate", &challenge)], b""),
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let settings = with_password(&registry.url(), folder.path(), "pw");
    let (upstream, _) = upstream(Settings { insecure_skip_verify: true, ..settings }, PATIENT);
    upstream.head_blob(&name(), &digest()).await.expect("a blob");
    assert_eq!(service.seen()[0].header("authorization"), None);
}
