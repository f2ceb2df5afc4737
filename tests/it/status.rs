//! `larder status`: of a working, downloading, rejected and failing server, and of a store without a server.

use crate::support;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;
use support::{Blob, Fault, Gate, Image, Larder, Registry, Setup, When, eventually, verb};

const TAG: &str = "/v2/library/app/manifests/v1";

fn fixture(layer: usize) -> (Registry, Larder, Image) {
    let registry = Registry::start();
    let image = Image::oci(1, "linux/amd64", vec![Blob::random(2, layer)]);
    registry.add_image("library/app", "v1", &image);
    let larder = Setup::with(&registry).set("cache.tag_ttl", "1h").start();
    (registry, larder, image)
}

fn blob(image: &Image) -> String {
    format!("/v2/library/app/blobs/{}", image.layers[0].digest)
}

fn status(larder: &Larder) -> Value {
    larder.admin().get("/api/v1/status").json()
}

#[test]
fn traffic_totals_are_shown() {
    let (_registry, larder, image) = fixture(1 << 20);
    for _ in 0..4 {
        larder.get(TAG).assert_body(&image.manifest.bytes);
        larder.get(&blob(&image)).assert_body(&image.layers[0].bytes);
    }
    larder.wait_idle();
    let report = status(&larder);
    let service = &report["service"];
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((service["requests"].as_u64(), service["hits"].as_u64()), (Some(8), Some(6)), "{report}");
    assert_eq!(service["hit_ratio"], 0.75);
    let (once, bytes) =
        (image.manifest.bytes.len() + image.layers[0].len(), |key| service[key].as_u64().unwrap());
    assert_eq!(
        (bytes("served"), bytes("fetched"), bytes("saved")),
        (once as u64 * 4, once as u64, once as u64 * 3)
    );
    assert_eq!(service["byte_hit_ratio"], 0.75);
    assert_eq!(service["addresses"], serde_json::json!([format!("http://{}", larder.api_addr())]));
    assert!(service["started_at"].as_u64().unwrap() <= report["now"].as_u64().unwrap());
    let store = &report["store"];
    assert_eq!((store["manifests"].as_u64(), store["blobs"].as_u64()), (Some(1), Some(1)), "{store}");
    assert_eq!(store["content"].as_u64(), Some(once as u64));
    assert!(
        store["disk"]["taken"].as_u64() >= Some(once as u64) && store["degraded_at"].is_null(),
        "{store}"
    );
    assert_eq!(report["upstreams"][0]["fetched"].as_u64(), Some(once as u64));
    let output = verb::online(&larder, &["status"]).exited_with(0).stdout;
    for part in
        ["75.0 % of 8 requests (6 hits)", "1 manifest and 1 blob", "docker.io", "ok", "fills      none"]
    {
        assert!(output.contains(part), "{part} is not in:\n{output}");
    }
}

#[test]
fn running_fill_is_shown() {
    let (registry, larder, image) = fixture(4 << 20);
    let gate = Gate::default();
    registry.script(When::blobs(), Fault::HoldBody(3 << 20, gate.clone()));
    let mut transfer = larder.api().open("GET", &blob(&image), &[]).unwrap();
    transfer.read_exactly(2 << 20).unwrap();
    gate.wait_reached(1);
    eventually("the fill has reached the gate", || {
        status(&larder)["fills"][0]["received"].as_u64() == Some(3 << 20)
    });
    let report = status(&larder);
    let fill = &report["fills"][0];
    assert_eq!(fill["digest"], image.layers[0].digest);
    assert_eq!(fill["repository"], "docker.io/library/app");
    assert_eq!((fill["total"].as_u64(), fill["readers"].as_u64()), (Some(4 << 20), Some(1)), "{fill}");
    assert!(fill["rate"].as_u64() > Some(0) && fill["kept"] == true && fill["settling"] == false, "{fill}");
    let output = verb::online(&larder, &["status"]).exited_with(0).stdout;
    assert!(output.contains("3.0 MiB of 4.0 MiB") && output.contains("1 reader"), "{output}");
    gate.open();
    transfer.finish().unwrap();
    larder.wait_idle();
    assert_eq!(status(&larder)["fills"], serde_json::json!([]));
}

