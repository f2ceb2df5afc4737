//! Credentials from docker's `config.json`: selection of the entry, and changes of the file.

use std::time::Duration;

use larder::config::schema::{Endpoint, Upstream as Settings};
use larder::oci::Name;
use larder::source::{Denial, Source as _, SourceError};
use larder::upstream::Upstream;

use crate::upstream::registry::{
    Registry, TIMEOUTS, answer, at, basic, digest, name, timed, upstream, with_docker_config, with_password,
};

/// A registry that requires any Basic credentials.
async fn basic_registry() -> Registry {
    Registry::start(|seen, _| match seen.header("authorization") {
        Some(value) if value.starts_with("Basic ") => answer(200, &[], b"content"),
        _ => answer(401, &[("www-authenticate", r#"Basic realm="reg""#)], b""),
    })
    .await
}

/// Returns the credentials of the last request for a repository, if any.
async fn sent(registry: &Registry, upstream: &Upstream, repository: &str) -> Option<String> {
    let before = registry.seen().len();
    let repository: Name = repository.parse().expect("a name");
    let result = upstream.blob_size(&repository, &digest(), None).await;
    let seen = registry.seen();
    assert!(seen.len() > before, "{result:?}");
    let last = seen.last().and_then(|seen| seen.header("authorization").map(str::to_owned));
    match &result {
        Ok(_) => assert!(last.is_some()),
        Err(error) => assert_eq!(*error, SourceError::Denied(Denial::Unauthenticated)),
    }
    last
}

/// Returns `auths` with one entry.
fn auths(key: &str, entry: &str) -> String {
    format!(r#"{{"auths":{{"other.test":{{"auth":"bm86bm8="}},"{key}":{entry}}}}}"#)
}

#[tokio::test]
async fn login_is_found_under_every_form_of_its_key() {
    let registry = basic_registry().await;
    let folder = tempfile::tempdir().expect("a folder");
    let host = registry.address.to_string();
    let login = Some(basic("me:s3cret:x"));
    // `me:s3cret:x`, and the same padded with NULs.
    let entries = [
        r#"{"auth":"bWU6czNjcmV0Ong="}"#,
        r#"{"auth":"bWU6czNjcmV0OngAAA=="}"#,
        r#"{"username":"me","password":"s3cret:x"}"#,
    ];
    let keys = [
        host.clone(),
        format!("http://{host}"),
        format!("https://{host}/v1/"),
        format!("{host}/v2/"),
        format!("{host}/org"),
        format!("{host}/org/app"),
        "reg.test".to_owned(),
        "https://reg.test/v1/".to_owned(),
        "reg.test/org/app".to_owned(),
    ];
    for key in &keys {
        for entry in entries {
            let settings = with_docker_config(&registry.url(), folder.path(), &auths(key, entry));
            let (upstream, _) = upstream(settings, TIMEOUTS);
            assert_eq!(sent(&registry, &upstream, "org/app").await, login, "{key} {entry}");
        }
    }
    for key in
        ["127.0.0.1", "127.0.0.1:1", "sub.reg.test", "reg.test:5000", "reg.test/org/ap", "reg.test/app"]
    {
        let settings = with_docker_config(&registry.url(), folder.path(), &auths(key, entries[0]));
        let (upstream, _) = upstream(settings, TIMEOUTS);
        assert_eq!(sent(&registry, &upstream, "org/app").await, None, "{key}");
    }
}

#[tokio::test]
async fn docker_hub_is_found_under_its_old_key() {
    let registry = basic_registry().await;
    let folder = tempfile::tempdir().expect("a folder");
    for key in ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io/library"]
    {
        let content = auths(key, r#"{"username":"me","password":"pw"}"#);
        let settings = with_docker_config(&registry.url(), folder.path(), &content);
        let (hub, _, _) = timed("docker.io", settings.clone(), TIMEOUTS);
        assert_eq!(sent(&registry, &hub, "library/app").await, Some(basic("me:pw")), "{key}");
        let (other, _) = upstream(settings, TIMEOUTS);
        assert_eq!(sent(&registry, &other, "library/app").await, None, "{key}");
    }
}

#[tokio::test]
async fn login_is_chosen_by_repository() {
    let registry = basic_registry().await;
    let folder = tempfile::tempdir().expect("a folder");
    let content = r#"{"auths":{
        "reg.test":{"username":"all","password":"p"},
        "reg.test/org":{"username":"org","password":"p"},
        "reg.test/org/app":{"username":"app","password":"p"}}}"#;
    let (upstream, _) = upstream(with_docker_config(&registry.url(), folder.path(), content), TIMEOUTS);
    // Each one twice: after a challenge, and without one.
    for _ in 0..2 {
        for (repository, user) in [
            ("org/app", "app"),
            ("org/app/x", "app"),
            ("org/apps", "org"),
            ("orgs/app", "all"),
            ("app", "all"),
        ] {
            let login = basic(&format!("{user}:p"));
            assert_eq!(sent(&registry, &upstream, repository).await, Some(login), "{repository}");
        }
    }
}

#[tokio::test]
async fn mirror_does_not_get_the_registry_login() {
    let (mirror, registry) = (basic_registry().await, basic_registry().await);
    let folder = tempfile::tempdir().expect("a folder");
    let content = auths("reg.test", r#"{"username":"me","password":"pw"}"#);
    let endpoint = |registry: &Registry, authoritative| Endpoint { url: registry.url(), authoritative };
    let endpoints = vec![endpoint(&mirror, false), endpoint(&registry, true)];
    let settings = Settings { endpoints, ..with_docker_config("", folder.path(), &content) };
    assert_eq!(sent(&registry, &upstream(settings, TIMEOUTS).0, "org/app").await, Some(basic("me:pw")));
    assert_eq!(mirror.seen().len(), 1);
    assert_eq!(mirror.seen()[0].header("authorization"), None);

    // Two entries match the registry. Only the operator knows which one is meant.
    let endpoints = vec![endpoint(&mirror, true), endpoint(&registry, true)];
    let settings = Settings { endpoints, ..with_docker_config("", folder.path(), &content) };
    assert_eq!(sent(&registry, &upstream(settings, TIMEOUTS).0, "org/app").await, None);
    assert_eq!(mirror.seen()[1].header("authorization"), None);
    // A key of its own selects one.
    let key = registry.address.to_string();
    let content = auths(&key, r#"{"username":"me","password":"pw"}"#);
    let endpoints = vec![endpoint(&mirror, true), endpoint(&registry, true)];
    let settings = Settings { endpoints, ..with_docker_config("", folder.path(), &content) };
    assert_eq!(sent(&registry, &upstream(settings, TIMEOUTS).0, "org/app").await, Some(basic("me:pw")));
    assert_eq!(mirror.seen()[2].header("authorization"), None);
}

#[tokio::test]
async fn registry_token_is_sent_unchanged() {
    let registry = Registry::start(|seen, _| match seen.header("authorization") {
        Some("Bearer hush-registry") => answer(200, &[], b"content"),
        // A token service that must not be contacted, because the server already has the token.
        _ => answer(401, &[("www-authenticate", r#"Bearer realm="https://elsewhere.test/token""#)], b""),
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let content = auths("reg.test", r#"{"auth":"bWU6cHc=","registrytoken":"hush-registry"}"#);
    let (upstream, metrics) =
        upstream(with_docker_config(&registry.url(), folder.path(), &content), TIMEOUTS);
    for _ in 0..2 {
        assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)));
    }
    let sent: Vec<_> =
        registry.seen().iter().map(|seen| seen.header("authorization").map(str::to_owned)).collect();
    let token = Some("Bearer hush-registry".to_owned());
    assert_eq!(sent, [None, token.clone(), token]);
    assert!(!String::from_utf8(metrics.render()).expect("text").contains("token_requests_total{"));

    // A wrong password is tried once, its replacement at once.
    let change = |content: &str| std::fs::write(folder.path().join("config.json"), content).expect("written");
    change(&auths("reg.test", r#"{"registrytoken":"hush-wrong"}"#));
    let error = upstream.blob_size(&name(), &digest(), None).await.expect_err("a wrong token");
    assert_eq!(error, SourceError::Denied(Denial::Unauthenticated));
    assert_eq!(registry.seen().len(), 4);
    change(&content);
    assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)));
    assert_eq!(registry.seen().len(), 5);
}

#[tokio::test]
async fn changed_docker_config_is_used_at_once() {
    let registry = basic_registry().await;
    let folder = tempfile::tempdir().expect("a folder");
    let login = |user: &str| auths("reg.test", &format!(r#"{{"username":"{user}","password":"p"}}"#));
    let settings = with_docker_config(&registry.url(), folder.path(), &login("one"));
    let (upstream, _) = upstream(settings, TIMEOUTS);
    let change = |content: &str| std::fs::write(folder.path().join("config.json"), content).expect("written");
    for user in ["one", "two", "six"] {
        // The same size as before, and possibly the same time stamp.
        change(&login(user));
        assert_eq!(sent(&registry, &upstream, "org/app").await, Some(basic(&format!("{user}:p"))));
    }
    change("{}");
    assert_eq!(sent(&registry, &upstream, "org/app").await, None, "logged out");
    for bad in ["", "{\"auths\":{\"reg.test\":{\"auth\":\"hush\"}}}", "{\"credsStore\":\"../hush\"}"] {
        change(bad);
        let error = upstream.blob_size(&name(), &digest(), None).await.expect_err("unusable");
        assert!(matches!(&error, SourceError::Local(text) if text.contains("docker_config")), "{error}");
        let text = error.to_string();
        assert!(!text.contains("hush") && !text.contains(folder.path().to_str().expect("text")), "{error}");
    }
    std::fs::remove_file(folder.path().join("config.json")).expect("removed");
    assert!(matches!(upstream.blob_size(&name(), &digest(), None).await, Err(SourceError::Local(_))));
    change(&login("one"));
    assert_eq!(sent(&registry, &upstream, "org/app").await, Some(basic("one:p")));
}

/// A registry that issues the token `hush-USER-N`, with a counter `N`, and accepts those of one user.
async fn registry_accepting(
    refusal: u16,
    liked: impl Fn(usize) -> &'static str + Send + Sync + 'static,
) -> Registry {
    Registry::start(move |seen, before| {
        let given = seen.header("authorization").unwrap_or_default();
        if seen.target.starts_with("/token") {
            let user = ["one", "two"].into_iter().find(|user| given == basic(&format!("user:{user}")));
            let token = format!("hush-{}-{before}", user.unwrap_or("anybody"));
            return answer(200, &[], format!(r#"{{"token":"{token}","expires_in":300}}"#).as_bytes());
        }
        match given.strip_prefix("Bearer hush-") {
            Some(token) if token.starts_with(liked(before)) => answer(200, &[], b"content"),
            Some(_) if refusal == 403 => answer(403, &[], b""),
            _ => answer(401, &[("www-authenticate", r#"Bearer realm="/token""#)], b""),
        }
    })
    .await
}

#[tokio::test]
async fn changed_password_renews_a_refused_token() {
    for refusal in [401, 403] {
        // The first three requests are the challenge, the token and the answer.
        let registry = registry_accepting(refusal, |before| if before < 4 { "one" } else { "two" }).await;
        let folder = tempfile::tempdir().expect("a folder");
        let (upstream, _) = upstream(with_password(&registry.url(), folder.path(), "one"), TIMEOUTS);
        assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)));
        std::fs::write(folder.path().join("password"), "two").expect("written");
        assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)), "while its token lasts");
        assert_eq!(registry.seen().len(), 4);
        assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)), "{refusal}");
        let seen = registry.seen();
        let token =
            seen.iter().rev().find(|seen| seen.target.starts_with("/token")).expect("a token request");
        assert_eq!(token.header("authorization"), Some(basic("user:two").as_str()));
        assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)));
        assert_eq!(registry.seen().len(), seen.len() + 1, "and is kept");
    }
}

#[tokio::test]
async fn changed_password_renews_the_token_at_expiry() {
    let registry = registry_accepting(401, |_| "").await;
    let folder = tempfile::tempdir().expect("a folder");
    let settings = with_password(&registry.url(), folder.path(), "one");
    let (upstream, _, clock) = timed("reg.test", settings, TIMEOUTS);
    upstream.blob_size(&name(), &digest(), None).await.expect("a blob");
    std::fs::write(folder.path().join("password"), "two").expect("written");
    clock.advance(Duration::from_secs(294));
    upstream.blob_size(&name(), &digest(), None).await.expect("a blob");
    assert_eq!(registry.seen().len(), 4);
    clock.advance(Duration::from_secs(1));
    upstream.blob_size(&name(), &digest(), None).await.expect("a blob");
    let seen = registry.seen();
    assert_eq!(seen.len(), 7, "five seconds before its end it is not sent any more");
    assert_eq!(seen[4].header("authorization"), None);
    assert_eq!(seen[5].header("authorization"), Some(basic("user:two").as_str()));
}

#[tokio::test]
async fn lasting_refusal_is_renewed_once() {
    let registry = registry_accepting(403, |_| "nobody").await;
    let folder = tempfile::tempdir().expect("a folder");
    let (upstream, _) = upstream(with_password(&registry.url(), folder.path(), "one"), TIMEOUTS);
    for requests in [3, 7, 8, 9] {
        let error = upstream.blob_size(&name(), &digest(), None).await.expect_err("refused");
        assert_eq!(error, SourceError::Denied(Denial::Forbidden));
        assert_eq!(registry.seen().len(), requests);
    }
}

#[tokio::test]
async fn missing_login_is_anonymous() {
    let registry = registry_accepting(401, |_| "anybody").await;
    let folder = tempfile::tempdir().expect("a folder");
    for settings in [
        at(&registry.url()),
        with_docker_config(&registry.url(), folder.path(), r#"{"auths":{"reg.test":{}}}"#),
    ] {
        let (upstream, _) = upstream(settings, TIMEOUTS);
        assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)));
    }
    assert!(
        registry
            .seen()
            .iter()
            .all(|seen| { !seen.header("authorization").is_some_and(|value| value.starts_with("Basic")) })
    );
}
