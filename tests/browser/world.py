"""Set-up of the browser tests: docker-registry with images, a slow connection to it, and a server in front of it."""

import gzip
import http.client
import http.server
import json
import threading
import time

from images import AMD64, ARM64, MIB, OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST
from images import Content, Image, Registry, artifact, digest, document, index, layer_tar, noise
from servers import Process, ask, start_registry, wait_until

REGISTRY, SLOW, API, ADMIN = 5100, 5101, 5000, 5001
EMPTY_API, EMPTY_ADMIN, DEAD = 5010, 5011, 5999
# Images whose blobs are slow enough to watch their download.
SLOW_ONES = ("library/python:3.14", "library/golang:1.27")
# Runs if a shown text is interpreted as markup.
HOSTILE = "\"'><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"


def image(name, platform, sizes, config=None, history=(), annotations=None):
    """An image with layers of these sizes and a typical config."""
    layers, diffs = [], []
    for number, size in enumerate(sizes):
        tar = layer_tar([(f"data/{number}", noise(f"{name} {platform['architecture']} {number}", size))])
        diffs.append(digest(tar))
        layers.append(Content(OCI_LAYER_GZIP, gzip.compress(tar, 1, mtime=0)))
    facts = {
        "created": "2026-11-24T08:15:30Z",
        "architecture": platform["architecture"],
        "os": platform["os"],
        "config": config or {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": diffs},
        "history": [{"created": "2026-11-24T08:15:30Z", **step} for step in history],
    }
    made = Content(OCI_CONFIG, document(facts))
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": made.descriptor(),
        "layers": [layer.descriptor() for layer in layers],
    }
    if annotations:
        manifest["annotations"] = annotations
    return Content(OCI_MANIFEST, document(manifest), platform, [made, *layers])


def database(version):
    config = {
        "Entrypoint": ["docker-entrypoint.sh"],
        "Cmd": ["postgres"],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/bin", "LANG=en_US.utf8", f"PG_MAJOR={version}"],
        "ExposedPorts": {"5432/tcp": {}},
        "Volumes": {"/var/lib/postgresql/data": {}},
        "StopSignal": "SIGINT",
        "Labels": {"org.opencontainers.image.licenses": "PostgreSQL"},
    }
    history = [
        {"created_by": "ADD rootfs.tar.xz / # buildkit"},
        {"created_by": "ENV LANG=en_US.utf8", "empty_layer": True},
        {"created_by": f"RUN apt-get install --yes postgresql-{version}"},
        {"created_by": 'CMD ["postgres"]', "empty_layer": True},
    ]
    notes = {
        "org.opencontainers.image.source": "https://github.com/example/postgres",
        "org.opencontainers.image.version": f"{version}.2",
        "org.opencontainers.image.base.name": "docker.io/library/debian:13-slim",
    }
    sizes = (9 * MIB, 6 * MIB, 200_000, 3000)
    return index([image(f"postgres {version}", it, sizes, config, history, notes) for it in (AMD64, ARM64)])


def hostile():
    config = {"Env": [f"X={HOSTILE}"], "Entrypoint": [HOSTILE], "Labels": {HOSTILE: HOSTILE}, "User": HOSTILE}
    history = [{"created_by": HOSTILE}]
    platform = {"architecture": "amd64", "os": "linux", "variant": HOSTILE.replace("/", "")}
    made = image("hostile", platform, (1000,), config, history, {HOSTILE: HOSTILE, "a": HOSTILE})
    return index([made])


def contents():
    app = index([image("app", platform, (3 * MIB, 40_000)) for platform in (AMD64, ARM64)])
    return [
        Image("library/postgres", "17", database("17")),
        Image("library/postgres", "16", database("16")),
        Image("library/nginx", "1.29", index([image("nginx", it, (4 * MIB, 9000)) for it in (AMD64, ARM64)])),
        Image("library/hostile", "1", hostile()),
        Image("library/python", "3.14", index([image("python", AMD64, (24 * MIB,))])),
        Image("library/golang", "1.27", index([image("golang", AMD64, (36 * MIB,))])),
        Image("team/app", "2.4.1", app),
        Image("team/app", "sbom", artifact("app", app)),
    ]


