//! The status page without a browser: content, escaping, access, and valid links.

use crate::support;

use std::collections::{BTreeSet, VecDeque};

use serde_json::json;
use support::content::{OCI_INDEX, OCI_MANIFEST};
use support::fixture::PartlyCached;
use support::{Answer, Blob, Document, Fault, Gate, Image, Larder, Registry, Setup, When, eventually, verb};

const HOSTILE: &str = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

impl PartlyCached {
    #[track_caller]
    fn page(&self, path: &str) -> String {
        page(&self.larder, path)
    }
}

/// Requests a page that must exist, and checks its security headers.
#[track_caller]
fn page(larder: &Larder, path: &str) -> String {
    let answer = larder.admin().get(path);
    assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
    assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"), "{path}");
    assert_security_headers(&answer, path);
    answer.text()
}

#[track_caller]
fn assert_security_headers(answer: &Answer, path: &str) {
    let policy = answer.header("content-security-policy").unwrap_or_else(|| panic!("{path} has no policy"));
    for part in ["default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"] {
        assert!(policy.contains(part), "{path}: {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{path}: {policy}");
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
    assert_eq!(answer.header("referrer-policy"), Some("no-referrer"), "{path}");
}

/// Returns the values of an attribute, unescaped as by a browser.
fn attribute(page: &str, name: &str) -> Vec<String> {
    let opening = format!(" {name}=\"");
    let values = page.split(&opening).skip(1).filter_map(|rest| rest.split('"').next());
    values.map(|value| value.replace("&#38;", "&").replace("&amp;", "&")).collect()
}

#[test]
fn links_resolve() {
    let world = PartlyCached::new();
    verb::online(&world.larder, &["gc"]).exited_with(0);
    let mut seen = BTreeSet::from(["/".to_owned()]);
    let mut todo: VecDeque<String> = seen.iter().cloned().collect();
    while let Some(path) = todo.pop_front() {
        let answer = world.larder.admin().get(&path);
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        if answer.header("content-type") != Some("text/html; charset=utf-8") {
            continue;
        }
        assert_security_headers(&answer, &path);
        let text = answer.text();
        assert_eq!(text.matches("<h1").count(), 1, "{path} has one title");
        for way in ["href", "src", "action", "data-from"] {
            for link in attribute(&text, way) {
                assert!(link.starts_with('/') || link.starts_with('#'), "{path} leads elsewhere: {link}");
                if link.starts_with('/') && !link.starts_with("/ui/") && seen.insert(link.clone()) {
                    todo.push_back(link);
                }
            }
        }
    }
    for part in
        ["/images", "/images/docker.io/library/multi", "/jobs", "/raw?", "/image?", "platform=linux%2Farm64"]
    {
        assert!(seen.iter().any(|link| link.contains(part)), "nothing leads to {part}: {seen:?}");
    }
    assert_eq!(world.registry.requests().len(), 0, "to look on asks no upstream");
}

#[test]
fn image_page_shows_cached_parts() {
    let world = PartlyCached::new();
    let index = world.page("/image?reference=multi:v1");
    assert!(index.contains("The index is cached with 2 of 2 manifests; complete: linux/amd64."), "{index}");
    assert!(index.contains("1 platform can be pulled offline"), "{index}");
    assert!(index.contains("manifest only") && index.contains(&world.index.document.digest));
    let held = world.page("/image?reference=multi:v1&platform=linux/amd64");
    let [image, other] = [&world.index.images[0], &world.index.images[1]];
    assert!(held.contains("linux/amd64: complete.") && held.contains("can be pulled offline"), "{held}");
    assert!(image.blobs().all(|blob| held.contains(&blob.digest)), "{held}");
    let lacking = world.page("/image?reference=multi:v1&platform=linux/arm64");
    assert!(lacking.contains("cannot be pulled offline") && lacking.contains("not cached"), "{lacking}");
    assert!(lacking.contains("The config is not cached") && lacking.contains(&other.manifest.digest));
    // The client configuration has the real address of the server, not the one in the browser.
    let place = format!("{}/docker.io/library/multi:v1", world.larder.api_addr());
    for command in ["docker pull ", "podman pull --tls-verify=false ", "ctr images pull --plain-http "] {
        assert!(index.contains(&format!("{command}{place}")), "{command}: {index}");
    }
    let forged = world.larder.admin().send("GET", "/image?reference=multi:v1", &[("Host", "127.0.0.9:99")]);
    assert!(forged.text().contains(&place) && !forged.text().contains("127.0.0.9"));
    // Documents are shown readable and byte for byte.
    for (query, bytes) in [
        ("reference=multi:v1", &world.index.document.bytes),
        ("reference=multi:v1&platform=linux/amd64", &image.manifest.bytes),
        ("reference=multi:v1&platform=linux/amd64&config=true", &image.config.bytes),
    ] {
        let raw = world.larder.admin().get(&format!("/raw?{query}"));
        raw.assert_body(bytes);
        assert_eq!(raw.header("docker-content-digest"), Some(support::content::sha256(bytes).as_str()));
        assert_eq!(raw.header("content-type"), Some("text/plain; charset=utf-8"));
        assert!(raw.header("content-security-policy").unwrap().contains("sandbox"));
        assert_security_headers(&raw, query);
    }
    assert_eq!(world.registry.requests().len(), 0, "to look on asks no upstream");
}

#[test]
fn cached_images_are_listed_and_searchable() {
    let world = PartlyCached::new();
    let all = world.page("/images");
    assert!(all.contains("docker.io/library/multi") && all.contains("docker.io/org/single"), "{all}");
    let tags = world.page("/images/docker.io/library/multi");
    assert!(
        tags.contains("some platforms") && tags.contains("linux/arm64<span class=\"hidden\">, incomplete"),
        "{tags}"
    );
    // References are parsed as those of a client.
    assert!(world.page("/images/multi").contains("docker.io/library/multi"));
    let found = world.page("/images?q=SINGLE+2");
    assert!(
        found.contains("1 found") && found.contains("org/single") && !found.contains("library/multi"),
        "{found}"
    );
    let none = world.page(&format!("/images?q={}", "%22%3E%3Cscript%3Ealert(3)"));
    assert!(none.contains("No cached image matches") && !none.contains("<script>alert"), "{none}");
}

#[test]
fn pushed_text_is_escaped() {
    let registry = Registry::start();
    let config = Blob::new(
        json!({
            "os": HOSTILE, "architecture": HOSTILE, "created": HOSTILE, "author": HOSTILE,
            "config": {"Env": [HOSTILE], "Entrypoint": [HOSTILE], "Labels": {HOSTILE: HOSTILE}, "User": HOSTILE,
                "ExposedPorts": {HOSTILE: {}}},
            "history": [{"created_by": HOSTILE, "created": HOSTILE}],
        })
        .to_string(),
    );
    let layer = Blob::random(4, 100);
    let manifest = Document::json(
        OCI_MANIFEST,
        &json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config.digest, "size": config.len()},
            "layers": [{"mediaType": HOSTILE, "digest": layer.digest, "size": layer.len()}],
            "annotations": {HOSTILE: HOSTILE, "list": [HOSTILE]},
        }),
    );
    let platform = json!({"os": "linux", "architecture": "amd64", "variant": HOSTILE});
    let index = Document::json(
        OCI_INDEX,
        &json!({
            "schemaVersion": 2, "mediaType": OCI_INDEX, "annotations": {"a": HOSTILE},
            "manifests": [{"mediaType": OCI_MANIFEST, "digest": manifest.digest, "size": manifest.bytes.len(),
                "platform": platform}],
        }),
    );
    for document in [&manifest, &index] {
        registry.add_manifest("library/hostile", document);
    }
    registry.add_blob("library/hostile", &config);
    registry.tag("library/hostile", "v1", &index.digest);
    registry.tag("library/hostile", "plain", &manifest.digest);
    let larder = Larder::in_front_of(&registry);
    for tag in ["v1", "plain"] {
        assert_eq!(larder.get(&format!("/v2/library/hostile/manifests/{tag}")).status(), 200);
    }
    larder.get(&format!("/v2/library/hostile/blobs/{}", config.digest)).assert_body(&config.bytes);
    larder.wait_idle();
    let by_digest = format!("/image?reference=hostile@{}", manifest.digest);
    let mut shown = 0;
    for path in [
        "/",
        "/ui/live",
        "/images/hostile",
        "/image?reference=hostile:v1",
        "/image?reference=hostile:plain",
        &by_digest,
    ] {
        let text = page(&larder, path);
        assert!(!text.contains("<script>alert") && !text.contains("<img src=x"), "{path}: {text}");
        shown += text.matches("alert(1)").count();
    }
    assert!(shown > 20, "it is shown, as text: {shown}");
    // A request for the hostile name is rejected or found, and the name never becomes markup.
    let name = "%22%3E%3Cscript%3Ealert(1)%3C/script%3E";
    for path in [
        format!("/image?reference={name}"),
        format!("/image?reference=hostile:v1&platform={name}"),
        format!("/image?reference=hostile:v1&{name}=1"),
        format!("/images/{name}"),
        format!("/{name}"),
    ] {
        let answer = larder.admin().get(&path);
        assert!([400, 404].contains(&answer.status()), "{path}: {}", answer.status());
        assert_security_headers(&answer, &path);
        assert!(!answer.text().contains("<script>alert"), "{path}: {}", answer.text());
    }
}

