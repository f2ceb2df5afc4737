//! List of all endpoints of the admin API. The `OpenAPI` document and the routes are both derived from this list.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde_json::Value;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use crate::api::body::Body;
use crate::ops::export;

use super::reply::{self, ErrorBody, JSON, Refused};
use super::request::ApiRequest;
use super::{jobs, queries, transfer};

type ResponseFuture = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
type Endpoint = fn(ApiRequest) -> ResponseFuture;

/// Declares the endpoints: functions with `#[utoipa::path]`, whose names are the operation ids.
///
/// A function that is missing here is unused, which the compiler reports.
macro_rules! endpoints {
    ($($module:ident::$endpoint:ident),* $(,)?) => {
        #[derive(OpenApi)]
        #[openapi(
            info(
                title = "larder's admin API",
                version = "1",
                description = "Provides everything that the command line does. Requests from loopback addresses and \
                               unix sockets need no token, unless admin.require_token is set; other requests need the \
                               token of admin.token_file. \
                               Requests that change something have a JSON body or an archive as body.",
                license(name = "Apache-2.0", identifier = "Apache-2.0"),
            ),
            servers((url = "/api/v1")),
            security((), ("token" = [])),
            paths($($module::$endpoint),*),
            // A schema that only a header refers to is not collected.
            components(schemas(ErrorBody, export::ExportReport), responses(Refused)),
            modifiers(&TokenScheme)
        )]
        struct ApiDocument;

        const ENDPOINTS: &[(&str, Endpoint)] =
            &[$((stringify!($endpoint), |request| Box::pin($module::$endpoint(request)))),*];
    };
}

endpoints![
    queries::list,
    queries::tags,
    queries::inspect,
    queries::check,
    queries::status,
    transfer::export,
    transfer::import,
    jobs::jobs,
    jobs::begin,
    jobs::job,
    jobs::cancel,
    jobs::events,
    openapi::openapi,
];

/// Endpoint that returns the `OpenAPI` document.
mod openapi {
    use super::{ApiRequest, Body, JSON, Response, StatusCode, reply};

    /// Returns this document
    #[utoipa::path(
        get,
        path = "/openapi.json",
        responses((status = 200, description = "OpenAPI document", body = Object))
    )]
    pub(super) async fn openapi(request: ApiRequest) -> Response<Body> {
        reply::plain(StatusCode::OK, JSON, request.document)
    }
}

/// Bearer token in the `OpenAPI` document.
struct TokenScheme;

impl Modify for TokenScheme {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        if let Some(components) = &mut document.components {
            components.add_security_scheme("token", SecurityScheme::Http(scheme));
        }
    }
}

/// Methods of one path.
#[derive(Debug)]
struct Route {
    endpoints: Vec<(Method, Endpoint)>,
    /// Value of `Allow` for other methods.
    allowed: String,
}

/// Routes of the admin API.
#[derive(Debug)]
pub(super) struct Routes {
    routes: matchit::Router<Route>,
    document: Bytes,
}

impl Routes {
    /// Builds the routes from the `OpenAPI` document.
    pub(super) fn new() -> Self {
        let document = ApiDocument::openapi();
        let mut routes = matchit::Router::new();
        for (path, item) in &document.paths.paths {
            if let Err(error) = routes.insert(path, route(item)) {
                tracing::error!(path, %error, "this path of the admin API cannot be routed");
            }
        }
        Self { routes, document: render(&document) }
    }

    /// Answers a request; `path` is relative to the root of the API.
    pub(super) async fn answer(&self, path: &str, mut request: ApiRequest) -> Response<Body> {
        let path = if matches!(path, "" | "/") { "/openapi.json" } else { path };
        let Ok(found) = self.routes.at(path) else { return reply::no_such_path() };
        let endpoint = found.value.endpoints.iter().find(|(method, _)| *method == request.head.method);
        let Some((_, endpoint)) = endpoint else { return reply::method_not_allowed(&found.value.allowed) };
        let parameters = found.params.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        request.path_parameters = parameters.collect();
        request.document = self.document.clone();
        endpoint(request).await
    }
}

