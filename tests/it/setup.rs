//! `larder setup`: the configuration of clients, and its installation in existing files.

use crate::support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::verb::{self, Output};
use support::{Setup, TestCertificate};
use tempfile::TempDir;

/// A configuration with its own port and two upstreams.
fn larder() -> Setup {
    Setup::empty()
        .set("server.listen", "127.0.0.1:5000")
        .upstream_set("docker.io", "endpoints", vec!["https://registry-1.docker.io"])
        .upstream_set("docker.io", "default", true)
        .upstream_set("quay.io", "endpoints", vec!["https://quay.io"])
}

fn machine() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Runs the verb for a machine whose file system is below a folder.
fn setup(setup: &Setup, root: &Path, arguments: &[&str]) -> Output {
    let root = root.to_str().unwrap();
    verb::offline(setup, &[&["setup"], arguments, &["--root", root]].concat())
}

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn text(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap()
}

/// Returns all files below a folder, except those with these prefixes.
fn beside(root: &Path, folder: &str, known: &[&str]) -> Vec<String> {
    let entries = fs::read_dir(root.join(folder)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !known.contains(&name.as_str())).collect()
}

#[test]
fn documentation_matches_the_output() {
    let manual = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/README.md")).unwrap();
    let (larder, root) = (larder(), machine());
    for client in ["docker", "containerd", "podman", "crio"] {
        let printed = setup(&larder, root.path(), &[client, "--json"]).exited_with(0).json();
        let content = printed[0]["content"].as_str().unwrap();
        let wanted: Vec<_> = content.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(manual.contains(wanted.join("\n").trim()), "{client}: {content}");
    }
    // The BuildKit configuration there has one upstream.
    let printed = setup(&larder, root.path(), &["buildkit", "--json"]).exited_with(0).json();
    for line in printed[0]["content"].as_str().unwrap().lines().filter(|line| !line.contains("quay.io")) {
        assert!(manual.contains(line), "{line}");
    }
}

#[test]
fn file_is_printed_between_path_and_instructions() {
    let (larder, root) = (larder(), machine());
    let printed = setup(&larder, root.path(), &["crio"]).exited_with(0).stdout;
    let path = root.path().join("etc/containers/registries.conf.d/larder.conf");
    assert!(printed.starts_with(&format!("# {}\n# Written by `larder setup`", path.display())), "{printed}");
    assert!(printed.ends_with("\n# systemctl reload crio\n"), "{printed}");
    // The complete output is a usable file.
    let table: toml::Table = printed.parse().unwrap();
    assert_eq!(table["registry"].as_array().unwrap().len(), 2);
    assert!(!path.exists(), "nothing is written unasked");
}

#[test]
fn clients_are_configured_once_and_then_unchanged() {
    let (larder, root) = (larder(), machine());
    for (client, file) in [
        ("docker", "etc/docker/daemon.json"),
        ("containerd", "etc/containerd/certs.d/_default/hosts.toml"),
        ("podman", "etc/containers/registries.conf.d/larder.conf"),
        ("buildkit", "etc/buildkit/buildkitd.toml"),
        ("k3s", "etc/rancher/k3s/registries.yaml"),
    ] {
        let first = setup(&larder, root.path(), &[client, "--write"]).exited_with(0);
        assert!(first.stdout.contains(&format!("{file}: written\n")), "{first:?}");
        let written = text(root.path(), file);
        assert!(written.contains("127.0.0.1:5000"), "{written}");
        let again = setup(&larder, root.path(), &[client, "--write"]).exited_with(0);
        assert!(again.stdout.ends_with(&format!("{file}: unchanged\n")), "{again:?}");
        assert_eq!(text(root.path(), file), written);
        let folder = Path::new(file).parent().unwrap().to_str().unwrap();
        let name = Path::new(file).file_name().unwrap().to_str().unwrap();
        assert_eq!(beside(root.path(), folder, &[name]), Vec::<String>::new(), "no copy without a change");
    }
    // CRI-O reads the files of Podman.
    let crio = setup(&larder, root.path(), &["crio", "--write", "--json"]).exited_with(0).json();
    assert_eq!(crio[0]["outcome"], "unchanged", "{crio}");
}

