//! Circuit breaker: failures of single images, repositories and other hosts do not affect the rest of an upstream, and an
//! endpoint that recovers is used again at once.

use crate::support;

use std::ops::Range;
use std::time::Instant;

use support::fixture::{Fixture, MIB, TAG, is_gateway_error};
use support::{Fault, Gate, Image, Larder, Registry, When};

const OPEN: &str = "larder_upstream_endpoint_open";

/// Adds an image to a repository, and returns the path of its tag.
fn add(registry: &Registry, repository: &str, tag: &str, seed: u64) -> String {
    registry.add_image(repository, tag, &Image::small(seed));
    format!("/v2/{repository}/manifests/{tag}")
}

#[test]
fn failing_image_leaves_the_others() {
    let retry = || vec![("Retry-After".to_owned(), "600".to_owned())];
    let faults = [
        Fault::Status(500),
        Fault::Status(502),
        Fault::Status(503),
        Fault::Status(507),
        Fault::Answer(503, retry(), Vec::new()),
        Fault::Answer(429, retry(), Vec::new()),
        Fault::CloseConnection,
    ];
    for (seed, fault) in (10..).zip(faults) {
        let fixture = Fixture::new();
        let registry = &fixture.registry;
        registry.script(When::any().path("/org/bad/"), fault);
        for _ in 0..5 {
            let answer = fixture.larder.get("/v2/org/bad/manifests/v1");
            assert!(is_gateway_error(answer.status()), "{answer:?}");
        }
        let other_tag = add(registry, "org/good", "v1", seed);
        for path in [TAG, &other_tag, &fixture.path] {
            assert_eq!(fixture.larder.get(path).status(), 200, "{path}");
        }
        assert_eq!(fixture.larder.counter(OPEN, &[]), 0);
    }
}

#[test]
fn failing_repositories_leave_the_others() {
    for fault in [Fault::Status(500), Fault::CloseConnection] {
        let fixture = Fixture::new();
        fixture.registry.script(When::any().path("/bad/"), fault);
        for n in 0..6 {
            assert!(is_gateway_error(fixture.larder.get(&format!("/v2/bad/r{n}/manifests/v1")).status()));
        }
        for n in 0..3 {
            let path = add(&fixture.registry, "org/good", &format!("v{n}"), n);
            assert_eq!(fixture.larder.get(&path).status(), 200);
        }
        // The probe confirms that the endpoint is available.
        support::eventually("a probe is sent", || {
            fixture.registry.seen("GET", "/v2/").iter().any(|seen| seen.path == "/v2/")
        });
        assert_eq!(fixture.larder.counter(OPEN, &[]), 0);
    }
}

/// Sends requests for ever-new content of a repository.
fn ask_for_new_content(larder: &Larder, path: &(dyn Fn(usize) -> String + Sync), numbers: Range<usize>) {
    std::thread::scope(|scope| {
        for n in numbers {
            scope.spawn(move || assert!(is_gateway_error(larder.get(&path(n)).status())));
        }
    });
}

#[test]
fn failing_repository_is_asked_at_a_bounded_rate() {
    let fixture = Fixture::new();
    let (registry, larder) = (&fixture.registry, &fixture.larder);
    registry.offer_referrers(true);
    // A status that is not repeated at once.
    registry.script(When::any().path("/org/bad/"), Fault::Status(507));
    let digest = |n: usize| format!("sha256:{n:064x}");
    let paths: [&(dyn Fn(usize) -> String + Sync); 4] = [
        &|n| format!("/v2/org/bad/manifests/v{n}"),
        &|n| format!("/v2/org/bad/manifests/{}", digest(n)),
        &|n| format!("/v2/org/bad/blobs/{}", digest(n)),
        &|n| format!("/v2/org/bad/referrers/{}", digest(n)),
    ];
    for path in paths {
        ask_for_new_content(larder, path, 0..12);
        registry.forget_requests();
        let started = Instant::now();
        ask_for_new_content(larder, path, 12..42);
        // One request every two seconds, and one more for each kind of request.
        let most = started.elapsed().as_secs() / 2 + 2;
        let sent = registry.count("GET", "/org/bad/") + registry.count("HEAD", "/org/bad/");
        assert!(sent as u64 <= 2 * most, "{sent} requests like {} in {:?}", path(0), started.elapsed());
    }
    let referrers = format!("/v2/library/app/referrers/{}", fixture.image.manifest.digest);
    for path in [TAG, &referrers, &fixture.path] {
        assert_eq!(larder.get(path).status(), 200, "{path}");
    }
    assert_eq!(larder.counter(OPEN, &[]), 0);
    registry.clear_faults();
    let path = add(registry, "org/bad", "good", 5);
    support::eventually("the repository is asked again", || larder.get(&path).status() == 200);
    assert_eq!(larder.get("/v2/org/bad/manifests/none").status(), 404, "the back-off has ended");
}

