//! Tests of files: states after a crash, or after a change by another program.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::time::SystemTime;

use bytes::Bytes;
use tempfile::TempDir;

use crate::clock::Timestamp;
use crate::config::schema::BlobStoreKind;
use crate::oci::{Algorithm, Digest, Repository};
use crate::store::index::key::Key;
use crate::store::{BlobEntry, Counts, DraftEnd, DraftKey, DraftWriter, Removal, StoreError, StoreSession};

/// Longer than one step of writing and several pieces of reading.
const LENGTH: usize = 1_300_000;

struct House {
    folder: TempDir,
    store: StoreSession,
    content: Bytes,
    digest: Digest,
}

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let content: Bytes = (0..LENGTH).map(|i| u8::try_from(i * 7 % 251).expect("a byte")).collect();
        let digest = Digest::of(Algorithm::Sha256, &content);
        Self { store: open(&folder), folder, content, digest }
    }

    /// The same with the content held.
    fn filled() -> Self {
        let house = Self::new();
        house.fill();
        house
    }

    fn fill(&self) {
        let mut writer = self.store.open_draft(&self.draft_key()).expect("a draft");
        let received = usize::try_from(writer.draft().progress().received).expect("a length");
        append(&mut writer, self.content.slice(received..));
        assert_eq!(finish(writer), DraftEnd::Verified);
    }

    fn blob(&self) -> Option<BlobEntry> {
        self.store.blob(&self.digest).expect("a look")
    }

    fn path(&self) -> PathBuf {
        let hex = self.digest.hex();
        self.folder.path().join("blobs/sha256").join(&hex[..2]).join(hex)
    }

    fn draft_path(&self) -> PathBuf {
        self.folder.path().join("drafts/upstreams/a/sha256").join(self.digest.hex())
    }

    /// Path of a draft without an upstream.
    fn unowned_path(&self) -> PathBuf {
        self.folder.path().join("drafts/sha256").join(self.digest.hex())
    }

    fn draft_key(&self) -> DraftKey {
        DraftKey::of(&repository().upstream, &self.digest)
    }

    fn reopen(self) -> Self {
        let Self { folder, store, content, digest } = self;
        store.0.flush().expect("flushed");
        drop(store);
        Self { store: open(&folder), folder, content, digest }
    }

    /// Opening and reading all of it, in the steps that a client's reader makes.
    fn read(&self) -> Result<Vec<u8>, StoreError> {
        let open = self.blob().expect("a fact").open()?;
        let size = open.entry().size();
        let mut found = Vec::new();
        while (found.len() as u64) < size {
            match open.read_now(found.len() as u64..size) {
                Some(piece) => found.extend_from_slice(&piece),
                None => open
                    .read(found.len() as u64..size, 300_000)?
                    .iter()
                    .for_each(|piece| found.extend_from_slice(piece)),
            }
        }
        Ok(found)
    }

    #[track_caller]
    fn is_damaged(&self) {
        match self.read() {
            Err(StoreError::Damaged(digest)) => assert_eq!(digest, self.digest),
            other => panic!("{:?}", other.map(|bytes| bytes.len())),
        }
    }

    /// Removes the damaged blob as the cache does, fills it again and reads it.
    fn heals(&self) {
        self.store.remove(Removal::CorruptBlob(&self.blob().expect("a fact"))).expect("condemned");
        assert!(self.blob().is_none() && !self.path().exists() && !self.draft_path().exists());
        assert_eq!(self.store.0.counts(), Counts::default());
        self.fill();
        assert!(self.read().expect("read") == self.content);
        self.is_measured_exactly();
    }

    #[track_caller]
    fn is_measured_exactly(&self) {
        let exact = |path| fs::metadata(path).map_or(0, |file| file.blocks() * 512);
        assert_eq!(self.store.0.blobs.size_on_disk().expect("a size"), exact(self.path()));
        let drafts: u64 = self.store.0.drafts().expect("a list").iter().map(|draft| draft.bytes).sum();
        assert_eq!(drafts, exact(self.draft_path()) + exact(self.unowned_path()));
    }
}

fn open(folder: &TempDir) -> StoreSession {
    crate::store::tests::open(folder, BlobStoreKind::Files).expect("a store")
}