class Slow(http.server.BaseHTTPRequestHandler):
    """The registry, with the quota of Docker Hub and some slow blobs."""

    protocol_version = "HTTP/1.1"
    pace, left = 2 * MIB, 76

    def do_HEAD(self):
        self.pass_on()

    def do_GET(self):
        self.pass_on()

    def pass_on(self):
        connection = http.client.HTTPConnection("127.0.0.1", REGISTRY, timeout=60)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        connection.request(self.command, self.path, headers=kept)
        answer = connection.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        if "/manifests/" in self.path and "/team/" not in self.path:
            self.send_header("RateLimit-Limit", "100;w=21600")
            self.send_header("RateLimit-Remaining", f"{Slow.left};w=21600")
        self.end_headers()
        slow = "/python/blobs/" in self.path or "/golang/blobs/" in self.path
        while piece := answer.read(64 << 10):
            self.wfile.write(piece)
            if slow:
                time.sleep(len(piece) / self.pace)
        connection.close()

    def log_message(self, *_):
        pass


def slow_way():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", SLOW), Slow)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def pull(name, platform="amd64", port=API):
    """Pulls as a client does: the index, the manifest of one platform, and its blobs."""
    repository, tag = name.rsplit(":", 1)
    path = f"/v2/{repository}/manifests/"
    _, _, body = ask("GET", path + tag, port)
    found = json.loads(body)
    for child in found.get("manifests", []):
        if child["platform"]["architecture"] == platform:
            _, _, body = ask("GET", path + child["digest"], port)
            found = json.loads(body)
            break
    for part in (found["config"], *found["layers"]):
        ask("GET", f"/v2/{repository}/blobs/{part['digest']}", port)
    return found


def larder(work, binary, name, api, admin, upstreams):
    config = work / f"{name}.toml"
    text = f"""builtin_upstreams = false
[server]
listen = "127.0.0.1:{api}"
[admin]
listen = "127.0.0.1:{admin}"
[store]
path = "{work / name}"
max_size = "512MiB"
min_free = "64MiB"
[cache]
tag_ttl = "1h"
"""
    for upstream, port in upstreams.items():
        text += f'[upstream."{upstream}"]\nendpoints = ["http://127.0.0.1:{port}"]\n'
        text += "default = true\n" if upstream == "docker.io" else ""
    config.write_text(text)
    return Process(
        work, name, binary, "serve", "--config", config, ready=lambda: ask("GET", "/readyz", admin)[0] == 200
    )


def status(admin=ADMIN):
    return json.loads(ask("GET", "/api/v1/status", admin)[2])


def settle(admin=ADMIN):
    def quiet():
        now = status(admin)
        return not now["fills"] and now["children_queued"] + now["children_deferred"] == 0

    wait_until("no fill runs and no child waits", quiet)


def build(work, binary):
    """Starts the registry and two servers: one with cached content, and an unused one."""
    start_registry(work, "registry", REGISTRY)
    registry = Registry(f"http://127.0.0.1:{REGISTRY}")
    for made in contents():
        registry.push(made)
    slow_way()
    upstreams = {"docker.io": SLOW, "ghcr.io": SLOW, "quay.io": DEAD}
    used = larder(work, binary, "used", API, ADMIN, upstreams)
    larder(work, binary, "empty", EMPTY_API, EMPTY_ADMIN, {"docker.io": SLOW})
    for _ in range(6):
        for name in ("library/postgres:17", "library/nginx:1.29", "ghcr.io/team/app:2.4.1"):
            pull(name)
    pull("library/postgres:16", "arm64")
    pull("library/hostile:1")
    pull("ghcr.io/team/app:sbom")
    for number in range(3):
        ask("GET", f"/v2/quay.io/org/tool/manifests/{number}", API)
    settle()
    return used
