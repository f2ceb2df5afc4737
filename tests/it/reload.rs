//! Changes of the configuration while the server runs: safe changes are applied, others are reported as pending,
//! invalid ones are rejected.

use crate::support;

use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use support::fixture::TAG;
use support::{
    Auth, Fault, Image, Larder, Registry, Setup, TestCertificate, TlsServer, When, eventually, verb,
};

const FOLLOWED: &str = "configuration reloaded, changes are in effect";
const UNCHANGED: &str = "configuration reloaded, no key has changed";
const REFUSED: &str = "configuration not reloaded; the previous one stays in effect";
const LATER: &str = "changed keys that take effect after a restart";

fn fixture() -> (Registry, Image, Setup) {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    let setup = Setup::with(&registry).set("cache.tag_ttl", "1h");
    (registry, image, setup)
}

/// Waits for the log line about an applied change of `key`.
#[track_caller]
fn wait_applied(larder: &Larder, key: &str) -> Value {
    larder.wait_for_line(&format!("the line about {key}"), |line| {
        line["message"] == FOLLOWED && line["changed"].as_str().is_some_and(|changed| changed.contains(key))
    })
}

#[test]
fn changed_file_is_reloaded_automatically() {
    let (registry, image, setup) = fixture();
    let mut larder = setup.start();
    larder.get(TAG).assert_body(&image.manifest.bytes);
    larder.wait_idle();
    larder.get(TAG).assert_outcome("larder; hit");
    larder.rewrite(|setup| setup.set("cache.tag_ttl", "0s"));
    let line = wait_applied(&larder, "cache.tag_ttl");
    assert_eq!(line["changed"], "cache.tag_ttl: \"1h\" -> \"0s\"");
    assert_eq!(line["level"], "INFO");
    let before = registry.requests().len();
    larder.get(TAG).assert_body(&image.manifest.bytes);
    assert_eq!(registry.requests().len(), before + 1, "the tag is asked about");
}

#[test]
fn sighup_reloads_and_logs_an_unchanged_file() {
    let (_registry, _, setup) = fixture();
    let mut larder = setup.start();
    larder.hang_up();
    larder.wait_for_line("answer to SIGHUP", |line| line["message"] == UNCHANGED);
    larder.rewrite(|setup| setup.set("log.requests", false));
    larder.hang_up();
    wait_applied(&larder, "log.requests");
    larder.get("/v2/");
    assert_eq!(larder.count_lines("request"), 0, "{}", larder.log_text());
}

#[test]
fn broken_file_is_ignored_and_logged_once() {
    let (_registry, image, setup) = fixture();
    let mut larder = setup.start();
    let file = larder.setup().folder().join("larder.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    for (number, (text, words)) in [
        (good.replace("tag_ttl", "tag_tll"), &["larder.toml:", "tag_tll", "did you mean `tag_ttl`"][..]),
        (format!("{good}\n[cache"), &["larder.toml:"]),
        (good.replace("\"1h\"", "\"soon\""), &["larder.toml:", "cache.tag_ttl", "for example"]),
        (good.replace("default = true", "default = false"), &["upstream", "default = true"]),
        (format!("{good}\nca_file = \"/nowhere\"\n"), &["ca_file", "/nowhere"]),
    ]
    .into_iter()
    .enumerate()
    {
        std::fs::write(&file, text).unwrap();
        eventually("the error is logged", || larder.count_lines(REFUSED) > number);
        let errors: Vec<_> =
            larder.log_lines().into_iter().filter(|line| line["message"] == REFUSED).collect();
        assert_eq!(errors.len(), number + 1, "{errors:?}");
        let said = errors[number]["error"].as_str().unwrap();
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
        assert_eq!(errors[number]["level"], "ERROR");
        larder.get(TAG).assert_body(&image.manifest.bytes);
    }
    // An unchanged invalid file is not reported again. A valid file ends the error.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(larder.count_lines(REFUSED), 5);
    // SIGHUP always logs an answer, also the same one.
    larder.hang_up();
    eventually("the error is logged", || larder.count_lines(REFUSED) == 6);
    std::fs::remove_file(&file).unwrap();
    eventually("the error is logged", || larder.count_lines(REFUSED) == 7);
    larder.rewrite(|setup| setup.set("cache.tag_ttl", "2h"));
    wait_applied(&larder, "cache.tag_ttl");
}

