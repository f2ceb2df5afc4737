//! `larder export`.

use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use clap::Args;
use indicatif::ProgressBar;
use reqwest::{Method, Response};
use serde_json::Value;

use super::backend::{Backend, ServerOptions};
use super::output::{note, print};
use super::progress;
use super::table::{content, fair};
use crate::layout::{self, ChannelReader};
use crate::ops::export::{self, Export as Outgoing, ExportReport};
use crate::ops::protocol::{ExportRequest, REPORT_HEADER};

/// Arguments of `larder export`.
#[derive(Args, Debug)]
pub(super) struct Export {
    /// Image: `busybox`, `ghcr.io/org/app:1` or `app@sha256:…`
    reference: String,
    /// Target: a folder, new or with a layout to add to; a file whose name ends in `.tar`; or `-` for standard output
    #[arg(value_name = "DIR|FILE.tar")]
    target: PathBuf,
    /// Platform to export from an index; default: all; may be repeated
    #[arg(long, value_name = "PLATFORM")]
    platform: Vec<String>,
    /// Name in the layout, if it differs, such as `registry.example.com/app:1`
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Use cached content only: fetch nothing, and exit 4 if content is missing
    #[arg(long)]
    offline: bool,
    /// Export the artifacts that refer to the image too: signatures (also those that cosign stores as tags), SBOMs
    #[arg(long)]
    referrers: bool,
    #[command(flatten)]
    server: ServerOptions,
}

/// Writes an image as an OCI layout.
pub(super) fn run(arguments: Export) -> anyhow::Result<()> {
    let Export { reference, target, platform, name, offline, referrers, server } = arguments;
    let target = Target::of(&target)?;
    let ask = ExportRequest { reference, platforms: platform, name, offline, referrers };
    let (value, report) = server.with(async |backend| {
        // Dropping the unfinished work removes its temporary files.
        tokio::select! {
            done = fetch(backend, ask, &target) => done,
            _ = tokio::signal::ctrl_c() => bail!("interrupted; no partial output is left"),
        }
    })?;
    let text = if server.json { serde_json::to_string_pretty(&value)? } else { render(&report, &target) };
    // Standard output carries the archive.
    if matches!(target, Target::Stdout) { note(&text) } else { print(&(text + "\n")) }
}

