//! The field's vocabulary as types: a digest, name, tag, media type or document exists only if it parsed.
//!
//! Layer 0: pure functions and data, no I/O and no clock. Grammars are those of the OCI distribution-spec 1.1
//! and image-spec 1.1; where a real client differs from the specification the item says so.

pub mod content;
pub mod digest;
pub mod error;
pub mod manifest;
pub mod name;
pub mod pattern;
pub mod referrers;

pub use content::accept::Accept;
pub use content::media::{self, MediaType};
pub use content::range::{ByteRange, RangeRequest};
pub use digest::{Algorithm, Digest, Hasher};
pub use manifest::{Descriptor, Manifest};
pub use name::{Name, Reference, Repository, Tag, UpstreamName};
pub use pattern::{NamePattern, PatternError};
pub use referrers::{Referrer, Referrers};
