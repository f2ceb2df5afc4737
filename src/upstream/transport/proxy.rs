//! The proxy between larder and an upstream: the one that is configured, or those that the environment names.

use std::fmt;

use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use reqwest::ClientBuilder;
use url::{Host, Url};

use crate::config::proxy::{self, Proxy};

/// Where the environment names proxies (as curl, docker and containerd read it).
const VARIABLES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// Through what the requests for one endpoint go.
pub(crate) enum Proxies {
    /// Through nothing.
    None,
    /// All through this one.
    One(Box<Matcher>, Url),
    /// Through what the environment says for each host.
    Environment(Box<Matcher>),
}

impl Proxies {
    /// Those for an endpoint at `own`. What runs on this machine is asked directly, unless `setting` says otherwise.
    pub(crate) fn new(setting: Option<&Proxy>, own: &Host) -> Result<Self, String> {
        match setting {
            Some(Proxy::Direct) => Ok(Self::None),
            Some(Proxy::At(url)) => {
                let matcher = Matcher::builder().all(url.as_str().to_owned()).build();
                Ok(Self::One(Box::new(matcher), url.clone()))
            }
            None if is_here(own) => Ok(Self::None),
            None => {
                for (name, value) in named() {
                    proxy::url(&value).map_err(|error| {
                        format!("{name} in the environment: {error}, in this upstream's `proxy`")
                    })?;
                }
                Ok(Self::Environment(Box::new(Matcher::from_env())))
            }
        }
    }

    /// What is connected to instead, for a request to `url`.
    pub(crate) fn towards(&self, url: &Url) -> Option<Intercept> {
        match self {
            Self::None => None,
            Self::One(matcher, _) | Self::Environment(matcher) => {
                matcher.intercept(&url.as_str().parse().ok()?)
            }
        }
    }

    /// The hosts of all that may be connected to instead.
    pub(crate) fn hosts(&self) -> Vec<Host> {
        let urls = match self {
            Self::None => Vec::new(),
            Self::One(_, url) => vec![url.clone()],
            Self::Environment(_) => named().filter_map(|(_, value)| proxy::url(&value).ok()).collect(),
        };
        urls.iter().filter_map(|url| Some(url.host()?.to_owned())).collect()
    }

    /// Has a client do the same.
    pub(crate) fn apply(&self, client: ClientBuilder) -> reqwest::Result<ClientBuilder> {
        Ok(match self {
            Self::None => client.no_proxy(),
            Self::One(_, url) => client.proxy(reqwest::Proxy::all(url.clone())?),
            // The client reads it by itself.
            Self::Environment(_) => client,
        })
    }

    /// Whether the environment decides.
    pub(crate) fn of_environment(&self) -> bool {
        matches!(self, Self::Environment(_))
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without what the environment's URLs hold beside hosts.
        f.debug_tuple("Proxies").field(&self.hosts()).finish()
    }
}

/// What the environment names.
pub(crate) fn named() -> impl Iterator<Item = (&'static str, String)> {
    VARIABLES
        .into_iter()
        .filter_map(|name| Some((name, std::env::var(name).ok()?)))
        .filter(|(_, value)| !value.is_empty())
}

fn is_here(host: &Host) -> bool {
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
    fn the_one_that_is_configured_is_for_every_request() {
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
    fn what_is_here_needs_none() {
        for here in ["127.0.0.1", "[::1]", "localhost", "registry.localhost"] {
            let host = Host::parse(here).expect("a host");
            assert!(matches!(Proxies::new(None, &host), Ok(Proxies::None)), "{here}");
        }
        let there = Host::parse("localhost.test").expect("a host");
        assert!(matches!(Proxies::new(Some(&Proxy::Direct), &there), Ok(Proxies::None)));
        assert!(!is_here(&there));
    }
}
