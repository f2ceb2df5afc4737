//! What is held, for who looks on: asks no upstream, and counts as nobody's request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::oci::{Digest, Referrers, Repository, Tag};
use crate::store::{Counts, StoreError, StoredManifest, TagFact};

use crate::cache::freshness::{self, Freshness};
use crate::cache::lists::referrers;
use crate::cache::memory::CheckedPointer;
use crate::cache::{Cache, CacheError, Pointer, Shared, TagKey, blocking};

/// A view of what is held. All of it may touch the disk.
#[derive(Debug)]
pub struct CacheView<'a>(&'a Shared);

/// How a tag stands with its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagStatus {
    /// What its age calls for.
    pub freshness: Freshness,
    /// How long ago the upstream confirmed it, where that can be said.
    pub age: Option<Duration>,
    /// Whether it is served while the upstream cannot be asked.
    pub served_offline: bool,
}

impl Cache {
    /// Looks at what is held, off the async threads.
    pub async fn view<T, F>(&self, view: F) -> Result<T, CacheError>
    where
        T: Send + 'static,
        F: FnOnce(CacheView<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let shared = Arc::clone(&self.0);
        blocking(move || view(CacheView(&shared))).await
    }
}

impl CacheView<'_> {
    /// What time it is, in milliseconds since 1970.
    pub fn now(&self) -> u64 {
        self.0.clock.now_millis()
    }

    /// How much is held.
    pub fn census(&self) -> Counts {
        self.0.store.counts()
    }

    /// Every tag held, of one repository or of all that may be pulled.
    pub fn tagged(&self, only: Option<&Repository>) -> Result<Vec<(Repository, Tag, TagFact)>, StoreError> {
        let mut found = self.0.store.tagged(only)?;
        found.retain(|(repository, ..)| self.is_served(repository));
        Ok(found)
    }

    /// Every manifest held that a repository is linked to, of one repository or of all that may be pulled.
    pub fn linked_manifests(
        &self,
        only: Option<&Repository>,
    ) -> Result<Vec<(Repository, Digest)>, StoreError> {
        let mut found = self.0.store.linked_manifests(only)?;
        found.retain(|(repository, _)| self.is_served(repository));
        Ok(found)
    }

    /// What a tag stands for.
    pub fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<TagFact>, StoreError> {
        self.0.store.tag(repository, tag, None)
    }

    /// What a tag stands for to clients that accept only some types: the types, and the fact.
    pub fn variants(&self, repository: &Repository, tag: &Tag) -> Result<Vec<(String, TagFact)>, StoreError> {
        self.0.store.variants(repository, tag)
    }

    /// A manifest that a repository may serve.
    pub fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<StoredManifest>, StoreError> {
        match self.0.store.linked(repository, digest)? {
            Some(_) => whole(self.0.store.manifest(digest)),
            None => Ok(None),
        }
    }

    /// The size of a blob that a repository may serve and whose bytes are there, as far as shows without reading them.
    pub fn blob(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>, StoreError> {
        if self.0.store.linked(repository, digest)?.is_none() {
            return Ok(None);
        }
        let Some(entry) = self.0.store.blob(digest)? else { return Ok(None) };
        Ok(whole(entry.open().map(Some))?.map(|open| open.entry().size()))
    }

    /// The bytes of a blob of at most `most` bytes, such as an image's config.
    pub fn read_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        most: u64,
    ) -> Result<Option<Bytes>, StoreError> {
        if self.0.store.linked(repository, digest)?.is_none() {
            return Ok(None);
        }
        let entry = self.0.store.blob(digest)?.filter(|entry| entry.size() <= most);
        let Some(entry) = entry else { return Ok(None) };
        let Some(open) = whole(entry.open().map(Some))? else { return Ok(None) };
        let mut body = Vec::new();
        while (body.len() as u64) < entry.size() {
            let pieces = open.read(body.len() as u64..entry.size(), most)?;
            if pieces.is_empty() {
                return Ok(None);
            }
            for piece in pieces {
                body.extend_from_slice(&piece);
            }
        }
        Ok(Some(body.into()))
    }

    /// What is known here of what refers to a manifest. That nothing is known does not mean that nothing refers.
    pub fn referrers(&self, repository: &Repository, subject: &Digest) -> Result<Referrers, StoreError> {
        referrers::known(self.0, repository, subject)
    }

    /// When content was last asked for, or came in, in milliseconds since 1970.
    pub fn last_access(&self, digest: &Digest) -> Option<u64> {
        self.0.eviction.last(digest)
    }

    /// How a tag stands now.
    pub fn tag_status(&self, repository: &Repository, tag: &Tag, fact: &TagFact) -> Option<TagStatus> {
        let rules = self.0.rules();
        let settings = rules.upstreams.get(&repository.upstream)?.settings();
        let key = TagKey { repository: repository.clone(), tag: tag.clone(), variant: None };
        // What memory has knows also by a clock that nobody sets.
        let known = self.0.memory.pointers.peek(&Pointer::Tag(key)).filter(|known| known.fact == *fact);
        let age = known.unwrap_or(CheckedPointer { fact: *fact, at: None }).age(&self.0.clock);
        Some(TagStatus {
            freshness: freshness::judge(age, fact.checked_at, settings),
            age,
            served_offline: freshness::judge(age, fact.checked_at, settings) != Freshness::Expired
                || freshness::may_serve_stale(age, settings),
        })
    }

    fn is_served(&self, repository: &Repository) -> bool {
        let rules = self.0.rules();
        rules.upstreams.get(&repository.upstream).is_some() && rules.upstreams.router().admits(repository)
    }
}

/// What is damaged is as good as not there: who asks for it fetches it again.
fn whole<T>(found: Result<Option<T>, StoreError>) -> Result<Option<T>, StoreError> {
    match found {
        Err(StoreError::Damaged(_)) => Ok(None),
        found => found,
    }
}
