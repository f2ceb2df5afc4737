//! Protocol of the admin API, shared by the server and the command line: queries, jobs, transfers, progress and errors.
//!
//! Each request is written and parsed in one file, so that both sides agree. The reports are in the files of the
//! operations.

mod encoding;
mod error;
mod job_spec;
mod job_view;
mod progress;
mod query;
mod transfer;

pub(super) use encoding::json;
pub use encoding::{PROBE_HEADER, ROOT};
pub use error::{Failure, OpsError};
pub use job_spec::{JobSpec, WarmSpec};
pub use job_view::{JobState, JobView};
pub use progress::{Progress, ProgressItem, ProgressReporter, RunningItem};
pub use query::{CheckQuery, InspectQuery, Query};
pub use transfer::{ExportRequest, ImportRequest, REPORT_HEADER};
