//! Jobs: prefetch, removal, verification and garbage collection, on a running server and offline.

use crate::support;

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};
use support::folder::on_disk;
use support::verb;
use support::{Blob, Fault, Gate, Image, Index, Larder, Registry, Seen, Setup, When, eventually};

const MIB: usize = 1 << 20;

fn post(larder: &Larder, task: &Value, headers: &[(&str, &str)]) -> (u16, Value) {
    let body = task.to_string();
    let mut stream = TcpStream::connect(larder.admin_addr()).unwrap();
    let mut text = format!("POST /api/v1/jobs HTTP/1.1\r\nHost: {}\r\n", larder.admin_addr());
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()));
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    (status, serde_json::from_str(body).unwrap_or_default())
}

const JSON: (&str, &str) = ("Content-Type", "application/json");

fn fixture() -> (Registry, Index, Larder) {
    let registry = Registry::start();
    let index = Index::oci(7);
    registry.add_index("library/multi", "v1", &index);
    registry.add_image("org/app", "1", &Image::small(3));
    // Background prefetch would mix with the requests of the job.
    let larder = Setup::with(&registry).set("prefetch.children", false).set("cache.tag_ttl", "1h").start();
    (registry, index, larder)
}

#[test]
fn warmed_image_is_pulled_without_the_registry() {
    let (registry, index, larder) = fixture();
    let ran =
        verb::online(&larder, &["warm", "multi:v1", "org/app:1", "--platform", "linux/arm64", "--json"]);
    let report = ran.exited_with(0).json();
    assert_eq!(report["complete"], true, "{report}");
    let first = &report["images"][0];
    assert_eq!(
        (&first["reference"], &first["digest"]),
        (&json!("docker.io/library/multi:v1"), &json!(index.document.digest))
    );
    assert_eq!(
        (&first["platforms"], &first["blobs"], &first["fetched"]),
        (&json!(["linux/arm64"]), &json!(2), &json!(2))
    );
    for blob in index.images[0].blobs() {
        assert_eq!(registry.count("GET", &blob.digest), 0, "another platform's");
    }
    registry.down();
    verb::online(&larder, &["check", "--offline", "multi:v1", "--platform", "linux/arm64"]).exited_with(0);
    larder.get("/v2/library/multi/manifests/v1").assert_body(&index.document.bytes);
    let arm = &index.images[1];
    larder
        .get(&format!("/v2/library/multi/manifests/{}", arm.manifest.digest))
        .assert_body(&arm.manifest.bytes);
    for blob in arm.blobs() {
        larder.get(&format!("/v2/library/multi/blobs/{}", blob.digest)).assert_body(&blob.bytes);
    }
}

