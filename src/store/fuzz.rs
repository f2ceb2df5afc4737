//! Fuzz targets of keys and facts, and of a store that ends without being closed.

use std::collections::HashMap;

use bolero::check;
use bytes::Bytes;
use tempfile::TempDir;

use super::index::change::Change;
use super::index::fact::{
    AccessFact, BlobFact, Fact, LeftoverFact, LinkFact, ManifestFact, TagFact, VerifiedFact,
};
use super::index::key::{Key, blob_of, digest, page, page_of};
use super::index::pointer::{Pointer, TagKey};
use super::session::{Removal, StoreSession};
use super::tests::open;
use super::{DraftEnd, DraftKey};
use crate::clock::Timestamp;
use crate::config::schema::BlobStoreKind;
use crate::fuzz::{Input, TEST_TIME, inputs};
use crate::oci::{Algorithm, Digest, Repository};

fn any_digest(input: &mut Input<'_>) -> Digest {
    Digest::of(input.pick(Algorithm::ALL), input.bytes(1))
}

fn any_repository(input: &mut Input<'_>) -> Repository {
    let upstream = input.pick(&["docker.io", "a", "reg.test:5000"]).parse().expect("a name");
    let name = input.pick(&["a", "a/b", "a/b/c", "ab", "library/busybox"]).parse().expect("a name");
    Repository { upstream, name }
}

fn any_pointer(input: &mut Input<'_>) -> Pointer {
    let repository = any_repository(input);
    if input.flag() {
        return Pointer::Referrers(repository, any_digest(input));
    }
    let tag = input.pick(&["latest", "1", "10", "_", "a.b-c"]).parse().expect("a tag");
    let variant = input.pick(&[None, Some(""), Some("a/b"), Some("a/b, c/d")]).map(str::to_owned);
    Pointer::Tag(TagKey { repository, tag, variant })
}

#[test]
fn keys_are_read_as_they_were_written() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let (repository, subject, other) =
            (any_repository(&mut input), any_digest(&mut input), any_digest(&mut input));
        let pointer = any_pointer(&mut input);
        assert_eq!(Key::read_pointer(&Key::from(&pointer).to_bytes()), Some(pointer.clone()));
        let key = Key::Link(&repository, &subject).to_bytes();
        assert_eq!(Key::read_link(&key), Some((repository.clone(), subject)));
        let key = Key::Prefetch(&repository, &subject).to_bytes();
        assert_eq!(Key::read_prefetch(&key), Some((repository.clone(), subject)));
        let key = Key::Referrer(&repository, &subject, &other).to_bytes();
        assert_eq!(Key::read_referrer(&key), Some(other));
        assert!(key.starts_with(&Key::referrers_of(&repository, &subject)));
        assert_eq!(blob_of(&Key::Blob(&subject).to_bytes()), Some(subject));
        let number = input.number();
        assert_eq!(page_of(&page(&subject, number)), Some(subject));
        assert_eq!(page(&subject, number) < page(&subject, u64::MAX), number < u64::MAX);
        // Different pointers have different keys, and no key is the beginning of another.
        let second = any_pointer(&mut input);
        let (first_key, second_key) = (Key::from(&pointer).to_bytes(), Key::from(&second).to_bytes());
        assert_eq!(first_key == second_key, pointer == second);
    });
}

