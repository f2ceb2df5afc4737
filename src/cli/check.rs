//! `larder check`.

use std::fmt::Write as _;

use clap::Args;

use super::backend::{Answer, ServerOptions};
use super::exit::ExitAnswer;
use super::platforms::Platforms;
use super::table::{bad, good, iec, many};
use crate::ops::artifacts::SignatureStatus;
use crate::ops::check::{CheckReport, CheckVerdict};
use crate::ops::protocol::{CheckQuery, Query};

/// Arguments of `larder check`.
#[derive(Args, Debug)]
pub(super) struct Check {
    /// Image, such as `busybox`, `ghcr.io/org/app:1` or `app@sha256:…`
    #[arg(required = true, value_name = "REF")]
    references: Vec<String>,
    /// Check against the cache only; required, because there is no other kind of check
    #[arg(long, required = true)]
    offline: bool,
    #[command(flatten)]
    platforms: Platforms,
    #[command(flatten)]
    server: ServerOptions,
}

/// Checks that images can be pulled without the upstream.
pub(super) fn run(arguments: Check) -> anyhow::Result<()> {
    let Check { references, platforms, server, .. } = arguments;
    let ask = CheckQuery { references, platforms: platforms.wanted() };
    let Answer { value, report } =
        server.with(async |backend| backend.ask::<CheckReport>(Query::Check(ask)).await)?;
    server.print(&value, || report.images.iter().map(render).collect())?;
    if report.pullable {
        return Ok(());
    }
    let lacking = report.images.iter().filter(|image| !image.pullable).count();
    let all = report.images.len();
    Err(ExitAnswer::No(format!(
        "{lacking} of {all} pulls would fail without the upstream; `larder warm` fetches what is missing"
    ))
    .into())
}

fn render(image: &CheckVerdict) -> String {
    let CheckVerdict { reference, platforms, pullable, reason, missing, wrong_sizes, signatures, .. } = image;
    let of = if platforms.is_empty() { String::new() } else { format!(" ({})", platforms.join(", ")) };
    let mut text = format!("{} {reference}{of}\n", if *pullable { good("yes") } else { bad("no ") });
    // Writing to a String cannot fail.
    if let Some(reason) = reason {
        let _ = writeln!(text, "    {reason}");
    }
    for it in missing {
        let platform = it.platform.as_deref().map(|platform| format!("{platform} ")).unwrap_or_default();
        let size = it.part.size.map(|size| format!(" ({})", iec(size))).unwrap_or_default();
        let elsewhere = if it.part.foreign { ", stored outside the registry" } else { "" };
        let kind = if it.is_list() { "list of referrers of" } else { it.kind.as_str() };
        let _ = writeln!(text, "    missing: {platform}{kind} {}{size}{elsewhere}", it.part.digest);
    }
    for wrong in wrong_sizes {
        let _ = writeln!(text, "    wrong size: {wrong}");
    }
    if let Some(signatures) = signatures {
        let _ = writeln!(text, "    signatures: {}", signature_state(signatures));
    }
    text
}

/// Returns the state of the artifacts that refer to an image.
fn signature_state(signatures: &SignatureStatus) -> String {
    let artifacts = many(signatures.artifacts, "artifact");
    match (signatures.held, signatures.artifacts, signatures.missing.len() as u64) {
        (true, 0, _) => "the image has none".to_owned(),
        (true, ..) => format!("{artifacts} cached"),
        (false, _, 0) => format!("not all known ({artifacts} cached); ask with `larder warm --referrers`"),
        (false, _, missing) => {
            let missing = many(missing, "part");
            format!("{missing} of {artifacts} not cached; fetch with `larder warm --referrers`")
        }
    }
}
