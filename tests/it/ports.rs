//! The registry port: several sockets, Unix sockets, sockets from a service manager, and TLS.

use crate::support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::certificate::{client, peer_certificate};
use support::fixture::{MIB, TAG};
use support::larder::run_to_exit;
use support::{
    Blob, Client, Fault, Gate, Image, Larder, Registry, Setup, TIME_LIMIT, TestCertificate, When, eventually,
};

/// Returns the complete answer to a GET request over a Unix socket.
fn get_by(socket: &Path, path: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIME_LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Returns a registry that gets no requests, and the configuration of a server in front of it.
fn setup() -> (Registry, Setup) {
    let registry = Registry::start();
    let setup = Setup::with(&registry);
    (registry, setup)
}

/// Adds a TLS port with this certificate.
fn with_tls(setup: Setup, issued: &TestCertificate) -> Setup {
    let (cert, key) = issued.write_into(&setup.folder().join("tls"));
    setup
        .set("server.tls_listen", "127.0.0.1:0")
        .set("server.tls_cert", cert.display().to_string())
        .set("server.tls_key", key.display().to_string())
}

fn url(larder: &Larder, path: &str) -> String {
    format!("https://{}{path}", larder.addresses("api_tls")[0])
}

#[test]
fn every_socket_of_a_port_is_served() {
    let (_registry, setup) = setup();
    let socket = setup.folder().join("larder.sock");
    let listen = vec!["127.0.0.1:0".to_owned(), "[::1]:0".to_owned(), format!("unix:{}", socket.display())];
    let mut larder = setup.set("server.listen", listen).start();
    let addresses = larder.addresses("api");
    assert_eq!(addresses.len(), 2);
    for address in addresses {
        Client::new(address).get("/v2/").assert_body(b"{}");
    }
    let answer = get_by(&socket, "/v2/").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("{}"), "{answer}");
    larder.stop();
    assert!(!socket.exists(), "what a larder made it takes away");
}

#[test]
fn connection_limit_is_shared_by_all_sockets() {
    let (registry, setup) = setup();
    let gate = Gate::new();
    registry.script(When::any(), Fault::HoldHead(gate.clone()));
    let socket = setup.folder().join("larder.sock");
    let listen = vec!["127.0.0.1:0".to_owned(), format!("unix:{}", socket.display())];
    let larder = setup.set("server.listen", listen).set("server.max_connections", 1).start();
    // A request on one socket uses the only slot.
    let mut busy = UnixStream::connect(&socket).unwrap();
    write!(busy, "GET {TAG} HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n").unwrap();
    eventually("the request is being answered", || registry.requests().len() == 1);
    let hasty = larder.api().read_timeout(Duration::from_millis(100));
    hasty.try_send("GET", "/v2/", &[]).unwrap_err();
    gate.open();
    let mut answer = Vec::new();
    busy.set_read_timeout(Some(TIME_LIMIT)).unwrap();
    busy.read_to_end(&mut answer).expect("the connection is closed");
    larder.get("/v2/").assert_body(b"{}");
}

#[test]
fn socket_file_mode_and_reuse_after_a_kill() {
    let (_registry, setup) = setup();
    let socket = setup.folder().join("larder.sock");
    let listen = vec!["127.0.0.1:0".to_owned(), format!("unix:{}", socket.display())];
    let mut larder = setup.set("server.listen", listen).start();
    let found = std::fs::metadata(&socket).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o660);
    // A second server does not take the socket of a listening one.
    let (_other, second) = self::setup();
    let second = second.set("server.listen", format!("unix:{}", socket.display()));
    let exit = second.run_to_exit();
    assert!(!exit.status.success());
    assert!(exit.stderr.contains("another process listens on it"), "{}", exit.stderr);
    get_by(&socket, "/v2/").unwrap();
    // The socket of a killed server is replaced.
    larder.kill9();
    assert!(socket.exists());
    get_by(&socket, "/v2/").unwrap_err();
    larder.restart();
    assert!(get_by(&socket, "/v2/").unwrap().starts_with("HTTP/1.1 200 "));
}

#[test]
fn file_that_is_not_a_socket_is_kept() {
    let (_registry, setup) = setup();
    let precious = setup.write("precious", "mine");
    let setup = setup.set("server.listen", format!("unix:{}", precious.display()));
    let exit = setup.run_to_exit();
    assert!(!exit.status.success());
    assert!(exit.stderr.contains("not a socket") && exit.stderr.contains("precious"), "{}", exit.stderr);
    assert_eq!(std::fs::read_to_string(precious).unwrap(), "mine");
}

