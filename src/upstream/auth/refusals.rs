//! Refusals of the credentials for one endpoint: one warning per repository, the metric, and the status. A repository whose
//! credentials are accepted again is forgotten.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::{Clock, Timestamp};
use crate::oci::{Name, UpstreamName};
use crate::telemetry::Metrics;
use crate::upstream::status::{RefusalReason, RefusedAccess};

/// Number of repositories that are remembered.
const REPOSITORIES_MAX: usize = 256;

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
        let mut repositories = self.repositories();
        let is_known = repositories.contains_key(repository);
        if is_known || repositories.len() < REPOSITORIES_MAX {
            repositories.insert(repository.clone(), (reason, self.clock.now()));
        }
        drop(repositories);
        if !is_known {
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
        let repositories = self.repositories();
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
}
