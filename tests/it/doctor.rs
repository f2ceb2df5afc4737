//! `larder doctor`: passed checks, warnings, failures, and remedies.

use crate::support;

use std::time::{Duration, Instant};

use serde_json::Value;
use support::proxy::Proxy;
use support::verb::{self, Output};
use support::{Auth, Fault, Gate, Image, Larder, Port, Registry, Setup, TlsServer, When};

/// Checks of `--json`, by their subject.
struct Seen {
    ran: Output,
    report: Value,
}

impl Seen {
    fn of(ran: Output) -> Self {
        let report = ran.json();
        assert_eq!(report["ok"], ran.code == 0, "{ran:?}");
        assert_eq!(ran.code, if report["ok"] == true { 0 } else { 4 }, "{ran:?}");
        Self { ran, report }
    }

    fn all(&self) -> &[Value] {
        self.report["checks"].as_array().unwrap()
    }

    /// Returns the check of an area and step.
    #[track_caller]
    fn check(&self, area: &str, step: &str) -> &Value {
        let found = self.all().iter().find(|it| it["area"] == area && it["step"] == step);
        found.unwrap_or_else(|| panic!("no {step} of {area}: {}", self.report))
    }

    /// Asserts the result of a check, and its remedy if the check did not pass.
    #[track_caller]
    fn is(&self, area: &str, step: &str, verdict: &str, remedy: &str) -> &Value {
        let check = self.check(area, step);
        assert_eq!(check["verdict"], verdict, "{check}");
        let text = check["remedy"].as_str().unwrap_or_default();
        assert!(text.contains(remedy) && (text.is_empty() == (verdict == "ok")), "{check}");
        check
    }

    /// Returns the steps on the way to the upstream.
    fn steps(&self) -> Vec<&str> {
        let steps = self.all().iter().filter(|it| it["area"] == "upstream");
        steps.map(|it| it["step"].as_str().unwrap()).collect()
    }
}

fn doctor(setup: &Setup) -> Seen {
    Seen::of(verb::offline(setup, &["doctor", "--json"]))
}

#[test]
fn healthy_server_passes_and_clients_are_checked() {
    let registry = Registry::start();
    registry.add_image("library/app", "1", &Image::small(1));
    let (setup, _) = Setup::with(&registry).admin_socket();
    let larder = setup.start();
    let address = larder.api_addr().to_string();
    let asked = || {
        let config = larder.setup().config_file();
        let arguments = ["doctor", "--json", "--address", &address, "--config", config.to_str().unwrap()];
        Seen::of(verb::run(larder.setup(), larder.setup().bare_command().args(arguments)))
    };
    let empty = asked();
    assert_eq!(empty.ran.code, 0, "{}", empty.report);
    let pull = empty.is("client", "pull", "ok", "");
    assert!(pull["found"].as_str().unwrap().contains("no image is cached yet"), "{pull}");

    verb::run(
        larder.setup(),
        larder
            .setup()
            .bare_command()
            .args(["warm", "app:1", "--server"])
            .arg(format!("http://{}", larder.admin_addr())),
    )
    .exited_with(0);
    let held = asked();
    assert_eq!(held.ran.code, 0, "{}", held.report);
    assert_eq!(held.steps(), ["connection", "/v2/", "pull"]);
    assert_eq!(held.is("store", "store", "ok", "")["found"], "in use by a running server");
    held.is("larder", "ready", "ok", "");
    held.is("larder", "version", "ok", "");
    held.is("client", "TLS on the plain port", "ok", "");
    let clients = held.all().iter().filter(|it| it["area"] == "client" && it["step"] == "pull");
    let clients: Vec<_> = clients.map(|it| (it["subject"].as_str().unwrap(), &it["verdict"])).collect();
    assert_eq!(clients.len(), 4, "{clients:?}");
    assert!(clients.iter().all(|(_, verdict)| *verdict == "ok"), "{}", held.report);

    // The text for people: result, subject, finding.
    let config = larder.setup().config_file();
    let arguments = ["doctor", "--address", &address, "--config", config.to_str().unwrap()];
    let text = verb::run(larder.setup(), larder.setup().bare_command().args(arguments)).exited_with(0).stdout;
    assert!(text.contains(&format!("ok      docker.io, {}: connection: to ", registry.url())), "{text}");
    assert!(text.contains("ok      client podman: pull: docker.io/library/app:1 can be pulled"), "{text}");
}

