//! How likely blocks of a kind are to come back at an age, and how plain lru would have done with the same room.
//!
//! Time is counted in touches: one for each release. It is cut into slots of a 16th of the cache, and the last
//! [`SLOTS`] of them are remembered, each with how many blocks of each class were let go in it and have not come back:
//! resident ones and ghosts together. From slot to slot these counts add up to exposure: how many blocks of a class
//! waited how long at which age. Returns divided by exposure is the chance of a return at that age.
//!
//! The same counts tell lru's doing without simulating it: lru holds the blocks let go last, as many as there is room,
//! so the age at which the counts, newest first, fill the cache is the age up to which lru would have had a hit.
//! And they tell what its own choice would do while lru is followed: if of all that waits, class by class, the oldest
//! that promises least goes until the rest fits, what is left of each class ends at some age. Returns below that age
//! that lru would not have had, less those that only lru would, are the lead of its own choice.
//!
//! When the room changes, so does the width of the slots: what was counted is spread over the new ones in proportion.
//!
//! Every call is O(1) amortised: a turn of the slot costs a fixed few microseconds and comes once in many touches; so
//! does a change of the width, which comes when the room has changed by half. What a class promises at an age is worked
//! out when it is asked for, because few ages are between two turns.

use super::divisor::Divisor;
use crate::error::Result;
use crate::sys::reserve::filled;

/// Kinds of blocks: came back never, once, twice, more often.
pub(super) const CLASSES: usize = 4;
/// Slots of time that are remembered: twelve times the cache.
const SLOTS: u64 = 192;
const SLOTS_PER_CACHE: u64 = 16;
/// Least touches in a slot, and least touches between two judgements.
const SLOT_LEAST: u64 = 16;
const JUDGE_EVERY: u64 = 64;
/// Ages in bins that grow by a quarter or so.
const BINS: usize = 26;
/// Weight of what is known once the next slot is over: half is forgotten after twenty times the cache.
const KEEP: f64 = 0.998;
/// Slots of one block's waiting that count as much as the mean over all classes, or over all ages.
const DOUBT_OF_CLASS: f64 = 64.0;
const DOUBT_OF_AGE: f64 = 8.0;
/// Slots before the first judgement counts: ages up to three times the cache have been seen.
const LEARN_SLOTS: u64 = 48;
/// Touches before it, where the cache is small: chances need counts.
const LEARN_TOUCHES: u64 = 4096;
/// In a cache of fewer blocks, which a single prompt may fill, chances by class and age rest on too little: lru is
/// followed.
const LEAST_BLOCKS: u64 = 256;
/// Share of all touches that may be lost against lru: two thirds of what a default may cost.
const BUDGET: f64 = 0.002;
/// No trial begins while more than so much of that is lost.
const SPENT: f64 = 0.9;
/// Share of all touches by which its own choice must lead before it is made; and as many hits at least.
const EVIDENCE: f64 = 0.01;
const EVIDENCE_LEAST: f64 = 64.0;
/// Hits over lru's that may be carried over to bad times, as a share of the cache.
const CREDIT: f64 = 0.25;
/// Slots after a change to lru in which what is missing still counts against the judgement: twice the cache.
const AFTERMATH_SLOTS: u64 = 32;

/// Touches of a slot in a cache of so many blocks.
fn width(blocks: u32) -> u64 {
    (u64::from(blocks) / SLOTS_PER_CACHE).max(SLOT_LEAST)
}

/// The slots of `to` touches that a slot of `from` touches lies in, if both are counted from 0: each with the touches
/// that the two share.
fn shares(slot: u64, from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
    let (first, end) = (slot * from, (slot + 1) * from);
    (first / to..=(end - 1) / to).map(move |at| (at, end.min((at + 1) * to) - first.max(at * to)))
}