/// Returns the endpoints of a path. `HEAD` is accepted where `GET` returns JSON: archives and event streams would be
/// started for nothing.
fn route(item: &PathItem) -> Route {
    let endpoints: HashMap<&str, Endpoint> = ENDPOINTS.iter().copied().collect();
    let returns_json = |operation: &Operation| {
        operation.responses.responses.get("200").is_some_and(|response| match response {
            utoipa::openapi::RefOr::T(response) => response.content.contains_key(JSON),
            utoipa::openapi::RefOr::Ref(_) => true,
        })
    };
    let has_head = item.get.as_ref().filter(|operation| returns_json(operation));
    let methods = [
        (Method::GET, item.get.as_ref()),
        (Method::HEAD, has_head),
        (Method::POST, item.post.as_ref()),
        (Method::PUT, item.put.as_ref()),
        (Method::PATCH, item.patch.as_ref()),
        (Method::DELETE, item.delete.as_ref()),
    ];
    let endpoints: Vec<(Method, Endpoint)> = methods
        .into_iter()
        .filter_map(|(method, operation)| {
            Some((method, *endpoints.get(operation?.operation_id.as_deref()?)?))
        })
        .collect();
    let allowed: Vec<&str> = endpoints.iter().map(|(method, _)| method.as_str()).collect();
    Route { allowed: allowed.join(", "), endpoints }
}

/// Renders the `OpenAPI` document.
fn render(document: &utoipa::openapi::OpenApi) -> Bytes {
    let mut document = serde_json::to_value(document).unwrap_or_default();
    let schemas = document.pointer_mut("/components/schemas").and_then(Value::as_object_mut);
    for (_, schema) in schemas.into_iter().flatten() {
        require_nullable(schema);
    }
    document.to_string().into()
}

/// Marks nullable fields as required: the API writes `null` for an absent value and never leaves the field out.
fn require_nullable(schema: &mut Value) {
    for part in schema.get_mut("allOf").and_then(Value::as_array_mut).into_iter().flatten() {
        require_nullable(part);
    }
    let is_nullable = |property: &Value| {
        let types = property["type"].as_array().into_iter().flatten();
        let choices = property["oneOf"].as_array().into_iter().flatten().map(|choice| &choice["type"]);
        types.chain(choices).any(|name| name == "null")
    };
    let properties = schema["properties"].as_object().into_iter().flatten();
    let nullable = properties.filter(|(_, property)| is_nullable(property)).map(|(name, _)| name.as_str());
    let mut required = schema["required"].as_array().cloned().unwrap_or_default();
    for name in nullable {
        if !required.iter().any(|known| known == name) {
            required.push(name.into());
        }
    }
    if !required.is_empty() {
        schema["required"] = required.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_operation_has_one_endpoint() {
        let document = ApiDocument::openapi();
        let mut operations: Vec<String> = Vec::new();
        for (path, item) in &document.paths.paths {
            let route = route(item);
            let methods = route.endpoints.iter().filter(|(method, _)| *method != Method::HEAD).count();
            let documented = [&item.get, &item.post, &item.put, &item.patch, &item.delete];
            let documented: Vec<_> = documented.into_iter().flatten().collect();
            assert_eq!(methods, documented.len(), "{path}");
            operations.extend(documented.iter().filter_map(|operation| operation.operation_id.clone()));
        }
        operations.sort();
        let mut endpoints: Vec<&str> = ENDPOINTS.iter().map(|(name, _)| *name).collect();
        endpoints.sort_unstable();
        assert_eq!(operations, endpoints);
        endpoints.dedup();
        assert_eq!(operations.len(), endpoints.len(), "operation ids must be unique");
    }

    #[test]
    fn head_is_accepted_for_json_only() {
        let document = ApiDocument::openapi();
        let allowed = |path: &str| route(&document.paths.paths[path]).allowed;
        assert_eq!(allowed("/jobs"), "GET, HEAD, POST");
        assert_eq!(allowed("/jobs/{id}"), "GET, HEAD, DELETE");
        assert_eq!(allowed("/jobs/{id}/events"), "GET");
        assert_eq!(allowed("/export"), "GET");
        assert_eq!(allowed("/import"), "POST");
    }

    #[test]
    fn nullable_fields_are_required() {
        let routes = Routes::new();
        let document: Value = serde_json::from_slice(&routes.document).expect("JSON");
        let required = &document["components"]["schemas"]["Image"]["required"];
        assert!(required.as_array().is_some_and(|all| all.iter().any(|name| name == "tag")), "{required}");
    }
}
