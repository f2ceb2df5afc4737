//! Lists: tags from the cache or from the upstream, and the catalog of repositories. Sorted by bytes, in pages.

use crate::support;

use std::time::Duration;

use serde_json::json;
use support::fixture::{assert_answered_before_upstream, cold, is_gateway_error};
use support::{Answer, Fault, Gate, Image, InProcessLarder, Larder, Registry, Setup, When};

/// Follows the Link headers from `path`, and returns all pages.
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
fn tags_are_paginated_and_sorted_by_bytes() {
    let registry = Registry::start();
    let image = Image::small(6);
    // Sorted by bytes.
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
    // `last` does not need to exist. It is percent-decoded once.
    assert_eq!(pages(&larder, &format!("{list}?last=AA"), "tags")[0], sorted[4..]);
    assert_eq!(pages(&larder, &format!("{list}?n=2&last=%5Fx"), "tags")[0], sorted[6..8]);
    assert_eq!(pages(&larder, &format!("{list}?last=zzz"), "tags"), vec![Vec::<String>::new()]);
    let nothing = larder.get(&format!("{list}?n=0"));
    assert_eq!(nothing.json()["tags"], serde_json::json!([]));
    assert_eq!(nothing.header("link"), None);
    for n in ["-1", "x", "1.5", ""] {
        larder.get(&format!("{list}?n={n}")).assert_error(400, "PAGINATION_NUMBER_INVALID");
    }
    let huge = larder.get(&format!("{list}?n=99999999999999999999999999"));
    assert!([200, 400].contains(&huge.status()), "{huge:?}");
    // The next page comes from the same upstream.
    let link = larder.get(&format!("{list}?ns=docker.io&n=2"));
    assert!(link.header("link").unwrap().contains("ns=docker.io"), "{link:?}");
}

#[test]
fn catalog_lists_pullable_repositories() {
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
    larder.get("/v2/_catalog?n=x").assert_error(400, "PAGINATION_NUMBER_INVALID");
    // The largest accepted number of entries, and one more.
    assert_eq!(larder.get("/v2/_catalog?n=10000").json()["repositories"], json!(all));
    for n in ["10001", "99999999999999999999999999"] {
        larder.get(&format!("/v2/_catalog?n={n}")).assert_error(400, "PAGINATION_NUMBER_INVALID");
    }
    // The repositories of one upstream have their own names, and the next page is of the same upstream.
    let own = larder.get("/v2/_catalog?ns=other.test");
    assert_eq!(own.json(), json!({ "repositories": ["team/z"] }));
    let link = larder.get("/v2/_catalog?ns=docker.io&n=1");
    assert!(link.header("link").unwrap().contains("ns=docker.io"), "{link:?}");
    larder.get("/v2/_catalog?ns=nowhere.test").assert_error(404, "NAME_UNKNOWN");
    assert_eq!(
        larder.head("/v2/_catalog").head.content_length(),
        Some(larder.get("/v2/_catalog").body.len())
    );
    // Cached repositories are listed, also if the upstream is down.
    registry.down();
    other.down();
    assert_eq!(pages(&larder, "/v2/_catalog", "repositories").concat(), all);
}

#[test]
fn unknown_repository_is_404_not_an_empty_list() {
    let (_registry, larder, _) = cold();
    larder.get("/v2/library/never/tags/list").assert_error(404, "NAME_UNKNOWN");
}

const LIST: &str = "/v2/library/app/tags/list";

/// A registry with many tags in `library/app`, in pages.
fn with_tags() -> (Registry, Image, Vec<String>) {
    let registry = Registry::start();
    let image = Image::small(6);
    let mut tags: Vec<String> = (0..25).map(|n| format!("v{n}")).collect();
    tags.push("A".to_owned());
    for tag in &tags {
        registry.add_image("library/app", tag, &image);
    }
    tags.sort();
    registry.page_lists(4);
    (registry, image, tags)
}

fn listing(setup: Setup, which: &str) -> Setup {
    setup.set("cache.tags_list", which)
}

/// Returns a configuration with which the server revalidates the list at every request.
fn with_zero_ttl(setup: Setup, which: &str) -> Setup {
    listing(setup, which).set("cache.tag_ttl", "0s").set("cache.negative_ttl", "0s")
}

