#!/usr/bin/env python3
"""Compares larder with both kinds of blob store, nginx (the same bytes as static files) and docker-registry in proxy
mode: the release of Debian, and a build of distribution 3 if given.

    python3 benches/peers/peers.py [--larder target/dist/larder] [--distribution registry] [--rounds 3] [--results FILE] [PART..]

The parts are manifests, warm, cold, crowd, image and start; the default is all parts. Every round measures each server,
and each round begins with another server, so that other load of the machine affects all servers equally. The results are
medians. Ratios are medians of the ratios of all rounds. In the part manifests, the server has the first core and wrk the
second one. All other parts use both cores. The network is a loopback device without other hosts. All parts together take
15 minutes.
"""

import argparse
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
import measured  # noqa: E402
from measured import KINDS, LIMITED, LOGGING, NGINX, ORIGIN, SOURCE  # noqa: E402
from measured import Failed, Site, cpu, forget_peak, images, in_namespaces, limit, memory, read, settled, start_registry, timed, unlimit  # noqa: E402
from measured import ask, require, run, wait_until  # noqa: E402
from table import table  # noqa: E402

ACCEPT = ", ".join(images.MANIFEST_TYPES)
BLOB = 512
# Disk space for the blobs in the source, the caches and nginx. A full disk would look like a failing server.
DISK = 20 << 30
# Content of each store in the part `start`, and its disk space: sled uses more than the size of the content.
STORED, DISK_TO_START = 20_000_000_000, 34 << 30
FIRST, SECOND = ("taskset", "-c", "0"), ("taskset", "-c", "1")


