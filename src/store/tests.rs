//! Tests of the store over every kind of blob store.

use std::collections::HashSet;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;

use super::engine::Engine;
use super::index::fact::Fact as _;
use super::index::key::Key;
use super::*;
use crate::clock::Timestamp;
use crate::config::schema::BlobStoreKind;
use crate::oci::{Algorithm, Digest, MediaType, Repository};

const SMALL: Geometry = Geometry { page_size: 1024, segment_size: 512 << 10 };

/// Runs every test over every kind.
macro_rules! over_every_kind {
    ($($name:ident)*) => {
        mod sled {
            $(#[test] fn $name() { super::$name(super::BlobStoreKind::Sled); })*
        }
        mod files {
            $(#[test] fn $name() { super::$name(super::BlobStoreKind::Files); })*
        }
    };
}

mod commit;

over_every_kind! {
    blob_reads_back
    draft_is_never_content
    draft_of_another_upstream_is_not_resumed
    mismatch_leaves_nothing
    empty_draft_leaves_nothing
    unreadable_fact_is_ignored
    manifest_with_an_unreadable_fact_is_stored_again
    reader_gets_the_newest_bytes_from_memory_and_the_rest_from_disk
    damaged_blob_is_never_content
    missing_bytes_are_damage
    manifest_keeps_its_first_media_type_and_links_its_content
    earlier_store_gives_content_to_the_only_upstream_that_links_it
    names_are_paginated_in_byte_order
    second_process_gets_an_error
    flushed_content_survives_a_restart
    other_kind_of_blob_store_is_refused
    referrers_belong_to_one_repository_and_one_subject
    absences_belong_to_their_subject
}

/// Opens the store in a folder, also again after its last handle was dropped. A process that another test forks at that
/// moment holds the lock until it executes its program.
pub(super) fn open(folder: &TempDir, kind: BlobStoreKind) -> Result<StoreSession, StoreError> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match Engine::open(&options(folder, kind), SMALL) {
            Err(StoreError::Locked(_)) if Instant::now() < end => std::thread::yield_now(),
            opened => return opened.map(StoreSession),
        }
    }
}

fn options(folder: &TempDir, kind: BlobStoreKind) -> schema::Store {
    schema::Store {
        path: folder.path().to_owned(),
        blobs: kind,
        on_corruption: schema::OnCorruption::Refuse,
        cache_memory: bytesize::ByteSize::mib(8),
        ..schema::Store::default()
    }
}

fn store(kind: BlobStoreKind) -> (StoreSession, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder, kind).expect("a store");
    (store, folder)
}

/// Returns all files below `below`.
fn files_below(folder: &TempDir, below: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.path().join(below)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found
}

/// Returns true if any byte of the digest is stored.
fn is_kept(store: &StoreSession, folder: &TempDir, digest: &Digest) -> bool {
    let page = store.0.database.pages().expect("open").get(digest, 0).expect("a look");
    let held = page.is_some() || !files_below(folder, "blobs").is_empty();
    held || !files_below(folder, "drafts").is_empty()
}

/// Damages the middle of a blob.
fn spoil(store: &StoreSession, folder: &TempDir, digest: &Digest) {
    match store.0.blobs.space_model() {
        SpaceModel::Shared => {
            let pages = store.0.database.pages().expect("open");
            pages.put(digest, 2, b"short").expect("written");
        }
        SpaceModel::Separate { .. } => {
            let path = &files_below(folder, "blobs")[0];
            let file = std::fs::OpenOptions::new().write(true).open(path).expect("a file");
            file.write_all_at(b"short", 2048).expect("written");
        }
    }
}