#[track_caller]
fn lists(answer: &Answer, tags: &[String]) {
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.json(), json!({ "name": "library/app", "tags": tags }), "{:?}", answer.head);
}

#[track_caller]
fn assert_stale(answer: &Answer) {
    answer.assert_outcome("larder; hit; detail=stale");
    assert!(answer.header("warning").unwrap().starts_with("299 - \""), "{answer:?}");
}

#[test]
fn upstream_tags_are_fetched_completely_and_cached() {
    for which in ["upstream", "merged"] {
        let (registry, _, tags) = with_tags();
        let larder = listing(Setup::with(&registry), which).start();
        let first = larder.get(LIST);
        lists(&first, &tags);
        first.assert_outcome("larder; fwd=uri-miss; stored; detail=miss");
        assert_eq!((first.header("age"), first.header("warning")), (Some("0"), None));
        assert_eq!(registry.requests().len(), 7, "{which}: a page each");
        assert!(registry.requests().iter().all(|seen| seen.path == LIST));
        larder.get(LIST).assert_outcome("larder; hit");
        for n in [1, 3, 26, 27] {
            let found = pages(&larder, &format!("{LIST}?n={n}"), "tags");
            assert_eq!(found, tags.chunks(n).map(<[String]>::to_vec).collect::<Vec<_>>(), "n={n}");
        }
        lists(
            &larder.get(&format!("{LIST}?last=v2")),
            &tags[tags.partition_point(|tag| tag.as_str() <= "v2")..],
        );
        let nothing = larder.get(&format!("{LIST}?n=0"));
        lists(&nothing, &[]);
        assert_eq!(nothing.header("link"), None);
        let link = larder.get(&format!("{LIST}?n=2&ns=docker.io"));
        assert!(link.header("link").unwrap().contains("ns=docker.io"), "{link:?}");
        let head = larder.head(LIST);
        assert_eq!(head.head.content_length(), Some(first.body.len()));
        assert_eq!(registry.requests().len(), 7, "{which}: one walk for all");
    }
}

#[test]
fn tags_list_can_be_set_per_upstream() {
    let (registry, _, tags) = with_tags();
    let larder = Setup::with(&registry)
        .upstream("other.test", &registry)
        .upstream_set("other.test", "tags_list", "upstream")
        .start();
    larder.get(LIST).assert_error(404, "NAME_UNKNOWN");
    lists(&larder.get(&format!("{LIST}?ns=other.test")), &tags);
}

#[test]
fn tag_list_expires() {
    let (registry, image, mut tags) = with_tags();
    let larder = with_zero_ttl(Setup::with(&registry), "upstream").start();
    lists(&larder.get(LIST), &tags);
    larder.get(LIST).assert_outcome("larder; hit; detail=revalidated");
    registry.add_image("library/app", "z", &image);
    tags.push("z".to_owned());
    lists(&larder.get(LIST), &tags);
}

#[test]
fn tag_list_is_fresh_for_tag_ttl() {
    let (registry, image, mut tags) = with_tags();
    let larder =
        InProcessLarder::start(listing(Setup::with(&registry), "upstream").set("cache.tag_ttl", "1h"));
    lists(&larder.get(LIST), &tags);
    registry.add_image("library/app", "z", &image);
    larder.advance(Duration::from_mins(56));
    let answer = larder.get(LIST);
    lists(&answer, &tags);
    assert!(answer.header("age").unwrap().parse::<u64>().unwrap() >= 56 * 60);
    larder.advance(Duration::from_mins(4));
    tags.push("z".to_owned());
    lists(&larder.get(LIST), &tags);
}

#[test]
fn concurrent_list_requests_are_coalesced() {
    let (registry, _, tags) = with_tags();
    let larder = listing(Setup::with(&registry), "upstream").start();
    let gate = Gate::new();
    registry.script(When::any().path("/tags/list"), Fault::HoldHead(gate.clone()));
    let client = larder.api();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| client.get(LIST))).collect();
        gate.wait_reached(1);
        gate.open();
        for client in clients {
            lists(&client.join().unwrap(), &tags);
        }
    });
    assert_eq!(registry.requests().len(), 7);
}

