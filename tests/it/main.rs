//! The black-box tests: one program, so that its dependencies are linked once. A module is a subject.
//!
//! `cargo test --test it SUBJECT::` runs one subject. Tests that need root, an optimised build or much time are ignored;
//! `.ci/run` runs them.

// Test code may panic: a test that cannot be set up fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::float_cmp,
    clippy::format_push_string,
    clippy::print_stdout
)]

mod absences;
mod admission;
mod api;
mod breaker;
mod certificates;
mod children;
mod client_limits;
mod cold_path;
mod completeness;
mod config;
mod conformance;
mod corruption;
mod crash;
mod damage;
mod demo;
mod doctor;
mod encoding;
mod endpoints;
mod eviction;
mod failing_disk;
mod fault_table;
mod faults;
mod full_disk;
mod fuzz;
mod garbage;
mod ghcr;
mod hours;
mod inline;
mod inspection;
mod isolation;
mod jobs;
mod layers;
mod lists;
mod log;
mod loops;
mod manifests;
mod manual;
mod memory;
mod metrics;
mod multipart;
mod negotiation;
mod openapi;
mod ports;
mod proxy;
mod pullable;
mod quirks;
mod quota;
mod ranges;
mod readers;
mod referrers;
mod reload;
mod rights;
mod routing;
mod scripted;
mod scrub;
mod setup;
mod sizes;
mod slow_fills;
mod source;
mod start;
mod status;
mod store_kinds;
mod support;
mod systemd;
mod traces;
mod transfer;
mod trouble;
mod types;
mod ui;
mod unverifiable;
mod upstream;
