//! Tests of the commit: between the last byte of a draft and its content.

use super::*;

over_every_kind! {
    draft_with_an_interrupted_commit_needs_no_second_download
    draft_beside_its_content_is_removed_at_the_start
    verified_draft_is_readable_before_and_after_the_commit
    verified_drafts_that_wait_for_their_commit_need_little_memory
    draft_in_memory_does_not_wait_for_its_commit
    draft_that_waits_for_its_commit_has_an_open_file_only_for_its_readers
}

fn draft_with_an_interrupted_commit_needs_no_second_download(kind: BlobStoreKind) {
    let (store, folder) = store(kind);
    // Longer than one write, so that it has a file in every kind.
    let content = body(600_000);
    let digest = Digest::of(Algorithm::Sha256, &content);
    let mut writer = store.open_draft(&draft_of(&digest)).expect("a draft");
    append(&mut writer, content.clone());
    let verified = writer.verify(Some(600_000)).expect("verified").expect("the right bytes");
    drop(verified);
    // The state after a crash during the copy, or before the rename.
    let leftover = crate::store::index::fact::LeftoverFact { must_remove: true };
    store
        .0
        .database
        .facts()
        .expect("open")
        .insert(Key::Leftover(&digest).to_bytes(), leftover.encode())
        .expect("written");
    if store.0.blobs.space_model() == SpaceModel::Shared {
        let pages = store.0.database.pages().expect("open");
        pages.put(&digest, 0, b"a part").expect("written");
    }
    store.0.flush().expect("flushed");
    drop(store);
    let store = open(&folder, kind).expect("opens again");
    assert!(store.blob(&digest).expect("a look").is_none());
    let writer = store.open_draft(&draft_of(&digest)).expect("a draft");
    assert_eq!(writer.draft().progress().received, 600_000);
    if store.0.blobs.space_model() == SpaceModel::Shared {
        let pages = store.0.database.pages().expect("open");
        assert!(pages.get(&digest, 0).expect("a look").is_none());
    }
    assert_eq!(writer.finish(&repository("a"), Some(600_000), at(1)).expect("finished"), DraftEnd::Verified);
    assert_eq!(read_all(&blob(&store, &digest).open().expect("a blob"), 0..600_000), content);
    assert!(files_below(&folder, "drafts").is_empty());
}

fn draft_beside_its_content_is_removed_at_the_start(kind: BlobStoreKind) {
    let (store, folder) = store(kind);
    let content = body(5000);
    let digest = fill(&store, &content, 5000);
    let left = folder.path().join("drafts/sha256").join(digest.hex());
    std::fs::write(&left, &content).expect("written");
    store.0.flush().expect("flushed");
    drop(store);
    let store = open(&folder, kind).expect("opens again");
    assert!(!left.exists());
    assert_eq!(read_all(&blob(&store, &digest).open().expect("a blob"), 0..5000), content);
}

fn verified_draft_is_readable_before_and_after_the_commit(kind: BlobStoreKind) {
    for length in [5000, 3 << 20] {
        let (store, folder) = store(kind);
        let content = body(length);
        let digest = Digest::of(Algorithm::Sha256, &content);
        let mut writer = store.open_draft(&draft_of(&digest)).expect("a draft");
        let draft = writer.draft().clone();
        for part in content.chunks(65_536) {
            append(&mut writer, Bytes::copy_from_slice(part));
        }
        let all = |draft: &Draft| {
            let (mut found, end) = (Vec::new(), length as u64);
            while found.len() < length {
                let at = found.len() as u64;
                let written = at..draft.progress().written;
                let step = draft
                    .recent(at..end.min(at + 300_000))
                    .map_or_else(|| draft.read(written, 300_000), Ok)
                    .expect("read");
                found.extend_from_slice(&step.concat());
            }
            found
        };
        let verified = writer.verify(None).expect("verified").expect("the right bytes");
        assert_eq!(draft.progress().readable(), length as u64);
        assert!(all(&draft) == content);
        // A small draft never has a file.
        assert_eq!(files_below(&folder, "drafts").is_empty(), length < 500_000);
        verified.commit(Some(&repository("a")), at(1)).expect("settled");
        assert!(all(&draft) == content);
        assert!(files_below(&folder, "drafts").is_empty());
        assert_eq!(store.0.counts(), Counts { content: length as u64, manifests: 0, blobs: 1 });
    }
}

