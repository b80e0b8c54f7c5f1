//! How blocks of a store get holders and lose them.
//!
//! A findable block that gets its first holder leaves those that may go, and joins them when its last one lets go: at
//! once, or when the steps that may still read it are complete, for which it waits. What it does not: hand blocks out.
//! Part of `store`, whose invariants hold here too.

use super::Store;
use crate::cache::block::{Block, Shared, WAITING};
use crate::cache::events::RemoveReason;
use crate::cache::owners::owner_of;
use crate::cache::retention::Retention;
use crate::cache::steps::{NONE, Waiting};
use crate::cache::tally::Tally;
use crate::cache::walk::AHEAD;

/// Puts a block at the end of a list that is linked through the blocks.
#[inline]
pub(super) fn append(blocks: &mut [Block], index: u32, list: &mut Waiting) {
    let block = &mut blocks[index as usize];
    (block.prev, block.next) = (list.tail, NONE);
    match list.tail {
        NONE => list.head = index,
        tail => blocks[tail as usize].next = index,
    }
    list.tail = index;
}

/// Takes a block out of the list in which it is.
#[inline]
pub(super) fn unlink(blocks: &mut [Block], index: u32, list: &mut Waiting) {
    let Block { prev, next, .. } = blocks[index as usize];
    match prev {
        NONE => list.head = next,
        prev => blocks[prev as usize].next = next,
    }
    match next {
        NONE => list.tail = prev,
        next => blocks[next as usize].prev = prev,
    }
}

impl Store {
    /// One more holder of a findable block.
    pub(in crate::cache) fn acquire(&mut self, index: u32, shared: &mut Shared) {
        self.acquire_all(&[index as i32], shared);
    }

    /// One more holder of each of these findable blocks.
    pub(in crate::cache) fn acquire_all(&mut self, blocks: &[i32], shared: &mut Shared) {
        let mut tally = Tally::NONE;
        for (at, &block) in blocks.iter().enumerate() {
            self.fetch_block(blocks.get(at + AHEAD).copied(), blocks.get(at + AHEAD - 1).copied());
            self.acquire_one(block as u32, shared, &mut tally);
        }
        tally.settle(&mut self.by_owner, &mut shared.namespaces);
    }

    fn acquire_one(&mut self, index: u32, shared: &mut Shared, tally: &mut Tally) {
        let block = &mut self.blocks[index as usize];
        block.refs += 1;
        if block.refs > 1 {
            return;
        }
        let (tenant, namespace, is_retained) = (block.tenant, block.namespace(), block.is_retained());
        tally.turn_to((tenant, namespace), &mut self.by_owner, &mut shared.namespaces);
        tally.held += 1;
        if block.is_waiting() {
            let last_step = block.last_step;
            let waiting = shared.steps.waiting(last_step, self.group as usize);
            self.unlink_waiting(index, waiting);
            return;
        }
        if is_retained {
            self.leave_inactive(index, tally, &mut shared.namespaces);
            if !self.is_taken_care_of(index, Retention::acquired) {
                self.policy.acquired(index);
            }
        } else {
            self.inactive -= 1;
            tally.cached -= 1;
            self.policy.acquired(index);
        }
        if tally.is_ordered {
            self.by_owner.set_aside(owner_of(tenant), index);
        }
    }

    /// One holder less, which was scheduled last in `last_step`.
    pub(in crate::cache) fn release(&mut self, index: u32, last_step: u64, shared: &mut Shared) {
        self.release_all(&[index as i32], last_step, shared);
    }

    /// One holder less of each of these blocks, the last of them first.
    pub(in crate::cache) fn release_all(&mut self, blocks: &[i32], last_step: u64, shared: &mut Shared) {
        let (mut tally, group) = (Tally::NONE, self.group as usize);
        // The list of the step for which the latest one waits: the others nearly always wait for the same.
        let (mut step, mut list) = (0, Waiting { head: NONE, tail: NONE });
        for (at, &index) in blocks.iter().enumerate().rev() {
            let (ahead, after) = (at.wrapping_sub(AHEAD), at.wrapping_sub(AHEAD - 1));
            self.fetch_block(blocks.get(ahead).copied(), blocks.get(after).copied());
            let block = &mut self.blocks[index as usize];
            block.refs -= 1;
            block.note_use(last_step);
            if block.refs > 0 {
                continue;
            }
            tally.turn(block.tenant, &mut self.by_owner, &mut shared.namespaces);
            tally.held -= 1;
            let last_step = block.last_step;
            if last_step <= shared.steps.completed() {
                self.give_back(index as u32, &mut tally, shared);
                continue;
            }
            if last_step != step {
                if step > 0 {
                    *shared.steps.waiting(step, group) = list;
                }
                (step, list) = (last_step, *shared.steps.waiting(last_step, group));
            }
            self.link_waiting(index as u32, &mut list);
        }
        if step > 0 {
            *shared.steps.waiting(step, group) = list;
        }
        tally.settle(&mut self.by_owner, &mut shared.namespaces);
    }

    #[inline]
    fn give_back(&mut self, index: u32, tally: &mut Tally, shared: &mut Shared) {
        let block = &self.blocks[index as usize];
        let is_findable = block.is_findable();
        if is_findable && index < self.limit && !block.is_retained() {
            // An ordinary one, as nearly all are.
            self.inactive += 1;
            let whose = (block.tenant, block.namespace());
            self.policy.released(index);
            self.join_cached_of(whose, index, tally, &mut shared.namespaces);
        } else if is_findable && index >= self.limit && !self.is_pinned(index) {
            // Out of use: only its holders kept it.
            self.policy.removed(index, false);
            self.forget(index, RemoveReason::Requested, shared, tally);
            self.put_free(index);
        } else if is_findable {
            self.inactive += 1;
            if !self.is_taken_care_of(index, Retention::released) {
                self.policy.released(index);
            }
            if !self.is_pinned(index) {
                self.join_cached(index, tally, &mut shared.namespaces);
            }
        } else {
            self.free_unfindable(index);
        }
    }

    fn free_unfindable(&mut self, index: u32) {
        self.clear_retention(index);
        self.put_free(index);
    }

    pub(super) fn link_waiting(&mut self, index: u32, list: &mut Waiting) {
        self.blocks[index as usize].namespace_and_flags |= WAITING;
        append(&mut self.blocks, index, list);
        self.waiting += 1;
    }

    fn unlink_waiting(&mut self, index: u32, list: &mut Waiting) {
        self.blocks[index as usize].namespace_and_flags &= !WAITING;
        unlink(&mut self.blocks, index, list);
        self.waiting -= 1;
    }

    /// Gives back all blocks that waited for a step that is now complete, in the order in which they were let go.
    pub(in crate::cache) fn give_back_waiting(&mut self, list: &mut Waiting, shared: &mut Shared) {
        let mut tally = Tally::NONE;
        let mut at = std::mem::replace(list, Waiting::EMPTY).head;
        while at != NONE {
            let block = &mut self.blocks[at as usize];
            block.namespace_and_flags &= !WAITING;
            let index = std::mem::replace(&mut at, block.next);
            self.waiting -= 1;
            self.give_back(index, &mut tally, shared);
        }
        tally.settle(&mut self.by_owner, &mut shared.namespaces);
    }
}
