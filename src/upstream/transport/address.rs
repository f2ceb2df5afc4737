//! Policy for addresses: the endpoint's own host and its proxy may always be dialled, private addresses elsewhere only
//! with `allow_private`.
//!
//! Redirects and token realms come from outside and may name internal hosts. Names are checked in the resolver, so that
//! the checked address is the dialled one even if the name changes in between. A proxy resolves names itself, and its own
//! policy applies.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::vec;

use hyper_util::client::legacy::connect::dns::Name;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tower_service::Service;
use url::{Host, Url};

use crate::source::SourceError;

const HTTPS_PORT: u16 = 443;

/// Hosts and addresses that requests for one endpoint may go to.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    own: Host<String>,
    /// Port of the endpoint.
    port: Option<u16>,
    /// Hosts of proxies.
    proxies: Vec<Host<String>>,
    allow_private: bool,
}

impl Policy {
    /// Creates the policy for an endpoint on the host `own`, at `port`.
    pub(crate) fn new(own: Host<String>, port: Option<u16>, allow_private: bool) -> Self {
        Self { own, port, proxies: Vec::new(), allow_private }
    }

    /// Returns the policy with these hosts of proxies.
    pub(crate) fn with_proxies(self, proxies: Vec<Host<String>>) -> Self {
        Self { proxies, ..self }
    }

    /// Refuses a URL that must not be requested. Names are checked when they are resolved.
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
            // The resolver permits the proxy's name, whatever its address. No redirect may use that.
            Host::Domain(_) => self.is_proxy(&host),
        };
        if self.allow_private || !private || same(&self.own, &host) {
            Ok(())
        } else {
            refuse(PrivateAddress::of(url.host_str().unwrap_or_default()).to_string())
        }
    }

    /// Refuses the target of a redirect that must not be requested: as [`check`](Self::check), and on the endpoint's own host
    /// only the endpoint's port and that of https. Other services of the host are not part of the registry.
    pub(crate) fn check_redirect(&self, url: &Url) -> Result<(), SourceError> {
        self.check(url)?;
        let is_own = url.host().is_some_and(|host| same(&self.own, &host));
        let port = url.port_or_known_default();
        if !is_own || self.allow_private || port == self.port || port == Some(HTTPS_PORT) {
            return Ok(());
        }
        Err(SourceError::Invalid(
            "it redirects to another port of its own host; set allow_private on the upstream to permit it"
                .to_owned(),
        ))
    }

    /// Returns true if a URL has the host and the port of the endpoint.
    pub(crate) fn is_endpoint(&self, url: &Url) -> bool {
        url.port_or_known_default() == self.port && url.host().is_some_and(|host| same(&self.own, &host))
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

/// Error for a host from outside that has a private address.
#[derive(Debug)]
pub(crate) struct PrivateAddress;

impl PrivateAddress {
    /// Logs the host and returns the error without it: clients must not see internal names.
    fn of(host: &str) -> Self {
        tracing::warn!(host, "a redirect or a token realm leads to a private address");
        Self
    }
}

impl fmt::Display for PrivateAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it leads to a private address; set allow_private on the upstream to permit it")
    }
}

impl std::error::Error for PrivateAddress {}

/// Look-ups of names that run at the same time for one endpoint. Each occupies a thread, for as long as the system's name
/// servers do not answer.
const LOOKUPS_MAX: usize = 4;

/// Addresses of a name, or the reason why it has none.
type Resolved = Result<vec::IntoIter<SocketAddr>, Box<dyn std::error::Error + Send + Sync>>;

/// System resolver that applies a [`Policy`].
#[derive(Clone, Debug)]
pub(crate) struct Resolver {
    policy: Arc<Policy>,
    lookups: Arc<Semaphore>,
}

impl Resolver {
    pub(crate) fn new(policy: &Arc<Policy>) -> Self {
        Self { policy: Arc::clone(policy), lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }
}

impl Resolver {
    async fn resolve(self, name: String) -> Resolved {
        let permit = self.lookups.acquire_owned().await?;
        let host = name.clone();
        let looking = spawn_blocking(move || {
            // Held until the thread is free: a caller that gives up does not end the look-up.
            let _permit = permit;
            (host.as_str(), 0).to_socket_addrs()
        });
        let found = looking.await??;
        let (policy, host) = (self.policy, Host::Domain(name.as_str()));
        let free = policy.allow_private || same(&policy.own, &host) || policy.is_proxy(&host);
        let permitted: Vec<SocketAddr> = found.filter(|address| free || !is_private(address.ip())).collect();
        if permitted.is_empty() && !free {
            return Err(PrivateAddress::of(&name).into());
        }
        Ok(permitted.into_iter())
    }
}

impl Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Resolved> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(self.clone().resolve(name.as_str().to_owned()))
    }
}

