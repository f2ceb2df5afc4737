//! Quota of an upstream: it is reported, prefetch stops below the floor, and the prefetch queue survives restarts.

use crate::support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use support::{Fault, InProcessLarder, Index, Larder, Registry, Setup, When, eventually};

const TAG: &str = "/v2/library/multi/manifests/v1";

/// A registry that reports its quota as Docker Hub does, and counts GET requests of manifests.
struct Hub {
    registry: Registry,
    left: Arc<AtomicU64>,
    index: Index,
}

impl Hub {
    fn new(left: u64) -> Self {
        let registry = Registry::start();
        let index = Index::nested(1);
        registry.add_index("library/multi", "v1", &index);
        let left = Arc::new(AtomicU64::new(left));
        let counter = Arc::clone(&left);
        let tell = Fault::rewrite(move |seen, plan| {
            if seen.method == "GET" {
                let spent =
                    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
                if spent.is_err() {
                    *plan = support::script::Plan::error(429, "TOOMANYREQUESTS");
                }
            }
            plan.set("RateLimit-Limit", "100;w=21600");
            plan.set("ratelimit-remaining", &format!("{};w=21600", counter.load(Ordering::SeqCst)));
        });
        registry.script(When::manifests(), tell);
        Self { registry, left, index }
    }

    fn setup(&self) -> Setup {
        Setup::with(&self.registry).set("prefetch.quota_floor", 0.5).set("prefetch.quota_check", "50ms")
    }

    /// Returns the number of GET requests of manifests by digest. All of them are children.
    fn fetched(&self) -> usize {
        self.registry.count("GET", "/manifests/sha256:")
    }

    fn children(&self) -> usize {
        self.index.documents().len() - 1
    }

    #[track_caller]
    fn assert_children_cached(&self, larder: &Larder) {
        for document in &self.index.documents()[1..] {
            let path = format!("/v2/library/multi/manifests/{}", document.digest);
            eventually("the child is cached", || larder.get(&path).head.outcome() == "larder; hit");
        }
    }
}

#[test]
fn quota_is_shown() {
    let hub = Hub::new(90);
    let larder = hub.setup().start();
    larder.get(TAG).assert_body(&hub.index.document.bytes);
    larder.wait_idle();
    let upstream = [("upstream", "docker.io")];
    assert_eq!(larder.counter("larder_upstream_quota_limit", &upstream), 100);
    assert_eq!(larder.counter("larder_upstream_quota_remaining", &upstream), hub.left.load(Ordering::SeqCst));
    assert_eq!(hub.fetched(), hub.children());
}

#[test]
fn children_wait_below_the_quota_floor() {
    let hub = Hub::new(51);
    let larder = hub.setup().start();
    larder.get(TAG).assert_body(&hub.index.document.bytes);
    // The quota is checked at intervals with free requests, and nothing is downloaded.
    hub.registry.wait_for(3, "HEAD", "/manifests/sha256:");
    assert_eq!((hub.fetched(), hub.left.load(Ordering::SeqCst)), (0, 50));
    assert!(larder.counter("larder_children_deferred", &[]) > 0);
    // The rest of the quota is for clients.
    let child = hub.index.documents()[1];
    let path = format!("/v2/library/multi/manifests/{}", child.digest);
    larder.get(&path).assert_body(&child.bytes);
    hub.left.store(100, Ordering::SeqCst);
    hub.assert_children_cached(&larder);
    larder.wait_idle();
    assert_eq!(larder.counter("larder_children_deferred", &[]), 0);
    assert!(hub.fetched() <= hub.children());
}

#[test]
fn prefetch_queue_survives_stop_and_kill() {
    for kill in [false, true] {
        let hub = Hub::new(51);
        let mut larder = hub.setup().start();
        larder.get(TAG).assert_body(&hub.index.document.bytes);
        hub.registry.wait_for(1, "HEAD", "/manifests/sha256:");
        if kill {
            // A kill may lose the writes of the last moments.
            std::thread::sleep(Duration::from_secs(1));
            larder.kill9();
        } else {
            larder.stop();
        }
        hub.registry.forget_requests();
        larder.restart();
        hub.left.store(100, Ordering::SeqCst);
        // No client sends a request.
        hub.registry.wait_for(hub.children(), "GET", "/manifests/sha256:");
        larder.wait_idle();
        hub.registry.down();
        hub.assert_children_cached(&larder);
        // The prefetch is not repeated.
        larder.stop();
        hub.registry.up();
        hub.registry.forget_requests();
        larder.restart();
        larder.get(TAG).assert_body(&hub.index.document.bytes);
        larder.wait_idle();
        assert_eq!(hub.fetched(), 0);
    }
}

#[test]
fn one_request_probes_the_quota_for_all() {
    let hub = Hub::new(60);
    for n in 0..20 {
        hub.registry.add_index("library/multi", &format!("n{n}"), &Index::oci(1000 + 10 * n));
    }
    let larder = hub.setup().set("prefetch.quota_check", "1s").start();
    for n in 0..20 {
        assert_eq!(larder.get(&format!("/v2/library/multi/manifests/n{n}")).status(), 200);
    }
    let before = hub.registry.count("HEAD", "/manifests/sha256:");
    hub.registry.wait_for(before + 3, "HEAD", "/manifests/sha256:");
    let mut times: Vec<_> =
        hub.registry.seen("HEAD", "/manifests/sha256:").iter().map(|seen| seen.at).collect();
    times.sort();
    for pair in times.windows(2) {
        // Twenty probes would arrive at the same time. Half of the interval allows for delays of the machine.
        assert!(pair[1] - pair[0] >= Duration::from_millis(500), "more than one probe: {times:?}");
    }
}

#[test]
fn interrupted_prefetch_is_resumed_without_a_request() {
    let registry = Registry::start();
    let index = Index::oci(1);
    registry.add_index("library/multi", "v1", &index);
    registry.script(When::manifests().path("sha256:"), Fault::Status(429));
    let larder = InProcessLarder::start(Setup::with(&registry).set("prefetch.quota_check", "50ms"));
    larder.get(TAG).assert_body(&index.document.bytes);
    let deferred = || support::larder::sum_of(&larder.metrics_text(), "larder_children_deferred", &[]) > 0.5;
    eventually("the prefetch is deferred", || {
        larder.advance(Duration::from_secs(1));
        deferred()
    });
    registry.clear_faults();
    registry.forget_requests();
    eventually("the prefetch is complete", || {
        larder.advance(Duration::from_mins(1));
        !deferred() && registry.count("GET", "/manifests/sha256:") == index.documents().len() - 1
    });
}

#[test]
fn exhausted_quota_stops_requests() {
    let hub = Hub::new(0);
    let larder = hub.setup().start();
    for _ in 0..20 {
        let answer = larder.get(TAG);
        assert_eq!(answer.status(), 503);
        assert!(answer.header("retry-after").is_some());
    }
    assert!(hub.registry.requests().len() <= 5, "{}", hub.registry.requests().len());
}
