#!/usr/bin/env bash
# Runs the test command N times (default 20) beside two busy loops and a process that writes to the disk without pause.
# Prints the failed tests of each run. A test that fails here depends on the speed of the machine.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
runs=${1:-20} failed=0
logs=$(mktemp -d /tmp/larder-under-load-XXXXXX)
cargo test --locked --no-run || exit

load=()
stop() { kill "${load[@]}" 2>/dev/null; rm -f "$logs/written"; }
trap stop EXIT
for _ in 1 2; do
    while :; do :; done &
    load+=($!)
done
while :; do dd if=/dev/zero of="$logs/written" bs=1M count=256 conv=fsync status=none; done &
load+=($!)

for ((run = 1; run <= runs; run++)); do
    began=$SECONDS
    if cargo test --locked --no-fail-fast >"$logs/$run" 2>&1; then
        rm -f "$logs/$run"
        result=passed
    else
        failed=$((failed + 1)) result="FAILED: $(grep -oP '^test \K\S+(?= \.\.\. FAILED)' "$logs/$run" | paste -sd' ')"
    fi
    printf 'run %d of %d: %s (%d s)\n' "$run" "$runs" "$result" $((SECONDS - began))
done
printf '%d of %d runs failed; the output of these is in %s\n' "$failed" "$runs" "$logs"
((failed == 0))
