//! Rights: bytes are shared between repositories, access is not. A repository has a right to a digest if it is linked
//! to it, or if its upstream, asked once, says that it has it.

use std::sync::Arc;

use crate::oci::media::CANONICAL_ACCEPT;
use crate::oci::{Digest, Reference, Repository};
use crate::source::{ByteRange, Source as _, SourceError};
use crate::store::Change;
use crate::upstream::Upstream;

use crate::cache::core::Shared;
use crate::cache::error::CacheError;
use crate::cache::manifest::verify::check;
use crate::cache::memory::AbsenceKey;

/// Asks the upstream whether this repository has what another one brought in.
pub(in crate::cache) async fn confirm_manifest(
    shared: &Shared,
    repository: &Repository,
    digest: &Digest,
) -> Result<(), CacheError> {
    let wanted = AbsenceKey::Manifest(*digest);
    if shared.memory.is_absent(repository, &wanted, shared.clock.instant()) {
        return Err(CacheError::NotFound);
    }
    let upstream = shared.upstream(repository)?;
    let reference = Reference::Digest(*digest);
    let head = upstream.head(&repository.name, &reference, CANONICAL_ACCEPT, None).await;
    // An upstream that does not do HEAD has confirmed nothing.
    let silent = head.as_ref().map_or_else(SourceError::may_be_about_head, Option::is_none);
    let confirmed = match head {
        _ if silent => match upstream.manifest(&repository.name, &reference, CANONICAL_ACCEPT, None).await {
            Ok(answer) => return check(shared, repository, &answer, digest, None),
            Err(error) => Err(error),
        },
        answered => answered,
    };
    match confirmed {
        Ok(_) => Ok(()),
        Err(error) => Err(remember(shared, repository, wanted, error.into())),
    }
}

/// Asks the upstream whether this repository has a blob; a yes is kept as a link.
pub(in crate::cache) async fn confirm_blob(
    shared: &Arc<Shared>,
    repository: &Repository,
    digest: &Digest,
) -> Result<Option<u64>, CacheError> {
    let wanted = AbsenceKey::Blob(*digest);
    if shared.memory.is_absent(repository, &wanted, shared.clock.instant()) {
        return Err(CacheError::NotFound);
    }
    let upstream = shared.upstream(repository)?;
    let told = match upstream.blob_size(&repository.name, digest, None).await {
        // No registry is known that says of blobs, as some do of manifests, that they are not there just to HEAD.
        Err(error) if error != SourceError::NotFound && error.may_be_about_head() => {
            first_byte(&upstream, repository, digest).await
        }
        told => told,
    };
    match told {
        Ok(size) => {
            link(shared, repository, digest).await;
            Ok(size)
        }
        Err(error) => Err(remember(shared, repository, wanted, error.into())),
    }
}

/// Asks for a blob's first byte, for the sake of what comes with it: its length.
async fn first_byte(
    upstream: &Upstream,
    repository: &Repository,
    digest: &Digest,
) -> Result<Option<u64>, SourceError> {
    match upstream.blob(&repository.name, digest, ByteRange { first: 0, last: Some(0) }, None).await {
        Ok(body) => Ok(body.total.filter(|_| !body.gzip)),
        // There is no first byte of nothing.
        Err(SourceError::RangeNotSatisfiable) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Links a repository to a digest; a link that is lost costs another question, so failure is only noted.
pub(in crate::cache) async fn link(shared: &Arc<Shared>, repository: &Repository, digest: &Digest) {
    let change = Change::AddLink(repository.clone(), *digest);
    if let Err(error) = shared.with_store(move |store| store.apply(&[change])).await {
        shared.report_error("a link could not be kept", &error);
    }
}

/// Remembers a definite 404, and only that.
pub(in crate::cache) fn remember(
    shared: &Shared,
    repository: &Repository,
    wanted: AbsenceKey,
    error: CacheError,
) -> CacheError {
    if matches!(error, CacheError::NotFound)
        && let Ok(upstream) = shared.upstream(repository)
    {
        let until = shared.clock.instant() + upstream.settings().negative_ttl;
        shared.memory.remember_absence(repository, wanted, until);
    }
    error
}
