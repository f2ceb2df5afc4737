//! Fuzz targets of eviction: its arithmetic, the sums of unverified bytes, and the index, compared with simple models.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bolero::check;

use super::budget::{
    DraftShares, EvictionReason, Measurement, StoreLimits, backlog_max, content_budget, disk_limit,
    drafts_to_evict, excess, file_high_watermark, storable,
};
use super::content::{ContentKind, Victim};
use super::draft_space::{DraftShare, DraftSpace};
use super::index::EvictionIndex;
use super::usage::ContentPin;
use crate::clock::Timestamp;
use crate::fuzz::{Input, TEST_TIME, inputs};
use crate::oci::{Algorithm, Digest, Repository};
use crate::store::{DraftKey, DraftUsage, SpaceModel};

fn name(number: usize) -> Digest {
    Digest::of(Algorithm::Sha256, &[u8::try_from(number).unwrap_or_default()])
}

#[test]
fn budget_is_exact_for_all_numbers() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let mut number = || input.number();
        let (drafts, free) = (number(), number());
        let measured = Measurement {
            disk: number().max(drafts),
            drafts,
            unwritten: number().min(drafts),
            growth: 0,
            content: number(),
            verified: number().min(drafts),
            free: Some(free),
        };
        let limits = StoreLimits { max_size: number(), min_free: number() };
        let growth = number();
        let (limit, reason) = disk_limit(&measured, &limits);
        assert!(limit <= limits.max_size);
        assert_eq!(reason == EvictionReason::MinFree, limit < limits.max_size);
        let shares = DraftShares::of(limit);
        assert!(
            shares.repository <= shares.upstream && shares.upstream <= shares.total && shares.total <= limit
        );
        assert!(shares.abandoned(drafts) <= shares.total);
        assert!(
            content_budget(&measured, limit) <= limit && file_high_watermark(&measured, &limits) <= limit
        );
        assert!(backlog_max(SpaceModel::Shared, limit) <= limit);
        for space in [SpaceModel::Separate { block_size: 4096 }, SpaceModel::Shared] {
            let used = match space {
                SpaceModel::Separate { .. } => measured.disk,
                SpaceModel::Shared => measured.content.saturating_add(measured.verified),
            };
            let evicted = excess(space, &measured, &limits).map_or(0, |(bytes, _)| bytes);
            assert!(evicted <= used);
            let growing = excess(space, &Measurement { growth, ..measured }, &limits);
            assert!(growing.map_or(0, |(bytes, _)| bytes) >= evicted);
            // What may be written leaves `min_free`.
            let written = storable(space, &measured, &limits).saturating_sub(measured.disk);
            let left = free.saturating_sub(measured.unwritten).saturating_sub(written);
            assert!(written == 0 || left >= limits.min_free, "{measured:?} {limits:?}");
        }
    });
}

#[test]
fn abandoned_drafts_are_evicted_down_to_their_budget() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let drafts: Vec<DraftUsage> = (0..input.below(8))
            .map(|n| {
                let (bytes, changed) = (input.number(), Timestamp::from_millis(input.number()));
                DraftUsage { key: DraftKey::unowned(&name(n)), bytes, changed }
            })
            .collect();
        let (wanted, budget, now) = (input.number(), input.number(), Timestamp::from_millis(input.number()));
        let evicted = drafts_to_evict(drafts.clone(), wanted, budget, now);
        let sum = |drafts: &[DraftUsage]| drafts.iter().map(|draft| u128::from(draft.bytes)).sum::<u128>();
        let (total, gone) = (sum(&drafts), sum(&evicted));
        // The sum is exact unless it is beyond every disk.
        if total <= u128::from(u64::MAX) {
            assert!(total - gone <= u128::from(budget));
        }
        if total <= u128::from(budget) && wanted == 0 {
            assert!(evicted.is_empty());
        }
        assert!(evicted.is_sorted_by_key(|draft| draft.changed));
    });
}

/// Model of one share.
#[derive(Default)]
struct ShareModel {
    owner: Option<usize>,
    bytes: u64,
    unwritten: u64,
    is_verified: bool,
    is_unlinked: bool,
}

/// Repositories of two upstreams.
fn repositories() -> [Repository; 3] {
    [("a.test", "x"), ("a.test", "y"), ("b.test", "x")].map(|(upstream, name)| Repository {
        upstream: upstream.parse().expect("a name"),
        name: name.parse().expect("a name"),
    })
}

/// Upstream of each repository.
const UPSTREAM_OF: [usize; 3] = [0, 0, 1];

#[derive(Default)]
struct SpaceMachine {
    space: Arc<DraftSpace>,
    shares: Vec<(DraftShare, ShareModel)>,
    stored: u64,
    abandoned: u64,
}