#[test]
fn other_server_on_our_port_is_detected() {
    let registry = Registry::start();
    registry.add_image("library/app", "1", &Image::small(1));
    let larder = Larder::in_front_of(&registry);
    verb::online(&larder, &["warm", "app:1"]).exited_with(0);
    // Another server at the address that clients use. It has no images and closes TLS connections.
    let other = Registry::start();
    let (config, server) = (larder.setup().config_file(), format!("http://{}", larder.admin_addr()));
    let address = other.addr().to_string();
    let arguments = ["doctor", "--json", "--server", &server, "--address", &address, "--config"];
    let seen = Seen::of(verb::run(larder.setup(), larder.setup().bare_command().args(arguments).arg(config)));
    assert_eq!(seen.ran.code, 4);
    let pull = seen.is("client", "pull", "fails", "proxies between");
    assert!(pull["found"].as_str().unwrap().contains("404"), "{pull}");
    seen.is("client", "TLS on the plain port", "fails", "another server answers");
}

#[test]
fn refused_port_fails_and_skips_later_steps() {
    let refusing = Port::reserve();
    let setup = Setup::empty()
        .upstream_set("reg.test", "endpoints", vec![format!("http://{}", refusing.addr())])
        .upstream_set("reg.test", "default", true);
    let seen = doctor(&setup);
    assert_eq!(seen.ran.code, 4);
    seen.is("upstream", "connection", "fails", "`endpoints`");
    assert_eq!(seen.steps(), ["connection"]);
    // The check does not create a store.
    seen.is("store", "folder", "ok", "");
    assert!(!setup.data().exists());
    seen.is("larder", "running", "warning", "--server");
    assert!(seen.ran.stderr.contains("1 of "), "{:?}", seen.ran);
}

#[test]
fn unresolvable_name_fails() {
    // Host names below .invalid have no address (RFC 6761).
    let setup = Setup::empty()
        .upstream_set("reg.test", "endpoints", vec!["http://registry.invalid"])
        .upstream_set("reg.test", "default", true);
    let seen = doctor(&setup);
    seen.is("upstream", "name", "fails", "DNS");
    assert_eq!(seen.steps(), ["name"]);
}

#[test]
fn unknown_certificate_authority_is_named() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    let server = TlsServer::start(answer.to_owned());
    let setup = Setup::empty()
        .upstream_set("reg.test", "endpoints", vec![server.url()])
        .upstream_set("reg.test", "default", true);
    let seen = doctor(&setup);
    seen.is("upstream", "tls", "fails", "ca_file");
    assert_eq!(seen.steps(), ["connection", "tls"]);

    let ca = setup.write("ca.pem", &server.pem).display().to_string();
    let seen = doctor(&setup.upstream_set("reg.test", "ca_file", ca));
    assert_eq!(seen.ran.code, 0, "{}", seen.report);
    assert_eq!(seen.steps(), ["connection", "tls", "/v2/"]);
}

#[test]
fn proxy_is_checked_step_by_step() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    let (server, proxy) = (TlsServer::start(answer.to_owned()), Proxy::start());
    let setup = Setup::empty();
    let ca = setup.write("ca.pem", &server.pem).display().to_string();
    let setup = setup
        .upstream_set("reg.test", "endpoints", vec![server.url()])
        .upstream_set("reg.test", "default", true)
        .upstream_set("reg.test", "ca_file", ca)
        .upstream_set("reg.test", "proxy", proxy.url());
    let seen = doctor(&setup);
    assert_eq!(seen.ran.code, 0, "{}", seen.report);
    assert_eq!(seen.steps(), ["proxy", "connection", "tunnel", "tls", "/v2/"]);
    assert_eq!(seen.check("upstream", "proxy")["found"], format!("{}, from `proxy`", proxy.url()));
    // In the order of the proxy's faults.
    proxy.require_login("Basic bWU6c2VjcmV0");
    doctor(&setup).is("upstream", "tunnel", "fails", "HTTPS_PROXY=http://user:password@");
    proxy.refuse(403);
    doctor(&setup).is("upstream", "tunnel", "fails", "permit CONNECT");
    proxy.refuse(502);
    doctor(&setup).is("upstream", "tunnel", "fails", "that the proxy can reach");
    drop(proxy);
    let seen = doctor(&setup);
    seen.is("upstream", "connection", "fails", "`proxy`");
    assert_eq!(seen.steps(), ["proxy", "connection"]);
}

