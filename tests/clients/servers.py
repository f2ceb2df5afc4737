"""Starts servers in their own namespaces, and sends requests to them."""

import collections
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LARDER, ADMIN = 5000, 5001
OURSELVES = "larder-tests/1"


class Failed(Exception):
    """Failure of a check."""


def require(condition, message):
    if not condition:
        raise Failed(message)


class Report:
    """Prints the result of each check, and counts the results."""

    def __init__(self):
        self.passed = self.failed = 0

    @contextlib.contextmanager
    def check(self, name):
        began = time.monotonic()
        try:
            yield
        except (Failed, OSError, http.client.HTTPException, subprocess.SubprocessError) as error:
            self.failed += 1
            print(f"FAIL {name}: {str(error) or type(error).__name__}", flush=True)
        else:
            self.passed += 1
            print(f"ok   {name} ({(time.monotonic() - began) * 1000:.0f} ms)", flush=True)


def last_lines(text, count=3):
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    return " | ".join(lines[-count:])[-300:]


def run(*command, env=None, seconds=120):
    """Runs a command that must succeed, and returns its output."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        text=True,
        errors="replace",
    )
    require(done.returncode == 0, f"`{command[0]}` ended with {done.returncode}: {last_lines(done.stdout)}")
    return done.stdout


def ask(method, path, port=LARDER, **headers):
    """Sends one request, and returns status, headers and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers={"User-Agent": OURSELVES, **sent})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def head_times():
    """{upper bound in seconds: answers whose head was sent within it}, for all requests for content."""
    times = collections.Counter()
    sample = re.compile(r'^larder_response_seconds_bucket\{kind="(?:manifest_tag|manifest_digest|blob)",.*le="([^"]+)"\} (\d+)$')
    for line in ask("GET", "/metrics", ADMIN)[2].decode().splitlines():
        if match := sample.match(line):
            times[float(match[1])] += int(match[2])
    return times


def wait_until(what, condition, seconds=30):
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if condition():
                return
        if time.monotonic() > deadline:
            raise Failed(f"not reached within {seconds} s: {what}")
        time.sleep(0.05)


class Process:
    """A server process, with its output in a file."""

    def __init__(self, work, name, *command, ready=None, env=None):
        self.name, self.log = name, work / "logs" / f"{name}.log"
        self.log.parent.mkdir(exist_ok=True)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            wait_until(f"{name} is ready", lambda: self.alive() and (ready is None or ready()))
        except Failed as error:
            self.kill()
            raise Failed(f"{error}: {last_lines(self.text())}") from None

    def alive(self):
        if self.process.poll() is not None:
            raise Failed(f"{self.name} ended with {self.process.returncode}: {last_lines(self.text())}")
        return True

    def text(self):
        return self.log.read_text(errors="replace")

    def stop(self, seconds=40):
        """Sends SIGTERM, and returns the exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"{self.name} did not end within {seconds} s of being asked to") from None

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start_registry(work, name, port, remote=None, prefix=(), log=True, program="docker-registry", tls=None):
    """Debian's docker-registry, or another build of it; with `remote`, as a pull-through cache of it.

    `tls` is a certificate and its key. Such a registry does not accept plain HTTP.
    """
    config = work / f"{name}.json"  # JSON is YAML
    settings = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": not log}},
        "storage": {"filesystem": {"rootdirectory": str(work / name)}, "cache": {"blobdescriptor": "inmemory"}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if remote:
        settings["proxy"] = {"remoteurl": remote}
    if tls:
        settings["http"]["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
    config.write_text(json.dumps(settings))

    def ready():
        # A TLS port answers plain HTTP with status 400.
        return ask("GET", "/v2/", port)[0] == (400 if tls else 200)

    return Process(work, name, *prefix, program, "serve", config, ready=ready)


def start_larder(work, binary, sections, name="larder", env=None):
    """A server with the usual ports, its own store, and these sections of the configuration."""
    config = work / f"{name}.toml"
    config.write_text(
        f"""
builtin_upstreams = false

[server]
listen = "127.0.0.1:{LARDER}"

[admin]
listen = "127.0.0.1:{ADMIN}"

[store]
path = "{work / f'{name}-data'}"
{sections}"""
    )
    ready = lambda: ask("GET", "/readyz", ADMIN)[0] == 200 and ask("GET", "/v2/")[0] == 200  # noqa: E731
    return Process(work, name, binary, "serve", "--config", config, ready=ready, env=env)


def in_namespaces(prefix, script, arguments, keep=False):
    """Runs `script ARGUMENTS --inside FOLDER` in namespaces with only a loopback network. Deletes the folder afterwards.

    When the script ends for any reason, the kernel kills all processes that it started.
    """
    work = Path(tempfile.mkdtemp(prefix=prefix, dir="/var/tmp"))
    namespaces = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    command = (*namespaces, sys.executable, script, *arguments, "--inside", work)
    # The environment of the caller must not configure the server.
    alien = lambda name: name.startswith("LARDER_") or name.lower().endswith("_proxy")  # noqa: E731
    env = {name: value for name, value in os.environ.items() if not alien(name)}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to end"))
    try:
        return subprocess.run([str(part) for part in command], env=env, stdin=subprocess.DEVNULL).returncode
    finally:
        if keep:
            print(f"logs and stores are in {work}")
        else:
            # A process that was just killed may still be writing.
            deadline = time.monotonic() + 5
            while work.exists() and time.monotonic() < deadline:
                shutil.rmtree(work, ignore_errors=True)
