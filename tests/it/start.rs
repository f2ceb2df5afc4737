//! Start and stop: errors are one sentence, and running transfers finish before the exit.

use crate::support;

use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use support::larder::{Exit, run_to_exit};
use support::{Blob, Fault, Gate, Image, Larder, Registry, Setup, When, eventually};

const MIB: usize = 1 << 20;

/// Asserts that a command failed with a one-sentence error that contains all `words`.
#[track_caller]
fn assert_one_sentence(exit: &Exit, words: &[&str]) {
    assert!(!exit.status.success(), "{exit:?}");
    assert!(exit.status.code().is_some(), "killed by a signal: {exit:?}");
    // The log may precede it. The error for the user is plain text.
    let said: Vec<_> =
        exit.stderr.lines().filter(|line| !line.starts_with('{') && !line.is_empty()).collect();
    assert_eq!(said.len(), 1, "{}", exit.stderr);
    for word in words {
        assert!(said[0].contains(word), "no `{word}` in: {}", said[0]);
    }
    assert!(!exit.stderr.contains("panicked"), "{}", exit.stderr);
}

/// A configuration whose upstream gets no requests. It is valid unless the test changes it.
fn plain() -> Setup {
    Setup::empty().upstream_set("docker.io", "endpoints", vec!["http://127.0.0.1:1"]).upstream_set(
        "docker.io",
        "default",
        true,
    )
}

#[test]
fn start_contacts_no_upstream() {
    let registry = Registry::start();
    registry.script(When::any(), Fault::HoldHead(Gate::new()));
    let mut larder = Larder::in_front_of(&registry);
    assert_eq!(larder.admin().get("/livez").status(), 200);
    assert_eq!(larder.admin().get("/readyz").status(), 200);
    larder.stop();
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn flags_suffice_to_start() {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    let setup = Setup::empty();
    let mut command = setup.bare_command();
    let upstream = format!("docker.io={}", registry.url());
    command.args(["serve", "--listen", "127.0.0.1:0", "--upstream", &upstream, "--data"]).arg(setup.data());
    command.env("LARDER_ADMIN__LISTEN", "127.0.0.1:0").env("LARDER_LOG__FORMAT", "json");
    let larder = setup.start_by(&mut command);
    larder.get("/v2/library/app/manifests/v1").assert_body(&image.manifest.bytes);
    assert!(larder.setup().data().is_dir());
}

#[test]
fn port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    for key in ["server.listen", "admin.listen"] {
        let exit = plain().set(key, addr.clone()).run_to_exit();
        assert_one_sentence(&exit, &[&addr]);
    }
}

#[test]
fn locked_store_is_named() {
    let registry = Registry::start();
    let larder = Larder::in_front_of(&registry);
    let data = larder.setup().data().display().to_string();
    let exit = Setup::with(&registry).set("store.path", data.clone()).run_to_exit();
    assert_one_sentence(&exit, &[&data]);
    // The server that uses the store is not disturbed.
    assert_eq!(larder.get("/v2/").status(), 200);
}

#[test]
fn unwritable_folder_is_named() {
    let setup = plain();
    // Even root cannot create a folder below a file.
    let path = setup.write("file", "").join("data").display().to_string();
    assert_one_sentence(&setup.set("store.path", path.clone()).run_to_exit(), &[&path]);
    let setup = plain();
    let path = setup.write("plain", "not a store").display().to_string();
    assert_one_sentence(&setup.set("store.path", path.clone()).run_to_exit(), &[&path]);
}

#[test]
fn foreign_folder_is_not_used() {
    let setup = plain();
    let registry = Registry::start();
    std::fs::create_dir(setup.data()).unwrap();
    std::fs::write(setup.data().join("precious.txt"), "mine").unwrap();
    let data = setup.data();
    drop(registry);
    let mut child = setup.command().spawn().unwrap();
    // The existing files stay, whether the server starts or not.
    eventually("the server has started or exited", || {
        child.try_wait().unwrap().is_some() || std::fs::read_dir(&data).unwrap().count() > 1
    });
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(std::fs::read_to_string(data.join("precious.txt")).unwrap(), "mine");
}

