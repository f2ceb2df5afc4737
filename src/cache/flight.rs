//! Single flight: one piece of work per key, for any number of concurrent requests.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tracing::{Instrument as _, Span};

use crate::telemetry::trace;
use crate::upstream::RequestOrigin;

use super::error::CacheError;

type FlightResult<T> = Option<Result<T, CacheError>>;

/// Flights in progress, by key. A flight belongs to the cache: it continues when no request waits for it any more.
#[derive(Debug)]
pub(super) struct Flights<K, T> {
    running: RunningFlights<K, T>,
}

/// Result channel and trace span of each flight.
type RunningFlights<K, T> = Arc<Mutex<HashMap<K, (watch::Receiver<FlightResult<T>>, Span)>>>;

/// Participation of one request in a flight.
#[derive(Debug)]
pub(super) struct Ticket<T> {
    /// True for the request that started the flight.
    pub(super) leader: bool,
    result: watch::Receiver<FlightResult<T>>,
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
    /// Joins the flight for `key`. Starts it with `work` if there is none.
    pub(super) fn join<F>(&self, key: &K, work: impl FnOnce() -> F) -> Ticket<T>
    where
        F: Future<Output = Result<T, CacheError>> + Send + 'static,
    {
        let mut running = lock(&self.running);
        if let Some((result, span)) = running.get(key) {
            trace::join(span);
            return Ticket { leader: false, result: result.clone() };
        }
        let (sender, result) = watch::channel(None);
        let span = trace::flight();
        running.insert(key.clone(), (result.clone(), span.clone()));
        let guard = FlightGuard { running: Arc::clone(&self.running), key: key.clone() };
        let work = work();
        let flight = async move {
            let result = work.await;
            // Removed before the result is published: a request that comes after the result must start a new flight.
            drop(guard);
            sender.send_replace(Some(result));
        };
        tokio::spawn(RequestOrigin::inherit(flight).instrument(span));
        Ticket { leader: true, result }
    }
}

impl<T: Clone> Ticket<T> {
    /// Waits for the result, which is the same for every request in the flight.
    pub(super) async fn wait(mut self) -> Result<T, CacheError> {
        match self.result.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Err(CacheError::Interrupted)),
            Err(_) => Err(CacheError::Interrupted),
        }
    }
}

/// Removes a flight from the map when it ends, also after a panic.
struct FlightGuard<K: Eq + Hash, T> {
    running: RunningFlights<K, T>,
    key: K,
}

impl<K: Eq + Hash, T> Drop for FlightGuard<K, T> {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock is usable: no change under it can panic half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn flight_runs_once_and_every_request_gets_its_result() {
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
        assert!(flights.join(&1, || async { Ok(8) }).leader, "the flight has ended");
    }

    #[tokio::test]
    async fn ticket_of_a_panicked_flight_is_interrupted() {
        let flights = Flights::<u8, u32>::default();
        let lost = flights.join(&1, || async { panic!("on purpose") });
        assert!(matches!(lost.wait().await, Err(CacheError::Interrupted)));
        assert!(flights.join(&1, || async { Ok(1) }).leader);
    }
}
