//! `larder check`.

use std::fmt::Write as _;

use clap::Args;

use super::backend::{Answer, Reach};
use super::exit::Verdict;
use super::platforms::Platforms;
use super::table::{bad, good, iec};
use crate::ops::check::{CheckQuery, CheckReport, CheckVerdict};
use crate::ops::query::Query;

/// What `larder check` is told.
#[derive(Args, Debug)]
pub(super) struct Check {
    /// What would be pulled
    #[arg(required = true, value_name = "REF")]
    references: Vec<String>,
    /// As if the upstream were gone; there is no other kind of check
    #[arg(long, required = true)]
    offline: bool,
    #[command(flatten)]
    platforms: Platforms,
    #[command(flatten)]
    reach: Reach,
}

/// Tells whether pulls would succeed.
pub(super) fn run(arguments: Check) -> anyhow::Result<()> {
    let Check { references, platforms, reach, .. } = arguments;
    let ask = CheckQuery { references, platforms: platforms.wanted() };
    let Answer { value, report } =
        reach.with(async |backend| backend.ask::<CheckReport>(Query::Check(ask)).await)?;
    reach.print(&value, || report.images.iter().map(told).collect())?;
    if report.pullable {
        return Ok(());
    }
    let lacking = report.images.iter().filter(|image| !image.pullable).count();
    let all = report.images.len();
    Err(Verdict::No(format!(
        "{lacking} of {all} pulls would fail without the upstream; `larder warm` fetches what is missing"
    ))
    .into())
}

fn told(image: &CheckVerdict) -> String {
    let CheckVerdict { reference, platforms, pullable, reason, missing, .. } = image;
    let of = if platforms.is_empty() { String::new() } else { format!(" ({})", platforms.join(", ")) };
    let mut text = format!("{} {reference}{of}\n", if *pullable { good("yes") } else { bad("no ") });
    // Writing to a String cannot fail.
    if let Some(reason) = reason {
        let _ = writeln!(text, "    {reason}");
    }
    for it in missing {
        let platform = it.platform.as_deref().map(|platform| format!("{platform} ")).unwrap_or_default();
        let size = it.part.size.map(|size| format!(" ({})", iec(size))).unwrap_or_default();
        let elsewhere = if it.part.foreign { ", which lies outside the registry" } else { "" };
        let _ = writeln!(text, "    missing: {platform}{} {}{size}{elsewhere}", it.kind, it.part.digest);
    }
    text
}
