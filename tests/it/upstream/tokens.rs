//! Token authentication: tokens, realms, and credentials.

use std::io;
use std::sync::{Arc, Mutex};

use larder::config::schema::Upstream as Settings;
use larder::oci::Name;
use larder::source::{Denial, Source as _, SourceError};
use tracing_subscriber::fmt::MakeWriter;

use crate::upstream::registry::{
    Registry, TIMEOUTS, answer, at, basic, counted, digest, name, open, tag, upstream, with_password,
};

/// A registry that requires a token of its own token service at `/token`.
async fn token_registry(realm: Option<String>) -> Registry {
    Registry::start(move |seen, before| {
        if seen.target.starts_with("/token") {
            let token = format!(r#"{{"token":"t{before}","expires_in":300}}"#);
            return answer(200, &[], token.as_bytes());
        }
        if seen.header("authorization").is_some_and(|value| value.starts_with("Bearer t")) {
            return answer(200, &[], b"content");
        }
        let realm = realm.clone().unwrap_or_else(|| "/token?account=larder".to_owned());
        let challenge = format!(r#"Bearer realm="{realm}",service="reg.test""#);
        answer(401, &[("www-authenticate", &challenge)], b"")
    })
    .await
}

#[tokio::test]
async fn token_is_requested_once_and_cached() {
    let registry = token_registry(None).await;
    let (upstream, metrics) = upstream(at(&registry.url()), TIMEOUTS);
    for _ in 0..3 {
        assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)));
    }
    let targets: Vec<_> = registry.seen().into_iter().map(|seen| seen.target).collect();
    let blob = format!("/v2/org/app/blobs/{}", digest());
    let token = "/token?account=larder&service=reg.test&scope=repository%3Aorg%2Fapp%3Apull";
    assert_eq!(targets, [&blob, token, &blob, &blob, &blob]);
    let ok = r#"larder_upstream_token_requests_total{result="ok",upstream="reg.test"}"#;
    assert_eq!(counted(&metrics, ok).as_deref(), Some("1"));

    let other: Name = "org/other".parse().expect("a name");
    upstream.blob_size(&other, &digest(), None).await.expect("a blob");
    let seen = registry.seen();
    assert_eq!(seen[5].header("authorization"), None, "a token is for its repository only");
    assert!(seen[6].target.contains("scope=repository%3Aorg%2Fother%3Apull"));
}

#[tokio::test]
async fn concurrent_token_requests_are_coalesced() {
    let registry = token_registry(None).await;
    let upstream = open(&registry);
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let upstream = Arc::clone(&upstream);
            tokio::spawn(async move { upstream.blob_size(&name(), &digest(), None).await })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.expect("no panic"), Ok(Some(7)));
    }
    let tokens = registry.seen().iter().filter(|seen| seen.target.starts_with("/token")).count();
    assert_eq!(tokens, 1);
}

#[tokio::test]
async fn credentials_go_to_the_registrys_token_service() {
    let registry = token_registry(None).await;
    let folder = tempfile::tempdir().expect("a folder");
    let (upstream, _) = upstream(with_password(&registry.url(), folder.path(), "pw\n"), TIMEOUTS);
    upstream.blob_size(&name(), &digest(), None).await.expect("a blob");
    assert_eq!(registry.seen()[1].header("authorization"), Some("Basic dXNlcjpwdw=="));
    let shown = format!("{upstream:?}");
    assert!(!shown.contains("Basic") && !shown.contains("t1"), "{shown}");
}

