//! Back-off of repositories at one endpoint: a repository that keeps failing is asked at a bounded rate.
//!
//! A path that keeps failing is paused by itself ([`super::health`]). Such pauses do not bound the rate if every request is
//! for another tag or digest. So failures of several different paths in a row pause their repository. After the pause one
//! request is sent for all others. Its answer ends the back-off.

use std::time::{Duration, Instant};

use quick_cache::unsync::Cache;

use crate::oci::Name;
use crate::source::SourceError;

/// Number of different paths whose failures in a row pause their repository. One broken image has fewer.
const PATHS_MAX: usize = 8;
/// Interval at which one request is sent to a repository that keeps failing.
const PAUSE: Duration = Duration::from_secs(2);
/// Number of failing repositories that are remembered.
const REPOSITORIES_MAX: usize = 256;

/// Content that a request asks for, as far as failures are counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RequestPath {
    pub(crate) repository: Name,
    /// Kind and reference.
    pub(crate) resource: String,
}

impl RequestPath {
    /// Returns the repository with the kind of request: GET of blobs may fail while HEAD of manifests is answered.
    fn collection(&self) -> (Name, String) {
        let kind = self.resource.split_once('/').map_or(self.resource.as_str(), |(kind, _)| kind);
        (self.repository.clone(), kind.to_owned())
    }
}

/// Failures in a row of one kind of request for a repository.
#[derive(Debug)]
struct CollectionFailures {
    /// Different resources that failed, up to [`PATHS_MAX`].
    resources: Vec<String>,
    /// Time of the next request.
    next: Option<Instant>,
    last: SourceError,
}

/// Repositories that keep failing. The time is an argument.
#[derive(Debug)]
pub(super) struct RepositoryBackoff(Cache<(Name, String), CollectionFailures>);

impl Default for RepositoryBackoff {
    fn default() -> Self {
        Self(Cache::new(REPOSITORIES_MAX))
    }
}

impl RepositoryBackoff {
    /// Permits a request. Otherwise returns the time until the next one, and the last failure.
    pub(super) fn permit(&mut self, path: &RequestPath, now: Instant) -> Result<(), (Duration, SourceError)> {
        let Some(mut failures) = self.0.get_mut(&path.collection()) else { return Ok(()) };
        match failures.next {
            Some(next) if now < next => Err((next - now, failures.last.clone())),
            Some(_) => {
                failures.next = Some(now + PAUSE);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Records an answer.
    pub(super) fn succeeded(&mut self, path: &RequestPath) {
        if !self.0.is_empty() {
            self.0.remove(&path.collection());
        }
    }

    /// Records a failure.
    pub(super) fn failed(&mut self, path: &RequestPath, now: Instant, error: &SourceError) {
        let collection = path.collection();
        if self.0.peek(&collection).is_none() {
            let failures = CollectionFailures { resources: Vec::new(), next: None, last: error.clone() };
            self.0.insert(collection.clone(), failures);
        }
        let Some(mut failures) = self.0.get_mut(&collection) else { return };
        if failures.resources.len() < PATHS_MAX && !failures.resources.contains(&path.resource) {
            failures.resources.push(path.resource.clone());
        }
        failures.last = error.clone();
        failures.next = (failures.resources.len() >= PATHS_MAX).then(|| now + PAUSE);
    }

    /// Ends all back-offs.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(repository: &str, resource: &str) -> RequestPath {
        RequestPath { repository: repository.parse().expect("a name"), resource: resource.to_owned() }
    }

    fn tag(repository: &str, n: usize) -> RequestPath {
        path(repository, &format!("manifests/v{n}"))
    }

    const ERROR: SourceError = SourceError::Unavailable(500);

    #[test]
    fn repository_whose_paths_fail_is_asked_at_a_bounded_rate() {
        let (mut backoff, start) = (RepositoryBackoff::default(), Instant::now());
        for n in 0..PATHS_MAX {
            assert_eq!(backoff.permit(&tag("a", n), start), Ok(()));
            backoff.failed(&tag("a", n), start, &ERROR);
        }
        // Ten requests a second, all for other tags, for a minute.
        let sent = (0..600).filter(|n| {
            let now = start + Duration::from_millis(*n) * 100;
            let path = tag("a", PATHS_MAX + usize::try_from(*n).expect("a small number"));
            let is_permitted = backoff.permit(&path, now).is_ok();
            if is_permitted {
                backoff.failed(&path, now, &ERROR);
            }
            is_permitted
        });
        assert_eq!(sent.count(), 29);
        let end = start + Duration::from_mins(1);
        assert_eq!(backoff.permit(&tag("b", 0), end), Ok(()), "another repository");
        for other in ["blobs/sha256:0", "HEAD manifests/v1", "tags"] {
            assert_eq!(backoff.permit(&path("a", other), end), Ok(()), "{other}");
        }
        // One request at a time, whose answer ends the back-off.
        assert_eq!(backoff.permit(&tag("a", 0), end), Ok(()));
        assert_eq!(backoff.permit(&tag("a", 1), end), Err((PAUSE, ERROR)));
        backoff.succeeded(&tag("a", 0));
        assert_eq!(backoff.permit(&tag("a", 1), end), Ok(()));
    }

    #[test]
    fn few_failing_paths_leave_their_repository() {
        let (mut backoff, now) = (RepositoryBackoff::default(), Instant::now());
        for n in 0..100 {
            backoff.failed(&tag("a", n % (PATHS_MAX - 1)), now, &ERROR);
        }
        assert_eq!(backoff.permit(&tag("a", 100), now), Ok(()));
    }

    #[test]
    fn number_of_repositories_is_bounded() {
        let (mut backoff, now) = (RepositoryBackoff::default(), Instant::now());
        for n in 0..10 * REPOSITORIES_MAX {
            backoff.failed(&tag(&format!("r{n}"), 0), now, &ERROR);
        }
        assert!(backoff.0.len() <= REPOSITORIES_MAX);
    }
}
