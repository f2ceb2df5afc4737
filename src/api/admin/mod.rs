//! Admin port: health checks, metrics, the API of the command line below `/api/v1`, and the web page.

mod authorize;
mod endpoints;
mod jobs;
mod queries;
mod reply;
mod request;
mod transfer;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};

use crate::ops::Operations;
use crate::ops::protocol::ROOT;
use crate::telemetry::Metrics;

use self::authorize::{Denial, authorize, is_api, refuse_foreign_pages};
use self::endpoints::Routes;
use self::reply::{TEXT, method_not_allowed, plain};
use self::request::ApiRequest;
use super::body::Body;
use super::host;
use super::ui;

/// Media type of the Prometheus text format.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// HTTP service of the admin port. Clones share their state.
#[derive(Clone, Debug)]
pub struct AdminApi {
    metrics: Arc<Metrics>,
    ready: Arc<AtomicBool>,
    operations: Operations,
    routes: Arc<Routes>,
    is_local: bool,
}

impl AdminApi {
    /// Creates the service. `ready` is the answer of the readiness check; it is false during shutdown.
    pub fn new(metrics: Arc<Metrics>, ready: Arc<AtomicBool>, operations: Operations) -> Self {
        Self { metrics, ready, operations, routes: Arc::new(Routes::new()), is_local: false }
    }

    /// Returns the service for sockets that only this machine can reach. It requires no token, unless the
    /// configuration requires one.
    #[must_use]
    pub fn local(self) -> Self {
        Self { is_local: true, ..self }
    }

    /// Answers a request.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
    {
        let (head, body) = request.into_parts();
        if is_api(head.uri.path()) {
            return self.answer_api(head, body).await;
        }
        if let Err(denial) = self.admit(&head) {
            return denial.page();
        }
        if head.method != Method::GET && head.method != Method::HEAD {
            return method_not_allowed("GET, HEAD");
        }
        match head.uri.path() {
            // Liveness does not depend on upstreams or the disk.
            "/livez" => plain(StatusCode::OK, TEXT, "ok\n"),
            // Without a working store the server is still ready: it passes requests through to the upstreams.
            "/readyz" if self.ready.load(Ordering::Relaxed) => {
                let degraded = self.metrics.is_store_degraded();
                let text = if degraded { "ok, but the store fails: see the log\n" } else { "ok\n" };
                plain(StatusCode::OK, TEXT, text)
            }
            "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, TEXT, "stopping\n"),
            "/metrics" => plain(StatusCode::OK, PROMETHEUS, self.metrics.render()),
            _ => self.answer_page(&head).await,
        }
    }

    /// Checks the sender of a request. Health checks may be sent with any name of this machine.
    fn admit(&self, head: &Parts) -> Result<(), Denial> {
        if matches!(head.uri.path(), "/livez" | "/readyz") {
            return host::check(head).map_err(Denial::InvalidHost);
        }
        refuse_foreign_pages(head, self.is_local)
    }

    /// Answers with a page of the web interface. Access is as for the API.
    async fn answer_page(&self, head: &Parts) -> Response<Body> {
        // The style sheet and the script are not secret, and the page that asks for the token needs them.
        if let Some(asset) = ui::asset(head) {
            return asset;
        }
        match authorize(head, self.is_local, &self.operations).await {
            Ok(()) => ui::answer(&self.operations, head, reply::status_of).await,
            Err(denial) => denial.page(),
        }
    }

    /// Answers a request below `/api/v1`.
    async fn answer_api<B>(&self, head: Parts, body: B) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
    {
        let admitted = match self.admit(&head) {
            Ok(()) => authorize(&head, self.is_local, &self.operations).await,
            Err(denial) => Err(denial),
        };
        if let Err(denial) = admitted {
            return denial.response();
        }
        let path = head.uri.path().strip_prefix(ROOT).unwrap_or_default().to_owned();
        let request = ApiRequest {
            operations: self.operations.clone(),
            head,
            path_parameters: HashMap::new(),
            body: request::boxed(body),
            document: Bytes::new(),
        };
        self.routes.answer(&path, request).await
    }
}