/// Returns the command `larder serve` with sockets passed as by systemd: the first as descriptor 3, the second as 4.
fn passed(setup: &Setup, names: &str, first: OwnedFd, second: OwnedFd) -> Command {
    let larder = setup.command();
    let mut command = setup.bare_command();
    let program = larder.get_program().to_owned();
    // The process of the shell becomes the server, so the shell knows its process id. Standard input and output carry
    // the sockets.
    let line = "export LISTEN_PID=$$; exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null";
    let mut shell = Command::new("sh");
    shell
        .args(["-c", line])
        .arg(program)
        .args(larder.get_args())
        .envs(command.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))));
    command.get_envs().filter(|(_, value)| value.is_none()).for_each(|(name, _)| {
        shell.env_remove(name);
    });
    command = shell;
    command.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", names);
    command.stdin(first).stdout(second).stderr(std::process::Stdio::piped());
    command.current_dir(setup.folder());
    command
}

#[test]
fn sockets_are_inherited_from_the_service_manager() {
    let (_registry, setup) = setup();
    let (tcp, address) = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (OwnedFd::from(listener), address)
    };
    let socket = setup.folder().join("managed.sock");
    let unix = OwnedFd::from(UnixListener::bind(&socket).unwrap());
    // A connection that was made before the start is also served.
    let mut early = std::net::TcpStream::connect(address).unwrap();
    early.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let setup = setup.set("server.listen", vec!["systemd:larder.socket", "fd:4"]);
    let mut command = passed(&setup, "larder.socket:other", tcp, unix);
    let mut larder = setup.start_by(&mut command);
    assert_eq!(larder.addresses("api"), [address]);
    let mut answer = String::new();
    early.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    larder.get("/v2/").assert_body(b"{}");
    assert!(get_by(&socket, "/v2/").unwrap().starts_with("HTTP/1.1 200 "));
    larder.stop();
    assert!(socket.exists(), "the socket belongs to the service manager");
}

#[test]
fn missing_inherited_socket_is_named() {
    let (_registry, setup) = setup();
    let setup = setup.set("server.listen", "systemd:larder.socket");
    let exit = setup.run_to_exit();
    assert!(!exit.status.success());
    assert!(
        exit.stderr.contains("systemd:larder.socket") && exit.stderr.contains(".socket unit"),
        "{}",
        exit.stderr
    );
    let sockets = [(), ()].map(|()| OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap()));
    let [one, two] = sockets;
    let exit = run_to_exit(&mut passed(&setup, "web:admin", one, two));
    assert!(exit.stderr.contains("it passed: systemd:web, systemd:admin"), "{}", exit.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_negotiates_http1_and_http2() {
    let registry = Registry::start();
    let layer = Blob::random(1, 5 * MIB + 17);
    let image = Image::oci(1, "linux/amd64", vec![layer.clone()]);
    registry.add_image("library/app", "v1", &image);
    let issued = TestCertificate::new();
    let larder = with_tls(Setup::with(&registry), &issued).start();
    for (name, version) in [("http/1.1", http::Version::HTTP_11), ("h2", http::Version::HTTP_2)] {
        let client = client([&issued], name);
        let answer = client.get(url(&larder, TAG)).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, version));
        assert_eq!(peer_certificate(&answer), issued.der);
        assert!(answer.bytes().await.unwrap() == *image.manifest.bytes);
        // Not cached for the first protocol, cached for the second, with several requests on one connection.
        let path = format!("/v2/library/app/blobs/{}", layer.digest);
        let mut pulls = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let pull = client.get(url(&larder, &path)).send();
            pulls.spawn(async move { pull.await.unwrap().bytes().await.unwrap() });
        }
        for body in pulls.join_all().await {
            assert!(body == *layer.bytes);
        }
        let part = client.get(url(&larder, &path)).header("range", "bytes=1000-1999").send().await.unwrap();
        assert_eq!(part.status().as_u16(), 206);
        assert!(part.bytes().await.unwrap() == layer.bytes[1000..2000]);
        let missing = client.get(url(&larder, "/v2/library/none/manifests/v1")).send().await.unwrap();
        assert_eq!(missing.status().as_u16(), 404);
    }
    // The plain port also works.
    larder.get(TAG).assert_body(&image.manifest.bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_authority_selects_the_upstream() {
    let (hub, other) = (Registry::start(), Registry::start());
    let image = Image::small(3);
    other.add_image("org/app", "v1", &image);
    let issued = TestCertificate::new();
    let setup = with_tls(Setup::with(&hub).upstream("quay.io", &other), &issued);
    let larder = setup.upstream_set("quay.io", "hostnames", vec!["127.0.0.1"]).start();
    for version in ["http/1.1", "h2"] {
        let answer = client([&issued], version).get(url(&larder, "/v2/org/app/manifests/v1")).send().await;
        assert_eq!(answer.unwrap().status().as_u16(), 200, "{version}");
    }
}

#[test]
fn broken_certificate_is_named_at_start() {
    let (_registry, setup) = setup();
    let setup = with_tls(setup, &TestCertificate::new());
    let folder = setup.folder().join("tls");
    std::fs::write(folder.join("tls.key"), TestCertificate::new().key).unwrap();
    let exit = setup.run_to_exit();
    assert!(!exit.status.success());
    assert!(exit.stderr.contains("tls.key") && exit.stderr.contains("does not belong to"), "{}", exit.stderr);
    std::fs::write(folder.join("tls.crt"), "nothing").unwrap();
    let exit = setup.run_to_exit();
    assert!(exit.stderr.contains("tls.crt") && exit.stderr.contains("no certificate"), "{}", exit.stderr);
}

#[test]
fn admin_port_supports_tls() {
    let (_registry, setup) = setup();
    let issued = TestCertificate::new();
    let larder = with_tls(setup, &issued).set("admin.tls_listen", "127.0.0.1:0").start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = larder.addresses("admin_tls")[0];
    runtime.block_on(async {
        let answer = client([&issued], "h2").get(format!("https://{address}/livez")).send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "ok\n");
    });
}