#[test]
fn proxy_behind_tls_is_asked_in_http_1() {
    let answer = "HTTP/1.1 407 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let proxy = TlsServer::with_alpn(&["h2"], answer.to_owned());
    let setup = Setup::empty();
    let ca = setup.write("ca.pem", &proxy.pem).display().to_string();
    let setup = setup
        .upstream_set("reg.test", "endpoints", vec!["https://registry.invalid"])
        .upstream_set("reg.test", "default", true)
        .upstream_set("reg.test", "proxy", proxy.url());
    let seen = doctor(&setup);
    seen.is("upstream", "proxy tls", "fails", "ca_file");
    let seen = doctor(&setup.upstream_set("reg.test", "ca_file", ca));
    assert_eq!(seen.steps(), ["proxy", "connection", "proxy tls", "tunnel"]);
    seen.is("upstream", "tunnel", "fails", "user:password@");
}

#[test]
fn proxy_source_is_reported() {
    let registry = Registry::start();
    let proxy = Proxy::resolving("registry.test", registry.addr());
    let setup = Setup::empty()
        .upstream_set("reg.test", "endpoints", vec!["http://registry.test"])
        .upstream_set("reg.test", "default", true);
    let seen = |setup: &Setup| {
        let config = setup.config_file();
        let mut command = setup.bare_command();
        command.args(["doctor", "--json", "--config", config.to_str().unwrap()]);
        Seen::of(verb::run(setup, command.env("HTTP_PROXY", format!("http://me:secret@{}", proxy.addr()))))
    };
    let through = seen(&setup);
    assert_eq!(through.ran.code, 0, "{}", through.report);
    assert_eq!(through.steps(), ["proxy", "connection", "/v2/"]);
    let found = &through.check("upstream", "proxy")["found"];
    assert_eq!(found, &format!("{}, from the environment", proxy.url()));
    assert!(!through.ran.stdout.contains("secret"), "{}", through.report);
    let refusing = Port::reserve();
    let around = setup.upstream_set("reg.test", "endpoints", vec![format!("http://{}", refusing.addr())]);
    seen(&around).is("upstream", "connection", "fails", "`proxy` or NO_PROXY");
}

#[test]
fn endpoint_without_tls_is_reported() {
    let registry = Registry::start();
    let url = registry.url().replace("http://", "https://");
    let setup = Setup::empty()
        .upstream_set("reg.test", "endpoints", vec![url])
        .upstream_set("reg.test", "default", true);
    doctor(&setup).is("upstream", "tls", "fails", "scheme and port");
}

#[test]
fn credentials_are_tried_and_never_printed() {
    let me = || ("me".to_owned(), "rightly-secret".to_owned());
    let (user, password) = me();
    for demand in [Auth::Basic(user, password), Auth::Bearer(Some(me()))] {
        let registry = Registry::start();
        registry.require_auth(demand.clone());
        let setup = Setup::with(&registry);
        let none = doctor(&setup);
        match demand {
            Auth::Basic(..) => none.is("upstream", "login", "fails", "password_file"),
            _ => none.is("upstream", "login", "warning", "pull an image"),
        };
        let file = setup.write("password", "wrongly-secret");
        let setup = setup.upstream_set("docker.io", "username", "me").upstream_set(
            "docker.io",
            "password_file",
            file.display().to_string(),
        );
        let wrong = doctor(&setup);
        assert_eq!(wrong.ran.code, 4);
        wrong.is("upstream", "login", "fails", "password_file");
        setup.write("password", "rightly-secret\n");
        let right = doctor(&setup);
        assert_eq!(right.ran.code, 0, "{}", right.report);
        right.is("upstream", "login", "ok", "");
        for seen in [none, wrong, right] {
            let all = format!("{}{}", seen.ran.stdout, seen.ran.stderr);
            assert!(!all.contains("-secret"), "{all}");
        }
    }
    let open = Registry::start();
    open.require_auth(Auth::Bearer(None));
    let seen = doctor(&Setup::with(&open));
    assert_eq!(seen.ran.code, 0, "{}", seen.report);
    assert_eq!(seen.steps(), ["connection", "/v2/", "login"]);
    // A token service that issues tokens only for repositories is not faulty.
    open.script(When::any().path("/token"), Fault::Status(400));
    let seen = doctor(&Setup::with(&open));
    assert_eq!(seen.ran.code, 0, "{}", seen.report);
    seen.is("upstream", "login", "warning", "pull an image");
}

