//! No secret is in the log, the metrics or an answer, with any kind of authentication, successful or not.

use std::collections::BTreeSet;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use crate::support::{Auth, Blob, Fault, Helpers, Image, Larder, Registry, Setup, When};
use crate::upstream::registry::{Identity, Registry as Tls, answer as reply};

const TAG: &str = "library/app/manifests/v1";

/// Secrets that must not appear, and the texts that are searched.
#[derive(Default)]
struct Search {
    secrets: BTreeSet<String>,
    places: Vec<(String, String)>,
}

impl Search {
    /// Adds a secret in all forms in which it could appear.
    fn add_secret(&mut self, secret: &str) {
        self.secrets.insert(secret.to_owned());
        self.secrets.insert(BASE64_STANDARD.encode(secret));
        self.secrets.insert(url::form_urlencoded::byte_serialize(secret.as_bytes()).collect());
        // A part of the bytes in the format of `Debug`, long enough to be no coincidence.
        let bytes: Vec<String> = secret.bytes().take(12).map(|byte| byte.to_string()).collect();
        self.secrets.insert(bytes.join(", "));
    }

    fn hide_login(&mut self, user: &str, password: &str) {
        self.add_secret(password);
        self.add_secret(&format!("{user}:{password}"));
        self.secrets.insert(BASE64_STANDARD.encode(format!("{user}:{password}")));
    }

    /// Adds all parts of an answer.
    fn ask(&mut self, larder: &Larder, path: &str) -> u16 {
        let answer = larder.get(path);
        let status = answer.status();
        self.places.push((format!("the answer to {path}"), format!("{:?}\n{}", answer.head, answer.text())));
        status
    }

    /// Stops a server, and searches all its output.
    #[track_caller]
    fn search(mut self, mut larder: Larder) {
        self.places.push(("the metrics".to_owned(), larder.metrics_text()));
        larder.stop();
        let log = larder.log_text();
        assert!(
            log.contains("\"level\":\"TRACE\"") && log.contains("\"request sent\""),
            "it does not log everything"
        );
        self.places.push(("the log".to_owned(), log));
        for (place, text) in &self.places {
            for secret in &self.secrets {
                let line = text.lines().find(|line| line.contains(secret.as_str()));
                assert_eq!(line, None, "{secret} is in {place}");
            }
        }
    }
}

/// A registry with the image `library/app` and this authentication.
fn registry(auth: Auth) -> Registry {
    let registry = Registry::start();
    registry.add_image("library/app", "v1", &Image::small(1));
    registry.add_blob("library/app", &Blob::new("more"));
    registry.require_auth(auth);
    registry
}

/// A token service that requires these credentials.
fn token_service(user: &str, password: &str) -> Auth {
    Auth::Bearer(Some((user.to_owned(), password.to_owned())))
}

/// A token service for an identity token: by POST, which renews it, or only by GET.
fn identity_token_service(registry: &Registry, token: &'static str, renewed: &'static str, by_post: bool) {
    registry.script(
        When::any().path("/token"),
        Fault::rewrite(move |seen, plan| {
            let form = String::from_utf8_lossy(&seen.body).into_owned();
            let known = form.contains(token) || form.contains(renewed);
            match seen.method.as_str() {
                "POST" if by_post && known => {
                    let mut answer: serde_json::Value = serde_json::from_slice(&plan.content).unwrap();
                    answer["refresh_token"] = renewed.into();
                    plan.content = Arc::new(answer.to_string().into_bytes());
                    plan.to = plan.content.len();
                }
                "GET" if !by_post && seen.header("authorization").is_some() => {}
                _ => {
                    plan.status = 401;
                    plan.set("X-Echo", &form);
                }
            }
        }),
    );
}

