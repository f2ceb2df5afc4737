#!/usr/bin/env python3
"""The newest Docker and containerd pull an attested and signed image through larder, with a running registry and without one.

    python3 tests/clients/newest.py --programs FOLDER [--larder target/release/larder] [--keep]

FOLDER has dockerd, containerd and ctr, and any of crane, oras, regctl, helm, cosign and notation; `.ci/newest-clients`
builds them. Needs root, Linux, and Debian's docker-registry, podman, docker.io and iproute2. Everything runs in namespaces
with only a loopback device, like tests/clients/run.py.
"""

import argparse
import contextlib
import http.client
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.dont_write_bytecode = True
import images  # noqa: E402
from servers import ADMIN, LARDER, Failed, Process, Report, ask, head_times, in_namespaces, last_lines, require, run  # noqa: E402
from servers import start_larder, start_registry  # noqa: E402

UPSTREAM = 5100
MIRROR = f"127.0.0.1:{LARDER}"
TAG_TTL = 1.0
# containerd gives a registry 5 s less than this for the head of a response; a pull has several requests.
SLOWEST_HEAD = 2.5


def attestation(subject, platform):
    """An attestation manifest as BuildKit writes it."""
    statement = {"_type": "https://in-toto.io/Statement/v0.1", "predicateType": "https://slsa.dev/provenance/v1"}
    layer = images.Content("application/vnd.in-toto+json", images.document({**statement, "subject": [], "predicate": platform}))
    unknown = {"architecture": "unknown", "os": "unknown"}
    rootfs = {"type": "layers", "diff_ids": [layer.digest]}
    config = images.Content(images.OCI_CONFIG, images.document({**unknown, "config": {}, "rootfs": rootfs}))
    value = {
        "schemaVersion": 2,
        "mediaType": images.OCI_MANIFEST,
        "config": config.descriptor(),
        "layers": [{**layer.descriptor(), "annotations": {"in-toto.io/predicate-type": statement["predicateType"]}}],
    }
    content = images.Content(images.OCI_MANIFEST, images.document(value), unknown, [config, layer])
    content.annotations = {"vnd.docker.reference.digest": subject.digest, "vnd.docker.reference.type": "attestation-manifest"}
    return content


def attested(repository):
    """An image of two platforms, with an attestation of each."""
    children = []
    for platform in (images.AMD64, images.ARM64):
        child = images.image(repository, platform)
        children += [child, attestation(child, platform)]
    descriptors = [
        {**child.descriptor(), **({"annotations": child.annotations} if hasattr(child, "annotations") else {})}
        for child in children
    ]
    value = {"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": descriptors}
    return images.Image(repository, "1", images.Content(images.OCI_INDEX, images.document(value), None, children))


def push_with_signature(image):
    """Pushes the image, and a signature of it that is found by the fall-back tag of the referrers API."""
    registry = images.Registry(f"http://127.0.0.1:{UPSTREAM}")
    registry.push(image)
    signature = images.artifact("signature", image.root)
    registry.push(images.Image(image.repository, signature.digest, signature))
    listed = images.Content(
        images.OCI_INDEX,
        images.document(
            {
                "schemaVersion": 2,
                "mediaType": images.OCI_INDEX,
                "manifests": [{**signature.descriptor(), "artifactType": "application/spdx+json"}],
            }
        ),
    )
    registry.push_manifest(image.repository, image.root.digest.replace(":", "-"), listed)
    return signature


# --- the clients ----------------------------------------------------------------------------------------------


class Dockerd:
    """Docker with containerd's image store, configured with the output of `larder setup docker`."""

    name = "dockerd 29"

    def __init__(self, lab):
        self.home = lab.home / "docker"
        self.home.mkdir()
        version = run(lab.programs / "dockerd", "--version")
        place = ("--image-store", "containerd", "--docker-version", "29.0")
        lab.larder("setup", "docker", "--write", "--root", self.home, *place)
        shutil.copytree(self.home / "etc/docker", "/etc/docker", dirs_exist_ok=True)
        address = f"unix://{self.home}/docker.sock"
        self.docker = ("docker", "--host", address)
        command = [lab.programs / "dockerd", "--config-file", "/etc/docker/daemon.json", "--host", address, "--storage-driver", "native"]
        command += ["--data-root", self.home / "data", "--exec-root", self.home / "run", "--pidfile", self.home / "pid"]
        command += ["--feature", "containerd-snapshotter=true", "--bridge=none", "--ip-forward=false", "--ip-masq=false"]
        command += ["--iptables=false", "--ip6tables=false", "--userland-proxy=false"]
        ready = lambda: subprocess.run([*self.docker, "version"], capture_output=True).returncode == 0  # noqa: E731
        # dockerd starts the containerd in its PATH.
        self.process = Process(lab.work, "dockerd", *command, ready=ready, env={"PATH": f"{lab.programs}:{os.environ['PATH']}"})
        print(f"     {last_lines(version, 1)}", flush=True)

    def pull(self, image):
        run(*self.docker, "pull", image.name())
        shown = run(*self.docker, "image", "inspect", "--format", "{{.RepoDigests}}", image.name())
        require(image.root.digest in shown, f"another image: {last_lines(shown)}")

    def remove(self, image):
        run(*self.docker, "image", "rm", "--force", image.name())