#[test]
fn keys_that_need_a_restart_are_logged_in_one_line() {
    let (_registry, image, setup) = fixture();
    let mut larder = setup.start();
    larder.rewrite(|setup| {
        let elsewhere = setup.folder().join("elsewhere").display().to_string();
        let setup = setup.set("server.listen", "127.0.0.1:1").set("store.path", elsewhere);
        setup.set("store.max_size", "30GiB").set("log.format", "text").set("cache.negative_ttl", "3s")
    });
    let line = larder.wait_for_line("warning", |line| line["message"] == LATER);
    assert_eq!(line["level"], "WARN");
    let keys = line["keys"].as_str().unwrap();
    for key in ["server.listen", "store.path", "log.format"] {
        assert!(keys.contains(key), "{keys}");
    }
    assert!(!keys.contains("negative_ttl"), "{keys}");
    wait_applied(&larder, "cache.negative_ttl");
    larder.get(TAG).assert_body(&image.manifest.bytes);
    assert!(!larder.setup().folder().join("elsewhere").exists());
    // The next change reports it again, because the restart is still pending.
    larder.rewrite(|setup| setup.set("cache.negative_ttl", "4s"));
    eventually("the warning is repeated", || larder.count_lines(LATER) == 2);
}

#[test]
fn environment_and_flags_override_a_reloaded_file() {
    let (registry, image, setup) = fixture();
    let mut command = setup.command();
    command.env("LARDER_CACHE__TAG_TTL", "2h").args(["--listen", "127.0.0.1:0"]);
    let mut larder = setup.start_by(&mut command);
    larder.get(TAG).assert_body(&image.manifest.bytes);
    larder.wait_idle();
    let before = registry.requests().len();
    larder.rewrite(|setup| setup.set("cache.tag_ttl", "0s").set("server.listen", "127.0.0.1:1"));
    larder.wait_for_line("answer to SIGHUP", |line| line["message"] == UNCHANGED);
    assert_eq!(larder.count_lines(LATER), 0);
    larder.get(TAG).assert_outcome("larder; hit");
    assert_eq!(registry.requests().len(), before);
}