/// Returns one registry for each kind of authentication, and for some failures.
fn registries() -> Vec<(&'static str, Registry)> {
    let post = registry(Auth::Bearer(None));
    identity_token_service(&post, "identity-one-secret", "renewed-identity-secret", true);
    let get = registry(Auth::Bearer(None));
    identity_token_service(&get, "identity-two-secret", "never", false);
    let keychain = registry(Auth::Bearer(None));
    identity_token_service(&keychain, "identity-in-keychain", "renewed-identity-secret", true);
    let bearer = registry(Auth::Nothing);
    bearer.script(
        When::any(),
        Fault::rewrite(|seen, plan| {
            if seen.header("authorization") != Some("Bearer registry-token-secret") {
                plan.status = 401;
                plan.set(
                    "WWW-Authenticate",
                    "Bearer realm=\"https://127.0.0.1:1/token?key=registry-token-secret\"",
                );
            }
        }),
    );
    let wrong_token = registry(Auth::Bearer(None));
    wrong_token.script(When::any().path("/token"), Fault::Status(401));
    vec![
        ("basic.test", registry(Auth::Basic("basic-user".into(), "secret-of-basic".into()))),
        ("bearer.test", registry(token_service("bearer-user", "secret-of-bearer"))),
        ("written.test", registry(token_service("written-user", "secret-in-the-file"))),
        ("post.test", post),
        ("get.test", get),
        ("token.test", bearer),
        ("helper.test", registry(Auth::Basic("helper-user".into(), "secret-of-the-helper".into()))),
        ("keychain.test", keychain),
        ("wrong.test", registry(token_service("wrong-user", "another"))),
        ("wrong-basic.test", registry(Auth::Basic("wrong-user".into(), "another".into()))),
        ("wrong-identity.test", wrong_token),
        ("broken.test", registry(Auth::Basic("x".into(), "x".into()))),
        ("malformed.test", registry(Auth::Basic("x".into(), "x".into()))),
    ]
}

