//! Endpoint of an upstream in the configuration: a URL, or a table with a URL and options.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Endpoint of an upstream: `"https://host"`, `"oci:///directory"`, or a table with `url` and `authoritative`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `http://`, `https://` or `oci://`.
    pub url: String,
    /// True if the endpoint may resolve tags to digests.
    pub authoritative: bool,
}

impl Endpoint {
    /// Creates an authoritative endpoint.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), authoritative: true }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EndpointTable {
    url: String,
    #[serde(default = "yes")]
    authoritative: bool,
}

fn yes() -> bool {
    true
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.authoritative {
            serializer.serialize_str(&self.url)
        } else {
            EndpointTable { url: self.url.clone(), authoritative: false }.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a URL, or a table with `url` and `authoritative`")]
        enum Either {
            Url(String),
            Table(EndpointTable),
        }
        Ok(match Either::deserialize(deserializer)? {
            Either::Url(url) => Self::new(url),
            Either::Table(table) => Self { url: table.url, authoritative: table.authoritative },
        })
    }
}
