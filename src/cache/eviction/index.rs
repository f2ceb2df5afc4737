//! Index of the cached content: sizes, accesses, pins, dependencies, and the eviction order. Only bookkeeping in memory:
//! the caller deletes the victims.
//!
//! Content with a cached dependent is never a victim. An image is evicted from its manifest downwards, and a layer that
//! another image uses stays. So a manifest in the cache does not lose a part to eviction: some clients cannot
//! pull from elsewhere after they have received a manifest.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::oci::Digest;

use super::content::{ContentKind, IndexStats, Reachability, Victim};
use super::policy::{self, EvictionPolicy};
use super::usage::{ContentPin, Usage};

/// Limit of a walk along dependencies, deeper than any index that prefetch follows.
const DEPTH_MAX: u32 = 8;

#[derive(Debug)]
struct IndexEntry {
    kind: ContentKind,
    /// Bytes on disk.
    size: u64,
    usage: Arc<Usage>,
    /// Config and layers of a manifest, children of an index.
    dependencies: Box<[SlotId]>,
    /// Priority of the entry in the queue, if it is queued. An access since then makes the true priority higher.
    queued: Option<Timestamp>,
    /// Priority of the evicted entry that was the last dependent. This entry is evicted next, unless a client accessed it
    /// separately.
    follows: Option<Timestamp>,
}

/// Place of a digest that is cached, or that cached content depends on.
#[derive(Debug)]
struct Slot {
    digest: Digest,
    entry: Option<IndexEntry>,
    /// Number of cached dependents.
    dependents: u32,
    /// Exclusive or of the dependents' ids: the id of the dependent if there is only one.
    dependents_xor: SlotId,
}

/// Number of a slot, much smaller than a digest.
type SlotId = u32;

/// Index of the cached content.
#[derive(Debug, Default)]
pub(super) struct EvictionIndex {
    ids: HashMap<Digest, SlotId>,
    slots: Vec<Option<Slot>>,
    free_slots: Vec<SlotId>,
    /// Entries without a dependent, lowest priority first. An accessed entry gets its new priority when it is popped.
    queue: BTreeSet<(Timestamp, SlotId)>,
    policy: EvictionPolicy,
}

impl EvictionIndex {
    /// Returns the usage of an entry.
    pub(super) fn usage(&self, digest: &Digest) -> Option<Arc<Usage>> {
        let entry = self.entry(*self.ids.get(digest)?)?;
        Some(Arc::clone(&entry.usage))
    }

    /// Pins an entry for a client, which counts as an access. `None` if there is no such entry.
    pub(super) fn pin_for_client(&self, digest: &Digest, now: Timestamp) -> Option<ContentPin> {
        let pin = self.pin(digest)?;
        pin.touch(now);
        Some(pin)
    }

    /// Pins an entry without counting an access. `None` if there is no such entry.
    pub(super) fn pin(&self, digest: &Digest) -> Option<ContentPin> {
        Some(ContentPin::new(self.usage(digest)?))
    }

    /// Adds an entry with its dependencies. Of an existing entry only the size and the last access are updated.
    pub(super) fn insert(
        &mut self,
        kind: ContentKind,
        digest: &Digest,
        size: u64,
        last_access: Timestamp,
        dependencies: impl IntoIterator<Item = Digest>,
    ) -> Arc<Usage> {
        let id = self.slot_id(digest);
        if let Some(entry) = self.entry_mut(id) {
            entry.size = size;
            entry.usage.advance(last_access);
            return Arc::clone(&entry.usage);
        }
        let mut dependencies: Vec<SlotId> =
            dependencies.into_iter().map(|digest| self.slot_id(&digest)).collect();
        dependencies.sort_unstable();
        dependencies.dedup();
        for dependency in &dependencies {
            self.unqueue(*dependency);
            if let Some(slot) = self.slot_mut(*dependency) {
                slot.dependents += 1;
                slot.dependents_xor ^= id;
                if let Some(entry) = &mut slot.entry {
                    entry.follows = None;
                }
            }
        }
        let usage = Arc::new(Usage::new(last_access));
        let entry = IndexEntry {
            kind,
            size,
            usage: Arc::clone(&usage),
            dependencies: dependencies.into(),
            queued: None,
            follows: None,
        };
        if let Some(slot) = self.slot_mut(id) {
            slot.entry = Some(entry);
        }
        self.queue(id);
        self.requeue_sole_dependents(id);
        usage
    }

