//! Servers that name each other as endpoints: a request that comes back is refused, and the next endpoint is asked.

use crate::support;

use std::time::{Duration, Instant};

use support::fixture::TAG;
use support::{Fault, Gate, Image, Larder, Port, Registry, Setup, When};

/// Time that a circle may cost. Without detection it costs more than 4 s per request.
const QUICK: Duration = Duration::from_secs(4);

/// Servers in a circle: each one names the next one as its first endpoint, and then the registry, if there is one.
fn circle(count: usize, registry: Option<&Registry>) -> Vec<Larder> {
    let ports: Vec<Port> = (0..count).map(|_| Port::reserve()).collect();
    let servers = ports.iter().enumerate().map(|(n, port)| {
        let next = format!("http://{}", ports[(n + 1) % count].addr());
        let endpoints: Vec<String> = [next].into_iter().chain(registry.map(Registry::url)).collect();
        Setup::empty()
            .set("server.listen", port.addr().to_string())
            .upstream_set("docker.io", "endpoints", endpoints)
            .upstream_set("docker.io", "default", true)
            .start()
    });
    servers.collect()
}

fn layer(image: &Image) -> String {
    format!("/v2/library/app/blobs/{}", image.layers[0].digest)
}

#[test]
fn circle_without_a_registry_is_refused_at_once() {
    for count in 1..=3 {
        let servers = circle(count, None);
        let begin = Instant::now();
        for path in [TAG.to_owned(), layer(&Image::small(1))] {
            let answer = servers[0].get(&path);
            assert_eq!(answer.status(), 508, "{answer:?}");
            assert!(answer.json()["errors"][0]["message"].as_str().unwrap().contains("endpoints"));
        }
        assert!(begin.elapsed() < QUICK, "{:?}", begin.elapsed());
        servers[0].wait_for_line("leads back", |line| line["level"] == "WARN");
    }
}

#[test]
fn circle_with_a_registry_is_left_at_once() {
    let (registry, image) = (Registry::start(), Image::small(1));
    registry.add_image("library/app", "v1", &image);
    let servers = circle(3, Some(&registry));
    let begin = Instant::now();
    servers[0].get(TAG).assert_body(&image.manifest.bytes);
    servers[0].get(&layer(&image)).assert_body(&image.layers[0].bytes);
    assert_eq!(servers[1].get("/v2/library/app/manifests/none").status(), 404);
    assert!(begin.elapsed() < QUICK, "{:?}", begin.elapsed());
    // The other servers sent the content on, and have it now.
    registry.down();
    servers[2].get(&layer(&image)).assert_body(&image.layers[0].bytes);
}

#[test]
fn servers_that_need_the_same_content_at_once_do_not_wait_for_each_other() {
    let (registry, image) = (Registry::start(), Image::small(1));
    registry.add_image("library/app", "v1", &image);
    let servers = circle(2, Some(&registry));
    let begin = Instant::now();
    for path in [TAG.to_owned(), layer(&image)] {
        std::thread::scope(|scope| {
            for server in &servers {
                let client = server.api();
                let path = path.clone();
                scope.spawn(move || assert_eq!(client.get(&path).status(), 200));
            }
        });
    }
    assert!(begin.elapsed() < QUICK, "{:?}", begin.elapsed());
}

#[test]
fn clients_of_a_hierarchy_join_one_download() {
    let (registry, image) = (Registry::start(), Image::small(1));
    registry.add_image("library/app", "v1", &image);
    let central = Setup::with(&registry).start();
    central.get(TAG).assert_body(&image.manifest.bytes);
    let near: Vec<Larder> = (0..2)
        .map(|_| {
            let endpoints = vec![format!("http://{}", central.api_addr())];
            Setup::empty()
                .upstream_set("docker.io", "endpoints", endpoints)
                .upstream_set("docker.io", "default", true)
                .start()
        })
        .collect();
    let gate = Gate::new();
    registry.script(When::blobs(), Fault::HoldHead(gate.clone()));
    let path = layer(&image);
    std::thread::scope(|scope| {
        for server in &near {
            let (client, path) = (server.api(), path.clone());
            scope.spawn(move || assert_eq!(client.get(&path).status(), 200));
        }
        gate.wait_reached(1);
        central.wait_counter("larder_fills_joined_total", &[], 1);
        gate.open();
    });
    assert_eq!(registry.count("GET", "/blobs/"), 1);
}
