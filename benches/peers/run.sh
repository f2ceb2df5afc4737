#!/usr/bin/env bash
# Compares larder, nginx and docker-registry on this machine. Needs root, Debian 12, cargo and a C compiler. With Go, the
# newest release of distribution is also measured.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
missing=()
while read -r program package; do
    command -v "$program" >/dev/null || missing+=("$package")
done <<'PROGRAMS'
python3 python3
ip iproute2
unshare util-linux
docker-registry docker-registry
nginx nginx-light
wrk wrk
containerd containerd
skopeo skopeo
PROGRAMS
if ((${#missing[@]})); then
    bash .ci/packages "${missing[@]}"
fi
cargo build --profile dist --locked
target=$(realpath "${CARGO_TARGET_DIR:-target}")
newest=()
if command -v go >/dev/null; then
    registry=$target/peers/registry
    [[ -x $registry ]] || GOBIN=${registry%/*} go install github.com/distribution/distribution/v3/cmd/registry@v3.1.2
    newest=(--distribution "$registry")
fi
exec python3 benches/peers/peers.py --larder "$target/dist/larder" "${newest[@]}" "$@"