#[test]
fn existing_settings_and_backup_are_kept() {
    let (larder, root) = (larder(), machine());
    let daemon =
        "{\n  \"storage-driver\": \"overlay2\",\n  \"registry-mirrors\": [\"https://other.test\"]\n}\n";
    let hosts = "# by hand\n[host.\"https://other.test\"]\n  capabilities = [\"pull\"]\n";
    let buildkit = "[worker.oci]\n  gc = true # by hand\n";
    put(root.path(), "etc/docker/daemon.json", daemon);
    put(root.path(), "etc/containerd/certs.d/quay.io/hosts.toml", hosts);
    put(root.path(), "etc/buildkit/buildkitd.toml", buildkit);
    let docker = setup(&larder, root.path(), &["docker", "--write", "--json"]).exited_with(0).json();
    assert_eq!(docker[0]["outcome"], "written");
    assert_eq!(fs::read_to_string(docker[0]["backup"].as_str().unwrap()).unwrap(), daemon);
    let now: Value = serde_json::from_str(&text(root.path(), "etc/docker/daemon.json")).unwrap();
    assert_eq!(
        now,
        json!({
            "storage-driver": "overlay2",
            "registry-mirrors": ["https://other.test", "http://127.0.0.1:5000"],
        })
    );
    let general = setup(&larder, root.path(), &["containerd"]).exited_with(0);
    assert!(general.stderr.contains("quay.io/hosts.toml exists"), "{general:?}");
    setup(&larder, root.path(), &["containerd", "--per-registry", "--write"]).exited_with(0);
    let now = text(root.path(), "etc/containerd/certs.d/quay.io/hosts.toml");
    assert!(now.starts_with(hosts) && now.contains("[host.\"http://127.0.0.1:5000\"]"), "{now}");
    assert!(root.path().join("etc/containerd/certs.d/docker.io/hosts.toml").exists());
    setup(&larder, root.path(), &["buildkit", "--write"]).exited_with(0);
    let now = text(root.path(), "etc/buildkit/buildkitd.toml");
    assert!(now.contains("gc = true # by hand") && now.contains("\"127.0.0.1:5000/quay.io\""), "{now}");
}

#[test]
fn malformed_and_foreign_files_are_not_changed() {
    let (larder, root) = (larder(), machine());
    for (client, file, content, says) in [
        ("docker", "etc/docker/daemon.json", "{\n  \"debug\": true,\n}\n", "line 3, column 1"),
        ("docker", "etc/docker/daemon.json", "{\"registry-mirrors\": \"x\"}", "is not a list"),
        ("containerd", "etc/containerd/certs.d/_default/hosts.toml", "a = 1\n[host\n", "line 2"),
        ("podman", "etc/containers/registries.conf.d/larder.conf", "[[registry]\n", "line 1"),
        ("podman", "etc/containers/registries.conf.d/larder.conf", "[[registry]]\n", "not written by"),
        ("buildkit", "etc/buildkit/buildkitd.toml", "registry = 5\n", "is not a table"),
        ("k3s", "etc/rancher/k3s/registries.yaml", "mirrors: {}\n", "not written by"),
    ] {
        put(root.path(), file, content);
        let ran = setup(&larder, root.path(), &[client, "--write"]).exited_with(1);
        assert!(ran.stderr.contains(file) && ran.stderr.contains(says), "{ran:?}");
        assert_eq!(text(root.path(), file), content);
        // The manual instructions are still printed.
        setup(&larder, root.path(), &[client]).exited_with(0);
    }
}

