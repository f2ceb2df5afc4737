#!/usr/bin/env python3
"""Checks the dependencies against deny.toml (licences, duplicates, sources) and CONTRIBUTING.md (reasons).

Applies the rules of cargo-deny that need no network, in one second. Building cargo-deny takes minutes.
"""

import collections
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def cargo(*arguments):
    return subprocess.run(["cargo", *arguments], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout


def built(target, features):
    """(name, version) of every crate in the build and the tests for a target.

    The metadata of cargo would also contain optional crates that no feature enables.
    """
    shown = cargo("tree", "--locked", "--target", target, *features, "--prefix", "none", "--format", "{p}")
    lines = (line.split() for line in shown.splitlines() if line.strip())
    return {(name, version.removeprefix("v")) for name, version, *_ in lines}


def permitted(expression, allowed):
    """Returns true if the allowed licences satisfy an SPDX expression. `/` is the old form of OR."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    position = 0

    def take():
        nonlocal position
        position += 1
        return tokens[position - 1]

    def at(word):
        return position < len(tokens) and tokens[position].upper() == word

    def one():
        if at("("):
            take()
            value = either()
            if not at(")"):
                raise ValueError(expression)
            take()
            return value
        value = take()
        if at("WITH"):
            take()
            value = f"{value} WITH {take()}"
        return value in allowed

    def both():
        value = one()
        while at("AND"):
            take()
            value = one() and value
        return value

    def either():
        value = both()
        while at("OR"):
            take()
            value = both() or value
        return value

    value = either()
    if position != len(tokens):
        raise ValueError(expression)
    return value


def skipped(package, version, skips):
    for skip in skips:
        name, _, wanted = skip.partition("@")
        if name == package and (version + ".").startswith(wanted + "."):
            return True
    return False


def undocumented(graph):
    """Direct dependencies without a row in CONTRIBUTING.md, and rows that are not a dependency."""
    manifest = next(package for package in graph["packages"] if package["id"] in graph["workspace_members"])
    direct = {dependency["name"] for dependency in manifest["dependencies"]}
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## Dependencies\n")[2].partition("\n## ")[0]
    rows = set()
    for line in section.splitlines():
        if line.startswith("| `"):
            rows.update(re.findall(r"`([^`]+)`", line.split("|")[1]))
    yield from (f"{name}: CONTRIBUTING.md gives no reason for it" for name in direct - rows)
    yield from (f"{name}: CONTRIBUTING.md lists it, but it is not a dependency" for name in rows - direct)


def main():
    rules = tomllib.loads((ROOT / "deny.toml").read_text())
    allowed = set(rules["licenses"]["allow"])
    registries = {"registry+" + url for url in rules["sources"]["allow-registry"]}
    skips = [skip["crate"] for skip in rules["bans"]["skip"]]
    features = ["--all-features"] if rules["graph"].get("all-features") else []
    graph = json.loads(cargo("metadata", "--locked", "--format-version", "1", *features))
    faults, counted = set(undocumented(graph)), set()
    for target in rules["graph"]["targets"]:
        versions = collections.defaultdict(set)
        packages = built(target, features)
        for package in (package for package in graph["packages"] if (package["name"], package["version"]) in packages):
            name = f"{package['name']} {package['version']}"
            counted.add(name)
            versions[package["name"]].add(package["version"])
            if not package["license"] or not permitted(package["license"], allowed):
                faults.add(f"{name}: licence {package['license']} is not in deny.toml's [licenses] allow")
            # A crate without a source is a local folder. Only larder itself may be one.
            if package["source"] not in registries and not (package["source"] is None and package["name"] == "larder"):
                faults.add(f"{name}: comes from {package['source']}, which deny.toml's [sources] does not allow")
        for package, held in versions.items():
            unexplained = {version for version in held if not skipped(package, version, skips)}
            if len(unexplained) > 1:
                listed = ", ".join(sorted(held))
                faults.add(f"{package}: versions {listed}; see `cargo tree -d`, then [bans] skip in deny.toml")
    for fault in sorted(faults):
        print(fault, file=sys.stderr)
    print(f"{len(counted)} crates, {len(faults)} faults (licences, duplicates, sources; no advisories)")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
