//! Behaviour over minutes or hours, with an adjustable clock: expired tags, long outages, quotas.

use crate::support;

use std::time::Duration;

use support::fixture::{TAG, image, is_gateway_error};
use support::{Blob, Fault, Gate, Image, InProcessLarder, Registry, Setup, When, eventually};

fn fixture(change: impl FnOnce(Setup) -> Setup) -> (Registry, InProcessLarder, Image) {
    let registry = Registry::start();
    let image = image();
    registry.add_image("library/app", "v1", &image);
    let larder = InProcessLarder::start(change(Setup::with(&registry)));
    (registry, larder, image)
}

#[test]
fn ten_thousand_pulls_cost_ten_revalidations() {
    let (registry, larder, image) = fixture(|setup| setup);
    larder.get(TAG).assert_body(&image.manifest.bytes);
    registry.forget_requests();
    let client = larder.api();
    for _ in 0..10_000 {
        larder.advance(Duration::from_millis(60));
        assert_eq!(client.get(TAG).status(), 200);
    }
    let (heads, gets) = (registry.count("HEAD", "/manifests/"), registry.count("GET", ""));
    assert!((1..=10).contains(&heads) && gets == 0, "{heads} HEADs, {gets} GETs");
}

#[test]
fn hour_without_the_upstream_goes_unnoticed() {
    for hangs in [false, true] {
        let registry = Registry::start();
        let images: Vec<_> = (0..12).map(Image::small).collect();
        for (n, image) in images.iter().enumerate() {
            registry.add_image("library/app", &format!("v{n}"), image);
        }
        let larder = InProcessLarder::start(Setup::with(&registry));
        let tag = |n: usize| format!("/v2/library/app/manifests/v{n}");
        let blob = |image: &Image| format!("/v2/library/app/blobs/{}", image.layers[0].digest);
        for (n, image) in images.iter().enumerate() {
            larder.get(&tag(n)).assert_body(&image.manifest.bytes);
            larder.get(&blob(image)).assert_body(&image.layers[0].bytes);
        }
        if hangs {
            registry.script(When::any(), Fault::HoldHead(Gate::new()));
        } else {
            registry.down();
        }
        let mut slow = 0;
        for minute in 0..60 {
            larder.advance(Duration::from_mins(1));
            let (n, image) = (minute % images.len(), &images[minute % images.len()]);
            let answer = larder.get(&tag(n));
            answer.assert_body(&image.manifest.bytes);
            answer.assert_outcome("larder; hit; detail=stale");
            let warning = answer.header("warning").expect("a warning");
            assert!(answer.header("age").is_some());
            // Requests do not wait for an upstream that is known to be down.
            slow += usize::from(warning.contains("none within"));
            larder.get(&blob(image)).assert_body(&image.layers[0].bytes);
        }
        assert!(slow <= 8, "{slow} of 60 pulls waited");
        let open = support::larder::sum_of(&larder.metrics_text(), "larder_upstream_endpoint_open", &[]);
        assert!((0.5..1.5).contains(&open), "{open}");
        registry.clear_faults();
        registry.up();
        larder.advance(Duration::from_mins(2));
        eventually("the upstream is used again", || {
            larder.advance(Duration::from_mins(2));
            larder.get(&tag(0)).head.outcome() == "larder; hit; detail=revalidated"
        });
    }
}

#[test]
fn unreachable_upstream_is_asked_less_and_less() {
    let (registry, larder, image) = fixture(|setup| setup.set("cache.tag_ttl", "1s"));
    larder.get(TAG).assert_body(&image.manifest.bytes);
    registry.script(When::any(), Fault::Status(500));
    registry.forget_requests();
    for _ in 0..600 {
        larder.advance(Duration::from_secs(1));
        larder.get(TAG).assert_outcome("larder; hit; detail=stale");
    }
    // Six requests with two retries each open the circuit breaker. One request per minute follows. A retry takes real time, in
    // which this test advances the clock by minutes. Probes follow the real time.
    let asked = registry.requests().iter().filter(|seen| seen.path != "/v2/").count();
    assert!((10..=75).contains(&asked), "{asked} requests in ten minutes");
}