class Containerd:
    """containerd and ctr, configured with the output of `larder setup containerd`."""

    def __init__(self, lab, name, version):
        self.name, self.home = name, lab.home / name.replace(" ", "-")
        self.home.mkdir()
        lab.larder("setup", "containerd", "--write", "--root", self.home, "--containerd-version", version)
        self.hosts = self.home / "etc/containerd/certs.d"
        address = self.home / "containerd.sock"
        config = self.home / "containerd.toml"
        config.write_text(
            f"""
version = 3
root = "{self.home}/data"
state = "{self.home}/run"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
  address = "{address}"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "native"
"""
        )
        self.control = (lab.programs / "ctr", "--address", address)
        ready = lambda: subprocess.run([*self.control, "version"], capture_output=True).returncode == 0  # noqa: E731
        self.process = Process(lab.work, self.home.name, lab.programs / "containerd", "--config", config, ready=ready)

    def pull(self, image):
        name = f"docker.io/{image.name()}"
        # Kubernetes does not ask for the configurations of other platforms either.
        place = ("--skip-metadata", "--hosts-dir", self.hosts)
        run(*self.control, "images", "pull", "--snapshotter", "native", *place, name)
        require(image.root.digest in run(*self.control, "images", "ls", f"name=={name}"), "another image")

    def remove(self, image):
        run(*self.control, "images", "rm", "--sync", f"docker.io/{image.name()}")


class Podman:
    """Debian's podman, configured with the output of `larder setup podman`."""

    name = "podman"

    def __init__(self, lab):
        home = lab.home / "podman"
        home.mkdir()
        lab.larder("setup", "podman", "--write", "--root", home)
        storage, self.policy = home / "storage.conf", home / "policy.json"
        storage.write_text(f'[storage]\ndriver = "vfs"\nrunroot = "{home}/run"\ngraphroot = "{home}/containers"\n')
        self.policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.env = {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home),
            "TMPDIR": str(home),
            "CONTAINERS_STORAGE_CONF": str(storage),
            "CONTAINERS_REGISTRIES_CONF": str(home / "etc/containers/registries.conf.d/larder.conf"),
        }

    def pull(self, image):
        name = f"docker.io/{image.name()}"
        run("podman", "pull", "--quiet", "--signature-policy", self.policy, name, env=self.env)
        shown = run("podman", "image", "inspect", "--format", "{{.RepoDigests}}", name, env=self.env)
        require(image.root.digest in shown, f"another image: {last_lines(shown)}")

    def remove(self, image):
        run("podman", "rmi", "--force", f"docker.io/{image.name()}", env=self.env)


class Command:
    """A client without a daemon that writes an image to a folder or prints it."""

    def __init__(self, lab, name, *arguments, shows=None, env=None):
        self.name, self.program, self.arguments = name, lab.programs / name.split()[0], arguments
        self.home, self.shows = lab.home / name.replace(" ", "-"), shows
        self.env = {"HOME": str(self.home), "DOCKER_CONFIG": str(self.home), **(env or {})}

    def pull(self, image):
        self.remove(image)
        self.home.mkdir()
        place = {"reference": f"{MIRROR}/{image.name()}", "folder": self.home, "digest": image.root.digest}
        shown = run(self.program, *(argument.format(**place) for argument in self.arguments), env=self.env)
        for expected in self.shows(image) if self.shows else ():
            require(expected in shown, f"{expected} is not shown: {last_lines(shown)}")

    def remove(self, _image):
        shutil.rmtree(self.home, ignore_errors=True)


