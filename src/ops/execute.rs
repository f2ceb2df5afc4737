//! Execution of the queries and jobs of the protocol by the operations.

use serde_json::Value;

use crate::clock::Timestamp;

use super::jobs::Job;
use super::operations::Operations;
use super::protocol::{JobSpec, OpsError, ProgressReporter, Query, json};
use super::scrub::{self, Pace};
use super::{check, inspect, list, remove, status, warm};

impl Query {
    /// Runs the query and returns its report as JSON.
    pub async fn answer(self, operations: &Operations) -> Result<Value, OpsError> {
        let cache = operations.cache();
        match self {
            Self::List { repository } => json(&list::list(cache, repository.as_deref(), true).await?),
            Self::Tags { repository } => json(&list::list(cache, Some(&repository), false).await?),
            Self::Inspect(query) => json(&inspect::inspect(cache, query).await?),
            Self::Check(query) => json(&check::check(cache, query).await?),
            Self::Status => json(&status::status(operations).await?),
        }
    }
}

impl JobSpec {
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
                let item = reporter.begin("all cached content");
                let step = |step| match step {
                    scrub::ScrubProgress::Due(bytes) => item.expect(bytes),
                    scrub::ScrubProgress::Read(bytes) => item.done(bytes),
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
            Self::Warm(spec) => json(&warm::warm(cache, spec, reporter).await?),
            Self::Rm { references } => json(&remove::remove(cache, &references).await?),
        }
    }
}