#[test]
fn uncached_content_fails_at_once_in_an_outage() {
    let (registry, larder, image) = fixture(|setup| setup);
    registry.down();
    eventually("the circuit breaker is open", || {
        let answer = larder.get(TAG);
        assert!(is_gateway_error(answer.status()), "{answer:?}");
        answer.text().contains("the next attempt is in")
    });
    registry.up();
    larder.advance(Duration::from_mins(2));
    larder.get(TAG).assert_body(&image.manifest.bytes);
}

#[test]
fn rate_limit_is_respected_for_its_duration() {
    let headers = vec![("Retry-After".to_owned(), "600".to_owned())];
    let (registry, larder, image) = fixture(|setup| setup.set("cache.tag_ttl", "1s"));
    larder.get(TAG).assert_body(&image.manifest.bytes);
    // Only GET requests of manifests are rate-limited, not HEAD requests or blobs.
    registry.script(When::manifests().method("GET"), Fault::Answer(429, headers, Vec::new()));
    let other = "/v2/library/app/manifests/other";
    let answer = larder.get(other);
    assert_eq!(answer.status(), 503);
    registry.forget_requests();
    for minute in 0..9 {
        larder.advance(Duration::from_mins(1));
        let answer = larder.get(other);
        assert_eq!(answer.status(), 503, "{answer:?}");
        let left: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        let due = 600 - (minute + 1) * 60;
        assert!(left <= due && left + 30 > due, "{left} of {due} s");
        larder.get(TAG).assert_outcome("larder; hit; detail=revalidated");
    }
    assert_eq!(registry.count("GET", "/manifests/"), 0);
    let blob = format!("/v2/library/app/blobs/{}", image.layers[0].digest);
    larder.get(&blob).assert_body(&image.layers[0].bytes);
    registry.clear_faults();
    larder.advance(Duration::from_mins(2));
    assert_eq!(larder.get(other).status(), 404);
}

#[test]
fn absence_is_cached_for_negative_ttl() {
    let (registry, larder, _) = fixture(|setup| setup.set("cache.negative_ttl", "10s"));
    let (tag, digest) = ("/v2/library/app/manifests/none", format!("sha256:{:064}", 1));
    let blob = format!("/v2/library/app/blobs/{digest}");
    let manifest = format!("/v2/library/app/manifests/{digest}");
    let ask = || {
        for path in [tag, &blob, &manifest] {
            assert_eq!(larder.get(path).status(), 404);
        }
    };
    ask();
    let asked = registry.requests().len();
    larder.advance(Duration::from_secs(9));
    ask();
    assert_eq!(registry.requests().len(), asked);
    larder.advance(Duration::from_secs(2));
    ask();
    assert_eq!(registry.requests().len(), 2 * asked);
}

#[test]
fn overloaded_registry_is_not_asked() {
    for mode in ["mirror", "gateway"] {
        let (registry, larder, image) = fixture(|setup| setup.set("server.mode", mode));
        let headers = vec![("Retry-After".to_owned(), "120".to_owned())];
        registry.script(When::any(), Fault::Answer(503, headers, Vec::new()));
        for path in [TAG.to_owned(), format!("/v2/library/app/blobs/{}", image.layers[0].digest)] {
            let answer = larder.get(&path);
            assert_eq!(answer.status(), 503, "{answer:?}");
            assert!(answer.header("retry-after").is_some_and(|left| left.parse::<u64>().unwrap() <= 120));
        }
        assert_eq!(registry.requests().len(), 2, "asked once for each kind of content");
        registry.clear_faults();
        larder.advance(Duration::from_mins(2));
        larder.get(TAG).assert_body(&image.manifest.bytes);
    }
}

