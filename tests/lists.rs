//! Lists: the tags and repositories held, sorted by bytes, in pages.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use support::house::cold;
use support::{Image, Larder, Registry, Setup};

/// Follows the Link headers from `path` on and returns the pages.
fn pages(larder: &Larder, path: &str, key: &str) -> Vec<Vec<String>> {
    let mut next = Some(path.to_owned());
    let mut pages = Vec::new();
    while let Some(path) = next {
        assert!(pages.len() < 50, "the pages have no end");
        let answer = larder.get(&path);
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let page = answer.json()[key].as_array().unwrap().clone();
        pages.push(page.iter().map(|item| item.as_str().unwrap().to_owned()).collect());
        next = answer.header("link").map(|link| {
            let (target, parameters) = link.split_once(';').unwrap();
            assert_eq!(parameters.trim(), "rel=\"next\"");
            target.strip_prefix('<').unwrap().strip_suffix('>').unwrap().to_owned()
        });
    }
    pages
}

#[test]
fn tags_come_in_pages_sorted_by_bytes() {
    let registry = Registry::start();
    let image = Image::small(6);
    // In the order of their bytes.
    let sorted = ["1.0", "1.0-rc", "1.0.1", "A", "B", "_x", "a", "a-b", "a.b"];
    for tag in sorted {
        registry.add_image("library/app", tag, &image);
    }
    let larder = Setup::with(&registry).start();
    for tag in ["a", "B", "1.0.1", "_x", "A", "a.b", "1.0", "a-b", "1.0-rc"] {
        assert_eq!(larder.get(&format!("/v2/library/app/manifests/{tag}")).status(), 200);
    }
    let list = "/v2/library/app/tags/list";
    assert_eq!(larder.get(list).json(), serde_json::json!({ "name": "library/app", "tags": sorted }));
    for n in 1..=10 {
        let found = pages(&larder, &format!("{list}?n={n}"), "tags");
        let wanted: Vec<Vec<String>> =
            sorted.chunks(n).map(|page| page.iter().map(|tag| (*tag).to_owned()).collect()).collect();
        assert_eq!(found, wanted, "n={n}");
    }
    assert_eq!(pages(&larder, &format!("{list}?last=A"), "tags")[0], sorted[4..]);
    // `last` need not exist, and its percent-encoding is undone once.
    assert_eq!(pages(&larder, &format!("{list}?last=AA"), "tags")[0], sorted[4..]);
    assert_eq!(pages(&larder, &format!("{list}?n=2&last=%5Fx"), "tags")[0], sorted[6..8]);
    assert_eq!(pages(&larder, &format!("{list}?last=zzz"), "tags"), vec![Vec::<String>::new()]);
    let nothing = larder.get(&format!("{list}?n=0"));
    assert_eq!(nothing.json()["tags"], serde_json::json!([]));
    assert_eq!(nothing.header("link"), None);
    for n in ["-1", "x", "1.5", ""] {
        larder.get(&format!("{list}?n={n}")).is_error(400, "PAGINATION_NUMBER_INVALID");
    }
    let huge = larder.get(&format!("{list}?n=99999999999999999999999999"));
    assert!([200, 400].contains(&huge.status()), "{huge:?}");
    // The next page is asked of the same upstream.
    let link = larder.get(&format!("{list}?ns=docker.io&n=2"));
    assert!(link.header("link").unwrap().contains("ns=docker.io"), "{link:?}");
}

#[test]
fn the_catalog_names_what_can_be_pulled() {
    let registry = Registry::start();
    let other = Registry::start();
    for name in ["library/c", "library/a", "org/b", "org-x/b"] {
        registry.add_image(name, "v1", &Image::small(7));
    }
    other.add_image("team/z", "v1", &Image::small(8));
    let larder = Setup::with(&registry).upstream("other.test", &other).start();
    assert_eq!(larder.get("/v2/_catalog").json(), serde_json::json!({ "repositories": [] }));
    for name in ["library/c", "library/a", "org/b", "org-x/b", "other.test/team/z"] {
        assert_eq!(larder.get(&format!("/v2/{name}/manifests/v1")).status(), 200);
    }
    let all = pages(&larder, "/v2/_catalog", "repositories").concat();
    assert_eq!(all.len(), 5, "{all:?}");
    assert!(all.is_sorted_by(|a, b| a.as_bytes() < b.as_bytes()), "{all:?}");
    for name in &all {
        assert_eq!(larder.get(&format!("/v2/{name}/manifests/v1")).status(), 200, "{name}");
    }
    for n in 1..=5 {
        let found = pages(&larder, &format!("/v2/_catalog?n={n}"), "repositories");
        assert_eq!(found, all.chunks(n).map(<[String]>::to_vec).collect::<Vec<_>>());
    }
    assert_eq!(larder.get("/v2/_catalog?n=0").json()["repositories"], serde_json::json!([]));
    larder.get("/v2/_catalog?n=x").is_error(400, "PAGINATION_NUMBER_INVALID");
}

#[test]
fn a_repository_that_nobody_pulled_has_no_empty_list() {
    let (_registry, larder, _) = cold();
    larder.get("/v2/library/never/tags/list").is_error(404, "NAME_UNKNOWN");
}
