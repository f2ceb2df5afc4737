//! Selection of the upstream: `?ns=`, path prefix, Host header, default. No other host is contacted.

use crate::support;

use support::{Image, Larder, Registry, Setup};

struct Fixture {
    hub: Registry,
    ghcr: Registry,
    hub_image: Image,
    ghcr_image: Image,
    larder: Larder,
}

/// docker.io as the default upstream, and ghcr.io. Both have `org/app:v1` with different content.
fn fixture() -> Fixture {
    let (hub, ghcr) = (Registry::start(), Registry::start());
    let (hub_image, ghcr_image) = (Image::small(1), Image::small(2));
    hub.add_image("org/app", "v1", &hub_image);
    hub.add_image("library/busybox", "v1", &hub_image);
    ghcr.add_image("org/app", "v1", &ghcr_image);
    ghcr.add_image("busybox", "v1", &ghcr_image);
    let larder = Setup::with(&hub)
        .upstream("ghcr.io", &ghcr)
        .upstream_set("ghcr.io", "hostnames", vec!["ghcr.mirror.test", "other.test:5000"])
        .start();
    Fixture { hub, ghcr, hub_image, ghcr_image, larder }
}

#[test]
fn default_upstream_is_used_without_a_name() {
    let fixture = fixture();
    let answer = fixture.larder.get("/v2/org/app/manifests/v1");
    answer.assert_body(&fixture.hub_image.manifest.bytes);
    assert_eq!(answer.header("oci-namespace"), None);
    assert_eq!(fixture.ghcr.requests().len(), 0);
}

#[test]
fn ns_selects_the_upstream_and_is_echoed() {
    let fixture = fixture();
    let answer = fixture.larder.get("/v2/org/app/manifests/v1?ns=ghcr.io");
    answer.assert_body(&fixture.ghcr_image.manifest.bytes);
    assert_eq!(answer.header("oci-namespace"), Some("ghcr.io"));
    let layer = &fixture.ghcr_image.layers[0];
    let answer = fixture.larder.get(&format!("/v2/org/app/blobs/{}?ns=ghcr.io", layer.digest));
    answer.assert_body(&layer.bytes);
    assert_eq!(answer.header("oci-namespace"), Some("ghcr.io"));
    let answer = fixture.larder.get("/v2/org/app/manifests/v1?ns=docker.io");
    answer.assert_body(&fixture.hub_image.manifest.bytes);
    // The parameter `ns` is not forwarded to the upstream.
    assert!(fixture.ghcr.requests().iter().all(|seen| !seen.query.contains("ns=")));
}

#[test]
fn path_prefix_selects_the_upstream() {
    let fixture = fixture();
    for path in ["/v2/ghcr.io/org/app/manifests/v1", "/ghcr.io/v2/org/app/manifests/v1"] {
        fixture.larder.get(path).assert_body(&fixture.ghcr_image.manifest.bytes);
    }
    // Every name for which `/v2/` succeeds also serves content.
    fixture.larder.get("/ghcr.mirror.test/v2/").assert_body(b"{}");
    fixture
        .larder
        .get("/ghcr.mirror.test/v2/org/app/manifests/v1")
        .assert_body(&fixture.ghcr_image.manifest.bytes);
    for path in ["/v2/docker.io/org/app/manifests/v1", "/docker.io/v2/org/app/manifests/v1"] {
        fixture.larder.get(path).assert_body(&fixture.hub_image.manifest.bytes);
    }
    for path in ["/ghcr.io/v2/", "/docker.io/v2/", "/ghcr.io/v2"] {
        fixture.larder.get(path).assert_body(b"{}");
    }
    assert_eq!(fixture.ghcr.count("GET", "ghcr.io"), 0);
}

#[test]
fn host_header_selects_the_upstream() {
    let fixture = fixture();
    let ask = |host| fixture.larder.api().send("GET", "/v2/org/app/manifests/v1", &[("Host", host)]);
    ask("ghcr.mirror.test").assert_body(&fixture.ghcr_image.manifest.bytes);
    ask("GHCR.mirror.test").assert_body(&fixture.ghcr_image.manifest.bytes);
    ask("other.test:5000").assert_body(&fixture.ghcr_image.manifest.bytes);
    ask("anything.else.test").assert_body(&fixture.hub_image.manifest.bytes);
}

