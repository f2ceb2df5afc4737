//! Manifests and indexes, by digest and by tag.

mod absences;
mod answer;
mod by_digest;
mod by_tag;
mod inline;
mod referrers_index;
mod resolve;

pub use answer::ManifestAnswer;
pub(super) use answer::{AbsenceAnswer, PointerAnswer};
pub(super) use by_digest::{Children, Manifests, put_manifest};
pub(super) use referrers_index::put_list;
pub(super) use resolve::{Pointers, serves_stale};
