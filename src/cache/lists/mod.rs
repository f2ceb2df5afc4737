//! Lists of tags and of referrers.

pub(in crate::cache) mod referrers;
pub(in crate::cache) mod tags;
