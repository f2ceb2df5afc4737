//! Blobs by digest: found in the store, or filled from an upstream, and read at each client's pace.

pub(in crate::cache) mod download;
pub(in crate::cache) mod fill;
pub(in crate::cache) mod fills;
pub(in crate::cache) mod find;
pub(in crate::cache) mod reader;
pub(in crate::cache) mod write_pipeline;
