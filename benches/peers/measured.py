"""The measured servers, their content, and their use of memory and CPU."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/clients"))
import images  # noqa: E402
from servers import Failed, Process, ask, in_namespaces, require, run, start_registry, wait_until  # noqa: E402,F401

# ORIGIN is a docker-registry with pushed images. SOURCE is nginx with blobs as files and a log of requests; LIMITED is the
# same with a limited rate. Each can be an upstream.
ORIGIN, SOURCE, LIMITED = 5100, 5106, 5107
PEER, NGINX, FILES, SLED, LOGGING, NEWEST = 5101, 5102, 5103, 5104, 5105, 5108
RATE = 400_000_000
KINDS = {"larder, files": (FILES, "files"), "larder, sled": (SLED, "sled")}
DEBIANS = "docker-registry"
# The newest release of the same program, if it was built.
NEWER = "distribution 3"
MIB = 1 << 20
READER = Path(__file__).with_name("reader.py")
TICK = os.sysconf("SC_CLK_TCK")
REPOSITORY = "library/big"


class Site:
    """All servers and files of one run, in one folder."""

    def __init__(self, work, binary, newest=None):
        """`newest` is a build of distribution 3, which is also measured."""
        self.work, self.binary = work, binary
        self.peers = {DEBIANS: (PEER, "docker-registry"), **({NEWER: (NEWEST, newest)} if newest else {})}
        self.ports = {who: port for who, (port, _) in (KINDS | self.peers).items()}
        self.static = work / "static"
        self.static.mkdir()
        self.access = work / "access.log"

    # --- servers ---

    def nginx(self, prefix=(), workers="auto"):
        """nginx as a peer with static files, and as the upstream of blobs."""
        config = self.work / "nginx.conf"
        temporary = "\n".join(
            f"    {what}_temp_path {self.work}/nginx-{what};" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        upstream = f"root {self.static}; access_log {self.access} asked; location = /v2/ {{ return 200; }}"
        config.write_text(
            f"""
worker_processes {workers};
pid {self.work}/nginx.pid;
error_log {self.work}/nginx-error.log;
daemon off;
user root;
events {{ worker_connections 4096; }}
http {{
    log_format asked '$request_method $uri $body_bytes_sent';
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    open_file_cache max=1000 inactive=1h;
    default_type {images.OCI_INDEX};
{temporary}
    server {{ listen 127.0.0.1:{NGINX}; root {self.static}; }}
    server {{ listen 127.0.0.1:{SOURCE}; {upstream} }}
    server {{ listen 127.0.0.1:{LIMITED}; {upstream} }}
}}
"""
        )
        ready = lambda: ask("GET", "/v2/", SOURCE)[0] == 200  # noqa: E731
        return Process(self.work, "nginx", *prefix, "nginx", "-c", config, ready=ready)

    def larder(self, port, blobs, upstream, log=False, prefix=()):
        """larder with its own store, which is kept for the next start."""
        config = self.work / f"larder-{port}.toml"
        config.write_text(
            f"""
