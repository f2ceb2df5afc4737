//! The faults: behaviour of an upstream, and the requests that are sent to it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::json;
use toml::Value;

use super::site::{Content, LENGTH, REPOSITORY, Site};
use super::support::content::{
    DOCKER_LIST, DOCKER_MANIFEST, DOCKER_SCHEMA1, OCI_INDEX, OCI_MANIFEST, sha256,
};
use super::support::quirks::limited_head;
use super::support::{Auth, Fault, Gate, Index, Setup, When};

/// Request of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Tag,
    CachedTag,
    Digest,
    CachedDigest,
    Blob,
    CachedBlob,
    Referrers,
    CachedReferrers,
}

impl Request {
    /// Returns true if the content was pulled before the fault.
    pub(crate) fn is_cached(self) -> bool {
        matches!(self, Self::CachedTag | Self::CachedDigest | Self::CachedBlob | Self::CachedReferrers)
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tag => "tag",
            Self::CachedTag => "tag, cached",
            Self::Digest => "digest",
            Self::CachedDigest => "digest, cached",
            Self::Blob => "blob",
            Self::CachedBlob => "blob, cached",
            Self::Referrers => "referrers",
            Self::CachedReferrers => "referrers, cached",
        })
    }
}

/// Second registry of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Second {
    Unused,
    /// A second endpoint of the same upstream.
    Endpoint,
    /// Another host, to which the first registry redirects.
    RedirectTarget,
}

