//! Which addresses may be dialled: the endpoint's own host and its proxy always, private ones elsewhere only by
//! permission.
//!
//! Redirects and token realms are words of a stranger. The check for names sits in the resolver, so that what was
//! checked is what is dialled even if the name's address changes in between. A proxy looks names up by itself, so that
//! they are for it to judge.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::source::SourceError;

/// Where the requests for one upstream may go.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    own: Host<String>,
    /// What requests go to instead.
    proxies: Vec<Host<String>>,
    allow_private: bool,
}

impl Policy {
    /// The policy for an endpoint at `own`; any port of that host counts as the same host.
    pub(crate) fn new(own: Host<String>, allow_private: bool) -> Self {
        Self { own, proxies: Vec::new(), allow_private }
    }

    /// The same where requests may go by way of these hosts.
    pub(crate) fn by_way_of(self, proxies: Vec<Host<String>>) -> Self {
        Self { proxies, ..self }
    }

    /// Refuses a URL that must not be requested; names are judged when they are resolved.
    pub(crate) fn check(&self, url: &Url) -> Result<(), SourceError> {
        let refuse = |reason: String| Err(SourceError::Invalid(reason));
        if !matches!(url.scheme(), "http" | "https") {
            return refuse(format!("it leads to a {} URL", url.scheme()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("it leads to a URL with credentials in it".to_owned());
        }
        let Some(host) = url.host() else {
            return refuse("it leads to a URL without a host".to_owned());
        };
        let private = match host {
            Host::Ipv4(address) => is_private(IpAddr::V4(address)),
            Host::Ipv6(address) => is_private(IpAddr::V6(address)),
            // The resolver lets the proxy's name pass, wherever it leads to; no stranger may name it.
            Host::Domain(_) => self.is_proxy(&host),
        };
        if self.allow_private || !private || same(&self.own, &host) {
            Ok(())
        } else {
            refuse(PrivateAddress::of(url.host_str().unwrap_or_default()).to_string())
        }
    }

    fn is_proxy(&self, host: &Host<&str>) -> bool {
        self.proxies.iter().any(|proxy| same(proxy, host))
    }
}

fn same(own: &Host<String>, other: &Host<&str>) -> bool {
    match (own, other) {
        (Host::Domain(own), Host::Domain(other)) => own.eq_ignore_ascii_case(other),
        (Host::Ipv4(own), Host::Ipv4(other)) => own == other,
        (Host::Ipv6(own), Host::Ipv6(other)) => own == other,
        _ => false,
    }
}

/// A name from outside that leads inside.
#[derive(Debug)]
pub(crate) struct PrivateAddress;

impl PrivateAddress {
    /// The place goes into the log alone: who asks for an image has no need to know what the inside is called.
    fn of(place: &str) -> Self {
        tracing::warn!(place, "a redirect or a token realm leads to a private address");
        Self
    }
}

impl fmt::Display for PrivateAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it leads to a private address; set allow_private on the upstream to permit it")
    }
}

impl std::error::Error for PrivateAddress {}

