//! Replacement of certificates while the server runs: no request fails, and new connections get the new certificate.

use crate::support;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::certificate::{client, peer_certificate};
use support::fixture::{MIB, TAG};
use support::{Blob, Image, Larder, Registry, Setup, TIME_LIMIT, TestCertificate};

const ERROR: &str = "TLS certificate cannot be reloaded; the previous one stays in use";
const AGAIN: &str = "TLS certificate reloaded";

fn start(registry: &Registry, cert: &Path, key: &Path, setup: Setup) -> Larder {
    let _ = registry;
    setup
        .set("server.tls_listen", "127.0.0.1:0")
        .set("server.tls_cert", cert.display().to_string())
        .set("server.tls_key", key.display().to_string())
        .start()
}

fn url(larder: &Larder, path: &str) -> String {
    format!("https://{}{path}", larder.addresses("api_tls")[0])
}

/// Returns the certificate of a new connection.
async fn seen(larder: &Larder, trusted: &[TestCertificate]) -> Option<TestCertificate> {
    let answer = client(trusted, "http/1.1").get(url(larder, "/v2/")).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    let der = peer_certificate(&answer);
    trusted.iter().find(|issued| issued.der == der).cloned()
}

async fn wait_seen(larder: &Larder, wanted: &TestCertificate, trusted: &[TestCertificate]) {
    let end = Instant::now() + TIME_LIMIT;
    while seen(larder, trusted).await.is_none_or(|found| found.cert != wanted.cert) {
        assert!(Instant::now() < end, "the new certificate does not come; the log:\n{}", larder.log_text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Replaces a certificate as Kubernetes does with a mounted secret: `tls.crt` → `..data/tls.crt`, and `..data` is a
/// link to a folder. The swap replaces `..data`.
fn swap(mount: &Path, issued: &TestCertificate, number: usize) {
    issued.write_into(&mount.join(format!("..{number}")));
    let making = mount.join("..data_tmp");
    symlink(format!("..{number}"), &making).unwrap();
    std::fs::rename(&making, mount.join("..data")).unwrap();
}

/// Replaces a certificate as certbot does: the links in `live` are replaced one after the other.
fn renew(live: &Path, issued: &TestCertificate, number: usize) {
    let archive = live.join(format!("archive{number}"));
    let (cert, key) = issued.write_into(&archive);
    for (name, target) in [("tls.key", key), ("tls.crt", cert)] {
        let link = live.join(name);
        let _ = std::fs::remove_file(&link);
        symlink(target, link).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn certificate_replacement_fails_no_request() {
    let registry = Registry::start();
    let layer = Blob::random(1, 2 * MIB);
    let image = Image::oci(1, "linux/amd64", vec![layer.clone()]);
    registry.add_image("library/app", "v1", &image);
    let trusted: Vec<_> = (0..9).map(|_| TestCertificate::new()).collect();
    let setup = Setup::with(&registry);
    let mount = setup.folder().join("mount");
    std::fs::create_dir(&mount).unwrap();
    swap(&mount, &trusted[0], 0);
    for name in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), mount.join(name)).unwrap();
    }
    let larder = start(&registry, &mount.join("tls.crt"), &mount.join("tls.key"), setup);
    let blob = format!("/v2/library/app/blobs/{}", layer.digest);

    let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut pulling = Vec::new();
    for (number, version) in ["h2", "http/1.1", "h2", "http/1.1"].into_iter().enumerate() {
        let (over, done, layer) = (Arc::clone(&over), Arc::clone(&done), layer.clone());
        let (trusted, manifest) = (trusted.clone(), Arc::clone(&image.manifest.bytes));
        let (tag, blob) = (url(&larder, TAG), url(&larder, &blob));
        pulling.push(tokio::spawn(async move {
            let kept = client(&trusted, version);
            while !over.load(Ordering::SeqCst) {
                // Two clients keep their connections, two clients open a new connection for each round.
                let pull = if number < 2 { kept.clone() } else { client(&trusted, version) };
                let answer = pull.get(&tag).send().await.expect("an answer");
                assert!(answer.bytes().await.expect("a whole body") == *manifest);
                let answer = pull.get(&blob).send().await.expect("an answer");
                assert!(answer.bytes().await.expect("a whole body") == *layer.bytes);
                done.fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    for (number, issued) in trusted.iter().enumerate().skip(1) {
        swap(&mount, issued, number);
        // Half of the changes are found by the periodic check, half are announced by SIGHUP.
        if number % 2 == 0 {
            larder.hang_up();
        }
        wait_seen(&larder, issued, &trusted).await;
        // Each certificate serves some requests before it is replaced.
        let so_far = done.load(Ordering::SeqCst);
        let end = Instant::now() + TIME_LIMIT;
        while done.load(Ordering::SeqCst) < so_far + 4 {
            assert!(Instant::now() < end && !pulling.iter().all(tokio::task::JoinHandle::is_finished));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    over.store(true, Ordering::SeqCst);
    for pulling in pulling {
        pulling.await.expect("no request failed");
    }
    assert!(!larder.log_text().contains(ERROR), "{}", larder.log_text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mismatched_pair_is_ignored_and_logged_once() {
    let registry = Registry::start();
    let setup = Setup::with(&registry);
    let trusted: Vec<_> = (0..3).map(|_| TestCertificate::new()).collect();
    let folder = setup.folder().join("live");
    std::fs::create_dir(&folder).unwrap();
    renew(&folder, &trusted[0], 0);
    let (cert, key): (PathBuf, PathBuf) = (folder.join("tls.crt"), folder.join("tls.key"));
    let larder = start(&registry, &cert, &key, setup);
    let errors = || larder.log_lines().iter().filter(|line| line["message"] == ERROR).count();

    // The new certificate is installed before its key.
    std::fs::remove_file(&cert).unwrap();
    std::fs::write(&cert, &trusted[1].cert).unwrap();
    let line = larder.wait_for_line("error", |line| line["message"] == ERROR);
    assert!(line["error"].as_str().unwrap().contains("tls.key"), "{line}");
    assert_eq!(line["level"], "ERROR");
    assert_eq!(seen(&larder, &trusted).await.unwrap().cert, trusted[0].cert);

    // Then its key is installed.
    std::fs::remove_file(&key).unwrap();
    std::fs::write(&key, &trusted[1].key).unwrap();
    wait_seen(&larder, &trusted[1], &trusted).await;

    // A truncated certificate. SIGHUP logs the error each time, because the operator expects an answer.
    std::fs::write(&cert, &trusted[2].cert[..trusted[2].cert.len() / 2]).unwrap();
    let before = errors();
    larder.hang_up();
    support::eventually("the error is logged", || errors() == before + 1);
    assert_eq!(seen(&larder, &trusted).await.unwrap().cert, trusted[1].cert);
    // The periodic check does not log an unchanged error again. A valid pair ends the error.
    let said = errors();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(errors(), said);
    renew(&folder, &trusted[2], 2);
    wait_seen(&larder, &trusted[2], &trusted).await;
    assert!(larder.log_lines().iter().any(|line| line["message"] == AGAIN && line["cert"].is_string()));
}
