//! Fuzz target from end to end: one byte string is the behaviour of a hostile registry and of a hostile client.
//!
//! Whatever both do, no client completes a wrong body, cached content and other upstreams are not affected, and the server
//! answers. Each input uses its own repository, so that the inputs are independent of each other.

#[allow(dead_code)]
#[path = "../../src/fuzz.rs"]
mod input;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bolero::check;

use crate::{multipart, support};

use input::{Input, inputs};
use support::content::sha256;
use support::{Answer, Blob, Fault, Image, Larder, Registry, Setup, When};

/// Time in `cargo test`, without the start of the server.
const TEST_TIME: Duration = Duration::from_millis(400);
/// Statuses of failed requests.
const FAILURES: [u16; 6] = [404, 416, 502, 503, 504, 508];
/// Bound of the memory of a debug build, whatever is sent.
const MEMORY_MAX: u64 = 512 << 20;
/// Statuses of the registry. A server of HTTP/1.1 may not send 1xx as its last answer.
const STATUSES: [u16; 22] = [
    200, 201, 202, 204, 206, 301, 302, 307, 400, 401, 403, 404, 405, 408, 410, 416, 418, 451, 500, 501, 502,
    599,
];
/// Headers of the registry.
const HEADERS: [&str; 13] = [
    "Content-Type",
    "Content-Length",
    "Content-Range",
    "Content-Encoding",
    "Docker-Content-Digest",
    "ETag",
    "Link",
    "WWW-Authenticate",
    "Location",
    "Transfer-Encoding",
    "Retry-After",
    "ratelimit-remaining",
    "OCI-Subject",
];
/// Parts of their values.
const VALUES: [&str; 24] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "text/html",
    "gzip",
    "br",
    "chunked",
    "bytes ",
    "-",
    "/",
    "*",
    "0",
    "1",
    "999",
    "sha256:",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "Bearer realm=",
    "\"http://127.0.0.1:9/\"",
    "Basic realm=x",
    "http://127.0.0.1:9/",
    "/v2/",
    "</v2/?n=1>; rel=next",
    ",",
    ";",
    "\"",
];

/// A hostile and an honest registry behind one server.
struct World {
    hostile: Registry,
    honest: Registry,
    larder: Larder,
    /// Image of the honest registry that was cached at the start.
    cached: Image,
    /// Number of inputs.
    count: AtomicU64,
}

/// Content of the hostile registry for one input.
struct Target {
    repository: String,
    image: Image,
    blob: Blob,
    /// True if answers about manifests are changed.
    is_manifest_changed: bool,
}

impl Target {
    fn path(&self, resource: &str) -> String {
        format!("/v2/hostile.test/{}/{resource}", self.repository)
    }

    fn tag(&self) -> String {
        self.path("manifests/v1")
    }

    fn digest(&self) -> String {
        self.path(&format!("manifests/{}", self.image.manifest.digest))
    }

    fn blob(&self) -> String {
        self.path(&format!("blobs/{}", self.blob.digest))
    }
}

fn any_value(input: &mut Input<'_>) -> String {
    // A line break would be another header.
    input.text_of(&VALUES).replace(['\r', '\n', '\0'], "")
}

fn any_fault(input: &mut Input<'_>, length: usize) -> Fault {
    let at = input.below(length.max(1));
    match input.below(17) {
        0 => Fault::Status(input.pick(&STATUSES)),
        1 => {
            let headers = (0..input.below(4)).map(|_| (input.pick(&HEADERS).to_owned(), any_value(input)));
            let headers = headers.collect();
            Fault::Answer(input.pick(&STATUSES), headers, input.bytes(100).to_vec())
        }
        2 => Fault::Cut(at),
        3 => Fault::CloseConnection,
        4 => Fault::FlipBit(at),
        5 => Fault::AppendByte,
        6 => Fault::AppendByteChunked,
        7 => Fault::ReplaceBody(Arc::new(input.bytes(200).to_vec())),
        8 => Fault::IgnoreRange,
        9 => Fault::WrongContentRange,
        10 => Fault::RemoveHeader(input.pick(&HEADERS)),
        11 => Fault::SetHeader(input.pick(&HEADERS), any_value(input)),
        12 => Fault::Chunked,
        13 => Fault::NoLength,
        14 => Fault::Gzip,
        15 => Fault::rewrite(|_, plan| plan.content_length = Some((plan.to - plan.from).saturating_add(1))),
        _ => Fault::rewrite(|_, plan| {
            let half = plan.from.midpoint(plan.to);
            plan.content_length = Some(half - plan.from);
        }),
    }
}

