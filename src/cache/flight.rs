//! Single flight: one piece of work per key, however many ask for it.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tracing::{Instrument as _, Span};

use crate::cache::error::CacheError;
use crate::telemetry::trace;

type Ending<T> = Option<Result<T, CacheError>>;

/// The flights under way, by key. The work belongs to the cache: it goes on when everybody who waits has left.
#[derive(Debug)]
pub(in crate::cache) struct Flights<K, T> {
    running: Running<K, T>,
}

/// Each with its span.
type Running<K, T> = Arc<Mutex<HashMap<K, (watch::Receiver<Ending<T>>, Span)>>>;

/// A place in a flight.
#[derive(Debug)]
pub(in crate::cache) struct Ticket<T> {
    /// Whether this request started the work.
    pub(in crate::cache) leader: bool,
    ending: watch::Receiver<Ending<T>>,
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self { running: Arc::default() }
    }
}

impl<K, T> Flights<K, T>
where
    K: Eq + Hash + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Joins the flight for `key`; the first to ask starts `work`.
    pub(in crate::cache) fn join<F>(&self, key: &K, work: impl FnOnce() -> F) -> Ticket<T>
    where
        F: Future<Output = Result<T, CacheError>> + Send + 'static,
    {
        let mut running = lock(&self.running);
        if let Some((ending, span)) = running.get(key) {
            trace::join(span);
            return Ticket { leader: false, ending: ending.clone() };
        }
        let (sender, ending) = watch::channel(None);
        let span = trace::flight();
        running.insert(key.clone(), (ending.clone(), span.clone()));
        let landing = Landing { running: Arc::clone(&self.running), key: key.clone() };
        let work = work();
        let flight = async move {
            let result = work.await;
            // Off the board first: who comes after the result is known must not join a flight that has landed.
            drop(landing);
            sender.send_replace(Some(result));
        };
        tokio::spawn(flight.instrument(span));
        Ticket { leader: true, ending }
    }
}

impl<T: Clone> Ticket<T> {
    /// Waits for the end; the same one for everybody in the flight.
    pub(in crate::cache) async fn wait(mut self) -> Result<T, CacheError> {
        match self.ending.wait_for(Option::is_some).await {
            Ok(ending) => ending.clone().unwrap_or(Err(CacheError::Interrupted)),
            Err(_) => Err(CacheError::Interrupted),
        }
    }
}

/// Takes a flight off the board, also when its work panics.
struct Landing<K: Eq + Hash, T> {
    running: Running<K, T>,
    key: K,
}

impl<K: Eq + Hash, T> Drop for Landing<K, T> {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can panic halfway through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_runs_once_and_everybody_learns_its_end() {
        let flights = Flights::<u8, u32>::default();
        let runs = Arc::new(AtomicU32::new(0));
        let (go, gate) = oneshot::channel::<()>();
        let counted = Arc::clone(&runs);
        let first = flights.join(&1, || async move {
            counted.fetch_add(1, Ordering::SeqCst);
            gate.await.ok();
            Ok(7)
        });
        let second = flights.join(&1, || async { panic!("a second run") });
        assert!(first.leader && !second.leader);
        go.send(()).expect("the leader waits");
        assert_eq!(first.wait().await.ok(), Some(7));
        assert_eq!(second.wait().await.ok(), Some(7));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert!(flights.join(&1, || async { Ok(8) }).leader, "the flight has landed");
    }

    #[tokio::test]
    async fn a_follower_of_a_lost_leader_is_told() {
        let flights = Flights::<u8, u32>::default();
        let lost = flights.join(&1, || async { panic!("on purpose") });
        assert!(matches!(lost.wait().await, Err(CacheError::Interrupted)));
        assert!(flights.join(&1, || async { Ok(1) }).leader);
    }
}
