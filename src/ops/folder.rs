//! A layout in a folder, as a tar that is sent, and from one that comes. All of it is blocking work.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use oci_spec::image::MediaType;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::oci::{Descriptor, Digest, Manifest};

use super::layout::{LayoutError, LayoutWriter};
use super::tar_reader::{ArchiveError, EntryKind, TarReader};
use super::tar_writer::{self, END, INDEX, MARKER};

/// No manifest is larger.
const DOCUMENT_MAX: u64 = 4 << 20;
/// No index.json is larger.
const INDEX_MAX: u64 = 16 << 20;
/// How much of a file is in memory at a time.
const STEP: usize = 256 << 10;

/// Why a folder cannot be packed, or an archive not unpacked into one.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It is no layout.
    #[error("{} holds no OCI layout: {reason}", folder.display())]
    NoLayout {
        /// The folder.
        folder: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file of it cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] LayoutError),
    /// The archive cannot be read.
    #[error(transparent)]
    TarReader(#[from] ArchiveError),
    /// The archive is not one that a layout can be made of.
    #[error("what came is no OCI layout: {0}")]
    Content(String),
}

/// A layout that is to be sent.
#[derive(Debug)]
pub struct LayoutTar {
    folder: PathBuf,
    index: Bytes,
    /// All that its index leads to and that is there, each before what it points at.
    files: Vec<(Digest, u64)>,
}