#[test]
fn swapped_symlink_is_reloaded() {
    // As Kubernetes mounts a ConfigMap.
    let (_registry, _, setup) = fixture();
    let mount = setup.folder().join("mount");
    let text = std::fs::read_to_string(setup.config_file()).unwrap();
    let place = |number: usize, text: &str| {
        let folder = mount.join(format!("..{number}"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("larder.toml"), text).unwrap();
        symlink(format!("..{number}"), mount.join("..new")).unwrap();
        std::fs::rename(mount.join("..new"), mount.join("..data")).unwrap();
    };
    place(1, &text);
    symlink("..data/larder.toml", mount.join("larder.toml")).unwrap();
    let mut command = setup.bare_command();
    command.arg("serve").env("LARDER_CONFIG", mount.join("larder.toml"));
    let larder = setup.start_by(&mut command);
    place(2, &text.replace("\"1h\"", "\"3h\""));
    wait_applied(&larder, "cache.tag_ttl: \"1h\" -> \"3h\"");
}

#[test]
fn repository_patterns_are_reloaded() {
    let (_registry, image, setup) = fixture();
    let mut larder = setup.start();
    larder.get(TAG).assert_body(&image.manifest.bytes);
    larder.rewrite(|setup| setup.upstream_set("docker.io", "deny", vec!["library/*"]));
    wait_applied(&larder, "upstream.\"docker.io\".deny");
    assert_eq!(larder.get(TAG).status(), 404);
    larder.rewrite(|setup| setup.upstream_set("docker.io", "deny", Vec::<String>::new()));
    wait_applied(&larder, "[\"library/*\"] -> []");
    larder.get(TAG).assert_body(&image.manifest.bytes);
}

#[test]
fn upstreams_can_be_added_removed_and_moved() {
    let (_registry, _, setup) = fixture();
    let (other, moved) = (Registry::start(), Registry::start());
    let image = Image::small(5);
    other.add_image("org/app", "v1", &image);
    moved.add_image("org/app", "v2", &image);
    let mut larder = setup.start();
    let path = |tag: &str| format!("/v2/quay.io/org/app/manifests/{tag}");
    assert_eq!(larder.get(&path("v1")).status(), 404);
    larder.rewrite(|setup| setup.upstream("quay.io", &other));
    wait_applied(&larder, "upstream.\"quay.io\"");
    larder.get(&path("v1")).assert_body(&image.manifest.bytes);
    let series = |url: &str| larder.metrics_text().contains(&format!("endpoint=\"{url}\""));
    assert!(series(&other.url()));
    larder.rewrite(|setup| setup.upstream("quay.io", &moved));
    wait_applied(&larder, &moved.url());
    larder.get(&path("v2")).assert_body(&image.manifest.bytes);
    let series = |url: &str| larder.metrics_text().contains(&format!("endpoint=\"{url}\""));
    assert!(series(&moved.url()) && !series(&other.url()), "an endpoint that is gone has no series");
    larder.rewrite(|setup| {
        let setup = setup.set("upstream", toml::Table::new());
        setup.upstream("docker.io", &other).upstream_set("docker.io", "default", true)
    });
    wait_applied(&larder, "removed, was a table");
    assert_eq!(larder.get(&path("v2")).status(), 404);
    larder.get("/v2/org/app/manifests/v1").assert_body(&image.manifest.bytes);
}

#[test]
fn replaced_ca_file_is_reloaded() {
    let image = Image::small(4);
    let body = String::from_utf8(image.manifest.bytes.to_vec()).unwrap();
    let media_type = &image.manifest.media_type;
    let head = format!("Content-Type: {media_type}\r\nContent-Length: {}\r\nConnection: close", body.len());
    let server = TlsServer::start(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}"));
    let (_registry, _, setup) = fixture();
    let ca = setup.write("ca.pem", &TestCertificate::new().cert);
    let setup = setup.upstream_set("quay.io", "endpoints", vec![server.url()]);
    let larder = setup.upstream_set("quay.io", "ca_file", ca.display().to_string()).start();
    let path = "/v2/quay.io/org/app/manifests/v1";
    assert_eq!(larder.get(path).status(), 502);
    std::fs::write(&ca, "half a cert").unwrap();
    larder.wait_for_line("error", |line| {
        line["message"] == REFUSED && line["error"].as_str().unwrap().contains("ca.pem")
    });
    std::fs::write(&ca, &server.pem).unwrap();
    larder.wait_for_line("answer", |line| line["message"] == UNCHANGED);
    larder.get(path).assert_body(&image.manifest.bytes);
}

#[test]
fn unchanged_upstream_keeps_its_state() {
    let (dead, _, setup) = fixture();
    let guarded = Registry::start();
    guarded.require_auth(Auth::Bearer(None));
    let image = Image::small(6);
    guarded.add_image("org/app", "v1", &image);
    guarded.add_image("org/app", "v2", &image);
    dead.script(When::any(), Fault::CloseConnection);
    let mut larder = setup.upstream("quay.io", &guarded).start();
    let open =
        |larder: &Larder| larder.counter("larder_upstream_endpoint_open", &[("upstream", "docker.io")]);
    for number in 0..3 {
        assert_eq!(larder.get(&format!("/v2/library/app/manifests/x{number}")).status(), 502);
    }
    larder.wait_counter("larder_upstream_endpoint_open", &[("upstream", "docker.io")], 1);
    larder.get("/v2/quay.io/org/app/manifests/v1").assert_body(&image.manifest.bytes);
    larder.wait_idle();
    let tokens = |larder: &Larder| larder.counter("larder_upstream_token_requests_total", &[]);
    let asked = || dead.count("GET", "/manifests/");
    let (before, got) = (asked(), tokens(&larder));
    assert!(got > 0);
    larder.rewrite(|setup| {
        let setup = setup.upstream_set("quay.io", "tag_ttl", "5s").set("cache.negative_ttl", "1s");
        setup.upstream_set("docker.io", "allow", vec!["**"])
    });
    wait_applied(&larder, "tag_ttl");
    assert_eq!(open(&larder), 1);
    assert_eq!(larder.get("/v2/library/app/manifests/y").status(), 502);
    assert_eq!(asked(), before, "its circuit breaker is still open");
    larder.get("/v2/quay.io/org/app/manifests/v2").assert_body(&image.manifest.bytes);
    assert_eq!(tokens(&larder), got, "the token is still used");
    // A new limit creates a new HTTP client. The state of the old client is gone.
    larder.rewrite(|setup| setup.upstream_set("docker.io", "max_connections", 7));
    wait_applied(&larder, "max_connections");
    assert_eq!(open(&larder), 0);
}

#[test]
fn level_mode_and_limits_are_reloaded() {
    let (registry, _, setup) = fixture();
    let mut larder = setup.set("server.max_connections", 1).start();
    registry.script(When::any(), Fault::Status(403));
    assert_eq!(larder.get("/v2/library/app/manifests/x").status(), 404);
    larder.rewrite(|setup| setup.set("server.mode", "gateway").set("log.level", "error"));
    // This change disables the log line that would report it.
    eventually("the change is applied", || larder.get("/v2/library/app/manifests/y").status() == 403);
    let lines = larder.log_lines().len();
    larder.get("/v2/");
    larder.rewrite(|setup| setup.set("log.level", "info").set("server.max_connections", 3));
    let line = wait_applied(&larder, "server.max_connections: 1 -> 3");
    assert_eq!(larder.log_lines().len(), lines + 1, "{line}");
    let held = [larder.api().connect().unwrap(), larder.api().connect().unwrap()];
    eventually("both connections are accepted", || larder.counter("larder_connections", &[]) == 2);
    larder.get("/v2/").assert_body(b"{}");
    larder.rewrite(|setup| setup.set("server.max_connections", 1));
    wait_applied(&larder, "server.max_connections: 3 -> 1");
    drop(held);
    larder.get("/v2/").assert_body(b"{}");
    let mut held = larder.api().connect().unwrap();
    eventually("the connection is accepted", || larder.counter("larder_connections", &[]) == 1);
    larder.get("/v2/").assert_body(b"{}");
    assert_eq!(held.read(&mut [0]).unwrap(), 0, "the idle connection was closed for the next one");
}

#[test]
fn reload_fails_no_request() {
    let (_registry, image, setup) = fixture();
    let mut larder = setup.set("log.requests", false).start();
    larder.get(TAG).assert_body(&image.manifest.bytes);
    let over = AtomicBool::new(false);
    let api = larder.api();
    std::thread::scope(|scope| {
        let pulling: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut pulls = 0;
                    while !over.load(Ordering::SeqCst) {
                        api.get(TAG).assert_body(&image.manifest.bytes);
                        pulls += 1;
                    }
                    pulls
                })
            })
            .collect();
        for number in 2..12 {
            larder.rewrite(|setup| setup.upstream_set("docker.io", "max_connections", number));
            larder.hang_up();
            wait_applied(&larder, &format!("-> {number}"));
        }
        over.store(true, Ordering::SeqCst);
        for pulling in pulling {
            assert!(pulling.join().expect("no request failed") > 0);
        }
    });
}

