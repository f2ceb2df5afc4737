//! Export and import of images: archives are complete and unchanged, and nothing in an imported archive is trusted
//! without verification.

use crate::support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use support::content::{DOCKER_LIST, OCI_INDEX, OCI_MANIFEST};
use support::folder::files_below;
use support::verb::{self, Output};
use support::{Answer, Blob, Document, Fault, Gate, Image, Index, Larder, Registry, Setup, When, eventually};

const IMAGE_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A registry with an index and an image, and a server with an empty cache.
fn fixture() -> (Registry, Index, Image, Larder) {
    let registry = Registry::start();
    let (index, image) = (Index::oci(7), Image::docker(3, "linux/amd64", vec![Blob::random(3, 40_000)]));
    registry.add_index("library/multi", "v1", &index);
    registry.add_image("org/app", "1", &image);
    let larder = Setup::with(&registry).set("prefetch.children", false).set("cache.tag_ttl", "1h").start();
    (registry, index, image, larder)
}

/// Starts a server with an empty cache, whose registry is down.
fn offline_server() -> Larder {
    let registry = Registry::start();
    let larder = Setup::with(&registry).start();
    registry.down();
    larder
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn json_in(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Returns all files of a tar archive, in their order.
fn untar(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut tar = tar::Archive::new(bytes);
    tar.entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().to_str().unwrap().to_owned(), content)
        })
        .collect()
}

/// Returns a tar archive of these files.
fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Returns the files of a layout, with the index last, as other tools write them.
fn layout(entries: &[Value], documents: &[&Document], blobs: &[&Blob]) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = blobs.iter().map(|it| (blob_path(&it.digest), it.bytes.to_vec())).collect();
    files.extend(documents.iter().map(|it| (blob_path(&it.digest), it.bytes.to_vec())));
    let index = json!({ "schemaVersion": 2, "manifests": entries });
    files.push(("index.json".to_owned(), index.to_string().into_bytes()));
    files.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    files
}

fn entry(document: &Document, annotations: &[(&str, &str)]) -> Value {
    let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
    json!({
        "mediaType": document.media_type, "digest": document.digest, "size": document.bytes.len(),
        "annotations": annotations,
    })
}

fn of_image(image: &Image, name: &str) -> Vec<(String, Vec<u8>)> {
    let blobs: Vec<&Blob> = image.blobs().collect();
    layout(&[entry(&image.manifest, &[(IMAGE_NAME, name)])], &[&image.manifest], &blobs)
}

/// Imports these bytes into a running server.
fn import(larder: &Larder, tar: &[u8], more: &[&str]) -> Output {
    let file = larder.setup().folder().join("import.tar");
    fs::write(&file, tar).unwrap();
    let mut arguments = vec!["import", file.to_str().unwrap()];
    arguments.extend(more);
    verb::online(larder, &arguments)
}

fn serves(larder: &Larder, repository: &str, tag: &str, root: &Document) -> Answer {
    let answer = larder.get(&format!("/v2/{repository}/manifests/{tag}"));
    answer.assert_body(&root.bytes);
    assert_eq!(answer.header("content-type"), Some(root.media_type.as_str()));
    answer
}

fn serves_all(larder: &Larder, repository: &str, documents: &[&Document], images: &[&Image]) {
    for document in documents {
        serves(larder, repository, &document.digest, document);
    }
    for blob in images.iter().flat_map(|image| image.blobs()) {
        larder.get(&format!("/v2/{repository}/blobs/{}", blob.digest)).assert_body(&blob.bytes);
    }
}

/// Returns the number of cached manifests and blobs of all repositories.
fn cached_counts(larder: &Larder) -> (u64, u64) {
    let report = verb::online(larder, &["verify", "--json"]).exited_with(0).json();
    (report["manifests"].as_u64().unwrap(), report["blobs"].as_u64().unwrap())
}

