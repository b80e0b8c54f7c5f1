//! Vector clocks: who knows of whose work.
//!
//! What it does: each stream counts its work; a clock says for each stream how much of its work lies before. What it
//! does not: look at memory; that is `shadow`'s. Invariant: counts only grow, also when the slot of a destroyed stream
//! is taken by a new one, so an old mark is never confused with new work.
//!
//! The idea is that of FastTrack (Flanagan and Freund, 2009): an access needs only its stream and count, a whole clock
//! is kept once per stream and shared by the work between two waits.

use std::sync::Arc;

/// How much of each stream's work is known, by slot; slots beyond the end stand at 0.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock(Vec<u64>);

impl Clock {
    /// Work of a slot that is known.
    pub(super) fn get(&self, slot: u32) -> u64 {
        self.0.get(slot as usize).copied().unwrap_or(0)
    }

    fn covers(&self, other: &Self) -> bool {
        other.0.iter().enumerate().all(|(slot, &count)| self.get(slot as u32) >= count)
    }

    fn raise(&mut self, slot: u32, count: u64) {
        let slot = slot as usize;
        if self.0.len() <= slot {
            self.0.resize(slot + 1, 0);
        }
        self.0[slot] = self.0[slot].max(count);
    }

    fn join(&mut self, other: &Self) {
        for (slot, &count) in other.0.iter().enumerate() {
            self.raise(slot as u32, count);
        }
    }
}

/// Learns all that `other` knows; leaves a shared clock alone where that is nothing new.
pub(super) fn join(clock: &mut Arc<Clock>, other: &Clock) -> bool {
    let is_new = !clock.covers(other);
    if is_new {
        Arc::make_mut(clock).join(other);
    }
    is_new
}

/// Learns all that a piece of work knows, and of the work itself.
pub(super) fn join_stamp(clock: &mut Arc<Clock>, stamp: &Stamp) -> bool {
    let mut is_new = join(clock, &stamp.base);
    if !stamp.is_host() && clock.get(stamp.slot) < stamp.count {
        Arc::make_mut(clock).raise(stamp.slot, stamp.count);
        is_new = true;
    }
    is_new
}

/// A piece of work: the how-manieth of which slot, and what it knows.
#[derive(Clone, Debug)]
pub(super) struct Stamp {
    /// What is known beside the own stream.
    pub(super) base: Arc<Clock>,
    /// The stream's slot.
    pub(super) slot: u32,
    /// Work of the slot, this included.
    pub(super) count: u64,
}

impl Stamp {
    /// The slot of a host thread, whose calls are no work of any stream.
    pub(super) const HOST: u32 = u32::MAX;

    /// What a host thread knows.
    pub(super) fn of_host(base: &Arc<Clock>) -> Self {
        Self { base: Arc::clone(base), slot: Self::HOST, count: 0 }
    }

    fn is_host(&self) -> bool {
        self.slot == Self::HOST
    }

    /// Whether some work lies before this.
    pub(super) fn knows(&self, slot: u32, count: u64) -> bool {
        slot == Self::HOST
            || if slot == self.slot { self.count >= count } else { self.base.get(slot) >= count }
    }
}
