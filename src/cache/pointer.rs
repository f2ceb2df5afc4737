//! Names that an upstream may point at other content at any time: tags and lists of referrers.

use crate::oci::{Digest, Repository, Tag};
use crate::store::{Store, StoreError, TagFact};

/// A tag of a repository, as seen by clients that accept certain types.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TagKey {
    pub(super) repository: Repository,
    pub(super) tag: Tag,
    /// The media types the upstream is asked for; `None` is our own canonical list.
    pub(super) variant: Option<String>,
}

/// What an upstream may point anew at any time, and what therefore grows old.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Pointer {
    Tag(TagKey),
    /// The list of what refers to a manifest.
    Referrers(Repository, Digest),
}

impl Pointer {
    pub(super) fn repository(&self) -> &Repository {
        match self {
            Self::Tag(TagKey { repository, .. }) | Self::Referrers(repository, _) => repository,
        }
    }

    /// What the store knows of it.
    pub(super) fn noted(&self, store: &Store) -> Result<Option<TagFact>, StoreError> {
        match self {
            Self::Tag(key) => store.tag(&key.repository, &key.tag, key.variant.as_deref()),
            Self::Referrers(repository, subject) => store.referrers_list(repository, subject),
        }
    }
}
