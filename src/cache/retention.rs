//! Priorities, expiry and pins: a layer above every eviction policy.
//!
//! A block is ordinary, and the policy's, unless it has a priority other than 50 or is pinned. An inactive block of
//! another priority stands in the list of that priority, least recently used first; bits tell which lists hold blocks.
//! A pinned one stands nowhere and is never a victim. To the policy both count as held. Victims come from priorities
//! below 50, lowest first, then from the policy, then from priorities above 50.
//!
//! A priority may expire: a timing wheel of four levels lists the block by its hour, and the block is ordinary from
//! then on. Time is a parameter. Every call is O(1); `expire` moves a few blocks at a time and goes on where it
//! stopped. Source of the wheel: Varghese and Lauck, SOSP 1987.
//!
//! Invariants: `pinned <= pin_limit`; a block is in a priority's list exactly if it is inactive, not pinned and not
//! ordinary; it is in the wheel exactly if its priority expires.

use std::ops::Range;

use super::lists::Lists;
use crate::error::{Error, Result, Status};
use crate::sys::prefetch;
use crate::sys::reserve::filled;

/// The priority of a block of which nobody said anything.
pub(super) const ORDINARY: u8 = 50;
/// The highest priority.
pub(super) const HIGHEST: u8 = 100;
/// Milliseconds of one tick of the wheel: a priority expires at most so much late, and never early.
const TICK_MS: u64 = 64;
const LEVELS: u32 = 4;
const SLOT_BITS: u32 = 6;
const SLOTS: u32 = 1 << SLOT_BITS;
/// Not in the wheel.
const NOWHERE: u16 = u16::MAX;

#[derive(Clone, Copy)]
struct Mark {
    /// Tick at which the priority ends.
    expiry: u32,
    /// List of the wheel.
    place: u16,
    /// By [`Pinner`].
    pins: [u16; 2],
    priority: u8,
    /// Its priority ended while nobody held it.
    has_expired: bool,
}

impl Mark {
    fn is_pinned(&self) -> bool {
        self.pins != [0; 2]
    }

    const ORDINARY: Self =
        Self { expiry: 0, place: NOWHERE, pins: [0; 2], priority: ORDINARY, has_expired: false };
}

/// Who pins: one cannot take the other's pins away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pinner {
    Operation = 0,
    Name = 1,
}

/// Marks of the blocks of one group.
pub(super) struct Retention {
    marks: Vec<Mark>,
    by_priority: Lists,
    /// One bit for each priority.
    is_used: u128,
    wheel: Lists,
    wheel_used: [u64; LEVELS as usize],
    /// Blocks in the wheel.
    timed: u32,
    /// The tick up to which the wheel has turned.
    tick: u32,
    pinned: u32,
    pinned_inactive: u32,
    pin_limit: u32,
}

impl Retention {
    pub(super) fn new(blocks: u32, pin_limit: u32) -> Result<Self> {
        Ok(Self {
            marks: filled(blocks as usize, Mark::ORDINARY)?,
            by_priority: Lists::new(blocks, usize::from(HIGHEST) + 1)?,
            is_used: 0,
            wheel: Lists::new(blocks, (LEVELS * SLOTS) as usize)?,
            wheel_used: [0; LEVELS as usize],
            timed: 0,
            tick: 0,
            pinned: 0,
            pinned_inactive: 0,
            pin_limit,
        })
    }

    /// Whether the block is not the policy's to evict.
    pub(super) fn governs(&self, block: u32) -> bool {
        let mark = &self.marks[block as usize];
        mark.is_pinned() || mark.priority != ORDINARY
    }

    /// Whether anything is remembered of the block.
    pub(super) fn has_mark(&self, block: u32) -> bool {
        let mark = &self.marks[block as usize];
        mark.place != NOWHERE || mark.has_expired || self.governs(block)
    }

    /// Inactive blocks that cannot be victims.
    pub(super) fn pinned_inactive(&self) -> u32 {
        self.pinned_inactive
    }

    /// Pinned blocks.
    pub(super) fn pinned(&self) -> u32 {
        self.pinned
    }

    pub(super) fn is_pinned(&self, block: u32) -> bool {
        self.marks[block as usize].is_pinned()
    }

    /// Pins of one kind on a block.
    pub(super) fn pins(&self, pinner: Pinner, block: u32) -> u32 {
        self.marks[block as usize].pins[pinner as usize].into()
    }