#[test]
fn export_to_a_folder_keeps_every_byte() {
    let (registry, index, _, larder) = fixture();
    let folder = larder.setup().folder().join("layout");
    let target = folder.to_str().unwrap();
    let ran = verb::online(&larder, &["export", "multi:v1", target]).exited_with(0);
    assert!(ran.stdout.contains("docker.io/library/multi:v1 (linux/amd64, linux/arm64)"), "{ran:?}");
    assert_eq!(json_in(folder.join("oci-layout")), json!({ "imageLayoutVersion": "1.0.0" }));
    let entry = &json_in(folder.join("index.json"))["manifests"][0];
    assert_eq!(
        (&entry["digest"], &entry["mediaType"], &entry["size"]),
        (&json!(index.document.digest), &json!(OCI_INDEX), &json!(index.document.bytes.len()))
    );
    let annotations = &entry["annotations"];
    assert_eq!(annotations[IMAGE_NAME], "docker.io/library/multi:v1");
    assert_eq!(annotations[REF_NAME], "v1");
    let lists: Vec<String> =
        index.documents().iter().map(|document| format!("{}=none", document.digest)).collect();
    assert_eq!(annotations["larder.referrers"], lists.join(" "));
    for document in index.documents() {
        assert_eq!(fs::read(folder.join(blob_path(&document.digest))).unwrap(), *document.bytes);
    }
    let blobs: Vec<&Blob> = index.images.iter().flat_map(Image::blobs).collect();
    for blob in &blobs {
        assert_eq!(fs::read(folder.join(blob_path(&blob.digest))).unwrap(), *blob.bytes);
        assert_eq!(registry.count("GET", &blob.digest), 1, "fetched once");
    }
    assert_eq!(files_below(&folder).len(), 2 + 3 + blobs.len());
}

#[test]
fn export_adds_to_a_layout_and_replaces_a_tag() {
    let (registry, index, image, larder) = fixture();
    let folder = larder.setup().folder().join("layout");
    let target = folder.to_str().unwrap();
    verb::online(&larder, &["export", "multi:v1", target]).exited_with(0);
    verb::online(&larder, &["export", "org/app:1", target]).exited_with(0);
    verb::online(&larder, &["export", "multi:v1", target, "--platform", "linux/arm64"]).exited_with(0);
    let entries = json_in(folder.join("index.json"))["manifests"].clone();
    let digests: Vec<_> = entries.as_array().unwrap().iter().map(|it| it["digest"].clone()).collect();
    assert_eq!(digests, [json!(image.manifest.digest), json!(index.images[1].manifest.digest)]);
    assert_eq!(entries[1]["platform"], json!({ "os": "linux", "architecture": "arm64" }));

    registry.add_image("org/other", "1", &Image::small(9));
    let ran = verb::online(&larder, &["export", "org/other:1", target]).exited_with(1);
    assert!(ran.stderr.contains("already has docker.io/org/app:1 with the tag 1"), "{ran:?}");
    verb::online(&larder, &["export", "org/other:1", target, "--name", "quay.io/org/other:2"]).exited_with(0);
    let entry = json_in(folder.join("index.json"))["manifests"][2].clone();
    let annotations = &entry["annotations"];
    assert_eq!(
        (&annotations[IMAGE_NAME], &annotations[REF_NAME]),
        (&json!("quay.io/org/other:2"), &json!("2"))
    );

    let foreign = larder.setup().folder().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("letter.txt"), "dear").unwrap();
    let ran = verb::online(&larder, &["export", "org/app:1", foreign.to_str().unwrap()]).exited_with(1);
    assert!(ran.stderr.contains("`letter.txt`, which is not part of an OCI layout"), "{ran:?}");
    assert_eq!(files_below(&foreign).len(), 1);
}

#[test]
fn export_writes_docker_archives() {
    let (_registry, index, image, larder) = fixture();
    let file = larder.setup().folder().join("app.tar");
    let ran =
        verb::online(&larder, &["export", "org/app:1", file.to_str().unwrap(), "--json"]).exited_with(0);
    let report = ran.json();
    assert_eq!(
        (&report["digest"], &report["manifests"], &report["blobs"], &report["fetched"]),
        (&json!(image.manifest.digest), &json!(1), &json!(2), &json!(2))
    );
    let files: BTreeMap<_, _> = untar(&fs::read(&file).unwrap()).into_iter().collect();
    let docker: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    assert_eq!(
        docker,
        json!([{
            "Config": blob_path(&image.config.digest), "RepoTags": ["org/app:1"],
            "Layers": [blob_path(&image.layers[0].digest)],
        }])
    );
    assert_eq!(files[&blob_path(&image.layers[0].digest)], *image.layers[0].bytes);

    let one = verb::online(
        &larder,
        &["export", "multi:v1", &path(larder.setup().folder(), "one.tar"), "--platform", "linux/amd64"],
    );
    assert!(one.exited_with(0).stdout.contains("(linux/amd64)"));
    let files: BTreeMap<_, _> =
        untar(&fs::read(larder.setup().folder().join("one.tar")).unwrap()).into_iter().collect();
    assert!(files.contains_key("manifest.json") && !files.contains_key(&blob_path(&index.document.digest)));
    let all = verb::online(&larder, &["export", "multi:v1", &path(larder.setup().folder(), "all.tar")]);
    all.exited_with(0);
    let files = untar(&fs::read(larder.setup().folder().join("all.tar")).unwrap());
    assert!(files.iter().all(|(path, _)| path != "manifest.json"), "it has no place for two platforms");
    let names: Vec<&str> = files.iter().take(2).map(|(path, _)| path.as_str()).collect();
    assert_eq!(names, ["oci-layout", "index.json"]);
}

