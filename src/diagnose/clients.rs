//! Client check: sends the requests of each client to the running server, for an image that is cached.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Method};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::report::Step;
use crate::config::Config;
use crate::oci::Digest;
use crate::ops::list::ListRow;
use crate::ops::protocol::PROBE_HEADER;
use crate::upstream::causes;

/// Time-out of one request. Cached content takes milliseconds, a revalidation up to seconds.
pub const TIMEOUT: Duration = Duration::from_secs(10);
const KINDS: [&str; 4] = [
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
];
/// Media types that older clients add.
const OLDER: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v1+json",
];
const DIGEST: &str = "docker-content-digest";

/// Request of a client.
struct Request {
    method: Method,
    target: String,
    accept: Vec<String>,
    closes: bool,
    manifest: bool,
}

impl Request {
    fn base() -> Self {
        Self {
            method: Method::GET,
            target: "/v2/".to_owned(),
            accept: Vec::new(),
            closes: false,
            manifest: false,
        }
    }

    fn manifest(method: Method, target: String, accept: Vec<String>) -> Self {
        Self { method, target, accept, closes: false, manifest: true }
    }
}

/// Runs the requests of each client against the server at `url`, with `client` as HTTP client.
pub async fn check(
    client: &Client,
    url: &str,
    config: &Config,
    image: Option<&ListRow>,
) -> Vec<(&'static str, Step)> {
    let mut steps = Vec::new();
    for (name, requests) in requests(config, image) {
        let started = Instant::now();
        let with_manifest = requests.iter().any(|request| request.manifest);
        let pulled = image.filter(|_| with_manifest);
        let pulled = pulled.and_then(|image| Some(format!("{}:{}", image.repository, image.tag.as_deref()?)));
        let step = match (send(client, url, &requests).await, pulled) {
            (Ok(()), Some(image)) => Step::ok("pull", format!("{image} can be pulled")),
            (Ok(()), None) => {
                Step::ok("pull", format!("{url} answers; no image is cached yet for more checks"))
            }
            (Err(error), _) => Step::fails(
                "pull",
                error,
                "check `listen` in the configuration and proxies between clients and server; the server's log has the request",
            ),
        };
        steps.push((name, step.since(started)));
    }
    steps
}

/// Checks that a TLS hello on the plain port gets the answer after which Docker falls back to HTTP.
pub async fn check_tls_on_plain_port(address: String, tls: ClientConfig) -> Step {
    let started = Instant::now();
    let answer = tokio::task::spawn_blocking(move || send_hello(&address, tls)).await;
    let step = match answer {
        Ok(Ok(true)) => {
            Step::ok("TLS on the plain port", "answered with 400, so that clients fall back to HTTP")
        }
        Ok(Ok(false)) => Step::fails(
            "TLS on the plain port",
            "the answer is not a plain HTTP/1.1 400: Docker fails instead of falling back to HTTP",
            "let clients connect to the server directly: another server answers on this port",
        ),
        Ok(Err(error)) => Step::fails("TLS on the plain port", error.to_string(), "check --address"),
        Err(error) => Step::fails("TLS on the plain port", error.to_string(), "try again"),
    };
    step.since(started)
}

/// Returns the requests of each client, as recorded from real clients.
fn requests(config: &Config, image: Option<&ListRow>) -> Vec<(&'static str, Vec<Request>)> {
    let named = image.and_then(|image| {
        let (upstream, name) = image.repository.split_once('/')?;
        Some((upstream, name, image.tag.as_deref()?, image))
    });
    let Some((upstream, name, tag, image)) = named else {
        return vec![("docker", vec![Request::base()])];
    };
    let (digest, exact) = (image.digest.to_string(), image.media_type.clone().unwrap_or_default());
    let one_by_one = || KINDS.iter().chain(&OLDER).map(|&kind| kind.to_owned()).collect::<Vec<_>>();
    let mut found = Vec::new();
    // Docker does not name the registry in requests to a mirror, so it works for the default upstream only.
    if config.upstream.get(upstream).is_some_and(|upstream| upstream.default) {
        let types = KINDS.iter().chain(&[OLDER[0], "application/json"]);
        let mut accept: Vec<_> = types.map(|&kind| kind.to_owned()).collect();
        // Docker's order is random, because it iterates over a Go map.
        fastrand::shuffle(&mut accept);
        let mut requests = vec![
            Request::base(),
            Request::manifest(Method::HEAD, format!("/v2/{name}/manifests/{tag}"), accept.clone()),
            Request::manifest(Method::GET, format!("/v2/{name}/manifests/{digest}"), accept),
        ];
        for request in &mut requests {
            request.closes = true;
        }
        found.push(("docker", requests));
    }
    let ns = upstream.replace(':', "%3A");
    found.push((
        "containerd",
        vec![
            Request::manifest(
                Method::HEAD,
                format!("/v2/{name}/manifests/{tag}?ns={ns}"),
                vec![format!("{}, */*", KINDS.join(", "))],
            ),
            Request::manifest(
                Method::GET,
                format!("/v2/{name}/manifests/{digest}?ns={ns}"),
                vec![format!("{exact}, */*")],
            ),
        ],
    ));
    // These clients put the upstream into the path, which cannot contain a colon.
    if !upstream.contains(':') {
        let target = format!("/v2/{upstream}/{name}/manifests/{tag}");
        let podman = Request::manifest(Method::GET, target.clone(), one_by_one());
        found.push(("podman", vec![Request::base(), podman]));
        let crane = Request::manifest(Method::GET, target, vec![one_by_one().join(",")]);
        found.push(("crane", vec![Request::base(), crane]));
    }
    found
}

