//! Registries with peculiarities: images are pulled, content is found in another repository, and tags are listed.

use crate::support;

use support::content::{OCI_ARTIFACT, OCI_MANIFEST};
use support::fixture::TAG;
use support::{Document, Fault, Image, Registry, Setup, When, quirks};

use serde_json::json;

#[test]
fn images_are_pulled_from_every_registry() {
    for quirk in quirks::all() {
        let (registry, image) = (Registry::start(), Image::small(1));
        for (repository, tag) in [("library/app", "v1"), ("library/app", "v2"), ("library/copy", "v1")] {
            registry.add_image(repository, tag, &image);
        }
        quirk.apply(&registry);
        let larder =
            Setup::with(&registry).set("cache.tag_ttl", "0s").set("cache.tags_list", "upstream").start();
        let name = &quirk.name;
        for _ in 0..2 {
            assert_eq!(larder.head(TAG).status(), 200, "{name}");
            larder.get(TAG).assert_body(&image.manifest.bytes);
        }
        for blob in image.blobs() {
            let path = format!("/v2/library/app/blobs/{}", blob.digest);
            let head = larder.head(&path);
            assert_eq!((head.status(), head.head.content_length()), (200, Some(blob.bytes.len())), "{name}");
            larder.get(&path).assert_body(&blob.bytes);
            larder.wait_idle();
            // The registry confirms that another repository has the blob.
            let other = path.replace("library/app", "library/copy");
            larder.get(&other).assert_body(&blob.bytes);
            let missing = path.replace("library/app", "library/none");
            assert_eq!(larder.get(&missing).status(), 404, "{name}");
        }
        let tags = larder.get("/v2/library/app/tags/list");
        assert_eq!((tags.status(), tags.json()["tags"].clone()), (200, json!(["v1", "v2"])), "{name}");
        assert_eq!(larder.counter("larder_upstream_endpoint_open", &[]), 0, "{name}");
    }
}

#[test]
fn artifact_manifest_is_requested_by_its_type() {
    let (registry, image) = (Registry::start(), Image::small(1));
    registry.add_image("library/app", "v1", &image);
    let artifact = json!({
        "mediaType": OCI_ARTIFACT, "artifactType": "application/vnd.example.sbom",
        "blobs": [image.layers[0].descriptor("text/plain")], "subject": image.manifest.descriptor(),
    });
    let artifact = Document::json(OCI_ARTIFACT, &artifact);
    registry.add_manifest("library/app", &artifact);
    registry.tag("library/app", "sbom", &artifact.digest);
    // The registry answers 404 for a type that is not accepted.
    let strict = Fault::rewrite(|seen, plan| {
        let media_type = plan.headers.iter().find(|(name, _)| name == "Content-Type");
        let media_type = media_type.map_or(OCI_MANIFEST, |(_, media_type)| media_type.as_str());
        if !seen.header("accept").unwrap_or_default().contains(media_type) {
            *plan = support::script::Plan::error(404, "MANIFEST_UNKNOWN");
        }
    });
    registry.script(When::manifests(), strict);
    let larder = Setup::with(&registry).start();
    for reference in ["sbom", artifact.digest.as_str()] {
        let answer = larder.get(&format!("/v2/library/app/manifests/{reference}"));
        answer.assert_body(&artifact.bytes);
        assert_eq!(answer.header("content-type"), Some(OCI_ARTIFACT));
    }
    let layer = &image.layers[0];
    larder.get(&format!("/v2/library/app/blobs/{}", layer.digest)).assert_body(&layer.bytes);
    larder.get(TAG).assert_body(&image.manifest.bytes);
}
