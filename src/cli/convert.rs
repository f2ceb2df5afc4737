//! `larder store convert`: moves the blobs of a store between sled and files.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::table::{iec, many};
use super::{environment, note, print};
use crate::config::schema::BlobStoreKind;
use crate::config::{self, Config, Flags};
use crate::ops::convert::{Convert, ConvertReport};

/// What can be done with a store that no larder has open.
#[derive(Debug, Subcommand)]
pub(super) enum Store {
    /// Move all blobs into files, or back into sled; can be interrupted and begun again at any time
    Convert(Arguments),
}

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Where the bytes of blobs are to be (store.blobs)
    #[arg(long, value_name = "KIND")]
    to: Kind,
    /// The configuration file; otherwise the variable `LARDER_CONFIG` names it, if set
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The folder that content is kept in (store.path)
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Sled,
    Files,
}

impl From<Kind> for BlobStoreKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Sled => Self::Sled,
            Kind::Files => Self::Files,
        }
    }
}

/// Moves the blobs, and says how far it is to whoever looks on.
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
    print(&told(&report, from, to, begin.elapsed().as_secs_f64()))?;
    remember(&config, to)
}

/// A bar on standard error; nothing is drawn where that is no terminal.
pub(super) fn bar(bytes: u64) -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template(
        "{bytes} of {total_bytes} {wide_bar} {binary_bytes_per_sec}, {eta} left",
    )?;
    Ok(ProgressBar::new(bytes).with_style(style))
}

fn told(report: &ConvertReport, from: Option<BlobStoreKind>, to: BlobStoreKind, seconds: f64) -> String {
    let Some(from) = from else { return format!("all blobs are in {} already\n", to.as_str()) };
    let ((blobs, bytes), found, dropped) = (report.moved, report.found, report.dropped.len());
    let (blobs, bytes) = (many(blobs, "blob"), iec(bytes));
    let (from, to) = (from.as_str(), to.as_str());
    let mut text = format!("moved {blobs} ({bytes}) from {from} to {to} in {seconds:.1} s");
    // Writing to a String cannot fail.
    if found > 0 {
        let _ = write!(text, "; {found} were there already");
    }
    if dropped > 0 {
        let _ = write!(text, "; {dropped} were damaged, and will be fetched again when they are asked for");
    }
    text.push('\n');
    text
}

/// Says so if the configuration still asks for the other place: larder would not start with it.
fn remember(config: &Config, to: BlobStoreKind) -> anyhow::Result<()> {
    if config.store.blobs == to {
        return Ok(());
    }
    note(&format!("from now on the configuration must say store.blobs = \"{}\"", to.as_str()))
}
