//! Report of all checks: steps with a verdict, what was found, and a remedy.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::clock::millis;

/// Result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// No problem.
    Ok,
    /// Works, but needs attention.
    Warning,
    /// Does not work.
    Fails,
}

/// One step of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Name of the step.
    pub step: String,
    /// Result.
    pub verdict: Verdict,
    /// Observation.
    pub found: String,
    /// Advice, unless the verdict is [`Verdict::Ok`].
    pub remedy: Option<String>,
    /// Duration in milliseconds.
    pub ms: u64,
}

impl Step {
    /// Creates a step without a problem.
    pub fn ok(step: &str, found: impl Into<String>) -> Self {
        Self { step: step.to_owned(), verdict: Verdict::Ok, found: found.into(), remedy: None, ms: 0 }
    }

    /// Creates a step that needs attention.
    pub fn warning(step: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, remedy: Some(remedy.into()), ..Self::ok(step, found) }
    }

    /// Creates a step that failed.
    pub fn fails(step: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fails, ..Self::warning(step, found, remedy) }
    }

    /// Sets the duration of the step.
    #[must_use]
    pub fn lasting(self, duration: Duration) -> Self {
        Self { ms: millis(duration), ..self }
    }

    /// Sets the duration to the time since the step was started.
    #[must_use]
    pub fn since(self, started: Instant) -> Self {
        self.lasting(started.elapsed())
    }
}

/// Step with the subject that was checked.
#[derive(Debug, Serialize)]
pub struct Check {
    /// Subject area: `configuration`, `upstream`, `store`, `system`, `larder` or `client`.
    pub area: &'static str,
    /// Name within the area, if the area has several subjects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The step.
    #[serde(flatten)]
    pub step: Step,
}

/// Results of all checks.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// True if no check fails.
    pub ok: bool,
    /// All steps, in the order of the checks.
    pub checks: Vec<Check>,
}

impl Report {
    /// Adds the steps of one subject.
    pub fn add(&mut self, area: &'static str, subject: Option<&str>, steps: impl IntoIterator<Item = Step>) {
        let subject = subject.map(str::to_owned);
        self.checks.extend(steps.into_iter().map(|step| Check { area, subject: subject.clone(), step }));
    }

    /// Returns the number of steps with this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|check| check.step.verdict == verdict).count()
    }
}
