"""Builds the image from the Dockerfile with an existing binary, runs it, and pulls through it."""

import http.client
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clients"))
import images  # noqa: E402
from servers import Failed, Process, ask, require, run, start_registry, wait_until  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NAME = "localhost/larder:check"
ADMIN, UPSTREAM = 5001, 5100
ACCEPT = ", ".join(images.MANIFEST_TYPES)


def built_and_run(work, binary, report):
    storage = ("--root", work / "containers", "--runroot", work / "run", "--storage-driver", "vfs")
    with report.check("image: it builds around a given binary"):
        build(work, binary, storage)
    with report.check("image: it holds larder, its configuration and an empty folder"):
        contents(work, storage)
    registry = start_registry(work, "registry", UPSTREAM)
    image = images.Image("library/multi", "oci", images.index([images.image("multi", images.AMD64)]))
    images.Registry(f"http://127.0.0.1:{UPSTREAM}").push(image)
    volume = work / "volume"
    volume.mkdir()
    shutil.chown(volume, 65532, 65532)
    podman = ("podman", *storage, "--runtime", "crun", "--cgroup-manager", "cgroupfs", "--events-backend", "file")
    # The settings of compose.yaml and the pods. Name resolution is a line in /etc/hosts, which a static binary must read.
    how = ("--read-only", "--read-only-tmpfs=false", "--cap-drop", "all", "--security-opt", "no-new-privileges")
    host = ("--network", "host", "--cgroups", "disabled", "--pids-limit", "-1", "--add-host", "registry.test:127.0.0.1")
    data = ("--volume", f"{volume}:/data", "--env", "LARDER_UPSTREAM__DOCKER_IO__ENDPOINTS=http://registry.test:5100")
    start = (*podman, "run", "--name", "larder", *how, *host, *data, NAME)
    # Without systemd there are no timed health checks, so they are run below.
    env = {"DISABLE_HC_SYSTEMD": "true"}
    one_hierarchy()
    larder = None
    with report.check("image: it starts without root, with a read-only root file system"):
        larder = Process(work, "larder-image", *start, ready=lambda: ask("GET", "/readyz", ADMIN)[0] == 200, env=env)
    require(larder, "without a container there is nothing to try")
    inside = (*podman, "exec", "larder", "/usr/bin/larder")
    with report.check("image: its process has no root rights and no capabilities"):
        pid = int(run(*podman, "inspect", "--format", "{{.State.Pid}}", "larder"))
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        require(status["Uid"].split() == ["65532"] * 4, status["Uid"])
        require(int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, f"{status['CapEff']} {status['CapBnd']}")
        require(status["NoNewPrivs"] == "1", "it could gain privileges")
        mounts = Path(f"/proc/{pid}/mounts").read_text().splitlines()
        root = next(line.split() for line in mounts if line.split()[1] == "/")
        require("ro" in root[3].split(","), f"the root is {root[3]}")
    with report.check("image: an image is pulled through it, and again without its registry"):
        for _ in range(2):
            pull(image)
            registry.kill()
    check = json.loads(run(*podman, "image", "inspect", NAME))[0]["Healthcheck"]["Test"]
    with report.check("image: its health check succeeds"):
        require(check[:2] == ["CMD", "/usr/bin/larder"], check)
        require(run(*inside, *check[2:]).strip() == "ready", "it says something else")
        run(*podman, "healthcheck", "run", "larder")
    with report.check("image: the command line asks the larder in it, and needs no more than its verb"):
        listed = json.loads(run(*podman, "exec", "larder", "larder", "ls", "--json"))
        require("library/multi" in json.dumps(listed), listed)
    with report.check("image: its health check fails without a server"):
        try:
            run(*podman, "exec", "--env", "LARDER_ADMIN__LISTEN=127.0.0.1:9", "larder", "/usr/bin/larder", *check[2:])
        except Failed as error:
            require("no server answers" in str(error), str(error))
        else:
            raise Failed("it succeeds")
    with report.check("image: it ends cleanly when it is stopped"):
        run(*podman, "stop", "--time", "40", "larder")
        wait_until("it is gone", lambda: larder.process.poll() is not None)
        require(larder.process.returncode == 0, f"exit status {larder.process.returncode}")
        run(*podman, "rm", "larder")


def one_hierarchy():
    """Leaves one kind of control groups in this mount namespace, because crun refuses a system with both kinds."""
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        run("umount", "--recursive", "/sys/fs/cgroup")
        run("mount", "-t", "cgroup2", "none", "/sys/fs/cgroup")


def build(work, binary, storage):
    """Builds in a copy of the files that the Dockerfile reads, so that the working tree is not changed."""
    context = work / "context"
    shutil.copytree(ROOT / "deploy/docker", context / "deploy/docker", ignore=shutil.ignore_patterns("larder"))
    (context / "config").mkdir()
    shutil.copy(ROOT / "config/kubernetes.toml", context / "config")
    run("strip", "-o", context / "deploy/docker/larder", binary)
    file = context / "deploy/docker/Dockerfile"
    how = ("--isolation", "chroot", "--format", "docker", "--pull-never")
    given = ("--ignorefile", f"{file}.dockerignore", "--build-arg", "BINARY=given")
    run("buildah", "build", *storage, *how, *given, "--file", file, "--tag", NAME, context)


def contents(work, storage):
    container = run("buildah", *storage, "from", "--pull-never", NAME).strip().splitlines()[-1]
    root = Path(run("buildah", *storage, "mount", container).strip().splitlines()[-1])
    found = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    found -= {path for path in found if path.split("/")[0] in ("dev", "proc", "sys", "run")}
    require(found == {"usr/bin/larder", "etc/larder/larder.toml", "etc/nsswitch.conf"}, sorted(found))
    kept = (root / "data").stat()
    require((kept.st_uid, kept.st_gid) == (65532, 65532), f"/data is {kept.st_uid}'s")
    require((root / "etc/larder/larder.toml").stat().st_mode & 0o044 == 0o044, "the configuration is not readable")
    run("buildah", *storage, "rm", container)


def pull(image):
    for path in (f"manifests/{image.tag}", *(
        f"{'manifests' if content.is_manifest() else 'blobs'}/{content.digest}" for content in image.walk()
    )):
        status, _, body = ask("GET", f"/v2/{image.repository}/{path}", Accept=ACCEPT)
        require(status == 200, f"{path}: {status} {body[:200]!r}")
        wanted = image.root.digest if path.startswith("manifests/" + image.tag) else path.split("/")[1]
        require(images.digest(body) == wanted, f"{path}: other bytes")
