//! How a store makes room: who goes, in what order, and how several blocks are handed out at once.
//!
//! Priorities and pins (`retention`) come before the policy. Part of `store`, whose invariants hold here too.

use super::{PINNED_SHARE, Store};
use crate::cache::block::Shared;
use crate::cache::events::RemoveReason;
use crate::cache::retention::Pinner;
use crate::error::Result;

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
        if self.free.is_exact() {
            return (0..count).for_each(|_| take(self.allocate(tenant, shared)));
        }
        // All victims first: what was allocated together is often let go together, and makes a run again. A few more
        // of them, so that there is a choice of runs the next time too: promised blocks may be free as well as cached.
        let is_short = self.free.count() < count;
        let spare = if count >= RUN_LEAST { count.min(self.limit / HEADROOM_SHARE) } else { 0 };
        while is_short && self.free.count() < count + spare {
            let Some(victim) = self.evict(RemoveReason::Evicted, shared) else { break };
            self.free.push(victim);
        }
        let (mut left, mut near) = (count, near);
        while left > 0 {
            let (first, length) = self.free.take_run(left, near).expect("as many are free as are wanted");
            for index in first..first + length {
                self.hand_out(index, tenant, shared);
                take(index);
            }
            (left, near) = (left - length, Some(first + length - 1));
        }
    }

    /// Evicts the next victim. False if nothing that may go is inactive.
    pub(in crate::cache) fn evict_one(&mut self, reason: RemoveReason, shared: &mut Shared) -> bool {
        let Some(victim) = self.evict(reason, shared) else { return false };
        self.free.push(victim);
        true
    }

    /// Evicts the next victim: of a low priority, else the policy's, else of a high priority.
    pub(super) fn evict(&mut self, reason: RemoveReason, shared: &mut Shared) -> Option<u32> {
        let mut governed = self.retention.victim_below();
        let of_policy = if governed.is_none() { self.policy.victim() } else { None };
        if of_policy.is_none() && governed.is_none() {
            governed = self.retention.victim_above();
        }
        if let Some(victim) = governed {
            self.policy.removed(victim, false);
        }
        let victim = governed.or(of_policy)?;
        self.leave_inactive(victim, &mut shared.namespaces.owners);
        let has_expired = reason == RemoveReason::Evicted && self.retention.has_expired(victim);
        shared.counters.evicted_blocks += u64::from(reason == RemoveReason::Evicted);
        self.forget(victim, if has_expired { RemoveReason::Expired } else { reason }, shared);
        Some(victim)
    }

    /// Pins the findable ones of these held blocks, each once for every time that it is named; none if one cannot be.
    pub(in crate::cache) fn pin(
        &mut self,
        pinner: Pinner,
        blocks: impl Iterator<Item = u32> + Clone,
    ) -> Result<()> {
        let (known, most) = (&self.blocks, self.limit / PINNED_SHARE);
        let findable = blocks.filter(|&block| known[block as usize].is_findable());
        self.retention.pin(pinner, most, findable)
    }

    /// Takes one pin of a block away. Above the limit nothing else kept the block findable.
    pub(in crate::cache) fn unpin(&mut self, pinner: Pinner, index: u32, shared: &mut Shared) {
        let is_inactive = self.is_inactive(index);
        if self.retention.unpin(pinner, index, is_inactive) {
            if !self.retention.released(index) {
                self.policy.released(index);
            }
            self.join_cached(index, &mut shared.namespaces.owners);
        }
        if index >= self.limit && self.block(index).is_findable() && !self.retention.is_pinned(index) {
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
