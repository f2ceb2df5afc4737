//! One source file: its imports, lengths, and first words of its documentation.

use std::collections::BTreeSet;

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// First words that make a doc comment a question.
const QUESTIONS: [&str; 9] = ["What", "Whether", "Who", "Whom", "Whose", "How", "Where", "When", "Leave"];

/// A function and its number of lines of code.
pub(super) struct Function {
    pub(super) name: String,
    pub(super) lines: usize,
}

/// A source file below `src`, without its unit tests.
pub(super) struct Source {
    /// Path below `src`.
    pub(super) path: String,
    pub(super) text: String,
    pub(super) functions: Vec<Function>,
    /// First words of all doc comments.
    pub(super) openings: Vec<String>,
    /// Paths that the file names, from the crate's root: `crate::oci::Digest` is `["oci", "Digest"]`.
    pub(super) imports: BTreeSet<Vec<String>>,
    /// First segments of all paths, and all pairs of segments: `sled`, `sled::Db`, `BlobStoreKind::Files`.
    pub(super) named: BTreeSet<String>,
    /// Names of public methods in `impl Store`, with the type's name.
    pub(super) methods: Vec<(String, String)>,
    test_lines: BTreeSet<usize>,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut source = Self {
            path: path.to_owned(),
            text: text.to_owned(),
            functions: Vec::new(),
            openings: Vec::new(),
            imports: BTreeSet::new(),
            named: BTreeSet::new(),
            methods: Vec::new(),
            test_lines: BTreeSet::new(),
        };
        let inside = source.module();
        let children = file.items.iter().filter_map(|item| match item {
            syn::Item::Mod(module) => Some(module.ident.to_string()),
            _ => None,
        });
        let children = children.collect();
        let mut reader = Reader { source: &mut source, inside, children };
        reader.note_docs(&file.attrs);
        reader.visit_file(&file);
        source
    }

    /// Returns the module that the file is: `cache/fill.rs` is `[cache, fill]`, `cache/mod.rs` is `[cache]`.
    pub(super) fn module(&self) -> Vec<String> {
        let mut parts: Vec<&str> = self.path.trim_end_matches(".rs").split('/').collect();
        parts.pop_if(|last| ["mod", "lib"].contains(last));
        parts.into_iter().map(str::to_owned).collect()
    }

    /// Returns the top-level module, or `lib`.
    pub(super) fn top(&self) -> String {
        self.module().first().cloned().unwrap_or_else(|| "lib".to_owned())
    }

    /// Returns the number of lines that are neither blank, comment nor unit test.
    pub(super) fn lines_of_code(&self) -> usize {
        self.code_between(1, usize::MAX)
    }

    fn code_between(&self, first: usize, last: usize) -> usize {
        let is_code = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
        let lines = self.text.lines().enumerate().map(|(at, line)| (at + 1, line));
        lines
            .filter(|(at, _)| (first..=last).contains(at) && !self.test_lines.contains(at))
            .filter(|(_, line)| is_code(line))
            .count()
    }

    /// Returns the doc comments that begin with a question word.
    pub(super) fn questions(&self) -> impl Iterator<Item = &str> {
        let is_question = |opening: &&str| {
            let first = opening.split(|c: char| !c.is_alphabetic()).next();
            first.is_some_and(|word| QUESTIONS.contains(&word))
        };
        self.openings.iter().map(String::as_str).filter(is_question)
    }
}

/// Visitor that fills a [`Source`].
struct Reader<'s> {
    source: &'s mut Source,
    /// Module of the code that is visited.
    inside: Vec<String>,
    /// Modules that the file declares.
    children: BTreeSet<String>,
}