#[test]
fn tls_setup_includes_the_authority() {
    let (issued, root) = (TestCertificate::new(), machine());
    let larder = larder();
    let (cert, key) = issued.write_into(&larder.folder().join("tls"));
    let ca = cert.to_str().unwrap().to_owned();
    let larder = larder
        .set("server.listen", toml::Value::Array(Vec::new()))
        .set("server.tls_listen", "0.0.0.0:5443")
        .set("server.tls_cert", ca.clone())
        .set("server.tls_key", key.to_str().unwrap());
    let open = setup(&larder, root.path(), &["docker"]).exited_with(1);
    assert!(open.stderr.contains("--address HOST:PORT"), "{open:?}");
    let trusted = setup(&larder, root.path(), &["docker", "--address", "larder.test:5443"]).exited_with(0);
    assert!(trusted.stderr.contains("add --ca-file"), "{trusted:?}");
    let at = ["--address", "larder.test:5443", "--ca-file", &ca];
    for (client, file, says) in [
        ("docker", "etc/docker/certs.d/larder.test:5443/ca.crt", "https://larder.test:5443"),
        (
            "containerd",
            "etc/containerd/certs.d/larder-ca.crt",
            "ca = \"/etc/containerd/certs.d/larder-ca.crt\"",
        ),
        ("podman", "etc/containers/certs.d/larder.test:5443/ca.crt", "larder.test:5443/quay.io"),
        ("buildkit", "etc/buildkit/larder-ca.crt", "ca = [\"/etc/buildkit/larder-ca.crt\"]"),
        ("k3s", "etc/rancher/k3s/larder-ca.crt", "ca_file: \"/etc/rancher/k3s/larder-ca.crt\""),
        ("kind", "", "ca = \"/etc/containerd/certs.d/larder-ca.crt\""),
    ] {
        let printed = setup(&larder, root.path(), &[&[client][..], &at].concat()).exited_with(0).stdout;
        assert!(printed.contains(says), "{printed}");
        assert!(!printed.contains("http://larder.test") && !printed.contains("insecure"), "{printed}");
        if client != "kind" {
            setup(&larder, root.path(), &[&[client, "--write"][..], &at].concat()).exited_with(0);
            assert_eq!(text(root.path(), file), issued.cert);
        }
    }
}

#[test]
fn impossible_setup_is_refused() {
    let root = machine();
    let says = |larder: &Setup, arguments: &[&str], word: &str| {
        let ran = setup(larder, root.path(), arguments).exited_with(1);
        assert!(ran.stderr.contains(word), "{ran:?}");
    };
    let hidden = larder().set("server.listen", "unix:/run/larder.sock");
    says(&hidden, &["docker"], "clients need an IP address");
    says(&larder().set("server.listen", "0.0.0.0:5000"), &["podman"], "all addresses");
    says(&larder(), &["kind"], "is the node itself");
    says(&larder(), &["kind", "--write", "--address", "larder:5000"], "no fixed configuration file");
    says(&larder(), &["docker", "--per-registry"], "containerd only");
    let other = larder().upstream_set("docker.io", "default", false).upstream_set("quay.io", "default", true);
    says(&other, &["docker"], "default = true");
    let none = Setup::empty()
        .set("server.listen", "127.0.0.1:5000")
        .upstream_set("reg.test:5000", "endpoints", vec!["http://reg.test:5000"])
        .upstream_set("reg.test:5000", "default", true);
    says(&none, &["docker"], "no upstream `docker.io`");
    says(&none, &["podman"], "a path cannot contain a colon");
    // Clients that send the registry as a query parameter can be configured.
    for client in ["containerd", "buildkit", "k3s"] {
        setup(&none, root.path(), &[client]).exited_with(0);
    }
    let far =
        setup(&larder(), root.path(), &["docker", "--address", "larder.test:5000", "--json"]).exited_with(0);
    let daemon: Value = serde_json::from_str(far.json()[0]["content"].as_str().unwrap()).unwrap();
    assert_eq!(daemon["insecure-registries"], json!(["larder.test:5000"]));
}

#[test]
fn containerd_config_path_is_checked() {
    let (larder, root) = (larder(), machine());
    let arguments = ["containerd", "--containerd-version", "2.1"];
    let said = || setup(&larder, root.path(), &arguments).exited_with(0).stderr;
    assert!(said().contains("config.toml does not exist"), "{}", said());
    put(root.path(), "etc/containerd/config.toml", "version = 2\n");
    assert!(said().contains("io.containerd.grpc.v1.cri"), "{}", said());
    let named = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
    put(root.path(), "etc/containerd/config.toml", named);
    assert_eq!(said(), "");
    assert_eq!(text(root.path(), "etc/containerd/config.toml"), named);
}

