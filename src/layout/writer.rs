//! Writes an OCI image layout into a folder.
//!
//! A file gets its name only after it is complete and verified. `index.json` is written last, so that an interrupted
//! export leaves no folder that a reader takes for a layout.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::image::{ANNOTATION_REF_NAME, Descriptor, MediaType, SCHEMA_VERSION};
use serde_json::{Map, Value, json};
use tempfile::{Builder, NamedTempFile};

use crate::oci::{Algorithm, Digest, Hasher, media};

use super::format::{IMAGE_NAME, INDEX_FILE, MARKER, MARKER_FILE, annotation, blob_path};

/// Prefix of the names of incomplete files.
const DRAFT: &str = ".draft-";
/// Bytes of a blob that are in memory at once.
const CHUNK: usize = 256 * 1024;

/// Reason why a layout cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The folder contains a layout.
    #[error("{} contains an OCI layout; name another folder, or remove it first", .0.display())]
    Occupied(PathBuf),
    /// The folder contains other files.
    #[error("{} contains `{name}`, which is not part of an OCI layout; name an empty or new folder", folder.display())]
    Foreign {
        /// Path of the folder.
        folder: PathBuf,
        /// Name of the foreign file.
        name: String,
    },
    /// The `index.json` of the folder is invalid.
    #[error("{} is not an image index; name another folder", .0.display())]
    Index(PathBuf),
    /// Another process writes into the folder.
    #[error("another process writes into {}; wait until it has finished", .0.display())]
    Busy(PathBuf),
    /// Another image has the tag.
    #[error(
        "the folder already has {holder} with the tag {tag}; give the image another name with --name, or choose another folder"
    )]
    Taken {
        /// Tag of both images.
        tag: String,
        /// Name of the image that has the tag.
        holder: String,
    },
    /// A file or folder cannot be written.
    #[error("{path} cannot be written")]
    Write {
        /// Path of the file or folder.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The content cannot be read to its end.
    #[error("the content of {digest} cannot be read")]
    Read {
        /// Expected digest.
        digest: Digest,
        /// Error of the system.
        source: io::Error,
    },
    /// The content does not match its digest. Nothing was kept.
    #[error("the content for {wanted} has the digest {found}")]
    Mismatch {
        /// Expected digest.
        wanted: Box<Digest>,
        /// Digest of the content.
        found: Box<Digest>,
    },
    /// A JSON document of the layout cannot be created.
    #[error(transparent)]
    Document(#[from] OciSpecError),
}

/// Writer of a layout. The folder is a layout only after [`LayoutWriter::finish`].
#[derive(Debug)]
pub struct LayoutWriter {
    folder: PathBuf,
    /// Content of `index.json` without `manifests`.
    index: Map<String, Value>,
    manifests: Vec<Value>,
    /// Lock on the folder while it is open.
    _lock: File,
}

impl LayoutWriter {
    /// Starts a new layout in `folder`, which is created if necessary.
    pub fn create(folder: impl Into<PathBuf>) -> Result<Self, LayoutError> {
        let folder = folder.into();
        if folder.join(INDEX_FILE).exists() {
            return Err(LayoutError::Occupied(folder));
        }
        Self::start(folder)
    }

    /// Opens the layout in `folder` to add images, or starts a new one.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, LayoutError> {
        let folder = folder.into();
        if folder.exists() {
            let failed = |source| LayoutError::Write { path: folder.clone(), source };
            for entry in fs::read_dir(&folder).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
                if ![MARKER_FILE, INDEX_FILE, "blobs"].contains(&&*name) && !name.starts_with(DRAFT) {
                    return Err(LayoutError::Foreign { folder, name });
                }
            }
        }
        let mut writer = Self::start(folder)?;
        let path = writer.folder.join(INDEX_FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(writer),
            Err(source) => return Err(LayoutError::Write { path, source }),
        };
        let Ok(Value::Object(mut index)) = serde_json::from_slice(&text) else {
            return Err(LayoutError::Index(path));
        };
        match index.remove("manifests") {
            Some(Value::Array(manifests)) => writer.manifests = manifests,
            _ => return Err(LayoutError::Index(path)),
        }
        writer.index = index;
        Ok(writer)
    }

    fn start(folder: PathBuf) -> Result<Self, LayoutError> {
        // The specification requires `blobs`, even if it stays empty.
        make_folder(&folder.join("blobs"))?;
        let lock =
            File::open(&folder).map_err(|source| LayoutError::Write { path: folder.clone(), source })?;
        if let Err(fs::TryLockError::WouldBlock) = lock.try_lock() {
            return Err(LayoutError::Busy(folder));
        }
        let index = json!({ "schemaVersion": SCHEMA_VERSION, "mediaType": media::OCI_INDEX });
        let index = index.as_object().cloned().unwrap_or_default();
        Ok(Self { folder, index, manifests: Vec::new(), _lock: lock })
    }

    /// Adds content under its SHA-256 digest.
    pub fn blob(&self, media_type: MediaType, content: &[u8]) -> Result<Descriptor, LayoutError> {
        let digest = Digest::of(Algorithm::Sha256, content);
        self.stream(media_type, digest, content)
    }

    /// Adds a manifest or an index, byte for byte.
    pub fn manifest(&self, media_type: &str, content: &[u8]) -> Result<Descriptor, LayoutError> {
        self.blob(MediaType::from(media_type), content)
    }

    /// Adds content of any size from a reader. Keeps it only if it matches `digest`.
    pub fn stream(
        &self,
        media_type: MediaType,
        digest: Digest,
        mut content: impl Read,
    ) -> Result<Descriptor, LayoutError> {
        let path = self.folder.join(blob_path(&digest));
        let folder = path.parent().unwrap_or(&self.folder);
        make_folder(folder)?;
        let mut file = draft(folder).map_err(|source| LayoutError::Write { path: path.clone(), source })?;
        let mut hasher = Hasher::new(digest.algorithm());
        let mut size: u64 = 0;
        let mut step = vec![0; CHUNK];
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
        persist(file, &path)?;
        let digest: oci_spec::image::Digest = digest.to_string().parse()?;
        Ok(Descriptor::new(media_type, size, digest))
    }

    /// Adds a manifest or an index to `index.json` under `name`. Replaces an earlier entry with the name.
    pub fn tag(&mut self, mut descriptor: Descriptor, name: &str) -> Result<(), LayoutError> {
        let mut annotations: HashMap<_, _> = descriptor.annotations().clone().unwrap_or_default();
        annotations.insert(ANNOTATION_REF_NAME.to_owned(), name.to_owned());
        descriptor.set_annotations(Some(annotations));
        self.add(serde_json::to_value(descriptor).map_err(OciSpecError::from)?)
    }

    /// Adds an entry to `index.json`. Replaces an earlier entry with the tag, unless that has the name of another image.
    pub fn add(&mut self, entry: Value) -> Result<(), LayoutError> {
        let tag = annotation(&entry, ANNOTATION_REF_NAME);
        let (name, digest) = (annotation(&entry, IMAGE_NAME), entry.get("digest"));
        let of_another_image = |existing: &&Value| {
            let owner = annotation(existing, IMAGE_NAME);
            tag.is_some()
                && annotation(existing, ANNOTATION_REF_NAME) == tag
                && owner.is_some()
                && owner != name
        };
        if let (Some(existing), Some(tag), true) =
            (self.manifests.iter().find(of_another_image), tag, name.is_some())
        {
            let owner = annotation(existing, IMAGE_NAME).unwrap_or_default().to_owned();
            return Err(LayoutError::Taken { tag: tag.to_owned(), holder: owner });
        }
        self.manifests.retain(|existing| {
            let same = annotation(existing, ANNOTATION_REF_NAME) == tag;
            !same || (tag.is_none() && existing.get("digest") != digest)
        });
        self.manifests.push(entry);
        Ok(())
    }

    /// Writes the marker and `index.json`, which makes the folder a layout.
    pub fn finish(self) -> Result<(), LayoutError> {
        let mut index = self.index;
        index.insert("manifests".to_owned(), Value::Array(self.manifests));
        let index = Value::Object(index).to_string();
        for (name, text) in [(MARKER_FILE, MARKER), (INDEX_FILE, &*index)] {
            let path = self.folder.join(name);
            let file = draft(&self.folder).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                Ok(file)
            });
            persist(file.map_err(|source| LayoutError::Write { path: path.clone(), source })?, &path)?;
        }
        Ok(())
    }
}

