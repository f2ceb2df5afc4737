//! Upstreams that send wrong content, interrupt bodies or redirect: no client completes wrong content.

use crate::support;

use std::sync::Arc;

use support::content::sha256;
use support::fixture::{Fixture, MIB, TAG, image, is_gateway_error};
use support::{Auth, Blob, Fault, Gate, Image, Larder, Random, Registry, Setup, When, eventually};

const FAILURES: &str = "larder_verify_failures_total";

#[test]
fn wrong_body_is_never_completed() {
    let other = Arc::new(Random::new(77).bytes(3 * MIB + 1000));
    let last = 3 * MIB + 999;
    let faults = [
        Fault::FlipBit(0),
        Fault::FlipBit(MIB),
        Fault::FlipBit(last),
        Fault::RemoveLastByte,
        Fault::AppendByte,
        Fault::AppendByteChunked,
        Fault::ReplaceBody(other),
        Fault::ReplaceBody(Arc::new(b"an error page of some proxy".to_vec())),
    ];
    for (n, fault) in faults.into_iter().enumerate() {
        // With the size known from the manifest, and without.
        for known in [false, true] {
            let fixture = Fixture::new();
            if known {
                fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
                fixture.larder.wait_idle();
            }
            fixture.registry.script(When::blobs().method("GET"), fault.clone());
            let client = fixture.larder.api();
            std::thread::scope(|scope| {
                // A range up to the end is also a complete body.
                for range in [&[][..], &[], &[("Range", "bytes=0-")], &[("Range", "bytes=5-")]] {
                    let path = &fixture.path;
                    scope.spawn(move || {
                        if let Ok(answer) = client.try_send("GET", path, range) {
                            assert!(
                                is_gateway_error(answer.status()),
                                "fault {n}: {:?} completed",
                                answer.head
                            );
                        }
                    });
                }
            });
            fixture.larder.wait_counter(FAILURES, &[("kind", "blob"), ("upstream", "docker.io")], 1);
            fixture.larder.wait_idle();
            fixture.registry.clear_faults();
            fixture.registry.forget_requests();
            let answer = fixture.larder.get(&fixture.path);
            answer.assert_body(&fixture.layer.bytes);
            assert_eq!(fixture.registry.count("GET", "/blobs/"), 1, "fault {n}: something was kept");
            assert_eq!(fixture.registry.seen("GET", "/blobs/")[0].range_start().unwrap_or(0), 0);
        }
    }
}

#[test]
fn retry_after_a_failure_starts_a_new_fill() {
    let registry = Registry::start();
    let larder = Larder::in_front_of(&registry);
    let client = larder.api();
    for n in 0..150 {
        let blob = Blob::random(n, 100_000);
        registry.add_blob("library/app", &blob);
        registry.script(When::blobs().method("GET").times(1), Fault::FlipBit(50_000));
        let path = format!("/v2/library/app/blobs/{}", blob.digest);
        if let Ok(answer) = client.try_send("GET", &path, &[]) {
            assert!(is_gateway_error(answer.status()), "{:?} completed", answer.head);
        }
        // Clients retry at once. They must not join the flight that has just failed.
        match client.try_send("GET", &path, &[]) {
            Ok(answer) => answer.assert_body(&blob.bytes),
            Err(error) => panic!("round {n}: the retry shared the failure: {error:?}"),
        }
    }
}

#[test]
fn head_of_a_cold_blob_is_answered_like_its_get() {
    let html = vec![("Content-Type".to_owned(), "text/html".to_owned())];
    let faults = [
        Fault::Status(404),
        Fault::Status(403),
        Fault::Status(405),
        Fault::Answer(200, html, b"<html>log in</html>".to_vec()),
        Fault::ReplaceBody(Arc::default()),
        Fault::NoLength,
    ];
    for has_manifest in [true, false] {
        for fault in &faults {
            let fixture = Fixture::with(|setup| setup.set("cache.negative_ttl", "1h"));
            fixture.registry.script(When::blobs().method("HEAD"), fault.clone());
            if has_manifest {
                fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
            }
            let answer = fixture.larder.head(&fixture.path);
            assert_eq!(answer.status(), 200, "{answer:?}");
            assert_eq!(answer.header("content-length"), Some(fixture.layer.len().to_string().as_str()));
            fixture.larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
        }
    }
}

