//! Soak test: thousands of images through stores with a tenth of their size, while clients disconnect, the registry fails
//! and the server is killed. Churn test: constant eviction without failures, in which no request may fail. Fault test: a
//! million transfers with faults. Isolation test: healthy images beside hostile ones, compared with a quiet server.
//!
//!     cargo test --release --test soak -- --ignored --nocapture
//!
//! `SOAK_MINUTES` is the length of the soak test (21), `SOAK_KILL_SECONDS` the interval of the kills (60), `SOAK_FAULTS` the
//! number of faults (1,000,000), `SOAK_CLIENTS` the number of clients for each store (64), and `SOAK_FOLDER` a folder on a
//! small file system whose free space is checked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss, clippy::print_stdout)]
#![allow(unreachable_pub)]

mod faults;
mod instance;
mod isolation;
mod origin;
#[path = "../it/support/mod.rs"]
mod support;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use instance::Instance;
use origin::{Mode, Origin};
use support::Random;
use world::{World, Zipf};

const MIB: u64 = 1 << 20;
/// Time limit for the eviction of twenty times the size of a store.
const CHURN_WITHIN: Duration = Duration::from_mins(10);
/// Clients of each server.
const CLIENTS: u64 = 4;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Prints the measurements of an instance. Returns all unexpected ones.
fn report(instance: &Instance, world: &World) -> Vec<String> {
    instance.count();
    let counts = &instance.counts;
    let number = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (requests, hits) = *instance.hits.lock().unwrap();
    let usage = instance.usage.lock().unwrap();
    let most = |readings: &[u64]| readings.iter().copied().max().unwrap_or_default();
    let bound = instance.max_size + world.largest();
    println!(
        "{}: {} pulls, {} requests, {} MiB to clients, {:.0} MiB evicted, hit ratio {:.2}; {} aborted on purpose, known failures {:?}",
        instance.kind,
        number(&counts.pulls),
        number(&counts.requests),
        number(&counts.bytes) / MIB,
        *instance.evicted.lock().unwrap() / f64::from(1 << 20),
        hits / requests,
        number(&counts.aborted),
        counts.excused.lock().unwrap(),
    );
    println!(
        "  on disk at most {} of {} MiB, resident at most {} MiB",
        most(&usage.disk) / MIB,
        instance.max_size / MIB,
        most(&usage.rss) / MIB
    );
    let mut wrong = counts.faults.lock().unwrap().clone();
    if most(&usage.disk) > bound {
        wrong.push(format!("{}: {} bytes on disk, {bound} are allowed", instance.kind, most(&usage.disk)));
    }
    wrong
}

