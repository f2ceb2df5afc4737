//! Redirects of a registry, and their limits.

use std::sync::{Arc, OnceLock};

use larder::config::schema::Upstream as Settings;
use larder::source::{ByteRange, Source as _, SourceError};
use tokio::net::TcpListener;

use crate::upstream::registry::{
    Identity, Registry, Reply, TIMEOUTS, answer, at, digest, name, open, read, upstream, with_docker_config,
    with_password,
};

#[tokio::test]
async fn redirect_to_another_host_drops_credentials() {
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
    let settings = with_password(&registry.url(), folder.path(), "pw\n");
    let (upstream, _) = upstream(Settings { allow_private: true, ..settings }, TIMEOUTS);
    let mut body = upstream.blob(&name(), &digest(), ByteRange::from(4), None).await.expect("a body");
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
async fn credentials_never_leave_the_registry() {
    let folder = tempfile::tempdir().expect("a folder");
    let entry = |entry: &str| format!(r#"{{"auths":{{"reg.test":{entry}}}}}"#);
    let logins = [
        (r#"Basic realm="reg""#, entry(r#"{"auth":"dXNlcjpwdw=="}"#)),
        (r#"Bearer realm="/token""#, entry(r#"{"auth":"dXNlcjpwdw=="}"#)),
        (r#"Bearer realm="/token""#, entry(r#"{"identitytoken":"hush"}"#)),
        (r#"Bearer realm="/token""#, entry(r#"{"registrytoken":"hush"}"#)),
    ];
    // Answers by which a foreign host may try to get credentials.
    let traps: [fn(&str) -> Reply; 4] = [
        |_| answer(200, &[], b"content"),
        |_| answer(401, &[("www-authenticate", r#"Basic realm="reg""#)], b""),
        |_| answer(401, &[("www-authenticate", r#"Bearer realm="/token""#)], b""),
        // The token service of the registry, with credentials.
        |home| {
            let challenge = format!(r#"Bearer realm="{home}/token""#);
            answer(401, &[("www-authenticate", &challenge)], b"")
        },
    ];
    for (challenge, content) in logins {
        // Another port of the same host, and another name of it.
        for (host, trap) in traps.iter().flat_map(|trap| [("127.0.0.1", *trap), ("localhost", *trap)]) {
            let home: Arc<OnceLock<String>> = Arc::default();
            let own = Arc::clone(&home);
            let elsewhere = Registry::start(move |seen, _| match seen.target.as_str() {
                "/token" => answer(200, &[], br#"{"token":"anonymous"}"#),
                _ => trap(own.get().map_or("", String::as_str)),
            })
            .await;
            let location = format!("http://{host}:{}/blob", elsewhere.address.port());
            let registry = Registry::start(move |seen, _| {
                let given = seen.header("authorization");
                if seen.target.starts_with("/token") {
                    let token = if given.is_some() || !seen.body.is_empty() { "hush" } else { "anonymous" };
                    return answer(200, &[], format!(r#"{{"token":"{token}"}}"#).as_bytes());
                }
                match given {
                    Some(_) => answer(307, &[("location", &location)], b""),
                    None => answer(401, &[("www-authenticate", challenge)], b""),
                }
            })
            .await;
            home.set(registry.url()).expect("set once");
            let settings = with_docker_config(&registry.url(), folder.path(), &content);
            let (upstream, _) = upstream(Settings { allow_private: true, ..settings }, TIMEOUTS);
            for _ in 0..2 {
                // Only the requests at the foreign host matter.
                let _ = upstream.blob_size(&name(), &digest(), None).await;
            }
            let seen = elsewhere.seen();
            assert!(!seen.is_empty(), "{challenge} {host}");
            for seen in seen {
                let given = seen.header("authorization");
                assert!(matches!(given, None | Some("Bearer anonymous")), "{challenge} {host}: {seen:?}");
                assert_eq!(seen.body, "");
            }
        }
    }
}

#[tokio::test]
async fn redirect_back_to_the_registry_regains_credentials() {
    // The registry redirects to a foreign host, which redirects back. Credentials are not sent again without a
    // challenge.
    let home: Arc<OnceLock<String>> = Arc::default();
    let own = Arc::clone(&home);
    let elsewhere = Registry::start(move |_, _| {
        let back = format!("{}/back", own.get().map_or("", String::as_str));
        answer(307, &[("location", &back)], b"")
    })
    .await;
    let location = elsewhere.url();
    let registry =
        Registry::start(move |seen, _| match (seen.target.as_str(), seen.header("authorization")) {
            ("/back", _) => answer(200, &[], b"content"),
            (_, Some(_)) => answer(307, &[("location", &location)], b""),
            _ => answer(401, &[("www-authenticate", r#"Basic realm="reg""#)], b""),
        })
        .await;
    home.set(registry.url()).expect("set once");
    let folder = tempfile::tempdir().expect("a folder");
    let settings = with_password(&registry.url(), folder.path(), "pw");
    let (upstream, _) = upstream(Settings { allow_private: true, ..settings }, TIMEOUTS);
    assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)));
    assert_eq!(registry.seen()[2].header("authorization"), None);
    assert_eq!(elsewhere.seen()[0].header("authorization"), None);
}

#[tokio::test]
async fn other_scheme_is_another_host() {
    let identity = Identity::new();
    let storage = Registry::start_tls(&identity, |_, _| answer(200, &[], b"content")).await;
    let location = storage.url();
    let registry = Registry::start(move |seen, _| match seen.header("authorization") {
        Some(_) => answer(307, &[("location", &location)], b""),
        None => answer(401, &[("www-authenticate", r#"Basic realm="reg""#)], b""),
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let settings = with_password(&registry.url(), folder.path(), "pw");
    let (upstream, _) =
        upstream(Settings { insecure_skip_verify: true, allow_private: true, ..settings }, TIMEOUTS);
    assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)));
    assert_eq!(storage.seen()[0].header("authorization"), None);
}

#[tokio::test]
async fn redirects_are_bounded() {
    let registry = Registry::start(|seen, _| answer(302, &[("location", &seen.target)], b"")).await;
    let error = open(&registry).blob_size(&name(), &digest(), None).await.expect_err("a loop");
    assert!(matches!(&error, SourceError::Invalid(text) if text.contains("10 times")), "{error}");
    assert_eq!(registry.seen().len(), 11);
}

#[tokio::test]
async fn redirect_to_a_private_address_is_refused() {
    for target in [
        "http://169.254.169.254/latest/meta-data?key=hush",
        "http://127.0.0.2/?key=hush",
        "http://localhost:1/?key=hush",
        "http://user:hush@127.0.0.1:1/",
        "ftp://example.test/?key=hush",
        "http://[::1]:1/?key=hush",
    ] {
        let registry = Registry::start(move |_, _| answer(302, &[("location", target)], b"")).await;
        let error = open(&registry).blob_size(&name(), &digest(), None).await.expect_err("refused");
        assert!(matches!(error, SourceError::Invalid(_)), "{target}: {error}");
        assert!(!error.to_string().contains("hush"), "{error}");
    }
    let storage = Registry::start(|_, _| answer(200, &[], b"content")).await;
    let target = format!("http://localhost:{}/", storage.address.port());
    let registry = Registry::start(move |_, _| answer(302, &[("location", &target)], b"")).await;
    let settings = Settings { allow_private: true, ..at(&registry.url()) };
    let (upstream, _) = upstream(settings, TIMEOUTS);
    assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)), "unless that is permitted");
}

#[tokio::test]
async fn dead_signed_url_is_not_printed() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let target = format!("http://{}/x?signature=hush", listener.local_addr().expect("an address"));
    drop(listener);
    let registry = Registry::start(move |_, _| answer(302, &[("location", &target)], b"")).await;
    let settings = Settings { allow_private: true, ..at(&registry.url()) };
    let (upstream, _) = upstream(settings, TIMEOUTS);
    let error = upstream.blob_size(&name(), &digest(), None).await.expect_err("not reachable");
    assert!(matches!(error, SourceError::NoResponse(_)), "{error}");
    assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
}
