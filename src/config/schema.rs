//! Every setting there is, one documented struct per section, with its default.

mod log;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::address::ListenAddresses;
pub use super::endpoint::Endpoint;
pub use super::proxy::Proxy;
pub use log::{Log, LogFormat, Trace};

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether upstreams that the file does not name keep their built-in settings; `false` leaves only those named.
    pub builtin_upstreams: bool,
    /// The port that clients pull from.
    pub server: Server,
    /// The port for the operator.
    pub admin: Admin,
    /// Where and how content is kept.
    pub store: Store,
    /// Whether what is held is still what its digest says.
    pub scrub: Scrub,
    /// How long things stay fresh, and what happens when an upstream does not answer.
    pub cache: Cache,
    /// What is fetched before anybody asks.
    pub prefetch: Prefetch,
    /// What is logged, and how.
    pub log: Log,
    /// Where traces go.
    pub trace: Trace,
    /// The registries behind the cache, by name.
    pub upstream: BTreeMap<String, Upstream>,
}

impl Default for Config {
    /// The configuration of a larder that was given none: the built-in upstreams with docker.io as default.
    fn default() -> Self {
        Self {
            builtin_upstreams: true,
            server: Server::default(),
            admin: Admin::default(),
            store: Store::default(),
            scrub: Scrub::default(),
            cache: Cache::default(),
            prefetch: Prefetch::default(),
            log: Log::default(),
            trace: Trace::default(),
            upstream: builtin_upstreams(),
        }
    }
}

/// The port that clients pull from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Where plain HTTP is spoken.
    pub listen: ListenAddresses,
    /// Where TLS is spoken.
    pub tls_listen: ListenAddresses,
    /// PEM file with the certificate and what leads from it to an authority; read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the certificate's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// How refusals and trouble are worded: for clients with an origin to fall back on, or without.
    pub mode: ServerMode,
    /// How long running transfers may go on after a stop signal.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// Connections served at once; further ones wait to be accepted.
    pub max_connections: usize,
    /// How long a client may take over its request's headers, and sit idle between requests.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 5000)).into(),
            tls_listen: ListenAddresses::default(),
            tls_cert: None,
            tls_key: None,
            mode: ServerMode::Mirror,
            grace: Duration::from_secs(30),
            max_connections: 10_000,
            header_timeout: Duration::from_mins(1),
        }
    }
}

/// Which statuses clients see when there is nothing to serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerMode {
    /// Clients fall back to the origin: 404 for what is refused, 503 for an upstream's 429.
    #[default]
    Mirror,
    /// Clients have no origin: 403 and 429 are passed on as such.
    Gateway,
}

/// The port for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Where the pages, `/livez`, `/readyz`, `/metrics` and `/api/v1` are, as plain HTTP.
    pub listen: ListenAddresses,
    /// Where TLS is spoken.
    pub tls_listen: ListenAddresses,
    /// PEM file with the certificate; the server's if neither this nor the key is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the certificate's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// File with the token that `/api/v1` and the pages ask for beyond loopback; read when it is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 5001)).into(),
            tls_listen: ListenAddresses::default(),
            tls_cert: None,
            tls_key: None,
            token_file: None,
        }
    }
}

/// Where and how content is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// The folder; made if it is not there.
    pub path: PathBuf,
    /// Where the bytes of blobs live.
    pub blobs: BlobStoreKind,
    /// What becomes of a store that does not open because its files are not as they were written.
    pub on_corruption: OnCorruption,
    /// Upper bound for bytes on disk, of content and of the database's own.
    #[serde(serialize_with = "exact_size")]
    pub max_size: ByteSize,
    /// How much of the disk is left free.
    #[serde(serialize_with = "exact_size")]
    pub min_free: ByteSize,
    /// Memory for sled's page cache.
    #[serde(serialize_with = "exact_size")]
    pub cache_memory: ByteSize,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            path: PathBuf::from("larder-data"),
            blobs: BlobStoreKind::Sled,
            on_corruption: OnCorruption::SetAside,
            max_size: ByteSize::gib(20),
            min_free: ByteSize::gib(1),
            cache_memory: ByteSize::mib(32),
        }
    }
}

