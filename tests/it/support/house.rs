//! One image with a layer of three MiB behind one registry, and a larder before it.

use super::{Blob, Fault, Gate, Image, Index, Larder, Registry, Seen, Setup, When};

pub const MIB: usize = 1 << 20;
/// Where its tag is.
pub const TAG: &str = "/v2/library/app/manifests/v1";

/// An image whose layer is longer than any buffer on the way.
pub fn image() -> Image {
    Image::oci(1, "linux/amd64", vec![Blob::random(1, 3 * MIB + 1000)])
}

/// A registry with one image and one index, and a larder that has pulled nothing yet.
pub fn cold() -> (Registry, Larder, Image) {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    registry.add_index("library/multi", "v1", &Index::oci(7));
    let larder = Larder::before(&registry);
    (registry, larder, image)
}

/// A registry with one blob, and a larder that has pulled nothing yet.
pub struct Cold {
    pub registry: Registry,
    pub larder: Larder,
    pub blob: Blob,
    /// Where the blob is.
    pub path: String,
}

impl Cold {
    /// The blob has this length, and is its repository's only layer.
    pub fn new(length: usize) -> Self {
        let registry = Registry::start();
        let blob = Blob::random(1, length);
        registry.add_image("library/app", "v1", &Image::oci(1, "linux/amd64", vec![blob.clone()]));
        let larder = Larder::before(&registry);
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

    /// Returns the downloads that the registry has seen.
    pub fn gets(&self) -> Vec<Seen> {
        self.registry.seen("GET", "/blobs/")
    }

    /// Waits until the blob is kept.
    #[track_caller]
    pub fn wait_filled(&self) {
        self.larder.wait_counter("larder_fills_total", &[("result", "ok")], 1);
    }
}

/// An index of which one platform's blobs are held and the other's are not, and a single image's manifest.
pub struct HalfHeld {
    pub registry: Registry,
    pub larder: Larder,
    pub index: Index,
}

impl HalfHeld {
    /// What it has asked its registry for so far is forgotten.
    pub fn new() -> Self {
        let registry = Registry::start();
        let index = Index::oci(7);
        registry.add_index("library/multi", "v1", &index);
        registry.add_image("org/single", "2", &Image::docker(3, "linux/s390x", vec![Blob::random(3, 1000)]));
        let larder = Setup::with(&registry).set("cache.tag_ttl", "1h").start();
        larder.get("/v2/library/multi/manifests/v1").is_ok_with(&index.document.bytes);
        larder.settle();
        for blob in index.images[0].blobs() {
            larder.get(&format!("/v2/library/multi/blobs/{}", blob.digest)).is_ok_with(&blob.bytes);
        }
        assert_eq!(larder.get("/v2/org/single/manifests/2").status(), 200);
        larder.settle();
        registry.forget_requests();
        Self { registry, larder, index }
    }
}

pub struct House {
    pub registry: Registry,
    pub larder: Larder,
    pub image: Image,
    pub layer: Blob,
    /// Where its layer is.
    pub path: String,
}

impl House {
    pub fn new() -> Self {
        Self::with(|setup| setup)
    }

    /// A larder that asks for its tags again every time.
    pub fn impatient() -> Self {
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

/// Whether a status says that the upstream gave nothing to serve.
pub fn is_trouble(status: u16) -> bool {
    [502, 503, 504].contains(&status)
}