#[test]
#[ignore = "takes SOAK_MINUTES"]
fn soak() {
    let length = Duration::from_secs(60 * setting("SOAK_MINUTES", 21));
    let between = Duration::from_secs(setting("SOAK_KILL_SECONDS", 60));
    let world = Arc::new(World::new(2000, 3 * MIB));
    let origin = Origin::start(&world);
    let max_size = (world.bytes() / 10).max(256 * MIB);
    println!("{} MiB of images, stores of {} MiB", world.bytes() / MIB, max_size / MIB);
    let instances = [Instance::new("sled", max_size, &origin), Instance::new("files", max_size, &origin)];
    let (stop, zipf) = (AtomicBool::new(false), Zipf::new(world.images.len()));
    let (begin, mut kills, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    std::thread::scope(|scope| {
        for (n, instance) in (0..).zip(&instances) {
            for client in 0..CLIENTS {
                let (world, origin, zipf, stop) = (&world, &origin, &zipf, &stop);
                let draw = |random: &mut Random| Some(zipf.draw(random));
                scope.spawn(move || instance.pull(world, origin, 100 * n + client, draw, stop, true));
            }
        }
        let mut random = Random::new(5);
        let mut killed = Instant::now();
        let mut kill_if_due = || {
            if killed.elapsed() >= between {
                killed = Instant::now();
                for instance in &instances {
                    slowest = slowest.max(instance.kill());
                    kills += 1;
                }
            }
        };
        while begin.elapsed() < length {
            // A failure mode for some seconds, then normal operation.
            for mode in [Mode::Down, Mode::Interrupting, Mode::Corrupting, Mode::Hanging, Mode::Interrupting]
            {
                origin.set(mode);
                run_for(&instances, Duration::from_secs(2 + random.below(4)));
                origin.set(Mode::Normal);
                run_for(&instances, Duration::from_secs(5 + random.below(10)));
                kill_if_due();
            }
            // Longer than the recovery, so that failures are unexpected again.
            run_for(&instances, Duration::from_secs(35));
            kill_if_due();
            run_for(&instances, Duration::from_secs(35));
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{kills} kills in {:?}; listening again after {slowest:?} at most", begin.elapsed());
    let wrong: Vec<String> = instances.iter().flat_map(|instance| report(instance, &world)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Waits, and measures all instances once per second.
fn run_for(instances: &[Instance], time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        instances.iter().for_each(Instance::measure);
        std::thread::sleep(Duration::from_secs(1).min(end.saturating_duration_since(Instant::now())));
    }
}

#[test]
#[ignore = "takes half an hour and both processors"]
fn faults() {
    let folder = std::env::var_os("SOAK_FOLDER").map(std::path::PathBuf::from);
    faults::run(setting("SOAK_FAULTS", 1_000_000), setting("SOAK_CLIENTS", 64), folder.as_deref());
}

#[test]
#[ignore = "takes minutes and an otherwise idle machine"]
fn isolation() {
    let failures: Vec<String> = ["files", "sled"].into_iter().flat_map(isolation::compare).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
#[ignore = "takes minutes and gigabytes"]
fn churn() {
    let world = Arc::new(World::new(2000, 3 * MIB));
    for kind in ["files", "sled"] {
        let origin = Origin::start(&world);
        let instance = Instance::new(kind, 256 * MIB, &origin);
        let (stop, next) = (AtomicBool::new(false), AtomicU64::new(0));
        let wanted = 20 * instance.max_size;
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (world, origin, instance, stop, next) = (&world, &origin, &instance, &stop, &next);
                // One image after the other, in rounds: each one is evicted before it is pulled again.
                let draw = move |_: &mut Random| {
                    let n = next.fetch_add(1, Ordering::Relaxed) % world.images.len() as u64;
                    usize::try_from(n).ok()
                };
                scope.spawn(move || instance.pull(world, origin, client, draw, stop, false));
            }
            while instance.evicted_bytes() < wanted && begin.elapsed() < CHURN_WITHIN {
                instance.measure();
                std::thread::sleep(Duration::from_millis(200));
            }
            stop.store(true, Ordering::Relaxed);
        });
        let (fetched, evicted) = (origin.bytes.load(Ordering::Relaxed), instance.evicted_bytes());
        println!(
            "{kind}: {} MiB fetched and {} MiB evicted in {:?}",
            fetched / MIB,
            evicted / MIB,
            begin.elapsed()
        );
        let mut wrong = report(&instance, &world);
        if evicted < wanted {
            wrong.push(format!("{kind}: no more than {evicted} bytes were evicted"));
        }
        let usage = instance.usage.lock().unwrap();
        let mean = |part: &[u64]| part.iter().sum::<u64>() / part.len().max(1) as u64;
        let quarter = usage.rss.len() / 4;
        let (early, late) = (mean(&usage.rss[quarter..2 * quarter]), mean(&usage.rss[3 * quarter..]));
        println!("  resident in the second quarter {} MiB, in the last {} MiB", early / MIB, late / MIB);
        if late > early + early / 4 + 16 * MIB {
            wrong.push(format!("{kind}: memory grows from {early} to {late}"));
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