pub(super) struct Odds {
    blocks: u64,
    slot_touches: Divisor,
    now: u64,
    slot: u64,
    /// The entry of `waiting` for this slot.
    entry: usize,
    /// The touch with which the next slot begins.
    next_slot_at: u64,
    learn_slots: u64,
    judged_slot: u64,
    judged_at: u64,
    /// By slot and class: let go then and not back yet.
    waiting: Vec<[u32; CLASSES]>,
    /// Findable blocks that somebody holds.
    held: u64,
    /// Age up to which lru would have kept a block.
    lru_age: u64,
    returns: [[f64; CLASSES]; BINS],
    exposure: [[f64; CLASSES]; BINS],
    /// Returns by exposure, as of the latest judgement.
    rates: [[f64; CLASSES]; BINS],
    judged: [Judged; CLASSES],
    bin_of_slot: [u8; SLOTS as usize],
    slots_of_bin: [f64; BINS],
    /// Own hits less lru's.
    balance: f64,
    touches: f64,
    /// By class, the age in slots up to which its own choice would have kept blocks.
    kept_slots: [u64; CLASSES],
    /// Hits of its own choice less lru's, by reckoning, since the last time that lru was ahead.
    lead: f64,
    trusts_itself: bool,
    turned_to_lru: u64,
}

/// What was worked out of a class since the latest judgement.
#[derive(Clone, Copy)]
struct Judged {
    /// Chance of a return while in a bin; holds if any promise does.
    chances: [f64; BINS],
    promises: [f64; BINS],
    /// One bit for each promise that holds.
    holds: u32,
}

impl Judged {
    /// Before the first judgement everything promises nothing.
    const FIRST: Self = Self { chances: [0.0; BINS], promises: [0.0; BINS], holds: u32::MAX };
}

impl Odds {
    pub(super) fn new(blocks: u32) -> Result<Self> {
        Ok(Self { waiting: filled(SLOTS as usize, [0; CLASSES])?, ..Self::of(blocks) })
    }

    /// At the beginning, but for the memory of what waits.
    fn of(blocks: u32) -> Self {
        let bin = |slot: u64| (((slot + 1) as f64).log2() * 3.3) as usize;
        let mut bin_of_slot = [0; SLOTS as usize];
        let mut slots_of_bin = [0.0; BINS];
        for slot in 0..SLOTS {
            bin_of_slot[slot as usize] = bin(slot) as u8;
            slots_of_bin[bin(slot)] += 1.0;
        }
        let slot_touches = width(blocks);
        Self {
            blocks: blocks.into(),
            slot_touches: Divisor::new(slot_touches),
            now: 1,
            slot: 0,
            entry: 0,
            next_slot_at: slot_touches,
            learn_slots: LEARN_SLOTS.max(LEARN_TOUCHES / slot_touches),
            judged_slot: 0,
            judged_at: 0,
            waiting: Vec::new(),
            held: 0,
            lru_age: blocks.into(),
            returns: [[0.0; CLASSES]; BINS],
            exposure: [[0.0; CLASSES]; BINS],
            rates: [[0.0; CLASSES]; BINS],
            judged: [Judged::FIRST; CLASSES],
            bin_of_slot,
            slots_of_bin,
            balance: 0.0,
            touches: 0.0,
            kept_slots: [0; CLASSES],
            lead: 0.0,
            trusts_itself: false,
            turned_to_lru: 0,
        }
    }

    /// So many blocks may be in use from now on: plain lru would have that room.
    pub(super) fn room(&mut self, blocks: u32) {
        if self.now == 1 {
            // Nothing was measured: the slots may still be those of a cache of this size.
            let waiting = std::mem::take(&mut self.waiting);
            *self = Self { waiting, held: self.held, ..Self::of(blocks) };
        }
        self.blocks = blocks.into();
        let (old, new) = (self.slot_touches.get(), width(blocks));
        if 2 * new >= 3 * old || 2 * old >= 3 * new {
            self.widen(new);
        }
    }

