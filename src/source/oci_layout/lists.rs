//! Lists of an image layout: the tags of a repository, and the manifests that refer to another one.

use std::collections::BTreeSet;
use std::io::Read as _;

use oci_spec::image::Descriptor;

use super::{OciLayout, REF_NAME, annotation, open, unreadable};
use crate::layout::IMAGE_NAME;
use crate::oci::{Digest, Manifest, Name, Referrer, Referrers, Tag};
use crate::source::error::SourceError;

/// Limit on the bytes of manifests that are read for one list.
const READ_MAX: u64 = 64 * 1024 * 1024;

impl OciLayout {
    /// Reads the tags of a repository from `index.json`.
    pub(super) fn read_tags(&self, name: &Name) -> Result<Vec<Tag>, SourceError> {
        let folder = self.folder(name)?;
        let index = folder.layout.index()?.ok_or(SourceError::NotFound)?;
        let tags = index.manifests().iter().flat_map(|it| self.tags_of(it, name, folder.own));
        let tags: BTreeSet<Tag> = tags.collect();
        if tags.is_empty() { Err(SourceError::NotFound) } else { Ok(tags.into_iter().collect()) }
    }

    /// Returns the tags for which `find` returns this descriptor.
    fn tags_of(&self, descriptor: &Descriptor, name: &Name, own: bool) -> impl Iterator<Item = Tag> {
        let texts = [REF_NAME, IMAGE_NAME].into_iter().filter_map(|key| annotation(descriptor, key));
        let tags = texts.filter_map(|text| text.rsplit(':').next()?.parse::<Tag>().ok());
        tags.filter(move |tag| {
            let bare = || own && annotation(descriptor, REF_NAME) == Some(tag.as_str());
            self.is_named(descriptor, name, tag) || bare()
        })
    }

    /// Finds the manifests in `index.json` that refer to `subject`. A layout has no list of its own: if there are none,
    /// the list may exist under its fallback tag.
    pub(super) fn read_referrers(&self, name: &Name, subject: &Digest) -> Result<Referrers, SourceError> {
        let folder = self.folder(name)?;
        let index = folder.layout.index()?;
        let (mut list, mut budget) = (Referrers::default(), READ_MAX);
        for descriptor in index.as_ref().map_or(&[][..], |index| index.manifests().as_slice()) {
            let Ok(digest) = descriptor.digest().to_string().parse::<Digest>() else { continue };
            let found = match open(&folder.layout, digest, Some(descriptor)) {
                Ok(found) if found.size <= self.manifest_max => found,
                Ok(_) | Err(SourceError::NotFound) => continue,
                Err(error) => return Err(error),
            };
            let mut body = Vec::new();
            let read = found.file.take(budget + 1).read_to_end(&mut body);
            read.map_err(|error| unreadable(&found.path, &error))?;
            budget = budget.checked_sub(body.len() as u64).ok_or_else(|| {
                SourceError::Invalid(format!(
                    "the manifests in its index.json are larger than {READ_MAX} bytes together"
                ))
            })?;
            self.metrics.fetched(self.upstream.as_str(), "list", body.len() as u64);
            let Ok(manifest) = Manifest::read(&body, found.content_type.as_deref()) else { continue };
            if manifest.subject == Some(*subject) {
                list.extend(Referrer::describe(&digest, &manifest.media_type, &body));
            }
        }
        if list.is_empty() { Err(SourceError::NoReferrers { lasting: false }) } else { Ok(list) }
    }
}
