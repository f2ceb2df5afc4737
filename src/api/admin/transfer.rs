//! Endpoints that export and import images as archives. Archives are streamed in both directions.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use utoipa::openapi::{KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::api::body::Body;
use crate::layout::ChannelReader;
use crate::ops::protocol::{ExportRequest, ImportRequest, REPORT_HEADER};
use crate::ops::{export, import};

use super::reply::{self, Refused};
use super::request::{ApiRequest, RequestBody};

/// Media type of an archive.
const TAR: &str = "application/x-tar";
/// Time-out between two chunks of an upload. Some tools create the archive while they send it.
const UPLOAD_TIMEOUT: Duration = Duration::from_mins(5);
/// Time for which the rest of a refused upload is read, so that the client receives the response.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Body that is an archive, in the `OpenAPI` document.
struct Archive;

impl PartialSchema for Archive {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)))
            .build()
            .into()
    }
}

impl ToSchema for Archive {}

/// Exports an image as an OCI layout in a tar archive
///
/// Parts that are not cached are fetched during the export. If the export fails, the body is shorter than its
/// Content-Length.
#[utoipa::path(
    get,
    path = "/export",
    params(ExportRequest),
    responses(
        (
            status = 200,
            description = "Archive",
            content_type = "application/x-tar",
            body = inline(Archive),
            headers(("Larder-Report" = export::ExportReport, description = "Content of the archive, as JSON")),
        ),
        (status = 400, response = Refused),
        (status = 404, response = Refused),
        (status = 422, response = Refused),
        (status = 502, response = Refused),
    )
)]
pub(super) async fn export(request: ApiRequest) -> Response<Body> {
    let started = match ExportRequest::read(request.query()) {
        Ok(options) => export::export(&request.operations, options).await,
        Err(error) => Err(error),
    };
    let export::Export { report, length, chunks } = match started {
        Ok(export) => export,
        Err(error) => return reply::failed(&error),
    };
    let mut response = Response::new(Body::stream(chunks, Some(length)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(TAR));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Only platforms, which an index may name in any way, can make this text unfit for a header.
    let text = serde_json::to_string(&report).unwrap_or_default();
    if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
        headers.insert(REPORT_HEADER, value);
    }
    response
}

/// Imports images from an OCI layout in a tar archive, which may be compressed with gzip
#[utoipa::path(
    post,
    path = "/import",
    params(ImportRequest),
    request_body(content = inline(Archive), content_type = "application/x-tar"),
    responses(
        (status = 200, description = "Imported images", body = import::ImportReport),
        (status = 400, response = Refused),
        (status = 415, response = Refused),
        (status = 422, response = Refused),
        (status = 500, response = Refused),
    )
)]
pub(super) async fn import(request: ApiRequest) -> Response<Body> {
    if !is_tar(&request.head.headers) {
        return reply::refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "media-type",
            "send an archive with `Content-Type: application/x-tar`",
        );
    }
    let options = match ImportRequest::read(request.query()) {
        Ok(options) => options,
        Err(error) => return reply::failed(&error),
    };
    let (sender, reader) = ChannelReader::new();
    tokio::spawn(forward(request.body, sender));
    reply::report(import::import(&request.operations, options, reader).await)
}

/// Returns true if the request has the media type of an archive.
fn is_tar(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = media_type.and_then(|text| text.split(';').next());
    media_type.is_some_and(|text| text.trim().eq_ignore_ascii_case(TAR))
}

/// Forwards a body to the import at the pace of the import. If the import has ended, the rest is discarded for a while.
async fn forward(mut body: RequestBody, sender: mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let chunk = match timeout(UPLOAD_TIMEOUT, next_chunk(&mut body)).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return,
            Err(_) => {
                let message = format!("no data received for {} seconds", UPLOAD_TIMEOUT.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, message))
            }
        };
        let failed = chunk.is_err();
        if sender.send(chunk).await.is_err() {
            break;
        }
        if failed {
            return;
        }
    }
    let end = Instant::now() + DRAIN_TIMEOUT;
    while let Ok(Some(Ok(_))) = timeout_at(end, next_chunk(&mut body)).await {}
}

/// Returns the next data of a body; `None` at its end.
async fn next_chunk(body: &mut RequestBody) -> Option<io::Result<Bytes>> {
    loop {
        match body.frame().await? {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Some(Ok(data));
                }
            }
            Err(error) => return Some(Err(io::Error::other(error))),
        }
    }
}