/// Writes a size so that reading it gives the same number: `ByteSize` alone would round it to one decimal.
// The signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn exact_size<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let bytes = size.as_u64();
    let unit = units.into_iter().find(|(_, shift)| bytes != 0 && bytes.trailing_zeros() >= *shift);
    let (name, shift) = unit.unwrap_or(("B", 0));
    serializer.collect_str(&format_args!("{}{name}", bytes >> shift))
}

/// Whether what is held is still what its digest says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scrub {
    /// Within which time everything is verified once; 0 is never.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// Bytes per second that are read for it; 0 is as many as there are.
    #[serde(serialize_with = "exact_size")]
    pub rate: ByteSize,
}

impl Default for Scrub {
    fn default() -> Self {
        Self { every: Duration::from_hours(7 * 24), rate: ByteSize::mib(20) }
    }
}

/// Where the bytes of blobs live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BlobStoreKind {
    /// In sled, with everything else.
    #[default]
    Sled,
    /// As files beside the tree.
    Files,
}

impl BlobStoreKind {
    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sled => "sled",
            Self::Files => "files",
        }
    }
}

/// What becomes of a store that does not open because its files are not as they were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnCorruption {
    /// It moves into a dated folder inside its own, and a new one begins empty.
    #[default]
    SetAside,
    /// larder does not start.
    Refuse,
}

/// Freshness and behaviour in trouble; every key may be overridden per upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// How long a tag is served without asking the upstream.
    #[serde(with = "humantime_serde")]
    pub tag_ttl: Duration,
    /// How long a definite 404 is remembered.
    #[serde(with = "humantime_serde")]
    pub negative_ttl: Duration,
    /// How long past its freshness a tag may be served when the upstream cannot be asked.
    pub stale_if_error: StaleLimit,
    /// How long past its freshness a tag is served at once while it is revalidated in the background.
    #[serde(with = "humantime_serde")]
    pub stale_while_revalidate: Duration,
    /// How long an upstream is waited for when a copy exists.
    #[serde(with = "humantime_serde")]
    pub revalidate_timeout: Duration,
    /// What `tags/list` shows.
    pub tags_list: TagsList,
    /// What an upstream's 404 does to a tag that is held.
    pub on_upstream_404: OnUpstream404,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            tag_ttl: Duration::from_mins(1),
            negative_ttl: Duration::from_secs(10),
            stale_if_error: StaleLimit::Forever,
            stale_while_revalidate: Duration::ZERO,
            revalidate_timeout: Duration::from_secs(2),
            tags_list: TagsList::Cached,
            on_upstream_404: OnUpstream404::Miss,
        }
    }
}

/// A duration, or no bound at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleLimit {
    /// Written `"forever"`.
    Forever,
    /// At most this long.
    For(Duration),
}

impl Serialize for StaleLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Forever => serializer.serialize_str("forever"),
            Self::For(duration) => humantime_serde::serialize(duration, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for StaleLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "forever" {
            return Ok(Self::Forever);
        }
        humantime::parse_duration(&text).map(Self::For).map_err(|error| {
            serde::de::Error::custom(format!("{error}; expected a duration such as \"1h\", or \"forever\""))
        })
    }
}

/// What `tags/list` shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TagsList {
    /// The tags held here.
    #[default]
    Cached,
    /// The upstream's list.
    Upstream,
    /// Both.
    Merged,
}

/// What an upstream's 404 does to a tag that is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUpstream404 {
    /// The tag is gone for clients too; content stays.
    #[default]
    Miss,
    /// The last known content is served on.
    Stale,
}

/// What is fetched before anybody asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prefetch {
    /// Whether an index's child manifests are fetched when it comes in.
    pub children: bool,
    /// Platforms (`os/arch[/variant]`) whose blobs are fetched too.
    pub platforms: Vec<String>,
    /// The share of an upstream's quota, from 0 to 1, that is left for what clients ask for: below it nothing is
    /// fetched ahead.
    pub quota_floor: f64,
    /// How often an upstream whose quota is below the floor is asked whether it has returned.
    #[serde(with = "humantime_serde")]
    pub quota_check: Duration,
}

impl Default for Prefetch {
    fn default() -> Self {
        Self { children: true, platforms: Vec::new(), quota_floor: 0.5, quota_check: Duration::from_mins(1) }
    }
}

