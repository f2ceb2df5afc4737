//! Long operations as jobs, which can be started, watched, cancelled and listed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::error::{Failure, OpsError};
use super::progress::{Progress, ProgressReporter};
use crate::clock::Timestamp;

/// Most jobs that run at once.
const RUNNING_MAX: usize = 16;
/// Finished jobs that are kept in the list.
const ENDED_MAX: usize = 64;

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

/// Outcome of a job.
#[derive(Clone, Debug)]
enum JobEnd {
    Running,
    Cancelled,
    Ended(Result<Value, Failure>),
}

/// Job that can be watched and cancelled.
#[derive(Clone, Debug)]
pub struct Job {
    id: u64,
    verb: &'static str,
    started_at: Timestamp,
    progress: watch::Receiver<Progress>,
    ending: watch::Receiver<JobEnd>,
    cancel: watch::Sender<JobEnd>,
    work: AbortHandle,
}

impl Job {
    /// Returns a snapshot.
    pub fn view(&self) -> JobView {
        let (state, report, error) = match &*self.ending.borrow() {
            JobEnd::Running => (JobState::Running, None, None),
            JobEnd::Cancelled => (JobState::Cancelled, None, None),
            JobEnd::Ended(Ok(report)) => (JobState::Done, Some(report.clone()), None),
            JobEnd::Ended(Err(error)) => (JobState::Failed, None, Some(error.clone())),
        };
        let progress = self.progress.borrow().clone();
        JobView {
            id: self.id,
            verb: self.verb.to_owned(),
            state,
            started_at: self.started_at,
            progress,
            report,
            error,
        }
    }

    /// Waits for progress or the end of the job. Returns true if the job has ended.
    pub async fn changed(&mut self) -> bool {
        if self.has_ended() {
            return true;
        }
        tokio::select! {
            further = self.progress.changed() => {
                // The work was dropped, so the end follows.
                if further.is_err() {
                    let _ = self.ending.changed().await;
                }
            }
            _ = self.ending.changed() => {}
        }
        self.has_ended()
    }

    fn has_ended(&self) -> bool {
        !matches!(&*self.ending.borrow(), JobEnd::Running)
    }

    /// Cancels the job. Its results stay, and a fill that it started continues.
    pub fn cancel(&self) {
        end(&self.cancel, JobEnd::Cancelled);
        self.work.abort();
    }
}

/// Sets the outcome of a job that is running.
fn end(job: &watch::Sender<JobEnd>, how: JobEnd) {
    job.send_if_modified(|ending| {
        let running = matches!(ending, JobEnd::Running);
        if running {
            *ending = how;
        }
        running
    });
}

/// List of jobs. Clones share the list.
#[derive(Clone, Debug, Default)]
pub struct Jobs(Arc<Mutex<(u64, BTreeMap<u64, Job>)>>);

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Job>)> {
        // Nothing under this lock can panic halfway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts `work` as a job, with the time `now`. A job that is alone runs once at a time.
    pub(super) fn begin<F>(
        &self,
        (verb, is_alone): (&'static str, bool),
        now: Timestamp,
        work: impl FnOnce(ProgressReporter) -> F,
    ) -> Result<Job, OpsError>
    where
        F: Future<Output = Result<Value, OpsError>> + Send + 'static,
    {
        let mut all = self.lock();
        let running: Vec<&Job> = all.1.values().filter(|job| !job.has_ended()).collect();
        if running.len() >= RUNNING_MAX {
            return Err(OpsError::Busy(format!("{RUNNING_MAX} jobs are under way; wait for one to end")));
        }
        if let Some(same) = running.iter().find(|job| is_alone && job.verb == verb) {
            return Err(OpsError::Busy(format!("job {} does the same already", same.id)));
        }
        let ended: Vec<u64> = all.1.values().filter(|job| job.has_ended()).map(|job| job.id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(ENDED_MAX)) {
            all.1.remove(id);
        }
        all.0 += 1;
        let (id, started_at) = (all.0, now);
        let (reporter, progress) = ProgressReporter::new();
        let (cancel, ending) = watch::channel(JobEnd::Running);
        let (work, outcome) = (work(reporter), cancel.clone());
        let work = tokio::spawn(async move {
            let result = work.await;
            if let Err(error) = &result {
                tracing::warn!(job = id, verb, %error, "a job failed");
            }
            end(&outcome, JobEnd::Ended(result.map_err(|error| error.failure())));
        });
        let (handle, outcome) = (work.abort_handle(), cancel.clone());
        tokio::spawn(async move {
            // Only a panic ends the work without an outcome.
            if work.await.is_err() {
                let message = "the job was lost; the log tells more".to_owned();
                end(&outcome, JobEnd::Ended(Err(Failure { code: "lost".to_owned(), message })));
            }
        });
        let job = Job { id, verb, started_at, progress, ending, cancel, work: handle };
        all.1.insert(id, job.clone());
        Ok(job)
    }

    /// Returns the job with a number.
    pub fn get(&self, id: u64) -> Option<Job> {
        self.lock().1.get(&id).cloned()
    }

    /// Returns snapshots of all jobs, newest last.
    pub fn list(&self) -> Vec<JobView> {
        self.lock().1.values().map(Job::view).collect()
    }

    /// Cancels all running jobs.
    pub fn stop(&self) {
        self.lock().1.values().for_each(Job::cancel);
    }
}
