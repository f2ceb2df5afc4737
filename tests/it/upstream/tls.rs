//! Trust in TLS, and fall-back to plain HTTP, which must not happen.

use std::path::PathBuf;
use std::sync::Arc;

use larder::clock::Clock;
use larder::config::Config;
use larder::config::schema::Upstream as Settings;
use larder::source::{ByteRange, Source as _, SourceError};
use larder::telemetry::Metrics;
use larder::upstream::Upstreams;

use crate::upstream::registry::{
    Identity, Piece, Registry, Reply, TIMEOUTS, answer, at, basic, digest, name, open, read, upstream,
    with_password,
};

#[tokio::test]
async fn certificates_are_verified_by_default() {
    let identity = Identity::new();
    let registry = Registry::start_tls(&identity, |_, _| answer(200, &[], b"content")).await;
    let error = open(&registry).blob_size(&name(), &digest(), None).await.expect_err("a stranger");
    assert!(matches!(&error, SourceError::Unreachable(text) if text.contains("certificate")), "{error}");
    assert_eq!(registry.seen().len(), 0);

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, &identity.pem).expect("written");
    let (trusting, _) = upstream(Settings { ca_file: Some(file), ..at(&registry.url()) }, TIMEOUTS);
    assert_eq!(trusting.blob_size(&name(), &digest(), None).await, Ok(Some(7)));

    let (blind, _) = upstream(Settings { insecure_skip_verify: true, ..at(&registry.url()) }, TIMEOUTS);
    assert_eq!(blind.blob_size(&name(), &digest(), None).await, Ok(Some(7)));
}

#[tokio::test]
async fn cut_http2_stream_is_an_error() {
    let registry = Registry::start_tls(&Identity::new(), |_, _| Reply::Answer {
        status: 200,
        headers: Vec::new(),
        pieces: vec![Piece::Data(b"01234".to_vec()), Piece::Flush, Piece::Cut],
    })
    .await;
    let (upstream, _) = upstream(Settings { insecure_skip_verify: true, ..at(&registry.url()) }, TIMEOUTS);
    let mut body = upstream.blob(&name(), &digest(), ByteRange::ALL, None).await.expect("a body");
    assert_eq!(body.total, None);
    let (_, error) = read(&mut body).await.expect_err("cut");
    assert!(matches!(error, SourceError::Interrupted(_)), "{error}");
}

#[tokio::test]
async fn redirect_away_from_tls_is_refused() {
    let storage = Registry::start(|_, _| answer(200, &[], b"content")).await;
    let target = storage.url();
    let registry =
        Registry::start_tls(&Identity::new(), move |_, _| answer(307, &[("location", &target)], b"")).await;
    let settings = Settings { insecure_skip_verify: true, allow_private: true, ..at(&registry.url()) };
    let (upstream, _) = upstream(settings, TIMEOUTS);
    let error = upstream.blob_size(&name(), &digest(), None).await.expect_err("refused");
    assert!(matches!(&error, SourceError::Invalid(text) if text.contains("https")), "{error}");
    assert_eq!(storage.seen().len(), 0);
}

