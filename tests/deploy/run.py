#!/usr/bin/env python3
"""Checks deploy/: the unit, the image, the manifests, the snippets, the dashboard and the alerts.

    python tests/deploy/run.py [--larder PROGRAM] [--only files|monitoring|image] [--keep]

Needs root, Linux, the packages in requirements.txt, a static larder, and Debian's prometheus, docker-registry, buildah,
podman, crun and systemd; to render manifests kubectl 1.27, kustomize 5 or Go. Servers run in network, mount and process
namespaces of their own, as in the client tests.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clients"))
import files  # noqa: E402
import image  # noqa: E402
import monitoring  # noqa: E402
from servers import Failed, in_namespaces, run  # noqa: E402

PARTS = ("files", "monitoring", "image")


def report_of_checks():
    """Returns the report class of the client tests, whose file has the same name as this one."""
    import importlib.util

    path = Path(__file__).resolve().parents[1] / "clients/run.py"
    spec = importlib.util.spec_from_file_location("clients_run", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Report()


def ended(report, part):
    print(f"deploy {part}: {report.passed} passed, {report.failed} failed", flush=True)
    return 1 if report.failed or not report.passed else 0


def outside(binary, parts, keep):
    """Runs each part, also after the failure of another part."""
    failed = 0
    for part in parts:
        if part == "files":
            report = report_of_checks()
            files.all_of(report, binary)
            monitoring.rules(report)
            failed += ended(report, part)
        else:
            arguments = ("--larder", binary, "--only", part)
            failed += in_namespaces(f"larder-deploy-{part}-", Path(__file__).resolve(), arguments, keep) != 0
    return failed


def main():
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", default=root / "target/x86_64-unknown-linux-gnu/debug/larder", type=Path)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--keep", action="store_true", help="leave logs and stores where they are")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    binary = options.larder.resolve()

    if options.inside:
        run("ip", "link", "set", "lo", "up")
        report = report_of_checks()
        try:
            if options.only == "monitoring":
                monitoring.with_prometheus(options.inside, binary, report)
            else:
                image.built_and_run(options.inside, binary, report)
        except (Failed, OSError, RuntimeError) as error:
            report.failed += 1
            print(f"FAIL the run broke off: {error}", flush=True)
        return ended(report, options.only)

    needed = ("unshare", "ip", "strip", "docker-registry", "prometheus", "promtool", "buildah", "podman", "crun")
    missing = [program for program in (*needed, "systemd-analyze") if not shutil.which(program)]
    if missing or os.geteuid() != 0 or not os.access(binary, os.X_OK):
        sys.exit(f"needs root, {binary}, and these programs that are missing: {' '.join(missing) or 'none'}")
    return 1 if outside(binary, [options.only] if options.only else PARTS, options.keep) else 0


if __name__ == "__main__":
    sys.exit(main())
