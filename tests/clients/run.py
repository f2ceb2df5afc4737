#!/usr/bin/env python3
"""Pulls images with real clients through larder, stops the registries, and pulls everything again.

    python3 tests/clients/run.py [--larder target/release/larder] [--keep]

Needs root, Linux, and Debian's docker-registry, skopeo, podman, buildah, containerd, docker.io, iproute2, faketime,
tinyproxy and openssl.
The tests run in their own network, mount and process namespaces. The network has only a loopback device, so clients
can get content only from larder. When the script ends, the kernel kills all processes that it started.
"""

import argparse
import collections
import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.dont_write_bytecode = True
import images  # noqa: E402
from proxied import by_proxy  # noqa: E402
from servers import ADMIN, LARDER, OURSELVES, Failed, Process, Report, ask, head_times, in_namespaces  # noqa: E402
from servers import last_lines, require, run, start_larder, start_registry, wait_until  # noqa: E402

UPSTREAM, OTHER = 5100, 5101
MIRROR = f"127.0.0.1:{LARDER}"
ACCEPT = ", ".join(images.MANIFEST_TYPES)
# Images that a client of Debian 12 cannot pull from any registry. It must pull all others.
UNABLE = {
    "skopeo": {"library/nested:latest", "library/shy:latest"},  # no nested indexes; and shy is not for --all
    "podman": {"library/nested:latest", "library/multi:sbom"},
    "ctr": {"library/multi:sbom"},
    "dockerd": {"library/nested:latest", "library/multi:sbom"},
}


def larder_of_both(work, binary, tag_ttl="1s", env=None):
    """A server in front of both registries."""
    sections = f"""
[cache]
tag_ttl = "{tag_ttl}"

[upstream."docker.io"]
endpoints = ["http://127.0.0.1:{UPSTREAM}"]
default = true

[upstream."quay.io"]
endpoints = ["http://127.0.0.1:{OTHER}"]
"""
    return start_larder(work, binary, sections, env=env)


# --- expected answers ------------------------------------------------------------------------------------------


def manifest_paths(image, ns=None):
    """(path, content) for the tag and for every digest below it."""
    base, query = f"/v2/{image.repository}/manifests/", f"?ns={ns}" if ns else ""
    yield base + image.tag + query, image.root
    for content in image.manifests():
        yield base + content.digest + query, content


def upstream_answers(image, port):
    """Answer of the registry itself to a path of larder."""
    known = {}
    for path, content in manifest_paths(image):
        status, headers, body = ask("GET", path, port, Accept=ACCEPT)
        require(status == 200 and body == content.body, f"the registry answers {path} with {status}")
        known[path] = (headers["Content-Type"], headers["Docker-Content-Digest"], body)
    return known


def compare_manifests(image, known, ns=None):
    """Bytes, digest and media type from larder equal those of the registry, for every form of request."""
    for path, _ in manifest_paths(image):
        content_type, content_digest, body = known[path]
        asked = path + (f"?ns={ns}" if ns else "")
        for method in ("HEAD", "GET"):
            for accept in ({"Accept": ACCEPT}, {"Accept": "*/*"}, {}):
                status, headers, got = ask(method, asked, **accept)
                where = f"{method} {asked} {accept}"
                require(status == 200, f"{where}: {status} {got[:200]!r}")
                require(headers["Content-Type"] == content_type, f"{where}: {headers['Content-Type']}")
                require(headers["Docker-Content-Digest"] == content_digest, f"{where}: another digest")
                require(headers["Content-Length"] == str(len(body)), f"{where}: {headers['Content-Length']} bytes")
                require(got == (body if method == "GET" else b""), f"{where}: other bytes")


