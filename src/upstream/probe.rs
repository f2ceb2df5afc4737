//! How far larder comes on its way to an upstream: one step after the other, each with its time, and what helps with the
//! first that fails.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::endpoint::{Endpoint, EndpointSource};
use super::{Timeouts, Upstream};
use crate::config::schema;
use crate::oci::{Name, Reference};
use crate::source::OciLayout;

/// Whoever asks looks on: a healthy registry is far quicker, and one that is slower is worth a word.
pub const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(3),
    head: Duration::from_secs(4),
    total: Duration::from_secs(5),
    idle: Duration::from_secs(5),
};

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and somebody should look at it.
    Warning,
    /// It does not work.
    Fails,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What it is called.
    pub step: String,
    /// How it went.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What helps.
    pub remedy: Option<String>,
    /// How long it took, in milliseconds.
    pub ms: u64,
}

impl Step {
    /// All is well.
    pub fn ok(step: &str, found: impl Into<String>) -> Self {
        Self { step: step.to_owned(), verdict: Verdict::Ok, found: found.into(), remedy: None, ms: 0 }
    }

    /// Somebody should look at it.
    pub fn warning(step: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, remedy: Some(remedy.into()), ..Self::ok(step, found) }
    }

    /// It does not work.
    pub fn fails(step: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fails, ..Self::warning(step, found, remedy) }
    }

    /// The same with the time since it was begun.
    #[must_use]
    pub fn since(self, began: Instant) -> Self {
        Self { ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX), ..self }
    }
}

/// The way to one endpoint, as far as it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The endpoint's URL, as it is configured.
    pub endpoint: String,
    /// What was tried, in order; the first that fails is the last.
    pub steps: Vec<Step>,
}

/// Something that an upstream is known to have.
pub type Known = (Name, Reference);

impl Upstream {
    /// Goes the way to each endpoint, to all at once. `settings` are those it was built from; `known` is what can be asked for to see more
    /// than whether somebody is there.
    pub async fn probe(&self, settings: schema::Upstream, known: Option<Known>) -> Vec<Way> {
        let mut under_way = JoinSet::new();
        for (place, endpoint) in self.endpoints.iter().cloned().enumerate() {
            let (settings, known) = (settings.clone(), known.clone());
            under_way.spawn(async move { (place, endpoint.probe(&settings, known.as_ref()).await) });
        }
        let mut ways = under_way.join_all().await;
        ways.sort_by_key(|(place, _)| *place);
        ways.into_iter().map(|(_, way)| way).collect()
    }
}

impl Endpoint {
    async fn probe(&self, settings: &schema::Upstream, known: Option<&Known>) -> Way {
        let endpoint = self.health.endpoint().to_owned();
        let steps = match &self.source {
            EndpointSource::Registry(registry) => registry.steps(settings, known).await,
            EndpointSource::OciLayout(layout) => vec![folder(layout).await],
        };
        Way { endpoint, steps }
    }
}

async fn folder(layout: &OciLayout) -> Step {
    let began = Instant::now();
    let root = layout.root().to_owned();
    let read = tokio::task::spawn_blocking(move || std::fs::read_dir(root).map(Iterator::count)).await;
    let step = match read {
        Ok(Ok(0)) => {
            Step::warning("folder", "it is empty", "put layouts below it, one folder for each repository")
        }
        Ok(Ok(_)) => Step::ok("folder", "it can be read"),
        Ok(Err(error)) => {
            Step::fails("folder", format!("it cannot be read: {error}"), "correct `endpoints`, or its rights")
        }
        Err(error) => Step::fails("folder", format!("it cannot be read: {error}"), "try again"),
    };
    step.since(began)
}
