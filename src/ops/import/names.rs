//! Repository and tag for each image of an archive.

use std::collections::HashMap;

use oci_spec::image::ANNOTATION_REF_NAME;
use serde_json::Value;

use crate::cache::Cache;
use crate::layout::{IMAGE_NAME, NO_REFERRERS, REFERRERS, annotation};
use crate::oci::{Digest, Repository, Tag};
use crate::ops::protocol::OpsError;
use crate::ops::reference::{self, ImageReference};

/// Maximum number of images in an archive.
const ENTRIES_MAX: usize = 4096;

/// Entry of `index.json` with its destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImportTarget {
    pub(super) digest: Digest,
    pub(super) size: Option<u64>,
    pub(super) media_type: Option<String>,
    pub(super) repository: Repository,
    pub(super) tag: Option<Tag>,
    /// Lists of referrers by the digest of their manifest. `None` if the manifest has no referrers.
    pub(super) referrers: Vec<(Digest, Option<Digest>)>,
}

/// Parses an `index.json` and finds the destination of each entry.
pub(super) fn read(
    cache: &Cache,
    into: Option<&Repository>,
    text: &[u8],
) -> Result<Vec<ImportTarget>, OpsError> {
    let index: Value = serde_json::from_slice(text)
        .map_err(|error| OpsError::Content(format!("index.json in the archive is not JSON: {error}")))?;
    let entries = index["manifests"]
        .as_array()
        .ok_or_else(|| OpsError::Content("index.json in the archive is not an image index".to_owned()))?;
    if entries.is_empty() || entries.len() > ENTRIES_MAX {
        let count = entries.len();
        return Err(OpsError::Content(format!(
            "index.json in the archive lists {count} images; 1 to {ENTRIES_MAX} can be imported at once"
        )));
    }
    let mut tags: HashMap<(Repository, Tag), Digest> = HashMap::new();
    let mut found = Vec::new();
    for entry in entries {
        let digest = entry["digest"].as_str().unwrap_or_default();
        let digest: Digest = digest
            .parse()
            .map_err(|error| OpsError::Content(format!("index.json in the archive: {error}")))?;
        let (repository, tag) = name(cache, into, entry, &digest)?;
        if let Some(tag) = &tag
            && let Some(other) = tags.insert((repository.clone(), tag.clone()), digest)
            && other != digest
        {
            return Err(OpsError::Content(format!(
                "two images of the archive would be {repository}:{tag}: {other} and {digest}"
            )));
        }
        let media_type = entry["mediaType"].as_str().map(str::to_owned);
        let (size, referrers) = (entry["size"].as_u64(), referrers(entry)?);
        found.push(ImportTarget { digest, size, media_type, repository, tag, referrers });
    }
    Ok(found)
}

/// Reads the lists of referrers of an image and its parts from the annotation that `larder export` writes.
fn referrers(entry: &Value) -> Result<Vec<(Digest, Option<Digest>)>, OpsError> {
    let lists = annotation(entry, REFERRERS).unwrap_or_default().split_ascii_whitespace();
    let read = |list: &str| {
        let (subject, list) = list.split_once('=')?;
        let list = if list == NO_REFERRERS { None } else { Some(list.parse().ok()?) };
        Some((subject.parse().ok()?, list))
    };
    lists
        .map(|list| {
            read(list).ok_or_else(|| {
                OpsError::Content(format!("index.json in the archive: the annotation {REFERRERS} is invalid"))
            })
        })
        .collect()
}

/// Returns the destination of an entry.
///
/// A repository that the operator named takes precedence, then a complete reference, then a bare tag.
fn name(
    cache: &Cache,
    into: Option<&Repository>,
    entry: &Value,
    digest: &Digest,
) -> Result<(Repository, Option<Tag>), OpsError> {
    let short = annotation(entry, ANNOTATION_REF_NAME);
    let bare = short.filter(|text| !text.contains(['/', ':', '@']));
    let full_name = annotation(entry, IMAGE_NAME).or(short.filter(|_| bare.is_none()));
    if let Some(repository) = into {
        let tag = match (bare, full_name) {
            (Some(tag), _) => Some(tag.parse()?),
            (None, Some(full_name)) => reference::tag_of(full_name)?,
            (None, None) => None,
        };
        return Ok((repository.clone(), tag));
    }
    let Some(full_name) = full_name else {
        let what = bare.map_or_else(|| digest.to_string(), |tag| format!("the tag {tag}"));
        return Err(OpsError::Invalid(format!(
            "the archive does not name the repository of {what}; name it with --as REPOSITORY"
        )));
    };
    let ImageReference { repository, tag, digest: wanted } = reference::parse_foreign(cache, full_name).map_err(|error| {
        OpsError::Invalid(format!(
            "the name `{}` in the archive cannot be used: {error}; name the repository with --as REPOSITORY",
            full_name.chars().filter(|c| !c.is_control()).take(255).collect::<String>()
        ))
    })?;
    match wanted {
        Some(wanted) if wanted != *digest => {
            Err(OpsError::Content(format!("the archive has {digest} with the name {full_name}")))
        }
        _ => Ok((repository, tag)),
    }
}
