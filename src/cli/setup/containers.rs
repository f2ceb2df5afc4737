//! Podman, Buildah, Skopeo and CRI-O: all read a file of larder's own in `registries.conf.d`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::bail;
use toml_edit::DocumentMut;

use super::disk::Disk;
use super::file_edit::{Conflict, FileEdit, HEAD, Merge, Plan};
use super::instance::{Instance, Scheme};

const FOLDER: &str = "/etc/containers/registries.conf.d";
const MAIN: &str = "/etc/containers/registries.conf";
const OURS: &str = "larder.conf";

/// Program that reads the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    Podman,
    Crio,
}

/// Plans the configuration of the containers tools.
pub(super) fn plan(instance: &Instance, reader: Reader, disk: &Disk) -> anyhow::Result<Plan> {
    let names: Vec<&str> = instance.in_paths().collect();
    let mut notes = Vec::new();
    for name in instance.with_ports() {
        notes.push(format!(
            "{name} is skipped: mirrors name the registry in the path, and a path cannot contain a colon"
        ));
    }
    if names.is_empty() {
        bail!("no upstream can be named in a path, because all names have ports: {}", notes.join("; "));
    }
    let after = match reader {
        Reader::Podman => "No restart is needed: Podman, Buildah and Skopeo read the file at each start.",
        Reader::Crio => "systemctl reload crio",
    };
    let mut edits = vec![FileEdit {
        path: Path::new(FOLDER).join(OURS),
        content: fresh(instance, &names),
        after: after.to_owned(),
        merge: Merge::Ours(readable),
    }];
    if let Some(pem) = &instance.authority {
        let path = format!("/etc/containers/certs.d/{instance}/ca.crt").into();
        edits.push(FileEdit { path, content: pem.clone(), after: after.to_owned(), merge: Merge::Whole });
    }
    notes.extend(others(&names, disk)?);
    Ok(Plan { edits, notes })
}

fn fresh(instance: &Instance, names: &[&str]) -> String {
    let mut text = HEAD.to_owned();
    for name in names {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n[[registry]]\nprefix = \"{name}\"\nlocation = \"{name}\"\n[[registry.mirror]]\nlocation = \
             \"{instance}/{name}\"\n"
        );
        if instance.scheme == Scheme::Http {
            text.push_str("insecure = true\n");
        }
    }
    text
}

fn readable(text: &str) -> Result<(), Conflict> {
    text.parse::<DocumentMut>().map(drop).map_err(|error| Conflict::toml(&error, text))
}

/// Returns notes about other files that configure the same registries. Only the table in the last file is used.
fn others(names: &[&str], disk: &Disk) -> anyhow::Result<Vec<String>> {
    let mut notes = Vec::new();
    let mut files = vec![Path::new(MAIN).to_owned()];
    files.extend(disk.matching(&Path::new(FOLDER).join("*.conf")));
    files.retain(|file| file.file_name().is_none_or(|name| name != OURS));
    for file in files {
        let shown = disk.path(&file);
        let Some(text) = disk.read(&file)? else { continue };
        let Ok(document) = text.parse::<DocumentMut>() else {
            notes.push(format!(
                "{} is not TOML, which prevents the other files from being read",
                shown.display()
            ));
            continue;
        };
        if document.get("registries").is_some() {
            notes.push(format!(
                "{} uses the old format ([registries.…]), which cannot be combined with [[registry]]; convert it",
                shown.display()
            ));
        }
        let tables = document.get("registry").and_then(|item| item.as_array_of_tables());
        for table in tables.into_iter().flat_map(toml_edit::ArrayOfTables::iter) {
            let text = |key: &str| table.get(key).and_then(|item| item.as_str());
            let Some(prefix) = text("prefix").or_else(|| text("location")) else { continue };
            if names.contains(&prefix) {
                let wins = file.parent() == Some(Path::new(FOLDER)) && file.file_name() > Some(OURS.as_ref());
                notes.push(format!(
                    "{} also has a [[registry]] for {prefix}; only the one in {} is used",
                    shown.display(),
                    if wins { "that file" } else { OURS }
                ));
            }
        }
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_reports_conflicting_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::new(folder.path()).expect("a root");
        let etc = folder.path().join("etc/containers");
        std::fs::create_dir_all(etc.join("registries.conf.d")).expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(etc.join(name), text).expect("written");
        assert_eq!(others(&["docker.io"], &disk).expect("readable"), Vec::<String>::new());
        write(
            "registries.conf",
            "[[registry]]\nlocation = \"docker.io\"\n[[registry]]\nprefix = \"quay.io\"\n",
        );
        write(
            "registries.conf.d/zz.conf",
            "[[registry]]\nprefix = \"docker.io\"\nlocation = \"elsewhere\"\n",
        );
        write("registries.conf.d/larder.conf", "[[registry]]\nprefix = \"docker.io\"\n");
        write("registries.conf.d/old.conf", "[registries.search]\nregistries = []\n");
        let said = others(&["docker.io"], &disk).expect("readable");
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].ends_with("only the one in larder.conf is used"), "{said:?}");
        assert!(said[1].contains("old format"), "{said:?}");
        assert!(said[2].ends_with("only the one in that file is used"), "{said:?}");
    }
}
