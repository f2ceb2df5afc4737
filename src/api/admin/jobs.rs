//! Jobs over HTTP: begun, told of, ended, and watched as server-sent events (HTML Living Standard, 9.2).

use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};
use tokio::sync::mpsc;

use crate::ops::Operations;
use crate::ops::job_spec::JobSpec;
use crate::ops::jobs::Job;
use crate::ops::query::ROOT;

use super::request_body;
use super::{Body, failed, json, no_such_path, not_allowed, refused};

/// How often at most a job's progress is told.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// How long at most nothing is said: what lies in between must not take the connection for dead.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// `/jobs`.
pub(super) async fn all<B>(operations: &Operations, head: &Parts, body: B) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    match head.method {
        Method::GET | Method::HEAD => json(StatusCode::OK, &operations.jobs().list()),
        Method::POST => {
            let begun = match request_body::read_json::<JobSpec, B>(body).await {
                Ok(task) => operations.jobs().begin(operations, task),
                Err(error) => Err(error),
            };
            match begun {
                Ok(job) => {
                    let view = job.view();
                    let mut answer = json(StatusCode::ACCEPTED, &view);
                    if let Ok(place) = HeaderValue::from_str(&format!("{ROOT}/jobs/{}", view.id)) {
                        answer.headers_mut().insert(LOCATION, place);
                    }
                    answer
                }
                Err(error) => failed(&error),
            }
        }
        _ => not_allowed("GET, HEAD, POST"),
    }
}

/// `/jobs/ID` and `/jobs/ID/events`.
pub(super) fn one(operations: &Operations, method: &Method, rest: &str) -> Response<Body> {
    let (id, events) = match rest.strip_suffix("/events") {
        Some(id) => (id, true),
        None => (rest, false),
    };
    let Ok(id) = id.parse::<u64>() else { return no_such_path() };
    let Some(job) = operations.jobs().get(id) else {
        return refused(StatusCode::NOT_FOUND, "not-held", "there is no such job, or it ended long ago");
    };
    match *method {
        Method::HEAD | Method::GET if !events => json(StatusCode::OK, &job.view()),
        Method::GET => watched(job),
        Method::DELETE if !events => {
            job.cancel();
            json(StatusCode::OK, &job.view())
        }
        _ => not_allowed(if events { "GET" } else { "GET, HEAD, DELETE" }),
    }
}

/// The events of a job, until it ends or nobody listens.
fn watched(mut job: Job) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        loop {
            let view = job.view();
            let ended = view.state != crate::ops::jobs::JobState::Running;
            let event = if ended { "end" } else { "progress" };
            let Ok(data) = serde_json::to_string(&view) else { return };
            let text = format!("event: {event}\ndata: {data}\n\n");
            if sender.send(Ok(Bytes::from(text))).await.is_err() || ended {
                return;
            }
            tokio::time::sleep(TELL_EVERY).await;
            while tokio::time::timeout(SILENCE_MAX, job.changed()).await.is_err() {
                if sender.send(Ok(Bytes::from_static(b": still there\n\n"))).await.is_err() {
                    return;
                }
            }
        }
    });
    let mut answer = Response::new(Body::stream(receiver, None));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
