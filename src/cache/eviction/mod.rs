//! Eviction: keeps the store within `store.max_size`, and `store.min_free` of its disk free, by deleting the least
//! recently used content.
//!
//! | question | file |
//! |---|---|
//! | in which order is content evicted? | [`policy`] |
//! | how many bytes, and for which limit? | [`budget`] |
//! | which content is evictable? | [`index`] |
//! | when, and what waits for it? | [`evictor`] |
//! | how much may unverified bytes take? | [`budget`], [`draft_space`] |
//!
//! A change of the eviction policy changes these files only. [`content`] has the kinds and sums of content, and [`usage`]
//! its last access and its pins. [`tracker`], [`capacity`] and [`draft_space`] are the state that requests and the evictor
//! share, and [`delete`] is the only place that deletes content from the store.

pub(in crate::cache) mod budget;
pub(in crate::cache) mod capacity;
pub(in crate::cache) mod content;
pub(in crate::cache) mod delete;
pub(in crate::cache) mod draft_space;
pub(in crate::cache) mod evictor;
#[cfg(test)]
mod fuzz;
mod index;
mod policy;
pub(in crate::cache) mod tracker;
pub(in crate::cache) mod usage;