#[test]
fn stale_while_revalidate_does_not_delay_clients() {
    let (registry, larder, image) =
        fixture(|setup| setup.set("cache.tag_ttl", "1m").set("cache.stale_while_revalidate", "1h"));
    larder.get(TAG).assert_body(&image.manifest.bytes);
    let gate = Gate::new();
    registry.script(When::manifests().method("HEAD"), Fault::HoldHead(gate.clone()));
    larder.advance(Duration::from_mins(30));
    larder.get(TAG).assert_outcome("larder; hit");
    larder.get(TAG).assert_outcome("larder; hit");
    gate.wait_reached(1);
    assert_eq!(registry.count("HEAD", "/manifests/"), 1);
    gate.open();
    eventually("the time of the check is updated", || {
        larder.get(TAG).header("age").unwrap().parse::<u64>().unwrap() < 60
    });
}

#[test]
fn clock_jumps_cost_revalidations_but_no_failures() {
    let (registry, larder, image) = fixture(|setup| setup);
    larder.get(TAG).assert_body(&image.manifest.bytes);
    // Ten years ahead, and back by the restart: the time of the check is then in the future.
    larder.advance(Duration::from_hours(24 * 3650));
    larder.get(TAG).assert_outcome("larder; hit; detail=revalidated");
    let larder = larder.restart();
    larder.get(TAG).assert_outcome("larder; hit; detail=revalidated");
    larder.get(TAG).assert_outcome("larder; hit");
    registry.down();
    larder.advance(Duration::from_hours(24));
    larder.get(TAG).assert_body(&image.manifest.bytes);
}

#[test]
fn slow_answers_do_not_add_up() {
    let (registry, larder, image) = fixture(|setup| setup);
    larder.get(TAG).assert_body(&image.manifest.bytes);
    // Another repository has the same layer. The server verifies the access with HEAD, and here both HEAD and GET are
    // slow.
    registry.add_image("library/other", "v1", &image);
    let blob = format!("/v2/library/other/blobs/{}", image.layers[0].digest);
    let gate = Gate::new();
    registry.script(When::blobs().path("/app/").method("GET"), Fault::HoldHead(gate.clone()));
    registry.script(When::blobs().path("/other/"), Fault::DelayHead(Duration::from_secs(6)));
    let client = larder.api();
    std::thread::scope(|scope| {
        let first = format!("/v2/library/app/blobs/{}", image.layers[0].digest);
        scope.spawn(move || client.get(&first).status());
        gate.wait_reached(1);
        let answer = client.get(&blob);
        assert_eq!(answer.status(), 504, "{answer:?}");
        assert!(answer.text().contains("within 10s"), "{answer:?}");
        gate.open();
    });
}

const YEAR: i64 = 365 * 24 * 3600 * 1000;

/// Clock changes: a year ahead and back, and to 1970 and before.
const JUMPS: [i64; 4] = [YEAR, -YEAR, -100 * YEAR, 100 * YEAR];

#[test]
fn clock_changes_do_not_affect_tag_freshness() {
    for jump in JUMPS {
        let (registry, larder, image) = fixture(|setup| setup.set("cache.tags_list", "upstream"));
        let list = "/v2/library/app/tags/list";
        let asked = |registry: &Registry| registry.requests().len();
        larder.get(TAG).assert_body(&image.manifest.bytes);
        assert_eq!(larder.get(list).status(), 200);
        // There and back: each change costs at most one request to the upstream.
        for millis in [jump, -jump, jump] {
            larder.set_clock_by(millis);
            registry.forget_requests();
            for _ in 0..10 {
                larder.get(TAG).assert_body(&image.manifest.bytes);
                assert_eq!(larder.get(list).status(), 200);
            }
            assert!(asked(&registry) <= 2, "set by {millis}: {:?}", registry.requests());
            // With any clock, a moved tag is found when the old one has expired.
            larder.advance(Duration::from_mins(2));
            registry.forget_requests();
            larder.get(TAG).assert_outcome("larder; hit; detail=revalidated");
            larder.get(TAG).assert_outcome("larder; hit");
            assert_eq!(larder.get(list).status(), 200);
            assert_eq!(asked(&registry), 2, "set by {millis}: {:?}", registry.requests());
        }
        registry.down();
        larder.advance(Duration::from_mins(2));
        larder.get(TAG).assert_outcome("larder; hit; detail=stale");
    }
}

