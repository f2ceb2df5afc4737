//! Writes an OCI image layout (image-spec, image-layout.md): a folder of images that tools and larder can read.
//!
//! Every file appears under its name only when it is whole and its digest is known, and `index.json` comes last:
//! an interrupted export leaves a folder that no reader takes for a layout. All of it is blocking work.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::image::{
    ANNOTATION_REF_NAME, Descriptor, ImageIndexBuilder, MediaType, OciLayoutBuilder, SCHEMA_VERSION,
};
use tempfile::{Builder, NamedTempFile};

use crate::oci::{Algorithm, Digest, Hasher};

/// The version of the layout that is written: the only one there is.
const LAYOUT_VERSION: &str = "1.0.0";
const INDEX: &str = "index.json";
/// How much of a blob is in memory at a time.
const STEP: usize = 256 * 1024;

/// Why a layout cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The folder holds a layout already.
    #[error("{0} holds an OCI layout already; name another folder, or remove it first")]
    Occupied(PathBuf),
    /// A file or folder cannot be written.
    #[error("{path} cannot be written")]
    Write {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The content given cannot be read to its end.
    #[error("the content of {digest} cannot be read")]
    Read {
        /// What it was to be.
        digest: Digest,
        /// Why.
        source: io::Error,
    },
    /// The content is not what it was said to be; nothing was kept of it.
    #[error("the content given for {wanted} has the digest {found}")]
    Mismatch {
        /// What it was to be.
        wanted: Box<Digest>,
        /// What it is.
        found: Box<Digest>,
    },
    /// A document of the layout cannot be made.
    #[error(transparent)]
    Document(#[from] OciSpecError),
}

/// A layout that is being written. Without `finish` it never becomes one.
#[derive(Debug)]
pub struct LayoutWriter {
    folder: PathBuf,
    manifests: Vec<Descriptor>,
}

impl LayoutWriter {
    /// Begins a layout in `folder`, which is made if it is not there.
    pub fn create(folder: impl Into<PathBuf>) -> Result<Self, LayoutError> {
        let folder = folder.into();
        if folder.join(INDEX).exists() {
            return Err(LayoutError::Occupied(folder));
        }
        // The specification wants `blobs` to be there even if it stays empty.
        make_folder(&folder.join("blobs"))?;
        Ok(Self { folder, manifests: Vec::new() })
    }

    /// Adds content that is at hand, under its sha256.
    pub fn blob(&self, media_type: MediaType, content: &[u8]) -> Result<Descriptor, LayoutError> {
        let digest = Digest::of(Algorithm::Sha256, content);
        self.stream(media_type, digest, content)
    }

    /// Adds a manifest or an index, byte for byte as given.
    pub fn manifest(&self, media_type: &str, content: &[u8]) -> Result<Descriptor, LayoutError> {
        self.blob(MediaType::from(media_type), content)
    }

    /// Adds content of any size as it is read; kept only if it matches `digest`.
    pub fn stream(
        &self,
        media_type: MediaType,
        digest: Digest,
        mut content: impl Read,
    ) -> Result<Descriptor, LayoutError> {
        let folder = self.folder.join("blobs").join(digest.algorithm().as_str());
        make_folder(&folder)?;
        let path = folder.join(digest.hex());
        let mut file = draft(&folder).map_err(|source| LayoutError::Write { path: path.clone(), source })?;
        let mut hasher = Hasher::new(digest.algorithm());
        let mut size: u64 = 0;
        let mut step = vec![0; STEP];
        loop {
            let read = match content.read(&mut step) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(LayoutError::Read { digest, source }),
            };
            hasher.update(&step[..read]);
            size += read as u64;
            let written = file.write_all(&step[..read]);
            written.map_err(|source| LayoutError::Write { path: path.clone(), source })?;
        }
        let found = hasher.finish();
        if found != digest {
            return Err(LayoutError::Mismatch { wanted: digest.into(), found: found.into() });
        }
        keep(file, &path)?;
        let digest: oci_spec::image::Digest = digest.to_string().parse()?;
        Ok(Descriptor::new(media_type, size, digest))
    }

    /// Makes a manifest or an index findable under `name`; an earlier holder of the name loses it.
    pub fn tag(&mut self, mut descriptor: Descriptor, name: &str) {
        let named = |held: &Descriptor| {
            let held = held.annotations().as_ref().and_then(|all| all.get(ANNOTATION_REF_NAME));
            held.is_some_and(|held| held == name)
        };
        self.manifests.retain(|held| !named(held));
        let mut annotations: HashMap<_, _> = descriptor.annotations().clone().unwrap_or_default();
        annotations.insert(ANNOTATION_REF_NAME.to_owned(), name.to_owned());
        descriptor.set_annotations(Some(annotations));
        self.manifests.push(descriptor);
    }

    /// Makes the folder a layout.
    pub fn finish(self) -> Result<(), LayoutError> {
        let marker = OciLayoutBuilder::default().image_layout_version(LAYOUT_VERSION).build()?;
        let index = ImageIndexBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageIndex)
            .manifests(self.manifests)
            .build()?;
        for (name, text) in [("oci-layout", marker.to_string()?), (INDEX, index.to_string()?)] {
            let path = self.folder.join(name);
            let file = draft(&self.folder).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                Ok(file)
            });
            keep(file.map_err(|source| LayoutError::Write { path: path.clone(), source })?, &path)?;
        }
        Ok(())
    }
}

