//! Isolation: images that misbehave in every known way at once harm no image of another client, and nothing that is cached.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support;

use support::hostile::pull;
use support::{HostileRegistry, Hostility, Setup, eventually};

/// Healthy images of each upstream.
const HEALTHY: u64 = 8;
/// Images of each hostile repository that are pulled at the same time.
const HOSTILE: u64 = 3;

fn hostile_images_leave_the_others(blobs: &str) {
    let (registry, other) = (HostileRegistry::start(), HostileRegistry::start());
    let larder = Setup::empty()
        .upstream_set("docker.io", "endpoints", vec![registry.url()])
        .upstream_set("docker.io", "default", true)
        .upstream_set("other.example", "endpoints", vec![other.url()])
        .set("store.blobs", blobs)
        .set("store.max_size", "256MiB")
        .start();
    let client = larder.api();
    let attacker = client.source(Ipv4Addr::new(127, 0, 0, 2));
    let cached = registry.image("team/cached", 0);
    pull(client, "team/cached", 0, &cached).unwrap();

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for hostility in Hostility::ALL {
            let (registry, stop) = (&registry, &stop);
            scope.spawn(move || registry.attack(attacker, hostility, 0..HOSTILE, stop));
        }
        eventually("hostile answers", || registry.hostile_answers() > 3 * Hostility::ALL.len());
        for n in 0..HEALTHY {
            let names = [(&registry, format!("team/app{n}")), (&other, format!("team/tool{n}"))];
            for ((registry, name), prefix) in names.into_iter().zip(["", "other.example/"]) {
                let image = registry.image(&name, n);
                let pulled = pull(client, &format!("{prefix}{name}"), n, &image);
                if pulled.is_err() {
                    stop.store(true, Ordering::Relaxed);
                }
                pulled.unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });

    drop(registry);
    pull(client, "team/cached", 0, &cached).unwrap();
    let log = larder.log_text();
    assert!(!log.contains("panicked"), "{log}");
}

/// The registry may write what fits into the buffers of a connection before it learns that the connection is closed.
#[test]
fn informational_responses_without_end_end_the_request() {
    const BUFFERS: usize = 16 << 20;
    let registry = HostileRegistry::start();
    let larder = Setup::empty()
        .upstream_set("docker.io", "endpoints", vec![registry.url()])
        .upstream_set("docker.io", "default", true)
        .start();
    let repository = Hostility::Informational.repository();
    let image = registry.image(&repository, 0);
    let paths = [
        "manifests/v0".to_owned(),
        format!("manifests/{}", image.manifest.digest),
        format!("blobs/{}", image.layers[0].digest),
    ];
    for path in paths {
        let answer = larder.api().get(&format!("/v2/{repository}/{path}"));
        assert_eq!(answer.status(), 502, "{path}: {}", answer.text());
        assert!(answer.text().contains("informational responses without end"), "{path}: {}", answer.text());
    }
    assert!(registry.hostile_answers() > 0);
    assert!(registry.informational_bytes() < BUFFERS, "{} bytes", registry.informational_bytes());
    // Says nothing about other images of the upstream.
    let healthy = registry.image("team/app", 0);
    pull(larder.api(), "team/app", 0, &healthy).unwrap();
}

#[test]
#[ignore = "needs an optimised build"]
fn hostile_images_leave_the_others_in_sled() {
    hostile_images_leave_the_others("sled");
}

#[test]
#[ignore = "needs an optimised build"]
fn hostile_images_leave_the_others_in_files() {
    hostile_images_leave_the_others("files");
}