    /// Slots have so many touches from now on. What is known of ages that are not remembered any more is forgotten.
    fn widen(&mut self, new: u64) {
        self.judge();
        let (old, old_slot) = (self.slot_touches.get(), self.slot);
        self.slot = self.now / new;
        let mut waiting = [[0; CLASSES]; SLOTS as usize];
        for slot in old_slot.saturating_sub(SLOTS - 1)..=old_slot {
            let counts = self.waiting[(slot % SLOTS) as usize];
            // The newest slot is not over: nothing of it lies behind the present.
            let mut touches = if slot == old_slot { self.now + 1 - slot * old } else { old };
            let mut left = counts;
            for (at, shared) in shares(slot, old, new).filter(|&(at, _)| at <= self.slot) {
                let shared = shared.min(touches);
                for (class, left) in left.iter_mut().enumerate() {
                    let part = (u64::from(*left) * shared).div_ceil(touches.max(1)) as u32;
                    *left -= part;
                    if self.slot - at < SLOTS {
                        waiting[(at % SLOTS) as usize][class] += part;
                    }
                }
                touches -= shared;
            }
        }
        self.waiting.copy_from_slice(&waiting);
        let (returns, exposure) = (self.returns, self.exposure);
        (self.returns, self.exposure) = ([[0.0; CLASSES]; BINS], [[0.0; CLASSES]; BINS]);
        for age in 0..SLOTS {
            let from = usize::from(self.bin_of_slot[age as usize]);
            for (at, shared) in shares(age, old, new).filter(|&(at, _)| at < SLOTS) {
                let to = usize::from(self.bin_of_slot[at as usize]);
                // Exposure is counted in slots, of which there are more or fewer now.
                let (part, slots) = (shared as f64 / old as f64, old as f64 / new as f64);
                for class in 0..CLASSES {
                    self.returns[to][class] += returns[from][class] / self.slots_of_bin[from] * part;
                    self.exposure[to][class] +=
                        exposure[from][class] / self.slots_of_bin[from] * part * slots;
                }
            }
        }
        self.slot_touches = Divisor::new(new);
        self.entry = (self.slot % SLOTS) as usize;
        self.next_slot_at = (self.slot + 1) * new;
        // Whoever has learned goes on; else the time to learn is that of the new room.
        let has_learned = old_slot >= self.learn_slots;
        let learn_slots = LEARN_SLOTS.max(LEARN_TOUCHES / new);
        self.learn_slots =
            if has_learned { learn_slots.min(self.slot) } else { learn_slots.max(self.slot + 1) };
        self.turned_to_lru = self.turned_to_lru * old / new;
        self.kept_slots = self.kept_slots.map(|slots| slots * old / new);
        self.lru_age = self.find_lru_age();
        self.judged_slot = self.slot;
        self.judge();
        self.judged_at = self.now;
    }

    pub(super) fn now(&self) -> u64 {
        self.now
    }

    pub(super) fn held(&self) -> u64 {
        self.held
    }

    pub(super) fn hold(&mut self) {
        self.held += 1;
    }

    pub(super) fn unhold(&mut self) {
        self.held -= 1;
    }

    pub(super) fn bytes(&self) -> u64 {
        size_of::<Self>() as u64 + SLOTS * size_of::<[u32; CLASSES]>() as u64
    }

    /// The slot of the touch that was so long ago.
    fn slot_of(&self, age: u64) -> u64 {
        self.slot_touches.divide(self.now - age)
    }

    fn bin(&self, slot: u64) -> usize {
        self.bin_of_slot[(self.slot - slot).min(SLOTS - 1) as usize].into()
    }

    /// Whether an age is one that is measured.
    pub(super) fn is_in_span(&self, age: u64) -> bool {
        age < self.now && self.slot - self.slot_of(age) < SLOTS
    }

    /// A block is let go; answers its stamp.
    pub(super) fn let_go(&mut self, class: usize) -> u64 {
        self.held -= 1;
        self.now += 1;
        if self.now == self.next_slot_at {
            self.turn();
        }
        self.waiting[self.entry][class] += 1;
        self.now
    }

    /// A block of this age waits no more.
    pub(super) fn withdraw(&mut self, class: usize, age: u64) {
        if age < self.now {
            self.withdraw_from(class, self.slot_of(age));
        }
    }

    fn withdraw_from(&mut self, class: usize, slot: u64) {
        if self.slot - slot < SLOTS {
            let waiting = &mut self.waiting[(slot % SLOTS) as usize][class];
            *waiting = waiting.saturating_sub(1);
        }
    }