#[test]
fn unfinished_tls_handshake_times_out() {
    let (_registry, setup) = setup();
    let larder = with_tls(setup, &TestCertificate::new()).set("server.header_timeout", "500ms").start();
    let port = Client::new(larder.addresses("api_tls")[0]);
    for start in [&b""[..], &[0x16, 0x03, 0x01, 0x00, 0xc8, 0x01]] {
        port.raw(start);
    }
    // A plain HTTP request is rejected, or its connection is closed.
    let answer = port.raw(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    larder.get("/v2/").assert_body(b"{}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_http2_connection_is_closed() {
    let (_registry, setup) = setup();
    let issued = TestCertificate::new();
    let larder = with_tls(setup, &issued).set("server.header_timeout", "500ms").start();
    let client = client([&issued], "h2");
    assert_eq!(client.get(url(&larder, "/v2/")).send().await.unwrap().status().as_u16(), 200);
    eventually("the idle connection is closed", || larder.counter("larder_connections", &[]) == 0);
    // The client opens a new connection without an error.
    assert_eq!(client.get(url(&larder, "/v2/")).send().await.unwrap().status().as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_lets_http2_transfers_finish() {
    let registry = Registry::start();
    let blob = Blob::random(1, 4 * MIB);
    registry.add_blob("library/app", &blob);
    let gate = Gate::new();
    registry.script(When::blobs(), Fault::HoldBody(2 * MIB, gate.clone()));
    let issued = TestCertificate::new();
    let mut larder = with_tls(Setup::with(&registry), &issued).start();
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    let mut answer = client([&issued], "h2").get(url(&larder, &path)).send().await.unwrap();
    let mut body = answer.chunk().await.unwrap().unwrap().to_vec();
    larder.terminate();
    eventually("new connections are refused", || larder.api().try_send("GET", "/v2/", &[]).is_err());
    assert!(larder.is_running());
    gate.open();
    while let Some(more) = answer.chunk().await.unwrap() {
        body.extend_from_slice(&more);
    }
    assert!(body == *blob.bytes);
    drop(answer);
    assert_eq!(larder.wait_exit().code(), Some(0), "{}", larder.log_text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_stream_of_a_wrong_body_is_reset() {
    let registry = Registry::start();
    let blob = Blob::random(1, 2 * MIB);
    registry.add_blob("library/app", &blob);
    registry.script(When::blobs(), Fault::FlipBit(MIB));
    let issued = TestCertificate::new();
    let larder = with_tls(Setup::with(&registry), &issued).start();
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    let client = client([&issued], "h2");
    let answer = client.get(url(&larder, &path)).send().await.unwrap();
    answer.bytes().await.expect_err("a body that was cut must not look whole");
    // The connection stays usable.
    assert_eq!(client.get(url(&larder, "/v2/")).send().await.unwrap().status().as_u16(), 200);
    assert_eq!(larder.counter("larder_connections", &[]), 1);
}

#[test]
fn half_open_clients_are_harmless() {
    let (_registry, setup) = setup();
    let larder = with_tls(setup, &TestCertificate::new()).start();
    let port = Client::new(larder.addresses("api_tls")[0]);
    for _ in 0..20 {
        let stream = port.connect().unwrap();
        let _ = (&stream).write_all(&[0x16, 0x03, 0x01]);
        let _ = stream.shutdown(Shutdown::Both);
    }
    larder.get("/v2/").assert_body(b"{}");
}
