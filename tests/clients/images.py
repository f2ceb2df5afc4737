#!/usr/bin/env python3
"""Builds the images of the client tests: the same bytes on every run, with the standard library only.

Usage:  images.py push http://127.0.0.1:5100 [SET]      images.py list [SET]
"""

import gzip
import hashlib
import http.client
import io
import json
import random
import sys
import tarfile
import urllib.parse
from dataclasses import dataclass, field

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = OCI_LAYER + "+gzip"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
MIB = 1 << 20
MANIFEST_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)

AMD64 = {"architecture": "amd64", "os": "linux"}
ARM64 = {"architecture": "arm64", "os": "linux", "variant": "v8"}
ARMV7 = {"architecture": "arm", "os": "linux", "variant": "v7"}


def digest(body):
    return "sha256:" + hashlib.sha256(body).hexdigest()


def document(value):
    """JSON with unusual spacing, so that serialising it again changes the digest."""
    return json.dumps(value, indent=3, separators=(",", " : ")).encode() + b"\n"


@dataclass
class Content:
    """A manifest or blob with its media type."""

    media_type: str
    body: bytes
    platform: dict = None
    needs: list = field(default_factory=list)

    def __post_init__(self):
        self.digest = digest(self.body)

    def descriptor(self):
        known = {"mediaType": self.media_type, "digest": self.digest, "size": len(self.body)}
        if self.platform:
            known["platform"] = self.platform
        return known

    def is_manifest(self):
        return self.media_type in MANIFEST_TYPES


@dataclass
class Image:
    """One tag of one repository, with all its content."""

    repository: str
    tag: str
    root: Content

    def walk(self):
        """All content in the order of pushing: a manifest comes after its content."""
        seen, order = set(), []

        def visit(content):
            if content.digest in seen:
                return
            seen.add(content.digest)
            for needed in content.needs:
                visit(needed)
            order.append(content)

        visit(self.root)
        return order

    def manifests(self):
        return [content for content in self.walk() if content.is_manifest()]

    def name(self):
        return f"{self.repository}:{self.tag}"


def layer_tar(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, body in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(body), 1_600_000_000, 0o644
            tar.addfile(entry, io.BytesIO(body))
    return out.getvalue()


def noise(seed, size):
    """Random bytes. Equal seeds give equal bytes."""
    source, part = random.Random(seed), 64 * MIB
    return b"".join(source.randbytes(min(part, size - at)) for at in range(0, size, part))


def image(seed, platform, docker=False, sizes=(40_000,), compressed=True):
    """A manifest for one platform, with a layer of each size."""
    layers, diffs = [], []
    for number, size in enumerate(sizes):
        what = f"{seed} {platform['architecture']} {number}"
        tar = layer_tar([(f"etc/layer-{number}", (what + "\n").encode()), (f"data/{number}", noise(what, size))])
        diffs.append(digest(tar))
        if compressed:
            body = gzip.compress(tar, 6, mtime=0)
            layers.append(Content(DOCKER_LAYER_GZIP if docker else OCI_LAYER_GZIP, body))
        else:
            layers.append(Content(OCI_LAYER, tar))
    config = Content(
        DOCKER_CONFIG if docker else OCI_CONFIG,
        document(
            {
                "created": "2020-09-13T12:26:40Z",
                **platform,
                "config": {"Cmd": ["/bin/true"], "Labels": {"made-for": seed}},
                "rootfs": {"type": "layers", "diff_ids": diffs},
                "history": [{"created": "2020-09-13T12:26:40Z", "created_by": seed} for _ in layers],
            }
        ),
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
        "config": config.descriptor(),
        "layers": [layer.descriptor() for layer in layers],
    }
    return Content(manifest["mediaType"], document(manifest), platform, [config, *layers])


def index(children, docker=False):
    value = {
        "schemaVersion": 2,
        "mediaType": DOCKER_LIST if docker else OCI_INDEX,
        "manifests": [child.descriptor() for child in children],
    }
    return Content(value["mediaType"], document(value), None, children)


def artifact(seed, subject):
    """An artifact with the subject `subject`."""
    empty = Content(OCI_EMPTY, b"{}")
    payload = Content("application/spdx+json", document({"spdxVersion": "SPDX-2.3", "name": seed}))
    value = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/spdx+json",
        "config": empty.descriptor(),
        "layers": [payload.descriptor()],
        "subject": subject.descriptor(),
        "annotations": {"org.opencontainers.image.created": "2020-09-13T12:26:40Z"},
    }
    return Content(OCI_MANIFEST, document(value), None, [empty, payload])


