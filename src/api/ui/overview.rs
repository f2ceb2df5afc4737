//! Overview page, its part that is updated, and the page of jobs.

use askama::Template;

use crate::ops::{Operations, OpsError, status};

use super::page::{PageFrame, render};
use super::pull_commands::{PullAddress, PullCommand};
use super::status_view::{JobRow, StatusView, job_row};

/// Image of the example command on the page of an empty cache: small, and available for every platform.
const FIRST: &str = "library/alpine:3";

#[derive(Template)]
#[template(path = "overview.html", config = "src/api/ui/askama.toml")]
struct Overview {
    page: PageFrame,
    live: StatusView,
    place: Option<PullAddress>,
    /// Example commands for an empty cache.
    first: Vec<PullCommand>,
}

/// Part of the overview that is updated.
#[derive(Template)]
#[template(path = "live.html", config = "src/api/ui/askama.toml")]
struct Fragment {
    live: StatusView,
}

#[derive(Template)]
#[template(path = "jobs.html", config = "src/api/ui/askama.toml")]
struct JobsPage {
    page: PageFrame,
    jobs: Vec<JobRow>,
}

/// Renders the overview page.
pub(super) async fn page(operations: &Operations) -> Result<String, OpsError> {
    let report = status::status(operations).await?;
    let place = PullAddress::of(operations.service());
    let default = report.upstreams.iter().find(|row| row.state.default).or(report.upstreams.first());
    let image = default.map_or_else(|| FIRST.to_owned(), |row| format!("{}/{FIRST}", row.state.name));
    let first = place.as_ref().map(|place| place.commands(&image, None)).unwrap_or_default();
    render(&Overview {
        page: PageFrame::new("Overview", "overview"),
        live: StatusView::new(report),
        place,
        first,
    })
}

/// Renders the part of the overview that is updated.
pub(super) async fn live(operations: &Operations) -> Result<String, OpsError> {
    render(&Fragment { live: StatusView::new(status::status(operations).await?) })
}

/// Renders the page of jobs, newest first.
pub(super) fn jobs(operations: &Operations) -> Result<String, OpsError> {
    let now = operations.now();
    let jobs = operations.jobs().list().iter().rev().map(|job| job_row(job, now)).collect();
    render(&JobsPage { page: PageFrame::new("Jobs", "jobs"), jobs })
}