class Chart:
    """Helm pulls a chart, which is an artifact."""

    name = "helm"
    image = "docker.io/charts/small:0.1.0"

    def __init__(self, lab):
        self.program, self.home = lab.programs / "helm", lab.home / "helm"
        chart = self.home / "small"
        (chart / "templates").mkdir(parents=True)
        (chart / "Chart.yaml").write_text("apiVersion: v2\nname: small\nversion: 0.1.0\n")
        (chart / "templates/empty.yaml").write_text("")
        self.env = {"HOME": str(self.home)}
        run(self.program, "package", chart, "--destination", self.home, env=self.env)
        run(self.program, "push", self.home / "small-0.1.0.tgz", f"oci://127.0.0.1:{UPSTREAM}/charts", "--plain-http", env=self.env)

    def pull(self, _image):
        target = self.home / "pulled"
        target.mkdir()
        where = (f"oci://{MIRROR}/charts/small", "--version", "0.1.0", "--destination", target)
        run(self.program, "pull", *where, "--plain-http", env=self.env)
        pulled, pushed = (folder / "small-0.1.0.tgz" for folder in (target, self.home))
        require(pulled.read_bytes() == pushed.read_bytes(), "another chart")

    def remove(self, _image):
        shutil.rmtree(self.home / "pulled", ignore_errors=True)


class Cosign:
    """cosign verifies a signature with a key, in its old format (a tag) or in its new one (a referrer)."""

    def __init__(self, lab, name, tag, *options):
        self.name, self.program, self.home = name, lab.programs / "cosign", lab.home / name.replace(" ", "-")
        self.home.mkdir()
        self.tag = tag
        self.env = {"HOME": str(self.home), "COSIGN_PASSWORD": "", "TUF_ROOT": str(self.home / "tuf")}
        images.Registry(f"http://127.0.0.1:{UPSTREAM}").push(images.Image("library/signed", tag, images.image(tag, images.AMD64)))
        run(self.program, "generate-key-pair", "--output-key-prefix", self.home / "key", env=self.env)
        sign = ("sign", "--yes", "--key", self.home / "key.key", "--tlog-upload=false", "--use-signing-config=false", *options)
        run(self.program, *sign, "--allow-http-registry", f"127.0.0.1:{UPSTREAM}/library/signed:{tag}", env=self.env)

    @property
    def image(self):
        return f"docker.io/library/signed:{self.tag}"

    def pull(self, _image):
        verify = ("verify", "--key", self.home / "key.pub", "--insecure-ignore-tlog", "--offline", "--allow-http-registry")
        shown = run(self.program, *verify, f"{MIRROR}/library/signed:{self.tag}", env=self.env)
        require("cosign container image signature" in shown or "sigstore.dev/cosign" in shown, last_lines(shown))

    def remove(self, _image):
        pass


# --- sequence of tests -----------------------------------------------------------------------------------------


