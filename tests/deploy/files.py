"""Static checks of the files in deploy/: schemas, and the properties that the documentation promises."""

import difflib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clients"))
from servers import Failed, require, run  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
# From the first version with native sidecars by default to the newest version with schemas.
VERSIONS = ("1.30.0", "1.37.0")
BESIDE = Path(sys.executable).parent


def all_of(report, binary):
    unit(report, binary)
    kubernetes(report, binary)
    others(report, binary)


# --- systemd ----------------------------------------------------------------------------------------------------


def unit(report, binary):
    source = DEPLOY / "systemd/larder.service"
    with report.check("systemd: the unit verifies"):
        # The unit names a program that is not installed here. The built one is used instead.
        with tempfile.TemporaryDirectory() as folder:
            tried = Path(folder) / source.name
            tried.write_text(source.read_text().replace("/usr/bin/larder", str(binary)))
            said = run("systemd-analyze", "verify", tried)
            require(not said.strip(), said)
    with report.check("systemd: its exposure is at most 1.5 of 10"):
        # The threshold of `security` is in tenths.
        run("systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=15", source)
    with report.check("systemd: it waits for readiness, feeds a watchdog, and outlasts the grace"):
        text = source.read_text()
        for line in ("Type=notify", "WatchdogSec=30s", "DynamicUser=yes", "StateDirectory=larder", "TimeoutStopSec=45s"):
            require(f"\n{line}\n" in text, f"no {line}")


# --- Kubernetes -------------------------------------------------------------------------------------------------


def kustomize():
    """Returns the command that renders a folder. kubectl contains kustomize 5 since 1.27."""
    if shutil.which("kustomize"):
        return ("kustomize", "build")
    if shutil.which("kubectl"):
        said = subprocess.run(("kubectl", "version", "--client"), capture_output=True, text=True).stdout
        if re.search(r"Kustomize Version: v[5-9]", said):
            return ("kubectl", "kustomize")
    if shutil.which("go"):
        return ("go", "run", "sigs.k8s.io/kustomize/kustomize/v5@v5.8.1", "build")
    raise Failed("needs kubectl 1.27, kustomize 5, or Go to run it with")


def rendered(overlay):
    return run(*kustomize(), KUBERNETES / "overlays" / overlay, seconds=300)


def of_kind(documents, kind):
    found = [document for document in documents if document["kind"] == kind]
    require(len(found) == 1, f"{len(found)} of kind {kind}")
    return found[0]