#[test]
fn all_platforms_are_fetched_once() {
    let (registry, index, larder) = fixture();
    let list =
        larder.setup().write("list.txt", "# what we use\nmulti:v1\n\norg/app:1 # and this\nmulti:v1\n");
    let arguments = ["warm", "--file", list.to_str().unwrap(), "--all-platforms", "--json"];
    let report = verb::online(&larder, &arguments).exited_with(0).json();
    assert_eq!(report["images"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(report["images"][0]["manifests"], 3);
    let blobs: Vec<&Blob> = index.images.iter().flat_map(Image::blobs).collect();
    for blob in &blobs {
        assert_eq!(registry.count("GET", &blob.digest), 1);
    }
    let again = verb::online(&larder, &arguments).exited_with(0).json();
    assert_eq!(again["images"][0]["fetched"], 0, "{again}");
    for blob in &blobs {
        assert_eq!(registry.count("GET", &blob.digest), 1, "what is held is not fetched again");
    }
}

#[test]
fn failure_of_one_image_does_not_stop_the_others() {
    let (_registry, index, larder) = fixture();
    let right = format!("multi:v1@{}", index.document.digest);
    verb::online(&larder, &["warm", &right, "--platform", "linux/amd64"]).exited_with(0);
    let wrong = format!("multi:v1@{}", Blob::random(1, 1).digest);
    let ran = verb::online(&larder, &["warm", &wrong, "org/app:1"]).exited_with(4);
    assert!(ran.stdout.contains("cached docker.io/org/app:1"), "{ran:?}");
    let by_digest = format!("org/app@{}", Image::small(3).manifest.digest);
    verb::online(&larder, &["warm", &by_digest]).exited_with(0);
}

#[test]
fn unfetchable_content_is_named() {
    let (_registry, _, larder) = fixture();
    let ran = verb::online(&larder, &["warm", "multi:v2", "multi:v1", "--platform", "linux/s390x", "--json"])
        .exited_with(4);
    let report = ran.json();
    assert_eq!(report["complete"], false);
    assert!(report["images"][0]["error"].as_str().unwrap().contains("does not have it"), "{report}");
    assert!(
        report["images"][1]["error"].as_str().unwrap().contains("available: linux/amd64, linux/arm64"),
        "{report}"
    );
    assert!(ran.stderr.contains("2 of 2 images"), "{ran:?}");
    verb::online(&larder, &["warm"]).exited_with(2);
}

#[test]
fn store_without_a_server_is_warmed() {
    let (registry, index, mut larder) = fixture();
    larder.stop();
    let setup = larder.into_setup();
    verb::offline(&setup, &["warm", "multi:v1", "--platform", "linux/amd64"]).exited_with(0);
    verb::offline(&setup, &["check", "--offline", "multi:v1", "--platform", "linux/amd64"]).exited_with(0);
    registry.down();
    let larder = setup.start();
    for blob in index.images[0].blobs() {
        larder.get(&format!("/v2/library/multi/blobs/{}", blob.digest)).assert_body(&blob.bytes);
    }
}

#[test]
fn killed_job_is_resumed() {
    let (registry, _, mut larder) = fixture();
    let layer = Blob::random(5, 8 * MIB);
    registry.add_image("org/big", "1", &Image::oci(9, "linux/amd64", vec![layer.clone()]));
    larder.stop();
    let setup = larder.into_setup();
    let gate = Gate::new();
    registry.script(When::blobs().path(&layer.digest).times(1), Fault::HoldBody(6 * MIB, gate.clone()));
    let line = ["warm", "org/big:1", "--platform", "linux/amd64", "--json"];
    let mut killed =
        setup.bare_command().args(line).arg("--config").arg(setup.config_file()).spawn().unwrap();
    gate.wait_reached(1);
    eventually("most of the layer is written", || on_disk(&setup.data().join("drafts")) > 5 * MIB as u64);
    killed.kill().unwrap();
    killed.wait().unwrap();
    gate.open();
    let report = verb::offline(&setup, &line).exited_with(0).json();
    assert_eq!(report["complete"], true, "{report}");
    let starts: Vec<_> = registry.seen("GET", &layer.digest).iter().map(Seen::range_start).collect();
    assert!(matches!(starts[..], [None, Some(at)] if at > 5 * MIB as u64), "{starts:?}");
}

#[test]
fn job_is_watched_to_its_end() {
    let (registry, index, larder) = fixture();
    let layer = index.images[0].layers[0].clone();
    let gate = Gate::new();
    registry.script(When::blobs().path(&layer.digest), Fault::HoldBody(100, gate.clone()));
    let task = json!({ "verb": "warm", "references": ["multi:v1"], "platforms": ["linux/amd64"] });
    let (status, view) = post(&larder, &task, &[JSON]);
    assert_eq!((status, &view["verb"], &view["state"]), (202, &json!("warm"), &json!("running")), "{view}");
    let path = format!("/api/v1/jobs/{}", view["id"]);
    eventually("the layer is being downloaded", || {
        let bars = larder.admin().get(&path).json()["progress"]["bars"].clone();
        bars[0]["total"].as_u64().is_some_and(|total| total > 5000)
            && bars[0]["name"] == "docker.io/library/multi:v1"
    });
    let events = larder.admin().open("GET", &format!("{path}/events"), &[]).unwrap();
    assert_eq!(events.head.header("content-type"), Some("text/event-stream"));
    gate.open();
    let text = events.finish().unwrap().text();
    assert!(text.starts_with("event: progress\ndata: {"), "{text}");
    let last = text.trim_end().rsplit_once("event: end\ndata: ").unwrap().1;
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!((&last["state"], &last["report"]["complete"]), (&json!("done"), &json!(true)), "{last}");
    let all = larder.admin().get("/api/v1/jobs").json();
    assert_eq!(all[0]["state"], "done");
}

#[test]
fn job_continues_visibly_when_its_command_is_stopped() {
    let (registry, index, larder) = fixture();
    let layer = index.images[0].layers[0].clone();
    let gate = Gate::new();
    registry.script(When::blobs().path(&layer.digest), Fault::HoldBody(100, gate.clone()));
    let server = format!("http://{}", larder.admin_addr());
    let mut command = larder.setup().bare_command();
    let stopped = command.args(["warm", "multi:v1", "--platform", "linux/amd64", "--server", &server]);
    let child = stopped.spawn().unwrap();
    gate.wait_reached(1);
    let line = format!("kill -s INT {}", child.id());
    assert!(std::process::Command::new("sh").args(["-c", &line]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("job 1 continues"), "{said}");
    let status = verb::online(&larder, &["status"]).exited_with(0).stdout;
    assert!(status.contains("1 warm, "), "{status}");
    gate.open();
    eventually("the job has ended", || larder.admin().get("/api/v1/jobs/1").json()["state"] == "done");
    let report = larder.admin().get("/api/v1/jobs/1").json();
    assert_eq!(report["report"]["complete"], true, "{report}");
}

#[test]
fn job_can_be_cancelled_and_its_fills_continue() {
    let (registry, index, larder) = fixture();
    let layer = index.images[0].layers[0].clone();
    let gate = Gate::new();
    registry.script(When::blobs().path(&layer.digest), Fault::HoldBody(100, gate.clone()));
    let task = json!({ "verb": "warm", "references": ["multi:v1"], "platforms": ["linux/amd64"] });
    let (_, view) = post(&larder, &task, &[JSON]);
    let path = format!("/api/v1/jobs/{}", view["id"]);
    registry.wait_for(1, "GET", &layer.digest);
    assert_eq!(larder.admin().send("DELETE", &path, &[]).json()["state"], "cancelled");
    assert_eq!(larder.admin().get(&path).json()["state"], "cancelled");
    gate.open();
    larder.wait_idle();
    larder.get(&format!("/v2/library/multi/blobs/{}", layer.digest)).assert_body(&layer.bytes);
    assert_eq!(registry.count("GET", &layer.digest), 1);
}

#[test]
fn malformed_job_is_refused() {
    let (_registry, _, larder) = fixture();
    for (task, headers, status) in [
        (json!({ "verb": "nothing" }), vec![JSON], 400),
        (json!({ "verb": "gc", "more": 1 }), vec![JSON], 400),
        (json!({ "verb": "gc" }), vec![("Content-Type", "text/plain")], 415),
        (json!({ "verb": "gc" }), vec![("Origin", "http://example.com")], 403),
    ] {
        let (found, answer) = post(&larder, &task, &headers);
        assert_eq!(found, status, "{task} {headers:?}: {answer}");
    }
    assert_eq!(larder.admin().send("GET", "/api/v1/images", &[("Host", "example.com")]).status(), 403);
    assert_eq!(larder.admin().get("/api/v1/jobs/7").status(), 404);
    assert_eq!(larder.admin().get("/api/v1/jobs/x").status(), 404);
    assert_eq!(larder.admin().send("PUT", "/api/v1/jobs", &[JSON]).status(), 405);
    assert_eq!(larder.admin().get("/api/v1/jobs").json(), json!([]));
}

#[test]
fn removed_tag_removes_unshared_content() {
    for kind in ["files", "sled"] {
        let registry = Registry::start();
        let shared = Blob::random(1, 40_000);
        let own = Blob::random(2, 50_000);
        let one = Image::oci(1, "linux/amd64", vec![shared.clone(), own.clone()]);
        let other = Image::oci(2, "linux/amd64", vec![shared.clone()]);
        registry.add_image("org/app", "1", &one);
        registry.add_image("org/app", "2", &other);
        let larder = Setup::with(&registry).set("store.blobs", kind).set("cache.tag_ttl", "1h").start();
        verb::online(&larder, &["warm", "org/app:1", "org/app:2"]).exited_with(0);
        larder.wait_idle();
        let report = verb::online(&larder, &["rm", "org/app:1", "--json"]).exited_with(0).json();
        let row = &report["images"][0];
        assert_eq!(
            (&row["tags"], &row["manifests"], &row["blobs"], &row["kept"]),
            (&json!(1), &json!(1), &json!(2), &json!(1)),
            "{kind}: {row}"
        );
        verb::online(&larder, &["inspect", "org/app:1"]).exited_with(5);
        verb::online(&larder, &["check", "--offline", "org/app:2"]).exited_with(0);
        // Removed content is downloaded again on request, except the parts that stayed.
        registry.forget_requests();
        larder.get("/v2/org/app/manifests/1").assert_body(&one.manifest.bytes);
        for blob in one.blobs() {
            larder.get(&format!("/v2/org/app/blobs/{}", blob.digest)).assert_body(&blob.bytes);
        }
        assert_eq!((registry.count("GET", &own.digest), registry.count("GET", &shared.digest)), (1, 0));
        verb::online(&larder, &["rm", "org/app:3"]).exited_with(5);
    }
}

#[test]
fn removal_keeps_content_of_other_repositories() {
    let registry = Registry::start();
    let image = Image::small(4);
    for repository in ["org/one", "org/other"] {
        registry.add_image(repository, "1", &image);
    }
    let larder = Larder::in_front_of(&registry);
    verb::online(&larder, &["warm", "org/one:1", "org/other:1"]).exited_with(0);
    larder.wait_idle();
    let by_digest = format!("org/one@{}", image.manifest.digest);
    let row = verb::online(&larder, &["rm", &by_digest, "--json"]).exited_with(0).json()["images"][0].clone();
    assert_eq!((&row["tags"], &row["manifests"], &row["blobs"]), (&json!(1), &json!(0), &json!(0)), "{row}");
    verb::online(&larder, &["check", "--offline", "org/other:1"]).exited_with(0);
    verb::online(&larder, &["tags", "org/one"]).exited_with(5);
}

#[test]
fn store_in_use_is_verified_and_collected_by_the_server() {
    let (_registry, _, larder) = fixture();
    verb::online(&larder, &["warm", "multi:v1", "--all-platforms"]).exited_with(0);
    larder.wait_idle();
    let report = verb::online(&larder, &["verify", "--json"]).exited_with(0).json();
    assert_eq!(
        (&report["manifests"], &report["blobs"], &report["damaged"]),
        (&json!(3), &json!(4), &json!([])),
        "{report}"
    );
    let report = verb::online(&larder, &["gc", "--json"]).exited_with(0).json();
    assert_eq!(report["reached"]["reachable"]["manifests"], 3, "{report}");
}

#[test]
fn token_is_required_beyond_loopback() {
    let registry = Registry::start();
    let setup = Setup::with(&registry);
    let token = setup.write("token", "a-long-secret\n");
    let setup = setup.set("admin.listen", "0.0.0.0:0");
    let closed = setup.start();
    let answer = closed.admin().get("/api/v1/images");
    assert_eq!((answer.status(), &answer.json()["error"]["code"]), (403, &json!("token")));
    assert_eq!(closed.admin().get("/metrics").status(), 200);
    let larder = closed.restart_with(|setup| setup.set("admin.token_file", token.to_str().unwrap()));
    let ask = |value: &str| larder.admin().send("GET", "/api/v1/images", &[("Authorization", value)]);
    assert_eq!(ask("Bearer a-long-secret").status(), 200);
    for wrong in ["Bearer a-long-secre", "Bearer a-long-secrets", "Basic a-long-secret", "Bearer "] {
        let answer = ask(wrong);
        assert_eq!(answer.status(), 401, "{wrong}");
        assert!(answer.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")));
    }
    assert_eq!(larder.admin().get("/api/v1/images").status(), 401);
    assert_eq!(larder.admin().get("/livez").status(), 200);
    let ran = verb::online(&larder, &["ls"]).exited_with(1);
    assert!(ran.stderr.contains("token"), "{ran:?}");
    verb::online(&larder, &["ls", "--token-file", token.to_str().unwrap()]).exited_with(0);
    // A browser sends its password also for a page of another origin, and over plain HTTP does not tell.
    let password = "Basic OmEtbG9uZy1zZWNyZXQ=";
    let export = |headers: &[(&str, &str)]| {
        larder.admin().send("GET", "/api/v1/export?reference=app:v1", headers).status()
    };
    assert_eq!(ask(password).status(), 200);
    assert_eq!(export(&[("Authorization", password)]), 403);
    assert!(registry.requests().is_empty());
    let own_page = ("Sec-Fetch-Site", "same-origin");
    // The registry does not have the image.
    assert_eq!(export(&[("Authorization", password), own_page]), 502);
    assert_eq!(export(&[("Authorization", "Bearer a-long-secret")]), 502);
    // A new token is valid immediately.
    larder.setup().write("token", "another");
    assert_eq!(ask("Bearer a-long-secret").status(), 401);
    assert_eq!(ask("Bearer another").status(), 200);
}

#[test]
fn token_can_be_required_on_loopback() {
    let registry = Registry::start();
    let setup = Setup::with(&registry);
    let token = setup.write("token", "a-long-secret\n").display().to_string();
    let larder = setup.set("admin.token_file", token.as_str()).set("admin.require_token", true).start();
    for path in ["/api/v1/images", "/api/v1/export?reference=app:v1", "/", "/images"] {
        assert_eq!(larder.admin().get(path).status(), 401, "{path}");
    }
    assert_eq!(post(&larder, &json!({ "verb": "gc" }), &[JSON]).0, 401);
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(larder.admin().get(path).status(), 200, "{path}");
    }
    // The command line reads the token from the configuration.
    verb::online(&larder, &["ls"]).exited_with(1);
    let file = larder.setup().config_file().display().to_string();
    verb::online(&larder, &["ls", "--config", &file]).exited_with(0);
}

#[test]
fn token_is_required_only_with_a_token_file() {
    let exit = Setup::empty().set("admin.require_token", true).run_to_exit();
    exit.assert_error(&["admin.require_token", "token_file"]);
}

#[test]
fn foreign_pages_reach_only_health_checks() {
    let registry = Registry::start();
    let larder = Larder::in_front_of(&registry);
    let foreign = [
        ("Origin", "http://example.com"),
        ("Origin", "null"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
        ("Host", "example.com"),
    ];
    for header in foreign {
        let status = |path: &str| larder.admin().send("GET", path, &[header]).status();
        for path in ["/", "/api/v1", "/api/v1/export?reference=app:v1", "/metrics", "/favicon.svg", "/raw"] {
            assert_eq!(status(path), 403, "{header:?} {path}");
        }
        assert_eq!((status("/livez"), status("/readyz")), (200, 200), "{header:?}");
    }
    assert!(registry.requests().is_empty());
    let own = format!("http://{}", larder.admin_addr());
    let own = [("Origin", own.as_str()), ("Sec-Fetch-Site", "same-origin")];
    assert_eq!(larder.admin().send("GET", "/metrics", &own).status(), 200);
}

#[test]
fn exactly_one_host_is_required() {
    let registry = Registry::start();
    let larder = Larder::in_front_of(&registry);
    let ports = [
        (larder.api(), vec!["/v2/", "/v2/library/app/manifests/v1", "/"]),
        (larder.admin(), vec!["/", "/livez", "/metrics", "/api/v1/images", "/style.css"]),
    ];
    for (port, paths) in ports {
        for path in paths {
            for hosts in ["", "Host: 127.0.0.1\r\nHost: 127.0.0.1\r\n", "Host: a b\r\n"] {
                let request = format!("GET {path} HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
                let answer = String::from_utf8(port.raw(request.as_bytes())).unwrap();
                assert!(answer.starts_with("HTTP/1.1 400 "), "{path} {hosts:?}: {answer}");
            }
        }
        // HTTP/1.0 requires no Host.
        let answer = port.raw(b"GET /v2/ HTTP/1.0\r\n\r\n");
        assert!(!answer.starts_with(b"HTTP/1.0 400 "), "{}", String::from_utf8_lossy(&answer));
    }
    assert!(registry.requests().is_empty());
}

#[test]
fn image_that_does_not_fit_is_not_reported_as_cached() {
    for kind in ["files", "sled"] {
        let registry = Registry::start();
        let layers = (0..8).map(|seed| Blob::random(seed, 3 * MIB)).collect();
        registry.add_image("org/big", "1", &Image::oci(9, "linux/amd64", layers));
        // The database accepts no smaller limit than 256 MiB, and so has room for the image.
        let size = if kind == "files" { "8MiB" } else { "256MiB" };
        let setup = Setup::with(&registry).set("store.blobs", kind).set("store.max_size", size);
        let larder = setup.set("store.min_free", "0B").set("cache.tag_ttl", "1h").start();
        let warmed = verb::online(&larder, &["warm", "org/big:1", "--platform", "linux/amd64"]);
        let check = ["check", "--offline", "org/big:1", "--platform", "linux/amd64"];
        assert_eq!(warmed.code, verb::online(&larder, &check).code, "{kind}: {warmed:?}");
        if kind == "files" {
            assert_eq!(warmed.code, 4, "{warmed:?}");
        }
    }
}
