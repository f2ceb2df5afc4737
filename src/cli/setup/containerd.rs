//! containerd: `hosts.toml` below `certs.d`, one for all registries or one per registry, and a check that containerd reads
//! it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, TableLike, value};

use super::disk::Disk;
use super::file_edit::{Conflict, FileEdit, Merge, Plan};
use super::instance::Instance;

const FOLDER: &str = "/etc/containerd/certs.d";
const CONFIG: &str = "/etc/containerd/config.toml";
const CAPABILITIES: [&str; 2] = ["pull", "resolve"];
/// Plugins whose table names the folder in containerd's configuration: in 2.x, and in 1.x.
const PLUGINS: [&str; 2] = ["io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"];

/// Plans the configuration of containerd.
pub(super) fn plan(instance: &Instance, per_registry: bool, disk: &Disk) -> anyhow::Result<Plan> {
    let folder = Path::new(FOLDER);
    let after = format!(
        "No restart is needed. `ctr` does not read this file; use: ctr images pull --hosts-dir {FOLDER} REFERENCE"
    );
    let mut notes = Vec::new();
    let mut folders: Vec<PathBuf> = Vec::new();
    if per_registry {
        folders.extend(instance.upstreams.iter().map(|name| folder.join(name)));
    } else {
        folders.push(folder.join("_default"));
        for name in &instance.upstreams {
            // containerd uses the first of these folders that exists.
            let port = name.replace(':', "_");
            let own = [format!("{port}_"), name.clone()].map(|own| folder.join(own).join("hosts.toml"));
            if let Some(own) = own.iter().find(|own| disk.path(own).exists()) {
                notes.push(format!(
                    "{} exists, so containerd does not use _default for {name}; --per-registry adds larder to that \
                     file",
                    disk.path(own).display()
                ));
            }
        }
    }
    let authority = instance.authority.is_some().then(|| folder.join("larder-ca.crt"));
    let mut edits = Vec::new();
    for folder in folders {
        let (url, ca) = (instance.url(), authority.clone());
        edits.push(FileEdit {
            path: folder.join("hosts.toml"),
            content: fresh(&url, ca.as_deref()),
            after: after.clone(),
            merge: Merge::Into(Box::new(move |text| merge(text, &url, ca.as_deref()))),
        });
    }
    if let (Some(path), Some(pem)) = (authority, &instance.authority) {
        edits.push(FileEdit { path, content: pem.clone(), after, merge: Merge::Whole });
    }
    notes.extend(unread(disk)?);
    Ok(Plan { edits, notes })
}

fn fresh(url: &str, ca: Option<&Path>) -> String {
    let mut text = format!("[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    if let Some(ca) = ca {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  ca = \"{}\"", ca.display());
    }
    text
}

fn merge(text: &str, url: &str, ca: Option<&Path>) -> Result<String, Conflict> {
    let mut document: DocumentMut = text.parse().map_err(|error| Conflict::toml(&error, text))?;
    let hosts = table(document.as_item_mut(), "host")?;
    let fresh = hosts.get(url).is_none();
    let host = entries(table(hosts, url)?, url)?;
    match host.get_mut("capabilities") {
        None if fresh => {
            host.insert("capabilities", value(Array::from_iter(CAPABILITIES)));
        }
        // A host without the key has all capabilities.
        None => {}
        Some(item) => {
            let list = item.as_array_mut();
            let list =
                list.ok_or_else(|| Conflict::Taken(format!("`capabilities` of {url} is not a list")))?;
            for capability in CAPABILITIES {
                if !list.iter().any(|it| it.as_str() == Some(capability)) {
                    list.push(capability);
                }
            }
        }
    }
    if let Some(ca) = ca.filter(|_| !host.contains_key("ca")) {
        host.insert("ca", value(ca.display().to_string()));
    }
    Ok(document.to_string())
}

/// Returns the table of a key. Creates it in the notation of its parent if it is missing.
pub(super) fn table<'t>(parent: &'t mut Item, key: &str) -> Result<&'t mut Item, Conflict> {
    let inline = parent.is_inline_table();
    let made = || {
        if inline {
            return value(InlineTable::new());
        }
        let mut table = Table::new();
        // Implicit tables get no header line of their own.
        table.set_implicit(true);
        Item::Table(table)
    };
    let item = entries(parent, key)?.entry(key).or_insert_with(made);
    entries(item, key).map(drop)?;
    Ok(item)
}

/// Returns the entries of a table, or a conflict if the item is not a table.
pub(super) fn entries<'t>(item: &'t mut Item, shown: &str) -> Result<&'t mut dyn TableLike, Conflict> {
    item.as_table_like_mut().ok_or_else(|| Conflict::Taken(format!("`{shown}` is not a table")))
}

