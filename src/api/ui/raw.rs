//! The documents themselves, byte for byte, as text that no browser takes for anything else.

use http::header::ETAG;
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::ops::query::Query;
use crate::ops::{Operations, OpsError, inspect};

use super::{Body, answered};

/// Nothing at all may come of what somebody pushed.
const POLICY: &str =
    "default-src 'none'; sandbox; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// What the query asks to inspect.
pub(super) fn asked(query: &str) -> Result<inspect::InspectQuery, OpsError> {
    match Query::read("/inspect", query) {
        Some(Ok(Query::Inspect(ask))) => Ok(ask),
        Some(Err(error)) => Err(error),
        _ => Err(OpsError::Invalid("no reference is named".to_owned())),
    }
}

/// A manifest, index or config.
pub(super) async fn document(operations: &Operations, query: &str) -> Result<Response<Body>, OpsError> {
    let report = inspect::inspect(operations.cache(), asked(query)?).await?;
    let Some(raw) = report.raw else { return Err(OpsError::NotHeld(report.says)) };
    let media_type = "text/plain; charset=utf-8";
    let mut answer = answered(StatusCode::OK, media_type, "private, no-cache", POLICY, raw.into());
    let digest = report.digest.to_string();
    let name = HeaderName::from_static("docker-content-digest");
    for (name, value) in [(name, digest.clone()), (ETAG, format!("\"{digest}\""))] {
        if let Ok(value) = HeaderValue::try_from(value) {
            answer.headers_mut().insert(name, value);
        }
    }
    Ok(answer)
}