impl SpaceMachine {
    fn sum(&self, keep: impl Fn(&ShareModel) -> bool) -> u64 {
        self.shares.iter().filter(|(_, model)| keep(model)).map(|(_, model)| model.bytes).sum()
    }

    fn add(&mut self, at: usize, bytes: u64, limits: &DraftShares) {
        let owner = self.shares[at].1.owner;
        let fits = |before: u64, limit: u64| u128::from(before) + u128::from(bytes) <= u128::from(limit);
        let own_fits = owner.is_none_or(|owner| {
            fits(self.sum(|it| it.owner == Some(owner)), limits.repository)
                && fits(
                    self.sum(|it| it.owner.is_some_and(|it| UPSTREAM_OF[it] == UPSTREAM_OF[owner])),
                    limits.upstream,
                )
        });
        let wanted = own_fits && fits(self.sum(|_| true), limits.total);
        let (share, model) = &mut self.shares[at];
        assert_eq!(share.add(bytes, limits), wanted);
        if wanted {
            model.bytes += bytes;
            model.unwritten += bytes;
        }
    }

    fn end(&mut self, at: usize) {
        let (share, model) = self.shares.remove(at);
        drop(share);
        if !model.is_unlinked {
            self.abandoned += model.bytes;
        }
    }

    fn step(&mut self, input: &mut Input<'_>, limits: &DraftShares) {
        if self.shares.is_empty() || (self.shares.len() < 5 && input.below(4) == 0) {
            let owner = Some(input.below(4)).filter(|owner| *owner < 3);
            let share = self.space.share(owner.map(|owner| repositories()[owner].clone()).as_ref(), 0);
            self.shares.push((share, ShareModel { owner, ..ShareModel::default() }));
            return;
        }
        let at = input.below(self.shares.len());
        match input.below(6) {
            // A verified share gets no more bytes.
            0 | 1 if !self.shares[at].1.is_verified => self.add(at, input.number(), limits),
            2 if !self.shares[at].1.is_verified => {
                let (share, model) = &mut self.shares[at];
                let bytes = input.number().min(model.unwritten);
                share.take_back(bytes);
                model.bytes -= bytes;
                model.unwritten -= bytes;
            }
            3 => {
                let (share, model) = &mut self.shares[at];
                model.unwritten = input.number().min(model.unwritten);
                share.set_unwritten(model.unwritten);
            }
            4 => {
                let (share, model) = &mut self.shares[at];
                share.set_verified();
                model.is_verified = true;
                if input.flag() {
                    share.set_unlinked();
                    model.is_unlinked = true;
                }
            }
            5 if input.flag() => {
                let (share, model) = &mut self.shares[at];
                share.commit();
                self.stored += std::mem::take(&mut model.bytes);
                (model.unwritten, model.is_verified, model.is_unlinked) = (0, false, true);
            }
            _ => self.end(at),
        }
    }

    fn check(&self) {
        let usage = self.space.usage();
        let unwritten: u64 = self.shares.iter().map(|(_, model)| model.unwritten).sum();
        let wanted =
            (self.stored, self.sum(|_| true), unwritten, self.sum(|it| it.is_verified), self.abandoned);
        assert_eq!((usage.stored, usage.running, usage.unwritten, usage.verified, usage.abandoned), wanted);
    }
}

#[test]
fn sums_of_unverified_bytes_agree_with_a_model() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        // No disk is larger, so that the sums of the model are exact.
        let mut limit = || input.number() >> 8;
        let limits = DraftShares { total: limit(), upstream: limit(), repository: limit() };
        let mut machine = SpaceMachine::default();
        for _ in 0..input.below(60) {
            machine.step(&mut input, &limits);
            machine.check();
        }
        while !machine.shares.is_empty() {
            machine.end(0);
            machine.check();
        }
    });
}

/// Model of an entry of the index.
#[derive(Clone, Debug)]
struct EntryModel {
    kind: ContentKind,
    size: u64,
    dependencies: BTreeSet<usize>,
}

/// Number of digests in the machine.
const DIGESTS: usize = 10;

#[derive(Default)]
struct IndexMachine {
    index: EvictionIndex,
    entries: BTreeMap<usize, EntryModel>,
    pins: Vec<(usize, ContentPin)>,
}

impl IndexMachine {
    fn is_needed(&self, number: usize) -> bool {
        self.entries.values().any(|entry| entry.dependencies.contains(&number))
    }

    /// Returns true if a pin of the current entry exists. The pins of removed entries have no effect.
    fn is_pinned(&self, number: usize) -> bool {
        self.pins.iter().any(|(pinned, _)| *pinned == number)
    }

    fn forget(&mut self, number: usize) {
        self.entries.remove(&number);
        self.pins.retain(|(pinned, _)| *pinned != number);
    }

