//! Frame around every page, rendering, and the error page.

use askama::Template;
use http::{Response, StatusCode};

use crate::api::body::Body;
use crate::ops::OpsError;

use super::assets;
use super::response::{POLICY, respond};

const HTML: &str = "text/html; charset=utf-8";

/// Content of the frame around every page.
#[derive(Debug)]
pub(super) struct PageFrame {
    pub(super) title: String,
    /// Name of the current entry of the navigation.
    nav_entry: &'static str,
    /// Text of the search field.
    pub(super) query: String,
    /// Path of the style sheet.
    pub(super) style: String,
    /// Path of the script.
    pub(super) script: String,
    pub(super) version: &'static str,
}

impl PageFrame {
    pub(super) fn new(title: impl Into<String>, nav_entry: &'static str) -> Self {
        Self {
            title: title.into(),
            nav_entry,
            query: String::new(),
            style: assets::style_path(),
            script: assets::script_path(),
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// Returns the value of `aria-current` for an entry of the navigation.
    pub(super) fn current(&self, nav_entry: &str) -> &'static str {
        if self.nav_entry == nav_entry { "page" } else { "false" }
    }
}

/// Error page.
#[derive(Template)]
#[template(path = "failure.html", config = "src/api/ui/askama.toml")]
struct FailurePage<'a> {
    page: PageFrame,
    status: u16,
    reason: &'a str,
    message: &'a str,
}

/// Returns an error page.
pub(in crate::api) fn failure(status: StatusCode, message: &str) -> Response<Body> {
    let reason = status.canonical_reason().unwrap_or("Error");
    let page = FailurePage { page: PageFrame::new(reason, ""), status: status.as_u16(), reason, message };
    match render(&page) {
        Ok(text) => html(status, text),
        Err(error) => html(status, error.to_string()),
    }
}

/// Renders a template.
pub(super) fn render(page: &impl Template) -> Result<String, OpsError> {
    // Rendering fails only if a `Display` implementation fails, and none of them does.
    page.render().map_err(|error| OpsError::Content(format!("cannot render the page: {error}")))
}

/// Returns a page as response.
pub(super) fn html(status: StatusCode, text: String) -> Response<Body> {
    respond(status, HTML, "no-store", POLICY, text.into())
}