#[test]
fn known_referrers_are_shown() {
    let registry = Registry::start();
    let image = Image::small(1);
    let statement = Image::artifact(2, &image.manifest);
    registry.add_image("library/app", "v1", &image);
    registry.add_image("library/app", "sbom", &statement);
    let larder = Larder::in_front_of(&registry);
    for tag in ["v1", "sbom"] {
        assert_eq!(larder.get(&format!("/v2/library/app/manifests/{tag}")).status(), 200);
    }
    larder.wait_idle();
    registry.forget_requests();
    let text = page(&larder, "/image?reference=app:v1");
    let link = format!(
        "/image?reference=docker.io%2Flibrary%2Fapp%40{}",
        statement.manifest.digest.replace(':', "%3A")
    );
    assert!(attribute(&text, "href").contains(&link), "{text}");
    assert!(page(&larder, &link).contains(&statement.manifest.digest));
    let output = verb::online(&larder, &["inspect", "app:v1", "--json"]).exited_with(0).json();
    assert_eq!(output["referrers"][0]["digest"], json!(statement.manifest.digest), "{output}");
    assert_eq!(output["referrers"][0]["held"], true);
    assert_eq!(registry.requests().len(), 0, "to look on asks no upstream");
}

#[test]
fn empty_store_shows_first_steps() {
    let registry = Registry::start();
    let larder = Larder::in_front_of(&registry);
    let text = page(&larder, "/");
    let command = format!("docker pull {}/docker.io/library/alpine:3", larder.api_addr());
    assert!(text.contains("The cache is empty") && text.contains(&command), "{text}");
    assert!(page(&larder, "/images").contains("The cache is empty"));
    assert!(page(&larder, "/jobs").contains("No job has run"));
}

