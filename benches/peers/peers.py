#!/usr/bin/env python3
"""Measures larder, with each of its stores, beside nginx (the same bytes as static files) and docker-registry in
proxy mode.

    python3 benches/peers/peers.py [--larder target/release/larder] [--rounds 3] [--results FILE]

Every round asks each server in turn, so that whatever else the machine does touches all of them alike; what is shown
are medians, and for ratios the median of each round's own ratio. Manifests: the server has the first core, wrk the
second. Blobs: all share both. Everything is on a loopback that leads nowhere else. Takes about four minutes.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/clients"))
sys.dont_write_bytecode = True
import images  # noqa: E402
from servers import Failed, Process, ask, in_namespaces, require, run, start_registry, wait_until  # noqa: E402

ORIGIN, PEER, NGINX, FILES, SLED, LOGGING = 5100, 5101, 5102, 5103, 5104, 5105
ACCEPT = ", ".join(images.MANIFEST_TYPES)
READER = Path(__file__).with_name("reader.py")
MIB = 1 << 20
# What the origin, the caches and nginx keep of the same blobs; a full disk looks like a server that breaks off.
DISK = 20 << 30
FIRST, SECOND = ("taskset", "-c", "0"), ("taskset", "-c", "1")


# --- servers --------------------------------------------------------------------------------------------------


def start_nginx(work, prefix=(), workers="auto"):
    config = work / "nginx.conf"
    config.write_text(
        f"""
worker_processes {workers};
pid {work}/nginx.pid;
error_log {work}/nginx-error.log;
daemon off;
user root;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    open_file_cache max=1000 inactive=1h;
    default_type {images.OCI_INDEX};
    client_body_temp_path {work}/nginx-body;
    proxy_temp_path {work}/nginx-proxy;
    fastcgi_temp_path {work}/nginx-fastcgi;
    uwsgi_temp_path {work}/nginx-uwsgi;
    scgi_temp_path {work}/nginx-scgi;
    server {{ listen 127.0.0.1:{NGINX}; root {work}/static; }}
}}
"""
    )
    (work / "static").mkdir(exist_ok=True)
    ready = lambda: ask("GET", "/", NGINX)[0] > 0  # noqa: E731
    return Process(work, "nginx", *prefix, "nginx", "-c", config, ready=ready)


def start_larder(work, binary, port, blobs, log=False, prefix=()):
    config = work / f"larder-{port}.toml"
    config.write_text(
        f"""
builtin_upstreams = false
[server]
listen = "127.0.0.1:{port}"
[admin]
listen = "127.0.0.1:{port + 100}"
[store]
path = "{work}/larder-{port}"
blobs = "{blobs}"
[log]
requests = {str(log).lower()}
[upstream."docker.io"]
endpoints = ["http://127.0.0.1:{ORIGIN}"]
default = true
"""
    )
    ready = lambda: ask("GET", "/v2/", port)[0] == 200  # noqa: E731
    return Process(work, f"larder-{port}", *prefix, binary, "serve", "--config", config, ready=ready)


def start_peer(work, prefix=()):
    return start_registry(work, "peer", PEER, f"http://127.0.0.1:{ORIGIN}", prefix, log=False)


def memory(process, field="VmRSS"):
    """MiB that a server holds, its workers included."""
    total = 0
    pids = [process.process.pid]
    while pids:
        pid = pids.pop()
        status = Path(f"/proc/{pid}/status").read_text()
        total += int(re.search(rf"^{field}:\s+(\d+)", status, re.MULTILINE)[1])
        children = Path(f"/proc/{pid}/task/{pid}/children")
        pids += [int(child) for child in children.read_text().split()] if children.exists() else []
    return total / 1024


# --- readings -------------------------------------------------------------------------------------------------


def wrk(port, path, seconds):
    """Requests per second over 64 connections."""
    load = ("wrk", "--threads", 1, "--connections", 64, "--duration", f"{seconds}s", "--latency")
    shown = run(*SECOND, *load, "--header", f"Accept: {ACCEPT}", f"http://127.0.0.1:{port}{path}")
    require("Non-2xx" not in shown and "Socket errors" not in shown, f"{path} on port {port}: {shown}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", shown)[1])


def read(port, path, streams=1, verify=None):
    extra = ("--verify", verify) if verify else ()
    return json.loads(run(sys.executable, READER, f"http://127.0.0.1:{port}{path}", streams, *extra))


def median(values):
    return statistics.median(values)


def ratio(ours, theirs):
    """The median of each round's own ratio."""
    return median([a / b for a, b in zip(ours, theirs)])