#[test]
fn export_selects_platforms_and_names_a_missing_one() {
    let (registry, _, _, larder) = fixture();
    let folder = larder.setup().folder().to_owned();
    let ran =
        verb::online(&larder, &["export", "multi:v1", &path(&folder, "a.tar"), "--platform", "linux/s390x"]);
    assert!(ran.exited_with(5).stderr.contains("available: linux/amd64, linux/arm64"));
    let ran =
        verb::online(&larder, &["export", "org/app:1", &path(&folder, "a.tar"), "--platform", "linux/arm64"]);
    assert!(ran.exited_with(5).stderr.contains("available: linux/amd64"));
    verb::online(&larder, &["export", "org/app:1", &path(&folder, "a.tar"), "--platform", "linux/amd64"])
        .exited_with(0);
    registry.add_index(
        "library/three",
        "v1",
        &Index::over(
            OCI_INDEX,
            [("linux/amd64", 31), ("linux/arm64", 32), ("linux/s390x", 33)]
                .map(|(platform, seed)| Image::oci(seed, platform, vec![Blob::random(seed, 900)]))
                .to_vec(),
            Vec::new(),
        ),
    );
    let two = [
        "export",
        "three:v1",
        &path(&folder, "two"),
        "--platform",
        "linux/arm64",
        "--platform",
        "linux/amd64",
    ];
    let ran = verb::online(&larder, &two).exited_with(0);
    assert!(ran.stdout.contains("names more platforms than the archive has"), "{ran:?}");
    // The index is unchanged, for tools that accept an incomplete archive.
    assert_eq!(files_below(&folder.join("two")).len(), 2 + 1 + 2 * 3);
}

#[test]
fn export_fetches_missing_content_unless_offline() {
    let (registry, index, _, larder) = fixture();
    let folder = larder.setup().folder().to_owned();
    let export = |more: &[&str]| {
        let target = path(&folder, "a.tar");
        let mut arguments = vec!["export", "multi:v1", &target];
        arguments.extend(more);
        verb::online(&larder, &arguments)
    };
    let ran = export(&["--offline"]).exited_with(5);
    assert!(ran.stderr.contains("docker.io/library/multi:v1 is not cached"), "{ran:?}");
    verb::online(&larder, &["warm", "multi:v1", "--platform", "linux/amd64"]).exited_with(0);
    export(&["--offline", "--platform", "linux/amd64"]).exited_with(0);
    let ran = export(&["--offline"]).exited_with(4);
    assert!(ran.stderr.contains(&index.images[1].manifest.digest), "{ran:?}");
    serves(&larder, "library/multi", &index.images[1].manifest.digest, &index.images[1].manifest);
    let ran = export(&["--offline"]).exited_with(4);
    assert!(ran.stderr.contains("2 parts are missing") && ran.stderr.contains("larder warm"), "{ran:?}");
    for blob in index.images[1].blobs() {
        assert!(ran.stderr.contains(&blob.digest), "{ran:?}");
        assert_eq!(registry.count("GET", &blob.digest), 0);
    }
    let report = export(&["--json"]).exited_with(0).json();
    assert_eq!((&report["blobs"], &report["fetched"]), (&json!(4), &json!(2)), "{report}");
}

#[test]
fn interrupted_export_leaves_nothing() {
    let (registry, _, image, larder) = fixture();
    registry.script(When::blobs().path(&image.layers[0].digest), Fault::Status(404));
    let folder = larder.setup().folder().join("out");
    fs::create_dir(&folder).unwrap();
    let ran = verb::online(&larder, &["export", "org/app:1", &path(&folder, "a.tar")]).exited_with(1);
    assert!(ran.stderr.contains("was interrupted"), "{ran:?}");
    assert_eq!(files_below(&folder), Vec::<PathBuf>::new());
    verb::online(&larder, &["export", "org/app:1", &path(&folder, "layout")]).exited_with(1);
    assert!(!folder.join("layout/index.json").exists());
    // A program gets fewer bytes than announced.
    let cut = larder.admin().try_send("GET", "/api/v1/export?reference=org/app:1", &[]);
    assert!(cut.is_err(), "{cut:?}");
}

