//! Values of metric labels: kind of request, outcome, and class of status codes.

/// Kind of a client's request: the `kind` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// A manifest by tag.
    ManifestTag,
    /// A manifest by digest.
    ManifestDigest,
    /// A blob.
    Blob,
    /// `tags/list`.
    Tags,
    /// `_catalog`.
    Catalog,
    /// `referrers`.
    Referrers,
    /// `/v2/` itself.
    Base,
    /// Any other request, usually refused.
    Other,
}

impl RequestKind {
    pub(super) const ALL: [Self; 8] = [
        Self::ManifestTag,
        Self::ManifestDigest,
        Self::Blob,
        Self::Tags,
        Self::Catalog,
        Self::Referrers,
        Self::Base,
        Self::Other,
    ];

    /// Returns the value of the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ManifestTag => "manifest_tag",
            Self::ManifestDigest => "manifest_digest",
            Self::Blob => "blob",
            Self::Tags => "tags",
            Self::Catalog => "catalog",
            Self::Referrers => "referrers",
            Self::Base => "base",
            Self::Other => "other",
        }
    }
}

/// Result of the cache for one request. Logs, metrics and headers use the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered from the store alone.
    Hit,
    /// Fetched from the upstream for this request.
    Miss,
    /// Joined a fill that another request had started (request coalescing).
    Join,
    /// The upstream confirmed that the cached tag is current.
    Revalidated,
    /// The upstream was not available; the last known content was served.
    Stale,
    /// Passed through without being stored.
    Bypass,
    /// No content was served: a refusal, an error, or a request that does not use the cache.
    None,
}

impl Outcome {
    pub(super) const ALL: [Self; 7] =
        [Self::Hit, Self::Miss, Self::Join, Self::Revalidated, Self::Stale, Self::Bypass, Self::None];

    /// Returns the word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Join => "join",
            Self::Revalidated => "revalidated",
            Self::Stale => "stale",
            Self::Bypass => "bypass",
            Self::None => "none",
        }
    }
}

/// Values of the `status` label.
pub(super) const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
