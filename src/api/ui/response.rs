//! HTTP responses of the web page, with the headers that protect the browser.

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Response, StatusCode};

use crate::api::body::Body;

/// Content security policy of a page: only the style sheet, the script and requests of this server are allowed.
pub(super) const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                                 img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Returns a response with a body in memory.
pub(super) fn respond(
    status: StatusCode,
    media_type: &'static str,
    cache_control: &'static str,
    policy: &'static str,
    body: Bytes,
) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    for (name, value) in [
        (CONTENT_TYPE, media_type),
        (CACHE_CONTROL, cache_control),
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    *response.body_mut() = Body::Whole(body);
    response
}
