//! Tests of the scripted registry and the plain client, so that other tests can rely on them.

use crate::support;

use support::content::OCI_INDEX;
use support::{Auth, Blob, Client, Fault, Gate, Index, Registry, When};

fn with_blob(length: usize) -> (Registry, Blob, Client, String) {
    let registry = Registry::start();
    let blob = Blob::random(1, length);
    registry.add_blob("a/b", &blob);
    let client = Client::new(registry.addr());
    let path = format!("/v2/a/b/blobs/{}", blob.digest);
    (registry, blob, client, path)
}

#[test]
fn registry_serves_content_and_records_requests() {
    let registry = Registry::start();
    let index = Index::nested(1);
    registry.add_index("a/b", "t", &index);
    let client = Client::new(registry.addr());
    let answer = client.send("GET", "/v2/a/b/manifests/t?ns=x", &[("Accept", "one"), ("Accept", "two")]);
    answer.assert_body(&index.document.bytes);
    assert_eq!(answer.header("content-type"), Some(OCI_INDEX));
    assert_eq!(answer.header("docker-content-digest"), Some(index.document.digest.as_str()));
    let head = client.head("/v2/a/b/manifests/t");
    assert_eq!(head.head.content_length(), Some(index.document.bytes.len()));
    assert_eq!(client.get("/v2/a/b/manifests/none").status(), 404);
    let seen = registry.requests();
    assert_eq!((seen.len(), seen[0].query.as_str()), (3, "ns=x"));
    assert_eq!(seen[0].headers.iter().filter(|(name, _)| name == "Accept").count(), 2);
    assert_eq!(seen[0].sent(), index.document.bytes.len() as u64);
    assert_eq!(index.documents().len(), 5);
}

#[test]
fn registry_serves_ranges_and_their_faults() {
    let (registry, blob, client, path) = with_blob(1000);
    let part = client.send("GET", &path, &[("Range", "bytes=10-19")]);
    assert_eq!((part.status(), part.body.as_slice()), (206, &blob.bytes[10..20]));
    assert_eq!(part.header("content-range"), Some("bytes 10-19/1000"));
    assert_eq!(client.send("GET", &path, &[("Range", "bytes=1000-")]).status(), 416);
    registry.script(When::blobs(), Fault::IgnoreRange);
    client.send("GET", &path, &[("Range", "bytes=10-19")]).assert_body(&blob.bytes);
    registry.clear_faults();
    registry.script(When::blobs(), Fault::WrongContentRange);
    let part = client.send("GET", &path, &[("Range", "bytes=10-")]);
    assert_eq!(part.header("content-range"), Some("bytes 11-1000/1001"));
}

#[test]
fn registry_breaks_bodies_as_scripted() {
    let (registry, blob, client, path) = with_blob(200_000);
    let once = || When::blobs().times(1);
    registry.script(once(), Fault::Cut(70_000));
    client.try_send("GET", &path, &[]).unwrap_err();
    assert_eq!(registry.requests()[0].sent(), 70_000);
    registry.script(once(), Fault::EndOneByteEarly);
    client.try_send("GET", &path, &[]).unwrap_err();
    registry.script(once(), Fault::RemoveLastByte);
    client.get(&path).assert_body(&blob.bytes[..199_999]);
    registry.script(once(), Fault::AppendByte);
    assert_eq!(client.get(&path).body.len(), 200_001);
    registry.script(once(), Fault::AppendByteChunked);
    let answer = client.get(&path);
    assert_eq!((answer.body.len(), answer.head.content_length()), (200_001, None));
    registry.script(once(), Fault::FlipBit(5));
    let answer = client.get(&path);
    assert_eq!((answer.body[5], answer.body.len()), (blob.bytes[5] ^ 1, 200_000));
    registry.script(once(), Fault::CloseConnection);
    client.try_send("GET", &path, &[]).unwrap_err();
    registry.script(once(), Fault::Chunked);
    client.get(&path).assert_body(&blob.bytes);
    registry.script(once(), Fault::Status(429));
    client.get(&path).assert_error(429, "TOOMANYREQUESTS");
    let compared = client.open("GET", &path, &[]).unwrap().compare(&blob.bytes).unwrap();
    assert_eq!(compared, 200_000);
}

#[test]
fn gates_block_and_release() {
    let (registry, blob, client, path) = with_blob(200_000);
    let gate = Gate::new();
    registry.script(When::blobs(), Fault::HoldBody(20_000, gate.clone()));
    let mut transfer = client.open("GET", &path, &[]).unwrap();
    assert_eq!(transfer.read_exactly(20_000).unwrap(), blob.bytes[..20_000]);
    gate.wait_reached(1);
    assert_eq!(registry.requests()[0].sent(), 20_000);
    gate.open();
    assert_eq!(transfer.finish().unwrap().body, blob.bytes[20_000..]);
}

#[test]
fn registry_comes_up_on_the_same_port() {
    let (registry, blob, client, path) = with_blob(100);
    let gate = Gate::new();
    registry.script(When::blobs().times(1), Fault::HoldHead(gate.clone()));
    let waiting = std::thread::spawn({
        let path = path.clone();
        move || client.try_send("GET", &path, &[])
    });
    gate.wait_reached(1);
    registry.down();
    waiting.join().unwrap().unwrap_err();
    assert!(client.connect().is_err());
    registry.up();
    client.get(&path).assert_body(&blob.bytes);
}

#[test]
fn registry_demands_credentials() {
    let (registry, blob, client, path) = with_blob(100);
    registry.require_auth(Auth::Bearer(Some(("me".into(), "secret".into()))));
    let refused = client.get(&path);
    assert_eq!(refused.status(), 401);
    assert!(refused.header("www-authenticate").unwrap().contains("scope=\"repository:a/b:pull\""));
    assert_eq!(client.get("/token").status(), 401);
    let token = client.send("GET", "/token", &[("Authorization", "Basic bWU6c2VjcmV0")]).json();
    let bearer = format!("Bearer {}", token["token"].as_str().unwrap());
    client.send("GET", &path, &[("Authorization", &bearer)]).assert_body(&blob.bytes);
    registry.revoke_tokens();
    assert_eq!(client.send("GET", &path, &[("Authorization", &bearer)]).status(), 401);
    registry.require_auth(Auth::Basic("me".into(), "secret".into()));
    client.send("GET", &path, &[("Authorization", "Basic bWU6c2VjcmV0")]).assert_body(&blob.bytes);
}