fn append(writer: &mut DraftWriter, bytes: Bytes) {
    writer.draft().receive(bytes.clone());
    writer.append(bytes).expect("appended");
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn repository(name: &str) -> Repository {
    Repository { upstream: "docker.io".parse().expect("a name"), name: name.parse().expect("a name") }
}

/// Key of the draft of the upstream of [`repository`].
fn draft_of(digest: &Digest) -> DraftKey {
    DraftKey::of(&repository("a").upstream, digest)
}

fn body(length: usize) -> Bytes {
    (0..length).map(|i| u8::try_from(i * 7 % 251).expect("a byte")).collect::<Vec<_>>().into()
}

fn fill(store: &StoreSession, content: &Bytes, chunk: usize) -> Digest {
    let digest = Digest::of(Algorithm::Sha256, content);
    let mut writer = store.open_draft(&draft_of(&digest)).expect("a draft");
    let received = usize::try_from(writer.draft().progress().received).expect("a length");
    for part in content[received..].chunks(chunk) {
        append(&mut writer, Bytes::copy_from_slice(part));
    }
    let end = writer.finish(&repository("a"), None, at(1)).expect("finished");
    assert_eq!(end, DraftEnd::Verified);
    digest
}

fn blob(store: &StoreSession, digest: &Digest) -> BlobEntry {
    store.blob(digest).expect("a look").expect("a blob")
}

fn read_all(blob: &OpenBlob, range: std::ops::Range<u64>) -> Vec<u8> {
    let mut found = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let step = blob.read(at..range.end, 5000).expect("read");
        assert!(!step.is_empty());
        for page in step {
            at += page.len() as u64;
            found.extend_from_slice(&page);
        }
    }
    found
}

fn blob_reads_back(kind: BlobStoreKind) {
    let (store, _folder) = store(kind);
    for (length, chunk) in
        [(0, 1), (1, 1), (1023, 100), (1024, 1024), (1025, 5), (10_000, 3000), (70_000, 70_000)]
    {
        let content = body(length);
        let digest = fill(&store, &content, chunk);
        let open = blob(&store, &digest).open().expect("a blob");
        assert_eq!(open.entry().size(), length as u64);
        assert_eq!(read_all(&open, 0..length as u64), content);
        if length > 1100 {
            assert_eq!(read_all(&open, 1000..1100), content[1000..1100]);
            assert_eq!(read_all(&open, 1024..1025), content[1024..1025]);
        }
        assert!(store.link(&repository("a"), &digest).expect("a look").is_some());
        assert!(store.link(&repository("b"), &digest).expect("a look").is_none());
    }
}

fn draft_is_never_content(kind: BlobStoreKind) {
    let (store, folder) = store(kind);
    let content = body(5000);
    let digest = Digest::of(Algorithm::Sha256, &content);
    let mut writer = store.open_draft(&draft_of(&digest)).expect("a draft");
    append(&mut writer, content.slice(..4500));
    assert!(store.blob(&digest).expect("a look").is_none());

    // The next run takes over what is written.
    writer.flush().expect("written");
    drop(writer);
    store.0.flush().expect("flushed");
    drop(store);
    let store = open(&folder, kind).expect("opens again");
    assert!(store.blob(&digest).expect("a look").is_none());
    let mut writer = store.open_draft(&draft_of(&digest)).expect("a draft");
    let received = writer.draft().progress().received;
    assert_eq!(received, 4500);
    append(&mut writer, content.slice(usize::try_from(received).expect("a length")..));
    assert_eq!(writer.finish(&repository("a"), Some(5000), at(1)).expect("finished"), DraftEnd::Verified);
    assert_eq!(store.0.counts(), Counts { content: 5000, manifests: 0, blobs: 1 });
}

fn draft_of_another_upstream_is_not_resumed(kind: BlobStoreKind) {
    let (store, folder) = store(kind);
    let content = body(600_000);
    let digest = Digest::of(Algorithm::Sha256, &content);
    let mut writer = store.open_draft(&draft_of(&digest)).expect("a draft");
    append(&mut writer, content.slice(..599_999));
    writer.flush().expect("written");
    drop(writer);

    let other = Repository { upstream: "other.test".parse().expect("a name"), ..repository("a") };
    for key in [DraftKey::of(&other.upstream, &digest), DraftKey::unowned(&digest)] {
        let writer = store.open_draft(&key).expect("a draft");
        assert_eq!(writer.draft().progress().received, 0, "{key:?}");
    }
    // The upstream of the draft still resumes it.
    let writer = store.open_draft(&draft_of(&digest)).expect("a draft");
    assert_eq!(writer.draft().progress().received, 599_999);
    drop(writer);

    // The draft has no use once the blob is stored.
    let mut writer = store.open_draft(&DraftKey::of(&other.upstream, &digest)).expect("a draft");
    append(&mut writer, content);
    assert_eq!(writer.finish(&other, None, at(1)).expect("finished"), DraftEnd::Verified);
    let drafts = store.usage().expect("measured").drafts;
    assert_eq!(drafts.iter().map(|draft| &draft.key).collect::<Vec<_>>(), [&draft_of(&digest)]);
    assert!(store.is_delivered(&other.upstream, &digest).expect("a look"));
    assert!(!store.is_delivered(&repository("a").upstream, &digest).expect("a look"));
    store.0.flush().expect("flushed");
    drop(store);
    let store = open(&folder, kind).expect("opens again");
    assert!(files_below(&folder, "drafts").is_empty());
    blob(&store, &digest).open().expect("a blob");
}

