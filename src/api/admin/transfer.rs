//! Images out of the cache and into it, as archives that are streamed.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::ops::channel_reader::ChannelReader;
use crate::ops::{Operations, export, import};

use super::{Body, answered, failed, not_allowed, refused};

/// An archive's media type.
const TAR: &str = "application/x-tar";
/// How long a client may send nothing. Some archives are made while they are sent.
const SILENCE_MAX: Duration = Duration::from_mins(5);
/// How long what a client still sends is taken and thrown away, so that it gets to see why nobody wants it.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// `/export`.
pub(super) async fn out(operations: &Operations, head: &Parts) -> Response<Body> {
    if head.method != Method::GET {
        return not_allowed("GET");
    }
    let begun = match export::ExportRequest::read(head.uri.query().unwrap_or_default()) {
        Ok(ask) => export::export(operations, ask).await,
        Err(error) => Err(error),
    };
    let export::Export { report, length, pieces } = match begun {
        Ok(export) => export,
        Err(error) => return failed(&error),
    };
    let mut answer = Response::new(Body::stream(pieces, Some(length)));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(TAR));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Plain data in ASCII but for what an index says of platforms.
    let text = serde_json::to_string(&report).unwrap_or_default();
    if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
        headers.insert(export::REPORT_HEADER, value);
    }
    answer
}

/// `/import`.
pub(super) async fn take<B>(operations: &Operations, head: &Parts, body: B) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
{
    if head.method != Method::POST {
        return not_allowed("POST");
    }
    if !is_tar(&head.headers) {
        return refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "media-type",
            "send an archive, with `Content-Type: application/x-tar`",
        );
    }
    let ask = match import::ImportRequest::read(head.uri.query().unwrap_or_default()) {
        Ok(ask) => ask,
        Err(error) => return failed(&error),
    };
    let (sender, pipe) = ChannelReader::new();
    tokio::spawn(pump(body, sender));
    answered(import::import(operations, ask, pipe).await)
}

fn is_tar(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = media_type.and_then(|text| text.split(';').next());
    media_type.is_some_and(|text| text.trim().eq_ignore_ascii_case(TAR))
}

/// Moves a body to who reads it, at that one's pace. What nobody wants any more is thrown away for a while.
async fn pump<B>(mut body: B, sender: mpsc::Sender<io::Result<Bytes>>)
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    loop {
        let piece = match timeout(SILENCE_MAX, data(&mut body)).await {
            Ok(Some(piece)) => piece,
            Ok(None) => return,
            Err(_) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "nothing more of it came for five minutes"))
            }
        };
        let broken = piece.is_err();
        if sender.send(piece).await.is_err() {
            break;
        }
        if broken {
            return;
        }
    }
    let end = Instant::now() + DRAIN_MAX;
    while let Ok(Some(Ok(_))) = tokio::time::timeout_at(end, data(&mut body)).await {}
}

/// The next bytes of a body.
async fn data<B>(body: &mut B) -> Option<io::Result<Bytes>>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    loop {
        match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await? {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Some(Ok(data));
                }
            }
            Err(_) => return Some(Err(io::Error::other("it did not come to its end"))),
        }
    }
}
