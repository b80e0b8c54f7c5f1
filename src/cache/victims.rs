//! How a store makes room: who goes, in what order, and how several blocks are handed out at once.
//!
//! Priorities and pins (`retention`) come before the policy. Part of `store`, whose invariants hold here too.

use super::{PINNED_SHARE, Store};
use crate::cache::block::{RETAINED, Shared};
use crate::cache::events::RemoveReason;
use crate::cache::owners::owner_of;
use crate::cache::retention::Pinner;
use crate::cache::tally::Tally;
use crate::error::Result;
use crate::sys::prefetch;

/// Victims that go together: what they read is fetched for all of them before any of them goes.
const TOGETHER: usize = 32;
/// Fewer are not worth it.
const FETCH_LEAST: usize = 4;
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
        shared.count_handed_out(count, tenant);
        if self.free.is_exact() {
            let mut left = count;
            while left > 0
                && let Some(index) = self.free.pop()
            {
                self.hand_out(index, tenant);
                take(index);
                left -= 1;
            }
            let mut victims = [0; TOGETHER];
            while left > 0 {
                let victims = &mut victims[..TOGETHER.min(left as usize)];
                let gone = self.evict_into(victims, RemoveReason::Evicted, shared);
                assert!(gone == victims.len(), "the caller checked that as many blocks are available");
                for &index in &*victims {
                    self.hand_out(index, tenant);
                    take(index);
                }
                left -= gone as u32;
            }
            return;
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
        let (mut victims, mut evicted) = ([0; TOGETHER], 0);
        while evicted < count {
            let most = usize::try_from(count - evicted).unwrap_or(usize::MAX).min(TOGETHER);
            let gone = self.evict_into(&mut victims[..most], reason, shared);
            self.free.push_all(&victims[..gone]);
            evicted += gone as u64;
            if gone < most {
                break;
            }
        }
        evicted
    }

    /// Evicts the next victim, which the caller puts to use.
    pub(super) fn evict(&mut self, reason: RemoveReason, shared: &mut Shared) -> Option<u32> {
        let mut victim = [0];
        (self.evict_into(&mut victim, reason, shared) > 0).then_some(victim[0])
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
        self.fetch_gone(&likely[..found], shared);
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

    /// Has fetched what lies at the indices of blocks that are about to go.
    fn fetch_gone(&self, victims: &[u32], shared: &Shared) {
        // Only events and the lists of children want to know what a victim follows.
        let reads_ancestry = shared.events.is_on() || self.children.is_some();
        for &victim in victims {
            prefetch::prefetch(&self.blocks, victim as usize);
            if reads_ancestry {
                self.fetch_ancestry(victim);
            }
            self.by_owner.fetch(victim);
            self.by_namespace.fetch(victim);
        }
    }

    /// Chooses the next victims, as many as there are places: of low priorities, else the policy's, else of high
    /// priorities. Answers how many; nobody lists them any more.
    fn choose_victims(&mut self, places: &mut [u32]) -> usize {
        let low = self.retention.victims_below(places);
        places[..low].iter().for_each(|&victim| self.policy.removed(victim, false));
        let ordinary = low + self.policy.victims(&mut places[low..]);
        let all = ordinary + self.retention.victims_above(&mut places[ordinary..]);
        places[ordinary..all].iter().for_each(|&victim| self.policy.removed(victim, false));
        all
    }

    /// Evicts the next victims, as many as may go and as there are places; answers how many.
    fn evict_into(&mut self, places: &mut [u32], reason: RemoveReason, shared: &mut Shared) -> usize {
        let count = self.choose_victims(places);
        let victims = &places[..count];
        let fetches = count >= FETCH_LEAST && self.is_large;
        if fetches {
            self.fetch_gone(victims, shared);
            shared.events.fetch_next(count);
        }
        let mut hashes = [0; TOGETHER];
        for (&victim, hash) in victims.iter().zip(&mut hashes) {
            let block = self.block(victim);
            *hash = self.index.hash(&block.key, block.namespace());
            if fetches {
                self.index.fetch(*hash);
                self.by_owner.fetch_neighbours(victim);
                self.by_namespace.fetch_neighbours(victim);
                if block.is_retained() {
                    self.retention.fetch(victim);
                }
            }
        }
        self.inactive -= count as u32;
        self.leave_namespaces(victims);
        let is_eviction = reason == RemoveReason::Evicted;
        if is_eviction {
            shared.counters.evicted_blocks += count as u64;
        }
        let (mut tally, mut of_owner) = (Tally::NONE, 0);
        for (at, (&victim, &hash)) in victims.iter().zip(&hashes).enumerate() {
            let block = self.block(victim);
            let (tenant, namespace) = (block.tenant, block.namespace());
            if is_eviction {
                self.ages.note(block.last_step, shared.steps.newest());
            }
            let has_expired = is_eviction && self.has_expired(victim);
            self.index.remove(hash, victim);
            self.tell_gone(victim, if has_expired { RemoveReason::Expired } else { reason }, shared);
            self.clear_retention(victim);
            if tally.is_of_another(tenant) {
                self.leave_owner(&victims[of_owner..at]);
                of_owner = at;
            }
            let of_block = (tenant, namespace);
            tally.forget(of_block, reason.is_eviction(), &mut self.by_owner, &mut shared.namespaces);
            tally.cached -= 1;
        }
        self.leave_owner(&victims[of_owner..]);
        tally.settle(&mut self.by_owner, &mut shared.namespaces);
        count
    }

    /// Blocks of one owner stand in its lists no more.
    fn leave_owner(&mut self, blocks: &[u32]) {
        if let Some(&first) = blocks.first() {
            self.by_owner.unlink_all(owner_of(self.block(first).tenant), blocks);
        }
    }

    /// Blocks stand in the lists of their namespaces no more.
    fn leave_namespaces(&mut self, blocks: &[u32]) {
        let Self { blocks: known, by_namespace, .. } = self;
        let namespace_of = |block: u32| known[block as usize].namespace();
        for of_one in blocks.chunk_by(|&one, &next| namespace_of(one) == namespace_of(next)) {
            by_namespace.unlink_all(namespace_of(of_one[0]), of_one);
        }
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
