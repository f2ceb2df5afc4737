//! `larder inspect`.

use std::fmt::Write as _;

use clap::Args;

use super::backend::{Answer, ServerOptions};
use super::exit::ExitAnswer;
use super::list::fresh;
use super::output::print;
use super::table::{Table, bad, good, iec};
use crate::ops::image_tree::ContentPart;
use crate::ops::inspect::InspectReport;
use crate::ops::protocol::{InspectQuery, Query};

/// Arguments of `larder inspect`.
// Each field is a flag of the command line.
#[allow(clippy::struct_excessive_bools)]
#[derive(Args, Debug)]
pub(super) struct Inspect {
    /// Image: `busybox`, `ghcr.io/org/app:1` or `app@sha256:…`
    reference: String,
    /// Show the image for this platform: os/arch or os/arch/variant
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Show the index itself
    #[arg(long, conflicts_with_all = ["platform", "config"])]
    index: bool,
    /// Accept OCI documents only, not Docker's
    #[arg(long)]
    oci: bool,
    /// Accept documents of this media type only
    #[arg(long, value_name = "TYPE", conflicts_with = "oci")]
    media_type: Option<String>,
    /// Print the document itself, byte for byte
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Show the image's config instead of its manifest
    #[arg(long)]
    config: bool,
    #[command(flatten)]
    server: ServerOptions,
}

/// Shows the cached content of a reference.
pub(super) fn run(arguments: Inspect) -> anyhow::Result<()> {
    let Inspect { reference, platform, index, oci, media_type, raw, config, server } = arguments;
    let ask = InspectQuery { reference, platform, index, oci, media_type, config };
    let Answer { value, report } =
        server.with(async |backend| backend.ask::<InspectReport>(Query::Inspect(ask)).await)?;
    if raw {
        return match &report.raw {
            Some(text) => print(text),
            None => Err(ExitAnswer::NotCached(report.says).into()),
        };
    }
    server.print(&value, || render(&report))?;
    if report.raw.is_none() { Err(ExitAnswer::NotCached(report.says).into()) } else { Ok(()) }
}

fn render(report: &InspectReport) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<11} {value}");
    };
    line("reference", &report.reference);
    if let Some(index) = &report.index {
        line("index", &index.to_string());
    }
    if let Some(platform) = &report.platform {
        line("platform", platform);
    }
    line("digest", &report.digest.to_string());
    line("media type", report.media_type.as_deref().unwrap_or("not stated"));
    if let Some(size) = report.size {
        line("size", &format!("{size} bytes"));
    }
    line("freshness", &fresh(report.freshness));
    line("cached", &report.says);
    for table in [platforms(report), blobs(report), referrers(report)].into_iter().flatten() {
        text.push('\n');
        text.push_str(&table.lines());
    }
    for wrong in report.blobs.iter().filter_map(ContentPart::wrong_size) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\nwrong size: {wrong}");
    }
    if let Some(document) = &report.document {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n{document:#}");
    }
    text
}

/// Returns the platforms of an index.
fn platforms(report: &InspectReport) -> Option<Table> {
    if report.platforms.is_empty() || report.index.is_some() || !report.blobs.is_empty() {
        return None;
    }
    let mut table = Table::new(&["PLATFORM", "DIGEST", "SIZE", "CACHED"]);
    for row in &report.platforms {
        let cached = match (row.complete, row.manifest) {
            (true, _) => good("complete"),
            (false, true) => bad("manifest only"),
            (false, false) => bad("no"),
        };
        let platform = row.platform.clone().unwrap_or_else(|| "-".to_owned());
        table.row(vec![platform, row.digest.to_string(), iec(row.size), cached]);
    }
    Some(table)
}

/// Returns the config and layers of a manifest.
fn blobs(report: &InspectReport) -> Option<Table> {
    let mut table = Table::new(&["BLOB", "SIZE", "CACHED", "MEDIA TYPE"]);
    for part in &report.blobs {
        table.row(vec![
            part.digest.to_string(),
            part.size.map_or_else(|| "-".to_owned(), iec),
            yes_or_no(part.cached),
            part.media_type.clone().unwrap_or_default(),
        ]);
    }
    (!report.blobs.is_empty()).then_some(table)
}

/// Returns the known referrers.
fn referrers(report: &InspectReport) -> Option<Table> {
    let mut table = Table::new(&["REFERRER", "SIZE", "CACHED", "ARTIFACT TYPE"]);
    for row in &report.referrers {
        table.row(vec![
            row.digest.clone(),
            row.size.map_or_else(|| "-".to_owned(), iec),
            yes_or_no(row.cached),
            row.artifact_type.clone().unwrap_or_default(),
        ]);
    }
    (!report.referrers.is_empty()).then_some(table)
}

fn yes_or_no(cached: bool) -> String {
    if cached { good("yes") } else { bad("no") }
}
