//! Docker: `daemon.json`, whose mirrors serve Docker Hub only.

use std::fmt;
use std::path::PathBuf;

use anyhow::bail;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::file_edit::{Conflict, FileEdit, Merge, Plan};
use super::instance::{Instance, Scheme};
use crate::config::Config;

const MIRRORS: &str = "registry-mirrors";
const INSECURE: &str = "insecure-registries";

/// Plans the configuration of dockerd.
pub(super) fn plan(config: &Config, instance: &Instance) -> anyhow::Result<Plan> {
    match config.upstream.get("docker.io") {
        None => bail!(
            "the mirrors in daemon.json serve Docker Hub only, and no upstream `docker.io` is configured"
        ),
        // dockerd does not name the registry in requests to a mirror.
        Some(hub) if !hub.default => bail!(
            "Docker does not name the registry in requests to a mirror, so `docker.io` must be the default upstream; set \
             `default = true` in its table"
        ),
        Some(_) => {}
    }
    let url = instance.url();
    // Needed for pulls by the server's own name. For a mirror the URL decides.
    let insecure = (instance.scheme == Scheme::Http && !instance.is_loopback()).then(|| instance.to_string());
    let after = format!(
        "systemctl reload docker\nDocker uses its mirrors for images of Docker Hub. Pull images of other upstreams by the \
         server's name, as in `docker pull {instance}/quay.io/org/app:1`."
    );
    let mut edits = vec![FileEdit {
        path: "/etc/docker/daemon.json".into(),
        content: fresh(&url, insecure.as_deref()),
        after: after.clone(),
        merge: Merge::Into(Box::new(move |text| merge(text, &url, insecure.as_deref()))),
    }];
    if let Some(pem) = &instance.authority {
        let path = PathBuf::from(format!("/etc/docker/certs.d/{instance}/ca.crt"));
        edits.push(FileEdit { path, content: pem.clone(), after, merge: Merge::Whole });
    }
    Ok(Plan { edits, notes: Vec::new() })
}

fn fresh(url: &str, insecure: Option<&str>) -> String {
    match insecure {
        None => format!("{{ \"{MIRRORS}\": [\"{url}\"] }}\n"),
        Some(address) => {
            format!("{{\n  \"{MIRRORS}\": [\"{url}\"],\n  \"{INSECURE}\": [\"{address}\"]\n}}\n")
        }
    }
}

/// Entries of a JSON object in their order, with the text of each value.
struct Entries(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut found = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    found.push(entry);
                }
                Ok(Entries(found))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

fn merge(text: &str, url: &str, insecure: Option<&str>) -> Result<String, Conflict> {
    let Entries(mut entries) = serde_json::from_str(text).map_err(|error| {
        // The position is reported separately.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default().to_owned();
        Conflict::Malformed { line: error.line(), column: error.column(), message }
    })?;
    // An existing entry may end with a slash.
    let same = |written: &str| written.trim_end_matches('/') == url;
    let mut changed = add(&mut entries, MIRRORS, url, same)?;
    if let Some(address) = insecure {
        changed |= add(&mut entries, INSECURE, address, |written| written == address)?;
    }
    Ok(if changed { written(&entries, indentation(text)) } else { text.to_owned() })
}

/// Appends a text to a list. Returns true if the list changed.
fn add(
    entries: &mut Vec<(String, Box<RawValue>)>,
    key: &str,
    text: &str,
    same: impl Fn(&str) -> bool,
) -> Result<bool, Conflict> {
    let raw = |list: &[String]| {
        let items: Vec<_> =
            list.iter().map(|item| serde_json::Value::from(item.as_str()).to_string()).collect();
        RawValue::from_string(format!("[{}]", items.join(", ")))
            .map_err(|error| Conflict::Taken(format!("`{key}` cannot be written: {error}")))
    };
    let Some((_, value)) = entries.iter_mut().find(|(name, _)| name == key) else {
        entries.push((key.to_owned(), raw(&[text.to_owned()])?));
        return Ok(true);
    };
    let mut list: Vec<String> = serde_json::from_str::<Option<_>>(value.get())
        .map_err(|_| {
            Conflict::Taken(format!("`{key}` is not a list of strings; Docker would reject it too"))
        })?
        .unwrap_or_default();
    if list.iter().any(|item| same(item)) {
        return Ok(false);
    }
    list.push(text.to_owned());
    *value = raw(&list)?;
    Ok(true)
}

/// Returns the indentation of the first entry.
fn indentation(text: &str) -> &str {
    let line = text.lines().find(|line| line.trim_start().starts_with('"'));
    let found = line.and_then(|line| line.split('"').next()).unwrap_or_default();
    if found.is_empty() { "  " } else { found }
}

fn written(entries: &[(String, Box<RawValue>)], indentation: &str) -> String {
    let lines: Vec<_> = entries
        .iter()
        .map(|(key, value)| {
            format!("{indentation}{}: {}", serde_json::Value::from(key.as_str()), value.get())
        })
        .collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://127.0.0.1:5000";

    #[test]
    fn merge_keeps_existing_text() {
        let text = "{\n    \"log-opts\": {\n        \"max-size\": \"10m\"\n    },\n    \"b\": 1.50,\n    \
                    \"registry-mirrors\": [\"https://other.test\"]\n}\n";
        let merged = merge(text, URL, None).expect("merged");
        assert_eq!(
            merged,
            text.replace("[\"https://other.test\"]", "[\"https://other.test\", \"http://127.0.0.1:5000\"]")
        );
        assert_eq!(merge(&merged, URL, None).as_deref(), Ok(&*merged));
        let slash = "{\"registry-mirrors\":[\"http://127.0.0.1:5000/\"]}";
        assert_eq!(merge(slash, URL, None).as_deref(), Ok(slash));
    }

    #[test]
    fn merge_into_an_empty_file_equals_a_fresh_file() {
        for insecure in [None, Some("10.0.0.7:5000")] {
            let merged = merge("{}", URL, insecure).expect("merged");
            let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
            assert_eq!(read(&merged), read(&fresh(URL, insecure)));
            let again = fresh(URL, insecure);
            assert_eq!(merge(&again, URL, insecure).as_deref(), Ok(&*again));
        }
        let null = merge("{\"registry-mirrors\": null}", URL, None).expect("merged");
        assert!(null.contains("[\"http://127.0.0.1:5000\"]"), "{null}");
    }

    #[test]
    fn malformed_file_error_has_the_position() {
        let Err(Conflict::Malformed { line, column, message }) = merge("{\n  \"a\": 1,\n}\n", URL, None)
        else {
            panic!("it is malformed");
        };
        assert_eq!((line, column), (3, 1));
        assert!(message.contains("trailing comma"), "{message}");
        assert!(matches!(merge("[]", URL, None), Err(Conflict::Malformed { .. })));
        assert!(matches!(merge("{\"registry-mirrors\": \"x\"}", URL, None), Err(Conflict::Taken(_))));
    }
}
