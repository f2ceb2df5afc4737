//! Fuzz targets of archives and layouts.

use std::io::{Cursor, Read as _, Write as _};

use bolero::check;
use tar::{EntryType, Header};

use super::format::{INDEX_FILE, blob_path, digest_of_path};
use super::reader::LayoutReader;
use super::tar_reader::{ArchiveError, EntryKind, TarEntry, TarReader};
use super::tar_writer::{TAR_END, entry_length, file_header, padding};
use super::transfer::extract;
use crate::fuzz::{Input, TEST_TIME, inputs};
use crate::oci::{Algorithm, Digest};

const PATHS: &[&str] = &[
    "blobs/sha256/",
    "blobs/",
    "oci-layout",
    "index.json",
    "manifest.json",
    "a",
    "/",
    "..",
    ".",
    "./",
    "\\",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
];
const KINDS: [EntryType; 9] = [
    EntryType::Regular,
    EntryType::Directory,
    EntryType::Symlink,
    EntryType::Link,
    EntryType::GNULongName,
    EntryType::GNULongLink,
    EntryType::XHeader,
    EntryType::XGlobalHeader,
    EntryType::Char,
];

/// Reads an archive to its end. Fails if it is malformed.
fn read(bytes: &[u8]) -> Result<Vec<(TarEntry, Vec<u8>)>, ArchiveError> {
    let mut archive = TarReader::open(Cursor::new(bytes.to_vec()))?;
    let mut found = Vec::new();
    while let Some(entry) = archive.entry()? {
        let mut content = Vec::new();
        archive.read_to_end(&mut content)?;
        found.push((entry, content));
    }
    Ok(found)
}

/// Returns an archive whose headers have a valid checksum and any values.
fn archive(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !input.is_empty() && bytes.len() < 1 << 16 {
        let mut header = Header::new_gnu();
        let path = input.bytes_of(PATHS);
        let length = path.len().min(100);
        header.as_old_mut().name[..length].copy_from_slice(&path[..length]);
        header.set_entry_type(input.pick(&KINDS));
        let content = match input.below(4) {
            0 => format!("{} path={}\n", input.below(60), input.text_of(PATHS)).into_bytes(),
            1 => format!("{} size={}\n", input.below(40), input.number()).into_bytes(),
            _ => {
                let count = input.below(700);
                input.bytes(count).to_vec()
            }
        };
        header.set_size(if input.below(5) == 4 { input.number() } else { content.len() as u64 });
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        if input.below(20) == 19 {
            let at = bytes.len() - 1 - input.below(512);
            bytes[at] = input.byte();
        }
        bytes.extend_from_slice(&content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes
}

#[test]
fn archive_leads_nowhere_and_is_no_longer_than_its_bytes() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let gzip = input.below(4) == 3;
        let archive = [archive(&mut input), TAR_END.to_vec()].concat();
        let sent = if gzip {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&archive).expect("written");
            encoder.finish().expect("finished")
        } else {
            archive.clone()
        };
        let Ok(entries) = read(&sent) else { return };
        let mut length = 0;
        for (entry, content) in &entries {
            assert!(
                !entry.path.starts_with('/') && entry.path.split('/').all(|part| part != ".."),
                "{entry:?}"
            );
            if entry.kind == EntryKind::File {
                assert_eq!(entry.size, content.len() as u64, "{entry:?}");
            }
            length += content.len() + 512;
        }
        assert!(length <= archive.len(), "{length} bytes of {}", archive.len());
    });
}

#[test]
fn arbitrary_bytes_are_read_or_refused() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let start = input.pick(&["", "\u{1f}", "BZh", "a"]).as_bytes().to_vec();
        let magic: &[u8] = if input.flag() { b"\x1f\x8b\x08\0" } else { b"" };
        let sent = [&start, magic, input.bytes(usize::MAX)].concat();
        // The checksum of a header is easily forged. No content is larger than deflate can make it.
        if let Ok(entries) = read(&sent) {
            let length: usize = entries.iter().map(|(_, content)| content.len()).sum();
            assert!(length <= 1032 * sent.len(), "{length} bytes of {}", sent.len());
        }
    });
}