builtin_upstreams = false
[server]
listen = "127.0.0.1:{port}"
[admin]
listen = "127.0.0.1:{port + 100}"
[store]
path = "{self.work}/larder-{port}"
blobs = "{blobs}"
[log]
requests = {str(log).lower()}
[upstream."docker.io"]
endpoints = ["http://127.0.0.1:{upstream}"]
default = true
"""
        )
        ready = lambda: ask("GET", "/readyz", port + 100)[0] == 200  # noqa: E731
        return Process(self.work, f"larder-{port}", *prefix, self.binary, "serve", "--config", config, ready=ready)

    def peer(self, who, upstream, prefix=()):
        """docker-registry as a pull-through cache."""
        port, program = self.peers[who]
        # The newer release would send traces.
        prefix = (*prefix, "env", "OTEL_TRACES_EXPORTER=none")
        return start_registry(self.work, f"peer-{port}", port, f"http://127.0.0.1:{upstream}", prefix, False, program)

    def forget(self):
        """Empties all caches. No cache may be running."""
        folders = [f"larder-{port}" for port in (FILES, SLED, LOGGING)] + [f"peer-{port}" for port in (PEER, NEWEST)]
        run("rm", "-rf", *(self.work / folder for folder in folders))

    # --- content ---

    def write(self, path, body):
        file = self.static / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body)

    def blob(self, mebibytes):
        """Adds a blob to the source and reads it into the page cache. Returns its path and digest."""
        hashed, folder = hashlib.sha256(), self.static / f"v2/{REPOSITORY}/blobs"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "new").open("wb") as file:
            for _ in range(mebibytes):
                part = random.randbytes(MIB)
                hashed.update(part)
                file.write(part)
        digest = f"sha256:{hashed.hexdigest()}"
        (folder / "new").rename(folder / digest)
        return f"/v2/{REPOSITORY}/blobs/{digest}", digest

    def remove(self, path):
        (self.static / path.lstrip("/")).unlink()

    def gets(self, path):
        """Number of bodies that the source has sent. Waits until it is idle, because it logs a request at its end."""
        line, since, seen = re.compile(rf"^GET {re.escape(path)} ", re.MULTILINE), time.monotonic(), -1
        while time.monotonic() - since < 1:
            now = len(line.findall(self.access.read_text()))
            if now != seen:
                since, seen = time.monotonic(), now
            time.sleep(0.1)
        return seen


def limit():
    """Limits the rate of LIMITED evenly. The limit of nginx works in whole seconds."""
    tc = lambda *arguments: run("tc", *arguments)  # noqa: E731
    root, bounded = ("parent", "1:"), ("rate", f"{8 * RATE}bit", "burst", "256k", "cburst", "256k")
    tc("qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb", "default", "1", "r2q", "100000")
    tc("class", "add", "dev", "lo", *root, "classid", "1:1", "htb", "rate", "1tbit", "quantum", "200000")
    tc("class", "add", "dev", "lo", *root, "classid", "1:2", "htb", *bounded, "quantum", "200000")
    tc("filter", "add", "dev", "lo", *root, "u32", "match", "ip", "sport", LIMITED, "0xffff", "flowid", "1:2")


def unlimit():
    run("tc", "qdisc", "del", "dev", "lo", "root")


def settled(who, port):
    """Waits until a larder server has stored all content. Other servers do not report it."""
    if who in KINDS:
        running = re.compile(rb"^larder_fills_running 0$", re.MULTILINE)
        wait_until(f"{who} has settled", lambda: running.search(ask("GET", "/metrics", port + 100)[2]), 120)


def read(port, path, streams=1, verify=None):
    """Result of `reader.py`."""
    extra = ("--verify", verify) if verify else ()
    return json.loads(run(sys.executable, READER, f"http://127.0.0.1:{port}{path}", streams, *extra, seconds=600))


def family(process):
    """Process ids of a server and its workers."""
    found, left = [], [process.process.pid]
    while left:
        pid = left.pop()
        found.append(pid)
        children = Path(f"/proc/{pid}/task/{pid}/children")
        left += [int(child) for child in children.read_text().split()] if children.exists() else []
    return found


def memory(process, field="VmRSS"):
    """Resident memory of a server in MiB; with `VmHWM`, the peak since `forget_peak`."""
    status = (Path(f"/proc/{pid}/status").read_text() for pid in family(process))
    return sum(int(re.search(rf"^{field}:\s+(\d+)", text, re.MULTILINE)[1]) for text in status) / 1024


def forget_peak(process):
    for pid in family(process):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def cpu(process):
    """CPU time of a server in seconds."""
    fields = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in family(process))
    return sum(int(stat[11]) + int(stat[12]) for stat in fields) / TICK


def timed(*command, env=None):
    began = time.monotonic()
    done = subprocess.run([str(part) for part in command], env={**os.environ, **(env or {})}, capture_output=True, text=True)
    require(done.returncode == 0, f"`{command[0]}` ended with {done.returncode}: {done.stderr[-300:]}")
    return time.monotonic() - began