class Lab:
    """Registry, server and clients."""

    def __init__(self, work, binary, programs, report):
        self.work, self.binary, self.programs, self.report = work, binary, programs, report
        self.home = work / "clients"
        self.home.mkdir()
        self.image = attested("library/attested")

    def start(self, name):
        sections = f"""
[cache]
tag_ttl = "{TAG_TTL:.0f}s"

[upstream."docker.io"]
endpoints = ["http://127.0.0.1:{UPSTREAM}"]
default = true
"""
        self.config = self.work / f"{name}.toml"
        self.server = start_larder(self.work, self.binary, sections, name)

    def stop(self):
        status = self.server.stop()
        require(status == 0, f"exit status {status}: {last_lines(self.server.text())}")
        require("panicked" not in self.server.text(), "the log contains a panic")

    def larder(self, *arguments):
        return run(self.binary, *arguments, "--config", self.config)

    def registry(self):
        return start_registry(self.work, "upstream", UPSTREAM)

    def clients(self, signature):
        digests = lambda image: [image.root.digest]  # noqa: E731
        signed = lambda _: [signature.digest]  # noqa: E731
        yield Dockerd(self)
        yield Containerd(self, "containerd 2.4", "2.4.2")
        yield Containerd(self, "containerd 2.4 without referrers", "2.1.0")
        yield Podman(self)
        others = [
            Command(self, "crane pull", "pull", "--insecure", "--format=oci", "{reference}", "{folder}/image"),
            Command(self, "crane digest", "digest", "--insecure", "{reference}", shows=digests),
            Command(self, "oras copy", "cp", "-r", "--from-plain-http", "--to-oci-layout", "{reference}", "{folder}/image:1"),
            Command(self, "oras discover", "discover", "--plain-http", "--format", "json", "{reference}", shows=signed),
            Command(self, "regctl manifest", "manifest", "get", "--host", f"reg={MIRROR},tls=disabled", "{reference}"),
            Command(self, "regctl artifact", "artifact", "tree", "--host", f"reg={MIRROR},tls=disabled", "{reference}", shows=signed),
        ]
        yield from (client for client in others if client.program.exists())
        if (self.programs / "helm").exists():
            yield Chart(self)
        if (self.programs / "cosign").exists():
            yield Cosign(self, "cosign", "referrer")
            yield Cosign(self, "cosign with a tag", "tag", "--new-bundle-format=false")

    def does(self, client):
        return f"reads {getattr(client, 'image', self.image.name())}"

    def pulls(self, when, clients):
        """Each client removes its copy of the image, and pulls it. No head may be late."""
        before = head_times()
        for client in clients:
            with self.report.check(f"{when}: {client.name} {self.does(client)}"):
                client.remove(self.image)
                client.pull(self.image)
        with self.report.check(f"{when}: no head took more than {SLOWEST_HEAD} s"):
            times = {bound: count - before[bound] for bound, count in head_times().items()}
            require(times[float("inf")] > len(clients), f"only {times[float('inf')]} answers")
            require(times[SLOWEST_HEAD] == times[float("inf")], f"{times}")

    def story(self):
        registry = self.registry()
        signature = push_with_signature(self.image)
        self.start("larder")
        clients = list(self.clients(signature))
        with self.report.check("online: a client that has pulled nothing can remove nothing"):
            for client in clients:
                with contextlib.suppress(Failed):
                    client.remove(self.image)
        before = head_times()
        for client in clients:
            with self.report.check(f"online: {client.name} {self.does(client)}"):
                client.pull(self.image)
        require(head_times() != before, "no client has asked the server")
        archive = self.work / "image.tar"
        with self.report.check("online: larder exports the image with its signatures"):
            self.larder("warm", f"docker.io/{self.image.name()}", "--all-platforms", "--referrers")
            self.larder("export", f"docker.io/{self.image.name()}", archive, "--referrers")
        archives = [archive]
        for client in clients:
            if own := getattr(client, "image", None):
                with self.report.check(f"online: larder exports {own} with its signatures"):
                    archives.append(self.work / f"{client.name.replace(' ', '-')}.tar")
                    self.larder("warm", own, "--all-platforms", "--referrers")
                    self.larder("export", own, archives[-1], "--referrers")

        registry.kill()
        # The tag and the absence of signatures must be stale, so the server must ask for them in vain.
        time.sleep(2 * TAG_TTL)
        with self.report.check("outage: check says that the image can be pulled"):
            self.larder("check", "--offline", f"docker.io/{self.image.name()}")
        self.pulls("outage", clients)
        self.stop()
        self.start("larder")
        self.pulls("outage, server restarted", clients)
        self.stop()

        registry = self.registry()
        self.start("warmed")
        with self.report.check("warmed: the image is downloaded for one platform"):
            self.larder("warm", f"docker.io/{self.image.name()}", "--platform", "linux/amd64")
        registry.kill()
        time.sleep(2 * TAG_TTL)
        # Whole-index copies need the other platform too, and signatures are only listed.
        self.pulls("warmed", [client for client in clients if hasattr(client, "process") or client.name == "podman"])
        self.stop()

        self.start("island")
        with self.report.check("imported: an empty server imports everything"):
            for archive in archives:
                self.larder("import", archive)
        time.sleep(2 * TAG_TTL)
        self.pulls("imported", clients)
        self.stop()


def prepare():
    """The namespaces have a network with only a loopback device, and an own /etc/docker."""
    run("ip", "link", "set", "lo", "up")
    Path("/etc/docker").mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "tmpfs", "/etc/docker")


def main():
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", default=root / "target/release/larder", type=Path, help="the program to try")
    parser.add_argument("--programs", required=True, type=Path, help="folder of the clients")
    parser.add_argument("--keep", action="store_true", help="leave logs and stores where they are")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    binary, programs = options.larder.resolve(), options.programs.resolve()

    if options.inside:
        os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
        report = Report()
        try:
            prepare()
            Lab(options.inside, binary, programs, report).story()
        except (Failed, OSError, RuntimeError, http.client.HTTPException) as error:
            report.failed += 1
            print(f"FAIL the run broke off: {error}", flush=True)
        print(f"newest clients: {report.passed} passed, {report.failed} failed", flush=True)
        return 1 if report.failed or not report.passed else 0

    missing = [name for name in ("unshare", "ip", "docker-registry", "podman", "docker") if not shutil.which(name)]
    missing += [name for name in ("dockerd", "containerd", "ctr") if not (programs / name).exists()]
    if missing or os.geteuid() != 0 or not os.access(binary, os.X_OK):
        sys.exit(f"needs root, {binary}, and these programs that are missing: {' '.join(missing) or 'none'}")
    arguments = ("--larder", binary, "--programs", programs)
    return in_namespaces("larder-newest-", Path(__file__).resolve(), arguments, options.keep)


if __name__ == "__main__":
    sys.exit(main())
