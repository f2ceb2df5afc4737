//! Page of one image: details, cached content, pull commands and documents.

use askama::Template;
use serde_json::Value;

use crate::ops::image_tree::ContentPart;
use crate::ops::inspect::{self, InspectReport};
use crate::ops::list::PlatformRow;
use crate::ops::platform::{NO_IMAGE, Platform};
use crate::ops::protocol::{CheckQuery, InspectQuery};
use crate::ops::{Operations, OpsError, check, reference};

use super::format::{self, ByteCount, RelativeTime, plural, short_digest};
use super::images::{PlatformChip, chips, fresh};
use super::page::{PageFrame, render};
use super::pull_commands::{PullAddress, PullCommand};
use super::raw;
use super::status_view::Badge;

/// Maximum number of entries of a list that are shown. The raw document has all entries.
const ENTRIES_MAX: usize = 200;
/// Maximum size of a document that is shown, in bytes. A larger one has only a link.
const DOCUMENT_MAX: usize = 256 << 10;

#[derive(Template)]
#[template(path = "image.html", config = "src/api/ui/askama.toml")]
struct ImagePage {
    page: PageFrame,
    reference: String,
    repository: String,
    /// Text after the repository: tag, digest, or both.
    rest: String,
    platform: Option<String>,
    tabs: Vec<Tab>,
    digest: String,
    media_type: String,
    size: Option<ByteCount>,
    index: Option<(String, String)>,
    checked: Option<RelativeTime>,
    fresh: Badge,
    /// Summary of the cached content.
    says: String,
    complete: bool,
    offline: Badge,
    reason: Option<String>,
    platforms: Vec<ManifestRow>,
    chips: Vec<PlatformChip>,
    parts: Vec<BlobRow>,
    total: ByteCount,
    config: Option<ConfigView>,
    /// True if the image has a config that is not cached.
    config_missing: bool,
    annotations: Vec<(String, String)>,
    referrers: Vec<ReferrerLink>,
    documents: Vec<DocumentView>,
    place: Option<PullAddress>,
    commands: Vec<PullCommand>,
}

/// Tab for the index or for one platform.
struct Tab {
    name: String,
    link: String,
    current: bool,
    complete: bool,
}

/// Row of an index.
struct ManifestRow {
    name: String,
    link: String,
    digest: String,
    short: String,
    size: ByteCount,
    cached: Badge,
}

/// Blob of a manifest.
struct BlobRow {
    role: String,
    digest: String,
    short: String,
    media_type: String,
    size: Option<ByteCount>,
    cached: Badge,
}

struct ReferrerLink {
    digest: String,
    short: String,
    link: Option<String>,
    artifact_type: String,
    size: Option<ByteCount>,
    cached: Badge,
}

/// Document for display.
struct DocumentView {
    name: &'static str,
    digest: String,
    link: String,
    /// `None` if the document is too large.
    text: Option<String>,
}

