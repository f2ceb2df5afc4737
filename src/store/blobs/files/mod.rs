//! Blobs and drafts as files that are named by their digest.

mod body;
mod buffers;
mod content;
pub(in crate::store) mod draft;
pub(in crate::store) mod draft_files;
pub(in crate::store) mod folder;
mod handle;
#[cfg(test)]
mod tests;

pub(in crate::store) use body::FileBody;
pub(in crate::store) use content::FileBlobs;
pub(in crate::store) use draft::FileDraft;
pub use draft_files::{DraftKey, DraftUsage};
pub(in crate::store) use folder::{Files, FoundFile};