    /// The block becomes inactive; answers whether it is taken care of here.
    pub(super) fn released(&mut self, block: u32) -> bool {
        let mark = &mut self.marks[block as usize];
        mark.has_expired = false;
        if mark.is_pinned() {
            self.pinned_inactive += 1;
            return true;
        }
        if mark.priority == ORDINARY {
            return false;
        }
        self.by_priority.push_newest(mark.priority.into(), block);
        self.is_used |= 1 << mark.priority;
        true
    }

    /// The block is inactive no more; answers whether it was taken care of here.
    pub(super) fn acquired(&mut self, block: u32) -> bool {
        let mark = self.marks[block as usize];
        if mark.is_pinned() {
            self.pinned_inactive -= 1;
            return true;
        }
        if mark.priority == ORDINARY {
            return false;
        }
        self.unlist(block);
        true
    }

    fn unlist(&mut self, block: u32) {
        let priority = self.marks[block as usize].priority;
        self.by_priority.unlink(priority.into(), block);
        if self.by_priority.is_empty(priority.into()) {
            self.is_used &= !(1 << priority);
        }
    }

    /// The next victims of priorities below the ordinary, as many as there are places, and unlists them; answers how
    /// many.
    pub(super) fn victims_below(&mut self, places: &mut [u32]) -> usize {
        self.victims_of((1 << ORDINARY) - 1, places)
    }

    /// The same of priorities above the ordinary.
    pub(super) fn victims_above(&mut self, places: &mut [u32]) -> usize {
        self.victims_of(u128::MAX, places)
    }

    /// Whether victims come from priorities below the ordinary.
    pub(super) fn has_victims_below(&self) -> bool {
        self.is_used & ((1 << ORDINARY) - 1) != 0
    }

    /// Gives the next victims of the lowest priority below the ordinary, if there are any.
    pub(super) fn likely_victims(&self, most: usize, each: impl FnMut(u32)) {
        let priorities = self.is_used & ((1 << ORDINARY) - 1);
        if priorities != 0 {
            self.by_priority.oldest_few(priorities.trailing_zeros() as usize, most, each);
        }
    }

    /// Has fetched what the choice of so many victims below the ordinary reads, if they are likely to lie in a row;
    /// answers that row.
    pub(super) fn fetch_next(&self, most: usize) -> Option<Range<usize>> {
        self.by_priority.fetch_row(self.is_used.trailing_zeros() as usize, most)
    }

    /// Has fetched what is remembered of a block.
    pub(super) fn fetch(&self, block: u32) {
        prefetch::prefetch(&self.marks, block as usize);
        self.wheel.fetch(block);
    }

    /// Has fetched what `clear` of a block reads beyond that, once it is there.
    pub(super) fn fetch_neighbours(&self, block: u32) {
        if self.marks[block as usize].place != NOWHERE {
            self.wheel.fetch_neighbours(block);
        }
    }

    fn victims_of(&mut self, priorities: u128, places: &mut [u32]) -> usize {
        let mut count = 0;
        while self.is_used & priorities != 0 && count < places.len() {
            let lowest = (self.is_used & priorities).trailing_zeros() as usize;
            self.by_priority.pop_while(lowest, |oldest| {
                let goes = count < places.len();
                if goes {
                    places[count] = oldest;
                    count += 1;
                }
                goes
            });
            if self.by_priority.is_empty(lowest) {
                self.is_used &= !(1 << lowest);
            }
        }
        count
    }

    /// Whether the priority of an inactive block has expired.
    pub(super) fn has_expired(&self, block: u32) -> bool {
        self.marks[block as usize].has_expired
    }

    /// The content of a block that is in no list of priorities is gone: nothing said of it holds any more.
    pub(super) fn clear(&mut self, block: u32) {
        let mark = &self.marks[block as usize];
        if mark.is_pinned() {
            self.pinned -= 1;
        }
        if mark.place != NOWHERE {
            self.unwind(block);
        }
        self.marks[block as usize] = Mark::ORDINARY;
    }

    /// What was said of a held block holds of another from now on, of which nothing was said.
    pub(super) fn moved(&mut self, from: u32, to: u32) {
        let mark = std::mem::replace(&mut self.marks[from as usize], Mark::ORDINARY);
        if mark.place != NOWHERE {
            self.wheel.replace(mark.place.into(), from, to);
        }
        self.marks[to as usize] = mark;
    }

