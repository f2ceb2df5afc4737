//! The endpoints of an upstream, asked in turn until one has the answer.
//!
//! Tags are a matter for the authoritative ones; what is asked for by digest anybody may have. An endpoint that is
//! left alone, or wants to be, is passed over at no cost.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::schema;
use crate::oci::{Digest, UpstreamName};

use super::context::Context;
use super::error::{BuildError, UpstreamError};
use super::health::{Health, Permit};
use super::layout::Layout;
use super::quota::{Counted, Quota};
use super::registry::Registry;

/// Digests remembered per endpoint for which it sent something else.
const DISTRUSTED: usize = 256;

/// One way to reach an upstream.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) place: Place,
    pub(crate) health: Arc<Health>,
    pub(crate) quota: Arc<Quota>,
    /// What it is in the configuration.
    configured: schema::Endpoint,
    /// How often it sent something that was not what its digest promised.
    distrusted: Cache<Digest, u32>,
}

/// Where an endpoint's content is.
#[derive(Debug)]
pub(crate) enum Place {
    Registry(Box<Registry>),
    Layout(Layout),
}

impl Endpoint {
    pub(crate) fn build(
        name: &UpstreamName,
        upstream: &schema::Upstream,
        endpoint: &schema::Endpoint,
        told: &Arc<Notify>,
        context: &Context,
    ) -> Result<Self, BuildError> {
        let wrong =
            |reason: &str| BuildError::Endpoint { upstream: name.to_string(), reason: reason.to_owned() };
        let url = url::Url::parse(&endpoint.url).map_err(|error| {
            wrong(&format!("{error}; write it as https://host, http://host or oci:///folder"))
        })?;
        let Context { metrics, clock, .. } = context;
        let quota = Arc::new(Quota::new(name.clone(), Arc::clone(told), context));
        let place = match url.scheme() {
            "http" | "https" => {
                let registry = if endpoint.authoritative {
                    Registry::build(name, url, upstream, &quota, context)
                } else {
                    // The credentials are for the registry itself, not for whoever mirrors it.
                    let anonymous =
                        schema::Upstream { username: None, password_file: None, ..upstream.clone() };
                    Registry::build(name, url, &anonymous, &quota, context)
                };
                Place::Registry(Box::new(registry?))
            }
            "oci" => {
                if url.host_str().is_some_and(|host| !host.is_empty()) {
                    return Err(wrong("an oci:// endpoint is an absolute folder: oci:///folder"));
                }
                if url.query().is_some() || url.fragment().is_some() {
                    return Err(wrong("write `?` and `#` in a folder's name as %3F and %23"));
                }
                let root = percent_encoding::percent_decode_str(url.path()).decode_utf8();
                let root = root.map_err(|_| wrong("the folder's name is not UTF-8"))?;
                Place::Layout(Layout::new(name.clone(), root.as_ref().into(), Arc::clone(metrics)))
            }
            _ => return Err(wrong("only http://, https:// and oci:// are supported")),
        };
        let label = endpoint.url.trim_end_matches('/').to_owned();
        let health = Arc::new(Health::new(name.clone(), label, clock.clone(), Arc::clone(metrics)));
        let distrusted = Cache::new(DISTRUSTED);
        Ok(Self { place, health, quota, configured: endpoint.clone(), distrusted })
    }

    /// Whether it may say which digest a tag stands for.
    pub(crate) fn is_authoritative(&self) -> bool {
        self.configured.authoritative
    }

    /// Whether it is this one of the configuration.
    pub(crate) fn is_built_from(&self, endpoint: &schema::Endpoint) -> bool {
        self.configured == *endpoint
    }

    /// It sent something else than `digest` promises: others come before it the next time.
    pub(crate) fn distrust(&self, digest: &Digest) {
        self.distrusted.insert(*digest, self.distrust_of(digest).saturating_add(1));
    }

    fn distrust_of(&self, digest: &Digest) -> u32 {
        self.distrusted.get(digest).unwrap_or_default()
    }
}

