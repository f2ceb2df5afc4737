//! Read-only view of the cached content, for status pages and the command line. Contacts no upstream and does not update
//! access times.

use std::time::Duration;

use bytes::Bytes;

use crate::cache::freshness::{self, Freshness};
use crate::cache::lists::{KnownReferrers, confirmed_at, known_referrers};
use crate::cache::memory::{CheckTime, CheckedPointer};
use crate::cache::rules::RuleSet;
use crate::cache::storage::Storage;
use crate::clock::Timestamp;
use crate::oci::{Digest, Referrers, Repository, Tag};
use crate::store::{Counts, PointerScope, StoreError, StoreSession, StoredManifest, TagFact};
use crate::store::{Pointer, TagKey};

/// Read-only view of the cached content. Methods may block on the disk.
#[derive(Debug)]
pub struct CacheView<'a> {
    pub(in crate::cache) storage: &'a Storage,
    pub(in crate::cache) rules: &'a RuleSet,
    pub(in crate::cache) session: &'a StoreSession,
}

/// Freshness of a cached tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagStatus {
    /// Freshness by the tag's age.
    pub freshness: Freshness,
    /// Time since the upstream last confirmed the tag; `None` if the clock makes it unknown.
    pub age: Option<Duration>,
    /// True if the tag is served while the upstream is unreachable.
    pub served_offline: bool,
}