fn make_folder(path: &Path) -> Result<(), LayoutError> {
    fs::create_dir_all(path).map_err(|source| LayoutError::Write { path: path.to_owned(), source })
}

/// A file that goes away unless it is kept.
fn draft(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = Builder::new();
    builder.prefix(".draft-");
    // A layout is made to be handed on, so its files get the mode that any other file would.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

fn keep(file: NamedTempFile, path: &Path) -> Result<(), LayoutError> {
    let synced = file.as_file().sync_all();
    synced
        .and_then(|()| file.persist(path).map(drop).map_err(|error| error.error))
        .map_err(|source| LayoutError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::{ImageIndex, OciLayout};

    /// Every file below a folder, relative to it, sorted.
    fn files(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut left = vec![folder.to_owned()];
        while let Some(next) = left.pop() {
            for entry in fs::read_dir(next).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    left.push(path);
                } else {
                    found.push(path.strip_prefix(folder).expect("inside").to_string_lossy().into_owned());
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn what_is_written_can_be_read() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("new");
        let mut writer = LayoutWriter::create(&folder).expect("created");
        let layer = writer.blob(MediaType::ImageLayer, b"layer").expect("written");
        assert_eq!(layer.size(), 5);
        let long = Digest::of(Algorithm::Sha512, b"long");
        writer.stream(MediaType::ImageLayer, long, &b"long"[..]).expect("written");
        let manifest = writer.manifest("application/vnd.example+json", b"{ }").expect("written");
        writer.tag(layer, "latest");
        writer.tag(manifest.clone(), "latest");
        assert!(!folder.join(INDEX).exists());
        writer.finish().expect("finished");

        let sha256 = |content| format!("blobs/sha256/{}", Digest::of(Algorithm::Sha256, content).hex());
        let mut wanted = vec![
            sha256(b"layer"),
            sha256(b"{ }"),
            format!("blobs/sha512/{}", long.hex()),
            "index.json".to_owned(),
            "oci-layout".to_owned(),
        ];
        wanted.sort();
        assert_eq!(files(&folder), wanted);
        assert_eq!(fs::read(folder.join(sha256(b"layer"))).expect("the blob"), b"layer");
        let layout = OciLayout::from_file(folder.join("oci-layout")).expect("a marker");
        assert_eq!(layout.image_layout_version(), "1.0.0");
        let index = ImageIndex::from_file(folder.join(INDEX)).expect("an index");
        let [only] = index.manifests().as_slice() else { panic!("{index:?}") };
        assert_eq!((only.digest(), only.size()), (manifest.digest(), 3));
        assert_eq!(only.media_type().to_string(), "application/vnd.example+json");
        let annotations = only.annotations().as_ref().expect("annotations");
        assert_eq!(annotations[ANNOTATION_REF_NAME], "latest");
    }

    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("gone"))
        }
    }

    #[test]
    fn what_does_not_match_leaves_nothing() {
        let root = tempfile::tempdir().expect("a folder");
        let writer = LayoutWriter::create(root.path()).expect("created");
        let wanted = Digest::of(Algorithm::Sha256, b"this");
        let error = writer.stream(MediaType::ImageLayer, wanted, &b"that"[..]).expect_err("refused");
        assert!(matches!(error, LayoutError::Mismatch { .. }), "{error}");

        let error = writer.stream(MediaType::ImageLayer, wanted, Broken).expect_err("refused");
        assert!(matches!(error, LayoutError::Read { .. }), "{error}");
        assert_eq!(files(root.path()), Vec::<String>::new());
    }

    #[test]
    fn a_layout_is_never_overwritten() {
        let root = tempfile::tempdir().expect("a folder");
        LayoutWriter::create(root.path()).expect("created").finish().expect("finished");
        assert!(matches!(LayoutWriter::create(root.path()), Err(LayoutError::Occupied(_))));
        let file = root.path().join(INDEX);
        let error = LayoutWriter::create(file.join("below")).expect_err("a file is no folder");
        assert!(matches!(error, LayoutError::Write { .. }), "{error}");
    }
}
