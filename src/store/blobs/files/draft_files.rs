//! Files of drafts, by upstream and digest.
//!
//! An upstream has delivered a digest only if it has sent all bytes. So a fill never resumes a draft of another upstream.
//! The path contains the upstream, and not a fact in the database: after a crash, a path and its file always agree.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use crate::clock::Timestamp;
use crate::oci::{Algorithm, Digest, UpstreamName};
use crate::store::error::StoreError;

use super::folder::{Files, failed, files_in, make_folder, make_folders, read_dir, remove};

const DRAFTS: &str = "drafts";
/// Folder of the drafts that have an upstream, beside the folders of the algorithms.
const UPSTREAMS: &str = "upstreams";

/// Identity of a draft.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DraftKey {
    /// Digest that the complete bytes must have.
    pub digest: Digest,
    /// Upstream that sends the bytes; `None` for an archive, and for bytes whose sender is not known.
    pub upstream: Option<UpstreamName>,
}

/// Draft with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftUsage {
    /// Identity.
    pub key: DraftKey,
    /// Bytes on disk.
    pub bytes: u64,
    /// Time of the last write.
    pub changed: Timestamp,
}

impl DraftKey {
    /// Creates the key of bytes that an upstream sends.
    pub fn of(upstream: &UpstreamName, digest: &Digest) -> Self {
        Self { digest: *digest, upstream: Some(upstream.clone()) }
    }

    /// Creates the key of bytes that no upstream sends, or whose sender is not known.
    pub fn unowned(digest: &Digest) -> Self {
        Self { digest: *digest, upstream: None }
    }
}

impl Files {
    /// Creates the folders of drafts.
    pub(in crate::store) fn prepare_drafts(&self) -> Result<(), StoreError> {
        let top = self.draft_folder(None);
        make_folders(&top)?;
        self.test_times(&top.join("time"))
    }

    /// Returns the folder of the drafts of one upstream.
    fn draft_folder(&self, upstream: Option<&UpstreamName>) -> PathBuf {
        let top = self.folder().join(DRAFTS);
        upstream.map_or_else(|| top.clone(), |upstream| top.join(UPSTREAMS).join(upstream.as_str()))
    }

    /// Returns the path of a draft.
    pub(super) fn growing(&self, key: &DraftKey) -> PathBuf {
        let folder = self.draft_folder(key.upstream.as_ref());
        folder.join(key.digest.algorithm().as_str()).join(key.digest.hex())
    }

    /// Removes a draft. Open readers are not disturbed.
    pub(in crate::store) fn remove_draft(&self, key: &DraftKey) -> Result<(), StoreError> {
        let _names = self.names();
        remove(&self.growing(key))
    }

    /// Makes a draft without an upstream of content without a fact: nothing shows which upstream has delivered it.
    pub(in crate::store) fn demote(&self, digest: &Digest) -> Result<(), StoreError> {
        let (content, draft) = (self.content(digest), self.growing(&DraftKey::unowned(digest)));
        let found = match fs::symlink_metadata(&content) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(&content)(error)),
        };
        fs::rename(&content, draft).map_err(failed(&content))?;
        self.0.disk.subtract(&found);
        Ok(())
    }

    /// Returns true if a digest has a draft without an upstream.
    pub(in crate::store) fn has_unowned_draft(&self, digest: &Digest) -> bool {
        fs::symlink_metadata(self.growing(&DraftKey::unowned(digest))).is_ok()
    }

    /// Gives the draft without an upstream to an upstream that has delivered the digest. The caller has locked the names.
    pub(in crate::store) fn adopt_draft(&self, key: &DraftKey) -> Result<(), StoreError> {
        let (from, to) = (self.growing(&DraftKey::unowned(&key.digest)), self.growing(key));
        let folder = to.parent().unwrap_or(&to);
        make_folder(folder).map_err(failed(folder))?;
        fs::rename(&from, &to).map_err(failed(&from))
    }

    /// Lists all drafts.
    pub(in crate::store) fn drafts(&self) -> Result<Vec<DraftUsage>, StoreError> {
        #[cfg(test)]
        self.count_draft_list();
        let top = self.draft_folder(None).join(UPSTREAMS);
        let mut folders = vec![(self.draft_folder(None), None)];
        for entry in read_dir(&top)? {
            let entry = entry.map_err(failed(&top))?;
            let upstream = entry.file_name().to_str().and_then(|name| name.parse::<UpstreamName>().ok());
            folders.extend(upstream.map(|upstream| (entry.path(), Some(upstream))));
        }
        let mut found = Vec::new();
        for (folder, upstream) in folders {
            for algorithm in Algorithm::ALL.iter().copied() {
                let mut files = Vec::new();
                files_in(&folder.join(algorithm.as_str()), algorithm, &mut files)?;
                found.extend(files.into_iter().map(|file| DraftUsage {
                    key: DraftKey { digest: file.digest, upstream: upstream.clone() },
                    bytes: file.disk,
                    changed: file.changed,
                }));
            }
        }
        Ok(found)
    }
}