#[test]
fn ns_precedes_prefix_precedes_host() {
    let fixture = fixture();
    let host = [("Host", "ghcr.mirror.test")];
    let answer = fixture.larder.api().send("GET", "/v2/org/app/manifests/v1?ns=docker.io", &host);
    answer.assert_body(&fixture.hub_image.manifest.bytes);
    let answer = fixture.larder.api().send("GET", "/v2/docker.io/org/app/manifests/v1", &host);
    answer.assert_body(&fixture.hub_image.manifest.bytes);
}

#[test]
fn library_prefix_is_added_for_docker_io_only() {
    let fixture = fixture();
    for path in [
        "/v2/busybox/manifests/v1",
        "/v2/docker.io/busybox/manifests/v1",
        "/docker.io/v2/busybox/manifests/v1",
    ] {
        fixture.larder.get(path).assert_body(&fixture.hub_image.manifest.bytes);
    }
    fixture.larder.get("/v2/ghcr.io/busybox/manifests/v1").assert_body(&fixture.ghcr_image.manifest.bytes);
    assert_eq!(fixture.ghcr.count("GET", "library"), 0);
    // All names select the same repository.
    assert_eq!(fixture.hub.count("GET", "/manifests/"), 1);
}

#[test]
fn unknown_namespace_is_404() {
    let fixture = fixture();
    for ns in ["quay.io", "evil.test", "127.0.0.1:1", "ghcr.io@evil.test", "..", "%0d%0aX:%20y"] {
        let answer = fixture.larder.get(&format!("/v2/org/app/manifests/v1?ns={ns}"));
        answer.assert_error(404, "NAME_UNKNOWN");
        assert_eq!(answer.header("x"), None);
    }
    assert_eq!(fixture.hub.requests().len() + fixture.ghcr.requests().len(), 0);
}

#[test]
fn same_content_of_two_upstreams_is_two_repositories() {
    let fixture = fixture();
    let layer = &fixture.hub_image.layers[0];
    fixture.larder.get(&format!("/v2/org/app/blobs/{}", layer.digest)).assert_body(&layer.bytes);
    fixture.larder.wait_idle();
    let answer = fixture.larder.get(&format!("/v2/org/app/blobs/{}?ns=ghcr.io", layer.digest));
    answer.assert_error(404, "BLOB_UNKNOWN");
}

#[test]
fn next_page_link_keeps_the_route() {
    let fixture = fixture();
    for tag in ["a", "b", "c"] {
        fixture.ghcr.add_image("org/app", tag, &fixture.ghcr_image);
        fixture.larder.get(&format!("/v2/org/app/manifests/{tag}?ns=ghcr.io"));
    }
    for first in [
        "/v2/org/app/tags/list?n=2&ns=ghcr.io",
        "/v2/ghcr.io/org/app/tags/list?n=2",
        "/ghcr.io/v2/org/app/tags/list?n=2",
    ] {
        let page = fixture.larder.get(first);
        assert_eq!(page.json()["tags"], serde_json::json!(["a", "b"]), "{first}");
        let link = page.header("link").unwrap();
        let next = link.strip_prefix('<').unwrap().split_once('>').unwrap().0;
        let page = fixture.larder.get(next);
        assert_eq!(page.json()["tags"], serde_json::json!(["c"]), "{next}");
        assert_eq!(page.header("link"), None);
    }
}

#[test]
fn unlisted_registry_is_not_requested_from_the_default_upstream() {
    let fixture = fixture();
    for path in ["/v2/registry.internal.example/app", "/v2/docker.io/localhost:5000/app"] {
        let answer = fixture.larder.get(&format!("{path}/manifests/v1"));
        answer.assert_error(404, "NAME_UNKNOWN");
        assert!(answer.text().contains("dotted_names"), "{answer:?}");
    }
    assert_eq!(fixture.hub.requests().len() + fixture.ghcr.requests().len(), 0);
    // Another cache may be the default upstream, and have such repositories.
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("registry.internal.example/app", "v1", &image);
    let larder = Setup::with(&registry).upstream_set("docker.io", "dotted_names", true).start();
    larder.get("/v2/registry.internal.example/app/manifests/v1").assert_body(&image.manifest.bytes);
}
