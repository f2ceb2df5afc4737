# `just` lists these; every recipe is one command that can be typed without just.

# What there is.
default:
    @just --list --unsorted

# Everything that a change must pass; the same list of stages that CI runs.
ci:
    bash .ci/run

# Start larder with an image of its own and show that it survives its upstream.
demo:
    cargo run --release -- demo

# Put the code into its form.
fmt:
    cargo fmt

# Form and lints.
lint:
    bash .ci/run format clippy

# The tests that need nothing but cargo.
test:
    bash .ci/run test

# Documentation: build rustdoc, check tables and links.
doc:
    bash .ci/run docs links

# Licences, duplicate crates and sources.
deny:
    bash .ci/run deny

# Real clients against larder (root, Debian 12).
clients:
    bash .ci/run clients

# The operator's pages in Chromium (root, Debian 12).
page:
    bash .ci/run page

# The systemd unit under a systemd that boots for it (root, Debian 12).
unit:
    cargo build --release --locked
    bash tests/deploy/unit.sh

# larder beside nginx and docker-registry on this machine (root, Debian 12).
bench-peers *parts:
    bash benches/peers/run.sh {{parts}}

# Twenty minutes of Zipf's images through stores a tenth of their size, a failing registry, and kill -9 every minute.
soak:
    cargo test --release --test soak soak -- --ignored --nocapture

# Twenty times a store's size into it and out again, without trouble: no request fails, disk and memory stay where they are.
churn:
    cargo test --release --test soak churn -- --ignored --nocapture
