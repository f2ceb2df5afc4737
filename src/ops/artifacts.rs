//! Content of the artifacts that refer to an image: signatures, SBOMs and others.
//!
//! A pull does not need this content, but a client that verifies the image does. Artifacts may have referrers
//! themselves, such as the signature of an SBOM. Signatures of older versions of cosign are tags, and so
//! are lists of referrers that a client has asked for by their tag.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::cache::CacheView;
use crate::oci::{Digest, Repository, Tag};
use crate::store::StoreError;

use super::completeness::{MissingPart, Needs};
use super::image_tree::ImageTree;

/// Levels of artifacts: those of the image, and their own referrers.
pub const DEPTH_MAX: usize = 2;
/// Maximum number of artifacts of one image.
pub const COUNT_MAX: usize = 512;

/// Artifacts that refer to an image, and the part of them that is not cached.
#[derive(Clone, Debug, Default)]
pub struct Artifacts {
    /// Known artifacts.
    pub digests: Vec<Digest>,
    /// Content of the artifacts that is not cached.
    pub missing: Vec<MissingPart>,
    /// Lists of referrers that are not known: of the image, and of its artifacts.
    pub lists: Vec<MissingPart>,
    /// True if a list of the image is not known.
    pub is_open: bool,
    /// True if there are more artifacts than [`COUNT_MAX`].
    pub is_limited: bool,
}

/// State of the signatures and other artifacts that refer to an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Signatures)]
pub struct SignatureStatus {
    /// True if all artifacts are known, and each of them is cached completely. Also true if there are none.
    pub held: bool,
    /// Number of known artifacts.
    pub artifacts: u64,
    /// Content of the artifacts that is not cached.
    pub missing: Vec<MissingPart>,
}

impl Artifacts {
    /// Finds the artifacts that refer to the images that `needs` has, or to the root of the tree.
    pub fn of(
        view: &CacheView<'_>,
        repository: &Repository,
        tree: &ImageTree,
        needs: &Needs,
    ) -> Result<Self, StoreError> {
        let mut artifacts = Self::default();
        let mut seen = HashSet::new();
        let images = needs.images.iter().map(|image| (image.manifest.digest, image.has_list));
        let mut level: Vec<Digest> = Vec::new();
        for (subject, has_list) in std::iter::once((tree.digest, tree.has_list)).chain(images) {
            artifacts.is_open |= !has_list;
            artifacts.add_list(subject, has_list);
            for digest in referrers(view, repository, &subject)? {
                level.extend(seen.insert(digest).then_some(digest));
            }
            for tag in Tag::of_artifacts(&subject) {
                let fact = view.tag(repository, &tag)?;
                level.extend(fact.map(|fact| fact.digest).filter(|digest| seen.insert(*digest)));
            }
            // A list may be large, and many subjects may have the same one.
            if level.len() > COUNT_MAX {
                break;
            }
        }
        for depth in 1..=DEPTH_MAX {
            let mut next = Vec::new();
            for digest in level {
                if artifacts.digests.len() == COUNT_MAX {
                    artifacts.is_limited = true;
                    return Ok(artifacts);
                }
                artifacts.digests.push(digest);
                let has_list = artifacts.add(view, repository, digest)?;
                if depth < DEPTH_MAX && next.len() <= COUNT_MAX {
                    artifacts.add_list(digest, has_list);
                    for referrer in referrers(view, repository, &digest)? {
                        next.extend(seen.insert(referrer).then_some(referrer));
                    }
                }
            }
            level = next;
        }
        Ok(artifacts)
    }

    /// Adds the missing content of an artifact. Returns true if its list of referrers is known.
    fn add(
        &mut self,
        view: &CacheView<'_>,
        repository: &Repository,
        digest: Digest,
    ) -> Result<bool, StoreError> {
        let Some(tree) = ImageTree::below(view, repository, &digest)? else {
            self.missing.push(MissingPart::manifest(digest));
            return view.serves_referrers_offline(repository, &digest);
        };
        let mut needs = Needs::of(&tree, &[]);
        needs.add_other_manifests(&tree);
        self.missing.extend(needs.missing.into_iter().filter(|part| !part.is_list()));
        Ok(tree.has_list)
    }

    fn add_list(&mut self, subject: Digest, has_list: bool) {
        if !has_list && self.lists.iter().all(|list| list.part.digest != subject) {
            self.lists.push(MissingPart::list(None, subject));
        }
    }

    /// Returns the report of `check`.
    pub fn status(self) -> SignatureStatus {
        let held = !self.is_open && !self.is_limited && self.missing.is_empty();
        SignatureStatus { held, artifacts: self.digests.len() as u64, missing: self.missing }
    }
}

/// Returns the known referrers of a manifest.
fn referrers(
    view: &CacheView<'_>,
    repository: &Repository,
    subject: &Digest,
) -> Result<Vec<Digest>, StoreError> {
    let known = view.known_referrers(repository, subject)?.referrers;
    Ok(known.iter().filter_map(|referrer| referrer.digest().parse().ok()).collect())
}