fn mismatch_leaves_nothing(kind: BlobStoreKind) {
    let (store, folder) = store(kind);
    let content = body(5000);
    let digest = Digest::of(Algorithm::Sha256, b"something else");
    for expected in [None, Some(5000)] {
        let mut writer = store.open_draft(&draft_of(&digest)).expect("a draft");
        assert_eq!(writer.draft().progress().received, 0);
        append(&mut writer, content.clone());
        assert_eq!(writer.finish(&repository("a"), expected, at(1)).expect("finished"), DraftEnd::Mismatch);
        assert!(store.blob(&digest).expect("a look").is_none());
        assert!(store.link(&repository("a"), &digest).expect("a look").is_none());
        assert!(!is_kept(&store, &folder, &digest));
    }
    // The right bytes under the wrong size are as wrong.
    let digest = Digest::of(Algorithm::Sha256, &content);
    let mut writer = store.open_draft(&draft_of(&digest)).expect("a draft");
    append(&mut writer, content.clone());
    assert_eq!(writer.finish(&repository("a"), Some(4999), at(1)).expect("finished"), DraftEnd::Mismatch);
}

fn empty_draft_leaves_nothing(kind: BlobStoreKind) {
    let (store, folder) = store(kind);
    let digest = Digest::of(Algorithm::Sha256, b"never comes");
    drop(store.open_draft(&draft_of(&digest)).expect("a draft"));
    let facts = store.0.database.facts().expect("open");
    let names: Vec<_> = facts.iter().keys().map(|key| key.expect("a key")).collect();
    assert_eq!(names, [Key::deliveries_mark()]);
    assert!(!is_kept(&store, &folder, &digest));
}

fn unreadable_fact_is_ignored(kind: BlobStoreKind) {
    let (store, folder) = store(kind);
    let digest = fill(&store, &body(10), 10);
    store
        .0
        .database
        .facts()
        .expect("open")
        .insert(Key::Blob(&digest).to_bytes(), &[99, 1, 2])
        .expect("written");
    store.0.flush().expect("flushed");
    assert!(store.blob(&digest).expect("a look").is_none());
    drop(store);
    let store = open(&folder, kind).expect("opens again");
    assert_eq!(store.0.counts(), Counts::default());
    assert_eq!(fill(&store, &body(10), 10), digest);
    assert_eq!(store.0.counts(), Counts { content: 10, manifests: 0, blobs: 1 });
}

fn manifest_with_an_unreadable_fact_is_stored_again(kind: BlobStoreKind) {
    let (store, _folder) = store(kind);
    let kept = StoredManifest { media_type: MediaType::new("a/b").expect("a type"), body: body(10) };
    let digest = Digest::of(Algorithm::Sha256, &kept.body);
    store
        .0
        .database
        .facts()
        .expect("open")
        .insert(Key::Manifest(&digest).to_bytes(), &[99, 1, 2])
        .expect("written");
    assert!(store.manifest(&digest).expect("a look").is_none());
    store.put_manifest(&repository("a"), &digest, &kept, std::iter::empty(), at(1)).expect("kept");
    assert_eq!(store.manifest(&digest).expect("a look").expect("a manifest").body, kept.body);
}