#[test]
fn export_ends_when_its_client_disconnects() {
    let (registry, _, image, larder) = fixture();
    let gate = Gate::new();
    registry.script(When::blobs().path(&image.layers[0].digest), Fault::HoldBody(100, gate.clone()));
    let mut transfer = larder.admin().open("GET", "/api/v1/export?reference=org/app:1", &[]).unwrap();
    transfer.read_exactly(1024).unwrap();
    gate.wait_reached(1);
    transfer.hang_up();
    gate.open();
    larder.wait_idle();
    // The fill belongs to the cache and has finished.
    larder.get(&format!("/v2/org/app/blobs/{}", image.layers[0].digest)).assert_body(&image.layers[0].bytes);
    assert_eq!(registry.count("GET", &image.layers[0].digest), 1);
}

#[test]
fn imported_archive_is_pulled_without_a_registry() {
    let (_registry, index, image, larder) = fixture();
    let folder = larder.setup().folder().to_owned();
    verb::online(&larder, &["export", "multi:v1", &path(&folder, "both")]).exited_with(0);
    verb::online(&larder, &["export", "org/app:1", &path(&folder, "both")]).exited_with(0);

    let offline_server = offline_server();
    let ran = verb::online(&offline_server, &["import", &path(&folder, "both"), "--json"]).exited_with(0);
    let report = ran.json();
    assert_eq!((&report["complete"], &report["new_blobs"]), (&json!(true), &json!(6)), "{report}");
    let row = &report["images"][0];
    assert_eq!(
        (&row["reference"], &row["digest"], &row["platforms"], &row["manifests"], &row["blobs"]),
        (
            &json!("docker.io/library/multi:v1"),
            &json!(index.document.digest),
            &json!(["linux/amd64", "linux/arm64"]),
            &json!(3),
            &json!(4)
        )
    );
    serves(&offline_server, "library/multi", "v1", &index.document);
    serves_all(&offline_server, "library/multi", &index.documents(), &index.all_images());
    serves(&offline_server, "org/app", "1", &image.manifest);
    serves_all(&offline_server, "org/app", &[&image.manifest], &[&image]);
    verb::online(&offline_server, &["check", "--offline", "multi:v1", "org/app:1", "--all-platforms"])
        .exited_with(0);

    // A second import has the same result.
    let again =
        verb::online(&offline_server, &["import", &path(&folder, "both"), "--json"]).exited_with(0).json();
    assert_eq!((&again["complete"], &again["new_blobs"]), (&json!(true), &json!(0)), "{again}");
}

#[test]
fn nested_indexes_and_digests_are_exported() {
    let (registry, _, image, larder) = fixture();
    let nested = Index::nested(60);
    registry.add_index("library/nested", "v1", &nested);
    let folder = larder.setup().folder().to_owned();
    verb::online(&larder, &["export", "nested:v1", &path(&folder, "images")]).exited_with(0);
    let by_digest = format!("org/app@{}", image.manifest.digest);
    verb::online(&larder, &["export", &by_digest, &path(&folder, "images")]).exited_with(0);
    let entries = json_in(folder.join("images/index.json"))["manifests"].clone();
    let annotations = entries[1]["annotations"].as_object().unwrap();
    assert_eq!(
        annotations.keys().collect::<Vec<_>>(),
        ["larder.referrers"],
        "a digest is no name: {entries}"
    );
    let offline_server = offline_server();
    let ran = verb::online(&offline_server, &["import", &path(&folder, "images")]).exited_with(1);
    assert!(ran.stderr.contains(&image.manifest.digest), "{ran:?}");
    verb::online(&offline_server, &["import", &path(&folder, "images"), "--as", "docker.io/all/of-it"])
        .exited_with(0);
    serves(&offline_server, "all/of-it", "v1", &nested.document);
    serves_all(&offline_server, "all/of-it", &nested.documents(), &nested.all_images());
    serves_all(&offline_server, "all/of-it", &[&image.manifest], &[&image]);
}

