//! Maintenance of the cached content, and read-only views of it, for timers, the command line and the status pages.

pub(in crate::cache) mod gc;
pub(in crate::cache) mod import;
mod import_lists;
pub(in crate::cache) mod remove;
pub(in crate::cache) mod scrub;
pub(in crate::cache) mod status;
pub(in crate::cache) mod view;
