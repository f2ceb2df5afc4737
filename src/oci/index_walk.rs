//! Bounded walk over the tree of manifests below an index.
//!
//! The walk is a state machine without I/O. The caller takes the next descriptor, fetches its manifest in any way, and
//! gives the manifest back with [`IndexWalk::visit`]. Depth, count and bytes are bounded, and no manifest is entered
//! twice. A hostile index, also one in a cycle, costs no more than these bounds.

use std::collections::HashSet;
use std::vec::IntoIter;

use super::content::media::ManifestKind;
use super::digest::Digest;
use super::manifest::{Descriptor, Manifest};

/// Maximum depth of manifests below the root.
pub const DEPTH_MAX: usize = 8;
/// Maximum number of descriptors in a walk.
pub const COUNT_MAX: usize = 4096;
/// Maximum bytes of visited manifests in a walk.
pub const BYTES_MAX: u64 = 64 << 20;

/// Limit that a walk has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalkLimit {
    /// An index is nested too deep. The walk continues without its children.
    #[error("indexes are nested more than {DEPTH_MAX} levels deep")]
    Depth,
    /// There are too many manifests. The walk ends.
    #[error("there are more than {COUNT_MAX} manifests")]
    Count,
    /// The manifests are too large. The walk ends.
    #[error("the manifests exceed {BYTES_MAX} bytes")]
    Bytes,
}

/// Descriptor that a walk returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalkItem {
    /// Descriptor of a manifest or of other content of an index. Without a platform of its own it has that of its index.
    pub descriptor: Descriptor,
    /// True if the walk returned the digest before. An index may list one manifest for several platforms.
    pub repeated: bool,
}

/// Step of a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalkStep {
    /// A descriptor. Its manifest may be visited.
    Enter(WalkItem),
    /// The walk has returned everything below a visited manifest.
    Leave(Digest),
}

/// Descriptors of one index that the walk has not returned yet.
#[derive(Debug)]
struct WalkLevel {
    /// Visited manifest that the descriptors are from. None at the start.
    parent: Option<Digest>,
    depth: usize,
    /// Platform of the descriptor of the index, for children that state none.
    platform: Option<String>,
    children: IntoIter<Descriptor>,
}

/// Walk over the tree below an index, depth first, in the order of each index.
#[derive(Debug)]
pub struct IndexWalk {
    /// Open levels, the root level first.
    levels: Vec<WalkLevel>,
    seen: HashSet<Digest>,
    /// Digest and platform of the item that `visit` applies to.
    current: Option<(Digest, Option<String>)>,
    count: usize,
    bytes: u64,
    limit: Option<WalkLimit>,
}

impl IndexWalk {
    /// Creates a walk that returns `root` first.
    pub fn new(root: Descriptor) -> Self {
        Self::start(HashSet::new(), 0, vec![root])
    }

    /// Creates a walk over everything below an index. Does not return the index itself.
    pub fn below(root: Digest, index: &Manifest) -> Self {
        Self::start(HashSet::from([root]), 1, index.children.clone())
    }

    fn start(seen: HashSet<Digest>, depth: usize, children: Vec<Descriptor>) -> Self {
        let level = WalkLevel { parent: None, depth, platform: None, children: children.into_iter() };
        Self { levels: vec![level], seen, current: None, count: 0, bytes: 0, limit: None }
    }

    /// Returns the next step. After a limit on count or bytes, there is none.
    pub fn step(&mut self) -> Option<WalkStep> {
        self.current = None;
        loop {
            let level = self.levels.last_mut()?;
            if let Some(mut descriptor) = level.children.next() {
                if self.count == COUNT_MAX {
                    return self.stop(WalkLimit::Count);
                }
                self.count += 1;
                let repeated = !self.seen.insert(descriptor.digest);
                if descriptor.platform.is_none() {
                    descriptor.platform.clone_from(&level.platform);
                }
                self.current = (!repeated).then(|| (descriptor.digest, descriptor.platform.clone()));
                return Some(WalkStep::Enter(WalkItem { descriptor, repeated }));
            }
            let parent = level.parent;
            self.levels.pop();
            if let Some(parent) = parent {
                return Some(WalkStep::Leave(parent));
            }
        }
    }

