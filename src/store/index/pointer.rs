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

    /// Returns the manifest that the pointer belongs to, and a word for the kind of the pointer: the list of referrers, the
    /// fall-back tag for it, and the tags of signatures, attestations and SBOMs. `None` for other tags.
    ///
    /// The absence of such a pointer is kept in the store, see [`AbsenceFact`](crate::store::AbsenceFact).
    pub fn subject(&self) -> Option<(Digest, &'static str)> {
        match self {
            Self::Referrers(_, subject) => Some((*subject, "list")),
            Self::Tag(TagKey { tag, variant: None, .. }) => {
                let (subject, suffix) = tag.subject()?;
                let (_, kind) = SUBJECT_TAGS.iter().find(|(known, _)| *known == suffix)?;
                Some((subject, *kind))
            }
            Self::Tag(_) => None,
        }
    }

    /// Returns the pointers that are not absent any more if this pointer exists: the pointer itself, and the list of
    /// referrers if this is the fall-back tag for it.
    pub fn refuted_absences(&self) -> impl Iterator<Item = Self> {
        let subject = self.subject();
        let list = subject
            .filter(|(_, kind)| *kind == FALLBACK_TAG)
            .map(|(subject, _)| Self::Referrers(self.repository().clone(), subject));
        subject.is_some().then(|| self.clone()).into_iter().chain(list)
    }
}

/// Kind of the fall-back tag for a list of referrers.
const FALLBACK_TAG: &str = "tag";
/// Suffixes of the tags that belong to one manifest, with their kinds. The suffixes of cosign are `.sig`, `.att` and `.sbom`.
const SUBJECT_TAGS: [(&str, &str); 4] =
    [("", FALLBACK_TAG), (".sig", "tag.sig"), (".att", "tag.att"), (".sbom", "tag.sbom")];

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
