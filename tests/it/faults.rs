//! Upstreams that lie, break off or send others elsewhere: no client ever completes wrong content.

use crate::support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use support::content::sha256;
use support::house::{House, MIB, TAG, image, is_trouble};
use support::{Auth, Blob, Document, Fault, Image, Larder, Random, Registry, Setup, When, eventually};

const FAILURES: &str = "larder_verify_failures_total";

#[test]
fn wrong_body_is_never_completed() {
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
            let house = House::new();
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
                            assert!(is_trouble(answer.status()), "fault {n}: {:?} completed", answer.head);
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
fn retry_after_a_failure_starts_a_new_fill() {
    let registry = Registry::start();
    let larder = Larder::before(&registry);
    let client = larder.api();
    for n in 0..150 {
        let blob = Blob::random(n, 100_000);
        registry.add_blob("library/app", &blob);
        registry.script(When::blobs().method("GET").times(1), Fault::Flip(50_000));
        let path = format!("/v2/library/app/blobs/{}", blob.digest);
        if let Ok(answer) = client.try_send("GET", &path, &[]) {
            assert!(is_trouble(answer.status()), "{:?} completed", answer.head);
        }
        // Clients retry at once: they must not be put into the flight that has just failed.
        match client.try_send("GET", &path, &[]) {
            Ok(answer) => answer.is_ok_with(&blob.bytes),
            Err(error) => panic!("round {n}: the retry shared the failure: {error:?}"),
        }
    }
}

#[test]
fn wrong_size_in_head_is_harmless() {
    let house = House::new();
    house.registry.script(When::blobs().method("HEAD"), Fault::OneLess);
    assert_eq!(house.larder.head(&house.path).status(), 200);
    house.registry.behave();
    // What a HEAD said is a hint; only a descriptor under a digest is a promise.
    house.larder.get(&house.path).is_ok_with(&house.layer.bytes);
}

#[test]
fn descriptor_size_mismatch_fails_the_blob() {
    let house = House::new();
    let text = String::from_utf8(house.image.manifest.bytes.to_vec()).unwrap();
    let (length, wrong) = (house.layer.len().to_string(), (house.layer.len() - 1).to_string());
    let manifest = Document::new(&house.image.manifest.media_type, text.replace(&length, &wrong));
    house.registry.add_manifest("library/app", &manifest);
    house.larder.get(&format!("/v2/library/app/manifests/{}", manifest.digest)).is_ok_with(&manifest.bytes);
    if let Ok(answer) = house.larder.api().try_send("GET", &house.path, &[]) {
        assert!(is_trouble(answer.status()), "{:?}", answer.head);
    }
}

#[test]
fn wrong_manifest_is_never_served() {
    let other = Image::small(9).manifest;
    for fault in [Fault::Flip(3), Fault::OneLess, Fault::OneMore, Fault::Other(other.bytes)] {
        let house = House::new();
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
fn empty_body_is_not_a_blob() {
    // There is no last byte to withhold: who gets an empty body to its end has taken it for the blob.
    for fault in [Fault::Other(Arc::default()), Fault::Answer(200, Vec::new(), Vec::new())] {
        let house = House::new();
        house.registry.script(When::blobs().method("GET"), fault);
        for range in [&[][..], &[("Range", "bytes=0-")]] {
            let answer = house.larder.api().send("GET", &house.path, range);
            assert_eq!(answer.status(), 502, "{answer:?}");
        }
        house.registry.behave();
        house.larder.get(&house.path).is_ok_with(&house.layer.bytes);
    }
    let house = House::new();
    let nothing = Blob::new("");
    house.registry.add_blob("library/app", &nothing);
    let path = format!("/v2/library/app/blobs/{}", nothing.digest);
    for _ in 0..2 {
        let answer = house.larder.get(&path);
        answer.is_ok_with(b"");
        assert_eq!(answer.head.content_length(), Some(0));
    }
}

#[test]
fn cut_manifest_is_fetched_again() {
    let by_digest = |house: &House| format!("/v2/library/app/manifests/{}", house.image.manifest.digest);
    for tag in [true, false] {
        let house = House::new();
        house.registry.script(When::manifests().times(1), Fault::Cut(100));
        let path = if tag { TAG.to_owned() } else { by_digest(&house) };
        house.larder.get(&path).is_ok_with(&house.image.manifest.bytes);
        assert_eq!(house.registry.count("GET", "/manifests/"), 2);
    }
    let house = House::new();
    house.registry.script(When::manifests(), Fault::Cut(100));
    assert_eq!(house.larder.get(TAG).status(), 502);
    assert_eq!(house.registry.count("GET", "/manifests/"), 2, "but no more than that");
}

#[test]
fn wrong_digest_header_is_not_forwarded() {
    let house = House::new();
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
fn three_cuts_are_resumed_transparently() {
    let house = House::new();
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
fn stalled_last_byte_is_fetched_again() {
    let house = House::new();
    house.registry.script(When::blobs().times(1), Fault::OneLessThanPromised);
    house.larder.get(&house.path).is_ok_with(&house.layer.bytes);
    let gets = house.registry.seen("GET", "/blobs/");
    assert_eq!(gets.last().unwrap().range_start(), Some(house.layer.len() as u64 - 1));
}

#[test]
fn repeated_cuts_end() {
    let house = House::new();
    house.registry.script(When::blobs().method("GET"), Fault::Cut(0));
    let began = Instant::now();
    if let Ok(answer) = house.larder.api().try_send("GET", &house.path, &[]) {
        assert!(is_trouble(answer.status()), "{answer:?}");
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
    let house = House::new();
    house.registry.script(When::blobs().times(1), Fault::Cut(MIB + 1));
    house.registry.script(When::blobs().after(1).times(1), fault);
    house.larder.get(&house.path).is_ok_with(&house.layer.bytes);
    assert!(house.registry.count("GET", "/blobs/") <= 4);
}

#[test]
fn resume_answered_from_zero_is_used() {
    resumes_over(Fault::IgnoreRange);
}

#[test]
fn resume_with_another_content_range_starts_over() {
    resumes_over(Fault::WrongContentRange);
}

#[test]
fn resume_answered_with_416_starts_over() {
    resumes_over(Fault::Status(416));
}

#[test]
fn resume_answered_with_an_error_is_retried() {
    resumes_over(Fault::Status(503));
    resumes_over(Fault::Status(429));
    resumes_over(Fault::Close);
}

#[test]
fn blob_answered_with_416_fails() {
    let house = House::new();
    house.registry.script(When::blobs().method("GET"), Fault::Status(416));
    let began = Instant::now();
    let client = house.larder.api().patient_for(Duration::from_secs(12));
    let answer = client.get(&house.path);
    assert_eq!(answer.status(), 502, "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    house.larder.settle();
    let asked = house.registry.count("GET", "/blobs/");
    assert!(asked <= 6, "{asked} requests");
    house.registry.behave();
    house.larder.get(&house.path).is_ok_with(&house.layer.bytes);
}

#[test]
fn content_that_changes_during_a_fill_is_never_mixed() {
    let house = House::new();
    // The first half of one body and the whole of another, and the Range is not understood.
    house.registry.script(When::blobs().times(1), Fault::Flip(100));
    house.registry.script(When::blobs().times(1), Fault::Cut(MIB));
    house.registry.script(When::blobs(), Fault::IgnoreRange);
    if let Ok(answer) = house.larder.api().try_send("GET", &house.path, &[]) {
        assert!(is_trouble(answer.status()), "{:?} completed", answer.head);
    }
    house.larder.settle();
    house.larder.get(&house.path).is_ok_with(&house.layer.bytes);
}

#[test]
fn anonymous_tokens_are_fetched_once() {
    let house = House::new();
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
fn redirects_are_followed_without_credentials() {
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
fn cut_after_a_redirect_restarts_at_the_registry() {
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
fn dead_redirect_fails() {
    let house = House::with(|setup| setup.upstream_set("docker.io", "allow_private", true));
    let round = house.registry.url();
    house.registry.script(When::any(), Fault::Redirect(307, round));
    for path in [TAG, &house.path] {
        let answer = house.larder.get(path);
        assert!(is_trouble(answer.status()), "{answer:?}");
    }
    assert!(house.registry.requests().len() < 200);
}

#[test]
fn random_faults_never_reach_a_client() {
    let seed = u64::from(std::process::id());
    let mut random = Random::new(seed);
    let registry = Registry::start();
    let blobs: Vec<_> = (0..24).map(|n| Blob::random(n, 1 + random.below(900_000) as usize)).collect();
    for blob in &blobs {
        registry.add_blob("library/app", blob);
    }
    let larder = Larder::before(&registry);
    let path = |blob: &Blob| format!("/v2/library/app/blobs/{}", blob.digest);
    // Every blob meets some of these before its registry behaves.
    for blob in &blobs {
        for _ in 0..random.below(5) {
            let at = random.below(blob.len() as u64) as usize;
            let fault = match random.below(10) {
                0 => Fault::Flip(at),
                1 => Fault::OneLess,
                2 => Fault::OneMoreUntold,
                3 => Fault::Close,
                4 => Fault::Status(503),
                5 => Fault::IgnoreRange,
                6 => Fault::WrongContentRange,
                7 => Fault::Chunked,
                _ => Fault::Cut(at),
            };
            let (skip, times) = (random.below(3) as usize, 1 + random.below(2) as usize);
            registry.script(When::blobs().method("GET").path(&blob.digest).after(skip).times(times), fault);
        }
    }
    std::thread::scope(|scope| {
        for worker in 0..6 {
            let (blobs, client, path) = (&blobs, larder.api(), &path);
            scope.spawn(move || {
                let mut random = Random::new(seed + worker);
                for _ in 0..60 {
                    let blob = &blobs[random.below(blobs.len() as u64) as usize];
                    let from = random.below(blob.len() as u64) as usize;
                    let range = format!("bytes={from}-");
                    let headers = [("Range", range.as_str())];
                    let ranged = random.below(3) == 0;
                    let asked = if ranged { &headers[..] } else { &[] };
                    match client.try_send("GET", &path(blob), asked) {
                        Ok(answer) if answer.status() == 206 => {
                            assert!(ranged && answer.body == blob.bytes[from..], "seed {seed}");
                        }
                        Ok(answer) if answer.status() == 200 => {
                            assert!(answer.body == *blob.bytes, "seed {seed}");
                        }
                        Ok(answer) => assert!(is_trouble(answer.status()), "seed {seed}: {answer:?}"),
                        Err(_) => {}
                    }
                }
            });
        }
    });
    larder.settle();
    registry.behave();
    for blob in &blobs {
        larder.get(&path(blob)).is_ok_with(&blob.bytes);
    }
}
