//! Rules of the code base that the compiler does not check: imports, lengths, names, and documentation.
//!
//! `cargo test --test it layers:: -- --nocapture` prints the counts.

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use source::Source;

/// Top-level modules with the top-level modules that each may import.
const ALLOWED: [(&str, &[&str]); 17] = [
    ("oci", &[]),
    ("clock", &[]),
    ("config", &["oci"]),
    ("telemetry", &["oci", "config", "clock"]),
    ("tls", &["config", "telemetry"]),
    ("layout", &["oci"]),
    ("store", &["oci", "config", "telemetry", "clock"]),
    ("source", &["layout", "oci", "telemetry", "clock"]),
    ("upstream", &["source", "oci", "config", "telemetry", "tls", "clock"]),
    ("server", &["config", "tls"]),
    ("cache", &["store", "upstream", "source", "oci", "config", "telemetry", "clock"]),
    ("ops", &["cache", "store", "layout", "oci", "config", "telemetry", "clock"]),
    ("diagnose", &["ops", "upstream", "source", "store", "oci", "config", "telemetry", "tls", "clock"]),
    ("api", &["ops", "cache", "layout", "oci", "telemetry", "clock"]),
    (
        "app",
        &["api", "ops", "cache", "store", "upstream", "server", "oci", "config", "telemetry", "tls", "clock"],
    ),
    ("cli", &["app", "diagnose", "ops", "layout", "config", "tls", "oci", "clock"]),
    ("main", &["cli"]),
];
/// Names without meaning.
const FORBIDDEN: [&str; 11] = [
    "util", "utils", "common", "helper", "helpers", "manager", "handler", "handlers", "misc", "shared",
    "things",
];
/// Maximum number of lines of code in a file.
const FILE_MAX: usize = 400;
/// Maximum number of lines of code in a function.
const FUNCTION_MAX: usize = 60;
/// Maximum share of doc comments that begin with a question word, in percent.
const QUESTIONS_MAX: usize = 2;
/// Maximum number of public methods of `Store`.
const STORE_METHODS_MAX: usize = 25;
/// Modules that may name a crate or a type, by the named path.
const RESERVED: [(&str, &[&str]); 4] = [
    ("anyhow", &["main", "cli", "app"]),
    ("sled", &["store/index", "store/blobs/pages"]),
    ("BlobStoreKind::Sled", &["store", "config"]),
    ("BlobStoreKind::Files", &["store", "config"]),
];

/// All counts, and one sentence for each violation.
#[derive(Default)]
struct Findings {
    circles: Vec<String>,
    imports: Vec<String>,
    files: Vec<String>,
    functions: Vec<String>,
    questions: Vec<String>,
    names: Vec<String>,
    doc_comments: usize,
    store_methods: usize,
}

impl Findings {
    fn of(sources: &[Source]) -> Self {
        let mut found = Self::default();
        for source in sources {
            found.check(source);
        }
        found.circles = circles(sources);
        found
    }

    fn check(&mut self, source: &Source) {
        let path = &source.path;
        if !source.text.starts_with("//! ") {
            self.names.push(format!("{path} does not open with a `//!` sentence"));
        }
        for part in source.module() {
            if FORBIDDEN.contains(&part.as_str()) {
                self.names.push(format!("{path} is called `{part}`, which says nothing"));
            }
        }
        let lines = source.lines_of_code();
        if lines > FILE_MAX {
            self.files.push(format!("{path} has {lines} lines of code, more than {FILE_MAX}"));
        }
        for function in source.functions.iter().filter(|function| function.lines > FUNCTION_MAX) {
            let (name, lines) = (&function.name, function.lines);
            self.functions
                .push(format!("{path}: `{name}` has {lines} lines of code, more than {FUNCTION_MAX}"));
        }
        self.doc_comments += source.openings.len();
        self.questions.extend(source.questions().map(|opening| format!("{path}: {opening}")));
        if source.top() == "store" {
            self.store_methods += source.methods.iter().filter(|(of, _)| of == "Store").count();
        }
        self.check_imports(source);
    }