#[test]
fn fill_without_a_reader_is_shown() {
    let (registry, larder, image) = fixture(4 << 20);
    let gate = Gate::default();
    registry.script(When::blobs(), Fault::HoldBody(3 << 20, gate.clone()));
    let transfer = larder.api().open("GET", &blob(&image), &[]).unwrap();
    gate.wait_reached(1);
    transfer.hang_up();
    eventually("the reader has left", || {
        let fill = &status(&larder)["fills"][0];
        fill["digest"] == image.layers[0].digest && fill["readers"] == 0 && fill["received"] == 3 << 20
    });
    let output = verb::online(&larder, &["status"]).exited_with(0).stdout;
    assert!(output.contains("3.0 MiB of 4.0 MiB") && output.contains("0 readers"), "{output}");
    assert!(larder.admin().get("/").text().contains("0 readers"));
    gate.open();
    larder.wait_idle();
}

#[test]
fn fill_that_is_only_passed_through_is_shown() {
    let (registry, larder, image) = fixture(40 << 20);
    let larder = larder.restart_with(|setup| setup.set("store.min_free", "1EiB"));
    let gate = Gate::default();
    registry.script(When::blobs(), Fault::HoldBody(36 << 20, gate.clone()));
    // The bytes at the start leave the window in memory, so that nobody can join.
    let mut transfer = larder.api().open("GET", &blob(&image), &[]).unwrap();
    transfer.read_exactly(35 << 20).unwrap();
    gate.wait_reached(1);
    eventually("the fill is listed", || {
        let fill = &status(&larder)["fills"][0];
        fill["digest"] == image.layers[0].digest && fill["readers"] == 1 && fill["kept"] == false
    });
    gate.open();
    transfer.finish().unwrap();
    larder.wait_idle();
    assert_eq!(status(&larder)["fills"], serde_json::json!([]));
}

#[test]
fn failing_upstream_and_quota_are_shown() {
    let (registry, larder, image) = fixture(1000);
    registry.script(
        When::manifests(),
        Fault::rewrite(|_, plan| {
            plan.set("RateLimit-Limit", "100;w=21600");
            plan.set("RateLimit-Remaining", "7;w=21600");
        }),
    );
    larder.get(TAG).assert_body(&image.manifest.bytes);
    larder.wait_idle();
    let endpoint = &status(&larder)["upstreams"][0]["endpoints"][0];
    assert_eq!((endpoint["breaker"].as_str(), endpoint["failures"].as_u64()), (Some("closed"), Some(0)));
    let quota = &endpoint["quota"];
    assert_eq!((quota["limit"].as_u64(), quota["remaining"].as_u64()), (Some(100), Some(7)));
    assert_eq!(quota["resets_at"].as_u64().unwrap() - quota["seen_at"].as_u64().unwrap(), 21_600_000);
    registry.down();
    for number in 0..3 {
        assert_eq!(larder.get(&format!("/v2/library/app/manifests/gone-{number}")).status(), 502);
    }
    let report = status(&larder);
    let endpoint = &report["upstreams"][0]["endpoints"][0];
    assert_eq!(endpoint["breaker"], "open", "{endpoint}");
    assert!(endpoint["open_until"].as_u64() > report["now"].as_u64() && endpoint["error"].is_string());
    let warned = &report["warnings"][0];
    assert!(warned["message"].as_str().unwrap().contains("only probes are sent"), "{report}");
    assert!(warned["detail"].as_str().unwrap().contains("docker.io"), "{warned}");
    let output = verb::online(&larder, &["status"]).exited_with(0).stdout;
    assert!(
        output.contains("warning")
            && output.contains("open, probed")
            && output.contains("7 of 100, resets within"),
        "{output}"
    );
}

