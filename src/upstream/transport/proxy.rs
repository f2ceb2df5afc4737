//! Proxy towards an upstream: from the configuration, or from the environment.

use std::fmt;

use http::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use url::{Host, Url};

use crate::config::proxy::{self, Proxy};

/// Environment variables with proxies, as curl, docker and containerd read them.
const VARIABLES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// Proxies for the requests to one endpoint.
pub(crate) enum Proxies {
    /// No proxy.
    None,
    /// This proxy for all hosts.
    One(Box<Matcher>, Url),
    /// The proxies of the environment, which depend on the host.
    Environment(Box<Matcher>),
}

impl Proxies {
    /// Returns the proxies for an endpoint on the host `own`. A registry on this machine has none, unless `setting` names
    /// one.
    pub(crate) fn new(setting: Option<&Proxy>, own: &Host) -> Result<Self, String> {
        match setting {
            Some(Proxy::Direct) => Ok(Self::None),
            Some(Proxy::At(url)) => {
                let matcher = Matcher::builder().all(url.as_str().to_owned()).build();
                Ok(Self::One(Box::new(matcher), url.clone()))
            }
            None if is_local(own) => Ok(Self::None),
            None => {
                for (name, value) in environment() {
                    proxy::url(&value).map_err(|error| {
                        format!("{name} in the environment: {error}, in this upstream's `proxy`")
                    })?;
                }
                Ok(Self::Environment(Box::new(Matcher::from_env())))
            }
        }
    }

    /// Returns the proxy for a request to `url`.
    pub(crate) fn towards(&self, url: &Url) -> Option<Intercept> {
        self.intercept(&url.as_str().parse().ok()?)
    }

    /// Returns the proxy for a request to `uri`.
    pub(crate) fn intercept(&self, uri: &Uri) -> Option<Intercept> {
        match self {
            Self::None => None,
            Self::One(matcher, _) | Self::Environment(matcher) => matcher.intercept(uri),
        }
    }

    /// Returns the hosts of all proxies.
    pub(crate) fn hosts(&self) -> Vec<Host> {
        let urls = match self {
            Self::None => Vec::new(),
            Self::One(_, url) => vec![url.clone()],
            Self::Environment(_) => environment().filter_map(|(_, value)| proxy::url(&value).ok()).collect(),
        };
        urls.iter().filter_map(|url| Some(url.host()?.to_owned())).collect()
    }

    /// Returns true if the proxies are from the environment.
    pub(crate) fn is_from_environment(&self) -> bool {
        matches!(self, Self::Environment(_))
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // URLs may contain credentials, so only hosts are shown.
        f.debug_tuple("Proxies").field(&self.hosts()).finish()
    }
}

/// Returns the variables of the environment that name proxies.
pub(crate) fn environment() -> impl Iterator<Item = (&'static str, String)> {
    VARIABLES
        .into_iter()
        .filter_map(|name| Some((name, std::env::var(name).ok()?)))
        .filter(|(_, value)| !value.is_empty())
}

fn is_local(host: &Host) -> bool {
    match host {
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
        Host::Domain(name) => name == "localhost" || name.ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("a URL")
    }

    #[test]
    fn configured_proxy_is_used_for_every_host() {
        let own = Host::parse("127.0.0.1").expect("a host");
        let proxies = Proxies::new(Some(&"http://proxy.test:3128".parse().expect("a proxy")), &own);
        let proxies = proxies.expect("proxies");
        for asked in ["http://127.0.0.1:5000/v2/", "https://cdn.test/x"] {
            let proxy = proxies.towards(&url(asked)).expect("a proxy");
            assert_eq!(proxy.uri().to_string(), "http://proxy.test:3128/", "{asked}");
        }
        assert_eq!(proxies.hosts(), [Host::Domain("proxy.test".to_owned())]);
    }

    #[test]
    fn local_registry_has_no_proxy() {
        for here in ["127.0.0.1", "[::1]", "localhost", "registry.localhost"] {
            let host = Host::parse(here).expect("a host");
            assert!(matches!(Proxies::new(None, &host), Ok(Proxies::None)), "{here}");
        }
        let there = Host::parse("localhost.test").expect("a host");
        assert!(matches!(Proxies::new(Some(&Proxy::Direct), &there), Ok(Proxies::None)));
        assert!(!is_local(&there));
    }
}
