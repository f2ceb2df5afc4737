//! Proxies between server and upstreams: configured, from the environment, none, and their failures.

use crate::support;

use support::fixture::TAG;
use support::larder::run_to_exit;
use support::proxy::Proxy;
use support::{Image, Larder, Registry, Setup, TlsServer};

/// `me:secret`, in base64.
const LOGIN: &str = "Basic bWU6c2VjcmV0";
/// A host name that only a proxy may resolve (RFC 6761).
const NAME: &str = "registry.test";

fn registry() -> (Registry, Image) {
    let (registry, image) = (Registry::start(), Image::small(1));
    registry.add_image("library/app", "v1", &image);
    (registry, image)
}

/// Pulls the image, which is not cached.
#[track_caller]
fn pull(larder: &Larder, image: &Image) {
    larder.get(TAG).assert_body(&image.manifest.bytes);
    for blob in image.blobs() {
        larder.get(&format!("/v2/library/app/blobs/{}", blob.digest)).assert_body(&blob.bytes);
    }
}

/// Starts a server with these environment variables. Its upstream is only reachable by a proxy.
fn elsewhere(setup: Setup, variables: &[(&str, &str)]) -> Larder {
    let setup = setup.upstream_set("docker.io", "endpoints", vec![format!("http://{NAME}")]).upstream_set(
        "docker.io",
        "default",
        true,
    );
    let mut command = setup.command();
    command.envs(variables.iter().copied());
    setup.start_by(&mut command)
}

#[test]
fn configured_proxy_is_used_for_everything() {
    let ((registry, image), proxy) = (registry(), Proxy::start());
    let larder = Setup::with(&registry).upstream_set("docker.io", "proxy", proxy.url()).start();
    pull(&larder, &image);
    let asked = proxy.requests();
    assert_eq!(asked.len(), registry.requests().len(), "{asked:?}");
    assert!(asked.iter().any(|line| *line == format!("GET {}{TAG} HTTP/1.1", registry.url())), "{asked:?}");
    // The other upstream is independent of it.
    let larder = larder.restart_with(|setup| setup.upstream_set("docker.io", "proxy", "direct"));
    larder.get("/v2/library/app/manifests/other");
    assert_eq!(proxy.requests().len(), asked.len());
}

#[test]
fn tls_uses_a_tunnel() {
    let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    let (server, proxy) = (TlsServer::start(answer.to_owned()), Proxy::start());
    let setup = Setup::empty();
    let ca = setup.write("ca.pem", &server.pem).display().to_string();
    let larder = setup
        .upstream_set("docker.io", "endpoints", vec![server.url()])
        .upstream_set("docker.io", "default", true)
        .upstream_set("docker.io", "ca_file", ca)
        .upstream_set("docker.io", "proxy", proxy.url())
        .start();
    larder.get(TAG).assert_error(404, "MANIFEST_UNKNOWN");
    let to = server.url().replace("https://", "CONNECT ") + " HTTP/1.1";
    assert!(proxy.requests().iter().all(|line| *line == to), "{:?}", proxy.requests());
    assert!(!proxy.requests().is_empty());
    // The log names the proxy that refused. Clients do not learn its name.
    proxy.refuse(403);
    let answer = larder.get("/v2/library/app/manifests/other");
    assert_eq!(answer.status(), 502, "{answer:?}");
    assert!(answer.text().contains("through its proxy"), "{}", answer.text());
    assert!(!answer.text().contains(&proxy.addr().to_string()), "{}", answer.text());
}

#[test]
fn environment_proxy_is_used_unless_excluded() {
    let (registry, image) = registry();
    let proxy = Proxy::resolving(NAME, registry.addr());
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        let before = proxy.requests().len();
        pull(&elsewhere(Setup::empty(), &[(name, &proxy.url())]), &image);
        assert!(proxy.requests().len() > before, "{name}");
    }
    let before = proxy.requests().len();
    for (variables, settings) in [
        (&[("HTTP_PROXY", proxy.url()), ("NO_PROXY", ".test".to_owned())][..], None),
        (&[("HTTP_PROXY", proxy.url())], Some("direct")),
        // Only for TLS.
        (&[("HTTPS_PROXY", proxy.url())], None),
    ] {
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let setup = Setup::empty();
        let setup = match settings {
            Some(proxy) => setup.upstream_set("docker.io", "proxy", proxy),
            None => setup,
        };
        assert_eq!(elsewhere(setup, &variables).get(TAG).status(), 502, "{variables:?}");
    }
    assert_eq!(proxy.requests().len(), before);
    // Local addresses need no proxy.
    let setup = Setup::with(&registry);
    let mut command = setup.command();
    command.env("HTTP_PROXY", proxy.url());
    pull(&setup.start_by(&mut command), &image);
    assert_eq!(proxy.requests().len(), before);
}

#[test]
fn proxy_credentials_come_from_the_environment_and_are_never_printed() {
    let (registry, image) = registry();
    let proxy = Proxy::resolving(NAME, registry.addr());
    proxy.require_login(LOGIN);
    let with = |login: &str| format!("http://{login}@{}", proxy.addr());
    for (login, status) in [("me:secret", 200), ("me:wrong-secret", 502)] {
        let larder = elsewhere(Setup::empty(), &[("HTTP_PROXY", &with(login))]);
        let answer = larder.get(TAG);
        assert_eq!(answer.status(), status, "{answer:?}");
        if status == 200 {
            pull(&larder, &image);
        } else {
            assert!(answer.text().contains("its proxy asks for credentials"), "{}", answer.text());
        }
        let all = format!("{}{}{}", answer.text(), larder.log_text(), larder.metrics_text());
        assert!(!all.contains("secret"), "{all}");
    }
}

#[test]
fn malformed_proxy_is_refused() {
    let registry = Registry::start();
    for (written, reason) in [
        ("socks5://127.0.0.1:1080", "proxies of type socks5 are not supported"),
        ("http://me:secret@127.0.0.1:3128", "HTTPS_PROXY"),
        ("http://127.0.0.1:3128/path", "is not a proxy"),
    ] {
        let exit = Setup::with(&registry).upstream_set("docker.io", "proxy", written).run_to_exit();
        assert!(!exit.status.success());
        assert!(exit.stderr.contains(reason) && exit.stderr.contains("docker.io"), "{}", exit.stderr);
        assert!(!exit.stderr.contains("secret"), "{}", exit.stderr);
    }
    // Variables of the environment follow the same rules, and `direct` ignores them.
    for (value, reason) in [
        ("socks5://127.0.0.1:1080", "proxies of type socks5 are not supported"),
        ("me:secret@pro xy", "is not a proxy"),
    ] {
        let setup = Setup::empty()
            .upstream_set("docker.io", "endpoints", vec![format!("http://{NAME}")])
            .upstream_set("docker.io", "default", true);
        let exit = run_to_exit(setup.command().env("ALL_PROXY", value));
        assert!(!exit.status.success());
        assert!(exit.stderr.contains(reason) && exit.stderr.contains("ALL_PROXY"), "{}", exit.stderr);
        assert!(!exit.stderr.contains("secret"), "{}", exit.stderr);
        elsewhere(setup.upstream_set("docker.io", "proxy", "direct"), &[("ALL_PROXY", value)]);
    }
}
