//! containerd: `hosts.toml` below `certs.d`, one for all registries or one per registry, and a check that containerd reads
//! it. Spegel, which puts itself before the mirrors in that file.

use std::path::{Path, PathBuf};

use toml_edit::DocumentMut;

use super::disk::Disk;
use super::file_edit::{FileEdit, HEAD, Merge, Plan};
use super::hosts_toml::MirrorHost;
use super::instance::Instance;
use super::version::Version;

const FOLDER: &str = "/etc/containerd/certs.d";
const CONFIG: &str = "/etc/containerd/config.toml";
/// First version that knows the capability `referrers`. Earlier versions reject a file with it.
const KNOWS_REFERRERS: Version = Version(2, 2);
/// Plugins whose table names the folder in containerd's configuration: in 2.x, and in 1.x.
const PLUGINS: [&str; 2] = ["io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"];

/// Plans the configuration of containerd. Without a known version, containerd asks the registries for referrers.
pub(super) fn plan(
    instance: &Instance,
    per_registry: bool,
    version: Option<Version>,
    disk: &Disk,
) -> anyhow::Result<Plan> {
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
    let has_referrers = version.is_some_and(|version| version >= KNOWS_REFERRERS);
    if version.is_none() {
        notes.push(
            "the version of containerd is not known; --containerd-version 2.2 (or later) lets containerd find signatures \
             through larder, also while the registry is down"
                .to_owned(),
        );
    }
    for folder in folders {
        let host = MirrorHost { url: instance.url(), ca: authority.clone(), has_referrers };
        edits.push(FileEdit {
            path: folder.join("hosts.toml"),
            content: host.fresh(),
            after: after.clone(),
            merge: Merge::Into(Box::new(move |text| host.merge(text))),
        });
    }
    if let (Some(path), Some(pem)) = (authority, &instance.authority) {
        edits.push(FileEdit { path, content: pem.clone(), after, merge: Merge::Whole });
    }
    notes.extend(unread(disk)?);
    Ok(Plan { edits, notes })
}

/// Plans the configuration of nodes with Spegel: containerd's files, and the values of Spegel's Helm chart. Spegel then
/// writes itself before the mirrors that are there: a pull asks Spegel, larder and the registry in this order.
pub(super) fn spegel(instance: &Instance, version: Option<Version>, disk: &Disk) -> anyhow::Result<Plan> {
    let mut plan = plan(instance, false, version, disk)?;
    let after =
        "helm upgrade --install --namespace spegel --create-namespace --values spegel-values.yaml spegel \
                 oci://ghcr.io/spegel-org/helm-charts/spegel\n\
                 Write containerd's file on every node before Spegel starts there: Spegel reads it once."
            .to_owned();
    plan.edits.push(FileEdit {
        path: "spegel-values.yaml".into(),
        content: format!("{HEAD}spegel:\n  prependExisting: true\n"),
        after: after.clone(),
        merge: Merge::Ours(|_| Ok(())),
    });
    plan.edits.iter_mut().for_each(|edit| edit.after.clone_from(&after));
    Ok(plan)
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