#[test]
fn login_is_tried_with_a_cached_repository() {
    let registry = Registry::start();
    registry.require_auth(Auth::Bearer(None));
    registry.add_image("library/app", "1", &Image::small(1));
    let setup = Setup::with(&registry);
    let mut larder = setup.start();
    verb::online(&larder, &["warm", "app:1"]).exited_with(0);
    larder.stop();
    registry.forget_requests();
    let seen = doctor(&larder.into_setup());
    assert_eq!(seen.ran.code, 0, "{}", seen.report);
    assert_eq!(seen.steps(), ["connection", "/v2/", "login", "pull"]);
    let tokens = registry.seen("GET", "/token");
    assert!(tokens.iter().all(|seen| seen.query.contains("library%2Fapp")), "{tokens:?}");
}

#[test]
fn hanging_registry_times_out_without_delaying_others() {
    let gates = [Gate::new(), Gate::new()];
    let registries = [Registry::start(), Registry::start()];
    for (registry, gate) in registries.iter().zip(&gates) {
        registry.script(When::any(), Fault::HoldHead(gate.clone()));
    }
    let twice = vec![registries[1].url(), format!("{}/", registries[1].url())];
    let setup = Setup::with(&registries[0]).upstream_set("quay.io", "endpoints", twice);
    let began = Instant::now();
    let seen = doctor(&setup);
    let took = began.elapsed();
    seen.is("upstream", "/v2/", "fails", "cached content is still served");
    // Each endpoint times out after four seconds. One after the other, the requests would be four seconds apart.
    assert!(took >= Duration::from_secs(4), "{took:?}");
    let times: Vec<_> = registries.iter().flat_map(Registry::requests).map(|seen| seen.at).collect();
    let (first, last) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    assert!(times.len() >= 3 && *last - *first < Duration::from_secs(4), "{times:?}");
}