    /// Enters the manifest of the item that was returned last, which has `bytes` bytes.
    ///
    /// Does nothing for a repeated item. Do not call this for content that is not a manifest or is not available.
    pub fn visit(&mut self, manifest: &Manifest, bytes: u64) {
        let Some((digest, platform)) = self.current.take() else { return };
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > BYTES_MAX {
            self.stop(WalkLimit::Bytes);
            return;
        }
        let depth = self.levels.last().map_or(0, |level| level.depth) + 1;
        let mut children = Vec::new();
        if manifest.media_type.kind() == Some(ManifestKind::Index) {
            children.clone_from(&manifest.children);
        }
        if depth > DEPTH_MAX && !children.is_empty() {
            self.limit = Some(WalkLimit::Depth);
            children.clear();
        }
        let children = children.into_iter();
        self.levels.push(WalkLevel { parent: Some(digest), depth, platform, children });
    }

    /// Returns the number of known descriptors that the walk has not returned yet.
    pub fn waiting(&self) -> usize {
        self.levels.iter().map(|level| level.children.len()).sum()
    }

    /// Returns the limit that the walk has reached.
    pub fn limit(&self) -> Option<WalkLimit> {
        self.limit
    }

    fn stop(&mut self, limit: WalkLimit) -> Option<WalkStep> {
        self.limit = Some(limit);
        self.levels.clear();
        None
    }
}

impl Iterator for IndexWalk {
    type Item = WalkItem;