class Bench:
    """One run: the servers of each part, and all measured values."""

    def __init__(self, site, rounds):
        self.site, self.rounds, self.raw = site, rounds, {}

    def note(self, what, who, value):
        self.raw.setdefault(what, {}).setdefault(who, []).append(value)

    def caches(self, upstream):
        """All caches, empty, in front of the same upstream."""
        self.site.forget()
        return {who: self.cache(who, upstream) for who in self.site.ports}

    def cache(self, who, upstream):
        """One cache."""
        if who in KINDS:
            port, blobs = KINDS[who]
            return self.site.larder(port, blobs, upstream)
        return self.site.peer(who, upstream)

    def origin(self, image):
        """A registry with one image."""
        process = start_registry(self.site.work, "origin", ORIGIN)
        images.Registry(f"http://127.0.0.1:{ORIGIN}").push(image)
        return process

    def cold(self, servers, path, digest):
        """Makes all caches download a blob."""
        for who in servers:
            read(self.site.ports[who], path, verify=digest)
            settled(who, self.site.ports[who])
        for who in servers:
            wait_until(f"{who} has the blob", lambda port=self.site.ports[who]: read(port, path, verify=digest), 60)

    # --- parts ---

    def manifests(self):
        """Requests per second over 64 connections."""
        image = images.Image("library/multi", "oci", images.default_registry()[0].root)
        origin = self.origin(image)
        base = f"/v2/{image.repository}/manifests/"
        by = {"digest": base + image.root.digest, "tag": base + image.tag}
        for path in by.values():
            self.site.write(path, image.root.body)
        self.site.forget()
        larder = lambda port, blobs, log=False: (port, self.site.larder(port, blobs, ORIGIN, log, FIRST))  # noqa: E731
        servers = {
            "nginx": (NGINX, self.site.nginx(FIRST, 1)),
            **{who: larder(port, blobs) for who, (port, blobs) in KINDS.items()},
            "larder, request log on": larder(LOGGING, "sled", True),
            **{who: (port, self.site.peer(who, ORIGIN, FIRST)) for who, (port, _) in self.site.peers.items()},
        }
        for who, (port, process) in servers.items():
            self.note("memory, fresh", who, memory(process))
            for path in by.values():
                status, headers, body = ask("GET", path, port, Accept=ACCEPT)
                require(status == 200 and body == image.root.body, f"{who} answers {path} with {status}")
                require(headers["Content-Type"] == images.OCI_INDEX, f"{who}: {headers['Content-Type']}")
        for number in range(self.rounds):
            for reference, path in by.items():
                for who in turned(servers, number):
                    self.note(f"manifest by {reference}", who, wrk(servers[who][0], path))
        stop(origin, *(process for _, process in servers.values()))

    def warm(self):
        """One blob for one client and for many clients, with CPU time and memory."""
        nginx = self.site.nginx()
        servers = self.caches(SOURCE)
        path, digest = self.site.blob(BLOB)
        self.cold(servers, path, digest)
        gets = self.site.gets(path)
        servers["nginx"] = nginx
        ports = {**self.site.ports, "nginx": NGINX}
        for streams in (1, 8, 64):
            for number in range(self.rounds if streams < 64 else 1):
                for who in turned(servers, number):
                    process = servers[who]
                    before = cpu(process)
                    forget_peak(process)
                    warm = read(ports[who], path, streams)
                    self.note(f"warm, {streams} streams", who, warm["bytes"] / warm["seconds"])
                    self.note(f"processor, {streams} streams", who, (cpu(process) - before) / (warm["bytes"] / (1 << 30)))
                    self.note(f"memory, {streams} streams, most", who, memory(process, "VmHWM"))
        for who, process in servers.items():
            self.note("memory, after 64 streams", who, memory(process))
        require(self.site.gets(path) == gets, "a warm blob was fetched again")
        self.site.remove(path)
        stop(*servers.values())

    def cold_blobs(self):
        """A blob that is not cached, for a client that hashes it, compared with a download from the upstream itself.

        Each cache begins with an empty store, after the previous one has released its memory. On a virtual machine that
        gets pages from its host at the first access, a new page costs several times as much as writing it.
        """
        nginx = self.site.nginx()
        self.site.forget()
        for upstream, port in {"at 400 MB/s": LIMITED, "unlimited": SOURCE}.items():
            if port == LIMITED:
                limit()
            for number in range(self.rounds):
                path, digest = self.site.blob(BLOB)
                read(port, path)
                for who in turned(["direct", *self.site.ports], number):
                    # Pending writes of other servers must not slow down this one.
                    os.sync()
                    if who == "direct":
                        found = read(port, path, verify=digest)
                    else:
                        found = self.cold_blob(who, port, path, digest, upstream)
                    self.note(f"cold, {upstream}", who, found["seconds"])
                    self.note(f"cold, {upstream}, first byte", who, found["first_byte"])
                self.site.remove(path)
            if port == LIMITED:
                unlimit()
        stop(nginx)

    def cold_blob(self, who, port, path, digest, upstream):
        server, before = self.cache(who, port), self.site.gets(path)
        found = read(self.site.ports[who], path, verify=digest)
        settled(who, self.site.ports[who])
        self.note(f"cold, {upstream}, GETs", who, self.site.gets(path) - before)
        self.note("memory, after a cold blob", who, memory(server))
        stop(server)
        self.site.forget()
        return found

    def crowd(self):
        """64 concurrent clients of a blob that is not cached. docker-registry requests it 64 times, so it has one round only."""
        nginx = self.site.nginx()
        servers = self.caches(SOURCE)
        for number in range(self.rounds):
            path, _ = self.site.blob(BLOB)
            read(SOURCE, path)
            self.note("crowd", "nginx", read(NGINX, path, 64)["seconds"])
            for who in turned(servers, number):
                if who in KINDS or number == 0:
                    before = self.site.gets(path)
                    self.note("crowd", who, read(self.site.ports[who], path, 64)["seconds"])
                    settled(who, self.site.ports[who])
                    self.note("crowd, GETs", who, self.site.gets(path) - before)
            self.site.remove(path)
        stop(nginx, *servers.values())

    def image(self):
        """An image of thirty layers, pulled by two real clients. It is large, because `ctr` checks for the end every 0.1 s
        only."""
        root = images.image("wide", images.AMD64, sizes=(12 << 20,) * 30, compressed=False)
        image = images.Image("library/wide", "1", root)
        origin, home = self.origin(image), self.site.work / "clients"
        servers = self.caches(ORIGIN)
        pulls = Pulls(home, image)
        for who in servers:
            pulls.skopeo(self.site.ports[who])
            settled(who, self.site.ports[who])
        # docker-registry does not report when it has stored the content.
        for who in servers:
            for content in image.walk():
                kind = "manifests" if content.is_manifest() else "blobs"
                ask("GET", f"/v2/{image.repository}/{kind}/{content.digest}", self.site.ports[who], Accept=ACCEPT)
        for client in (pulls.containerd, pulls.skopeo):
            for number in range(self.rounds):
                for who in turned(servers, number):
                    self.note(f"image, {client.__name__}", who, client(self.site.ports[who]))
        stop(pulls.daemon, origin, *servers.values())

    def start(self):
        """Time of a start with a full store, until the server is ready."""
        nginx = self.site.nginx()
        for who, (port, blobs) in KINDS.items():
            self.site.forget()
            process = self.site.larder(port, blobs, SOURCE)
            for _ in range(STORED // (BLOB << 20) + 1):
                path, _digest = self.site.blob(BLOB)
                read(port, path)
                settled(who, port)
                self.site.remove(path)
            for number in range(self.rounds):
                began = time.monotonic()
                stop(process)
                if number == 0:
                    # sled reads everything that was written since the last start.
                    self.note("stop", who, time.monotonic() - began)
                began = time.monotonic()
                process = self.site.larder(port, blobs, SOURCE)
                self.note("start", who, time.monotonic() - began)
            stop(process)
        self.site.forget()
        stop(nginx)


class Pulls:
    """containerd and skopeo with empty stores. Both return the time in seconds."""

    def __init__(self, home, image):
        home.mkdir()
        self.home, self.image = home, image
        self.policy = home / "policy.json"
        self.policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        address, config = home / "containerd.sock", home / "containerd.toml"
        config.write_text(
            f"""
version = 2
root = "{home}/containerd"
state = "{home}/containerd-run"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.grpc.v1.cri"]
[grpc]
  address = "{address}"
"""
        )
        self.ctr = ("ctr", "--address", address)
        ready = lambda: run(*self.ctr, "version")  # noqa: E731
        wait = lambda: address.exists() and bool(ready())  # noqa: E731
        self.daemon = measured.Process(home, "containerd", "containerd", "--config", config, ready=wait)

    def containerd(self, port):
        name = f"127.0.0.1:{port}/{self.image.name()}"
        took = timed(*self.ctr, "content", "fetch", "--plain-http", name)
        run(*self.ctr, "images", "rm", "--sync", name)
        left = run(*self.ctr, "content", "ls", "--quiet").split()
        require(not left, f"containerd still has {len(left)} things of {name}")
        return took

    def skopeo(self, port):
        source, target = f"docker://127.0.0.1:{port}/{self.image.name()}", self.home / "skopeo"
        common = ("skopeo", "--policy", self.policy, "copy", "--all", "--src-tls-verify=false")
        took = timed(*common, source, f"dir:{target}", env={"HOME": str(self.home), "TMPDIR": str(self.home)})
        shutil.rmtree(target)
        return took


def wrk(port, path):
    """Requests per second over 64 connections."""
    load = ("wrk", "--threads", 1, "--connections", 64, "--duration", "2s", "--latency")
    shown = run(*SECOND, *load, "--header", f"Accept: {ACCEPT}", f"http://127.0.0.1:{port}{path}")
    require("Non-2xx" not in shown and "Socket errors" not in shown, f"{path} on port {port}: {shown}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", shown)[1])


