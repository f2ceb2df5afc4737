//! The soak: thousands of images through stores that hold a tenth of them, while clients leave, the registry fails and
//! larder is killed; and a churn without any of that, in which no request may fail.
//!
//!     cargo test --release --test soak -- --ignored --nocapture
//!
//! `SOAK_MINUTES` is how long the soak lasts (21), `SOAK_KILL_SECONDS` how often both larders are killed (60).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss, clippy::print_stdout)]
#![allow(unreachable_pub)]

mod house;
mod origin;
#[path = "../it/support/mod.rs"]
mod support;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use house::House;
use origin::{Origin, Weather};
use support::Random;
use world::{World, Zipf};

const MIB: u64 = 1 << 20;
/// How long a store has for taking in and giving up twenty times its size.
const CHURN_WITHIN: Duration = Duration::from_mins(10);
/// Clients of each larder.
const CLIENTS: u64 = 4;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Prints what a house has seen, and says what of it should not be.
fn report(house: &House, world: &World) -> Vec<String> {
    house.count();
    let tally = &house.tally;
    let number = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (requests, hits) = *house.hits.lock().unwrap();
    let seen = house.seen.lock().unwrap();
    let most = |readings: &[u64]| readings.iter().copied().max().unwrap_or_default();
    let bound = house.max_size + world.largest();
    println!(
        "{}: {} pulls, {} requests, {} MiB to clients, {:.0} MiB evicted, hit ratio {:.2}; {} left on purpose, excused {:?}",
        house.kind,
        number(&tally.pulls),
        number(&tally.requests),
        number(&tally.bytes) / MIB,
        *house.evicted.lock().unwrap() / f64::from(1 << 20),
        hits / requests,
        number(&tally.left),
        tally.excused.lock().unwrap(),
    );
    println!(
        "  on disk at most {} of {} MiB, resident at most {} MiB",
        most(&seen.disk) / MIB,
        house.max_size / MIB,
        most(&seen.rss) / MIB
    );
    let mut wrong = tally.faults.lock().unwrap().clone();
    if most(&seen.disk) > bound {
        wrong.push(format!("{}: {} bytes on disk, {bound} are allowed", house.kind, most(&seen.disk)));
    }
    wrong
}

#[test]
#[ignore = "takes as long as it is told"]
fn soak() {
    let length = Duration::from_secs(60 * setting("SOAK_MINUTES", 21));
    let between = Duration::from_secs(setting("SOAK_KILL_SECONDS", 60));
    let world = Arc::new(World::new(2000, 3 * MIB));
    let origin = Origin::start(&world);
    let max_size = (world.bytes() / 10).max(256 * MIB);
    println!("{} MiB of images, stores of {} MiB", world.bytes() / MIB, max_size / MIB);
    let houses = [House::new("sled", max_size, &origin), House::new("files", max_size, &origin)];
    let (stop, zipf) = (AtomicBool::new(false), Zipf::new(world.images.len()));
    let (begin, mut kills, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    std::thread::scope(|scope| {
        for (n, house) in (0..).zip(&houses) {
            for client in 0..CLIENTS {
                let (world, origin, zipf, stop) = (&world, &origin, &zipf, &stop);
                let draw = |random: &mut Random| Some(zipf.draw(random));
                scope.spawn(move || house.pull(world, origin, 100 * n + client, draw, stop, true));
            }
        }
        let mut random = Random::new(5);
        let mut killed = Instant::now();
        let mut kill_if_due = || {
            if killed.elapsed() >= between {
                killed = Instant::now();
                for house in &houses {
                    slowest = slowest.max(house.kill());
                    kills += 1;
                }
            }
        };
        while begin.elapsed() < length {
            // Bad weather for some seconds, then fine for longer than its aftermath.
            for weather in
                [Weather::Down, Weather::Cutting, Weather::Lying, Weather::Hanging, Weather::Cutting]
            {
                origin.set(weather);
                rest(&houses, Duration::from_secs(2 + random.below(4)));
                origin.set(Weather::Fine);
                rest(&houses, Duration::from_secs(5 + random.below(10)));
                kill_if_due();
            }
            // So long that what bad weather excuses is over.
            rest(&houses, Duration::from_secs(35));
            kill_if_due();
            rest(&houses, Duration::from_secs(35));
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{kills} kills in {:?}; listening again after {slowest:?} at most", begin.elapsed());
    let wrong: Vec<String> = houses.iter().flat_map(|house| report(house, &world)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Lets time pass, and looks.
fn rest(houses: &[House], time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        houses.iter().for_each(House::look);
        std::thread::sleep(Duration::from_secs(1).min(end.saturating_duration_since(Instant::now())));
    }
}

#[test]
#[ignore = "takes minutes and gigabytes"]
fn churn() {
    let world = Arc::new(World::new(2000, 3 * MIB));
    for kind in ["files", "sled"] {
        let origin = Origin::start(&world);
        let house = House::new(kind, 256 * MIB, &origin);
        let (stop, next) = (AtomicBool::new(false), AtomicU64::new(0));
        let wanted = 20 * house.max_size;
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (world, origin, house, stop, next) = (&world, &origin, &house, &stop, &next);
                // One image after the other, round and round: the store holds none of them when it comes again.
                let draw = move |_: &mut Random| {
                    let n = next.fetch_add(1, Ordering::Relaxed) % world.images.len() as u64;
                    usize::try_from(n).ok()
                };
                scope.spawn(move || house.pull(world, origin, client, draw, stop, false));
            }
            while house.evicted_bytes() < wanted && begin.elapsed() < CHURN_WITHIN {
                house.look();
                std::thread::sleep(Duration::from_millis(200));
            }
            stop.store(true, Ordering::Relaxed);
        });
        let (fetched, evicted) = (origin.bytes.load(Ordering::Relaxed), house.evicted_bytes());
        println!(
            "{kind}: {} MiB fetched and {} MiB evicted in {:?}",
            fetched / MIB,
            evicted / MIB,
            begin.elapsed()
        );
        let mut wrong = report(&house, &world);
        if evicted < wanted {
            wrong.push(format!("{kind}: no more than {evicted} bytes were kept and evicted"));
        }
        let seen = house.seen.lock().unwrap();
        let mean = |part: &[u64]| part.iter().sum::<u64>() / part.len().max(1) as u64;
        let quarter = seen.rss.len() / 4;
        let (early, late) = (mean(&seen.rss[quarter..2 * quarter]), mean(&seen.rss[3 * quarter..]));
        println!("  resident in the second quarter {} MiB, in the last {} MiB", early / MIB, late / MIB);
        if late > early + early / 4 + 16 * MIB {
            wrong.push(format!("{kind}: memory grows from {early} to {late}"));
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
