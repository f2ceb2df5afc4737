//! Raw documents, byte for byte, as plain text that a browser does not interpret.

use http::header::ETAG;
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::ops::protocol::{InspectQuery, Query};
use crate::ops::{Operations, OpsError, inspect};

use crate::api::body::Body;

use super::response::respond;

/// Content security policy of a raw document: everything is forbidden.
const POLICY: &str =
    "default-src 'none'; sandbox; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Parses the query of an image page or raw document.
pub(super) fn parse(query: &str) -> Result<InspectQuery, OpsError> {
    match Query::read("/inspect", query) {
        Some(Ok(Query::Inspect(ask))) => Ok(ask),
        Some(Err(error)) => Err(error),
        _ => Err(OpsError::Invalid("`reference` is missing".to_owned())),
    }
}

/// Returns a manifest, an index or a config.
pub(super) async fn document(operations: &Operations, query: &str) -> Result<Response<Body>, OpsError> {
    let report = inspect::inspect(operations.cache(), parse(query)?).await?;
    let Some(raw) = report.raw else { return Err(OpsError::NotCached(report.says)) };
    let media_type = "text/plain; charset=utf-8";
    let mut response = respond(StatusCode::OK, media_type, "private, no-cache", POLICY, raw.into());
    let digest = report.digest.to_string();
    let name = HeaderName::from_static("docker-content-digest");
    for (name, value) in [(name, digest.clone()), (ETAG, format!("\"{digest}\""))] {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}