type Settings = dyn Fn(&Site, &Setup) -> Vec<(&'static str, Value)> + Sync;
type Inject = dyn Fn(&Site) + Sync;

/// One fault.
pub(crate) struct Case {
    pub(crate) fault: &'static str,
    pub(crate) request: Vec<Request>,
    pub(crate) second: Second,
    /// True if the endpoint is a TLS server that redirects to plain HTTP.
    pub(crate) tls: bool,
    pub(crate) gateway: bool,
    pub(crate) settings: Box<Settings>,
    pub(crate) content: Box<dyn Fn(u64) -> Content + Sync>,
    /// Byte at which a blob is held until the client has the head of its answer. Otherwise a slow client would get an
    /// error status and a quick client an interrupted body.
    pub(crate) hold_at: Option<usize>,
    /// Number of requests under the fault before the request that counts.
    pub(crate) before: usize,
    /// Documented limit in seconds, for cases in which the client waits.
    pub(crate) within: Option<u64>,
    pub(crate) accept: Option<&'static str>,
    pub(crate) inject: Box<Inject>,
}

impl Case {
    pub(super) fn setting(self, key: &'static str, value: impl Into<Value>) -> Self {
        let value = value.into();
        Self { settings: Box::new(move |_, _| vec![(key, value.clone())]), ..self }
    }

    fn settings(
        self,
        settings: impl Fn(&Site, &Setup) -> Vec<(&'static str, Value)> + Sync + 'static,
    ) -> Self {
        Self { settings: Box::new(settings), ..self }
    }

    pub(super) fn content(self, content: impl Fn(u64) -> Content + Sync + 'static) -> Self {
        Self { content: Box::new(content), ..self }
    }

    pub(super) fn second(self, second: Second) -> Self {
        Self { second, ..self }
    }

    fn gateway(self) -> Self {
        Self { gateway: true, ..self }
    }

    fn hold_at(self, byte: usize) -> Self {
        Self { hold_at: Some(byte), ..self }
    }

    fn before(self, before: usize) -> Self {
        Self { before, ..self }
    }

    fn within(self, seconds: u64) -> Self {
        Self { within: Some(seconds), ..self }
    }
}

use Request::{Blob, CachedBlob, CachedDigest, CachedTag, Digest, Tag};

const ALL: [Request; 4] = [Tag, CachedTag, Digest, Blob];
const COLD: [Request; 3] = [Tag, Digest, Blob];
pub(super) const MANIFEST: [Request; 2] = [Tag, Digest];
/// Byte at which a body is interrupted.
pub(super) const CUT: usize = LENGTH / 3;
/// A byte near the end of the body, also if the body is slightly shorter.
const END: usize = LENGTH - 2;

pub(super) fn case(
    fault: &'static str,
    request: &[Request],
    inject: impl Fn(&Site) + Sync + 'static,
) -> Case {
    Case {
        fault,
        request: request.to_vec(),
        second: Second::Unused,
        tls: false,
        gateway: false,
        settings: Box::new(|_, _| Vec::new()),
        content: Box::new(Content::image),
        hold_at: None,
        before: 0,
        within: None,
        accept: None,
        inject: Box::new(inject),
    }
}

/// A case in which these faults apply to all requests.
pub(super) fn always(fault: &'static str, request: &[Request], faults: Vec<Fault>) -> Case {
    case(fault, request, move |site| {
        for fault in &faults {
            site.first.script(When::any(), fault.clone());
        }
    })
}

/// A case in which the fault applies to the first request only.
pub(super) fn once(fault: &'static str, request: &[Request], happening: Fault) -> Case {
    case(fault, request, move |site| site.first.script(When::any().times(1), happening.clone()))
}

pub(super) fn status(status: u16, headers: &[(&str, &str)]) -> Fault {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Fault::Answer(status, headers, b"scripted".to_vec())
}

fn header(name: &'static str, value: &str) -> Fault {
    Fault::SetHeader(name, value.to_owned())
}

pub(super) fn answer(media_type: &str, body: &str) -> Fault {
    Fault::Answer(200, vec![("Content-Type".into(), media_type.into())], body.as_bytes().to_vec())
}

pub(crate) fn all() -> Vec<Case> {
    let mut cases = connections();
    cases.extend(statuses());
    cases.extend(bodies());
    cases.extend(ranges());
    cases.extend(redirects());
    cases.extend(labels());
    cases.extend(documents());
    cases.extend(heads_and_digests());
    cases.extend(tokens());
    cases.extend(conversions());
    cases.extend(endpoints());
    cases.extend(breakers());
    cases.extend(super::peculiarities::all());
    cases.extend(gateways());
    cases
}

fn connections() -> Vec<Case> {
    vec![
        case("no fault", &[Tag, CachedTag, Digest, CachedDigest, Blob, CachedBlob], |_| ()),
        case("connection refused", &[Tag, CachedTag, Digest, CachedDigest, Blob, CachedBlob], |site| {
            site.first.down();
        }),
        always("closed before the head", &ALL, vec![Fault::CloseConnection]),
        once("closed before the head, once", &ALL, Fault::CloseConnection),
        case("hangs before the head", &ALL, |site| {
            site.first.script(When::any(), Fault::HoldHead(Gate::new()));
        })
        .setting("head_timeout", "8s")
        .within(10),
        once("body stalls, once", &COLD, Fault::HoldBody(CUT, Gate::new())).setting("idle_timeout", "1s"),
        once("body cut, once", &COLD, Fault::Cut(CUT)),
        case("body cut every time after a third", &[Blob], |site| {
            site.first.script(When::any(), Fault::Cut(CUT));
        }),
        always("body cut, no length announced", &COLD, vec![Fault::NoLength, Fault::Cut(CUT)])
            .hold_at(CUT - 1),
    ]
}

fn statuses() -> Vec<Case> {
    let tomorrow = httpdate::fmt_http_date(SystemTime::now() + Duration::from_hours(24));
    vec![
        always("500", &ALL, vec![Fault::Status(500)]),
        once("500, once", &ALL, Fault::Status(500)),
        always("502", &ALL, vec![Fault::Status(502)]),
        always("503", &ALL, vec![Fault::Status(503)]),
        always("503, Retry-After", &ALL, vec![status(503, &[("Retry-After", "17")])]),
        always("504", &ALL, vec![Fault::Status(504)]),
        always("429", &ALL, vec![Fault::Status(429)]),
        always("429, Retry-After in seconds", &ALL, vec![status(429, &[("Retry-After", "17")])]),
        case("429 to HEAD for 714.6 µs, once; the wait is in the body of GET", &[CachedTag], |site| {
            for (when, fault) in limited_head() {
                site.first.script(when, fault);
            }
        }),
        once("429 for 714.6 µs, once", &COLD, status(429, &[("Retry-After", "714.6µs")])),
        always("429, Retry-After a date", &ALL, vec![status(429, &[("Retry-After", &tomorrow)])]),
        always("401 without a challenge", &ALL, vec![status(401, &[])]),
        always("401, Basic", &ALL, vec![status(401, &[("WWW-Authenticate", "Basic realm=\"x\"")])]),
        always("403", &ALL, vec![Fault::Status(403)]),
        always("404", &[Tag, CachedTag, Digest, CachedDigest, Blob, CachedBlob], vec![Fault::Status(404)]),
        always("404, on_upstream_404 = stale", &[CachedTag], vec![Fault::Status(404)])
            .setting("on_upstream_404", "stale"),
        always("400", &ALL, vec![Fault::Status(400)]),
        always("204", &ALL, vec![status(204, &[])]),
        always("unsolicited 206", &COLD, vec![Fault::rewrite(|_, plan| plan.status = 206)]),
        always("unsolicited 304", &ALL, vec![status(304, &[])]),
    ]
}

fn bodies() -> Vec<Case> {
    let other = Arc::new(vec![b'x'; LENGTH]);
    vec![
        always("other bytes", &COLD, vec![Fault::ReplaceBody(other)]).hold_at(END),
        always("one bit flipped", &COLD, vec![Fault::FlipBit(CUT)]).hold_at(END),
        once("one bit flipped, once", &COLD, Fault::FlipBit(CUT)).hold_at(END),
        always("one byte short", &COLD, vec![Fault::RemoveLastByte]).hold_at(END),
        always("one byte long", &COLD, vec![Fault::AppendByte]).hold_at(END),
        always("one byte long, no length announced", &COLD, vec![Fault::AppendByteChunked]).hold_at(END),
        once("one byte less than announced, once", &COLD, Fault::EndOneByteEarly),
        always(
            "Content-Length one short",
            &COLD,
            vec![Fault::rewrite(|_, plan| plan.content_length = Some(plan.to - plan.from - 1))],
        )
        .hold_at(END),
        always("Content-Length is not a number", &COLD, vec![header("Content-Length", "many")]),
        always("empty body", &COLD, vec![Fault::ReplaceBody(Arc::default())]),
        always("login page", &COLD, vec![answer("text/html", "<html>Please log in</html>")]).hold_at(10),
        always("chunked", &COLD, vec![Fault::Chunked]),
        always("no length announced", &COLD, vec![Fault::NoLength]),
    ]
}

/// Faults after an interrupted body.
fn ranges() -> Vec<Case> {
    let resumed = |fault, happening: Fault| {
        case(fault, &[Blob], move |site| {
            site.first.script(When::blobs().times(1), Fault::Cut(CUT));
            site.first.script(When::blobs().after(1).times(1), happening.clone());
        })
    };
    vec![
        resumed("cut, then the range is ignored", Fault::IgnoreRange),
        resumed("cut, then another Content-Range", Fault::WrongContentRange),
        resumed("cut, then no Content-Range", Fault::RemoveHeader("Content-Range")),
        resumed("cut, then 416", Fault::Status(416)),
        resumed("cut, then 503", Fault::Status(503)),
        resumed("cut, then 404", Fault::Status(404)),
        resumed("cut, then cut again", Fault::Cut(CUT)),
        always("416 for the whole blob", &[Blob], vec![Fault::Status(416)]),
    ]
}

fn redirects() -> Vec<Case> {
    let to_other = |site: &Site| Fault::Redirect(307, site.other.url());
    let nowhere = |location: &'static str| vec![status(302, &[("Location", location)])];
    let mut cases = vec![
        case("redirect to another host", &COLD, move |site| {
            site.first.script(When::any(), to_other(site));
        })
        .second(Second::RedirectTarget)
        .setting("allow_private", true),
        case("redirect to a signed URL that has expired", &[Blob], move |site| {
            site.first.script(When::any(), to_other(site));
            site.other.script(When::any(), Fault::Status(403));
        })
        .second(Second::RedirectTarget)
        .setting("allow_private", true),
        case("redirect to a host that limits requests", &MANIFEST, move |site| {
            site.first.script(When::any(), to_other(site));
            site.other.script(When::any(), status(429, &[("Retry-After", "3600")]));
        })
        .second(Second::RedirectTarget)
        .setting("allow_private", true),
        case("redirect to a host that fails", &COLD, move |site| {
            site.first.script(When::any(), to_other(site));
            site.other.script(When::any(), Fault::Status(500));
        })
        .second(Second::RedirectTarget)
        .setting("allow_private", true),
        case("redirect, cut, and the signed URL expires", &[Blob], move |site| {
            site.first.script(When::any(), to_other(site));
            site.other.script(When::any().times(1), Fault::Cut(CUT));
            site.other.script(When::any().after(1).times(1), Fault::Status(403));
        })
        .second(Second::RedirectTarget)
        .setting("allow_private", true),
        case("redirect loop", &COLD, |site| {
            site.first.script(When::any(), Fault::Redirect(307, site.first.url()));
        }),
        always("redirect without Location", &COLD, vec![status(307, &[])]),
        always("redirect to an invalid URL", &COLD, nowhere("http://[")),
        always("redirect to another scheme", &COLD, nowhere("ftp://127.0.0.1/x")),
        always("redirect to a private address", &COLD, nowhere("http://127.0.0.2:9/x")),
        case("redirect to another port of the host", &COLD, move |site| {
            site.first.script(When::any(), to_other(site));
        })
        .second(Second::RedirectTarget),
        always("redirect to credentials", &COLD, nowhere("http://user:password@127.0.0.1:9/x")),
    ];
    let tls = case("redirect from https to http", &COLD, |_| ()).second(Second::RedirectTarget);
    cases.push(Case { tls: true, ..tls }.settings(|site, setup| {
        let file = setup.write(&format!("{}.pem", site.upstream), &site.tls.as_ref().unwrap().pem);
        vec![("ca_file", file.to_str().unwrap().into())]
    }));
    cases
}

fn labels() -> Vec<Case> {
    let types = |fault, media_type: &str| always(fault, &MANIFEST, vec![header("Content-Type", media_type)]);
    vec![
        always("gzip-encoded", &COLD, vec![Fault::Gzip]),
        always("Content-Encoding gzip without compression", &COLD, vec![header("Content-Encoding", "gzip")]),
        always("Content-Encoding br without compression", &COLD, vec![header("Content-Encoding", "br")]),
        always("no Content-Type", &MANIFEST, vec![Fault::RemoveHeader("Content-Type")]),
        types("Content-Type application/octet-stream", "application/octet-stream"),
        types("Content-Type application/json", "application/json"),
        types("Content-Type text/plain", "text/plain; charset=utf-8"),
        types("Content-Type with a parameter", "application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
        types("Content-Type of an index", OCI_INDEX),
    ]
}

fn documents() -> Vec<Case> {
    let document = |fault, media_type: &'static str, text: String| {
        case(fault, &MANIFEST, |_| ())
            .content(move |n| Content::document(n, media_type, text.replace("ROW", &n.to_string())))
    };
    let image =
        format!(r#""schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{}},"layers":[],"row":ROW"#);
    let large = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": [],
        "annotations": { "padding": "x".repeat(5 << 20) } })
    .to_string();
    vec![
        document(
            "schema 1",
            DOCKER_SCHEMA1,
            r#"{"schemaVersion":1,"name":"ROW","tag":"v1","fsLayers":[],"history":[],"signatures":[{}]}"#
                .into(),
        ),
        document("duplicate keys", OCI_MANIFEST, format!(r#"{{{image},"mediaType":"{OCI_INDEX}"}}"#)),
        document("keys in other case", OCI_MANIFEST, format!(r#"{{{image},"Manifests":[{{}}]}}"#)),
        document("image and index in one", OCI_MANIFEST, format!(r#"{{{image},"manifests":[{{}}]}}"#)),
        document("JSON that is not a manifest", OCI_MANIFEST, r#"{"schemaVersion":2,"row":ROW}"#.into()),
        document("not JSON", OCI_MANIFEST, "row ROW".into()),
        document("manifest of 5 MiB", OCI_MANIFEST, large.clone()),
        always("manifest of 5 MiB, no length announced", &MANIFEST, vec![Fault::Chunked])
            .content(move |n| Content::document(n, OCI_MANIFEST, large.clone())),
    ]
}

fn heads_and_digests() -> Vec<Case> {
    let on_head = |fault, status| {
        case(fault, &[CachedTag], move |site| {
            site.first.script(When::any().method("HEAD"), Fault::Status(status));
        })
    };
    vec![
        on_head("HEAD alone answered with 405", 405),
        on_head("HEAD alone answered with 404", 404),
        on_head("HEAD alone answered with 403", 403),
        on_head("HEAD alone answered with 503", 503),
        always(
            "no digest header",
            &[Tag, CachedTag, Digest],
            vec![Fault::RemoveHeader("Docker-Content-Digest")],
        ),
        always(
            "digest header is not a digest",
            &[Tag, CachedTag, Digest],
            vec![header("Docker-Content-Digest", "sha256:nonsense")],
        ),
        always(
            "digest header with another digest",
            &[Tag, CachedTag, Digest],
            vec![header("Docker-Content-Digest", &sha256(b"something else"))],
        ),
        case("the tag moved to damaged content", &[CachedTag], |site| {
            let next = Content::image(10_000 + u64::from(site.first.addr().port())).document;
            site.first.add_manifest(REPOSITORY, &next);
            site.first.tag(REPOSITORY, "v1", &next.digest);
            site.first.script(When::any().method("GET"), Fault::FlipBit(CUT));
        }),
    ]
}

fn tokens() -> Vec<Case> {
    let bearer = |realm: &str| {
        let challenge = format!("Bearer realm=\"{realm}\",service=\"x\"");
        status(401, &[("WWW-Authenticate", &challenge)])
    };
    let asks_for_token = |fault, happening: Fault| {
        case(fault, &COLD, move |site| {
            site.first.require_auth(Auth::Bearer(None));
            site.first.script(When::any().path("/token"), happening.clone());
        })
    };
    let with_password = |site: &Site, setup: &Setup| -> Vec<(&'static str, Value)> {
        let file = setup.write(&format!("{}.password", site.upstream), "secret");
        vec![("username", "user".into()), ("password_file", file.to_str().unwrap().into())]
    };
    vec![
        case("requires a token", &ALL, |site| site.first.require_auth(Auth::Bearer(None))),
        case("token server down", &COLD, move |site| {
            // This is the registry's own host, and no server listens there.
            site.other.down();
            site.first.script(When::any(), bearer(&format!("{}/token", site.other.url())));
        }),
        case("token server hangs", &ALL, |site| {
            site.first.require_auth(Auth::Bearer(None));
            site.first.script(When::any().path("/token"), Fault::HoldHead(Gate::new()));
        })
        .within(10),
        asks_for_token("token server answers with garbage", answer("application/json", "not JSON")),
        asks_for_token("token server answers without a token", answer("application/json", "{}")),
        asks_for_token("token server answers with 401", Fault::Status(401)),
        asks_for_token("token server answers with 500", Fault::Status(500)),
        asks_for_token("token server answers with 429", Fault::Status(429)),
        asks_for_token("token server redirects elsewhere", status(302, &[("Location", "/elsewhere")])),
        case("realm at a private address", &COLD, move |site| {
            site.first.script(When::any(), bearer("http://127.0.0.2:9/token"));
        }),
        case("foreign realm, the server has a password", &COLD, move |site| {
            let realm = format!("http://localhost:{}/token", site.other.addr().port());
            site.first.script(When::any(), bearer(&realm));
            site.other.require_auth(Auth::Bearer(None));
        })
        .second(Second::RedirectTarget)
        .settings(move |site, setup| {
            [with_password(site, setup), vec![("allow_private", true.into())]].concat()
        }),
        case("requires a password, the server has a wrong one", &COLD, |site| {
            site.first.require_auth(Auth::Basic("user".into(), "other".into()));
        })
        .settings(with_password),
    ]
}

fn conversions() -> Vec<Case> {
    // The tag is an index, and the client accepts no index.
    let converting = |fault, lies: bool| {
        let inject = move |site: &Site| {
            let child = site.content.converted.clone().unwrap();
            let list = site.content.document.digest.clone();
            site.first.script(
                When::manifests().path("/v1"),
                Fault::rewrite(move |seen, plan| {
                    if !seen.header("accept").unwrap_or_default().contains(DOCKER_LIST) {
                        plan.set("Content-Type", &child.media_type);
                        plan.set("Docker-Content-Digest", if lies { &list } else { &child.digest });
                        plan.to = child.bytes.len();
                        plan.content = child.bytes.clone();
                    }
                }),
            );
        };
        let converted = case(fault, &[Tag], inject).content(|n| {
            let index = Index::docker(n * 10);
            let converted = Some(index.images[0].manifest.clone());
            Content { document: index.document, converted, ..Content::image(n) }
        });
        Case { accept: Some(DOCKER_MANIFEST), ..converted }
    };
    let refusing = case("client accepts no index: refused", &[Tag], |site| {
        site.first.script(
            When::manifests().path("/v1"),
            Fault::rewrite(|seen, plan| {
                if !seen.header("accept").unwrap_or_default().contains(OCI_INDEX) {
                    (plan.status, plan.to) = (404, 0);
                }
            }),
        );
    })
    .content(|n| Content { document: Index::oci(n * 10).document, ..Content::image(n) });
    vec![
        converting("client accepts no index: converted", false),
        converting("client accepts no index: converted, with the digest of the index", true),
        Case { accept: Some(DOCKER_MANIFEST), ..refusing },
    ]
}

fn endpoints() -> Vec<Case> {
    let first = |fault, request: &[Request], happening: Fault| {
        always(fault, request, vec![happening]).second(Second::Endpoint)
    };
    vec![
        case("two endpoints, the first down", &COLD, |site| site.first.down()).second(Second::Endpoint),
        first("two endpoints, the first answers with 500", &COLD, Fault::Status(500)),
        first("two endpoints, the first answers with 404", &COLD, Fault::Status(404)),
        first("two endpoints, the first answers with 429", &COLD, Fault::Status(429)),
        first("two endpoints, the first flips a bit", &COLD, Fault::FlipBit(CUT)).hold_at(END),
        case("two endpoints, the first interrupts the body and fails", &[Blob], |site| {
            site.first.script(When::any().times(1), Fault::Cut(CUT));
            site.first.script(When::any().after(1), Fault::Status(503));
        })
        .second(Second::Endpoint),
        case("two endpoints, both down", &ALL, |site| {
            site.first.down();
            site.other.down();
        })
        .second(Second::Endpoint),
        case("two endpoints, the first down, the second not authoritative", &ALL, |site| site.first.down())
            .second(Second::Endpoint)
            .settings(|site, _| {
                let mut mirror = toml::toml! { authoritative = false };
                mirror.insert("url".into(), site.other.url().into());
                vec![("endpoints", vec![Value::from(site.first.url()), mirror.into()].into())]
            }),
    ]
}

/// Earlier answers have an effect: the fourth or the second request counts.
fn breakers() -> Vec<Case> {
    vec![
        always("500 for the fourth time", &ALL, vec![Fault::Status(500)]).before(3),
        always("429 for the second time, Retry-After", &ALL, vec![status(429, &[("Retry-After", "600")])])
            .before(1),
        always("503 for the second time, Retry-After", &ALL, vec![status(503, &[("Retry-After", "600")])])
            .before(1),
    ]
}

fn gateways() -> Vec<Case> {
    let gateway = |fault, happening: Fault| always(fault, &ALL, vec![happening]).gateway();
    vec![
        gateway("gateway: 401", status(401, &[])),
        gateway("gateway: 403", Fault::Status(403)),
        gateway("gateway: 404", Fault::Status(404)),
        gateway("gateway: 429", Fault::Status(429)),
        gateway("gateway: 429, Retry-After", status(429, &[("Retry-After", "17")])),
        gateway("gateway: 500", Fault::Status(500)),
        case("gateway: connection refused", &ALL, |site| site.first.down()).gateway(),
    ]
}
