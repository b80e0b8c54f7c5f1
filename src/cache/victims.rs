//! How a store makes room: who goes, in what order, and how several blocks are handed out at once.
//!
//! Priorities and pins (`retention`) come before the policy. A victim departs (`departed`): what lists it as findable
//! keeps its cells until they are in the way, which is at once if it goes to make room for a block that is wanted now.
//! Part of `store`, whose invariants hold here too.

use std::ops::Range;

use super::{PINNED_SHARE, Store};
use crate::cache::block::{FINDABLE, NAMESPACE_MASK, RETAINED, Shared};
use crate::cache::events::{CacheEventKind, RemoveReason};
use crate::cache::owner_lists::LEAVING_MOST;
use crate::cache::owners::owner_of;
use crate::cache::retention::Pinner;
use crate::cache::tally::Tally;
use crate::error::Result;
use crate::sys::prefetch;

/// Victims that go together: what they read is fetched for all of them before any of them goes.
pub(super) const TOGETHER: usize = LEAVING_MOST;
/// Fewer are not worth it.
pub(super) const FETCH_LEAST: usize = 4;
/// So many are fetched as likely to lie in a row, or as many as did of the latest victims.
const ROW_LEAST: usize = 4;
/// Where none is free, so many go at least: together each costs a fraction of what it does alone.
const EVICTED_LEAST: u32 = 32;
/// One block in so many is kept free for the sake of runs, where blocks are not handed out in exact order.
const HEADROOM_SHARE: u32 = 64;

/// Gives each stretch of blocks whose ids follow each other, up or down.
#[inline]
pub(super) fn for_each_row(blocks: &[u32], mut each: impl FnMut(Range<usize>)) {
    let Some((&first, others)) = blocks.split_first() else { return };
    let (mut first, mut end) = (first, first + 1);
    for &block in others {
        if block == end {
            end += 1;
        } else if block + 1 == first {
            first = block;
        } else {
            each(first as usize..end as usize);
            (first, end) = (block, block + 1);
        }
    }
    each(first as usize..end as usize);
}

impl Store {
    /// Hands out several blocks, in runs of ascending ids where that can be, the first beside `near`. The caller has
    /// checked `available`.
    pub(in crate::cache) fn allocate_run(
        &mut self,
        count: u32,
        near: Option<u32>,
        tenant: u64,
        shared: &mut Shared,
        mut take: impl FnMut(u32),
    ) {
        if count == 1 {
            return take(self.allocate(near, tenant, shared));
        }
        shared.count_handed_out(count, tenant);
        if self.free.is_exact() {
            let (mut blocks, mut left) = ([0; TOGETHER], count as usize);
            while left > 0 {
                let blocks = &mut blocks[..TOGETHER.min(left)];
                let free = blocks
                    .iter_mut()
                    .map_while(|place| self.free.take_one(None).map(|index| *place = index))
                    .count();
                let needed = blocks.len() - free;
                let gone = self.evict_into(&mut blocks[free..], needed, RemoveReason::Evicted, shared);
                assert!(free + gone == blocks.len(), "the caller checked that as many blocks are available");
                self.hand_out_all(blocks, tenant, &mut take);
                left -= blocks.len();
            }
            return;
        }
        self.make_free(count, shared);
        let (mut left, mut near) = (count, near);
        let (mut blocks, mut known) = ([0; TOGETHER], 0);
        while left > 0 {
            let (first, length) = self.free.take_run(left, near).expect("as many are free as are wanted");
            for index in first..first + length {
                blocks[known] = index;
                known += 1;
                if known == TOGETHER {
                    self.hand_out_all(&blocks, tenant, &mut take);
                    known = 0;
                }
            }
            (left, near) = (left - length, Some(first + length - 1));
        }
        self.hand_out_all(&blocks[..known], tenant, &mut take);
    }