#[test]
fn arbitrary_bytes_are_no_key_that_would_be_written_otherwise() {
    const WORDS: &[&str] =
        &["t", "v", "f", "l", "w", "s", "b", "m", "docker.io", "\0", "a/b", "latest", "a/b, c/d"];
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let mut key = input.bytes_of(WORDS);
        if input.flag() {
            key.push(1);
            key.extend_from_slice(input.bytes(32));
        }
        if let Some(pointer) = Key::read_pointer(&key) {
            // Variants are written by larder only, always as UTF-8.
            if std::str::from_utf8(&key).is_ok() || matches!(pointer, Pointer::Referrers(..)) {
                assert_eq!(Key::from(&pointer).to_bytes(), key);
            }
        }
        if let Some((repository, target)) = Key::read_link(&key) {
            assert_eq!(Key::Link(&repository, &target).to_bytes(), key);
        }
        if let Some((repository, target)) = Key::read_prefetch(&key) {
            assert_eq!(Key::Prefetch(&repository, &target).to_bytes(), key);
        }
        if let Some(found) = digest(&key) {
            assert_eq!(key[1..], *found.as_bytes());
        }
        let _ = (Key::read_referrer(&key), Key::read_tagged_repository(&key), blob_of(&key), page_of(&key));
    });
}

/// Asserts that a fact is read as it was written.
fn reads_back<F: Fact + PartialEq + std::fmt::Debug>(fact: &F) {
    assert_eq!(F::decode(&fact.encode()).as_ref().ok(), Some(fact));
}

#[test]
fn facts_are_read_as_they_were_written() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let digest = any_digest(&mut input);
        let mut time = || Timestamp::from_millis(input.number());
        let (checked_at, moved_at, stored_at) = (time(), time(), time());
        let size = input.number();
        reads_back(&TagFact { digest, checked_at, moved_at });
        reads_back(&LinkFact { size: input.flag().then_some(size) });
        reads_back(&ManifestFact { media_type: input.text_of(&["a/b", "application/"]), size, stored_at });
        reads_back(&BlobFact { size, stored_at });
        reads_back(&LeftoverFact { must_remove: input.flag() });
        reads_back(&AccessFact { last: checked_at });
        reads_back(&VerifiedFact { at: moved_at });
        // Damaged facts are errors or other facts, of no more bytes than there are.
        let mut damaged = TagFact { digest, checked_at, moved_at }.encode();
        damaged.truncate(1 + input.below(damaged.len()));
        for _ in 0..input.below(4) {
            let at = 1 + input.below(damaged.len());
            if let Some(byte) = damaged.get_mut(at) {
                *byte = input.byte();
            }
        }
        let _ = (TagFact::decode(&damaged), LinkFact::decode(&damaged), BlobFact::decode(&damaged));
        if let Ok(fact) = ManifestFact::decode(&damaged) {
            assert!(fact.media_type.len() < damaged.len());
        }
    });
}

/// Content of the blob with this number.
fn content(number: usize) -> Bytes {
    let length = [0, 1, 1023, 1024, 5000, 9000][number % 6];
    (0..length).map(|at| u8::try_from((at * 7 + number) % 251).unwrap_or_default()).collect::<Vec<_>>().into()
}

/// Store with a model of its content.
struct Machine {
    kind: BlobStoreKind,
    folder: TempDir,
    /// Open except within a crash.
    store: Option<StoreSession>,
    /// Blobs that were committed and not removed, by their numbers.
    blobs: HashMap<Digest, usize>,
    tag: Option<TagFact>,
}

