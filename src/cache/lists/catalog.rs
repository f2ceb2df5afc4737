//! Lists of the cached content: tags of a repository, and repositories of all upstreams.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::core::Shared;
use crate::cache::error::CacheError;
use crate::oci::{Name, Repository, UpstreamName};
use crate::store::{NameList, StoreError, StoreSession};
use crate::telemetry::Outcome;

/// List to serve, or a page of one, with its outcome.
#[derive(Clone, Debug)]
pub struct ListResult<T> {
    /// The list.
    pub content: T,
    /// Outcome of the request.
    pub outcome: Outcome,
    /// Time since the upstream last confirmed the list; `None` if the list comes from the cache alone.
    pub age: Option<Duration>,
    /// Error of the upstream, if the list is stale.
    pub stale: Option<CacheError>,
}

/// One page of a list of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePage {
    /// Names in byte order.
    pub names: Vec<String>,
    /// True if more names follow.
    pub more: bool,
}

/// Returns up to `limit` cached tags of a repository that sort after `last`; `None` if it has no cached tag.
pub(in crate::cache) async fn cached_tags(
    shared: &Shared,
    repository: &Repository,
    last: Option<String>,
    limit: usize,
) -> Result<Option<Vec<String>>, CacheError> {
    let repository = repository.clone();
    let tags = move |store: &StoreSession| {
        let tags = NameList::Tags(&repository);
        let names = store.names(tags, last.as_deref(), limit)?;
        if names.is_empty() && store.names(tags, None, 1)?.is_empty() {
            return Ok(None);
        }
        Ok(Some(names))
    };
    shared.with_store(tags).await
}

/// Returns up to `limit` cached repositories that sort after `last`: those of the upstream `only` without a prefix, or
/// those of all upstreams, prefixed with the upstream's name except for the default upstream. Repositories that may not be
/// pulled are omitted.
pub(in crate::cache) async fn repositories(
    shared: &Arc<Shared>,
    only: Option<UpstreamName>,
    last: Option<String>,
    limit: usize,
) -> Result<NamePage, CacheError> {
    let rules = shared.rules();
    let default = rules.upstreams.router().default_upstream().cloned();
    let upstreams: Vec<UpstreamName> = match &only {
        Some(name) => vec![name.clone()],
        None => rules.upstreams.iter().map(|upstream| upstream.name().clone()).collect(),
    };
    let owned = Arc::clone(shared);
    let work = move |store: &StoreSession| {
        let mut names = Vec::new();
        for upstream in &upstreams {
            let is_bare = only.is_some() || default.as_ref() == Some(upstream);
            let prefix = if is_bare { String::new() } else { format!("{upstream}/") };
            let start = match page_start(last.as_deref(), &prefix) {
                PageStart::Beginning => None,
                PageStart::After(name) => Some(name),
                PageStart::Passed => continue,
            };
            let found = permitted(&owned, store, upstream, start, limit.saturating_add(1))?;
            names.extend(found.iter().map(|name| format!("{prefix}{name}")));
        }
        names.sort_unstable();
        names.dedup();
        Ok(NamePage::cut(names, limit))
    };
    shared.with_store(work).await
}

/// Returns up to `limit` names of an upstream's cached repositories after `last` that may be pulled.
fn permitted(
    shared: &Shared,
    store: &StoreSession,
    upstream: &UpstreamName,
    last: Option<&str>,
    limit: usize,
) -> Result<Vec<Name>, StoreError> {
    let rules = shared.rules();
    let router = rules.upstreams.router();
    let mut permitted = Vec::new();
    let mut last = last.map(str::to_owned);
    loop {
        let found = store.names(NameList::Repositories(upstream), last.as_deref(), limit)?;
        let has_more = found.len() == limit;
        last = found.last().cloned();
        for name in found.iter().filter_map(|name| name.parse().ok()) {
            let repository = Repository { upstream: upstream.clone(), name };
            if router.admits(&repository) {
                permitted.push(repository.name);
            }
        }
        if !has_more || permitted.len() >= limit {
            permitted.truncate(limit);
            return Ok(permitted);
        }
    }
}

impl NamePage {
    /// Creates a page of the first `limit` names.
    pub(in crate::cache) fn cut(mut names: Vec<String>, limit: usize) -> Self {
        let more = names.len() > limit;
        names.truncate(limit);
        Self { names, more }
    }
}

/// Start of a page in the list of one upstream.
#[derive(Debug, PartialEq, Eq)]
enum PageStart<'a> {
    Beginning,
    After(&'a str),
    /// The whole list sorts before the page.
    Passed,
}

/// Returns the start, after `last`, of a page in a list whose names all begin with `prefix`.
fn page_start<'a>(last: Option<&'a str>, prefix: &str) -> PageStart<'a> {
    let Some(last) = last else { return PageStart::Beginning };
    match last.strip_prefix(prefix) {
        Some(rest) => PageStart::After(rest),
        None if last < prefix => PageStart::Beginning,
        None => PageStart::Passed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_of_a_prefixed_list_starts_where_the_merged_list_stopped() {
        assert_eq!(page_start(None, "ghcr.io/"), PageStart::Beginning);
        assert_eq!(page_start(Some("a"), "ghcr.io/"), PageStart::Beginning);
        assert_eq!(page_start(Some("ghcr.io/x"), "ghcr.io/"), PageStart::After("x"));
        assert_eq!(page_start(Some("library/x"), "ghcr.io/"), PageStart::Passed);
        assert_eq!(page_start(Some("library/x"), ""), PageStart::After("library/x"));
    }

    #[test]
    fn page_has_more_if_names_were_cut() {
        let names = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>();
        assert_eq!(NamePage::cut(names(3), 2), NamePage { names: names(2), more: true });
        assert_eq!(NamePage::cut(names(2), 2), NamePage { names: names(2), more: false });
    }
}