/// The system's resolver under a [`Policy`].
#[derive(Debug)]
pub(crate) struct Resolver(pub(crate) Arc<Policy>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = Arc::clone(&self.0);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let host = Host::Domain(name.as_str());
            let free = policy.allow_private || same(&policy.own, &host) || policy.is_proxy(&host);
            let permitted: Vec<SocketAddr> =
                found.filter(|address| free || !is_private(address.ip())).collect();
            if permitted.is_empty() && !free {
                return Err(PrivateAddress::of(name.as_str()).into());
            }
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is of no public network.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_private_v4(address),
        IpAddr::V6(address) => is_private_v6(address),
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        || first == 0
        // Shared address space of carriers (RFC 6598), also home of some clouds' metadata services.
        || (first == 100 && second & 0b1100_0000 == 64)
        // Protocol assignments (RFC 6890) and benchmarking (RFC 2544).
        || (first == 192 && second == 0 && third == 0)
        || (first == 198 && second & 0b1111_1110 == 18)
        || first >= 240
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_private_v4(Ipv4Addr::new(a, b, c, d))
    };
    address.is_loopback()
        || address.is_unspecified()
        || address.is_unique_local()
        || address.is_unicast_link_local()
        || address.is_multicast()
        // Formerly site-local.
        || segments[0] & 0xffc0 == 0xfec0
        // IPv4 in disguise: mapped or compatible, NAT64 (RFC 6052), 6to4.
        || (segments[..5] == [0; 5] && matches!(segments[5], 0 | 0xffff) && embedded(segments[6], segments[7]))
        || (segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] && embedded(segments[6], segments[7]))
        || segments[..3] == [0x64, 0xff9b, 1]
        || (segments[0] == 0x2002 && embedded(segments[1], segments[2]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_networks_are_known() {
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:a00:1::1",
        ] {
            assert!(is_private(private.parse().expect("an address")), "{private}");
        }
        for public in
            ["1.1.1.1", "172.32.0.1", "100.128.0.1", "192.0.2.1", "2606:4700::1111", "64:ff9b::101:101"]
        {
            assert!(!is_private(public.parse().expect("an address")), "{public}");
        }
    }

    fn policy(endpoint: &str, allow_private: bool) -> Policy {
        let url = Url::parse(endpoint).expect("a URL");
        Policy::new(url.host().expect("a host").to_owned(), allow_private)
    }

    fn may(policy: &Policy, url: &str) -> bool {
        policy.check(&Url::parse(url).expect("a URL")).is_ok()
    }

    #[test]
    fn only_the_own_host_may_be_private() {
        let lab = policy("http://127.0.0.1:5000", false);
        assert!(may(&lab, "http://127.0.0.1:9/x") && may(&lab, "https://cdn.test/x"));
        for bad in ["http://127.0.0.2/", "http://0x7f.2/", "http://[::1]/", "http://169.254.169.254/latest"] {
            assert!(!may(&lab, bad), "{bad}");
        }
        assert!(!may(&policy("https://ghcr.io", false), "https://10.0.0.1/"));
        assert!(may(&policy("https://ghcr.io", true), "https://10.0.0.1/"));
    }

    #[test]
    fn nobody_leads_to_the_proxy() {
        let by_way = |policy: Policy| policy.by_way_of(vec![Host::Domain("proxy.test".to_owned())]);
        assert!(!may(&by_way(policy("https://ghcr.io", false)), "http://proxy.test:3128/"));
        assert!(may(&by_way(policy("https://ghcr.io", false)), "https://cdn.test/x"));
        assert!(may(&by_way(policy("https://ghcr.io", true)), "http://proxy.test/"));
        assert!(may(&by_way(policy("https://proxy.test", false)), "https://proxy.test/v2/"));
    }

    #[test]
    fn odd_urls_are_refused() {
        let any = policy("https://ghcr.io", true);
        for bad in ["ftp://ghcr.io/", "https://user@ghcr.io/", "https://:pw@ghcr.io/", "file:///etc/passwd"] {
            assert!(!may(&any, bad), "{bad}");
        }
    }

    #[tokio::test]
    async fn names_are_judged_by_their_addresses() {
        let resolve = |policy: Policy| async move {
            Resolver(Arc::new(policy))
                .resolve("localhost".parse().expect("a name"))
                .await
                .map(Iterator::count)
        };
        let error = resolve(policy("https://ghcr.io", false)).await.expect_err("refused");
        assert!(error.is::<PrivateAddress>() && error.to_string().contains("allow_private"));
        assert!(resolve(policy("https://ghcr.io", true)).await.expect("permitted") > 0);
        assert!(resolve(policy("http://localhost:5000", false)).await.expect("permitted") > 0);
        let proxied = policy("https://ghcr.io", false).by_way_of(vec![Host::Domain("localhost".to_owned())]);
        assert!(resolve(proxied).await.expect("permitted") > 0);
    }
}