/// Returns these registries as upstreams with correct or wrong secrets.
fn setup(registries: &[(&'static str, Registry)]) -> Setup {
    let mut setup = Setup::empty().set("log.level", "trace,hyper=trace,h2=trace,rustls=trace,reqwest=trace");
    for (name, registry) in registries {
        setup = setup.upstream(name, registry);
    }
    setup = setup.upstream_set("basic.test", "default", true);
    for (name, user, password) in [
        ("basic.test", "basic-user", "secret-of-basic"),
        ("bearer.test", "bearer-user", "secret-of-bearer"),
        ("wrong-basic.test", "wrong-user", "wrong-but-secret"),
    ] {
        let file = setup.write(&format!("{name}.password"), &format!("{password}\n"));
        setup = setup.upstream_set(name, "username", user);
        setup = setup.upstream_set(name, "password_file", file.display().to_string());
    }
    let written = BASE64_STANDARD.encode("written-user:secret-in-the-file");
    let auths = |name: &str, entry: serde_json::Value| json!({ "auths": { name: entry } });
    for (name, config) in [
        ("written.test", auths("written.test", json!({ "auth": written }))),
        ("post.test", auths("post.test", json!({ "identitytoken": "identity-one-secret" }))),
        ("get.test", auths("get.test", json!({ "auth": "dTo=", "identitytoken": "identity-two-secret" }))),
        ("token.test", auths("token.test", json!({ "registrytoken": "registry-token-secret" }))),
        ("helper.test", json!({ "credHelpers": { "helper.test": "good" } })),
        ("keychain.test", json!({ "credsStore": "keychain" })),
        (
            "wrong.test",
            auths("wrong.test", json!({ "username": "wrong-user", "password": "wrong-but-secret" })),
        ),
        ("wrong-identity.test", auths("wrong-identity.test", json!({ "identitytoken": "wrong-but-secret" }))),
        ("broken.test", json!({ "credsStore": "broken" })),
        ("malformed.test", json!({})),
    ] {
        setup = setup.docker_config(name, &config);
    }
    setup
}

#[test]
fn credentials_of_every_kind_stay_secret() {
    let mut search = Search::default();
    // Issued by every scripted registry.
    search.secrets.insert("scripted-token-".to_owned());
    search.hide_login("basic-user", "secret-of-basic");
    search.hide_login("bearer-user", "secret-of-bearer");
    search.hide_login("written-user", "secret-in-the-file");
    search.hide_login("helper-user", "secret-of-the-helper");
    for token in ["identity-one-secret", "identity-two-secret", "renewed-identity-secret"] {
        search.add_secret(token);
    }
    for token in
        ["registry-token-secret", "identity-in-keychain", "stdout-of-a-broken-one", "stderr-of-a-broken-one"]
    {
        search.add_secret(token);
    }
    search.hide_login("wrong-user", "wrong-but-secret");
    search.add_secret("malformed-but-secret");

    let registries = registries();
    let setup = setup(&registries);
    let helpers = Helpers::new(&setup);
    helpers.add_login("good", "helper-user", "secret-of-the-helper");
    helpers.add_login("keychain", "<token>", "identity-in-keychain");
    helpers.add("broken", "echo stdout-of-a-broken-one; echo stderr-of-a-broken-one >&2; exit 1");
    let larder = helpers.start(setup);
    larder.setup().write("malformed.test.json", "{\"auths\":{\"malformed.test\":\"malformed-but-secret\"}}");

    for (name, registry) in &registries {
        let good = !["wrong", "broken", "malformed"].iter().any(|part| name.starts_with(part));
        let blob = format!("/v2/{name}/library/app/blobs/{}", Blob::new("more").digest);
        // An error on the way could contain the sent credentials.
        registry.revoke_tokens();
        let statuses = [search.ask(&larder, &format!("/v2/{name}/{TAG}")), search.ask(&larder, &blob)];
        if good {
            assert_eq!(statuses, [200, 200], "{name}: {}", larder.log_text());
        } else {
            assert!(statuses.iter().all(|status| *status >= 400), "{name}: {statuses:?}");
        }
        search.ask(&larder, &format!("/v2/{name}/library/none/manifests/v1"));
        registry.revoke_tokens();
        registry.script(When::any().path("/blobs/"), Fault::CloseConnection);
        search.ask(&larder, &format!("/v2/{name}/library/app/blobs/{}", Blob::new("none").digest));
    }
    let renewed = registries.iter().flat_map(|(_, registry)| registry.seen("POST", "/token"));
    let renewed =
        renewed.filter(|seen| String::from_utf8_lossy(&seen.body).contains("renewed-identity-secret"));
    assert!(renewed.count() > 0, "the renewed identity token has been on its way too");
    search.search(larder);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn http2_and_tls_logs_have_no_secrets() {
    let identity = Identity::new();
    let registry = Tls::start_tls(&identity, |seen, _| {
        let given = seen.header("authorization").unwrap_or_default();
        let login = format!("Basic {}", BASE64_STANDARD.encode("tls-user:secret-over-tls"));
        if seen.target.starts_with("/token") {
            return if given == login || seen.body.contains("identity-over-tls") {
                let body = json!({ "access_token": "token-over-tls", "refresh_token": "renewed-over-tls" });
                reply(200, &[], body.to_string().as_bytes())
            } else {
                reply(401, &[], seen.body.as_bytes())
            };
        }
        match given {
            "Bearer token-over-tls" => reply(404, &[], b"token-over-tls"),
            _ => reply(
                401,
                &[("www-authenticate", "Bearer realm=\"/token?key=key-over-tls\"")],
                given.as_bytes(),
            ),
        }
    })
    .await;
    let mut search = Search::default();
    search.hide_login("tls-user", "secret-over-tls");
    for secret in ["identity-over-tls", "token-over-tls", "renewed-over-tls", "key-over-tls"] {
        search.add_secret(secret);
    }
    let mut setup = Setup::empty().set("log.level", "trace");
    for (name, entry) in [
        ("basic.test", json!({ "username": "tls-user", "password": "secret-over-tls" })),
        ("identity.test", json!({ "identitytoken": "identity-over-tls" })),
        ("wrong.test", json!({ "username": "tls-user", "password": "secret-over-tls-no-more" })),
    ] {
        let ca = setup.write("ca.pem", &identity.pem).display().to_string();
        setup = setup.upstream_set(name, "endpoints", vec![registry.url()]);
        setup = setup.upstream_set(name, "default", name == "basic.test").upstream_set(name, "ca_file", ca);
        setup = setup.docker_config(name, &json!({ "auths": { name: entry } }));
    }
    let larder = setup.start();
    for name in ["basic.test", "identity.test", "wrong.test"] {
        for tag in ["v1", "v2"] {
            assert_eq!(search.ask(&larder, &format!("/v2/{name}/library/app/manifests/{tag}")), 404);
        }
    }
    let tokens = registry
        .seen()
        .iter()
        .filter(|seen| seen.header("authorization") == Some("Bearer token-over-tls"))
        .count();
    assert!(tokens >= 4, "{tokens}");
    search.search(larder);
}