#[test]
fn last_byte_waits_for_verification() {
    let at = |received, total, verified: bool| {
        let end = verified.then_some(DraftEnd::Verified);
        Progress { received, written: 0, total, end }.readable()
    };
    assert_eq!(at(10, Some(20), false), 10);
    assert_eq!(at(20, Some(20), false), 19);
    assert_eq!(at(25, Some(20), false), 19);
    assert_eq!(at(20, Some(20), true), 20);
    assert_eq!(at(20, None, false), 19);
    assert_eq!(at(0, None, false), 0);
    assert_eq!(at(0, Some(0), false), 0);
}

fn reader_gets_the_newest_bytes_from_memory_and_the_rest_from_disk(kind: BlobStoreKind) {
    let (store, _folder) = store(kind);
    let content = body(3 << 20);
    let digest = Digest::of(Algorithm::Sha256, &content);
    let mut writer = store.open_draft(&draft_of(&digest)).expect("a draft");
    let draft = writer.draft().clone();
    for part in 0..48 {
        let part = content.slice(part << 16..(part + 1) << 16);
        draft.receive(part.clone());
        writer.append(part).expect("appended");
    }
    let length = content.len() as u64;
    assert!(draft.recent(0..1).is_none());
    let newest = draft.recent(length - 70_000..length - 5).expect("in memory").concat();
    assert_eq!(newest, content[content.len() - 70_000..content.len() - 5]);
    let oldest = draft.read(10..5000, 1 << 20).expect("written").concat();
    assert_eq!(oldest, content[10..5000]);
    assert!(draft.recent(length..length + 1).is_none());
}

fn damaged_blob_is_never_content(kind: BlobStoreKind) {
    let (store, folder) = store(kind);
    let content = body(5000);
    let digest = fill(&store, &content, 5000);
    let entry = blob(&store, &digest);
    spoil(&store, &folder, &digest);
    let read = entry.open().and_then(|open| open.read(0..5000, 5000));
    assert!(matches!(read, Err(StoreError::Damaged(_))), "{read:?}");
    store.remove(Removal::CorruptBlob(&entry)).expect("condemned");
    assert!(store.blob(&digest).expect("a look").is_none());
    assert_eq!(store.0.counts(), Counts::default());

    // The next fill begins with nothing of it, and who still holds the damaged entry cannot harm the new blob.
    assert_eq!(store.open_draft(&draft_of(&digest)).expect("a draft").draft().progress().received, 0);
    let mut writer = store.open_draft(&draft_of(&digest)).expect("a draft");
    append(&mut writer, content.clone());
    assert_eq!(writer.finish(&repository("a"), None, at(2)).expect("finished"), DraftEnd::Verified);
    store.remove(Removal::CorruptBlob(&entry)).expect("passed over");
    let open = blob(&store, &digest).open().expect("a blob");
    assert_eq!(read_all(&open, 0..5000), content);
    assert_eq!(store.0.counts(), Counts { content: 5000, manifests: 0, blobs: 1 });
}

fn missing_bytes_are_damage(kind: BlobStoreKind) {
    let (store, _folder) = store(kind);
    let content = body(5000);
    let digest = fill(&store, &content, 5000);
    store.0.blobs.remove(&digest).expect("removed");
    let entry = blob(&store, &digest);
    let read = entry.open().and_then(|open| open.read(0..5000, 5000));
    assert!(matches!(read, Err(StoreError::Damaged(_))), "{read:?}");
    store.remove(Removal::CorruptBlob(&entry)).expect("condemned");
    assert_eq!(fill(&store, &content, 5000), digest);
    assert_eq!(read_all(&blob(&store, &digest).open().expect("a blob"), 0..5000), content);
}

fn flushed_content_survives_a_restart(kind: BlobStoreKind) {
    let (store, folder) = store(kind);
    let content = body(5000);
    let digests = [fill(&store, &content, 5000), fill(&store, &body(0), 1), fill(&store, &body(1), 1)];
    store.0.flush().expect("flushed");
    let counts = store.0.counts();
    drop(store);
    let store = open(&folder, kind).expect("opens again");
    assert_eq!(store.0.counts(), counts);
    for digest in digests {
        let open = blob(&store, &digest).open().expect("a blob");
        let size = open.entry().size();
        assert_eq!(read_all(&open, 0..size), content[..usize::try_from(size).expect("a length")]);
        assert!(open.read(size..size, 5000).expect("read").is_empty());
        assert!(open.read(size..u64::MAX, 5000).expect("read").is_empty());
        assert!(open.read_now(size..u64::MAX).is_none());
    }
}

