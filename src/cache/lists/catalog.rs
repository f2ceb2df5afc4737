//! Catalog of the cached repositories.

use std::sync::Arc;

use crate::cache::error::CacheError;
use crate::cache::lists::page::NamePage;
use crate::cache::rules::Rules;
use crate::cache::storage::Storage;
use crate::oci::{Name, Repository, UpstreamName};
use crate::store::{NameList, StoreError, StoreSession};
use crate::upstream::Router;

/// Catalog of the cached repositories.
#[derive(Debug)]
pub(in crate::cache) struct Catalog {
    storage: Arc<Storage>,
    rules: Arc<Rules>,
}

impl Catalog {
    pub(in crate::cache) fn new(storage: &Arc<Storage>, rules: &Arc<Rules>) -> Self {
        Self { storage: Arc::clone(storage), rules: Arc::clone(rules) }
    }

    /// Returns up to `limit` cached repositories that sort after `last`: those of one upstream, under their own names, or
    /// those of all upstreams. Then repositories of upstreams other than the default one have their upstream's name in front.
    /// Repositories that `allow` and `deny` exclude are not listed.
    pub(in crate::cache) async fn repositories(
        &self,
        only: Option<UpstreamName>,
        last: Option<String>,
        limit: usize,
    ) -> Result<NamePage, CacheError> {
        let rules = self.rules.current();
        let work = move |store: &StoreSession| {
            let router = rules.upstreams.router();
            let upstreams: Vec<UpstreamName> = match &only {
                Some(name) => vec![name.clone()],
                None => rules.upstreams.iter().map(|upstream| upstream.name().clone()).collect(),
            };
            let mut names = Vec::new();
            for upstream in &upstreams {
                let is_bare = only.is_some() || router.default_upstream() == Some(upstream);
                let prefix = if is_bare { String::new() } else { format!("{upstream}/") };
                let after = match page_start(last.as_deref(), &prefix) {
                    PageStart::Beginning => None,
                    PageStart::After(name) => Some(name),
                    PageStart::Passed => continue,
                };
                let found = admitted(store, router, upstream, after, limit.saturating_add(1))?;
                names.extend(found.iter().map(|name| format!("{prefix}{name}")));
            }
            names.sort_unstable();
            names.dedup();
            Ok(NamePage::cut(names, limit))
        };
        self.storage.with_store(work).await
    }
}

/// Returns up to `limit` repositories of an upstream after `last`, without those that are excluded. Blocks.
fn admitted(
    store: &StoreSession,
    router: &Router,
    upstream: &UpstreamName,
    last: Option<&str>,
    limit: usize,
) -> Result<Vec<Name>, StoreError> {
    let mut admitted = Vec::new();
    let mut last = last.map(str::to_owned);
    loop {
        let found = store.names(NameList::Repositories(upstream), last.as_deref(), limit)?;
        let has_more = found.len() == limit;
        last = found.last().cloned();
        for name in found.iter().filter_map(|name| name.parse().ok()) {
            let repository = Repository { upstream: upstream.clone(), name };
            if router.admits(&repository) {
                admitted.push(repository.name);
            }
        }
        if !has_more || admitted.len() >= limit {
            admitted.truncate(limit);
            return Ok(admitted);
        }
    }
}

/// Start of a page in one upstream's list.
#[derive(Debug, PartialEq, Eq)]
enum PageStart<'a> {
    Beginning,
    After(&'a str),
    /// The whole list sorts before the page.
    Passed,
}

/// Returns the start of the page after `last`, in a list whose names all begin with `prefix`.
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
    fn page_start_continues_in_each_upstreams_list() {
        assert_eq!(page_start(None, "ghcr.io/"), PageStart::Beginning);
        assert_eq!(page_start(Some("a"), "ghcr.io/"), PageStart::Beginning);
        assert_eq!(page_start(Some("ghcr.io/x"), "ghcr.io/"), PageStart::After("x"));
        assert_eq!(page_start(Some("library/x"), "ghcr.io/"), PageStart::Passed);
        assert_eq!(page_start(Some("library/x"), ""), PageStart::After("library/x"));
    }
}
