//! Names that an upstream may point at other content at any time: tags and lists of referrers.

pub(super) use crate::store::{Pointer, TagKey};
