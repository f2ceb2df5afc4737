//! Access of repositories to content. Bytes are shared between repositories, access is not: a repository may serve a
//! digest if it is linked to the digest, or after its upstream has confirmed once that it has the digest.

use std::sync::Arc;

use crate::oci::media::UPSTREAM_ACCEPT;
use crate::oci::{Digest, Reference, Repository};
use crate::source::{ByteRange, Source as _, SourceError};
use crate::store::Change;
use crate::upstream::Upstream;

use super::error::CacheError;
use super::memory::AbsenceKey;
use super::rules::Rules;
use super::storage::Storage;
use super::verify::verify_manifest;

/// Check of links, with the upstream's confirmation where a link is missing.
#[derive(Clone, Debug)]
pub(super) struct Access {
    storage: Arc<Storage>,
    rules: Arc<Rules>,
}

impl Access {
    pub(super) fn new(storage: &Arc<Storage>, rules: &Arc<Rules>) -> Self {
        Self { storage: Arc::clone(storage), rules: Arc::clone(rules) }
    }

    /// Asks the upstream whether this repository has a manifest that another repository brought into the store.
    pub(super) async fn confirm_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), CacheError> {
        let absence = AbsenceKey::Manifest(*digest);
        self.check_absence(repository, &absence)?;
        let upstream = self.rules.upstream(repository)?;
        let reference = Reference::Digest(*digest);
        let head = upstream.head(&repository.name, &reference, UPSTREAM_ACCEPT, None).await;
        // An upstream that does not support HEAD has confirmed nothing.
        let inconclusive = head.as_ref().map_or_else(SourceError::may_be_about_head, Option::is_none);
        let confirmed = if inconclusive {
            match upstream.manifest(&repository.name, &reference, UPSTREAM_ACCEPT, None).await {
                Ok(answer) => {
                    return verify_manifest(&self.storage.metrics, repository, &answer, digest).await;
                }
                Err(error) => Err(error),
            }
        } else {
            head.map(drop)
        };
        confirmed.map_err(|error| self.remember_absence(repository, absence, error.into()))
    }

    /// Asks the upstream whether this repository has a blob, and links the repository to it.
    pub(super) async fn confirm_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), CacheError> {
        self.check_blob_absence(repository, digest)?;
        let upstream = self.rules.upstream(repository)?;
        let confirmed = match upstream.blob_size(&repository.name, digest, None).await {
            // Some registries answer 404 to HEAD of a blob that they fetch for a GET. Others do not permit HEAD.
            Err(error) if error.may_be_about_head() => {
                first_byte(&upstream, repository, digest).await.map(drop)
            }
            answer => answer.map(drop),
        };
        self.blob_confirmed(repository, digest, confirmed).await
    }

    /// Returns the size of a blob that no manifest announces, and links the repository to the blob. The length in an answer
    /// to HEAD is often wrong, so the first byte is requested: the answer contains the length that a GET would have.
    pub(super) async fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, CacheError> {
        self.check_blob_absence(repository, digest)?;
        let upstream = self.rules.upstream(repository)?;
        let size = first_byte(&upstream, repository, digest).await;
        self.blob_confirmed(repository, digest, size).await
    }

    /// Fails while a 404 to a GET or to a confirmation is remembered.
    fn check_blob_absence(&self, repository: &Repository, digest: &Digest) -> Result<(), CacheError> {
        self.check_absence(repository, &AbsenceKey::Blob(*digest))?;
        self.check_absence(repository, &AbsenceKey::BlobConfirmation(*digest))
    }

    async fn blob_confirmed<T>(
        &self,
        repository: &Repository,
        digest: &Digest,
        result: Result<T, SourceError>,
    ) -> Result<T, CacheError> {
        match result {
            Ok(answer) => {
                self.link(repository, digest).await;
                Ok(answer)
            }
            Err(error) => {
                let absence = AbsenceKey::BlobConfirmation(*digest);
                Err(self.remember_absence(repository, absence, error.into()))
            }
        }
    }

    /// Links a repository to a digest. A link that cannot be stored costs another confirmation, so an error is only
    /// reported.
    pub(super) async fn link(&self, repository: &Repository, digest: &Digest) {
        let change = Change::AddLink(repository.clone(), *digest);
        if let Err(error) = self.storage.with_store(move |store| store.apply(&[change])).await {
            self.storage.report_error("a link could not be stored", &error);
        }
    }

    /// Fails with [`CacheError::NotFound`] while a definite 404 of the upstream is remembered.
    pub(super) fn check_absence(
        &self,
        repository: &Repository,
        absence: &AbsenceKey,
    ) -> Result<(), CacheError> {
        let now = self.storage.clock.instant();
        if self.storage.memory.is_absent(repository, absence, now) {
            return Err(CacheError::NotFound);
        }
        Ok(())
    }

    /// Remembers a definite 404 for `negative_ttl`, and no other error. Returns the error.
    pub(super) fn remember_absence(
        &self,
        repository: &Repository,
        absence: AbsenceKey,
        error: CacheError,
    ) -> CacheError {
        if matches!(error, CacheError::NotFound)
            && let Ok(upstream) = self.rules.upstream(repository)
        {
            let until = self.storage.clock.instant() + upstream.settings().negative_ttl;
            self.storage.memory.remember_absence(repository, absence, until);
        }
        error
    }
}

/// Requests the first byte of a blob for the length that the answer announces, or the whole blob from an upstream that does not
/// answer the range. The body is not read.
async fn first_byte(
    upstream: &Upstream,
    repository: &Repository,
    digest: &Digest,
) -> Result<Option<u64>, SourceError> {
    let request = |range| upstream.blob(&repository.name, digest, range, None);
    let first = request(ByteRange { first: 0, last: Some(0) }).await;
    let body = match first {
        // An empty blob has no first byte. Of any other digest, this answer confirms nothing.
        Err(SourceError::RangeNotSatisfiable) if *digest == Digest::of(digest.algorithm(), b"") => {
            return Ok(Some(0));
        }
        Err(SourceError::RangeNotSatisfiable) => request(ByteRange::ALL).await,
        Err(error) if error.is_about_range() || error.may_be_about_range() => request(ByteRange::ALL).await,
        first => first,
    };
    body.map(|body| body.total.filter(|_| !body.gzip))
}
