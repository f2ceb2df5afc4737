//! Choices between named values.

use serde::{Deserialize, Serialize};

/// Content of `tags/list` (`cache.tags_list`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TagsList {
    /// The cached tags.
    #[default]
    Cached,
    /// All tags of the upstream.
    Upstream,
    /// Both.
    Merged,
}

/// Effect of an upstream's 404 on a cached tag (`cache.on_upstream_404`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUpstream404 {
    /// Clients get 404 too; the content stays in the store.
    #[default]
    Miss,
    /// The last known content is still served.
    Stale,
}

/// Treatment of blobs whose digest has an algorithm that cannot be verified (`upstream."NAME".unverifiable`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unverifiable {
    /// Clients get an error.
    #[default]
    Refuse,
    /// The bytes are passed through, unverified, and are not stored.
    Pass,
}
