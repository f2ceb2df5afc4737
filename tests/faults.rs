//! Upstreams that lie, break off, refuse, hang or are gone: no client ever completes wrong content, and old tags are served.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use support::content::sha256;
use support::{Auth, Blob, Document, Fault, Gate, Image, Larder, Random, Registry, Setup, When, eventually};

const MIB: usize = 1 << 20;
const TAG: &str = "/v2/library/app/manifests/v1";
const FAILURES: &str = "larder_verify_failures_total";

fn image() -> Image {
    Image::oci(1, "linux/amd64", vec![Blob::random(1, 3 * MIB + 1000)])
}

struct House {
    registry: Registry,
    larder: Larder,
    image: Image,
    layer: Blob,
    path: String,
}

fn house_with(change: impl FnOnce(Setup) -> Setup) -> House {
    let registry = Registry::start();
    let image = image();
    registry.add_image("library/app", "v1", &image);
    let larder = change(Setup::with(&registry)).start();
    let layer = image.layers[0].clone();
    let path = format!("/v2/library/app/blobs/{}", layer.digest);
    House { registry, larder, image, layer, path }
}

fn house() -> House {
    house_with(|setup| setup)
}

/// A registry whose tags are asked for again every time.
fn impatient() -> House {
    house_with(|setup| setup.set("cache.tag_ttl", "0s"))
}

fn down(status: u16) -> bool {
    [502, 503, 504].contains(&status)
}

#[test]
fn no_client_completes_a_wrong_body() {
    let other = Arc::new(Random::new(77).bytes(3 * MIB + 1000));
    let last = 3 * MIB + 999;
    let faults = [
        Fault::Flip(0),
        Fault::Flip(MIB),
        Fault::Flip(last),
        Fault::OneLess,
        Fault::OneMore,
        Fault::OneMoreUntold,
        Fault::Other(other),
        Fault::Other(Arc::new(b"an error page of some proxy".to_vec())),
    ];
    for (n, fault) in faults.into_iter().enumerate() {
        // With the descriptor's size known from the manifest, and without.
        for known in [false, true] {
            let house = house();
            if known {
                house.larder.get(TAG).is_ok_with(&house.image.manifest.bytes);
                house.larder.settle();
            }
            house.registry.script(When::blobs().method("GET"), fault.clone());
            let client = house.larder.api();
            std::thread::scope(|scope| {
                // A range up to the end is a whole body in another dress.
                for range in [&[][..], &[], &[("Range", "bytes=0-")], &[("Range", "bytes=5-")]] {
                    let path = &house.path;
                    scope.spawn(move || {
                        if let Ok(answer) = client.try_send("GET", path, range) {
                            assert!(down(answer.status()), "fault {n}: {:?} completed", answer.head);
                        }
                    });
                }
            });
            house.larder.wait_counter(FAILURES, &[("kind", "blob"), ("upstream", "docker.io")], 1);
            house.larder.settle();
            house.registry.behave();
            house.registry.forget_requests();
            let answer = house.larder.get(&house.path);
            answer.is_ok_with(&house.layer.bytes);
            assert_eq!(house.registry.count("GET", "/blobs/"), 1, "fault {n}: something was kept");
            assert_eq!(house.registry.seen("GET", "/blobs/")[0].range_start().unwrap_or(0), 0);
        }
    }
}

#[test]
fn a_retry_right_after_a_failure_starts_anew() {
    let registry = Registry::start();
    let larder = Larder::before(&registry);
    let client = larder.api();
    for n in 0..40 {
        let blob = Blob::random(n, 100_000);
        registry.add_blob("library/app", &blob);
        registry.script(When::blobs().method("GET").times(1), Fault::Flip(50_000));
        let path = format!("/v2/library/app/blobs/{}", blob.digest);
        if let Ok(answer) = client.try_send("GET", &path, &[]) {
            assert!(down(answer.status()), "{:?} completed", answer.head);
        }
        // Clients retry at once: they must not be put into the flight that has just failed.
        match client.try_send("GET", &path, &[]) {
            Ok(answer) => answer.is_ok_with(&blob.bytes),
            Err(error) => panic!("round {n}: the retry shared the failure: {error:?}"),
        }
    }
}

