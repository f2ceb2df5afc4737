//! Addresses to listen on: IP address and port, Unix socket, or a socket inherited from the service manager.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Maximum length of a socket path: the system's `sun_path` without the terminating NUL and the temporary suffix.
const PATH_MAX: usize = 106;

/// Returns the network that a client is counted as: its IPv4 address, or its IPv6 network of /64, which usually is one host.
pub fn client_network(peer: SocketAddr) -> IpAddr {
    match peer.ip().to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()),
        address @ IpAddr::V4(_) => address,
    }
}

/// One address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// `127.0.0.1:5000` or `[::1]:5000`.
    Tcp(SocketAddr),
    /// `unix:/run/larder.sock`.
    Unix(PathBuf),
    /// `systemd:NAME`: all inherited sockets with this name (`FileDescriptorName=`).
    Named(String),
    /// `fd:3`: the socket inherited as this descriptor.
    Descriptor(u16),
}

/// Error of parsing an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenAddressError {
    /// The text has none of the known forms.
    #[error("`{0}` is not an address; write IP:PORT, unix:/PATH, systemd:NAME or fd:NUMBER")]
    Form(String),
    /// The path is not valid for a socket.
    #[error("`{0}` is not a valid socket path; write an absolute path of at most {PATH_MAX} bytes")]
    Path(String),
    /// Descriptors 0 to 2 are standard streams.
    #[error("fd:{0} is a standard stream; inherited sockets start at fd:3")]
    Descriptor(u16),
}

impl FromStr for ListenAddress {
    type Err = ListenAddressError;

    fn from_str(text: &str) -> Result<Self, ListenAddressError> {
        let form = || ListenAddressError::Form(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let fine = path.starts_with('/') && !path.ends_with('/') && path.len() <= PATH_MAX;
            return if fine {
                Ok(Self::Unix(path.into()))
            } else {
                Err(ListenAddressError::Path(path.to_owned()))
            };
        }
        if let Some(name) = text.strip_prefix("systemd:") {
            // systemd allows printable characters except the colon, which separates names.
            let fine = !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b':');
            return if fine { Ok(Self::Named(name.to_owned())) } else { Err(form()) };
        }
        if let Some(number) = text.strip_prefix("fd:") {
            return match number.parse() {
                Ok(number @ 0..3) => Err(ListenAddressError::Descriptor(number)),
                Ok(number) => Ok(Self::Descriptor(number)),
                Err(_) => Err(form()),
            };
        }
        text.parse().map(Self::Tcp).map_err(|_| form())
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Named(name) => write!(f, "systemd:{name}"),
            Self::Descriptor(number) => write!(f, "fd:{number}"),
        }
    }
}

impl ListenAddress {
    /// Returns the address for connecting from this machine, if it is known. An unspecified IP becomes loopback.
    fn reachable(&self) -> Option<Self> {
        match self {
            Self::Tcp(address) if address.port() != 0 => {
                let ip = match address.ip() {
                    IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                    IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                    ip => ip,
                };
                Some(SocketAddr::new(ip, address.port()).into())
            }
            Self::Unix(path) => Some(Self::Unix(path.clone())),
            Self::Tcp(_) | Self::Named(_) | Self::Descriptor(_) => None,
        }
    }

    /// Returns true if only this machine can connect.
    fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
            Self::Named(_) | Self::Descriptor(_) => false,
        }
    }

    /// Returns true if a process cannot listen on both addresses.
    pub fn clashes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(one), Self::Tcp(other)) => {
                one.port() == other.port()
                    && one.port() != 0
                    && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
            }
            (one, other) => one == other,
        }
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

/// Addresses to listen on. The configuration has one address, or a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenAddresses(pub Vec<ListenAddress>);

impl<A: Into<ListenAddress>> From<A> for ListenAddresses {
    fn from(address: A) -> Self {
        Self(vec![address.into()])
    }
}

impl ListenAddresses {
    /// Returns an address for connecting from this machine, if one is known. Prefers local addresses, because they require
    /// no token.
    pub fn reachable(&self) -> Option<ListenAddress> {
        let local = self.0.iter().filter(|address| address.is_local());
        local.chain(&self.0).find_map(ListenAddress::reachable)
    }
}

impl Serialize for ListenAddresses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => serializer.collect_str(one),
            several => serializer.collect_seq(several.iter().map(ToString::to_string)),
        }
    }
}

impl<'de> Deserialize<'de> for ListenAddresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;

        impl<'de> Visitor<'de> for OneOrMore {
            type Value = ListenAddresses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address, or a list of addresses")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ListenAddresses, E> {
                text.parse::<ListenAddress>().map(ListenAddresses::from).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ListenAddresses, A::Error> {
                let mut found = Vec::new();
                while let Some(text) = list.next_element::<String>()? {
                    found.push(text.parse().map_err(A::Error::custom)?);
                }
                Ok(ListenAddresses(found))
            }
        }

        deserializer.deserialize_any(OneOrMore)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reachable_prefers_local_addresses() {
        for (listen, asked) in [
            (&["0.0.0.0:5001"][..], Some("127.0.0.1:5001")),
            (&["[::]:5001"], Some("[::1]:5001")),
            (&["10.0.0.7:5001"], Some("10.0.0.7:5001")),
            (&["unix:/run/admin.sock"], Some("unix:/run/admin.sock")),
            (&["0.0.0.0:5001", "127.0.0.1:5002"], Some("127.0.0.1:5002")),
            (&["10.0.0.7:5001", "unix:/run/admin.sock"], Some("unix:/run/admin.sock")),
            (&["systemd:admin", "0.0.0.0:5001"], Some("127.0.0.1:5001")),
            (&["127.0.0.1:0", "fd:3"], None),
        ] {
            let addresses =
                ListenAddresses(listen.iter().map(|text| text.parse().expect("an address")).collect());
            assert_eq!(
                addresses.reachable().map(|address| address.to_string()).as_deref(),
                asked,
                "{listen:?}"
            );
        }
    }

    #[test]
    fn listen_address_forms_are_parsed_and_displayed() {
        for text in ["127.0.0.1:5000", "[::1]:5000", "unix:/run/larder.sock", "systemd:larder.socket", "fd:3"]
        {
            assert_eq!(text.parse::<ListenAddress>().expect(text).to_string(), text);
        }
        let long = format!("unix:/{}", "x".repeat(PATH_MAX));
        for text in [
            "localhost:5000",
            "127.0.0.1",
            "unix:",
            "unix:larder.sock",
            "unix:/run/",
            &long,
            "systemd:",
            "systemd:a:b",
            "fd:",
            "fd:2",
            "fd:x",
            "fd:70000",
            "",
        ] {
            text.parse::<ListenAddress>().expect_err(text);
        }
    }

    #[test]
    fn clashes_detects_overlapping_addresses() {
        let clash = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| text.parse::<ListenAddress>().expect(text));
            assert_eq!(one.clashes(&other), other.clashes(&one));
            one.clashes(&other)
        };
        assert!(clash("127.0.0.1:5000", "127.0.0.1:5000"));
        assert!(clash("127.0.0.1:5000", "0.0.0.0:5000"));
        assert!(!clash("127.0.0.1:5000", "127.0.0.2:5000"));
        assert!(!clash("127.0.0.1:0", "127.0.0.1:0"), "the system chooses different ports");
        assert!(clash("unix:/a", "unix:/a"));
        assert!(!clash("unix:/a", "unix:/b"));
        assert!(clash("fd:3", "fd:3"));
        assert!(!clash("fd:3", "127.0.0.1:3"));
    }
}
