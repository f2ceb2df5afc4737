//! `BuildKit`: `buildkitd.toml`. The table of a mirror sets whether TLS is used.

use std::fmt::Write as _;

use toml_edit::{Array, DocumentMut, Item, value};

use super::file_edit::{Conflict, FileEdit, Merge, Plan};
use super::hosts_toml::{entries, table};
use super::instance::{Instance, Scheme};

const FILE: &str = "/etc/buildkit/buildkitd.toml";
const AUTHORITY: &str = "/etc/buildkit/larder-ca.crt";

/// Plans the configuration of buildkitd.
pub(super) fn plan(instance: &Instance) -> Plan {
    let network = if instance.is_loopback() { " --driver-opt network=host" } else { "" };
    let after = format!(
        "systemctl restart buildkit, or create a builder with it:\n\
         docker buildx create --driver docker-container{network} --buildkitd-config {FILE}\n\
         Docker's default builder uses daemon.json: see larder setup docker"
    );
    let target = instance.clone();
    let mut edits = vec![FileEdit {
        path: FILE.into(),
        content: fresh(instance),
        after: after.clone(),
        merge: Merge::Into(Box::new(move |text| merge(text, &target))),
    }];
    if let Some(pem) = &instance.authority {
        edits.push(FileEdit { path: AUTHORITY.into(), content: pem.clone(), after, merge: Merge::Whole });
    }
    Plan { edits, notes: Vec::new() }
}

/// Returns each registry with its mirror. The path names the registry unless the name has a port: `BuildKit` also names
/// it in the query.
fn mirrors(instance: &Instance) -> impl Iterator<Item = (&str, String)> {
    instance.upstreams.iter().map(move |name| {
        let mirror = if name.contains(':') { instance.to_string() } else { format!("{instance}/{name}") };
        (name.as_str(), mirror)
    })
}

fn fresh(instance: &Instance) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for (name, mirror) in mirrors(instance) {
        let _ = write!(text, "[registry.\"{name}\"]\n  mirrors = [\"{mirror}\"]\n");
    }
    match (instance.scheme, &instance.authority) {
        (Scheme::Http, _) => {
            let _ = write!(text, "[registry.\"{instance}\"]\n  http = true\n");
        }
        (Scheme::Https, Some(_)) => {
            let _ = write!(text, "[registry.\"{instance}\"]\n  ca = [\"{AUTHORITY}\"]\n");
        }
        (Scheme::Https, None) => {}
    }
    text
}

fn merge(text: &str, instance: &Instance) -> Result<String, Conflict> {
    let mut document: DocumentMut = text.parse().map_err(|error| Conflict::toml(&error, text))?;
    let registries = table(document.as_item_mut(), "registry")?;
    let own = instance.to_string();
    for (name, mirror) in mirrors(instance) {
        add(table(registries, name)?, "mirrors", &mirror)?;
    }
    match (instance.scheme, &instance.authority) {
        (Scheme::Http, _) => {
            let own = entries(table(registries, &own)?, &own)?;
            if own.get("http").and_then(Item::as_bool) != Some(true) {
                own.insert("http", value(true));
            }
        }
        (Scheme::Https, Some(_)) => {
            add(table(registries, &own)?, "ca", AUTHORITY)?;
        }
        (Scheme::Https, None) => {}
    }
    Ok(document.to_string())
}

fn add(table: &mut Item, key: &str, text: &str) -> Result<(), Conflict> {
    let list = entries(table, key)?.entry(key).or_insert_with(|| value(Array::new())).as_array_mut();
    let list = list.ok_or_else(|| Conflict::Taken(format!("`{key}` of a registry is not a list")))?;
    if !list.iter().any(|item| item.as_str() == Some(text)) {
        list.push(text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn instance(address: &str) -> Instance {
        let mut config = Config::default();
        config.upstream.retain(|name, _| name == "docker.io");
        config.upstream.insert("reg.test:5000".to_owned(), crate::config::schema::Upstream::default());
        let given = address.parse().expect("an address");
        Instance::of(&config, Some(&given), None).expect("an instance")
    }

    #[test]
    fn fresh_file_is_not_changed() {
        let mut secured = instance("https://larder.test:5443");
        secured.authority = Some("PEM".to_owned());
        for instance in [instance("127.0.0.1:5000"), instance("https://larder.test:5443"), secured] {
            let text = fresh(&instance);
            assert_eq!(merge(&text, &instance).as_deref(), Ok(&*text));
            let read = |text: &str| toml::from_str::<toml::Table>(text).expect("TOML");
            assert_eq!(read(&merge("", &instance).expect("merged")), read(&text));
            assert_eq!(text.contains(AUTHORITY), instance.authority.is_some());
        }
    }

    #[test]
    fn merge_supports_other_notations() {
        let instance = instance("127.0.0.1:5000");
        for text in [
            "registry = { \"docker.io\" = { mirrors = [\"other.test\"] } }\n",
            "registry.\"docker.io\".mirrors = [\"other.test\"]\n",
        ] {
            let merged = merge(text, &instance).expect("merged");
            let table: toml::Table = merged.parse().expect("TOML");
            let hub = &table["registry"]["docker.io"]["mirrors"];
            assert_eq!(hub.as_array().map(Vec::len), Some(2), "{merged}");
            assert_eq!(table["registry"]["127.0.0.1:5000"]["http"].as_bool(), Some(true), "{merged}");
            assert_eq!(merge(&merged, &instance).as_deref(), Ok(&*merged));
        }
    }

    #[test]
    fn merge_keeps_existing_settings() {
        let text = "debug = true # for now\n\n[registry.\"docker.io\"]\n  mirrors = [\"other.test\"]\n\n[worker.oci]\n  \
                    gc = false\n";
        let merged = merge(text, &instance("127.0.0.1:5000")).expect("merged");
        assert!(merged.starts_with("debug = true # for now\n"), "{merged}");
        assert!(merged.contains("  mirrors = [\"other.test\", \"127.0.0.1:5000/docker.io\"]\n"), "{merged}");
        assert!(
            merged.contains("[registry.\"reg.test:5000\"]\nmirrors = [\"127.0.0.1:5000\"]\n"),
            "{merged}"
        );
        assert!(merged.contains("[worker.oci]\n  gc = false\n"), "{merged}");
        assert_eq!(merge(&merged, &instance("127.0.0.1:5000")).as_deref(), Ok(&*merged));
    }
}