#[test]
fn absence_of_a_blob_in_a_head_does_not_answer_a_get() {
    let fixture = Fixture::with(|setup| setup.set("cache.negative_ttl", "1h"));
    // Like a registry that fetches the blob meanwhile.
    fixture.registry.script(When::blobs().times(1), Fault::Status(404));
    for _ in 0..2 {
        assert_eq!(fixture.larder.head(&fixture.path).status(), 404);
        fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
    }
    fixture.larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
    fixture.larder.wait_idle();
    assert_eq!(fixture.larder.head(&fixture.path).status(), 200);
}

#[test]
fn wrong_size_in_head_is_harmless() {
    let fixture = Fixture::new();
    fixture.registry.script(When::blobs().method("HEAD"), Fault::RemoveLastByte);
    assert_eq!(fixture.larder.head(&fixture.path).status(), 200);
    fixture.registry.clear_faults();
    // The size in the answer to a HEAD request is a hint.
    fixture.larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
}

#[test]
fn wrong_manifest_is_never_served() {
    let other = Image::small(9).manifest;
    for fault in
        [Fault::FlipBit(3), Fault::RemoveLastByte, Fault::AppendByte, Fault::ReplaceBody(other.bytes)]
    {
        let fixture = Fixture::new();
        fixture.registry.script(When::manifests().method("GET"), fault);
        let path = format!("/v2/library/app/manifests/{}", fixture.image.manifest.digest);
        let answer = fixture.larder.get(&path);
        assert_eq!(answer.status(), 502, "{answer:?}");
        fixture.larder.wait_counter(FAILURES, &[("kind", "manifest")], 1);
        fixture.registry.clear_faults();
        fixture.larder.get(&path).assert_body(&fixture.image.manifest.bytes);
    }
}

#[test]
fn empty_body_is_not_a_blob() {
    // An empty body has no last byte to withhold, so a client with an empty body would take it for the blob.
    for fault in [Fault::ReplaceBody(Arc::default()), Fault::Answer(200, Vec::new(), Vec::new())] {
        let fixture = Fixture::new();
        fixture.registry.script(When::blobs().method("GET"), fault);
        for range in [&[][..], &[("Range", "bytes=0-")]] {
            let answer = fixture.larder.api().send("GET", &fixture.path, range);
            assert_eq!(answer.status(), 502, "{answer:?}");
        }
        fixture.registry.clear_faults();
        fixture.larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
    }
    let fixture = Fixture::new();
    let nothing = Blob::new("");
    fixture.registry.add_blob("library/app", &nothing);
    let path = format!("/v2/library/app/blobs/{}", nothing.digest);
    for _ in 0..2 {
        let answer = fixture.larder.get(&path);
        answer.assert_body(b"");
        assert_eq!(answer.head.content_length(), Some(0));
    }
}

#[test]
fn cut_manifest_is_fetched_again() {
    let by_digest =
        |fixture: &Fixture| format!("/v2/library/app/manifests/{}", fixture.image.manifest.digest);
    for tag in [true, false] {
        let fixture = Fixture::new();
        fixture.registry.script(When::manifests().times(1), Fault::Cut(100));
        let path = if tag { TAG.to_owned() } else { by_digest(&fixture) };
        fixture.larder.get(&path).assert_body(&fixture.image.manifest.bytes);
        assert_eq!(fixture.registry.count("GET", "/manifests/"), 2);
    }
    let fixture = Fixture::new();
    fixture.registry.script(When::manifests(), Fault::Cut(100));
    assert_eq!(fixture.larder.get(TAG).status(), 502);
    assert_eq!(fixture.registry.count("GET", "/manifests/"), 2, "but no more than that");
}

#[test]
fn wrong_digest_header_is_not_forwarded() {
    let fixture = Fixture::new();
    let lie = sha256(b"something else");
    fixture.registry.script(When::manifests(), Fault::SetHeader("Docker-Content-Digest", lie.clone()));
    let answer = fixture.larder.get(TAG);
    match answer.status() {
        200 => assert_eq!(answer.header("docker-content-digest"), Some(sha256(&answer.body).as_str())),
        status => assert_eq!(status, 502),
    }
    let answer = fixture.larder.get(&format!("/v2/library/app/manifests/{lie}"));
    assert!([404, 502].contains(&answer.status()), "{answer:?}");
    let path = format!("/v2/library/app/manifests/{}", fixture.image.manifest.digest);
    fixture.larder.get(&path).assert_body(&fixture.image.manifest.bytes);
}

