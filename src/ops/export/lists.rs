//! Lists of referrers in an archive.
//!
//! An OCI layout has no place for "this manifest has no referrers". An annotation of the image's entry in `index.json`
//! states it, and names the lists, which are blobs of the archive. Other programs ignore both.

use std::collections::HashSet;

use bytes::Bytes;

use crate::layout::{MANIFEST_MAX, NO_REFERRERS};
use crate::oci::{Algorithm, Digest, Referrers, Tag};

/// Known lists of referrers of an export, and tags of artifacts.
#[derive(Debug, Default)]
pub(super) struct PlannedLists {
    lists: Vec<PlannedList>,
    /// Manifests whose lists of referrers, or tags of signatures, are not known.
    pub(super) unknown: Vec<Digest>,
    /// Tags of signatures and other artifacts, with the manifests that they name.
    pub(super) tags: Vec<(Tag, Digest)>,
}

/// List of the referrers of a manifest.
#[derive(Debug)]
struct PlannedList {
    subject: Digest,
    /// The list as an index. `None` if there are no referrers.
    list: Option<(Digest, Bytes)>,
}

impl PlannedLists {
    /// Adds a manifest with an unknown list or tag, once.
    pub(super) fn add_unknown(&mut self, subject: Digest) {
        if !self.unknown.contains(&subject) {
            self.unknown.push(subject);
        }
    }

    /// Adds the list of a manifest. Returns false if the list is too large for an archive.
    pub(super) fn add(&mut self, subject: Digest, referrers: &Referrers) -> bool {
        let body = Bytes::from(referrers.to_index());
        if body.len() as u64 > MANIFEST_MAX {
            return false;
        }
        let list = (!referrers.is_empty()).then(|| (Digest::of(Algorithm::Sha256, &body), body));
        self.lists.push(PlannedList { subject, list });
        true
    }

    /// Returns the value of the annotation with the lists.
    pub(super) fn annotation(&self) -> Option<String> {
        let lists = self.lists.iter().map(|PlannedList { subject, list }| match list {
            Some((digest, _)) => format!("{subject}={digest}"),
            None => format!("{subject}={NO_REFERRERS}"),
        });
        let lists: Vec<String> = lists.collect();
        (!lists.is_empty()).then(|| lists.join(" "))
    }

    /// Returns the lists, each once.
    pub(super) fn bodies(&self) -> impl Iterator<Item = (Digest, Bytes)> {
        let mut seen = HashSet::new();
        let lists = self.lists.iter().filter_map(|list| list.list.clone());
        lists.filter(move |(digest, _)| seen.insert(*digest))
    }
}
