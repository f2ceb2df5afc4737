//! Names and limits of an OCI image layout.

use serde_json::Value;

use crate::oci::{Digest, manifest};

/// Name of the file that marks a folder as a layout.
pub const MARKER_FILE: &str = "oci-layout";
/// Content of the marker file.
pub const MARKER: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
/// Name of the file that lists the images of a layout.
pub const INDEX_FILE: &str = "index.json";
/// Name of the file that lists the images of an archive for docker before version 25.
pub const DOCKER_FILE: &str = "manifest.json";
/// Annotation with the complete reference of an image, as containerd writes it.
pub const IMAGE_NAME: &str = "io.containerd.image.name";
/// Annotation with the known lists of referrers of an image and its parts, as `larder export` writes it: `SUBJECT=LIST`,
/// separated by spaces. The list is the digest of an index in the layout, or [`NO_REFERRERS`].
pub const REFERRERS: &str = "larder.referrers";
/// List of a manifest without referrers, in [`REFERRERS`].
pub const NO_REFERRERS: &str = "none";
/// Largest `index.json` in bytes.
pub const INDEX_MAX: u64 = 16 << 20;
/// Largest manifest in bytes: the largest value of `manifest_max_size`.
pub const MANIFEST_MAX: u64 = manifest::SIZE_LIMIT as u64;

/// Returns the path of a blob, relative to the layout's folder.
pub fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// Returns the digest of the blob at a relative path, or `None` for any other path.
pub fn digest_of_path(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// Returns an annotation of an entry of an index.
pub fn annotation<'a>(entry: &'a Value, key: &str) -> Option<&'a str> {
    entry.get("annotations")?.get(key)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn blob_path_contains_the_digest() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, b"x");
            assert_eq!(digest_of_path(&blob_path(&digest)), Some(digest));
        }
        for path in ["index.json", "blobs/sha256", "blobs/sha256/x", "blobs/md5/00", "blobs/sha256/../x"] {
            assert_eq!(digest_of_path(path), None, "{path}");
        }
    }
}
