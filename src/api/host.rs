//! The `Host` of a request, and the requests that must be refused because of it (RFC 9112, 3.2).

use http::Version;
use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;

/// Reason for which the `Host` of a request is not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostError {
    /// The request has no `Host`, which HTTP/1.1 requires.
    Missing,
    /// The request has several `Host` headers: two programs may read different hosts.
    Several,
    /// The value is not a host with an optional port.
    Invalid,
}

impl HostError {
    /// Returns the message for the client.
    pub(super) const fn message(self) -> &'static str {
        match self {
            Self::Missing => "the request has no Host header; send one",
            Self::Several => "the request has several Host headers; send one",
            Self::Invalid => "the Host header is not a host name with an optional port",
        }
    }
}

/// Checks that a request has exactly one valid `Host`.
///
/// HTTP/2 has the host in the target, and HTTP/1.0 does not require one.
pub(super) fn check(head: &Parts) -> Result<(), HostError> {
    let mut values = head.headers.get_all(HOST).iter();
    match (values.next(), values.next()) {
        (Some(_), Some(_)) => Err(HostError::Several),
        (None, _) if head.version == Version::HTTP_11 => Err(HostError::Missing),
        (Some(value), None) if !is_valid(value.as_bytes()) => Err(HostError::Invalid),
        _ => Ok(()),
    }
}

/// Returns true for a host with an optional port, and for the empty value, which the standard permits. A value with a comma is
/// refused: a proxy may have joined two headers.
fn is_valid(value: &[u8]) -> bool {
    value.is_empty()
        || Authority::try_from(value)
            .is_ok_and(|authority| !authority.host().is_empty() && !authority.as_str().contains(['@', ',']))
}

/// Returns the host by which the client addresses this server.
///
/// HTTP/2 and the absolute form of HTTP/1.1 have the host in the target, which wins (RFC 9112, 3.2.2).
pub(super) fn of(head: &Parts) -> Option<&str> {
    match head.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => head.headers.get(HOST).and_then(|host| host.to_str().ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn head(version: Version, hosts: &[&str]) -> Parts {
        let mut request = Request::get("/v2/").version(version);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn exactly_one_valid_host_is_required() {
        let http11 = |hosts: &[&str]| check(&head(Version::HTTP_11, hosts));
        for valid in ["larder", "larder:5000", "my_registry:5000", "[::1]:5000", "10.0.0.7", ""] {
            assert_eq!(http11(&[valid]), Ok(()), "{valid}");
        }
        for invalid in ["a b", "a/b", "a,b", "user@a", "a:b:c", ":80"] {
            assert_eq!(http11(&[invalid]), Err(HostError::Invalid), "{invalid}");
        }
        assert_eq!(http11(&[]), Err(HostError::Missing));
        assert_eq!(http11(&["a", "a"]), Err(HostError::Several));
        assert_eq!(check(&head(Version::HTTP_10, &[])), Ok(()));
        assert_eq!(check(&head(Version::HTTP_2, &[])), Ok(()));
        assert_eq!(check(&head(Version::HTTP_10, &["a", "b"])), Err(HostError::Several));
    }
}
