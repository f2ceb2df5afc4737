//! Which upstream a request belongs to: `?ns=`, path prefix, Host header, default; and that nothing else is dialled.

use crate::support;

use support::{Image, Larder, Registry, Setup};

struct House {
    hub: Registry,
    ghcr: Registry,
    hub_image: Image,
    ghcr_image: Image,
    larder: Larder,
}

/// docker.io as the default and ghcr.io beside it; both have `org/app:v1`, with different content.
fn house() -> House {
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
    House { hub, ghcr, hub_image, ghcr_image, larder }
}

#[test]
fn default_upstream_is_used_without_a_name() {
    let house = house();
    let answer = house.larder.get("/v2/org/app/manifests/v1");
    answer.is_ok_with(&house.hub_image.manifest.bytes);
    assert_eq!(answer.header("oci-namespace"), None);
    assert_eq!(house.ghcr.requests().len(), 0);
}

#[test]
fn ns_selects_the_upstream_and_is_echoed() {
    let house = house();
    let answer = house.larder.get("/v2/org/app/manifests/v1?ns=ghcr.io");
    answer.is_ok_with(&house.ghcr_image.manifest.bytes);
    assert_eq!(answer.header("oci-namespace"), Some("ghcr.io"));
    let layer = &house.ghcr_image.layers[0];
    let answer = house.larder.get(&format!("/v2/org/app/blobs/{}?ns=ghcr.io", layer.digest));
    answer.is_ok_with(&layer.bytes);
    assert_eq!(answer.header("oci-namespace"), Some("ghcr.io"));
    let answer = house.larder.get("/v2/org/app/manifests/v1?ns=docker.io");
    answer.is_ok_with(&house.hub_image.manifest.bytes);
    // Our own parameter is not the upstream's business.
    assert!(house.ghcr.requests().iter().all(|seen| !seen.query.contains("ns=")));
}

#[test]
fn path_prefix_selects_the_upstream() {
    let house = house();
    for path in ["/v2/ghcr.io/org/app/manifests/v1", "/ghcr.io/v2/org/app/manifests/v1"] {
        house.larder.get(path).is_ok_with(&house.ghcr_image.manifest.bytes);
    }
    // What says yes to a ping has the content too, whatever it is called by.
    house.larder.get("/ghcr.mirror.test/v2/").is_ok_with(b"{}");
    house
        .larder
        .get("/ghcr.mirror.test/v2/org/app/manifests/v1")
        .is_ok_with(&house.ghcr_image.manifest.bytes);
    for path in ["/v2/docker.io/org/app/manifests/v1", "/docker.io/v2/org/app/manifests/v1"] {
        house.larder.get(path).is_ok_with(&house.hub_image.manifest.bytes);
    }
    for path in ["/ghcr.io/v2/", "/docker.io/v2/", "/ghcr.io/v2"] {
        house.larder.get(path).is_ok_with(b"{}");
    }
    assert_eq!(house.ghcr.count("GET", "ghcr.io"), 0);
}

#[test]
fn host_header_selects_the_upstream() {
    let house = house();
    let ask = |host| house.larder.api().send("GET", "/v2/org/app/manifests/v1", &[("Host", host)]);
    ask("ghcr.mirror.test").is_ok_with(&house.ghcr_image.manifest.bytes);
    ask("GHCR.mirror.test").is_ok_with(&house.ghcr_image.manifest.bytes);
    ask("other.test:5000").is_ok_with(&house.ghcr_image.manifest.bytes);
    ask("anything.else.test").is_ok_with(&house.hub_image.manifest.bytes);
}

#[test]
fn ns_precedes_prefix_precedes_host() {
    let house = house();
    let host = [("Host", "ghcr.mirror.test")];
    let answer = house.larder.api().send("GET", "/v2/org/app/manifests/v1?ns=docker.io", &host);
    answer.is_ok_with(&house.hub_image.manifest.bytes);
    let answer = house.larder.api().send("GET", "/v2/docker.io/org/app/manifests/v1", &host);
    answer.is_ok_with(&house.hub_image.manifest.bytes);
}

#[test]
fn library_prefix_is_added_for_docker_io_only() {
    let house = house();
    for path in [
        "/v2/busybox/manifests/v1",
        "/v2/docker.io/busybox/manifests/v1",
        "/docker.io/v2/busybox/manifests/v1",
    ] {
        house.larder.get(path).is_ok_with(&house.hub_image.manifest.bytes);
    }
    house.larder.get("/v2/ghcr.io/busybox/manifests/v1").is_ok_with(&house.ghcr_image.manifest.bytes);
    assert_eq!(house.ghcr.count("GET", "library"), 0);
    // It is one repository, whichever way it is called.
    assert_eq!(house.hub.count("GET", "/manifests/"), 1);
}

#[test]
fn unknown_namespace_is_404() {
    let house = house();
    for ns in ["quay.io", "evil.test", "127.0.0.1:1", "ghcr.io@evil.test", "..", "%0d%0aX:%20y"] {
        let answer = house.larder.get(&format!("/v2/org/app/manifests/v1?ns={ns}"));
        answer.is_error(404, "NAME_UNKNOWN");
        assert_eq!(answer.header("x"), None);
    }
    assert_eq!(house.hub.requests().len() + house.ghcr.requests().len(), 0);
}

#[test]
fn same_content_of_two_upstreams_is_two_repositories() {
    let house = house();
    let layer = &house.hub_image.layers[0];
    house.larder.get(&format!("/v2/org/app/blobs/{}", layer.digest)).is_ok_with(&layer.bytes);
    house.larder.settle();
    let answer = house.larder.get(&format!("/v2/org/app/blobs/{}?ns=ghcr.io", layer.digest));
    answer.is_error(404, "BLOB_UNKNOWN");
}

#[test]
fn next_page_link_keeps_the_route() {
    let house = house();
    for tag in ["a", "b", "c"] {
        house.ghcr.add_image("org/app", tag, &house.ghcr_image);
        house.larder.get(&format!("/v2/org/app/manifests/{tag}?ns=ghcr.io"));
    }
    for first in [
        "/v2/org/app/tags/list?n=2&ns=ghcr.io",
        "/v2/ghcr.io/org/app/tags/list?n=2",
        "/ghcr.io/v2/org/app/tags/list?n=2",
    ] {
        let page = house.larder.get(first);
        assert_eq!(page.json()["tags"], serde_json::json!(["a", "b"]), "{first}");
        let link = page.header("link").unwrap();
        let next = link.strip_prefix('<').unwrap().split_once('>').unwrap().0;
        let page = house.larder.get(next);
        assert_eq!(page.json()["tags"], serde_json::json!(["c"]), "{next}");
        assert_eq!(page.header("link"), None);
    }
}
