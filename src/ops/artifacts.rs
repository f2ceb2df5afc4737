//! Content of the artifacts that refer to an image: signatures, SBOMs and others.
//!
//! A pull does not need this content, but a client that verifies the image does. Artifacts may have referrers
//! themselves, such as the signature of an SBOM.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::cache::CacheView;
use crate::oci::{Digest, Repository};
use crate::store::StoreError;

use super::completeness::{MissingPart, Needs};
use super::image_tree::{ImageTree, ReferrersState};

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
        let roots = needs.images.iter().map(|image| (image.manifest.digest, &image.referrers));
        let mut level: Vec<Digest> = Vec::new();
        for (subject, state) in std::iter::once((tree.digest, &tree.referrers)).chain(roots) {
            artifacts.is_open |= !state.is_known;
            artifacts.add_list(subject, state);
            level.extend(state.referrers.iter().filter(|digest| seen.insert(**digest)));
        }
        for depth in 1..=DEPTH_MAX {
            let mut next = Vec::new();
            for digest in level {
                if artifacts.digests.len() == COUNT_MAX {
                    artifacts.is_limited = true;
                    return Ok(artifacts);
                }
                artifacts.digests.push(digest);
                let state = artifacts.add(view, repository, digest)?;
                if depth < DEPTH_MAX {
                    artifacts.add_list(digest, &state);
                    next.extend(state.referrers.into_iter().filter(|digest| seen.insert(*digest)));
                }
            }
            level = next;
        }
        Ok(artifacts)
    }

    /// Adds the missing content of an artifact. Returns the state of its list of referrers.
    fn add(
        &mut self,
        view: &CacheView<'_>,
        repository: &Repository,
        digest: Digest,
    ) -> Result<ReferrersState, StoreError> {
        let Some(tree) = ImageTree::below(view, repository, &digest)? else {
            self.missing.push(MissingPart::manifest(digest));
            return ReferrersState::of(view, repository, &digest);
        };
        let mut needs = Needs::of(&tree, &[]);
        needs.add_other_manifests(&tree);
        self.missing.extend(needs.missing.into_iter().filter(|part| !part.is_list()));
        Ok(tree.referrers)
    }

    fn add_list(&mut self, subject: Digest, state: &ReferrersState) {
        if !state.is_known && self.lists.iter().all(|list| list.part.digest != subject) {
            self.lists.push(MissingPart::list(None, subject));
        }
    }

    /// Returns the report of `check`.
    pub fn status(self) -> SignatureStatus {
        let held = !self.is_open && !self.is_limited && self.missing.is_empty();
        SignatureStatus { held, artifacts: self.digests.len() as u64, missing: self.missing }
    }
}
