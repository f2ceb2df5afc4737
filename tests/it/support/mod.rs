//! Test support for all black-box tests: a scripted registry, its content, the real binary, and a plain client.
//!
//! Tests wait for events, never for a fixed time: a request at the registry, an answer at a [`Gate`], a log line, or
//! bytes. Every wait ends after [`TIME_LIMIT`] at the latest and reports the missing event.

// The soak tests also compile this module and use a part of it. Test code may panic.
#![allow(dead_code, unreachable_pub, unused_imports)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::format_push_string, clippy::cast_precision_loss)]

pub mod certificate;
pub mod client;
pub mod collector;
pub mod content;
pub mod docker;
pub mod fixture;
pub mod folder;
pub mod ghcr;
pub mod hostile;
pub mod in_process;
pub mod larder;
pub mod listener;
pub mod lists;
pub mod port;
pub mod proxy;
pub mod pulls;
pub mod quirks;
pub mod registry;
pub mod script;
pub mod tls;
pub mod verb;
pub mod wire;

pub use certificate::TestCertificate;
pub use client::{Answer, Client, Transfer};
pub use collector::Collector;
pub use content::{Blob, Document, Image, Index};
pub use docker::Helpers;
pub use ghcr::Ghcr;
pub use hostile::{HostileRegistry, Hostility};
pub use in_process::InProcessLarder;
pub use larder::{Larder, Setup};
pub use port::Port;
pub use pulls::Puller;
pub use registry::{Auth, Registry, Seen};
pub use script::{Fault, Gate, When};
pub use tls::TlsServer;

use std::time::{Duration, Instant};

/// Upper limit of every wait in the tests. A wait that reaches it is a hang.
pub const TIME_LIMIT: Duration = Duration::from_mins(1);

/// Polls `check` until it returns true. For states that can only be observed by polling.
#[track_caller]
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + TIME_LIMIT;
    while !check() {
        assert!(Instant::now() < end, "not reached within {TIME_LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Random number generator (xorshift64*) with a seed, so that a run can be repeated.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number in `0..end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(length + 8);
        while out.len() < length {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(length);
        out
    }
}
