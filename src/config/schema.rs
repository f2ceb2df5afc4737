//! All configuration keys with their defaults, one struct for each section.

mod choices;
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
use crate::oci::manifest;
pub use choices::{OnUpstream404, TagsList, Unverifiable};
pub use log::{Log, LogFormat, Trace};

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// True to keep the built-in upstreams that the file does not name. `false` leaves only the named ones.
    pub builtin_upstreams: bool,
    /// Port that clients pull from.
    pub server: Server,
    /// Port for operators.
    pub admin: Admin,
    /// Storage of content.
    pub store: Store,
    /// Periodic verification of stored content.
    pub scrub: Scrub,
    /// Freshness of tags, and behaviour when an upstream does not respond.
    pub cache: Cache,
    /// Downloads in advance of client requests.
    pub prefetch: Prefetch,
    /// The log.
    pub log: Log,
    /// Export of traces.
    pub trace: Trace,
    /// Upstream registries, by name.
    pub upstream: BTreeMap<String, Upstream>,
}

impl Default for Config {
    /// The configuration without a file: the built-in upstreams, with docker.io as the default upstream.
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

/// Section `[server]`: the port that clients pull from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Addresses for plain HTTP.
    pub listen: ListenAddresses,
    /// Addresses for TLS.
    pub tls_listen: ListenAddresses,
    /// PEM file with the certificate chain; reloaded when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key of the certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Status codes for clients that can fall back to the origin registry, or for clients that cannot.
    pub mode: ServerMode,
    /// Maximum time for running transfers to finish after a stop signal.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// Maximum number of open connections; further ones wait to be accepted.
    pub max_connections: usize,
    /// Maximum number of open connections of one client address. Default: three quarters of `max_connections`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections_per_client: Option<usize>,
    /// Time-out for request headers, and idle time-out between requests.
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
            max_connections_per_client: None,
            header_timeout: Duration::from_mins(1),
        }
    }
}

/// Status codes for requests that cannot be served (`server.mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerMode {
    /// Clients fall back to the origin registry: 404 if access is denied, 503 if an upstream answers 429.
    #[default]
    Mirror,
    /// Clients have no other registry: 403 and 429 are passed on.
    Gateway,
}

/// Section `[admin]`: the port for operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Addresses for plain HTTP: status pages, `/livez`, `/readyz`, `/metrics` and `/api/v1`.
    pub listen: ListenAddresses,
    /// Addresses for TLS.
    pub tls_listen: ListenAddresses,
    /// PEM file with the certificate chain. Default: the certificate of `[server]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key of the certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// File with the token that `/api/v1` and the pages require on addresses other than loopback; read for each request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// True to require the token on loopback addresses and unix sockets too.
    pub require_token: bool,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 5001)).into(),
            tls_listen: ListenAddresses::default(),
            tls_cert: None,
            tls_key: None,
            token_file: None,
            require_token: false,
        }
    }
}

/// Section `[store]`: storage of content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Directory of the store; created if it does not exist.
    pub path: PathBuf,
    /// Storage of blob bytes.
    pub blobs: BlobStoreKind,
    /// Action if the store cannot be opened because its files are damaged.
    pub on_corruption: OnCorruption,
    /// Maximum size on disk, including the overhead of the database.
    #[serde(serialize_with = "exact_size")]
    pub max_size: ByteSize,
    /// Minimum free space on the disk.
    #[serde(serialize_with = "exact_size")]
    pub min_free: ByteSize,
    /// Size of sled's page cache in memory.
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

/// Serializes a size exactly. `ByteSize` alone rounds to one decimal.
// The signature is required by serde.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn exact_size<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let bytes = size.as_u64();
    let unit = units.into_iter().find(|(_, shift)| bytes != 0 && bytes.trailing_zeros() >= *shift);
    let (name, shift) = unit.unwrap_or(("B", 0));
    serializer.collect_str(&format_args!("{}{name}", bytes >> shift))
}

/// Section `[scrub]`: periodic verification of stored content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scrub {
    /// Period within which all content is verified once; 0 disables the scrub.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// Maximum read rate in bytes per second; 0 means no limit.
    #[serde(serialize_with = "exact_size")]
    pub rate: ByteSize,
}