    /// Removes an entry whose content is no longer in the store.
    pub(super) fn remove(&mut self, digest: &Digest) {
        if let Some(id) = self.ids.get(digest) {
            self.take_entry(*id, None);
        }
    }

    /// Takes victims out of the index in eviction order, until they free `bytes` or no more are evictable. Entries that are
    /// pinned, or for which `is_busy` returns true, stay.
    pub(super) fn take_victims(
        &mut self,
        bytes: u64,
        now: Timestamp,
        mut is_busy: impl FnMut(&Victim) -> bool,
    ) -> Vec<Victim> {
        self.adapt_policy(now);
        let (mut victims, mut freed, mut kept) = (Vec::new(), 0_u64, Vec::new());
        while freed < bytes {
            let Some((priority, id)) = self.queue.pop_first() else { break };
            let Some(entry) = self.entry_mut(id) else { continue };
            entry.queued = None;
            if entry.usage.is_pinned() {
                kept.push(id);
                continue;
            }
            if self.priority(id) > priority {
                self.queue(id);
                continue;
            }
            let Some(victim) = self.victim(id) else { continue };
            if is_busy(&victim) {
                kept.push(id);
                continue;
            }
            self.take_entry(id, Some(priority));
            freed = freed.saturating_add(victim.size);
            victims.push(victim);
        }
        for id in kept {
            self.queue(id);
        }
        victims
    }

    /// Takes one entry out of the index, regardless of the order. `None` if it is pinned or has a dependent.
    pub(super) fn take(&mut self, digest: &Digest) -> Option<Victim> {
        let id = *self.ids.get(digest)?;
        if self.dependents(id) > 0 || self.entry(id)?.usage.is_pinned() {
            return None;
        }
        let victim = self.victim(id);
        self.take_entry(id, None);
        victim
    }

    /// Returns the dependencies of an entry.
    pub(super) fn dependencies(&self, digest: &Digest) -> Vec<Digest> {
        let entry = self.ids.get(digest).and_then(|id| self.entry(*id));
        let digest_of = |id: &SlotId| Some(self.slots.get(*id as usize)?.as_ref()?.digest);
        entry.into_iter().flat_map(|entry| &entry.dependencies).filter_map(digest_of).collect()
    }

    /// Returns true if a cached manifest needs the digest.
    pub(super) fn is_needed(&self, digest: &Digest) -> bool {
        self.ids.get(digest).is_some_and(|id| self.dependents(*id) > 0)
    }

    /// Divides all entries by whether they can be reached from `roots`.
    pub(super) fn reachability(&self, roots: &HashSet<Digest>) -> Reachability {
        let mut reached = vec![false; self.slots.len()];
        let mut pending: Vec<SlotId> = roots.iter().filter_map(|root| self.ids.get(root)).copied().collect();
        let mut reachability = Reachability::default();
        while let Some(id) = pending.pop() {
            if reached.get_mut(id as usize).is_none_or(|reached| std::mem::replace(reached, true)) {
                continue;
            }
            if let Some(entry) = self.entry(id) {
                pending.extend(&entry.dependencies);
            }
        }
        for (slot, reached) in self.slots.iter().zip(reached) {
            if let Some(entry) = slot.as_ref().and_then(|slot| slot.entry.as_ref()) {
                let totals =
                    if reached { &mut reachability.reachable } else { &mut reachability.unreachable };
                totals.add(entry.kind, entry.size);
            }
        }
        reachability
    }