/// Asserts what is true of every answer.
fn assert_status(answer: &Answer) {
    let status = answer.status();
    assert!([200, 206, 304].contains(&status) || FAILURES.contains(&status), "{:?}", answer.head);
}

impl World {
    fn start() -> Self {
        let (hostile, honest) = (Registry::start(), Registry::start());
        let cached = Image::small(1);
        honest.add_image("library/cached", "v1", &cached);
        let mut setup = Setup::empty()
            .set("server.header_timeout", "200ms")
            .set("store.max_size", "1GiB")
            .upstream("honest.test", &honest)
            .upstream_set("honest.test", "default", true)
            .upstream("hostile.test", &hostile);
        for (key, value) in [("head_timeout", "1s"), ("idle_timeout", "1s")] {
            setup = setup.upstream_set("hostile.test", key, value);
        }
        let larder = setup.start();
        let world = Self { hostile, honest, larder, cached, count: AtomicU64::new(10) };
        world.assert_cached();
        world
    }

    /// Asserts that the image that was cached at the start is served.
    fn assert_cached(&self) {
        let path =
            |resource: &str, digest: &str| format!("/v2/honest.test/library/cached/{resource}/{digest}");
        let manifest = &self.cached.manifest;
        self.larder.get(&path("manifests", &manifest.digest)).assert_body(&manifest.bytes);
        for blob in self.cached.blobs() {
            self.larder.get(&path("blobs", &blob.digest)).assert_body(&blob.bytes);
        }
    }

    /// Asserts that an image that is not cached is pulled from the honest registry.
    fn assert_honest_pull(&self, number: u64) {
        let (image, name) = (Image::small(number << 32), format!("library/n{number}"));
        self.honest.add_image(&name, "v1", &image);
        let path = |resource: &str, reference: &str| format!("/v2/honest.test/{name}/{resource}/{reference}");
        self.larder.get(&path("manifests", "v1")).assert_body(&image.manifest.bytes);
        for blob in image.blobs() {
            self.larder.get(&path("blobs", &blob.digest)).assert_body(&blob.bytes);
        }
        self.honest.remove_repository(&name);
        self.honest.forget_requests();
    }

    fn target(&self, number: u64, input: &mut Input<'_>) -> Target {
        let length = input.pick(&[1000, 0, 1, 65_536, 200_000, 700_000]);
        let blob = Blob::random(number, length);
        let image = Image::oci(number, "linux/amd64", vec![blob.clone()]);
        let repository = format!("fuzz/n{number}");
        self.hostile.add_image(&repository, "v1", &image);
        let mut is_manifest_changed = false;
        for _ in 0..input.below(4) {
            let about_manifests = input.below(3) == 0;
            is_manifest_changed |= about_manifests;
            let when = if about_manifests { When::manifests() } else { When::blobs() };
            let when = when.path(&repository).times(1 + input.below(3));
            let when = if input.below(4) == 0 { when.method(input.pick(&["GET", "HEAD"])) } else { when };
            self.hostile.script(when, any_fault(input, length));
        }
        Target { repository, image, blob, is_manifest_changed }
    }

    fn get(&self, path: &str, headers: &[(&str, &str)]) -> Option<Answer> {
        // An answer that ends early is the right reaction to wrong bytes.
        let answer = self.larder.api().try_send("GET", path, headers).ok()?;
        assert_status(&answer);
        Some(answer)
    }