#[test]
fn docker_with_the_store_of_containerd_mirrors_all_registries() {
    let (larder, root) = (larder(), machine());
    let hosts = "etc/docker/certs.d/_default/hosts.toml";
    let unknown = setup(&larder, root.path(), &["docker"]).exited_with(0);
    assert!(unknown.stderr.contains("--image-store containerd"), "{unknown:?}");
    assert!(!unknown.stdout.contains("hosts.toml"), "{unknown:?}");

    let classic = setup(&larder, root.path(), &["docker", "--image-store", "classic"]).exited_with(0);
    assert!(!classic.stdout.contains("hosts.toml") && classic.stderr.is_empty(), "{classic:?}");

    put(root.path(), "etc/docker/daemon.json", "{\"features\": {\"containerd-snapshotter\": true}}");
    let old =
        setup(&larder, root.path(), &["docker", "--docker-version", "28.5.2", "--write"]).exited_with(0);
    assert!(old.stdout.contains(&format!("{hosts}: written\n")), "{old:?}");
    assert!(
        text(root.path(), hosts).contains("[\"pull\", \"resolve\"]"),
        "Docker 28 rejects other capabilities"
    );
    setup(&larder, root.path(), &["docker", "--docker-version", "29.1.0", "--write"]).exited_with(0);
    assert!(text(root.path(), hosts).contains("[\"pull\", \"resolve\", \"referrers\"]"));
    assert!(text(root.path(), "etc/docker/daemon.json").contains("registry-mirrors"));
    // The mirror of all registries needs no default upstream.
    let other = Setup::empty()
        .set("server.listen", "127.0.0.1:5000")
        .upstream_set("quay.io", "endpoints", vec!["https://quay.io"])
        .upstream_set("quay.io", "default", true);
    let printed = setup(&other, root.path(), &["docker"]).exited_with(0).stdout;
    assert!(printed.contains("hosts.toml") && !printed.contains("daemon.json"), "{printed}");
}

#[test]
fn containerd_finds_referrers_through_the_mirror_since_2_2() {
    let (larder, root) = (larder(), machine());
    let unknown = setup(&larder, root.path(), &["containerd"]).exited_with(0);
    assert!(unknown.stderr.contains("--containerd-version 2.2"), "{unknown:?}");
    assert!(!unknown.stdout.contains("referrers"), "{unknown:?}");
    for (version, has_referrers) in [("1.6.20", false), ("v2.1.9", false), ("2.2", true), ("2.4.2", true)] {
        for client in ["containerd", "spegel"] {
            let ran = setup(&larder, root.path(), &[client, "--containerd-version", version]).exited_with(0);
            assert_eq!(ran.stdout.contains("\"referrers\""), has_referrers, "{client} {version}: {ran:?}");
        }
    }
}

#[test]
fn spegel_is_asked_before_the_server() {
    let (larder, root) = (larder(), machine());
    let printed = setup(&larder, root.path(), &["spegel", "--json"]).exited_with(0).json();
    assert!(printed[0]["path"].as_str().unwrap().ends_with("_default/hosts.toml"), "{printed}");
    assert!(printed[1]["content"].as_str().unwrap().contains("prependExisting: true"), "{printed}");
    let refused = setup(&larder, root.path(), &["spegel", "--write"]).exited_with(1);
    assert!(refused.stderr.contains("larder setup containerd --write"), "{refused:?}");
}

#[test]
fn options_of_another_client_are_refused() {
    let (larder, root) = (larder(), machine());
    for arguments in [
        ["podman", "--containerd-version", "2.2"],
        ["containerd", "--docker-version", "29"],
        ["crio", "--image-store", "containerd"],
    ] {
        let refused = setup(&larder, root.path(), &arguments).exited_with(1);
        assert!(refused.stderr.contains(arguments[1]), "{refused:?}");
    }
}