    /// Returns the digests of all entries.
    pub(super) fn digests(&self) -> impl Iterator<Item = Digest> {
        self.entries().map(|(slot, _)| slot.digest)
    }

    /// Computes the summary by a scan of all entries.
    pub(super) fn stats(&self) -> IndexStats {
        let unneeded =
            self.entries().filter(|(slot, entry)| slot.dependents == 0 && entry.kind == ContentKind::Blob);
        IndexStats {
            oldest_access: self.oldest_access(),
            unneeded_bytes: unneeded.map(|(_, entry)| entry.size).fold(0, u64::saturating_add),
        }
    }

    /// Returns the last access of every entry that was accessed since the previous call.
    pub(super) fn take_access_times(&self) -> Vec<(Digest, Timestamp)> {
        self.entries().filter_map(|(slot, entry)| Some((slot.digest, entry.usage.take_unsaved()?))).collect()
    }

    fn oldest_access(&self) -> Option<Timestamp> {
        self.entries().map(|(_, entry)| entry.usage.last_access()).min()
    }

    fn entries(&self) -> impl Iterator<Item = (&Slot, &IndexEntry)> {
        self.slots.iter().flatten().filter_map(|slot| Some((slot, slot.entry.as_ref()?)))
    }

    /// Adapts the policy to the age of the oldest entry, and sorts the queue again if the policy has changed.
    fn adapt_policy(&mut self, now: Timestamp) {
        let oldest = self.oldest_access().unwrap_or(now);
        if !self.policy.adapt(oldest, now) {
            return;
        }
        for (_, id) in std::mem::take(&mut self.queue) {
            if let Some(entry) = self.entry_mut(id) {
                entry.queued = None;
            }
            self.queue(id);
        }
    }

    fn slot_mut(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.slots.get_mut(id as usize)?.as_mut()
    }

    fn entry(&self, id: SlotId) -> Option<&IndexEntry> {
        self.slots.get(id as usize)?.as_ref()?.entry.as_ref()
    }

    fn entry_mut(&mut self, id: SlotId) -> Option<&mut IndexEntry> {
        self.slot_mut(id)?.entry.as_mut()
    }

    fn dependents(&self, id: SlotId) -> u32 {
        self.slots.get(id as usize).and_then(Option::as_ref).map_or(0, |slot| slot.dependents)
    }

    fn victim(&self, id: SlotId) -> Option<Victim> {
        let slot = self.slots.get(id as usize)?.as_ref()?;
        let entry = slot.entry.as_ref()?;
        Some(Victim { digest: slot.digest, kind: entry.kind, size: entry.size })
    }

    /// Returns the slot of a digest, which is created if there is none.
    fn slot_id(&mut self, digest: &Digest) -> SlotId {
        if let Some(id) = self.ids.get(digest) {
            return *id;
        }
        let slot = Some(Slot { digest: *digest, entry: None, dependents: 0, dependents_xor: 0 });
        let id = if let Some(id) = self.free_slots.pop() {
            self.slots[id as usize] = slot;
            id
        } else {
            self.slots.push(slot);
            // More than 2^32 digests do not fit into memory.
            SlotId::try_from(self.slots.len() - 1).unwrap_or(SlotId::MAX)
        };
        self.ids.insert(*digest, id);
        id
    }

    /// Removes the entry of a slot. With the `priority` of an evicted entry, dependencies that no other entry needs are
    /// evicted next.
    fn take_entry(&mut self, id: SlotId, priority: Option<Timestamp>) {
        self.unqueue(id);
        let Some(entry) = self.slot_mut(id).and_then(|slot| slot.entry.take()) else { return };
        let last_access = entry.usage.last_access();
        for dependency in entry.dependencies {
            if let Some(slot) = self.slot_mut(dependency) {
                slot.dependents -= 1;
                slot.dependents_xor ^= id;
                if let Some(part) = &mut slot.entry {
                    let follows = policy::follows_image(part.usage.last_access(), last_access);
                    part.follows = priority.filter(|_| follows);
                }
            }
            self.queue(dependency);
            self.requeue_sole_dependents(dependency);
            self.free_slot(dependency);
        }
        self.free_slot(id);
    }