    /// Whether this one has pinned the block.
    pub(super) fn has_pins(&self, pinner: Pinner, block: u32) -> bool {
        self.marks[block as usize].pins[pinner as usize] > 0
    }

    /// Gives a held block a priority, for `ttl_ms` milliseconds from now or, if that is 0, without an end.
    pub(super) fn retain(&mut self, block: u32, priority: u8, ttl_ms: u64, now_ms: u64) {
        if self.marks[block as usize].place != NOWHERE {
            self.unwind(block);
        }
        self.marks[block as usize].priority = priority;
        if ttl_ms > 0 && priority != ORDINARY {
            if self.timed == 0 {
                self.tick = (now_ms / TICK_MS) as u32;
            }
            let expiry = now_ms.saturating_add(ttl_ms) / TICK_MS + 1;
            self.marks[block as usize].expiry = u32::try_from(expiry).unwrap_or(u32::MAX);
            self.wind(block);
        }
    }

    /// Pins findable blocks that are held, each once for every time that it is named, if at most so many blocks are
    /// pinned then; else none.
    pub(super) fn pin(
        &mut self,
        pinner: Pinner,
        most: u32,
        blocks: impl Iterator<Item = u32> + Clone,
    ) -> Result<()> {
        let most = most.min(self.pin_limit);
        for (done, block) in blocks.clone().enumerate() {
            let Err(refusal) = self.pin_one(pinner, most, block) else { continue };
            // A block that is named twice was new the first time alone, so only trying shows what fits.
            self.take_pins(pinner, blocks.take(done));
            return Err(refusal);
        }
        Ok(())
    }

    fn pin_one(&mut self, pinner: Pinner, most: u32, block: u32) -> Result<()> {
        let mark = &mut self.marks[block as usize];
        if mark.pins[pinner as usize] == u16::MAX {
            return Err(Error::new(Status::LimitReached, "a block is pinned 65,535 times"));
        }
        if !mark.is_pinned() {
            if self.pinned >= most {
                let text = format!("{} blocks of {most} would be pinned", self.pinned + 1);
                return Err(Error::new(Status::LimitReached, text));
            }
            self.pinned += 1;
        }
        mark.pins[pinner as usize] += 1;
        Ok(())
    }

    /// Takes back what `pin` did to held blocks.
    pub(super) fn take_pins(&mut self, pinner: Pinner, blocks: impl Iterator<Item = u32>) {
        blocks.for_each(|block| _ = self.unpin(pinner, block, false));
    }

    /// Takes one pin away; answers whether an inactive block must be released again, because it was the last.
    pub(super) fn unpin(&mut self, pinner: Pinner, block: u32, is_inactive: bool) -> bool {
        let mark = &mut self.marks[block as usize];
        if mark.pins[pinner as usize] == 0 {
            return false;
        }
        mark.pins[pinner as usize] -= 1;
        if mark.is_pinned() {
            return false;
        }
        self.pinned -= 1;
        self.pinned_inactive -= u32::from(is_inactive);
        is_inactive
    }

    /// Puts a block into the wheel by its expiry: the level by how far away it is, the slot by the bits of that level.
    fn wind(&mut self, block: u32) {
        let expiry = self.marks[block as usize].expiry.max(self.tick + 1);
        let away = expiry - self.tick;
        let level = (away.ilog2() / SLOT_BITS).min(LEVELS - 1);
        // Farther than the wheel reaches: the last slot, and from there on again.
        let at = expiry.min(self.tick + (1 << (LEVELS * SLOT_BITS)) - (1 << ((LEVELS - 1) * SLOT_BITS)));
        let slot = at >> (level * SLOT_BITS) & (SLOTS - 1);
        self.marks[block as usize].place = (level * SLOTS + slot) as u16;
        self.wheel.push_newest((level * SLOTS + slot) as usize, block);
        self.wheel_used[level as usize] |= 1 << slot;
        self.timed += 1;
    }

    fn unwind(&mut self, block: u32) {
        let place = std::mem::replace(&mut self.marks[block as usize].place, NOWHERE);
        self.wheel.unlink(place.into(), block);
        if self.wheel.is_empty(place.into()) {
            self.wheel_used[usize::from(place) / SLOTS as usize] &= !(1 << (u32::from(place) % SLOTS));
        }
        self.timed -= 1;
    }

