//! Who may ask the operator's API: anybody on this machine, and beyond it who has the token. A page in a browser on this
//! machine is not the operator, whatever address its requests come from.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, Method};

use crate::oci::{Algorithm, Digest};
use crate::ops::Operations;

use super::Denial;

/// A longer file holds no token.
const TOKEN_MAX: usize = 4096;

/// Lets a request pass or says why not. `trusting` is for sockets that only this machine reaches.
pub(super) async fn authorize(head: &Parts, trusting: bool, operations: &Operations) -> Result<(), Denial> {
    if !trusting {
        let token = token(operations).await.ok_or(Denial::NoToken)?;
        if !sent_token(&head.headers).is_some_and(|given| is_equal(&given, &token)) {
            return Err(Denial::Token);
        }
    } else if !is_own_host(head) {
        // Where no token is asked for, a name that somebody else's DNS lets point here must not open the door.
        return Err(Denial::Host);
    }
    let reads = head.method == Method::GET || head.method == Method::HEAD;
    let foreign = !reads && !is_not_a_form(&head.headers);
    // A browser sends JSON to a foreign place only after asking, and this API never says yes.
    if foreign { Err(Denial::MediaType) } else { Ok(()) }
}

/// Read whenever it is needed, so that a new one counts at once.
async fn token(operations: &Operations) -> Option<Vec<u8>> {
    let path = operations.config().admin.token_file.clone()?;
    let read = tokio::task::spawn_blocking(move || (std::fs::read(&path), path)).await.ok()?;
    match read {
        (Ok(text), _) => {
            let token = text.trim_ascii();
            (!token.is_empty() && token.len() <= TOKEN_MAX).then(|| token.to_vec())
        }
        (Err(error), path) => {
            tracing::error!(%error, path = %path.display(), "admin.token_file cannot be read; nobody is let in");
            None
        }
    }
}

/// The token as it was sent: as `Bearer`, or as the password of `Basic`, which is what browsers ask people for.
fn sent_token(headers: &HeaderMap) -> Option<Vec<u8>> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(token.as_bytes().to_vec());
    }
    let pair = scheme.eq_ignore_ascii_case("basic").then(|| BASE64.decode(token))?.ok()?;
    // Whoever has the token is the operator, by whatever name.
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

/// Compares in a time that tells nothing of where they differ, nor of their lengths.
fn is_equal(given: &[u8], token: &[u8]) -> bool {
    let (given, token) = (Digest::of(Algorithm::Sha256, given), Digest::of(Algorithm::Sha256, token));
    let pairs = given.as_bytes().iter().zip(token.as_bytes());
    std::hint::black_box(pairs.fold(0_u8, |differ, (one, other)| differ | (one ^ other))) == 0
}

/// Whether a request is meant for this machine by an address, by `localhost`, or came by a socket in the file system.
fn is_own_host(head: &Parts) -> bool {
    let authority = head.uri.authority().map(http::uri::Authority::as_str);
    let given = authority.or_else(|| head.headers.get(HOST).and_then(|host| host.to_str().ok()));
    let Some(host) = given.filter(|host| !host.is_empty()) else { return true };
    let Ok(host) = host.parse::<http::uri::Authority>() else { return false };
    let name = host.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
}

/// Whether a request that changes something cannot be a form of a page somewhere.
fn is_not_a_form(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = media_type.map(|text| text.split(';').next().unwrap_or_default().trim());
    match media_type {
        Some(text) => {
            ["application/json", "application/x-tar"].iter().any(|known| text.eq_ignore_ascii_case(known))
        }
        // What has no body has no type; and every browser names the page that sends it.
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
    fn only_this_machine_by_its_own_names() {
        for own in ["127.0.0.1:5001", "localhost", "LocalHost:5001", "[::1]:5001", "10.0.0.7"] {
            assert!(is_own_host(&head(own)), "{own}");
        }
        for other in ["larder.example.com", "127.0.0.1.example.com", "localhost.example.com:80", "a b"] {
            assert!(!is_own_host(&head(other)), "{other}");
        }
    }

    #[test]
    fn a_token_is_a_bearers_or_a_password() {
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
    fn tokens_are_compared_whole() {
        assert!(is_equal(b"secret", b"secret"));
        for other in ["", "secre", "secrets", "Secret"] {
            assert!(!is_equal(other.as_bytes(), b"secret"), "{other}");
        }
    }
}