#[test]
fn invalid_and_duplicate_tags_are_skipped() {
    let registry = Registry::start();
    let larder = listing(Setup::with(&registry), "upstream").start();
    let body =
        json!({ "name": "other/name", "tags": ["b", ".x", "a", "a/b", "", "b", "a b", "\u{e9}", "<b>"] });
    let headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
    registry.script(When::any(), Fault::Answer(200, headers.clone(), body.to_string().into_bytes()));
    lists(&larder.get(LIST), &["a".to_owned(), "b".to_owned()]);
    for none in ["{\"tags\":null}", "{\"name\":\"library/app\"}"] {
        registry.clear_faults();
        registry.script(When::any(), Fault::Answer(200, headers.clone(), none.as_bytes().to_vec()));
        let larder = listing(Setup::with(&registry), "upstream").start();
        lists(&larder.get(LIST), &[]);
    }
}

#[test]
fn elements_that_are_no_strings_are_skipped() {
    let registry = Registry::start();
    let body = br#"{"name":"x","tags":["a",null,7,{"b":"c"},["d"],1e999,true,"e"]}"#;
    let headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
    registry.script(When::any(), Fault::Answer(200, headers, body.to_vec()));
    let larder = listing(Setup::with(&registry), "upstream").start();
    lists(&larder.get(LIST), &["a".to_owned(), "e".to_owned()]);
}

#[test]
fn refused_page_size_is_left_out() {
    for which in ["upstream", "merged"] {
        let (registry, _, tags) = with_tags();
        // The pages that the registry links to have a size that it permits.
        registry.script(When::any().path("/tags/list").query("n=1000"), Fault::Status(400));
        let larder = listing(Setup::with(&registry), which).start();
        lists(&larder.get(LIST), &tags);
        assert_eq!(registry.requests()[1].query, "");
    }
}

#[test]
fn last_known_tags_are_served_for_every_kind_of_failure() {
    for fault in [
        None,
        Some(Fault::Status(500)),
        Some(Fault::Status(429)),
        Some(Fault::Status(403)),
        Some(Fault::CloseConnection),
        Some(Fault::EndOneByteEarly),
        Some(Fault::Answer(200, Vec::new(), b"<html>Please log in</html>".to_vec())),
    ] {
        for which in ["upstream", "merged"] {
            let (registry, _, tags) = with_tags();
            let larder = with_zero_ttl(Setup::with(&registry), which).start();
            lists(&larder.get(LIST), &tags);
            match &fault {
                None => registry.down(),
                // A part of a list is not a list.
                Some(fault) => registry.script(When::any().path("/tags/list").after(2), fault.clone()),
            }
            let answer = larder.get(&format!("{LIST}?n=2&last=A"));
            lists(&answer, &tags[1..3]);
            assert_stale(&answer);
            assert!(answer.header("age").is_some() && answer.header("link").is_some(), "{answer:?}");
        }
    }
}

#[test]
fn outage_never_gives_an_empty_tag_list() {
    for which in ["upstream", "merged"] {
        let (registry, image, _) = with_tags();
        let mut larder = with_zero_ttl(Setup::with(&registry), which).start();
        // A list that was empty at the last check does not prove that it is empty now.
        registry.add_image("library/new", "v1", &image);
        registry.untag("library/new", "v1");
        assert_eq!(larder.get("/v2/library/new/tags/list").json()["tags"], json!([]));
        assert_eq!(larder.get("/v2/library/app/manifests/v7").status(), 200);
        larder.stop();
        larder.restart();
        assert_eq!(larder.get("/v2/library/new/tags/list").json()["tags"], json!([]));
        registry.down();
        for path in ["/v2/library/new/tags/list", "/v2/library/none/tags/list"] {
            for method in ["GET", "HEAD"] {
                let answer = larder.api().send(method, path, &[]);
                assert!(is_gateway_error(answer.status()), "{which}: {method} {path}: {answer:?}");
            }
        }
        // The upstream's list is only in memory. The cached tags are on disk.
        let answer = larder.get(LIST);
        if which == "merged" {
            lists(&answer, &["v7".to_owned()]);
            assert_stale(&answer);
        } else {
            assert!(is_gateway_error(answer.status()), "{answer:?}");
        }
    }
}

#[test]
fn hanging_upstream_does_not_delay_cached_lists() {
    let (registry, _, _) = with_tags();
    let larder = with_zero_ttl(Setup::with(&registry), "merged").start();
    assert_eq!(larder.get("/v2/library/app/manifests/v7").status(), 200);
    larder.wait_idle();
    let gate = Gate::new();
    registry.script(When::any(), Fault::HoldHead(gate.clone()));
    let answer = larder.get(LIST);
    lists(&answer, &["v7".to_owned()]);
    assert_stale(&answer);
    assert_answered_before_upstream(&larder, &gate);
}

