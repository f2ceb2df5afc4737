//! What clients would get of the larder that runs: asked for as each of them asks, with an image that it holds.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Method};

use super::super::remote;
use super::super::setup::{Instance, Scheme};
use super::Doctor;
use crate::app::examine::Step;
use crate::config::Config;
use crate::ops::list::ListRow;

/// For one request. What is held comes at once; a tag that has to be asked for again takes a little longer.
const PATIENCE: Duration = Duration::from_secs(10);
const KINDS: [&str; 4] = [
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
];
/// What older clients name besides.
const EARLIER: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v1+json",
];
const DIGEST: &str = "docker-content-digest";

/// One request, and whether its answer is a manifest.
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

/// Tries each client's way of asking.
pub(super) async fn steps(
    arguments: &Doctor,
    config: &Config,
    image: Option<&ListRow>,
) -> Vec<(&'static str, Vec<Step>)> {
    if arguments.reach.is_elsewhere() && arguments.address.is_none() {
        let found = "where clients reach the larder that was named is not known";
        return vec![("requests", vec![Step::warning("address", found, "name it with --address")])];
    }
    let instance = match Instance::seen_from_here(config, arguments.address.as_ref()) {
        Ok(instance) => instance,
        Err(error) => {
            let remedy = "name with --address where clients reach larder";
            return vec![("requests", vec![Step::warning("address", error.to_string(), remedy)])];
        }
    };
    let client = match client(arguments) {
        Ok(client) => client,
        Err(error) => {
            return vec![("requests", vec![Step::fails("tls", format!("{error:#}"), "correct --ca-file")])];
        }
    };
    let mut found = Vec::new();
    for (name, requests) in shapes(config, image) {
        let began = Instant::now();
        let asked = ask(&client, &instance, &requests).await;
        let of = image.and_then(|image| Some(format!("{}:{}", image.repository, image.tag.as_deref()?)));
        let step = match asked {
            Ok(()) => match of.filter(|_| requests.iter().any(|request| request.manifest)) {
                Some(of) => Step::ok("pull", format!("{of} is there")),
                None => {
                    Step::ok("pull", format!("{} answers; nothing is held yet to try more", instance.url()))
                }
            },
            Err(wrong) => Step::fails(
                "pull",
                wrong,
                "see `listen` in the configuration and what stands between clients and larder; its log has the request",
            ),
        };
        found.push((name, vec![step.since(began)]));
    }
    if instance.scheme == Scheme::Http {
        let (address, began) = (instance.to_string(), Instant::now());
        let said = tokio::task::spawn_blocking(move || hello(&address)).await;
        let step = match said {
            Ok(Ok(true)) => Step::ok("TLS on the plain port", "a 400, which sends clients on to HTTP"),
            Ok(Ok(false)) => Step::fails(
                "TLS on the plain port",
                "what answers is no plain HTTP/1.1 400, and Docker gives up instead of going on to HTTP",
                "let clients reach larder itself: something stands between",
            ),
            Ok(Err(error)) => Step::fails("TLS on the plain port", error.to_string(), "check --address"),
            Err(error) => Step::fails("TLS on the plain port", error.to_string(), "try again"),
        };
        found.push(("requests", vec![step.since(began)]));
    }
    found
}

fn client(arguments: &Doctor) -> anyhow::Result<Client> {
    let tls = remote::tls(arguments.reach.ca_file())?;
    Ok(Client::builder().no_proxy().timeout(PATIENCE).tls_backend_preconfigured(tls).build()?)
}