def compare_blobs(image):
    for blob in (content for content in image.walk() if not content.is_manifest()):
        path = f"/v2/{image.repository}/blobs/{blob.digest}"
        status, headers, _ = ask("HEAD", path)
        require(status == 200, f"HEAD {path}: {status}")
        require(headers["Content-Length"] == str(len(blob.body)), f"HEAD {path}: {headers['Content-Length']} bytes")
        status, _, body = ask("GET", path)
        require(status == 200 and body == blob.body, f"GET {path}: {status}, {len(body)} bytes, not the registry's")
        middle = len(blob.body) // 2
        status, headers, body = ask("GET", path, Range=f"bytes={middle}-")
        require(status == 206 and body == blob.body[middle:], f"GET {path} from {middle} on: {status}")
        total = f"bytes {middle}-{len(blob.body) - 1}/{len(blob.body)}"
        require(headers["Content-Range"] == total, f"GET {path}: {headers['Content-Range']}")


def fetched_once(registry):
    """The registry sent no body twice, for any number of clients."""
    counts = collections.Counter()
    line = re.compile(r'"GET (/v2/\S+/(?:blobs|manifests)/sha256:[0-9a-f]{64})\S* HTTP/1\.1" 200 \d+ "[^"]*" "([^"]*)"')
    for path, agent in line.findall(registry.text()):
        if agent != OURSELVES:
            counts[path] += 1
    require(counts, "the registry's log names no request")
    twice = {path: count for path, count in counts.items() if count > 1}
    require(not twice, f"{len(twice)} of {len(counts)} were, among them {list(twice.items())[:2]}")


# --- the clients ----------------------------------------------------------------------------------------------


