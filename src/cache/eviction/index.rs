//! What is held, who needs it, when it was last asked for, and what goes first when room is needed. Pure bookkeeping:
//! it names victims, and the caller deletes.
//!
//! The order follows GreedyDual-Size (P. Cao and S. Irani, "Cost-aware WWW proxy caching algorithms", USITS 1997) with
//! time in the place of its inflation value: what was asked for long ago goes first, and of two that were asked for at
//! the same time the larger one, since a small one costs as many round trips to bring back and frees less. How much
//! longer that one stays goes by how long the store remembers: at most half of the time since its oldest entry was
//! asked for, so that a store that turns over in an hour is no museum of small things.
//!
//! Only what no held manifest needs can go. An image goes as its manifest first, and its blobs after it; a layer that
//! another image needs stays. So nothing that can be served lacks a part for want of room: some clients cannot go
//! elsewhere once they hold a manifest.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::oci::Digest;

use super::usage::{ContentPin, Usage};

/// What is freed when half of the longest grace is granted, in bytes: about what a round trip to a registry is worth.
const ROUND_TRIP: u64 = 1 << 20;
/// Deeper than any walk below an index goes.
const DEPTH_MAX: u32 = 8;
/// How long after its manifest a part of an image is asked for by who pulls all of it, in milliseconds.
const PULL: u64 = 60 * 60 * 1000;

/// What an entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ContentKind {
    Manifest,
    Blob,
}

#[derive(Debug)]
struct IndexEntry {
    kind: ContentKind,
    /// Bytes that it takes.
    size: u64,
    usage: Arc<Usage>,
    /// What it needs: a manifest's config and layers, an index's children.
    needs: Box<[SlotId]>,
    /// Where it stands in the frontier, if it does: perhaps earlier than it should.
    queued: Option<u64>,
    /// The priority of the victim that needed it last: it follows that at once, unless it is asked for by itself.
    follows: Option<u64>,
}

/// A digest that is held, or that something held needs.
#[derive(Debug)]
struct Slot {
    digest: Digest,
    held: Option<IndexEntry>,
    /// How many held entries need it.
    needed: u32,
    /// The places of these, combined by exclusive or: if it is one, its place.
    needers: SlotId,
}

/// Where a slot is; shorter than its digest by far.
type SlotId = u32;

/// Something that is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Victim {
    pub(super) digest: Digest,
    pub(super) kind: ContentKind,
    /// Bytes that it takes.
    pub(super) size: u64,
}

/// What the index tells of all it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cache) struct IndexStats {
    /// When the entry was asked for that was not asked for longest, in milliseconds since 1970.
    pub(in crate::cache) oldest: Option<u64>,
    /// Bytes of blobs that no manifest held needs.
    pub(in crate::cache) loose: u64,
}

/// So much of what is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Manifests and indexes.
    pub manifests: u64,
    /// Blobs.
    pub blobs: u64,
    /// Bytes of both.
    pub bytes: u64,
}

/// What tags lead to, and what they do not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reachability {
    /// What a tag, or a list of referrers, leads to.
    pub reachable: Totals,
    /// What was asked for by digest, or what a tag stood for before it moved.
    pub unreachable: Totals,
}

/// Everything that is held.
#[derive(Debug, Default)]
pub(super) struct EvictionIndex {
    places: HashMap<Digest, SlotId>,
    slots: Vec<Option<Slot>>,
    vacant: Vec<SlotId>,
    /// What nobody needs, by what goes first. A touched entry stands too early and is put right when it comes up.
    frontier: BTreeSet<(u64, SlotId)>,
    /// How much longer the smallest things stay than the largest, in milliseconds.
    grace: u64,
}

impl EvictionIndex {
    /// The usage of an entry.
    pub(super) fn usage(&self, digest: &Digest) -> Option<Arc<Usage>> {
        let held = self.held(*self.places.get(digest)?)?;
        Some(Arc::clone(&held.usage))
    }

