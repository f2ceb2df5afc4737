//! Long work as jobs: begun, watched, ended early, and remembered for a while.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::job_spec::JobSpec;
use super::progress::{Progress, ProgressReporter};
use super::{Failure, Operations, OpsError};

/// Jobs under way at once.
const RUNNING_MAX: usize = 16;
/// Jobs that have ended and are remembered.
const ENDED_MAX: usize = 64;

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = JobState)]
pub enum JobState {
    /// It is under way.
    Running,
    /// It has a report.
    Done,
    /// It has an error.
    Failed,
    /// Somebody ended it.
    Cancelled,
}

/// A job as it is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Job)]
pub struct JobView {
    /// Its number.
    pub id: u64,
    /// What it does.
    pub verb: String,
    /// How it stands.
    pub state: JobState,
    /// When it began, in milliseconds since 1970.
    pub started_at: u64,
    /// How far it has come.
    pub progress: Progress,
    /// What came of it.
    #[schema(required = true)]
    pub report: Option<Value>,
    /// Why nothing came of it.
    pub error: Option<Failure>,
}

/// How a job ended.
#[derive(Clone, Debug)]
enum JobEnd {
    Running,
    Cancelled,
    Ended(Result<Value, Failure>),
}

/// A job to be watched.
#[derive(Clone, Debug)]
pub struct Job {
    id: u64,
    verb: &'static str,
    started_at: u64,
    progress: watch::Receiver<Progress>,
    ending: watch::Receiver<JobEnd>,
    cancel: watch::Sender<JobEnd>,
    work: AbortHandle,
}

impl Job {
    /// As it is now.
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

    /// Waits until it has come further, or has ended. Returns whether it has ended.
    pub async fn changed(&mut self) -> bool {
        if self.has_ended() {
            return true;
        }
        tokio::select! {
            further = self.progress.changed() => {
                // Nobody reports any more: the ending is near.
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

    /// Ends it. What it has done stays; a fill that it began goes on.
    pub fn cancel(&self) {
        end(&self.cancel, JobEnd::Cancelled);
        self.work.abort();
    }
}

/// Ends a job, unless it has ended.
fn end(job: &watch::Sender<JobEnd>, how: JobEnd) {
    job.send_if_modified(|ending| {
        let running = matches!(ending, JobEnd::Running);
        if running {
            *ending = how;
        }
        running
    });
}

/// All jobs; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Jobs(Arc<Mutex<(u64, BTreeMap<u64, Job>)>>);

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Job>)> {
        // Nothing under this lock can panic halfway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a job. What walks over the whole store is done by one at a time.
    pub fn begin(&self, operations: &Operations, task: JobSpec) -> Result<Job, OpsError> {
        let mut all = self.lock();
        let running: Vec<&Job> = all.1.values().filter(|job| !job.has_ended()).collect();
        if running.len() >= RUNNING_MAX {
            return Err(OpsError::Busy(format!("{RUNNING_MAX} jobs are under way; wait for one to end")));
        }
        if let Some(same) = running.iter().find(|job| task.is_alone() && job.verb == task.verb()) {
            return Err(OpsError::Busy(format!("job {} does the same already", same.id)));
        }
        let ended: Vec<u64> = all.1.values().filter(|job| job.has_ended()).map(|job| job.id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(ENDED_MAX)) {
            all.1.remove(id);
        }
        all.0 += 1;
        let (id, verb, started_at) = (all.0, task.verb(), operations.clock.now_millis());
        let (reporter, progress) = ProgressReporter::new();
        let (cancel, ending) = watch::channel(JobEnd::Running);
        let (operations, told) = (operations.clone(), cancel.clone());
        let work = tokio::spawn(async move {
            let result = task.run(&operations, &reporter).await;
            if let Err(error) = &result {
                tracing::warn!(job = id, verb, %error, "a job failed");
            }
            end(&told, JobEnd::Ended(result.map_err(|error| error.failure())));
        });
        let (handle, told) = (work.abort_handle(), cancel.clone());
        tokio::spawn(async move {
            // Only a panic leaves work without an ending.
            if work.await.is_err() {
                let message = "the job was lost; the log tells more".to_owned();
                end(&told, JobEnd::Ended(Err(Failure { code: "lost".to_owned(), message })));
            }
        });
        let job = Job { id, verb, started_at, progress, ending, cancel, work: handle };
        all.1.insert(id, job.clone());
        Ok(job)
    }

    /// The job of that number.
    pub fn get(&self, id: u64) -> Option<Job> {
        self.lock().1.get(&id).cloned()
    }

    /// All of them, newest last.
    pub fn list(&self) -> Vec<JobView> {
        self.lock().1.values().map(Job::view).collect()
    }

    /// Ends all that are under way.
    pub fn stop(&self) {
        self.lock().1.values().for_each(Job::cancel);
    }
}
