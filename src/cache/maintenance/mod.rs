//! Maintenance of the cached content, and read-only views of it, for timers, the command line and the status pages.

mod import;
mod remove;
pub(super) mod scrub;
mod status;
mod view;

pub use import::{ImportError, Importer};
pub use remove::{RemovalReport, RemovalTarget};
pub use scrub::{DamagedContent, Integrity, ScrubItem, Throttle};
pub use status::{DiskUsage, FillStatus, StoreStatus};
pub use view::{CacheView, TagStatus};
