//! Lists that clients ask for: tags, repositories and referrers.

pub(in crate::cache) mod catalog;
pub(in crate::cache) mod referrers;
pub(in crate::cache) mod tags;