    /// A block that was let go so long ago is wanted again; `is_hit` tells whether it was still there.
    pub(super) fn came_back(&mut self, class: usize, age: u64, is_hit: bool) {
        self.withdraw_from(class, self.slot_of(age));
        self.count_return(class, age, is_hit);
    }

    /// One is wanted again that goes on waiting, for it was not found: something before it is gone.
    pub(super) fn missed(&mut self, class: usize, age: u64) {
        if self.is_in_span(age) {
            self.count_return(class, age, false);
        }
    }

    fn count_return(&mut self, class: usize, age: u64, is_hit: bool) {
        let slot = self.slot_of(age);
        self.returns[self.bin(slot)][class] += 1.0;
        let lru = f64::from(u8::from(age <= self.lru_age));
        if self.slot >= self.learn_slots {
            let by_choice = f64::from(u8::from(self.slot - slot <= self.kept_slots[class]));
            self.lead = (self.lead + by_choice - lru).max(0.0);
        }
        if self.trusts_itself || self.slot < self.turned_to_lru + AFTERMATH_SLOTS {
            let own = f64::from(u8::from(is_hit));
            self.balance = (self.balance + own - lru).min(CREDIT * self.blocks as f64);
        }
    }

    /// What a block of this class promises that was let go at this stamp: hits for each slot of waiting, or, when lru
    /// is followed, what all others do. Answers too before which later stamp that holds.
    pub(super) fn promise(&mut self, class: usize, stamp: u64) -> (f64, u64) {
        if !self.trusts_itself {
            return (0.0, u64::MAX);
        }
        let slot = self.slot_touches.divide(stamp);
        (self.promise_at(class, self.slot - slot), (slot + 1) * self.slot_touches.get())
    }

    /// What a block of this class promises that has waited for so many slots.
    fn promise_at(&mut self, class: usize, slots: u64) -> f64 {
        let bin = usize::from(self.bin_of_slot[slots.min(SLOTS - 1) as usize]);
        if self.judged[class].holds >> bin & 1 == 0 {
            self.work_out(class, bin);
        }
        self.judged[class].promises[bin]
    }

    #[cold]
    fn turn(&mut self) {
        self.slot += 1;
        self.entry = (self.slot % SLOTS) as usize;
        self.next_slot_at += self.slot_touches.get();
        self.touches += self.slot_touches.get() as f64;
        self.waiting[self.entry] = [0; CLASSES];
        self.lru_age = self.find_lru_age();
        if self.now - self.judged_at >= JUDGE_EVERY {
            self.judge();
            self.find_kept(self.slot - self.judged_slot);
            self.judged_at = self.now;
            self.judged_slot = self.slot;
        }
        self.keep_account();
    }

    /// What waits of each slot that is remembered, the present one first.
    fn newest_first(&self) -> impl Iterator<Item = &[u32; CLASSES]> {
        let (until_now, before) = self.waiting.split_at(self.entry + 1);
        until_now.iter().rev().chain(before.iter().rev()).take(self.slot as usize + 1)
    }

    fn find_lru_age(&self) -> u64 {
        let slot_touches = self.slot_touches.get();
        let mut kept = self.held;
        for (ago, of_slot) in (1..).zip(self.newest_first().skip(1)) {
            let count: u64 = of_slot.iter().map(|&count| u64::from(count)).sum();
            if kept + count >= self.blocks {
                let part = self.blocks.saturating_sub(kept) * slot_touches / count.max(1);
                return (ago - 1) * slot_touches + part;
            }
            kept += count;
        }
        (SLOTS - 1) * slot_touches
    }

