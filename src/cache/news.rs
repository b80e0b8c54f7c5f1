//! Events, snapshots and resets, in pieces: no call holds the cache's lock for longer than a piece takes.
//!
//! What is read under the lock goes into a buffer of the call's own, so that a fault on the caller's memory never
//! happens under it. Between two pieces others may change everything; each answer says what it includes.

use super::events::{CacheEvent, CacheEventKind, RemoveReason};
use super::hash::Key;
use super::kv_cache::KvCache;
use super::prefixes::{MAX_PREFIXES, Prefix};
use super::state::{ResetScope, State};
use crate::error::Result;
use crate::sync::give_way;
use crate::sys::reserve::room;

/// Events that are copied under one hold of the lock: 13 kB.
const EVENT_PIECE: usize = 128;
/// Blocks that a snapshot looks at under one hold of the lock.
const SNAPSHOT_PIECE: u32 = 1024;
/// Blocks that a reset looks at, or takes out, under one hold of the lock: each costs 1 us where memory is busy.
const RESET_PIECE: u32 = 32;

/// A place for events that are about to be read.
const EMPTY: CacheEvent = CacheEvent {
    number: 0,
    kind: CacheEventKind::Cleared,
    reason: RemoveReason::None,
    group: 0,
    block: -1,
    namespace_id: 0,
    token_offset: 0,
    key: Key([0; 4]),
    parent_key: Key([0; 4]),
};

impl State {
    /// Copies events after `cursor` until the buffer is full; answers how many, and the oldest kept one after a gap.
    fn read_piece(&self, cursor: u64, buffer: &mut [CacheEvent]) -> (usize, Option<u64>) {
        let mut count = 0;
        while count < buffer.len() {
            match self.shared.events.after(cursor + count as u64) {
                Ok(Some(event)) => buffer[count] = *event,
                Ok(None) => break,
                Err(oldest) => return (count, Some(oldest)),
            }
            count += 1;
        }
        (count, None)
    }

    /// Copies findable blocks from `position` on; answers how many, the next position, and whether that was all.
    fn snapshot_piece(&self, position: u64, buffer: &mut [CacheEvent]) -> (usize, u64, bool) {
        let (group, mut index) = ((position >> 32) as usize, position as u32);
        let Some(store) = self.stores.get(group) else { return (0, (group as u64) << 32, true) };
        let end = store.block_count().min(index.saturating_add(SNAPSHOT_PIECE));
        let mut count = 0;
        while index < end && count < buffer.len() {
            if store.block(index).is_findable() {
                let (kind, reason) = (CacheEventKind::Stored, RemoveReason::None);
                let event = store.event(index, kind, reason, &self.shared.namespaces);
                buffer[count] = CacheEvent { number: self.shared.events.last(), ..event };
                count += 1;
            }
            index += 1;
        }
        let (group, index) = if index >= store.block_count() { (group + 1, 0) } else { (group, index) };
        (count, (group as u64) << 32 | u64::from(index), group == self.stores.len())
    }

    /// Makes findable blocks of a stretch of one group unfindable; answers how many.
    fn reset_stretch(&mut self, group: usize, stretch: std::ops::Range<u32>) -> u64 {
        let mut removed = 0;
        for index in stretch {
            if self.stores[group].block(index).is_findable() {
                self.stores[group].remove(index, RemoveReason::Reset, &mut self.shared);
                removed += 1;
            }
        }
        removed
    }

    /// Makes up to a piece of an owner's blocks of one group unfindable; answers how many.
    fn reset_piece_of(&mut self, group: usize, namespace_id: u64) -> u64 {
        // The owner is looked up each time: with its last block it may have gone.
        let any = |state: &Self| {
            state
                .shared
                .namespaces
                .owners
                .find(namespace_id)
                .and_then(|o| state.stores[group].by_owner.any(o))
        };
        let mut removed = 0;
        while removed < u64::from(RESET_PIECE) {
            let Some(block) = any(self) else { break };
            self.stores[group].remove(block, RemoveReason::Reset, &mut self.shared);
            removed += 1;
        }
        removed
    }

    /// Like [`Self::reset_stretch`] for the blocks of one namespace id.
    fn reset_stretch_of(&mut self, group: usize, stretch: std::ops::Range<u32>, namespace_id: u64) -> u64 {
        let mut removed = 0;
        for index in stretch {
            let block = self.stores[group].block(index);
            if block.is_findable() && self.shared.namespaces.get(block.namespace()).id() == namespace_id {
                self.stores[group].remove(index, RemoveReason::Reset, &mut self.shared);
                removed += 1;
            }
        }
        removed
    }
}

