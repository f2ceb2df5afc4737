//! Manifests: bytes in pages of their own tree, and the fact that makes them content.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::clock::Timestamp;
use crate::oci::{Digest, MediaType, Repository};
use crate::store::engine::{Engine, StoredManifest};
use crate::store::error::StoreError;
use crate::store::index::fact::{Fact as _, LinkFact, ManifestFact, readable};
use crate::store::index::key::Key;
use crate::store::index::trees::Trees;

/// Links that are written at once. sled holds all entries of a batch in memory, and locks the tree meanwhile.
const LINKS_PER_BATCH: usize = 256;

impl Engine {
    /// Returns a manifest.
    pub(in crate::store) fn manifest(&self, digest: &Digest) -> Result<Option<StoredManifest>, StoreError> {
        let mut fact = self.fact::<ManifestFact>(&Key::Manifest(digest))?;
        loop {
            let Some(current) = fact else { return Ok(None) };
            match self.document(digest, &current) {
                Ok(found) => return Ok(Some(found)),
                Err(StoreError::Damaged(_)) => {}
                Err(error) => return Err(error),
            }
            // A manifest that is removed while it is read is not damaged.
            fact = self.fact(&Key::Manifest(digest))?;
            if fact.as_ref() == Some(&current) {
                return Err(StoreError::Damaged(*digest));
            }
        }
    }

    fn document(&self, digest: &Digest, fact: &ManifestFact) -> Result<StoredManifest, StoreError> {
        let size = usize::try_from(fact.size).map_err(|_| StoreError::Damaged(*digest))?;
        let documents = self.database.documents()?;
        let mut body = Vec::with_capacity(size);
        while body.len() < size {
            match documents.get(digest, (body.len() / documents.page_size()) as u64)? {
                Some(page) if !page.is_empty() => body.extend_from_slice(&page),
                _ => return Err(StoreError::Damaged(*digest)),
            }
        }
        let media_type = MediaType::new(&fact.media_type).ok_or(StoreError::Damaged(*digest))?;
        if body.len() != size {
            return Err(StoreError::Damaged(*digest));
        }
        Ok(StoredManifest { media_type, body: body.into() })
    }

    /// Stores a verified manifest, and links its repository to it and to `links`.
    ///
    /// A manifest that is stored already keeps its media type, so that a digest never has two media types. Returns that
    /// media type.
    pub(in crate::store) fn put_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        manifest: &StoredManifest,
        links: impl Iterator<Item = (Digest, Option<u64>)>,
        now: Timestamp,
    ) -> Result<MediaType, StoreError> {
        let size = manifest.body.len() as u64;
        let stored = self.database.facts()?.get(Key::Manifest(digest).to_bytes())?;
        let media_type = match stored.as_deref().and_then(readable::<ManifestFact>) {
            Some(known) => MediaType::new(&known.media_type).ok_or(StoreError::Damaged(*digest))?,
            None => self.put_document(digest, manifest, stored, now)?,
        };
        let facts = self.database.facts()?;
        let (mut batch, mut number) = (sled::Batch::default(), 0);
        // The link to the manifest itself is last, and makes it visible: a crash before it only causes another fetch.
        let own = std::iter::once((*digest, Some(size)));
        for (target, size) in links.chain(own) {
            if size.is_none() {
                self.add_link(repository, &target)?;
                continue;
            }
            batch.insert(Key::Link(repository, &target).to_bytes(), LinkFact { size }.encode());
            number += 1;
            if number % LINKS_PER_BATCH == 0 {
                facts.apply_batch(std::mem::take(&mut batch))?;
            }
        }
        batch.insert(Key::Delivered(digest, &repository.upstream).to_bytes(), &[][..]);
        facts.apply_batch(batch)?;
        Ok(media_type)
    }

    /// Stores the bytes of a manifest, then its fact, unless another caller stored it first. `unreadable` is the present
    /// value of the fact if that value cannot be decoded.
    fn put_document(
        &self,
        digest: &Digest,
        manifest: &StoredManifest,
        unreadable: Option<sled::IVec>,
        now: Timestamp,
    ) -> Result<MediaType, StoreError> {
        let _lock = self.manifest_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let Trees { documents, facts, .. } = self.database.trees()?;
        for (number, page) in manifest.body.chunks(documents.page_size()).enumerate() {
            documents.put(digest, number as u64, page)?;
        }
        let size = manifest.body.len() as u64;
        let media_type = manifest.media_type.as_str().to_owned();
        let fact = ManifestFact { media_type, size, stored_at: now }.encode();
        let key = Key::Manifest(digest).to_bytes();
        match facts.compare_and_swap(key, unreadable, Some(fact))? {
            Ok(()) => {
                self.counters.manifests.fetch_add(1, Ordering::Relaxed);
                self.counters.content.fetch_add(size, Ordering::Relaxed);
                Ok(manifest.media_type.clone())
            }
            Err(first) => {
                let known = first.current.as_deref().and_then(readable::<ManifestFact>);
                Ok(known
                    .and_then(|known| MediaType::new(&known.media_type))
                    .unwrap_or(manifest.media_type.clone()))
            }
        }
    }

    /// Removes a manifest. Pointers to it stay, and find nothing.
    pub(in crate::store) fn remove_manifest(&self, digest: &Digest) -> Result<(), StoreError> {
        let _lock = self.manifest_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let facts = self.database.facts()?;
        facts.remove(Key::Access(digest).to_bytes())?;
        facts.remove(Key::Verified(digest).to_bytes())?;
        let removed = facts.remove(Key::Manifest(digest).to_bytes())?;
        if let Some(fact) = removed.and_then(|bytes| readable::<ManifestFact>(&bytes)) {
            self.counters.manifests.fetch_sub(1, Ordering::Relaxed);
            self.counters.content.fetch_sub(fact.size, Ordering::Relaxed);
        }
        self.database.documents()?.remove(digest)
    }
}