    /// Finds how old blocks of each class would be now that its own choice kept, so many slots after it did so last:
    /// what went before then does not come back.
    fn find_kept(&mut self, slots: u64) {
        let mut counts = [[0; CLASSES]; SLOTS as usize];
        self.newest_first().zip(&mut counts).for_each(|(from, to)| *to = *from);
        let mut kept = self.kept_slots.map(|before| (before + slots).min(self.slot).min(SLOTS - 1));
        let mut promises: [f64; CLASSES] = std::array::from_fn(|class| self.promise_at(class, kept[class]));
        let of_class =
            |class: usize| counts[..=kept[class] as usize].iter().map(move |of_slot| of_slot[class]);
        let mut total = self.held + (0..CLASSES).flat_map(of_class).map(u64::from).sum::<u64>();
        while total > self.blocks {
            let others = (0..CLASSES).filter(|&class| kept[class] > 0);
            let order =
                |&a: &usize, &b: &usize| promises[a].total_cmp(&promises[b]).then(kept[b].cmp(&kept[a]));
            let Some(class) = others.min_by(order) else { break };
            total -= u64::from(counts[kept[class] as usize][class]);
            kept[class] -= 1;
            promises[class] = self.promise_at(class, kept[class]);
        }
        self.kept_slots = kept;
    }

    fn keep_account(&mut self) {
        let limit = BUDGET * self.touches;
        if self.slot < self.learn_slots {
            return;
        }
        if self.blocks < LEAST_BLOCKS {
            self.trusts_itself = false;
        } else if !self.trusts_itself {
            let is_ahead = self.lead >= (EVIDENCE * self.touches).max(EVIDENCE_LEAST);
            // A part of the allowance must have come back, or the next trial is over at once.
            self.trusts_itself = is_ahead && self.balance > -SPENT * limit;
        } else if self.balance < -limit - 1.0 {
            self.trusts_itself = false;
            self.turned_to_lru = self.slot;
            self.lead = 0.0;
        }
    }

    /// Brings exposure up to now, and from it the rates of returns. All classes side by side; the order in which each
    /// sum is made is part of the result.
    fn judge(&mut self) {
        let slots = (self.slot - self.judged_slot) as f64;
        let keep = KEEP.powf(slots);
        self.returns.iter_mut().flatten().for_each(|returns| *returns *= keep);
        let mut exposure = self.exposure;
        exposure.iter_mut().flatten().for_each(|exposure| *exposure *= keep);
        for (counts, &bin) in self.newest_first().zip(&self.bin_of_slot) {
            let exposure = &mut exposure[usize::from(bin)];
            for (exposure, &count) in exposure.iter_mut().zip(counts) {
                *exposure += slots * f64::from(count);
            }
        }
        self.exposure = exposure;
        let all = |by_class: &[f64; CLASSES]| by_class.iter().fold(0.0, |sum, of_class| sum + of_class);
        let (returns, exposure) = (self.returns.map(|bin| all(&bin)), self.exposure.map(|bin| all(&bin)));
        let mean = (returns.iter().sum::<f64>() + 1e-3) / (exposure.iter().sum::<f64>() + 1.0);
        for bin in 0..BINS {
            let of_age = (returns[bin] + DOUBT_OF_AGE * mean) / (exposure[bin] + DOUBT_OF_AGE);
            for class in 0..CLASSES {
                self.rates[bin][class] = (self.returns[bin][class] + DOUBT_OF_CLASS * of_age)
                    / (self.exposure[bin][class] + DOUBT_OF_CLASS);
            }
        }
        self.judged.iter_mut().for_each(|judged| judged.holds = 0);
    }

    /// The best rate of hits that waiting on from an age can bring: over all ages at which one could stop waiting,
    /// expected hits by expected time.
    #[cold]
    fn work_out(&mut self, class: usize, from: usize) {
        let judged = &mut self.judged[class];
        if judged.holds == 0 {
            for (bin, chance) in judged.chances.iter_mut().enumerate() {
                *chance = 1.0 - (-self.rates[bin][class] * self.slots_of_bin[bin]).exp();
            }
        }
        let (mut best, mut hits, mut time, mut left) = (0.0f64, 0.0, 0.0, 1.0);
        let bins = self.slots_of_bin.iter().zip(&judged.chances).skip(from);
        for (&slots, &chance) in bins.filter(|(slots, _)| **slots > 0.0) {
            hits += left * chance;
            time += left * slots * (1.0 - 0.5 * chance);
            left *= 1.0 - chance;
            best = best.max(hits / time);
        }
        judged.promises[from] = best;
        judged.holds |= 1 << from;
    }
}

#[cfg(test)]
#[path = "odds_tests.rs"]
mod tests;
