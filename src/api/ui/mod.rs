//! The operator's pages: rendered here, readable without scripts, and made of the same reports as the API.
//!
//! Everything that is shown came from somewhere else once: names, annotations, configs. Templates escape all of it,
//! and the policy that goes out with every page lets nothing run or load but our own two files.

mod assets;
mod format;
mod image;
mod images;
mod overview;
mod pull_commands;
mod raw;
mod status_view;

use askama::Template;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use http::header::{HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode};
use percent_encoding::percent_decode_str;
use url::form_urlencoded;

use crate::ops::{Operations, OpsError};

use super::body::Body;

const HTML: &str = "text/html; charset=utf-8";
/// What a page may do: look as our style sheet says, run our script, and ask us.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// What the frame around every page says.
#[derive(Debug)]
struct PageFrame {
    title: String,
    /// The word of its place in the navigation.
    place: &'static str,
    /// What was searched for.
    query: String,
    /// Where the style sheet is.
    style: String,
    /// Where the script is.
    script: String,
    version: &'static str,
}

impl PageFrame {
    fn new(title: impl Into<String>, place: &'static str) -> Self {
        Self {
            title: title.into(),
            place,
            query: String::new(),
            style: assets::style(),
            script: assets::script(),
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// For `aria-current`.
    fn current(&self, place: &str) -> &'static str {
        if self.place == place { "page" } else { "false" }
    }
}

/// A page that says why there is no other.
#[derive(Template)]
#[template(path = "failure.html", config = "src/api/ui/askama.toml")]
struct FailurePage<'a> {
    page: PageFrame,
    status: u16,
    reason: &'a str,
    message: &'a str,
}

/// Answers for a style sheet, script or icon; `None` if the path is none's.
pub(super) fn asset(head: &Parts) -> Option<Response<Body>> {
    assets::answer(head.uri.path(), &head.headers)
}

/// Answers a GET or HEAD of a page, or of a document that one leads to. `status_of` knows which status an error is.
pub(super) async fn answer(
    operations: &Operations,
    head: &Parts,
    status_of: fn(&OpsError) -> StatusCode,
) -> Response<Body> {
    let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
    let rendered = match path {
        "/" => overview::page(operations).await,
        "/ui/live" => overview::live(operations).await,
        "/jobs" => overview::jobs(operations),
        "/images" | "/images/" => images::all(operations, &searched(query)).await,
        "/image" => image::page(operations, query).await,
        "/raw" => match raw::document(operations, query).await {
            Ok(answer) => return answer,
            Err(error) => Err(error),
        },
        _ => match path.strip_prefix("/images/") {
            Some(name) => match percent_decode_str(name.trim_end_matches('/')).decode_utf8() {
                Ok(name) => images::repository(operations, &name).await,
                Err(_) => return failure(StatusCode::NOT_FOUND, "no repository is called that"),
            },
            None => return failure(StatusCode::NOT_FOUND, "there is no such page"),
        },
    };
    match rendered {
        Ok(text) => html(StatusCode::OK, text),
        Err(error) => failure(status_of(&error), &error.to_string()),
    }
}

/// What was searched for.
fn searched(query: &str) -> String {
    let found = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "q");
    found.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

/// A page that says what is wrong.
pub(super) fn failure(status: StatusCode, message: &str) -> Response<Body> {
    let reason = status.canonical_reason().unwrap_or("Error");
    let page = FailurePage { page: PageFrame::new(reason, ""), status: status.as_u16(), reason, message };
    match render(&page) {
        Ok(text) => html(status, text),
        Err(error) => html(status, error.to_string()),
    }
}

fn render(page: &impl Template) -> Result<String, OpsError> {
    // Only a Display that fails can make this fail, and ours do not.
    page.render().map_err(|error| OpsError::Content(format!("the page cannot be written: {error}")))
}

fn html(status: StatusCode, text: String) -> Response<Body> {
    answered(status, HTML, "no-store", POLICY, text.into())
}

fn answered(
    status: StatusCode,
    media_type: &'static str,
    kept: &'static str,
    policy: &'static str,
    body: bytes::Bytes,
) -> Response<Body> {
    let mut answer = Response::new(Body::Empty);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    let own = HeaderName::from_static("cross-origin-resource-policy");
    for (name, value) in [
        (CONTENT_TYPE, media_type),
        (CACHE_CONTROL, kept),
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (own, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    *answer.body_mut() = Body::Whole(body);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_escaped() {
        let Body::Whole(body) = failure(StatusCode::NOT_FOUND, "<script>alert(1)</script>").into_body()
        else {
            panic!("no body")
        };
        let text = String::from_utf8(body.to_vec()).expect("text");
        assert!(text.contains("alert(1)") && !text.contains("<script>alert"), "{text}");
    }

    #[test]
    fn no_template_leaves_anything_unescaped() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api/ui/templates");
        for entry in std::fs::read_dir(folder).expect("templates") {
            let path = entry.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("text");
            for way in ["|safe", "| safe", "escape(", "autoescape", "style=", " onclick", "javascript:"] {
                assert!(!text.contains(way), "{} has {way}", path.display());
            }
        }
    }

    #[test]
    fn a_search_is_read() {
        assert_eq!(searched("q=+busy+box%3A1+&x=y"), "busy box:1");
        assert_eq!(searched(""), "");
    }
}
