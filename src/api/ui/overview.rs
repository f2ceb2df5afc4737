//! How the larder is doing: the first page, the part of it that is fetched again and again, and the jobs.

use askama::Template;

use crate::ops::{Operations, OpsError, status};

use super::page::{PageFrame, render};
use super::pull_commands::{PullAddress, PullCommand};
use super::status_view::{JobRow, StatusView, job_row};

/// What the first command of whoever tries larder pulls: small, and there for every platform.
const FIRST: &str = "library/alpine:3";

#[derive(Template)]
#[template(path = "overview.html", config = "src/api/ui/askama.toml")]
struct Overview {
    page: PageFrame,
    live: StatusView,
    place: Option<PullAddress>,
    /// For whoever has pulled nothing yet.
    first: Vec<PullCommand>,
}

/// What of it changes.
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

/// The first page.
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

/// What of it changes.
pub(super) async fn live(operations: &Operations) -> Result<String, OpsError> {
    render(&Fragment { live: StatusView::new(status::status(operations).await?) })
}

/// The jobs under way, and those that ended lately; the newest first.
pub(super) fn jobs(operations: &Operations) -> Result<String, OpsError> {
    let now = operations.now();
    let jobs = operations.jobs().list().iter().rev().map(|job| job_row(job, now)).collect();
    render(&JobsPage { page: PageFrame::new("Jobs", "jobs"), jobs })
}