#[test]
fn archive_is_read_as_it_was_written() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let (mut archive, mut wanted) = (Vec::new(), Vec::new());
        while !input.is_empty() {
            // A path of any length, as the writer gives them: ASCII, relative and normal.
            let count = 1 + input.below(200);
            let path =
                format!("{}x", "blobs/a".repeat(count.div_ceil(7)).split_at(count - 1).0).replace("/x", "/y");
            let length = input.below(1600);
            let content = input.bytes(length);
            let size = content.len() as u64;
            let begin = archive.len() as u64;
            archive.extend_from_slice(&file_header(&path, size));
            archive.extend_from_slice(content);
            archive.extend_from_slice(padding(size));
            assert_eq!(archive.len() as u64 - begin, entry_length(&path, size));
            wanted.push((TarEntry { path, kind: EntryKind::File, size }, content.to_vec()));
        }
        archive.extend_from_slice(&TAR_END);
        assert_eq!(read(&archive).expect("an archive"), wanted);
    });
}

#[test]
fn path_of_a_blob_is_read_as_it_was_written() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let path = Input::new(bytes).text_of(PATHS);
        if let Some(digest) = digest_of_path(&path) {
            assert_eq!(blob_path(&digest), path);
        }
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(*algorithm, bytes);
            assert_eq!(digest_of_path(&blob_path(&digest)), Some(digest));
        }
    });
}

#[test]
fn index_of_a_layout_is_read_or_refused() {
    const KEYS: &[&str] = &[
        "schemaVersion",
        "mediaType",
        "manifests",
        "digest",
        "size",
        "annotations",
        "platform",
        "os",
        "architecture",
        "org.opencontainers.image.ref.name",
        "urls",
        "data",
    ];
    const TEXTS: &[&str] = &[
        "application/vnd.oci.image.index.v1+json",
        "latest",
        "linux",
        "amd64",
        "",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ];
    let folder = tempfile::tempdir().expect("a folder");
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let document = Input::new(bytes).json_of(KEYS, TEXTS);
        std::fs::write(folder.path().join(INDEX_FILE), &document).expect("written");
        let reader = LayoutReader::new(folder.path());
        assert_eq!(reader.index_bytes().expect("read").as_deref(), Some(document.as_slice()));
        if let Ok(index) = reader.index() {
            assert!(index.is_some_and(|index| index.manifests().len() <= document.len()));
        }
    });
}

#[test]
fn extracted_blobs_have_their_digests() {
    const KEYS: &[&str] =
        &["schemaVersion", "manifests", "digest", "size", "mediaType", "annotations", "platform"];
    let empty = blob_path(&Digest::of(Algorithm::Sha256, b""));
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let (folder, mut archive) = (tempfile::tempdir().expect("a folder"), Vec::new());
        for _ in 0..=input.below(4) {
            let content = if input.below(3) == 0 {
                let digest = Digest::of(Algorithm::Sha256, b"x").to_string();
                let text = input.json_of(KEYS, &[&digest, "application/vnd.oci.image.manifest.v1+json", "1"]);
                format!(r#"{{"manifests":[{}]}}"#, String::from_utf8_lossy(&text)).into_bytes()
            } else {
                let count = input.below(100);
                input.bytes(count).to_vec()
            };
            let own = blob_path(&Digest::of(input.pick(Algorithm::ALL), &content));
            let path =
                input.pick(&[own.as_str(), INDEX_FILE, &empty, "oci-layout", "blobs/sha256/x", "a/../b"]);
            archive.extend_from_slice(&file_header(path, content.len() as u64));
            archive.extend_from_slice(&content);
            archive.extend_from_slice(padding(content.len() as u64));
        }
        archive.extend_from_slice(&TAR_END);
        let layout = folder.path().join("layout");
        let _ = extract(&layout, Cursor::new(archive));
        let inside: Vec<_> = std::fs::read_dir(folder.path()).expect("a folder").flatten().collect();
        assert!(inside.len() <= 1, "{inside:?}");
        for algorithm in Algorithm::ALL {
            let blobs = std::fs::read_dir(layout.join("blobs").join(algorithm.as_str()));
            for file in blobs.into_iter().flatten().flatten() {
                let content = std::fs::read(file.path()).expect("read");
                let name = file.file_name().into_string().expect("a name");
                assert_eq!(name, Digest::of(*algorithm, &content).hex());
            }
        }
    });
}