def turned(servers, number):
    """All servers, with another first one in each round."""
    names = list(servers)
    first = number % len(names)
    return names[first:] + names[:first]


def stop(*processes):
    for process in processes:
        process.stop()


PARTS = {
    "manifests": Bench.manifests,
    "warm": Bench.warm,
    "cold": Bench.cold_blobs,
    "crowd": Bench.crowd,
    "image": Bench.image,
    "start": Bench.start,
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"what to measure: {', '.join(PARTS)}")
    parser.add_argument("--larder", default=measured.ROOT / "target/dist/larder", type=Path, help="the program to measure")
    parser.add_argument("--distribution", type=Path, help="a build of distribution 3, to measure it too")
    parser.add_argument("--rounds", default=3, type=int)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("--results", default=cache / "larder-peers.json", type=Path, help="where raw readings go")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if strange := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(strange)}; there are {', '.join(PARTS)}")
    options.parts = options.parts or list(PARTS)
    options.rounds = max(1, options.rounds)
    return options


def outside(options, binary, results):
    """Checks the requirements, and enters the namespaces."""
    needed = ["unshare", "ip", "tc", "taskset", "docker-registry", "nginx", "wrk"]
    needed += ["containerd", "ctr", "skopeo"] if "image" in options.parts else []
    missing = [program for program in needed if not shutil.which(program)]
    if missing or os.geteuid() != 0 or os.cpu_count() < 2 or not os.access(binary, os.X_OK):
        sys.exit(f"needs root, two cores, {binary}, and these programs that are missing: {' '.join(missing) or 'none'}")
    disk = DISK_TO_START if "start" in options.parts else DISK
    if shutil.disk_usage("/var/tmp").free < disk:
        sys.exit(f"needs {disk >> 30} GiB free in /var/tmp; only the part `start` needs more than {DISK >> 30}")
    newest = ("--distribution", options.distribution.resolve()) if options.distribution else ()
    same = ("--larder", binary, *newest, "--rounds", options.rounds, "--results", results, *options.parts)
    return in_namespaces("larder-peers-", Path(__file__).resolve(), same)


def main():
    options = arguments()
    binary, results = options.larder.resolve(), options.results.resolve()
    if not options.inside:
        return outside(options, binary, results)
    run("ip", "link", "set", "lo", "up")
    bench, broken = Bench(Site(options.inside, binary, options.distribution), options.rounds), []
    for part in options.parts:
        began = time.monotonic()
        try:
            PARTS[part](bench)
            print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        except (Failed, OSError, RuntimeError) as error:
            # The servers of the failed part still run and would disturb other parts. The results so far are kept.
            print(f"{part} broke off: {error}", file=sys.stderr)
            broken = [part]
            break
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(bench.raw, indent=1) + "\n")
    print("\n".join(table(bench.raw)))
    print(f"\n{bench.rounds} rounds; raw readings are in {results}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