impl KvCache {
    /// Makes everything in scope unfindable; blocks that are held stay with their holders, which publish nothing more.
    /// Lets other threads in between pieces, so what new sequences publish meanwhile may go or stay.
    pub fn reset(&self, scope: ResetScope) -> Result<u64> {
        let id = match scope {
            ResetScope::All => None,
            ResetScope::Namespace(id) => Some(id),
        };
        let mut late = room(MAX_PREFIXES)?;
        let mut state = self.reap()?;
        state.check_decides()?;
        state.shared.namespaces.owners.turn_epoch(id);
        // What moved from a slot that is not yet looked at to one that was would stay.
        state.mover.resets += 1;
        // Not those that come: a thread that gives names all the time does not hold this up.
        let given = state.prefixes.given();
        drop(state);
        self.unpin_scope(scope, given);
        let mut removed = 0;
        for (group, geometry) in self.geometry.groups.iter().enumerate() {
            removed += match id {
                None => self.in_stretches(scope, &mut late, geometry.blocks, |state, stretch| {
                    state.reset_stretch(group, stretch)
                }),
                Some(id) => self.reset_namespace(group, &mut late, geometry.blocks, id),
            };
        }
        let mut state = self.state.lock();
        state.mover.resets -= 1;
        state.note_reset(scope);
        Ok(removed)
    }

    /// One piece of a reset. Names in its scope that others gave since the reset began go first, each as a whole as it
    /// was given, so that none lists what is forgotten; their memory goes when the lock is not held any more.
    fn reset_piece(
        &self,
        scope: ResetScope,
        late: &mut Vec<Prefix>,
        work: impl FnOnce(&mut State) -> u64,
    ) -> u64 {
        let mut state = self.state.lock();
        while let Some(unnamed) = state.take_prefix(scope) {
            late.push(unnamed);
        }
        let removed = work(&mut state);
        give_way(state);
        late.clear();
        removed
    }

    /// Wipes one namespace from one group, in proportion to what it has there.
    fn reset_namespace(&self, group: usize, late: &mut Vec<Prefix>, blocks: u32, id: u64) -> u64 {
        let (scope, mut removed) = (ResetScope::Namespace(id), 0);
        // More than all blocks come only if others publish as fast as these go: then one walk over all ends it.
        while removed <= u64::from(blocks) {
            match self.reset_piece(scope, late, |state| state.reset_piece_of(group, id)) {
                0 => return removed,
                count => removed += count,
            }
        }
        let of_stretch =
            |state: &mut State, stretch: std::ops::Range<u32>| state.reset_stretch_of(group, stretch, id);
        removed + self.in_stretches(scope, late, blocks, of_stretch)
    }

    fn in_stretches(
        &self,
        scope: ResetScope,
        late: &mut Vec<Prefix>,
        blocks: u32,
        mut work: impl FnMut(&mut State, std::ops::Range<u32>) -> u64,
    ) -> u64 {
        (0..blocks)
            .step_by(RESET_PIECE as usize)
            .map(|from| {
                let stretch = from..blocks.min(from + RESET_PIECE);
                self.reset_piece(scope, late, |state| work(state, stretch))
            })
            .sum()
    }

    /// Whether events are kept.
    pub fn keeps_events(&self) -> bool {
        self.state.lock().shared.events.is_on()
    }

    /// Gives events after `cursor` to `take`, at most `most`. Answers the new cursor and whether events were lost.
    pub fn read_events(
        &self,
        cursor: u64,
        most: usize,
        mut take: impl FnMut(usize, &CacheEvent),
    ) -> (u64, bool) {
        let mut buffer = [EMPTY; EVENT_PIECE];
        let (mut cursor, mut lost, mut count) = (cursor, false, 0);
        while count < most {
            let room = EVENT_PIECE.min(most - count);
            let state = self.state.lock();
            let (read, gap) = state.read_piece(cursor, &mut buffer[..room]);
            give_way(state);
            buffer[..read].iter().enumerate().for_each(|(at, event)| take(count + at, event));
            (cursor, count) = (cursor + read as u64, count + read);
            match gap {
                // Events that were read before the gap are given first; the next call reports it.
                Some(_) if count > 0 => break,
                Some(oldest) => (cursor, lost) = (oldest - 1, true),
                None if read < room => break,
                None => {}
            }
        }
        (cursor, lost)
    }

    /// Gives what is findable from `position` on to `take`, as events numbered with the latest one that they include.
    /// Answers the next position and whether that was all.
    pub fn snapshot(
        &self,
        position: u64,
        most: usize,
        mut take: impl FnMut(usize, &CacheEvent),
    ) -> (u64, bool) {
        let mut buffer = [EMPTY; EVENT_PIECE];
        let (mut position, mut count) = (position, 0);
        loop {
            let room = EVENT_PIECE.min(most - count);
            let state = self.state.lock();
            let (read, next, is_all) = state.snapshot_piece(position, &mut buffer[..room]);
            give_way(state);
            buffer[..read].iter().enumerate().for_each(|(at, event)| take(count + at, event));
            (position, count) = (next, count + read);
            if is_all || count == most {
                return (position, is_all);
            }
        }
    }
}

#[cfg(test)]
#[path = "news_tests.rs"]
mod tests;