#[test]
fn incomplete_index_is_exported_by_platform() {
    let (registry, _, _, larder) = fixture();
    let index = Index::oci(80);
    let [amd, arm] = [&index.images[0], &index.images[1]];
    registry.add_image("library/pruned", "v1", arm);
    registry.add_manifest("library/pruned", &index.document);
    registry.tag("library/pruned", "v1", &index.document.digest);
    let target = path(larder.setup().folder(), "a.tar");
    let ran = verb::online(&larder, &["export", "pruned:v1", &target]).exited_with(1);
    assert!(ran.stderr.contains(&amd.manifest.digest) && ran.stderr.contains("--platform"), "{ran:?}");
    assert!(!Path::new(&target).exists());
    verb::online(&larder, &["export", "pruned:v1", &target, "--platform", "linux/arm64"]).exited_with(0);
}

#[test]
fn import_repairs_a_damaged_blob() {
    let registry = Registry::start();
    let larder = Setup::with(&registry).set("store.blobs", "files").start();
    registry.down();
    let image = Image::oci(5, "linux/amd64", vec![Blob::random(5, 700_000)]);
    let tar = tar_of(&of_image(&image, "docker.io/org/app:1"));
    import(&larder, &tar, &[]).exited_with(0);
    let hex = image.layers[0].digest.strip_prefix("sha256:").unwrap();
    let files = files_below(&larder.setup().data());
    let file = files.iter().find(|it| it.to_string_lossy().ends_with(hex)).unwrap();
    fs::write(file, b"rot").unwrap();
    let report = import(&larder, &tar, &["--json"]).exited_with(0).json();
    assert_eq!((&report["complete"], &report["new_blobs"]), (&json!(true), &json!(1)), "{report}");
    serves_all(&larder, "org/app", &[&image.manifest], &[&image]);
}

#[test]
fn export_and_import_work_without_a_server() {
    let (_registry, index, _, mut larder) = fixture();
    larder.stop();
    let setup = larder.into_setup();
    let file = path(setup.folder(), "multi.tar");
    verb::offline(&setup, &["export", "multi:v1", &file]).exited_with(0);
    let mut offline_server = offline_server();
    offline_server.stop();
    let setup = offline_server.into_setup();
    let ran = verb::offline(&setup, &["import", &file]).exited_with(0);
    assert!(ran.stdout.contains("imported docker.io/library/multi:v1"), "{ran:?}");
    let offline_server = setup.start();
    serves(&offline_server, "library/multi", "v1", &index.document);
    serves_all(&offline_server, "library/multi", &index.documents(), &index.all_images());
}

#[test]
fn archive_goes_through_standard_output_and_input() {
    let (_registry, _, image, larder) = fixture();
    let server = format!("http://{}", larder.admin_addr());
    let out = larder
        .setup()
        .bare_command()
        .args(["export", "org/app:1", "-", "--server", &server])
        .stdout(std::process::Stdio::piped())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(untar(&out.stdout)[0].0, "oci-layout");
    assert!(String::from_utf8_lossy(&out.stderr).contains("exported docker.io/org/app:1"));
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&out.stdout).unwrap();
    let offline_server = offline_server();
    let file = offline_server.setup().folder().join("app.tar.gz");
    fs::write(&file, gzip.finish().unwrap()).unwrap();
    let server = format!("http://{}", offline_server.admin_addr());
    let ran = verb::run(
        offline_server.setup(),
        offline_server
            .setup()
            .bare_command()
            .args(["import", "-", "--server", &server])
            .stdin(fs::File::open(&file).unwrap()),
    );
    ran.exited_with(0);
    serves_all(&offline_server, "org/app", &[&image.manifest], &[&image]);
}

#[test]
fn import_name_is_found_or_required() {
    let (bare, image) = (offline_server(), Image::small(5));
    let blobs: Vec<&Blob> = image.blobs().collect();
    let of = |annotations: &[(&str, &str)]| {
        tar_of(&layout(&[entry(&image.manifest, annotations)], &[&image.manifest], &blobs))
    };
    let ran = import(&bare, &of(&[(REF_NAME, "v1")]), &[]).exited_with(1);
    assert!(ran.stderr.contains("the tag v1") && ran.stderr.contains("--as REPOSITORY"), "{ran:?}");
    let ran = import(&bare, &of(&[(IMAGE_NAME, "registry.test/app:1")]), &[]).exited_with(1);
    assert!(ran.stderr.contains("registry.test") && ran.stderr.contains("--as"), "{ran:?}");
    let ran = import(&bare, &of(&[]), &["--as", "registry.test/app"]).exited_with(1);
    assert!(ran.stderr.contains("no upstream `registry.test`"), "{ran:?}");
    assert_eq!(cached_counts(&bare), (0, 0));

    import(&bare, &of(&[(REF_NAME, "v1")]), &["--as", "docker.io/team/app"]).exited_with(0);
    serves(&bare, "team/app", "v1", &image.manifest);
    import(&bare, &of(&[(REF_NAME, "docker.io/whole/name:2")]), &[]).exited_with(0);
    serves(&bare, "whole/name", "2", &image.manifest);
    import(&bare, &of(&[(IMAGE_NAME, "registry.test/app:3"), (REF_NAME, "3")]), &["--as", "team/app"])
        .exited_with(0);
    serves(&bare, "team/app", "3", &image.manifest);
    let ran = import(&bare, &of(&[]), &["--as", "loose"]).exited_with(0);
    assert!(ran.stdout.contains(&format!("docker.io/library/loose@{}", image.manifest.digest)), "{ran:?}");
    serves(&bare, "library/loose", &image.manifest.digest, &image.manifest);
    // Bytes are shared, access is not.
    assert_ne!(bare.get(&format!("/v2/other/app/blobs/{}", image.config.digest)).status(), 200);
}

