//! Lists of tags: those held, those that the upstream has, or both.
//!
//! The upstream's list is fetched whole and kept in memory by the rules for tags. As it is kept no longer than the
//! process lives, the tags held take its place in trouble after a restart, if the two are to be merged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::Weighter;
use quick_cache::sync::Cache as Memory;

use crate::config::schema::{OnUpstream404, TagsList};
use crate::oci::{Repository, Tag};
use crate::source::Source as _;
use crate::telemetry::Outcome;

use crate::cache::Cache;
use crate::cache::access::remember;
use crate::cache::core::Shared;
use crate::cache::deadline::Deadline;
use crate::cache::error::CacheError;
use crate::cache::flight::{Flights, Ticket};
use crate::cache::freshness::{self, Freshness};
use crate::cache::lists::catalog::ListResult;
use crate::cache::lists::catalog::NamePage;
use crate::cache::lists::catalog::cached_tags;
use crate::cache::manifest::resolve::serves_stale;
use crate::cache::memory::AbsenceKey;

/// Bytes of lists kept in memory.
const LIST_BYTES: u64 = 64 << 20;
/// A memory for so few lists is not divided up, so that the longest one fits.
const LISTS: usize = 32;

/// An upstream's tags, sorted by bytes.
#[derive(Debug)]
struct TagList {
    tags: Vec<Tag>,
    /// When the upstream gave it, in milliseconds since 1970.
    checked_at: u64,
    /// The same by a clock that nobody sets.
    at: Instant,
}

#[derive(Clone, Debug)]
struct ByLength;

impl Weighter<Repository, Arc<TagList>> for ByLength {
    fn weight(&self, _key: &Repository, list: &Arc<TagList>) -> u64 {
        list.tags.iter().map(|tag| tag.as_str().len() as u64 + 48).sum::<u64>() + 512
    }
}

/// The lists in memory, and the questions under way.
#[derive(Debug)]
pub(in crate::cache) struct TagLists {
    memory: Memory<Repository, Arc<TagList>, ByLength>,
    flights: Flights<Repository, Arc<TagList>>,
}

impl TagLists {
    pub(in crate::cache) fn new() -> Self {
        Self { memory: Memory::with_weighter(LISTS, LIST_BYTES, ByLength), flights: Flights::default() }
    }
}

impl Cache {
    /// Up to `limit` tags of a repository that sort after `last`, of whichever list the configuration wants. `None` if
    /// it wants those held and there are none.
    pub async fn tags(
        &self,
        repository: &Repository,
        last: Option<String>,
        limit: usize,
    ) -> Result<Option<ListResult<NamePage>>, CacheError> {
        let shared = &self.0;
        let wanted = shared.upstream(repository)?.settings().tags_list;
        // One more than wanted tells whether there are more.
        let one_more = limit.saturating_add(1);
        let held = match wanted {
            TagsList::Upstream => None,
            TagsList::Cached | TagsList::Merged => {
                cached_tags(shared, repository, last.clone(), one_more).await?
            }
        };
        if wanted == TagsList::Cached {
            let (outcome, age, stale) = (Outcome::Hit, None, None);
            return Ok(held.map(|held| ListResult {
                content: NamePage::cut(held, limit),
                outcome,
                age,
                stale,
            }));
        }
        let listing = match (upstreams(shared, repository, held.is_some()).await, held) {
            (Ok(ListResult { content, outcome, age, stale }), held) => {
                let from = last.map_or(0, |last| content.tags.partition_point(|tag| tag.as_str() <= &*last));
                let mut names = held.unwrap_or_default();
                names.extend(content.tags[from..].iter().take(one_more).map(|tag| tag.as_str().to_owned()));
                names.sort_unstable();
                names.dedup();
                ListResult { content: NamePage::cut(names, limit), outcome, age, stale }
            }
            (Err(error), Some(held)) => {
                let stale = Some(error).filter(CacheError::is_trouble);
                let outcome = if stale.is_some() { Outcome::Stale } else { Outcome::Hit };
                ListResult { content: NamePage::cut(held, limit), outcome, age: None, stale }
            }
            (Err(error), None) => return Err(error),
        };
        Ok(Some(listing))
    }
}

/// The upstream's list, fresh or the last known one. Who has a `copy` of another kind does not wait long either.
async fn upstreams(
    shared: &Arc<Shared>,
    repository: &Repository,
    copy: bool,
) -> Result<ListResult<Arc<TagList>>, CacheError> {
    let upstream = shared.upstream(repository)?;
    let settings = upstream.settings();
    let known = shared.tag_lists.memory.get(repository);
    let age = |list: &TagList| {
        let lived = shared.clock.instant().saturating_duration_since(list.at);
        freshness::age(shared.clock.now_millis(), list.checked_at, Some(lived))
    };
    if let Some(known) = &known {
        let judged = freshness::judge(age(known), known.checked_at, settings);
        if judged == Freshness::ServeAndRevalidate {
            drop(question(shared, repository));
        }
        if judged != Freshness::Expired {
            let (content, age) = (Arc::clone(known), age(known));
            return Ok(ListResult { content, outcome: Outcome::Hit, age, stale: None });
        }
    } else if shared.memory.is_absent(repository, &AbsenceKey::Tags, shared.clock.instant()) {
        return Err(CacheError::NotFound);
    }
    let patience = Deadline::with(&upstream, copy || known.is_some());
    let ticket = question(shared, repository);
    let leader = ticket.leader;
    let answer = patience.wait(ticket.wait()).await;
    match (answer, known) {
        (Ok(content), known) => {
            let outcome = match known {
                Some(known) if known.tags == content.tags => Outcome::Revalidated,
                _ if leader => Outcome::Miss,
                _ => Outcome::Join,
            };
            Ok(ListResult { content, outcome, age: Some(Duration::ZERO), stale: None })
        }
        // That there was nothing is no answer while nobody can be asked.
        (Err(error), Some(known))
            if serves_stale(&error, age(&known), settings) && !known.tags.is_empty() =>
        {
            let age = age(&known);
            Ok(ListResult { content: known, outcome: Outcome::Stale, age, stale: Some(error) })
        }
        (Err(error), _) => Err(error),
    }
}

/// Puts the question to the upstream, once for all who wait for the same list.
fn question(shared: &Arc<Shared>, repository: &Repository) -> Ticket<Arc<TagList>> {
    shared.tag_lists.flights.join(repository, || {
        let (shared, repository) = (Arc::clone(shared), repository.clone());
        async move {
            let upstream = shared.upstream(&repository)?;
            let mut tags = match upstream.tags(&repository.name, None).await {
                Ok(tags) => tags,
                Err(error) => {
                    let error = remember(&shared, &repository, AbsenceKey::Tags, error.into());
                    let gone = !error.is_trouble();
                    if gone && upstream.settings().on_upstream_404 == OnUpstream404::Miss {
                        shared.tag_lists.memory.remove(&repository);
                    }
                    return Err(error);
                }
            };
            tags.sort_unstable();
            tags.dedup();
            let list =
                Arc::new(TagList { tags, checked_at: shared.clock.now_millis(), at: shared.clock.instant() });
            shared.tag_lists.memory.insert(repository.clone(), Arc::clone(&list));
            Ok(list)
        }
    })
}