#[test]
fn interrupted_blob_leaves_the_others() {
    let fixture = Fixture::new();
    let bad = Image::small(7);
    fixture.registry.add_image("org/bad", "v1", &bad);
    let layer = format!("/v2/org/bad/blobs/{}", bad.layers[0].digest);
    fixture.registry.script(When::blobs().path("/org/bad/"), Fault::Status(500));
    for _ in 0..4 {
        assert!(is_gateway_error(fixture.larder.get(&layer).status()));
    }
    fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
    fixture.larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
    assert!(fixture.layer.bytes.len() > MIB);
}

#[test]
fn content_without_a_timely_head_leaves_the_others() {
    let fixture = Fixture::with(|setup| setup.upstream_set("docker.io", "head_timeout", "100ms"));
    fixture.registry.script(When::any().path("/org/bad/"), Fault::HoldHead(Gate::new()));
    let missing = "/v2/org/bad/blobs/sha256:".to_owned() + &"0".repeat(64);
    for _ in 0..4 {
        assert!(is_gateway_error(fixture.larder.get("/v2/org/bad/manifests/v1").status()));
        assert!(is_gateway_error(fixture.larder.get(&missing).status()));
    }
    fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
    fixture.larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
    assert_eq!(fixture.larder.counter(OPEN, &[]), 0);
}

#[test]
fn endpoint_that_fails_as_a_whole_is_probed_until_it_recovers() {
    for fault in [None, Some(Fault::Status(503)), Some(Fault::CloseConnection)] {
        let fixture = Fixture::new();
        match fault {
            Some(fault) => fixture.registry.script(When::any(), fault),
            None => fixture.registry.down(),
        }
        for n in 0..3 {
            let path = format!("/v2/org/r{n}/manifests/v1");
            assert!(is_gateway_error(fixture.larder.get(&path).status()));
        }
        fixture.larder.wait_counter(OPEN, &[], 1);
        fixture.registry.forget_requests();
        assert!(is_gateway_error(fixture.larder.get(TAG).status()));
        let asked = |path: &str| fixture.registry.requests().iter().any(|seen| seen.path == path);
        assert!(!asked(TAG), "no client request is sent");
        fixture.registry.clear_faults();
        fixture.registry.up();
        support::eventually("a probe closes the circuit breaker", || fixture.larder.counter(OPEN, &[]) == 0);
        assert!(asked("/v2/"));
        fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
    }
}

#[test]
fn rate_limit_of_another_host_does_not_pause_the_registry() {
    let fixture = Fixture::with(|setup| setup.upstream_set("docker.io", "allow_private", true));
    let other = Registry::start();
    let limited = vec![("Retry-After".to_owned(), "3600".to_owned())];
    other.script(When::any(), Fault::Answer(429, limited, Vec::new()));
    let redirect = Fault::Redirect(307, other.url());
    for path in ["/referrers/", "/org/away/"] {
        fixture.registry.script(When::any().path(path), redirect.clone());
    }
    let larder = &fixture.larder;
    for n in 0..3 {
        assert_eq!(larder.get(&format!("/v2/org/away/manifests/v{n}")).status(), 503);
        // A refused redirect of the referrers API means that there is no API. There is no fall-back tag either.
        let referrers = format!("/v2/library/app/referrers/{}", fixture.image.manifest.digest);
        assert_eq!(larder.get(&referrers).status(), 200);
    }
    larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
    larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
}