    /// Hands out one block, the one after `near` if that is free. The caller has checked `available`.
    pub(in crate::cache) fn allocate(&mut self, near: Option<u32>, tenant: u64, shared: &mut Shared) -> u32 {
        shared.count_handed_out(1, tenant);
        if !self.free.is_exact() {
            self.make_free(1, shared);
        }
        let index = match self.free.take_one(near) {
            Some(index) => {
                self.take_out(index);
                index
            }
            None => self
                .evict(RemoveReason::Evicted, shared)
                .expect("the caller checked that a block is available"),
        };
        self.hand_out(index, tenant);
        index
    }

    /// Sees to it that so many are free where blocks are handed out in runs. All victims first: what was allocated
    /// together is often let go together, and makes a run again. Some more of them, so that there is a choice of runs
    /// the next time too: promised blocks may be free as well as cached.
    fn make_free(&mut self, count: u32, shared: &mut Shared) {
        if self.free.count() < count {
            let spare = count.max(EVICTED_LEAST - 1).min(self.limit / HEADROOM_SHARE);
            let wanted = count - self.free.count();
            self.evict_with_spare(wanted.into(), spare.into(), RemoveReason::Evicted, shared);
        }
    }

    /// Free blocks become a holder's.
    fn hand_out_all(&mut self, blocks: &[u32], tenant: u64, take: &mut impl FnMut(u32)) {
        self.take_out_all(blocks);
        for &index in blocks {
            self.hand_out(index, tenant);
            take(index);
        }
    }

    /// Evicts the next victims, as many as may go; answers how many.
    pub(in crate::cache) fn evict_some(
        &mut self,
        count: u64,
        reason: RemoveReason,
        shared: &mut Shared,
    ) -> u64 {
        self.evict_with_spare(count, 0, reason, shared)
    }

    /// The same, and some to spare, for whose sake no high priority goes.
    fn evict_with_spare(&mut self, count: u64, spare: u64, reason: RemoveReason, shared: &mut Shared) -> u64 {
        let (mut victims, mut evicted, all) = ([0; TOGETHER], 0, count.saturating_add(spare));
        while evicted < all {
            let most = (all - evicted).min(TOGETHER as u64) as usize;
            let needed = count.saturating_sub(evicted).min(most as u64) as usize;
            let gone = self.evict_into(&mut victims[..most], needed, reason, shared);
            self.free.push_all(&victims[..gone]);
            evicted += gone as u64;
            if gone < most {
                break;
            }
        }
        if evicted >= FETCH_LEAST as u64 && self.is_large {
            self.fetch_next(self.latest_row);
        }
        evicted
    }

    /// Has fetched what the choice of so many victims reads, if they are likely to lie in a row; answers that row.
    fn fetch_next(&mut self, most: usize) -> Option<Range<usize>> {
        match self.retention.has_victims_below() {
            true => self.retention.fetch_next(most),
            false => self.policy.fetch_next(most),
        }
    }

    /// Evicts the next victim, which the caller puts to use.
    pub(super) fn evict(&mut self, reason: RemoveReason, shared: &mut Shared) -> Option<u32> {
        let mut victim = [0];
        (self.evict_into(&mut victim, 1, reason, shared) > 0).then_some(victim[0])
    }

    /// Has fetched what evictions of the next victims read, where the processor's own cache does not hold it: first for
    /// all of them what lies at their indices, then what that leads to.
    pub(in crate::cache) fn fetch_victims(&mut self, count: u32, shared: &Shared) {
        if count < FETCH_LEAST as u32 || !self.is_large {
            return;
        }
        let most = TOGETHER.min(count as usize);
        let (mut likely, mut found) = ([0; TOGETHER], 0);
        let mut note = |victim: u32| {
            let Some(place) = likely.get_mut(found) else { return };
            *place = victim;
            found += 1;
        };
        self.retention.likely_victims(most, &mut note);
        self.policy.likely_victims(most, &mut note);
        // Only events and the lists of children want to know what a victim follows.
        let reads_ancestry = shared.events.is_on() || self.children.is_some();
        for_each_row(&likely[..found], |row| {
            prefetch::prefetch_all(&self.blocks, row.clone());
            if reads_ancestry {
                prefetch::prefetch_all(&self.ancestries, row.clone());
            }
            self.by_owner.fetch_all(row);
        });
        for &victim in &likely[..found] {
            let block = self.block(victim);
            self.index.fetch(self.index.hash(&block.key, block.namespace()));
            self.by_owner.fetch_neighbours(victim);
            if block.is_retained() {
                self.retention.fetch(victim);
            }
        }
    }

