//! Transfer of a layout between a folder and a tar archive.

use std::collections::HashSet;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use oci_spec::image::MediaType;
use serde_json::Value;
use tokio::sync::mpsc;

use super::format::{INDEX_FILE, INDEX_MAX, MANIFEST_MAX, MARKER, MARKER_FILE, blob_path, digest_of_path};
use super::reader::{LayoutReadError, LayoutReader};
use super::tar_reader::{ArchiveError, EntryKind, TarReader};
use super::tar_writer::{TAR_END, entry_length, file_header, padding};
use super::writer::{LayoutError, LayoutWriter};
use crate::oci::index_walk::IndexWalk;
use crate::oci::media::OCI_INDEX;
use crate::oci::{Descriptor, Digest, Manifest};

/// Bytes of a file that are in memory at once.
const CHUNK: usize = 256 << 10;

/// Reason why a layout cannot be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The folder contains no layout.
    #[error("{} contains no OCI layout: {reason}", folder.display())]
    NoLayout {
        /// Path of the folder.
        folder: PathBuf,
        /// Reason for people.
        reason: String,
    },
    /// A file of the layout cannot be read.
    #[error(transparent)]
    Read(#[from] LayoutReadError),
    /// The layout cannot be written.
    #[error(transparent)]
    Write(#[from] LayoutError),
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The archive contains no layout.
    #[error("the archive contains no OCI layout: {0}")]
    Content(String),
}

/// Layout in a folder that can be sent as a tar.
#[derive(Debug)]
pub struct LayoutTar {
    reader: LayoutReader,
    index: Bytes,
    /// Manifests, then blobs, that `index.json` leads to and that exist.
    files: Vec<(Digest, u64)>,
}

impl LayoutTar {
    /// Reads the manifests of the layout in a folder and lists its files.
    pub fn of(folder: &Path) -> Result<Self, TransferError> {
        let no_layout = |reason: String| TransferError::NoLayout { folder: folder.to_owned(), reason };
        let reader = LayoutReader::new(folder);
        let index = reader.index_bytes()?.ok_or_else(|| no_layout("it has no index.json".to_owned()))?;
        let read = Manifest::read(&index, Some(OCI_INDEX))
            .map_err(|error| no_layout(format!("its index.json is invalid: {error}")))?;
        let mut tar = Self { reader, index, files: Vec::new() };
        let mut seen = HashSet::new();
        let mut blobs = Vec::new();
        for entry in read.children {
            blobs.extend(tar.add_manifests(entry, &mut seen)?);
        }
        // Missing blobs are left out. The receiver may have them, and decides.
        for blob in blobs {
            if seen.insert(blob)
                && let Some(file) = tar.reader.open(&blob)?
            {
                tar.files.push((blob, file.size));
            }
        }
        Ok(tar)
    }

    /// Adds an image's manifests that exist, and returns the digests of its blobs.
    fn add_manifests(
        &mut self,
        image: Descriptor,
        seen: &mut HashSet<Digest>,
    ) -> Result<Vec<Digest>, TransferError> {
        let mut blobs = Vec::new();
        let mut walk = IndexWalk::new(image);
        while let Some(item) = walk.next() {
            let Descriptor { digest, media_type, .. } = item.descriptor;
            if item.repeated {
                continue;
            }
            let Some(file) = self.reader.open(&digest)? else { continue };
            if seen.insert(digest) {
                self.files.push((digest, file.size));
            }
            let Some(text) = file.read_up_to(MANIFEST_MAX)? else { continue };
            let media_type = media_type.as_ref().map(crate::oci::MediaType::as_str);
            if let Ok(read) = Manifest::read(&text, media_type) {
                walk.visit(&read, text.len() as u64);
                blobs.extend(read.blobs.iter().map(|blob| blob.digest));
            }
        }
        match walk.limit() {
            Some(limit) => {
                let folder = self.reader.folder().to_owned();
                Err(TransferError::NoLayout { folder, reason: limit.to_string() })
            }
            None => Ok(blobs),
        }
    }

    /// Returns the length of the archive in bytes.
    pub fn length(&self) -> u64 {
        let files = self.files.iter().map(|(digest, size)| entry_length(&blob_path(digest), *size));
        let first = [(MARKER_FILE, MARKER.len()), (INDEX_FILE, self.index.len())]
            .map(|(path, size)| entry_length(path, size as u64));
        first.into_iter().chain(files).fold(TAR_END.len() as u64, u64::saturating_add)
    }

    /// Sends the archive until the receiver is dropped. Calls `progress` with the length of each chunk.
    pub fn send(
        &self,
        sender: &mpsc::Sender<io::Result<Bytes>>,
        mut progress: impl FnMut(u64),
    ) -> Result<(), TransferError> {
        let mut send = |bytes: Bytes| {
            progress(bytes.len() as u64);
            sender.blocking_send(Ok(bytes)).is_ok()
        };
        for (path, content) in
            [(MARKER_FILE, Bytes::from_static(MARKER.as_bytes())), (INDEX_FILE, self.index.clone())]
        {
            let size = content.len() as u64;
            let is_complete =
                send(file_header(path, size)) && send(content) && send(Bytes::from_static(padding(size)));
            if !is_complete {
                return Ok(());
            }
        }
        for (digest, size) in &self.files {
            if !self.send_blob(digest, *size, &mut send)? {
                return Ok(());
            }
        }
        send(Bytes::from_static(&TAR_END));
        Ok(())
    }

    /// Sends one file. Returns false if the receiver was dropped.
    fn send_blob(
        &self,
        digest: &Digest,
        size: u64,
        send: &mut impl FnMut(Bytes) -> bool,
    ) -> Result<bool, TransferError> {
        let path = self.reader.folder().join(blob_path(digest));
        let failed = |source| LayoutReadError::Read { path: path.clone(), source };
        let opened = self.reader.open(digest)?;
        let mut file = opened.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?.file;
        if !send(file_header(&blob_path(digest), size)) {
            return Ok(false);
        }
        let mut left = size;
        while left > 0 {
            let mut chunk = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
            file.read_exact(&mut chunk).map_err(failed)?;
            left -= chunk.len() as u64;
            if !send(chunk.into()) {
                return Ok(false);
            }
        }
        Ok(send(Bytes::from_static(padding(size))))
    }
}

/// Extracts an archive that larder wrote into a folder, and adds its images to the layout there.
pub fn extract(folder: &Path, source: impl io::Read + Send + 'static) -> Result<(), TransferError> {
    let mut writer = LayoutWriter::open(folder)?;
    let mut archive = TarReader::open(source)?;
    let mut has_images = false;
    while let Some(entry) = archive.entry()? {
        if entry.kind != EntryKind::File {
            continue;
        }
        if let Some(digest) = digest_of_path(&entry.path) {
            writer.stream(MediaType::Other(String::new()), digest, &mut archive)?;
        } else if entry.path == INDEX_FILE && entry.size <= INDEX_MAX {
            let mut text = Vec::new();
            archive.read_to_end(&mut text).map_err(ArchiveError::from)?;
            let index: Value = serde_json::from_slice(&text)
                .map_err(|error| TransferError::Content(format!("its index.json is not JSON: {error}")))?;
            // Added before the blobs, so that a tag conflict is found before anything is written.
            for entry in index["manifests"].as_array().into_iter().flatten() {
                writer.add(entry.clone())?;
                has_images = true;
            }
        }
    }
    if !has_images {
        return Err(TransferError::Content("its index.json lists no image".to_owned()));
    }
    Ok(writer.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::channel_reader::ChannelReader;
    use crate::oci::media::OCI_MANIFEST;

    /// Writes a layout with one image that has one layer.
    fn layout(folder: &Path) -> [Digest; 3] {
        let mut writer = LayoutWriter::create(folder).expect("created");
        let config = writer.blob(MediaType::ImageConfig, b"{}").expect("written");
        let layer = writer.blob(MediaType::ImageLayer, &vec![7; 70_000]).expect("written");
        let manifest =
            serde_json::json!({ "schemaVersion": 2, "config": config, "layers": [layer] }).to_string();
        let manifest = writer.manifest(OCI_MANIFEST, manifest.as_bytes()).expect("written");
        writer.tag(manifest.clone(), "1").expect("tagged");
        writer.finish().expect("finished");
        [&manifest, &config, &layer].map(|it| it.digest().to_string().parse().expect("a digest"))
    }

    #[test]
    fn layout_survives_a_tar_unchanged() {
        let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let digests = layout(from.path());
        let loose = from.path().join(blob_path(&Digest::of(crate::oci::Algorithm::Sha256, b"loose")));
        std::fs::write(loose, "loose").expect("written");
        let layout_tar = LayoutTar::of(from.path()).expect("a layout");
        assert_eq!(layout_tar.files.iter().map(|(digest, _)| *digest).collect::<Vec<_>>(), digests);
        let length = layout_tar.length();
        let (sender, reader) = ChannelReader::new();
        let sending = std::thread::spawn(move || {
            let mut sent = 0;
            layout_tar.send(&sender, |bytes| sent += bytes).expect("sent");
            sent
        });
        let folder = to.path().join("new");
        extract(&folder, reader).expect("extracted");
        assert_eq!(sending.join().expect("it ends"), length);
        for digest in &digests {
            let path = blob_path(digest);
            assert_eq!(
                std::fs::read(folder.join(&path)).expect("a file"),
                std::fs::read(from.path().join(path)).expect("a file")
            );
        }
        assert_eq!(
            LayoutTar::of(&folder).expect("a layout").files,
            LayoutTar::of(from.path()).expect("a layout").files
        );
    }

    #[test]
    fn truncated_archive_becomes_no_layout() {
        let from = tempfile::tempdir().expect("a folder");
        layout(from.path());
        let (sender, mut reader) = ChannelReader::new();
        let layout_tar = LayoutTar::of(from.path()).expect("a layout");
        let sending = std::thread::spawn(move || layout_tar.send(&sender, |_| {}));
        let mut whole = Vec::new();
        reader.read_to_end(&mut whole).expect("read");
        sending.join().expect("it ends").expect("sent");
        for cut in [1000, 3000, whole.len() - 1024] {
            let to = tempfile::tempdir().expect("a folder");
            let error = extract(to.path(), io::Cursor::new(whole[..cut].to_vec())).expect_err("refused");
            assert!(
                error.to_string().contains("truncated") || error.to_string().contains("cannot be read"),
                "{error}"
            );
            assert!(!to.path().join(INDEX_FILE).exists());
        }
    }

    #[test]
    fn layout_tar_says_why_a_folder_is_no_layout() {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = || LayoutTar::of(folder.path()).expect_err("refused").to_string();
        assert!(refused().contains("it has no index.json"), "{}", refused());
        std::fs::write(folder.path().join(INDEX_FILE), "[]").expect("written");
        assert!(refused().contains("its index.json is invalid"), "{}", refused());
    }
}
