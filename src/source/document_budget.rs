//! Budgets for large documents in progress, which are manifests and lists: their memory while they are received, parsed and
//! stored, and the processors that parse and store them.
//!
//! Small documents need no permission, so that a registry with large documents does not delay others.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::error::SourceError;
use crate::oci::manifest;

/// Memory of all documents in progress, in KiB.
const MEMORY_MAX: usize = 160 << 10;
/// Memory of the documents of one upstream, in KiB: one list of the largest size.
const UPSTREAM_MAX: usize = MEMORY_MAX / 2;
/// Memory that a document needs for each of its bytes, at the peak of its processing.
const COST: usize = 5;
/// A manifest of the largest configurable size fits into the memory of one upstream.
const _: () = assert!(UPSTREAM_MAX << 10 >= COST * manifest::SIZE_LIMIT as usize);
/// Size of documents that are not counted.
pub const SMALL_DOCUMENT: usize = 64 << 10;
/// Longest wait for a turn, or for memory, of a document that has no deadline of its own.
pub const WAIT_MAX: Duration = Duration::from_secs(9);

/// Budget shared by all upstreams; clones share it.
#[derive(Clone, Debug)]
pub struct DocumentBudget(Arc<BudgetState>);

#[derive(Debug)]
struct BudgetState {
    all: Share,
    /// Share of each upstream. Upstreams come from the configuration, so their number is bounded.
    upstreams: Mutex<HashMap<String, Share>>,
}

/// Memory, and turns of documents to be processed.
#[derive(Clone, Debug)]
struct Share {
    memory: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

impl Share {
    fn new(memory: usize, turns: usize) -> Self {
        Self { memory: Arc::new(Semaphore::new(memory)), turns: Arc::new(Semaphore::new(turns)) }
    }
}

/// Runs `work` on a document of `size` bytes that has no upstream or has its turn. A large document gets a thread that may
/// block, so that it does not delay other requests.
pub async fn process<T, F>(size: usize, work: F) -> Result<T, SourceError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    if size <= SMALL_DOCUMENT {
        return Ok(work());
    }
    let failed = |_| SourceError::Local("a document could not be processed".to_owned());
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

/// Memory of one document. Dropping it leaves the memory to others.
#[derive(Debug)]
pub struct DocumentMemory {
    budget: DocumentBudget,
    upstream: Share,
    held: Option<[OwnedSemaphorePermit; 2]>,
    /// Size of the document, as far as it is known.
    size: usize,
}

/// Turn of one document to be processed: permit for work in proportion to its size. Move it into the work, so that the turn
/// ends with the work. `None` for a small document.
#[derive(Debug)]
#[must_use = "the turn ends when it is dropped"]
pub struct DocumentTurn {
    _permits: Option<[OwnedSemaphorePermit; 2]>,
}

/// Document together with its memory.
#[derive(Debug)]
pub struct Counted<T> {
    document: T,
    /// `None` for a document that a local source has read.
    memory: Option<DocumentMemory>,
}

impl Default for DocumentBudget {
    fn default() -> Self {
        // Half of the processors stay for all other requests.
        let turns = available_parallelism().map_or(1, |count| count.get() / 2).max(1);
        Self(Arc::new(BudgetState { all: Share::new(MEMORY_MAX, turns), upstreams: Mutex::default() }))
    }
}

impl DocumentBudget {
    /// Returns the memory of a new document of an upstream: none yet.
    pub fn document(&self, upstream: &str) -> DocumentMemory {
        let mut upstreams = self.0.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        let share = match upstreams.get(upstream) {
            Some(share) => share,
            None => {
                // One document at a time: the documents of one upstream must not delay those of another.
                upstreams.entry(upstream.to_owned()).or_insert_with(|| Share::new(UPSTREAM_MAX, 1))
            }
        };
        DocumentMemory { budget: self.clone(), upstream: share.clone(), held: None, size: 0 }
    }
}

impl DocumentMemory {
    /// Waits for the memory of a document of up to `size` bytes. Does nothing if the document has its memory already.
    ///
    /// All memory is reserved at once and in order of arrival. With a reservation for each chunk, documents that hold a part
    /// could wait for each other.
    pub async fn reserve(&mut self, size: usize, deadline: Instant) -> Result<(), SourceError> {
        if size <= SMALL_DOCUMENT || self.held.is_some() {
            return Ok(());
        }
        let wanted = kib(size);
        let reserve = async {
            let upstream = Arc::clone(&self.upstream.memory).acquire_many_owned(wanted).await;
            let all = Arc::clone(&self.budget.0.all.memory).acquire_many_owned(wanted).await;
            // The semaphores are never closed.
            Some([upstream.ok()?, all.ok()?])
        };
        let held = timeout_at(deadline, reserve).await.map_err(|_| SourceError::TooManyDocuments)?;
        self.held = Some(held.ok_or(SourceError::TooManyDocuments)?);
        Ok(())
    }

