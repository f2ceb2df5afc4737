//! Image of the demonstration: two platforms with one layer each, generated so that nothing is downloaded.

use std::path::Path;

use anyhow::Context as _;
use oci_spec::image::{
    Arch, Descriptor, ImageConfigurationBuilder, ImageIndexBuilder, ImageManifestBuilder, MediaType, Os,
    PlatformBuilder, RootFsBuilder, SCHEMA_VERSION,
};

use crate::layout::LayoutWriter;
use crate::oci::{Algorithm, Digest, Hasher, media};

/// Size of a layer's payload in bytes: large enough to be visible in the table.
const PAYLOAD: usize = 2 << 20;

/// Writes the image into a new layout at `folder` as `name` (`repository:tag`), and returns the digest of its index.
pub(super) fn write(folder: &Path, name: &str) -> anyhow::Result<Digest> {
    let mut layout = LayoutWriter::create(folder)?;
    let manifests = [Arch::Amd64, Arch::ARM64]
        .into_iter()
        .map(|arch| platform(&layout, arch))
        .collect::<Result<Vec<_>, _>>()?;
    let index = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests(manifests)
        .build()?
        .to_string()?;
    let descriptor = layout.manifest(media::OCI_INDEX, index.as_bytes())?;
    layout.tag(descriptor, name)?;
    layout.finish()?;
    Ok(Digest::of(Algorithm::Sha256, index.as_bytes()))
}

fn platform(layout: &LayoutWriter, arch: Arch) -> anyhow::Result<Descriptor> {
    let layer = layer(&arch).context("the layer cannot be created")?;
    let layer = layout.blob(MediaType::ImageLayer, &layer)?;
    // An uncompressed layer's digest is its diff ID as well.
    let rootfs = RootFsBuilder::default().diff_ids(vec![layer.digest().to_string()]).build()?;
    let config = ImageConfigurationBuilder::default()
        .architecture(arch.clone())
        .os(Os::Linux)
        .rootfs(rootfs)
        .build()?
        .to_string()?;
    let config = layout.blob(MediaType::ImageConfig, config.as_bytes())?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(vec![layer])
        .build()?
        .to_string()?;
    let mut descriptor = layout.manifest(media::OCI_MANIFEST, manifest.as_bytes())?;
    descriptor.set_platform(Some(PlatformBuilder::default().architecture(arch).os(Os::Linux).build()?));
    Ok(descriptor)
}

/// Returns a tar with a text and a payload. Its bytes depend on the platform only.
fn layer(arch: &Arch) -> std::io::Result<Vec<u8>> {
    let greeting = format!("Pulled through larder for linux/{arch}.\n");
    let payload = payload(&arch.to_string());
    let mut tar = tar::Builder::new(Vec::with_capacity(PAYLOAD + 8192));
    for (name, content) in [("greeting.txt", greeting.as_bytes()), ("payload.bin", &payload)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content)?;
    }
    tar.into_inner()
}

/// Returns incompressible bytes that depend on `seed` only.
fn payload(seed: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PAYLOAD + 64);
    for block in 0_u64.. {
        if bytes.len() >= PAYLOAD {
            break;
        }
        let mut hasher = Hasher::new(Algorithm::Sha512);
        hasher.update(seed.as_bytes());
        hasher.update(&block.to_be_bytes());
        bytes.extend_from_slice(hasher.finish().as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Manifest;

    #[test]
    fn image_is_complete() {
        let folder = tempfile::tempdir().expect("a folder");
        let digest = write(folder.path(), "larder/demo:latest").expect("written");
        let read = |digest: &Digest| {
            let path = folder.path().join("blobs/sha256").join(digest.hex());
            let content = std::fs::read(path).expect("a blob");
            assert_eq!(Digest::of(Algorithm::Sha256, &content), *digest);
            content
        };
        let index = Manifest::read(&read(&digest), None).expect("an index");
        let platforms: Vec<_> = index.children.iter().filter_map(|child| child.platform.as_deref()).collect();
        assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
        let mut layers = Vec::new();
        for child in &index.children {
            let manifest = Manifest::read(&read(&child.digest), None).expect("a manifest");
            let [config, layer] = manifest.blobs.as_slice() else { panic!("{manifest:?}") };
            let content = read(&layer.digest);
            assert_eq!(layer.size, Some(content.len() as u64));
            let config: serde_json::Value = serde_json::from_slice(&read(&config.digest)).expect("JSON");
            assert_eq!(config["rootfs"]["diff_ids"][0], layer.digest.to_string());
            let mut tar = tar::Archive::new(content.as_slice());
            let sizes: Vec<_> =
                tar.entries().expect("a tar").map(|entry| entry.expect("an entry").size()).collect();
            assert_eq!(sizes[1], PAYLOAD as u64);
            layers.push(layer.digest);
        }
        assert_ne!(layers[0], layers[1]);
    }
}