#[test]
fn three_cuts_are_resumed_transparently() {
    let fixture = Fixture::new();
    fixture.registry.script(When::blobs().method("GET").times(3), Fault::Cut(700_001));
    let answer = fixture.larder.get(&fixture.path);
    answer.assert_body(&fixture.layer.bytes);
    let gets = fixture.registry.seen("GET", "/blobs/");
    assert_eq!(gets.len(), 4);
    let mut end = 0;
    for get in &gets {
        assert_eq!(get.range_start().unwrap_or(0), end);
        end += get.sent();
    }
    assert_eq!(end, fixture.layer.len() as u64);
    fixture.larder.wait_idle();
    fixture.registry.down();
    fixture.larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
}

#[test]
fn stalled_last_byte_is_fetched_again() {
    let fixture = Fixture::new();
    fixture.registry.script(When::blobs().times(1), Fault::EndOneByteEarly);
    fixture.larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
    let gets = fixture.registry.seen("GET", "/blobs/");
    assert_eq!(gets.last().unwrap().range_start(), Some(fixture.layer.len() as u64 - 1));
}

#[test]
fn repeated_cuts_end() {
    let fixture = Fixture::new();
    fixture.registry.script(When::blobs().method("GET"), Fault::Cut(0));
    if let Ok(answer) = fixture.larder.api().try_send("GET", &fixture.path, &[]) {
        assert!(is_gateway_error(answer.status()), "{answer:?}");
    }
    fixture.larder.wait_idle();
    let gets = fixture.registry.count("GET", "/blobs/");
    assert!((2..=20).contains(&gets), "{gets} attempts");
    fixture.registry.clear_faults();
    eventually("the blob is served", || {
        fixture.larder.api().try_send("GET", &fixture.path, &[]).is_ok_and(|a| a.status() == 200)
    });
}

/// The first answer is interrupted, the second has the fault, and all later answers are correct.
#[track_caller]
fn resumes_over(fault: Fault) {
    let fixture = Fixture::new();
    fixture.registry.script(When::blobs().times(1), Fault::Cut(MIB + 1));
    fixture.registry.script(When::blobs().after(1).times(1), fault);
    fixture.larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
    assert!(fixture.registry.count("GET", "/blobs/") <= 4);
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
    resumes_over(Fault::CloseConnection);
}

#[test]
fn refused_range_is_followed_by_a_request_for_the_whole_blob() {
    for status in [400, 403, 405, 500, 501] {
        let fixture = Fixture::new();
        // The first answer breaks off; later requests have a range until one has not.
        fixture.registry.script(When::blobs().method("GET").times(1), Fault::Cut(MIB));
        fixture.registry.script(When::blobs().method("GET").with_range(), Fault::Status(status));
        fixture.larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
        fixture.larder.wait_idle();
        let requests = fixture.registry.count("GET", "/blobs/");
        assert!(requests <= 8, "{status}: {requests} requests");
    }
}

#[test]
fn draft_is_replaced_if_the_upstream_refuses_ranges() {
    for status in [400, 403, 405, 500, 501] {
        let mut fixture = Fixture::new();
        let gate = Gate::new();
        fixture.registry.script(When::blobs().method("GET").times(1), Fault::HoldBody(MIB, gate.clone()));
        let mut transfer = fixture.larder.api().open("GET", &fixture.path, &[]).unwrap();
        transfer.read_exactly(MIB / 2).unwrap();
        transfer.hang_up();
        gate.wait_reached(1);
        fixture.larder.terminate();
        assert!(fixture.larder.wait_exit().success());
        fixture.registry.script(When::blobs().method("GET").with_range(), Fault::Status(status));
        fixture.larder.restart();
        fixture.larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
    }
}

#[test]
fn blob_answered_with_416_fails() {
    let fixture = Fixture::new();
    fixture.registry.script(When::blobs().method("GET"), Fault::Status(416));
    let answer = fixture.larder.get(&fixture.path);
    assert_eq!(answer.status(), 502, "{answer:?}");
    fixture.larder.wait_idle();
    let requests = fixture.registry.count("GET", "/blobs/");
    assert!(requests <= 6, "{requests} requests");
    fixture.registry.clear_faults();
    fixture.larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
}