    /// Keeps an entry while what is returned lives; `None` if there is no such entry.
    pub(super) fn read(&self, digest: &Digest, now: u64) -> Option<ContentPin> {
        let pin = self.hold(digest)?;
        pin.touch(now);
        Some(pin)
    }

    /// The same for who is no client, and whose pin says nothing about what clients want.
    pub(super) fn hold(&self, digest: &Digest) -> Option<ContentPin> {
        Some(ContentPin::begin(self.usage(digest)?))
    }

    /// Notes that something is held, with what it needs and when it was last asked for. Of what is noted already only
    /// the size and the time can change.
    pub(super) fn admit(
        &mut self,
        kind: ContentKind,
        digest: &Digest,
        size: u64,
        last: u64,
        needs: impl IntoIterator<Item = Digest>,
    ) -> Arc<Usage> {
        let place = self.place(digest);
        if let Some(held) = self.held_mut(place) {
            held.size = size;
            held.usage.advance(last);
            return Arc::clone(&held.usage);
        }
        let mut needs: Vec<SlotId> = needs.into_iter().map(|digest| self.place(&digest)).collect();
        needs.sort_unstable();
        needs.dedup();
        for need in &needs {
            self.unqueue(*need);
            if let Some(slot) = self.slot_mut(*need) {
                slot.needed += 1;
                slot.needers ^= place;
                if let Some(held) = &mut slot.held {
                    held.follows = None;
                }
            }
        }
        let usage = Arc::new(Usage::of(last));
        let held = IndexEntry {
            kind,
            size,
            usage: Arc::clone(&usage),
            needs: needs.into(),
            queued: None,
            follows: None,
        };
        if let Some(slot) = self.slot_mut(place) {
            slot.held = Some(held);
        }
        self.queue(place);
        self.weigh_needers(place);
        usage
    }

    /// Notes that something is held no longer.
    pub(super) fn remove(&mut self, digest: &Digest) {
        if let Some(place) = self.places.get(digest) {
            self.take(*place, None);
        }
    }

    /// Takes out, in their order, entries of at least `bytes` altogether that nobody needs or reads. Fewer if there
    /// are no more. `busy` tells what has to stay for another reason.
    pub(super) fn victims(
        &mut self,
        bytes: u64,
        now: u64,
        mut busy: impl FnMut(&Victim) -> bool,
    ) -> Vec<Victim> {
        self.remember(now);
        let (mut found, mut freed, mut kept) = (Vec::new(), 0_u64, Vec::new());
        while freed < bytes {
            let Some((priority, place)) = self.frontier.pop_first() else { break };
            let Some(held) = self.held_mut(place) else { continue };
            held.queued = None;
            if held.usage.is_read() {
                kept.push(place);
                continue;
            }
            if self.priority(place) > priority {
                self.queue(place);
                continue;
            }
            let Some(victim) = self.victim(place) else { continue };
            if busy(&victim) {
                kept.push(place);
                continue;
            }
            self.take(place, Some(priority));
            freed = freed.saturating_add(victim.size);
            found.push(victim);
        }
        for place in kept {
            self.queue(place);
        }
        found
    }

    /// What something held needs.
    pub(super) fn needs_of(&self, digest: &Digest) -> Vec<Digest> {
        let held = self.places.get(digest).and_then(|place| self.held(*place));
        let slot = |place: &SlotId| self.slots.get(*place as usize)?.as_ref();
        held.into_iter().flat_map(|held| &held.needs).filter_map(slot).map(|slot| slot.digest).collect()
    }

    /// Takes out an entry that nobody needs or reads, out of its turn.
    pub(super) fn take_free(&mut self, digest: &Digest) -> Option<Victim> {
        let place = *self.places.get(digest)?;
        if self.needed(place) > 0 || self.held(place)?.usage.is_read() {
            return None;
        }
        let victim = self.victim(place);
        self.take(place, None);
        victim
    }

    /// Whether a manifest held needs this.
    pub(super) fn is_needed(&self, digest: &Digest) -> bool {
        self.places.get(digest).is_some_and(|place| self.needed(*place) > 0)
    }

