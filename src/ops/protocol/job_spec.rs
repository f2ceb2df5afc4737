//! Specification of jobs in the admin API.

use serde::{Deserialize, Serialize};

/// Operation that runs as a job. In JSON an object with a `verb`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "verb", rename_all = "lowercase", deny_unknown_fields)]
#[schema(as = Task)]
pub enum JobSpec {
    /// Verify the digests of all cached content.
    Verify {
        /// True to fetch corrupt content again at once.
        #[serde(default)]
        repair: bool,
    },
    /// Remove leftovers of deleted content.
    Gc {},
    /// Fetch images before a client pulls them.
    Warm(WarmSpec),
    /// Remove images from the cache.
    Rm {
        /// References of the images.
        references: Vec<String>,
    },
}

impl JobSpec {
    /// Returns the verb.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Verify { .. } => "verify",
            Self::Gc {} => "gc",
            Self::Warm(_) => "warm",
            Self::Rm { .. } => "rm",
        }
    }

    /// Returns true if only one such job may run at a time.
    pub(in crate::ops) fn is_alone(&self) -> bool {
        matches!(self, Self::Verify { .. } | Self::Gc {})
    }
}

/// Images to fetch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = Warm)]
pub struct WarmSpec {
    /// References of the images.
    #[schema(required = true)]
    pub references: Vec<String>,
    /// Platforms of an index to fetch. Empty means all.
    pub platforms: Vec<String>,
    /// True to fetch the artifacts that refer to the images too, such as signatures.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub referrers: bool,
}