async fn send(client: &Client, url: &str, requests: &[Request]) -> Result<(), String> {
    for Request { method, target, accept, closes, manifest } in requests {
        let wrong = |what: &str| format!("{method} {target}: {what}");
        let mut headers = HeaderMap::new();
        for line in accept {
            let line = HeaderValue::from_str(line).map_err(|error| wrong(&error.to_string()))?;
            // One header line each, as the clients send them; the server joins the lines.
            headers.append(ACCEPT, line);
        }
        headers.insert(PROBE_HEADER, HeaderValue::from_static("doctor"));
        if *closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let url = format!("{url}{target}");
        let answer = client.request(method.clone(), url).headers(headers).send().await;
        let answer = answer.map_err(|error| wrong(&causes(&error.without_url())))?;
        if answer.status() != 200 {
            return Err(wrong(&format!("{} instead of 200", answer.status().as_u16())));
        }
        if *manifest && let Some(lacking) = lacking(answer.headers()) {
            return Err(wrong(&format!("200 without a usable {lacking}")));
        }
        answer.bytes().await.map_err(|error| wrong(&error.without_url().to_string()))?;
    }
    Ok(())
}

/// Returns the first header that clients need and a manifest answer lacks.
fn lacking(headers: &HeaderMap) -> Option<&'static str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let length = text(CONTENT_LENGTH.as_str()).and_then(|length| length.parse::<u64>().ok());
    let kind = text(CONTENT_TYPE.as_str()).filter(|kind| !kind.is_empty() && !kind.contains(';'));
    let digest = text(DIGEST).filter(|digest| digest.parse::<Digest>().is_ok());
    if length.is_none() {
        Some("Content-Length")
    } else if kind.is_none() {
        Some("Content-Type")
    } else if digest.is_none() {
        Some("Docker-Content-Digest")
    } else {
        None
    }
}

/// Sends a TLS hello to the plain port. Returns true if the answer is the HTTP 400 that clients understand.
fn send_hello(address: &str, tls: ClientConfig) -> Result<bool, Box<dyn Error + Send + Sync>> {
    let limit = Duration::from_secs(3);
    let addresses: Vec<SocketAddr> = address.to_socket_addrs()?.collect();
    let first = addresses.first().ok_or_else(|| format!("{address} has no address"))?;
    let mut stream = TcpStream::connect_timeout(first, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let name = ServerName::try_from("localhost")?;
    let mut connection = ClientConnection::new(Arc::new(tls), name)?;
    connection.write_tls(&mut stream)?;
    stream.flush()?;
    let mut answer = Vec::new();
    // The server may reset the connection; the bytes received so far decide.
    let _ = stream.take(4096).read_to_end(&mut answer);
    Ok(answer.starts_with(b"HTTP/1.1 400"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lacking_names_the_missing_header() {
        let mut headers = HeaderMap::new();
        let mut put = |name: &'static str, value: String| {
            let before = lacking(&headers);
            headers.insert(name, value.parse().expect("a header"));
            before
        };
        assert_eq!(put("content-length", "5".to_owned()), Some("Content-Length"));
        assert_eq!(put("content-type", "application/json; charset=utf-8".to_owned()), Some("Content-Type"));
        assert_eq!(put("content-type", KINDS[0].to_owned()), Some("Content-Type"));
        assert_eq!(put(DIGEST, format!("sha256:{}", "0".repeat(64))), Some("Docker-Content-Digest"));
        assert_eq!(lacking(&headers), None);
    }
}