#[test]
fn content_that_changes_during_a_fill_is_never_mixed() {
    let fixture = Fixture::new();
    // The first half of one body and all of another one, and the Range is ignored.
    fixture.registry.script(When::blobs().times(1), Fault::FlipBit(100));
    fixture.registry.script(When::blobs().times(1), Fault::Cut(MIB));
    fixture.registry.script(When::blobs(), Fault::IgnoreRange);
    if let Ok(answer) = fixture.larder.api().try_send("GET", &fixture.path, &[]) {
        assert!(is_gateway_error(answer.status()), "{:?} completed", answer.head);
    }
    fixture.larder.wait_idle();
    fixture.larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
}

#[test]
fn anonymous_tokens_are_fetched_once() {
    let fixture = Fixture::new();
    fixture.registry.require_auth(Auth::Bearer(None));
    fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
    fixture.larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
    assert_eq!(fixture.registry.count("GET", "/token"), 1);
    // An invalid token is replaced without an error for the client.
    fixture.registry.revoke_tokens();
    let config = &fixture.image.config;
    fixture.larder.get(&format!("/v2/library/app/blobs/{}", config.digest)).assert_body(&config.bytes);
    assert_eq!(fixture.registry.count("GET", "/token"), 2);
}

#[test]
fn redirects_are_followed_without_credentials() {
    let (registry, cdn) = (Registry::start(), Registry::start());
    let image = image();
    registry.add_image("library/app", "v1", &image);
    cdn.add_image("library/app", "v1", &image);
    registry.require_auth(Auth::Bearer(None));
    registry.script(When::blobs(), Fault::Redirect(307, cdn.url()));
    registry.script(When::manifests(), Fault::Redirect(302, cdn.url()));
    let larder = Setup::with(&registry).upstream_set("docker.io", "allow_private", true).start();
    larder.get(TAG).assert_body(&image.manifest.bytes);
    let layer = &image.layers[0];
    larder.get(&format!("/v2/library/app/blobs/{}", layer.digest)).assert_body(&layer.bytes);
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
    // The signed URL is valid for one use.
    cdn.script(When::blobs().times(1), Fault::Cut(MIB));
    cdn.script(When::blobs().after(1).times(1), Fault::Status(403));
    let larder = Setup::with(&registry).upstream_set("docker.io", "allow_private", true).start();
    larder.get(&format!("/v2/library/app/blobs/{}", layer.digest)).assert_body(&layer.bytes);
    let starts: Vec<_> = registry.seen("GET", "/blobs/").iter().map(support::Seen::range_start).collect();
    assert_eq!(starts[0].unwrap_or(0), 0);
    assert!(starts.len() >= 3 && starts[1..].iter().all(|start| *start == Some(MIB as u64)), "{starts:?}");
}

#[test]
fn dead_redirect_fails() {
    let fixture = Fixture::with(|setup| setup.upstream_set("docker.io", "allow_private", true));
    let round = fixture.registry.url();
    fixture.registry.script(When::any(), Fault::Redirect(307, round));
    for path in [TAG, &fixture.path] {
        let answer = fixture.larder.get(path);
        assert!(is_gateway_error(answer.status()), "{answer:?}");
    }
    assert!(fixture.registry.requests().len() < 200);
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
    let larder = Larder::in_front_of(&registry);
    let path = |blob: &Blob| format!("/v2/library/app/blobs/{}", blob.digest);
    // Every blob meets some of these faults before its registry works.
    for blob in &blobs {
        for _ in 0..random.below(5) {
            let at = random.below(blob.len() as u64) as usize;
            let fault = match random.below(10) {
                0 => Fault::FlipBit(at),
                1 => Fault::RemoveLastByte,
                2 => Fault::AppendByteChunked,
                3 => Fault::CloseConnection,
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
                        Ok(answer) => assert!(is_gateway_error(answer.status()), "seed {seed}: {answer:?}"),
                        Err(_) => {}
                    }
                }
            });
        }
    });
    larder.wait_idle();
    registry.clear_faults();
    for blob in &blobs {
        larder.get(&path(blob)).assert_body(&blob.bytes);
    }
}
