//! Refusals of the credentials for one endpoint: one warning per repository, the metric, and the status. A repository whose
//! credentials are accepted again is forgotten.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, Timestamp};
use crate::oci::{Name, UpstreamName};
use crate::telemetry::Metrics;
use crate::upstream::status::{RefusalReason, RefusedAccess};

/// Number of repositories that are remembered. Further ones are counted only: a client can name any number of them.
const REPOSITORIES_MAX: usize = 256;

/// Time after which a refusal that did not repeat is forgotten. Registries also refuse repositories that do not exist, so a
/// mistyped name must not be shown for ever.
const REMEMBERED: Duration = Duration::from_hours(1);

/// Refusals at one endpoint.
#[derive(Debug)]
pub(crate) struct Refusals {
    upstream: UpstreamName,
    metrics: Arc<Metrics>,
    clock: Clock,
    repositories: Mutex<HashMap<Name, (RefusalReason, Timestamp)>>,
}

impl Refusals {
    pub(crate) fn new(upstream: UpstreamName, metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self { upstream, metrics, clock, repositories: Mutex::default() }
    }

    /// Records a refusal.
    pub(crate) fn refused(&self, repository: &Name, reason: RefusalReason) {
        self.metrics.credentials_refused(self.upstream.as_str(), reason.as_str());
        let now = self.clock.now();
        let mut repositories = self.repositories();
        repositories.retain(|_, (_, at)| is_current(*at, now));
        let is_new = !repositories.contains_key(repository);
        let is_remembered = !is_new || repositories.len() < REPOSITORIES_MAX;
        if is_remembered {
            repositories.insert(repository.clone(), (reason, now));
        }
        drop(repositories);
        if is_new && is_remembered {
            tracing::warn!(
                upstream = %self.upstream,
                %repository,
                reason = reason.as_str(),
                "the upstream refuses the credentials; correct username and password_file, or docker_config"
            );
        }
    }

    /// Records that the credentials were accepted for a repository. A login that was refused before is valid then.
    pub(crate) fn accepted(&self, repository: &Name) {
        let mut repositories = self.repositories();
        if !repositories.is_empty() {
            repositories
                .retain(|name, (reason, _)| name != repository && *reason == RefusalReason::Repository);
        }
    }

    /// Returns the last refusal for status pages.
    pub(crate) fn state(&self) -> Option<RefusedAccess> {
        let now = self.clock.now();
        let mut repositories = self.repositories();
        repositories.retain(|_, (_, at)| is_current(*at, now));
        let (repository, (reason, at)) = repositories.iter().max_by_key(|(_, (_, at))| *at)?;
        Some(RefusedAccess {
            repository: repository.to_string(),
            reason: *reason,
            at: *at,
            repositories: u64::try_from(repositories.len()).unwrap_or(u64::MAX),
        })
    }

    fn repositories(&self) -> MutexGuard<'_, HashMap<Name, (RefusalReason, Timestamp)>> {
        // No code under this lock can panic during a change.
        self.repositories.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_current(at: Timestamp, now: Timestamp) -> bool {
    now.since(at) < REMEMBERED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_is_shown_until_the_credentials_are_accepted() {
        let upstream = "reg.test".parse().expect("a name");
        let refusals = Refusals::new(upstream, Arc::new(Metrics::new()), Clock::default());
        let name = |text: &str| text.parse::<Name>().expect("a name");
        assert_eq!(refusals.state(), None);
        refusals.refused(&name("a"), RefusalReason::Repository);
        refusals.refused(&name("b"), RefusalReason::Login);
        assert_eq!(refusals.state().map(|state| state.repositories), Some(2));
        refusals.accepted(&name("c"));
        let state = refusals.state().expect("one repository is forbidden");
        assert_eq!((state.repository.as_str(), state.repositories), ("a", 1));
        refusals.accepted(&name("a"));
        assert_eq!(refusals.state(), None);
        for n in 0..REPOSITORIES_MAX * 2 {
            refusals.refused(&name(&format!("r{n}")), RefusalReason::TokenService);
        }
        assert_eq!(refusals.state().map(|state| state.repositories), Some(REPOSITORIES_MAX as u64));
    }

    #[test]
    fn refusal_that_does_not_repeat_is_forgotten() {
        let clock = Clock::default();
        let upstream = "reg.test".parse().expect("a name");
        let refusals = Refusals::new(upstream, Arc::new(Metrics::new()), clock.clone());
        refusals.refused(&"mistyped".parse().expect("a name"), RefusalReason::Login);
        clock.advance(REMEMBERED / 2);
        refusals.refused(&"app".parse().expect("a name"), RefusalReason::Login);
        assert_eq!(refusals.state().map(|state| state.repositories), Some(2));
        clock.advance(REMEMBERED / 2);
        assert_eq!(
            refusals.state().map(|state| (state.repository, state.repositories)),
            Some(("app".into(), 1))
        );
        clock.advance(REMEMBERED);
        assert_eq!(refusals.state(), None);
    }
}
