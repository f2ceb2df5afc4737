//! Parser for paths and queries of the registry API. Paths are parsed from the right, because a component of a
//! repository name may be called `blobs`.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// Resource of the registry API. Its parts are percent-decoded and not validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    /// `/v2/`.
    Base,
    /// `/v2/_catalog`.
    Catalog,
    /// `…/manifests/<reference>`.
    Manifest(String),
    /// `…/blobs/<digest>`.
    Blob(String),
    /// `…/tags/list`.
    Tags,
    /// `…/referrers/<digest>`.
    Referrers(String),
}

impl Resource {
    /// Returns the tag or digest.
    pub(super) fn reference(&self) -> Option<&str> {
        match self {
            Self::Manifest(reference) => Some(reference),
            Self::Blob(digest) | Self::Referrers(digest) => Some(digest),
            Self::Base | Self::Catalog | Self::Tags => None,
        }
    }
}

/// Parsed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Path segment before `/v2`, as dockerd and containerd send it for a mirror with a path.
    pub(super) prefix: Option<String>,
    /// Name of the repository as written; empty for resources without a repository.
    pub(super) name: String,
    /// Resource of the repository.
    pub(super) resource: Resource,
}

impl Route {
    /// Parses a raw path and percent-decodes it once. Returns `None` if the path names no resource.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let path: Cow<'_, str> = percent_decode_str(path).decode_utf8().ok()?;
        let (prefix, rest) = split_version(&path)?;
        let prefix = prefix.map(str::to_owned);
        let at =
            |name: &str, resource| Some(Self { prefix: prefix.clone(), name: name.to_owned(), resource });
        match rest {
            "" => return at("", Resource::Base),
            "_catalog" => return at("", Resource::Catalog),
            _ => {}
        }
        let (head, last) = rest.rsplit_once('/')?;
        let (name, kind) = head.rsplit_once('/')?;
        if name.is_empty() {
            return None;
        }
        match (kind, last) {
            ("manifests", reference) => at(name, Resource::Manifest(reference.to_owned())),
            ("blobs", digest) => at(name, Resource::Blob(digest.to_owned())),
            ("referrers", digest) => at(name, Resource::Referrers(digest.to_owned())),
            ("tags", "list") => at(name, Resource::Tags),
            _ => None,
        }
    }
}

/// Splits `/v2/rest` and `/P/v2/rest`; `/v2` alone counts as `/v2/`.
fn split_version(path: &str) -> Option<(Option<&str>, &str)> {
    let path = path.strip_prefix('/')?;
    if path == "v2" {
        return Some((None, ""));
    }
    if let Some(rest) = path.strip_prefix("v2/") {
        return Some((None, rest));
    }
    let (prefix, rest) = path.split_once('/')?;
    if rest == "v2" {
        return Some((Some(prefix), ""));
    }
    rest.strip_prefix("v2/").map(|rest| (Some(prefix), rest))
}

/// Known parameters of a query, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RegistryQuery {
    /// Registry that the client addresses.
    pub(super) ns: Option<String>,
    /// Page size.
    pub(super) n: Option<String>,
    /// Last entry of the previous page.
    pub(super) last: Option<String>,
    /// Artifact types of the referrers to list.
    pub(super) artifact_types: Vec<String>,
}

impl RegistryQuery {
    /// Parses a raw query. The first of repeated parameters is used, except for `artifactType`; unknown parameters are ignored.
    ///
    /// A raw `+` is itself (RFC 3986, section 2.2), as in `application/spdx+json`, and not a space as in HTML forms. No valid
    /// value contains a space.
    pub(super) fn parse(query: Option<&str>) -> Self {
        let mut found = Self::default();
        let Some(query) = query else { return found };
        for (key, value) in url::form_urlencoded::parse(query.replace('+', "%2B").as_bytes()) {
            let slot = match key.as_ref() {
                "ns" => &mut found.ns,
                "n" => &mut found.n,
                "last" => &mut found.last,
                "artifactType" => {
                    found.artifact_types.push(value.into_owned());
                    continue;
                }
                _ => continue,
            };
            slot.get_or_insert_with(|| value.into_owned());
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str) -> Option<(Option<String>, String, Resource)> {
        Route::parse(path).map(|route| (route.prefix, route.name, route.resource))
    }

    fn plain(name: &str, resource: Resource) -> (Option<String>, String, Resource) {
        (None, name.to_owned(), resource)
    }

    #[test]
    fn route_is_parsed_from_the_right() {
        assert_eq!(
            parse("/v2/a/blobs/b/manifests/latest"),
            Some(plain("a/blobs/b", Resource::Manifest("latest".into())))
        );
        assert_eq!(
            parse("/v2/a/manifests/blobs/sha256:x"),
            Some(plain("a/manifests", Resource::Blob("sha256:x".into())))
        );
        assert_eq!(parse("/v2/manifests/tags/list"), Some(plain("manifests", Resource::Tags)));
        assert_eq!(
            parse("/v2/tags/list/manifests/list"),
            Some(plain("tags/list", Resource::Manifest("list".into())))
        );
        assert_eq!(
            parse("/v2/a/referrers/sha256:x"),
            Some(plain("a", Resource::Referrers("sha256:x".into())))
        );
    }

    #[test]
    fn route_accepts_a_prefix_before_and_after_v2() {
        assert_eq!(
            parse("/ghcr.io/v2/o/a/manifests/1"),
            Some((Some("ghcr.io".into()), "o/a".into(), Resource::Manifest("1".into())))
        );
        assert_eq!(
            parse("/v2/ghcr.io/o/a/manifests/1"),
            Some(plain("ghcr.io/o/a", Resource::Manifest("1".into())))
        );
        assert_eq!(parse("/ghcr.io/v2/"), Some((Some("ghcr.io".into()), String::new(), Resource::Base)));
        assert_eq!(parse("/v2"), Some(plain("", Resource::Base)));
        assert_eq!(parse("/v2/_catalog"), Some(plain("", Resource::Catalog)));
        // A repository with the name v2 is not a prefix.
        assert_eq!(parse("/v2/v2/manifests/1"), Some(plain("v2", Resource::Manifest("1".into()))));
    }

    #[test]
    fn route_is_decoded_once() {
        assert_eq!(parse("/v2/a/blobs/sha256%3Ax"), Some(plain("a", Resource::Blob("sha256:x".into()))));
        assert_eq!(parse("/v2/a/blobs/sha256%253Ax"), Some(plain("a", Resource::Blob("sha256%3Ax".into()))));
        assert_eq!(parse("/v2/%ff/blobs/x"), None);
    }

    #[test]
    fn route_rejects_other_paths() {
        for path in
            ["/", "/v1/_ping", "/v2/a", "/v2/a/b", "/v2//manifests/x", "/v2/a/blobs/uploads/x", "/a/b/v2/"]
        {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    #[test]
    fn query_is_decoded() {
        let query =
            RegistryQuery::parse(Some("ns=myreg.io%3A5000&n=3&last=a%2Bb&x=y&n=9&artifactType=a%2Fb"));
        assert_eq!(query.ns.as_deref(), Some("myreg.io:5000"));
        assert_eq!(query.n.as_deref(), Some("3"));
        assert_eq!(query.last.as_deref(), Some("a+b"));
        assert_eq!(query.artifact_types, ["a/b"]);
        let query = RegistryQuery::parse(Some("artifactType=a/b+c&last=x+y&artifactType=a/d%2Be"));
        assert_eq!(query.artifact_types, ["a/b+c", "a/d+e"]);
        assert_eq!(query.last.as_deref(), Some("x+y"));
    }
}
