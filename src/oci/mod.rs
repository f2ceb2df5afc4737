//! OCI vocabulary as types: digest, name, tag, media type, manifest. A value exists only if it was parsed successfully.
//!
//! Layer 0: pure functions and data, without I/O and clock. Grammars follow the OCI distribution-spec 1.1 and image-spec
//! 1.1. Deviations of real clients are documented at the item.

pub mod content;
pub mod digest;
pub mod error;
#[cfg(test)]
mod fuzz;
pub mod index_walk;
mod inline;
mod json;
pub mod manifest;
pub mod name;
pub mod pattern;
pub mod referrers;

pub use content::accept::Accept;
pub use content::media::{self, MediaType};
pub use content::range::{ByteRange, RangeRequest};
pub use digest::{Algorithm, Digest, Hasher, UnverifiableDigest};
pub use inline::inline_blobs;
pub use manifest::{Descriptor, Manifest};
pub use name::{Name, Reference, Repository, Tag, UpstreamName};
pub use pattern::{NamePattern, PatternError};
pub use referrers::{Page as ReferrersPage, Referrer, Referrers};
