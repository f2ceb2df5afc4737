//! Lists of a layout: the tags that its index.json gives a repository, and the manifests in it that refer to another.

use std::collections::BTreeSet;
use std::io::Read as _;

use oci_spec::image::Descriptor;

use super::{IMAGE_NAME, Layout, REF_NAME, annotation, local, open, read_index};
use crate::oci::{Digest, Manifest, Name, Referrer, Referrers, Tag};
use crate::upstream::MANIFEST_MAX;
use crate::upstream::error::UpstreamError;

/// Bytes of manifests read for one list.
const READ_MAX: u64 = 64 * 1024 * 1024;

impl Layout {
    pub(crate) async fn tags(&self, name: &Name) -> Result<Vec<Tag>, UpstreamError> {
        let name = name.clone();
        self.run("GET", move |layout| {
            let folder = layout.folder(&name)?;
            let index = read_index(&folder.path.join("index.json"))?.ok_or(UpstreamError::NotFound)?;
            let tags = index.manifests().iter().flat_map(|it| layout.tags_of(it, &name, folder.own));
            let tags: BTreeSet<Tag> = tags.collect();
            if tags.is_empty() {
                return Err(UpstreamError::NotFound);
            }
            Ok(tags.into_iter().collect())
        })
        .await
    }

    /// The tags by which `find` would come to this descriptor.
    fn tags_of(&self, descriptor: &Descriptor, name: &Name, own: bool) -> impl Iterator<Item = Tag> {
        let texts = [REF_NAME, IMAGE_NAME].into_iter().filter_map(|key| annotation(descriptor, key));
        let tags = texts.filter_map(|text| text.rsplit(':').next()?.parse::<Tag>().ok());
        tags.filter(move |tag| {
            let bare = || own && annotation(descriptor, REF_NAME) == Some(tag.as_str());
            self.is_named(descriptor, name, tag) || bare()
        })
    }

    /// What of the manifests that index.json names refers to `subject`. A layout has no API of its own: where nothing
    /// does, the list may still be there under its tag.
    pub(crate) async fn referrers(&self, name: &Name, subject: &Digest) -> Result<Referrers, UpstreamError> {
        let (name, subject) = (name.clone(), *subject);
        self.run("GET", move |layout| {
            let folder = layout.folder(&name)?;
            let index = read_index(&folder.path.join("index.json"))?;
            let (mut list, mut room) = (Referrers::default(), READ_MAX);
            for descriptor in index.as_ref().map_or(&[][..], |index| index.manifests().as_slice()) {
                let Ok(digest) = descriptor.digest().to_string().parse::<Digest>() else { continue };
                let found = match open(&folder.path, digest, Some(descriptor)) {
                    Ok(found) if found.size <= MANIFEST_MAX as u64 => found,
                    Ok(_) | Err(UpstreamError::NotFound) => continue,
                    Err(error) => return Err(error),
                };
                let mut body = Vec::new();
                let read = found.file.take(room + 1).read_to_end(&mut body);
                read.map_err(|error| local(&found.path, &error))?;
                room = room.checked_sub(body.len() as u64).ok_or_else(|| {
                    UpstreamError::Invalid(format!(
                        "the manifests in its index.json are larger than {READ_MAX} bytes together"
                    ))
                })?;
                layout.metrics.fetched(layout.upstream.as_str(), "list", body.len() as u64);
                let Ok(manifest) = Manifest::read(&body, found.content_type.as_deref()) else { continue };
                if manifest.subject == Some(subject) {
                    list.extend(Referrer::describe(&digest, &manifest.media_type, &body));
                }
            }
            if list.is_empty() { Err(UpstreamError::NoReferrers { lasting: false }) } else { Ok(list) }
        })
        .await
    }
}
