//! Access control of the admin port: the token, and the checks that keep foreign web pages out.
//!
//! Requests from this machine need no token, unless `admin.require_token` is set. A web page in a browser on this machine
//! is not the operator, although its requests come from a loopback address. The checks of `Host`, `Origin`,
//! `Sec-Fetch-Site` and of the media type keep such pages out.

use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN, WWW_AUTHENTICATE};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use subtle::ConstantTimeEq as _;

use crate::api::body::Body;
use crate::api::host::{self, HostError};
use crate::api::ui;
use crate::oci::{Algorithm, Digest};
use crate::ops::Operations;
use crate::ops::protocol::{ExportRequest, ROOT};

use super::reply;

/// Limit of a token in bytes. A larger file is not a token.
const TOKEN_MAX: usize = 4096;

/// Header with which browsers tell where a request comes from.
const FETCH_SITE: &str = "sec-fetch-site";

/// Reason for which a request is refused before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// The token is missing or wrong.
    Token,
    /// No token is configured, so that no request can have it.
    NoToken,
    /// The request has no valid `Host`, or several.
    InvalidHost(HostError),
    /// The `Host` is not this machine: a web page may have sent the request through DNS rebinding.
    Host,
    /// A page of another origin has sent the request (cross-site request forgery).
    Origin,
    /// The token came as a password, which a browser also sends for a page of another origin.
    Password,
    /// The request changes something and could be a form of a web page (cross-site request forgery).
    MediaType,
}