fn other_kind_of_blob_store_is_refused(kind: BlobStoreKind) {
    let (store, folder) = store(kind);
    drop(store);
    let other = if kind == BlobStoreKind::Sled { BlobStoreKind::Files } else { BlobStoreKind::Sled };
    let error = open(&folder, other).expect_err("refused").to_string();
    assert!(error.contains(&format!("larder store convert --to {}", other.as_str())), "{error}");
    open(&folder, kind).expect("opens again");
}

fn manifest_keeps_its_first_media_type_and_links_its_content(kind: BlobStoreKind) {
    let (store, _folder) = store(kind);
    let kept = |text: &str, body: &Bytes| StoredManifest {
        media_type: MediaType::new(text).expect("a type"),
        body: body.clone(),
    };
    let body = body(3000);
    let digest = Digest::of(Algorithm::Sha256, &body);
    let child = Digest::of(Algorithm::Sha512, b"child");
    let links = || [(child, Some(5))].into_iter();
    store.put_manifest(&repository("a"), &digest, &kept("a/b", &body), links(), at(1)).expect("kept");
    store.put_manifest(&repository("b"), &digest, &kept("c/d", &body), links(), at(2)).expect("kept");
    let found = store.manifest(&digest).expect("a look").expect("a manifest");
    assert_eq!((found.media_type.as_str(), &found.body), ("a/b", &body));
    for name in ["a", "b"] {
        let link = store.link(&repository(name), &child).expect("a look").expect("a link");
        assert_eq!(link.size, Some(5));
    }
    assert_eq!(store.0.counts(), Counts { content: 3000, manifests: 1, blobs: 0 });
}

fn earlier_store_gives_content_to_the_only_upstream_that_links_it(kind: BlobStoreKind) {
    let (store, folder) = store(kind);
    let of = |upstream: &str, name: &str| Repository {
        upstream: upstream.parse().expect("a name"),
        name: name.parse().expect("a name"),
    };
    let manifest = |text: &'static str| StoredManifest {
        media_type: MediaType::new("a/b").expect("a type"),
        body: Bytes::from_static(text.as_bytes()),
    };
    let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
    let put = |repository: &Repository, text| {
        let none = std::iter::empty();
        store.put_manifest(repository, &digest(text), &manifest(text), none, at(1)).expect("kept");
    };
    let (here, there) = (of("docker.io", "a"), of("other.test", "a"));
    put(&here, "own");
    put(&here, "shared");
    store
        .apply(&[
            Change::AddLink(of("docker.io", "b"), digest("own")),
            Change::AddLink(there.clone(), digest("shared")),
            Change::AddLink(here.clone(), digest("absent")),
        ])
        .expect("applied");
    assert!(store.is_delivered(&here.upstream, &digest("shared")).expect("a look"));
    assert!(store.access(&there, &digest("shared")).expect("a look").is_none());
    // As an earlier version has left it.
    {
        let facts = store.0.database.facts().expect("facts");
        facts.remove(Key::deliveries_mark()).expect("removed");
        for item in facts.scan_prefix(Key::deliveries()).keys() {
            facts.remove(item.expect("a key")).expect("removed");
        }
        facts.flush().expect("flushed");
    }
    drop(store);
    let store = open(&folder, kind).expect("opens again");
    for repository in [&here, &of("docker.io", "b")] {
        assert!(store.access(repository, &digest("own")).expect("a look").is_some());
    }
    for (upstream, text) in [(&here, "shared"), (&there, "shared"), (&there, "own"), (&here, "absent")] {
        assert!(!store.is_delivered(&upstream.upstream, &digest(text)).expect("a look"), "{text}");
    }
    // Bytes that are delivered again count, and stay known.
    store.apply(&[Change::AddDelivered(there.upstream.clone(), digest("shared"))]).expect("applied");
    drop(store);
    let store = open(&folder, kind).expect("opens again");
    assert!(store.access(&there, &digest("shared")).expect("a look").is_some());
    store.collect_garbage(|_| false, at(0)).expect("collected");
    assert!(store.access(&there, &digest("shared")).expect("a look").is_some());
    store.remove(Removal::Manifest(&digest("shared"))).expect("removed");
    store.collect_garbage(|_| false, at(0)).expect("collected");
    assert!(!store.is_delivered(&there.upstream, &digest("shared")).expect("a look"));
}

