//! Names whose content an upstream may change at any time: tags and lists of referrers.

use crate::oci::{Digest, Repository, Tag, UpstreamName};

/// Tag of a repository, as seen by clients that accept certain media types.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TagKey {
    /// The repository.
    pub repository: Repository,
    /// The tag.
    pub tag: Tag,
    /// The media types that the upstream is asked for; `None` for the canonical list.
    pub variant: Option<String>,
}

/// Name that an upstream may point at other content at any time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pointer {
    /// A tag, or one of its variants.
    Tag(TagKey),
    /// The list of the referrers of a manifest.
    Referrers(Repository, Digest),
}

impl Pointer {
    /// Returns the pointer of a tag for clients that accept every media type.
    pub fn tag(repository: &Repository, tag: &Tag) -> Self {
        Self::Tag(TagKey { repository: repository.clone(), tag: tag.clone(), variant: None })
    }

    /// Returns the repository of the tag or list.
    pub fn repository(&self) -> &Repository {
        match self {
            Self::Tag(TagKey { repository, .. }) | Self::Referrers(repository, _) => repository,
        }
    }
}

/// Selection of pointers.
#[derive(Clone, Copy, Debug)]
pub enum PointerScope<'a> {
    /// All tags with their variants, and all lists of referrers.
    All,
    /// The tags of one repository, or of all repositories, without variants.
    Tags(Option<&'a Repository>),
    /// The variants of one tag.
    Variants(&'a Repository, &'a Tag),
}

/// Sorted list of names in the catalog.
#[derive(Clone, Copy, Debug)]
pub enum NameList<'a> {
    /// The tags of a repository.
    Tags(&'a Repository),
    /// The repositories of an upstream that have a tag.
    Repositories(&'a UpstreamName),
}