#[test]
fn a_head_that_lies_about_the_size_spoils_nothing() {
    let house = house();
    house.registry.script(When::blobs().method("HEAD"), Fault::OneLess);
    assert_eq!(house.larder.head(&house.path).status(), 200);
    house.registry.behave();
    // What a HEAD said is a hint; only a descriptor under a digest is a promise.
    house.larder.get(&house.path).is_ok_with(&house.layer.bytes);
}

#[test]
fn a_descriptor_with_another_size_is_held_against_the_blob() {
    let house = house();
    let text = String::from_utf8(house.image.manifest.bytes.to_vec()).unwrap();
    let (length, wrong) = (house.layer.len().to_string(), (house.layer.len() - 1).to_string());
    let manifest = Document::new(&house.image.manifest.media_type, text.replace(&length, &wrong));
    house.registry.add_manifest("library/app", &manifest);
    house.larder.get(&format!("/v2/library/app/manifests/{}", manifest.digest)).is_ok_with(&manifest.bytes);
    if let Ok(answer) = house.larder.api().try_send("GET", &house.path, &[]) {
        assert!(down(answer.status()), "{:?}", answer.head);
    }
}

#[test]
fn a_tag_is_served_stale_after_a_restart() {
    let mut house = impatient();
    house.larder.get(TAG).is_ok_with(&house.image.manifest.bytes);
    house.larder.terminate();
    house.larder.wait_exit();
    house.registry.down();
    house.larder.restart();
    let answer = house.larder.get(TAG);
    answer.is_ok_with(&house.image.manifest.bytes);
    answer.is_outcome("larder; hit; detail=stale");
}

#[test]
fn a_wrong_manifest_is_never_served() {
    let other = Image::small(9).manifest;
    for fault in [Fault::Flip(3), Fault::OneLess, Fault::OneMore, Fault::Other(other.bytes)] {
        let house = house();
        house.registry.script(When::manifests().method("GET"), fault);
        let path = format!("/v2/library/app/manifests/{}", house.image.manifest.digest);
        let answer = house.larder.get(&path);
        assert_eq!(answer.status(), 502, "{answer:?}");
        house.larder.wait_counter(FAILURES, &[("kind", "manifest")], 1);
        house.registry.behave();
        house.larder.get(&path).is_ok_with(&house.image.manifest.bytes);
    }
}

#[test]
fn a_digest_header_that_lies_is_not_passed_on() {
    let house = house();
    let lie = sha256(b"something else");
    house.registry.script(When::manifests(), Fault::Header("Docker-Content-Digest", lie.clone()));
    let answer = house.larder.get(TAG);
    match answer.status() {
        200 => assert_eq!(answer.header("docker-content-digest"), Some(sha256(&answer.body).as_str())),
        status => assert_eq!(status, 502),
    }
    let answer = house.larder.get(&format!("/v2/library/app/manifests/{lie}"));
    assert!([404, 502].contains(&answer.status()), "{answer:?}");
    let path = format!("/v2/library/app/manifests/{}", house.image.manifest.digest);
    house.larder.get(&path).is_ok_with(&house.image.manifest.bytes);
}

#[test]
fn three_cuts_are_mended_without_anybody_noticing() {
    let house = house();
    house.registry.script(When::blobs().method("GET").times(3), Fault::Cut(700_001));
    let answer = house.larder.get(&house.path);
    answer.is_ok_with(&house.layer.bytes);
    let gets = house.registry.seen("GET", "/blobs/");
    assert_eq!(gets.len(), 4);
    let mut end = 0;
    for get in &gets {
        assert_eq!(get.range_start().unwrap_or(0), end);
        end += get.sent();
    }
    assert_eq!(end, house.layer.len() as u64);
    house.larder.settle();
    house.registry.down();
    house.larder.get(&house.path).is_ok_with(&house.layer.bytes);
}

#[test]
fn a_byte_that_never_comes_is_fetched_again() {
    let house = house();
    house.registry.script(When::blobs().times(1), Fault::OneLessThanPromised);
    house.larder.get(&house.path).is_ok_with(&house.layer.bytes);
    let gets = house.registry.seen("GET", "/blobs/");
    assert_eq!(gets.last().unwrap().range_start(), Some(house.layer.len() as u64 - 1));
}