#[test]
fn imported_tag_is_fresh() {
    let registry = Registry::start();
    let (old, new) = (Image::small(5), Image::small(6));
    registry.add_image("org/app", "1", &new);
    let larder = Setup::with(&registry).set("cache.tag_ttl", "1h").start();
    import(&larder, &tar_of(&of_image(&old, "docker.io/org/app:1")), &[]).exited_with(0);
    serves(&larder, "org/app", "1", &old.manifest).assert_outcome("larder; hit");
    serves_all(&larder, "org/app", &[], &[&old]);
    assert_eq!(registry.count("GET", "/v2/"), 0, "the upstream got no request");
    let larder = larder.restart_with(|setup| setup.set("cache.tag_ttl", "0s"));
    serves(&larder, "org/app", "1", &new.manifest);
    // And in the other direction.
    import(&larder, &tar_of(&of_image(&old, "docker.io/org/app:1")), &[]).exited_with(0);
    registry.down();
    serves(&larder, "org/app", "1", &old.manifest);
}

#[test]
fn artifacts_are_exported_unchanged() {
    let larder = offline_server();
    let subject = Image::small(5);
    let artifact = Image::artifact(6, &subject.manifest);
    let odd = Document::new(
        "application/vnd.example.thing.v1+json",
        r#"{"mediaType":"application/vnd.example.thing.v1+json","anything":[1,2]}"#,
    );
    let long = Image::small(8);
    let long = Image { manifest: long.manifest.clone().with_sha512(), ..long };
    let list = Index::docker(40);
    let mut blobs: Vec<&Blob> = artifact.blobs().chain(long.blobs()).collect();
    blobs.extend(list.images.iter().flat_map(Image::blobs));
    let mut documents = vec![&artifact.manifest, &odd, &long.manifest];
    documents.extend(list.documents());
    let entries = [
        entry(&artifact.manifest, &[(REF_NAME, "art")]),
        entry(&odd, &[(REF_NAME, "odd")]),
        entry(&long.manifest, &[(REF_NAME, "long")]),
        entry(&list.document, &[(REF_NAME, "list")]),
    ];
    import(&larder, &tar_of(&layout(&entries, &documents, &blobs)), &["--as", "org/things"]).exited_with(0);
    for (tag, document) in
        [("art", &artifact.manifest), ("odd", &odd), ("long", &long.manifest), ("list", &list.document)]
    {
        let answer = larder.api().send(
            "GET",
            &format!("/v2/org/things/manifests/{tag}"),
            &[("Accept", &format!("{}, {OCI_MANIFEST}", document.media_type))],
        );
        answer.assert_body(&document.bytes);
        assert_eq!(answer.header("content-type"), Some(document.media_type.as_str()));
    }
    assert_eq!(list.document.media_type, DOCKER_LIST);
    serves_all(&larder, "org/things", &documents, &[&artifact, &long]);
    let referrers = larder.get(&format!("/v2/org/things/referrers/{}", subject.manifest.digest));
    assert_eq!(referrers.json()["manifests"][0]["digest"], artifact.manifest.digest, "{}", referrers.text());
}