    /// Reduces the memory to that of a document of `size` bytes.
    pub fn shrink(&mut self, size: usize) {
        self.size = size;
        let needed = if size <= SMALL_DOCUMENT { 0 } else { kib(size) as usize };
        for permit in self.held.iter_mut().flatten() {
            drop(permit.split(permit.num_permits().saturating_sub(needed)));
        }
    }

    /// Waits for the turn of the document, whose size is that of [`shrink`](Self::shrink).
    pub async fn own_turn(&self) -> Result<DocumentTurn, SourceError> {
        self.turn(self.size, Instant::now() + WAIT_MAX).await
    }

    /// Waits for the turn of a document of `size` bytes. A holder of a turn must not wait for memory or for another turn.
    ///
    /// Documents of one upstream get their turns one after the other, and the upstreams alternate.
    pub async fn turn(&self, size: usize, deadline: Instant) -> Result<DocumentTurn, SourceError> {
        if size <= SMALL_DOCUMENT {
            return Ok(DocumentTurn { _permits: None });
        }
        let both = async {
            let upstream = Arc::clone(&self.upstream.turns).acquire_owned().await;
            let all = Arc::clone(&self.budget.0.all.turns).acquire_owned().await;
            // The semaphores are never closed.
            Some([upstream.ok()?, all.ok()?])
        };
        let permits = timeout_at(deadline, both).await.map_err(|_| SourceError::TooManyDocuments)?;
        Ok(DocumentTurn { _permits: permits })
    }

    /// Runs `work` on a document of `size` bytes when it has its turn.
    pub async fn process<T, F>(&self, size: usize, deadline: Instant, work: F) -> Result<T, SourceError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let turn = self.turn(size, deadline).await?;
        let work = move || {
            let _turn = turn;
            work()
        };
        process(size, work).await
    }
}

/// Returns the memory of a document in KiB. A single document may have any size.
fn kib(size: usize) -> u32 {
    let needed = size.saturating_mul(COST).div_ceil(1024).min(UPSTREAM_MAX);
    u32::try_from(needed).unwrap_or(u32::MAX)
}

impl<T> Counted<T> {
    /// Creates a document with its memory.
    pub fn new(document: T, memory: impl Into<Option<DocumentMemory>>) -> Self {
        Self { document, memory: memory.into() }
    }

    /// Returns the document and its memory.
    pub fn into_parts(self) -> (T, Option<DocumentMemory>) {
        (self.document, self.memory)
    }
}

impl<T> Deref for Counted<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.document
    }
}

impl<T> DerefMut for Counted<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.document
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    #[tokio::test]
    async fn large_documents_wait_and_small_ones_do_not() {
        let budget = DocumentBudget::default();
        let mut first = budget.document("a.test");
        first.reserve(usize::MAX, soon()).await.expect("a single document may have any size");
        let mut second = budget.document("a.test");
        assert_eq!(second.reserve(1 << 20, soon()).await, Err(SourceError::TooManyDocuments));
        budget.document("a.test").reserve(SMALL_DOCUMENT, soon()).await.expect("small");
        // Other upstreams have a share of their own.
        let mut other = budget.document("b.test");
        other.reserve(16 << 20, soon()).await.expect("memory");
        let third = budget.document("c.test").reserve(1 << 20, soon()).await;
        assert_eq!(third, Err(SourceError::TooManyDocuments));
        let waiting = tokio::spawn(async move { second.reserve(1 << 20, later()).await });
        tokio::task::yield_now().await;
        first.shrink(1 << 20);
        waiting.await.expect("no panic").expect("memory");
        drop((first, other));
        budget.document("c.test").reserve(16 << 20, soon()).await.expect("memory");
    }

    #[tokio::test]
    async fn large_documents_take_turns_and_upstreams_alternate() {
        let all = Share::new(MEMORY_MAX, 1);
        let budget = DocumentBudget(Arc::new(BudgetState { all, upstreams: Mutex::default() }));
        let (a, b) = (budget.document("a.test"), budget.document("b.test"));
        let running = a.turn(1 << 20, soon()).await.expect("a turn");
        assert_eq!(b.turn(1 << 20, soon()).await.expect_err("no turn"), SourceError::TooManyDocuments);
        drop(b.turn(SMALL_DOCUMENT, soon()).await.expect("small"));
        let (order, turns) = (Arc::new(Mutex::new(Vec::new())), ["a.test", "a.test", "a.test", "b.test"]);
        let mut waiting = Vec::new();
        for upstream in turns {
            let (document, order) = (budget.document(upstream), Arc::clone(&order));
            waiting.push(tokio::spawn(async move {
                let _turn = document.turn(1 << 20, later()).await.expect("a turn");
                order.lock().unwrap_or_else(PoisonError::into_inner).push(upstream);
            }));
            tokio::task::yield_now().await;
        }
        drop(running);
        for waiting in waiting {
            waiting.await.expect("no panic");
        }
        // The upstream that came last does not wait for all documents of the other one.
        let order = order.lock().unwrap_or_else(PoisonError::into_inner).clone();
        assert_ne!(order.last(), Some(&"b.test"), "{order:?}");
        assert_eq!(order.len(), turns.len());
    }
}
