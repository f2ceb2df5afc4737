//! containerd: `hosts.toml` below `certs.d`, for all registries at once or for each, and whether containerd reads it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, TableLike, value};

use super::disk::Disk;
use super::instance::Instance;
use super::piece::{Conflict, Merge, Piece, Plan};

const FOLDER: &str = "/etc/containerd/certs.d";
const CONFIG: &str = "/etc/containerd/config.toml";
const CAPABILITIES: [&str; 2] = ["pull", "resolve"];
/// Where containerd's own configuration names the folder: in 2.x, and in 1.x.
const PLUGINS: [&str; 2] = ["io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"];

/// What containerd has to be told.
pub(super) fn plan(instance: &Instance, per_registry: bool, disk: &Disk) -> anyhow::Result<Plan> {
    let folder = Path::new(FOLDER);
    let after = format!(
        "Nothing needs a restart. `ctr` reads no configuration: ctr images pull --hosts-dir {FOLDER} REFERENCE"
    );
    let mut notes = Vec::new();
    let mut folders: Vec<PathBuf> = Vec::new();
    if per_registry {
        folders.extend(instance.upstreams.iter().map(|name| folder.join(name)));
    } else {
        folders.push(folder.join("_default"));
        for name in &instance.upstreams {
            // As containerd looks for it, which takes the first that is there.
            let port = name.replace(':', "_");
            let own = [format!("{port}_"), name.clone()].map(|own| folder.join(own).join("hosts.toml"));
            if let Some(own) = own.iter().find(|own| disk.path(own).exists()) {
                notes.push(format!(
                    "{} is there, so that containerd does not look into _default for {name}; --per-registry puts larder \
                     into it",
                    disk.path(own).display()
                ));
            }
        }
    }
    let authority = instance.authority.is_some().then(|| folder.join("larder-ca.crt"));
    let mut pieces = Vec::new();
    for folder in folders {
        let (url, ca) = (instance.url(), authority.clone());
        pieces.push(Piece {
            path: folder.join("hosts.toml"),
            content: fresh(&url, ca.as_deref()),
            after: after.clone(),
            merge: Merge::Into(Box::new(move |text| merge(text, &url, ca.as_deref()))),
        });
    }
    if let (Some(path), Some(pem)) = (authority, &instance.authority) {
        pieces.push(Piece { path, content: pem.clone(), after, merge: Merge::Whole });
    }
    notes.extend(unread(disk)?);
    Ok(Plan { pieces, notes })
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
        // Without the key it has all of them.
        None => {}
        Some(item) => {
            let list = item.as_array_mut();
            let list = list.ok_or_else(|| Conflict::Taken(format!("`capabilities` of {url} is no list")))?;
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

/// The table of a name, made in its parent's form if it is not there.
pub(super) fn table<'t>(parent: &'t mut Item, key: &str) -> Result<&'t mut Item, Conflict> {
    let inline = parent.is_inline_table();
    let made = || {
        if inline {
            return value(InlineTable::new());
        }
        let mut table = Table::new();
        // Named only where it holds something itself.
        table.set_implicit(true);
        Item::Table(table)
    };
    let item = entries(parent, key)?.entry(key).or_insert_with(made);
    entries(item, key).map(drop)?;
    Ok(item)
}

/// What is in a table; anything else is in the way.
pub(super) fn entries<'t>(item: &'t mut Item, shown: &str) -> Result<&'t mut dyn TableLike, Conflict> {
    item.as_table_like_mut().ok_or_else(|| Conflict::Taken(format!("`{shown}` in it is no table")))
}

/// What to say if containerd's own configuration does not name the folder. It is never written here: it is containerd's
/// whole configuration, and a mistake in it keeps containerd from starting.
fn unread(disk: &Disk) -> anyhow::Result<Option<String>> {
    let path = disk.path(Path::new(CONFIG));
    let Some(text) = disk.read(Path::new(CONFIG))? else {
        return Ok(Some(told(&format!("there is no {}", path.display()), None)));
    };
    let Ok(config) = text.parse::<DocumentMut>() else {
        return Ok(Some(told(&format!("{} is no TOML", path.display()), None)));
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
    Ok(Some(told(&format!("{} does not name {FOLDER}", path.display()), version)))
}

fn names_folder(config: &DocumentMut) -> bool {
    PLUGINS.iter().any(|plugin| {
        let named = (|| config.get("plugins")?.get(plugin)?.get("registry")?.get("config_path")?.as_str())();
        named.is_some_and(|paths| paths.split(':').any(|path| path.trim_end_matches('/') == FOLDER))
    })
}

fn told(what: &str, version: Option<i64>) -> String {
    let [new, old] = PLUGINS.map(|plugin| format!("[plugins.\"{plugin}\".registry]"));
    let table = match version {
        Some(3..) => new,
        Some(_) => old,
        None => format!("{new} (in containerd 1.x {old})"),
    };
    format!(
        "{what}, and what pulls for Kubernetes reads that only if it is named; this is left to you: under {table} \
         write config_path = \"{FOLDER}\", then systemctl restart containerd"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://127.0.0.1:5000";

    #[test]
    fn what_is_there_stays() {
        let text = "# ours\nserver = \"https://registry.example.com\"\n\n[host.\"https://other.test\"]\n  \
                    capabilities = [\"pull\"] # not resolve\n";
        let merged = merge(text, URL, None).expect("merged");
        assert!(merged.starts_with(text), "{merged}");
        assert!(merged.contains("[host.\"http://127.0.0.1:5000\"]\ncapabilities = [\"pull\", \"resolve\"]"));
        assert_eq!(merge(&merged, URL, None).as_deref(), Ok(&*merged));
    }

    #[test]
    fn a_new_one_is_left_alone() {
        for ca in [None, Some(Path::new("/etc/containerd/certs.d/larder-ca.crt"))] {
            let text = fresh(URL, ca);
            assert_eq!(merge(&text, URL, ca).as_deref(), Ok(&*text));
            let read = |text: &str| toml::from_str::<toml::Table>(text).expect("TOML");
            assert_eq!(read(&merge("", URL, ca).expect("merged")), read(&text));
        }
    }

    #[test]
    fn what_is_lacking_is_added() {
        let part = format!("[host.\"{URL}\"]\ncapabilities = [\"pull\"]\n");
        let merged = merge(&part, URL, None).expect("merged");
        assert_eq!(merged, format!("[host.\"{URL}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"));
        let all = format!("[host.\"{URL}\"]\n");
        assert_eq!(merge(&all, URL, None).as_deref(), Ok(&*all));
        assert!(matches!(merge("host = 1\n", URL, None), Err(Conflict::Taken(_))));
        assert!(matches!(merge("[host\n", URL, None), Err(Conflict::Malformed { line: 1, .. })));
    }

    #[test]
    fn other_ways_to_write_it_are_added_to() {
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
    fn the_folder_is_found_wherever_it_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::new(folder.path()).expect("a root");
        let etc = folder.path().join("etc/containerd");
        std::fs::create_dir_all(etc.join("conf.d")).expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(etc.join(name), text).expect("written");
        let said = || unread(&disk).expect("readable");
        assert!(said().expect("a note").contains("there is no "));
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
