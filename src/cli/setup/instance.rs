//! The server as clients see it: address, scheme and upstreams.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context as _, bail};
use url::Host;

use crate::config::Config;
use crate::config::address::{ListenAddress, ListenAddresses};
use crate::tls;

/// Scheme of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Scheme {
    Http,
    Https,
}

/// Address given by the operator: `HOST:PORT` with an optional scheme.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Given {
    scheme: Option<Scheme>,
    host: Host,
    port: u16,
}

impl FromStr for Given {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "write HOST:PORT, such as 192.0.2.7:5000 or https://larder.example.com:5443".to_owned();
        let (scheme, rest) = match text.split_once("://") {
            None => (None, text),
            Some(("http", rest)) => (Some(Scheme::Http), rest),
            Some(("https", rest)) => (Some(Scheme::Https), rest),
            Some(_) => return Err(wrong()),
        };
        let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let host = Host::parse(host).map_err(|_| wrong())?;
        if ip(&host).is_some_and(|ip| ip.is_unspecified()) {
            return Err(
                "the unspecified address is not reachable; name an address that clients can reach".to_owned()
            );
        }
        Ok(Self { scheme, host, port })
    }
}

fn ip(host: &Host) -> Option<IpAddr> {
    match host {
        Host::Domain(_) => None,
        Host::Ipv4(ip) => Some((*ip).into()),
        Host::Ipv6(ip) => Some((*ip).into()),
    }
}

/// The server as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Instance {
    pub(in crate::cli) scheme: Scheme,
    host: Host,
    port: u16,
    /// Certificate authority as PEM, if clients need it.
    pub(super) authority: Option<String>,
    /// Names of the upstreams.
    pub(super) upstreams: Vec<String>,
}

impl fmt::Display for Instance {
    /// Writes `HOST:PORT`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Instance {
    /// Returns the server of a configuration, at the given address or at its first listen address.
    pub(super) fn of(config: &Config, given: Option<&Given>, ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let (scheme, host, port) = match given {
            Some(given) => (scheme(config, given)?, given.host.clone(), given.port),
            None => listened(config)?,
        };
        let authority = match ca_file {
            Some(_) if scheme == Scheme::Http => {
                bail!("--ca-file is for TLS, but the server at {host}:{port} does not use TLS")
            }
            Some(path) => {
                let wrong = || format!("the certificate authority in {} cannot be used", path.display());
                tls::certificates(path).map_err(anyhow::Error::msg).with_context(wrong)?;
                Some(std::fs::read_to_string(path).with_context(wrong)?)
            }
            None => None,
        };
        let upstreams = config.upstream.keys().cloned().collect();
        Ok(Self { scheme, host, port, authority, upstreams })
    }

    /// Returns the server of a configuration as reached from its own machine.
    pub(in crate::cli) fn seen_from_here(config: &Config, given: Option<&Given>) -> anyhow::Result<Self> {
        if given.is_some() {
            return Self::of(config, given, None);
        }
        let mut here = config.clone();
        for address in here.server.listen.0.iter_mut().chain(&mut here.server.tls_listen.0) {
            if let ListenAddress::Tcp(address) = address {
                match address.ip() {
                    IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
                    IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
                    _ => {}
                }
            }
        }
        Self::of(&here, None, None)
    }

    /// Returns `http://HOST:PORT` or `https://HOST:PORT`.
    pub(in crate::cli) fn url(&self) -> String {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        format!("{scheme}://{self}")
    }

    /// Returns true if only programs in the same network namespace can reach the server.
    pub(super) fn is_loopback(&self) -> bool {
        match &self.host {
            Host::Domain(name) => name == "localhost" || name.ends_with(".localhost"),
            host => ip(host).is_some_and(|ip| ip.is_loopback()),
        }
    }

    /// Returns the upstreams that a path can name: repository names cannot contain a colon.
    pub(super) fn in_paths(&self) -> impl Iterator<Item = &str> {
        self.upstreams.iter().map(String::as_str).filter(|name| !name.contains(':'))
    }

    /// Returns the upstreams that a path cannot name.
    pub(super) fn with_ports(&self) -> Vec<&str> {
        self.upstreams.iter().map(String::as_str).filter(|name| name.contains(':')).collect()
    }
}

/// Returns the scheme of a given address, from the listeners of its port.
fn scheme(config: &Config, given: &Given) -> anyhow::Result<Scheme> {
    let Config { server, .. } = config;
    let has = |addresses: &ListenAddresses| {
        addresses
            .0
            .iter()
            .any(|address| matches!(address, ListenAddress::Tcp(address) if address.port() == given.port))
    };
    Ok(match (given.scheme, has(&server.tls_listen), has(&server.listen)) {
        (Some(scheme), _, _) => scheme,
        (None, true, false) => Scheme::Https,
        (None, false, true) => Scheme::Http,
        // A forwarded port: only one scheme is configured.
        (None, _, _) if server.tls_listen.0.is_empty() => Scheme::Http,
        (None, _, _) if server.listen.0.is_empty() => Scheme::Https,
        (None, _, _) => {
            bail!(
                "the server has HTTP and TLS listeners, but none on this port; write http:// or https:// in --address"
            )
        }
    })
}