fn tag_pointer(name: &str, tag: &str) -> Pointer {
    Pointer::tag(&repository(name), &tag.parse().expect("a tag"))
}

fn put_tag(store: &StoreSession, name: &str, tag: &str, fact: TagFact) -> Result<(), StoreError> {
    store.apply(&[Change::SetPointer(tag_pointer(name, tag), fact)])
}

fn names_are_paginated_in_byte_order(kind: BlobStoreKind) {
    let (store, _folder) = store(kind);
    let fact = TagFact { digest: Digest::of(Algorithm::Sha256, b""), checked_at: at(1), moved_at: at(1) };
    for tag in ["b", "B", "a", "10", "9", "_"] {
        put_tag(&store, "x/y", tag, fact).expect("put");
    }
    put_tag(&store, "x", "z", fact).expect("put");
    let all = store.names(NameList::Tags(&repository("x/y")), None, 100).expect("tags");
    assert_eq!(all, ["10", "9", "B", "_", "a", "b"]);
    assert_eq!(store.names(NameList::Tags(&repository("x/y")), Some("9"), 2).expect("tags"), ["B", "_"]);
    assert_eq!(store.names(NameList::Tags(&repository("x/y")), Some("A"), 1).expect("tags"), ["B"]);
    assert_eq!(store.names(NameList::Tags(&repository("x/y")), None, 0).expect("tags"), Vec::<String>::new());
    let upstream = "docker.io".parse().expect("a name");
    let names = store.names(NameList::Repositories(&upstream), None, 10).expect("names");
    assert_eq!(names, ["x", "x/y"]);
    store.apply(&[Change::RemovePointer(tag_pointer("x", "z"))]).expect("removed");
    assert_eq!(store.names(NameList::Repositories(&upstream), None, 10).expect("names").len(), 1);
}

fn second_process_gets_an_error(kind: BlobStoreKind) {
    let (_store, folder) = store(kind);
    let error = Engine::open(&options(&folder, kind), SMALL).expect_err("locked");
    assert!(matches!(error, StoreError::Locked(_)), "{error:?}");
}

fn referrers_belong_to_one_repository_and_one_subject(kind: BlobStoreKind) {
    let (store, folder) = store(kind);
    let (a, ab) = (repository("a"), repository("a/b"));
    let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
    let (subject, long) = (digest("subject"), Digest::of(Algorithm::Sha512, b"subject"));
    for (repository, subject, referrer) in [
        (&a, &subject, "1"),
        (&a, &subject, "2"),
        (&a, &long, "3"),
        (&ab, &subject, "4"),
        (&a, &subject, "1"),
    ] {
        let (repository, referrer) = (repository.clone(), digest(referrer));
        let change = Change::AddReferrer { repository, subject: *subject, referrer };
        store.apply(&[change]).expect("kept");
    }
    let sorted = |texts: &[&str]| {
        let mut digests: Vec<_> = texts.iter().map(|text| digest(text)).collect();
        digests.sort_unstable();
        digests
    };
    let found =
        |store: &StoreSession, repository, subject| store.referrers(repository, subject, 10).expect("a look");
    assert_eq!(found(&store, &a, &subject), sorted(&["1", "2"]));
    assert_eq!(store.referrers(&a, &subject, 1).expect("a look"), sorted(&["1", "2"])[..1]);
    assert_eq!(found(&store, &a, &long), [digest("3")]);
    assert_eq!(found(&store, &ab, &subject), [digest("4")]);
    assert_eq!(found(&store, &ab, &long), []);

    let fact = TagFact { digest: digest("list"), checked_at: at(1), moved_at: at(1) };
    let list = |repository: &Repository| Pointer::Referrers(repository.clone(), subject);
    store.apply(&[Change::SetPointer(list(&a), fact)]).expect("kept");
    store.0.flush().expect("flushed");
    drop(store);
    let store = open(&folder, kind).expect("opens again");
    assert_eq!(found(&store, &a, &subject), sorted(&["1", "2"]));
    assert_eq!(store.pointer(&list(&a)).expect("a look"), Some(fact));
    assert_eq!(store.pointer(&list(&ab)).expect("a look"), None);
    store.apply(&[Change::RemovePointer(list(&a))]).expect("removed");
    assert_eq!(store.pointer(&list(&a)).expect("a look"), None);
    // None of it is a tag, or makes a repository one that holds any.
    assert!(store.names(NameList::Tags(&a), None, 10).expect("a look").is_empty());
    assert!(store.names(NameList::Repositories(&a.upstream), None, 10).expect("a look").is_empty());
}

