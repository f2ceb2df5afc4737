//! Registries that negotiate, convert, send wrong digests, or support no HEAD, lengths or digests.

use crate::support;

use support::content::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use support::fixture::TAG;
use support::{Answer, Document, Fault, Image, Index, Larder, Registry, Setup, When, eventually};

const LIST: &str = "/v2/library/app/manifests/v1";

/// `Accept` of a client that does not support indexes.
fn get_without_index_support(larder: &Larder, method: &str) -> Answer {
    larder.api().send(method, LIST, &[("Accept", DOCKER_MANIFEST)])
}

fn accepts_index(accept: &str) -> bool {
    accept.contains(DOCKER_LIST) || accept.contains(OCI_INDEX)
}

/// A registry that converts an index to its first child for clients that accept no index. It sends `digest` as the
/// digest of the child, if given.
fn converting(digest: Option<&str>) -> (Registry, Index) {
    let registry = Registry::start();
    let index = Index::docker(1);
    registry.add_index("library/app", "v1", &index);
    let (child, lie) = (index.images[0].manifest.clone(), digest.map(str::to_owned));
    registry.script(
        When::manifests().path("/v1"),
        Fault::rewrite(move |seen, plan| {
            if !accepts_index(seen.header("accept").unwrap_or_default()) {
                plan.set("Content-Type", &child.media_type);
                plan.set("Docker-Content-Digest", lie.as_ref().unwrap_or(&child.digest));
                plan.to = child.bytes.len();
                plan.content = child.bytes.clone();
            }
        }),
    );
    (registry, index)
}

#[test]
fn variant_is_stored_and_revalidated_beside_the_index() {
    let (registry, index) = converting(None);
    let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
    let child = &index.images[0].manifest;
    larder.get(LIST).assert_body(&index.document.bytes);
    get_without_index_support(&larder, "GET").assert_body(&child.bytes);
    larder.wait_idle();
    registry.forget_requests();
    // One HEAD for the tag, one for the variant.
    get_without_index_support(&larder, "GET").assert_outcome("larder; hit; detail=revalidated");
    assert_eq!((registry.count("HEAD", "/v1"), registry.count("GET", "/manifests/")), (2, 0));
    registry.down();
    let answer = get_without_index_support(&larder, "GET");
    answer.assert_body(&child.bytes);
    answer.assert_outcome("larder; hit; detail=stale");
    larder.get(LIST).assert_body(&index.document.bytes);
}

/// A registry like Docker Hub and GHCR: 404 if the client accepts no media type of the tag.
#[test]
fn refused_variant_is_forwarded_and_changes_nothing() {
    for first in [true, false] {
        let registry = Registry::start();
        let index = Index::oci(1);
        registry.add_index("library/app", "v1", &index);
        registry.script(
            When::manifests().path("/v1"),
            Fault::rewrite(|seen, plan| {
                if !accepts_index(seen.header("accept").unwrap_or_default()) {
                    let text = "OCI index found, but accept header does not support OCI indexes";
                    let body =
                        format!("{{\"errors\":[{{\"code\":\"MANIFEST_UNKNOWN\",\"message\":\"{text}\"}}]}}");
                    plan.status = 404;
                    plan.set("Content-Type", "application/json");
                    plan.remove("Docker-Content-Digest");
                    plan.to = body.len();
                    plan.content = std::sync::Arc::new(body.into_bytes());
                }
            }),
        );
        let larder = Setup::with(&registry).set("cache.negative_ttl", "1h").start();
        if first {
            larder.get(LIST).assert_body(&index.document.bytes);
        }
        for method in ["GET", "HEAD", "GET"] {
            let answer = get_without_index_support(&larder, method);
            assert_eq!(answer.status(), 404, "{answer:?}");
        }
        // This is one answer, and it is cached for a while like any other.
        let refused = registry
            .seen("GET", "/v1")
            .into_iter()
            .filter(|seen| !accepts_index(seen.header("accept").unwrap_or_default()));
        assert_eq!(refused.count(), 1);
        // A client that accepts the index gets it.
        larder.get(LIST).assert_body(&index.document.bytes);
        registry.down();
        larder.get(LIST).assert_outcome("larder; hit");
    }
}

/// A registry as Docker Hub has been: the body of the child with the digest of its list.
#[test]
fn child_answered_under_the_index_digest_is_corrected() {
    let digest = Index::docker(1).document.digest;
    for index_first in [true, false] {
        let (registry, index) = converting(Some(&digest));
        let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
        let child = &index.images[0].manifest;
        if index_first {
            larder.get(LIST).assert_body(&index.document.bytes);
        }
        for _ in 0..3 {
            let answer = get_without_index_support(&larder, "GET");
            answer.assert_body(&child.bytes);
            assert_eq!(answer.header("docker-content-digest"), Some(child.digest.as_str()));
            assert_eq!(answer.header("content-type"), Some(DOCKER_MANIFEST));
            assert_eq!(
                get_without_index_support(&larder, "HEAD").header("docker-content-digest"),
                Some(child.digest.as_str())
            );
        }
        larder.get(LIST).assert_body(&index.document.bytes);
        registry.down();
        get_without_index_support(&larder, "GET").assert_body(&child.bytes);
    }
}

