//! Lists of what the cache holds: the tags of a repository, the repositories of all upstreams.

use std::sync::Arc;
use std::time::Duration;

use crate::oci::{Name, Repository, UpstreamName};
use crate::store::StoreError;
use crate::telemetry::Outcome;

use crate::cache::{Cache, CacheError, Shared, blocking};

/// A list to serve, or a part of one, and how the cache came by it.
#[derive(Clone, Debug)]
pub struct ListResult<T> {
    /// What is listed.
    pub content: T,
    /// What the cache did.
    pub outcome: Outcome,
    /// How long ago the upstream last confirmed the list; `None` if it was not asked for this one.
    pub age: Option<Duration>,
    /// For a stale list: why the upstream was not asked successfully.
    pub stale: Option<CacheError>,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePage {
    /// The names, in byte order.
    pub names: Vec<String>,
    /// Whether there are more after them.
    pub more: bool,
}

/// Up to `limit` tags held of a repository that sort after `last`. `None` if it holds none at all.
pub(in crate::cache) async fn cached_tags(
    shared: &Shared,
    repository: &Repository,
    last: Option<String>,
    limit: usize,
) -> Result<Option<Vec<String>>, CacheError> {
    let (store, repository) = (shared.store.clone(), repository.clone());
    blocking(move || {
        let names = store.tags(&repository, last.as_deref(), limit)?;
        if names.is_empty() && store.tags(&repository, None, 1)?.is_empty() {
            return Ok(None);
        }
        Ok(Some(names))
    })
    .await
}

impl Cache {
    /// Up to `limit` repositories held that sort after `last`: those of `only`, under their own names, or those of
    /// all upstreams, where all but the default one's carry their upstream's name in front. What may not be pulled
    /// is not named.
    pub async fn repositories(
        &self,
        only: Option<UpstreamName>,
        last: Option<String>,
        limit: usize,
    ) -> Result<NamePage, CacheError> {
        let rules = self.0.rules();
        let default = rules.upstreams.router().default_upstream().cloned();
        let upstreams: Vec<UpstreamName> = match &only {
            Some(name) => vec![name.clone()],
            None => rules.upstreams.iter().map(|upstream| upstream.name().clone()).collect(),
        };
        let shared = Arc::clone(&self.0);
        blocking(move || {
            let mut names = Vec::new();
            for upstream in &upstreams {
                let bare = only.is_some() || default.as_ref() == Some(upstream);
                let prefix = if bare { String::new() } else { format!("{upstream}/") };
                let after = match after(last.as_deref(), &prefix) {
                    Start::Beginning => None,
                    Start::After(name) => Some(name),
                    Start::Passed => continue,
                };
                let found = admitted(&shared, upstream, after, limit.saturating_add(1))?;
                names.extend(found.iter().map(|name| format!("{prefix}{name}")));
            }
            names.sort_unstable();
            names.dedup();
            Ok(NamePage::cut(names, limit))
        })
        .await
    }
}

/// Up to `limit` names of an upstream's repositories after `last`, without those that may not be pulled.
fn admitted(
    shared: &Shared,
    upstream: &UpstreamName,
    last: Option<&str>,
    limit: usize,
) -> Result<Vec<Name>, StoreError> {
    let rules = shared.rules();
    let router = rules.upstreams.router();
    let mut admitted = Vec::new();
    let mut last = last.map(str::to_owned);
    loop {
        let found = shared.store.repositories(upstream, last.as_deref(), limit)?;
        let more = found.len() == limit;
        last = found.last().map(|name| name.as_str().to_owned());
        for name in found {
            let repository = Repository { upstream: upstream.clone(), name };
            if router.admits(&repository) {
                admitted.push(repository.name);
            }
        }
        if !more || admitted.len() >= limit {
            admitted.truncate(limit);
            return Ok(admitted);
        }
    }
}

impl NamePage {
    /// The first `limit` of `names`.
    pub(in crate::cache) fn cut(mut names: Vec<String>, limit: usize) -> Self {
        let more = names.len() > limit;
        names.truncate(limit);
        Self { names, more }
    }
}

/// Where a page begins in one upstream's list.
#[derive(Debug, PartialEq, Eq)]
enum Start<'a> {
    Beginning,
    After(&'a str),
    /// All of the list lies before the page.
    Passed,
}

/// Where a list whose names all begin with `prefix` goes on after `last`.
fn after<'a>(last: Option<&'a str>, prefix: &str) -> Start<'a> {
    let Some(last) = last else { return Start::Beginning };
    match last.strip_prefix(prefix) {
        Some(rest) => Start::After(rest),
        None if last < prefix => Start::Beginning,
        None => Start::Passed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefixed_list_goes_on_where_the_merged_one_stopped() {
        assert_eq!(after(None, "ghcr.io/"), Start::Beginning);
        assert_eq!(after(Some("a"), "ghcr.io/"), Start::Beginning);
        assert_eq!(after(Some("ghcr.io/x"), "ghcr.io/"), Start::After("x"));
        assert_eq!(after(Some("library/x"), "ghcr.io/"), Start::Passed);
        assert_eq!(after(Some("library/x"), ""), Start::After("library/x"));
    }

    #[test]
    fn a_page_knows_whether_more_follow() {
        let names = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>();
        assert_eq!(NamePage::cut(names(3), 2), NamePage { names: names(2), more: true });
        assert_eq!(NamePage::cut(names(2), 2), NamePage { names: names(2), more: false });
    }
}
