//! Endpoints for jobs: start, list, show, cancel, and follow as server-sent events (HTML Living Standard, 9.2).

use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;
use utoipa::ToSchema;

use crate::api::body::Body;
use crate::ops::jobs::Job;
use crate::ops::protocol::{JobSpec, JobState, JobView, ROOT};

use super::reply::{self, Refused};
use super::request::{self, ApiRequest};

/// Minimum time between two events of a job.
const EVENT_INTERVAL: Duration = Duration::from_millis(200);
/// Maximum time without an event. Then a comment is sent, so that proxies do not close the idle connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Running jobs, and jobs that ended recently.
#[derive(Serialize, ToSchema)]
#[schema(as = Jobs)]
pub(super) struct JobList(Vec<JobView>);

/// Lists the running jobs, and jobs that ended recently
#[utoipa::path(
    get,
    path = "/jobs",
    responses((status = 200, description = "Jobs, newest last", body = JobList))
)]
pub(super) async fn jobs(request: ApiRequest) -> Response<Body> {
    reply::json(StatusCode::OK, &JobList(request.operations.jobs().list()))
}

/// Starts a job
#[utoipa::path(
    post,
    path = "/jobs",
    request_body = JobSpec,
    responses(
        (status = 202, description = "The job has started; `Location` names it", body = JobView),
        (status = 400, response = Refused),
        (status = 409, response = Refused),
        (status = 415, response = Refused),
    )
)]
pub(super) async fn begin(request: ApiRequest) -> Response<Body> {
    let ApiRequest { operations, body, .. } = request;
    let started = match request::read_json::<JobSpec>(body).await {
        Ok(task) => task.begin(&operations),
        Err(error) => Err(error),
    };
    let job = match started {
        Ok(job) => job.view(),
        Err(error) => return reply::failed(&error),
    };
    let mut response = reply::json(StatusCode::ACCEPTED, &job);
    if let Ok(location) = HeaderValue::from_str(&format!("{ROOT}/jobs/{}", job.id)) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// Shows a job
#[utoipa::path(
    get,
    path = "/jobs/{id}",
    params(("id" = u64, Path, description = "Number of the job")),
    responses((status = 200, description = "Job", body = JobView), (status = 404, response = Refused))
)]
pub(super) async fn job(request: ApiRequest) -> Response<Body> {
    with_job(&request, |job| reply::json(StatusCode::OK, &job.view()))
}

/// Cancels a job; its completed work is kept
#[utoipa::path(
    delete,
    path = "/jobs/{id}",
    params(("id" = u64, Path, description = "Number of the job")),
    responses((status = 200, description = "Cancelled job", body = JobView), (status = 404, response = Refused))
)]
pub(super) async fn cancel(request: ApiRequest) -> Response<Body> {
    with_job(&request, |job| {
        job.cancel();
        reply::json(StatusCode::OK, &job.view())
    })
}

/// Follows a job as server-sent events: `progress` until one `end`, each with the job as data
#[utoipa::path(
    get,
    path = "/jobs/{id}/events",
    params(("id" = u64, Path, description = "Number of the job")),
    responses(
        (status = 200, description = "Events", body = JobView, content_type = "text/event-stream"),
        (status = 404, response = Refused),
    )
)]
pub(super) async fn events(request: ApiRequest) -> Response<Body> {
    with_job(&request, stream_events)
}

/// Answers with the job that the path names.
fn with_job(request: &ApiRequest, answer: impl FnOnce(Job) -> Response<Body>) -> Response<Body> {
    let id = request.path_parameters.get("id").and_then(|id| id.parse().ok());
    let Some(id) = id else { return reply::no_such_path() };
    let Some(job) = request.operations.jobs().get(id) else {
        let message = format!("job {id} does not exist, or ended long ago");
        return reply::refused(StatusCode::NOT_FOUND, "not-held", &message);
    };
    answer(job)
}

/// Sends the events of a job until the job ends or the client disconnects.
fn stream_events(mut job: Job) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        loop {
            let view = job.view();
            let ended = view.state != JobState::Running;
            let event = if ended { "end" } else { "progress" };
            let Ok(data) = serde_json::to_string(&view) else { return };
            let text = format!("event: {event}\ndata: {data}\n\n");
            if sender.send(Ok(Bytes::from(text))).await.is_err() || ended {
                return;
            }
            tokio::time::sleep(EVENT_INTERVAL).await;
            while tokio::time::timeout(KEEP_ALIVE, job.changed()).await.is_err() {
                if sender.send(Ok(Bytes::from_static(b": keep-alive\n\n"))).await.is_err() {
                    return;
                }
            }
        }
    });
    let mut response = Response::new(Body::stream(receiver, None));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
