//! What the black-box tests stand on: a scripted registry, content for it, the real binary, and a plain client.
//!
//! Nothing here sleeps to wait for something: a test waits for a request to arrive, for a gate to be reached,
//! for a log line, or for bytes. Every wait has an end and says what it waited for.

// Each test file compiles this module for itself and uses a part of it; and test code may panic.
#![allow(dead_code, unreachable_pub, unused_imports)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::format_push_string, clippy::cast_precision_loss)]

pub mod client;
pub mod collector;
pub mod content;
pub mod docker;
pub mod folder;
pub mod house;
pub mod larder;
pub mod listener;
pub mod lists;
pub mod port;
pub mod proxy;
pub mod registry;
pub mod script;
pub mod secure;
pub mod timed;
pub mod tls;
pub mod verb;
pub mod wire;

pub use client::{Answer, Client, Transfer};
pub use collector::Collector;
pub use content::{Blob, Document, Image, Index};
pub use docker::Helpers;
pub use larder::{Larder, Setup};
pub use port::Port;
pub use registry::{Auth, Registry, Seen};
pub use script::{Fault, Gate, When};
pub use secure::Issued;
pub use timed::Timed;
pub use tls::TlsServer;

use std::time::{Duration, Instant};

/// No wait in any test is longer than this; a healthy run comes nowhere near it.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Tries until `check` is content, yielding between tries; for what can only be observed by asking again.
#[track_caller]
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < end, "waited {PATIENCE:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A small generator (xorshift64*), so that runs can be repeated from their seed.
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

    /// A number in `0..end`.
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