fn make_folder(path: &Path) -> Result<(), LayoutError> {
    fs::create_dir_all(path).map_err(|source| LayoutError::Write { path: path.to_owned(), source })
}

/// Creates a temporary file. It is removed unless it is persisted.
fn draft(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = Builder::new();
    builder.prefix(DRAFT);
    // Other users read a layout, so its files get the mode of ordinary files.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// Syncs a temporary file and gives it its name.
fn persist(file: NamedTempFile, path: &Path) -> Result<(), LayoutError> {
    let synced = file.as_file().sync_all();
    synced
        .and_then(|()| file.persist(path).map(drop).map_err(|error| error.error))
        .map_err(|source| LayoutError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::{ImageIndex, OciLayout};

    /// Returns the relative paths of all files below a folder, sorted.
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
    fn layout_writer_output_can_be_read() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("new");
        let mut writer = LayoutWriter::create(&folder).expect("created");
        let layer = writer.blob(MediaType::ImageLayer, b"layer").expect("written");
        assert_eq!(layer.size(), 5);
        let long = Digest::of(Algorithm::Sha512, b"long");
        writer.stream(MediaType::ImageLayer, long, &b"long"[..]).expect("written");
        let manifest = writer.manifest("application/vnd.example+json", b"{ }").expect("written");
        writer.tag(layer, "latest").expect("tagged");
        writer.tag(manifest.clone(), "latest").expect("tagged");
        assert!(!folder.join(INDEX_FILE).exists());
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
        let index = ImageIndex::from_file(folder.join(INDEX_FILE)).expect("an index");
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
    fn layout_writer_keeps_no_mismatched_content() {
        let root = tempfile::tempdir().expect("a folder");
        let writer = LayoutWriter::create(root.path()).expect("created");
        let wanted = Digest::of(Algorithm::Sha256, b"this");
        let error = writer.stream(MediaType::ImageLayer, wanted, &b"that"[..]).expect_err("refused");
        assert!(matches!(error, LayoutError::Mismatch { .. }), "{error}");

        let error = writer.stream(MediaType::ImageLayer, wanted, Broken).expect_err("refused");
        assert!(matches!(error, LayoutError::Read { .. }), "{error}");
        assert_eq!(files(root.path()), Vec::<String>::new());
    }

    fn entry(digest: &str, tag: Option<&str>, name: Option<&str>) -> Value {
        let mut entry = json!({ "digest": digest, "annotations": {} });
        for (key, value) in [(ANNOTATION_REF_NAME, tag), (IMAGE_NAME, name)] {
            entry["annotations"][key] = json!(value);
        }
        entry
    }

    #[test]
    fn layout_writer_adds_to_a_layout() {
        let root = tempfile::tempdir().expect("a folder");
        let add = |entries: &[Value]| {
            let mut writer = LayoutWriter::open(root.path())?;
            for entry in entries {
                writer.add(entry.clone())?;
            }
            writer.finish()
        };
        add(&[entry("a", Some("1"), Some("docker.io/x:1")), entry("b", None, None)]).expect("written");
        fs::write(root.path().join(".draft-left"), "over").expect("written");
        add(&[entry("c", Some("1"), Some("docker.io/x:1")), entry("b", None, None), entry("d", None, None)])
            .expect("written");
        let taken = add(&[entry("e", Some("1"), Some("docker.io/y:1"))]).expect_err("taken").to_string();
        assert!(taken.contains("docker.io/x:1") && taken.contains("--name"), "{taken}");
        add(&[entry("f", Some("2"), None)]).expect("written");
        let index: Value =
            serde_json::from_slice(&fs::read(root.path().join(INDEX_FILE)).expect("an index")).expect("JSON");
        let digests: Vec<_> =
            index["manifests"].as_array().expect("a list").iter().map(|it| &it["digest"]).collect();
        assert_eq!(digests, ["c", "b", "d", "f"]);
    }

    #[test]
    fn layout_writer_leaves_other_folders_unchanged() {
        let root = tempfile::tempdir().expect("a folder");
        fs::write(root.path().join("precious"), "x").expect("written");
        let error = LayoutWriter::open(root.path()).expect_err("refused").to_string();
        assert!(error.contains("`precious`"), "{error}");
        let root = tempfile::tempdir().expect("a folder");
        fs::write(root.path().join(INDEX_FILE), "[]").expect("written");
        assert!(matches!(LayoutWriter::open(root.path()), Err(LayoutError::Index(_))));
    }

    #[test]
    fn layout_writer_locks_the_folder() {
        let root = tempfile::tempdir().expect("a folder");
        let first = LayoutWriter::open(root.path()).expect("opened");
        assert!(matches!(LayoutWriter::open(root.path()), Err(LayoutError::Busy(_))));
        drop(first);
        LayoutWriter::open(root.path()).expect("opened");
    }

    #[test]
    fn layout_writer_overwrites_no_layout() {
        let root = tempfile::tempdir().expect("a folder");
        LayoutWriter::create(root.path()).expect("created").finish().expect("finished");
        assert!(matches!(LayoutWriter::create(root.path()), Err(LayoutError::Occupied(_))));
        let file = root.path().join(INDEX_FILE);
        let error = LayoutWriter::create(file.join("below")).expect_err("a file is no folder");
        assert!(matches!(error, LayoutError::Write { .. }), "{error}");
    }
}
