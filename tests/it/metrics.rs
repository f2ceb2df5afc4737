//! Metrics and log: the admin port, the metric series, one log line per request, and no secrets anywhere.

use crate::support;

use std::collections::BTreeSet;

use serde_json::Value;
use support::{Auth, Blob, Fault, Gate, Image, Larder, Registry, Setup, When, eventually};

const TAG: &str = "/v2/library/app/manifests/v1";

fn fixture() -> (Registry, Larder, Image) {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    let larder = Larder::in_front_of(&registry);
    (registry, larder, image)
}

#[test]
fn admin_port_answers_without_the_upstream() {
    let (registry, larder, _) = fixture();
    registry.down();
    for path in ["/livez", "/readyz"] {
        assert_eq!(larder.admin().get(path).status(), 200, "{path}");
        assert_eq!(larder.admin().head(path).status(), 200, "{path}");
        assert_eq!(larder.get(path).status(), 404, "{path} belongs to the admin port");
    }
    assert_eq!(larder.admin().get("/v2/").status(), 404);
    assert_eq!(larder.admin().get("/nothing").status(), 404);
    let metrics = larder.admin().get("/metrics");
    assert_eq!(metrics.status(), 200);
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain"), "{:?}", metrics.head);
    larder.admin().raw(b"\0\0garbage\r\n\r\n");
    assert_eq!(larder.admin().get("/livez").status(), 200);
}

#[test]
fn requests_are_counted_by_kind_and_outcome() {
    let (registry, larder, image) = fixture();
    let layer = &image.layers[0];
    let blob = format!("/v2/library/app/blobs/{}", layer.digest);
    let by_digest = format!("/v2/library/app/manifests/{}", image.manifest.digest);
    for path in [TAG, TAG, &by_digest, &blob] {
        assert_eq!(larder.get(path).status(), 200);
    }
    larder.wait_idle();
    for path in [&blob, "/v2/", "/v2/_catalog", "/v2/library/app/tags/list"] {
        assert_eq!(larder.get(path).status(), 200);
    }
    larder.get("/v2/library/app/manifests/none");
    larder.api().send("DELETE", TAG, &[]);
    let requests = |kind: &str, outcome: &str, status: &str| {
        let labels = [("kind", kind), ("outcome", outcome), ("status", status)];
        larder.counter("larder_requests_total", &labels)
    };
    let wanted = [
        (("manifest_tag", "miss", "2xx"), 1),
        (("manifest_tag", "hit", "2xx"), 1),
        (("manifest_digest", "hit", "2xx"), 1),
        (("blob", "miss", "2xx"), 1),
        (("blob", "hit", "2xx"), 1),
    ];
    for ((kind, outcome, status), count) in wanted {
        assert_eq!(requests(kind, outcome, status), count, "{kind} {outcome} {status}");
    }
    let of = |kind, status| larder.counter("larder_requests_total", &[("kind", kind), ("status", status)]);
    assert_eq!((of("base", "2xx"), of("catalog", "2xx"), of("tags", "2xx")), (1, 1, 1));
    // A rejected request may be counted by its requested kind, or without one.
    assert_eq!(of("manifest_tag", "4xx") + of("other", "4xx"), 2);
    let all = larder.counter("larder_requests_total", &[]);
    assert_eq!((all, larder.counter("larder_response_seconds_count", &[])), (10, 10));

    let manifest = image.manifest.bytes.len() as u64;
    let length = layer.len() as u64;
    eventually("all bytes are counted", || {
        larder.counter("larder_served_bytes_total", &[("kind", "blob")]) == 2 * length
    });
    // Lists and error documents are counted as manifests.
    let served = larder.counter("larder_served_bytes_total", &[("kind", "manifest")]);
    assert!((3 * manifest..3 * manifest + 1000).contains(&served), "{served}");
    let fetched =
        |kind| larder.counter("larder_fetched_bytes_total", &[("upstream", "docker.io"), ("kind", kind)]);
    assert_eq!((fetched("manifest"), fetched("blob")), (manifest, length));
    let answered = |status| {
        larder.counter("larder_upstream_requests_total", &[("upstream", "docker.io"), ("status", status)])
    };
    assert_eq!(
        answered("200") + answered("404"),
        registry.requests().len() as u64,
        "{}",
        larder.metrics_text()
    );
    assert_eq!(larder.counter("larder_fills_running", &[]), 0);
    assert_eq!(larder.counter("larder_verify_failures_total", &[]), 0);
    eventually("the size of the store is known", || {
        larder.counter("larder_store_bytes", &[("what", "content")]) >= manifest + length
            && larder.counter("larder_store_bytes", &[("what", "disk")]) > 0
            && larder.counter("larder_store_objects", &[("kind", "blob")]) == 1
            && larder.counter("larder_store_objects", &[("kind", "manifest")]) == 1
    });
}