fn append(writer: &mut DraftWriter, bytes: Bytes) {
    writer.draft().receive(bytes.clone());
    writer.append(bytes).expect("appended");
}

fn repository() -> Repository {
    Repository { upstream: "a".parse().expect("a name"), name: "b".parse().expect("a name") }
}

fn finish(writer: DraftWriter) -> DraftEnd {
    writer.finish(&repository(), None, Timestamp::from_millis(1_700_000_000_123)).expect("finished")
}

fn write(path: &PathBuf) -> File {
    OpenOptions::new().write(true).open(path).expect("a file")
}

#[test]
fn changed_file_is_damaged_and_filled_again() {
    let changes: [fn(&PathBuf); 5] = [
        |path| fs::remove_file(path).expect("removed"),
        |path| write(path).set_len(LENGTH as u64 - 1).expect("cut off"),
        |path| write(path).set_len(LENGTH as u64 + 1).expect("made longer"),
        |path| write(path).set_len(0).expect("emptied"),
        |path| write(path).write_all_at(b"x", 700_000).expect("written"),
    ];
    for change in changes {
        let house = House::filled();
        assert!(house.read().expect("read") == house.content);
        change(&house.path());
        house.is_damaged();
        house.heals();
    }
}

#[test]
fn file_that_changes_during_a_read_is_damaged() {
    let changes: [fn(&PathBuf); 3] = [
        |path| write(path).set_len(500_000).expect("cut off"),
        |path| write(path).write_all_at(b"x", 10).expect("written"),
        |path| write(path).write_all_at(b"x", LENGTH as u64 - 1).expect("written"),
    ];
    for change in changes {
        let house = House::filled();
        let blob = house.blob().expect("a fact").open().expect("open");
        let size = blob.entry().size();
        assert!(!blob.read(0..size, 1000).expect("read").is_empty());
        change(&house.path());
        assert_eq!(blob.read_now(300_000..size), None);
        assert!(matches!(blob.read(300_000..size, 1000), Err(StoreError::Damaged(_))));
        house.heals();
    }
}

#[test]
fn file_with_another_time_only_is_verified() {
    let house = House::filled();
    let kept = fs::metadata(house.path()).expect("a file").modified().expect("a time");
    write(&house.path()).set_modified(SystemTime::now()).expect("a time");
    assert!(house.read().expect("read") == house.content);
    assert_eq!(fs::metadata(house.path()).expect("a file").modified().expect("a time"), kept);
    // The same with a byte changed.
    write(&house.path()).write_all_at(b"x", 5).expect("written");
    house.is_damaged();
}

#[test]
fn open_file_is_readable_after_its_removal() {
    let house = House::filled();
    house.is_measured_exactly();
    let blob = house.blob().expect("a fact").open().expect("open");
    house.store.remove(Removal::CorruptBlob(blob.entry())).expect("condemned");
    assert!(!house.path().exists());
    let read: Vec<_> = blob.read(0..u64::MAX, u64::MAX).expect("read").concat();
    assert!(read == house.content);
    house.is_measured_exactly();
    drop(blob);
    house.fill();
    house.is_measured_exactly();
}

#[test]
fn content_without_a_fact_is_resumed_by_the_upstream_that_delivered_it() {
    // As a crash leaves it between the rename and the fact, found at the start and found by a fill.
    for (reopened, is_delivered) in [(true, true), (false, true), (true, false), (false, false)] {
        let mut house = House::filled();
        {
            let facts = house.store.0.database.facts().expect("open");
            facts.remove(Key::Blob(&house.digest).to_bytes()).expect("removed");
            if !is_delivered {
                facts
                    .remove(Key::Delivered(&house.digest, &repository().upstream).to_bytes())
                    .expect("removed");
            }
        }
        if reopened {
            house = house.reopen();
            assert!(house.unowned_path().exists() && !house.path().exists());
            house.is_measured_exactly();
        }
        let mut writer = house.store.open_draft(&house.draft_key()).expect("a draft");
        let received = writer.draft().progress().received;
        assert_eq!(received, if is_delivered { LENGTH as u64 } else { 0 });
        append(&mut writer, house.content.slice(usize::try_from(received).expect("a length")..));
        assert_eq!(finish(writer), DraftEnd::Verified);
        assert!(house.read().expect("read") == house.content);
        house.is_measured_exactly();
    }
}