    /// What can be reached from `roots`, and what cannot.
    pub(super) fn reached(&self, roots: &HashSet<Digest>) -> Reachability {
        let mut seen = vec![false; self.slots.len()];
        let mut left: Vec<SlotId> = roots.iter().filter_map(|root| self.places.get(root)).copied().collect();
        let mut reached = Reachability::default();
        while let Some(place) = left.pop() {
            if seen.get_mut(place as usize).is_none_or(|seen| std::mem::replace(seen, true)) {
                continue;
            }
            if let Some(held) = self.held(place) {
                left.extend(&held.needs);
            }
        }
        for (slot, seen) in self.slots.iter().zip(seen) {
            if let Some(held) = slot.as_ref().and_then(|slot| slot.held.as_ref()) {
                let totals = if seen { &mut reached.reachable } else { &mut reached.unreachable };
                match held.kind {
                    ContentKind::Manifest => totals.manifests += 1,
                    ContentKind::Blob => totals.blobs += 1,
                }
                totals.bytes += held.size;
            }
        }
        reached
    }

    /// Everything held.
    pub(super) fn all(&self) -> impl Iterator<Item = Digest> {
        self.entries().map(|(slot, _)| slot.digest)
    }

    /// What it all comes to. Looks at every entry.
    pub(super) fn stats(&self) -> IndexStats {
        let loose = self.entries().filter(|(slot, held)| slot.needed == 0 && held.kind == ContentKind::Blob);
        IndexStats { oldest: self.oldest(), loose: loose.map(|(_, held)| held.size).sum() }
    }

    fn oldest(&self) -> Option<u64> {
        self.entries().map(|(_, held)| held.usage.last()).min()
    }

    /// Every slot whose content is held.
    fn entries(&self) -> impl Iterator<Item = (&Slot, &IndexEntry)> {
        self.slots.iter().flatten().filter_map(|slot| Some((slot, slot.held.as_ref()?)))
    }

    /// The times of entries that were asked for since this was last called.
    pub(super) fn touched(&self) -> Vec<(Digest, u64)> {
        self.entries().filter_map(|(slot, held)| Some((slot.digest, held.usage.news()?))).collect()
    }

    /// Goes by how long the store remembers now, if that has changed.
    fn remember(&mut self, now: u64) {
        let oldest = self.oldest().unwrap_or(now);
        let grace = now.saturating_sub(oldest) / 2;
        if grace.abs_diff(self.grace) <= self.grace / 4 {
            return;
        }
        self.grace = grace;
        for (_, place) in std::mem::take(&mut self.frontier) {
            if let Some(held) = self.held_mut(place) {
                held.queued = None;
            }
            self.queue(place);
        }
    }

    fn slot_mut(&mut self, place: SlotId) -> Option<&mut Slot> {
        self.slots.get_mut(place as usize)?.as_mut()
    }

    fn held(&self, place: SlotId) -> Option<&IndexEntry> {
        self.slots.get(place as usize)?.as_ref()?.held.as_ref()
    }

    fn held_mut(&mut self, place: SlotId) -> Option<&mut IndexEntry> {
        self.slot_mut(place)?.held.as_mut()
    }

    fn needed(&self, place: SlotId) -> u32 {
        self.slots.get(place as usize).and_then(Option::as_ref).map_or(0, |slot| slot.needed)
    }

    fn victim(&self, place: SlotId) -> Option<Victim> {
        let slot = self.slots.get(place as usize)?.as_ref()?;
        let held = slot.held.as_ref()?;
        Some(Victim { digest: slot.digest, kind: held.kind, size: held.size })
    }

    /// The place of a digest, which is given one if it has none.
    fn place(&mut self, digest: &Digest) -> SlotId {
        if let Some(place) = self.places.get(digest) {
            return *place;
        }
        let slot = Some(Slot { digest: *digest, held: None, needed: 0, needers: 0 });
        let place = if let Some(place) = self.vacant.pop() {
            self.slots[place as usize] = slot;
            place
        } else {
            self.slots.push(slot);
            // Four thousand million digests would not fit into any memory.
            SlotId::try_from(self.slots.len() - 1).unwrap_or(SlotId::MAX)
        };
        self.places.insert(*digest, place);
        place
    }