fn absences_belong_to_their_subject(kind: BlobStoreKind) {
    let (store, folder) = store(kind);
    let repository = repository("a");
    let stored = StoredManifest { media_type: MediaType::oci_index(), body: Bytes::from_static(b"{}") };
    let subject = Digest::of(Algorithm::Sha256, &stored.body);
    let put = |store: &StoreSession| {
        store.put_manifest(&repository, &subject, &stored, std::iter::empty(), at(1)).expect("stored");
    };
    put(&store);
    let list = |subject| Pointer::Referrers(repository.clone(), subject);
    let tag = |text: &str| Pointer::tag(&repository, &text.parse().expect("a tag"));
    let (own, fallback) = (list(subject), tag(&format!("sha256-{}", subject.hex())));
    let set = |store: &StoreSession, pointer: &Pointer, millis| {
        let fact = AbsenceFact { checked_at: at(millis) };
        store.apply(&[Change::SetAbsence(pointer.clone(), fact)]).expect("kept");
    };
    let get = |store: &StoreSession, pointer: &Pointer| {
        store.absence(pointer).expect("a look").map(|fact| fact.checked_at)
    };
    let other = |n: u64| list(Digest::of(Algorithm::Sha256, &n.to_be_bytes()));
    set(&store, &own, 1);
    set(&store, &fallback, 2);
    set(&store, &tag("latest"), 2);
    for n in 0..10 {
        set(&store, &other(n), 10 + n);
    }
    assert_eq!(get(&store, &tag("latest")), None, "the absence of an ordinary tag is not kept");
    store.0.flush().expect("flushed");
    drop(store);
    let store = open(&folder, kind).expect("opens again");
    assert_eq!((get(&store, &own), get(&store, &fallback)), (Some(at(1)), Some(at(2))));
    // Only absences without a stored subject are limited in number. The oldest ones go.
    assert_eq!(store.0.collect_absences(4).expect("collected"), 6);
    let kept: Vec<_> = (0..10).filter(|n| get(&store, &other(*n)).is_some()).collect();
    assert_eq!(kept, [6, 7, 8, 9]);
    assert!(get(&store, &own).is_some());
    assert_eq!(store.collect_garbage(|_| false, at(100)).expect("collected").remarks, 0);
    // No absence is a tag or a pointer.
    assert!(store.pointers(PointerScope::All).expect("a look").is_empty());
    // A pointer that exists ends its absence. The fall-back tag ends also that of the list.
    let fact = TagFact { digest: subject, checked_at: at(3), moved_at: at(3) };
    store.apply(&[Change::SetPointer(fallback.clone(), fact)]).expect("kept");
    assert_eq!((get(&store, &own), get(&store, &fallback)), (None, None));
    set(&store, &own, 4);
    set(&store, &fallback, 4);
    store.remove(Removal::Pointers(&HashSet::from([subject]))).expect("removed");
    assert_eq!((get(&store, &own), get(&store, &fallback)), (None, None));
    assert!(get(&store, &other(9)).is_some());
    // An absence that cannot be decoded does not exist, and is collected.
    let key = Key::absence_of(&own).expect("a key");
    store.0.database.facts().expect("open").insert(&key, &b"\xff"[..]).expect("written");
    assert_eq!(get(&store, &own), None);
    assert_eq!(store.collect_garbage(|_| false, at(100)).expect("collected").remarks, 1);
}