class Bench:
    """One run: the origin, what it holds, and every reading."""

    def __init__(self, work, binary, rounds):
        self.work, self.binary, self.rounds = work, binary, rounds
        self.raw = {}
        self.origin = start_registry(work, "origin", ORIGIN)
        self.index = images.Image("library/multi", "oci", images.default_registry()[0].root)
        self.push(self.index)
        self.big = [self.blob(f"big-{number}", 512) for number in range(3)]
        self.hashed = [self.blob(f"hashed-{number}", 512) for number in range(3)]
        self.middle = [self.blob(f"middle-{number}", 64) for number in range(6)]

    def push(self, image):
        images.Registry(f"http://127.0.0.1:{ORIGIN}").push(image)

    def blob(self, seed, mebibytes):
        """Path, digest: a layer; nginx can serve the first one too."""
        image = images.Image("library/big", seed, images.image(seed, images.AMD64, sizes=(mebibytes * MIB,), compressed=False))
        self.push(image)
        layer = image.root.needs[1]
        path = f"/v2/{image.repository}/blobs/{layer.digest}"
        if seed == "big-0":
            self.static(path, layer.body)
        return path, layer.digest

    def static(self, path, body):
        file = self.work / "static" / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body)

    def note(self, what, who, value):
        self.raw.setdefault(what, {}).setdefault(who, []).append(value)

    def gets_now(self, path):
        return self.origin.text().count(f'"GET {path} ')

    def origin_gets(self, path):
        """How often the origin was asked for a body, once it has been quiet: it logs a request when it has ended."""
        since, seen = time.monotonic(), -1
        while time.monotonic() - since < 2:
            now = self.gets_now(path)
            if now != seen:
                since, seen = time.monotonic(), now
            time.sleep(0.1)
        return seen

    # (a) warm manifests, one core

    def manifests(self):
        base = f"/v2/{self.index.repository}/manifests/"
        by = {"digest": base + self.index.root.digest, "tag": base + self.index.tag}
        for path in by.values():
            self.static(path, self.index.root.body)
        servers = {
            "nginx": (NGINX, start_nginx(self.work, FIRST, 1)),
            "larder, files": (FILES, start_larder(self.work, self.binary, FILES, "files", prefix=FIRST)),
            "larder, sled": (SLED, start_larder(self.work, self.binary, SLED, "sled", prefix=FIRST)),
            "larder, request log on": (LOGGING, start_larder(self.work, self.binary, LOGGING, "sled", True, FIRST)),
            "docker-registry": (PEER, start_peer(self.work, FIRST)),
        }
        for who, (port, process) in servers.items():
            self.note("memory, idle", who, memory(process))
            for path in by.values():
                status, headers, body = ask("GET", path, port, Accept=ACCEPT)
                require(status == 200 and body == self.index.root.body, f"{who} answers {path} with {status}")
                require(headers["Content-Type"] == images.OCI_INDEX, f"{who}: {headers['Content-Type']}")
        for _ in range(self.rounds):
            for reference, path in by.items():
                for who, (port, _process) in servers.items():
                    self.note(f"manifest by {reference}", who, wrk(port, path, 2))
        for who, (_port, process) in servers.items():
            self.note("memory, after the manifests", who, memory(process))
            process.stop()

    # (c) cold blobs, then (b) warm ones

    def blobs(self):
        processes = {
            "larder, files": start_larder(self.work, self.binary, FILES, "files"),
            "larder, sled": start_larder(self.work, self.binary, SLED, "sled"),
            "docker-registry": start_peer(self.work),
            "nginx": start_nginx(self.work),
        }
        caches = {"larder, files": FILES, "larder, sled": SLED, "docker-registry": PEER}
        read(ORIGIN, self.big[0][0])  # the origin's files are in memory from here on
        for path, digest in self.big:
            read(ORIGIN, path, verify=digest)
            cold = read(ORIGIN, path)
            self.note("cold blob, seconds", "direct", cold["seconds"])
            self.note("cold blob, first byte", "direct", cold["first_byte"])
            for who, port in caches.items():
                before = self.gets_now(path)
                cold = read(port, path)
                self.note("cold blob, seconds", who, cold["seconds"])
                self.note("cold blob, first byte", who, cold["first_byte"])
                self.note("cold blob, upstream GETs", who, self.origin_gets(path) - before)
        for path, digest in self.hashed:
            read(ORIGIN, path)
            self.note("cold blob, hashed, seconds", "direct", read(ORIGIN, path, verify=digest)["seconds"])
            for who, port in caches.items():
                self.note("cold blob, hashed, seconds", who, read(port, path, verify=digest)["seconds"])
                # Until all is quiet: what one writes to the disk must not slow the next one.
                self.origin_gets(path)
        for path, digest in self.middle[: self.rounds]:
            for who, port in caches.items():
                before = self.gets_now(path)
                read(port, path, 16, digest)
                self.note("16 cold clients, upstream GETs", who, self.origin_gets(path) - before)
        for who in caches:
            self.note("memory, after the cold blobs", who, memory(processes[who]))

        path, digest = self.big[0]
        servers = {"nginx": NGINX, **caches}
        for who, port in servers.items():
            wait_until(f"{who} has the blob", lambda port=port: read(port, path, verify=digest), 60)
        gets = self.origin_gets(path)
        for _ in range(self.rounds):
            for streams in (1, 8):
                for who, port in servers.items():
                    warm = read(port, path, streams)
                    self.note(f"warm blob, {streams} streams, bytes/s", who, warm["bytes"] / warm["seconds"])
        require(self.origin_gets(path) == gets, "a warm blob was fetched again")
        for who, process in processes.items():
            self.note("memory, after the warm blobs", who, memory(process))
            self.note("memory, peak", who, memory(process, "VmHWM"))
            process.stop()

    # what is shown

    def table(self):
        columns = ("larder, files", "larder, sled", "larder, request log on", "docker-registry", "nginx")
        yield "| | " + " | ".join(columns) + " |"
        yield "|---|" + "---|" * len(columns)

        def row(title, what, show, base=None):
            readings = self.raw.get(what, {})
            cells = []
            for who in columns:
                values = readings.get(who)
                if not values:
                    cells.append("")
                    continue
                text = show(median(values))
                if base and who != base:
                    text += f" ({ratio(values, readings[base]):.2g})"
                cells.append(text)
            return f"| {title} | " + " | ".join(cells) + " |"

        rate = lambda value: f"{value:,.0f}/s"  # noqa: E731
        speed = lambda value: f"{value / 1e9:.2f} GB/s"  # noqa: E731
        mib = lambda value: f"{value:.0f} MiB"  # noqa: E731
        for reference in ("digest", "tag"):
            yield row(f"warm manifest GET by {reference} (of nginx)", f"manifest by {reference}", rate, "nginx")
        for streams, name in ((1, "1 stream"), (8, "8 streams")):
            yield row(f"warm 512 MiB blob, {name} (of nginx)", f"warm blob, {streams} streams, bytes/s", speed, "nginx")
        yield row("cold 512 MiB blob (of a direct download)", "cold blob, seconds", lambda s: f"{s:.2f} s", "direct")
        hashed = "cold 512 MiB blob, client hashes (of a direct download)"
        yield row(hashed, "cold blob, hashed, seconds", lambda s: f"{s:.2f} s", "direct")
        first = "cold 512 MiB blob, first byte (of a direct download)"
        yield row(first, "cold blob, first byte", lambda s: f"{s * 1000:.1f} ms", "direct")
        yield row("cold 512 MiB blob, upstream GETs", "cold blob, upstream GETs", lambda n: f"{n:.0f}")
        yield row("16 cold clients, upstream GETs", "16 cold clients, upstream GETs", lambda n: f"{n:.0f}")
        for when in ("idle", "after the manifests", "after the cold blobs", "after the warm blobs", "peak"):
            yield row(f"resident memory, {when}", f"memory, {when}", mib)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", default=ROOT / "target/release/larder", type=Path, help="the program to measure")
    parser.add_argument("--rounds", default=3, type=int)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("--results", default=cache / "larder-peers.json", type=Path, help="where raw readings go")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    binary, results = options.larder.resolve(), options.results.resolve()

    if not options.inside:
        needed = ("unshare", "ip", "taskset", "docker-registry", "nginx", "wrk")
        missing = [program for program in needed if not shutil.which(program)]
        if missing or os.geteuid() != 0 or os.cpu_count() < 2 or not os.access(binary, os.X_OK):
            sys.exit(f"needs root, two cores, {binary}, and these programs that are missing: {' '.join(missing) or 'none'}")
        if shutil.disk_usage("/var/tmp").free < DISK:
            sys.exit(f"needs {DISK >> 30} GiB free in /var/tmp")
        arguments = ("--larder", binary, "--rounds", options.rounds, "--results", results)
        return in_namespaces("larder-peers-", Path(__file__).resolve(), arguments)

    run("ip", "link", "set", "lo", "up")
    began = time.monotonic()
    try:
        bench = Bench(options.inside, binary, max(1, min(options.rounds, 6)))
        bench.manifests()
        bench.blobs()
    except (Failed, OSError, RuntimeError) as error:
        print(f"the run broke off: {error}", file=sys.stderr)
        return 1
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(bench.raw, indent=1) + "\n")
    print("\n".join(bench.table()))
    print(f"\n{bench.rounds} rounds, {time.monotonic() - began:.0f} s; raw readings are in {results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
