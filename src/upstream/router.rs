//! Router: finds the upstream of a request, and the repository's name there. A name from a client is only looked up in the
//! configuration, never dialled.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::admission::Admission;
use super::error::BuildError;
use crate::config::schema;
use crate::oci::name::NameError;
use crate::oci::{Name, Repository, UpstreamName};

/// Registry whose official images are in `library/`, which clients leave out.
const DOCKER_HUB: &str = "docker.io";
/// Other names of Docker Hub in clients.
const DOCKER_HUB_ALIASES: [&str; 2] = ["registry-1.docker.io", "index.docker.io"];

/// Reason why a request has no repository.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No upstream has this name, or there is no default upstream.
    #[error("no upstream `{0}` is configured here")]
    UnknownUpstream(String),
    /// The name begins with the name of a registry that is not configured.
    #[error(
        "no upstream `{registry}` is configured here, and {upstream} is not asked for names that begin with a host name \
         (dotted_names)"
    )]
    UnlistedRegistry {
        /// First component of the name.
        registry: String,
        /// Upstream that the request would be sent to.
        upstream: UpstreamName,
    },
    /// The rest of the name is not a valid repository name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The repository is excluded by `allow` and `deny` of its upstream.
    #[error("the repository {0} is not served here")]
    Refused(Repository),
}

/// Table of upstreams, by each name that a request may use.
#[derive(Clone, Debug, Default)]
pub struct Router {
    default: Option<UpstreamName>,
    /// Upstreams by name and built-in alias.
    names: HashMap<String, UpstreamName>,
    /// Upstreams by configured value of `Host`, in lower case.
    hostnames: HashMap<String, UpstreamName>,
    admissions: HashMap<UpstreamName, Admission>,
    /// Upstreams that get names with a host name in front also from requests that do not name the upstream.
    dotted_names: HashSet<UpstreamName>,
}

impl Router {
    /// Creates the table. Upstreams whose names are not host names are left out.
    pub fn new(upstreams: &BTreeMap<String, schema::Upstream>) -> Result<Self, BuildError> {
        let mut router = Self::default();
        for (text, upstream) in upstreams {
            let Ok(name) = text.parse::<UpstreamName>() else { continue };
            let admission = Admission::new(upstream)
                .map_err(|reason| BuildError::Pattern { upstream: text.clone(), reason })?;
            router.admissions.insert(name.clone(), admission);
            if upstream.dotted_names {
                router.dotted_names.insert(name.clone());
            }
            if upstream.default {
                router.default.get_or_insert_with(|| name.clone());
            }
            for hostname in &upstream.hostnames {
                router.hostnames.entry(hostname.to_ascii_lowercase()).or_insert_with(|| name.clone());
            }
            router.names.insert(text.clone(), name);
        }
        if let Some(hub) = router.names.get(DOCKER_HUB).cloned() {
            for alias in DOCKER_HUB_ALIASES {
                router.names.entry(alias.to_owned()).or_insert_with(|| hub.clone());
            }
        }
        Ok(router)
    }

    /// Finds the repository of a request.
    ///
    /// `ns` is the decoded query parameter, `prefix` the path before `/v2`, `host` the header `Host`, and `name` the path
    /// between `/v2/` and the resource. The first of `ns`, `prefix`, the first segment of `name`, and `host` that names
    /// an upstream decides. An unknown `ns` or prefix is an error. So is a name that begins with a host name, if it would be
    /// sent to Docker Hub, which has no such names, or to an upstream that the request does not name: the name of an internal
    /// registry must not reach another one. A repository that the patterns of its upstream exclude is refused, even if its
    /// content is cached.
    pub fn route(
        &self,
        ns: Option<&str>,
        prefix: Option<&str>,
        host: Option<&str>,
        name: &str,
    ) -> Result<Repository, RouteError> {
        let repository = self.find(ns, prefix, host, name)?;
        if self.admits(&repository) { Ok(repository) } else { Err(RouteError::Refused(repository)) }
    }

    /// Returns true if the patterns of its upstream permit a repository.
    ///
    /// If the endpoint is another larder server, it reads a host name at the beginning of the repository's name as the name
    /// of an upstream. So the rest of such a name must not be denied either.
    pub fn admits(&self, repository: &Repository) -> bool {
        let Some(patterns) = self.admissions.get(&repository.upstream) else { return true };
        let mut name = repository.name.as_str();
        while registry_in_front(name).is_some()
            && let Some((_, rest)) = name.split_once('/')
        {
            name = rest;
            if repository_name(&repository.upstream, rest).is_ok_and(|rest| patterns.denies(&rest)) {
                return false;
            }
        }
        patterns.admits(&repository.name)
    }

