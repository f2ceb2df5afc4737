//! `hosts.toml`, the file with the mirrors of a registry that containerd and Docker read.

use std::fmt::Write as _;
use std::path::PathBuf;

use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, TableLike, value};

use super::file_edit::Conflict;

/// Entry of the server in a `hosts.toml`.
#[derive(Clone, Debug)]
pub(super) struct MirrorHost {
    pub(super) url: String,
    /// File with the authority of the server's certificate.
    pub(super) ca: Option<PathBuf>,
    /// True if the client knows the capability `referrers`.
    pub(super) has_referrers: bool,
}

impl MirrorHost {
    fn capabilities(&self) -> &'static [&'static str] {
        if self.has_referrers { &["pull", "resolve", "referrers"] } else { &["pull", "resolve"] }
    }

    /// Returns the text of a new file.
    pub(super) fn fresh(&self) -> String {
        let capabilities: Vec<_> = self.capabilities().iter().map(|name| format!("\"{name}\"")).collect();
        let mut text = format!("[host.\"{}\"]\n  capabilities = [{}]\n", self.url, capabilities.join(", "));
        if let Some(ca) = &self.ca {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  ca = \"{}\"", ca.display());
        }
        text
    }

    /// Adds the entry, or what it lacks, to an existing file.
    pub(super) fn merge(&self, text: &str) -> Result<String, Conflict> {
        let mut document: DocumentMut = text.parse().map_err(|error| Conflict::toml(&error, text))?;
        let hosts = table(document.as_item_mut(), "host")?;
        let fresh = hosts.get(&self.url).is_none();
        let host = entries(table(hosts, &self.url)?, &self.url)?;
        match host.get_mut("capabilities") {
            None if fresh => {
                host.insert("capabilities", value(self.capabilities().iter().copied().collect::<Array>()));
            }
            // A host without the key has all capabilities.
            None => {}
            Some(item) => {
                let list = item.as_array_mut();
                let list = list.ok_or_else(|| {
                    Conflict::Taken(format!("`capabilities` of {} is not a list", self.url))
                })?;
                for capability in self.capabilities() {
                    if !list.iter().any(|it| it.as_str() == Some(capability)) {
                        list.push(*capability);
                    }
                }
            }
        }
        if let Some(ca) = self.ca.as_ref().filter(|_| !host.contains_key("ca")) {
            host.insert("ca", value(ca.display().to_string()));
        }
        Ok(document.to_string())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://127.0.0.1:5000";

    fn host(has_referrers: bool) -> MirrorHost {
        MirrorHost { url: URL.to_owned(), ca: None, has_referrers }
    }

    #[test]
    fn merge_keeps_existing_settings() {
        let text = "# ours\nserver = \"https://registry.example.com\"\n\n[host.\"https://other.test\"]\n  \
                    capabilities = [\"pull\"] # not resolve\n";
        let merged = host(false).merge(text).expect("merged");
        assert!(merged.starts_with(text), "{merged}");
        assert!(merged.contains("[host.\"http://127.0.0.1:5000\"]\ncapabilities = [\"pull\", \"resolve\"]"));
        assert_eq!(host(false).merge(&merged).as_deref(), Ok(&*merged));
    }

    #[test]
    fn fresh_file_is_not_changed() {
        for ca in [None, Some("/etc/containerd/certs.d/larder-ca.crt".into())] {
            for has_referrers in [false, true] {
                let host = MirrorHost { ca: ca.clone(), ..host(has_referrers) };
                let text = host.fresh();
                assert_eq!(host.merge(&text).as_deref(), Ok(&*text));
                let read = |text: &str| toml::from_str::<toml::Table>(text).expect("TOML");
                assert_eq!(read(&host.merge("").expect("merged")), read(&text));
            }
        }
    }

    #[test]
    fn merge_adds_missing_capabilities() {
        let part = format!("[host.\"{URL}\"]\ncapabilities = [\"pull\"]\n");
        let merged = host(true).merge(&part).expect("merged");
        let wanted = format!("[host.\"{URL}\"]\ncapabilities = [\"pull\", \"resolve\", \"referrers\"]\n");
        assert_eq!(merged, wanted);
        let all = format!("[host.\"{URL}\"]\n");
        assert_eq!(host(true).merge(&all).as_deref(), Ok(&*all));
        assert!(matches!(host(true).merge("host = 1\n"), Err(Conflict::Taken(_))));
        assert!(matches!(host(true).merge("[host\n"), Err(Conflict::Malformed { line: 1, .. })));
    }

    #[test]
    fn merge_supports_other_notations() {
        for text in [
            "host = { \"https://other.test\" = { capabilities = [\"pull\"] } }\n",
            "host.\"https://other.test\".capabilities = [\"pull\"]\n",
        ] {
            let merged = host(false).merge(text).expect("merged");
            let table: toml::Table = merged.parse().expect("TOML");
            let hosts = table["host"].as_table().expect("a table");
            assert_eq!(hosts[URL]["capabilities"].as_array().map(Vec::len), Some(2), "{merged}");
            assert_eq!(hosts["https://other.test"]["capabilities"][0].as_str(), Some("pull"), "{merged}");
            assert_eq!(host(false).merge(&merged).as_deref(), Ok(&*merged));
        }
    }
}