    /// Removes what is held at a place, and the place if nothing needs it. What it alone needed follows at `priority`.
    fn take(&mut self, place: SlotId, priority: Option<u64>) {
        self.unqueue(place);
        let Some(held) = self.slot_mut(place).and_then(|slot| slot.held.take()) else { return };
        let last = held.usage.last();
        for need in held.needs {
            if let Some(slot) = self.slot_mut(need) {
                slot.needed -= 1;
                slot.needers ^= place;
                if let Some(part) = &mut slot.held {
                    part.follows = priority.filter(|_| part.usage.last() <= last.saturating_add(PULL));
                }
            }
            self.queue(need);
            self.weigh_needers(need);
            self.vacate(need);
        }
        self.vacate(place);
    }

    fn vacate(&mut self, place: SlotId) {
        if let Some(entry) = self.slots.get_mut(place as usize)
            && let Some(slot) = entry.take_if(|slot| slot.held.is_none() && slot.needed == 0)
        {
            self.places.remove(&slot.digest);
            self.vacant.push(place);
        }
    }

    fn queue(&mut self, place: SlotId) {
        if self.needed(place) > 0 {
            return;
        }
        let priority = self.priority(place);
        if let Some(held) = self.held_mut(place)
            && held.queued.is_none()
        {
            held.queued = Some(priority);
            self.frontier.insert((priority, place));
        }
    }

    /// More becomes free now with what alone needs this, so that it may have to go sooner.
    fn weigh_needers(&mut self, mut place: SlotId) {
        for _ in 0..DEPTH_MAX {
            let slot = self.slots.get(place as usize).and_then(Option::as_ref);
            let Some(needer) = slot.filter(|slot| slot.needed == 1).map(|slot| slot.needers) else { return };
            self.unqueue(needer);
            self.queue(needer);
            place = needer;
        }
    }

    fn unqueue(&mut self, place: SlotId) {
        if let Some(priority) = self.held_mut(place).and_then(|held| held.queued.take()) {
            self.frontier.remove(&(priority, place));
        }
    }

    /// The lower, the sooner it goes.
    fn priority(&self, place: SlotId) -> u64 {
        let Some(held) = self.held(place) else { return 0 };
        let own = held.usage.last().saturating_add(share(self.grace, self.frees(place, 0)));
        held.follows.map_or(own, |before| before.min(own))
    }

    /// Bytes that become free with an entry: its own and those of what nobody else needs.
    fn frees(&self, place: SlotId, depth: u32) -> u64 {
        let Some(held) = self.held(place) else { return 0 };
        let alone = held.needs.iter().filter(|need| depth < DEPTH_MAX && self.needed(**need) == 1);
        held.size.saturating_add(alone.map(|need| self.frees(*need, depth + 1)).sum())
    }
}

