//! Invalid requests and misbehaving clients: they get an error or are disconnected, and other clients are not affected.

use crate::support;

use support::fixture::cold;
use support::{Registry, Setup};

#[test]
fn tls_hello_on_the_plain_port_is_answered() {
    let (_registry, larder, _) = cold();
    // The start of a TLS 1.2 record with a ClientHello. podman sends it before it falls back to HTTP.
    let mut hello = vec![0x16, 0x03, 0x01, 0x00, 0xc8, 0x01, 0x00, 0x00, 0xc4, 0x03, 0x03];
    hello.extend_from_slice(&[0x5a; 194]);
    let answer = larder.api().raw(&hello);
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{:?}", String::from_utf8_lossy(&answer));
}

#[test]
fn garbage_does_not_affect_other_clients() {
    let (_registry, larder, image) = cold();
    let host = larder.api_addr();
    let long_path = format!("GET /v2/{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000));
    let many = "X-Many: y\r\n".repeat(2000);
    let many = format!("GET /v2/ HTTP/1.1\r\nHost: {host}\r\n{many}\r\n");
    let fat = format!("GET /v2/ HTTP/1.1\r\nHost: {host}\r\nX: {}\r\n\r\n", "y".repeat(2_000_000));
    for bytes in [
        b"\0\0\0\0\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET /v2/ HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /v2/ HTTP/1.1\r\nContent-Length: x\r\n\r\n".to_vec(),
        b"GET /v2/ HTTP/1.1\r\nHost : a\r\n\r\n".to_vec(),
        vec![0xff; 10_000],
        long_path.into_bytes(),
        many.into_bytes(),
        fat.into_bytes(),
    ] {
        let answer = larder.api().raw(&bytes);
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
        let status = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
        // The server may close the connection without an answer, but must not answer with a success.
        assert!(answer.is_empty() || status.starts_with("HTTP/1.1 4"), "{start:?} got {status:?}");
        larder.get("/v2/library/app/manifests/v1").assert_body(&image.manifest.bytes);
    }
    // Half of a request, then the connection is closed.
    drop(std::io::Write::write(&mut larder.api().connect().unwrap(), b"GET /v2/ HT"));
    larder.get("/v2/").assert_body(b"{}");
}

#[test]
fn conflicting_framing_is_rejected() {
    let (_registry, larder, _) = cold();
    let both =
        "GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let answer = larder.api().raw(both.as_bytes());
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{:?}", String::from_utf8_lossy(&answer));
}

#[test]
fn strange_headers_are_harmless() {
    let (_registry, larder, image) = cold();
    let path = "/v2/library/app/manifests/v1";
    for (name, value) in [
        ("Accept", "\u{fffd}\u{fffd}"),
        ("Accept", ""),
        ("Accept-Encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5"),
        ("Authorization", "Basic Og=="),
        ("Range", "bytes=18446744073709551616-"),
        ("If-None-Match", "\"\", ,,W/"),
        ("OCI-Namespace", "evil"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("Expect", "100-continue"),
    ] {
        let answer = larder.api().send("GET", path, &[(name, value)]);
        answer.assert_body(&image.manifest.bytes);
        assert_eq!(answer.header("content-encoding"), None);
    }
}

#[test]
fn client_credentials_and_headers_are_not_forwarded() {
    let (registry, larder, _) = cold();
    let headers = [
        ("Authorization", "Bearer clients-own-secret"),
        ("Cookie", "clients=own"),
        ("X-Clients-Own", "1"),
        ("Accept-Encoding", "gzip"),
    ];
    let answer = larder.api().send("GET", "/v2/library/app/manifests/v1", &headers);
    assert_eq!(answer.status(), 200);
    for seen in registry.requests() {
        for (name, value) in &seen.headers {
            assert!(!value.contains("clients"), "{name}: {value} reached the upstream");
            assert!(!name.to_ascii_lowercase().contains("clients"), "{name} reached the upstream");
        }
        assert!([None, Some("identity")].contains(&seen.header("accept-encoding")), "{seen:?}");
    }
}

#[test]
fn unfinished_request_head_times_out() {
    let registry = Registry::start();
    let larder = Setup::with(&registry).set("server.header_timeout", "500ms").start();
    for start in [&b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: "[..], b""] {
        let answer = larder.api().raw(start);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{answer:?}");
    }
}
