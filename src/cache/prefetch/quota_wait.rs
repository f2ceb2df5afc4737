//! Room in an upstream's quota for what nobody asked for: whether there is any, and waiting until there is.

use crate::oci::media::CANONICAL_ACCEPT;
use crate::oci::{Digest, Reference, Repository};
use crate::source::Source as _;

use crate::cache::core::Shared;
use crate::cache::error::CacheError;

/// Whether the upstream's quota leaves room for what nobody asked for.
pub(in crate::cache) fn is_there(shared: &Shared, repository: &Repository) -> bool {
    let upstream = shared.upstream(repository);
    upstream.is_ok_and(|upstream| upstream.quota_is_above(shared.rules().prefetch.quota_floor))
}

/// Waits until the upstream's quota leaves room. One waiter asks for `child` by HEAD now and then, which Docker Hub
/// does not count and answers with the quota; any other answer that tells it ends the waiting too.
pub(in crate::cache) async fn wait(
    shared: &Shared,
    repository: &Repository,
    child: &Digest,
) -> Result<(), CacheError> {
    let upstream = shared.upstream(repository)?;
    while !is_there(shared, repository) {
        let gate = shared.prefetch_queue.gate(upstream.name());
        let _finding_out = gate.lock().await;
        let told = upstream.quota_changed();
        if is_there(shared, repository) {
            break;
        }
        tokio::select! {
            () = told => {}
            () = tokio::time::sleep(shared.rules().prefetch.quota_check) => {
                let reference = Reference::Digest(*child);
                // Only what its headers tell of the quota matters, and that is noted on the way.
                let asked = upstream.head(&repository.name, &reference, CANONICAL_ACCEPT, None).await;
                tracing::debug!(%repository, found = asked.is_ok(), "asked whether the quota has returned");
            }
        }
    }
    Ok(())
}