/// One question on its way through the endpoints.
pub(crate) struct EndpointIter<'u> {
    /// With their places in the upstream's list.
    order: Vec<(usize, &'u Endpoint)>,
    at: usize,
    counted: Counted,
    /// Whether it is for a list, in pages.
    lists: bool,
    deadline: Instant,
    /// The error that says least definitely that there is nothing: only if all say so may the answer be that.
    error: Option<UpstreamError>,
}

/// One endpoint's turn.
pub(crate) struct Attempt<'u> {
    pub(crate) endpoint: &'u Endpoint,
    /// Its place in the upstream's list.
    pub(crate) place: usize,
    /// Until when it has to have answered, so that time is left for those after it.
    pub(crate) deadline: Instant,
    _permit: Permit,
}

impl<'u> EndpointIter<'u> {
    /// A round for `digest`, or for something that only authoritative endpoints may answer. It takes no longer than
    /// `patience` to the head of the last answer.
    pub(crate) fn new(
        endpoints: &'u [Arc<Endpoint>],
        digest: Option<&Digest>,
        counted: Counted,
        patience: Duration,
    ) -> Self {
        let all = endpoints.iter().map(Arc::as_ref).enumerate();
        let mut order: Vec<_> =
            all.filter(|(_, endpoint)| digest.is_some() || endpoint.is_authoritative()).collect();
        if let Some(digest) = digest.filter(|_| order.len() > 1) {
            order.sort_by_key(|(_, endpoint)| endpoint.distrust_of(digest));
        }
        Self { order, at: 0, counted, lists: false, deadline: Instant::now() + patience, error: None }
    }

    /// The same round for a list. A registry may fail at a long one, or at an API that it hardly has, and serve images
    /// well: unless it cannot be reached at all, that is not held against the endpoint.
    pub(crate) fn of_lists(self) -> Self {
        Self { lists: true, ..self }
    }

    /// The next endpoint that may be asked.
    pub(crate) fn next(&mut self) -> Option<Attempt<'u>> {
        loop {
            let (place, endpoint) = *self.order.get(self.at)?;
            // Those that follow count whether they may be asked or not; it is only about sharing time.
            let sharers = u32::try_from(self.order.len() - self.at).unwrap_or(u32::MAX);
            self.at += 1;
            match endpoint.quota.check(self.counted).and_then(|()| endpoint.health.permit()) {
                Ok(permit) => {
                    let now = Instant::now();
                    let deadline = now + self.deadline.saturating_duration_since(now) / sharers;
                    return Some(Attempt { endpoint, place, deadline, _permit: permit });
                }
                Err(error) => self.keep(error),
            }
        }
    }

    /// Notes how an endpoint did. `None`: the next one is to be asked.
    pub(crate) fn settle<T>(&mut self, attempt: &Attempt<'u>, result: Result<T, UpstreamError>) -> Option<T> {
        let endpoint = attempt.endpoint;
        match result {
            Ok(answer) => {
                endpoint.health.worked();
                endpoint.quota.granted();
                Some(answer)
            }
            Err(error) => {
                match &error {
                    UpstreamError::RateLimited { retry_after } => {
                        endpoint.health.worked();
                        endpoint.quota.refused(self.counted, *retry_after);
                    }
                    UpstreamError::Overloaded { retry_after } => {
                        endpoint.health.worked();
                        endpoint.quota.overloaded(*retry_after);
                    }
                    UpstreamError::Local(_) | UpstreamError::Busy => {}
                    UpstreamError::Unreachable(_) => endpoint.health.failed(&error),
                    error if error.is_outage() && self.lists => {}
                    error if error.is_outage() => endpoint.health.failed(error),
                    _ => endpoint.health.worked(),
                }
                self.keep(error);
                None
            }
        }
    }

    fn keep(&mut self, error: UpstreamError) {
        if self.error.as_ref().is_none_or(|kept| kept.doubt() < error.doubt()) {
            self.error = Some(error);
        }
    }

    /// No endpoint had the answer.
    pub(crate) fn over<T>(self) -> Result<T, UpstreamError> {
        Err(self.error.unwrap_or_else(|| {
            UpstreamError::Local(
                "none of its endpoints is authoritative, so none may be asked for a tag".into(),
            )
        }))
    }
}