#[tokio::test]
async fn realm_without_tls_gets_no_credentials() {
    let service = Registry::start(|_, _| answer(200, &[], br#"{"token":"t"}"#)).await;
    let challenge = format!(r#"Bearer realm="{}/token""#, service.url());
    let registry = Registry::start_tls(&Identity::new(), move |seen, _| match seen.header("authorization") {
        Some("Bearer t") => answer(200, &[], b"content"),
        _ => answer(401, &[("www-authenticate", &challenge)], b""),
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let settings = with_password(&registry.url(), folder.path(), "pw");
    let (upstream, _) = upstream(Settings { insecure_skip_verify: true, ..settings }, TIMEOUTS);
    upstream.blob_size(&name(), &digest(), None).await.expect("a blob");
    assert_eq!(service.seen()[0].header("authorization"), None);
}

/// Writes a file with this content.
fn file(folder: &tempfile::TempDir, name: &str, content: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, content).expect("written");
    path
}

#[tokio::test]
async fn client_certificate_is_sent_on_demand() {
    let (client, stranger) = (Identity::new(), Identity::new());
    let identity = Identity::requiring_client_certificate(Some(&client));
    let registry = Registry::start_tls(&identity, |_, _| answer(200, &[], b"content")).await;
    let folder = tempfile::tempdir().expect("a folder");
    let trusting = Settings { ca_file: Some(file(&folder, "ca.pem", &identity.pem)), ..at(&registry.url()) };
    let shows = |name: &str, client: &Identity| Settings {
        client_cert: Some(file(&folder, &format!("{name}.pem"), &client.pem)),
        client_key: Some(file(&folder, &format!("{name}-key.pem"), &client.key)),
        ..trusting.clone()
    };
    let ask = |settings: Settings| async {
        upstream(settings, TIMEOUTS).0.blob_size(&name(), &digest(), None).await
    };

    assert_eq!(ask(shows("own", &client)).await, Ok(Some(7)));
    let seen = registry.seen().len();
    for settings in [trusting.clone(), shows("other", &stranger)] {
        let error = ask(settings).await.expect_err("refused");
        assert!(matches!(error, SourceError::Unreachable(_) | SourceError::NoResponse(_)), "{error}");
    }
    assert_eq!(registry.seen().len(), seen);
    let blind = Settings { insecure_skip_verify: true, ca_file: None, ..shows("own", &client) };
    assert_eq!(ask(blind).await, Ok(Some(7)), "whether or not the registry is verified");
}

#[tokio::test]
async fn token_service_uses_the_registry_tls_settings() {
    let client = Identity::new();
    let identity = Identity::requiring_client_certificate(Some(&client));
    let service = Registry::start_tls(&identity, |_, _| answer(200, &[], br#"{"token":"t"}"#)).await;
    let challenge = format!(r#"Bearer realm="{}/token""#, service.url());
    let registry = Registry::start_tls(&identity, move |seen, _| match seen.header("authorization") {
        Some("Bearer t") => answer(200, &[], b"content"),
        _ => answer(401, &[("www-authenticate", &challenge)], b""),
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let settings = Settings {
        ca_file: Some(file(&folder, "ca.pem", &identity.pem)),
        client_cert: Some(file(&folder, "client.pem", &client.pem)),
        client_key: Some(file(&folder, "client-key.pem", &client.key)),
        ..with_password(&registry.url(), folder.path(), "pw")
    };
    let (upstream, _) = upstream(settings, TIMEOUTS);
    assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)));
    assert_eq!(service.seen()[0].header("authorization"), Some(basic("user:pw").as_str()));
}

#[test]
fn unusable_client_certificate_is_named() {
    let (client, other) = (Identity::new(), Identity::new());
    let folder = tempfile::tempdir().expect("a folder");
    let build = |cert: &str, key: &str| {
        let settings = Settings {
            client_cert: Some(file(&folder, "client.pem", cert)),
            client_key: Some(file(&folder, "client-key.pem", key)),
            ..at("https://reg.test")
        };
        let config = Config { upstream: [("reg.test".to_owned(), settings)].into(), ..Config::default() };
        Upstreams::build(&config, Arc::new(Metrics::new()), Clock::default()).map(|_| ())
    };
    build(&client.pem, &client.key).expect("a pair");
    let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\naHVzaA==\n-----END ENCRYPTED PRIVATE KEY-----\n";
    for (cert, key, wanted) in [
        ("", client.key.as_str(), ["client.pem", "no certificate"]),
        (&client.key, &client.key, ["client.pem", "no certificate"]),
        (&client.pem, "", ["client-key.pem", "no private key"]),
        (&client.pem, locked, ["client-key.pem", "passphrase"]),
        (&client.pem, &other.key, ["client-key.pem", "does not belong to the certificate"]),
    ] {
        let error = build(cert, key).expect_err("refused").to_string();
        assert!(wanted.iter().all(|part| error.contains(part)) && error.contains("reg.test"), "{error}");
    }
}
