//! Requests that transfer an archive: export and import.

use super::encoding::{Pairs, target};
use super::error::OpsError;

/// Options of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ExportRequest {
    /// Reference of the image.
    pub reference: String,
    /// Platforms of an index to export. Empty means all.
    #[param(rename = "platform", required = false)]
    pub platforms: Vec<String>,
    /// Name of the image in the archive, if different.
    pub name: Option<String>,
    /// True to export cached content only.
    #[param(required = false)]
    pub offline: bool,
    /// True to export the artifacts that refer to the image too, such as signatures.
    #[param(required = false)]
    pub referrers: bool,
}

impl ExportRequest {
    /// Path in the admin API.
    pub const PATH: &str = "/export";

    /// Returns the path and query.
    pub fn target(&self) -> String {
        let mut pairs = vec![("reference", self.reference.clone())];
        pairs.extend(self.platforms.iter().map(|it| ("platform", it.clone())));
        pairs.extend(self.name.clone().map(|name| ("name", name)));
        pairs.extend(self.offline.then(|| ("offline", "true".to_owned())));
        pairs.extend(self.referrers.then(|| ("referrers", "true".to_owned())));
        target(Self::PATH, pairs)
    }

    /// Parses the query that `target` wrote.
    pub fn read(query: &str) -> Result<Self, OpsError> {
        let mut pairs = Pairs::of(query);
        let request = Self {
            reference: pairs.needed("reference")?,
            platforms: pairs.all("platform"),
            name: pairs.one("name")?,
            offline: pairs.flag("offline")?,
            referrers: pairs.flag("referrers")?,
        };
        pairs.end().map(|()| request)
    }
}

/// Response header with the report as JSON.
pub const REPORT_HEADER: &str = "larder-report";

/// Options of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ImportRequest {
    /// Repository for all images, whatever their names in the archive are.
    #[param(rename = "as")]
    pub repository: Option<String>,
}

impl ImportRequest {
    /// Path in the admin API.
    pub const PATH: &str = "/import";

    /// Returns the path and query.
    pub fn target(&self) -> String {
        target(Self::PATH, self.repository.clone().map(|name| ("as", name)).into_iter().collect())
    }

    /// Parses the query that `target` wrote.
    pub fn read(query: &str) -> Result<Self, OpsError> {
        let mut pairs = Pairs::of(query);
        let request = Self { repository: pairs.one("as")? };
        pairs.end().map(|()| request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn export_request_survives_encoding() {
        for request in [
            ExportRequest { reference: "a:1".to_owned(), ..ExportRequest::default() },
            ExportRequest {
                reference: "ghcr.io/a/b@sha256:0".to_owned(),
                platforms: vec!["linux/arm/v7".to_owned(), "linux/amd64".to_owned()],
                name: Some("c:2".to_owned()),
                offline: true,
                referrers: true,
            },
        ] {
            let target = request.target();
            let (_, query) = target.split_once('?').expect("a query");
            assert_eq!(ExportRequest::read(query).expect("a valid query"), request);
        }
        for query in ["", "reference=a&platfrom=b", "reference=a&reference=b", "reference=a&offline=maybe"] {
            assert!(ExportRequest::read(query).is_err(), "{query}");
        }
    }
}