#[test]
fn exhausted_quota_is_reported() {
    let registry = Registry::start();
    let headers = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let left = |remaining: &str| {
        Fault::Answer(
            200,
            headers(&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", remaining)]),
            b"{}".to_vec(),
        )
    };
    registry.script(When::any(), left("76;w=21600"));
    let seen = doctor(&Setup::with(&registry));
    let found = &seen.is("upstream", "quota", "ok", "")["found"];
    assert_eq!(found, "76 of 100 requests in 6h are left");
    registry.clear_faults();
    registry.script(When::any(), left("0;w=21600"));
    let seen = doctor(&Setup::with(&registry));
    assert_eq!(seen.ran.code, 0, "it is worth a look, and does not fail: {}", seen.report);
    seen.is("upstream", "quota", "warning", "username");
    registry.clear_faults();
    registry.script(When::any(), Fault::Answer(429, headers(&[("Retry-After", "300")]), Vec::new()));
    let seen = doctor(&Setup::with(&registry));
    assert_eq!(seen.ran.code, 4);
    let quota = seen.is("upstream", "quota", "fails", "wait");
    assert!(quota["found"].as_str().unwrap().ends_with("for another 5m"), "{quota}");
}

#[test]
fn non_registry_and_wrong_clock_are_reported() {
    let registry = Registry::start();
    registry.script(When::any(), Fault::Status(404));
    doctor(&Setup::with(&registry)).is("upstream", "/v2/", "fails", "`endpoints`");
    registry.clear_faults();
    let long_ago = vec![("Date".to_owned(), "Sun, 06 Nov 1994 08:49:37 GMT".to_owned())];
    registry.script(When::any(), Fault::Answer(200, long_ago, b"{}".to_vec()));
    doctor(&Setup::with(&registry)).is("upstream", "clock", "fails", "clock");
}

#[test]
fn web_site_is_not_a_registry() {
    let registry = Registry::start();
    let setup = Setup::with(&registry);
    let html = || vec![("Content-Type".to_owned(), "text/html; charset=utf-8".to_owned())];
    let to = |target: &str| vec![("Location".to_owned(), format!("{}{target}", registry.url()))];
    let page = Fault::Answer(200, html(), b"<!DOCTYPE html><html>sign in</html>".to_vec());
    let absent = Fault::Answer(404, html(), b"<html>nothing</html>".to_vec());
    let redirect = || Fault::Answer(301, to("/www/v2/"), Vec::new());
    registry.script(When::any(), page.clone());
    let seen = doctor(&setup);
    let found = seen.is("upstream", "/v2/", "warning", "https://registry-1.docker.io");
    assert!(found["found"].as_str().unwrap().contains("web page"), "{found}");
    for target in [page, absent] {
        registry.clear_faults();
        registry.script(When::any().path("/www"), target);
        registry.script(When::any().times(1), redirect());
        doctor(&setup).is("upstream", "/v2/", "warning", "https://registry-1.docker.io");
    }
    // A redirect to a registry, and a circle of redirects.
    registry.clear_faults();
    registry.script(When::any().times(1), Fault::Answer(307, to("/v2/"), Vec::new()));
    doctor(&setup).is("upstream", "/v2/", "ok", "");
    registry.clear_faults();
    registry.script(When::any(), redirect());
    doctor(&setup).is("upstream", "/v2/", "warning", "https://registry-1.docker.io");
}

#[test]
fn invalid_configuration_limits_the_diagnosis_to_the_server() {
    let seen = doctor(&Setup::empty().set("cache.tag_tll", "1m"));
    let areas: Vec<_> = seen.all().iter().map(|check| check["area"].as_str().unwrap()).collect();
    assert_eq!(areas, ["configuration", "larder"]);
    let check = seen.is("configuration", "configuration", "fails", "larder validate");
    assert!(check["found"].as_str().unwrap().contains("did you mean `tag_ttl`?"), "{check}");
}

#[test]
fn unusable_parts_fail_their_check_only() {
    let setup = Setup::empty();
    let ca = setup.write("ca.pem", "no certificate").display().to_string();
    let setup = setup
        .upstream_set("reg.test", "endpoints", vec!["https://127.0.0.1:1"])
        .upstream_set("reg.test", "default", true)
        .upstream_set("reg.test", "ca_file", ca);
    let seen = doctor(&setup);
    let check = seen.is("upstream", "configuration", "fails", "does not start");
    assert!(check["found"].as_str().unwrap().contains("ca.pem"), "{check}");
    seen.is("store", "folder", "ok", "");
}

#[test]
fn hanging_admin_port_times_out() {
    let (registry, gate) = (Registry::start(), Gate::new());
    registry.script(When::any(), Fault::HoldHead(gate));
    let upstream = Registry::start();
    let setup = Setup::with(&upstream).set("admin.listen", registry.addr().to_string());
    let seen = doctor(&setup);
    assert_eq!(seen.ran.code, 0, "{}", seen.report);
    seen.is("larder", "running", "warning", "larder serve");
}

#[test]
fn damaged_store_is_reported_and_not_modified() {
    let registry = Registry::start();
    let mut larder = Larder::in_front_of(&registry);
    larder.stop();
    let setup = larder.into_setup();
    let whole = doctor(&setup);
    assert_eq!(whole.ran.code, 0, "{}", whole.report);
    whole.is("store", "store", "ok", "");
    let header = setup.data().join("header.toml");
    std::fs::write(&header, "nonsense").unwrap();
    let broken = doctor(&setup);
    assert_eq!(broken.ran.code, 4);
    broken.is("store", "store", "fails", "into quarantine");
    assert_eq!(std::fs::read_to_string(&header).unwrap(), "nonsense");
    assert!(
        !std::fs::read_dir(setup.data())
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().starts_with("set-aside-") })
    );
}
