//! Contract of `larder::source::Source`: one suite over every implementation. Each test checks one guarantee of the
//! trait's documentation. Registries are reached through an upstream with one endpoint, over a socket.

use std::any::Any;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use larder::clock::Clock;
use larder::config::Config;
use larder::config::schema::{Endpoint, Upstream as Settings};
use larder::oci::content::media::CANONICAL_ACCEPT;
use larder::oci::{Name, Reference};
use larder::source::{BlobBody, ByteRange, MANIFEST_MAX, OciLayout, Source, SourceError, open_blob};
use larder::telemetry::Metrics;
use larder::upstream::Upstreams;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::{Blob, Document, Fault, Image, Registry, TIME_LIMIT, When};

const REPOSITORY: &str = "org/app";
const UPSTREAM: &str = "reg.test";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Content that every source under test has in the repository `org/app`.
struct Content {
    image: Image,
    referrer: Document,
    /// Manifest of one byte too many, tagged `large`.
    large: Document,
    blob: Blob,
    empty: Blob,
}

impl Content {
    fn new() -> Self {
        let image = Image::small(1);
        Self {
            referrer: Image::statement("application/vnd.example.statement", "about", &image.manifest),
            large: Document::new(OCI_MANIFEST, vec![b' '; MANIFEST_MAX + 1]),
            blob: Blob::random(2, 600_000),
            empty: Blob::new(Vec::new()),
            image,
        }
    }

    fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.image.blobs().chain([&self.blob, &self.empty])
    }

    /// Manifests with their tags.
    fn manifests(&self) -> [(&Document, &'static [&'static str]); 3] {
        [(&self.image.manifest, &["latest", "v1"]), (&self.referrer, &[]), (&self.large, &["large"])]
    }
}

/// A source under test.
struct Fixture {
    source: Arc<dyn Source>,
    content: Content,
    /// Makes the next blob break off, before it is opened or while it is read.
    cut: Box<dyn Fn() + Send + Sync>,
    /// Makes the source unreachable.
    stop: Box<dyn Fn() + Send + Sync>,
    _owned: Box<dyn Any + Send + Sync>,
}

fn upstream(url: &str) -> Arc<dyn Source> {
    let settings = Settings { endpoints: vec![Endpoint::new(url)], ..Settings::default() };
    let config = Config { upstream: BTreeMap::from([(UPSTREAM.to_owned(), settings)]), ..Config::default() };
    let upstreams = Upstreams::build(&config, Arc::new(Metrics::new()), Clock::default()).unwrap();
    Arc::clone(upstreams.get(&UPSTREAM.parse().unwrap()).unwrap()) as Arc<dyn Source>
}

fn registry() -> Fixture {
    let (registry, content) = (Arc::new(Registry::start()), Content::new());
    registry.offer_referrers(true);
    registry.page_lists(2);
    content.blobs().for_each(|blob| registry.add_blob(REPOSITORY, blob));
    for (manifest, tags) in content.manifests() {
        registry.add_manifest(REPOSITORY, manifest);
        for tag in tags {
            registry.tag(REPOSITORY, tag, &manifest.digest);
        }
    }
    let (cutting, stopping) = (Arc::clone(&registry), Arc::clone(&registry));
    Fixture {
        source: upstream(&registry.url()),
        content,
        cut: Box::new(move || cutting.script(When::blobs(), Fault::Cut(100_000))),
        stop: Box::new(move || stopping.down()),
        _owned: Box::new(registry),
    }
}