    fn insert(&mut self, number: usize, input: &mut Input<'_>) {
        let kind = if input.flag() { ContentKind::Manifest } else { ContentKind::Blob };
        let size = input.number();
        let dependencies: BTreeSet<usize> = match kind {
            ContentKind::Manifest => (0..input.below(4)).map(|_| input.below(DIGESTS)).collect(),
            ContentKind::Blob => BTreeSet::new(),
        };
        let digests = dependencies.iter().map(|it| name(*it));
        let time = Timestamp::from_millis(input.number());
        self.index.insert(kind, &name(number), size, time, digests);
        // Of an existing entry only the size changes.
        let entry = self.entries.entry(number).or_insert(EntryModel { kind, size, dependencies });
        entry.size = size;
    }

    fn evict(&mut self, input: &mut Input<'_>) {
        let (wanted, now) = (input.number(), Timestamp::from_millis(input.number()));
        let busy = name(input.below(2 * DIGESTS));
        let victims = self.index.take_victims(wanted, now, |victim| victim.digest == busy);
        let mut freed = 0_u128;
        for victim in victims {
            assert!(freed < u128::from(wanted), "evicted more than is wanted");
            freed += u128::from(victim.size);
            assert_ne!(victim.digest, busy);
            self.assert_evictable(&victim);
        }
        if freed < u128::from(wanted) {
            let rest = (0..DIGESTS).filter(|number| self.entries.contains_key(number));
            let stays =
                |number: &usize| self.is_needed(*number) || self.is_pinned(*number) || name(*number) == busy;
            assert!(rest.into_iter().all(|number| stays(&number)), "an evictable entry stayed");
        }
    }

    fn assert_evictable(&mut self, victim: &Victim) {
        let number = (0..DIGESTS).find(|number| name(*number) == victim.digest).expect("a known digest");
        let entry = self.entries.get(&number).expect("an entry");
        assert_eq!((victim.kind, victim.size), (entry.kind, entry.size));
        assert!(!self.is_pinned(number) && !self.is_needed(number), "{number} is in use");
        self.forget(number);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let number = input.below(DIGESTS);
        match input.below(8) {
            0..=2 => self.insert(number, input),
            3 => {
                self.index.remove(&name(number));
                self.forget(number);
            }
            4 => {
                let pin = self.index.pin_for_client(&name(number), Timestamp::from_millis(input.number()));
                assert_eq!(pin.is_some(), self.entries.contains_key(&number));
                self.pins.extend(pin.map(|pin| (number, pin)));
            }
            5 if !self.pins.is_empty() => {
                let at = input.below(self.pins.len());
                self.pins.swap_remove(at);
            }
            6 => {
                let evictable =
                    self.entries.contains_key(&number) && !self.is_needed(number) && !self.is_pinned(number);
                let victim = self.index.take(&name(number));
                assert_eq!(victim.is_some(), evictable);
                if let Some(victim) = victim {
                    self.assert_evictable(&victim);
                }
            }
            _ => self.evict(input),
        }
    }

    fn check(&self) {
        let digests: BTreeSet<Digest> = self.index.digests().collect();
        assert_eq!(digests, self.entries.keys().map(|number| name(*number)).collect());
        for number in 0..DIGESTS {
            assert_eq!(self.index.is_needed(&name(number)), self.is_needed(number), "{number}");
            let dependencies: BTreeSet<Digest> = self.index.dependencies(&name(number)).into_iter().collect();
            let entry = self.entries.get(&number);
            let wanted =
                entry.into_iter().flat_map(|entry| &entry.dependencies).map(|it| name(*it)).collect();
            assert_eq!(dependencies, wanted);
        }
        let unneeded = |(number, entry): &(&usize, &EntryModel)| {
            entry.kind == ContentKind::Blob && !self.is_needed(**number)
        };
        let sizes = self.entries.iter().filter(unneeded).map(|(_, entry)| entry.size);
        assert_eq!(self.index.stats().unneeded_bytes, sizes.fold(0, u64::saturating_add));
    }
}

#[test]
fn index_agrees_with_a_model() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let mut machine = IndexMachine::default();
        for _ in 0..input.below(60) {
            machine.step(&mut input);
            machine.check();
        }
        // Without pins and circles, everything can be evicted.
        machine.pins.clear();
        let victims = machine.index.take_victims(u64::MAX, Timestamp::MAX, |_| false);
        for victim in victims {
            machine.assert_evictable(&victim);
        }
        for number in 0..DIGESTS {
            machine.index.remove(&name(number));
        }
        assert_eq!(machine.index.digests().count(), 0);
        assert!((0..DIGESTS).all(|number| !machine.index.is_needed(&name(number))));
    });
}
