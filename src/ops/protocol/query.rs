//! Read-only queries of the admin API, and their encoding as a path and a query string.
//!
//! Writing and parsing are in one file, so that the command line and the API agree.

use serde::{Deserialize, Serialize};

use super::encoding::{Pairs, target};
use super::error::OpsError;
use crate::oci::media::{OCI_INDEX, OCI_MANIFEST};

/// Query that changes nothing and is answered at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// Cached images of one repository, or of all.
    List {
        /// Repository to list. `None` means all.
        repository: Option<String>,
    },
    /// Cached tags of a repository.
    Tags {
        /// Name of the repository.
        repository: String,
    },
    /// Cached manifest, index or config.
    Inspect(InspectQuery),
    /// Check that pulls would succeed without the upstream.
    Check(CheckQuery),
    /// State of the server.
    Status,
}

impl Query {
    /// Returns the path and query.
    pub fn target(&self) -> String {
        let (path, pairs) = self.written();
        target(path, pairs)
    }

    fn written(&self) -> (&'static str, Vec<(&'static str, String)>) {
        let mut pairs = Vec::new();
        let path = match self {
            Self::List { repository } => {
                pairs.extend(repository.clone().map(|name| ("repository", name)));
                "/images"
            }
            Self::Tags { repository } => {
                pairs.push(("repository", repository.clone()));
                "/tags"
            }
            Self::Inspect(query) => {
                pairs.push(("reference", query.reference.clone()));
                pairs.extend(query.platform.clone().map(|platform| ("platform", platform)));
                pairs.extend(query.media_type.clone().map(|media_type| ("media_type", media_type)));
                for (key, flag) in [("index", query.index), ("oci", query.oci), ("config", query.config)] {
                    pairs.extend(flag.then(|| (key, "true".to_owned())));
                }
                "/inspect"
            }
            Self::Check(query) => {
                pairs.extend(query.references.iter().map(|it| ("reference", it.clone())));
                pairs.extend(query.platforms.iter().map(|it| ("platform", it.clone())));
                "/check"
            }
            Self::Status => "/status",
        };
        (path, pairs)
    }

    /// Parses a path below `ROOT` and a query that `target` wrote. Returns `None` for any other path.
    pub fn read(path: &str, query: &str) -> Option<Result<Self, OpsError>> {
        let mut pairs = Pairs::of(query);
        let parsed = match path {
            "/images" => pairs.one("repository").map(|repository| Self::List { repository }),
            "/tags" => pairs.needed("repository").map(|repository| Self::Tags { repository }),
            "/inspect" => inspect_query(&mut pairs).map(Self::Inspect),
            "/check" => {
                let (references, platforms) = (pairs.all("reference"), pairs.all("platform"));
                Ok(Self::Check(CheckQuery { references, platforms }))
            }
            "/status" => Ok(Self::Status),
            _ => return None,
        };
        Some(parsed.and_then(|parsed| pairs.end().map(|()| parsed)))
    }
}

/// Part of an image to show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct InspectQuery {
    /// Reference of the image.
    #[param(required = true)]
    pub reference: String,
    /// Platform whose manifest to show.
    pub platform: Option<String>,
    /// True to accept only an index.
    pub index: bool,
    /// True to accept only OCI media types.
    pub oci: bool,
    /// Only media type to accept.
    pub media_type: Option<String>,
    /// True to show the config instead of the manifest.
    pub config: bool,
}

impl InspectQuery {
    /// Returns the accepted media types. Empty means all.
    pub(in crate::ops) fn types(&self) -> Vec<&str> {
        match (&self.media_type, self.oci) {
            (Some(one), _) => vec![one],
            (None, true) => vec![OCI_INDEX, OCI_MANIFEST],
            (None, false) => Vec::new(),
        }
    }
}

/// Images to check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CheckQuery {
    /// References of the images.
    #[param(rename = "reference", required = true)]
    pub references: Vec<String>,
    /// Platforms to pull. Empty means all platforms of an index.
    #[param(rename = "platform")]
    pub platforms: Vec<String>,
}

fn inspect_query(pairs: &mut Pairs) -> Result<InspectQuery, OpsError> {
    Ok(InspectQuery {
        reference: pairs.needed("reference")?,
        platform: pairs.one("platform")?,
        index: pairs.flag("index")?,
        oci: pairs.flag("oci")?,
        media_type: pairs.one("media_type")?,
        config: pairs.flag("config")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::protocol::ROOT;

    #[test]
    fn query_survives_encoding() {
        let (text, other) = (|text: &str| text.to_owned(), |text: &str| Some(text.to_owned()));
        for sent in [
            Query::List { repository: None },
            Query::List { repository: other("a/b&c=d") },
            Query::Tags { repository: text("busybox") },
            Query::Inspect(InspectQuery {
                reference: text("a:1@sha256:0"),
                platform: other("linux/arm/v7"),
                media_type: other("application/vnd.x+json"),
                oci: true,
                config: true,
                index: false,
            }),
            Query::Status,
            Query::Check(CheckQuery {
                references: vec![text("a"), text("b")],
                platforms: vec![text("linux/amd64")],
            }),
        ] {
            let target = sent.target();
            let (path, query) = target.split_once('?').unwrap_or((&target, ""));
            let read = Query::read(path.strip_prefix(ROOT).expect("below the root"), query);
            assert_eq!(read.expect("a query").expect("valid"), sent);
        }
    }

    #[test]
    fn invalid_query_is_refused() {
        assert!(Query::read("/nothing", "").is_none());
        for (path, query) in [
            ("/tags", ""),
            ("/images", "repository=a&repository=b"),
            ("/images", "repositry=a"),
            ("/status", "verbose"),
            ("/inspect", "reference=a&oci=maybe"),
        ] {
            assert!(Query::read(path, query).is_some_and(|read| read.is_err()), "{path}?{query}");
        }
    }
}