    /// Returns the next descriptor.
    fn next(&mut self) -> Option<WalkItem> {
        loop {
            if let WalkStep::Enter(item) = self.step()? {
                return Some(item);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::oci::media::{OCI_INDEX, OCI_MANIFEST};
    use crate::oci::{Algorithm, MediaType};

    fn descriptor(name: &str) -> Descriptor {
        let digest = Digest::of(Algorithm::Sha256, name.as_bytes());
        let (size, media_type, platform, os_version) = (None, None, None, None);
        Descriptor { digest, size, media_type, platform, os_version, foreign: false, attests: None }
    }

    fn manifest(media_type: &str, children: &[&str]) -> Manifest {
        Manifest {
            media_type: MediaType::new(media_type).expect("a media type"),
            children: children.iter().map(|name| descriptor(name)).collect(),
            blobs: Vec::new(),
            subject: None,
            unsupported: Vec::new(),
        }
    }

    /// Walks over a tree of indexes and returns the steps; `!` marks a repeated item, `/` a step out.
    fn walk(mut walk: IndexWalk, tree: &[(&str, &[&str])], bytes: u64) -> (Vec<String>, Option<WalkLimit>) {
        let mut names: HashMap<Digest, &str> = HashMap::new();
        for (name, children) in tree {
            names.extend(std::iter::once(name).chain(*children).map(|it| (descriptor(it).digest, *it)));
        }
        let mut steps = Vec::new();
        while let Some(step) = walk.step() {
            match step {
                WalkStep::Enter(WalkItem { descriptor, repeated }) => {
                    let name = names[&descriptor.digest];
                    steps.push(format!("{name}{}", if repeated { "!" } else { "" }));
                    let index = tree.iter().find(|(index, _)| *index == name);
                    match index {
                        Some((_, children)) => walk.visit(&manifest(OCI_INDEX, children), bytes),
                        None => walk.visit(&manifest(OCI_MANIFEST, &[]), bytes),
                    }
                }
                WalkStep::Leave(digest) => steps.push(format!("/{}", names[&digest])),
            }
        }
        (steps, walk.limit())
    }

    #[test]
    fn walk_is_depth_first_and_leaves_after_the_children() {
        let tree: [(&str, &[&str]); 2] = [("root", &["a", "inner", "b"]), ("inner", &["c"])];
        let (steps, limit) = walk(IndexWalk::new(descriptor("root")), &tree, 1);
        assert_eq!(steps.join(" "), "root a /a inner c /c /inner b /b /root");
        assert_eq!(limit, None);
        let root = manifest(OCI_INDEX, tree[0].1);
        let below = IndexWalk::below(descriptor("root").digest, &root);
        assert_eq!(below.waiting(), 3);
        assert_eq!(walk(below, &tree, 1).0.join(" "), "a /a inner c /c /inner b /b");
    }

    #[test]
    fn walk_enters_no_manifest_twice() {
        let tree: [(&str, &[&str]); 2] = [("root", &["inner", "inner", "a"]), ("inner", &["root", "a"])];
        let (steps, limit) = walk(IndexWalk::new(descriptor("root")), &tree, 1);
        assert_eq!(steps.join(" "), "root inner root! a /a /inner inner! a! /root");
        assert_eq!(limit, None);
    }

    #[test]
    fn walk_does_not_enter_what_is_not_visited() {
        let root = manifest(OCI_INDEX, &["a", "b"]);
        let walk = IndexWalk::below(descriptor("root").digest, &root);
        let found: Vec<Digest> = walk.map(|item| item.descriptor.digest).collect();
        assert_eq!(found, [descriptor("a").digest, descriptor("b").digest]);
    }

    #[test]
    fn children_inherit_the_platform_of_their_index() {
        let with = |name: &str, platform: Option<&str>| Descriptor {
            platform: platform.map(str::to_owned),
            ..descriptor(name)
        };
        let index = |children: Vec<Descriptor>| Manifest { children, ..manifest(OCI_INDEX, &[]) };
        let root = index(vec![with("inner", Some("linux/arm64")), with("last", None)]);
        let inner = index(vec![with("a", None), with("b", Some("linux/amd64"))]);
        let mut walk = IndexWalk::below(descriptor("root").digest, &root);
        let mut platforms = Vec::new();
        while let Some(item) = walk.next() {
            if item.descriptor.digest == descriptor("inner").digest {
                walk.visit(&inner, 1);
            }
            platforms.push(item.descriptor.platform);
        }
        let platforms: Vec<_> = platforms.iter().map(Option::as_deref).collect();
        assert_eq!(platforms, [Some("linux/arm64"), Some("linux/arm64"), Some("linux/amd64"), None]);
    }

    #[test]
    fn walk_is_bounded_in_depth() {
        let names: Vec<String> = (0..20).map(|level| format!("level {level}")).collect();
        let children: Vec<[&str; 1]> = names.iter().skip(1).map(|name| [name.as_str()]).collect();
        let tree: Vec<(&str, &[&str])> =
            names.iter().zip(&children).map(|(name, child)| (name.as_str(), &child[..])).collect();
        let (steps, limit) = walk(IndexWalk::new(descriptor("level 0")), &tree, 1);
        assert_eq!(steps.iter().filter(|step| !step.starts_with('/')).count(), DEPTH_MAX + 1);
        assert_eq!(limit, Some(WalkLimit::Depth));
    }

    #[test]
    fn walk_is_bounded_in_count() {
        let names: Vec<String> = (0..COUNT_MAX + 10).map(|n| n.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut walk = IndexWalk::below(descriptor("root").digest, &manifest(OCI_INDEX, &names));
        assert_eq!(walk.by_ref().count(), COUNT_MAX);
        assert_eq!((walk.limit(), walk.waiting()), (Some(WalkLimit::Count), 0));
    }

    #[test]
    fn walk_is_bounded_in_bytes() {
        let tree: [(&str, &[&str]); 1] = [("root", &["a", "b", "c"])];
        let (steps, limit) = walk(IndexWalk::new(descriptor("root")), &tree, BYTES_MAX / 2);
        assert_eq!(steps.join(" "), "root a /a b");
        assert_eq!(limit, Some(WalkLimit::Bytes));
    }
}