#[test]
fn running_fill_is_shown() {
    let registry = Registry::start();
    let image = Image::oci(1, "linux/amd64", vec![Blob::random(2, 4 << 20)]);
    registry.add_image("library/app", "v1", &image);
    let gate = Gate::default();
    registry.script(When::blobs(), Fault::HoldBody(3 << 20, gate.clone()));
    let larder = Larder::in_front_of(&registry);
    let blob = format!("/v2/library/app/blobs/{}", image.layers[0].digest);
    let transfer = larder.api().open("GET", &blob, &[]).unwrap();
    gate.wait_reached(1);
    eventually("the progress bar shows the received bytes", || {
        page(&larder, "/ui/live").contains(&format!("max=\"{}\" value=\"{}\"", 4 << 20, 3 << 20))
    });
    let text = page(&larder, "/");
    assert!(text.contains("3.0 MiB") && text.contains("75.0 %") && text.contains("1 reader"), "{text}");
    gate.open();
    transfer.finish().unwrap();
    eventually("no fill is running", || page(&larder, "/ui/live").contains("No fill is running"));
}

#[test]
fn missing_page_explains_itself() {
    let world = PartlyCached::new();
    for (path, status) in [
        ("/nothing", 404),
        ("/images/gone", 404),
        ("/image?reference=gone:1", 404),
        ("/image?reference=multi:v1&platform=linux/s390x", 404),
        ("/image?reference=UPPER", 400),
        ("/image", 400),
        ("/image?reference=multi:v1&colour=red", 400),
        ("/raw?reference=gone", 404),
        ("/assets/larder.0.css", 404),
        ("/images/%FF", 404),
    ] {
        let answer = world.larder.admin().get(path);
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"), "{path}");
        assert_security_headers(&answer, path);
        assert!(answer.text().contains("<h1>"), "{path}");
    }
    assert_eq!(world.larder.admin().send("POST", "/", &[]).status(), 405);
    assert_eq!(world.larder.admin().head("/").status(), 200);
    assert_eq!(world.registry.requests().len(), 0);
}

