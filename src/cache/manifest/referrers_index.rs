//! The list of a manifest's referrers as its upstream has it: fetched whole, and kept as one document.

use std::sync::Arc;
use std::time::Duration;

use crate::oci::{Algorithm, Digest, MediaType, Referrers, Repository};
use crate::source::{Source as _, SourceError};
use crate::store::{StoreSession, StoredManifest};

use crate::cache::core::Shared;
use crate::cache::error::CacheError;
use crate::cache::memory::CachedManifest;

/// How long it is believed that there is no referrers API, unless tags live longer. It is a repository that has none,
/// not an upstream: behind one name there may be registries of several makes.
const WITHOUT_API_FOR: Duration = Duration::from_mins(10);

/// Asks the upstream. An empty list is an absence like a tag's that is not there, and is remembered as briefly: who
/// looks just before a signature is pushed must not go on without it for long.
pub(in crate::cache) async fn fetch(
    shared: &Arc<Shared>,
    repository: &Repository,
    subject: &Digest,
) -> Result<Arc<CachedManifest>, CacheError> {
    let upstream = shared.upstream(repository)?;
    match upstream.referrers(&repository.name, subject, None).await {
        Ok(list) if list.is_empty() => Err(CacheError::NotFound),
        Ok(list) => keep(shared, repository, list).await,
        Err(SourceError::NoReferrers { lasting }) => {
            let (of, time) = if lasting {
                (None, WITHOUT_API_FOR.max(upstream.settings().tag_ttl))
            } else {
                (Some(*subject), upstream.settings().negative_ttl)
            };
            let until = shared.clock.instant() + time;
            shared.memory.remember_without_api(repository, of, until);
            Err(CacheError::NoReferrers)
        }
        Err(error) => Err(error.into()),
    }
}

/// Keeps a list like a manifest, linked to its repository. It links that to nothing else: what is listed need not be
/// there, and what is there shows that when it is fetched.
async fn keep(
    shared: &Arc<Shared>,
    repository: &Repository,
    list: Referrers,
) -> Result<Arc<CachedManifest>, CacheError> {
    let (of, owner, now) = (Arc::clone(shared), repository.clone(), shared.clock.now());
    let work = move |store: &StoreSession| {
        let body = bytes::Bytes::from(list.to_index());
        let digest = Digest::of(Algorithm::Sha256, &body);
        let media_type = MediaType::oci_index();
        let stored = StoredManifest { media_type: media_type.clone(), body: body.clone() };
        let usage = match store.put_manifest(&owner, &digest, &stored, std::iter::empty(), now) {
            Ok(_) => of.eviction.add_manifest(&digest, &body, std::iter::empty(), now),
            Err(error) => {
                of.report_store_error(
                    "a list of referrers could not be kept; it is served all the same",
                    &error,
                );
                Arc::default()
            }
        };
        Ok(Arc::new(CachedManifest { digest, media_type, body, usage }))
    };
    let document = shared.with_store(work).await?;
    shared.memory.manifests.insert(repository, Arc::clone(&document));
    Ok(document)
}
