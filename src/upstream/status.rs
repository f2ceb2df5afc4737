//! How the upstreams stand, for who looks on: asks nobody.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Upstream, Upstreams};

/// How an upstream stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UpstreamState {
    /// Its configured name.
    pub name: String,
    /// Whether it is meant where a name says nothing of an upstream.
    pub default: bool,
    /// In the order in which they are asked.
    pub endpoints: Vec<EndpointState>,
}

/// Whether an endpoint is asked: the states of a circuit breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Breaker {
    /// It is asked whenever something is wanted of it.
    #[default]
    Closed,
    /// It failed again and again, and is left alone.
    Open,
    /// It was left alone; one request finds out whether it is back.
    HalfOpen,
}

/// How an endpoint has been doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = EndpointHealth)]
pub struct HealthState {
    /// Whether it is asked.
    pub breaker: Breaker,
    /// Failures in a row.
    pub failures: u32,
    /// What went wrong last, if it has not worked since.
    pub error: Option<String>,
    /// Until when it is left alone, in milliseconds since 1970.
    pub open_until: Option<u64>,
}

/// What an endpoint last told of its quota.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Quota)]
pub struct QuotaState {
    /// Requests per window.
    pub limit: u64,
    /// Requests left.
    pub remaining: u64,
    /// The window in seconds, where it was told.
    pub window: Option<u64>,
    /// When that was told, in milliseconds since 1970.
    pub seen_at: u64,
    /// When a whole window has passed since, in milliseconds since 1970.
    pub resets_at: Option<u64>,
}

/// How an endpoint stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Endpoint)]
pub struct EndpointState {
    /// As it is configured.
    pub url: String,
    /// Whether it may say what a tag stands for.
    pub authoritative: bool,
    /// How it has been doing.
    #[serde(flatten)]
    pub health: HealthState,
    /// What it last told of its quota.
    pub quota: Option<QuotaState>,
    /// Until when it is not asked because it limits the rate or is overloaded, in milliseconds since 1970.
    pub limited_until: Option<u64>,
}

/// A length of time in milliseconds.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Upstreams {
    /// How all of them stand, by name.
    pub fn states(&self) -> Vec<UpstreamState> {
        let default = self.router().default_upstream();
        self.iter().map(|upstream| upstream.state(default == Some(upstream.name()))).collect()
    }
}

impl Upstream {
    fn state(&self, default: bool) -> UpstreamState {
        let endpoints = self.endpoints.iter().map(|endpoint| EndpointState {
            url: endpoint.health.endpoint().to_owned(),
            authoritative: endpoint.is_authoritative(),
            health: endpoint.health.state(),
            quota: endpoint.quota.state(),
            limited_until: endpoint.quota.limited_until(),
        });
        UpstreamState { name: self.name.to_string(), default, endpoints: endpoints.collect() }
    }
}
