//! The log: fields of a request, request ids, and suppression of repeated failures.

use crate::support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::Value;
use support::fixture::{TAG, cold};
use support::{Answer, Fault, Image, Larder, Registry, Setup, TIME_LIMIT, When, eventually};

/// Returns the log line of the request with this id.
#[track_caller]
fn line_of(larder: &Larder, id: &str) -> Value {
    larder.wait_for_line(id, |line| line["message"] == "request" && line["id"] == id)
}

fn id_of(answer: &Answer) -> String {
    answer.header("x-request-id").expect("a name").to_owned()
}

#[test]
fn request_line_has_client_request_and_outcome() {
    let (_registry, larder, image) = cold();
    let answer = larder.get(TAG);
    let line = line_of(&larder, &id_of(&answer));
    assert_eq!(line["level"], "INFO");
    let client: std::net::SocketAddr = line["client"].as_str().unwrap().parse().unwrap();
    assert!(client.ip().is_loopback() && client.port() != 0);
    for (key, value) in [
        ("method", "GET"),
        ("path", TAG),
        ("upstream", "docker.io"),
        ("repository", "library/app"),
        ("reference", "v1"),
        ("outcome", "miss"),
    ] {
        assert_eq!(line[key], value, "{line}");
    }
    assert_eq!(line["status"], 200);
    assert_eq!(line["bytes"], image.manifest.bytes.len());
    assert_eq!(line["complete"], true);
    assert!(line["ms"].is_u64() && line.get("reason").is_none(), "{line}");

    let digest = &image.layers[0].digest;
    let answer = larder.get(&format!("/v2/library/app/blobs/{digest}"));
    let line = line_of(&larder, &id_of(&answer));
    assert_eq!(line["reference"], digest.as_str());
    assert_eq!(line["bytes"], image.layers[0].bytes.len());

    let answer = larder.get("/v2/library/none/manifests/v1");
    let line = line_of(&larder, &id_of(&answer));
    assert_eq!((&line["status"], &line["outcome"]), (&404.into(), &"none".into()));
    assert!(line["reason"].is_string(), "{line}");
    let answer = larder.get("/v2/nowhere.test/a/manifests/v1%0a%22");
    let line = line_of(&larder, &id_of(&answer));
    assert_eq!(line["reference"], "v1?\"", "{line}");
}

#[test]
fn text_format_has_the_same_fields() {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    let setup = Setup::with(&registry);
    let socket = setup.folder().join("larder.sock");
    let setup = setup.set("log.format", "text").set("server.listen", format!("unix:{}", socket.display()));
    let mut child = setup.command().spawn().unwrap();
    eventually("the server listens", || UnixStream::connect(&socket).is_ok());
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.set_read_timeout(Some(TIME_LIMIT)).unwrap();
    write!(stream, "GET {TAG} HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine-1\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.to_ascii_lowercase().contains("x-request-id: mine-1"), "{answer}");
    child.kill().unwrap();
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    child.wait().unwrap();
    let line = log.lines().find(|line| line.contains("mine-1")).unwrap_or_else(|| panic!("{log}"));
    for part in [
        "INFO request",
        "method=\"GET\"",
        "repository=\"library/app\"",
        "reference=v1",
        "status=200",
        "bytes=",
    ] {
        assert!(line.contains(part), "{line}");
    }
    // A client of a Unix socket has no address.
    assert!(!line.contains("client="), "{line}");
}

#[test]
fn request_id_of_the_client_is_logged_and_not_forwarded() {
    let (registry, larder, _) = cold();
    let answer = larder.api().send("GET", TAG, &[("X-Request-Id", "of-the-client")]);
    assert_eq!(id_of(&answer), "of-the-client");
    line_of(&larder, "of-the-client");
    for seen in registry.requests() {
        assert_eq!(seen.header("x-request-id"), None);
    }
    // Ids with unsafe characters are replaced, also if the request is rejected.
    for insane in ["two words", &"x".repeat(129), ""] {
        let answer = larder.api().send("POST", "/v2/a/blobs/uploads/", &[("X-Request-Id", insane)]);
        let id = id_of(&answer);
        assert_eq!((answer.status(), id.len()), (405, 32), "{id}");
        assert_eq!(line_of(&larder, &id)["method"], "POST");
    }
    assert_ne!(id_of(&larder.get("/v2/")), id_of(&larder.get("/v2/")));
}

#[test]
fn dead_upstream_does_not_flood_the_log() {
    let registry = Registry::start();
    let other = Registry::start();
    let setup = Setup::with(&registry).upstream("quay.io", &other).set("cache.negative_ttl", "0s");
    for registry in [&registry, &other] {
        registry.script(When::any(), Fault::CloseConnection);
    }
    let larder = setup.start();
    for number in 0..20 {
        assert_eq!(larder.get(&format!("/v2/library/app/manifests/v{number}")).status(), 502);
    }
    let warnings = |larder: &Larder, upstream: &str| {
        let lines = larder.log_lines();
        let fitting = lines.iter().filter(|line| line["level"] == "WARN" && line["upstream"] == upstream);
        fitting.map(|line| line["message"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // One message about the failure, and one about the open circuit breaker.
    let said = warnings(&larder, "docker.io");
    assert_eq!(said.len(), 2, "{said:?}");
    // A failure of another upstream is logged separately.
    assert_eq!(larder.get("/v2/quay.io/org/app/manifests/v1").status(), 502);
    assert_eq!(warnings(&larder, "quay.io").len(), 1);
    // Each request still has its own log line.
    eventually("21 requests are logged", || larder.count_lines("request") == 21);
}
