//! Accept headers of clients: check if a media type is accepted.

use http::HeaderMap;
use http::header::ACCEPT;

use super::media::{CANONICAL_ACCEPT, MediaType};

/// Media types that a client accepts. All Accept lines are used; parameters, weights and order are ignored.
#[derive(Clone, Copy, Debug)]
pub struct Accept<'a>(&'a HeaderMap);

impl<'a> Accept<'a> {
    /// Returns the accepted types of a request.
    pub fn from_headers(headers: &'a HeaderMap) -> Self {
        Self(headers)
    }

    fn types(self) -> impl Iterator<Item = &'a str> {
        let lines = self.0.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok());
        lines
            .flat_map(|line| line.split(','))
            .map(|item| item.split(';').next().unwrap_or_default().trim())
            .filter(|item| !item.is_empty())
    }

    /// Returns true if the client accepts `media_type`. Without an Accept header, or with a wildcard, it accepts all types.
    pub fn allows(self, media_type: &MediaType) -> bool {
        let mut unspecified = true;
        for item in self.types() {
            unspecified = false;
            if matches!(item, "*/*" | "application/*") || item.eq_ignore_ascii_case(media_type.as_str()) {
                return true;
            }
        }
        unspecified
    }

    /// Returns the canonical manifest types that the client named, in canonical order. They are requested from an upstream
    /// for this client. Empty if the client named none of them.
    pub fn canonical(self) -> Vec<&'static str> {
        CANONICAL_ACCEPT
            .split(", ")
            .filter(|known| self.types().any(|item| item.eq_ignore_ascii_case(known)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::media::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

    fn headers(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT, line.parse().expect("a header value"));
        }
        headers
    }

    fn allows(lines: &[&str], media_type: &str) -> bool {
        Accept::from_headers(&headers(lines)).allows(&MediaType::new(media_type).expect("a type"))
    }

    #[test]
    fn allows_uses_every_accept_line() {
        let lines = [OCI_MANIFEST, "application/json", &format!("{DOCKER_LIST};q=0.1,{OCI_INDEX}")];
        assert!(allows(&lines, OCI_INDEX) && allows(&lines, DOCKER_LIST));
        assert!(!allows(&lines, DOCKER_MANIFEST));
        let headers = headers(&lines);
        assert_eq!(Accept::from_headers(&headers).canonical(), [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST]);
    }

    #[test]
    fn allows_everything_without_accept_or_with_a_wildcard() {
        assert!(allows(&[], OCI_INDEX));
        assert!(allows(&[DOCKER_MANIFEST, "text/plain, */*;q=0.1"], OCI_INDEX));
        assert!(!allows(&["text/plain"], OCI_INDEX));
    }
}