#[test]
fn assets_are_cached_until_they_change() {
    let registry = Registry::start();
    let larder = Larder::in_front_of(&registry);
    let text = page(&larder, "/");
    let style = attribute(&text, "href").into_iter().find(|link| link.contains(".css")).unwrap();
    let script = attribute(&text, "src").into_iter().find(|link| link.contains(".js")).unwrap();
    for (path, media_type) in
        [(style.as_str(), "text/css"), (&script, "text/javascript"), ("/favicon.svg", "image/svg+xml")]
    {
        let answer = larder.admin().get(path);
        assert!(answer.header("content-type").unwrap().starts_with(media_type), "{path}");
        assert_security_headers(&answer, path);
        let tag = answer.header("etag").unwrap();
        let again = larder.admin().send("GET", path, &[("If-None-Match", tag)]);
        assert_eq!((again.status(), again.text().as_str()), (304, ""), "{path}");
    }
    assert!(larder.admin().get(&style).header("cache-control").unwrap().contains("immutable"));
    assert_eq!(larder.admin().get("/favicon.svg").header("cache-control"), Some("no-cache"));
}

#[test]
fn other_host_names_are_refused() {
    let registry = Registry::start();
    let larder = Larder::in_front_of(&registry);
    for path in ["/", "/images", "/raw?reference=app:v1", "/ui/live"] {
        let answer = larder.admin().send("GET", path, &[("Host", "larder.example.com")]);
        assert_eq!(answer.status(), 403, "{path}");
        assert_security_headers(&answer, path);
    }
    assert_eq!(larder.admin().send("GET", "/", &[("Host", "localhost:5001")]).status(), 200);
}

#[test]
fn token_is_required_beyond_loopback() {
    let registry = Registry::start();
    let setup = Setup::with(&registry).set("admin.listen", "0.0.0.0:0");
    let token = setup.write("token", "a-long-secret\n");
    let closed = setup.start();
    let answer = closed.admin().get("/");
    assert_eq!((answer.status(), answer.header("www-authenticate")), (403, None));
    assert!(answer.text().contains("admin.token_file"), "{}", answer.text());
    for open in ["/livez", "/readyz", "/metrics", "/favicon.svg"] {
        assert_eq!(closed.admin().get(open).status(), 200, "{open}");
    }
    let larder = closed.restart_with(|setup| setup.set("admin.token_file", token.to_str().unwrap()));
    let asked = larder.admin().get("/images");
    assert_eq!(asked.status(), 401);
    assert_eq!(asked.header("www-authenticate"), Some("Basic realm=\"larder\", charset=\"UTF-8\""));
    assert_security_headers(&asked, "/images");
    // any:a-long-secret, any:another-secret
    let (right, wrong) = ("Basic YW55OmEtbG9uZy1zZWNyZXQ=", "Basic YW55OmFub3RoZXItc2VjcmV0");
    let with =
        |path: &str, value: &str| larder.admin().send("GET", path, &[("Authorization", value)]).status();
    for path in ["/", "/images", "/ui/live", "/api/v1/status"] {
        assert_eq!(with(path, right), 200, "{path}");
        assert_eq!(with(path, "Bearer a-long-secret"), 200, "{path}");
        assert_eq!(with(path, wrong), 401, "{path}");
        assert_eq!(with(path, "Basic !"), 401, "{path}");
    }
    // Programs get no challenge that would open a dialog in a browser.
    let program = larder.admin().get("/api/v1/status");
    assert_eq!(program.header("www-authenticate"), Some("Bearer realm=\"larder\""));
}