impl Machine {
    fn new(kind: BlobStoreKind) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Some(open(&folder, kind).expect("a store"));
        Self { kind, folder, store, blobs: HashMap::new(), tag: None }
    }

    fn store(&self) -> &StoreSession {
        self.store.as_ref().expect("it is open")
    }

    /// Receives bytes of a blob up to `end`. At the end of the content the blob is committed.
    fn fill(&mut self, number: usize, end: usize, wrong: bool) {
        let content = content(number);
        let digest = Digest::of(Algorithm::Sha256, &content);
        if self.blobs.contains_key(&digest) {
            return;
        }
        let mut writer = self.store().open_draft(&DraftKey::unowned(&digest)).expect("a draft");
        let begin = usize::try_from(writer.draft().progress().received).expect("a length");
        assert!(begin <= content.len());
        let mut rest = content.slice(begin..end.clamp(begin, content.len())).to_vec();
        let is_changed = wrong && !rest.is_empty();
        if is_changed {
            rest[0] ^= 1;
        }
        let arrived = begin + rest.len();
        if !rest.is_empty() {
            let rest = Bytes::from(rest);
            writer.draft().receive(rest.clone());
            writer.append(rest).expect("appended");
        }
        if arrived < content.len() && !is_changed {
            writer.flush().expect("written");
            return;
        }
        let repository = "docker.io".parse().ok().zip("a".parse().ok());
        let repository = repository.map(|(upstream, name)| Repository { upstream, name }).expect("names");
        let end = writer.finish(&repository, None, Timestamp::from_millis(1)).expect("finished");
        assert_eq!(end == DraftEnd::Verified, !is_changed, "blob {number}");
        if !is_changed {
            self.blobs.insert(digest, number);
        }
    }

    fn remove(&mut self, number: usize) {
        let digest = Digest::of(Algorithm::Sha256, &content(number));
        if self.blobs.remove(&digest).is_some() {
            self.store().remove(Removal::Blob(&digest)).expect("removed");
        }
    }

    fn set_tag(&mut self, number: usize, time: u64) {
        let at = Timestamp::from_millis(time);
        let digest = Digest::of(Algorithm::Sha256, &content(number));
        let fact = TagFact { digest, checked_at: at, moved_at: at };
        let pointer = Self::pointer();
        self.store().apply(&[Change::SetPointer(pointer, fact)]).expect("set");
        self.tag = Some(fact);
    }

    fn pointer() -> Pointer {
        let repository =
            Repository { upstream: "docker.io".parse().expect("a name"), name: "a".parse().expect("a name") };
        Pointer::tag(&repository, &"latest".parse().expect("a tag"))
    }

    /// Drops the store without closing it, and opens it again.
    fn crash(&mut self) {
        drop(self.store.take());
        self.store = Some(open(&self.folder, self.kind).expect("opens again"));
    }

    /// Asserts that the store has exactly the content of the model.
    fn check(&self) {
        for number in 0..6 {
            let content = content(number);
            let digest = Digest::of(Algorithm::Sha256, &content);
            let entry = self.store().blob(&digest).expect("a look");
            assert_eq!(entry.is_some(), self.blobs.contains_key(&digest), "blob {number}");
            let Some(entry) = entry else { continue };
            assert_eq!(entry.size(), content.len() as u64);
            let (blob, mut read) = (entry.open().expect("a blob"), Vec::new());
            while read.len() < content.len() {
                let step = blob.read(read.len() as u64..content.len() as u64, 5000).expect("read");
                assert!(!step.is_empty());
                read.extend(step.into_iter().flatten());
            }
            assert!(read == content, "blob {number} has other bytes");
        }
        let counts = self.store().0.counts();
        let bytes = self.blobs.values().map(|number| content(*number).len() as u64).sum::<u64>();
        assert_eq!((counts.blobs, counts.content), (self.blobs.len() as u64, bytes));
        assert_eq!(self.store().pointer(&Self::pointer()).expect("a look"), self.tag);
    }
}

fn crashes_lose_nothing_and_show_no_draft(kind: BlobStoreKind, bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut machine = Machine::new(kind);
    for _ in 0..input.below(16) {
        let number = input.below(6);
        match input.below(8) {
            0..=2 => machine.fill(number, usize::MAX, false),
            3 => machine.fill(number, input.below(9000), false),
            4 => machine.fill(number, input.below(9000), true),
            5 => machine.remove(number),
            6 => machine.set_tag(number, input.number()),
            _ => machine.crash(),
        }
    }
    machine.check();
    machine.crash();
    machine.check();
}

#[test]
fn crashes_of_a_sled_store_lose_nothing_and_show_no_draft() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        crashes_lose_nothing_and_show_no_draft(BlobStoreKind::Sled, bytes);
    });
}

#[test]
fn crashes_of_a_file_store_lose_nothing_and_show_no_draft() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        crashes_lose_nothing_and_show_no_draft(BlobStoreKind::Files, bytes);
    });
}
