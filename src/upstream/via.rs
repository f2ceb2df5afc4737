//! Servers that a request has passed, from its header `Via` (RFC 9110, section 7.6.3).
//!
//! Servers that name each other as endpoints would wait for each other. Each server adds its identity to the requests that
//! it sends, and refuses to ask upstreams for a request that contains its own identity.

use std::fmt;

use http::HeaderMap;
use http::header::VIA;

/// Largest number of servers that a request may pass.
const HOPS_MAX: usize = 16;
/// Prefix of the pseudonyms of servers. Other proxies in `Via` are ignored.
const PREFIX: &str = "larder-";

/// Identity of a running server, random at each start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerId(u64);

impl ServerId {
    pub(crate) fn random() -> Self {
        Self(fastrand::u64(..))
    }

    /// Parses a pseudonym.
    fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(PREFIX)?;
        let is_valid = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        is_valid.then(|| u64::from_str_radix(digits, 16).ok().map(Self)).flatten()
    }
}

/// Formats an entry of `Via`.
impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.1 {PREFIX}{:016x}", self.0)
    }
}

/// Servers that a request has passed, the first one first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hops(Vec<ServerId>);

impl Hops {
    /// Parses the header of a request or response.
    pub fn parse(headers: &HeaderMap) -> Self {
        let lines = headers.get_all(VIA).iter().filter_map(|line| line.to_str().ok());
        let entries = lines.flat_map(|line| line.split(','));
        let names = entries.filter_map(|entry| entry.split_ascii_whitespace().nth(1));
        Self(names.filter_map(ServerId::parse).take(HOPS_MAX).collect())
    }

    /// Returns true if the request has passed no server.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the first server.
    pub(crate) fn first(&self) -> Option<ServerId> {
        self.0.first().copied()
    }

    /// Returns true if the request has passed a server.
    pub(crate) fn contains(&self, server: ServerId) -> bool {
        self.0.contains(&server)
    }

    /// Returns true if the request must not be sent on by `server`: it has passed the server, or too many others.
    pub(crate) fn end_at(&self, server: ServerId) -> bool {
        self.contains(server) || self.0.len() >= HOPS_MAX
    }

    /// Formats the header of a request that `server` sends on.
    pub(crate) fn followed_by(&self, server: ServerId) -> String {
        let entries: Vec<_> = self.0.iter().chain([&server]).map(ToString::to_string).collect();
        entries.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lines: &[&str]) -> Hops {
        let lines = lines.iter().map(|line| (VIA, line.parse().expect("a header value")));
        Hops::parse(&lines.collect::<HeaderMap>())
    }

    #[test]
    fn via_contains_the_servers_in_order() {
        let (one, two) = (ServerId(1), ServerId(u64::MAX));
        let text = Hops::default().followed_by(one);
        assert_eq!(text, "1.1 larder-0000000000000001");
        let hops = parse(&["1.1 squid (squid/6.1)", &text]);
        assert!(hops.contains(one) && !hops.contains(two) && !hops.end_at(two));
        let both = parse(&[&hops.followed_by(two)]);
        assert_eq!((both.first(), both.end_at(two)), (Some(one), true));
        assert_eq!(both, Hops(vec![one, two]));
    }

    #[test]
    fn via_with_other_entries_is_empty() {
        for odd in ["", ",,", "larder-0000000000000001", "1.1 larder-1", "1.1 larder-+000000000000001"] {
            assert!(parse(&[odd]).is_empty(), "{odd}");
        }
    }

    #[test]
    fn via_is_limited() {
        let many = vec!["1.1 larder-0000000000000001"; 1000].join(",");
        let hops = parse(&[&many]);
        assert_eq!(hops.0.len(), HOPS_MAX);
        assert!(hops.end_at(ServerId(2)));
    }
}
