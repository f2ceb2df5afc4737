#!/usr/bin/env bash
# larder beside nginx and docker-registry, on this machine, in one run. Wants root, Debian 12, cargo and a C compiler.
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
cargo build --release --locked
exec python3 benches/peers/peers.py --larder "${CARGO_TARGET_DIR:-target}/release/larder" "$@"