class Clients:
    """All clients, with configuration and storage in a new folder."""

    def __init__(self, work, binary, report, round_name):
        self.home, self.report, self.round = work / round_name, report, round_name
        self.home.mkdir()
        # The clients are configured with the output of `larder setup`.
        self.machine = self.home / "machine"
        self.machine.mkdir()
        for client in ("docker", "containerd", "podman"):
            place = ("--root", self.machine, "--config", work / "larder.toml")
            run(binary, "setup", client, "--write", *place)
        self.policy = self.write("policy.json", '{"default": [{"type": "insecureAcceptAnything"}]}')
        # Without a prefix for skopeo, with the name of the upstream for podman.
        self.registries = self.write("registries.conf", self.registries_conf(MIRROR))
        self.storage = self.write(
            "storage.conf",
            f'[storage]\ndriver = "vfs"\nrunroot = "{self.home}/containers-run"\ngraphroot = "{self.home}/containers"\n',
        )
        self.hosts = self.machine / "etc/containerd/certs.d"
        self.env = {
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.home),
            "TMPDIR": str(self.home),
            "CONTAINERS_STORAGE_CONF": str(self.storage),
            "CONTAINERS_REGISTRIES_CONF": str(self.machine / "etc/containers/registries.conf.d/larder.conf"),
        }

    def write(self, name, text):
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def containerfile(self):
        """A build that only needs to pull its base image."""
        return self.write("Containerfile", "FROM docker.io/library/multi:oci\nLABEL built=yes\n")

    @staticmethod
    def registries_conf(docker_io):
        return f"""
unqualified-search-registries = ["docker.io"]

[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "{docker_io}"
insecure = true

[[registry]]
prefix = "quay.io"
location = "quay.io"
[[registry.mirror]]
location = "{MIRROR}/quay.io"
insecure = true
"""

    def pull(self, client, image, registry, how):
        if image.name() in UNABLE[client]:
            return
        with self.report.check(f"{self.round}: {client} pulls {registry}/{image.name()}"):
            shown = how(f"{registry}/{image.name()}")
            require(image.root.digest in shown, f"the pulled image is not {image.root.digest}: {last_lines(shown)}")

    def all(self, docker_io, other):
        self.skopeo(docker_io, other)
        self.podman(docker_io, other)
        self.containerd_and_dockerd(docker_io, other)

    def each(self, client, docker_io, other, how):
        for image in docker_io:
            self.pull(client, image, "docker.io", how)
        for image in other:
            self.pull(client, image, "quay.io", how)

    def skopeo(self, docker_io, other):
        def how(name):
            target = self.home / "skopeo" / name.replace("/", "_")
            target.parent.mkdir(exist_ok=True)
            common = ("skopeo", "--policy", self.policy, "--registries-conf", self.registries)
            run(*common, "copy", "--all", f"docker://{name}", f"dir:{target}", env=self.env)
            return images.digest((target / "manifest.json").read_bytes())

        self.each("skopeo", docker_io, other, how)

    def podman(self, docker_io, other):
        def how(name):
            run("podman", "pull", "--quiet", "--signature-policy", self.policy, name, env=self.env)
            return run("podman", "image", "inspect", "--format", "{{.RepoDigests}}", name, env=self.env)

        self.each("podman", docker_io, other, how)
        with self.report.check(f"{self.round}: buildah builds on docker.io/library/multi:oci"):
            run("podman", "rmi", "--all", "--force", env=self.env)
            bud = ("buildah", "bud", "--quiet", "--isolation", "chroot", "--signature-policy", self.policy)
            run(*bud, "--file", self.containerfile(), self.hosts, env=self.env)

    def containerd_and_dockerd(self, docker_io, other, dockerd=True):
        address = self.home / "containerd.sock"
        config = self.write(
            "containerd.toml",
            f"""
version = 2
root = "{self.home}/containerd"
state = "{self.home}/containerd-run"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.grpc.v1.cri"]
[grpc]
  address = "{address}"
""",
        )
        ctr = ("ctr", "--address", address)
        ready = lambda: subprocess.run([*map(str, ctr), "version"], capture_output=True).returncode == 0  # noqa: E731
        work = self.home.parent
        with self.report.check(f"{self.round}: containerd starts and ends"):
            containerd = Process(work, f"containerd-{self.round}", "containerd", "--config", config, ready=ready)
            try:
                self.ctr(ctr, docker_io, other)
                if dockerd:
                    self.dockerd(work, address, docker_io)
            finally:
                containerd.stop()

    def ctr(self, ctr, docker_io, other):
        def how(name):
            run(*ctr, "images", "pull", "--snapshotter", "native", "--hosts-dir", self.hosts, name, env=self.env)
            return run(*ctr, "images", "ls", f"name=={name}")

        self.each("ctr", docker_io, other, how)

    def dockerd(self, work, containerd, docker_io):
        def use(docker):
            def how(name):
                run(*docker, "pull", name)
                return run(*docker, "image", "inspect", "--format", "{{.RepoDigests}}", name)

            self.each("dockerd", docker_io, [], how)  # dockerd mirrors docker.io and nothing else
            with self.report.check(f"{self.round}: dockerd's BuildKit builds on docker.io/library/multi:oci"):
                run(*docker, "image", "rm", "--force", "library/multi:oci")
                build = ("build", "--pull", "--quiet", "--file", self.containerfile(), self.hosts)
                run(*docker, *build, env={**self.env, "DOCKER_BUILDKIT": "1"})

        self.with_dockerd(work, containerd, use)

    def with_dockerd(self, work, containerd, use):
        address = f"unix://{self.home}/docker.sock"
        docker = ("docker", "--host", address)
        start = ("dockerd", "--config-file", self.machine / "etc/docker/daemon.json", "--host", address, "--containerd", containerd)
        folders = ("--data-root", self.home / "docker", "--exec-root", self.home / "docker-run")
        folders += ("--pidfile", self.home / "docker.pid", "--storage-driver", "vfs")
        no_network = ("--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false", "--ip-masq=false")
        ready = lambda: subprocess.run([*docker, "version"], capture_output=True).returncode == 0  # noqa: E731

        with self.report.check(f"{self.round}: dockerd starts and ends"):
            command = (*start, *folders, *no_network)
            dockerd = Process(work, f"dockerd-{self.round}", *command, ready=ready)
            try:
                use(docker)
            finally:
                dockerd.stop()


# --- archives -------------------------------------------------------------------------------------------------