    /// Turns the wheel up to now, moving at most [`EXPIRE_MOST`] blocks; answers which inactive ones are the policy's
    /// again.
    pub(super) fn expire(&mut self, now_ms: u64, is_inactive: impl Fn(u32) -> bool) -> Expired {
        let now = (now_ms / TICK_MS) as u32;
        let mut released = Expired { blocks: [0; EXPIRE_MOST], count: 0 };
        let mut moved = 0;
        while self.timed > 0 && self.tick <= now {
            if let Some(block) = self.due() {
                if moved == EXPIRE_MOST {
                    return released;
                }
                moved += 1;
                self.unwind(block);
                if self.marks[block as usize].expiry > self.tick {
                    self.wind(block);
                    continue;
                }
                let is_listed = is_inactive(block) && !self.marks[block as usize].is_pinned();
                if is_listed {
                    self.unlist(block);
                    released.blocks[released.count] = block;
                    released.count += 1;
                }
                self.marks[block as usize].priority = ORDINARY;
                self.marks[block as usize].has_expired = is_listed;
                continue;
            }
            if self.tick == now {
                break;
            }
            self.tick = self.next_tick(now);
        }
        if self.timed == 0 {
            self.tick = now;
        }
        released
    }

    /// A block of the slots at which the wheel stands: of level 0, and of each higher one whose lower hands are at 0.
    fn due(&self) -> Option<u32> {
        for level in 0..LEVELS {
            if level > 0 && self.tick & ((1 << (level * SLOT_BITS)) - 1) != 0 {
                return None;
            }
            let slot = self.tick >> (level * SLOT_BITS) & (SLOTS - 1);
            if let Some(block) = self.wheel.oldest((level * SLOTS + slot) as usize) {
                return Some(block);
            }
        }
        None
    }

    /// The next tick at which a block may be due, at most `now`: of each level the next slot that is used in this turn
    /// of it, or where the next turn begins.
    fn next_tick(&self, now: u32) -> u32 {
        let mut next = u64::from(now);
        for (level, &used) in (0..).zip(&self.wheel_used).filter(|(_, used)| **used != 0) {
            let shift: u32 = level * SLOT_BITS;
            let hand = self.tick >> shift;
            // One shift by a place, one by one: all places of a level may be behind its hand.
            let ahead = used >> (hand & (SLOTS - 1)) >> 1;
            let place = match ahead {
                0 => (u64::from(hand) | u64::from(SLOTS - 1)) + 1,
                ahead => u64::from(hand) + 1 + u64::from(ahead.trailing_zeros()),
            };
            next = next.min(place << shift);
        }
        next as u32
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.marks.len() * size_of::<Mark>()) as u64 + self.by_priority.bytes() + self.wheel.bytes()
    }

    /// Checks the lists against the marks and the states of the blocks.
    pub(super) fn validate(
        &self,
        is_inactive: &dyn Fn(u32) -> bool,
        is_findable: &dyn Fn(u32) -> bool,
    ) -> Result<()> {
        let (by_priority, wheel) = (self.by_priority.validate()?, self.wheel.validate()?);
        let (mut pinned, mut pinned_inactive) = (0, 0);
        for (block, mark) in (0..).zip(&self.marks) {
            let at = block as usize;
            pinned += u32::from(mark.is_pinned());
            pinned_inactive += u32::from(mark.is_pinned() && is_inactive(block));
            let is_listed = is_inactive(block) && !mark.is_pinned() && mark.priority != ORDINARY;
            let place = Some(usize::from(mark.place)).filter(|_| mark.place != NOWHERE);
            if by_priority[at] != is_listed.then_some(mark.priority.into())
                || wheel[at] != place
                || (mark.is_pinned() && !is_findable(block))
            {
                return Err(Error::internal(format!("the retention of block {block} is wrong")));
            }
        }
        let timed = wheel.iter().flatten().count() as u32;
        if (pinned, pinned_inactive, timed) != (self.pinned, self.pinned_inactive, self.timed)
            || pinned > self.pin_limit
        {
            return Err(Error::internal("counts of pinned or timed blocks are wrong"));
        }
        Ok(())
    }
}

/// Most blocks that one call of `expire` moves.
const EXPIRE_MOST: usize = 64;

/// Inactive blocks that are the policy's again.
pub(super) struct Expired {
    blocks: [u32; EXPIRE_MOST],
    count: usize,
}

impl Expired {
    pub(super) fn blocks(&self) -> &[u32] {
        &self.blocks[..self.count]
    }
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