impl CacheView<'_> {
    /// Returns the current time.
    pub fn now(&self) -> Timestamp {
        self.storage.clock.now()
    }

    /// Returns the number and size of the cached content.
    pub fn counts(&self) -> Counts {
        self.storage.store.counts()
    }

    /// Returns the cached tags of one repository, or of all configured repositories.
    pub fn tagged(&self, only: Option<&Repository>) -> Result<Vec<(Repository, Tag, TagFact)>, StoreError> {
        let tags = self.session.pointers(PointerScope::Tags(only))?.into_iter();
        let tags = tags.filter_map(|(pointer, fact)| match pointer {
            Pointer::Tag(TagKey { repository, tag, .. }) => Some((repository, tag, fact)),
            Pointer::Referrers(..) => None,
        });
        Ok(tags.filter(|(repository, ..)| self.is_served(repository)).collect())
    }

    /// Returns the cached manifests that one repository, or any configured repository, is linked to.
    pub fn linked_manifests(
        &self,
        only: Option<&Repository>,
    ) -> Result<Vec<(Repository, Digest)>, StoreError> {
        let mut found = Vec::new();
        for (repository, digest) in self.session.links(only, |repository, _| self.is_served(repository))? {
            if self.manifest(&repository, &digest)?.is_some() {
                found.push((repository, digest));
            }
        }
        Ok(found)
    }

    /// Returns the target of a tag.
    pub fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<TagFact>, StoreError> {
        self.session.pointer(&Pointer::tag(repository, tag))
    }

    /// Returns the variants of a tag: the media types that a client accepts, and the target for such clients.
    pub fn variants(&self, repository: &Repository, tag: &Tag) -> Result<Vec<(String, TagFact)>, StoreError> {
        let variants = self.session.pointers(PointerScope::Variants(repository, tag))?.into_iter();
        let variants = variants.filter_map(|(pointer, fact)| match pointer {
            Pointer::Tag(TagKey { variant: Some(types), .. }) => Some((types, fact)),
            Pointer::Tag(_) | Pointer::Referrers(..) => None,
        });
        Ok(variants.collect())
    }

    /// Returns a manifest that the repository is linked to.
    pub fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<StoredManifest>, StoreError> {
        match self.session.access(repository, digest)? {
            Some(_) => none_if_damaged(self.session.manifest(digest)),
            None => Ok(None),
        }
    }

    /// Returns the size of a blob that the repository is linked to. Checks that the bytes exist, and does not read them.
    pub fn blob(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>, StoreError> {
        if self.session.access(repository, digest)?.is_none() {
            return Ok(None);
        }
        let Some(entry) = self.session.blob(digest)? else { return Ok(None) };
        Ok(none_if_damaged(entry.open().map(Some))?.map(|open| open.entry().size()))
    }

    /// Returns the bytes of a blob of at most `size_max` bytes, such as an image's config.
    pub fn read_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        size_max: u64,
    ) -> Result<Option<Bytes>, StoreError> {
        if self.session.access(repository, digest)?.is_none() {
            return Ok(None);
        }
        let entry = self.session.blob(digest)?.filter(|entry| entry.size() <= size_max);
        let Some(entry) = entry else { return Ok(None) };
        let Some(open) = none_if_damaged(entry.open().map(Some))? else { return Ok(None) };
        let mut body = Vec::new();
        while (body.len() as u64) < entry.size() {
            let chunks = open.read(body.len() as u64..entry.size(), size_max)?;
            if chunks.is_empty() {
                return Ok(None);
            }
            for chunk in chunks {
                body.extend_from_slice(&chunk);
            }
        }
        Ok(Some(body.into()))
    }

    /// Returns the cached referrers of a manifest. An empty list does not mean that the upstream has none: see
    /// [`known_referrers`](Self::known_referrers).
    pub fn referrers(&self, repository: &Repository, subject: &Digest) -> Result<Referrers, StoreError> {
        Ok(self.known_referrers(repository, subject)?.referrers)
    }

    /// Returns the referrers of a manifest that are known without contacting the upstream, with the time of the last check.
    pub fn known_referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<KnownReferrers, StoreError> {
        known_referrers(self.session, repository, subject)
    }

    /// Returns true if a request for the referrers of a manifest gets an answer while the upstream is unreachable.
    pub fn serves_referrers_offline(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<bool, StoreError> {
        let Some(upstream) = self.rules.upstreams.get(&repository.upstream) else { return Ok(false) };
        let is_kept = |checked_at: Timestamp| {
            let age = CheckTime { checked_at, at: None }.age(&self.storage.clock);
            freshness::may_serve_stale(age, upstream.settings())
        };
        // Most lists need not be read for this.
        if confirmed_at(self.session, repository, subject)?.is_some_and(is_kept) {
            return Ok(true);
        }
        let known = self.known_referrers(repository, subject)?;
        Ok(known.has_cached || known.checked_at.is_some_and(is_kept))
    }

    /// Returns the last access to content, or the time at which it was stored.
    pub fn last_access(&self, digest: &Digest) -> Option<Timestamp> {
        self.storage.content.last_access(digest)
    }

    /// Returns the freshness of a tag; `None` if its upstream is no longer configured.
    pub fn tag_status(&self, repository: &Repository, tag: &Tag, fact: &TagFact) -> Option<TagStatus> {
        let rules = self.rules;
        let settings = rules.upstreams.get(&repository.upstream)?.settings();
        let key = TagKey { repository: repository.clone(), tag: tag.clone(), variant: None };
        // A pointer in memory has its age also by the monotonic clock, which cannot be set.
        let checked =
            self.storage.memory.pointers.peek(&Pointer::Tag(key)).filter(|checked| checked.fact == *fact);
        let age = checked.unwrap_or(CheckedPointer { fact: *fact, at: None }).age(&self.storage.clock);
        let freshness = freshness::judge(age, fact.checked_at, settings);
        let served_offline = freshness != Freshness::Expired || freshness::may_serve_stale(age, settings);
        Some(TagStatus { freshness, age, served_offline })
    }

    /// Returns true if the configuration permits pulls from the repository.
    fn is_served(&self, repository: &Repository) -> bool {
        let rules = self.rules;
        rules.upstreams.get(&repository.upstream).is_some() && rules.upstreams.router().admits(repository)
    }
}

/// Treats damaged content as missing: the next request fetches it again.
fn none_if_damaged<T>(found: Result<Option<T>, StoreError>) -> Result<Option<T>, StoreError> {
    match found {
        Err(StoreError::Damaged(_)) => Ok(None),
        found => found,
    }
}