#[test]
fn omitted_children_are_reported() {
    let (registry, index, _, larder) = fixture();
    let offline_server = offline_server();
    let arm = &index.images[1];
    let blobs: Vec<&Blob> = arm.blobs().collect();
    let files = layout(
        &[entry(&index.document, &[(IMAGE_NAME, "docker.io/library/multi:v1")])],
        &[&index.document, &arm.manifest],
        &blobs,
    );
    let ran = import(&offline_server, &tar_of(&files), &[]).exited_with(0);
    let amd = &index.images[0].manifest.digest;
    assert!(ran.stdout.contains("incomplete docker.io/library/multi:v1 (linux/arm64)"), "{ran:?}");
    assert!(ran.stdout.contains(&format!("missing: linux/amd64 manifest {amd}")), "{ran:?}");
    serves_all(&offline_server, "library/multi", &[&index.document, &arm.manifest], &[arm]);
    verb::online(&offline_server, &["check", "--offline", "multi:v1", "--platform", "linux/amd64"])
        .exited_with(4);
    // With a registry, the missing content is downloaded from there.
    import(&larder, &tar_of(&files), &[]).exited_with(0);
    serves_all(&larder, "library/multi", &[&index.images[0].manifest], &[&index.images[0]]);
    assert_eq!(registry.count("GET", &arm.manifest.digest), 0);
}

#[test]
fn malformed_archive_is_reported_and_leaves_nothing() {
    let larder = offline_server();
    let image = Image::oci(5, "linux/amd64", vec![Blob::random(5, 5 << 20), Blob::random(6, 3000)]);
    let whole = of_image(&image, "docker.io/org/app:1");
    let layer = blob_path(&image.layers[0].digest);
    let change = |path: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut files = whole.clone();
        files.iter_mut().filter(|(name, _)| name == path).for_each(|(_, content)| change(content));
        tar_of(&files)
    };
    let without =
        |path: &str| tar_of(&whole.iter().filter(|(name, _)| name != path).cloned().collect::<Vec<_>>());
    let manifest = blob_path(&image.manifest.digest);
    let good = tar_of(&whole);
    let twice: Vec<_> =
        whole.iter().chain(whole.iter().filter(|(name, _)| name == "index.json")).cloned().collect();
    let docker =
        tar_of(&[("manifest.json".to_owned(), b"[]".to_vec()), ("repositories".to_owned(), b"{}".to_vec())]);
    let mut out = raw_header("../../escape", b'0', 3);
    out.extend(b"abc");
    out.resize(2048, 0);
    let mut link = raw_header(&blob_path(&image.config.digest), b'2', 0);
    link.extend(&good);
    let mut sized = of_image(&image, "docker.io/org/app:1");
    let said = entry(&image.manifest, &[(REF_NAME, "a:1")]);
    let mut said_wrong = said.clone();
    said_wrong["size"] = json!(7);
    sized.iter_mut().filter(|(name, _)| name == "index.json").for_each(|(_, content)| {
        *content = json!({ "manifests": [said_wrong.clone()] }).to_string().into_bytes();
    });
    for (archive, reason) in [
        (change(&layer, &|content| content[7] ^= 1), "do not match"),
        (change(&manifest, &|content| *content.last_mut().unwrap() = b' '), "do not match"),
        (change("index.json", &|content| *content = b"{}".to_vec()), "is not an image index"),
        (change("oci-layout", &|content| *content = b"{}".to_vec()), "unsupported version"),
        (without(&layer), "lacks"),
        (without(&manifest), "which is not in the archive"),
        (without("index.json"), "no index.json at its top"),
        (good[..good.len() / 2].to_vec(), "truncated"),
        (good[..good.len() - 1024].to_vec(), "truncated"),
        (tar_of(&twice), "twice"),
        (docker, "skopeo copy docker-archive:"),
        (out, "leads out of the archive"),
        (link, "is not a file"),
        (tar_of(&sized), "its descriptor states 7"),
        (raw_header("x", b'L', 8 << 30), "states 8589934592 bytes"),
        (b"no tar at all".to_vec(), "is not a tar archive"),
        (b"\x28\xb5\x2f\xfd and so on".to_vec(), "zstd"),
    ] {
        let ran = import(&larder, &archive, &[]).exited_with(1);
        assert!(ran.stderr.contains(reason), "{reason}: {ran:?}");
    }
    let listed = verb::online(&larder, &["ls", "--json"]).exited_with(0).json();
    assert_eq!(listed["images"], json!([]));
    assert_eq!(cached_counts(&larder), (0, 0));
    assert!(!larder.setup().folder().parent().unwrap().join("escape").exists());
    assert_eq!(files_below(&larder.setup().data().join("drafts")), Vec::<PathBuf>::new());
    // The complete archive is still accepted.
    import(&larder, &good, &[]).exited_with(0);
    serves_all(&larder, "org/app", &[&image.manifest], &[&image]);
}

