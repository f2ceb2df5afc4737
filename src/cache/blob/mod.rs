//! Blobs by digest: found in the store, or filled from an upstream, and read at each client's pace.

mod answer;
mod blobs;
mod download;
mod fetch;
mod fill;
mod find;
#[cfg(test)]
mod fuzz;
mod pace;
mod passthrough;
mod reader;
mod unverifiable;
mod write_pipeline;

pub use answer::{BlobAnswer, BlobSource};
pub(super) use blobs::Blobs;
pub use fetch::FetchProgress;
pub use reader::BlobReader;
pub use unverifiable::UnverifiableBlob;