/// One registry behind the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Upstream {
    /// Where it is reached, in the order they are tried.
    pub endpoints: Vec<Endpoint>,
    /// Whether names without an upstream belong to it. Exactly one upstream may say so.
    pub default: bool,
    /// Values of a request's `Host` header that select it.
    pub hostnames: Vec<String>,
    /// User name at the registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// File that holds the password, read when it is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// A docker `config.json` to take credentials from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker_config: Option<PathBuf>,
    /// Hosts of token services elsewhere that may see the credentials.
    pub realm_hosts: Vec<String>,
    /// PEM file with certificate authorities trusted beside the built-in ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<PathBuf>,
    /// PEM file with the client certificate's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
    /// Accept any certificate. For laboratories.
    pub insecure_skip_verify: bool,
    /// Patterns ([`NamePattern`](crate::oci::NamePattern)) of repositories that may be pulled; empty means all.
    pub allow: Vec<String>,
    /// Patterns of repositories that may not, whatever `allow` says.
    pub deny: Vec<String>,
    /// Whether redirects and token realms may lead to private addresses.
    pub allow_private: bool,
    /// Through what it is asked; what the environment says (`HTTPS_PROXY` and the like) if not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    /// Connections to it at once.
    pub max_connections: usize,
    /// How long a body may stand still before it is asked for anew from where it stopped; 30 s if not set.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// Overrides `cache.tag_ttl`.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub tag_ttl: Option<Duration>,
    /// Overrides `cache.negative_ttl`.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub negative_ttl: Option<Duration>,
    /// Overrides `cache.stale_if_error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_if_error: Option<StaleLimit>,
    /// Overrides `cache.stale_while_revalidate`.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub stale_while_revalidate: Option<Duration>,
    /// Overrides `cache.revalidate_timeout`.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub revalidate_timeout: Option<Duration>,
    /// Overrides `cache.tags_list`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags_list: Option<TagsList>,
    /// Overrides `cache.on_upstream_404`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_upstream_404: Option<OnUpstream404>,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            default: false,
            hostnames: Vec::new(),
            username: None,
            password_file: None,
            docker_config: None,
            realm_hosts: Vec::new(),
            ca_file: None,
            client_cert: None,
            client_key: None,
            insecure_skip_verify: false,
            allow: Vec::new(),
            deny: Vec::new(),
            allow_private: false,
            proxy: None,
            max_connections: 64,
            idle_timeout: None,
            tag_ttl: None,
            negative_ttl: None,
            stale_if_error: None,
            stale_while_revalidate: None,
            revalidate_timeout: None,
            tags_list: None,
            on_upstream_404: None,
        }
    }
}

impl Upstream {
    /// The cache settings for this upstream: its own where it has any, else the common ones.
    pub fn cache(&self, common: &Cache) -> Cache {
        Cache {
            tag_ttl: self.tag_ttl.unwrap_or(common.tag_ttl),
            negative_ttl: self.negative_ttl.unwrap_or(common.negative_ttl),
            stale_if_error: self.stale_if_error.unwrap_or(common.stale_if_error),
            stale_while_revalidate: self.stale_while_revalidate.unwrap_or(common.stale_while_revalidate),
            revalidate_timeout: self.revalidate_timeout.unwrap_or(common.revalidate_timeout),
            tags_list: self.tags_list.unwrap_or(common.tags_list),
            on_upstream_404: self.on_upstream_404.unwrap_or(common.on_upstream_404),
        }
    }
}

/// The upstreams that are there without being configured.
pub fn builtin_upstreams() -> BTreeMap<String, Upstream> {
    [
        ("docker.io", "https://registry-1.docker.io"),
        ("ghcr.io", "https://ghcr.io"),
        ("quay.io", "https://quay.io"),
        ("gcr.io", "https://gcr.io"),
        ("registry.k8s.io", "https://registry.k8s.io"),
        ("mcr.microsoft.com", "https://mcr.microsoft.com"),
        ("public.ecr.aws", "https://public.ecr.aws"),
    ]
    .into_iter()
    .map(|(name, url)| {
        let default = name == "docker.io";
        let upstream = Upstream { endpoints: vec![Endpoint::new(url)], default, ..Upstream::default() };
        (name.to_owned(), upstream)
    })
    .collect()
}