    fn find(
        &self,
        ns: Option<&str>,
        prefix: Option<&str>,
        host: Option<&str>,
        name: &str,
    ) -> Result<Repository, RouteError> {
        if let Some(ns) = ns {
            let upstream = self.upstream(ns)?;
            let rest = match self.split_upstream(name) {
                Some((same, rest)) if same == upstream => rest,
                _ => name,
            };
            return self.named(upstream, rest);
        }
        if let Some(prefix) = prefix {
            return self.named(self.upstream(prefix)?, name);
        }
        if let Some((upstream, rest)) = self.split_upstream(name) {
            return self.named(upstream, rest);
        }
        let upstream = host.and_then(|host| self.by_host(host)).or(self.default.as_ref());
        let upstream = upstream.ok_or_else(|| unknown(name.split('/').next().unwrap_or(name)))?;
        match registry_in_front(name) {
            Some(registry) if !self.dotted_names.contains(upstream) => Err(unlisted(registry, upstream)),
            _ => self.named(upstream, name),
        }
    }

    /// Returns the repository of an upstream that the request names.
    fn named(&self, upstream: &UpstreamName, name: &str) -> Result<Repository, RouteError> {
        match registry_in_front(name) {
            Some(registry) if upstream.as_str() == DOCKER_HUB && !self.dotted_names.contains(upstream) => {
                Err(unlisted(registry, upstream))
            }
            _ => repository(upstream, name),
        }
    }

    /// Returns the upstream for names without one.
    pub fn default_upstream(&self) -> Option<&UpstreamName> {
        self.default.as_ref()
    }

    /// Returns the upstream that `ns` or a path prefix names.
    pub fn upstream(&self, text: &str) -> Result<&UpstreamName, RouteError> {
        let exact = lower(text);
        let found = self.names.get(exact.as_ref()).or_else(|| self.hostnames.get(exact.as_ref()));
        found.ok_or_else(|| unknown(text))
    }

    /// Returns the upstream for a `Host`. A configured value without a port is for all ports.
    fn by_host(&self, host: &str) -> Option<&UpstreamName> {
        let host = lower(host);
        self.hostnames.get(host.as_ref()).or_else(|| self.hostnames.get(without_port(&host)))
    }

    /// Splits a name into an upstream and a rest that is not empty.
    fn split_upstream<'n>(&self, name: &'n str) -> Option<(&UpstreamName, &'n str)> {
        let (first, rest) = name.split_once('/')?;
        if rest.is_empty() {
            return None;
        }
        // Path components are lower case by their grammar.
        self.names.get(first).map(|upstream| (upstream, rest))
    }
}

fn repository(upstream: &UpstreamName, name: &str) -> Result<Repository, RouteError> {
    Ok(Repository { upstream: upstream.clone(), name: repository_name(upstream, name)? })
}

/// Returns the name of a repository at its upstream. Official images of Docker Hub are in `library/`.
fn repository_name(upstream: &UpstreamName, name: &str) -> Result<Name, NameError> {
    let official = upstream.as_str() == DOCKER_HUB && !name.contains('/') && !name.is_empty();
    if official { format!("library/{name}").parse() } else { name.parse() }
}

/// Returns the first component of a name if it looks like a host name: clients take it for a registry if it contains a dot or
/// a colon.
fn registry_in_front(name: &str) -> Option<&str> {
    let (first, _) = name.split_once('/')?;
    first.contains(['.', ':']).then_some(first)
}

fn unlisted(registry: &str, upstream: &UpstreamName) -> RouteError {
    RouteError::UnlistedRegistry { registry: printable(registry), upstream: upstream.clone() }
}

