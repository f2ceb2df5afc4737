//! Writes an OCI image layout (image-spec, image-layout.md): a folder of images that tools and larder can read.
//!
//! Every file appears under its name only when it is whole and its digest is known, and `index.json` comes last:
//! an interrupted export leaves a folder that no reader takes for a layout. All of it is blocking work.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::image::{ANNOTATION_REF_NAME, Descriptor, MediaType, SCHEMA_VERSION};
use serde_json::{Map, Value, json};
use tempfile::{Builder, NamedTempFile};

use crate::oci::{Algorithm, Digest, Hasher, media};

use super::tar_writer::{INDEX, MARKER};

/// containerd's annotation with an image's whole name.
pub const IMAGE_NAME: &str = "io.containerd.image.name";
/// What files have in front of their names while they are written.
const DRAFT: &str = ".draft-";
/// How much of a blob is in memory at a time.
const STEP: usize = 256 * 1024;

/// Why a layout cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The folder holds a layout already.
    #[error("{0} holds an OCI layout already; name another folder, or remove it first")]
    Occupied(PathBuf),
    /// The folder holds something else.
    #[error("{} holds `{name}`, which is no part of an OCI layout; name an empty or new folder", folder.display())]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// What is in it.
        name: String,
    },
    /// The folder's index is none.
    #[error("{} is no image index; name another folder", .0.display())]
    Index(PathBuf),
    /// Somebody else writes into the folder.
    #[error("{} is being written by somebody else; wait for the end of that", .0.display())]
    Busy(PathBuf),
    /// Another image has the tag in the folder.
    #[error(
        "the folder has {holder} under the tag {tag} already; give the image another name with --name, or take another folder"
    )]
    Taken {
        /// The tag.
        tag: String,
        /// Whose it is.
        holder: String,
    },
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
    /// `index.json`, but for its manifests.
    index: Map<String, Value>,
    manifests: Vec<Value>,
    /// Keeps others out while it is open.
    _lock: File,
}

impl LayoutWriter {
    /// Begins a layout in `folder`, which is made if it is not there.
    pub fn create(folder: impl Into<PathBuf>) -> Result<Self, LayoutError> {
        let folder = folder.into();
        if folder.join(INDEX).exists() {
            return Err(LayoutError::Occupied(folder));
        }
        Self::begin(folder)
    }

    /// Begins to add to the layout in `folder`, or a new one if nothing is there.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, LayoutError> {
        let folder = folder.into();
        if folder.exists() {
            let failed = |source| LayoutError::Write { path: folder.clone(), source };
            for entry in fs::read_dir(&folder).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
                if ![MARKER.0, INDEX, "blobs"].contains(&&*name) && !name.starts_with(DRAFT) {
                    return Err(LayoutError::Foreign { folder, name });
                }
            }
        }
        let mut writer = Self::begin(folder)?;
        let path = writer.folder.join(INDEX);
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

    fn begin(folder: PathBuf) -> Result<Self, LayoutError> {
        // The specification wants `blobs` to be there even if it stays empty.
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
    pub fn tag(&mut self, mut descriptor: Descriptor, name: &str) -> Result<(), LayoutError> {
        let mut annotations: HashMap<_, _> = descriptor.annotations().clone().unwrap_or_default();
        annotations.insert(ANNOTATION_REF_NAME.to_owned(), name.to_owned());
        descriptor.set_annotations(Some(annotations));
        self.add(serde_json::to_value(descriptor).map_err(OciSpecError::from)?)
    }

    /// Adds an entry of an index. An earlier holder of its tag loses it, unless that bears another image's whole name.
    pub fn add(&mut self, entry: Value) -> Result<(), LayoutError> {
        let tag = annotation(&entry, ANNOTATION_REF_NAME);
        let (name, digest) = (annotation(&entry, IMAGE_NAME), entry.get("digest"));
        let of_another = |held: &&Value| {
            let holder = annotation(held, IMAGE_NAME);
            tag.is_some()
                && annotation(held, ANNOTATION_REF_NAME) == tag
                && holder.is_some()
                && holder != name
        };
        if let (Some(held), Some(tag), true) = (self.manifests.iter().find(of_another), tag, name.is_some()) {
            let holder = annotation(held, IMAGE_NAME).unwrap_or_default().to_owned();
            return Err(LayoutError::Taken { tag: tag.to_owned(), holder });
        }
        self.manifests.retain(|held| {
            let same = annotation(held, ANNOTATION_REF_NAME) == tag;
            !same || (tag.is_none() && held.get("digest") != digest)
        });
        self.manifests.push(entry);
        Ok(())
    }

    /// Makes the folder a layout.
    pub fn finish(self) -> Result<(), LayoutError> {
        let mut index = self.index;
        index.insert("manifests".to_owned(), Value::Array(self.manifests));
        let index = Value::Object(index).to_string();
        for (name, text) in [(MARKER.0, MARKER.1), (INDEX, &*index)] {
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

/// An annotation of an entry of an index.
pub fn annotation<'a>(entry: &'a Value, key: &str) -> Option<&'a str> {
    entry.get("annotations")?.get(key)?.as_str()
}

fn make_folder(path: &Path) -> Result<(), LayoutError> {
    fs::create_dir_all(path).map_err(|source| LayoutError::Write { path: path.to_owned(), source })
}

/// A file that goes away unless it is kept.
fn draft(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = Builder::new();
    builder.prefix(DRAFT);
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
        writer.tag(layer, "latest").expect("tagged");
        writer.tag(manifest.clone(), "latest").expect("tagged");
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

    fn entry(digest: &str, tag: Option<&str>, name: Option<&str>) -> Value {
        let mut entry = json!({ "digest": digest, "annotations": {} });
        for (key, value) in [(ANNOTATION_REF_NAME, tag), (IMAGE_NAME, name)] {
            entry["annotations"][key] = json!(value);
        }
        entry
    }

    #[test]
    fn what_is_there_is_added_to() {
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
            serde_json::from_slice(&fs::read(root.path().join(INDEX)).expect("an index")).expect("JSON");
        let digests: Vec<_> =
            index["manifests"].as_array().expect("a list").iter().map(|it| &it["digest"]).collect();
        assert_eq!(digests, ["c", "b", "d", "f"]);
    }

    #[test]
    fn what_is_no_layout_is_left_alone() {
        let root = tempfile::tempdir().expect("a folder");
        fs::write(root.path().join("precious"), "x").expect("written");
        let error = LayoutWriter::open(root.path()).expect_err("refused").to_string();
        assert!(error.contains("`precious`"), "{error}");
        let root = tempfile::tempdir().expect("a folder");
        fs::write(root.path().join(INDEX), "[]").expect("written");
        assert!(matches!(LayoutWriter::open(root.path()), Err(LayoutError::Index(_))));
    }

    #[test]
    fn only_one_writes_at_a_time() {
        let root = tempfile::tempdir().expect("a folder");
        let first = LayoutWriter::open(root.path()).expect("opened");
        assert!(matches!(LayoutWriter::open(root.path()), Err(LayoutError::Busy(_))));
        drop(first);
        LayoutWriter::open(root.path()).expect("opened");
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
