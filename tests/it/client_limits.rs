//! Limits of the client port: connections of one client, silent connections, and request heads.

use crate::support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use support::fixture::MIB;
use support::{Blob, Client, Fault, Gate, Image, Larder, Registry, Setup, TIME_LIMIT, When, eventually};

/// Server with a blob whose downloads are held half-way.
struct Held {
    larder: Larder,
    path: String,
    gate: Gate,
    _registry: Registry,
}

fn held(setup: impl FnOnce(Setup) -> Setup) -> Held {
    let registry = Registry::start();
    let blob = Blob::random(1, 2 * MIB);
    registry.add_blob("library/app", &blob);
    let gate = Gate::new();
    registry.script(When::blobs(), Fault::HoldBody(MIB, gate.clone()));
    let larder = setup(Setup::with(&registry)).start();
    Held { larder, path: format!("/v2/library/app/blobs/{}", blob.digest), gate, _registry: registry }
}

/// Returns the answer to a request from another address of this machine.
fn get_from(source: &str, server: SocketAddr, path: &str) -> String {
    read_answer(connect_from(source, server), path)
}

/// Opens a connection from another address of this machine.
fn connect_from(source: &str, server: SocketAddr) -> TcpStream {
    let source = format!("{source}:0").parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(source).unwrap();
        socket.connect(server).await.unwrap().into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    stream
}

/// Sends a request and returns everything that the server answers before it closes the connection.
fn read_answer(mut stream: TcpStream, path: &str) -> String {
    stream.set_read_timeout(Some(TIME_LIMIT)).unwrap();
    // The server may have closed the connection already.
    let _ = write!(stream, "GET {path} HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn silent_connections_keep_no_client_out() {
    let registry = Registry::start();
    let larder = Setup::with(&registry).set("server.max_connections", 4).start();
    let mut silent: Vec<_> = (0..4).map(|_| larder.api().connect().unwrap()).collect();
    for unfinished in &mut silent[..2] {
        unfinished.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: ").unwrap();
    }
    larder.get("/v2/").assert_body(b"{}");
    assert!(get_from("127.0.0.2", larder.api_addr(), "/v2/").starts_with("HTTP/1.1 200 "));
    assert!(larder.counter("larder_connections_reclaimed_total", &[]) >= 1);
    assert!(larder.counter("larder_connections", &[]) <= 4);
    assert_eq!(larder.counter("larder_connections_refused_total", &[]), 0);
}

#[test]
fn client_with_too_many_connections_is_refused_and_others_are_served() {
    let held = held(|setup| setup.set("server.max_connections_per_client", 2));
    let larder = &held.larder;
    let transfers = [(), ()].map(|()| larder.api().open("GET", &held.path, &[]).unwrap());
    for _ in 0..3 {
        let refused = read_answer(larder.api().connect().unwrap(), "/v2/");
        assert_eq!(refused, "", "the connection is closed at once");
    }
    assert!(get_from("127.0.0.2", larder.api_addr(), "/v2/").starts_with("HTTP/1.1 200 "));
    assert_eq!(larder.counter("larder_connections_refused_total", &[]), 3);
    let warnings = larder.log_lines();
    let warnings: Vec<_> = warnings.iter().filter(|line| line["client"] == "127.0.0.1").collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!((&warnings[0]["level"], &warnings[0]["limit"]), (&"WARN".into(), &2.into()));
    held.gate.open();
    drop(transfers);
    eventually("the client is served again", || {
        read_answer(larder.api().connect().unwrap(), "/v2/").starts_with("HTTP/1.1 200 ")
    });
}

#[test]
fn connections_beyond_the_limit_wait_while_all_are_answering() {
    let limits =
        |setup: Setup| setup.set("server.max_connections", 2).set("server.max_connections_per_client", 3);
    let held = held(limits);
    let larder = &held.larder;
    let transfers = [(), ()].map(|()| larder.api().open("GET", &held.path, &[]).unwrap());
    let hasty = larder.api().read_timeout(Duration::from_millis(300));
    hasty.try_send("GET", "/v2/", &[]).unwrap_err();
    held.gate.open();
    drop(transfers);
    larder.get("/v2/").assert_body(b"{}");
    assert_eq!(larder.counter("larder_connections_refused_total", &[]), 0);
}

#[test]
fn long_request_head_is_refused_before_it_ends() {
    let registry = Registry::start();
    let larder = Larder::in_front_of(&registry);
    let header = |length: usize| "a".repeat(length);
    let long = format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nX: {}", header(40_000));
    let answer = larder.api().raw(long.as_bytes());
    assert!(answer.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&answer));
    let value = header(24_000);
    Client::new(larder.api_addr()).send("GET", "/v2/", &[("Authorization", &value)]).assert_body(b"{}");
}

#[test]
fn client_with_slow_downloads_in_many_repositories_leaves_connections_for_others() {
    let (registry, gate) = (Registry::start(), Gate::new());
    // Eight connections for blobs, and two for documents.
    let larder = Setup::with(&registry)
        .upstream_set("docker.io", "max_connections", 10)
        .upstream_set("docker.io", "min_rate", "0B")
        .start();
    let blobs: Vec<_> = (0..10).map(|n| (format!("many/r{n}"), Blob::random(n, 100_000))).collect();
    for (repository, blob) in &blobs {
        registry.add_blob(repository, blob);
        registry.script(When::blobs().path(&blob.digest), Fault::HoldBody(50_000, gate.clone()));
    }
    let honest = Blob::random(1000, 1000);
    registry.add_blob("library/app", &honest);
    let path = |repository: &str, blob: &Blob| format!("/v2/{repository}/blobs/{}", blob.digest);
    std::thread::scope(|scope| {
        for (repository, blob) in &blobs {
            let (larder, path) = (&larder, path(repository, blob));
            scope.spawn(move || larder.get(&path).assert_body(&blob.bytes));
        }
        gate.wait_reached(7);
        eventually("the other downloads wait", || larder.counter("larder_fills_running", &[]) == 10);
        assert_eq!(registry.count("GET", "/blobs/"), 7);
        let answer = get_from("127.0.0.2", larder.api_addr(), &path("library/app", &honest));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        gate.open();
    });
}

#[test]
fn client_with_slow_manifests_in_many_repositories_leaves_connections_for_others() {
    let (registry, gate) = (Registry::start(), Gate::new());
    // Eight connections for documents.
    let larder = Setup::with(&registry).upstream_set("docker.io", "max_connections", 32).start();
    let image = |n: u64| Image::oci(n, "linux/amd64", vec![Blob::random(n, 1000)]);
    for n in 0..10 {
        registry.add_image(&format!("many/r{n}"), "v1", &image(n));
    }
    registry.add_image("library/app", "v1", &image(1000));
    registry.script(When::manifests().path("many/"), Fault::HoldHead(gate.clone()));
    std::thread::scope(|scope| {
        for n in 0..10 {
            let client = larder.api();
            // The time-out for the head of a manifest may end some of them.
            scope.spawn(move || drop(client.try_send("GET", &format!("/v2/many/r{n}/manifests/v1"), &[])));
        }
        gate.wait_reached(7);
        let answer = get_from("127.0.0.2", larder.api_addr(), "/v2/library/app/manifests/v1");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        gate.open();
    });
}
