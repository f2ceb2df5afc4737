//! Request to the admin API, as every endpoint receives it.

use std::collections::HashMap;

use bytes::Bytes;
use http::request::Parts;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use crate::ops::{Operations, OpsError};

/// Limit of a JSON body in bytes. No job specification is larger.
const JSON_MAX: usize = 4 << 20;

/// Error for a body that ended before it was complete.
#[derive(Debug, thiserror::Error)]
#[error("the connection ended before the end of the body")]
pub(super) struct IncompleteBody;

/// Body of a request. The type is independent of the connection, so that endpoints need not be generic.
pub(super) type RequestBody = UnsyncBoxBody<Bytes, IncompleteBody>;

/// Authorised request to an endpoint of the admin API.
#[derive(Debug)]
pub(super) struct ApiRequest {
    /// Access to the cache, the jobs and the configuration.
    pub(super) operations: Operations,
    /// Method, target and headers.
    pub(super) head: Parts,
    /// Values of the parameters in the path, such as `id` of `/jobs/{id}`.
    pub(super) path_parameters: HashMap<String, String>,
    /// Body, not read yet.
    pub(super) body: RequestBody,
    /// `OpenAPI` document of this API.
    pub(super) document: Bytes,
}

impl ApiRequest {
    /// Returns the query, or an empty text if there is none.
    pub(super) fn query(&self) -> &str {
        self.head.uri.query().unwrap_or_default()
    }
}

/// Converts the body of a connection.
pub(super) fn boxed<B>(body: B) -> RequestBody
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
{
    body.map_err(|_| IncompleteBody).boxed_unsync()
}

/// Reads a JSON body.
pub(super) async fn read_json<T: DeserializeOwned>(body: RequestBody) -> Result<T, OpsError> {
    let collected = Limited::new(body, JSON_MAX).collect().await;
    let body = collected.map_err(|error| {
        OpsError::Invalid(if error.is::<LengthLimitError>() {
            format!("the body is larger than {JSON_MAX} bytes")
        } else {
            error.to_string()
        })
    })?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| OpsError::Invalid(format!("invalid JSON body: {error}")))
}
