#!/usr/bin/env python3
"""Compares the tables in deploy/README.md with the program: every metric with its labels, and every alert.

The configuration reference is compared by a test (`tests/it/config/reference.rs`), because that needs the schema.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERIES = re.compile(r"\.(counter|counters|gauge|gauges|histogram|histograms)\(\s*\"(larder_\w+)\"")
# The help text is one string literal, which may span lines and contain escapes.
LABELS = re.compile(r"\"(?:[^\"\\]|\\.)*\"\s*(?:,\s*&\[([^\]]*)\])?", re.DOTALL)


def declared():
    """Labels by metric, as src/telemetry declares them."""
    found = {}
    sources = [ROOT / "src/telemetry.rs", *(ROOT / "src/telemetry").rglob("*.rs")]
    for path in (path for path in sources if path.exists()):
        text = path.read_text()
        for series in SERIES.finditer(text):
            rest = text[series.end():].lstrip().removeprefix(",").lstrip()
            labels = LABELS.match(rest)
            if not labels:
                raise SystemExit(f"{path}: cannot read the declaration of {series[2]}")
            found[series[2]] = tuple(re.findall(r"\"(\w+)\"", labels[1] or ""))
    return found


def rows(manual, heading):
    """The cells of the first table below a heading."""
    section = manual.partition(f"\n### {heading}\n")[2].partition("\n### ")[0].partition("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def faults():
    manual = (ROOT / "deploy/README.md").read_text()
    metrics = {row[0].strip("`"): tuple(re.findall(r"`(\w+)`", row[1])) for row in rows(manual, "Metrics")}
    for name, labels in sorted(declared().items()):
        if name not in metrics:
            yield f"the metric {name} is missing"
        elif metrics[name] != labels:
            yield f"the metric {name} has the labels {labels}, not {metrics[name]}"
    for name in sorted(metrics.keys() - declared().keys()):
        yield f"there is no metric {name}"
    rules = (ROOT / "deploy/monitoring/larder.rules.yaml").read_text()
    alerts = dict(re.findall(r"- alert: (\w+)\n(?:.*\n)*?\s+labels: \{ severity: (\w+) \}", rules))
    written = {row[0].strip("`"): row[1] for row in rows(manual, "Alerts")}
    if alerts.keys() != set(re.findall(r"- alert: (\w+)", rules)):
        yield "larder.rules.yaml: cannot read all severities"
    for name in sorted(alerts.keys() | written.keys()):
        if alerts.get(name) != written.get(name):
            yield f"the alert {name} has the severity {alerts.get(name)}, not {written.get(name)}"


def main():
    found = list(faults())
    for fault in found:
        print(f"deploy/README.md: {fault}", file=sys.stderr)
    print(f"{len(declared())} metrics compared, {len(found)} faults")
    return 1 if found or not declared() else 0


if __name__ == "__main__":
    sys.exit(main())
