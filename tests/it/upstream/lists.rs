//! Lists in pages.

use larder::config::schema::Upstream as Settings;
use larder::oci::Tag;
use larder::source::{LIST_MAX, Source as _, SourceError};

use crate::upstream::registry::{Registry, TIMEOUTS, answer, at, counted, digest, name, open, upstream};

#[tokio::test]
async fn pages_come_from_the_same_endpoint() {
    // A proxy in front of the registry has a path prefix that the registry does not know.
    let registry = Registry::start(|seen, before| {
        let link = ("link", "</v2/org/app/tags/list?last=b%2Bc&n=1000>; rel=\"next\"");
        match before {
            0 => answer(200, &[link], br#"{"tags":["b"]}"#),
            1 if seen.target.ends_with("/tags/list?last=b%2Bc&n=1000") => {
                answer(200, &[], br#"{"tags":["a"]}"#)
            }
            _ => answer(500, &[], b""),
        }
    })
    .await;
    let (upstream, metrics) = upstream(at(&format!("{}/proxy/hub/", registry.url())), TIMEOUTS);
    let tags = upstream.tags(&name(), None).await.expect("a list");
    assert_eq!(tags.iter().map(Tag::as_str).collect::<Vec<_>>(), ["b", "a"]);
    let targets: Vec<_> = registry.seen().into_iter().map(|seen| seen.target).collect();
    let list = "/proxy/hub/v2/org/app/tags/list";
    assert_eq!(targets, [format!("{list}?n=1000"), format!("{list}?last=b%2Bc&n=1000")]);
    let fetched = r#"larder_fetched_bytes_total{kind="list",upstream="reg.test"}"#;
    assert_eq!(counted(&metrics, fetched).as_deref(), Some("28"));
}

#[tokio::test]
async fn redirected_page_is_followed_and_the_next_comes_from_the_registry() {
    let elsewhere = Registry::start(|seen, _| {
        let link = ("link", "</other/place?token=x%2Fy>; rel=next");
        let links = if seen.target.contains("token") { &[][..] } else { &[link][..] };
        answer(200, links, br#"{"tags":["a"]}"#)
    })
    .await;
    let base = elsewhere.url();
    let registry =
        Registry::start(move |seen, _| answer(307, &[("location", &format!("{base}{}", seen.target))], b""))
            .await;
    let settings = Settings { allow_private: true, ..at(&registry.url()) };
    let (upstream, _) = upstream(settings, TIMEOUTS);
    assert_eq!(upstream.tags(&name(), None).await.expect("a list").len(), 2);
    let asked: Vec<_> = registry.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(asked[1], "/v2/org/app/tags/list?token=x%2Fy");
}

#[tokio::test]
async fn pages_have_a_total_limit() {
    for referrers in [false, true] {
        let registry = Registry::start(|seen, before| {
            let link = format!("<?page={before}>; rel=\"next\"");
            let mut body = if seen.target.contains("tags") {
                br#"{"tags":["a"]}"#.to_vec()
            } else {
                br#"{"manifests":[]}"#.to_vec()
            };
            body.resize(LIST_MAX / 3, b' ');
            answer(200, &[("link", &link)], &body)
        })
        .await;
        let upstream = open(&registry);
        let error = if referrers {
            upstream.referrers(&name(), &digest(), None).await.map(drop).expect_err("too long")
        } else {
            upstream.tags(&name(), None).await.map(drop).expect_err("too long")
        };
        assert!(
            matches!(&error, SourceError::Invalid(text) if text.contains(&format!("larger than {LIST_MAX} "))),
            "{error}"
        );
        assert_eq!(registry.seen().len(), 4);
    }
}

#[tokio::test]
async fn only_api_support_is_remembered() {
    let html = ("content-type", "text/html");
    let lasting = SourceError::NoReferrers { lasting: true };
    let once = SourceError::NoReferrers { lasting: false };
    for (status, header, body, wanted) in [
        (404, ("content-type", "text/plain"), "404 page not found", lasting.clone()),
        (404, html, "<h1>Not found</h1>", lasting.clone()),
        (404, html, r#"{"errors":[{"code":"UNSUPPORTED"}]}"#, lasting.clone()),
        (404, html, r#"{"errors":[{"code":"NAME_UNKNOWN","message":"x"}]}"#, once.clone()),
        (404, html, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#, once.clone()),
        (400, html, r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#, once.clone()),
        (405, html, "", lasting.clone()),
        (406, html, "", lasting.clone()),
        (501, html, "", lasting.clone()),
        (200, html, "<html>", SourceError::NotReferrers),
        (200, ("content-type", "application/json"), "{}", SourceError::NotReferrers),
    ] {
        let registry = Registry::start(move |_, _| answer(status, &[header], body.as_bytes())).await;
        let error = open(&registry).referrers(&name(), &digest(), None).await.expect_err("no list");
        assert_eq!(error, wanted, "{status} {body}");
    }
    let registry = Registry::start(|_, _| {
        answer(
            200,
            &[("content-type", "application/json; charset=utf-8")],
            br#"{"schemaVersion":2,"manifests":null}"#,
        )
    })
    .await;
    assert!(open(&registry).referrers(&name(), &digest(), None).await.expect("a list").is_empty());
}
