"""A Prometheus server scrapes larder: names of metrics, queries of the dashboard, and firing alerts."""

import http.client
import http.server
import json
import re
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clients"))
import images  # noqa: E402
from servers import ADMIN, Failed, Process, ask, require, run, start_larder, wait_until  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy/monitoring"
UPSTREAM, PRIVATE, PROMETHEUS = 5100, 5101, 9090
ACCEPT = ", ".join(images.MANIFEST_TYPES)
# Rates need two samples, so a short interval makes the test short.
EVERY = "1s"


def rules(report):
    with report.check("monitoring: the rules are well formed"):
        run("promtool", "check", "rules", MONITORING / "larder.rules.yaml")
    with report.check("monitoring: Prometheus' configuration is well formed, and finds the rules"):
        run("promtool", "check", "config", MONITORING / "prometheus.yaml")
    tests = [Path(__file__).parent / name for name in ("rules.yaml", "rules-days.yaml")]
    with report.check("monitoring: every alert fires when it should, says what it should, and is quiet before"):
        run("promtool", "test", "rules", *tests)
        fired = {
            test["alertname"]
            for file in tests
            for case in yaml.safe_load(file.read_text())["tests"]
            for test in case["alert_rule_test"]
            if test["exp_alerts"]
        }
        missing = set(alerts()) - fired
        require(not missing, f"no test makes these fire: {missing}")


