//! A place for a new namespace in a full table: the idle one that was used least recently loses what it has cached.
//!
//! Idle is one without leases and sequences. It can go if all its blocks may be evicted: what is pinned stays, and so
//! does what a step in flight may still read. Those with few blocks go first. Where no idle one is small, pieces of the
//! large one that was seen first go, and if some of it is left after as many as one lookup makes go, that is refused
//! and the next one goes on there: else idle namespaces could shut every new one out for good. What it does not: go
//! over the table, or hold the lock for long. A turn looks at a few namespaces from the oldest on, and those that are
//! large, pinned or in a step are set aside until they are not, so that nobody looks at them twice; the evictions come
//! in pieces, between which others may use the namespace: it keeps the rest then.
//! Invariant: unless all blocks of a namespace may go, none goes.

use super::events::RemoveReason;
use super::hash::Key;
use super::kv_cache::KvCache;
use super::namespace::Home;
use super::state::State;
use crate::error::{Result, Status};
use crate::sync::give_way;

/// Namespaces that one turn looks at.
const LOOK_NAMESPACES: usize = 16;
/// Turns of one lookup that find nothing.
const TURNS_MOST: usize = 8;
/// Blocks that go under one hold of the lock: each costs 1 us where memory is busy.
const PIECE: u32 = 32;
/// Pieces for one lookup: of a small namespace 8, and more of a large one, or where other threads take the places that
/// come free.
const PIECES_MOST: usize = 64;

/// A namespace that is to go.
#[derive(Clone, Copy)]
struct Leaving {
    index: u32,
    /// Its entry is another's if this differs.
    root: Key,
}

impl State {
    /// Whether a lookup was refused for want of a place in the table of namespaces and of nothing else.
    fn lacks_place(&self, home: &Home<'_>) -> bool {
        let namespaces = &self.shared.namespaces;
        namespaces.is_full() && matches!(namespaces.find(home), Ok(None)) && self.holders.next_lease().is_ok()
    }

    /// One turn: the namespace that is to go.
    fn choose_leaving(&mut self) -> Option<Leaving> {
        let namespaces = &mut self.shared.namespaces;
        for _ in 0..LOOK_NAMESPACES {
            let index = namespaces.oldest_idle()?;
            let namespace = namespaces.get(index);
            if namespace.can_leave() {
                return Some(Leaving { index, root: namespace.root });
            }
            namespaces.set_aside(index);
        }
        None
    }

    /// The large namespace that is to go where none is small.
    fn choose_large(&self) -> Option<Leaving> {
        let namespaces = &self.shared.namespaces;
        namespaces.oldest_large().map(|index| Leaving { index, root: namespaces.get(index).root })
    }

    /// Evicts a piece of what a namespace has cached. False if it is gone or cannot go any more.
    fn evict_leaving(&mut self, leaving: Leaving) -> bool {
        for _ in 0..PIECE {
            let namespaces = &self.shared.namespaces;
            if !namespaces.is_idle(leaving.index) || namespaces.get(leaving.index).root != leaving.root {
                return false;
            }
            let oldest = self.stores.iter_mut().find_map(|store| {
                let block = store.by_owner.oldest_in(leaving.index)?;
                Some((store, block))
            });
            let Some((store, block)) = oldest.filter(|(store, block)| store.may_go(*block)) else {
                return false;
            };
            store.remove(block, RemoveReason::Evicted, &mut self.shared);
            self.shared.counters.evicted_blocks += 1;
        }
        true
    }
}

impl KvCache {
    /// Runs a lookup under the lock; if it is refused because the table of namespaces is full, once more after another
    /// namespace made room.
    pub(super) fn look_up<R>(
        &self,
        home: &Home<'_>,
        mut look: impl FnMut(&mut State) -> Result<R>,
    ) -> Result<R> {
        let found = look(&mut self.state());
        match found {
            Err(error) if error.status == Status::LimitReached => {
                self.make_place(home)?;
                look(&mut self.state())
            }
            found => found,
        }
    }

    /// Has a namespace go if a lookup lacks a place for its own.
    fn make_place(&self, home: &Home<'_>) -> Result<()> {
        let (mut leaving, mut turns, mut has_reaped) = (None, 0, false);
        for _ in 0..PIECES_MOST + TURNS_MOST {
            let mut state = self.state();
            if !state.lacks_place(home) {
                break;
            }
            if let Some(chosen) = leaving {
                if !state.evict_leaving(chosen) {
                    leaving = None;
                }
                give_way(state);
                continue;
            }
            leaving = state.choose_leaving();
            let sees_further = state.shared.namespaces.oldest_idle().is_some();
            drop(state);
            if leaving.is_some() {
                continue;
            }
            // Work that is over may have left blocks that only wait to be told so.
            if !std::mem::replace(&mut has_reaped, true) {
                drop(self.reap()?);
                continue;
            }
            turns += 1;
            if !sees_further {
                leaving = self.state().choose_large();
            }
            if leaving.is_none() && (turns == TURNS_MOST || !sees_further) {
                break;
            }
        }
        Ok(())
    }
}