def kubernetes(report, binary):
    work = Path(sys.executable).parents[1] / "rendered"
    work.mkdir(exist_ok=True)
    documents = {}
    for overlay in sorted(path.name for path in (KUBERNETES / "overlays").iterdir()):
        with report.check(f"kubernetes: {overlay} renders, and every object fits its schema"):
            text = rendered(overlay)
            (work / f"{overlay}.yaml").write_text(text)
            documents[overlay] = [document for document in yaml.safe_load_all(text) if document]
            for version in VERSIONS:
                run(BESIDE / "kubernetes-validate", "--strict", "-k", version, work / f"{overlay}.yaml")
    with report.check("kubernetes: schemas find what is wrong"):
        bad = work / "bad.yaml"
        bad.write_text((work / "deployment.yaml").read_text().replace("readOnlyRootFilesystem", "readOnlyRootfs"))
        try:
            run(BESIDE / "kubernetes-validate", "--strict", "-k", VERSIONS[-1], bad)
        except Failed:
            pass
        else:
            raise Failed("a misspelt key passes")
    with report.check("kubernetes: the configuration is config/kubernetes.toml, and larder takes it"):
        wanted = (ROOT / "config/kubernetes.toml").read_text()
        for copy in (KUBERNETES / "base/larder.toml", KUBERNETES / "components/sidecar/larder.toml"):
            difference = difflib.unified_diff(wanted.splitlines(), copy.read_text().splitlines(), lineterm="", n=0)
            require(copy.read_text() == wanted, f"{copy}: {' '.join(difference)}")
            run(binary, "validate", "--config", copy)
    for overlay, objects in documents.items():
        with report.check(f"kubernetes: pods of {overlay} are restricted"):
            for document in objects:
                if document["kind"] in ("Deployment", "DaemonSet", "Job"):
                    restricted(document["spec"]["template"]["spec"])
    with report.check("kubernetes: the Deployment keeps its store on a volume, alone, under the strictest policy"):
        objects = documents["deployment"]
        deployment = of_kind(objects, "Deployment")["spec"]
        volumes = {volume["name"]: volume for volume in deployment["template"]["spec"]["volumes"]}
        require(volumes["data"] == {"name": "data", "persistentVolumeClaim": {"claimName": "larder"}}, volumes["data"])
        require((deployment["replicas"], deployment["strategy"]["type"]) == (1, "Recreate"), "two larders, one store")
        labels = of_kind(objects, "Namespace")["metadata"]["labels"]
        require(labels["pod-security.kubernetes.io/enforce"] == "restricted", labels)
    with report.check("kubernetes: the DaemonSet uses the loopback and the disk of the node, and configures containerd"):
        pod = of_kind(documents["daemonset"], "DaemonSet")["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        require(volumes["data"]["hostPath"]["path"] == "/var/lib/larder", volumes["data"])
        require("emptyDir" not in volumes["data"], volumes["data"])
        ports = {port["name"]: port for port in larder_of(pod)["ports"]}
        require((ports["registry"]["hostIP"], ports["registry"]["hostPort"]) == ("127.0.0.1", 5000), ports)
        require("hostPort" not in ports["admin"], "the operator's port is on the node")
        require(pod["priorityClassName"] == "larder", "no priority")
    with report.check("kubernetes: the init container writes hosts.toml, and does not change foreign files"):
        init_container(documents["daemonset"], work / "node")
    with report.check("kubernetes: the operator's port is in no Service, and closed to all but Prometheus"):
        for overlay in ("deployment", "daemonset"):
            for document in documents[overlay]:
                if document["kind"] == "Service":
                    ports = [port["targetPort"] for port in document["spec"]["ports"]]
                    require(ports == ["registry"], f"{overlay}: {ports}")
            policy = of_kind(documents[overlay], "NetworkPolicy")["spec"]
            require(policy["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "larder"}, policy)
            opened = [rule for rule in policy["ingress"] if any(port["port"] == "admin" for port in rule["ports"])]
            require(len(opened) == 1 and opened[0]["from"], f"{overlay}: {opened}")
    with report.check("kubernetes: the sidecar starts before the builder and is reached from its pod alone"):
        larder = larder_of(of_kind(documents["sidecar"], "Job")["spec"]["template"]["spec"])
        require(larder["restartPolicy"] == "Always", "an init container that must end")
        env = {variable["name"]: variable["value"] for variable in larder["env"]}
        for name in ("LARDER_SERVER__LISTEN", "LARDER_ADMIN__LISTEN"):
            require(env[name].startswith("127.0.0.1:"), env)
        run(binary, "validate", "--config", KUBERNETES / "components/sidecar/larder.toml", env=env)


def larder_of(pod):
    return next(c for c in pod["containers"] + pod.get("initContainers", []) if c["name"] == "larder")


def restricted(pod):
    """Checks the Pod Security Standard of that name for larder's container, and minimal rights for the others."""
    container, context = larder_of(pod), pod.get("securityContext", {})
    own = container["securityContext"]
    require(own.get("runAsNonRoot", context.get("runAsNonRoot")) is True, "larder may run as root")
    require(own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True, own)
    require(own["capabilities"] == {"drop": ["ALL"]}, own)
    profile = own.get("seccompProfile", context.get("seccompProfile"))
    require(profile == {"type": "RuntimeDefault"}, f"seccomp: {profile}")
    require(container["resources"]["requests"] and container["resources"]["limits"]["memory"], "no resources")
    require(pod["automountServiceAccountToken"] is False, "it gets a token for the API server")
    for other in pod["containers"] + pod.get("initContainers", []):
        require("privileged" not in other.get("securityContext", {}), other["name"])
        require(other["resources"]["limits"]["memory"], f"{other['name']}: no limit")
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        require(not pod.get(key), key)


def init_container(objects, work):
    """Runs the script of the DaemonSet with test folders instead of the node's, with the same kind of shell."""
    shutil.rmtree(work, ignore_errors=True)
    config = next(o["data"] for o in objects if o["kind"] == "ConfigMap" and "node.sh" in o["data"])
    for folder in ("larder", "node/certs.d", "node/data"):
        (work / folder).mkdir(parents=True)
    (work / "larder/hosts.toml").write_text(config["hosts.toml"])
    script = re.sub(r"/(node|larder)/", rf"{work}/\1/", config["node.sh"])
    written = work / "node/certs.d/_default/hosts.toml"
    for _ in range(2):
        run("sh", "-c", script)
        require(written.read_text() == config["hosts.toml"], written.read_text())
        require(oct(written.stat().st_mode & 0o777) == "0o644", "not for containerd to read")
        require((work / "node/data").stat().st_uid == 65532, "the store's folder is not larder's")
    written.write_text('server = "https://elsewhere.example.com"\n')
    run("sh", "-c", script)
    require("elsewhere" in written.read_text(), "a foreign file was overwritten")
    require(sorted(path.name for path in written.parent.iterdir()) == ["hosts.toml"], "something was left")


# --- the rest ---------------------------------------------------------------------------------------------------


def others(report, binary):
    schema = (BESIDE / "check-jsonschema", "--builtin-schema")
    with report.check("compose: the file fits its schema, and names files that are there"):
        path = DEPLOY / "docker/compose.yaml"
        run(*schema, "vendor.compose-spec", path)
        services = yaml.safe_load(path.read_text())["services"]
        for name, service in services.items():
            for volume in service["volumes"]:
                source = volume.split(":")[0]
                require(not source.startswith(".") or (path.parent / source).is_file(), f"{name}: no {source}")
            for port in service.get("ports", []):
                require(port.startswith("127.0.0.1:"), f"{name}: {port} is open to the network")
        larder = services["larder"]
        require(larder["read_only"] and larder["cap_drop"] == ["ALL"], "larder could be more restricted")
        run(binary, "validate", "--config", ROOT / "config/docker-host.toml", env=larder["environment"])
    with report.check("docker: it is built by the Rust that the crate asks for"):
        wanted = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["rust-version"]
        require(f"/rust:{wanted}-" in (DEPLOY / "docker/Dockerfile").read_text(), f"not by {wanted}")
    with report.check("docker: what its builder copies is a crate"), tempfile.TemporaryDirectory() as folder:
        copied = re.findall(r"(?m)^COPY (?!--|deploy)(.+) \S+$", (DEPLOY / "docker/Dockerfile").read_text())
        for name in " ".join(copied).split():
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, Path(folder) / name)
        manifest = Path(folder) / "Cargo.toml"
        run("cargo", "metadata", "--locked", "--offline", "--format-version", "1", "--manifest-path", manifest)
    for kind, path, *more in (
        ("vendor.gitlab-ci", DEPLOY / "ci/gitlab-ci.yml", "--data-transform", "gitlab-ci"),
        ("vendor.github-workflows", DEPLOY / "ci/github-actions.yml"),
        ("custom.github-workflows-require-timeout", DEPLOY / "ci/github-actions.yml"),
    ):
        with report.check(f"ci: {path.name} fits {kind}"):
            run(*schema, kind, *more, path)
    with report.check("ci: what the snippets write is what clients read"):
        snippets()
    with report.check("deploy: nothing in it is a secret"):
        for path in DEPLOY.rglob("*"):
            if path.is_file() and path.suffix not in (".json", ".png", ""):
                found = re.search(r"(?im)^\s*-?\s*\"?((\w+_)?(password|token|secret))\"?\s*[:=]\s*\S", path.read_text())
                require(not found, f"{path}: {found and found[0]}")


def snippets():
    """Runs the shell commands of the snippets that write configuration, and checks the result."""
    mirror = "larder.example.internal:5000"
    gitlab = yaml.safe_load((DEPLOY / "ci/gitlab-ci.yml").read_text())
    github = yaml.safe_load((DEPLOY / "ci/github-actions.yml").read_text())
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "larder.conf"
        script = gitlab["buildah"]["before_script"][0].replace("/etc/containers/registries.conf.d/larder.conf", str(target))
        run("sh", "-c", script, env={"LARDER": mirror})
        written = [target.read_text()]
        step = next(step for step in github["jobs"]["podman"]["steps"] if "mirror" in step.get("run", ""))
        run("sh", "-c", step["run"], env={"LARDER": mirror, "HOME": folder})
        written.append((Path(folder) / ".config/containers/registries.conf").read_text())
        for text in written:
            entries = tomllib.loads(text)["registry"]
            found = {entry["prefix"]: entry["mirror"][0]["location"] for entry in entries}
            require(found == {name: f"{mirror}/{name}" for name in ("docker.io", "quay.io")}, found)
        script = gitlab["buildx"]["before_script"][0].replace("buildkitd.toml", f"{folder}/buildkitd.toml")
        run("sh", "-c", script, env={"LARDER": mirror})
        inline = github["jobs"]["buildx"]["steps"][1]["with"]["buildkitd-config-inline"]
        for text in ((Path(folder) / "buildkitd.toml").read_text(), inline.replace("${{ env.LARDER }}", mirror)):
            registry = tomllib.loads(text)["registry"]
            require(registry["docker.io"]["mirrors"] == [f"{mirror}/docker.io"], registry)
            require(registry[mirror] == {"http": True}, registry)
    tomllib.loads((DEPLOY / "ci/gitlab-runner.toml").read_text())