#[test]
fn failed_and_stale_requests_lower_the_hit_ratio() {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
    larder.get(TAG).assert_body(&image.manifest.bytes);
    larder.wait_idle();
    registry.down();
    larder.get(TAG).assert_body(&image.manifest.bytes);
    for number in 0..2 {
        assert_eq!(larder.get(&format!("/v2/library/app/manifests/gone-{number}")).status(), 502);
    }
    let service = status(&larder)["service"].clone();
    let figure = |name: &str| service[name].as_u64().unwrap();
    assert_eq!(
        (figure("requests"), figure("hits"), figure("failed"), figure("stale")),
        (4, 1, 2, 1),
        "{service}"
    );
    assert_eq!(service["hit_ratio"], 0.25);
    let output = verb::online(&larder, &["status"]).exited_with(0).stdout;
    for part in ["25.0 % of 4 requests", "2 requests answered with 5xx", "1 request answered without"] {
        assert!(output.contains(part), "{part} is not in:\n{output}");
    }
    let page = larder.admin().get("/").text();
    assert!(
        page.contains("2 requests failed (5xx)") && page.contains("1 request answered with stale"),
        "{page}"
    );
}

#[test]
fn requests_of_doctor_are_not_counted() {
    let (_registry, larder, image) = fixture(1000);
    larder.get(TAG).assert_body(&image.manifest.bytes);
    larder.wait_idle();
    let (address, server) = (larder.api_addr().to_string(), format!("http://{}", larder.admin_addr()));
    let config = larder.setup().config_file();
    let mut command = larder.setup().bare_command();
    command.args(["doctor", "--server", &server, "--address", &address, "--config"]).arg(config);
    let output = verb::run(larder.setup(), &mut command).exited_with(0);
    assert!(output.stdout.contains("can be pulled"), "{output:?}");
    let service = status(&larder)["service"].clone();
    assert_eq!(service["requests"], 1, "{service}");
    assert_eq!(larder.counter("larder_requests_total", &[]), 1);
}

#[test]
fn store_without_a_server_has_a_status() {
    let (_registry, mut larder, image) = fixture(1000);
    larder.get(TAG).assert_body(&image.manifest.bytes);
    larder.wait_idle();
    larder.stop();
    let setup = larder.into_setup();
    let output = verb::offline(&setup, &["status"]).exited_with(0).stdout;
    assert!(output.contains("no server runs") && output.contains("1 manifest and 0 blobs"), "{output}");
    assert!(!output.contains("hits") && !output.contains("docker.io"), "{output}");
    let report = verb::offline(&setup, &["status", "--json"]).exited_with(0).json();
    assert!(report["service"].is_null() && report["store"]["manifests"] == 1, "{report}");
    let watched = verb::offline(&setup, &["status", "--watch"]).exited_with(0);
    assert!(watched.stderr.contains("nothing to watch"), "{watched:?}");
}

#[test]
fn watch_prints_json_lines() {
    let (_registry, mut larder, image) = fixture(1000);
    let server = format!("http://{}", larder.admin_addr());
    let mut command = larder.setup().bare_command();
    command.args(["status", "--json", "--watch", "1", "--server", &server]).stdout(Stdio::piped());
    let mut watching = command.spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["service"]["requests"].as_u64(), Some(0));
    larder.get(TAG).assert_body(&image.manifest.bytes);
    while next()["service"]["requests"].as_u64() != Some(1) {}
    // The log continues when no server answers.
    larder.kill9();
    let mut complaints = BufReader::new(watching.stderr.take().unwrap()).lines();
    assert!(complaints.next().unwrap().unwrap().contains("no server answers"));
    assert!(watching.try_wait().unwrap().is_none());
    watching.kill().unwrap();
    watching.wait().unwrap();
}
