//! Where to listen: an address and port, a socket in the file system, or one that the service manager has opened.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a socket's path may take: the system's `sun_path` less its end, and less what its name has while it is made.
const LONGEST_PATH: usize = 106;

/// One place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// `127.0.0.1:5000` or `[::1]:5000`.
    Tcp(SocketAddr),
    /// `unix:/run/larder.sock`.
    Unix(PathBuf),
    /// `systemd:NAME`: all sockets that were passed under this name (`FileDescriptorName=`).
    Named(String),
    /// `fd:3`: the socket that was passed as this descriptor.
    Descriptor(u16),
}

/// What is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenAddressError {
    /// None of the forms.
    #[error("`{0}` is no address; write IP:PORT, unix:/PATH, systemd:NAME or fd:NUMBER")]
    Form(String),
    /// A socket's path that no system takes.
    #[error("`{0}` is no path for a socket; write an absolute one of at most {LONGEST_PATH} bytes")]
    Path(String),
    /// Standard input, output and error are no sockets to listen at.
    #[error("fd:{0} is a standard stream; sockets are passed from fd:3 on")]
    Descriptor(u16),
}

impl FromStr for ListenAddress {
    type Err = ListenAddressError;

    fn from_str(text: &str) -> Result<Self, ListenAddressError> {
        let form = || ListenAddressError::Form(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let fine = path.starts_with('/') && !path.ends_with('/') && path.len() <= LONGEST_PATH;
            return if fine {
                Ok(Self::Unix(path.into()))
            } else {
                Err(ListenAddressError::Path(path.to_owned()))
            };
        }
        if let Some(name) = text.strip_prefix("systemd:") {
            // As systemd names descriptors: printable, and separated by colons where several are passed.
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
    /// Where to connect to it from this machine, if that can be told: on loopback, where it is listened at everywhere.
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

    /// Whether nobody but this machine reaches it.
    fn is_near(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
            Self::Named(_) | Self::Descriptor(_) => false,
        }
    }

    /// Whether both cannot be listened at, as far as can be told without trying.
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

/// Places to listen at; in the configuration one, or a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenAddresses(pub Vec<ListenAddress>);

impl<A: Into<ListenAddress>> From<A> for ListenAddresses {
    fn from(address: A) -> Self {
        Self(vec![address.into()])
    }
}

impl ListenAddresses {
    /// Where to connect to one of them from this machine, if that can be told: where nobody else does, if there is such
    /// a place, since no token is asked for there.
    pub fn reachable(&self) -> Option<ListenAddress> {
        let near = self.0.iter().filter(|address| address.is_near());
        near.chain(&self.0).find_map(ListenAddress::reachable)
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
                f.write_str("an address, or a list of them")
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
    fn a_larder_is_asked_where_only_this_machine_asks() {
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
            assert_eq!(addresses.reachable().map(|place| place.to_string()).as_deref(), asked, "{listen:?}");
        }
    }

    #[test]
    fn each_form_is_read_and_written() {
        for text in ["127.0.0.1:5000", "[::1]:5000", "unix:/run/larder.sock", "systemd:larder.socket", "fd:3"]
        {
            assert_eq!(text.parse::<ListenAddress>().expect(text).to_string(), text);
        }
        let long = format!("unix:/{}", "x".repeat(LONGEST_PATH));
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
    fn what_cannot_both_be_had_clashes() {
        let clash = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| text.parse::<ListenAddress>().expect(text));
            assert_eq!(one.clashes(&other), other.clashes(&one));
            one.clashes(&other)
        };
        assert!(clash("127.0.0.1:5000", "127.0.0.1:5000"));
        assert!(clash("127.0.0.1:5000", "0.0.0.0:5000"));
        assert!(!clash("127.0.0.1:5000", "127.0.0.2:5000"));
        assert!(!clash("127.0.0.1:0", "127.0.0.1:0"), "the system chooses two");
        assert!(clash("unix:/a", "unix:/a"));
        assert!(!clash("unix:/a", "unix:/b"));
        assert!(clash("fd:3", "fd:3"));
        assert!(!clash("fd:3", "127.0.0.1:3"));
    }
}