impl Default for Scrub {
    fn default() -> Self {
        Self { every: Duration::from_hours(7 * 24), rate: ByteSize::mib(20) }
    }
}

/// Storage of blob bytes (`store.blobs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BlobStoreKind {
    /// Pages in the sled database.
    #[default]
    Sled,
    /// Files beside the database.
    Files,
}

impl BlobStoreKind {
    /// Returns the word used in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sled => "sled",
            Self::Files => "files",
        }
    }
}

/// Action if the store cannot be opened because its files are damaged (`store.on_corruption`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnCorruption {
    /// The store is quarantined in a dated directory, and the server starts with an empty store.
    #[default]
    SetAside,
    /// The server does not start.
    Refuse,
}

/// Section `[cache]`: freshness, and behaviour when an upstream fails. Each upstream may override each key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// Time during which a tag is fresh, that is, served without contacting the upstream.
    #[serde(with = "humantime_serde")]
    pub tag_ttl: Duration,
    /// Time during which a 404 of the upstream is cached.
    #[serde(with = "humantime_serde")]
    pub negative_ttl: Duration,
    /// Maximum age beyond freshness for serving a stale tag if the upstream is not available.
    pub stale_if_error: StaleLimit,
    /// Maximum age beyond freshness for serving a stale tag if the upstream refuses access.
    pub stale_if_denied: StaleLimit,
    /// Age beyond freshness up to which a stale tag is served at once and revalidated in the background.
    #[serde(with = "humantime_serde")]
    pub stale_while_revalidate: Duration,
    /// Time-out for revalidation if a stale copy can be served.
    #[serde(with = "humantime_serde")]
    pub revalidate_timeout: Duration,
    /// Content of `tags/list`.
    pub tags_list: TagsList,
    /// Effect of an upstream's 404 on a cached tag.
    pub on_upstream_404: OnUpstream404,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            tag_ttl: Duration::from_mins(1),
            negative_ttl: Duration::from_secs(10),
            stale_if_error: StaleLimit::Forever,
            stale_if_denied: StaleLimit::For(Duration::from_hours(1)),
            stale_while_revalidate: Duration::ZERO,
            revalidate_timeout: Duration::from_secs(2),
            tags_list: TagsList::Cached,
            on_upstream_404: OnUpstream404::Miss,
        }
    }
}

/// Maximum age of stale content, or no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleLimit {
    /// Written `"forever"`.
    Forever,
    /// Limited to this duration.
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

/// Section `[prefetch]`: downloads in advance of client requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prefetch {
    /// True to fetch all child manifests of an index when the index is cached.
    pub children: bool,
    /// True to fetch the attestations of an index with their blobs when the index is cached.
    pub attestations: bool,
    /// True to ask for the lists of referrers of an image when the image is cached.
    pub referrers: bool,
    /// Platforms (`os/arch[/variant]`) whose blobs are prefetched too.
    pub platforms: Vec<String>,
    /// Share of an upstream's quota, from 0 to 1, that is reserved for client requests. Below it the prefetch pauses.
    pub quota_floor: f64,
    /// Interval for checking the quota of an upstream whose quota is below the floor.
    #[serde(with = "humantime_serde")]
    pub quota_check: Duration,
}

impl Default for Prefetch {
    fn default() -> Self {
        Self {
            children: true,
            attestations: true,
            referrers: true,
            platforms: Vec::new(),
            quota_floor: 0.5,
            quota_check: Duration::from_mins(1),
        }
    }
}

impl Prefetch {
    /// Returns true if anything is fetched after a pull of an index, or of a manifest. `lists` is true if lists of referrers
    /// are wanted.
    pub fn is_enabled(&self, is_index: bool, lists: bool) -> bool {
        lists && self.referrers || is_index && (self.children || self.attestations)
    }
}

