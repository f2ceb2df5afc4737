//! Lists of tags, of referrers and of repositories.

mod catalog;
mod page;
mod referrers;
mod tags;

pub(super) use catalog::Catalog;
pub use page::{ListResult, NamePage};
pub use referrers::{KnownReferrers, ReferrersAnswer, ReferrersQuery};
pub(super) use referrers::{ReferrersLists, confirmed_at, known_referrers};
pub(super) use tags::TagLists;
