//! Specification of jobs in the admin API.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::encoding::json;
use super::error::OpsError;
use super::jobs::Job;
use super::operations::Operations;
use super::progress::ProgressReporter;
use super::scrub::{self, Pace};
use super::{remove, warm};
use crate::clock::Timestamp;

/// Operation that runs as a job. In JSON an object with a `verb`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "verb", rename_all = "lowercase", deny_unknown_fields)]
#[schema(as = Task)]
pub enum JobSpec {
    /// Verify the digests of all cached content.
    Verify {
        /// Whether what is damaged is fetched again at once.
        #[serde(default)]
        repair: bool,
    },
    /// Remove leftovers of deleted content.
    Gc {},
    /// Fetch images before a client pulls them.
    Warm(warm::WarmSpec),
    /// Remove images from the cache.
    Rm {
        /// Which.
        references: Vec<String>,
    },
}

impl JobSpec {
    /// Returns the verb.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Verify { .. } => "verify",
            Self::Gc {} => "gc",
            Self::Warm(_) => "warm",
            Self::Rm { .. } => "rm",
        }
    }

    /// Returns true if only one such job may run at a time.
    fn is_alone(&self) -> bool {
        matches!(self, Self::Verify { .. } | Self::Gc {})
    }

    /// Starts the operation as a job.
    pub fn begin(self, operations: &Operations) -> Result<Job, OpsError> {
        let (kind, now) = ((self.verb(), self.is_alone()), operations.now());
        let context = operations.clone();
        let work = |reporter| async move { self.run(&context, &reporter).await };
        operations.jobs().begin(kind, now, work)
    }

    /// Runs the operation and returns its report.
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
                let mut report =
                    scrub::verify(cache, metrics, Timestamp::MAX, &mut Pace::new(0), step).await?;
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