#[test]
fn invalid_file_does_not_lock_out_the_command_line() {
    let (_registry, _, setup) = fixture();
    let larder = setup.start();
    let file = larder.setup().folder().join("larder.toml");
    let admin = larder.admin_addr().to_string();
    let good = std::fs::read_to_string(&file).unwrap().replace("listen = \"127.0.0.1:0\"", "");
    let good = good.replace("[admin]", &format!("[admin]\nlisten = \"{admin}\""));
    let good = good.replace("[server]", "[server]\nlisten = \"127.0.0.1:0\"");
    let run = |verb: &str| {
        let mut command = larder.setup().bare_command();
        verb::run(larder.setup(), command.args([verb, "--config"]).arg(&file))
    };
    let number = |name: &str| larder.counter(name, &[]);
    let (success, time) =
        ("larder_config_last_reload_success", "larder_config_last_reload_success_timestamp_seconds");
    let loaded = number(time);
    assert!(number(success) == 1 && loaded > 0);
    for broken in [
        format!("x = 1\n{good}"),
        format!("{good}\n[cache"),
        good.replace("\"1h\"", "\"soon\""),
        good.replace("default = true", "default = false"),
    ] {
        let before = larder.count_lines(REFUSED);
        std::fs::write(&file, &broken).unwrap();
        larder.hang_up();
        eventually("the error is logged", || larder.count_lines(REFUSED) > before);
        eventually("the metric reports it", || number(success) == 0);
        assert_eq!(number(time), loaded);
        for name in ["status", "ls", "healthy"] {
            let output = run(name).exited_with(0);
            assert!(output.stderr.contains("warning: "), "{output:?}");
        }
        let status = run("status").stdout;
        assert!(status.contains("reload failed") && status.contains("is in effect"), "{status}");
        let doctor = run("doctor").exited_with(4).stdout;
        assert!(doctor.contains("fails   configuration") && doctor.contains("larder: reload"), "{doctor}");
        assert!(doctor.contains("larder: ready"), "{doctor}");
        assert!(larder.admin().get("/").text().contains("could not be reloaded"));
    }
    let report = larder.admin().get("/api/v1/status").json()["service"]["configuration"].clone();
    assert!(report["failed_at"].as_u64() >= report["loaded_at"].as_u64(), "{report}");
    assert!(report["error"].as_str().unwrap().contains("default = true"), "{report}");
    std::fs::write(&file, &good).unwrap();
    larder.hang_up();
    eventually("the metric reports the valid file", || number(success) == 1);
    assert!(!run("status").exited_with(0).stdout.contains("reload failed"));
}

#[test]
fn invalid_file_without_a_server_is_an_error() {
    let (_registry, _, setup) = fixture();
    let port = support::Port::reserve();
    let setup = setup.set("admin.listen", port.addr().to_string()).set("cache.tag_tll", "1h");
    verb::offline(&setup, &["status"]).exited_with(1);
    let output = verb::offline(&setup, &["ls"]).exited_with(1);
    assert!(output.stderr.contains("tag_tll"), "{output:?}");
    assert!(!setup.data().exists());
}
