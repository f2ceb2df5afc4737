//! `larder store convert`: moves the blobs of a store between sled and files.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::output::{note, print};
use super::settings::environment;
use super::table::{iec, many};
use crate::config::schema::BlobStoreKind;
use crate::config::{self, Config, Flags};
use crate::ops::convert::{Convert, ConvertReport};

/// Verbs for a store that no server has open.
#[derive(Debug, Subcommand)]
pub(super) enum Store {
    /// Move all blobs into files, or back into sled; can be interrupted and repeated at any time
    Convert(Arguments),
}

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Kind of blob store to convert to (store.blobs)
    #[arg(long, value_name = "KIND")]
    to: BlobStoreName,
    /// Configuration file; default: the value of `LARDER_CONFIG`, else none
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the store (store.path)
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BlobStoreName {
    Sled,
    Files,
}

impl From<BlobStoreName> for BlobStoreKind {
    fn from(kind: BlobStoreName) -> Self {
        match kind {
            BlobStoreName::Sled => Self::Sled,
            BlobStoreName::Files => Self::Files,
        }
    }
}

/// Moves the blobs and shows the progress.
pub(super) fn run(store: Store) -> anyhow::Result<()> {
    let Store::Convert(arguments) = store;
    let to = arguments.to.into();
    let flags = Flags { data: arguments.data, ..Flags::default() };
    let config = config::load(arguments.config.as_deref(), environment()?.into_iter(), flags)?;
    let begin = Instant::now();
    let mut work = Convert::begin(&config.store, to)?;
    let from = work.from();
    let bar = bar(work.bytes())?;
    for moved in &mut work {
        bar.inc(moved?);
    }
    bar.finish_and_clear();
    let report = work.finish()?;
    print(&render(&report, from, to, begin.elapsed().as_secs_f64()))?;
    remember(&config, to)
}

/// Returns a progress bar on standard error. Nothing is drawn if standard error is not a terminal.
pub(super) fn bar(bytes: u64) -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template(
        "{bytes} of {total_bytes} {wide_bar} {binary_bytes_per_sec}, {eta} left",
    )?;
    Ok(ProgressBar::new(bytes).with_style(style))
}

fn render(report: &ConvertReport, from: Option<BlobStoreKind>, to: BlobStoreKind, seconds: f64) -> String {
    let Some(from) = from else { return format!("all blobs are already in {}\n", to.as_str()) };
    let ((blobs, bytes), found, dropped) = (report.moved, report.found, report.dropped.len());
    let (blobs, bytes) = (many(blobs, "blob"), iec(bytes));
    let (from, to) = (from.as_str(), to.as_str());
    let mut text = format!("moved {blobs} ({bytes}) from {from} to {to} in {seconds:.1} s");
    // Writing to a String cannot fail.
    if found > 0 {
        let _ = write!(text, "; {found} were already there");
    }
    if dropped > 0 {
        let _ = write!(text, "; {dropped} were damaged and removed: the next request fetches them again");
    }
    text.push('\n');
    text
}

/// Prints a note if the configuration names the other kind: the server would not start with it.
fn remember(config: &Config, to: BlobStoreKind) -> anyhow::Result<()> {
    if config.store.blobs == to {
        return Ok(());
    }
    note(&format!("set store.blobs = \"{}\" in the configuration before the next start", to.as_str()))
}
