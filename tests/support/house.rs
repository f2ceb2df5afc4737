//! One image with a layer of three MiB behind one registry, and a larder before it.

use super::{Blob, Image, Index, Larder, Registry, Setup};

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

    /// Waits until the blob is kept.
    #[track_caller]
    pub fn wait_filled(&self) {
        self.larder.wait_counter("larder_fills_total", &[("result", "ok")], 1);
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
