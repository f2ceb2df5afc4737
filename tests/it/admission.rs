//! `allow` and `deny`: excluded repositories are not found, whichever way a client requests them.

use crate::support;

use serde_json::json;
use support::{Image, Larder, Registry, Setup};

const DENIED: &str = "team/secret/app";

fn registry() -> (Registry, Image) {
    let registry = Registry::start();
    let image = Image::small(1);
    for name in ["library/busybox", "org/app", "org/deep/er/app", DENIED] {
        registry.add_image(name, "v1", &image);
    }
    (registry, image)
}

fn lists(patterns: &[&str]) -> Vec<String> {
    patterns.iter().map(|pattern| (*pattern).to_owned()).collect()
}

/// Returns all paths by which a client can request content of a repository.
fn paths(name: &str, image: &Image) -> Vec<String> {
    vec![
        format!("/v2/{name}/manifests/v1"),
        format!("/v2/{name}/manifests/{}", image.manifest.digest),
        format!("/v2/{name}/blobs/{}", image.layers[0].digest),
        format!("/v2/{name}/tags/list"),
        format!("/v2/{name}/referrers/{}", image.manifest.digest),
        format!("/v2/docker.io/{name}/manifests/v1"),
        format!("/docker.io/v2/{name}/manifests/v1"),
        format!("/v2/{name}/manifests/v1?ns=docker.io"),
    ]
}

#[track_caller]
fn assert_not_found(larder: &Larder, registry: &Registry, name: &str, image: &Image) {
    registry.forget_requests();
    for path in paths(name, image) {
        larder.get(&path).assert_error(404, "NAME_UNKNOWN");
        let head = larder.head(&path);
        assert_eq!((head.status(), head.header("www-authenticate")), (404, None), "{path}");
    }
    assert_eq!(registry.requests().len(), 0, "the upstream was asked for {name}");
}

#[test]
fn denied_repository_is_not_found() {
    let (registry, image) = registry();
    let larder = Setup::with(&registry).upstream_set("docker.io", "deny", lists(&["team/secret/**"])).start();
    assert_not_found(&larder, &registry, DENIED, &image);
    for name in ["library/busybox", "org/app", "org/deep/er/app"] {
        larder.get(&format!("/v2/{name}/manifests/v1")).assert_body(&image.manifest.bytes);
    }
}

#[test]
fn repository_must_be_allowed_and_deny_wins() {
    let (registry, image) = registry();
    let larder = Setup::with(&registry)
        .upstream_set("docker.io", "allow", lists(&["library/*", "org/**"]))
        .upstream_set("docker.io", "deny", lists(&["org/deep/**"]))
        .start();
    for name in ["/v2/busybox", "/v2/library/busybox", "/v2/org/app"] {
        larder.get(&format!("{name}/manifests/v1")).assert_body(&image.manifest.bytes);
    }
    assert_not_found(&larder, &registry, DENIED, &image);
    assert_not_found(&larder, &registry, "org/deep/er/app", &image);
}

#[test]
fn denied_repository_is_hidden_even_if_cached() {
    let (registry, image) = registry();
    let mut larder = Setup::with(&registry).start();
    for name in ["library/busybox", "org/app", "org/deep/er/app", DENIED] {
        larder.get(&format!("/v2/{name}/manifests/v1")).assert_body(&image.manifest.bytes);
        larder
            .get(&format!("/v2/{name}/blobs/{}", image.layers[0].digest))
            .assert_body(&image.layers[0].bytes);
    }
    larder.wait_idle();
    // Stopped instead of killed, so that the last writes are on disk.
    larder.stop();
    let deny = lists(&["library/*", "org/app", "org/deep/**"]);
    let larder = larder.restart_with(|setup| setup.upstream_set("docker.io", "deny", deny));
    for name in ["library/busybox", "org/app", "org/deep/er/app"] {
        assert_not_found(&larder, &registry, name, &image);
    }
    // Hidden names are skipped, so a page of one entry has the allowed name.
    let catalog = larder.get("/v2/_catalog?n=1");
    assert_eq!(catalog.json(), json!({ "repositories": [DENIED] }));
    assert_eq!(catalog.header("link"), None);
    assert_eq!(larder.get("/v2/_catalog?ns=docker.io").json(), json!({ "repositories": [DENIED] }));
    // The content is still cached and is visible again when the pattern is removed.
    let larder = larder.restart_with(|setup| setup.upstream_set("docker.io", "deny", lists(&[])));
    larder.get("/v2/org/app/manifests/v1").assert_outcome("larder; hit");
}

#[test]
fn patterns_apply_to_their_own_upstream() {
    let (registry, image) = registry();
    let (other, _) = self::registry();
    let larder = Setup::with(&registry)
        .upstream("other.test", &other)
        .upstream_set("other.test", "allow", lists(&["org/*"]))
        .start();
    larder.get("/v2/library/busybox/manifests/v1").assert_body(&image.manifest.bytes);
    larder.get("/v2/other.test/org/app/manifests/v1").assert_body(&image.manifest.bytes);
    larder.get("/v2/other.test/library/busybox/manifests/v1").assert_error(404, "NAME_UNKNOWN");
    larder.get("/v2/library/busybox/manifests/v1?ns=other.test").assert_error(404, "NAME_UNKNOWN");
}

#[test]
fn malformed_pattern_refuses_to_start() {
    let exit = Setup::with(&registry().0).upstream_set("docker.io", "deny", lists(&["org**"])).run_to_exit();
    assert!(!exit.status.success());
    assert!(exit.stderr.contains("deny") && exit.stderr.contains("org/**"), "{}", exit.stderr);
}