    fn request(&self, target: &Target, input: &mut Input<'_>) {
        match input.below(8) {
            0 => {
                let answer = self.get(&target.tag(), &[]).filter(|answer| answer.status() == 200);
                if let Some(answer) = answer {
                    let digest = sha256(&answer.body);
                    assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
                    assert!(target.is_manifest_changed || answer.body == *target.image.manifest.bytes);
                }
            }
            1 => {
                if let Some(answer) = self.get(&target.digest(), &[]).filter(|answer| answer.status() == 200)
                {
                    answer.assert_body(&target.image.manifest.bytes);
                }
            }
            2 | 3 => {
                if let Some(answer) = self.get(&target.blob(), &[]).filter(|answer| answer.status() == 200) {
                    answer.assert_body(&target.blob.bytes);
                }
            }
            4 => self.request_range(target, input),
            5 => {
                // Without a descriptor the length is that of the registry, which may be wrong.
                assert_status(&self.larder.api().head(&target.blob()));
            }
            6 => {
                // A client that leaves.
                if let Ok(transfer) = self.larder.api().open("GET", &target.blob(), &[]) {
                    transfer.hang_up();
                }
            }
            _ => {
                let count = input.below(100);
                let head = format!("GET {} HTTP/1.1\r\nHost: {}\r\n", any_value(input), any_value(input));
                let start = if input.flag() { head.as_bytes() } else { b"" };
                let answer = self.larder.api().raw(&[start, input.bytes(count), b"\r\n\r\n"].concat());
                assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{answer:?}");
            }
        }
    }

    fn request_range(&self, target: &Target, input: &mut Input<'_>) {
        let (first, last) = (input.below(2000), input.below(2000));
        let range = input.pick(&["{a}-{b}", "{a}-", "-{b}", "{a}-{b},0-1", "x"]);
        let range = range.replace("{a}", &first.to_string()).replace("{b}", &last.to_string());
        let Some(answer) = self.get(&target.blob(), &[("Range", &format!("bytes={range}"))]) else { return };
        let bytes = &target.blob.bytes;
        match answer.status() {
            200 => answer.assert_body(bytes),
            // Bytes that are not verified have no strong ETag.
            206 if answer.header("etag").is_some() && answer.header("content-range").is_none() => {
                for (head, part) in multipart::parts(&answer) {
                    let range = head.split_once("Content-Range: bytes ").expect("a range").1;
                    let start: usize = range.split('-').next().unwrap().parse().unwrap();
                    assert_eq!(bytes.get(start..start + part.len()), Some(part.as_slice()));
                }
            }
            206 if answer.header("etag").is_some() => {
                let range = answer.header("content-range").and_then(|it| it.strip_prefix("bytes "));
                let start = range.and_then(|it| it.split('-').next()).and_then(|it| it.parse::<usize>().ok());
                let start = start.expect("a start");
                assert_eq!(bytes.get(start..start + answer.body.len()), Some(answer.body.as_slice()));
            }
            _ => {}
        }
    }

    fn run(&self, bytes: &[u8]) {
        let mut input = Input::new(bytes);
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        let target = self.target(number, &mut input);
        for _ in 0..=input.below(4) {
            self.request(&target, &mut input);
        }
        self.hostile.clear_faults();
        self.hostile.forget_requests();
        self.assert_cached();
        self.assert_honest_pull(number);
        self.hostile.remove_repository(&target.repository);
        assert!(!self.larder.has_panicked());
        assert!(self.larder.rss() < MEMORY_MAX, "{} bytes of memory", self.larder.rss());
    }
}

#[test]
fn hostile_registry_and_client_harm_only_themselves() {
    let world = World::start();
    let world = AssertUnwindSafe(&world);
    // Smaller inputs are not searched for: each needs seconds, and may fail for another reason.
    let target = check!().with_test_time(TEST_TIME).with_shrink_time(Duration::ZERO);
    target.with_generator(inputs()).for_each(|bytes| {
        let world = &world;
        world.run(bytes);
    });
}