    fn check_imports(&mut self, source: &Source) {
        let (path, top) = (&source.path, source.top());
        if top == "lib" {
            return;
        }
        for (name, places) in RESERVED {
            let within =
                |place: &str| path.starts_with(&format!("{place}/")) || *path == format!("{place}.rs");
            if source.named.contains(name) && !places.iter().copied().any(within) {
                self.imports.push(format!("{path} names `{name}`, which is for {places:?}"));
            }
        }
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == top) else {
            self.imports.push(format!("{path} is in no layer: `{top}` is not in the table"));
            return;
        };
        let imported: BTreeSet<&String> = source.imports.iter().filter_map(|import| import.first()).collect();
        for import in imported.into_iter().filter(|import| **import != top) {
            if !ALLOWED.iter().any(|(name, _)| name == import) {
                self.imports
                    .push(format!("{path} imports `{import}` from the crate's root, which is no layer"));
            } else if !allowed.contains(&import.as_str()) {
                self.imports.push(format!("{path} imports `{import}`; `{top}` may import only {allowed:?}"));
            }
        }
    }

    /// Returns one sentence for each violation.
    fn breaches(&self) -> Vec<String> {
        let all = [&self.circles, &self.imports, &self.files, &self.functions, &self.names];
        let mut out: Vec<String> = all.into_iter().flatten().cloned().collect();
        if self.questions.len() * 100 > self.doc_comments * QUESTIONS_MAX {
            out.push(format!("{} of {} doc comments:", self.questions.len(), self.doc_comments));
            out.extend(self.questions.iter().cloned());
        }
        if self.store_methods > STORE_METHODS_MAX {
            out.push(format!("`Store` has {} methods, more than {STORE_METHODS_MAX}", self.store_methods));
        }
        out
    }

    fn report(&self) -> String {
        format!(
            "circles {}\nforbidden imports {}\nfiles over {FILE_MAX} lines of code {}\n\
             functions over {FUNCTION_MAX} lines of code {}\nmeaningless names and openings {}\n\
             doc comments {}, of which begin with a question word {} ({:.1} %)\nmethods of Store {}",
            self.circles.len(),
            self.imports.len(),
            self.files.len(),
            self.functions.len(),
            self.names.len(),
            self.doc_comments,
            self.questions.len(),
            100.0 * self.questions.len() as f64 / self.doc_comments.max(1) as f64,
            self.store_methods,
        )
    }
}

/// Returns circles of files: a file that imports itself through other files.
fn circles(sources: &[Source]) -> Vec<String> {
    let files: BTreeMap<Vec<String>, &str> =
        sources.iter().map(|source| (source.module(), source.path.as_str())).collect();
    let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for source in sources.iter().filter(|source| source.top() != "lib") {
        for import in &source.imports {
            // The longest part of the path that is a file. The rest names an item in it.
            let target = (1..=import.len()).rev().find_map(|length| files.get(&import[..length]));
            if let Some(target) = target.filter(|target| **target != source.path) {
                uses.entry(&source.path).or_default().insert(target);
            }
        }
    }
    let mut found = Vec::new();
    let mut reported: BTreeSet<&str> = BTreeSet::new();
    for start in uses.keys() {
        if reported.contains(start) {
            continue;
        }
        if let Some(circle) = shortest_circle(start, &uses) {
            reported.extend(&circle);
            found.push(format!("circle: {} → {start}", circle.join(" → ")));
        }
    }
    found
}

/// Returns the shortest path from `start` back to itself.
fn shortest_circle<'s>(start: &'s str, uses: &BTreeMap<&'s str, BTreeSet<&'s str>>) -> Option<Vec<&'s str>> {
    let mut ways = std::collections::VecDeque::from([vec![start]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        for next in way.last().and_then(|last| uses.get(last)).into_iter().flatten() {
            if *next == start {
                return Some(way);
            }
            if seen.insert(*next) {
                ways.push_back([&way[..], &[*next]].concat());
            }
        }
    }
    None
}

fn read(folder: &Path, below: &str, into: &mut Vec<Source>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = format!("{below}{name}");
        if entry.file_type().unwrap().is_dir() {
            read(&entry.path(), &format!("{path}/"), into);
        } else if entry.path().extension().is_some_and(|extension| extension == "rs")
            && !path.ends_with("tests.rs")
            && !path.ends_with("fuzz.rs")
            && !path.contains("/tests/")
        {
            into.push(Source::new(&path, &std::fs::read_to_string(entry.path()).unwrap()));
        }
    }
}

#[test]
fn layers_and_lengths_of_the_code_base() {
    let mut sources = Vec::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut sources);
    assert!(sources.len() > 10, "only {} files found: is this the right folder?", sources.len());
    let found = Findings::of(&sources);
    println!("{}", found.report());
    let breaches = found.breaches();
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[track_caller]
fn expect(sources: &[Source], wanted: &[&str]) {
    let found = Findings::of(sources).breaches();
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    for (found, wanted) in found.iter().zip(wanted) {
        assert!(found.contains(wanted), "{found} does not name {wanted}");
    }
}

