//! Upstreams that refuse, hang or are down: stale tags are served, and unavailable content is not reported as missing.

use crate::support;

use support::fixture::{Fixture, TAG, assert_answered_before_upstream, is_gateway_error};
use support::{Auth, Fault, Gate, Registry, Setup, When, eventually};

#[test]
fn tag_is_served_stale_after_a_restart() {
    let mut fixture = Fixture::with_zero_ttl();
    fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
    fixture.larder.stop();
    fixture.registry.down();
    fixture.larder.restart();
    let answer = fixture.larder.get(TAG);
    answer.assert_body(&fixture.image.manifest.bytes);
    answer.assert_outcome("larder; hit; detail=stale");
}

#[test]
fn last_known_tag_is_served_for_every_kind_of_failure() {
    let faults = [
        None,
        Some(Fault::Status(500)),
        Some(Fault::Status(503)),
        Some(Fault::Status(429)),
        Some(Fault::CloseConnection),
    ];
    for fault in faults {
        let fixture = Fixture::with_zero_ttl();
        fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
        match fault {
            Some(fault) => fixture.registry.script(When::any(), fault),
            None => fixture.registry.down(),
        }
        for method in ["GET", "HEAD"] {
            let answer = fixture.larder.api().send(method, TAG, &[]);
            assert_eq!(answer.status(), 200);
            answer.assert_outcome("larder; hit; detail=stale");
            let warning = answer.header("warning").unwrap();
            assert!(warning.starts_with("299 - \"") && warning.ends_with('"'), "{warning}");
            assert!(answer.header("age").is_some_and(|age| age.parse::<u64>().is_ok()));
            assert_eq!(answer.header("docker-content-digest"), Some(fixture.image.manifest.digest.as_str()));
        }
        fixture.registry.clear_faults();
        fixture.registry.up();
        eventually("the upstream is used again", || {
            fixture.larder.get(TAG).head.outcome() == "larder; hit; detail=revalidated"
        });
    }
}

#[test]
fn hanging_upstream_does_not_delay_cached_content() {
    let fixture = Fixture::with_zero_ttl();
    fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
    let gate = Gate::new();
    fixture.registry.script(When::any(), Fault::HoldHead(gate.clone()));
    fixture.larder.get(TAG).assert_outcome("larder; hit; detail=stale");
    assert_answered_before_upstream(&fixture.larder, &gate);
}

#[test]
fn breaker_opens_after_repeated_failures() {
    let fixture = Fixture::with(|s| s.set("cache.tag_ttl", "0s").set("cache.revalidate_timeout", "100ms"));
    fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
    fixture.registry.forget_requests();
    fixture.registry.script(When::any(), Fault::Status(500));
    for _ in 0..40 {
        fixture.larder.get(TAG).assert_outcome("larder; hit; detail=stale");
    }
    let asked = fixture.registry.requests().len();
    assert!((1..40).contains(&asked), "{asked} questions for 40 answers");
}

#[test]
fn stale_tag_respects_stale_if_error() {
    let fixture = Fixture::with(|setup| setup.set("cache.tag_ttl", "0s").set("cache.stale_if_error", "0s"));
    fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
    fixture.registry.down();
    let answer = fixture.larder.get(TAG);
    assert!(is_gateway_error(answer.status()), "{answer:?}");
    // Content by digest never expires.
    let path = format!("/v2/library/app/manifests/{}", fixture.image.manifest.digest);
    fixture.larder.get(&path).assert_outcome("larder; hit");
}

#[test]
fn unreachable_upstream_without_cached_content_is_not_404() {
    let fixture = Fixture::new();
    fixture.registry.down();
    let manifest = format!("/v2/library/app/manifests/{}", fixture.image.manifest.digest);
    for path in [TAG, &manifest, &fixture.path] {
        for method in ["GET", "HEAD"] {
            let answer = fixture.larder.api().send(method, path, &[]);
            assert!(is_gateway_error(answer.status()), "{method} {path}: {answer:?}");
            if method == "GET" {
                assert!(answer.json()["errors"][0]["message"].is_string());
            }
        }
    }
}

#[test]
fn hanging_upstream_without_cached_content_is_504_in_time() {
    let fixture = Fixture::new();
    fixture.registry.script(When::any(), Fault::HoldHead(Gate::new()));
    let client = fixture.larder.api();
    std::thread::scope(|scope| {
        for path in [TAG, &fixture.path] {
            scope.spawn(move || {
                let answer = client.get(path);
                assert!([502, 504].contains(&answer.status()), "{answer:?}");
            });
        }
    });
}

