"""A registry that is only reachable by a proxy: Debian's tinyproxy between larder and a docker-registry with TLS."""

import contextlib
import json
import os
import subprocess

from servers import Process, ask, require, run, start_larder, start_registry

REGISTRY, PROXY = 5443, 8888
NAME = "registry.test"


def certificate(work):
    """A self-signed certificate for the registry, and its key."""
    cert, key = work / "registry.pem", work / "registry-key.pem"
    kind = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    names = ("-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}")
    run("openssl", "req", *kind, *names, "-keyout", key, "-out", cert)
    return cert, key


def start_proxy(work):
    """The proxy requires credentials. Only the proxy resolves the name of the registry."""
    config, hosts = work / "tinyproxy.conf", work / "hosts"
    config.write_text(
        f"Port {PROXY}\nListen 127.0.0.1\nAllow 127.0.0.1\nTimeout 60\nMaxClients 50\nLogLevel Connect\n"
        f"BasicAuth me secret\nConnectPort {REGISTRY}\n"
    )
    hosts.write_text(f"127.0.0.1 localhost {NAME}\n")
    within = ("unshare", "--mount", "sh", "-c", f"mount --bind {hosts} /etc/hosts && exec tinyproxy -d -c {config}")
    # Any answer shows that it listens. Without credentials the answer is a refusal.
    return Process(work, "tinyproxy", *within, ready=lambda: ask("GET", "/", PROXY)[0] == 407)


@contextlib.contextmanager
def larder_by(work, binary, name, cert, login):
    """Configuration and environment of a server that uses the proxy of the environment."""
    sections = f"""
[upstream."docker.io"]
endpoints = ["https://{NAME}:{REGISTRY}"]
ca_file = "{cert}"
default = true
"""
    env = {"HTTPS_PROXY": f"http://{login}127.0.0.1:{PROXY}"}
    larder = start_larder(work, binary, sections, name, env)
    try:
        yield work / f"{name}.toml", env
    finally:
        larder.stop()


def steps(binary, config, env):
    """Steps of `larder doctor` on the way to the registry."""
    command = (str(binary), "doctor", "--json", "--config", str(config))
    done = subprocess.run(command, env={**os.environ, **env}, stdout=subprocess.PIPE, timeout=60)
    checks = json.loads(done.stdout)["checks"]
    return [(check["step"], check["verdict"]) for check in checks if check["area"] == "upstream"]


def by_proxy(work, binary, report, store, image):
    """Pulls `image` from the registry with this name, which has the image."""
    cert, key = certificate(work)
    registry, proxy = start_registry(work, store, REGISTRY, tls=(cert, key)), start_proxy(work)
    path = f"/v2/{image.repository}/manifests/{image.tag}"
    with larder_by(work, binary, "proxied", cert, "me:secret@") as (config, env):
        with report.check("by proxy: larder pulls what only the proxy reaches"):
            status, _, body = ask("GET", path, Accept="*/*")
            require(status == 200 and body == image.root.body, f"GET {path}: {status} {body[:200]!r}")
            for content in image.walk():
                kind = "manifests" if content.is_manifest() else "blobs"
                asked = f"/v2/{image.repository}/{kind}/{content.digest}"
                status, _, body = ask("GET", asked)
                require(status == 200 and body == content.body, f"GET {asked}: {status}")
            require(f"CONNECT {NAME}:{REGISTRY} " in proxy.text(), "the proxy's log names no tunnel to the registry")
        with report.check("by proxy: doctor goes the same way"):
            found = steps(binary, config, env)
            way = [(step, "ok") for step in ("proxy", "connection", "tunnel", "tls", "/v2/")]
            require(found[: len(way)] == way, f"{found}")
    with larder_by(work, binary, "unknown", cert, "") as (config, env):
        with report.check("by proxy: doctor reports the missing credentials"):
            status, _, body = ask("GET", path, Accept="*/*")
            require(status == 502 and b"through its proxy" in body, f"{status} {body[:200]!r}")
            found = steps(binary, config, env)
            require(found[-1] == ("tunnel", "fails"), f"{found}")
    for process in (proxy, registry):
        process.stop()
