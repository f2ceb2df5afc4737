//! Trust in token services: which of them may see the credentials of an upstream.

use url::{Host, Url};

/// Suffixes below which names belong to different owners, at any depth, and which are missing in the public suffix list.
const SHARED_SUFFIXES: [&str; 8] = [
    "amazonaws.com",
    "amazonaws.com.cn",
    "azurecr.cn",
    "azurecr.io",
    "azurecr.us",
    "cloudapp.azure.com",
    "jfrog.io",
    "on.aws",
];

/// Token services that may see the credentials for one endpoint.
#[derive(Clone, Debug)]
pub(crate) struct TokenTrust {
    endpoint: Url,
    /// Hosts from the configuration, each with one port, or without for all ports.
    named: Vec<(String, Option<u16>)>,
}

impl TokenTrust {
    /// Creates the trust for an endpoint. `named` are host names, each with an optional port; others are ignored.
    pub(crate) fn new(endpoint: Url, named: &[String]) -> Self {
        let named = named.iter().filter_map(|text| {
            // Normalised by the same rules as the realm that it is compared with.
            let url = Url::parse(&format!("https://{text}")).ok()?;
            let port = text.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
            Some((url.host_str()?.to_owned(), port))
        });
        Self { named: named.collect(), endpoint }
    }

    /// Returns true if credentials for the endpoint may be sent to the token service that it named. The service must
    /// use TLS if the endpoint does, and must be on the same host, in the same registrable domain, or on a host from the
    /// configuration.
    pub(crate) fn trusts(&self, realm: &Url) -> bool {
        let safe =
            realm.scheme() == "https" || (realm.scheme() == "http" && self.endpoint.scheme() == "http");
        safe && (self.is_own(realm) || self.is_named(realm))
    }

    fn is_own(&self, realm: &Url) -> bool {
        match (self.endpoint.host(), realm.host()) {
            (Some(Host::Domain(endpoint)), Some(Host::Domain(realm))) => {
                endpoint == realm
                    || registrable(endpoint).is_some_and(|domain| registrable(realm) == Some(domain))
            }
            (Some(endpoint), Some(realm)) => endpoint == realm,
            _ => false,
        }
    }

    fn is_named(&self, realm: &Url) -> bool {
        self.named.iter().any(|(host, port)| {
            realm.host_str() == Some(host) && (port.is_none() || *port == realm.port_or_known_default())
        })
    }
}

/// Returns the registrable domain of a host; `None` if it has none, or if neighbours have other owners.
fn registrable(host: &str) -> Option<&str> {
    let under = |suffix: &&&str| {
        host.strip_suffix(**suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if host.split('.').any(str::is_empty) || SHARED_SUFFIXES.iter().any(|suffix| under(&suffix)) {
        return None;
    }
    psl::domain_str(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(endpoint: &str, hosts: &[&str], realm: &str) -> bool {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        TokenTrust::new(Url::parse(endpoint).expect("a URL"), &hosts)
            .trusts(&Url::parse(realm).expect("a URL"))
    }

    fn may(endpoint: &str, realm: &str) -> bool {
        named(endpoint, &[], realm)
    }

    #[test]
    fn trusts_the_same_registrable_domain() {
        assert!(may("https://registry-1.docker.io", "https://auth.docker.io/token"));
        assert!(may("https://registry.gitlab.com", "https://gitlab.com/jwt/auth"));
        assert!(may("https://ghcr.io", "https://ghcr.io/token"));
        assert!(may("http://localhost:5000", "http://localhost:5001/token"));
        assert!(may("http://127.0.0.1:5000", "http://127.0.0.1:5001/token"));
        assert!(may("http://reg.example.co.uk", "https://auth.example.co.uk"));
    }

    #[test]
    fn trusts_no_other_owner() {
        assert!(!may("https://registry-1.docker.io", "https://auth.docker.io.evil.test/token"));
        assert!(!may("https://registry-1.docker.io", "https://evildocker.io/token"));
        assert!(!may("https://reg.example.co.uk", "https://evil.co.uk/token"));
        assert!(!may("https://mine.azurecr.io", "https://yours.azurecr.io/token"));
        assert!(!may("https://1.dkr.ecr.eu-west-1.amazonaws.com", "https://evil.s3.amazonaws.com"));
        assert!(!may("http://127.0.0.1:5000", "http://127.0.0.2/token"));
        assert!(!may("http://10.0.0.1", "http://1.0.0.1"));
        assert!(!may("http://localhost", "http://evil.localhost"));
        assert!(!may("https://io", "https://evil.io"));
    }

    #[test]
    fn trusts_no_neighbour_below_a_shared_suffix() {
        for suffix in [
            // From the public suffix list.
            "azurewebsites.net",
            "blob.core.windows.net",
            "cloudfront.net",
            "fly.dev",
            "github.io",
            "gitlab.io",
            "herokuapp.com",
            "ngrok.io",
            "pages.dev",
            "run.app",
            "workers.dev",
            "s3.amazonaws.com",
            "co.uk",
            "gov.br",
            // Missing there.
            "amazonaws.com",
            "dkr.ecr.eu-west-1.amazonaws.com",
            "azurecr.io",
            "jfrog.io",
            "on.aws",
        ] {
            let (mine, yours) = (format!("https://mine.{suffix}"), format!("https://yours.{suffix}/token"));
            assert!(!may(&mine, &yours), "{suffix}");
            assert!(may(&mine, &format!("{mine}/token")), "{suffix}");
        }
    }

    #[test]
    fn trusts_configured_hosts() {
        let lab = "https://registry.lab.test";
        assert!(!named(lab, &[], "https://gitlab.test/jwt/auth"));
        assert!(named(lab, &["gitlab.test"], "https://gitlab.test/jwt/auth"));
        assert!(named(lab, &["GitLab.test"], "https://gitlab.test:8443/jwt/auth"), "any port");
        assert!(named(lab, &["other.test", "gitlab.test:8443"], "https://gitlab.test:8443/jwt/auth"));
        assert!(named(lab, &["gitlab.test:443"], "https://gitlab.test/jwt/auth"));
        assert!(named("http://127.0.0.1", &["127.0.0.2", "[::1]:5000"], "http://[::1]:5000/token"));
        for (host, realm) in [
            ("gitlab.test:8443", "https://gitlab.test/jwt/auth"),
            ("gitlab.test:443", "https://gitlab.test:8443/jwt/auth"),
            ("gitlab.test", "https://evil.gitlab.test/"),
            ("gitlab.test", "https://gitlab.test.evil.test/"),
            ("gitlab.test", "http://gitlab.test/"),
            ("", "https://gitlab.test/"),
            ("https://gitlab.test", "https://gitlab.test/"),
        ] {
            assert!(!named(lab, &[host], realm), "{host} {realm}");
        }
    }

    #[test]
    fn trusts_no_plain_http_for_an_endpoint_with_tls() {
        assert!(!may("https://ghcr.io", "http://ghcr.io/token"));
        assert!(may("http://reg.test", "https://reg.test/token"));
        assert!(!may("http://reg.test", "ftp://reg.test/token"));
    }
}