def default_registry():
    """Images in the registry that replaces docker.io."""
    multi = index([image("multi", AMD64), image("multi", ARM64)])
    return [
        Image("library/multi", "oci", multi),
        Image("library/multi", "sbom", artifact("multi", multi)),
        Image("library/list", "latest", index([image("list", p, docker=True) for p in (AMD64, ARM64, ARMV7)], True)),
        Image("library/single", "v2s2", image("single", AMD64, docker=True)),
        Image("library/nested", "latest", index([index([image("nested", AMD64), image("nested", ARM64)])])),
        # No test requests the children of this index, so they are only cached if the server prefetched them.
        Image("library/shy", "latest", index([image("shy", p) for p in (AMD64, ARM64, ARMV7)])),
        Image("team/deep/path/big", "64m", image("big", AMD64, sizes=(64 * MIB, MIB), compressed=False)),
    ]


def other_registry():
    """Images in the second registry."""
    return [Image("org/tool", "1.0", index([image("tool", AMD64), image("tool", ARM64)]))]


SETS = {"default": default_registry, "other": other_registry}


class Registry:
    """Client for the push requests of the API."""

    def __init__(self, url):
        self.url = urllib.parse.urlsplit(url)

    def request(self, method, path, body=None, headers=None, host=None):
        connection = http.client.HTTPConnection(host or self.url.netloc, timeout=120)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def push_blob(self, repository, blob):
        if self.request("HEAD", f"/v2/{repository}/blobs/{blob.digest}")[0] == 200:
            return
        status, headers, body = self.request("POST", f"/v2/{repository}/blobs/uploads/")
        if status != 202:
            raise RuntimeError(f"{repository}: an upload was refused with {status}: {body[:200]!r}")
        where = urllib.parse.urlsplit(headers["Location"])
        query = "&".join(part for part in (where.query, "digest=" + urllib.parse.quote(blob.digest)) if part)
        sent = {"Content-Type": "application/octet-stream", "Content-Length": str(len(blob.body))}
        status, _, body = self.request("PUT", f"{where.path}?{query}", blob.body, sent, where.netloc or None)
        if status != 201:
            raise RuntimeError(f"{repository}: {blob.digest} was refused with {status}: {body[:200]!r}")

    def push_manifest(self, repository, reference, content):
        sent = {"Content-Type": content.media_type}
        status, _, body = self.request("PUT", f"/v2/{repository}/manifests/{reference}", content.body, sent)
        if status != 201:
            raise RuntimeError(f"{repository}:{reference} was refused with {status}: {body[:200]!r}")

    def push(self, image):
        for content in image.walk():
            if not content.is_manifest():
                self.push_blob(image.repository, content)
            elif content is not image.root:
                self.push_manifest(image.repository, content.digest, content)
        self.push_manifest(image.repository, image.tag, image.root)


def main(arguments):
    if arguments[:1] == ["push"] and len(arguments) in (2, 3):
        images = SETS[(arguments[2:] or ["default"])[0]]()
        registry = Registry(arguments[1])
        for pushed in images:
            registry.push(pushed)
    elif arguments[:1] == ["list"]:
        images = SETS[(arguments[1:] or ["default"])[0]]()
    else:
        sys.exit(__doc__)
    for made in images:
        print(made.name(), made.root.digest, made.root.media_type)
        for content in made.walk()[:-1]:
            print("   ", content.digest, content.media_type, len(content.body))


if __name__ == "__main__":
    main(sys.argv[1:])