#[test]
fn wrong_content_type_is_replaced_by_the_body_type() {
    for media_type in ["text/html", "image/png", "application/octet-stream", "nonsense", OCI_INDEX] {
        let (registry, image) = (Registry::start(), Image::small(1));
        registry.add_image("library/app", "v1", &image);
        registry.script(When::manifests(), Fault::SetHeader("Content-Type", media_type.to_owned()));
        let larder = Larder::in_front_of(&registry);
        let by_digest = format!("/v2/library/app/manifests/{}", image.manifest.digest);
        for path in [TAG, &by_digest] {
            let answer = larder.get(path);
            answer.assert_body(&image.manifest.bytes);
            assert_eq!(answer.header("content-type"), Some(OCI_MANIFEST), "{media_type}");
            assert_eq!(larder.head(path).header("content-type"), Some(OCI_MANIFEST), "{media_type}");
        }
    }
}

/// HEAD is rejected, or denied as by URLs that are signed for GET. GET works.
#[test]
fn tag_is_kept_if_only_head_says_404() {
    for status in [400, 401, 403, 404, 405, 501] {
        let (registry, image) = (Registry::start(), Image::small(1));
        registry.add_image("library/app", "v1", &image);
        registry.script(When::any().method("HEAD"), Fault::Status(status));
        let larder =
            Setup::with(&registry).set("cache.tag_ttl", "0s").set("cache.negative_ttl", "0s").start();
        for _ in 0..2 {
            let answer = larder.get(TAG);
            answer.assert_body(&image.manifest.bytes);
            assert!(!answer.head.outcome().contains("stale"), "{status}: {:?}", answer.head);
            assert_eq!(larder.head(TAG).status(), 200, "{status}");
        }
        // A moved tag and a deleted tag are found by GET.
        let new = Image::small(2);
        registry.add_image("library/app", "v1", &new);
        larder.get(TAG).assert_body(&new.manifest.bytes);
        registry.untag("library/app", "v1");
        larder.get(TAG).assert_error(404, "MANIFEST_UNKNOWN");
    }
}

#[test]
fn blob_is_found_although_head_says_404() {
    for status in [400, 403, 405, 501] {
        let (registry, image) = (Registry::start(), Image::small(1));
        registry.add_image("library/app", "v1", &image);
        registry.add_image("library/also", "v1", &image);
        registry.script(When::blobs().method("HEAD"), Fault::Status(status));
        let larder = Larder::in_front_of(&registry);
        let layer = &image.layers[0];
        let at = |name: &str| format!("/v2/library/{name}/blobs/{}", layer.digest);
        let head = larder.head(&at("app"));
        assert_eq!((head.status(), head.head.content_length()), (200, Some(layer.len())), "{status}");
        larder.get(&at("app")).assert_body(&layer.bytes);
        larder.wait_idle();
        // The access to cached content can only be verified with a request.
        larder.get(&at("also")).assert_body(&layer.bytes);
        larder.get(&at("stranger")).assert_error(404, "BLOB_UNKNOWN");
        let sent: u64 = registry.seen("GET", "/blobs/").iter().map(support::Seen::sent).sum();
        assert!(sent < 2 * layer.len() as u64, "it was fetched more than once: {sent} bytes");
    }
}

#[test]
fn missing_digest_length_and_type_are_determined() {
    let faults = [
        vec![Fault::RemoveHeader("Docker-Content-Digest")],
        vec![Fault::Chunked],
        vec![Fault::NoLength],
        vec![
            Fault::RemoveHeader("Docker-Content-Digest"),
            Fault::RemoveHeader("Content-Type"),
            Fault::NoLength,
        ],
    ];
    for (n, faults) in faults.into_iter().enumerate() {
        let (registry, index) = (Registry::start(), Index::oci(1));
        registry.add_index("library/app", "v1", &index);
        for fault in faults {
            registry.script(When::any(), fault);
        }
        let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
        let documents: Vec<&Document> = index.documents();
        for _ in 0..2 {
            let answer = larder.get(TAG);
            answer.assert_body(&index.document.bytes);
            assert_eq!(answer.header("docker-content-digest"), Some(index.document.digest.as_str()));
            assert_eq!(answer.header("content-type"), Some(OCI_INDEX));
            assert_eq!(answer.head.content_length(), Some(index.document.bytes.len()));
            assert_eq!(larder.head(TAG).head.content_length(), Some(index.document.bytes.len()), "{n}");
        }
        for document in &documents {
            larder
                .get(&format!("/v2/library/app/manifests/{}", document.digest))
                .assert_body(&document.bytes);
        }
        for blob in index.images.iter().flat_map(Image::blobs) {
            larder.get(&format!("/v2/library/app/blobs/{}", blob.digest)).assert_body(&blob.bytes);
        }
        larder.wait_idle();
        registry.down();
        eventually("the tag is still served", || larder.get(TAG).status() == 200);
        for document in documents {
            let path = format!("/v2/library/app/manifests/{}", document.digest);
            larder.get(&path).assert_outcome("larder; hit");
        }
    }
}

/// A body without a length ends with its connection, so an interrupted body looks complete.
#[test]
fn short_body_without_length_is_incomplete() {
    let (registry, image) = (Registry::start(), Image::small(1));
    registry.add_image("library/app", "v1", &image);
    registry.script(When::any().method("GET"), Fault::NoLength);
    registry.script(When::any().method("GET"), Fault::Cut(100));
    let larder = Larder::in_front_of(&registry);
    let layer = &image.layers[0];
    let manifest = format!("/v2/library/app/manifests/{}", image.manifest.digest);
    let blob = format!("/v2/library/app/blobs/{}", layer.digest);
    for path in [TAG, &manifest, &blob] {
        if let Ok(answer) = larder.api().try_send("GET", path, &[]) {
            assert_eq!(answer.status(), 502, "{path}: {answer:?}");
        }
    }
    larder.wait_idle();
    registry.clear_faults();
    larder.get(&manifest).assert_body(&image.manifest.bytes);
    larder.get(&blob).assert_body(&layer.bytes);
}
