//! Whether a token service may see an upstream's credentials.

use url::{Host, Url};

/// Suffixes under which each name belongs to somebody else. Those of the public suffix list that registries live
/// under; a suffix that is missing here errs towards sharing credentials between two names below it, so the list is
/// kept generous.
const TWO_LEVEL_SUFFIXES: [&str; 46] = [
    "ac.uk", "co.uk", "gov.uk", "ltd.uk", "me.uk", "net.uk", "org.uk", "plc.uk", "ac.jp", "co.jp", "go.jp",
    "ne.jp", "or.jp", "com.au", "edu.au", "gov.au", "net.au", "org.au", "com.br", "net.br", "org.br",
    "com.cn", "edu.cn", "gov.cn", "net.cn", "org.cn", "co.in", "net.in", "org.in", "co.kr", "or.kr", "co.nz",
    "org.nz", "co.za", "com.mx", "com.tr", "com.tw", "com.hk", "com.sg", "co.il", "com.ar", "com.pl",
    "com.ua", "co.id", "co.th", "com.my",
];

/// Suffixes that are rented out: whoever has a name there is a stranger to its neighbours, at any depth.
const SHARED_SUFFIXES: [&str; 14] = [
    "amazonaws.com",
    "azurecr.io",
    "azurewebsites.net",
    "blob.core.windows.net",
    "cloudfront.net",
    "fly.dev",
    "github.io",
    "gitlab.io",
    "herokuapp.com",
    "ngrok.io",
    "on.aws",
    "pages.dev",
    "run.app",
    "workers.dev",
];

/// Whether credentials for the endpoint may be sent to the realm it named: over TLS unless the endpoint itself has
/// none, and only to the same host or the same owner's domain.
pub(super) fn may_see_credentials(endpoint: &Url, realm: &Url) -> bool {
    let safe = realm.scheme() == "https" || (realm.scheme() == "http" && endpoint.scheme() == "http");
    let own = match (endpoint.host(), realm.host()) {
        (Some(Host::Domain(endpoint)), Some(Host::Domain(realm))) => {
            endpoint == realm
                || registrable(endpoint).is_some_and(|domain| registrable(realm) == Some(domain))
        }
        (Some(endpoint), Some(realm)) => endpoint == realm,
        _ => false,
    };
    safe && own
}

/// The part of a name that its owner registered; `None` where that cannot be told, or names are rented out.
fn registrable(host: &str) -> Option<&str> {
    let under = |suffix: &&&str| {
        host.strip_suffix(**suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if host.split('.').any(str::is_empty) || SHARED_SUFFIXES.iter().any(|suffix| under(&suffix)) {
        return None;
    }
    let labels = if TWO_LEVEL_SUFFIXES.iter().any(|suffix| under(&suffix)) { 3 } else { 2 };
    match host.rmatch_indices('.').nth(labels - 1) {
        Some((dot, _)) => Some(&host[dot + 1..]),
        None => (host.split('.').count() == labels).then_some(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(endpoint: &str, realm: &str) -> bool {
        may_see_credentials(&Url::parse(endpoint).expect("a URL"), &Url::parse(realm).expect("a URL"))
    }

    #[test]
    fn the_same_owner_may() {
        assert!(may("https://registry-1.docker.io", "https://auth.docker.io/token"));
        assert!(may("https://registry.gitlab.com", "https://gitlab.com/jwt/auth"));
        assert!(may("https://ghcr.io", "https://ghcr.io/token"));
        assert!(may("http://localhost:5000", "http://localhost:5001/token"));
        assert!(may("http://127.0.0.1:5000", "http://127.0.0.1:5001/token"));
        assert!(may("http://reg.example.co.uk", "https://auth.example.co.uk"));
    }

    #[test]
    fn strangers_may_not() {
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
    fn never_in_the_clear() {
        assert!(!may("https://ghcr.io", "http://ghcr.io/token"));
        assert!(may("http://reg.test", "https://reg.test/token"));
        assert!(!may("http://reg.test", "ftp://reg.test/token"));
    }
}
