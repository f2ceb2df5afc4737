//! `larder warm`.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::backend::{Answer, ServerOptions};
use super::exit::ExitAnswer;
use super::platforms::Platforms;
use super::table::{bad, fair, good, iec, many};
use crate::ops::protocol::{JobSpec, WarmSpec};
use crate::ops::warm::{WarmReport, WarmedImage};

/// Arguments of `larder warm`.
#[derive(Args, Debug)]
pub(super) struct Warm {
    /// Image: `busybox`, `ghcr.io/org/app:1` or `app@sha256:…`; with tag and digest, the digest is fetched
    #[arg(value_name = "REF", required_unless_present = "file")]
    references: Vec<String>,
    /// File with one image per line (`-` is standard input); `#` begins a comment
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Fetch the artifacts that refer to the images too: signatures, SBOMs
    #[arg(long)]
    referrers: bool,
    #[command(flatten)]
    platforms: Platforms,
    #[command(flatten)]
    server: ServerOptions,
}

/// Fetches images.
pub(super) fn run(arguments: Warm) -> anyhow::Result<()> {
    let Warm { mut references, file, referrers, platforms, server } = arguments;
    if let Some(file) = file {
        references.extend(listed(&read(&file)?));
    }
    let task = JobSpec::Warm(WarmSpec { references, platforms: platforms.wanted(), referrers });
    let Answer { value, report } = server.with(async |backend| backend.run::<WarmReport>(task).await)?;
    server.print(&value, || report.images.iter().map(render).collect())?;
    if report.complete {
        return Ok(());
    }
    let failed = report.images.iter().filter(|row| row.error.is_some()).count();
    Err(ExitAnswer::No(format!("{failed} of {} images could not be fetched completely", report.images.len()))
        .into())
}

fn read(file: &Path) -> anyhow::Result<String> {
    let wrong = || format!("the list {} cannot be read", file.display());
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).with_context(wrong)?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(wrong)
}

fn listed(text: &str) -> impl Iterator<Item = String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(str::to_owned)
}

fn render(row: &WarmedImage) -> String {
    let of =
        if row.platforms.is_empty() { String::new() } else { format!(" ({})", row.platforms.join(", ")) };
    let mut text = match &row.error {
        Some(error) => format!("{} {}{of}: {error}\n", bad("failed"), row.reference),
        None => format!(
            "{} {}{of}: {} ({}), {} of them fetched\n",
            good("cached"),
            row.reference,
            many(row.blobs, "blob"),
            iec(row.bytes),
            row.fetched
        ),
    };
    if let Some(artifacts) = row.artifacts {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "    {} refer to it", many(artifacts, "artifact"));
    }
    if let Some(moved) = &row.moved {
        let note = fair("the tag names another image");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "    {note}: {moved}; the digest of the reference was used");
    }
    if let Some(stale) = &row.stale {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "    {}: {stale}", fair("the tag could not be revalidated"));
    }
    for wrong in &row.wrong_sizes {
        let _ = writeln!(text, "    {}: {wrong}", fair("wrong size"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_skips_comments_and_empty_lines() {
        let text = "# all of it\nbusybox\n\n  ghcr.io/a/b:1  # why\r\n";
        assert_eq!(listed(text).collect::<Vec<_>>(), ["busybox", "ghcr.io/a/b:1"]);
    }
}