#[test]
fn wrong_key_is_named_with_the_right_one() {
    let exit = plain().set("cache.tag_tll", "1m").run_to_exit();
    assert_one_sentence(&exit, &["tag_tll", "tag_ttl"]);
    let exit = plain().set("servr.listen", "127.0.0.1:0").run_to_exit();
    assert_one_sentence(&exit, &["servr", "server"]);
}

#[test]
fn wrong_value_and_missing_file_are_named() {
    assert_one_sentence(&plain().set("cache.tag_ttl", "soon").run_to_exit(), &["tag_ttl"]);
    assert_one_sentence(&plain().set("server.listen", "nowhere").run_to_exit(), &["listen"]);
    let setup = plain();
    let mut command = setup.bare_command();
    command.args(["serve", "--config", "not-there.toml"]);
    assert_one_sentence(&run_to_exit(&mut command), &["not-there.toml"]);
}

#[test]
fn bad_flag_is_a_usage_error() {
    let exit = run_to_exit(plain().bare_command().args(["serve", "--lisen", "x"]));
    assert_eq!(exit.status.code(), Some(2));
    assert!(exit.stderr.contains("--listen"), "{}", exit.stderr);
}

#[test]
fn signals_stop_an_idle_server_at_once() {
    for interrupt in [false, true] {
        let registry = Registry::start();
        // The exit must not wait for the end of this grace period.
        let mut larder = Setup::with(&registry).set("server.grace", "1h").start();
        // An idle connection is not a running transfer.
        let idle = larder.api().connect().unwrap();
        if interrupt {
            larder.interrupt();
        } else {
            larder.terminate();
        }
        let status = larder.wait_exit();
        assert_eq!(status.code(), Some(0), "{}", larder.log_text());
        drop(idle);
    }
}

struct Running {
    larder: Larder,
    blob: Blob,
    gate: Gate,
    path: String,
    _registry: Registry,
}

/// Starts a fill that is held after half of the blob.
fn running(grace: &str) -> Running {
    let registry = Registry::start();
    let blob = Blob::random(1, 4 * MIB);
    registry.add_blob("library/app", &blob);
    let gate = Gate::new();
    registry.script(When::blobs(), Fault::HoldBody(2 * MIB, gate.clone()));
    let larder = Setup::with(&registry).set("server.grace", grace).start();
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    Running { larder, blob, gate, path, _registry: registry }
}

#[test]
fn stop_lets_running_transfers_finish() {
    let mut running = running("30s");
    let mut transfer = running.larder.api().open("GET", &running.path, &[]).unwrap();
    let start = transfer.read_exactly(MIB).unwrap();
    assert!(start == running.blob.bytes[..MIB]);
    running.larder.terminate();
    eventually("new connections are refused", || running.larder.api().try_send("GET", "/v2/", &[]).is_err());
    assert!(running.larder.is_running());
    running.gate.open();
    assert!(transfer.finish().unwrap().body == running.blob.bytes[MIB..]);
    assert_eq!(running.larder.wait_exit().code(), Some(0), "{}", running.larder.log_text());
    // The blob was cached.
    running.larder.restart();
    running.larder.get(&running.path).assert_outcome("larder; hit");
}

#[test]
fn stop_is_bounded_by_the_grace_period() {
    let mut running = running("1s");
    let mut transfer = running.larder.api().open("GET", &running.path, &[]).unwrap();
    transfer.read_exactly(MIB).unwrap();
    running.larder.terminate();
    running.larder.wait_exit();
    transfer.finish().expect_err("a body that was cut must not look whole");
}