#[tokio::test]
async fn foreign_realm_gets_no_credentials() {
    let service = Registry::start(|_, _| answer(200, &[], br#"{"access_token":"t"}"#)).await;
    let realm = format!("http://localhost:{}/token", service.address.port());
    let registry = token_registry(Some(realm)).await;
    let folder = tempfile::tempdir().expect("a folder");
    let settings = Settings { allow_private: true, ..with_password(&registry.url(), folder.path(), "pw") };
    let (upstream, _) = upstream(settings, TIMEOUTS);
    upstream.blob_size(&name(), &digest(), None).await.expect("a blob");
    assert_eq!(service.seen()[0].header("authorization"), None);
}

#[tokio::test]
async fn foreign_realm_gets_credentials_if_configured() {
    let service = Registry::start(|_, _| answer(200, &[], br#"{"token":"t"}"#)).await;
    let port = service.address.port();
    let registry = token_registry(Some(format!("http://localhost:{port}/token"))).await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut settings =
        Settings { allow_private: true, ..with_password(&registry.url(), folder.path(), "pw") };
    for (hosts, expected) in [
        (vec!["localhost".to_owned()], true),
        (vec!["auth.test".to_owned(), format!("LOCALHOST:{port}")], true),
        (vec![format!("localhost:{}", port ^ 1)], false),
        (vec!["host".to_owned(), "localhost.test".to_owned()], false),
    ] {
        settings.realm_hosts.clone_from(&hosts);
        let (upstream, _) = upstream(settings.clone(), TIMEOUTS);
        upstream.blob_size(&name(), &digest(), None).await.expect("a blob");
        let sent = service.seen().last().and_then(|seen| seen.header("authorization").map(str::to_owned));
        assert_eq!(sent, expected.then(|| basic("user:pw")), "{hosts:?}");
    }
    // The realm still needs permission for a private address.
    settings.allow_private = false;
    settings.realm_hosts = vec!["localhost".to_owned()];
    let error =
        upstream(settings, TIMEOUTS).0.blob_size(&name(), &digest(), None).await.expect_err("refused");
    assert!(matches!(&error, SourceError::Invalid(text) if text.contains("allow_private")), "{error}");
}

#[tokio::test]
async fn token_service_404_is_not_missing_content() {
    for status in [400, 404, 405, 410, 416, 501] {
        let registry = Registry::start(move |seen, _| {
            if seen.target.starts_with("/token") {
                return answer(status, &[], b"");
            }
            answer(401, &[("www-authenticate", r#"Bearer realm="/token""#)], b"")
        })
        .await;
        let upstream = open(&registry);
        for error in [
            upstream.blob_size(&name(), &digest(), None).await.map(|_| ()).expect_err("no token"),
            // 405 and 501 would mean that the registry does not support HEAD.
            upstream.head(&name(), &tag(), "*/*", None).await.map(|_| ()).expect_err("no token"),
        ] {
            assert!(error.to_string().contains(&status.to_string()), "{error}");
            assert!(matches!(error, SourceError::Invalid(_)), "{status}: {error:?}");
        }
    }
}

#[tokio::test]
async fn realm_on_a_private_address_is_refused() {
    let registry = token_registry(Some("http://169.254.169.254/token".to_owned())).await;
    let error = open(&registry).blob_size(&name(), &digest(), None).await.expect_err("refused");
    assert!(matches!(&error, SourceError::Invalid(text) if text.contains("allow_private")), "{error}");
    assert!(!error.to_string().contains("169.254"), "{error}");
}

#[tokio::test]
async fn refused_token_is_renewed_once() {
    let registry = Registry::start(|seen, _| {
        if seen.target.starts_with("/token") {
            return answer(200, &[], br#"{"token":"hush"}"#);
        }
        answer(401, &[("www-authenticate", r#"Bearer realm="/token""#)], b"")
    })
    .await;
    let upstream = open(&registry);
    let error = upstream.blob_size(&name(), &digest(), None).await.expect_err("refused");
    assert_eq!(error, SourceError::Denied(Denial::Unauthenticated));
    let count = |kind: &str| registry.seen().iter().filter(|seen| seen.target.starts_with(kind)).count();
    assert_eq!((count("/v2"), count("/token")), (2, 1));
    // The cached token is used, refused and replaced.
    upstream.blob_size(&name(), &digest(), None).await.expect_err("refused");
    assert_eq!((count("/v2"), count("/token")), (4, 2));
}

#[tokio::test]
async fn token_that_is_refused_with_any_status_is_renewed_once() {
    for status in [400, 401, 403] {
        let valid = Arc::new(Mutex::new("Bearer t0".to_owned()));
        let current = Arc::clone(&valid);
        let registry = Registry::start(move |seen, _| {
            let valid = current.lock().expect("not poisoned").clone();
            if seen.target.starts_with("/token") {
                let token = valid.strip_prefix("Bearer ").expect("a token");
                return answer(200, &[], format!(r#"{{"token":"{token}","expires_in":3600}}"#).as_bytes());
            }
            let challenge = ("www-authenticate", r#"Bearer realm="/token",service="reg.test""#);
            match seen.header("authorization") {
                Some(sent) if sent == valid => answer(200, &[], b"content"),
                Some(_) if status != 401 => answer(status, &[], b""),
                _ => answer(401, &[challenge], b""),
            }
        })
        .await;
        let upstream = open(&registry);
        assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)));
        "Bearer t1".clone_into(&mut valid.lock().expect("not poisoned"));
        assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)), "{status}");
        let tokens = || registry.seen().iter().filter(|seen| seen.target.starts_with("/token")).count();
        assert_eq!(tokens(), 2);
        assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)));
        assert_eq!(tokens(), 2);
    }
}

#[tokio::test]
async fn lasting_refusal_does_not_renew_tokens_again_and_again() {
    let registry = Registry::start(|seen, before| {
        let challenge = ("www-authenticate", r#"Bearer realm="/token",service="reg.test""#);
        match seen.header("authorization") {
            _ if seen.target.starts_with("/token") => {
                answer(200, &[], format!(r#"{{"token":"t{before}","expires_in":3600}}"#).as_bytes())
            }
            Some(_) => answer(403, &[], b""),
            None => answer(401, &[challenge], b""),
        }
    })
    .await;
    let upstream = open(&registry);
    for _ in 0..6 {
        let error = upstream.blob_size(&name(), &digest(), None).await.expect_err("refused");
        assert_eq!(error, SourceError::Denied(Denial::Forbidden));
    }
    let tokens = registry.seen().iter().filter(|seen| seen.target.starts_with("/token")).count();
    assert_eq!(tokens, 2, "the first token, and one renewal");
}

#[tokio::test]
async fn token_service_failures_are_reported() {
    for (status, body, expected) in [
        (401, "", "denied"),
        (403, "", "denied"),
        (429, "", "error"),
        (200, "hush, no JSON", "error"),
        (302, "", "error"),
    ] {
        let registry = Registry::start(move |seen, _| {
            if seen.target.starts_with("/token") {
                return answer(status, &[("location", "/elsewhere")], body.as_bytes());
            }
            answer(401, &[("www-authenticate", r#"Bearer realm="/token""#)], b"")
        })
        .await;
        let (upstream, metrics) = upstream(at(&registry.url()), TIMEOUTS);
        let error = upstream.blob_size(&name(), &digest(), None).await.expect_err("no token");
        assert_eq!(matches!(error, SourceError::Denied(_)), expected == "denied", "{error}");
        assert!(!error.to_string().contains("hush"), "{error}");
        let series =
            format!(r#"larder_upstream_token_requests_total{{result="{expected}",upstream="reg.test"}}"#);
        assert_eq!(counted(&metrics, &series).as_deref(), Some("1"));
        assert_eq!(registry.seen().len(), 2);
    }
    let registry = Registry::start(|seen, _| {
        if seen.target.starts_with("/token") {
            return answer(200, &[], &vec![b' '; 65 * 1024]);
        }
        answer(401, &[("www-authenticate", r#"Bearer realm="/token""#)], b"")
    })
    .await;
    let error = open(&registry).blob_size(&name(), &digest(), None).await.expect_err("no token");
    assert!(matches!(error, SourceError::Invalid(_)), "{error}");
}

/// Writer that collects the log.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn log_has_no_secrets() {
    let storage = Registry::start(|_, _| answer(200, &[], b"content")).await;
    let location = format!("{}/signed-hush/place?signature=hush", storage.url());
    let registry = Registry::start(move |seen, _| match seen.header("authorization") {
        Some("Bearer hush") => answer(307, &[("location", &location)], b""),
        Some("Basic dXNlcjpwdw==") => answer(200, &[], br#"{"token":"hush"}"#),
        _ => answer(401, &[("www-authenticate", r#"Bearer realm="/token?key=hush""#)], b""),
    })
    .await;
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::TRACE)
        .with_writer(lines.clone());
    // The subscriber is global: a subscriber of one thread misses events that another test has registered first. So the
    // log of the other tests must also be free of secrets.
    tracing::subscriber::set_global_default(subscriber.finish()).expect("the only one in this process");
    let folder = tempfile::tempdir().expect("a folder");
    let settings = with_password(&registry.url(), folder.path(), "pw");
    let (upstream, _) = upstream(Settings { allow_private: true, ..settings }, TIMEOUTS);
    upstream.blob_size(&name(), &digest(), None).await.expect("a blob");
    let log = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("text");
    for shown in ["path=\"/v2/org/app/blobs/", "status=307", "status=200", "upstream=reg.test"] {
        assert!(log.contains(shown), "{shown} is not in {log}");
    }
    assert!(!log.contains("hush") && !log.contains("dXNlcjpwdw"), "{log}");
}

#[tokio::test]
async fn basic_needs_credentials_and_is_cached() {
    let registry = Registry::start(|seen, _| match seen.header("authorization") {
        Some("Basic dXNlcjpwdw==") => answer(200, &[], b"content"),
        _ => answer(401, &[("www-authenticate", r#"Basic realm="reg""#)], b""),
    })
    .await;
    let error = open(&registry).blob_size(&name(), &digest(), None).await.expect_err("no credentials");
    assert_eq!(error, SourceError::Denied(Denial::Unauthenticated));
    assert_eq!(registry.seen().len(), 1);

    let folder = tempfile::tempdir().expect("a folder");
    let (upstream, _) = upstream(with_password(&registry.url(), folder.path(), "wrong"), TIMEOUTS);
    let error = upstream.blob_size(&name(), &digest(), None).await.expect_err("wrong password");
    assert_eq!(error, SourceError::Denied(Denial::Unauthenticated));
    assert_eq!(registry.seen().len(), 3);
    // The password is changed while the server runs.
    std::fs::write(folder.path().join("password"), "pw\n").expect("written");
    assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)));
    assert_eq!(registry.seen().len(), 4, "sent along without waiting for the challenge");

    std::fs::remove_file(folder.path().join("password")).expect("removed");
    let error = upstream.blob_size(&name(), &digest(), None).await.expect_err("no password");
    assert!(matches!(&error, SourceError::Local(text) if text.contains("password_file")), "{error}");
    let place = folder.path().to_str().expect("text");
    assert!(!error.to_string().contains(place), "{error}");
}