class Archives(Clients):
    """Archives exported by larder, loaded by every client that loads archives; archives saved by clients, imported by a
    server without a registry."""

    def __init__(self, work, report, binary):
        super().__init__(work, binary, report, "archives")
        self.work, self.binary = work, binary
        named = {image.name(): image for image in images.default_registry()}
        self.multi, self.list, self.single = (
            named[name] for name in ("library/multi:oci", "library/list:latest", "library/single:v2s2")
        )
        platforms = (images.AMD64, images.ARM64, images.ARMV7)
        self.three = images.Image("library/three", "oci", images.index([images.image("three", it) for it in platforms]))

    def check(self, name):
        return self.report.check(f"{self.round}: {name}")

    def larder(self, config, *arguments):
        return run(self.binary, *arguments, "--config", config, env=self.env)

    def export(self, image, target, *more):
        self.larder(self.work / "larder.toml", "export", f"docker.io/{image.name()}", target, *more)
        return target

    def skopeo_copy(self, source, target, *more):
        common = ("skopeo", "--policy", self.policy, "--registries-conf", self.registries)
        run(*common, "copy", "--src-tls-verify=false", *more, source, target, env=self.env)

    def copies(self, source, image):
        target = self.home / f"copy-{len(list(self.home.iterdir()))}"
        self.skopeo_copy(source, f"dir:{target}", "--all", "--preserve-digests")
        require((target / "manifest.json").read_bytes() == image.root.body, "another manifest")

    def exports(self):
        layout, two = self.home / "layout", self.home / "two"
        with self.check("larder exports into a folder, twice"):
            self.export(self.multi, layout)
            self.export(self.single, layout)
        with self.check("skopeo reads an image from the folder, and copies all of it"):
            shown = run("skopeo", "inspect", "--raw", f"oci:{layout}:oci")
            require(images.digest(shown.encode()) == self.multi.root.digest, "another manifest")
            self.copies(f"oci:{layout}:oci", self.multi)
        for image in (self.single, self.list):
            with self.check(f"skopeo copies all of {image.name()}, of Docker's types, from a folder of its own"):
                # By tag it accepts only OCI media types.
                self.copies(f"oci:{self.export(image, self.home / image.tag)}", image)
        with self.check("of two platforms of three, skopeo and podman take the one for them"):
            images.Registry(f"http://127.0.0.1:{UPSTREAM}").push(self.three)
            self.export(self.three, two, "--platform", "linux/amd64", "--platform", "linux/arm64")
            self.skopeo_copy(f"oci:{two}:oci", f"dir:{self.home / 'one-of-two'}")
            run("podman", "pull", "--quiet", "--signature-policy", self.policy, f"oci:{two}:oci", env=self.env)
        with self.check("of two platforms of three, skopeo does not copy all"):
            try:
                self.copies(f"oci:{two}:oci", self.three)
            except Failed as error:
                require("no such file" in str(error), f"for another reason: {error}")
            else:
                raise Failed("it does")
        self.whole = self.export(self.multi, self.home / "multi.tar")
        self.one = self.export(self.multi, self.home / "one.tar", "--platform", "linux/amd64")
        self.old = self.export(self.single, self.home / "single.tar")
        for archive, image in ((self.whole, self.multi), (self.one, self.multi), (self.old, self.single)):
            with self.check(f"podman loads {archive.name}"):
                run("podman", "rmi", "--all", "--force", env=self.env)
                run("podman", "load", "--signature-policy", self.policy, "-i", archive, env=self.env)
                name = f"docker.io/{image.name()}"
                shown = run("podman", "image", "inspect", "--format", "{{.RepoTags}}", name, env=self.env)
                require(name in shown, shown)
        self.containerd_and_dockerd([], [])

    def ctr(self, ctr, docker_io, other):
        for archive, image in ((self.whole, self.multi), (self.one, self.multi), (self.old, self.single)):
            with self.check(f"ctr imports {archive.name}"):
                run(*ctr, "images", "rm", f"docker.io/{image.name()}")
                run(*ctr, "images", "import", "--all-platforms", "--no-unpack", archive)
                shown = run(*ctr, "images", "ls", f"name==docker.io/{image.name()}")
                expected = image.root.needs[0] if archive == self.one else image.root
                require(expected.digest in shown, f"another image: {last_lines(shown)}")

    def dockerd(self, work, containerd, docker_io):
        def use(docker):
            for archive, image in ((self.one, self.multi), (self.old, self.single)):
                with self.check(f"docker loads {archive.name}"):
                    run(*docker, "load", "-i", archive)
                    shown = run(*docker, "image", "inspect", "--format", "{{.Id}}", image.name())
                    manifest = image.root.needs[0] if archive == self.one else image.root
                    require(manifest.needs[0].digest in shown, f"another image: {shown}")
            with self.check("docker's older archives are refused, and the remedy helps"):
                archive, remedy = self.home / "docker.tar", self.home / "remedy.tar"
                run(*docker, "save", "-o", archive, self.single.name())
                done = subprocess.run(
                    [self.binary, "import", archive, "--config", self.work / "larder.toml"], capture_output=True, text=True
                )
                require(done.returncode == 1 and "skopeo copy docker-archive:" in done.stderr, done.stderr)
                self.skopeo_copy(f"docker-archive:{archive}", f"oci-archive:{remedy}:docker.io/library/remedy:1")
                self.archived = remedy

        self.with_dockerd(work, containerd, use)

    def imports(self):
        saved, copied = self.home / "saved.tar", self.home / "copied.tar"
        with self.check("skopeo and podman write archives"):
            target = f"oci-archive:{copied}:docker.io/{self.multi.name()}"
            self.skopeo_copy(f"oci:{self.home / 'layout'}:oci", target, "--all", "--preserve-digests")
            save = ("podman", "save", "--quiet", "--format", "oci-archive", "-o", saved)
            run(*save, f"docker.io/{self.single.name()}", env=self.env)
        config = self.home / "island.toml"
        config.write_text(
            (self.work / "larder.toml")
            .read_text()
            .replace(f":{LARDER}", ":5010")
            .replace(f":{ADMIN}", ":5011")
            .replace(f":{UPSTREAM}", ":5199")
            .replace("larder-data", "island-data")
        )
        ready = lambda: ask("GET", "/v2/", 5010)[0] == 200  # noqa: E731
        island = Process(self.work, "island", self.binary, "serve", "--config", config, ready=ready)
        try:
            for archive in (copied, saved, self.archived, self.home / "two", self.old):
                with self.check(f"larder imports {archive.name}"):
                    said = self.larder(config, "import", archive, "--json")
                    for row in json.loads(said)["images"]:
                        repository, tag = row["reference"].removeprefix("docker.io/").split(":")
                        status, headers, body = ask("GET", f"/v2/{repository}/manifests/{tag}", 5010, Accept=ACCEPT)
                        require(status == 200 and images.digest(body) == row["digest"], f"{status}: another manifest")
                        require(headers["Content-Type"] == row["media_type"], headers["Content-Type"])
            with self.check("what was imported is pulled from a larder without a registry, digests unchanged"):
                for image in (self.multi, self.single):
                    self.copies(f"docker://127.0.0.1:5010/{image.name()}", image)
        finally:
            island.stop()


