//! Web page for operators: rendered on the server from the same reports as the admin API, usable without scripts.
//!
//! Names, annotations and configs come from other people. Templates escape all of them, and the content security policy
//! allows only the style sheet and the script of this server.

mod assets;
mod format;
mod image;
mod images;
mod overview;
mod page;
mod pull_commands;
mod raw;
mod response;
mod status_view;

use http::request::Parts;
use http::{Response, StatusCode};
use percent_encoding::percent_decode_str;
use url::form_urlencoded;

use crate::ops::{Operations, OpsError};

use super::body::Body;

pub(super) use self::page::failure;
use self::page::html;

/// Returns the style sheet, the script or the icon; `None` for other paths.
pub(super) fn asset(head: &Parts) -> Option<Response<Body>> {
    assets::response(head.uri.path(), &head.headers)
}

/// Answers a `GET` or `HEAD` request for a page or a raw document. `status_of` maps errors to statuses.
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
        "/images" | "/images/" => images::all(operations, &search_text(query)).await,
        "/image" => image::page(operations, query).await,
        "/raw" => match raw::document(operations, query).await {
            Ok(answer) => return answer,
            Err(error) => Err(error),
        },
        _ => match path.strip_prefix("/images/") {
            Some(name) => match percent_decode_str(name.trim_end_matches('/')).decode_utf8() {
                Ok(name) => images::repository(operations, &name).await,
                Err(_) => {
                    return failure(StatusCode::NOT_FOUND, "the name of the repository is not valid UTF-8");
                }
            },
            None => return failure(StatusCode::NOT_FOUND, "no such page"),
        },
    };
    match rendered {
        Ok(text) => html(StatusCode::OK, text),
        Err(error) => failure(status_of(&error), &error.to_string()),
    }
}

/// Returns the text of the search field.
fn search_text(query: &str) -> String {
    let found = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "q");
    found.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_is_escaped() {
        let Body::Whole(body) = failure(StatusCode::NOT_FOUND, "<script>alert(1)</script>").into_body()
        else {
            panic!("no body")
        };
        let text = String::from_utf8(body.to_vec()).expect("text");
        assert!(text.contains("alert(1)") && !text.contains("<script>alert"), "{text}");
    }

    #[test]
    fn templates_escape_everything() {
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
    fn search_text_is_decoded() {
        assert_eq!(search_text("q=+busy+box%3A1+&x=y"), "busy box:1");
        assert_eq!(search_text(""), "");
    }
}