    /// Chooses the next victims, as many as there are places: of low priorities, else the policy's, else, as far as so
    /// many are needed, of high priorities. Answers how many; nobody lists them any more.
    fn choose_victims(&mut self, places: &mut [u32], needed: usize) -> usize {
        let low = self.retention.victims_below(places);
        places[..low].iter().for_each(|&victim| self.policy.removed(victim, false));
        let ordinary = low + self.policy.victims(&mut places[low..]);
        let end = ordinary.max(needed);
        let all = ordinary + self.retention.victims_above(&mut places[ordinary..end]);
        places[ordinary..all].iter().for_each(|&victim| self.policy.removed(victim, false));
        all
    }

    /// Evicts the next victims, as many as may go and as there are places, at most [`TOGETHER`], of which so many are
    /// needed; answers how many.
    fn evict_into(
        &mut self,
        places: &mut [u32],
        needed: usize,
        reason: RemoveReason,
        shared: &mut Shared,
    ) -> usize {
        if places.is_empty() {
            return 0;
        }
        // Blocks that came together go together: the next ones are asked for before they are known.
        let mut likely = 0..0;
        if places.len() >= FETCH_LEAST && self.is_large {
            likely = self.fetch_next(places.len().min(self.latest_row)).unwrap_or(likely);
            prefetch::prefetch_all(&self.blocks, likely.clone());
        }
        let count = self.choose_victims(places, needed);
        let victims = &places[..count];
        let fetches = count >= FETCH_LEAST && self.is_large;
        if fetches {
            self.latest_row = ROW_LEAST;
            for_each_row(victims, |row| {
                self.latest_row = self.latest_row.max(row.len());
                if row.start < likely.start || row.end > likely.end {
                    prefetch::prefetch_all(&self.blocks, row);
                }
            });
        }
        // What is asked for in each loop is read in a later one, so that no loop waits for what it asked for itself.
        let is_reused = reason == RemoveReason::Evicted;
        let mut hashes = [0; TOGETHER];
        for (&victim, hash) in victims.iter().zip(&mut hashes) {
            if is_reused {
                *hash = self.key_hash(victim);
            }
            if fetches {
                self.by_owner.fetch(victim);
                if is_reused {
                    self.fetch_cells(victim, *hash);
                    self.fetch_new(victim);
                } else if let Some(children) = &self.children {
                    children.fetch(victim);
                }
                if shared.events.is_on() {
                    self.fetch_ancestry(victim);
                }
                if self.block(victim).is_retained() {
                    self.retention.fetch(victim);
                }
            }
        }
        self.inactive -= count as u32;
        if is_reused {
            shared.counters.evicted_blocks += count as u64;
        }
        self.forget_all(victims, &hashes[..count], reason, shared);
        count
    }

    /// The tenant and the namespace of a findable block.
    pub(in crate::cache) fn whose(&self, index: u32) -> (u64, u32) {
        let block = self.block(index);
        (block.tenant, block.namespace())
    }

