//! A table of raw values that are looked up without a lock and ended by their last user.
//!
//! What it does: gives a value an id, pins it for the time of one call, tells who ends it. What it does not: end it;
//! whoever gets the value back from `close` or `release` does, outside of any lock. A lookup is one atomic addition and
//! its end one subtraction, both in a word of the value's own, so threads that use different values do not meet.
//! Invariants: a value is handed back exactly once, when it is closed and nobody has it pinned; an id is never given
//! again before 2^32 others of its slot. Lock order: `free` alone, never taken by `pin` or `release`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Mutex;

/// The value may be pinned.
const LIVE: u64 = 1 << 31;
/// The value was closed, and its last user has to end it.
const CLOSED: u64 = 1 << 30;
/// Users of the moment, those included whose id is stale and who are about to notice.
const USERS: u64 = CLOSED - 1;
/// The state's upper half.
const GENERATION: u32 = 32;

/// Slots of the first chunk; each chunk holds twice as many as the one before.
const FIRST: usize = 64;
const CHUNKS: usize = 24;

struct Slot {
    /// Generation, LIVE, CLOSED, users.
    state: AtomicU64,
    value: AtomicU64,
}

/// The table; its memory only grows, to the most values that were ever alive at once.
pub struct Slots {
    /// What the generations of new slots start after.
    generation: u32,
    chunks: [OnceLock<Box<[Slot]>>; CHUNKS],
    free: Mutex<Free>,
}

struct Free {
    indices: Vec<u32>,
    /// Slots that were ever used.
    used: u32,
}

fn place(index: u32) -> (usize, usize) {
    let shifted = index as usize + FIRST;
    let chunk = (shifted.ilog2() - FIRST.ilog2()) as usize;
    (chunk, shifted - (FIRST << chunk))
}

impl Default for Slots {
    fn default() -> Self {
        Self::new()
    }
}

impl Slots {
    /// An empty one.
    pub const fn new() -> Self {
        Self::starting_at(0)
    }

    /// An empty one with ids of its own: those of a table that starts elsewhere are stale here.
    pub const fn starting_at(generation: u32) -> Self {
        let free = Mutex::new(Free { indices: Vec::new(), used: 0 });
        Self { generation, chunks: [const { OnceLock::new() }; CHUNKS], free }
    }

    fn slot(&self, id: u64) -> Option<&Slot> {
        let (chunk, place) = place(id as u32);
        self.chunks.get(chunk)?.get()?.get(place)
    }

    fn fresh(&self, count: usize) -> Box<[Slot]> {
        let state = u64::from(self.generation) << GENERATION;
        let slot = || Slot { state: AtomicU64::new(state), value: AtomicU64::new(0) };
        (0..count).map(|_| slot()).collect()
    }

    /// Ids that are live now, for the end of their owner.
    pub fn ids(&self) -> Vec<u64> {
        let used = self.free.lock().used;
        let id = |index: u32| {
            let state = self.slot(u64::from(index))?.state.load(Ordering::Relaxed);
            (state & LIVE != 0).then_some(state >> GENERATION << GENERATION | u64::from(index))
        };
        (0..used).filter_map(id).collect()
    }

    /// Takes a value; its id is never 0. Nothing if the table is full, at 2^30 values.
    pub fn insert(&self, value: u64) -> Option<u64> {
        let mut free = self.free.lock();
        let index = match free.indices.pop() {
            Some(index) => index,
            None => {
                let (chunk, _) = place(free.used);
                self.chunks.get(chunk)?.get_or_init(|| self.fresh(FIRST << chunk));
                free.used += 1;
                free.used - 1
            }
        };
        drop(free);
        let slot = self.slot(u64::from(index))?;
        slot.value.store(value, Ordering::Relaxed);
        // Generation 0 is skipped, so that no id is 0. Users stay: a stale id may be looked at this moment.
        let next = |state: u64| {
            let generation = ((state >> GENERATION) as u32).wrapping_add(1).max(1);
            Some(u64::from(generation) << GENERATION | LIVE | state & USERS)
        };
        // Release: whoever pins this generation sees the value.
        let before = slot.state.fetch_update(Ordering::Release, Ordering::Relaxed, next).ok()?;
        let state = next(before)?;
        Some(state >> GENERATION << GENERATION | u64::from(index))
    }

    /// The value, which now stays until `release`; nothing if the id is over.
    pub fn pin(&self, id: u64) -> Result<u64, Stale> {
        let slot = self.slot(id).ok_or(Stale(None))?;
        let state = slot.state.fetch_add(1, Ordering::Acquire);
        if state >> GENERATION == id >> GENERATION && state & LIVE != 0 {
            return Ok(slot.value.load(Ordering::Relaxed));
        }
        // This look may have been what kept a closed value from its end.
        Err(Stale(self.leave(slot, id as u32)))
    }

    /// Ends one pin; the value, if the caller has to end it.
    #[must_use]
    pub fn release(&self, id: u64) -> Option<u64> {
        self.leave(self.slot(id)?, id as u32)
    }