#[test]
fn imports_are_found_in_every_spelling() {
    for line in [
        "use crate::cache::Cache;",
        "use crate::{cache::Cache, oci::{Digest, Name}};",
        "fn f() { crate::cache::go(); }",
        "use crate::{\n    oci::Digest,\n    cache,\n};",
        "use super::super::cache;",
        "fn f() { let s = \"a \\\" b\"; crate::cache::go(); }",
        "fn f() { tracing::warn!(error = 1); assert!(crate::cache::is_ready()); }",
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
fn circles_between_and_inside_modules_are_found() {
    let a = Source::new("store/mod.rs", "//! A.\nuse crate::upstream::x;\n");
    let b = Source::new("upstream/mod.rs", "//! B.\nuse crate::store::x;\n");
    expect(
        &[a, b],
        &["store/mod.rs → upstream/mod.rs → store/mod.rs", "imports `upstream`", "imports `store`"],
    );
    // A facade imports its children. A child that imports the facade closes a circle.
    let facade =
        Source::new("store/mod.rs", "//! A.\nmod draft;\npub use draft::Draft;\npub struct Store;\n");
    let child = Source::new("store/draft.rs", "//! B.\nuse super::Store;\npub struct Draft;\n");
    expect(&[facade, child], &["store/draft.rs → store/mod.rs → store/draft.rs"]);
    // A base is imported by its children and imports none of them.
    let base = Source::new("store/mod.rs", "//! A.\nmod draft;\npub struct Store;\n");
    let child =
        Source::new("store/draft.rs", "//! B.\nuse super::Store;\nimpl Store { pub(super) fn f() {} }\n");
    expect(&[base, child], &[]);
}

#[test]
fn names_openings_and_lengths_are_found() {
    expect(&[Source::new("store/util.rs", "//! A.\n")], &["which says nothing"]);
    expect(&[Source::new("helper/mod.rs", "//! A.\n")], &["is in no layer", "which says nothing"]);
    expect(&[Source::new("oci/name.rs", "use std::fmt;\n")], &["does not open"]);
    let long = |code: usize, tests: usize| {
        let text = format!(
            "//! A.\n\n{}// why\n\n#[cfg(test)]\nmod tests {{\n{}}}\n",
            "f!();\n".repeat(code),
            "g!();\n".repeat(tests)
        );
        Source::new("oci/a.rs", &text)
    };
    expect(&[long(400, 500)], &[]);
    expect(&[long(401, 0)], &["401 lines of code"]);
    let function = |code: usize| {
        let text =
            format!("//! A.\nimpl A {{\n/// Does.\nfn f() {{\n// why\n\n{}}}\n}}\n", "f();\n".repeat(code));
        Source::new("oci/a.rs", &text)
    };
    expect(&[function(58)], &[]);
    expect(&[function(59)], &["`f` has 61 lines of code"]);
}

#[test]
fn reserved_crates_and_types_are_found() {
    expect(&[Source::new("store/a.rs", "//! A.\nuse anyhow::Result;\n")], &["names `anyhow`"]);
    expect(&[Source::new("cli/a.rs", "//! A.\nuse anyhow::Result;\n")], &[]);
    expect(&[Source::new("store/open.rs", "//! A.\nfn f(db: sled::Db) {}\n")], &["names `sled`"]);
    expect(&[Source::new("store/blobs/pages.rs", "//! A.\nfn f(db: sled::Db) {}\n")], &[]);
    let kind =
        "//! A.\nfn f(kind: K) -> bool { matches!(kind, crate::config::schema::BlobStoreKind::Files) }\n";
    expect(&[Source::new("cache/a.rs", kind)], &["names `BlobStoreKind::Files`"]);
}

#[test]
fn questions_in_doc_comments_and_store_methods_are_counted() {
    let asking = "//! A.\n/// Whether it is.\nfn f() {}\n/// True if it is.\nfn g() {}\n";
    expect(&[Source::new("oci/a.rs", asking)], &["1 of 3 doc comments", "Whether it is"]);
    let methods = |count: usize| {
        let text = "pub fn m(&self) {}\n".repeat(count);
        Source::new("store/mod.rs", &format!("//! A.\nimpl Store {{\n{text}fn own(&self) {{}}\n}}\n"))
    };
    expect(&[methods(25)], &[]);
    expect(&[methods(26)], &["`Store` has 26 methods"]);
}
