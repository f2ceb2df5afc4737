//! Peculiarities of registries, as data: a name and the faults with which the scripted registry behaves like it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::json;

use super::script::Plan;
use super::{Auth, Fault, Ghcr, Registry, When};

/// Registry with a peculiarity.
pub struct Quirk {
    pub name: String,
    faults: Vec<(When, Fault)>,
    auth: Auth,
}

impl Quirk {
    fn new(name: &str, faults: Vec<(When, Fault)>) -> Self {
        Self { name: name.to_owned(), faults, auth: Auth::Nothing }
    }

    /// Makes a registry behave like this one.
    pub fn apply(&self, registry: &Registry) {
        registry.require_auth(self.auth.clone());
        for (when, fault) in &self.faults {
            registry.script(when.clone(), fault.clone());
        }
    }
}

/// Limit of the first `HEAD`, which is over after 714.6 µs. Only the body of the answer to `GET` says so.
pub fn limited_head() -> Vec<(When, Fault)> {
    let head = When::manifests().method("HEAD").times(1);
    let get = When::manifests().method("GET").times(1);
    vec![(head, Fault::Answer(429, Vec::new(), Vec::new())), (get, Ghcr::momentary_limit(false))]
}

/// Refusal of the first token, which ends early: after two requests.
fn ended_token(status: u16) -> Fault {
    let (first, uses) = (OnceLock::<String>::new(), AtomicUsize::new(0));
    Fault::rewrite(move |seen, plan| {
        let Some(token) = seen.header("authorization") else { return };
        if first.get_or_init(|| token.to_owned()) == token && uses.fetch_add(1, Ordering::Relaxed) >= 2 {
            let errors = json!([{ "code": "DENIED", "message": "Your authorization token has expired." }]);
            *plan = Plan::new(
                status,
                &[("Content-Type", "application/json")],
                Arc::new(json!({ "errors": errors }).to_string().into_bytes()),
            );
        }
    })
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
            vec![(When::any().times(3), Ghcr::momentary_limit(true))],
        ),
        Quirk::new("ghcr.io: momentary rate limit of HEAD, with the wait in the body of GET", limited_head()),
        Quirk::new(
            "Nexus: the head of a blob is late",
            vec![(When::blobs().method("GET"), Fault::DelayHead(Duration::from_millis(500)))],
        ),
    ];
    for status in [400, 403] {
        let name = format!("ECR: an ended token is {status}");
        let faults = vec![(When::any(), ended_token(status))];
        quirks.push(Quirk { auth: Auth::Bearer(None), ..Quirk::new(&name, faults) });
    }
    for status in [400, 403, 405, 500, 501] {
        let faults = vec![(When::blobs().with_range(), Fault::Status(status))];
        quirks.push(Quirk::new(&format!("content delivery network: Range is {status}"), faults));
    }
    quirks
}