def alerts():
    groups = yaml.safe_load((MONITORING / "larder.rules.yaml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def with_prometheus(work, binary, report):
    """larder with a registry with a quota, under some load, with failures."""
    registry = start_registry(work)
    private = start_private_registry()
    # One image for each round of load, so that each round has misses.
    fresh = [images.Image("library/app", str(n), images.index([images.image(f"app{n}", images.AMD64)])) for n in range(40)]
    bad = images.Image("library/bad", "1", images.image("bad", images.AMD64))
    for pushed in (*fresh, bad):
        images.Registry(f"http://127.0.0.1:{UPSTREAM}").push(pushed)
    # Other content of the same length, for a wrong digest.
    layer = bad.root.needs[1]
    spoiled = next((work / "registry").glob(f"**/blobs/sha256/*/{layer.digest.removeprefix('sha256:')}/data"))
    spoiled.write_bytes(bytes(len(layer.body)))
    aside = work / "larder-data/set-aside-20260101T000000Z"
    aside.mkdir(parents=True)
    (aside / "reason.txt").write_text("it did not open\n")

    larder = larder_of_both(work, binary)
    prometheus = start_prometheus(work)
    load(fresh.pop())
    with report.check("monitoring: names, units and labels are as promtool wants them"):
        check_metrics()
    with report.check("monitoring: content that fails verification does not come whole"):
        # An alert about an increase needs a sample before the increase.
        wait_until("Prometheus has looked", lambda: query_of("larder_verify_failures_total"))
        spoil(bad, layer)
    for name in ("LarderVerifyFailures", "LarderStoreSetAside"):
        with report.check(f"monitoring: {name} fires for real"):
            wait_until(f"{name} fires", lambda name=name: firing(name))
    board = json.loads((MONITORING / "dashboard.json").read_text())
    queries = list(expressions(board))
    with report.check("monitoring: the dashboard has what it should"):
        titles = {panel["title"] for panel in board["panels"]}
        wanted = {"Egress saved", "Hit ratio", "Time to first byte, p95", "Quota left", "Store", "Verify failures"}
        require(wanted <= titles, f"no {wanted - titles}")
        require(len(queries) >= 40, f"{len(queries)} queries")
        overlap(board)
    with report.check(f"monitoring: each of the dashboard's {len(queries)} queries returns data"):
        left = queries
        while left and fresh:
            load(fresh.pop())
            left = [(title, query) for title, query in left if not has_data(query)]
        require(not left, f"{len(left)} return nothing, among them {left[:3]}")
    with report.check("monitoring: the alerts are about series that are there"):
        for name, rule in alerts().items():
            for series in set(re.findall(r"\b(?:larder|process)_[a-z_]+|\bup\b", rule["expr"])):
                require(query_of(series), f"{name}: nothing has {series}")
    with report.check("monitoring: the registry goes, its endpoint is left alone, and Prometheus knows"):
        registry.kill()
        wait_until("the circuit breaker is open", breaker_open)
        wait_until("the alert waits for its five minutes", lambda: state("LarderUpstreamLeftAlone") == "pending")
    with report.check("monitoring: larder ends cleanly, and Prometheus knows"):
        status = larder.stop()
        require(status == 0, f"exit status {status}")
        wait_until("the alert waits for its two minutes", lambda: state("LarderDown") == "pending")
    private.shutdown()
    prometheus.stop()


# --- servers ----------------------------------------------------------------------------------------------------


def start_registry(work):
    """Debian's docker-registry, which reports a quota as Docker Hub does."""
    config = work / "registry.json"
    quota = {"RateLimit-Limit": ["100;w=21600"], "RateLimit-Remaining": ["76;w=21600"]}
    config.write_text(
        json.dumps(
            {
                "version": "0.1",
                "log": {"level": "error"},
                "storage": {"filesystem": {"rootdirectory": str(work / "registry")}},
                "http": {"addr": f"127.0.0.1:{UPSTREAM}", "headers": quota},
            }
        )
    )
    ready = lambda: ask("GET", "/v2/", UPSTREAM)[0] == 200  # noqa: E731
    return Process(work, "registry", "docker-registry", "serve", config, ready=ready)


def start_private_registry():
    """A registry without content that requires a token."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/token"):
                return self.answer(200, b'{"token":"for-a-test"}')
            if self.headers["Authorization"] == "Bearer for-a-test":
                return self.answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
            realm = f'Bearer realm="http://127.0.0.1:{PRIVATE}/token",service="private"'
            return self.answer(401, b"", realm)

        do_HEAD = do_GET

        def answer(self, status, body, challenge=None):
            self.send_response(status)
            if challenge:
                self.send_header("WWW-Authenticate", challenge)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", PRIVATE), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def larder_of_both(work, binary):
    """A server in front of both registries, which scrubs its content continuously."""
    sections = f"""
[cache]
tag_ttl = "1s"

[scrub]
every = "5s"

[upstream."docker.io"]
endpoints = ["http://127.0.0.1:{UPSTREAM}"]
default = true

[upstream."private.test"]
endpoints = ["http://127.0.0.1:{PRIVATE}"]
"""
    return start_larder(work, binary, sections)


def start_prometheus(work):
    """Prometheus with the configuration of deploy/, another target and shorter intervals."""
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": EVERY, "evaluation_interval": EVERY, "scrape_timeout": EVERY}
    config["rule_files"] = [str(MONITORING / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{ADMIN}"]
    path = work / "prometheus.json"  # JSON is YAML
    path.write_text(json.dumps(config))
    options = (f"--config.file={path}", f"--storage.tsdb.path={work / 'prometheus'}")
    listen = f"--web.listen-address=127.0.0.1:{PROMETHEUS}"
    ready = lambda: ask("GET", "/-/ready", PROMETHEUS)[0] == 200  # noqa: E731
    return Process(work, "prometheus", "prometheus", *options, listen, ready=ready)


# --- load and failures ------------------------------------------------------------------------------------------


def load(image):
    """Pulls all content of an image several times: first misses, then hits."""
    base = f"/v2/{image.repository}"
    for _ in range(5):
        ask("GET", f"{base}/manifests/{image.tag}", Accept=ACCEPT)
        for content in image.walk():
            ask("GET", f"{base}/{'manifests' if content.is_manifest() else 'blobs'}/{content.digest}", Accept=ACCEPT)
        ask("GET", f"{base}/manifests/never", Accept=ACCEPT)
        ask("GET", f"{base}/tags/list")
        # Each request has another tag, because a missing tag is remembered.
        ask("GET", f"/v2/private.test/app/manifests/{time.monotonic_ns()}", Accept=ACCEPT)
        # A rate needs requests between the samples of Prometheus.
        time.sleep(0.2)


def breaker_open():
    """Requests content that is not cached, and returns true if three failures opened the circuit breaker."""
    ask("GET", f"/v2/library/app/manifests/{time.monotonic_ns()}", Accept=ACCEPT)
    return re.search(rb"^larder_upstream_endpoint_open\{.*\} 1$", metrics(), re.MULTILINE)


def spoil(image, layer):
    before = counter(b"larder_verify_failures_total")
    ask("GET", f"/v2/{image.repository}/manifests/{image.tag}", Accept=ACCEPT)
    try:
        status, _, body = ask("GET", f"/v2/{image.repository}/blobs/{layer.digest}")
    except (http.client.IncompleteRead, ConnectionResetError):
        pass  # A small body may be found wrong before the head of the answer is sent.
    else:
        require(status >= 500 and body != layer.body, f"{status} with {len(body)} bytes")
    wait_until("it is counted", lambda: counter(b"larder_verify_failures_total") > before)


def metrics():
    return ask("GET", "/metrics", ADMIN)[2]


def counter(name):
    return sum(float(line.rsplit(b" ", 1)[1]) for line in metrics().splitlines() if line.startswith(name + b"{"))


def check_metrics():
    done = subprocess.run(("promtool", "check", "metrics"), input=metrics(), capture_output=True)
    require(done.returncode == 0 and not done.stderr + done.stdout, (done.stderr + done.stdout).decode()[:500])


# --- results of Prometheus --------------------------------------------------------------------------------------


def api(path, **parameters):
    status, _, body = ask("GET", f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}", PROMETHEUS)
    answer = json.loads(body)
    require(status == 200 and answer["status"] == "success", f"{path} {parameters}: {answer.get('error', status)}")
    return answer["data"]


def query_of(query):
    return api("query", query=query)["result"]


def has_data(query):
    """Returns true if a value is a number. A division by zero is not."""
    return any(sample["value"][1] not in ("NaN", "+Inf", "-Inf") for sample in query_of(query))


def state(name):
    """State of the most advanced alert. `None` if no alert is pending or firing."""
    found = [alert for alert in api("alerts")["alerts"] if alert["labels"]["alertname"] == name]
    for alert in found:
        for text in alert["annotations"].values():
            require("error expanding" not in text and "<no value>" not in text, text)
    return min((alert["state"] for alert in found), default=None)


def firing(name):
    return state(name) == "firing"


def expressions(board):
    """(title, query) as Grafana sends it with the default variables."""
    stands_for = {"$__rate_interval": "15s", "$__range": "5m", "$job": ".*", "$instance": ".*"}
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"]
            for name, value in stands_for.items():
                query = query.replace(name, value)
            if "$" in query:
                raise Failed(f"{panel['title']}: what does {query} stand for?")
            yield panel["title"], query


def overlap(board):
    taken = {}
    for panel in board["panels"]:
        at = panel["gridPos"]
        require(at["x"] + at["w"] <= 24, f"{panel['title']} is too far to the right")
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                require((x, y) not in taken, f"{panel['title']} lies on {taken.get((x, y))}")
                taken[x, y] = panel["title"]