impl Reader<'_> {
    fn note_docs(&mut self, attributes: &[syn::Attribute]) {
        let mut documented = attributes.iter().filter_map(|attribute| match &attribute.meta {
            syn::Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
                syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
                _ => None,
            },
            _ => None,
        });
        self.source.openings.extend(documented.next().map(|text| text.trim().to_owned()));
    }

    fn note_function(&mut self, name: &syn::Ident, first: Span, last: Span) {
        let lines = self.source.code_between(first.start().line, last.end().line);
        self.source.functions.push(Function { name: name.to_string(), lines });
    }

    fn note_path(&mut self, segments: &[String]) {
        let Some(first) = segments.first() else { return };
        self.source.named.insert(first.clone());
        self.source.named.extend(segments.windows(2).map(|pair| pair.join("::")));
        let root = if self.source.path == "main.rs" { "larder" } else { "crate" };
        let supers = segments.iter().take_while(|segment| *segment == "super").count();
        let absolute = if first == root {
            segments[1..].to_vec()
        } else if first == "self" {
            [&self.inside[..], &segments[1..]].concat()
        } else if supers > 0 {
            let above = self.inside.len().saturating_sub(supers);
            [&self.inside[..above], &segments[supers..]].concat()
        } else if segments.len() > 1 && self.children.contains(first) {
            [&self.inside[..], segments].concat()
        } else {
            return;
        };
        self.source.imports.insert(absolute);
    }

    fn note_use(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.note_use(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => {
                let path = if name.ident == "self" { before.to_vec() } else { with(&name.ident) };
                self.note_path(&path);
            }
            syn::UseTree::Rename(rename) => self.note_path(&with(&rename.ident)),
            syn::UseTree::Group(group) => {
                for item in &group.items {
                    self.note_use(before, item);
                }
            }
            syn::UseTree::Glob(_) => self.note_path(before),
        }
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        _ => false,
    })
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            syn::Item::Struct(item) => &item.attrs,
            syn::Item::Enum(item) => &item.attrs,
            syn::Item::Trait(item) => &item.attrs,
            syn::Item::Const(item) => &item.attrs,
            syn::Item::Static(item) => &item.attrs,
            syn::Item::Type(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if is_test(attributes) {
            let span = item.span();
            self.source.test_lines.extend(span.start().line..=span.end().line);
            return;
        }
        self.note_docs(attributes);
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        self.inside.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.inside.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.note_use(&[], &item.tree);
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.note_function(&function.sig.ident, function.sig.span(), function.block.span());
        visit::visit_item_fn(self, function);
    }

    fn visit_item_impl(&mut self, block: &'ast syn::ItemImpl) {
        if let (syn::Type::Path(of), true) = (&*block.self_ty, block.trait_.is_none()) {
            let name = of.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
            for item in &block.items {
                if let syn::ImplItem::Fn(method) = item
                    && matches!(method.vis, syn::Visibility::Public(_))
                {
                    self.source.methods.push((name.clone(), method.sig.ident.to_string()));
                }
            }
        }
        visit::visit_item_impl(self, block);
    }

    fn visit_impl_item_fn(&mut self, method: &'ast syn::ImplItemFn) {
        if is_test(&method.attrs) {
            let span = method.span();
            self.source.test_lines.extend(span.start().line..=span.end().line);
            return;
        }
        self.note_docs(&method.attrs);
        self.note_function(&method.sig.ident, method.sig.span(), method.block.span());
        visit::visit_impl_item_fn(self, method);
    }

    fn visit_trait_item_fn(&mut self, method: &'ast syn::TraitItemFn) {
        self.note_docs(&method.attrs);
        self.note_function(&method.sig.ident, method.sig.span(), method.span());
        visit::visit_trait_item_fn(self, method);
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        self.note_docs(&field.attrs);
        visit::visit_field(self, field);
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        self.note_docs(&variant.attrs);
        visit::visit_variant(self, variant);
    }

    /// `pub(super)` and `pub(in crate::cache)` name a module and import nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.note_path(&segments);
        visit::visit_path(self, path);
    }

    /// Visits the arguments of macros that are a list of expressions: `format!`, `tracing::warn!`.
    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        visit::visit_macro(self, call);
        let list =
            call.parse_body_with(syn::punctuated::Punctuated::<syn::Expr, syn::Token![,]>::parse_terminated);
        // The expressions end with this function, so a separate visitor with their lifetime reads them.
        if let Ok(list) = list {
            let mut inner =
                Reader { source: self.source, inside: self.inside.clone(), children: self.children.clone() };
            for expression in &list {
                inner.visit_expr(expression);
            }
        }
    }
}
