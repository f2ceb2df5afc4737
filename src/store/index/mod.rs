//! Facts in sled: what is known about tags, links, manifests, blobs and referrers.

pub(in crate::store) mod absence;
mod blob;
mod catalog;
pub(in crate::store) mod change;
pub(in crate::store) mod database;
pub(in crate::store) mod fact;
pub(in crate::store) mod inventory;
pub(in crate::store) mod key;
mod manifest;
pub(in crate::store) mod page_tree;
pub(in crate::store) mod pointer;
mod referrers;
mod transaction;
pub(in crate::store) mod trees;
