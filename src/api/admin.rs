//! The operator's port: is it alive, is it ready, what does it count.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};

use crate::telemetry::Metrics;

use super::body::Body;

/// The operator's API; clones share it.
#[derive(Clone, Debug)]
pub struct Admin {
    metrics: Arc<Metrics>,
    ready: Arc<AtomicBool>,
}

impl Admin {
    /// `ready` says whether clients should be sent here: false while stopping.
    pub fn new(metrics: Arc<Metrics>, ready: Arc<AtomicBool>) -> Self {
        Self { metrics, ready }
    }

    /// Answers a request.
    pub fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        const TEXT: &str = "text/plain; charset=utf-8";
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, TEXT, b"only GET and HEAD\n".to_vec());
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match request.uri().path() {
            // Alive means that requests are answered; upstreams and disks play no part in it.
            "/livez" => plain(StatusCode::OK, TEXT, b"ok\n".to_vec()),
            // A larder without a store serves, and nobody would serve better in its place.
            "/readyz" if self.ready.load(Ordering::Relaxed) => {
                let fails = self.metrics.is_store_degraded();
                let text: &[u8] = if fails { b"ok, but the store fails: see the log\n" } else { b"ok\n" };
                plain(StatusCode::OK, TEXT, text.to_vec())
            }
            "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, TEXT, b"stopping\n".to_vec()),
            "/metrics" => {
                plain(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.metrics.render())
            }
            _ => plain(StatusCode::NOT_FOUND, TEXT, b"there are /livez, /readyz and /metrics\n".to_vec()),
        }
    }
}

fn plain(status: StatusCode, media_type: &'static str, body: Vec<u8>) -> Response<Body> {
    let mut answer = Response::new(Body::Empty);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    *answer.body_mut() = Body::Whole(body.into());
    answer
}