fn verified_drafts_that_wait_for_their_commit_need_little_memory(kind: BlobStoreKind) {
    let (store, folder) = store(kind);
    let in_memory = |length: u64, number: u64| {
        let mut bytes = 0;
        let verified: Vec<_> = (0..number)
            .map(|number| {
                let mut content = body(usize::try_from(length).expect("a small number")).to_vec();
                content[..8].copy_from_slice(&number.to_be_bytes());
                let mut writer =
                    store.open_draft(&draft_of(&Digest::of(Algorithm::Sha256, &content))).expect("a draft");
                append(&mut writer, content.into());
                let draft = writer.draft().clone();
                let verified = writer.verify(None).expect("verified").expect("the right bytes");
                bytes += draft.recent(0..length).map_or(0, |pieces| pieces.concat().len());
                let first = draft.recent(0..1).map_or_else(|| draft.read(0..1, 1), Ok).expect("read");
                assert_eq!(first.concat()[..], [0]);
                verified
            })
            .collect();
        for verified in verified {
            verified.commit(None, at(1)).expect("committed");
        }
        bytes
    };
    assert_eq!(in_memory(600_000, 3), 0);
    assert!((4 << 20..=24 << 20).contains(&in_memory(400_000, 70)));
    assert!(files_below(&folder, "drafts").is_empty());
}

fn draft_in_memory_does_not_wait_for_its_commit(kind: BlobStoreKind) {
    let (store, _folder) = store(kind);
    let content = body(5000);
    let digest = Digest::of(Algorithm::Sha256, &content);
    let verified = |mut writer: DraftWriter| {
        append(&mut writer, content.clone());
        writer.verify(None).expect("verified").expect("the right bytes")
    };
    let stored = verified(store.open_draft(&draft_of(&digest)).expect("a draft"));
    let in_memory = verified(store.0.memory_draft(&digest));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let permit = |verified: &VerifiedDraft| {
        runtime.block_on(async {
            tokio::select! {
                biased;
                permit = store.0.commit_permit(verified) => Some(permit),
                () = std::future::ready(()) => None,
            }
        })
    };
    let held: Vec<_> = (0..20).map_while(|_| permit(&stored)).collect();
    assert_eq!(held.len() == 20, store.0.blobs.space_model() != SpaceModel::Shared);
    assert!(permit(&in_memory).is_some());
}

fn draft_that_waits_for_its_commit_has_an_open_file_only_for_its_readers(kind: BlobStoreKind) {
    let (store, folder) = store(kind);
    let open_files = || {
        let files = std::fs::read_dir("/proc/self/fd").expect("a folder").filter_map(Result::ok);
        let targets = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        targets.filter(|target| target.starts_with(folder.path().join("drafts"))).count()
    };
    let content = body(600_000);
    let mut writer = store.open_draft(&draft_of(&Digest::of(Algorithm::Sha256, &content))).expect("a draft");
    append(&mut writer, content.clone());
    let draft = writer.draft().clone();
    let assert_reads = || {
        assert!(draft.read(0..600_000, 1 << 20).expect("read").concat() == content);
    };
    let reader = draft.follow(0).expect("a reader");
    let verified = writer.verify(None).expect("verified").expect("the right bytes");
    assert_eq!(open_files(), 1, "its reader needs it");
    drop(reader);
    assert_eq!(open_files(), 0);
    assert_reads();
    assert_eq!(open_files(), 0, "nobody reads on");
    let reader = draft.follow(0).expect("a reader");
    assert_reads();
    assert_eq!(open_files(), 1);
    verified.commit(Some(&repository("a")), at(1)).expect("committed");
    assert_reads();
    drop(reader);
    // A reader that has found the draft before it was committed.
    assert_reads();
    drop(draft);
    assert_eq!(open_files(), 0);
}
