//! Life cycle of a store: opening, locking, quarantine, compaction, conversion and garbage collection.

pub(in crate::store) mod compact;
pub(in crate::store) mod convert;
pub(in crate::store) mod deliveries;
pub(in crate::store) mod gc;
pub(in crate::store) mod header;
pub(in crate::store) mod location;
pub(in crate::store) mod lock;
pub(in crate::store) mod open;
pub(in crate::store) mod quarantine;
