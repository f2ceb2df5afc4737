//! Contract tests of [`Blobs`]: every kind of blob store passes all of them.

use bytes::Bytes;
use tempfile::TempDir;

use super::{BlobBytes, Blobs, ReadBlob, kind};
use crate::clock::Timestamp;
use crate::config::schema::BlobStoreKind;
use crate::oci::{Algorithm, Digest};
use crate::store::blobs::files::DraftKey;
use crate::store::error::StoreError;
use crate::store::index::database::Database;
use crate::store::index::trees::Trees;
use crate::store::lifecycle::header::Geometry;

const GEOMETRY: Geometry = Geometry { page_size: 1024, segment_size: 512 << 10 };
const STORED_AT: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// Runs every test over every kind.
macro_rules! over_every_kind {
    ($($name:ident)*) => {
        mod sled {
            $(#[test] fn $name() { super::$name(&super::Fixture::new(super::BlobStoreKind::Sled)); })*
        }
        mod files {
            $(#[test] fn $name() { super::$name(&super::Fixture::new(super::BlobStoreKind::Files)); })*
        }
    };
}

over_every_kind! {
    committed_blob_reads_back_in_any_range
    draft_is_not_content
    empty_blob_is_complete
    removed_blob_is_damaged_and_incomplete
    import_refuses_wrong_bytes_and_stores_nothing
    import_replaces_an_incomplete_blob
    drafts_are_listed_with_their_size_on_disk
    sha512_blob_is_separate_from_sha256
}

struct Fixture {
    _folder: TempDir,
    trees: Trees,
    blobs: std::sync::Arc<dyn Blobs>,
}

impl Fixture {
    fn new(kind: BlobStoreKind) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let trees = Trees::open(folder.path(), GEOMETRY, 8 << 20).expect("trees");
        let database = Database::default();
        database.replace(Some(trees.clone()));
        let blobs = kind::create(kind, folder.path(), &database);
        blobs.prepare().expect("prepared");
        Self { _folder: folder, trees, blobs }
    }

    fn commit(&self, digest: &Digest, content: &Bytes) {
        let mut draft = self.blobs.files().draft(&DraftKey::unowned(digest)).expect("a draft");
        draft.append(content.clone()).expect("appended");
        self.blobs.commit(&mut draft, STORED_AT, &self.trees).expect("committed");
    }

    fn open(&self, digest: &Digest, content: &Bytes) -> Result<BlobBytes, StoreError> {
        self.blobs.open(digest, content.len() as u64, STORED_AT)
    }

    fn is_complete(&self, digest: &Digest, content: &Bytes) -> bool {
        self.blobs.is_complete(digest, content.len() as u64, STORED_AT).expect("a check")
    }

    fn import(&self, digest: &Digest, content: &Bytes) -> bool {
        let from = InMemory(content.clone());
        self.blobs.import(&from, digest, content.len() as u64, STORED_AT).expect("imported")
    }
}

/// Bytes in memory, as a source of imports.
#[derive(Debug)]
struct InMemory(Bytes);

impl ReadBlob for InMemory {
    fn read(&self, range: std::ops::Range<u64>, _step: u64) -> Result<Vec<Bytes>, StoreError> {
        let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).expect("a length"));
        Ok(vec![self.0.slice(start..end)])
    }

    fn read_now(&self, _range: std::ops::Range<u64>) -> Option<Bytes> {
        None
    }

    fn has_read_ahead(&self) -> bool {
        false
    }
}

fn content(length: usize) -> (Digest, Bytes) {
    let bytes: Bytes = (0..length).map(|i| u8::try_from(i * 7 % 251).expect("a byte")).collect();
    (Digest::of(Algorithm::Sha256, &bytes), bytes)
}

fn read_all(blob: &dyn ReadBlob, range: std::ops::Range<u64>) -> Result<Vec<u8>, StoreError> {
    let (mut found, mut at) = (Vec::new(), range.start);
    while at < range.end {
        for piece in blob.read(at..range.end, 3000)? {
            at += piece.len() as u64;
            found.extend_from_slice(&piece);
        }
    }
    Ok(found)
}

