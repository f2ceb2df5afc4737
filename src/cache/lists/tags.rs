//! Lists of tags: the cached tags, the upstream's tags, or both.
//!
//! The upstream's list is fetched completely and kept in memory, with the freshness rules of tags. After a restart with a
//! failing upstream it is missing; a merged list then has the cached tags only.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::Weighter;
use quick_cache::sync::Cache as LruCache;

use crate::cache::access::Access;
use crate::cache::deadline::{Deadline, joined};
use crate::cache::error::CacheError;
use crate::cache::flight::{Flights, Ticket};
use crate::cache::freshness::{self, Freshness};
use crate::cache::lists::page::{ListResult, NamePage};
use crate::cache::manifest::serves_stale;
use crate::cache::memory::AbsenceKey;
use crate::cache::rules::Rules;
use crate::cache::storage::Storage;
use crate::clock::{Clock, Timestamp};
use crate::config::schema::{OnUpstream404, TagsList};
use crate::oci::{Repository, Tag};
use crate::source::Source as _;
use crate::store::{NameList, StoreSession};
use crate::telemetry::Outcome;

/// Bytes of lists that memory holds.
const LIST_BYTES: u64 = 64 << 20;
/// Expected number of lists in memory. With so few lists the memory is not split into shards, so that the longest list fits.
const LISTS_EXPECTED: usize = 32;
/// Memory that a tag takes beside its text.
const TAG_OVERHEAD: u64 = 48;
/// Memory that a list takes beside its tags.
const LIST_OVERHEAD: u64 = 512;

/// Tags of an upstream's repository, sorted by bytes.
#[derive(Debug)]
struct TagList {
    tags: Vec<Tag>,
    /// Time of the upstream's answer.
    checked_at: Timestamp,
    /// Monotonic time of the upstream's answer.
    at: Instant,
}

impl TagList {
    fn age(&self, clock: &Clock) -> Option<Duration> {
        let elapsed = clock.instant().saturating_duration_since(self.at);
        freshness::age(clock.now(), self.checked_at, Some(elapsed))
    }
}

#[derive(Clone, Debug)]
struct ListWeight;

impl Weighter<Repository, Arc<TagList>> for ListWeight {
    fn weight(&self, _key: &Repository, list: &Arc<TagList>) -> u64 {
        list.tags.iter().map(|tag| tag.as_str().len() as u64 + TAG_OVERHEAD).sum::<u64>() + LIST_OVERHEAD
    }
}

/// Lists of tags.
#[derive(Debug)]
pub(in crate::cache) struct TagLists {
    storage: Arc<Storage>,
    rules: Arc<Rules>,
    access: Access,
    memory: LruCache<Repository, Arc<TagList>, ListWeight>,
    flights: Flights<Repository, Arc<TagList>>,
}

impl TagLists {
    pub(in crate::cache) fn new(storage: &Arc<Storage>, rules: &Arc<Rules>) -> Self {
        Self {
            storage: Arc::clone(storage),
            rules: Arc::clone(rules),
            access: Access::new(storage, rules),
            memory: LruCache::with_weighter(LISTS_EXPECTED, LIST_BYTES, ListWeight),
            flights: Flights::default(),
        }
    }

    /// Returns up to `limit` tags of a repository that sort after `last`, from the lists that `tags_list` selects. `None` if
    /// only cached tags are selected and there are none.
    pub(in crate::cache) async fn get(
        self: &Arc<Self>,
        repository: &Repository,
        last: Option<String>,
        limit: usize,
    ) -> Result<Option<ListResult<NamePage>>, CacheError> {
        let selection = self.rules.upstream(repository)?.settings().tags_list;
        // One name more than requested shows whether there is another page.
        let one_more = limit.saturating_add(1);
        let cached = match selection {
            TagsList::Upstream => None,
            TagsList::Cached | TagsList::Merged => self.cached(repository, last.clone(), one_more).await?,
        };
        if selection == TagsList::Cached {
            let (outcome, age, stale) = (Outcome::Hit, None, None);
            return Ok(cached.map(|names| ListResult {
                content: NamePage::cut(names, limit),
                outcome,
                age,
                stale,
            }));
        }
        let result = match (self.upstream_list(repository, cached.is_some()).await, cached) {
            (Ok(ListResult { content, outcome, age, stale }), cached) => {
                let from = last.map_or(0, |last| content.tags.partition_point(|tag| tag.as_str() <= &*last));
                let mut names = cached.unwrap_or_default();
                names.extend(content.tags[from..].iter().take(one_more).map(|tag| tag.as_str().to_owned()));
                names.sort_unstable();
                names.dedup();
                ListResult { content: NamePage::cut(names, limit), outcome, age, stale }
            }
            (Err(error), Some(names)) => {
                let stale = Some(error).filter(CacheError::allows_stale);
                let outcome = if stale.is_some() { Outcome::Stale } else { Outcome::Hit };
                ListResult { content: NamePage::cut(names, limit), outcome, age: None, stale }
            }
            (Err(error), None) => return Err(error),
        };
        Ok(Some(result))
    }

