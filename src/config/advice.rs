//! Advice on a valid configuration: endpoints that are probably not the address of a registry.

use url::Url;

use super::schema::{Config, builtin_upstreams};

/// Hosts of web sites that belong to a registry, and the endpoint of the registry.
const WEB_SITES: [(&str, &str); 8] = [
    ("docker.io", "https://registry-1.docker.io"),
    ("www.docker.io", "https://registry-1.docker.io"),
    ("docker.com", "https://registry-1.docker.io"),
    ("www.docker.com", "https://registry-1.docker.io"),
    ("hub.docker.com", "https://registry-1.docker.io"),
    ("github.com", "https://ghcr.io"),
    ("www.quay.io", "https://quay.io"),
    ("gallery.ecr.aws", "https://public.ecr.aws"),
];

/// Returns one sentence for each endpoint that is probably wrong.
pub fn advice(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    for (name, upstream) in &config.upstream {
        for endpoint in &upstream.endpoints {
            // An endpoint that does not parse is an error of the validation.
            let Ok(url) = Url::parse(&endpoint.url) else { continue };
            found.extend(
                endpoint_advice(&url).map(|advice| format!("upstream.\"{name}\".endpoints: {advice}")),
            );
        }
    }
    found
}

/// Returns advice if the URL of an endpoint is probably wrong.
pub fn endpoint_advice(url: &Url) -> Option<String> {
    if !matches!(url.scheme(), "http" | "https") {
        return None;
    }
    let host = url.host_str()?;
    if let Some((_, right)) = WEB_SITES.iter().find(|(site, _)| *site == host) {
        return Some(format!("{host} is a web site; the registry is {right}"));
    }
    let path = url.path().trim_end_matches('/');
    let base = path.strip_suffix("/v2").or_else(|| path.strip_suffix("/v1"))?;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let right = format!("{}://{host}{port}{base}", url.scheme());
    Some(format!("larder adds /v2 to the path of an endpoint; write {right}"))
}

/// Returns the endpoint of an upstream that larder knows.
pub fn known_endpoint(upstream: &str) -> Option<String> {
    let known = builtin_upstreams().remove(upstream)?;
    known.endpoints.into_iter().next().map(|endpoint| endpoint.url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn web_sites_and_api_paths_are_named_with_the_right_address() {
        let of = |text: &str| endpoint_advice(&Url::parse(text).expect("a URL"));
        for (wrong, right) in [
            ("https://docker.io", "https://registry-1.docker.io"),
            ("https://hub.docker.com/", "https://registry-1.docker.io"),
            ("https://ghcr.io/v2", "https://ghcr.io"),
            ("http://127.0.0.1:5000/team/v2/", "http://127.0.0.1:5000/team"),
        ] {
            let advice = of(wrong).unwrap_or_default();
            assert!(advice.ends_with(&format!(" {right}")), "{wrong}: {advice}");
        }
        for fine in [
            "https://registry-1.docker.io",
            "https://index.docker.io",
            "https://a.test/v2/proxy",
            "oci:///v2",
        ] {
            assert_eq!(of(fine), None, "{fine}");
        }
    }

    #[test]
    fn built_in_upstreams_need_no_advice() {
        assert_eq!(advice(&Config::default()), Vec::<String>::new());
        assert_eq!(known_endpoint("docker.io").as_deref(), Some("https://registry-1.docker.io"));
        assert_eq!(known_endpoint("example.com"), None);
    }
}
