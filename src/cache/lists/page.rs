//! Result of a request for a list, and its pages.

use std::time::Duration;

use crate::cache::error::CacheError;
use crate::telemetry::Outcome;

/// List to serve, or a part of it, with the outcome of the request.
#[derive(Clone, Debug)]
pub struct ListResult<T> {
    /// Content of the list.
    pub content: T,
    /// Outcome of the request.
    pub outcome: Outcome,
    /// Time since the upstream last confirmed the list; `None` if the upstream was not asked for this list.
    pub age: Option<Duration>,
    /// Reason why a stale list could not be revalidated; `None` unless the list is stale.
    pub stale: Option<CacheError>,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePage {
    /// Names in byte order.
    pub names: Vec<String>,
    /// True if there are more names after these.
    pub more: bool,
}

impl NamePage {
    /// Creates a page with the first `limit` names.
    pub(super) fn cut(mut names: Vec<String>, limit: usize) -> Self {
        let more = names.len() > limit;
        names.truncate(limit);
        Self { names, more }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_shows_whether_more_names_follow() {
        let names = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>();
        assert_eq!(NamePage::cut(names(3), 2), NamePage { names: names(2), more: true });
        assert_eq!(NamePage::cut(names(2), 2), NamePage { names: names(2), more: false });
    }
}
