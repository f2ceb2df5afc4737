//! A registry with the peculiarities of ghcr.io: images are pulled and signatures found whatever its web site answers, and a
//! rate limit of less than a second costs nothing.

use crate::support;

use std::time::Duration;

use serde_json::json;
use support::fixture::TAG;
use support::{Fault, Gate, Ghcr, Image, InProcessLarder, When, quirks};

const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

fn referrers(image: &Image) -> String {
    format!("/v2/library/app/referrers/{}", image.manifest.digest)
}

#[test]
fn refused_signature_lookup_does_not_affect_pulls() {
    let statuses = [500, 502, 503, 403, 404, 405].map(Fault::Status);
    let html = vec![("Content-Type".to_owned(), "text/html".to_owned())];
    let more = [
        Ghcr::limited(),
        Ghcr::not_found(),
        Ghcr::momentary_limit(true),
        Fault::CloseConnection,
        Fault::Answer(200, html, b"<html>".to_vec()),
    ];
    for fault in statuses.into_iter().chain(more) {
        let ghcr = Ghcr::start(fault);
        let images = [1, 2].map(Image::small);
        for (n, image) in images.iter().enumerate() {
            ghcr.registry.add_image("library/app", &format!("v{}", n + 1), image);
        }
        let larder = ghcr.setup().start();
        for image in &images {
            let answer = larder.get(&referrers(image));
            assert_eq!((answer.status(), answer.json()["manifests"].clone()), (200, json!([])), "{answer:?}");
            let other = referrers(image).replace("library/app", "library/other");
            assert_eq!(larder.get(&other).status(), 200);
        }
        // The missing API is remembered for the whole upstream.
        assert_eq!(ghcr.registry.count("GET", "/referrers/"), 1);
        assert_eq!(ghcr.site.requests().len(), 1);
        larder.get(TAG).assert_body(&images[0].manifest.bytes);
        for blob in images[0].blobs() {
            larder.get(&format!("/v2/library/app/blobs/{}", blob.digest)).assert_body(&blob.bytes);
        }
        let labels = [("upstream", "docker.io")];
        assert_eq!(larder.counter("larder_upstream_endpoint_open", &labels), 0);
    }
}

#[test]
fn signature_is_found_through_the_fallback_tag() {
    for fault in [Ghcr::limited(), Ghcr::not_found()] {
        let ghcr = Ghcr::start(fault);
        let image = Image::small(1);
        ghcr.registry.add_image("library/app", "v1", &image);
        let signature = ghcr.sign("library/app", &image, BUNDLE);
        let larder = ghcr.setup().start();
        // The type in the index is wrong, so that the list is not filtered.
        for query in ["", "?artifactType=application%2Fvnd.dev.sigstore.bundle.v0.3%2Bjson"] {
            let answer = larder.get(&(referrers(&image) + query));
            assert_eq!(answer.status(), 200, "{answer:?}");
            let list = answer.json()["manifests"].clone();
            assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
            assert_eq!(list[0]["digest"], signature.digest.as_str());
            assert_eq!(answer.header("oci-filters-applied"), None);
        }
        let path = format!("/v2/library/app/manifests/{}", signature.digest);
        larder.get(&path).assert_body(&signature.bytes);
    }
}

#[test]
fn missing_api_is_looked_for_again_later() {
    let ghcr = Ghcr::start(Ghcr::limited());
    let image = Image::small(1);
    ghcr.registry.add_image("library/app", "v1", &image);
    let larder = InProcessLarder::start(ghcr.setup());
    assert_eq!(larder.get(&referrers(&image)).json()["manifests"], json!([]));
    // The registry gets an API.
    ghcr.registry.clear_faults();
    ghcr.registry.offer_referrers(true);
    ghcr.registry.add_manifest("library/app", &Image::statement(BUNDLE, "signed", &image.manifest));
    larder.advance(Duration::from_mins(10));
    let answer = larder.get(&referrers(&image));
    assert_eq!(answer.json()["manifests"].as_array().map(Vec::len), Some(1), "{answer:?}");
}

#[test]
fn api_that_has_worked_is_not_missing_when_its_host_fails() {
    let ghcr = Ghcr::start(Fault::rewrite(|_, _| {}));
    let images = [1, 2].map(Image::small);
    let list = Image::statement(BUNDLE, "signed", &images[0].manifest);
    for registry in [&ghcr.registry, &ghcr.site] {
        for image in &images {
            registry.add_image("library/app", "v1", image);
        }
        registry.add_manifest("library/app", &list);
    }
    ghcr.registry.clear_faults();
    let target = ghcr.site.url();
    ghcr.registry.script(When::any().path("/referrers/"), Fault::Redirect(307, target));
    ghcr.site.offer_referrers(true);
    let larder = ghcr.setup().start();
    assert_eq!(larder.get(&referrers(&images[0])).json()["manifests"].as_array().map(Vec::len), Some(1));
    ghcr.site.script(When::any(), Fault::Status(500));
    let answer = larder.get(&referrers(&images[1]));
    assert!(support::fixture::is_gateway_error(answer.status()), "{answer:?}");
}

#[test]
fn momentary_rate_limit_is_waited_for() {
    for in_header in [true, false] {
        for refused in [1, 3] {
            let ghcr = Ghcr::start(Ghcr::not_found());
            let image = Image::small(1);
            ghcr.registry.add_image("library/app", "v1", &image);
            let when = || When::any().method("GET").times(refused);
            ghcr.registry.script(when().path("/manifests/"), Ghcr::momentary_limit(in_header));
            ghcr.registry.script(when().path("/blobs/"), Ghcr::momentary_limit(in_header));
            let larder = ghcr.setup().start();
            larder.get(TAG).assert_body(&image.manifest.bytes);
            assert_eq!(ghcr.registry.count("GET", "/manifests/"), refused + 1);
            let layer = &image.layers[0];
            larder.get(&format!("/v2/library/app/blobs/{}", layer.digest)).assert_body(&layer.bytes);
            assert_eq!(ghcr.registry.count("GET", "/blobs/"), refused + 1);
            assert!(!larder.log_text().contains("paused"), "{}", larder.log_text());
        }
    }
}