/// Section `[upstream."NAME"]`: one upstream registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the configuration")]
pub struct Upstream {
    /// Endpoints, in the order in which they are tried.
    pub endpoints: Vec<Endpoint>,
    /// True for the upstream of image names without a registry. Exactly one upstream is the default.
    pub default: bool,
    /// Values of the `Host` header that select this upstream.
    pub hostnames: Vec<String>,
    /// True if names that begin with a host name, such as `registry.example.com/app`, are repositories of this upstream also
    /// in requests that do not name the upstream.
    pub dotted_names: bool,
    /// User name for the registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// File with the password; read when it is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Docker `config.json` with credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker_config: Option<PathBuf>,
    /// Additional hosts of token services that may receive the credentials.
    pub realm_hosts: Vec<String>,
    /// PEM file with certificate authorities that are trusted in addition to the built-in ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<PathBuf>,
    /// PEM file with the private key of the client certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
    /// True to accept any certificate. For tests only.
    pub insecure_skip_verify: bool,
    /// Patterns ([`NamePattern`](crate::oci::NamePattern)) of repositories that may be pulled; empty means all.
    pub allow: Vec<String>,
    /// Patterns of repositories that may not be pulled; takes precedence over `allow`.
    pub deny: Vec<String>,
    /// True if redirects and token realms may lead to private addresses.
    pub allow_private: bool,
    /// HTTP proxy for this upstream. Default: the proxy in the environment (`HTTPS_PROXY` and others).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    /// Maximum number of connections to the upstream.
    pub max_connections: usize,
    /// Time-out of the head of a response. Default: 2 minutes for blobs, 8 s for everything else.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub head_timeout: Option<Duration>,
    /// Time without progress after which a download is resumed with a new request. Default: 30 s.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// Rate in bytes per second below which a download that no client reads is given up; 0 means no minimum.
    #[serde(serialize_with = "exact_size")]
    pub min_rate: ByteSize,
    /// Period over which this rate is averaged.
    #[serde(with = "humantime_serde")]
    pub min_rate_time: Duration,
    /// Size of the largest manifest that is accepted.
    #[serde(serialize_with = "exact_size")]
    pub manifest_max_size: ByteSize,
    /// Treatment of blobs whose digest cannot be verified.
    pub unverifiable: Unverifiable,
    /// Overrides `cache.tag_ttl`.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub tag_ttl: Option<Duration>,
    /// Overrides `cache.negative_ttl`.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub negative_ttl: Option<Duration>,
    /// Overrides `cache.stale_if_error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_if_error: Option<StaleLimit>,
    /// Overrides `cache.stale_if_denied`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_if_denied: Option<StaleLimit>,
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
            dotted_names: false,
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
            head_timeout: None,
            idle_timeout: None,
            min_rate: ByteSize::kib(4),
            min_rate_time: Duration::from_secs(30),
            manifest_max_size: ByteSize::b(manifest::SIZE_DEFAULT.into()),
            unverifiable: Unverifiable::Refuse,
            tag_ttl: None,
            negative_ttl: None,
            stale_if_error: None,
            stale_if_denied: None,
            stale_while_revalidate: None,
            revalidate_timeout: None,
            tags_list: None,
            on_upstream_404: None,
        }
    }
}

impl Upstream {
    /// Returns the cache settings of this upstream: its own keys, and the common ones for keys that it does not set.
    pub fn cache(&self, common: &Cache) -> Cache {
        Cache {
            tag_ttl: self.tag_ttl.unwrap_or(common.tag_ttl),
            negative_ttl: self.negative_ttl.unwrap_or(common.negative_ttl),
            stale_if_error: self.stale_if_error.unwrap_or(common.stale_if_error),
            stale_if_denied: self.stale_if_denied.unwrap_or(common.stale_if_denied),
            stale_while_revalidate: self.stale_while_revalidate.unwrap_or(common.stale_while_revalidate),
            revalidate_timeout: self.revalidate_timeout.unwrap_or(common.revalidate_timeout),
            tags_list: self.tags_list.unwrap_or(common.tags_list),
            on_upstream_404: self.on_upstream_404.unwrap_or(common.on_upstream_404),
        }
    }
}

/// Returns the built-in upstreams.
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
