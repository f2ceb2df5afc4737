# `just` lists the recipes. Each recipe is a command that also works without just.

# List the recipes.
default:
    @just --list --unsorted

# All stages of CI. Every change must pass them.
ci:
    bash .ci/run

# Start larder with a sample image, and pull it after the upstream is gone.
demo:
    cargo run --release -- demo

# Format the code.
fmt:
    cargo fmt

# Check format and lints.
lint:
    bash .ci/run format clippy

# Run the tests that only need cargo.
test:
    bash .ci/run test

# Run all tests again and again beside two busy loops and a process that fills the disk.
under-load runs="20":
    bash tests/under_load.sh {{runs}}

# Fuzz all targets with random inputs, each for this number of seconds. An hour each takes a night.
fuzz seconds="3600":
    FUZZ_SECONDS={{seconds}} FUZZ_PROFILE=fuzz bash .ci/stages/fuzz

# Fuzz one target guided by coverage (nightly Rust, cargo-bolero), until it is stopped.
fuzz-target target *options:
    cargo +nightly bolero test --engine libfuzzer {{options}} {{target}}

# Build rustdoc, check tables and links.
doc:
    bash .ci/run docs links

# Check licences, duplicate crates and sources.
deny:
    bash .ci/run deny

# Pull with real clients (root, Debian 12).
clients:
    bash .ci/run clients

# Test the status page in Chromium (root, Debian 12).
page:
    bash .ci/run page

# Test the systemd unit in a booted container (root, Debian 12).
unit:
    cargo build --release --locked
    bash tests/deploy/unit.sh

# Compare larder with nginx and docker-registry (root, Debian 12).
bench-peers *parts:
    bash benches/peers/run.sh {{parts}}

# Twenty minutes of load (Zipf distribution) on small stores, with a failing registry and kill -9 every minute.
soak:
    cargo test --release --test soak soak -- --ignored --nocapture

# A million transfers with faults, on a small disk whose free space is checked. Takes half an hour.
faults:
    unshare --map-root-user --mount bash tests/soak/small_disk.sh cargo test --release --test soak faults -- --ignored --nocapture

# Healthy images beside hostile ones, compared with a quiet server. The machine must be idle.
isolation:
    cargo test --release --test soak isolation -- --ignored --nocapture

# Write and evict twenty times the size of a store: no request fails, disk and memory stay constant.
churn:
    cargo test --release --test soak churn -- --ignored --nocapture
