//! Prefetch: the children of an index are fetched before a client requests them, and for chosen platforms their blobs.

mod prefetcher;
mod quota_wait;
mod unstored_blobs;
mod upstream_slots;
mod walk;

pub(super) use prefetcher::Prefetcher;