/// Content of an image config.
#[derive(Default)]
struct ConfigView {
    created: Option<String>,
    author: Option<String>,
    rows: Vec<(&'static str, String)>,
    env: Vec<String>,
    labels: Vec<(String, String)>,
    history: Vec<HistoryStep>,
}

/// Step of the history of an image.
struct HistoryStep {
    command: String,
    created: Option<String>,
    /// True if the step created no layer.
    empty: bool,
}

/// Renders the page of the image that the query names.
pub(super) async fn page(operations: &Operations, query: &str) -> Result<String, OpsError> {
    let ask = InspectQuery { config: false, ..raw::parse(query)? };
    let cache = operations.cache();
    let report = inspect::inspect(cache, ask.clone()).await?;
    let platforms = ask.platform.clone().into_iter().collect();
    let references = vec![ask.reference.clone()];
    let check = check::check(cache, CheckQuery { references, platforms }).await?;
    let has_config = report.document.as_ref().is_some_and(|document| document.get("config").is_some());
    let config = if has_config { config_of(operations, &ask).await? } else { None };
    let verdict = check.images.into_iter().next();
    let offline = offline(&report, verdict.as_ref());
    let reason = verdict.and_then(|verdict| verdict.reason);
    let place = PullAddress::of(operations.service());
    let named = reference::parse(cache, &report.reference)?;
    let rest = report.reference.strip_prefix(&named.repository.to_string()).unwrap_or_default().to_owned();
    // Some clients do not accept a tag together with a digest, so only the digest is used.
    let image = match (&named.digest, &named.tag) {
        (Some(digest), _) => format!("{}@{digest}", named.repository),
        (None, Some(tag)) => format!("{}:{tag}", named.repository),
        (None, None) => named.repository.to_string(),
    };
    let platform = ask.platform.as_deref();
    let commands = place.as_ref().map(|place| place.commands(&image, platform)).unwrap_or_default();
    let repository = named.repository.to_string();
    let mut documents = vec![shown("Manifest", &report, &ask, false)];
    documents.extend(config.as_ref().map(|config| shown("Config", config, &ask, true)));
    let is_index = is_index(&report);
    render(&ImagePage {
        page: PageFrame::new(report.reference.clone(), "images"),
        rest,
        platform: ask.platform.clone().or_else(|| report.platform.clone()),
        tabs: if report.index.is_some() || is_index { tabs(&report, &ask, &repository) } else { Vec::new() },
        digest: report.digest.to_string(),
        media_type: report.media_type.clone().unwrap_or_else(|| "not stated".to_owned()),
        size: report.size.map(ByteCount),
        index: report.index.map(|index| (index.to_string(), short_digest(&index.to_string()))),
        checked: report.checked_at.map(|at| RelativeTime { at, now: operations.now() }),
        fresh: fresh(report.freshness),
        says: sentence(&report.says),
        complete: report.complete,
        offline,
        reason,
        platforms: if is_index { manifests(&report, &repository) } else { Vec::new() },
        chips: chips(&report.platforms),
        parts: parts(&report),
        total: ByteCount(report.blobs.iter().filter_map(|part| part.size).fold(0, u64::saturating_add)),
        config_missing: has_config && config.is_none(),
        config: config.and_then(|config| config.document).map(|document| facts(&document)),
        annotations: report.document.as_ref().map(|it| pairs(&it["annotations"])).unwrap_or_default(),
        referrers: referrers(&report, &repository),
        documents,
        place,
        commands,
        repository,
        reference: report.reference,
    })
}

/// Returns whether the image can be pulled while the upstream is unavailable.
fn offline(report: &InspectReport, verdict: Option<&check::CheckVerdict>) -> Badge {
    let stale = match verdict {
        Some(verdict) if verdict.pullable => return Badge::new("good", "can be pulled offline"),
        verdict => verdict.is_none_or(|verdict| verdict.reason.is_some()),
    };
    let whole = chips(&report.platforms).iter().filter(|chip| chip.complete).count();
    match whole {
        1.. if is_index(report) && !stale => {
            Badge::new("fair", format!("{} can be pulled offline", plural(whole as u64, "platform")))
        }
        _ => Badge::new("bad", "cannot be pulled offline"),
    }
}

/// Formats a summary as a sentence. A name at the beginning keeps its case.
fn sentence(says: &str) -> String {
    match says.strip_prefix("the ") {
        Some(rest) => format!("The {rest}."),
        None => format!("{says}."),
    }
}

/// Returns the config of the image, if it is cached.
async fn config_of(operations: &Operations, ask: &InspectQuery) -> Result<Option<InspectReport>, OpsError> {
    let ask = InspectQuery { config: true, index: false, oci: false, media_type: None, ..ask.clone() };
    match inspect::inspect(operations.cache(), ask).await {
        Ok(config) => Ok(Some(config)),
        Err(OpsError::NotCached(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_index(report: &InspectReport) -> bool {
    report.document.as_ref().is_some_and(|document| document.get("manifests").is_some())
}

/// Returns the link to a manifest of an index: by platform if the platform selects this manifest, else by digest.
fn link(report: &InspectReport, repository: &str, row: &PlatformRow) -> String {
    let there = || report.platforms.iter().map(|row| row.platform.as_deref());
    let leads = |platform: &&str| {
        let place = Platform::parse(platform).ok().and_then(|platform| platform.choose(there()));
        place.and_then(|place| report.platforms.get(place)).is_some_and(|found| found.digest == row.digest)
    };
    match row.platform.as_deref().filter(leads) {
        Some(platform) => format::image_url("/image", &report.reference, &[("platform", platform)]),
        None => format::image_url("/image", &format!("{repository}@{}", row.digest), &[]),
    }
}

/// Returns a tab for the index and one for each platform.
fn tabs(report: &InspectReport, ask: &InspectQuery, repository: &str) -> Vec<Tab> {
    let whole = report.platforms.iter().filter(|row| row.platform.as_deref() != Some(NO_IMAGE));
    let mut tabs = vec![Tab {
        name: "Index".to_owned(),
        link: format::image_url("/image", &report.reference, &[]),
        current: report.index.is_none(),
        complete: whole.clone().all(|row| row.complete),
    }];
    for row in whole.take(ENTRIES_MAX) {
        let Some(platform) = &row.platform else { continue };
        if tabs.iter().any(|tab| tab.name == *platform) {
            continue;
        }
        tabs.push(Tab {
            name: platform.clone(),
            link: link(report, repository, row),
            current: report.index.is_some()
                && report.platform.as_ref().or(ask.platform.as_ref()) == Some(platform),
            complete: row.complete,
        });
    }
    tabs
}

fn cached(is_cached: bool) -> Badge {
    if is_cached { Badge::new("good", "cached") } else { Badge::new("bad", "not cached") }
}

fn manifests(report: &InspectReport, repository: &str) -> Vec<ManifestRow> {
    let rows = report.platforms.iter().map(|row| {
        let digest = row.digest.to_string();
        let image = row.platform.as_deref().filter(|platform| *platform != NO_IMAGE);
        ManifestRow {
            name: image.unwrap_or("not an image, for example an attestation").to_owned(),
            link: link(report, repository, row),
            short: short_digest(&digest),
            digest,
            size: ByteCount(row.size),
            cached: match (row.complete, row.manifest) {
                (true, _) => Badge::new("good", "complete"),
                (false, true) => Badge::new("fair", "manifest only"),
                (false, false) => Badge::new("bad", "not cached"),
            },
        }
    });
    rows.take(ENTRIES_MAX).collect()
}

fn parts(report: &InspectReport) -> Vec<BlobRow> {
    let document = report.document.as_ref();
    let config = document.and_then(|document| document["config"]["digest"].as_str());
    let mut layers = 0;
    let mut row = |part: &ContentPart| {
        let digest = part.digest.to_string();
        let role = if config == Some(digest.as_str()) {
            "config".to_owned()
        } else {
            layers += 1;
            format!("layer {layers}")
        };
        BlobRow {
            role,
            short: short_digest(&digest),
            digest,
            media_type: part.media_type.clone().unwrap_or_else(|| "not stated".to_owned()),
            size: part.size.map(ByteCount),
            cached: if part.foreign && !part.cached {
                Badge::new("fair", "not in the registry")
            } else {
                cached(part.cached)
            },
        }
    };
    report.blobs.iter().map(&mut row).collect()
}

fn referrers(report: &InspectReport, repository: &str) -> Vec<ReferrerLink> {
    let line = |row: &inspect::ReferrerRow| ReferrerLink {
        digest: row.digest.clone(),
        short: short_digest(&row.digest),
        link: row.cached.then(|| format::image_url("/image", &format!("{repository}@{}", row.digest), &[])),
        artifact_type: row.artifact_type.clone().unwrap_or_else(|| "not stated".to_owned()),
        size: row.size.map(ByteCount),
        cached: cached(row.cached),
    };
    report.referrers.iter().take(ENTRIES_MAX).map(line).collect()
}

fn shown(name: &'static str, report: &InspectReport, ask: &InspectQuery, config: bool) -> DocumentView {
    let mut more: Vec<(&str, &str)> = Vec::new();
    more.extend(ask.platform.as_deref().map(|platform| ("platform", platform)));
    if config {
        more.push(("config", "true"));
    }
    let text = match &report.document {
        Some(document) => serde_json::to_string_pretty(document).ok(),
        None => report.raw.clone(),
    };
    DocumentView {
        name: if is_index(report) && !config { "Index" } else { name },
        digest: report.digest.to_string(),
        link: if report.raw.is_some() {
            format::image_url("/raw", &report.reference, &more)
        } else {
            String::new()
        },
        text: text.filter(|text| text.len() <= DOCUMENT_MAX),
    }
}

/// Formats a value; strings have no quotation marks.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Returns the entries of an object.
fn pairs(value: &Value) -> Vec<(String, String)> {
    let entries = value.as_object().into_iter().flatten();
    entries.take(ENTRIES_MAX).map(|(key, value)| (key.clone(), text(value))).collect()
}

/// Returns the entries of a list.
fn list(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().take(ENTRIES_MAX).map(text).collect()
}

fn facts(document: &Value) -> ConfigView {
    let config = &document["config"];
    // Arguments are shown as JSON, so that the boundaries between them are visible.
    let words = |key: &str| {
        let all = list(&config[key]);
        (!all.is_empty()).then(|| serde_json::to_string(&all).unwrap_or_default())
    };
    let one = |value: &Value| Some(text(value)).filter(|text| !text.is_empty());
    let keys = |key: &str| {
        let keys: Vec<String> = pairs(&config[key]).into_iter().map(|(key, _)| key).collect();
        (!keys.is_empty()).then(|| keys.join(", "))
    };
    let platform: Vec<String> =
        ["os", "architecture", "variant"].iter().filter_map(|key| one(&document[key])).collect();
    let platform = platform.join("/");
    let rows = [
        ("Entrypoint", words("Entrypoint")),
        ("Command", words("Cmd")),
        ("Working directory", one(&config["WorkingDir"])),
        ("User", one(&config["User"])),
        ("Ports", keys("ExposedPorts")),
        ("Volumes", keys("Volumes")),
        ("Stop signal", one(&config["StopSignal"])),
        ("Platform", (!platform.is_empty()).then_some(platform)),
    ];
    let steps = document["history"].as_array().into_iter().flatten().take(ENTRIES_MAX);
    ConfigView {
        created: one(&document["created"]),
        author: one(&document["author"]),
        rows: rows.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
        env: list(&config["Env"]),
        labels: pairs(&config["Labels"]),
        history: steps
            .map(|step| HistoryStep {
                command: one(&step["created_by"]).or_else(|| one(&step["comment"])).unwrap_or_default(),
                created: one(&step["created"]),
                empty: step["empty_layer"].as_bool().unwrap_or_default(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn config_of_any_shape_is_read() {
        for odd in [json!(null), json!([1]), json!("x"), json!({"config": 7, "history": {}, "created": 5})] {
            assert!(facts(&odd).env.is_empty());
        }
        let facts = facts(&json!({
            "created": "2026-01-02T03:04:05Z",
            "os": "linux",
            "config": {"Entrypoint": ["/a b", "c"], "Env": ["A=1"], "ExposedPorts": {"80/tcp": {}}, "Labels": {"x": 1}},
            "history": [{"created_by": "COPY", "empty_layer": true}]
        }));
        assert_eq!(facts.rows[0], ("Entrypoint", r#"["/a b","c"]"#.to_owned()));
        assert!(facts.rows.contains(&("Ports", "80/tcp".to_owned())));
        assert_eq!((facts.env[0].as_str(), facts.labels[0].1.as_str()), ("A=1", "1"));
        assert!(facts.history[0].empty);
    }
}
