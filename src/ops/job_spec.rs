//! The long work that an operator may ask for.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::progress::ProgressReporter;
use super::query::json;
use super::scrub::{self, Pace};
use super::{Operations, OpsError, remove, warm};

/// Something that takes its time or changes what is held; in JSON an object with a `verb`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "verb", rename_all = "lowercase", deny_unknown_fields)]
#[schema(as = Task)]
pub enum JobSpec {
    /// Hold everything against its digest.
    Verify {
        /// Whether what is damaged is fetched again at once.
        #[serde(default)]
        repair: bool,
    },
    /// Remove what is left of content that has gone.
    Gc {},
    /// Fetch images before anybody asks for them.
    Warm(warm::WarmSpec),
    /// Take images out of the cache.
    Rm {
        /// Which.
        references: Vec<String>,
    },
}

impl JobSpec {
    /// Its word.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Verify { .. } => "verify",
            Self::Gc {} => "gc",
            Self::Warm(_) => "warm",
            Self::Rm { .. } => "rm",
        }
    }

    /// Whether a second one at the same time would do the same again.
    pub(super) fn is_alone(&self) -> bool {
        matches!(self, Self::Verify { .. } | Self::Gc {})
    }

    /// Does it, and tells what came of it.
    pub async fn run(self, operations: &Operations, reporter: &ProgressReporter) -> Result<Value, OpsError> {
        let Operations { cache, metrics, .. } = operations;
        match self {
            Self::Verify { repair } => {
                reporter.expect(1);
                let piece = reporter.begin("all that is held");
                let step = |step| match step {
                    scrub::ScrubProgress::Due(bytes) => piece.expect(bytes),
                    scrub::ScrubProgress::Read(bytes) => piece.done(bytes),
                };
                let mut report = scrub::verify(cache, metrics, u64::MAX, &mut Pace::new(0), step).await?;
                if repair && !report.damaged.is_empty() {
                    report.repaired = cache.repair(&report.damaged).await?;
                }
                json(&report)
            }
            Self::Gc {} => {
                let mut report = scrub::ScrubReport::default();
                scrub::collect(cache, metrics, &mut report).await?;
                json(&report)
            }
            Self::Warm(ask) => json(&warm::warm(cache, ask, reporter).await?),
            Self::Rm { references } => json(&remove::remove(cache, &references).await?),
        }
    }
}
