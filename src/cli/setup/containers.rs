//! Podman, Buildah, Skopeo and CRI-O, which read the same: a file of larder's own in `registries.conf.d`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::bail;
use toml_edit::DocumentMut;

use super::disk::Disk;
use super::instance::{Instance, Scheme};
use super::piece::{Conflict, HEAD, Merge, Piece, Plan};

const FOLDER: &str = "/etc/containers/registries.conf.d";
const MAIN: &str = "/etc/containers/registries.conf";
const OURS: &str = "larder.conf";

/// Who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    Podman,
    Crio,
}

/// What they have to be told.
pub(super) fn plan(instance: &Instance, reader: Reader, disk: &Disk) -> anyhow::Result<Plan> {
    let names: Vec<&str> = instance.in_paths().collect();
    let mut notes = Vec::new();
    for name in instance.with_ports() {
        notes.push(format!(
            "{name} is left out: what a mirror is asked for is named by a path, and no path has a colon in it"
        ));
    }
    if names.is_empty() {
        bail!(
            "no upstream can be named in a path, because the names of all have ports: {}",
            notes.join("; ")
        );
    }
    let after = match reader {
        Reader::Podman => "Nothing needs a restart: Podman, Buildah and Skopeo read it each time.",
        Reader::Crio => "systemctl reload crio",
    };
    let mut pieces = vec![Piece {
        path: Path::new(FOLDER).join(OURS),
        content: fresh(instance, &names),
        after: after.to_owned(),
        merge: Merge::Ours(readable),
    }];
    if let Some(pem) = &instance.authority {
        let path = format!("/etc/containers/certs.d/{instance}/ca.crt").into();
        pieces.push(Piece { path, content: pem.clone(), after: after.to_owned(), merge: Merge::Whole });
    }
    notes.extend(others(&names, disk)?);
    Ok(Plan { pieces, notes })
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

/// What other files say of the same registries. Of one prefix only one table counts, that of the last file.
fn others(names: &[&str], disk: &Disk) -> anyhow::Result<Vec<String>> {
    let mut notes = Vec::new();
    let mut files = vec![Path::new(MAIN).to_owned()];
    files.extend(disk.matching(&Path::new(FOLDER).join("*.conf")));
    files.retain(|file| file.file_name().is_none_or(|name| name != OURS));
    for file in files {
        let shown = disk.path(&file);
        let Some(text) = disk.read(&file)? else { continue };
        let Ok(document) = text.parse::<DocumentMut>() else {
            notes.push(format!("{} is no TOML, and keeps the others from being read", shown.display()));
            continue;
        };
        if document.get("registries").is_some() {
            notes.push(format!(
                "{} is of the old form ([registries.…]), which is not read beside [[registry]]; bring it to the new one",
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
                    "{} has a [[registry]] for {prefix} too, and only that of {} counts",
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
    fn what_others_say_of_the_same_registry_is_told() {
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
        assert!(said[0].ends_with("only that of larder.conf counts"), "{said:?}");
        assert!(said[1].contains("old form"), "{said:?}");
        assert!(said[2].ends_with("only that of that file counts"), "{said:?}");
    }
}