#[test]
fn waits_below_a_second_are_read_in_every_form() {
    for wait in ["0.05", "20ms", "714.6us", "0.001s", "0"] {
        let ghcr = Ghcr::start(Ghcr::not_found());
        let image = Image::small(1);
        ghcr.registry.add_image("library/app", "v1", &image);
        let limited = Fault::Answer(429, vec![("Retry-After".to_owned(), wait.to_owned())], Vec::new());
        ghcr.registry.script(When::manifests().times(2), limited);
        let larder = ghcr.setup().start();
        larder.get(TAG).assert_body(&image.manifest.bytes);
        assert_eq!(ghcr.registry.count("GET", "/manifests/"), 3, "{wait}");
    }
}

#[test]
fn clients_are_told_the_wait_that_is_left() {
    for (wait, told) in [(Some("2.5"), 3), (Some("90s"), 90), (None, 1)] {
        let ghcr = Ghcr::start(Ghcr::not_found());
        let headers = wait.map(|wait| ("Retry-After".to_owned(), wait.to_owned())).into_iter().collect();
        ghcr.registry.script(When::any(), Fault::Answer(429, headers, Vec::new()));
        let larder = ghcr.setup().start();
        let answer = larder.get(TAG);
        answer.assert_error(503, "UNAVAILABLE");
        assert_eq!(answer.header("retry-after"), Some(told.to_string().as_str()), "{answer:?}");
    }
}

#[test]
fn wait_of_a_head_is_read_from_the_answer_to_a_get() {
    let ghcr = Ghcr::start(Ghcr::not_found());
    let image = Image::small(1);
    ghcr.registry.add_image("library/app", "v1", &image);
    let larder = ghcr.setup().set("cache.tag_ttl", "0s").start();
    larder.get(TAG).assert_body(&image.manifest.bytes);
    for (when, fault) in quirks::limited_head() {
        ghcr.registry.script(when, fault);
    }
    ghcr.registry.forget_requests();
    // Neither stale nor a pause.
    for _ in 0..2 {
        larder.get(TAG).assert_outcome("larder; hit; detail=revalidated");
    }
    assert_eq!(
        (ghcr.registry.count("HEAD", "/manifests/"), ghcr.registry.count("GET", "/manifests/")),
        (3, 1)
    );
    // A limit without a wait is a pause.
    ghcr.registry.script(When::any(), Fault::Answer(429, Vec::new(), Vec::new()));
    ghcr.registry.forget_requests();
    for _ in 0..3 {
        larder.get(TAG).assert_outcome("larder; hit; detail=stale");
    }
    assert_eq!(ghcr.registry.requests().len(), 2, "one HEAD and one GET");
}

/// A hanging site must not delay the client until its own time-out.
#[test]
fn referrers_api_at_a_hanging_site_is_given_up_soon() {
    let ghcr = Ghcr::start(Fault::HoldHead(Gate::new()));
    let image = Image::small(1);
    ghcr.registry.add_image("library/app", "v1", &image);
    let signature = ghcr.sign("library/app", &image, "application/vnd.example.signature");
    let larder = ghcr.setup().start();
    let path = format!("/v2/library/app/referrers/{}", image.manifest.digest);
    // The whole time for a request is 10 s. After 2 s there is time left for the tag.
    let listed = larder.api().read_timeout(Duration::from_secs(8)).get(&path);
    assert_eq!(listed.status(), 200, "{}", listed.text());
    assert!(listed.text().contains(&signature.digest));
    // The site is not asked for another image.
    let asked = ghcr.site.requests().len();
    larder.get(&path.replace(&image.manifest.digest, &Image::small(2).manifest.digest));
    assert_eq!(ghcr.site.requests().len(), asked);
}

#[test]
fn rate_limit_that_does_not_end_is_not_hammered() {
    let ghcr = Ghcr::start(Ghcr::not_found());
    ghcr.registry.script(When::any(), Ghcr::momentary_limit(true));
    let larder = ghcr.setup().start();
    larder.get(TAG).assert_error(503, "UNAVAILABLE");
    let sent = ghcr.registry.requests().len();
    assert!(sent <= 9, "{sent}");
    larder.wait_for_line("a pause", |line| {
        line["message"].as_str().is_some_and(|text| text.contains("requests of this kind are paused"))
    });
}

#[test]
fn failing_redirect_target_does_not_open_the_circuit_breaker() {
    let ghcr = Ghcr::start(Fault::Status(500));
    let images: Vec<_> = (0..8).map(Image::small).collect();
    for (n, image) in images.iter().enumerate() {
        ghcr.registry.add_image(&format!("library/app{n}"), "v1", image);
    }
    ghcr.registry.script(When::blobs(), Fault::Redirect(307, ghcr.site.url()));
    let larder = ghcr.setup().start();
    for (n, image) in images.iter().enumerate() {
        let digest = &image.layers[0].digest;
        let answer = larder.api().try_send("GET", &format!("/v2/library/app{n}/blobs/{digest}"), &[]);
        assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() >= 500));
    }
    for (n, image) in images.iter().enumerate() {
        larder.get(&format!("/v2/library/app{n}/manifests/v1")).assert_body(&image.manifest.bytes);
    }
}
