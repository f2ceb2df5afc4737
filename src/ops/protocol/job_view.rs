//! State of a job in the admin API, as a document and as an event.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::Failure;
use super::progress::Progress;
use crate::clock::Timestamp;

/// State of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = JobState)]
pub enum JobState {
    /// The job is running.
    Running,
    /// The job has finished and has a report.
    Done,
    /// The job has failed and has an error.
    Failed,
    /// The job was cancelled.
    Cancelled,
}

/// Snapshot of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Job)]
pub struct JobView {
    /// Number of the job.
    pub id: u64,
    /// Verb of the job.
    pub verb: String,
    /// State of the job.
    pub state: JobState,
    /// Start time.
    pub started_at: Timestamp,
    /// Progress of the job.
    pub progress: Progress,
    /// Report of the finished job.
    #[schema(required = true)]
    pub report: Option<Value>,
    /// Error of the failed job.
    pub error: Option<Failure>,
}
