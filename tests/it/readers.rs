//! Readers that are behind a fill by any distance get all bytes, and never a short body that looks complete.

use crate::support;

use std::time::Duration;

use support::{Blob, Fault, Gate, Larder, Random, Registry, When, eventually};

const MIB: usize = 1 << 20;
const LENGTH: usize = 32 * MIB;

struct Filling {
    registry: Registry,
    larder: Larder,
    blob: Blob,
    path: String,
}

fn filling(faults: Vec<Fault>) -> Filling {
    let registry = Registry::start();
    let blob = Blob::random(1, LENGTH);
    registry.add_blob("library/app", &blob);
    for fault in faults {
        registry.script(When::blobs(), fault);
    }
    let larder = Larder::in_front_of(&registry);
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    Filling { registry, larder, blob, path }
}

impl Filling {
    fn sent(&self) -> usize {
        usize::try_from(self.registry.seen("GET", "/blobs/")[0].sent()).unwrap()
    }

    /// All readers got the complete blob from one download, and later readers get it from the cache.
    fn assert_complete(&self) {
        self.larder.wait_counter("larder_fills_total", &[("result", "ok")], 1);
        assert_eq!(self.registry.count("GET", "/blobs/"), 1);
        self.registry.down();
        self.larder.get(&self.path).assert_body(&self.blob.bytes);
    }
}

#[test]
fn paused_reader_continues_correctly() {
    // With a length that readers know, and without.
    for untold in [true, false] {
        // The fill is held near its end while the reader reads bytes that are no longer in memory.
        let gate = Gate::new();
        let mut faults = vec![Fault::HoldBody(30 * MIB, gate.clone())];
        if untold {
            faults.push(Fault::Chunked);
        }
        let filling = filling(faults);
        let mut stopped = false;
        let transfer = filling.larder.api().open("GET", &filling.path, &[]).unwrap();
        assert_eq!(transfer.head.content_length(), (!untold).then_some(LENGTH));
        let answer = transfer.finish_at_pace(|at| {
            if !stopped && at > MIB / 2 {
                eventually("the fill is far ahead", || filling.sent() == 30 * MIB);
                stopped = true;
            }
            if at > 24 * MIB {
                gate.open();
            }
        });
        answer.unwrap().assert_body(&filling.blob.bytes);
        filling.assert_complete();
    }
}

#[test]
fn randomly_pausing_readers_get_everything() {
    let seed = u64::from(std::process::id());
    for round in 0..4 {
        let mut faults = Vec::new();
        if round % 2 == 0 {
            faults.push(Fault::Chunked);
        }
        if round >= 2 {
            faults.push(Fault::Throttle(48 * MIB));
        }
        let filling = filling(faults);
        std::thread::scope(|scope| {
            for reader in 0..5 {
                let (filling, client) = (&filling, filling.larder.api());
                scope.spawn(move || {
                    let mut random = Random::new(seed + round * 100 + reader);
                    let mut next = 0;
                    let transfer = client.open("GET", &filling.path, &[]).unwrap();
                    let answer = transfer.finish_at_pace(|at| {
                        if at >= next {
                            next = at + usize::try_from(random.below(3 * MIB as u64)).unwrap();
                            std::thread::sleep(Duration::from_millis(random.below(50)));
                        }
                    });
                    match answer {
                        Ok(answer) => answer.assert_body(&filling.blob.bytes),
                        Err(error) => panic!("seed {seed}, round {round}, reader {reader}: {error:?}"),
                    }
                });
            }
        });
        filling.assert_complete();
    }
}