    /// Frees a slot without an entry and without dependents.
    fn free_slot(&mut self, id: SlotId) {
        if let Some(place) = self.slots.get_mut(id as usize)
            && let Some(slot) = place.take_if(|slot| slot.entry.is_none() && slot.dependents == 0)
        {
            self.ids.remove(&slot.digest);
            self.free_slots.push(id);
        }
    }

    /// Adds an entry without dependents to the queue.
    fn queue(&mut self, id: SlotId) {
        if self.dependents(id) > 0 {
            return;
        }
        let priority = self.priority(id);
        if let Some(entry) = self.entry_mut(id)
            && entry.queued.is_none()
        {
            entry.queued = Some(priority);
            self.queue.insert((priority, id));
        }
    }

    fn unqueue(&mut self, id: SlotId) {
        if let Some(priority) = self.entry_mut(id).and_then(|entry| entry.queued.take()) {
            self.queue.remove(&(priority, id));
        }
    }

    /// Queues the only dependent of an entry again, and the only dependent of that. Its eviction frees more bytes than
    /// before, so its priority may be lower.
    fn requeue_sole_dependents(&mut self, mut id: SlotId) {
        for _ in 0..DEPTH_MAX {
            let slot = self.slots.get(id as usize).and_then(Option::as_ref);
            let sole = slot.filter(|slot| slot.dependents == 1).map(|slot| slot.dependents_xor);
            let Some(dependent) = sole else { return };
            self.unqueue(dependent);
            self.queue(dependent);
            id = dependent;
        }
    }

    /// Returns the priority of an entry. The lowest priority is evicted first.
    fn priority(&self, id: SlotId) -> Timestamp {
        let Some(entry) = self.entry(id) else { return Timestamp::default() };
        let own = self.policy.priority(entry.usage.last_access(), self.freed_with(id, 0));
        entry.follows.map_or(own, |evicted| evicted.min(own))
    }