#[test]
fn unanswered_upstream_request_is_counted() {
    let (registry, larder, _) = fixture();
    registry.down();
    larder.get(TAG);
    let labels = [("upstream", "docker.io"), ("status", "error")];
    assert!(larder.counter("larder_upstream_requests_total", &labels) >= 1);
    assert_eq!(larder.counter("larder_requests_total", &[("kind", "manifest_tag"), ("status", "5xx")]), 1);
}

/// Returns names with labels, without values.
fn series(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| Some(l.rsplit_once(' ')?.0.to_owned()))
        .collect()
}

#[test]
fn exposition_follows_prometheus_conventions() {
    let (_registry, larder, _) = fixture();
    larder.get(TAG);
    let text = larder.metrics_text();
    let mut types = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
            assert!(name.starts_with("larder_") || name.starts_with("process_"), "{name}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            assert!(types.insert(name.to_owned()), "{name} comes twice");
        } else if !line.starts_with('#') {
            let value = line.rsplit_once(' ').unwrap().1;
            assert!(value.parse::<f64>().is_ok_and(f64::is_finite) || line.contains("+Inf"), "{line}");
        }
    }
    for name in ["larder_requests_total", "larder_build_info", "larder_verify_failures_total"] {
        assert!(types.contains(name), "{name} is not there");
    }
    let declared = series(&text);
    assert!(
        declared.iter().any(|s| s.contains("verify_failures") && s.contains("docker.io")),
        "from the start"
    );
}

#[test]
fn requests_create_no_new_series() {
    let (_registry, larder, _) = fixture();
    let ask = |n: u32| {
        larder.get(&format!("/v2/library/none{n}/manifests/v{n}"));
        larder.get(&format!("/v2/org{n}/app/blobs/{}", Blob::new(n.to_string()).digest));
        larder.get(&format!("/v2/x/manifests/v?ns=evil{n}.test"));
        larder.get(&format!("/nowhere/{n}"));
        larder.api().send("BREW", &format!("/v2/{n}"), &[("User-Agent", "x")]);
    };
    ask(0);
    let before = series(&larder.metrics_text());
    (1..30).for_each(ask);
    let after = series(&larder.metrics_text());
    let new: Vec<_> = after.difference(&before).collect();
    assert!(new.is_empty(), "{new:?}");
}

fn request_lines(larder: &Larder) -> Vec<Value> {
    larder.log_lines().into_iter().filter(|line| line["message"] == "request").collect()
}