#[test]
fn upstream_error_is_502() {
    for status in [500, 502, 503] {
        let fixture = Fixture::new();
        fixture.registry.script(When::any(), Fault::Status(status));
        for path in [TAG, &fixture.path] {
            let answer = fixture.larder.get(path);
            assert!(is_gateway_error(answer.status()), "{status}: {answer:?}");
        }
        fixture.registry.clear_faults();
        eventually("the error is not remembered", || fixture.larder.get(TAG).status() == 200);
    }
}

#[test]
fn rate_limit_is_forwarded_by_mode() {
    for (mode, status) in [("mirror", 503), ("gateway", 429)] {
        let fixture = Fixture::with(|setup| setup.set("server.mode", mode));
        let headers = vec![("Retry-After".to_owned(), "17".to_owned())];
        // Docker Hub sends some errors as plain text.
        let body = b"Too Many Requests (HAP429)".to_vec();
        fixture.registry.script(When::any(), Fault::Answer(429, headers, body));
        for path in [TAG, &fixture.path] {
            let answer = fixture.larder.get(path);
            assert_eq!(answer.status(), status, "{answer:?}");
            let wait = answer.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok());
            assert!(wait.is_some_and(|seconds| (1..=17).contains(&seconds)), "{answer:?}");
            assert!(answer.json()["errors"][0]["code"].is_string());
        }
    }
}

#[test]
fn refusal_carries_no_challenge() {
    for (mode, wanted) in [("mirror", 404), ("gateway", 403)] {
        for status in [401, 403] {
            let fixture = Fixture::with(|setup| setup.set("server.mode", mode));
            let challenge = ("WWW-Authenticate".to_owned(), "Basic realm=\"upstream\"".to_owned());
            fixture.registry.script(When::any(), Fault::Answer(status, vec![challenge], Vec::new()));
            for path in [TAG, &fixture.path] {
                for method in ["GET", "HEAD"] {
                    let answer = fixture.larder.api().send(method, path, &[]);
                    assert_eq!(answer.status(), wanted, "{method} {path} after {status}: {answer:?}");
                    assert_eq!(answer.header("www-authenticate"), None);
                }
            }
            // Credentials may be corrected at any time, so the refusal is not remembered.
            fixture.registry.clear_faults();
            fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
        }
    }
}

#[test]
fn refused_credentials_do_not_remove_cached_content() {
    let fixture = Fixture::with_zero_ttl();
    fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
    fixture.larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
    fixture.larder.wait_idle();
    fixture.registry.require_auth(Auth::Basic("someone".into(), "else".into()));
    let by_digest = format!("/v2/library/app/manifests/{}", fixture.image.manifest.digest);
    fixture.larder.get(&by_digest).assert_outcome("larder; hit");
    fixture.larder.get(&fixture.path).assert_outcome("larder; hit");
    let answer = fixture.larder.get(TAG);
    assert!([200, 404].contains(&answer.status()), "{answer:?}");
    assert_eq!(answer.header("www-authenticate"), None);
}

#[test]
fn refused_tag_is_served_until_stale_if_denied() {
    for (limit, mode, status) in [("1h", "mirror", 200), ("0s", "mirror", 404), ("0s", "gateway", 403)] {
        let fixture = Fixture::with(|setup| {
            let setup = setup.set("server.mode", mode).set("cache.tag_ttl", "0s");
            setup.set("cache.stale_if_denied", limit)
        });
        fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
        fixture.larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
        fixture.larder.wait_idle();
        fixture.registry.script(When::any(), Fault::Status(403));
        let answer = fixture.larder.get(TAG);
        assert_eq!(answer.status(), status, "{answer:?}");
        let by_digest = format!("/v2/library/app/manifests/{}", fixture.image.manifest.digest);
        fixture.larder.get(&by_digest).assert_outcome("larder; hit");
        fixture.larder.get(&fixture.path).assert_outcome("larder; hit");
        // The tag is served again once the access is granted.
        fixture.registry.clear_faults();
        fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
    }
}