    /// The next of these victims that are of one tenant and namespace, taken off their front.
    fn of_one<'a>(&self, victims: &mut &'a [u32]) -> Option<&'a [u32]> {
        let &first = victims.first()?;
        let count = victims.iter().take_while(|&&victim| self.whose(victim) == self.whose(first)).count();
        let of_one;
        (of_one, *victims) = victims.split_at(count);
        Some(of_one)
    }

    /// Takes victims out of all lists, and out of the tables too, under these hashes of their keys, if they are wanted
    /// now; the policy has already let them go.
    fn forget_all(&mut self, victims: &[u32], hashes: &[u32], reason: RemoveReason, shared: &mut Shared) {
        let is_reused = reason == RemoveReason::Evicted;
        for (at, &victim) in victims.iter().enumerate() {
            shared.events.fetch_next(at);
            if is_reused {
                self.fetch_cells_further(victim);
            } else {
                self.fetch_siblings(victim);
            }
            if self.block(victim).is_retained() {
                self.retention.fetch_neighbours(victim);
            }
        }
        let mut left = victims;
        while let Some(of_one) = self.of_one(&mut left) {
            let block = self.block(of_one[0]);
            self.by_owner.prepare_to_leave(owner_of(block.tenant), block.namespace(), of_one);
        }
        if is_reused {
            victims.iter().zip(hashes).for_each(|(&victim, &hash)| self.drop_cells(victim, hash));
        } else {
            victims.iter().for_each(|&victim| self.leave_siblings(victim));
        }
        self.by_owner.leave();
        let mut left = victims;
        while let Some(of_one) = self.of_one(&mut left) {
            self.tell_gone_of_one(of_one, reason, shared);
        }
    }

    /// Tells events, marks, blocks and counters of victims of one tenant and namespace.
    fn tell_gone_of_one(&mut self, victims: &[u32], reason: RemoveReason, shared: &mut Shared) {
        let (tenant, namespace) = self.whose(victims[0]);
        let (is_eviction, newest) = (reason == RemoveReason::Evicted, shared.steps.newest());
        let namespace_id = shared.namespaces.get(namespace).id();
        for &victim in victims {
            if shared.events.is_on() {
                let has_expired = is_eviction && self.has_expired(victim);
                let reason = if has_expired { RemoveReason::Expired } else { reason };
                shared.events.push(self.event_in(namespace_id, victim, CacheEventKind::Removed, reason));
            }
            self.clear_retention(victim);
            if is_eviction {
                // In no table any more, for somebody wants it now.
                self.blocks[victim as usize].namespace_and_flags &= !(FINDABLE | NAMESPACE_MASK);
                self.ages.note(self.block(victim).last_step, newest);
            } else {
                self.depart(victim);
            }
        }
        let mut tally = Tally::NONE;
        let (of_all, count) = ((tenant, namespace), victims.len() as u32);
        tally.forget(of_all, count, reason.is_eviction(), &mut self.by_owner, &mut shared.namespaces);
        tally.cached -= i64::from(count);
        tally.settle(&mut self.by_owner, &mut shared.namespaces);
    }

    /// Pins the findable ones of these held blocks, each once for every time that it is named; none if one cannot be.
    pub(in crate::cache) fn pin(
        &mut self,
        pinner: Pinner,
        blocks: impl Iterator<Item = u32> + Clone,
    ) -> Result<()> {
        let (known, most) = (&self.blocks, self.limit / PINNED_SHARE);
        let findable = blocks.clone().filter(|&block| known[block as usize].is_findable());
        self.retention.pin(pinner, most, findable)?;
        for index in blocks {
            let block = &mut self.blocks[index as usize];
            if block.is_findable() {
                block.namespace_and_flags |= RETAINED;
            }
        }
        Ok(())
    }

    /// Takes one pin of a block away. Above the limit only that kept a block findable which nobody holds.
    pub(in crate::cache) fn unpin(&mut self, pinner: Pinner, index: u32, shared: &mut Shared) {
        let is_inactive = self.is_inactive(index);
        if self.retention.unpin(pinner, index, is_inactive) {
            if !self.retention.released(index) {
                self.policy.released(index);
            }
            let mut tally = Tally::NONE;
            self.join_cached(index, &mut tally, &mut shared.namespaces);
            tally.settle(&mut self.by_owner, &mut shared.namespaces);
        }
        if index >= self.limit && self.is_inactive(index) && !self.retention.is_pinned(index) {
            self.remove(index, RemoveReason::Requested, shared);
        }
    }

    /// Lets priorities end whose time has come, of a few blocks at a time.
    pub(in crate::cache) fn expire(&mut self, now_ms: u64) {
        let blocks = &self.blocks;
        let is_inactive = |index: u32| {
            let block = &blocks[index as usize];
            block.is_findable() && block.refs == 0 && !block.is_waiting()
        };
        for &index in self.retention.expire(now_ms, is_inactive).blocks() {
            self.policy.released(index);
        }
    }
}