    /// Returns up to `limit` cached tags that sort after `last`; `None` if the repository has no cached tag at all.
    async fn cached(
        &self,
        repository: &Repository,
        last: Option<String>,
        limit: usize,
    ) -> Result<Option<Vec<String>>, CacheError> {
        let repository = repository.clone();
        let work = move |store: &StoreSession| {
            let tags = NameList::Tags(&repository);
            let names = store.names(tags, last.as_deref(), limit)?;
            if names.is_empty() && store.names(tags, None, 1)?.is_empty() {
                return Ok(None);
            }
            Ok(Some(names))
        };
        self.storage.with_store(work).await
    }

    /// Returns the upstream's list: from memory while fresh, revalidated after that, and stale while the upstream fails.
    /// With other tags to serve (`has_copy`) the wait is short.
    async fn upstream_list(
        self: &Arc<Self>,
        repository: &Repository,
        has_copy: bool,
    ) -> Result<ListResult<Arc<TagList>>, CacheError> {
        let upstream = self.rules.upstream(repository)?;
        let (settings, clock) = (upstream.settings(), &self.storage.clock);
        let known = self.memory.get(repository);
        match &known {
            Some(known) => {
                let age = known.age(clock);
                let freshness = freshness::judge(age, known.checked_at, settings);
                if freshness == Freshness::ServeAndRevalidate {
                    drop(self.revalidate(repository));
                }
                if freshness != Freshness::Expired {
                    let content = Arc::clone(known);
                    return Ok(ListResult { content, outcome: Outcome::Hit, age, stale: None });
                }
            }
            None => self.access.check_absence(repository, &AbsenceKey::Tags)?,
        }
        upstream.check_loop()?;
        let deadline = Deadline::new(&upstream, has_copy || known.is_some());
        let ticket = self.revalidate(repository);
        let leader = ticket.leader;
        match (deadline.wait(joined(&upstream, leader, ticket.wait())).await, known) {
            (Ok(content), known) => {
                let outcome = match known {
                    Some(known) if known.tags == content.tags => Outcome::Revalidated,
                    _ if leader => Outcome::Miss,
                    _ => Outcome::Join,
                };
                Ok(ListResult { content, outcome, age: Some(Duration::ZERO), stale: None })
            }
            // An empty list is not served stale: new tags may have been pushed.
            (Err(error), Some(known))
                if serves_stale(&error, known.age(clock), settings) && !known.tags.is_empty() =>
            {
                let age = known.age(clock);
                Ok(ListResult { content: known, outcome: Outcome::Stale, age, stale: Some(error) })
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Asks the upstream, once for all concurrent requests for the same list.
    fn revalidate(self: &Arc<Self>, repository: &Repository) -> Ticket<Arc<TagList>> {
        self.flights.join(repository, || {
            let (lists, repository) = (Arc::clone(self), repository.clone());
            async move { lists.ask_upstream(&repository).await }
        })
    }

    async fn ask_upstream(&self, repository: &Repository) -> Result<Arc<TagList>, CacheError> {
        let upstream = self.rules.upstream(repository)?;
        let mut tags = match upstream.tags(&repository.name, None).await {
            Ok(tags) => tags,
            Err(error) => {
                let error = self.access.remember_absence(repository, AbsenceKey::Tags, error.into());
                let is_absent = !error.allows_stale();
                if is_absent && upstream.settings().on_upstream_404 == OnUpstream404::Miss {
                    self.memory.remove(repository);
                }
                return Err(error);
            }
        };
        tags.sort_unstable();
        tags.dedup();
        let clock = &self.storage.clock;
        let list = Arc::new(TagList { tags, checked_at: clock.now(), at: clock.instant() });
        self.memory.insert(repository.clone(), Arc::clone(&list));
        Ok(list)
    }
}
