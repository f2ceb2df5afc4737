//! Search for the lists of referrers of an export, for the artifacts in them, and for artifacts that have a tag: cosign's
//! signatures.

use std::collections::HashSet;

use super::lists::PlannedLists;
use super::plan::PlannedDocument;
use super::search::Search;
use crate::cache::CacheError;
use crate::oci::{Descriptor, Digest, Reference, Referrers, Tag};
use crate::ops::artifacts::{COUNT_MAX, DEPTH_MAX};
use crate::ops::platform::NO_IMAGE;
use crate::ops::protocol::OpsError;
use crate::ops::warm::{list_referrers, manifest};
use crate::store::StoreError;

impl Search<'_> {
    /// Finds the lists of referrers of manifests, and with `referrers` the artifacts in them.
    pub(super) async fn planned_referrers(
        &self,
        subjects: impl IntoIterator<Item = Digest>,
    ) -> Result<(PlannedLists, Vec<PlannedDocument>), OpsError> {
        let (mut planned, mut artifacts) = (PlannedLists::default(), Vec::new());
        let mut seen: HashSet<Digest> = HashSet::new();
        let mut level: Vec<Digest> = subjects.into_iter().filter(|subject| seen.insert(*subject)).collect();
        for depth in 0..=DEPTH_MAX {
            let mut next = Vec::new();
            for subject in level {
                if depth > 0 {
                    self.artifact(subject, &mut artifacts).await?;
                }
                if depth == 0 && self.referrers {
                    self.tags(subject, &mut planned).await?;
                    let tagged = planned.tags.iter().map(|(_, digest)| *digest);
                    next.extend(tagged.filter(|digest| seen.insert(*digest)));
                }
                if depth < DEPTH_MAX {
                    let found = self.list(subject, &mut planned).await?;
                    next.extend(found.into_iter().filter(|digest| self.referrers && seen.insert(*digest)));
                }
            }
            level = next;
        }
        Ok((planned, artifacts))
    }

    /// Adds the list of referrers of a manifest, and returns the digests in it. Asks the upstream if the list is not known.
    async fn list(&self, subject: Digest, planned: &mut PlannedLists) -> Result<Vec<Digest>, OpsError> {
        let repository = &self.reference.repository;
        let mut known = self.known(subject).await?;
        if known.is_none() && !self.offline {
            if let Err(error) = list_referrers(self.cache, repository, &subject).await {
                tracing::info!(%repository, %subject, %error, "exporting without a list of referrers");
            }
            known = self.known(subject).await?;
        }
        let Some(known) = known else {
            planned.add_unknown(subject);
            return Ok(Vec::new());
        };
        if !planned.add(subject, &known) {
            planned.add_unknown(subject);
        }
        Ok(known.iter().filter_map(|referrer| referrer.digest().parse().ok()).collect())
    }

    /// Adds the tags of the artifacts of a manifest. Asks the upstream for the tags of signatures: most do not exist. The
    /// list of referrers in an archive replaces its tag, which is added only if a client has asked for the tag.
    async fn tags(&self, subject: Digest, planned: &mut PlannedLists) -> Result<(), OpsError> {
        let repository = &self.reference.repository;
        if !self.offline {
            for tag in Tag::of_signatures(&subject) {
                match manifest(self.cache, repository, &Reference::Tag(tag.clone())).await {
                    Ok(_) | Err(CacheError::NotFound | CacheError::StaleAbsence { .. }) => {}
                    Err(error) => {
                        tracing::info!(%repository, %tag, %error, "exporting without the tag of a signature");
                        planned.add_unknown(subject);
                    }
                }
            }
        }
        let owned = repository.clone();
        let cached = self.cache.view(move |view| {
            let tags = Tag::of_artifacts(&subject).map(|tag| {
                let fact = view.tag(&owned, &tag)?;
                Ok(fact.map(|fact| (tag, fact.digest)))
            });
            tags.filter_map(Result::transpose).collect::<Result<Vec<_>, StoreError>>()
        });
        planned.tags.extend(cached.await?);
        Ok(())
    }

    /// Returns the known list of referrers.
    async fn known(&self, subject: Digest) -> Result<Option<Referrers>, OpsError> {
        let repository = self.reference.repository.clone();
        let known = self.cache.view(move |view| view.known_referrers(&repository, &subject)).await?;
        Ok(known.checked_at.is_some().then_some(known.referrers))
    }

    /// Adds the manifest of an artifact, and everything below it.
    async fn artifact(&self, digest: Digest, artifacts: &mut Vec<PlannedDocument>) -> Result<(), OpsError> {
        if artifacts.len() >= COUNT_MAX {
            let reference = self.reference;
            let message =
                format!("more than {COUNT_MAX} artifacts refer to {reference}; leave out --referrers");
            return Err(OpsError::Content(message));
        }
        let (size, media_type, os_version, attests) = (None, None, None, None);
        let platform = Some(NO_IMAGE.to_owned());
        let wanted = Descriptor { digest, size, media_type, platform, os_version, foreign: false, attests };
        let Some(document) = self.child(&wanted).await? else { return Err(self.missing(vec![digest])) };
        if document.is_index() {
            let below = self.below(&document).await?;
            artifacts.extend(below.indexes);
            self.documents(below.children, artifacts).await?;
        }
        artifacts.push(document);
        Ok(())
    }
}