#[test]
fn a_cut_without_end_ends() {
    let house = house();
    house.registry.script(When::blobs().method("GET"), Fault::Cut(0));
    let began = Instant::now();
    if let Ok(answer) = house.larder.api().try_send("GET", &house.path, &[]) {
        assert!(down(answer.status()), "{answer:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    house.larder.settle();
    let gets = house.registry.count("GET", "/blobs/");
    assert!((2..=20).contains(&gets), "{gets} attempts");
    house.registry.behave();
    eventually("it works again", || {
        house.larder.api().try_send("GET", &house.path, &[]).is_ok_and(|a| a.status() == 200)
    });
}

/// The first answer is cut, the second is this; from the third on all is well.
#[track_caller]
fn resumes_over(fault: Fault) {
    let house = house();
    house.registry.script(When::blobs().times(1), Fault::Cut(MIB + 1));
    house.registry.script(When::blobs().after(1).times(1), fault);
    house.larder.get(&house.path).is_ok_with(&house.layer.bytes);
    assert!(house.registry.count("GET", "/blobs/") <= 4);
}

#[test]
fn a_resume_that_begins_at_zero_is_used() {
    resumes_over(Fault::IgnoreRange);
}

#[test]
fn a_resume_with_another_content_range_is_started_over() {
    resumes_over(Fault::WrongContentRange);
}

#[test]
fn a_resume_that_is_said_to_be_out_of_range_is_started_over() {
    resumes_over(Fault::Status(416));
}

#[test]
fn a_resume_that_meets_an_error_is_tried_again() {
    resumes_over(Fault::Status(503));
    resumes_over(Fault::Status(429));
    resumes_over(Fault::Close);
}

#[test]
fn content_that_changes_in_between_is_never_mixed() {
    let house = house();
    // The first half of one body and the whole of another, and the Range is not understood.
    house.registry.script(When::blobs().times(1), Fault::Flip(100));
    house.registry.script(When::blobs().times(1), Fault::Cut(MIB));
    house.registry.script(When::blobs(), Fault::IgnoreRange);
    if let Ok(answer) = house.larder.api().try_send("GET", &house.path, &[]) {
        assert!(down(answer.status()), "{:?} completed", answer.head);
    }
    house.larder.settle();
    house.larder.get(&house.path).is_ok_with(&house.layer.bytes);
}

#[test]
fn the_last_known_tag_is_served_in_all_kinds_of_trouble() {
    let faults = [
        None,
        Some(Fault::Status(500)),
        Some(Fault::Status(503)),
        Some(Fault::Status(429)),
        Some(Fault::Close),
    ];
    for fault in faults {
        let house = impatient();
        house.larder.get(TAG).is_ok_with(&house.image.manifest.bytes);
        match fault {
            Some(fault) => house.registry.script(When::any(), fault),
            None => house.registry.down(),
        }
        for method in ["GET", "HEAD"] {
            let answer = house.larder.api().send(method, TAG, &[]);
            assert_eq!(answer.status(), 200);
            answer.is_outcome("larder; hit; detail=stale");
            let warning = answer.header("warning").unwrap();
            assert!(warning.starts_with("299 - \"") && warning.ends_with('"'), "{warning}");
            assert!(answer.header("age").is_some_and(|age| age.parse::<u64>().is_ok()));
            assert_eq!(answer.header("docker-content-digest"), Some(house.image.manifest.digest.as_str()));
        }
        house.registry.behave();
        house.registry.up();
        eventually("the upstream is asked again", || {
            house.larder.get(TAG).head.outcome() == "larder; hit; detail=revalidated"
        });
    }
}

#[test]
fn a_hanging_upstream_holds_nobody_up_who_can_be_served() {
    let house = impatient();
    house.larder.get(TAG).is_ok_with(&house.image.manifest.bytes);
    house.registry.script(When::any(), Fault::HoldHead(Gate::new()));
    let began = Instant::now();
    house.larder.get(TAG).is_outcome("larder; hit; detail=stale");
    assert!(began.elapsed() < Duration::from_millis(3500), "{:?}", began.elapsed());
}

#[test]
fn an_upstream_that_failed_often_is_left_alone_for_a_while() {
    let house = house_with(|s| s.set("cache.tag_ttl", "0s").set("cache.revalidate_timeout", "100ms"));
    house.larder.get(TAG).is_ok_with(&house.image.manifest.bytes);
    house.registry.forget_requests();
    house.registry.script(When::any(), Fault::Status(500));
    for _ in 0..40 {
        house.larder.get(TAG).is_outcome("larder; hit; detail=stale");
    }
    let asked = house.registry.requests().len();
    assert!((1..40).contains(&asked), "{asked} questions for 40 answers");
}

#[test]
fn stale_has_a_limit_if_one_is_set() {
    let house = house_with(|setup| setup.set("cache.tag_ttl", "0s").set("cache.stale_if_error", "0s"));
    house.larder.get(TAG).is_ok_with(&house.image.manifest.bytes);
    house.registry.down();
    let answer = house.larder.get(TAG);
    assert!(down(answer.status()), "{answer:?}");
    // By digest nothing ever grows old.
    let path = format!("/v2/library/app/manifests/{}", house.image.manifest.digest);
    house.larder.get(&path).is_outcome("larder; hit");
}

#[test]
fn nothing_cached_and_nobody_there_is_not_a_404() {
    let house = house();
    house.registry.down();
    let manifest = format!("/v2/library/app/manifests/{}", house.image.manifest.digest);
    for path in [TAG, &manifest, &house.path] {
        for method in ["GET", "HEAD"] {
            let began = Instant::now();
            let answer = house.larder.api().send(method, path, &[]);
            assert!(down(answer.status()), "{method} {path}: {answer:?}");
            assert!(began.elapsed() < Duration::from_secs(10));
            if method == "GET" {
                assert!(answer.json()["errors"][0]["message"].is_string());
            }
        }
    }
}

#[test]
fn nothing_cached_and_an_upstream_that_hangs_ends_in_time() {
    let house = house();
    house.registry.script(When::any(), Fault::HoldHead(Gate::new()));
    let client = house.larder.api();
    std::thread::scope(|scope| {
        for path in [TAG, &house.path] {
            scope.spawn(move || {
                let began = Instant::now();
                let answer = client.get(path);
                assert!([502, 504].contains(&answer.status()), "{answer:?}");
                assert!(began.elapsed() < Duration::from_secs(11), "{:?}", began.elapsed());
            });
        }
    });
}

#[test]
fn an_upstreams_error_is_a_bad_gateway() {
    for status in [500, 502, 503] {
        let house = house();
        house.registry.script(When::any(), Fault::Status(status));
        for path in [TAG, &house.path] {
            let answer = house.larder.get(path);
            assert!(down(answer.status()), "{status}: {answer:?}");
        }
        house.registry.behave();
        eventually("it is not remembered", || house.larder.get(TAG).status() == 200);
    }
}

#[test]
fn too_many_requests_are_passed_on_as_the_mode_wants() {
    for (mode, status) in [("mirror", 503), ("gateway", 429)] {
        let house = house_with(|setup| setup.set("server.mode", mode));
        let headers = vec![("Retry-After".to_owned(), "17".to_owned())];
        // Docker Hub says some of its refusals in plain text.
        let body = b"Too Many Requests (HAP429)".to_vec();
        house.registry.script(When::any(), Fault::Answer(429, headers, body));
        for path in [TAG, &house.path] {
            let answer = house.larder.get(path);
            assert_eq!(answer.status(), status, "{answer:?}");
            let wait = answer.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok());
            assert!(wait.is_some_and(|seconds| (1..=17).contains(&seconds)), "{answer:?}");
            assert!(answer.json()["errors"][0]["code"].is_string());
        }
    }
}

#[test]
fn a_refusal_makes_no_challenge() {
    for (mode, wanted) in [("mirror", 404), ("gateway", 403)] {
        for status in [401, 403] {
            let house = house_with(|setup| setup.set("server.mode", mode));
            let challenge = ("WWW-Authenticate".to_owned(), "Basic realm=\"upstream\"".to_owned());
            house.registry.script(When::any(), Fault::Answer(status, vec![challenge], Vec::new()));
            for path in [TAG, &house.path] {
                for method in ["GET", "HEAD"] {
                    let answer = house.larder.api().send(method, path, &[]);
                    assert_eq!(answer.status(), wanted, "{method} {path} after {status}: {answer:?}");
                    assert_eq!(answer.header("www-authenticate"), None);
                }
            }
            // Credentials may be mended any moment: no memory of it.
            house.registry.behave();
            house.larder.get(TAG).is_ok_with(&house.image.manifest.bytes);
        }
    }
}

#[test]
fn broken_credentials_do_not_take_away_what_is_there() {
    let house = impatient();
    house.larder.get(TAG).is_ok_with(&house.image.manifest.bytes);
    house.larder.get(&house.path).is_ok_with(&house.layer.bytes);
    house.larder.settle();
    house.registry.demand(Auth::Basic("someone".into(), "else".into()));
    let by_digest = format!("/v2/library/app/manifests/{}", house.image.manifest.digest);
    house.larder.get(&by_digest).is_outcome("larder; hit");
    house.larder.get(&house.path).is_outcome("larder; hit");
    let answer = house.larder.get(TAG);
    assert!([200, 404].contains(&answer.status()), "{answer:?}");
    assert_eq!(answer.header("www-authenticate"), None);
}

#[test]
fn anonymous_tokens_are_fetched_once() {
    let house = house();
    house.registry.demand(Auth::Bearer(None));
    house.larder.get(TAG).is_ok_with(&house.image.manifest.bytes);
    house.larder.get(&house.path).is_ok_with(&house.layer.bytes);
    assert_eq!(house.registry.count("GET", "/token"), 1);
    // A token that is no longer good is replaced without a word to the client.
    house.registry.revoke_tokens();
    let config = &house.image.config;
    house.larder.get(&format!("/v2/library/app/blobs/{}", config.digest)).is_ok_with(&config.bytes);
    assert_eq!(house.registry.count("GET", "/token"), 2);
}

#[test]
fn redirects_are_followed_without_the_credentials() {
    let (registry, cdn) = (Registry::start(), Registry::start());
    let image = image();
    registry.add_image("library/app", "v1", &image);
    cdn.add_image("library/app", "v1", &image);
    registry.demand(Auth::Bearer(None));
    registry.script(When::blobs(), Fault::Redirect(307, cdn.url()));
    registry.script(When::manifests(), Fault::Redirect(302, cdn.url()));
    let larder = Setup::with(&registry).upstream_set("docker.io", "allow_private", true).start();
    larder.get(TAG).is_ok_with(&image.manifest.bytes);
    let layer = &image.layers[0];
    larder.get(&format!("/v2/library/app/blobs/{}", layer.digest)).is_ok_with(&layer.bytes);
    assert!(cdn.requests().len() >= 2);
    for seen in cdn.requests() {
        assert_eq!(seen.header("authorization"), None, "{seen:?}");
    }
}

#[test]
fn a_cut_behind_a_redirect_goes_back_to_the_registry() {
    let (registry, cdn) = (Registry::start(), Registry::start());
    let image = image();
    let layer = &image.layers[0];
    registry.add_image("library/app", "v1", &image);
    cdn.add_image("library/app", "v1", &image);
    registry.script(When::blobs(), Fault::Redirect(307, cdn.url()));
    // The signed address is good for one use.
    cdn.script(When::blobs().times(1), Fault::Cut(MIB));
    cdn.script(When::blobs().after(1).times(1), Fault::Status(403));
    let larder = Setup::with(&registry).upstream_set("docker.io", "allow_private", true).start();
    larder.get(&format!("/v2/library/app/blobs/{}", layer.digest)).is_ok_with(&layer.bytes);
    let starts: Vec<_> = registry.seen("GET", "/blobs/").iter().map(support::Seen::range_start).collect();
    assert_eq!(starts[0].unwrap_or(0), 0);
    assert!(starts.len() >= 3 && starts[1..].iter().all(|start| *start == Some(MIB as u64)), "{starts:?}");
}

#[test]
fn a_redirect_that_leads_nowhere_ends() {
    let house = house_with(|setup| setup.upstream_set("docker.io", "allow_private", true));
    let round = house.registry.url();
    house.registry.script(When::any(), Fault::Redirect(307, round));
    for path in [TAG, &house.path] {
        let answer = house.larder.get(path);
        assert!(down(answer.status()), "{answer:?}");
    }
    assert!(house.registry.requests().len() < 200);
}

#[test]
fn a_proxys_login_page_is_no_registry() {
    let house = house();
    let html = vec![("Content-Type".to_owned(), "text/html".to_owned())];
    house.registry.script(When::any(), Fault::Answer(200, html, b"<html>Please log in</html>".to_vec()));
    let answer = house.larder.get(TAG);
    assert!(down(answer.status()), "{answer:?}");
    if let Ok(answer) = house.larder.api().try_send("GET", &house.path, &[]) {
        assert!(down(answer.status()), "{answer:?}");
    }
}
