//! Common set-ups: a registry with content, and a larder server in front of it.

use super::{Blob, Fault, Gate, Image, Index, Larder, Registry, Seen, Setup, When};

pub const MIB: usize = 1 << 20;
/// Path of the tag of [`image`].
pub const TAG: &str = "/v2/library/app/manifests/v1";

/// Returns an image with a layer of 3 MiB, which is larger than every buffer between registry and client.
pub fn image() -> Image {
    Image::oci(1, "linux/amd64", vec![Blob::random(1, 3 * MIB + 1000)])
}

/// Returns a registry with one image and one index, a server with an empty cache, and the image.
pub fn cold() -> (Registry, Larder, Image) {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    registry.add_index("library/multi", "v1", &Index::oci(7));
    let larder = Larder::in_front_of(&registry);
    (registry, larder, image)
}

/// A registry with one blob, and a server with an empty cache.
pub struct ColdBlob {
    pub registry: Registry,
    pub larder: Larder,
    pub blob: Blob,
    /// Path of the blob.
    pub path: String,
}

impl ColdBlob {
    /// Starts both. The blob has `length` random bytes and is the only layer of its repository.
    pub fn new(length: usize) -> Self {
        let registry = Registry::start();
        let blob = Blob::random(1, length);
        registry.add_image("library/app", "v1", &Image::oci(1, "linux/amd64", vec![blob.clone()]));
        let larder = Larder::in_front_of(&registry);
        let path = format!("/v2/library/app/blobs/{}", blob.digest);
        Self { registry, larder, blob, path }
    }

    /// Stops the body of every download before byte `at` until the returned gate opens.
    pub fn hold_every_get(&self, at: usize) -> Gate {
        let gate = Gate::new();
        self.registry.script(When::blobs().method("GET"), Fault::HoldBody(at, gate.clone()));
        gate
    }

    /// Stops the body of the first download, which is the fill, before byte `at` until the returned gate opens.
    pub fn hold_first_get(&self, at: usize) -> Gate {
        let gate = Gate::new();
        self.registry.script(When::blobs().method("GET").times(1), Fault::HoldBody(at, gate.clone()));
        gate
    }

    /// Returns the downloads of blobs that the registry has received.
    pub fn gets(&self) -> Vec<Seen> {
        self.registry.seen("GET", "/blobs/")
    }

    /// Waits until the fill of the blob has finished.
    #[track_caller]
    pub fn wait_filled(&self) {
        self.larder.wait_counter("larder_fills_total", &[("result", "ok")], 1);
    }
}

/// A cache that contains an index, the blobs of one of its two platforms, and the manifest of another image.
pub struct PartlyCached {
    pub registry: Registry,
    pub larder: Larder,
    pub index: Index,
}

impl PartlyCached {
    /// Starts both and fills the cache. The registry's list of requests is empty afterwards.
    pub fn new() -> Self {
        let registry = Registry::start();
        let index = Index::oci(7);
        registry.add_index("library/multi", "v1", &index);
        registry.add_image("org/single", "2", &Image::docker(3, "linux/s390x", vec![Blob::random(3, 1000)]));
        let setup = Setup::with(&registry).set("cache.tag_ttl", "1h").set("prefetch.referrers", true);
        let larder = setup.start();
        larder.get("/v2/library/multi/manifests/v1").assert_body(&index.document.bytes);
        larder.wait_idle();
        for blob in index.images[0].blobs() {
            larder.get(&format!("/v2/library/multi/blobs/{}", blob.digest)).assert_body(&blob.bytes);
        }
        assert_eq!(larder.get("/v2/org/single/manifests/2").status(), 200);
        larder.wait_idle();
        registry.forget_requests();
        Self { registry, larder, index }
    }
}

/// A registry with the image of [`image`], and a server with an empty cache.
pub struct Fixture {
    pub registry: Registry,
    pub larder: Larder,
    pub image: Image,
    pub layer: Blob,
    /// Path of the layer.
    pub path: String,
}

impl Fixture {
    pub fn new() -> Self {
        Self::with(|setup| setup)
    }

    /// As `new`; the server revalidates a tag at every request.
    pub fn with_zero_ttl() -> Self {
        Self::with(|setup| setup.set("cache.tag_ttl", "0s"))
    }

    pub fn with(change: impl FnOnce(Setup) -> Setup) -> Self {
        let registry = Registry::start();
        let image = image();
        registry.add_image("library/app", "v1", &image);
        let larder = change(Setup::with(&registry)).start();
        let layer = image.layers[0].clone();
        let path = format!("/v2/library/app/blobs/{}", layer.digest);
        Self { registry, larder, image, layer, path }
    }
}

/// Opens `gate`, and asserts that the upstream's pending request then succeeds. So the request was not over when the
/// client got its answer.
#[track_caller]
pub fn assert_answered_before_upstream(larder: &Larder, gate: &Gate) {
    let requests = |status| larder.counter("larder_upstream_requests_total", &[("status", status)]);
    assert_eq!(requests("error"), 0, "the request to the upstream timed out before the answer");
    let before = requests("200");
    gate.open();
    larder.wait_counter("larder_upstream_requests_total", &[("status", "200")], before + 1);
}

/// Returns true if the status reports that the upstream delivered no usable answer.
pub fn is_gateway_error(status: u16) -> bool {
    [502, 503, 504].contains(&status)
}