#[test]
fn refused_credentials_are_visible() {
    let credential = || ("me".to_owned(), "right".to_owned());
    let basic = || Auth::Basic(credential().0, credential().1);
    for (auth, reason) in
        [(basic(), "login"), (Auth::Bearer(Some(credential())), "token-service"), (basic(), "repository")]
    {
        let registry = Registry::start();
        registry.add_image("library/app", "v1", &support::fixture::image());
        registry.require_auth(auth);
        let setup = Setup::with(&registry);
        let is_forbidden = reason == "repository";
        let password = setup.write("password", if is_forbidden { "right" } else { "wrong" });
        let larder = setup
            .upstream_set("docker.io", "username", "me")
            .upstream_set("docker.io", "password_file", password.to_str().unwrap())
            .start();
        let endpoint = || larder.admin().get("/api/v1/status").json()["upstreams"][0]["endpoints"][0].clone();
        assert_eq!((&endpoint()["asked"], &endpoint()["refused"]), (&false.into(), &serde_json::Value::Null));
        if is_forbidden {
            let refuse = Fault::rewrite(move |seen, plan| {
                if seen.header("authorization").is_some() {
                    *plan = support::script::Plan::error(403, "DENIED");
                }
            });
            registry.script(When::manifests(), refuse);
        }
        for _ in 0..3 {
            assert_eq!(larder.get(TAG).status(), 404);
        }
        let refused = endpoint()["refused"].clone();
        assert_eq!((&refused["reason"], &refused["repository"]), (&reason.into(), &"library/app".into()));
        let name = "larder_upstream_credentials_refused_total";
        assert!(larder.counter(name, &[("upstream", "docker.io"), ("reason", reason)]) >= 3);
        larder.wait_for_line("refuses the credentials", |line| {
            line["level"] == "WARN" && line.to_string().contains("refuses the credentials")
        });
        registry.clear_faults();
        std::fs::write(&password, "right").unwrap();
        assert_eq!(larder.get(TAG).status(), 200);
        assert_eq!(endpoint()["refused"], serde_json::Value::Null);
    }
}

#[test]
fn login_page_of_a_proxy_is_not_a_registry() {
    let fixture = Fixture::new();
    let html = vec![("Content-Type".to_owned(), "text/html".to_owned())];
    fixture.registry.script(When::any(), Fault::Answer(200, html, b"<html>Please log in</html>".to_vec()));
    let answer = fixture.larder.get(TAG);
    assert!(is_gateway_error(answer.status()), "{answer:?}");
    if let Ok(answer) = fixture.larder.api().try_send("GET", &fixture.path, &[]) {
        assert!(is_gateway_error(answer.status()), "{answer:?}");
    }
}

#[test]
fn missing_tag_is_asked_for_once() {
    for policy in ["stale", "miss"] {
        let fixture = Fixture::with(|setup| {
            let setup = setup.set("cache.tag_ttl", "0s").set("cache.negative_ttl", "1h");
            setup.set("cache.on_upstream_404", policy)
        });
        for method in ["GET", "GET", "HEAD", "GET"] {
            let answer = fixture.larder.api().send(method, "/v2/library/app/manifests/none", &[]);
            assert_eq!(answer.status(), 404, "{policy}: {answer:?}");
        }
        let asked = fixture.registry.requests().iter().filter(|seen| seen.path.ends_with("/none")).count();
        assert_eq!(asked, 1, "{policy}");
        // A tag that existed is treated differently.
        fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
        fixture.registry.untag("library/app", "v1");
        for _ in 0..2 {
            let answer = fixture.larder.get(TAG);
            assert_eq!(answer.status(), if policy == "stale" { 200 } else { 404 }, "{policy}: {answer:?}");
        }
    }
}

/// Internal failures are logged with all details. Clients get a message without them.
#[test]
fn errors_reveal_no_internals() {
    let registry = Registry::start();
    registry.script(
        When::any(),
        Fault::Answer(401, vec![("WWW-Authenticate".into(), "Basic realm=\"x\"".into())], Vec::new()),
    );
    let setup = Setup::with(&registry);
    let (password, layout) = (setup.write("password", "hush"), setup.folder().join("no-layout"));
    let larder = setup
        .upstream_set("docker.io", "username", "somebody")
        .upstream_set("docker.io", "password_file", password.to_str().unwrap())
        .upstream_set("layout.test", "endpoints", vec![format!("oci://{}", layout.display())])
        .start();
    std::fs::remove_file(&password).unwrap();
    for (path, place) in
        [("/v2/org/app/manifests/v1", &password), ("/v2/layout.test/org/app/manifests/v1", &layout)]
    {
        let place = place.to_str().unwrap();
        let answer = larder.get(path);
        assert!(is_gateway_error(answer.status()), "{answer:?}");
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(said.contains("see the log") && !said.contains(place), "{said}");
        larder.wait_for_line(place, |line| line.to_string().contains(place));
    }
}