#[test]
fn request_is_logged_in_one_line() {
    let (_registry, larder, image) = fixture();
    larder.get(TAG);
    larder.wait_idle();
    larder.get(TAG);
    larder.head(TAG);
    larder.get("/v2/library/app/manifests/none");
    let layer = &image.layers[0];
    larder.get(&format!("/v2/library/app/blobs/{}", layer.digest));
    let refused = larder.api().send("DELETE", TAG, &[]);
    eventually("all six lines are logged", || request_lines(&larder).len() >= 6);
    let lines = request_lines(&larder);
    assert_eq!(lines.len(), 6);
    let of = |method: &str, status: u64, outcome: &str| {
        let fits = |line: &&Value| {
            line["method"] == method && line["status"] == status && line["outcome"] == outcome
        };
        let found = lines.iter().filter(fits).count();
        assert_eq!(found, 1, "{method} {status} {outcome}: {lines:#?}");
        lines.iter().find(fits).unwrap()
    };
    let bytes = image.manifest.bytes.len() as u64;
    let hit = of("GET", 200, "hit");
    assert_eq!((hit["path"].as_str(), hit["bytes"].as_u64()), (Some(TAG), Some(bytes)));
    assert_eq!(hit["upstream"], "docker.io");
    assert!(hit["ms"].is_number(), "{hit}");
    assert_eq!(of("HEAD", 200, "hit")["bytes"].as_u64(), Some(0));
    of("GET", 404, "none");
    assert_eq!(of("DELETE", 405, "none")["bytes"].as_u64(), Some(refused.body.len() as u64));
    let blob = lines.iter().find(|line| line["path"].as_str().unwrap().contains("/blobs/")).unwrap();
    assert_eq!((blob["outcome"].as_str(), blob["bytes"].as_u64()), (Some("miss"), Some(layer.len() as u64)));
}

#[test]
fn request_log_can_be_disabled() {
    let (registry, _, _) = fixture();
    let larder = Setup::with(&registry).set("log.requests", false).start();
    larder.get(TAG);
    larder.get("/v2/");
    let mut larder = larder;
    larder.stop();
    assert_eq!(request_lines(&larder).len(), 0);
}