#[test]
fn fact_without_a_file_is_removed_at_the_start() {
    let changes: [fn(&PathBuf); 2] =
        [|path| fs::remove_file(path).expect("removed"), |path| write(path).set_len(7).expect("cut off")];
    for change in changes {
        let house = House::filled();
        change(&house.path());
        let house = house.reopen();
        assert!(house.blob().is_none());
        assert_eq!(house.store.0.counts(), Counts::default());
        assert!(!house.path().exists());
        house.fill();
        assert!(house.read().expect("read") == house.content);
    }
}

#[test]
fn foreign_file_is_ignored() {
    let house = House::filled();
    let strange = house.path().with_file_name("precious.txt");
    let drafted = house.draft_path().with_file_name("precious.txt");
    for path in [&strange, &drafted] {
        fs::write(path, "mine").expect("written");
    }
    let house = house.reopen();
    assert!(house.read().expect("read") == house.content);
    for path in [&strange, &drafted] {
        assert_eq!(fs::read_to_string(path).expect("read"), "mine");
    }
}

#[test]
fn draft_resumes_at_any_byte() {
    for kept in [0, 1, 511, 512, 524_289, LENGTH - 1] {
        let house = House::new();
        let mut writer = house.store.open_draft(&house.draft_key()).expect("a draft");
        append(&mut writer, house.content.clone());
        drop(writer);
        write(&house.draft_path()).set_len(kept as u64).expect("cut off");
        let house = house.reopen();
        house.is_measured_exactly();
        let writer = house.store.open_draft(&house.draft_key()).expect("a draft");
        assert_eq!(writer.draft().progress().received, kept as u64);
        drop(writer);
        house.fill();
        assert!(house.read().expect("read") == house.content);
    }
}

#[test]
fn changed_draft_does_not_become_content() {
    let changes: [fn(&PathBuf); 3] = [
        |path| fs::remove_file(path).expect("removed"),
        |path| write(path).set_len(9).expect("cut off"),
        |path| {
            let mut file = OpenOptions::new().append(true).open(path).expect("a file");
            file.write_all(b"more").expect("written");
        },
    ];
    for change in changes {
        let house = House::new();
        let mut writer = house.store.open_draft(&house.draft_key()).expect("a draft");
        append(&mut writer, house.content.clone());
        writer.flush().expect("written");
        change(&house.draft_path());
        let repository =
            Repository { upstream: "a".parse().expect("a name"), name: "b".parse().expect("a name") };
        writer.finish(&repository, None, Timestamp::from_millis(1)).expect_err("refused");
        assert!(house.blob().is_none());
        house.fill();
        assert!(house.read().expect("read") == house.content);
    }
}

#[test]
fn full_disk_is_an_error_and_leaves_nothing() {
    let house = House::new();
    // The one file that is always full.
    let draft = house.draft_path();
    fs::create_dir_all(draft.parent().expect("a folder")).expect("a folder");
    std::os::unix::fs::symlink("/dev/full", draft).expect("a link");
    let mut writer = house.store.open_draft(&house.draft_key()).expect("a draft");
    let draft = writer.draft().clone();
    draft.receive(house.content.clone());
    assert!(draft.is_kept());
    writer.append(house.content.clone()).expect("hashed");
    assert!(!draft.is_kept());
    // What is not written stays in memory for those who read already.
    assert_eq!(draft.recent(5..10).expect("in memory").concat(), house.content[5..10]);
    let verified = writer.verify(None).expect("looked at").expect("right");
    match verified.commit(Some(&repository()), Timestamp::from_millis(1)) {
        Err(StoreError::File { path, source }) => {
            assert_eq!((path, source.kind()), (house.draft_path(), ErrorKind::StorageFull));
        }
        other => panic!("{other:?}"),
    }
    drop(draft);
    assert!(fs::symlink_metadata(house.draft_path()).is_err());
    house.fill();
    assert!(house.read().expect("read") == house.content);
}