#[test]
fn stop_lets_cached_transfers_finish() {
    let registry = Registry::start();
    let blob = Blob::random(1, 24 * MIB);
    registry.add_blob("library/app", &blob);
    let mut larder = Larder::in_front_of(&registry);
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    larder.get(&path).assert_body(&blob.bytes);
    let mut transfer = larder.api().open("GET", &path, &[]).unwrap();
    transfer.read_exactly(MIB).unwrap();
    larder.terminate();
    eventually("new connections are refused", || larder.api().try_send("GET", "/v2/", &[]).is_err());
    assert!(transfer.finish().unwrap().body == blob.bytes[MIB..]);
    assert_eq!(larder.wait_exit().code(), Some(0));
}

/// Runs `larder healthy` with `admin` as the admin address.
fn healthy(setup: &Setup, admin: &str) -> Exit {
    let file = setup.config_file();
    run_to_exit(
        setup.bare_command().arg("healthy").arg("--config").arg(file).env("LARDER_ADMIN__LISTEN", admin),
    )
}

#[test]
fn health_check_runs_as_a_command() {
    let mut larder = plain().start();
    let admin = larder.admin_addr().to_string();
    let exit = healthy(larder.setup(), &admin);
    assert!(exit.status.success(), "{exit:?}");

    larder.stop();
    assert_one_sentence(&healthy(larder.setup(), &admin), &["no server answers", &admin]);
    assert_one_sentence(&healthy(larder.setup(), "systemd:admin"), &["admin.listen"]);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap().to_string();
    assert_one_sentence(&healthy(larder.setup(), &silent), &["no server answers", &silent]);

    let (setup, admin) = larder.into_setup().admin_socket();
    let larder = setup.start();
    let exit = healthy(larder.setup(), &admin);
    assert!(exit.status.success(), "{exit:?}");
}

/// Returns the number of bytes that the process has read.
fn has_read(larder: &Larder) -> usize {
    let io = std::fs::read_to_string(format!("/proc/{}/io", larder.pid())).unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[test]
fn start_after_a_stop_does_not_read_all_data() {
    let registry = Registry::start();
    let blob = Blob::random(1, 48 * MIB);
    registry.add_blob("library/app", &blob);
    let mut larder = Setup::with(&registry).set("store.blobs", "sled").start();
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    larder.get(&path).assert_body(&blob.bytes);
    larder.wait_idle();
    larder.stop();
    larder.restart();
    let read = has_read(&larder);
    assert!(read < 24 * MIB, "{read} bytes");
    assert_eq!(larder.get(&path).head.outcome(), "larder; hit");
    assert!(has_read(&larder) - read >= 48 * MIB, "it is where it was");
}

#[test]
fn open_files_limit_is_raised_and_leaves_a_reserve() {
    // The server accepts 128 connections, 96 of them from one client.
    const SILENT: usize = 200;
    let setup = plain();
    let server = setup.command();
    let mut command = Command::new("sh");
    // A reserve of 448 files, and two for each connection.
    command.args(["-c", "ulimit -S -n 100; ulimit -H -n 704; exec \"$0\" \"$@\""]);
    command.arg(server.get_program()).args(server.get_args());
    command.current_dir(setup.folder()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let larder = setup.start_by(&mut command);
    assert_eq!(larder.counter("process_max_fds", &[]), 704);
    let warning = larder.wait_for_line("too few open files", |line| {
        line["message"].as_str().is_some_and(|text| text.contains("the limit on open files permits"))
    });
    assert_eq!(warning["allowed"], 128, "{warning}");
    // More connections than the server accepts: they take nothing from the admin port.
    let silent: Vec<_> = (0..SILENT).map(|_| TcpStream::connect(larder.api_addr()).unwrap()).collect();
    eventually("all permitted connections are open", || larder.counter("larder_connections", &[]) == 96);
    assert_eq!(larder.admin().get("/readyz").status(), 200);
    assert!(larder.counter("process_open_fds", &[]) < 300);
    assert_eq!(larder.count_lines("connection cannot be accepted"), 0);
    drop(silent);
    assert_eq!(larder.get("/v2/").status(), 200);
}