/// Returns true if an address is not of a public network. (`IpAddr::is_global` is not stable yet.)
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
        // Shared address space (RFC 6598), where some clouds have their metadata services.
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
        // Site-local, deprecated (RFC 3879).
        || segments[0] & 0xffc0 == 0xfec0
        // Embedded IPv4: mapped or compatible, NAT64 (RFC 6052), 6to4.
        || (segments[..5] == [0; 5] && matches!(segments[5], 0 | 0xffff) && embedded(segments[6], segments[7]))
        || (segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] && embedded(segments[6], segments[7]))
        || segments[..3] == [0x64, 0xff9b, 1]
        || (segments[0] == 0x2002 && embedded(segments[1], segments[2]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_private_knows_reserved_networks() {
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
        Policy::new(url.host().expect("a host").to_owned(), url.port_or_known_default(), allow_private)
    }

    fn may(policy: &Policy, url: &str) -> bool {
        policy.check(&Url::parse(url).expect("a URL")).is_ok()
    }

    #[test]
    fn redirect_to_the_own_host_keeps_the_port() {
        let may = |endpoint: &str, allow_private: bool, target: &str| {
            let target = Url::parse(target).expect("a URL");
            policy(endpoint, allow_private).check_redirect(&target).is_ok()
        };
        let lab = "http://127.0.0.1:5000";
        assert!(may(lab, false, "http://127.0.0.1:5000/x") && may(lab, false, "https://127.0.0.1/x"));
        assert!(!may(lab, false, "http://127.0.0.1:9/x") && !may(lab, false, "http://127.0.0.1/x"));
        assert!(may(lab, true, "http://127.0.0.1:9/x") && may(lab, false, "https://cdn.test:9/x"));
        assert!(!may("https://ghcr.io", false, "https://ghcr.io:22/"));
        assert!(may("https://ghcr.io", false, "https://ghcr.io/x"));
    }

    #[test]
    fn policy_permits_private_addresses_for_the_own_host_only() {
        let lab = policy("http://127.0.0.1:5000", false);
        assert!(may(&lab, "http://127.0.0.1:9/x") && may(&lab, "https://cdn.test/x"));
        for bad in ["http://127.0.0.2/", "http://0x7f.2/", "http://[::1]/", "http://169.254.169.254/latest"] {
            assert!(!may(&lab, bad), "{bad}");
        }
        assert!(!may(&policy("https://ghcr.io", false), "https://10.0.0.1/"));
        assert!(may(&policy("https://ghcr.io", true), "https://10.0.0.1/"));
    }

    #[test]
    fn policy_permits_no_redirect_to_the_proxy() {
        let proxied = |policy: Policy| policy.with_proxies(vec![Host::Domain("proxy.test".to_owned())]);
        assert!(!may(&proxied(policy("https://ghcr.io", false)), "http://proxy.test:3128/"));
        assert!(may(&proxied(policy("https://ghcr.io", false)), "https://cdn.test/x"));
        assert!(may(&proxied(policy("https://ghcr.io", true)), "http://proxy.test/"));
        assert!(may(&proxied(policy("https://proxy.test", false)), "https://proxy.test/v2/"));
    }

    #[test]
    fn policy_refuses_other_schemes_and_credentials() {
        let any = policy("https://ghcr.io", true);
        for bad in ["ftp://ghcr.io/", "https://user@ghcr.io/", "https://:pw@ghcr.io/", "file:///etc/passwd"] {
            assert!(!may(&any, bad), "{bad}");
        }
    }

    #[tokio::test]
    async fn resolver_checks_the_addresses_of_names() {
        let resolve = |policy: Policy| async move {
            Resolver::new(&Arc::new(policy)).resolve("localhost".to_owned()).await.map(Iterator::count)
        };
        let error = resolve(policy("https://ghcr.io", false)).await.expect_err("refused");
        assert!(error.is::<PrivateAddress>() && error.to_string().contains("allow_private"));
        assert!(resolve(policy("https://ghcr.io", true)).await.expect("permitted") > 0);
        assert!(resolve(policy("http://localhost:5000", false)).await.expect("permitted") > 0);
        let proxied =
            policy("https://ghcr.io", false).with_proxies(vec![Host::Domain("localhost".to_owned())]);
        assert!(resolve(proxied).await.expect("permitted") > 0);
    }
}
