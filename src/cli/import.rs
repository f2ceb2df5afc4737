//! `larder import`.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use http_body::{Frame, SizeHint};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::Value;
use tokio::sync::mpsc;

use super::backend::{Answer, Backend, ServerOptions};
use super::progress;
use super::table::{bad, content, good, iec, many};
use crate::layout::{self, ChannelReader, LayoutTar};
use crate::ops::import::{self, ImportReport, ImportedImage};
use crate::ops::protocol::ImportRequest;

/// Bytes that are read from a file at a time.
const STEP: usize = 256 << 10;
/// Time in which the reading task notices that the receiver was dropped.
const READER_ENDS_WITHIN: Duration = Duration::from_secs(1);

/// Arguments of `larder import`.
#[derive(Args, Debug)]
pub(super) struct Import {
    /// OCI layout: a folder, a tar, a tar compressed with gzip, or `-` for a tar on standard input
    #[arg(value_name = "DIR|FILE.tar")]
    source: PathBuf,
    /// Repository for the images; default: the repository that the archive names
    #[arg(long = "as", value_name = "REPOSITORY")]
    repository: Option<String>,
    #[command(flatten)]
    server: ServerOptions,
}

/// Imports images.
pub(super) fn run(Import { source, repository, server }: Import) -> anyhow::Result<()> {
    let source = ArchiveSource::open(&source)?;
    let ask = ImportRequest { repository };
    let Answer { value, report } = server.with(async |backend| send(backend, ask, source).await)?;
    server.print(&value, || render(&report))
}

async fn send(
    backend: &Backend,
    ask: ImportRequest,
    source: ArchiveSource,
) -> anyhow::Result<Answer<ImportReport>> {
    let length = source.length();
    let bar = match length {
        Some(length) => ProgressBar::new(length).with_style(progress::bytes()),
        None => ProgressBar::no_length()
            .with_style(ProgressStyle::with_template("{prefix} {bytes} {binary_bytes_per_sec} {elapsed}")?),
    }
    .with_prefix("importing");
    let (sender, pieces) = mpsc::channel(layout::QUEUE);
    let mut sending = tokio::task::spawn_blocking({
        let bar = bar.clone();
        move || source.send(&sender, |bytes| bar.inc(bytes))
    });
    let taken = take(backend, ask, pieces, length).await;
    // A read error explains every later error, so report it first. A task that still waits for standard input has none.
    if let Ok(sent) = tokio::time::timeout(READER_ENDS_WITHIN, &mut sending).await {
        sent.context("the reading task failed")??;
    }
    bar.finish_and_clear();
    let value = taken?;
    let report = serde_json::from_value(value.clone())
        .context("the report of the running server cannot be read: it has another version")?;
    Ok(Answer { value, report })
}

async fn take(
    backend: &Backend,
    ask: ImportRequest,
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    length: Option<u64>,
) -> anyhow::Result<Value> {
    match backend {
        Backend::Local(offline) => {
            let taken = import::import(offline.operations(), ask, ChannelReader::over(pieces)).await;
            Ok(serde_json::to_value(taken.map_err(|error| error.failure())?)?)
        }
        Backend::Running(remote) => {
            let request = remote.request(Method::POST, &ask.target())?;
            let request = request.header("content-type", "application/x-tar");
            let request = request.body(reqwest::Body::wrap(Upload { pieces, left: length }));
            remote.document(remote.send(request).await?).await
        }
    }
}

/// Archive as the body of a request.
struct Upload {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    left: Option<u64>,
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.pieces.poll_recv(cx).map(|piece| {
            piece.map(|piece| {
                piece.map(|bytes| {
                    self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
                    Frame::data(bytes)
                })
            })
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

/// Source of an import.
enum ArchiveSource {
    Folder(LayoutTar),
    File(File, PathBuf, u64),
    Stdin,
}

impl ArchiveSource {
    fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdin);
        }
        if path.is_dir() {
            return Ok(Self::Folder(LayoutTar::of(path)?));
        }
        let wrong = || format!("{} cannot be read", path.display());
        let file = File::open(path).with_context(wrong)?;
        let length = file.metadata().with_context(wrong)?;
        // A pipe has no length.
        let length = if length.is_file() { length.len() } else { u64::MAX };
        Ok(Self::File(file, path.to_owned(), length))
    }

    fn length(&self) -> Option<u64> {
        match self {
            Self::Folder(packing) => Some(packing.length()),
            Self::File(_, _, length) => Some(*length).filter(|length| *length < u64::MAX),
            Self::Stdin => None,
        }
    }

    /// Sends the archive, until the end or until the receiver is dropped.
    fn send(
        self,
        sender: &mpsc::Sender<io::Result<Bytes>>,
        mut on_progress: impl FnMut(u64),
    ) -> anyhow::Result<()> {
        let sent = match self {
            Self::Folder(packing) => packing.send(sender, on_progress).map_err(Into::into),
            Self::File(file, path, length) => copy(file.take(length), sender, &mut on_progress)
                .with_context(|| format!("{} cannot be read", path.display())),
            Self::Stdin => {
                copy(io::stdin().lock(), sender, &mut on_progress).context("standard input cannot be read")
            }
        };
        if sent.is_err() {
            // Tell the receiver that the archive is incomplete.
            let _ = sender.blocking_send(Err(io::Error::other("the archive cannot be read to its end")));
        }
        sent
    }
}

fn copy(
    mut source: impl Read,
    sender: &mpsc::Sender<io::Result<Bytes>>,
    on_progress: &mut impl FnMut(u64),
) -> io::Result<()> {
    loop {
        let mut step = vec![0; STEP];
        let read = match source.read(&mut step) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        step.truncate(read);
        on_progress(read as u64);
        if sender.blocking_send(Ok(step.into())).is_err() {
            return Ok(());
        }
    }
}

fn render(report: &ImportReport) -> String {
    let mut text: String = report.images.iter().map(image).collect();
    // Writing to a String cannot fail.
    let were = if report.new_blobs == 1 { "was" } else { "were" };
    let _ = writeln!(text, "{} ({}) {were} new", many(report.new_blobs, "blob"), iec(report.new_bytes));
    text
}

fn image(row: &ImportedImage) -> String {
    let ImportedImage { reference, platforms, complete, manifests, blobs, bytes, missing, .. } = row;
    let of = if platforms.is_empty() { String::new() } else { format!(" ({})", platforms.join(", ")) };
    let state = if *complete { good("imported") } else { bad("incomplete") };
    let content = content(*manifests, *blobs, *bytes);
    let mut text = format!("{state} {reference}{of}: {content}\n");
    for it in missing {
        let platform = it.platform.as_deref().map(|platform| format!("{platform} ")).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "    missing: {platform}{} {}", it.kind, it.part.digest);
    }
    text
}