fn lower(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(text.to_ascii_lowercase())
    } else {
        Cow::Borrowed(text)
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // The last colon of an IPv6 address does not precede a port.
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

fn unknown(text: &str) -> RouteError {
    RouteError::UnknownUpstream(printable(text))
}

/// Returns a name from a client, shortened and made printable.
fn printable(text: &str) -> String {
    text.chars().take(100).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router() -> Router {
        let mut upstreams = schema::builtin_upstreams();
        upstreams.insert(
            "reg.test:5000".to_owned(),
            schema::Upstream {
                hostnames: vec!["Mirror.test".to_owned(), "ported.test:8443".to_owned(), "[::1]".to_owned()],
                ..schema::Upstream::default()
            },
        );
        Router::new(&upstreams).expect("patterns")
    }

    fn ask(ns: Option<&str>, prefix: Option<&str>, host: Option<&str>, name: &str) -> String {
        match router().route(ns, prefix, host, name) {
            Ok(repository) => repository.to_string(),
            Err(RouteError::UnknownUpstream(name)) => format!("unknown {name}"),
            Err(RouteError::UnlistedRegistry { registry, upstream }) => {
                format!("{upstream} has no {registry}")
            }
            Err(RouteError::Name(_)) => "bad name".to_owned(),
            Err(RouteError::Refused(repository)) => format!("refused {repository}"),
        }
    }

    #[test]
    fn route_by_ns_is_final() {
        assert_eq!(ask(Some("ghcr.io"), None, None, "org/app"), "ghcr.io/org/app");
        assert_eq!(ask(Some("GHCR.IO"), None, None, "org/app"), "ghcr.io/org/app");
        assert_eq!(ask(Some("docker.io"), None, None, "busybox"), "docker.io/library/busybox");
        assert_eq!(ask(Some("registry-1.docker.io"), None, None, "a/b"), "docker.io/a/b");
        assert_eq!(ask(Some("reg.test:5000"), None, None, "a"), "reg.test:5000/a");
        assert_eq!(ask(Some("mirror.test"), None, None, "a"), "reg.test:5000/a");
        assert_eq!(ask(Some("evil.test"), None, None, "docker.io/a"), "unknown evil.test");
        assert_eq!(ask(Some("evil.test"), Some("ghcr.io"), Some("mirror.test"), "a"), "unknown evil.test");
        for odd in ["user@ghcr.io", "ghcr.io/", "https://ghcr.io", "ghcr.io:443", "", "ghcr.io."] {
            assert!(ask(Some(odd), None, None, "a").starts_with("unknown"), "{odd}");
        }
    }

    #[test]
    fn route_by_ns_removes_the_same_name_from_the_path() {
        assert_eq!(ask(Some("ghcr.io"), None, None, "ghcr.io/org/app"), "ghcr.io/org/app");
        assert_eq!(ask(Some("docker.io"), None, None, "docker.io/busybox"), "docker.io/library/busybox");
        assert_eq!(ask(Some("ghcr.io"), None, None, "quay.io/org/app"), "ghcr.io/quay.io/org/app");
        assert_eq!(ask(Some("ghcr.io"), None, None, "ghcr.io"), "ghcr.io/ghcr.io");
    }

    #[test]
    fn route_by_prefix_requires_a_known_upstream() {
        assert_eq!(ask(None, Some("quay.io"), None, "org/app"), "quay.io/org/app");
        assert_eq!(ask(None, Some("index.docker.io"), None, "app"), "docker.io/library/app");
        assert_eq!(ask(None, Some("Mirror.test"), None, "app"), "reg.test:5000/app");
        assert_eq!(ask(None, Some("nowhere.test"), None, "org/app"), "unknown nowhere.test");
    }

    #[test]
    fn route_by_first_segment() {
        assert_eq!(ask(None, None, None, "quay.io/org/app"), "quay.io/org/app");
        assert_eq!(ask(None, None, Some("mirror.test"), "quay.io/org/app"), "quay.io/org/app");
        assert_eq!(ask(None, None, None, "docker.io/busybox"), "docker.io/library/busybox");
        assert_eq!(ask(None, None, None, "quay.io"), "docker.io/library/quay.io");
        assert_eq!(ask(None, None, None, "reg.test:5000/a"), "reg.test:5000/a");
    }

    #[test]
    fn registry_that_is_not_configured_is_not_asked_for_elsewhere() {
        let refused = "docker.io has no other.test";
        assert_eq!(ask(None, None, None, "other.test/org/app"), refused);
        assert_eq!(ask(None, None, Some("127.0.0.1:5000"), "other.test/app"), refused);
        assert_eq!(ask(Some("docker.io"), None, None, "other.test/org/app"), refused);
        assert_eq!(ask(None, Some("docker.io"), None, "other.test/org/app"), refused);
        assert_eq!(ask(None, None, None, "docker.io/other.test/app"), refused);
        assert_eq!(ask(None, None, None, "docker.io/docker.io/app"), "docker.io has no docker.io");
        assert_eq!(ask(None, None, None, "localhost:5000/app"), "docker.io has no localhost:5000");
        assert_eq!(ask(None, None, Some("mirror.test"), "other.test/app"), "reg.test:5000 has no other.test");
        // An upstream that the request names may have such repositories, as other caches do.
        assert_eq!(ask(Some("ghcr.io"), None, None, "other.test/app"), "ghcr.io/other.test/app");
        assert_eq!(ask(None, None, None, "ghcr.io/other.test/app"), "ghcr.io/other.test/app");
        // A name of one component is a repository.
        assert_eq!(ask(None, None, None, "other.test"), "docker.io/library/other.test");

        let mut upstreams = schema::builtin_upstreams();
        upstreams.get_mut("docker.io").expect("it is built in").dotted_names = true;
        let router = Router::new(&upstreams).expect("patterns");
        let found = router.route(None, None, None, "other.test/org/app").expect("a repository");
        assert_eq!(found.to_string(), "docker.io/other.test/org/app");
    }

    #[test]
    fn route_by_host() {
        assert_eq!(ask(None, None, Some("MIRROR.test:8080"), "app"), "reg.test:5000/app");
        assert_eq!(ask(None, None, Some("ported.test:8443"), "app"), "reg.test:5000/app");
        assert_eq!(ask(None, None, Some("[::1]:5000"), "app"), "reg.test:5000/app");
        assert_eq!(ask(None, None, Some("ported.test"), "app"), "docker.io/library/app");
        assert_eq!(ask(None, None, Some("ported.test:1"), "app"), "docker.io/library/app");
        assert_eq!(ask(None, None, Some("127.0.0.1:5000"), "app"), "docker.io/library/app");
    }

    #[test]
    fn route_fails_without_a_default_upstream() {
        let mut upstreams = schema::builtin_upstreams();
        upstreams.remove("docker.io");
        let router = Router::new(&upstreams).expect("patterns");
        assert!(matches!(router.route(None, None, None, "a/b"), Err(RouteError::UnknownUpstream(_))));
        assert!(router.route(Some("index.docker.io"), None, None, "a").is_err());
    }

    #[test]
    fn route_parses_the_rest_of_the_name() {
        assert_eq!(ask(None, None, None, "ghcr.io//a"), "bad name");
        assert_eq!(ask(None, None, None, "Upper/a"), "bad name");
        assert_eq!(ask(None, None, None, ""), "bad name");
    }

    #[test]
    fn denied_repository_is_refused_behind_names_of_registries() {
        let mut upstreams = schema::builtin_upstreams();
        for name in ["docker.io", "ghcr.io"] {
            let upstream = upstreams.get_mut(name).expect("it is built in");
            upstream.deny = vec!["team/**".to_owned(), "library/secret".to_owned()];
            upstream.dotted_names = true;
        }
        let router = Router::new(&upstreams).expect("patterns");
        for name in [
            "docker.io/team/x",
            "docker.io/docker.io/team/x",
            "docker.io/index.docker.io/docker.io/team/x",
            "docker.io/docker.io/secret",
            "ghcr.io/ghcr.io/team/x",
            "ghcr.io/other.test/team/x",
        ] {
            let refused = router.route(None, None, None, name);
            assert!(matches!(refused, Err(RouteError::Refused(_))), "{name}: {refused:?}");
        }
        for name in ["ghcr.io/ghcr.io/org/x", "docker.io/docker.io/busybox", "ghcr.io/org/team/x"] {
            assert!(router.route(None, None, None, name).is_ok(), "{name}");
        }
    }

    #[test]
    fn route_applies_patterns_to_the_upstreams_name() {
        let mut upstreams = schema::builtin_upstreams();
        let hub = upstreams.get_mut("docker.io").expect("it is built in");
        hub.deny = vec!["library/*".to_owned()];
        let router = Router::new(&upstreams).expect("patterns");
        for (ns, name) in [
            (None, "busybox"),
            (None, "docker.io/busybox"),
            (Some("index.docker.io"), "library/busybox"),
            (Some("docker.io"), "docker.io/library/busybox"),
        ] {
            let refused = router.route(ns, None, None, name);
            assert!(matches!(refused, Err(RouteError::Refused(_))), "{ns:?} {name}: {refused:?}");
        }
        assert!(router.route(None, None, None, "org/busybox").is_ok());
        assert!(router.route(Some("ghcr.io"), None, None, "library/busybox").is_ok());
        upstreams.insert(
            "x.test".to_owned(),
            schema::Upstream { allow: vec!["[".to_owned()], ..schema::Upstream::default() },
        );
        assert!(Router::new(&upstreams).is_err(), "an invalid pattern");
    }
}