/// Returns a tar header with any values.
fn raw_header(path: &str, kind: u8, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkflag = [kind];
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[test]
fn import_skips_unreferenced_content() {
    let larder = offline_server();
    let image = Image::small(5);
    let loose = Blob::random(77, 5 << 20);
    let mut files = vec![(blob_path(&loose.digest), loose.bytes.to_vec())];
    files.extend(of_image(&image, "docker.io/org/app:1"));
    import(&larder, &tar_of(&files), &[]).exited_with(0);
    assert_eq!(cached_counts(&larder), (1, 2), "and not the third blob");
    serves_all(&larder, "org/app", &[&image.manifest], &[&image]);
}

#[test]
fn archive_larger_than_the_store_is_refused() {
    let registry = Registry::start();
    let larder = Setup::with(&registry).set("store.blobs", "files").set("store.max_size", "8MiB").start();
    let layers = (0..4).map(|seed| Blob::random(seed, 3 << 20)).collect();
    let image = Image::oci(5, "linux/amd64", layers);
    let ran = import(&larder, &tar_of(&of_image(&image, "docker.io/org/app:1")), &[]).exited_with(1);
    assert!(ran.stderr.contains("store.max_size (8.0 MiB)"), "{ran:?}");
}

#[test]
fn import_takes_archives_and_refuses_cross_site_requests() {
    let larder = offline_server();
    let post = |headers: &[(&str, &str)], body: &[u8]| {
        let mut stream = TcpStream::connect(larder.admin_addr()).unwrap();
        let mut text = "POST /api/v1/import?as=a HTTP/1.1\r\n".to_owned();
        if !headers.iter().any(|(name, _)| *name == "Host") {
            text.push_str(&format!("Host: {}\r\n", larder.admin_addr()));
        }
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str(&format!("Content-Length: {}\r\nConnection: close\r\n\r\n", body.len()));
        stream.write_all(text.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let tar = tar_of(&of_image(&Image::small(5), "docker.io/org/app:1"));
    for (headers, status) in [
        (&[("Content-Type", "text/plain")][..], "415"),
        (&[("Content-Type", "application/json")], "415"),
        (&[("Origin", "http://page.test")], "403"),
        (&[("Content-Type", "application/x-tar"), ("Host", "larder.test")], "403"),
        (&[("Content-Type", "application/x-tar")], "200"),
    ] {
        let answer = post(headers, &tar);
        assert_eq!(answer.split(' ').nth(1), Some(status), "{headers:?}: {answer}");
    }
    serves(&larder, "library/a", "1", &Image::small(5).manifest);
}

#[test]
fn aborted_import_leaves_nothing() {
    let larder = offline_server();
    let image = Image::oci(5, "linux/amd64", vec![Blob::random(5, 6 << 20)]);
    let tar = tar_of(&of_image(&image, "docker.io/org/app:1"));
    let mut stream = TcpStream::connect(larder.admin_addr()).unwrap();
    let head = format!(
        "POST /api/v1/import HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-tar\r\nContent-Length: {}\r\n\r\n",
        larder.admin_addr(),
        tar.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&tar[..5 << 20]).unwrap();
    larder.wait_counter("larder_fills_running", &[], 1);
    drop(stream);
    larder.wait_idle();
    eventually("the draft is deleted", || files_below(&larder.setup().data().join("drafts")).is_empty());
    import(&larder, &tar, &[]).exited_with(0);
    serves_all(&larder, "org/app", &[&image.manifest], &[&image]);
}

#[test]
fn blob_that_is_being_imported_proves_nothing_to_clients() {
    let registry = Registry::start();
    let image = Image::oci(5, "linux/amd64", vec![Blob::random(5, 6 << 20)]);
    registry.add_image("org/app", "1", &image);
    let larder = Setup::with(&registry).start();
    let tar = tar_of(&of_image(&image, "docker.io/org/app:1"));
    let mut stream = TcpStream::connect(larder.admin_addr()).unwrap();
    let head = format!(
        "POST /api/v1/import HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-tar\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        larder.admin_addr(),
        tar.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&tar[..5 << 20]).unwrap();
    larder.wait_counter("larder_fills_running", &[], 1);
    // The archive is not the client's registry, which must deliver the bytes, too.
    let layer = &image.layers[0];
    let transfer = larder.api().open("GET", &format!("/v2/org/app/blobs/{}", layer.digest), &[]).unwrap();
    stream.write_all(&tar[5 << 20..]).unwrap();
    assert_eq!(transfer.compare(&layer.bytes).unwrap(), layer.len());
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(registry.count("GET", &layer.digest), 1);
}
