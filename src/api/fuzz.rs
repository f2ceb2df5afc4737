//! Fuzz targets of the heads of requests.

use bolero::check;
use http::header::HOST;
use http::uri::Authority;
use http::{HeaderValue, Request, Version};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::host;
use super::route::{RegistryQuery, Resource, Route};
use crate::fuzz::{Input, TEST_TIME, inputs};

const PATHS: &[&str] = &[
    "/",
    "/v2/",
    "/v2",
    "v2",
    "_catalog",
    "library",
    "a",
    "/manifests/",
    "/blobs/",
    "/tags/list",
    "/referrers/",
    "manifests",
    "blobs",
    "tags",
    "list",
    "uploads",
    "latest",
    "sha256:ab",
    "%2f",
    "%2F",
    "%3A",
    "%25",
    "%ff",
    "%",
    "..",
    "ghcr.io",
    "//",
    "?",
];
const QUERIES: &[&str] = &[
    "ns",
    "n",
    "last",
    "artifactType",
    "=",
    "&",
    ";",
    "+",
    "%2B",
    "%",
    "%zz",
    "a/b",
    "docker.io",
    "0",
    "-1",
    "#",
];
const HOSTS: &[&str] =
    &["larder", ".", ":", "5000", "[::1]", "[", "]", "@", ",", "_", "-", "%", " ", "http://", "/"];

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Returns the path of a route.
fn path_of(route: &Route) -> String {
    let prefix = route.prefix.as_deref().map(|prefix| format!("/{}", encoded(prefix)));
    let name = route.name.split('/').map(encoded).collect::<Vec<_>>().join("/");
    let rest = match &route.resource {
        Resource::Base => String::new(),
        Resource::Catalog => "_catalog".to_owned(),
        Resource::Manifest(reference) => format!("{name}/manifests/{}", encoded(reference)),
        Resource::Blob(digest) => format!("{name}/blobs/{}", encoded(digest)),
        Resource::Referrers(digest) => format!("{name}/referrers/{}", encoded(digest)),
        Resource::Tags => format!("{name}/tags/list"),
    };
    format!("{}/v2/{rest}", prefix.unwrap_or_default())
}

#[test]
fn route_is_read_again_from_its_path() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let path = Input::new(bytes).text_of(PATHS);
        let Some(route) = Route::parse(&path) else { return };
        let has_repository = !matches!(route.resource, Resource::Base | Resource::Catalog);
        assert_eq!(has_repository, !route.name.is_empty());
        assert!(route.resource.reference().is_none_or(|reference| !reference.contains('/')));
        assert_eq!(Route::parse(&path_of(&route)).as_ref(), Some(&route), "{path}");
    });
}

#[test]
fn query_is_read_as_it_was_encoded() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let mut text = || Some(input.text_of(QUERIES));
        let wanted = RegistryQuery {
            ns: text(),
            n: text(),
            last: text(),
            artifact_types: vec![text().unwrap_or_default(), text().unwrap_or_default()],
        };
        let pair = |key: &str, value: Option<&String>| {
            format!("{key}={}", encoded(value.map_or("", String::as_str)))
        };
        let [first, second] = [0, 1].map(|n| pair("artifactType", wanted.artifact_types.get(n)));
        let (ns, n, last) = (
            pair("ns", wanted.ns.as_ref()),
            pair("n", wanted.n.as_ref()),
            pair("last", wanted.last.as_ref()),
        );
        let query = format!("{first}&{ns}&x=y&{n}&{last}&{second}");
        assert_eq!(RegistryQuery::parse(Some(&query)), wanted, "{query}");

        let query = input.text_of(QUERIES);
        let found = RegistryQuery::parse(Some(&query));
        let values = [found.ns, found.n, found.last].into_iter().flatten().chain(found.artifact_types);
        // A byte that is not UTF-8 becomes three bytes.
        assert!(values.map(|value| value.len()).sum::<usize>() <= 3 * query.len());
    });
}

#[test]
fn accepted_host_is_one_authority() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let version = input.pick(&[Version::HTTP_10, Version::HTTP_11, Version::HTTP_2]);
        let mut request = Request::get("/v2/").version(version);
        let mut count = 0;
        for _ in 0..input.below(3) {
            if let Ok(value) = HeaderValue::from_bytes(&input.bytes_of(HOSTS)) {
                request = request.header(HOST, value);
                count += 1;
            }
        }
        let head = request.body(()).expect("a request").into_parts().0;
        if host::check(&head).is_ok() {
            assert!(count <= 1 && (count == 1 || version != Version::HTTP_11));
            if let Some(found) = host::of(&head).filter(|host| !host.is_empty()) {
                let authority: Authority = found.parse().expect("an authority");
                assert!(!authority.as_str().contains([' ', ',', '@', '/']));
            }
        }
    });
}