    /// Closes an id: from now on it is stale. The value, if the caller has to end it; else the last user does.
    pub fn close(&self, id: u64) -> Result<Option<u64>, Stale> {
        let slot = self.slot(id).ok_or(Stale(None))?;
        let close = |state: u64| {
            let is_ours = state >> GENERATION == id >> GENERATION && state & LIVE != 0;
            is_ours.then_some((state ^ LIVE) | CLOSED)
        };
        slot.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, close).map_err(|_| Stale(None))?;
        Ok(self.end(slot, id as u32))
    }

    /// Whether an id was closed and somebody still has its value pinned.
    pub fn is_pinned_still(&self, id: u64) -> bool {
        let Some(slot) = self.slot(id) else { return false };
        // Acquire: what its last user did happens before the end is seen.
        let state = slot.state.load(Ordering::Acquire);
        state >> GENERATION == id >> GENERATION && state & CLOSED != 0
    }

    fn leave(&self, slot: &Slot, index: u32) -> Option<u64> {
        // Release: what this user did happens before the end.
        let state = slot.state.fetch_sub(1, Ordering::Release);
        if state & CLOSED == 0 || state & USERS != 1 {
            return None;
        }
        self.end(slot, index)
    }

    /// The value, if it is closed, unused, and nobody else was first.
    fn end(&self, slot: &Slot, index: u32) -> Option<u64> {
        let end = |state: u64| (state & CLOSED != 0 && state & USERS == 0).then_some(state ^ CLOSED);
        slot.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, end).ok()?;
        let value = slot.value.load(Ordering::Relaxed);
        self.free.lock().indices.push(index);
        Some(value)
    }
}

/// The id is over. A value that comes with it was waiting for this very look to end: the caller has to end it.
#[derive(Debug, PartialEq, Eq)]
pub struct Stale(pub Option<u64>);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn a_value_ends_once_when_it_is_closed_and_unused() {
        let slots = Slots::new();
        let id = slots.insert(7).unwrap();
        assert_eq!(slots.pin(id), Ok(7));
        assert_eq!(slots.pin(id), Ok(7));
        assert_eq!(slots.release(id), None);
        assert_eq!(slots.close(id), Ok(None));
        assert_eq!(slots.close(id), Err(Stale(None)));
        assert_eq!(slots.pin(id), Err(Stale(None)));
        assert!(slots.is_pinned_still(id));
        assert_eq!(slots.release(id), Some(7));
        assert!(!slots.is_pinned_still(id));
        let next = slots.insert(8).unwrap();
        assert_eq!(next as u32, id as u32, "the place is used again");
        assert_ne!(next, id);
        assert_eq!(slots.pin(id), Err(Stale(None)));
        assert_eq!(slots.close(next), Ok(Some(8)));
        assert_eq!(slots.pin(0), Err(Stale(None)));
        assert_eq!(slots.pin(u64::MAX), Err(Stale(None)));
    }

    #[test]
    fn ids_of_many_values_are_different_and_lead_to_them() {
        let slots = Slots::new();
        let ids: Vec<u64> = (0..10_000).map(|value| slots.insert(value).unwrap()).collect();
        for (value, &id) in ids.iter().enumerate() {
            assert_eq!(slots.pin(id), Ok(value as u64));
            assert_eq!(slots.release(id), None);
            assert_eq!(slots.close(id), Ok(Some(value as u64)));
        }
    }

    #[test]
    fn the_ids_of_two_tables_are_strangers_to_each_other() {
        let (one, other) = (Slots::starting_at(u32::MAX), Slots::starting_at(1000));
        let ids = [one.insert(1).unwrap(), one.insert(2).unwrap()];
        assert!(ids.iter().all(|&id| id >> 32 == 1), "0 is skipped");
        other.insert(3).unwrap();
        assert!(ids.iter().all(|&id| other.pin(id) == Err(Stale(None))));
        assert_eq!(one.close(ids[0]), Ok(Some(1)));
        assert_eq!(one.ids(), [ids[1]]);
    }

    #[test]
    fn threads_that_pin_and_close_end_every_value_once_and_never_while_it_is_used() {
        const VALUES: usize = 2_000;
        const THREADS: u64 = 4;
        let slots = Slots::new();
        let current = AtomicU64::new(0);
        let ended: Vec<AtomicU32> = (0..VALUES).map(|_| AtomicU32::new(0)).collect();
        let users: Vec<AtomicU32> = (0..VALUES).map(|_| AtomicU32::new(0)).collect();
        let end = |value: Option<u64>| {
            let Some(value) = value else { return };
            assert_eq!(users[value as usize].load(Ordering::SeqCst), 0, "ended while it is used");
            ended[value as usize].fetch_add(1, Ordering::SeqCst);
        };
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    loop {
                        let id = current.load(Ordering::Relaxed);
                        if id == u64::MAX {
                            return;
                        }
                        match slots.pin(id) {
                            Ok(value) => {
                                users[value as usize].fetch_add(1, Ordering::SeqCst);
                                assert_eq!(ended[value as usize].load(Ordering::SeqCst), 0);
                                users[value as usize].fetch_sub(1, Ordering::SeqCst);
                                end(slots.release(id));
                            }
                            Err(Stale(value)) => end(value),
                        }
                    }
                });
            }
            for value in 0..VALUES {
                let id = slots.insert(value as u64).unwrap();
                current.store(id, Ordering::Relaxed);
                if value % 3 == 0 {
                    std::thread::yield_now();
                }
                end(slots.close(id).unwrap());
            }
            current.store(u64::MAX, Ordering::Relaxed);
        });
        assert!(ended.iter().all(|count| count.load(Ordering::SeqCst) == 1));
    }
}