/// Returns the first usable listen address. Plain HTTP is preferred, because a certificate names a host and not an IP address.
fn listened(config: &Config) -> anyhow::Result<(Scheme, Host, u16)> {
    let plain = config.server.listen.0.iter().map(|address| (Scheme::Http, address));
    let places: Vec<_> =
        plain.chain(config.server.tls_listen.0.iter().map(|address| (Scheme::Https, address))).collect();
    for (scheme, address) in &places {
        if let ListenAddress::Tcp(address) = address
            && !address.ip().is_unspecified()
            && address.port() != 0
        {
            let host = match address.ip() {
                IpAddr::V4(ip) => Host::Ipv4(ip),
                IpAddr::V6(ip) => Host::Ipv6(ip),
            };
            return Ok((*scheme, host, address.port()));
        }
    }
    let open = places.iter().find_map(|(_, address)| match address {
        ListenAddress::Tcp(address) if address.ip().is_unspecified() => Some(address),
        _ => None,
    });
    if let Some(address) = open {
        bail!(
            "the server listens on all addresses ({address}); give the address that clients use with \
             --address HOST:PORT"
        );
    }
    if places.iter().any(|(_, address)| matches!(address, ListenAddress::Tcp(_))) {
        bail!(
            "the system chooses the server's port (0); give the address that clients use with --address HOST:PORT"
        );
    }
    let named: Vec<_> = places.iter().map(|(_, address)| address.to_string()).collect();
    bail!(
        "clients need an IP address, but the server listens on {} only; add one to server.listen, or give a forwarded \
         address with --address HOST:PORT",
        named.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &[&str], tls: &[&str]) -> Config {
        let read = |texts: &[&str]| {
            ListenAddresses(texts.iter().map(|text| text.parse().expect("an address")).collect::<Vec<_>>())
        };
        let mut config = Config::default();
        (config.server.listen, config.server.tls_listen) = (read(listen), read(tls));
        config
    }

    fn found(listen: &[&str], tls: &[&str], given: Option<&str>) -> Result<String, String> {
        let given = given.map(|text| text.parse::<Given>().expect("an address"));
        Instance::of(&config(listen, tls), given.as_ref(), None)
            .map(|instance| instance.url())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn instance_uses_the_listen_address() {
        for (listen, tls, url) in [
            (&["127.0.0.1:5000"][..], &[][..], "http://127.0.0.1:5000"),
            (&["unix:/run/l.sock", "[::1]:5000"], &[], "http://[::1]:5000"),
            (&["0.0.0.0:5000", "10.0.0.7:5002"], &[], "http://10.0.0.7:5002"),
            (&[], &["10.0.0.7:5443"], "https://10.0.0.7:5443"),
            (&["127.0.0.1:5000"], &["10.0.0.7:5443"], "http://127.0.0.1:5000"),
        ] {
            assert_eq!(found(listen, tls, None).as_deref(), Ok(url));
        }
        for (listen, word) in
            [("0.0.0.0:5000", "all addresses"), ("unix:/run/l.sock", "IP address"), ("127.0.0.1:0", "(0)")]
        {
            let error = found(&[listen], &[], None).expect_err(listen);
            assert!(error.contains(word) && error.contains("--address"), "{error}");
        }
    }

    #[test]
    fn scheme_follows_from_the_port() {
        let (plain, tls) = (&["0.0.0.0:5000"][..], &["0.0.0.0:5443"][..]);
        let at = |given| found(plain, tls, Some(given));
        assert_eq!(at("larder.test:5000").as_deref(), Ok("http://larder.test:5000"));
        assert_eq!(at("larder.test:5443").as_deref(), Ok("https://larder.test:5443"));
        assert_eq!(at("https://larder.test:443").as_deref(), Ok("https://larder.test:443"));
        assert!(at("larder.test:443").expect_err("either").contains("http:// or https://"));
        assert_eq!(found(&[], tls, Some("larder.test:443")).as_deref(), Ok("https://larder.test:443"));
        assert_eq!(found(&["unix:/l.sock"], &[], Some("[fd00::1]:80")).as_deref(), Ok("http://[fd00::1]:80"));
        for bad in ["larder.test", "larder.test:", "larder.test:0", "a b:1", "ftp://a:1", "0.0.0.0:5000", ""]
        {
            assert!(bad.parse::<Given>().is_err(), "{bad}");
        }
    }

    #[test]
    fn authority_requires_tls() {
        let given = "larder.test:5000".parse().expect("an address");
        let error =
            Instance::of(&config(&["0.0.0.0:5000"], &[]), Some(&given), Some(Path::new("/nowhere/ca.pem")));
        assert!(error.expect_err("refused").to_string().contains("for TLS"));
    }
}
