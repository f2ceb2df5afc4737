//! Drafts: the growing, unverified bytes of fills, and their commit.

pub(in crate::store) mod budget;
pub(in crate::store) mod commit_queue;
mod progress;
mod reader;
mod window;
mod writer;

pub use commit_queue::CommitPermit;
pub use progress::{DraftEnd, Progress};
pub use reader::{Draft, Follower};
pub use writer::{DraftFile, DraftHasher, DraftWriter, VerifiedDraft};
