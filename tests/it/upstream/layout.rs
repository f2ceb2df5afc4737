//! Image layouts as upstreams.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use larder::clock::Clock;
use larder::config::Config;
use larder::oci::{Algorithm, Digest, Name, Reference};
use larder::source::{ByteRange, Source as _, SourceError};
use larder::telemetry::Metrics;
use larder::upstream::{Upstream, Upstreams};

use crate::upstream::registry::{TIMEOUTS, at, counted, digest, name, read, tag, upstream};

fn write_layout(folder: &Path, blobs: &[&[u8]], named: &[(&str, &str, &[u8])]) {
    let place = folder.join("blobs/sha256");
    std::fs::create_dir_all(&place).expect("a folder");
    for blob in blobs {
        std::fs::write(place.join(Digest::of(Algorithm::Sha256, blob).hex()), blob).expect("written");
    }
    let manifests: Vec<_> = named
        .iter()
        .map(|(key, value, blob)| {
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"{}","size":{},"annotations":{{"{key}":"{value}"}}}}"#,
                Digest::of(Algorithm::Sha256, blob),
                blob.len()
            )
        })
        .collect();
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, manifests.join(","));
    std::fs::write(folder.join("index.json"), index).expect("written");
}

fn layout(root: &Path) -> (Arc<Upstream>, Arc<Metrics>) {
    upstream(at(&format!("oci://{}", root.display())), TIMEOUTS)
}

fn reference(text: &str) -> Reference {
    text.parse().expect("a reference")
}

