//! HTTP proxy of an upstream in the configuration.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

/// Value of an upstream's `proxy` key. Without the key, the environment decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// No proxy, even if the environment names one. Written `"direct"`.
    Direct,
    /// This proxy, for every request.
    At(Url),
}

/// Error of parsing a proxy's URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// The text is not a URL of an HTTP proxy.
    #[error("`{0}` is not a proxy; write a URL such as \"http://proxy.example.com:3128\", or \"direct\"")]
    Malformed(String),
    /// The proxy uses an unsupported protocol.
    #[error("proxies of type {0} are not supported; use an HTTP proxy, or write \"direct\"")]
    Scheme(String),
    /// The URL contains credentials, which do not belong into the configuration.
    #[error("the URL contains credentials; set it in the environment variable HTTPS_PROXY instead")]
    Credentials,
}

/// Parses a proxy's URL as used in environment variables. Without a scheme, http is assumed. Credentials are allowed.
pub fn url(text: &str) -> Result<Url, ProxyError> {
    let text = text.trim();
    let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    // An invalid URL may contain a password, so the part before `@` is not shown.
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
    fn proxy_is_parsed_and_displayed() {
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
    fn proxy_errors_show_no_password() {
        let error = |text: &str| text.parse::<Proxy>().expect_err("no proxy").to_string();
        for bad in
            ["", "http://", "http://proxy.test/path", "http://proxy.test?q", "me:secret@pro xy", "off:y"]
        {
            let error = error(bad);
            assert!(error.contains("is not a proxy") && !error.contains("secret"), "{bad}: {error}");
        }
        assert!(error("socks5://proxy.test:1080").contains("socks5"));
        assert!(error("http://me:secret@proxy.test").contains("HTTPS_PROXY"));
        assert!(url("me:secret@proxy.test:3128").is_ok_and(|url| url.username() == "me"));
    }
}