    /// Returns the bytes that the eviction of an entry frees: its own, and those of dependencies without another dependent.
    fn freed_with(&self, id: SlotId, depth: u32) -> u64 {
        let Some(entry) = self.entry(id) else { return 0 };
        let exclusive =
            entry.dependencies.iter().filter(|id| depth < DEPTH_MAX && self.dependents(**id) == 1);
        exclusive.map(|id| self.freed_with(*id, depth + 1)).fold(entry.size, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::eviction::content::Totals;
    use crate::oci::Algorithm;

    const GIB: u64 = 1 << 30;

    const fn hour(hours: u64) -> Timestamp {
        Timestamp::from_millis(hours * 60 * 60 * 1000)
    }

    fn name(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    fn blob(index: &mut EvictionIndex, text: &str, size: u64, last_access: Timestamp) -> Arc<Usage> {
        index.insert(ContentKind::Blob, &name(text), size, last_access, [])
    }

    fn manifest(index: &mut EvictionIndex, text: &str, last_access: Timestamp, dependencies: &[&str]) {
        let dependencies = dependencies.iter().map(|text| name(text));
        index.insert(ContentKind::Manifest, &name(text), 1000, last_access, dependencies);
    }

    /// Evicts everything. Returns the names in eviction order.
    fn order(index: &mut EvictionIndex, names: &[&'static str]) -> Vec<&'static str> {
        let known: HashMap<_, _> = names.iter().map(|text| (name(text), *text)).collect();
        let victims = index.take_victims(u64::MAX, hour(100), |_| false);
        victims.iter().map(|victim| known[&victim.digest]).collect()
    }

    fn is_empty(index: &EvictionIndex) -> bool {
        index.ids.is_empty() && index.queue.is_empty() && index.slots.iter().all(Option::is_none)
    }

    #[test]
    fn oldest_is_evicted_first_and_of_equal_age_the_larger() {
        let mut index = EvictionIndex::default();
        blob(&mut index, "new", GIB, hour(100));
        blob(&mut index, "old", GIB, hour(1));
        blob(&mut index, "small", 1 << 10, hour(100));
        // Half of the age of the oldest is not enough.
        blob(&mut index, "tiny and older", 1 << 10, hour(90));
        blob(&mut index, "tiny and old", 1 << 10, hour(40));
        let names = ["new", "old", "small", "tiny and older", "tiny and old"];
        assert_eq!(order(&mut index, &names), ["old", "tiny and old", "new", "tiny and older", "small"]);
        assert!(is_empty(&index));
    }

    #[test]
    fn victims_free_no_more_than_requested() {
        let mut index = EvictionIndex::default();
        for n in 1..=10 {
            blob(&mut index, &n.to_string(), 100, hour(n));
        }
        let victims = index.take_victims(250, hour(100), |_| false);
        assert_eq!(victims.iter().map(|it| it.digest).collect::<Vec<_>>(), ["1", "2", "3"].map(name));
        assert!(index.take_victims(0, hour(100), |_| false).is_empty());
        assert_eq!(index.stats(), IndexStats { oldest_access: Some(hour(4)), unneeded_bytes: 700 });
    }

    #[test]
    fn image_is_evicted_from_its_manifest_and_shared_layers_last() {
        let mut index = EvictionIndex::default();
        // Blobs are added after the manifest that needs them.
        manifest(&mut index, "old image", hour(1), &["base", "old layer"]);
        blob(&mut index, "base", GIB, hour(1));
        blob(&mut index, "old layer", GIB, hour(1));
        manifest(&mut index, "image", hour(100), &["base", "layer", "layer"]);
        blob(&mut index, "layer", GIB, hour(100));
        blob(&mut index, "unneeded", GIB, hour(50));
        assert_eq!(index.stats().unneeded_bytes, GIB);
        let names = ["old image", "base", "old layer", "image", "layer", "unneeded"];
        let order = order(&mut index, &names);
        assert_eq!(order[..4], ["old image", "old layer", "unneeded", "image"]);
        assert_eq!(order.len(), 6);
        assert!(is_empty(&index));
    }

    #[test]
    fn image_index_counts_the_bytes_that_it_frees() {
        let mut index = EvictionIndex::default();
        // A small manifest of a large image does not outlive a blob that was accessed an hour later.
        manifest(&mut index, "index", hour(1), &["child"]);
        manifest(&mut index, "child", hour(1), &["layer"]);
        blob(&mut index, "layer", GIB, hour(1));
        blob(&mut index, "blob", GIB, hour(2));
        assert_eq!(
            order(&mut index, &["index", "child", "layer", "blob"]),
            ["index", "child", "layer", "blob"]
        );
        assert!(is_empty(&index));
    }

    #[test]
    fn image_is_evicted_completely_before_the_next() {
        let mut index = EvictionIndex::default();
        for (n, image, layer) in
            [(1, "image 1", "layer 1"), (2, "image 2", "layer 2"), (3, "image 3", "layer 3")]
        {
            manifest(&mut index, image, hour(n), &[layer]);
            blob(&mut index, layer, 1000, hour(n));
        }
        let names = ["image 1", "layer 1", "image 2", "layer 2", "image 3", "layer 3"];
        assert_eq!(order(&mut index, &names), names);
        // A layer that was accessed separately, long after its image, stays for that.
        let mut index = EvictionIndex::default();
        manifest(&mut index, "image", hour(1), &["layer"]);
        blob(&mut index, "layer", GIB, hour(10));
        blob(&mut index, "blob", GIB, hour(5));
        assert_eq!(order(&mut index, &["image", "layer", "blob"]), ["image", "blob", "layer"]);
    }

    #[test]
    fn accessed_entry_gets_its_new_priority_when_it_is_popped() {
        let mut index = EvictionIndex::default();
        let usage = blob(&mut index, "a", GIB, hour(1));
        blob(&mut index, "b", GIB, hour(2));
        assert!(index.take_access_times().is_empty());
        usage.touch(hour(3));
        assert_eq!(index.take_access_times(), [(name("a"), hour(3))]);
        assert!(index.take_access_times().is_empty());
        assert_eq!(order(&mut index, &["a", "b"]), ["b", "a"]);
    }

    #[test]
    fn oldest_access_follows_a_clock_that_was_set_back() {
        let mut index = EvictionIndex::default();
        let usage = blob(&mut index, "a", GIB, hour(1000));
        usage.touch(hour(1));
        blob(&mut index, "b", GIB, hour(2));
        assert_eq!(index.stats().oldest_access, Some(hour(1)));
    }

    #[test]
    fn pinned_and_busy_entries_stay() {
        let mut index = EvictionIndex::default();
        blob(&mut index, "a", GIB, hour(1));
        blob(&mut index, "b", GIB, hour(2));
        let pin = index.pin_for_client(&name("a"), hour(3)).expect("an entry").clone();
        assert!(index.pin_for_client(&name("c"), hour(1)).is_none());
        let busy = name("b");
        assert!(index.take_victims(u64::MAX, hour(100), |victim| victim.digest == busy).is_empty());
        drop(pin);
        assert_eq!(order(&mut index, &["a", "b"]), ["b", "a"]);
    }

    #[test]
    fn removed_entry_can_be_added_again() {
        let mut index = EvictionIndex::default();
        manifest(&mut index, "image", hour(1), &["layer"]);
        blob(&mut index, "layer", GIB, hour(1));
        index.remove(&name("layer"));
        index.remove(&name("layer"));
        assert!(index.usage(&name("layer")).is_none());
        // The manifest still depends on it.
        blob(&mut index, "layer", GIB, hour(1));
        assert_eq!(order(&mut index, &["image", "layer"]), ["image", "layer"]);
    }

    #[test]
    fn reachability_follows_dependencies_from_the_roots() {
        let mut index = EvictionIndex::default();
        manifest(&mut index, "index", hour(1), &["child", "not cached"]);
        manifest(&mut index, "child", hour(1), &["layer", "index"]);
        blob(&mut index, "layer", 500, hour(1));
        manifest(&mut index, "old", hour(1), &["layer", "old layer"]);
        blob(&mut index, "old layer", 70, hour(1));
        let totals = |manifests, blobs, bytes| Totals { manifests, blobs, bytes };
        let roots = HashSet::from([name("index"), name("deleted")]);
        let found = index.reachability(&roots);
        assert_eq!(found, Reachability { reachable: totals(2, 1, 2500), unreachable: totals(1, 1, 1070) });
        assert!(index.is_needed(&name("not cached")) && !index.is_needed(&name("old")));
    }

    #[test]
    fn sums_of_extreme_sizes_do_not_overflow() {
        let mut index = EvictionIndex::default();
        manifest(&mut index, "image", hour(1), &["a", "b"]);
        for text in ["a", "b", "c", "d"] {
            blob(&mut index, text, u64::MAX, hour(1));
        }
        assert_eq!(index.stats().unneeded_bytes, u64::MAX);
        assert_eq!(index.reachability(&HashSet::new()).unreachable.bytes, u64::MAX);
        // The image, whose own size is small, and one blob.
        assert_eq!(index.take_victims(u64::MAX, hour(2), |_| false).len(), 2);
    }

    #[test]
    fn circular_dependencies_end() {
        let mut index = EvictionIndex::default();
        manifest(&mut index, "a", hour(1), &["b"]);
        manifest(&mut index, "b", hour(1), &["a"]);
        manifest(&mut index, "itself", hour(1), &["itself"]);
        assert!(index.take_victims(u64::MAX, hour(100), |_| false).is_empty());
        assert!(index.freed_with(index.ids[&name("a")], 0) > 0);
        for text in ["a", "b", "itself"] {
            index.remove(&name(text));
        }
        assert!(is_empty(&index));
    }
}