impl LayoutTar {
    /// Looks at what is there.
    pub fn of(folder: &Path) -> Result<Self, FolderError> {
        let folder = folder.to_owned();
        let no_layout = |reason: String| FolderError::NoLayout { folder: folder.clone(), reason };
        let path = folder.join(INDEX);
        let text = match read(&path, INDEX_MAX) {
            Ok(Some(text)) => text,
            Ok(None) => return Err(no_layout(format!("its index.json is longer than {INDEX_MAX} bytes"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(no_layout("there is no index.json in it".to_owned()));
            }
            Err(source) => return Err(FolderError::Read { path, source }),
        };
        let index = Manifest::read(&text, Some(crate::oci::media::OCI_INDEX))
            .map_err(|error| no_layout(format!("its index.json is none: {error}")))?;
        let mut packing = Self { folder: folder.clone(), index: text, files: Vec::new() };
        packing.follow(index.children)?;
        Ok(packing)
    }

    /// What is missing may be held where this goes; that is judged there.
    fn follow(&mut self, children: Vec<Descriptor>) -> Result<(), FolderError> {
        let (mut documents, mut blobs) = (children, Vec::new());
        let mut seen = HashSet::new();
        let mut at = 0;
        while let Some(child) = documents.get(at).cloned() {
            at += 1;
            if !seen.insert(child.digest) {
                continue;
            }
            let path = self.path(&child.digest);
            let Some(size) = length(&path)? else { continue };
            self.files.push((child.digest, size));
            let text = read(&path, DOCUMENT_MAX).map_err(|source| FolderError::Read { path, source })?;
            let media_type = child.media_type.as_ref().map(crate::oci::MediaType::as_str);
            if let Some(read) = text.and_then(|text| Manifest::read(&text, media_type).ok()) {
                documents.extend(read.children);
                blobs.extend(read.blobs.iter().map(|blob| blob.digest));
            }
        }
        for blob in blobs {
            if seen.insert(blob)
                && let Some(size) = length(&self.path(&blob))?
            {
                self.files.push((blob, size));
            }
        }
        Ok(())
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(tar_writer::path_of(digest))
    }

    /// Bytes of the archive.
    pub fn length(&self) -> u64 {
        let files =
            self.files.iter().map(|(digest, size)| tar_writer::length(&tar_writer::path_of(digest), *size));
        let heads = [(MARKER.0, MARKER.1.len()), (INDEX, self.index.len())]
            .map(|(path, size)| tar_writer::length(path, size as u64));
        heads.into_iter().chain(files).fold(END.len() as u64, u64::saturating_add)
    }

    /// Sends all of it, at the pace of who reads, until that one leaves. `tell` hears of each piece's length.
    pub fn send(
        &self,
        sender: &mpsc::Sender<io::Result<Bytes>>,
        mut tell: impl FnMut(u64),
    ) -> Result<(), FolderError> {
        let mut send = |bytes: Bytes| {
            tell(bytes.len() as u64);
            sender.blocking_send(Ok(bytes)).is_ok()
        };
        for (path, content) in
            [(MARKER.0, Bytes::from_static(MARKER.1.as_bytes())), (INDEX, self.index.clone())]
        {
            let size = content.len() as u64;
            if !(send(tar_writer::file(path, size))
                && send(content)
                && send(Bytes::from_static(tar_writer::filling(size))))
            {
                return Ok(());
            }
        }
        for (digest, size) in &self.files {
            let path = self.path(digest);
            let failed = |source| FolderError::Read { path: path.clone(), source };
            let mut file = File::open(&path).map_err(failed)?;
            if !send(tar_writer::file(&tar_writer::path_of(digest), *size)) {
                return Ok(());
            }
            let mut left = *size;
            while left > 0 {
                let mut step = vec![0; STEP.min(usize::try_from(left).unwrap_or(STEP))];
                file.read_exact(&mut step).map_err(failed)?;
                left -= step.len() as u64;
                if !send(step.into()) {
                    return Ok(());
                }
            }
            if !send(Bytes::from_static(tar_writer::filling(*size))) {
                return Ok(());
            }
        }
        send(Bytes::from_static(&END));
        Ok(())
    }
}

/// A whole file; `None` if it is longer than `most`.
fn read(path: &Path, most: u64) -> io::Result<Option<Bytes>> {
    let mut text = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut text)?;
    Ok((text.len() as u64 <= most).then(|| text.into()))
}

/// The length of a file; `None` if there is none.
fn length(path: &Path) -> Result<Option<u64>, FolderError> {
    match fs::metadata(path) {
        Ok(found) => Ok(found.is_file().then_some(found.len())),
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {
            Ok(None)
        }
        Err(source) => Err(FolderError::Read { path: path.to_owned(), source }),
    }
}

/// Unpacks an archive that larder made into a folder, adding to the layout that is there. `index.json` comes last.
pub fn unpack(folder: &Path, source: impl io::Read + Send + 'static) -> Result<(), FolderError> {
    let mut writer = LayoutWriter::open(folder)?;
    let mut archive = TarReader::open(source)?;
    let mut named = false;
    while let Some(entry) = archive.entry()? {
        if entry.kind != EntryKind::File {
            continue;
        }
        if let Some(digest) = tar_writer::digest_at(&entry.path) {
            writer.stream(MediaType::Other(String::new()), digest, &mut archive)?;
        } else if entry.path == INDEX && entry.size <= INDEX_MAX {
            let mut text = Vec::new();
            archive.read_to_end(&mut text).map_err(ArchiveError::from)?;
            let index: Value = serde_json::from_slice(&text)
                .map_err(|error| FolderError::Content(format!("its index.json is no JSON: {error}")))?;
            // Added here, so that a tag that is taken is told before anything is written.
            for entry in index["manifests"].as_array().into_iter().flatten() {
                writer.add(entry.clone())?;
                named = true;
            }
        }
    }
    if !named {
        return Err(FolderError::Content("its index.json names nothing".to_owned()));
    }
    Ok(writer.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::media::OCI_MANIFEST;
    use crate::ops::channel_reader::ChannelReader;

    /// A layout with one image that has one layer.
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
    fn a_layout_goes_through_a_tar_unchanged() {
        let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let digests = layout(from.path());
        let loose =
            from.path().join(tar_writer::path_of(&Digest::of(crate::oci::Algorithm::Sha256, b"loose")));
        fs::write(loose, "loose").expect("written");
        let packing = LayoutTar::of(from.path()).expect("a layout");
        assert_eq!(packing.files.iter().map(|(digest, _)| *digest).collect::<Vec<_>>(), digests);
        let length = packing.length();
        let (sender, pipe) = ChannelReader::new();
        let sending = std::thread::spawn(move || {
            let mut sent = 0;
            packing.send(&sender, |bytes| sent += bytes).expect("sent");
            sent
        });
        let folder = to.path().join("new");
        unpack(&folder, pipe).expect("unpacked");
        assert_eq!(sending.join().expect("it ends"), length);
        for digest in &digests {
            let path = tar_writer::path_of(digest);
            assert_eq!(
                fs::read(folder.join(&path)).expect("a file"),
                fs::read(from.path().join(path)).expect("a file")
            );
        }
        assert_eq!(
            LayoutTar::of(&folder).expect("a layout").files,
            LayoutTar::of(from.path()).expect("a layout").files
        );
    }

    #[test]
    fn what_is_cut_off_becomes_no_layout() {
        let from = tempfile::tempdir().expect("a folder");
        layout(from.path());
        let (sender, mut pipe) = ChannelReader::new();
        let packing = LayoutTar::of(from.path()).expect("a layout");
        let sending = std::thread::spawn(move || packing.send(&sender, |_| {}));
        let mut whole = Vec::new();
        pipe.read_to_end(&mut whole).expect("read");
        sending.join().expect("it ends").expect("sent");
        for cut in [1000, 3000, whole.len() - 1024] {
            let to = tempfile::tempdir().expect("a folder");
            let error = unpack(to.path(), io::Cursor::new(whole[..cut].to_vec())).expect_err("refused");
            assert!(
                error.to_string().contains("cut off") || error.to_string().contains("cannot be read"),
                "{error}"
            );
            assert!(!to.path().join(INDEX).exists());
        }
    }

    #[test]
    fn what_is_no_layout_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = || LayoutTar::of(folder.path()).expect_err("refused").to_string();
        assert!(refused().contains("there is no index.json in it"), "{}", refused());
        fs::write(folder.path().join(INDEX), "[]").expect("written");
        assert!(refused().contains("its index.json is none"), "{}", refused());
    }
}