impl Denial {
    /// Returns the status code, the code for programs and the message.
    fn meaning(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Token => (
                StatusCode::UNAUTHORIZED,
                "token",
                "missing or wrong token; send the token of admin.token_file as `Authorization: Bearer TOKEN`",
            ),
            Self::NoToken => (
                StatusCode::FORBIDDEN,
                "token",
                "this address requires a token and none is configured; set admin.token_file, or use a loopback \
                 address or a unix socket",
            ),
            Self::InvalidHost(error) => (StatusCode::BAD_REQUEST, "host", error.message()),
            Self::Origin => (
                StatusCode::FORBIDDEN,
                "origin",
                "the request was sent by a web page of another origin; open the address of this server directly",
            ),
            Self::Password => (
                StatusCode::FORBIDDEN,
                "token",
                "a browser may send this password for a page of another origin; send the token as \
                 `Authorization: Bearer TOKEN`",
            ),
            Self::Host => (
                StatusCode::FORBIDDEN,
                "host",
                "unexpected Host header; use the IP address of this machine, or localhost",
            ),
            Self::MediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "media-type",
                "send `Content-Type: application/json`, or `application/x-tar` with an archive",
            ),
        }
    }

    /// Returns an error page. If the token is missing, the browser asks the user for it.
    pub(super) fn page(self) -> Response<Body> {
        let (status, _, message) = self.meaning();
        if self != Self::Token {
            return ui::failure(status, message);
        }
        let message = "log in with any user name and the token of admin.token_file as password";
        let mut response = ui::failure(status, message);
        let challenge = HeaderValue::from_static("Basic realm=\"larder\", charset=\"UTF-8\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        response
    }

    /// Returns an error response of the API.
    pub(super) fn response(self) -> Response<Body> {
        let (status, code, message) = self.meaning();
        let mut response = reply::refused(status, code, message);
        if self == Self::Token {
            let challenge = HeaderValue::from_static("Bearer realm=\"larder\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// Checks that no foreign web page has sent a request. `is_local` is true for sockets that only this machine can reach.
///
/// All paths except health checks require this, also those that need no token.
pub(super) fn refuse_foreign_pages(head: &Parts, is_local: bool) -> Result<(), Denial> {
    host::check(head).map_err(Denial::InvalidHost)?;
    // A foreign DNS name that resolves to this machine must not give access. Other addresses have names of their own, for
    // example in the configuration of Prometheus.
    if is_local && !is_own_host(head) {
        return Err(Denial::Host);
    }
    if is_own_origin(head) && is_own_fetch(head) { Ok(()) } else { Err(Denial::Origin) }
}

/// Checks that a request may read or change something. `is_local` is true for sockets that only this machine can reach.
pub(super) async fn authorize(head: &Parts, is_local: bool, operations: &Operations) -> Result<(), Denial> {
    let config = operations.config();
    if !is_local || config.admin.require_token {
        let token = configured_token(config.admin.token_file.clone()).await.ok_or(Denial::NoToken)?;
        if !sent_token(&head.headers).is_some_and(|sent| is_equal(&sent, &token)) {
            return Err(Denial::Token);
        }
        if has_effect(head) && !is_bearer(&head.headers) && !head.headers.contains_key(FETCH_SITE) {
            return Err(Denial::Password);
        }
    }
    let is_read = head.method == Method::GET || head.method == Method::HEAD;
    // Browsers send JSON to another site only after a preflight request, which this API never permits.
    if is_read || cannot_be_a_form(&head.headers) { Ok(()) } else { Err(Denial::MediaType) }
}

/// Reads the token. The file is read for each request, so that a new token takes effect at once.
async fn configured_token(path: Option<PathBuf>) -> Option<Vec<u8>> {
    let path = path?;
    let read = tokio::task::spawn_blocking(move || (std::fs::read(&path), path)).await.ok()?;
    match read {
        (Ok(text), _) => {
            let token = text.trim_ascii();
            (!token.is_empty() && token.len() <= TOKEN_MAX).then(|| token.to_vec())
        }
        (Err(error), path) => {
            tracing::error!(%error, path = %path.display(), "cannot read admin.token_file; requests are refused");
            None
        }
    }
}

/// Returns the token of a request: a `Bearer` token, or the password of `Basic`, which browsers ask the user for.
fn sent_token(headers: &HeaderMap) -> Option<Vec<u8>> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(token.as_bytes().to_vec());
    }
    let pair = scheme.eq_ignore_ascii_case("basic").then(|| BASE64.decode(token))?.ok()?;
    // The user name is ignored.
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

/// Returns true if the request has a `Bearer` token. A browser sends it only for a script of the same origin.
fn is_bearer(headers: &HeaderMap) -> bool {
    let scheme = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().get(..7));
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "))
}

/// Returns true if a GET starts work. Over plain HTTP to another machine, browsers send neither `Origin` nor
/// `Sec-Fetch-Site` with a GET that a page of another origin causes, but the password that the user has entered.
fn has_effect(head: &Parts) -> bool {
    head.method == Method::GET && head.uri.path().strip_prefix(ROOT) == Some(ExportRequest::PATH)
}

/// Compares two tokens in constant time. Hashes are compared, so that the time does not depend on the lengths either.
fn is_equal(sent: &[u8], token: &[u8]) -> bool {
    let hash = |text: &[u8]| Digest::of(Algorithm::Sha256, text);
    hash(sent).as_bytes().ct_eq(hash(token).as_bytes()).into()
}

/// Returns true if the request names this machine by an IP address or as `localhost`, or names no host.
///
/// The absolute form of a target has a host too. Both hosts must be this machine.
fn is_own_host(head: &Parts) -> bool {
    let target = head.uri.authority().map(Authority::as_str);
    let header = head.headers.get(HOST).map(|host| host.to_str().unwrap_or("?"));
    target.into_iter().chain(header).all(|host| {
        let Ok(authority) = host.parse::<Authority>() else { return host.is_empty() };
        let name = authority.host().trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
    })
}

/// Returns true if the request has no `Origin`, or that of a page of this server.
fn is_own_origin(head: &Parts) -> bool {
    let own = host::of(head);
    head.headers.get_all(ORIGIN).iter().all(|origin| {
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        origin.is_some_and(|(_, authority)| own.is_some_and(|own| own.eq_ignore_ascii_case(authority)))
    })
}

/// Returns true if the browser reports no foreign page as sender, or the user follows a link to a page.
///
/// Browsers send these headers to loopback addresses and over TLS. Pages have no effect, so links to them are harmless.
fn is_own_fetch(head: &Parts) -> bool {
    let is = |name: &str, wanted: &str| head.headers.get(name).is_some_and(|value| value == wanted);
    let is_link = head.method == Method::GET
        && !is_api(head.uri.path())
        && is("sec-fetch-mode", "navigate")
        && is("sec-fetch-dest", "document");
    !head.headers.contains_key(FETCH_SITE)
        || is(FETCH_SITE, "same-origin")
        || is(FETCH_SITE, "none")
        || is_link
}

/// Returns true if a path belongs to the API.
pub(super) fn is_api(path: &str) -> bool {
    path.strip_prefix(ROOT).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Returns true if no HTML form of a web page can send a request with these headers.
fn cannot_be_a_form(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = media_type.map(|text| text.split(';').next().unwrap_or_default().trim());
    match media_type {
        Some(text) => {
            ["application/json", "application/x-tar"].iter().any(|known| text.eq_ignore_ascii_case(known))
        }
        // A request without a body has no media type; a browser adds `Origin` to it.
        None => !headers.contains_key(ORIGIN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn head(host: &str) -> Parts {
        Request::get("/api/v1/images").header(HOST, host).body(()).expect("a request").into_parts().0
    }

    #[test]
    fn host_must_be_this_machine() {
        for own in ["127.0.0.1:5001", "localhost", "LocalHost:5001", "[::1]:5001", "10.0.0.7"] {
            assert!(is_own_host(&head(own)), "{own}");
        }
        for other in ["larder.example.com", "127.0.0.1.example.com", "localhost.example.com:80", "a b"] {
            assert!(!is_own_host(&head(other)), "{other}");
        }
    }

    fn with(path: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::get(path).header(HOST, "localhost:5001");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn host_of_the_target_must_be_this_machine_too() {
        let of = |target: &str| with(target, &[]);
        assert!(is_own_host(&of("http://127.0.0.1:5001/")));
        assert!(!is_own_host(&of("http://larder.example.com/")));
    }

    #[test]
    fn foreign_pages_are_refused() {
        let page = |headers: &[(&str, &str)]| refuse_foreign_pages(&with("/images", headers), true);
        let own: [&[(&str, &str)]; 5] = [
            &[],
            &[("origin", "http://localhost:5001")],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "same-origin"), ("origin", "http://LOCALHOST:5001")],
            &[
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-mode", "navigate"),
                ("sec-fetch-dest", "document"),
            ],
        ];
        for headers in own {
            assert_eq!(page(headers), Ok(()), "{headers:?}");
        }
        let foreign: [&[(&str, &str)]; 6] = [
            &[("origin", "null")],
            &[("origin", "http://localhost:8080")],
            &[("origin", "http://localhost:5001"), ("origin", "http://a.test")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")],
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")],
        ];
        for headers in foreign {
            assert_eq!(page(headers), Err(Denial::Origin), "{headers:?}");
        }
    }

    #[test]
    fn links_lead_to_pages_only() {
        let link = [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
        ];
        assert_eq!(
            refuse_foreign_pages(&with("/api/v1/export?reference=a", &link), true),
            Err(Denial::Origin)
        );
    }

    #[test]
    fn sent_token_is_a_bearer_token_or_a_password() {
        let sent = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, text.parse().expect("a value"));
            sent_token(&headers).map(|token| String::from_utf8_lossy(&token).into_owned())
        };
        assert_eq!(sent("Bearer  a-token ").as_deref(), Some("a-token"));
        assert_eq!(sent(&format!("basic {}", BASE64.encode("me:a:token"))).as_deref(), Some("a:token"));
        assert_eq!(sent(&format!("Basic {}", BASE64.encode(":t"))).as_deref(), Some("t"));
        for none in ["Basic", "Basic ???", "Digest x", &format!("Basic {}", BASE64.encode("token"))] {
            assert_eq!(sent(none), None, "{none}");
        }
    }

    #[test]
    fn is_equal_compares_whole_tokens() {
        assert!(is_equal(b"secret", b"secret"));
        for other in ["", "secre", "secrets", "Secret"] {
            assert!(!is_equal(other.as_bytes(), b"secret"), "{other}");
        }
    }
}
