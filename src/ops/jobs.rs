//! Jobs: long operations that can be started, watched, cancelled and listed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::protocol::{Failure, JobState, JobView, OpsError, Progress, ProgressReporter};
use crate::clock::Timestamp;

/// Maximum number of running jobs.
const RUNNING_MAX: usize = 16;
/// Maximum number of finished jobs in the list.
const ENDED_MAX: usize = 64;

/// Outcome of a job.
#[derive(Clone, Debug)]
enum Outcome {
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
    /// `None` while the task of the job runs.
    outcome: watch::Receiver<Option<Outcome>>,
    cancel: CancellationToken,
}

impl Job {
    /// Returns a snapshot.
    pub fn view(&self) -> JobView {
        let (state, report, error) = match &*self.outcome.borrow() {
            // A cancelled job counts as ended before its task has noticed.
            None if !self.cancel.is_cancelled() => (JobState::Running, None, None),
            None | Some(Outcome::Cancelled) => (JobState::Cancelled, None, None),
            Some(Outcome::Ended(Ok(report))) => (JobState::Done, Some(report.clone()), None),
            Some(Outcome::Ended(Err(error))) => (JobState::Failed, None, Some(error.clone())),
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
            progress = self.progress.changed() => {
                // The work was dropped, so the outcome follows.
                if progress.is_err() {
                    let _ = self.outcome.changed().await;
                }
            }
            _ = self.outcome.changed() => {}
            () = self.cancel.cancelled() => {}
        }
        self.has_ended()
    }

    fn has_ended(&self) -> bool {
        self.outcome.borrow().is_some() || self.cancel.is_cancelled()
    }

    /// Cancels the job. Its results stay, and a fill that it started continues.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }
}

/// Publishes the outcome of a job when its task ends, also after a panic.
struct OutcomeGuard {
    outcome: watch::Sender<Option<Outcome>>,
    cancel: CancellationToken,
    /// Result of the work, once it has ended.
    result: Option<Result<Value, Failure>>,
}

impl OutcomeGuard {
    /// Ends the job with the result of its work.
    fn end(mut self, result: Result<Value, Failure>) {
        self.result = Some(result);
    }
}

impl Drop for OutcomeGuard {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| {
            let message = "the job ended without a result; see the log".to_owned();
            Err(Failure { code: "lost".to_owned(), message })
        });
        // The token is read under the lock of the channel, so that a job that was seen as cancelled stays cancelled.
        self.outcome.send_modify(|outcome| {
            let ended = if self.cancel.is_cancelled() { Outcome::Cancelled } else { Outcome::Ended(result) };
            *outcome = Some(ended);
        });
    }
}

/// List of jobs. Clones share the list.
#[derive(Clone, Debug, Default)]
pub struct Jobs {
    list: Arc<Mutex<JobTable>>,
    tasks: TaskTracker,
    /// Parent of the tokens of all jobs.
    cancel: CancellationToken,
}

/// Running and recent jobs, by number.
#[derive(Debug, Default)]
struct JobTable {
    /// Number of the newest job.
    newest: u64,
    jobs: BTreeMap<u64, Job>,
}

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, JobTable> {
        // No code under this lock can panic during a change.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts `work` as a job with the start time `now`. Of a verb that `is_alone`, only one job may run.
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
        let running: Vec<&Job> = all.jobs.values().filter(|job| !job.has_ended()).collect();
        if running.len() >= RUNNING_MAX {
            return Err(OpsError::Busy(format!("{RUNNING_MAX} jobs are running; wait for one to end")));
        }
        if let Some(same) = running.iter().find(|job| is_alone && job.verb == verb) {
            return Err(OpsError::Busy(format!("job {} is already doing this", same.id)));
        }
        let ended: Vec<u64> = all.jobs.values().filter(|job| job.has_ended()).map(|job| job.id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(ENDED_MAX)) {
            all.jobs.remove(id);
        }
        all.newest += 1;
        let (id, started_at) = (all.newest, now);
        let (reporter, progress) = ProgressReporter::new();
        let (sender, outcome) = watch::channel(None);
        let cancel = self.cancel.child_token();
        let guard = OutcomeGuard { outcome: sender, cancel: cancel.clone(), result: None };
        let work = cancel.clone().run_until_cancelled_owned(work(reporter));
        self.tasks.spawn(async move {
            let Some(result) = work.await else { return };
            if let Err(error) = &result {
                tracing::warn!(job = id, verb, %error, "a job failed");
            }
            guard.end(result.map_err(|error| error.failure()));
        });
        let job = Job { id, verb, started_at, progress, outcome, cancel };
        all.jobs.insert(id, job.clone());
        Ok(job)
    }

    /// Returns the job with a number.
    pub fn get(&self, id: u64) -> Option<Job> {
        self.lock().jobs.get(&id).cloned()
    }

    /// Returns snapshots of all jobs, newest last.
    pub fn list(&self) -> Vec<JobView> {
        self.lock().jobs.values().map(Job::view).collect()
    }

    /// Cancels all running jobs and waits for their tasks.
    pub async fn stop(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn end_of(mut job: Job) -> JobView {
        while !job.changed().await {}
        job.view()
    }

    #[tokio::test]
    async fn cancelled_job_has_ended_at_once_and_stays_cancelled() {
        let jobs = Jobs::default();
        let waits = |_| std::future::pending();
        let first = jobs.begin(("gc", true), Timestamp::default(), waits).expect("a job");
        assert!(jobs.begin(("gc", true), Timestamp::default(), waits).is_err(), "one at a time");
        first.cancel();
        assert_eq!(first.view().state, JobState::Cancelled);
        let second = jobs.begin(("gc", true), Timestamp::default(), waits).expect("a job");
        jobs.stop().await;
        assert_eq!([first, second].map(|job| job.view().state), [JobState::Cancelled; 2]);
    }

    #[tokio::test]
    async fn outcome_of_a_job_is_its_result_or_its_loss() {
        let jobs = Jobs::default();
        let done = jobs.begin(("rm", false), Timestamp::default(), |_| async { Ok(Value::Null) });
        let view = end_of(done.expect("a job")).await;
        assert_eq!((view.state, view.report), (JobState::Done, Some(Value::Null)));
        let lost = jobs.begin(("rm", false), Timestamp::default(), |_| async { panic!("on purpose") });
        let view = end_of(lost.expect("a job")).await;
        assert_eq!(view.state, JobState::Failed);
        assert_eq!(view.error.map(|error| error.code).as_deref(), Some("lost"));
    }
}
