//! The house rules that a compiler does not keep: who may import whom, how long a file is, how it opens, its name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Every top-level module with all that it may import from this crate.
const ALLOWED: [(&str, &[&str]); 13] = [
    ("oci", &[]),
    ("clock", &[]),
    ("config", &["oci"]),
    ("telemetry", &["oci", "config"]),
    ("store", &["oci", "config", "telemetry"]),
    ("upstream", &["oci", "config", "telemetry", "clock"]),
    ("server", &["oci", "config", "telemetry"]),
    ("cache", &["store", "upstream", "oci", "config", "telemetry", "clock"]),
    ("ops", &["cache", "store", "oci", "config", "telemetry", "clock"]),
    ("api", &["ops", "cache", "oci", "telemetry"]),
    ("app", &["api", "ops", "cache", "store", "upstream", "server", "oci", "config", "telemetry", "clock"]),
    ("cli", &["app", "ops", "config", "oci"]),
    ("main", &["cli"]),
];
/// Names that say nothing about what is inside.
const FORBIDDEN: [&str; 10] =
    ["util", "utils", "common", "helper", "helpers", "manager", "handler", "handlers", "misc", "shared"];
const LONGEST: usize = 400;

/// A source file: its path below `src`, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    /// The modules it stands for: `cache/fill.rs` is `[cache, fill]`, `cache/mod.rs` is `[cache]`.
    fn module(&self) -> Vec<&str> {
        let mut parts: Vec<&str> = self.path.trim_end_matches(".rs").split('/').collect();
        parts.pop_if(|last| *last == "mod");
        parts
    }

    fn top(&self) -> &str {
        self.module().first().copied().unwrap_or_default()
    }

    /// Everything before the unit tests.
    fn without_tests(&self) -> &str {
        let marked = self.text.match_indices("#[cfg(test)]").find(|(at, mark)| {
            let rest = self.text[at + mark.len()..].trim_start();
            rest.starts_with("mod ") || rest.starts_with("#[") && rest.contains("mod tests")
        });
        marked.map_or(&self.text, |(at, _)| &self.text[..at])
    }

    fn lines_of_code(&self) -> usize {
        let is_code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
        self.without_tests().lines().filter(is_code).count()
    }

    /// The top-level modules that it names with a path from the crate's root. Unit tests may build what they
    /// need from anywhere.
    fn imports(&self) -> BTreeSet<String> {
        let code = code_only(self.without_tests());
        let root = if self.top() == "main" { "larder" } else { "crate" };
        let mut found = paths_after(&code, root);
        // A chain of `super` that leaves the top-level module is the same thing in disguise.
        let chain = vec!["super"; self.module().len()].join("::");
        found.extend(paths_after(&code, &chain));
        found
    }
}

/// The text without comments and without what stands between quotation marks.
fn code_only(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut quoted = false;
        let mut before = ' ';
        for (at, c) in line.char_indices() {
            if !quoted && line[at..].starts_with("//") {
                break;
            }
            if c == '"' && before != '\\' && before != '\'' {
                quoted = !quoted;
            } else if !quoted {
                out.push(c);
            }
            before = c;
        }
        out.push('\n');
    }
    out
}

/// What follows `root::`, be it one name or a group in braces.
fn paths_after(code: &str, root: &str) -> BTreeSet<String> {
    let mark = format!("{root}::");
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(&mark) {
        if code[..at].ends_with(|c| word(c) || c == ':') {
            continue;
        }
        let rest = &code[at + mark.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut item) = (0, String::new());
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => item.push('\n'),
                    _ if depth == 0 => item.push(c),
                    _ => {}
                }
            }
            found.extend(
                item.lines()
                    .map(|one| one.trim().chars().take_while(|c| word(*c)).collect::<String>())
                    .filter(|one| !one.is_empty()),
            );
        } else {
            found.insert(rest.chars().take_while(|c| word(*c)).collect());
        }
    }
    found
}

/// All breaches of the rules, one sentence each.
fn breaches(sources: &[Source]) -> Vec<String> {
    let mut out = Vec::new();
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources {
        let path = &source.path;
        if !source.text.starts_with("//! ") {
            out.push(format!("{path} does not open with a `//!` sentence"));
        }
        let lines = source.lines_of_code();
        if lines > LONGEST {
            out.push(format!("{path} has {lines} lines of code, more than {LONGEST}"));
        }
        for part in source.module() {
            if FORBIDDEN.contains(&part) {
                out.push(format!("{path} is called `{part}`, which says nothing"));
            }
        }
        let top = source.top();
        if top == "lib" {
            continue;
        }
        if !["main", "cli", "app"].contains(&top)
            && !paths_after(&code_only(&source.text), "anyhow").is_empty()
        {
            out.push(format!("{path} uses anyhow; below app there are typed errors"));
        }
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == top) else {
            out.push(format!("{path} is in no layer: `{top}` is not in the table"));
            continue;
        };
        for import in source.imports() {
            // Names that are no module are what lib.rs re-exports or macros at the root.
            if import == top || !ALLOWED.iter().any(|(name, _)| *name == import) {
                if import != top {
                    out.push(format!("{path} imports `{import}` from the crate's root, which is no layer"));
                }
                continue;
            }
            if !allowed.contains(&import.as_str()) {
                out.push(format!("{path} imports `{import}`; `{top}` may import only {allowed:?}"));
            }
            uses.entry(top.to_owned()).or_default().insert(import);
        }
    }
    out.extend(circle(&uses).map(|modules| format!("a circle: {}", modules.join(" → "))));
    out
}