# --- waiting times of clients -----------------------------------------------------------------------------------


def both_open():
    open_endpoint = re.compile(rb"^larder_upstream_endpoint_open\{.*\} 1$", re.MULTILINE)
    return len(open_endpoint.findall(ask("GET", "/metrics", ADMIN)[2])) == 2


def without_dockerd(clients, docker_io, other):
    clients.skopeo(docker_io, other)
    clients.podman(docker_io, other)
    clients.containerd_and_dockerd(docker_io, other, dockerd=False)


@contextlib.contextmanager
def silent(*ports):
    """Registries that accept connections and never answer."""
    with contextlib.ExitStack() as stack:
        for port in ports:
            stack.enter_context(socket.create_server(("127.0.0.1", port), backlog=4096))
        yield


def an_hour_later(work, binary, report, docker_io, other):
    """The registries hang, one hour has passed, and everything is pulled twice again."""
    # Only the wall clock: time-outs use the monotonic clock.
    env = {"LD_PRELOAD": faketime(), "FAKETIME": "+1h", "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with silent(UPSTREAM, OTHER):
        with report.check("an hour later: larder starts"):
            larder = larder_of_both(work, binary, "1m", env)
        without_dockerd(Clients(work, binary, report, "hour"), docker_io, other)
        with report.check("an hour later: tags that expired are served stale"):
            status, headers, _ = ask("GET", "/v2/library/multi/manifests/oci", Accept=ACCEPT)
            require(status == 200 and int(headers["Age"]) >= 3590, f"{status}, Age {headers['Age']}")
            require(headers["Warning"].startswith("299 - "), f"Warning: {headers['Warning']}")
        with report.check("an hour later: no head took more than 2.5 s"):
            times = head_times()
            require(times[float("inf")] > 50, f"only {times[float('inf')]} answers")
            require(times[2.5] == times[float("inf")], f"{dict(times)}")
        with report.check("an hour later: the circuit breakers open"):
            # Three failed requests are enough, and each one takes some seconds.
            def pull_and_look():
                for image, query in [(docker_io[0], ""), (other[0], "?ns=quay.io")]:
                    ask("GET", f"/v2/{image.repository}/manifests/{image.tag}{query}", Accept=ACCEPT)
                return both_open()

            wait_until("both circuit breakers are open", pull_and_look, 90)
        before = head_times()
        without_dockerd(Clients(work, binary, report, "hour-again"), docker_io, other)
        with report.check("an hour later: no client waits for a registry with an open circuit breaker"):
            times = {bound: count - before[bound] for bound, count in head_times().items()}
            share = times[0.05] / times[float("inf")]
            # Four processes share two cores, so one head in a hundred may wait for the CPU.
            require(share >= 0.99 and times[0.5] == times[float("inf")], f"{times}")
            print(f"     {share:.2%} of {times[float('inf')]} heads within 50 ms", flush=True)
        with report.check("an hour later: the server exits with status 0"):
            status = larder.stop()
            require(status == 0, f"exit status {status}: {last_lines(larder.text())}")


def faketime():
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    require(found, "Debian's faketime is not installed")
    return str(found[0])


# --- sequence of tests -----------------------------------------------------------------------------------------


def story(work, larder_binary, report):
    docker_io, other = images.default_registry(), images.other_registry()
    shy = next(image for image in docker_io if image.repository == "library/shy")

    upstream, second = start_registry(work, "upstream", UPSTREAM), start_registry(work, "second", OTHER)
    for registry, held in ((UPSTREAM, docker_io), (OTHER, other)):
        for image in held:
            images.Registry(f"http://127.0.0.1:{registry}").push(image)
    known = {image.name(): upstream_answers(image, UPSTREAM) for image in docker_io}
    known |= {image.name(): upstream_answers(image, OTHER) for image in other}
    larder = larder_of_both(work, larder_binary)

    def everything_equals(when, without=()):
        for image in (image for image in docker_io if image not in without):
            with report.check(f"{when}: every manifest of {image.name()} equals the registry's"):
                compare_manifests(image, known[image.name()])
        for image in other:
            with report.check(f"{when}: every manifest of quay.io/{image.name()} equals the registry's"):
                compare_manifests(image, known[image.name()], ns="quay.io")
        with report.check(f"{when}: every blob equals the registry's, whole and in part"):
            for image in (image for image in docker_io if image not in without):
                compare_blobs(image)

    Clients(work, larder_binary, report, "online").all(docker_io, other)
    everything_equals("online", without=[shy])
    with report.check("online: a moved tag is followed"):
        moved = images.Image("library/single", "v2s2", images.image("moved", images.AMD64, docker=True))
        before = next(image for image in docker_io if image.name() == moved.name())
        images.Registry(f"http://127.0.0.1:{UPSTREAM}").push(moved)
        path = f"/v2/{moved.repository}/manifests/{moved.tag}"
        wait_until("the tag has moved", lambda: ask("GET", path, Accept=ACCEPT)[2] == moved.root.body, 10)
        images.Registry(f"http://127.0.0.1:{UPSTREAM}").push(before)
        wait_until("the tag is back", lambda: ask("GET", path, Accept=ACCEPT)[2] == before.root.body, 10)
    with report.check("online: every child manifest is in the store before it is asked for"):
        idle = re.compile(rb"^larder_children_queued 0$", re.MULTILINE)
        wait_until("no child is waiting", lambda: idle.search(ask("GET", "/metrics", ADMIN)[2]))
    with report.check("online: no body was fetched from docker.io's stand-in twice"):
        fetched_once(upstream)
    with report.check("online: no body was fetched from quay.io's stand-in twice"):
        fetched_once(second)

    archives = Archives(work, report, larder_binary)
    archives.exports()
    archives.imports()

    # The registries are down, and the server is restarted.
    upstream.kill()
    second.kill()
    with report.check("larder ends cleanly when it is asked to"):
        status = larder.stop()
        require(status == 0, f"exit status {status}: {last_lines(larder.text())}")
    with report.check("larder starts with its registries dead"):
        larder = larder_of_both(work, larder_binary)
    larder.alive()
    for port in (UPSTREAM, OTHER):
        with contextlib.suppress(ConnectionRefusedError):
            ask("GET", "/v2/", port)
            raise Failed("a registry that was killed still answers")

    Clients(work, larder_binary, report, "offline").all(docker_io, other)
    everything_equals("offline", without=[shy])
    with report.check(f"offline: children of {shy.name()} that no client has requested are served"):
        compare_manifests(shy, known[shy.name()])
    with report.check("offline: the tags held are listed"):
        status, _, body = ask("GET", "/v2/library/multi/tags/list")
        require(status == 200 and json.loads(body)["tags"] == ["oci", "sbom"], f"{status} {body[:200]!r}")
    with report.check("offline: what larder never had is an upstream's failure, not a 404"):
        for path in ("manifests/never", "blobs/" + images.digest(b"never")):
            status = ask("GET", f"/v2/library/multi/{path}")[0]
            require(status in (502, 503, 504), f"{path}: {status}")
    with report.check("larder ends cleanly again"):
        status = larder.stop()
        require(status == 0, f"exit status {status}: {last_lines(larder.text())}")
    an_hour_later(work, larder_binary, report, docker_io, other)
    by_proxy(work, larder_binary, report, "upstream", docker_io[0])
    with report.check("the log contains no panic"):
        require("panicked" not in larder.text(), "it does")


def main():
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", default=root / "target/release/larder", type=Path, help="the program to try")
    parser.add_argument("--keep", action="store_true", help="leave logs and stores where they are")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    binary = options.larder.resolve()

    if options.inside:
        # Programs of Debian, not newer ones in other folders.
        os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
        run("ip", "link", "set", "lo", "up")
        report = Report()
        try:
            story(options.inside, binary, report)
        except (Failed, OSError, RuntimeError) as error:
            report.failed += 1
            print(f"FAIL the run broke off: {error}", flush=True)
        print(f"clients: {report.passed} passed, {report.failed} failed", flush=True)
        return 1 if report.failed or not report.passed else 0

    needed = ("unshare", "ip", "docker-registry", "skopeo", "podman", "buildah", "containerd", "ctr", "dockerd", "docker")
    needed += ("tinyproxy", "openssl")
    missing = [program for program in needed if not shutil.which(program)]
    if missing or os.geteuid() != 0 or not os.access(binary, os.X_OK):
        sys.exit(f"needs root, {binary}, and these programs that are missing: {' '.join(missing) or 'none'}")
    return in_namespaces("larder-clients-", Path(__file__).resolve(), ("--larder", binary), options.keep)


if __name__ == "__main__":
    sys.exit(main())