/// The requests of each client, as traces of it show them.
fn shapes(config: &Config, image: Option<&ListRow>) -> Vec<(&'static str, Vec<Request>)> {
    let named = image.and_then(|image| {
        let (upstream, name) = image.repository.split_once('/')?;
        Some((upstream, name, image.tag.as_deref()?, image))
    });
    let Some((upstream, name, tag, image)) = named else {
        return vec![("docker", vec![Request::base()])];
    };
    let (digest, exact) = (image.digest.to_string(), image.media_type.clone().unwrap_or_default());
    let one_by_one = || KINDS.iter().chain(&EARLIER).map(|&kind| kind.to_owned()).collect::<Vec<_>>();
    let mut shapes = Vec::new();
    // Docker names no registry in what it asks of a mirror.
    if config.upstream.get(upstream).is_some_and(|upstream| upstream.default) {
        let types = KINDS.iter().chain(&[EARLIER[0], "application/json"]);
        let mut accept: Vec<_> = types.map(|&kind| kind.to_owned()).collect();
        // As it comes out of a Go map.
        fastrand::shuffle(&mut accept);
        let mut requests = vec![
            Request::base(),
            Request::manifest(Method::HEAD, format!("/v2/{name}/manifests/{tag}"), accept.clone()),
            Request::manifest(Method::GET, format!("/v2/{name}/manifests/{digest}"), accept),
        ];
        for request in &mut requests {
            request.closes = true;
        }
        shapes.push(("docker", requests));
    }
    let ns = upstream.replace(':', "%3A");
    shapes.push((
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
    // These name it in the path, where no colon may stand.
    if !upstream.contains(':') {
        let target = format!("/v2/{upstream}/{name}/manifests/{tag}");
        let podman = Request::manifest(Method::GET, target.clone(), one_by_one());
        shapes.push(("podman", vec![Request::base(), podman]));
        let crane = Request::manifest(Method::GET, target, vec![one_by_one().join(",")]);
        shapes.push(("crane", vec![Request::base(), crane]));
    }
    shapes
}

async fn ask(client: &Client, instance: &Instance, requests: &[Request]) -> Result<(), String> {
    for Request { method, target, accept, closes, manifest } in requests {
        let wrong = |what: &str| format!("{method} {target}: {what}");
        let mut headers = HeaderMap::new();
        for line in accept {
            let line = HeaderValue::from_str(line).map_err(|error| wrong(&error.to_string()))?;
            // Each a line of its own: joining them is the server's business.
            headers.append(ACCEPT, line);
        }
        if *closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let url = format!("{}{target}", instance.url());
        let answer = client.request(method.clone(), url).headers(headers).send().await;
        let answer = answer.map_err(|error| wrong(&super::sentence(&error.without_url().into())))?;
        if answer.status() != 200 {
            return Err(wrong(&format!("{}, where 200 belongs", answer.status().as_u16())));
        }
        if *manifest && let Some(lacking) = lacking(answer.headers()) {
            return Err(wrong(&format!("200 without a usable {lacking}")));
        }
        answer.bytes().await.map_err(|error| wrong(&error.without_url().to_string()))?;
    }
    Ok(())
}

/// The header that clients would miss in the head of a manifest.
fn lacking(headers: &HeaderMap) -> Option<&'static str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let length = text(CONTENT_LENGTH.as_str()).and_then(|length| length.parse::<u64>().ok());
    let kind = text(CONTENT_TYPE.as_str()).filter(|kind| !kind.is_empty() && !kind.contains(';'));
    let digest = text(DIGEST).filter(|digest| digest.parse::<crate::oci::Digest>().is_ok());
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

/// Says hello in TLS to a port that has none; whether the answer is the one that clients understand.
fn hello(address: &str) -> anyhow::Result<bool> {
    let patience = Duration::from_secs(3);
    let addresses: Vec<SocketAddr> = address.to_socket_addrs()?.collect();
    let first = addresses.first().ok_or_else(|| anyhow::anyhow!("{address} has no address"))?;
    let mut stream = TcpStream::connect_timeout(first, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let name = rustls::pki_types::ServerName::try_from("localhost")?;
    let mut connection = rustls::ClientConnection::new(Arc::new(remote::tls(None)?), name)?;
    connection.write_tls(&mut stream)?;
    stream.flush()?;
    let mut answer = Vec::new();
    // Cut short or reset, what came is what counts.
    let _ = stream.take(4096).read_to_end(&mut answer);
    Ok(answer.starts_with(b"HTTP/1.1 400"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_need_is_missed() {
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