fn committed_blob_reads_back_in_any_range(fixture: &Fixture) {
    let (digest, content) = content(10_000);
    fixture.commit(&digest, &content);
    let blob = fixture.open(&digest, &content).expect("a blob");
    for (start, end) in [(0, 10_000), (1, 2), (1023, 1025), (9_999, 10_000), (5000, 5000)] {
        assert_eq!(read_all(&*blob, start as u64..end as u64).expect("read"), content[start..end]);
        if let Some(now) = blob.read_now(start as u64..end as u64) {
            assert_eq!(now, content[start..start + now.len()]);
        }
    }
    assert!(fixture.is_complete(&digest, &content));
}

fn draft_is_not_content(fixture: &Fixture) {
    let (digest, content) = content(5000);
    let mut draft = fixture.blobs.files().draft(&DraftKey::unowned(&digest)).expect("a draft");
    draft.append(content.clone()).expect("appended");
    draft.complete().expect("written");
    assert!(!fixture.is_complete(&digest, &content));
    if let Some(list) = fixture.blobs.list().expect("a list") {
        assert!(list.is_empty());
    }
}

fn empty_blob_is_complete(fixture: &Fixture) {
    let (digest, content) = content(0);
    fixture.commit(&digest, &content);
    assert!(fixture.is_complete(&digest, &content));
    let blob = fixture.open(&digest, &content).expect("a blob");
    assert!(read_all(&*blob, 0..0).expect("read").is_empty());
}

fn removed_blob_is_damaged_and_incomplete(fixture: &Fixture) {
    let (digest, content) = content(5000);
    fixture.commit(&digest, &content);
    fixture.blobs.remove(&digest).expect("removed");
    fixture.blobs.remove(&digest).expect("removed twice");
    let read = fixture.open(&digest, &content).and_then(|blob| read_all(&*blob, 0..5000));
    assert!(matches!(read, Err(StoreError::Damaged(found)) if found == digest), "{read:?}");
    assert!(!fixture.is_complete(&digest, &content));
}

fn import_refuses_wrong_bytes_and_stores_nothing(fixture: &Fixture) {
    let (digest, content) = content(5000);
    let wrong = content.iter().rev().copied().collect();
    assert!(!fixture.import(&digest, &wrong));
    assert!(!fixture.is_complete(&digest, &content));
    assert!(fixture.blobs.files().drafts().expect("a list").is_empty());
}

fn import_replaces_an_incomplete_blob(fixture: &Fixture) {
    let (digest, content) = content(5000);
    fixture.commit(&digest, &content.slice(..3000));
    assert!(!fixture.is_complete(&digest, &content));
    assert!(fixture.import(&digest, &content));
    let blob = fixture.open(&digest, &content).expect("a blob");
    assert_eq!(read_all(&*blob, 0..5000).expect("read"), content);
}

fn drafts_are_listed_with_their_size_on_disk(fixture: &Fixture) {
    let (digest, content) = content(100_000);
    let before = fixture.blobs.size_on_disk().expect("a size");
    let mut draft = fixture.blobs.files().draft(&DraftKey::unowned(&digest)).expect("a draft");
    draft.append(content).expect("appended");
    draft.complete().expect("written");
    let listed = fixture.blobs.files().drafts().expect("a list");
    assert!(listed.len() == 1 && listed[0].bytes >= 100_000);
    fixture.blobs.files().remove_draft(&DraftKey::unowned(&digest)).expect("removed");
    assert!(fixture.blobs.files().drafts().expect("a list").is_empty());
    assert_eq!(fixture.blobs.size_on_disk().expect("a size"), before);
}

fn sha512_blob_is_separate_from_sha256(fixture: &Fixture) {
    let (digest, content) = content(5000);
    let long = Digest::of(Algorithm::Sha512, &content);
    fixture.commit(&long, &content);
    assert!(fixture.is_complete(&long, &content) && !fixture.is_complete(&digest, &content));
}
