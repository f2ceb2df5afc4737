//! Rows for lists of referrers, and for peculiarities of ghcr.io and other registries.

use super::cases::Request::{Blob, CachedReferrers, CachedTag, Digest, Referrers, Tag};
use super::cases::{CUT, Case, MANIFEST, Second, always, answer, case, once, status};
use super::site::{Content, REPOSITORY, Site};
use super::support::content::{OCI_ARTIFACT, OCI_INDEX, OCI_MANIFEST};
use super::support::script::Plan;
use super::support::{Document, Fault, Ghcr, When};

use serde_json::json;

const LISTS: [super::cases::Request; 2] = [Referrers, CachedReferrers];

pub(super) fn all() -> Vec<Case> {
    let mut cases = referrers();
    cases.extend(ghcr());
    cases.extend(other_registries());
    cases
}

/// Returns the requests of the referrers API.
fn api() -> When {
    When::any().path("/referrers/")
}

/// Adds the tag of a list of referrers, as registries without the API have it.
fn add_list_tag(site: &Site) {
    let signature = &site.content.signature;
    let list = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [signature.descriptor()] });
    let list = Document::json(OCI_INDEX, &list);
    site.first.add_manifest(REPOSITORY, &list);
    site.first.tag(REPOSITORY, &site.content.document.digest.replace(':', "-"), &list.digest);
}

fn referrers() -> Vec<Case> {
    let of_api = |fault, happening: Fault| {
        case(fault, &LISTS, move |site| site.first.script(api(), happening.clone()))
    };
    let tagged = |fault, happening: Fault| {
        case(fault, &[Referrers], move |site| {
            site.first.script(api(), happening.clone());
            add_list_tag(site);
        })
    };
    vec![
        case("no fault", &LISTS, |_| ()),
        case("connection refused", &LISTS, |site| site.first.down()),
        always("closed before the head", &LISTS, vec![Fault::CloseConnection]),
        once("500, once", &LISTS, Fault::Status(500)),
        of_api("referrers API: 500", Fault::Status(500)),
        of_api("referrers API: 429, Retry-After", status(429, &[("Retry-After", "17")])),
        of_api("referrers API: 401", status(401, &[])),
        of_api("referrers API: 403", Fault::Status(403)),
        of_api("referrers API: 404, no tag", Fault::Status(404)),
        tagged("referrers API: 404, the list has a tag", Fault::Status(404)),
        tagged("referrers API: 405, the list has a tag", Fault::Status(405)),
        of_api("referrers API: not an index", answer("application/json", "{}")),
        of_api("referrers API: not JSON", answer(OCI_INDEX, "<html>")),
        case("referrers API: list cut, once", &LISTS, |site| {
            site.first.script(api().times(1), Fault::Cut(20));
        }),
    ]
}

/// ghcr.io redirects requests of the referrers API to a web site.
fn ghcr() -> Vec<Case> {
    let redirected = |fault, happening: fn() -> Fault, has_tag: bool| {
        let redirected = case(fault, &[Referrers], move |site| {
            site.first.script(api(), Fault::Redirect(303, format!("{}/-", site.other.url())));
            site.other.script(When::any(), happening());
            if has_tag {
                add_list_tag(site);
            }
        });
        redirected.second(Second::RedirectTarget).setting("allow_private", true)
    };
    vec![
        redirected("ghcr.io: referrers at a site with 404, no tag", Ghcr::not_found, false),
        redirected("ghcr.io: referrers at a site with 404, the list has a tag", Ghcr::not_found, true),
        redirected("ghcr.io: referrers at a site that limits requests, no tag", Ghcr::limited, false),
        redirected(
            "ghcr.io: referrers at a site that limits requests, the list has a tag",
            Ghcr::limited,
            true,
        ),
        once(
            "ghcr.io: 429 for 714.6 µs in the body, once",
            &[Tag, CachedTag, Digest, Blob],
            Ghcr::momentary_limit(false),
        ),
    ]
}

fn other_registries() -> Vec<Case> {
    let resumed = |fault, code| {
        case(fault, &[Blob], move |site| {
            site.first.script(When::blobs().times(1), Fault::Cut(CUT));
            site.first.script(When::blobs().with_range(), Fault::Status(code));
        })
    };
    // The registry answers 404 for a type that is not accepted.
    let strict = Fault::rewrite(|seen, plan| {
        let media_type = plan.headers.iter().find(|(name, _)| name == "Content-Type");
        let media_type = media_type.map_or(OCI_MANIFEST, |(_, media_type)| media_type.as_str());
        if !seen.header("accept").unwrap_or_default().contains(media_type) {
            *plan = Plan::error(404, "MANIFEST_UNKNOWN");
        }
    });
    let artifact =
        format!(r#"{{"mediaType":"{OCI_ARTIFACT}","artifactType":"text/x","blobs":[],"row":"ROW"}}"#);
    vec![
        resumed("content delivery network: each range is 400", 400),
        resumed("content delivery network: each range is 403", 403),
        resumed("content delivery network: each range is 405", 405),
        resumed("content delivery network: each range is 500", 500),
        resumed("content delivery network: each range is 501", 501),
        case("HEAD alone with length 0", &[CachedTag], |site| {
            let fault = Fault::rewrite(|_, plan| plan.content_length = Some(0));
            site.first.script(When::any().method("HEAD"), fault);
        }),
        case("HEAD alone answered with 401", &[CachedTag], |site| {
            site.first.script(When::any().method("HEAD"), status(401, &[]));
        }),
        case("HEAD alone answered with 501", &[CachedTag], |site| {
            site.first.script(When::any().method("HEAD"), Fault::Status(501));
        }),
        case("manifest is 404 unless its type is accepted", &MANIFEST, move |site| {
            site.first.script(When::manifests(), strict.clone());
        })
        .content(move |n| Content::document(n, OCI_ARTIFACT, artifact.replace("ROW", &n.to_string()))),
    ]
}