/// Returns a note if containerd's own configuration does not name the folder. `setup` never writes that file: a mistake in
/// it prevents containerd from starting.
fn unread(disk: &Disk) -> anyhow::Result<Option<String>> {
    let path = disk.path(Path::new(CONFIG));
    let Some(text) = disk.read(Path::new(CONFIG))? else {
        return Ok(Some(render(&format!("{} does not exist", path.display()), None)));
    };
    let Ok(config) = text.parse::<DocumentMut>() else {
        return Ok(Some(render(&format!("{} is not TOML", path.display()), None)));
    };
    let mut all = vec![config];
    let imports: Vec<PathBuf> = all
        .iter()
        .filter_map(|config| config.get("imports")?.as_array().cloned())
        .flatten()
        .filter_map(|pattern| pattern.as_str().map(|pattern| Path::new(CONFIG).with_file_name(pattern)))
        .collect();
    for import in imports.iter().flat_map(|pattern| disk.matching(pattern)) {
        all.extend(disk.read(&import)?.and_then(|text| text.parse().ok()));
    }
    if all.iter().any(names_folder) {
        return Ok(None);
    }
    let version = all.first().and_then(|config| config.get("version")?.as_integer());
    Ok(Some(render(&format!("{} does not name {FOLDER}", path.display()), version)))
}

fn names_folder(config: &DocumentMut) -> bool {
    PLUGINS.iter().any(|plugin| {
        let named = (|| config.get("plugins")?.get(plugin)?.get("registry")?.get("config_path")?.as_str())();
        named.is_some_and(|paths| paths.split(':').any(|path| path.trim_end_matches('/') == FOLDER))
    })
}

fn render(what: &str, version: Option<i64>) -> String {
    let [new, old] = PLUGINS.map(|plugin| format!("[plugins.\"{plugin}\".registry]"));
    let table = match version {
        Some(3..) => new,
        Some(_) => old,
        None => format!("{new} (in containerd 1.x {old})"),
    };
    format!(
        "{what}, but Kubernetes pulls use the folder only if it is configured there. Add it yourself: under {table} \
         set config_path = \"{FOLDER}\", then run systemctl restart containerd"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://127.0.0.1:5000";

    #[test]
    fn merge_keeps_existing_settings() {
        let text = "# ours\nserver = \"https://registry.example.com\"\n\n[host.\"https://other.test\"]\n  \
                    capabilities = [\"pull\"] # not resolve\n";
        let merged = merge(text, URL, None).expect("merged");
        assert!(merged.starts_with(text), "{merged}");
        assert!(merged.contains("[host.\"http://127.0.0.1:5000\"]\ncapabilities = [\"pull\", \"resolve\"]"));
        assert_eq!(merge(&merged, URL, None).as_deref(), Ok(&*merged));
    }

    #[test]
    fn fresh_file_is_not_changed() {
        for ca in [None, Some(Path::new("/etc/containerd/certs.d/larder-ca.crt"))] {
            let text = fresh(URL, ca);
            assert_eq!(merge(&text, URL, ca).as_deref(), Ok(&*text));
            let read = |text: &str| toml::from_str::<toml::Table>(text).expect("TOML");
            assert_eq!(read(&merge("", URL, ca).expect("merged")), read(&text));
        }
    }

    #[test]
    fn merge_adds_missing_capabilities() {
        let part = format!("[host.\"{URL}\"]\ncapabilities = [\"pull\"]\n");
        let merged = merge(&part, URL, None).expect("merged");
        assert_eq!(merged, format!("[host.\"{URL}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"));
        let all = format!("[host.\"{URL}\"]\n");
        assert_eq!(merge(&all, URL, None).as_deref(), Ok(&*all));
        assert!(matches!(merge("host = 1\n", URL, None), Err(Conflict::Taken(_))));
        assert!(matches!(merge("[host\n", URL, None), Err(Conflict::Malformed { line: 1, .. })));
    }

    #[test]
    fn merge_supports_other_notations() {
        for text in [
            "host = { \"https://other.test\" = { capabilities = [\"pull\"] } }\n",
            "host.\"https://other.test\".capabilities = [\"pull\"]\n",
        ] {
            let merged = merge(text, URL, None).expect("merged");
            let table: toml::Table = merged.parse().expect("TOML");
            let hosts = table["host"].as_table().expect("a table");
            assert_eq!(hosts[URL]["capabilities"].as_array().map(Vec::len), Some(2), "{merged}");
            assert_eq!(hosts["https://other.test"]["capabilities"][0].as_str(), Some("pull"), "{merged}");
            assert_eq!(merge(&merged, URL, None).as_deref(), Ok(&*merged));
        }
    }

    #[test]
    fn config_path_is_found_in_all_notations() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::new(folder.path()).expect("a root");
        let etc = folder.path().join("etc/containerd");
        std::fs::create_dir_all(etc.join("conf.d")).expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(etc.join(name), text).expect("written");
        let said = || unread(&disk).expect("readable");
        assert!(said().expect("a note").contains("does not exist"));
        write("config.toml", "version = 2\n");
        assert!(said().expect("a note").contains("[plugins.\"io.containerd.grpc.v1.cri\".registry]"));
        write("config.toml", "version = 3\nimports = [\"conf.d/*.toml\"]\n");
        assert!(said().expect("a note").contains("[plugins.\"io.containerd.cri.v1.images\".registry]"));
        let named =
            "[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/certs.d:/x'\n";
        write("conf.d/registries.toml", named);
        assert_eq!(said(), None);
    }
}
