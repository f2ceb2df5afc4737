//! Peculiarities of registries, as data: a name and the faults with which the scripted registry behaves like it.

use serde_json::json;

use super::{Fault, Registry, When};

/// Registry with a peculiarity.
pub struct Quirk {
    pub name: String,
    faults: Vec<(When, Fault)>,
}

impl Quirk {
    fn new(name: &str, faults: Vec<(When, Fault)>) -> Self {
        Self { name: name.to_owned(), faults }
    }

    /// Makes a registry behave like this one.
    pub fn apply(&self, registry: &Registry) {
        for (when, fault) in &self.faults {
            registry.script(when.clone(), fault.clone());
        }
    }
}

/// Returns all peculiarities. With each of them images can be pulled.
pub fn all() -> Vec<Quirk> {
    let head = || When::any().method("HEAD");
    let json = |status, value: serde_json::Value| {
        let headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
        Fault::Answer(status, headers, value.to_string().into_bytes())
    };
    let too_many = json!({ "errors": [{ "code": "PAGINATION_NUMBER_INVALID", "message": "too many" }] });
    let mut quirks = vec![
        Quirk::new("none", Vec::new()),
        Quirk::new(
            "public.ecr.aws: HEAD of blobs is 401",
            vec![(head().path("/blobs/"), Fault::Status(401))],
        ),
        Quirk::new("Harbor: HEAD of what is not cached is 404", vec![(head(), Fault::Status(404))]),
        Quirk::new(
            "HEAD with length 0",
            vec![(head(), Fault::rewrite(|_, plan| plan.content_length = Some(0)))],
        ),
        Quirk::new(
            "Nexus: null among the tags",
            vec![(When::any().path("/tags/list"), json(200, json!({ "tags": [null, "v1", 7, "v2"] })))],
        ),
        Quirk::new(
            "distribution with maxtags",
            vec![(When::any().path("/tags/list").query("n=1000"), json(400, too_many))],
        ),
        // Retry-After of a bucket that is refilled at once.
        Quirk::new(
            "ghcr.io: momentary rate limit",
            vec![(When::any().times(3), super::Ghcr::momentary_limit(true))],
        ),
    ];
    for status in [400, 403, 405, 500, 501] {
        let faults = vec![(When::blobs().with_range(), Fault::Status(status))];
        quirks.push(Quirk::new(&format!("content delivery network: Range is {status}"), faults));
    }
    quirks
}