async fn fetch(
    backend: &Backend,
    ask: ExportRequest,
    target: &Target,
) -> anyhow::Result<(Value, ExportReport)> {
    let IncomingArchive { value, report, length, mut source } = begin(backend, ask).await?;
    let (sender, pipe) = ChannelReader::new();
    let writing = tokio::task::spawn_blocking({
        let target = target.clone();
        move || target.write(pipe, length)
    });
    let bar = ProgressBar::new(length).with_style(progress::bytes()).with_prefix(report.reference.clone());
    let mut received = 0;
    let came = loop {
        match source.next().await {
            Ok(Some(bytes)) => {
                received += bytes.len() as u64;
                bar.inc(bytes.len() as u64);
                // The write error is reported below.
                if sender.send(Ok(bytes)).await.is_err() {
                    break Ok(());
                }
            }
            Ok(None) if received < length => {
                break Err(anyhow::anyhow!("the export was interrupted; the server's log has the reason"));
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    if came.is_err() {
        let _ = sender.send(Err(io::Error::other("the export was interrupted"))).await;
    }
    drop(sender);
    let written = writing.await.context("the writing task failed")?;
    bar.finish_and_clear();
    came.and(written)?;
    Ok((value, report))
}

/// Archive that is being received.
struct IncomingArchive {
    value: Value,
    report: ExportReport,
    length: u64,
    source: Source,
}

enum Source {
    Local(Outgoing),
    Running(Response),
}

async fn begin(backend: &Backend, ask: ExportRequest) -> anyhow::Result<IncomingArchive> {
    match backend {
        Backend::Local(offline) => {
            let begun = export::export(offline.operations(), ask).await.map_err(|error| error.failure())?;
            let (value, report, length) =
                (serde_json::to_value(&begun.report)?, begun.report.clone(), begun.length);
            Ok(IncomingArchive { value, report, length, source: Source::Local(begun) })
        }
        Backend::Running(remote) => {
            let answer = remote.send(remote.request(Method::GET, &ask.target())?).await?;
            let other = "the answer of the running server cannot be read: it has another version";
            let report = answer.headers().get(REPORT_HEADER).context(other)?;
            let value: Value = serde_json::from_slice(report.as_bytes()).context(other)?;
            let report = serde_json::from_value(value.clone()).context(other)?;
            let length = answer.content_length().context(other)?;
            Ok(IncomingArchive { value, report, length, source: Source::Running(answer) })
        }
    }
}

impl Source {
    async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        match self {
            Self::Local(export) => Ok(export.chunks.recv().await.transpose()?),
            Self::Running(answer) => answer.chunk().await.map_err(|_| {
                anyhow::anyhow!("the export was interrupted before its end; the server's log has the reason")
            }),
        }
    }
}

/// Target of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Stdout,
    File(PathBuf),
    Folder(PathBuf),
}

impl Target {
    fn of(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            ensure!(
                !io::stdout().is_terminal(),
                "standard output is a terminal; send the archive to a file or a program"
            );
            return Ok(Self::Stdout);
        }
        let name = path.to_string_lossy().to_ascii_lowercase();
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        if [".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2"].iter().any(|end| name.ends_with(end)) {
            bail!(
                "larder does not compress archives, because layers are already compressed; write to FILE.tar, or pipe `-` through a program"
            );
        }
        let is_tar = path.extension().is_some_and(|it| it.eq_ignore_ascii_case("tar"));
        Ok(if is_tar { Self::File(path.to_owned()) } else { Self::Folder(path.to_owned()) })
    }

    /// Writes the archive. An incomplete archive leaves no file.
    fn write(&self, mut pipe: ChannelReader, length: u64) -> anyhow::Result<()> {
        match self {
            Self::Folder(path) => Ok(layout::extract(path, pipe)?),
            Self::Stdout => {
                let mut out = io::stdout().lock();
                let written = io::copy(&mut pipe, &mut out).and_then(|_| out.flush());
                written.context("standard output cannot be written")
            }
            Self::File(path) => {
                let wrong = || format!("{} cannot be written", path.display());
                let parent =
                    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let mut builder = tempfile::Builder::new();
                // The file is meant to be shared, so it gets the usual mode instead of a temporary file's.
                builder.prefix(".larder-export-").permissions(Permissions::from_mode(0o666));
                let mut file = builder.tempfile_in(parent).with_context(wrong)?;
                let written = io::copy(&mut pipe, &mut file).with_context(wrong)?;
                ensure!(written == length, "the export was interrupted");
                file.as_file().sync_all().with_context(wrong)?;
                file.persist(path).with_context(wrong)?;
                Ok(())
            }
        }
    }
}

fn render(report: &ExportReport, target: &Target) -> String {
    let of = if report.platforms.is_empty() {
        String::new()
    } else {
        format!(" ({})", report.platforms.join(", "))
    };
    let place = match target {
        Target::Stdout => "standard output".to_owned(),
        Target::File(path) | Target::Folder(path) => path.display().to_string(),
    };
    let name = match &report.name {
        Some(name) if *name != report.reference => format!(" as {name}"),
        _ => String::new(),
    };
    let ExportReport { reference, manifests, blobs, bytes, fetched, .. } = report;
    let content = content(*manifests, *blobs, *bytes);
    let mut text = format!("exported {reference}{of}{name} to {place}: {content}, {fetched} of them fetched");
    if !report.complete {
        text.push_str("\n    the index names more platforms than the archive has: tools that copy all platforms (`skopeo copy --all`) will fail");
    }
    if let Some(stale) = &report.stale {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n    {}: {stale}", fair("the tag could not be revalidated"));
    }
    for wrong in &report.wrong_sizes {
        let _ = write!(text, "\n    {}: {wrong}", fair("wrong size"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_is_chosen_by_name() {
        let of = |text: &str| Target::of(Path::new(text));
        assert_eq!(of("a.tar").expect("a file"), Target::File("a.tar".into()));
        assert_eq!(of("dir/A.TAR").expect("a file"), Target::File("dir/A.TAR".into()));
        assert_eq!(of("new-folder").expect("a folder"), Target::Folder("new-folder".into()));
        assert_eq!(of("/tmp").expect("a folder"), Target::Folder("/tmp".into()));
        for other in ["a.tar.gz", "a.tgz", "a.tar.zst"] {
            assert!(of(other).is_err(), "{other}");
        }
    }

    #[test]
    fn file_is_written_completely_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = Target::File(folder.path().join("a.tar"));
        let write = |length| {
            let (sender, pipe) = ChannelReader::new();
            sender.blocking_send(Ok(Bytes::from_static(b"abc"))).expect("sent");
            drop(sender);
            target.write(pipe, length)
        };
        write(4).expect_err("refused");
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
        write(3).expect("written");
        assert_eq!(std::fs::read(folder.path().join("a.tar")).expect("a file"), b"abc");
    }
}
