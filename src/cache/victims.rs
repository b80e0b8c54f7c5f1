//! How a store makes room: who goes, in what order, and how several blocks are handed out at once.
//!
//! Priorities and pins (`retention`) come before the policy. Part of `store`, whose invariants hold here too.

use std::mem::offset_of;

use super::{PINNED_SHARE, Store};
use crate::cache::block::{Origin, RETAINED, Shared};
use crate::cache::events::RemoveReason;
use crate::cache::retention::Pinner;
use crate::cache::tally::Tally;
use crate::error::Result;
use crate::sys::prefetch;

/// Victims whose memory is fetched together.
const FETCHED: u32 = 16;
/// Fewer are not worth it.
const FETCH_LEAST: u32 = 4;
/// From here on an origin holds what an event tells.
const TOLD: usize = offset_of!(Origin, parent_key);
/// Requests of fewer blocks are not worth headroom.
const RUN_LEAST: u32 = 8;
/// One block in so many is kept free for the sake of runs, where blocks are not handed out in exact order.
const HEADROOM_SHARE: u32 = 64;

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
        let mut tally = Tally::NONE;
        shared.count_handed_out(count, tenant);
        if self.free.is_exact() {
            for at in 0..count {
                if at.is_multiple_of(FETCHED) {
                    self.fetch_victims((count - at).saturating_sub(self.free.count()), shared);
                }
                let index = match self.free.pop() {
                    Some(index) => index,
                    None => self
                        .evict_next(RemoveReason::Evicted, shared, &mut tally)
                        .expect("the caller checked that a block is available"),
                };
                self.hand_out(index, tenant);
                take(index);
            }
            return tally.settle(&mut self.by_owner, &mut shared.namespaces);
        }
        // All victims first: what was allocated together is often let go together, and makes a run again. A few more
        // of them, so that there is a choice of runs the next time too: promised blocks may be free as well as cached.
        let is_short = self.free.count() < count;
        let spare = if count >= RUN_LEAST { count.min(self.limit / HEADROOM_SHARE) } else { 0 };
        if is_short {
            let wanted = count + spare - self.free.count();
            self.evict_some(wanted.into(), RemoveReason::Evicted, shared);
        }
        let (mut left, mut near) = (count, near);
        while left > 0 {
            let (first, length) = self.free.take_run(left, near).expect("as many are free as are wanted");
            for index in first..first + length {
                self.hand_out(index, tenant);
                take(index);
            }
            (left, near) = (left - length, Some(first + length - 1));
        }
    }

    /// Evicts the next victims, as many as may go; answers how many.
    pub(in crate::cache) fn evict_some(
        &mut self,
        count: u64,
        reason: RemoveReason,
        shared: &mut Shared,
    ) -> u64 {
        let (mut tally, mut evicted) = (Tally::NONE, 0);
        while evicted < count {
            if evicted.is_multiple_of(FETCHED.into()) {
                self.fetch_victims(u32::try_from(count - evicted).unwrap_or(u32::MAX), shared);
            }
            let Some(victim) = self.evict_next(reason, shared, &mut tally) else { break };
            self.free.push(victim);
            evicted += 1;
        }
        tally.settle(&mut self.by_owner, &mut shared.namespaces);
        evicted
    }

    /// Evicts the next victim, which the caller puts to use.
    pub(super) fn evict(&mut self, reason: RemoveReason, shared: &mut Shared) -> Option<u32> {
        let mut tally = Tally::NONE;
        let victim = self.evict_next(reason, shared, &mut tally);
        tally.settle(&mut self.by_owner, &mut shared.namespaces);
        victim
    }

    /// Has fetched what evictions of the next victims read, where the processor's own cache does not hold it: first for
    /// all of them what lies at their indices, then what that leads to.
    pub(in crate::cache) fn fetch_victims(&mut self, count: u32, shared: &Shared) {
        if count < FETCH_LEAST || !self.is_large {
            return;
        }
        let most = count.min(FETCHED) as usize;
        let (mut likely, mut found) = ([0; FETCHED as usize], 0);
        let (blocks, origins) = (&self.blocks, &self.origins);
        let (by_owner, by_namespace) = (&self.by_owner, &self.by_namespace);
        // Only events and the lists of children want to know where a victim came from.
        let reads_origins = shared.events.is_on() || self.children.is_some();
        let mut fetch = |victim: u32| {
            let Some(place) = likely.get_mut(found) else { return };
            *place = victim;
            found += 1;
            prefetch::prefetch(blocks, victim as usize);
            if reads_origins {
                prefetch::prefetch_part(origins, victim as usize, TOLD);
                prefetch::prefetch_part(origins, victim as usize, size_of::<Origin>() - 1);
            }
            by_owner.fetch(victim);
            by_namespace.fetch(victim);
        };
        self.retention.likely_victims(most, &mut fetch);
        self.policy.likely_victims(most, &mut fetch);
        for &victim in &likely[..found] {
            let block = self.block(victim);
            self.index.fetch(self.index.hash(&block.key, block.namespace()));
            self.by_owner.fetch_neighbours(victim);
            self.by_namespace.fetch_neighbours(victim);
            if block.is_retained() {
                self.retention.fetch(victim);
            }
        }
    }

    /// Evicts the next victim: of a low priority, else the policy's, else of a high priority.
    fn evict_next(&mut self, reason: RemoveReason, shared: &mut Shared, tally: &mut Tally) -> Option<u32> {
        let mut governed = self.retention.victim_below();
        let of_policy = if governed.is_none() { self.policy.victim() } else { None };
        if of_policy.is_none() && governed.is_none() {
            governed = self.retention.victim_above();
        }
        if let Some(victim) = governed {
            self.policy.removed(victim, false);
        }
        let victim = governed.or(of_policy)?;
        self.leave_inactive(victim, tally, &mut shared.namespaces);
        let has_expired = reason == RemoveReason::Evicted && self.has_expired(victim);
        if reason == RemoveReason::Evicted {
            shared.counters.evicted_blocks += 1;
            self.ages.note(self.block(victim).last_step, shared.steps.newest());
        }
        self.forget(victim, if has_expired { RemoveReason::Expired } else { reason }, shared, tally);
        Some(victim)
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
