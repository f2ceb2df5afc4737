//! Manifests and indexes, by digest and by tag.

pub(in crate::cache) mod answer;
pub(in crate::cache) mod by_digest;
pub(in crate::cache) mod referrers_index;
pub(in crate::cache) mod resolve;
pub(in crate::cache) mod verify;
