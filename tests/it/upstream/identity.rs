//! Identity tokens, which are exchanged for access tokens at a token service.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use larder::config::schema::Upstream as Settings;
use larder::oci::Name;
use larder::source::{Denial, Source as _, SourceError};
use larder::upstream::Upstream;
use url::form_urlencoded;

use crate::upstream::registry::{
    Registry, Reply, Seen, TIMEOUTS, answer, basic, counted, digest, name, upstream, with_docker_config,
};

/// Returns a field of a POST form.
fn form(seen: &Seen) -> BTreeMap<String, String> {
    form_urlencoded::parse(seen.body.as_bytes()).into_owned().collect()
}

/// A registry with a token service at `/token`. It accepts all tokens.
async fn registry(service: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Registry {
    Registry::start(move |seen, _| {
        if seen.target.starts_with("/token") {
            return service(seen);
        }
        match seen.header("authorization") {
            Some(value) if value.starts_with("Bearer ") => answer(200, &[], b"content"),
            _ => answer(401, &[("www-authenticate", r#"Bearer realm="/token",service="reg.test""#)], b""),
        }
    })
    .await
}

/// Returns an upstream with this entry in its `config.json`.
fn with_entry(registry: &Registry, folder: &tempfile::TempDir, entry: &str) -> Settings {
    let content = format!(r#"{{"auths":{{"reg.test":{entry}}}}}"#);
    with_docker_config(&registry.url(), folder.path(), &content)
}

fn token() -> Reply {
    answer(200, &[], br#"{"access_token":"hush-token"}"#)
}

/// Requests a blob of a repository.
async fn ask(upstream: &Upstream, repository: &str) -> Result<(), SourceError> {
    let repository: Name = repository.parse().expect("a name");
    upstream.blob_size(&repository, &digest(), None).await.map(|_| ())
}

/// Returns the methods of all requests to the token service.
fn methods(registry: &Registry) -> Vec<String> {
    let seen = registry.seen();
    seen.iter().filter(|seen| seen.target.starts_with("/token")).map(|seen| seen.method.clone()).collect()
}

#[tokio::test]
async fn identity_token_is_exchanged_by_post() {
    let registry = registry(|_| token()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let settings = with_entry(&registry, &folder, r#"{"auth":"bWU6","identitytoken":"hush/identity+1"}"#);
    let (upstream, metrics) = upstream(settings, TIMEOUTS);
    for _ in 0..2 {
        ask(&upstream, "org/app").await.expect("a blob");
    }
    let seen = registry.seen();
    assert_eq!(seen.len(), 4, "the challenge, the token, and the blob twice");
    let post = &seen[1];
    assert_eq!((post.method.as_str(), post.target.as_str()), ("POST", "/token"), "nothing in the URL");
    assert_eq!(post.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(post.header("authorization"), None);
    let expected = [
        ("client_id", "larder"),
        ("grant_type", "refresh_token"),
        ("refresh_token", "hush/identity+1"),
        ("scope", "repository:org/app:pull"),
        ("service", "reg.test"),
    ];
    assert_eq!(form(post), expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    assert_eq!(seen[2].header("authorization"), Some("Bearer hush-token"));
    let ok = r#"larder_upstream_token_requests_total{result="ok",upstream="reg.test"}"#;
    assert_eq!(counted(&metrics, ok).as_deref(), Some("1"));
}

#[tokio::test]
async fn get_is_tried_if_post_is_unsupported() {
    for status in [400, 401, 404, 405] {
        for (entry, login) in [
            (r#"{"identitytoken":"hush"}"#, ":hush"),
            (r#"{"username":"me","identitytoken":"hush"}"#, "me:hush"),
            (r#"{"auth":"bWU6cHc=","identitytoken":"hush"}"#, "me:pw"),
        ] {
            let registry = registry(move |seen| match seen.method.as_str() {
                "GET" if seen.header("authorization") == Some(&basic(login)) => token(),
                "GET" => answer(401, &[], b""),
                _ => answer(status, &[], br#"{"error":"unsupported"}"#),
            })
            .await;
            let folder = tempfile::tempdir().expect("a folder");
            let (upstream, metrics) = upstream(with_entry(&registry, &folder, entry), TIMEOUTS);
            ask(&upstream, "org/app").await.expect("a blob");
            assert_eq!(methods(&registry), ["POST", "GET"], "{status} {entry}");
            ask(&upstream, "org/other").await.expect("a blob");
            assert_eq!(methods(&registry), ["POST", "GET", "GET"], "it is known by now");
            let ok = r#"larder_upstream_token_requests_total{result="ok",upstream="reg.test"}"#;
            assert_eq!(
                counted(&metrics, ok).as_deref(),
                Some("2"),
                "a token is one request, however it came"
            );
        }
    }
}

#[tokio::test]
async fn refusal_is_final() {
    for (post, get, expected, asked) in [
        (403, 200, SourceError::Denied(Denial::Forbidden), 1),
        (401, 401, SourceError::Denied(Denial::Unauthenticated), 2),
        (400, 401, SourceError::Denied(Denial::Unauthenticated), 2),
        // Only POST is supported there, and its answer is final.
        (401, 404, SourceError::Denied(Denial::Unauthenticated), 2),
        (429, 200, SourceError::RateLimited { retry_after: None }, 1),
    ] {
        let registry = registry(move |seen| match seen.method.as_str() {
            "GET" if get == 200 => token(),
            "GET" => answer(get, &[], b""),
            _ => answer(post, &[], b""),
        })
        .await;
        let folder = tempfile::tempdir().expect("a folder");
        let (upstream, _) = upstream(with_entry(&registry, &folder, r#"{"identitytoken":"hush"}"#), TIMEOUTS);
        assert_eq!(ask(&upstream, "org/app").await, Err(expected));
        assert_eq!(methods(&registry).len(), asked, "{post} {get}");
    }
}

#[tokio::test]
async fn renewed_identity_token_replaces_the_old_one() {
    // Each identity token is valid for one exchange, except the one in the file, which docker can replace.
    let good = Arc::new(Mutex::new(vec!["hush-0".to_owned()]));
    let state = Arc::clone(&good);
    let registry = registry(move |seen| {
        let mut good = state.lock().expect("no panic");
        let sent = form(seen).remove("refresh_token").unwrap_or_default();
        if !good.contains(&sent) {
            return answer(401, &[], b"");
        }
        let next = format!("hush-{}", sent.trim_start_matches("hush-").parse::<u32>().expect("a number") + 1);
        *good = vec![next.clone()];
        answer(200, &[], format!(r#"{{"access_token":"hush-token","refresh_token":"{next}"}}"#).as_bytes())
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let (upstream, _) = upstream(with_entry(&registry, &folder, r#"{"identitytoken":"hush-0"}"#), TIMEOUTS);
    for repository in ["org/a", "org/b", "org/c"] {
        ask(&upstream, repository).await.expect("a blob");
    }
    let sent = |registry: &Registry| {
        let seen = registry.seen();
        let forms = seen.iter().filter(|seen| seen.method == "POST").map(form);
        forms.filter_map(|mut form| form.remove("refresh_token")).collect::<Vec<_>>()
    };
    assert_eq!(sent(&registry), ["hush-0", "hush-1", "hush-2"]);

    // After the renewed token has expired, the one in the file may be valid again.
    *good.lock().expect("no panic") = vec!["hush-0".to_owned()];
    ask(&upstream, "org/d").await.expect("a blob");
    assert_eq!(sent(&registry)[3..], ["hush-3", "hush-0"]);
    ask(&upstream, "org/e").await.expect("a blob");
    assert_eq!(sent(&registry)[5..], ["hush-1"]);

    // A new token in the file is another credential without renewed tokens.
    *good.lock().expect("no panic") = vec!["hush-70".to_owned()];
    with_entry(&registry, &folder, r#"{"identitytoken":"hush-70"}"#);
    ask(&upstream, "org/f").await.expect("a blob");
    assert_eq!(sent(&registry)[6..], ["hush-70"]);
}

#[tokio::test]
async fn identity_token_is_not_sent_to_other_hosts() {
    let service = Registry::start(|_, _| token()).await;
    let realm = format!("http://localhost:{}/token", service.address.port());
    let challenge = format!(r#"Bearer realm="{realm}""#);
    let registry = Registry::start(move |seen, _| match seen.header("authorization") {
        Some("Bearer hush-token") => answer(200, &[], b"content"),
        _ => answer(401, &[("www-authenticate", &challenge)], b""),
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let entry = r#"{"auth":"bWU6cHc=","identitytoken":"hush"}"#;
    let mut settings = Settings { allow_private: true, ..with_entry(&registry, &folder, entry) };
    ask(&upstream(settings.clone(), TIMEOUTS).0, "org/app").await.expect("a blob");
    let seen = service.seen();
    assert_eq!((seen.len(), seen[0].method.as_str(), seen[0].header("authorization")), (1, "GET", None));
    assert!(!seen[0].target.contains("hush"));

    // Unless the operator configures that it is not one.
    settings.realm_hosts = vec!["localhost".to_owned()];
    ask(&upstream(settings, TIMEOUTS).0, "org/app").await.expect("a blob");
    assert_eq!(form(&service.seen()[1])["refresh_token"], "hush");
}

#[tokio::test]
async fn identity_token_is_the_basic_password() {
    let registry = Registry::start(|seen, _| match seen.header("authorization") {
        Some(value) if value == basic("me:hush") => answer(200, &[], b"content"),
        _ => answer(401, &[("www-authenticate", r#"Basic realm="reg""#)], b""),
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let settings = with_entry(&registry, &folder, r#"{"username":"me","identitytoken":"hush"}"#);
    let (upstream, _) = upstream(settings, TIMEOUTS);
    assert_eq!(upstream.blob_size(&name(), &digest(), None).await, Ok(Some(7)));
}
