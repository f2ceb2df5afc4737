//! Docker: `daemon.json`, whose mirrors serve Docker Hub only, and `hosts.toml` for all registries, which Docker reads if it
//! keeps images in containerd's image store.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::ValueEnum;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::disk::Disk;
use super::file_edit::{Conflict, FileEdit, Merge, Plan};
use super::hosts_toml::MirrorHost;
use super::instance::{Instance, Scheme};
use super::version::{Version, output_of};
use crate::config::Config;

const DAEMON: &str = "/etc/docker/daemon.json";
const HOSTS: &str = "/etc/docker/certs.d/_default/hosts.toml";
/// First version that knows the capability `referrers` of `hosts.toml`.
const KNOWS_REFERRERS: Version = Version(29, 0);
/// Driver type that `docker info` reports for containerd's image store.
const SNAPSHOTTER: &str = "io.containerd.snapshotter";

const MIRRORS: &str = "registry-mirrors";
const INSECURE: &str = "insecure-registries";

/// Place in which Docker keeps images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ImageStore {
    /// containerd's image store, the default of new installations since Docker 29
    Containerd,
    /// Graph drivers, the store of Docker before
    Classic,
}

impl ImageStore {
    fn of(has_snapshotter: bool) -> Self {
        if has_snapshotter { Self::Containerd } else { Self::Classic }
    }
}

/// Properties of the Docker installation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Installation {
    pub(super) store: Option<ImageStore>,
    pub(super) version: Option<Version>,
}

impl Installation {
    /// Adds what `daemon.json` states, and what the daemon reports if `may_ask` is true.
    pub(super) fn detect(mut self, disk: &Disk, may_ask: bool) -> anyhow::Result<Self> {
        let stated = disk.read(Path::new(DAEMON))?.and_then(|text| stated_store(&text));
        self.store = self.store.or(stated);
        if may_ask && self.store.is_none() {
            let status = output_of("docker", &["info", "--format", "{{json .DriverStatus}}"]);
            self.store = status.map(|status| ImageStore::of(status.contains(SNAPSHOTTER)));
        }
        if may_ask && self.version.is_none() && self.store == Some(ImageStore::Containerd) {
            let version = output_of("docker", &["version", "--format", "{{.Server.Version}}"]);
            self.version = version.and_then(|output| Version::find(&output));
        }
        Ok(self)
    }
}

/// Returns the store that `daemon.json` selects.
fn stated_store(text: &str) -> Option<ImageStore> {
    let daemon: serde_json::Value = serde_json::from_str(text).ok()?;
    Some(ImageStore::of(daemon.get("features")?.get("containerd-snapshotter")?.as_bool()?))
}

/// Plans the configuration of dockerd.
pub(super) fn plan(config: &Config, instance: &Instance, installation: Installation) -> anyhow::Result<Plan> {
    let has_containerd = installation.store == Some(ImageStore::Containerd);
    let has_hub = config.upstream.get("docker.io").is_some_and(|hub| hub.default);
    let mut plan = if has_containerd && !has_hub {
        Plan::default()
    } else {
        daemon_json(config, instance, has_containerd)?
    };
    if has_containerd {
        plan.edits.push(hosts_toml(instance, installation.version));
    }
    if let Some(pem) = &instance.authority {
        let after = plan.edits.first().map(|edit| edit.after.clone()).unwrap_or_default();
        plan.edits.push(FileEdit {
            path: authority(instance),
            content: pem.clone(),
            after,
            merge: Merge::Whole,
        });
    }
    match installation.store {
        Some(ImageStore::Containerd) if installation.version.is_none() => plan.notes.push(
            "the version of Docker is not known; --docker-version 29 (or later) lets Docker find signatures through \
             larder, also while the registry is down"
                .to_owned(),
        ),
        None => plan.notes.push(
            "it is not known whether Docker uses containerd's image store, the default of new installations since Docker \
             29; if it does, --image-store containerd configures the mirror for all registries"
                .to_owned(),
        ),
        Some(_) => {}
    }
    Ok(plan)
}

fn authority(instance: &Instance) -> PathBuf {
    PathBuf::from(format!("/etc/docker/certs.d/{instance}/ca.crt"))
}

fn hosts_toml(instance: &Instance, version: Option<Version>) -> FileEdit {
    let host = MirrorHost {
        url: instance.url(),
        ca: instance.authority.as_ref().map(|_| authority(instance)),
        has_referrers: version.is_some_and(|version| version >= KNOWS_REFERRERS),
    };
    FileEdit {
        path: HOSTS.into(),
        content: host.fresh(),
        after: "Docker reads this file at each pull.".to_owned(),
        merge: Merge::Into(Box::new(move |text| host.merge(text))),
    }
}

/// Plans the mirror of Docker Hub.
fn daemon_json(config: &Config, instance: &Instance, has_containerd: bool) -> anyhow::Result<Plan> {
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
    let after = if has_containerd {
        "systemctl reload docker\nDocker pulls the images of all registries through larder.".to_owned()
    } else {
        format!(
            "systemctl reload docker\nDocker uses its mirrors for images of Docker Hub. Pull images of other upstreams by the \
             server's name, as in `docker pull {instance}/quay.io/org/app:1`."
        )
    };
    let edit = FileEdit {
        path: DAEMON.into(),
        content: fresh(&url, insecure.as_deref()),
        after,
        merge: Merge::Into(Box::new(move |text| merge(text, &url, insecure.as_deref()))),
    };
    Ok(Plan { edits: vec![edit], notes: Vec::new() })
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