#[test]
fn clock_changes_do_not_affect_absence_or_back_off() {
    for jump in JUMPS {
        let (registry, larder, image) = fixture(|setup| setup.set("cache.negative_ttl", "10s"));
        let (tag, blob) = ("/v2/library/app/manifests/late", Blob::random(9, 1000));
        let path = format!("/v2/library/app/blobs/{}", blob.digest);
        assert_eq!((larder.get(tag).status(), larder.get(&path).status()), (404, 404));
        larder.set_clock_by(jump);
        registry.add_image("library/app", "late", &image);
        registry.add_blob("library/app", &blob);
        larder.advance(Duration::from_secs(11));
        larder.get(tag).assert_body(&image.manifest.bytes);
        larder.get(&path).assert_body(&blob.bytes);
        // The pause is the requested one, and at least that after a failure.
        for fault in
            [Fault::Answer(503, vec![("Retry-After".into(), "60".into())], Vec::new()), Fault::Status(500)]
        {
            registry.script(When::any(), fault);
            for n in 0..4 {
                assert!(is_gateway_error(larder.get(&format!("/v2/library/app/manifests/no{n}")).status()));
            }
            larder.set_clock_by(-jump);
            registry.clear_faults();
            larder.advance(Duration::from_mins(2));
            assert_eq!(larder.get("/v2/library/app/manifests/none").status(), 404);
            larder.set_clock_by(jump);
        }
    }
}

#[test]
fn content_stored_under_any_clock_is_usable_under_any_other() {
    for kind in ["sled", "files"] {
        for jump in JUMPS {
            let (registry, larder, image) = fixture(|setup| setup.set("store.blobs", kind));
            larder.set_clock_by(jump);
            let layer = format!("/v2/library/app/blobs/{}", image.layers[0].digest);
            larder.get(TAG).assert_body(&image.manifest.bytes);
            larder.get(&layer).assert_body(&image.layers[0].bytes);
            eventually("the layer is cached", || larder.get(&layer).head.outcome() == "larder; hit");
            registry.down();
            // The restart sets the clock back.
            let larder = larder.restart();
            larder.get(&layer).assert_body(&image.layers[0].bytes);
            larder.get(TAG).assert_body(&image.manifest.bytes);
            registry.up();
            eventually("the tag is revalidated", || {
                larder.advance(Duration::from_mins(2));
                larder.get(TAG).head.outcome() == "larder; hit; detail=revalidated"
            });
        }
    }
}

#[test]
fn retry_after_date_uses_the_servers_date() {
    let (registry, larder, image) = fixture(|setup| setup);
    // The upstream's clock is a year behind, or ours is ahead.
    let date = |second: u32| format!("Tue, 03 Jun 2008 11:05:{second:02} GMT");
    let headers = vec![("Date".to_owned(), date(0)), ("Retry-After".to_owned(), date(30))];
    registry.script(When::any(), Fault::Answer(503, headers, Vec::new()));
    let left = larder.get(TAG).header("retry-after").map(|left| left.parse::<u64>().unwrap());
    assert!(left.is_some_and(|left| (25..=30).contains(&left)), "{left:?}");
    registry.clear_faults();
    larder.advance(Duration::from_secs(31));
    larder.get(TAG).assert_body(&image.manifest.bytes);
}
