//! Prefetch: the children of an index, the blobs of attestations and of chosen platforms, and the lists of referrers are
//! fetched before a client requests them.

mod paused_content;
mod prefetcher;
mod quota_wait;
mod upstream_slots;
mod walk;

pub(super) use prefetcher::Prefetcher;