const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[tokio::test]
async fn layout_answers_like_a_registry() {
    let root = tempfile::tempdir().expect("a folder");
    let big = vec![7_u8; 700_000];
    write_layout(
        root.path(),
        &[b"{}", b"bare", b"short", b"full", b"containerd", &big],
        &[
            (REF_NAME, "bare", b"bare"),
            (REF_NAME, "org/app:short", b"short"),
            (REF_NAME, "reg.test/org/app:full", b"full"),
            (REF_NAME, "other.test/org/app:strange", b"bare"),
            (REF_NAME, "app:partial", b"bare"),
            ("io.containerd.image.name", "reg.test/org/app:containerd", b"containerd"),
            ("io.containerd.image.name", "org/app:other", b"bare"),
            (REF_NAME, "gone", b"gone"),
        ],
    );
    let (upstream, metrics) = layout(root.path());
    for tag in ["short", "full", "containerd"] {
        let document = upstream.manifest(&name(), &reference(tag), "", None).await.expect("a manifest");
        assert_eq!(document.body, tag);
        assert_eq!(document.content_type.as_deref(), Some("application/vnd.oci.image.index.v1+json"));
        let digest = Digest::of(Algorithm::Sha256, tag.as_bytes());
        let head = upstream.head(&name(), &Reference::Digest(digest), "", None).await.expect("a head");
        let head = head.expect("an answer");
        assert_eq!((head.digest, head.size), (Some(digest), Some(tag.len() as u64)));
        assert!(head.content_type.is_some());
    }
    // A plain tag in a layout that is shared by all repositories belongs to none.
    for tag in ["bare", "strange", "partial", "other", "gone", "absent"] {
        let error = upstream.manifest(&name(), &reference(tag), "", None).await.expect_err("not there");
        assert_eq!(error, SourceError::NotFound, "{tag}");
    }
    let unlisted = Reference::Digest(Digest::of(Algorithm::Sha256, b"{}"));
    let document = upstream.manifest(&name(), &unlisted, "", None).await.expect("a manifest");
    assert_eq!(document.content_type, None);

    let digest = Digest::of(Algorithm::Sha256, &big);
    assert_eq!(upstream.blob_size(&name(), &digest, None).await, Ok(Some(700_000)));
    let mut body = upstream.blob(&name(), &digest, ByteRange::ALL, None).await.expect("a body");
    assert_eq!(body.chunk().await.expect("a piece").expect("a piece").len(), 256 * 1024);
    assert_eq!(read(&mut body).await.expect("the rest").len(), 700_000 - 256 * 1024);
    let mut body = upstream
        .blob(&name(), &digest, ByteRange { first: 699_998, last: Some(999_999) }, None)
        .await
        .expect("a body");
    assert_eq!((body.offset, body.total), (699_998, Some(700_000)));
    assert_eq!(read(&mut body).await.expect("the range"), [7, 7]);
    let error = upstream.blob(&name(), &digest, ByteRange::from(700_000), None).await.expect_err("beyond");
    assert_eq!(error, SourceError::RangeNotSatisfiable);
    let missing = Digest::of(Algorithm::Sha512, b"missing");
    assert_eq!(upstream.blob_size(&name(), &missing, None).await, Err(SourceError::NotFound));

    let series = |status: &str| {
        let name = "larder_upstream_requests_total";
        counted(&metrics, &format!(r#"{name}{{method="HEAD",status="{status}",upstream="reg.test"}}"#))
    };
    assert_eq!((series("200").as_deref(), series("404").as_deref()), (Some("4"), Some("1")));
}

#[tokio::test]
async fn repository_may_have_its_own_layout() {
    let root = tempfile::tempdir().expect("a folder");
    let root_names: [(_, _, &[u8]); 2] =
        [(REF_NAME, "latest", b"root"), (REF_NAME, "other:latest", b"other")];
    write_layout(root.path(), &[b"root", b"other"], &root_names);
    let own = root.path().join("org/app");
    std::fs::create_dir_all(&own).expect("a folder");
    let own_names: [(_, _, &[u8]); 3] =
        [(REF_NAME, "latest", b"own"), (REF_NAME, "both", b"own"), (REF_NAME, "org/app:both", b"whole")];
    write_layout(&own, &[b"own", b"whole"], &own_names);
    let (upstream, _) = layout(root.path());
    assert_eq!(upstream.manifest(&name(), &tag(), "", None).await.expect("a manifest").body, "own");
    let both = upstream.manifest(&name(), &reference("both"), "", None).await.expect("a manifest");
    assert_eq!(both.body, "whole", "a name that says more goes first");
    let other: Name = "other".parse().expect("a name");
    assert_eq!(upstream.manifest(&other, &tag(), "", None).await.expect("a manifest").body, "other");
    for stranger in ["app", "third"] {
        let stranger: Name = stranger.parse().expect("a name");
        let error =
            upstream.manifest(&stranger, &tag(), "", None).await.expect_err("not a tag of this repository");
        assert_eq!(error, SourceError::NotFound);
    }
}

#[tokio::test]
async fn layout_tags_are_the_valid_ones() {
    let root = tempfile::tempdir().expect("a folder");
    let names: [(_, _, &[u8]); 6] = [
        (REF_NAME, "bare", b"a"),
        (REF_NAME, "org/app:short", b"a"),
        (REF_NAME, "reg.test/org/app:full", b"a"),
        (REF_NAME, "other/app:strange", b"a"),
        (REF_NAME, "org/app:not a tag", b"a"),
        ("io.containerd.image.name", "reg.test/org/app:containerd", b"a"),
    ];
    write_layout(root.path(), &[b"a"], &names);
    let (upstream, _) = layout(root.path());
    let tags = async |name: &Name| {
        let tags = upstream.tags(name, None).await?;
        Ok::<_, SourceError>(tags.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(tags(&name()).await, Ok(vec!["containerd".into(), "full".into(), "short".into()]));
    let stranger: Name = "org/stranger".parse().expect("a name");
    assert_eq!(tags(&stranger).await, Err(SourceError::NotFound));
    // In the layout of one repository, a plain tag is a tag of it.
    let own = root.path().join("org/app");
    std::fs::create_dir_all(&own).expect("a folder");
    write_layout(&own, &[b"a"], &names);
    assert_eq!(
        tags(&name()).await,
        Ok(vec!["bare".into(), "containerd".into(), "full".into(), "short".into()])
    );
    for tag in tags(&name()).await.expect("a list") {
        upstream.manifest(&name(), &reference(&tag), "", None).await.expect("a manifest");
    }
    std::fs::remove_dir_all(root.path()).expect("removed");
    assert!(matches!(tags(&name()).await, Err(SourceError::Unreachable(_))));
}

#[tokio::test]
async fn layout_referrers_come_from_its_index() {
    let root = tempfile::tempdir().expect("a folder");
    let subject = Digest::of(Algorithm::Sha256, b"subject");
    let statement = format!(
        r#"{{"schemaVersion":2,"manifests":[],"artifactType":"application/vnd.x","subject":{{"digest":"{subject}","size":7}}}}"#
    );
    let names: [(_, _, &[u8]); 4] = [
        (REF_NAME, "a", b"subject"),
        (REF_NAME, "b", statement.as_bytes()),
        (REF_NAME, "c", b"{}"),
        (REF_NAME, "gone", b"gone"),
    ];
    write_layout(root.path(), &[b"subject", statement.as_bytes(), b"{}"], &names);
    let (upstream, _) = layout(root.path());
    let list = upstream.referrers(&name(), &subject, None).await.expect("a list");
    let text = String::from_utf8(list.to_index()).expect("text");
    let referrer = Digest::of(Algorithm::Sha256, statement.as_bytes());
    assert!(text.contains(&referrer.to_string()) && text.contains("application/vnd.x"), "{text}");
    assert_eq!(text.matches("digest").count(), 1);
    // A source without the digest may still have the tag.
    let none = upstream.referrers(&name(), &referrer, None).await.expect_err("nothing");
    assert_eq!(none, SourceError::NoReferrers { lasting: false });
    std::fs::remove_dir_all(root.path()).expect("removed");
    let away = upstream.referrers(&name(), &subject, None).await.expect_err("away");
    assert!(matches!(away, SourceError::Unreachable(_)), "{away}");
}

#[tokio::test]
async fn official_images_have_a_short_name() {
    let root = tempfile::tempdir().expect("a folder");
    let names: [(_, _, &[u8]); 3] = [
        (REF_NAME, "busybox:1", b"short"),
        (REF_NAME, "docker.io/busybox:2", b"host"),
        (REF_NAME, "docker.io/library/busybox:3", b"full"),
    ];
    write_layout(root.path(), &[b"short", b"host", b"full"], &names);
    let settings = at(&format!("oci://{}", root.path().display()));
    let get = async |upstream: &str, name: &str, tag: &str| {
        let config = Config {
            upstream: BTreeMap::from([(upstream.to_owned(), settings.clone())]),
            ..Config::default()
        };
        let upstreams =
            Upstreams::build(&config, Arc::new(Metrics::new()), Clock::default()).expect("a configuration");
        let upstream = upstreams.get(&upstream.parse().expect("a name")).expect("the upstream");
        let name: Name = name.parse().expect("a name");
        upstream.manifest(&name, &reference(tag), "", None).await.map(|document| document.body)
    };
    for (tag, body) in [("1", "short"), ("2", "host"), ("3", "full")] {
        assert_eq!(get("docker.io", "library/busybox", tag).await.expect("a manifest"), body);
        assert_eq!(get("quay.io", "library/busybox", tag).await, Err(SourceError::NotFound));
        assert_eq!(get("docker.io", "other/busybox", tag).await, Err(SourceError::NotFound));
    }
}

#[tokio::test]
async fn missing_layout_is_not_an_absence() {
    let root = tempfile::tempdir().expect("a folder");
    let (upstream, _) = layout(&root.path().join("later"));
    let error = upstream.head(&name(), &tag(), "", None).await.expect_err("away");
    assert!(matches!(error, SourceError::Unreachable(_)), "{error}");
    assert!(!error.to_string().contains(root.path().to_str().expect("text")), "{error}");
    let error = upstream.blob(&name(), &digest(), ByteRange::ALL, None).await.expect_err("away");
    assert!(matches!(error, SourceError::Unreachable(_)), "{error}");

    std::fs::create_dir(root.path().join("later")).expect("a folder");
    let error = upstream.head(&name(), &tag(), "", None).await.expect_err("empty");
    assert_eq!(error, SourceError::NotFound);
    std::fs::write(root.path().join("later/index.json"), "{").expect("written");
    let error = upstream.head(&name(), &tag(), "", None).await.expect_err("broken");
    assert!(matches!(error, SourceError::Invalid(_)), "{error}");
}