#[test]
fn request_cannot_inject_log_lines() {
    let (_registry, larder, _) = fixture();
    let forged = "%0a{%22message%22:%22request%22,%22forged%22:true}";
    larder.get(&format!("/v2/library/app/manifests/{forged}"));
    larder.get(&format!("/v2/library/app/manifests/v1?ns={forged}"));
    larder.api().raw(b"GET /v2/\x1b[31m\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    larder.get("/v2/");
    larder.wait_for_line("line of the last request", |line| line["path"] == "/v2/");
    assert!(larder.log_lines().iter().all(|line| line["forged"].is_null()));
    assert!(!larder.log_text().contains('\u{1b}'));
}

#[test]
fn secrets_are_not_logged_at_trace_level() {
    const PASSWORD: &str = "correct-horse-battery";
    // base64 of `someone:correct-horse-battery`.
    const BASIC: &str = "c29tZW9uZTpjb3JyZWN0LWhvcnNlLWJhdHRlcnk=";
    let (registry, cdn) = (Registry::start(), Registry::start());
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    registry.add_image("library/gone", "v1", &image);
    cdn.add_image("library/app", "v1", &image);
    for auth in [
        Auth::Bearer(Some(("someone".into(), PASSWORD.into()))),
        Auth::Basic("someone".into(), PASSWORD.into()),
        // Wrong credentials cause errors, which could contain secrets.
        Auth::Bearer(Some(("someone".into(), "changed".into()))),
        Auth::Basic("someone".into(), "changed".into()),
    ] {
        registry.require_auth(auth);
        registry.clear_faults();
        let signed = format!("{}/v2/library/app/blobs/", cdn.url());
        registry.script(
            When::blobs(),
            Fault::rewrite(move |seen, plan| {
                if plan.status == 200 {
                    let digest = seen.path.rsplit('/').next().unwrap();
                    plan.status = 307;
                    plan.set("Location", &format!("{signed}{digest}?X-Signature=signed-url-secret"));
                    plan.to = 0;
                }
            }),
        );
        let setup = Setup::with(&registry);
        let file = setup.write("password", &format!("{PASSWORD}\n")).display().to_string();
        let mut larder = setup
            .set("log.level", "trace")
            .upstream_set("docker.io", "username", "someone")
            .upstream_set("docker.io", "password_file", file)
            .upstream_set("docker.io", "allow_private", true)
            .start();
        let own = [("Authorization", "Bearer clients-own-secret")];
        larder.api().send("GET", TAG, &own);
        let blob = format!("/v2/library/app/blobs/{}", image.layers[0].digest);
        larder.api().send("GET", &blob, &own);
        larder.api().send("GET", "/v2/library/app/manifests/v1?access_token=clients-own-secret", &own);
        cdn.down();
        larder.get(&format!("/v2/library/app/blobs/{}", image.config.digest));
        cdn.up();
        registry.script(When::any(), Fault::Status(500));
        larder.get("/v2/library/gone/manifests/v1");
        let metrics = larder.metrics_text();
        larder.stop();
        let log = larder.log_text();
        assert!(log.contains("\"request\""), "the log is not there");
        for secret in [PASSWORD, BASIC, "scripted-token-", "signed-url-secret", "clients-own-secret"] {
            for (place, text) in [("log", &log), ("metrics", &metrics)] {
                let line = text.lines().find(|line| line.contains(secret));
                assert_eq!(line, None, "{secret} is in the {place}");
            }
        }
    }
    assert!(
        registry
            .requests()
            .iter()
            .any(|seen| seen.header("authorization") == Some(&format!("Basic {BASIC}")))
    );
    assert!(cdn.requests().iter().all(|seen| seen.header("authorization").is_none()));
}

#[test]
fn verify_failures_count_only_verification() {
    let registry = Registry::start();
    let blob = Blob::random(1, 100_000);
    registry.add_blob("library/app", &blob);
    let larder = Larder::in_front_of(&registry);
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    let broken_page = vec![("Content-Type".to_owned(), "text/html".to_owned())];
    let faults = [
        (Fault::SetHeader("Content-Encoding", "br".to_owned()), 0),
        // An address of this machine, but not the configured host.
        (Fault::Redirect(307, "http://127.0.0.2:9".to_owned()), 0),
        (Fault::Redirect(307, "ftp://127.0.0.1".to_owned()), 0),
        (Fault::Answer(204, broken_page, Vec::new()), 0),
        (Fault::CloseConnection, 0),
        (Fault::Status(403), 0),
        (Fault::FlipBit(50_000), 1),
    ];
    for (n, (fault, failures)) in (1..).zip(faults) {
        registry.script(When::blobs().method("GET"), fault);
        if let Ok(answer) = larder.api().try_send("GET", &path, &[]) {
            assert_ne!(answer.status(), 200, "fault {n}: {answer:?}");
        }
        larder.wait_counter("larder_fills_total", &[], n);
        larder.wait_idle();
        let counted = larder.counter("larder_verify_failures_total", &[]);
        assert_eq!(counted, failures, "fault {n}: {}", larder.log_text());
        registry.clear_faults();
    }
    larder.get(&path).assert_body(&blob.bytes);
}

#[test]
fn aborted_request_is_counted_once() {
    let (registry, larder, image) = fixture();
    let blob = format!("/v2/library/app/blobs/{}", image.layers[0].digest);
    let by_digest = format!("/v2/library/app/manifests/{}", image.manifest.digest);
    for (n, path) in (1..).zip([&blob, &by_digest, TAG]) {
        let gate = Gate::new();
        registry.script(When::any().path(path), Fault::HoldHead(gate.clone()));
        let connection = larder.api().connect().unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        std::io::Write::write_all(&mut &connection, request.as_bytes()).unwrap();
        gate.wait_reached(1);
        drop(connection);
        let is_its = |line: &Value| line["message"] == "request" && line["path"] == path;
        let line = larder.wait_for_line("line of the aborted request", is_its);
        assert!(line["status"] == 499 || line["complete"] == false, "{line}");
        gate.open();
        larder.wait_idle();
        // This request ends after everything that was released by the gate.
        assert_eq!(larder.get("/v2/").status(), 200);
        assert_eq!(larder.log_lines().iter().filter(|line| is_its(line)).count(), 1, "{path}");
        assert_eq!(larder.counter("larder_requests_total", &[]), 2 * n, "{path}");
    }
}
