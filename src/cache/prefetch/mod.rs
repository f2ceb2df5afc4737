//! Prefetch: what an index points at is fetched before a client asks for it.

pub(in crate::cache) mod queue;
pub(in crate::cache) mod quota_wait;
pub(in crate::cache) mod walk;