#[test]
fn upstream_404_is_forwarded() {
    for which in ["upstream", "merged"] {
        let (registry, _, tags) = with_tags();
        let larder = listing(Setup::with(&registry), which).set("cache.negative_ttl", "1h").start();
        for _ in 0..3 {
            larder.get("/v2/library/none/tags/list").assert_error(404, "NAME_UNKNOWN");
        }
        assert_eq!(registry.count("GET", "/library/none/"), 1);
        let larder = with_zero_ttl(Setup::with(&registry), which).start();
        lists(&larder.get(LIST), &tags);
        assert_eq!(larder.get("/v2/library/app/manifests/v7").status(), 200);
        registry.script(When::any().path("/tags/list"), Fault::Status(404));
        for _ in 0..2 {
            let answer = larder.get(LIST);
            if which == "merged" {
                lists(&answer, &["v7".to_owned()]);
                assert_eq!(answer.header("warning"), None);
            } else {
                answer.assert_error(404, "NAME_UNKNOWN");
            }
        }
    }
}

#[test]
fn merged_list_has_cached_and_upstream_tags() {
    let (registry, image, mut tags) = with_tags();
    registry.add_image("library/app", "gone", &image);
    let larder = listing(Setup::with(&registry), "merged").start();
    assert_eq!(larder.get("/v2/library/app/manifests/gone").status(), 200);
    registry.untag("library/app", "gone");
    tags.push("gone".to_owned());
    tags.sort();
    for n in [1, 4, 100] {
        let found = pages(&larder, &format!("{LIST}?n={n}"), "tags");
        assert_eq!(found, tags.chunks(n).map(<[String]>::to_vec).collect::<Vec<_>>(), "n={n}");
    }
}

#[test]
fn refused_list_has_the_usual_status() {
    for (fault, mirror, gateway) in
        [(Fault::Status(429), 503, 429), (Fault::Status(401), 404, 403), (Fault::Status(403), 404, 403)]
    {
        for (mode, status) in [("mirror", mirror), ("gateway", gateway)] {
            let (registry, _, _) = with_tags();
            registry.script(When::any(), fault.clone());
            let larder = listing(Setup::with(&registry), "upstream").set("server.mode", mode).start();
            let answer = larder.get(LIST);
            assert_eq!(answer.status(), status, "{mode}: {answer:?}");
            assert_eq!(answer.header("www-authenticate"), None);
        }
    }
}

#[test]
fn endless_list_is_abandoned() {
    let (registry, _, _) = with_tags();
    let larder = listing(Setup::with(&registry), "upstream").start();
    let endless = Fault::rewrite(|seen, plan| {
        let page: usize = seen.query.strip_prefix("page=").map_or(0, |n| n.parse().unwrap());
        plan.set("Link", &format!("<{}?page={}>; rel=\"next\"", seen.path, page + 1));
    });
    registry.script(When::any(), endless);
    registry.script(When::any().after(3000), Fault::HoldHead(Gate::new()));
    let answer = larder.get(LIST);
    assert!(is_gateway_error(answer.status()), "{answer:?}");
    assert!(registry.requests().len() <= 1000, "{}", registry.requests().len());
}

#[test]
fn tag_list_over_the_limit_is_rejected() {
    let (registry, _, _) = with_tags();
    let larder = listing(Setup::with(&registry), "upstream").start();
    let most: Vec<_> = (0..100_000).map(|n| format!("v{n}")).collect();
    let answer =
        |tags: &[String]| Fault::Answer(200, Vec::new(), json!({ "tags": tags }).to_string().into_bytes());
    registry.script(When::any().times(1), answer(&[most.as_slice(), &["one-more".to_owned()]].concat()));
    let refused = larder.get(LIST);
    assert_eq!(refused.status(), 502, "{refused:?}");
    registry.script(When::any(), answer(&most));
    // A list of any length is cached.
    for _ in 0..2 {
        assert_eq!(pages(&larder, LIST, "tags").concat().len(), most.len());
    }
    assert_eq!(registry.requests().len(), 2);
}
