//! Pulls of healthy images beside an upstream that is hostile in one way, compared with a quiet server.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::hostile::pull;
use crate::support::{HostileRegistry, Hostility, Larder, Setup};

/// Healthy images, half of them of other repositories of the hostile upstream and half of another upstream.
const HEALTHY: u64 = 100;
/// Clients that pull hostile images.
const ATTACKERS: usize = 4;
/// Difference that the scheduling of two processors makes.
const NOISE: Duration = Duration::from_millis(10);

fn start(blobs: &str, registry: &HostileRegistry, other: &HostileRegistry) -> Larder {
    Setup::empty()
        .upstream_set("docker.io", "endpoints", vec![registry.url()])
        .upstream_set("docker.io", "default", true)
        .upstream_set("other.example", "endpoints", vec![other.url()])
        .set("store.blobs", blobs)
        .set("log.requests", false)
        .start()
}

/// Pulls all healthy images one after the other. Returns the sorted times.
fn pull_healthy(
    larder: &Larder,
    registry: &HostileRegistry,
    other: &HostileRegistry,
) -> Result<Vec<Duration>, String> {
    let mut times = Vec::new();
    for n in 0..HEALTHY {
        let (registry, name, prefix) = match n % 2 {
            0 => (registry, format!("team/app{n}"), ""),
            _ => (other, format!("team/tool{n}"), "other.example/"),
        };
        let image = registry.image(&name, n);
        let begin = Instant::now();
        pull(larder.api(), &format!("{prefix}{name}"), n, &image).map_err(|error| error.0)?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

fn p99(times: &[Duration]) -> Duration {
    times[times.len() * 99 / 100 - 1]
}

/// Compares pulls beside each hostile way with pulls from a quiet server. Returns the failures.
pub fn compare(blobs: &str) -> Vec<String> {
    let mut failures = Vec::new();
    println!("{blobs}: median and p99 of {HEALTHY} cold pulls in ms, quiet and beside hostile pulls");
    for hostility in Hostility::ALL {
        let (registry, other) = (HostileRegistry::start(), HostileRegistry::start());
        let quiet = pull_healthy(&start(blobs, &registry, &other), &registry, &other).unwrap();
        let larder = start(blobs, &registry, &other);
        let stop = AtomicBool::new(false);
        let beside = std::thread::scope(|scope| {
            for _ in 0..ATTACKERS {
                let (registry, stop, client) = (&registry, &stop, larder.api());
                scope.spawn(move || registry.attack(client, hostility, 0..u64::MAX, stop));
            }
            while registry.hostile_answers() < 10 {
                std::thread::sleep(Duration::from_millis(10));
            }
            let beside = pull_healthy(&larder, &registry, &other);
            stop.store(true, Ordering::Relaxed);
            beside
        });
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        match beside {
            Ok(beside) => {
                let ratio = ms(p99(&beside)) / ms(p99(&quiet));
                println!(
                    "{:<18} {:6.1} {:6.1}   {:6.1} {:6.1}   {ratio:.2}",
                    format!("{hostility:?}"),
                    ms(quiet[quiet.len() / 2]),
                    ms(p99(&quiet)),
                    ms(beside[beside.len() / 2]),
                    ms(p99(&beside)),
                );
                if p99(&beside) > 2 * p99(&quiet) + NOISE {
                    failures.push(format!(
                        "{blobs} {hostility:?}: p99 {:?}, quiet {:?}",
                        p99(&beside),
                        p99(&quiet)
                    ));
                }
            }
            Err(error) => failures.push(format!("{blobs} {hostility:?}: {error}")),
        }
    }
    failures
}