/// What of the longest grace something is granted that frees so many bytes.
fn share(grace: u64, frees: u64) -> u64 {
    let share = u128::from(grace) * u128::from(ROUND_TRIP) / u128::from(ROUND_TRIP.saturating_add(frees));
    // At most the whole of it.
    u64::try_from(share).unwrap_or(grace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    const HOUR: u64 = 60 * 60 * 1000;
    const GIB: u64 = 1 << 30;

    fn name(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    fn blob(index: &mut EvictionIndex, text: &str, size: u64, last: u64) -> Arc<Usage> {
        index.admit(ContentKind::Blob, &name(text), size, last, [])
    }

    fn manifest(index: &mut EvictionIndex, text: &str, last: u64, needs: &[&str]) {
        index.admit(ContentKind::Manifest, &name(text), 1000, last, needs.iter().map(|text| name(text)));
    }

    /// Everything in the order in which it would go.
    fn order(index: &mut EvictionIndex, names: &[&'static str]) -> Vec<&'static str> {
        let known: HashMap<_, _> = names.iter().map(|text| (name(text), *text)).collect();
        let gone = index.victims(u64::MAX, 100 * HOUR, |_| false);
        gone.iter().map(|victim| known[&victim.digest]).collect()
    }

    fn is_empty(index: &EvictionIndex) -> bool {
        index.places.is_empty() && index.frontier.is_empty() && index.slots.iter().all(Option::is_none)
    }

    #[test]
    fn the_oldest_goes_first_and_of_equals_the_larger() {
        let mut index = EvictionIndex::default();
        blob(&mut index, "new", GIB, 100 * HOUR);
        blob(&mut index, "old", GIB, HOUR);
        blob(&mut index, "small", 1 << 10, 100 * HOUR);
        // Half of the time since the oldest was asked for is not enough.
        blob(&mut index, "tiny and older", 1 << 10, 90 * HOUR);
        blob(&mut index, "tiny and old", 1 << 10, 40 * HOUR);
        let names = ["new", "old", "small", "tiny and older", "tiny and old"];
        assert_eq!(order(&mut index, &names), ["old", "tiny and old", "new", "tiny and older", "small"]);
        assert!(is_empty(&index));
    }

    #[test]
    fn only_as_much_as_is_asked_for() {
        let mut index = EvictionIndex::default();
        for n in 1..=10 {
            blob(&mut index, &n.to_string(), 100, n * HOUR);
        }
        let gone = index.victims(250, 100 * HOUR, |_| false);
        assert_eq!(gone.iter().map(|it| it.digest).collect::<Vec<_>>(), ["1", "2", "3"].map(name));
        assert!(index.victims(0, 100 * HOUR, |_| false).is_empty());
        assert_eq!(index.stats(), IndexStats { oldest: Some(4 * HOUR), loose: 700 });
    }

    #[test]
    fn an_image_goes_from_its_top_and_shared_layers_go_last() {
        let mut index = EvictionIndex::default();
        // Blobs come in after the manifest that needs them.
        manifest(&mut index, "old image", HOUR, &["base", "old layer"]);
        blob(&mut index, "base", GIB, HOUR);
        blob(&mut index, "old layer", GIB, HOUR);
        manifest(&mut index, "image", 100 * HOUR, &["base", "layer", "layer"]);
        blob(&mut index, "layer", GIB, 100 * HOUR);
        blob(&mut index, "nobody's", GIB, 50 * HOUR);
        assert_eq!(index.stats().loose, GIB);
        let names = ["old image", "base", "old layer", "image", "layer", "nobody's"];
        let order = order(&mut index, &names);
        assert_eq!(order[..4], ["old image", "old layer", "nobody's", "image"]);
        assert_eq!(order.len(), 6);
        assert!(is_empty(&index));
    }

    #[test]
    fn an_index_counts_as_much_as_it_frees() {
        let mut index = EvictionIndex::default();
        // A tiny document over a large image does not outlive one that was asked for an hour later.
        manifest(&mut index, "index", HOUR, &["child"]);
        manifest(&mut index, "child", HOUR, &["layer"]);
        blob(&mut index, "layer", GIB, HOUR);
        blob(&mut index, "blob", GIB, 2 * HOUR);
        assert_eq!(
            order(&mut index, &["index", "child", "layer", "blob"]),
            ["index", "child", "layer", "blob"]
        );
        assert!(is_empty(&index));
    }

    #[test]
    fn an_image_goes_whole_before_the_next() {
        let mut index = EvictionIndex::default();
        for (n, image, layer) in
            [(1, "image 1", "layer 1"), (2, "image 2", "layer 2"), (3, "image 3", "layer 3")]
        {
            manifest(&mut index, image, n * HOUR, &[layer]);
            blob(&mut index, layer, 1000, n * HOUR);
        }
        let names = ["image 1", "layer 1", "image 2", "layer 2", "image 3", "layer 3"];
        assert_eq!(order(&mut index, &names), names);
        // A layer that was asked for by itself, long after its image, stays for that.
        let mut index = EvictionIndex::default();
        manifest(&mut index, "image", HOUR, &["layer"]);
        blob(&mut index, "layer", GIB, 10 * HOUR);
        blob(&mut index, "blob", GIB, 5 * HOUR);
        assert_eq!(order(&mut index, &["image", "layer", "blob"]), ["image", "blob", "layer"]);
    }

    #[test]
    fn what_was_touched_is_put_right_when_it_comes_up() {
        let mut index = EvictionIndex::default();
        let usage = blob(&mut index, "a", GIB, HOUR);
        blob(&mut index, "b", GIB, 2 * HOUR);
        assert!(index.touched().is_empty());
        usage.touch(3 * HOUR);
        assert_eq!(index.touched(), [(name("a"), 3 * HOUR)]);
        assert!(index.touched().is_empty());
        assert_eq!(order(&mut index, &["a", "b"]), ["b", "a"]);
    }

    #[test]
    fn a_clock_that_was_set_back_counts() {
        let mut index = EvictionIndex::default();
        let usage = blob(&mut index, "a", GIB, 1000 * HOUR);
        usage.touch(HOUR);
        blob(&mut index, "b", GIB, 2 * HOUR);
        assert_eq!(index.stats().oldest, Some(HOUR));
    }

    #[test]
    fn what_is_read_or_busy_stays() {
        let mut index = EvictionIndex::default();
        blob(&mut index, "a", GIB, HOUR);
        blob(&mut index, "b", GIB, 2 * HOUR);
        let pin = index.read(&name("a"), 3 * HOUR).expect("held").clone();
        assert!(index.read(&name("c"), HOUR).is_none());
        let busy = name("b");
        assert!(index.victims(u64::MAX, 100 * HOUR, |victim| victim.digest == busy).is_empty());
        drop(pin);
        assert_eq!(order(&mut index, &["a", "b"]), ["b", "a"]);
    }

    #[test]
    fn removed_and_admitted_anew() {
        let mut index = EvictionIndex::default();
        manifest(&mut index, "image", HOUR, &["layer"]);
        blob(&mut index, "layer", GIB, HOUR);
        index.remove(&name("layer"));
        index.remove(&name("layer"));
        assert!(index.usage(&name("layer")).is_none());
        // Still needed when it comes back.
        blob(&mut index, "layer", GIB, HOUR);
        assert_eq!(order(&mut index, &["image", "layer"]), ["image", "layer"]);
    }

    #[test]
    fn what_is_reached_is_told_from_what_is_not() {
        let mut index = EvictionIndex::default();
        manifest(&mut index, "index", HOUR, &["child", "not held"]);
        manifest(&mut index, "child", HOUR, &["layer", "index"]);
        blob(&mut index, "layer", 500, HOUR);
        manifest(&mut index, "old", HOUR, &["layer", "old layer"]);
        blob(&mut index, "old layer", 70, HOUR);
        let totals = |manifests, blobs, bytes| Totals { manifests, blobs, bytes };
        let roots = HashSet::from([name("index"), name("gone")]);
        let found = index.reached(&roots);
        assert_eq!(found, Reachability { reachable: totals(2, 1, 2500), unreachable: totals(1, 1, 1070) });
        assert!(index.is_needed(&name("not held")) && !index.is_needed(&name("old")));
    }

    #[test]
    fn a_circle_of_needs_ends() {
        let mut index = EvictionIndex::default();
        manifest(&mut index, "a", HOUR, &["b"]);
        manifest(&mut index, "b", HOUR, &["a"]);
        manifest(&mut index, "itself", HOUR, &["itself"]);
        assert!(index.victims(u64::MAX, 100 * HOUR, |_| false).is_empty());
        assert!(index.frees(index.places[&name("a")], 0) > 0);
        for text in ["a", "b", "itself"] {
            index.remove(&name(text));
        }
        assert!(is_empty(&index));
    }
}
