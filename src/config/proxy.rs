//! The proxy that an upstream is asked through, as it is written in the configuration.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

/// What an upstream's `proxy` says; what the environment says where it is not set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// None, whatever the environment names. Written `"direct"`.
    Direct,
    /// This one, for every request.
    At(Url),
}

/// What is wrong with a proxy's URL, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// It is no URL of an HTTP proxy.
    #[error("`{0}` is no proxy; write its URL, such as \"http://proxy.example.com:3128\", or \"direct\"")]
    Malformed(String),
    /// A proxy of another kind.
    #[error("larder cannot use a {0} proxy; name one that speaks HTTP, or write \"direct\"")]
    Scheme(String),
    /// A secret where everybody may read it.
    #[error(
        "credentials do not belong into the configuration; put them into the URL in larder's environment: HTTPS_PROXY"
    )]
    Credentials,
}

/// Reads a proxy's URL, with credentials or without, as the environment has it: without a scheme it is http.
pub fn url(text: &str) -> Result<Url, ProxyError> {
    let text = text.trim();
    let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    // What cannot be read may have a secret in it.
    let shown = || text.rsplit_once('@').map_or(text, |(_, rest)| rest).to_owned();
    let url = Url::parse(&whole).map_err(|_| ProxyError::Malformed(shown()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(ProxyError::Scheme(url.scheme().to_owned()));
    }
    let bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    if url.host().is_none() || !bare {
        return Err(ProxyError::Malformed(shown()));
    }
    Ok(url)
}

impl FromStr for Proxy {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "direct" {
            return Ok(Self::Direct);
        }
        let url = url(text)?;
        if url.username().is_empty() && url.password().is_none() {
            Ok(Self::At(url))
        } else {
            Err(ProxyError::Credentials)
        }
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::At(url) => f.write_str(url.as_str().trim_end_matches('/')),
        }
    }
}

impl Serialize for Proxy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Proxy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read_as_they_are_written() {
        assert_eq!("direct".parse(), Ok(Proxy::Direct));
        for (written, read) in [
            ("http://proxy.test:3128", "http://proxy.test:3128"),
            ("http://proxy.test/", "http://proxy.test"),
            ("https://[::1]:1", "https://[::1]:1"),
            ("proxy.test:3128", "http://proxy.test:3128"),
        ] {
            let proxy: Proxy = written.parse().expect("a proxy");
            assert_eq!(proxy.to_string(), read);
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_and_no_secret_shown() {
        let error = |text: &str| text.parse::<Proxy>().expect_err("no proxy").to_string();
        for bad in
            ["", "http://", "http://proxy.test/path", "http://proxy.test?q", "me:secret@pro xy", "off:y"]
        {
            let error = error(bad);
            assert!(error.contains("is no proxy") && !error.contains("secret"), "{bad}: {error}");
        }
        assert!(error("socks5://proxy.test:1080").contains("socks5"));
        assert!(error("http://me:secret@proxy.test").contains("HTTPS_PROXY"));
        assert!(url("me:secret@proxy.test:3128").is_ok_and(|url| url.username() == "me"));
    }
}
