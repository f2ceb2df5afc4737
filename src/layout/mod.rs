//! OCI image layout (image-spec, image-layout.md), in a folder and as a tar: reading and writing.
//!
//! All of it is blocking work. Callers on an async thread use `spawn_blocking`.

mod channel_reader;
mod format;
#[cfg(test)]
mod fuzz;
mod reader;
mod tar_reader;
mod tar_writer;
mod transfer;
mod writer;

pub use channel_reader::{ChannelReader, QUEUE};
pub use format::{
    DOCKER_FILE, IMAGE_NAME, INDEX_FILE, INDEX_MAX, MANIFEST_MAX, MARKER, MARKER_FILE, NO_REFERRERS,
    REFERRERS, annotation, blob_path, digest_of_path,
};
pub use reader::{LayoutFile, LayoutReadError, LayoutReader};
pub use tar_reader::{ArchiveError, EntryKind, TarEntry, TarReader};
pub use tar_writer::{TAR_END, entry_length, file_header, padding};
pub use transfer::{LayoutTar, TransferError, extract};
pub use writer::{LayoutError, LayoutWriter};