/// Writes the content as an image layout.
fn write_layout(folder: &Path, content: &Content) {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let write = |digest: &str, bytes: &[u8]| {
        std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
    };
    content.blobs().for_each(|blob| write(&blob.digest, &blob.bytes));
    let mut descriptors = Vec::new();
    for (manifest, tags) in content.manifests() {
        write(&manifest.digest, &manifest.bytes);
        let descriptor = || json!({ "mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.bytes.len() });
        for tag in tags {
            let mut named = descriptor();
            named["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
            descriptors.push(named);
        }
        if tags.is_empty() {
            descriptors.push(descriptor());
        }
    }
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = json!({ "schemaVersion": 2, "manifests": descriptors });
    std::fs::write(folder.join("index.json"), index.to_string()).unwrap();
}

fn layout_fixture(open: impl FnOnce(&Path) -> Arc<dyn Source>) -> Fixture {
    let (root, content) = (Arc::new(TempDir::new().unwrap()), Content::new());
    let folder = root.path().join(REPOSITORY);
    write_layout(&folder, &content);
    let blob = folder.join("blobs/sha256").join(content.blob.digest.trim_start_matches("sha256:"));
    let whole = root.path().to_owned();
    Fixture {
        source: open(root.path()),
        content,
        cut: Box::new(move || {
            std::fs::File::options().write(true).open(&blob).unwrap().set_len(100_000).unwrap();
        }),
        stop: Box::new(move || std::fs::remove_dir_all(&whole).unwrap()),
        _owned: Box::new(root),
    }
}

fn oci_layout() -> Fixture {
    layout_fixture(|root| {
        let upstream = UPSTREAM.parse().unwrap();
        Arc::new(OciLayout::new(upstream, root.to_owned(), Arc::new(Metrics::new())))
    })
}

fn upstream_with_layout() -> Fixture {
    layout_fixture(|root| upstream(&format!("oci://{}", root.display())))
}

fn name() -> Name {
    REPOSITORY.parse().unwrap()
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

async fn read(mut body: BlobBody) -> Result<Vec<u8>, SourceError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.chunk().await? {
        assert!(!chunk.is_empty(), "a chunk is never empty");
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Names that no source has: a tag, a digest, and a repository.
fn missing() -> [(Name, Reference); 3] {
    let nothing = reference(&Blob::new("missing").digest);
    [(name(), reference("missing")), (name(), nothing), ("org/missing".parse().unwrap(), reference("latest"))]
}

async fn head_announces_nothing_wrong(fixture: Fixture) {
    let manifest = &fixture.content.image.manifest;
    for named in ["latest", &manifest.digest] {
        let head = fixture.source.head(&name(), &reference(named), CANONICAL_ACCEPT, None).await.unwrap();
        let Some(head) = head else { continue };
        assert!(head.digest.is_none_or(|digest| digest.to_string() == manifest.digest));
        assert!(head.size.is_none_or(|size| size == manifest.bytes.len() as u64));
        assert!(head.content_type.is_none_or(|content_type| content_type == manifest.media_type));
    }
    for (name, reference) in missing() {
        let head = fixture.source.head(&name, &reference, CANONICAL_ACCEPT, None).await;
        assert!(matches!(head, Ok(None) | Err(SourceError::NotFound)), "{name} {reference}: {head:?}");
    }
}

async fn manifest_is_sent_whole_by_tag_and_digest(fixture: Fixture) {
    let manifest = &fixture.content.image.manifest;
    for named in ["latest", "v1", &manifest.digest] {
        let found =
            fixture.source.manifest(&name(), &reference(named), CANONICAL_ACCEPT, None).await.unwrap();
        assert_eq!(found.body, *manifest.bytes, "{named}");
        assert!(found.digest.is_none_or(|digest| digest.to_string() == manifest.digest));
        assert!(found.content_type.is_none_or(|content_type| content_type == manifest.media_type));
    }
    for (name, reference) in missing() {
        let found = fixture.source.manifest(&name, &reference, CANONICAL_ACCEPT, None).await;
        assert_eq!(found.map(drop), Err(SourceError::NotFound), "{name} {reference}");
    }
}

async fn manifest_larger_than_the_limit_is_invalid(fixture: Fixture) {
    let found = fixture.source.manifest(&name(), &reference("large"), CANONICAL_ACCEPT, None).await;
    assert!(matches!(found, Err(SourceError::Invalid(_))), "{:?}", found.map(|found| found.body.len()));
}

async fn blob_size_is_the_size_or_unknown(fixture: Fixture) {
    for blob in [&fixture.content.blob, &fixture.content.empty] {
        let size = fixture.source.blob_size(&name(), &blob.digest.parse().unwrap(), None).await.unwrap();
        assert!(size.is_none_or(|size| size == blob.len() as u64), "{size:?}");
    }
    let missing = Blob::new("missing").digest.parse().unwrap();
    assert_eq!(fixture.source.blob_size(&name(), &missing, None).await, Err(SourceError::NotFound));
}

async fn blob_is_sent_whole(fixture: Fixture) {
    for blob in fixture.content.blobs() {
        let digest = blob.digest.parse().unwrap();
        let body = fixture.source.blob(&name(), &digest, ByteRange::ALL, None).await.unwrap();
        assert_eq!((body.offset, body.gzip), (0, false));
        assert!(body.total.is_none_or(|total| total == blob.len() as u64));
        assert!(read(body).await.unwrap() == *blob.bytes, "{} bytes", blob.len());
    }
    let missing = Blob::new("missing").digest.parse().unwrap();
    let found = fixture.source.blob(&name(), &missing, ByteRange::ALL, None).await;
    assert_eq!(found.map(drop), Err(SourceError::NotFound));
}

async fn blob_range_is_sent_from_its_offset(fixture: Fixture) {
    let blob = &fixture.content.blob;
    let (digest, size) = (blob.digest.parse().unwrap(), blob.len() as u64);
    for (first, last) in [
        (0, Some(0)),
        (7, None),
        (size - 1, None),
        (5, Some(500_000)),
        (9, Some(size - 1)),
        (3, Some(size * 2)),
    ] {
        let body = fixture.source.blob(&name(), &digest, ByteRange { first, last }, None).await.unwrap();
        assert!(body.total.is_none_or(|total| total == size));
        let end = last.map_or(size, |last| size.min(last + 1)) as usize;
        match body.offset {
            // The source ignored the range.
            0 if first > 0 => assert!(read(body).await.unwrap() == *blob.bytes),
            offset => {
                assert_eq!(offset, first);
                let bytes = read(body).await.unwrap();
                assert!(bytes == blob.bytes[first as usize..end], "{first}-{last:?}: {} bytes", bytes.len());
            }
        }
    }
    for first in [size, size + 1] {
        let found = fixture.source.blob(&name(), &digest, ByteRange::from(first), None).await;
        assert_eq!(found.map(drop), Err(SourceError::RangeNotSatisfiable), "{first} of {size}");
    }
}

async fn blob_that_breaks_off_is_interrupted(fixture: Fixture) {
    let digest = fixture.content.blob.digest.parse().unwrap();
    let range = ByteRange::from(50_000);
    let before = fixture.source.blob(&name(), &digest, range, None).await.unwrap();
    (fixture.cut)();
    // A registry breaks off the next response, a layout the file that is open already.
    let after = fixture.source.blob(&name(), &digest, range, None).await.unwrap();
    let results = [read(before).await, read(after).await];
    let interrupted = results.iter().filter(|result| matches!(result, Err(SourceError::Interrupted(_))));
    assert!(interrupted.count() >= 1, "{:?}", results.map(|result| result.map(|bytes| bytes.len())));
}

async fn tags_are_complete(fixture: Fixture) {
    let mut tags: Vec<_> = fixture.source.tags(&name(), None).await.unwrap();
    tags.sort();
    assert_eq!(tags.iter().map(ToString::to_string).collect::<Vec<_>>(), ["large", "latest", "v1"]);
    let found = fixture.source.tags(&"org/missing".parse().unwrap(), None).await;
    assert_eq!(found, Err(SourceError::NotFound));
}

async fn referrers_are_complete(fixture: Fixture) {
    let Content { image, referrer, .. } = &fixture.content;
    let list =
        fixture.source.referrers(&name(), &image.manifest.digest.parse().unwrap(), None).await.unwrap();
    let index = String::from_utf8(list.to_index().clone()).unwrap();
    assert_eq!(index.matches(&referrer.digest).count(), 1, "{index}");
    assert!(index.contains("application/vnd.example.statement"), "{index}");
    match fixture.source.referrers(&name(), &referrer.digest.parse().unwrap(), None).await {
        Ok(list) => assert!(list.is_empty()),
        Err(error) => assert!(matches!(error, SourceError::NoReferrers { .. }), "{error}"),
    }
}

async fn unreachable_source_never_reports_absence(fixture: Fixture) {
    let digest = fixture.content.blob.digest.parse().unwrap();
    (fixture.stop)();
    let (source, name) = (&fixture.source, &name());
    for error in [
        source.head(name, &reference("latest"), CANONICAL_ACCEPT, None).await.map(drop),
        source.manifest(name, &reference("latest"), CANONICAL_ACCEPT, None).await.map(drop),
        source.blob_size(name, &digest, None).await.map(drop),
        source.blob(name, &digest, ByteRange::ALL, None).await.map(drop),
        source.tags(name, None).await.map(drop),
        source.referrers(name, &digest, None).await.map(drop),
    ] {
        let error = error.expect_err("an error");
        assert!(error.is_outage(), "{error:?}");
    }
}

async fn deadline_in_the_past_ends_at_once(fixture: Fixture) {
    let digest = fixture.content.blob.digest.parse().unwrap();
    let name = name();
    let asked = fixture.source.blob_size(&name, &digest, Some(Instant::now()));
    let size = tokio::time::timeout(TIME_LIMIT, asked).await.expect("an answer");
    assert!(matches!(size, Ok(_) | Err(SourceError::Timeout(_) | SourceError::Busy)), "{size:?}");
}

async fn dropped_request_leaves_the_source_usable(fixture: Fixture) {
    let blob = &fixture.content.blob;
    let digest = blob.digest.parse().unwrap();
    for _ in 0..3 {
        let name = name();
        let asked = fixture.source.blob(&name, &digest, ByteRange::ALL, None);
        let _ = tokio::time::timeout(Duration::from_micros(200), asked).await;
    }
    let mut body = fixture.source.blob(&name(), &digest, ByteRange::ALL, None).await.unwrap();
    let mut bytes = Vec::new();
    loop {
        // A dropped read loses no bytes.
        match tokio::time::timeout(Duration::from_micros(50), body.chunk()).await {
            Ok(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk),
            Ok(Ok(None)) => break,
            Ok(Err(error)) => panic!("{error}"),
            Err(_) => tokio::task::yield_now().await,
        }
    }
    assert!(bytes == *blob.bytes);
}

#[tokio::test]
async fn open_blob_asks_sources_in_order() {
    let empty = Registry::start();
    let (empty_source, full) = (upstream(&empty.url()), oci_layout());
    let (blob, name) = (&full.content.blob, name());
    let digest = blob.digest.parse().unwrap();
    let sources = [Arc::clone(&empty_source), Arc::clone(&full.source)];
    let body = open_blob(&sources, &name, &digest, ByteRange::ALL).await.unwrap();
    assert!(read(body).await.unwrap() == *blob.bytes);
    let missing = Blob::new("missing").digest.parse().unwrap();
    let found = open_blob(&sources, &name, &missing, ByteRange::ALL).await;
    assert_eq!(found.map(drop), Err(SourceError::NotFound));
    // A source that cannot be asked may have the blob.
    empty.down();
    let error = open_blob(&sources, &name, &missing, ByteRange::ALL).await.expect_err("an error");
    assert!(error.is_outage(), "{error:?}");
    assert!(open_blob(&sources, &name, &digest, ByteRange::ALL).await.is_ok());
}

macro_rules! contract {
    ($($source:ident: [$($guarantee:ident),* $(,)?])*) => {$(
        mod $source {
            $(
                #[tokio::test]
                async fn $guarantee() {
                    super::$guarantee(super::$source()).await;
                }
            )*
        }
    )*};
}

macro_rules! contract_of {
    ($($source:ident)*) => {
        contract! {$($source: [
            head_announces_nothing_wrong,
            manifest_is_sent_whole_by_tag_and_digest,
            manifest_larger_than_the_limit_is_invalid,
            blob_size_is_the_size_or_unknown,
            blob_is_sent_whole,
            blob_range_is_sent_from_its_offset,
            blob_that_breaks_off_is_interrupted,
            tags_are_complete,
            referrers_are_complete,
            unreachable_source_never_reports_absence,
            deadline_in_the_past_ends_at_once,
            dropped_request_leaves_the_source_usable,
        ])*}
    };
}

contract_of! { registry oci_layout upstream_with_layout }