/// Some circle in the graph.
fn circle(uses: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn walk(
        at: &str,
        uses: &BTreeMap<String, BTreeSet<String>>,
        path: &mut Vec<String>,
    ) -> Option<Vec<String>> {
        if let Some(start) = path.iter().position(|module| module == at) {
            let mut found = path[start..].to_vec();
            found.push(at.to_owned());
            return Some(found);
        }
        path.push(at.to_owned());
        let found = uses.get(at).into_iter().flatten().find_map(|next| walk(next, uses, path));
        path.pop();
        found
    }
    uses.keys().find_map(|module| walk(module, uses, &mut Vec::new()))
}

fn read(folder: &Path, below: &str, into: &mut Vec<Source>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = format!("{below}{name}");
        if entry.file_type().unwrap().is_dir() {
            read(&entry.path(), &format!("{path}/"), into);
        } else if entry.path().extension().is_some_and(|extension| extension == "rs") {
            into.push(Source::new(&path, &std::fs::read_to_string(entry.path()).unwrap()));
        }
    }
}

#[test]
fn the_house_rules_are_kept() {
    let mut sources = Vec::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut sources);
    assert!(sources.len() > 10, "only {} files found: is this the right folder?", sources.len());
    let found = breaches(&sources);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[track_caller]
fn expect(sources: &[Source], wanted: &[&str]) {
    let found = breaches(sources);
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    for (found, wanted) in found.iter().zip(wanted) {
        assert!(found.contains(wanted), "{found} does not speak of {wanted}");
    }
}

#[test]
fn a_forbidden_import_is_seen_in_every_spelling() {
    for line in [
        "use crate::cache::Cache;",
        "use crate::{cache::Cache, oci::{Digest, Name}};",
        "fn f() { crate::cache::go(); }",
        "use crate::{\n    oci::Digest,\n    cache,\n};",
        "use super::super::cache;",
        "let s = \"a \\\" b\"; crate::cache::go();",
    ] {
        let source = Source::new("store/draft.rs", &format!("//! A draft.\n{line}\n"));
        expect(&[source], &["imports `cache`"]);
    }
    let allowed = "//! A draft.\n// crate::cache\n/// See [`crate::cache`].\nuse crate::oci::cache;\n\
        const S: &str = \"crate::cache\"; // crate::api\nuse super::cache; use mycrate::cache;\nuse crate::store::x;\n\
        #[cfg(test)]\nmod tests {\n    use crate::cache::Cache;\n}\n";
    expect(&[Source::new("store/draft.rs", allowed)], &[]);
    expect(&[Source::new("main.rs", "//! M.\nuse larder::app;\n")], &["imports `app`"]);
    expect(&[Source::new("main.rs", "//! M.\nuse larder::cli;\n")], &[]);
    expect(&[Source::new("oci/a.rs", "//! A.\nuse crate::prelude;\n")], &["which is no layer"]);
}

#[test]
fn circles_are_seen() {
    let a = Source::new("store/mod.rs", "//! A.\nuse crate::upstream::x;\n");
    let b = Source::new("upstream/mod.rs", "//! B.\nuse crate::store::x;\n");
    expect(&[a, b], &["imports `upstream`", "imports `store`", "store → upstream → store"]);
}

#[test]
fn names_openings_errors_and_length_are_seen() {
    expect(&[Source::new("store/util.rs", "//! A.\n")], &["which says nothing"]);
    expect(&[Source::new("helper/mod.rs", "//! A.\n")], &["which says nothing", "is in no layer"]);
    expect(&[Source::new("oci/name.rs", "use std::fmt;\n")], &["does not open"]);
    expect(&[Source::new("store/a.rs", "//! A.\nuse anyhow::Result;\n")], &["uses anyhow"]);
    expect(&[Source::new("cli/a.rs", "//! A.\nuse anyhow::Result;\n")], &[]);
    let long = |code: usize, tests: usize| {
        let text = format!(
            "//! A.\n\n{}// why\n\n#[cfg(test)]\nmod tests {{\n{}}}\n",
            "f();\n".repeat(code),
            "g();\n".repeat(tests)
        );
        Source::new("oci/a.rs", &text)
    };
    expect(&[long(400, 500)], &[]);
    expect(&[long(401, 0)], &["401 lines of code"]);
}
