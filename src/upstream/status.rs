//! Status of upstreams, as the status pages and the API show it.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// Status of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UpstreamState {
    /// Configured name.
    pub name: String,
    /// True if names without an upstream belong to this one.
    pub default: bool,
    /// Endpoints, in the order in which they are asked.
    pub endpoints: Vec<EndpointState>,
}

/// State of a circuit breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Breaker {
    /// Requests are sent.
    #[default]
    Closed,
    /// No requests are sent after several failures in a row.
    Open,
    /// The back-off has ended; the next request is a probe.
    HalfOpen,
}

/// Health of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = EndpointHealth)]
pub struct HealthState {
    /// State of the circuit breaker.
    pub breaker: Breaker,
    /// Failures in a row.
    pub failures: u32,
    /// Last failure, if there was no success since.
    pub error: Option<String>,
    /// End of the back-off.
    pub open_until: Option<Timestamp>,
}

/// Reason of a refusal of credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalReason {
    /// The token service refused them.
    TokenService,
    /// The registry does not accept them (status 401).
    Login,
    /// The registry permits no access to the repository with them (status 403).
    Repository,
}

impl RefusalReason {
    /// Returns the label of metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TokenService => "token-service",
            Self::Login => "login",
            Self::Repository => "repository",
        }
    }
}

/// Refusal of credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RefusedAccess {
    /// Repository of the last refusal.
    pub repository: String,
    /// Reason of the last refusal.
    pub reason: RefusalReason,
    /// Time of the last refusal.
    pub at: Timestamp,
    /// Number of repositories for which the credentials are refused.
    pub repositories: u64,
}

/// Quota as an endpoint last announced it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Quota)]
pub struct QuotaState {
    /// Requests per window.
    pub limit: u64,
    /// Requests left.
    pub remaining: u64,
    /// Length of the window in seconds, if announced.
    pub window: Option<u64>,
    /// Time of the announcement.
    pub seen_at: Timestamp,
    /// Time at which a whole window has passed.
    pub resets_at: Option<Timestamp>,
}

/// Status of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Endpoint)]
pub struct EndpointState {
    /// URL as configured.
    pub url: String,
    /// True if the endpoint may say which digest a tag points to.
    pub authoritative: bool,
    /// Health.
    #[serde(flatten)]
    pub health: HealthState,
    /// True if a request was sent since the server started.
    #[serde(default)]
    pub asked: bool,
    /// Last refusal of the credentials, if they were not accepted since.
    #[serde(default)]
    pub refused: Option<RefusedAccess>,
    /// Quota, if announced.
    pub quota: Option<QuotaState>,
    /// End of the pause after a rate limit or an overload.
    pub limited_until: Option<Timestamp>,
}
