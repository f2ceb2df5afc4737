//! Attempts to answer one request: the endpoints of an upstream in order, until one of them has the answer.
//!
//! Only authoritative endpoints are asked about tags; any endpoint may send content by digest. Endpoints that are failing
//! are skipped without a request.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::probe;
use super::quota::QuotaClass;
use super::repository_backoff::RequestPath;
use super::request_origin::RequestOrigin;
use super::via::ServerId;
use crate::oci::Digest;
use crate::source::{BlobBody, Chunks, Source, SourceError};

/// Endpoints for one request, in the order in which they are asked.
pub(crate) struct EndpointIter<'u> {
    order: Vec<&'u Arc<Endpoint>>,
    next: usize,
    path: RequestPath,
    class: QuotaClass,
    /// Latest time for the answer of the last endpoint.
    deadline: Instant,
    /// Least definite error so far.
    error: Option<SourceError>,
}

/// Permission to ask one endpoint.
pub(crate) struct Attempt<'u> {
    pub(crate) endpoint: &'u Arc<Endpoint>,
    /// Latest time for the answer, which leaves time for the endpoints after it.
    pub(crate) deadline: Instant,
    path: RequestPath,
}

impl<'u> EndpointIter<'u> {
    /// Creates the order for a request by `digest`, or, without a digest, for one that only authoritative endpoints may
    /// answer. All answers together may take until `deadline`, at most `total`.
    pub(crate) fn new(
        endpoints: &'u [Arc<Endpoint>],
        path: RequestPath,
        digest: Option<&Digest>,
        class: QuotaClass,
        deadline: Option<Instant>,
        total: Duration,
    ) -> Self {
        let mut order: Vec<_> =
            endpoints.iter().filter(|endpoint| digest.is_some() || endpoint.is_authoritative()).collect();
        if let Some(digest) = digest.filter(|_| order.len() > 1) {
            order.sort_by_key(|endpoint| endpoint.mismatches(digest));
        }
        let own = Instant::now() + total;
        let deadline = deadline.map_or(own, |deadline| deadline.min(own));
        Self { order, next: 0, path, class, deadline, error: None }
    }

    /// Leaves out the endpoints that the current request has passed; all of them, if it has passed `server` itself.
    pub(crate) fn without_loops(mut self, server: ServerId) -> Self {
        let hops = &RequestOrigin::current().hops;
        if hops.is_empty() {
            return self;
        }
        let ends = hops.end_at(server);
        let before = self.order.len();
        self.order.retain(|endpoint| {
            let peer = endpoint.source.peer().server();
            !ends && peer.is_none_or(|peer| !hops.contains(peer))
        });
        if self.order.len() < before {
            self.keep(SourceError::Loop);
        }
        self
    }

    /// Returns the next endpoint that may be asked.
    pub(crate) fn next(&mut self) -> Option<Attempt<'u>> {
        loop {
            let endpoint = *self.order.get(self.next)?;
            // Counts the endpoints that will be skipped too, because it only divides the time.
            let remaining = u32::try_from(self.order.len() - self.next).unwrap_or(u32::MAX);
            self.next += 1;
            match endpoint.health.permit(&self.path) {
                Ok(()) => {
                    let now = Instant::now();
                    let deadline = now + self.deadline.saturating_duration_since(now) / remaining;
                    return Some(Attempt { endpoint, deadline, path: self.path.clone() });
                }
                Err(error) => self.keep(error),
            }
        }
    }

    /// Records the result of an attempt. `None`: the next endpoint has to be asked.
    pub(crate) fn record<T>(&mut self, attempt: &Attempt<'u>, result: Result<T, SourceError>) -> Option<T> {
        let endpoint = attempt.endpoint;
        match result {
            Ok(answer) => {
                endpoint.health.succeeded(&attempt.path);
                Some(answer)
            }
            Err(error) => {
                match &error {
                    SourceError::Loop => tracing::warn!(
                        endpoint = endpoint.health.endpoint(),
                        "the endpoint leads back to this server; asking the next one"
                    ),
                    // The request may not have been sent.
                    SourceError::RateLimited { .. }
                    | SourceError::Overloaded { .. }
                    | SourceError::Local(_)
                    | SourceError::Busy
                    | SourceError::TooManyDocuments => {}
                    // The endpoint has answered with a redirect.
                    SourceError::TargetUnavailable(_) => endpoint.health.succeeded(&attempt.path),
                    error if error.is_connection_failure() => failed(endpoint, &attempt.path, error),
                    // The head of a blob may take long. Other content of the registry is sent meanwhile.
                    SourceError::Timeout(_) if self.class == QuotaClass::Blob => {}
                    // A registry may fail at long lists, or at an API that it hardly supports, and serve images well.
                    error if error.is_outage() && self.class == QuotaClass::List => {
                        endpoint.health.path_failed(&attempt.path, error);
                    }
                    error if error.is_outage() => failed(endpoint, &attempt.path, error),
                    _ => endpoint.health.succeeded(&attempt.path),
                }
                self.keep(error);
                None
            }
        }
    }

    fn keep(&mut self, error: SourceError) {
        self.error = Some(match self.error.take() {
            Some(kept) => kept.less_definite(error),
            None => error,
        });
    }

    /// Asks one endpoint after the other until one has the answer.
    pub(crate) async fn first<T>(
        mut self,
        ask: impl Fn(&'u dyn Source, Option<Instant>) -> SourceFuture<'u, T>,
    ) -> Result<T, SourceError> {
        while let Some(attempt) = self.next() {
            let result = ask(attempt.endpoint.source.as_source(), Some(attempt.deadline)).await;
            if let Some(answer) = self.record(&attempt, result) {
                return Ok(answer);
            }
        }
        self.into_error()
    }

    /// Returns the error after the last attempt.
    pub(crate) fn into_error<T>(self) -> Result<T, SourceError> {
        Err(self.error.unwrap_or_else(|| {
            SourceError::Local(
                "none of its endpoints is authoritative, so none may be asked for a tag".into(),
            )
        }))
    }
}

/// Future of a method of [`Source`].
pub(crate) type SourceFuture<'f, T> = Pin<Box<dyn Future<Output = Result<T, SourceError>> + Send + 'f>>;

impl Attempt<'_> {
    /// Labels a body with its endpoint, so that failures while it is sent count against the endpoint.
    pub(crate) fn label(&self, body: BlobBody) -> BlobBody {
        let (endpoint, path) = (Arc::clone(self.endpoint), self.path.clone());
        let sender = Arc::clone(self.endpoint);
        body.sent_by(sender, |chunks| Box::new(ObservedChunks { chunks, endpoint, path }))
    }
}

/// Counts a failure against an endpoint, and starts probes if the endpoint as a whole seems to fail.
fn failed(endpoint: &Arc<Endpoint>, path: &RequestPath, error: &SourceError) {
    if endpoint.health.failed(path, error) {
        probe::start(endpoint);
    }
}

/// Chunks of a body whose failures are counted against the endpoint.
struct ObservedChunks {
    chunks: Box<dyn Chunks>,
    endpoint: Arc<Endpoint>,
    path: RequestPath,
}

#[async_trait]
impl Chunks for ObservedChunks {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let result = self.chunks.next().await;
        if let Err(error) = &result
            && error.is_outage()
        {
            failed(&self.endpoint, &self.path, error);
        }
        result
    }
}
