//! Lists of the scripted registry: tags and referrers, in pages if configured.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::content::{Document, OCI_INDEX};
use super::registry::Seen;
use super::script::Plan;

/// Behaviour of the registry for lists.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ListOptions {
    /// True if the registry has the referrers API.
    pub(super) referrers: bool,
    /// Maximum number of entries on a page.
    pub(super) page_size: Option<usize>,
}

impl ListOptions {
    pub(super) fn tags(self, name: &str, tags: &BTreeMap<String, String>, seen: &Seen) -> Plan {
        let tags = tags.keys().map(|tag| (tag.as_str(), json!(tag)));
        let (tags, link) = self.page(tags, seen);
        let body = json!({ "name": name, "tags": tags }).to_string();
        list_plan("application/json", body, link)
    }

    pub(super) fn referrers(
        self,
        manifests: &BTreeMap<String, Document>,
        subject: &str,
        seen: &Seen,
    ) -> Plan {
        if !self.referrers {
            // The answer of a router without such a path.
            let body = b"404 page not found\n".to_vec();
            return Plan::new(404, &[("Content-Type", "text/plain; charset=utf-8")], Arc::new(body));
        }
        let wanted = parameter(seen, "artifactType");
        let descriptors: Vec<_> = manifests
            .values()
            .filter_map(|document| Some((document.digest.as_str(), descriptor(document, subject)?)))
            .filter(|(_, it)| wanted.as_ref().is_none_or(|wanted| it["artifactType"] == **wanted))
            .collect();
        let (manifests, link) = self.page(descriptors.into_iter(), seen);
        let body = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests }).to_string();
        let mut plan = list_plan(OCI_INDEX, body, link);
        if wanted.is_some() {
            plan.set("OCI-Filters-Applied", "artifactType");
        }
        plan
    }

    /// Returns the entries of the requested page, and the link to the next page.
    fn page<'a>(
        self,
        entries: impl Iterator<Item = (&'a str, Value)>,
        seen: &Seen,
    ) -> (Vec<Value>, Option<String>) {
        let wanted = parameter(seen, "n").map(|n| n.parse().unwrap());
        let most = self.page_size.into_iter().chain(wanted).min().unwrap_or(usize::MAX);
        let after = parameter(seen, "last").unwrap_or_default();
        let mut rest = entries.filter(|(key, _)| *key > after.as_str());
        let page: Vec<_> = rest.by_ref().take(most).collect();
        let link = page.last().filter(|_| rest.next().is_some()).map(|(last, _)| {
            let query =
                url::form_urlencoded::Serializer::new(String::new()).append_pair("last", last).finish();
            format!("<{}?n={most}&{query}>; rel=\"next\"", seen.path)
        });
        (page.into_iter().map(|(_, value)| value).collect(), link)
    }
}

fn list_plan(content_type: &str, body: String, link: Option<String>) -> Plan {
    let mut plan = Plan::new(200, &[("Content-Type", content_type)], Arc::new(body.into_bytes()));
    if let Some(link) = link {
        plan.set("Link", &link);
    }
    plan
}

fn parameter(seen: &Seen, name: &str) -> Option<String> {
    let mut pairs = url::form_urlencoded::parse(seen.query.as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// Returns the descriptor of a manifest in a list of referrers (distribution-spec, "Listing Referrers"). `None` if its
/// subject is not `subject`.
pub fn descriptor(document: &Document, subject: &str) -> Option<Value> {
    let value: Value = serde_json::from_slice(&document.bytes).ok()?;
    if value["subject"]["digest"] != subject {
        return None;
    }
    let mut descriptor =
        json!({ "mediaType": document.media_type, "digest": document.digest, "size": document.bytes.len() });
    let types = [&value["artifactType"], &value["config"]["mediaType"]];
    if let Some(artifact_type) = types.into_iter().find(|it| it.is_string()) {
        descriptor["artifactType"] = artifact_type.clone();
    }
    if value["annotations"].is_object() {
        descriptor["annotations"] = value["annotations"].clone();
    }
    Some(descriptor)
}
