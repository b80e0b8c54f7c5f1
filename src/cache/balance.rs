//! Memory of size classes goes to where room is short.
//!
//! What it does: with every poll it looks which class was passed over or refused for want of blocks since the last
//! one, or else evicts or has hardly a free block, takes a bounded step of memory from a class that has idle blocks,
//! and gives it to that one, all by the resizes that exist. A class that is full and not short gets free blocks; if it
//! evicts, also those of a class whose content stays much longer before it is evicted: so that what was used last
//! stays, whatever its class, as in one pool. In a cache without memory it is that of the workers, whom plans tell the
//! sizes. What it does not: touch a block, act inside a step, or act where pools are fixed (without max_blocks, in
//! regions of the engine's).
//!
//! Giving comes before taking: blocks of all classes and `spare` together are as many bytes as they began with (plus
//! what the caller's own resizes changed), and no class grows before the pages are back. So that memory does not
//! swing, a class gives only when it was not short for a while, with cached blocks only after a long one, and keeps a
//! step's worth of idle ones; after a long one it keeps half of them, down to what pages come and go in. Nobody is
//! asked to make room for it: what somebody else has taken meanwhile is waited for.
//!
//! What it knows is taken out of its lock for the time of a poll, so that no lock of this file is held while pages come
//! or go; a poll that finds it taken leaves this one to the thread that has it.

use super::classes::CLASSES_MAX;
use super::config::{CacheConfig, Geometry};
use super::kv_cache::KvCache;
use super::pool::Pool;
use crate::error::{Result, Status};
use crate::sync::Mutex;

/// A step is one part in so many of all memory.
const PARTS: u64 = 32;
/// A class with fewer free blocks than one part in so many is full, and so is one that evicts.
const FULL_PARTS: u64 = 32;
/// Polls from one step to the next.
const REST: u64 = 4;
/// Polls without a shortage after which a class may give free blocks, and after which cached ones.
const QUIET: u64 = 16;
const LONG_QUIET: u64 = 256;
/// Content of a class that gives for somebody else's content is so many times as old when it is evicted.
const OLDER: u64 = 2;
/// Polls for which blocks in use may keep a class from giving before it gets its step back.
const PATIENCE: u64 = 1024;
/// Without pages of its own memory moves in no less than one part in so many of all.
const LEAST_PARTS: u64 = 1024;
/// Steps that may be on the way: of the last slab that is in use in each class that gives no page goes back.
const SPARE_STEPS: u64 = CLASSES_MAX as u64;

/// One class.
#[derive(Clone, Copy, Default)]
struct Side {
    group: u32,
    block_bytes: u64,
    /// Blocks as this file left them.
    target: u64,
    max_blocks: u64,
    /// Times that it was short, as of the last look.
    short: u64,
    /// The poll at which it was short last.
    short_at: u64,
    /// Blocks that it had evicted for want of room, and the poll that saw the latest.
    evicted: u64,
    evicted_at: u64,
}

/// How far memory has moved.
struct Balance {
    sides: [Side; CLASSES_MAX],
    polls: u64,
    /// Whole blocks of every class, and no less than pages come and go together: what moves are multiples of.
    least_bytes: u64,
    /// Bytes of one step.
    step_bytes: u64,
    /// Bytes of memory behind all classes that there may be.
    limit_bytes: u64,
    /// Bytes of blocks given and not yet taken.
    spare_bytes: u64,
    /// The class that is giving, how many bytes, and since which poll.
    giving: Option<(usize, u64, u64)>,
    /// No step begins before this poll.
    rests_until: u64,
    /// Nobody grows before this poll: somebody else had the memory.
    takes_from: u64,
}

/// Moves memory between the classes of a cache.
pub(super) struct Balancer {
    classes: usize,
    /// `None` while a poll has it.
    balance: Mutex<Option<Balance>>,
}

/// A poll that has what the balancer knows; puts it back whatever happens.
struct Turn<'a> {
    home: &'a Mutex<Option<Balance>>,
    balance: Option<Balance>,
}

impl Turn<'_> {
    fn get(&mut self) -> &mut Balance {
        self.balance.as_mut().expect("it is put back only on drop")
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.home.lock() = self.balance.take();
    }
}

/// What a class has at the moment.
#[derive(Clone, Copy, Default)]
struct Seen {
    short: u64,
    free_bytes: u64,
    available_bytes: u64,
    /// Of its next victim, in steps.
    age: u64,
}

/// What a class can do for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Gift {
    /// Nobody's content goes.
    is_free: bool,
    bytes: u64,
    age: u64,
}

impl Balancer {
    /// `None` where memory does not move, or another cache decides.
    pub(super) fn new(config: &CacheConfig, geometry: &Geometry, pools: &[Pool]) -> Option<Self> {
        let is_moving = match config.metadata_only {
            true => geometry.tells_sizes(),
            false => geometry.is_adaptive() && pools.iter().all(Pool::is_elastic),
        };
        if !is_moving || config.worker {
            return None;
        }
        let mut sides = [Side::default(); CLASSES_MAX];
        for (side, groups) in sides.iter_mut().zip(&geometry.classes) {
            let group = &geometry.groups[groups.first()];
            *side = Side {
                group: groups.first() as u32,
                block_bytes: group.block_bytes,
                target: group.first_blocks.into(),
                max_blocks: group.blocks.into(),
                ..Side::default()
            };
        }
        let classes = geometry.classes.len();
        let bytes: u64 = sides.iter().map(|side| side.target * side.block_bytes).sum();
        let slab_bytes = pools.iter().map(Pool::slab_bytes).max().unwrap_or(bytes / LEAST_PARTS);
        // A step is whole blocks of each class, so that nothing is left over.
        let whole = sides[..classes].iter().fold(1, |whole, side| lcm(whole, side.block_bytes));
        let least_bytes = slab_bytes.next_multiple_of(whole).max(whole);
        let balance = Balance {
            sides,
            polls: 0,
            least_bytes,
            step_bytes: (bytes / PARTS).next_multiple_of(least_bytes).max(least_bytes),
            limit_bytes: if pools.is_empty() { bytes } else { pools.iter().map(Pool::bytes).sum() },
            spare_bytes: 0,
            giving: None,
            rests_until: 0,
            takes_from: 0,
        };
        Some(Self { classes, balance: Mutex::new(Some(balance)) })
    }

    /// `None` while another poll has it.
    fn take_turn(&self) -> Option<Turn<'_>> {
        let balance = self.balance.lock().take()?;
        Some(Turn { home: &self.balance, balance: Some(balance) })
    }
}

fn lcm(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

impl Balance {
    /// The class that was short at this poll, or else the full one whose content is evicted youngest, and whether it
    /// was short.
    fn taker(&self, seen: &[Seen; CLASSES_MAX], classes: usize) -> Option<(usize, bool)> {
        let can_grow = |class: &usize| {
            let side = &self.sides[*class];
            side.target + self.least_bytes / side.block_bytes <= side.max_blocks
        };
        let is_short = |class: &usize| self.sides[*class].short_at == self.polls;
        let is_full = |class: &usize| {
            let side = &self.sides[*class];
            seen[*class].free_bytes < side.target * side.block_bytes / FULL_PARTS || self.evicts(*class)
        };
        let short = (0..classes).find(|class| is_short(class) && can_grow(class));
        let full = (0..classes).filter(|class| is_full(class) && can_grow(class));
        let full = full.min_by_key(|&class| seen[class].age);
        short.map(|class| (class, true)).or_else(|| full.map(|class| (class, false)))
    }

    /// Whether a class has evicted something lately.
    fn evicts(&self, class: usize) -> bool {
        let side = &self.sides[class];
        side.evicted > 0 && self.polls - side.evicted_at < QUIET
    }

    /// What a class can give to one that is short, or that evicts content of so many steps: free blocks before cached.
    fn gift(&self, class: usize, is_short: bool, age: Option<u64>, seen: &Seen) -> Option<Gift> {
        let (side, least) = (&self.sides[class], self.least_bytes);
        let quiet = self.polls - side.short_at;
        let is_quiet = quiet >= LONG_QUIET;
        let most = (side.target * side.block_bytes).saturating_sub(least).min(self.step_bytes);
        // A step of two, or half of what is idle.
        let part = |idle: u64| (idle / 2).min(most) / least * least;
        let (free, idle) = (part(seen.free_bytes.min(seen.available_bytes)), part(seen.available_bytes));
        let is_older = age.is_some_and(|age| seen.age / OLDER >= age.max(1));
        let is_free = free > 0 && (is_quiet || (free == self.step_bytes && quiet >= QUIET));
        let may_evict = idle > 0 && is_quiet && (is_older || (is_short && idle == self.step_bytes));
        let bytes = if is_free { free } else { idle };
        (is_free || may_evict).then_some(Gift { is_free, bytes, age: seen.age })
    }

    /// The class with most to give, and what.
    fn giver(
        &self,
        taker: usize,
        is_short: bool,
        seen: &[Seen; CLASSES_MAX],
        classes: usize,
    ) -> Option<(usize, Gift)> {
        let others = (0..classes).filter(|&class| class != taker);
        let age = self.evicts(taker).then_some(seen[taker].age);
        let gifts = others.filter_map(|class| Some((class, self.gift(class, is_short, age, &seen[class])?)));
        gifts.max_by_key(|gift| gift.1)
    }
}

impl KvCache {
    /// Looks once; moves at most one step. Called between steps, behind what goes on with resizes.
    pub(super) fn balance(&self) -> Result<()> {
        let Some(balancer) = &self.balancer else { return Ok(()) };
        let Some(mut turn) = balancer.take_turn() else { return Ok(()) };
        let balance = turn.get();
        balance.polls += 1;
        let seen = self.look_at_classes(balance, balancer.classes);
        self.move_memory(balance, &seen, balancer.classes)
    }

    /// Moves at most one step, by what was seen.
    fn move_memory(&self, balance: &mut Balance, seen: &[Seen; CLASSES_MAX], classes: usize) -> Result<()> {
        self.settle_giving(balance)?;
        if balance.polls < balance.takes_from {
            return Ok(());
        }
        let taker = balance.taker(seen, classes);
        if balance.spare_bytes > 0 && balance.giving.is_none() {
            // Without a class that is short the spare goes to the one that has least room left.
            let emptiest = || (0..classes).min_by_key(|&class| seen[class].available_bytes);
            let idle = || balance.sides[..classes].iter().all(|s| balance.polls - s.short_at >= QUIET);
            let to = taker.map(|taker| taker.0).or_else(|| if idle() { emptiest() } else { None });
            let all = balance.spare_bytes;
            if let Some(class) = to
                && self.take(balance, class, all)?
            {
                return Ok(());
            }
        }
        let has_steps_waiting = balance.spare_bytes >= SPARE_STEPS * balance.step_bytes;
        if balance.giving.is_some() || has_steps_waiting || balance.polls < balance.rests_until {
            return Ok(());
        }
        let Some((taker, is_short)) = taker else { return Ok(()) };
        let Some((giver, gift)) = balance.giver(taker, is_short, seen, classes) else { return Ok(()) };
        // Whether what stays grows older in the class that got more is seen only later.
        balance.rests_until = balance.polls + if gift.is_free || is_short { REST } else { QUIET };
        let side = balance.sides[giver];
        let blocks = gift.bytes / side.block_bytes;
        let (now, then) = (side.target as u32, (side.target - blocks) as u32);
        let Some(given) = self.resize_unasked(side.group, Some(now), then)? else {
            // The caller has resized it meanwhile: the next poll sees that.
            return Ok(());
        };
        balance.sides[giver].target -= blocks;
        balance.spare_bytes += gift.bytes;
        self.note_moved(giver, 0, gift.bytes);
        if !given.is_done {
            balance.giving = Some((giver, gift.bytes, balance.polls));
            return Ok(());
        }
        let all = balance.spare_bytes;
        self.take(balance, taker, all).map(drop)
    }

    /// What every class has, and which was short since the last look.
    fn look_at_classes(&self, balance: &mut Balance, classes: usize) -> [Seen; CLASSES_MAX] {
        let mut seen = [Seen::default(); CLASSES_MAX];
        let state = self.state();
        let step = state.shared.steps.newest();
        let Some(sizes) = &state.sizes else { return seen };
        for (class, seen) in seen.iter_mut().enumerate().take(classes) {
            let side = &mut balance.sides[class];
            let store = &state.stores[side.group as usize];
            let counts = &sizes.counts[class];
            *seen = Seen {
                short: counts.passed_over + counts.refused_ops,
                free_bytes: u64::from(store.free_count()) * side.block_bytes,
                available_bytes: u64::from(store.available()) * side.block_bytes,
                age: store.ages.next(step),
            };
            if seen.short > side.short {
                (side.short, side.short_at) = (seen.short, balance.polls);
            }
            if store.ages.total() > side.evicted {
                (side.evicted, side.evicted_at) = (store.ages.total(), balance.polls);
            }
            // What the caller has resized meanwhile is the caller's.
            let (target, each) = (u64::from(self.resizer.target(side.group)), side.block_bytes);
            let before = std::mem::replace(&mut side.target, target);
            if target != before {
                balance.limit_bytes = (balance.limit_bytes + target * each).saturating_sub(before * each);
                if let Some((_, bytes, _)) = balance.giving.take_if(|giving| giving.0 == class) {
                    // What it was giving is not there to be taken, whatever it has now.
                    balance.spare_bytes = balance.spare_bytes.saturating_sub(bytes);
                    balance.limit_bytes = balance.limit_bytes.saturating_sub(bytes);
                }
            }
        }
        seen
    }

    /// Ends giving where the class has let go; one that cannot for long gets back what it gave.
    fn settle_giving(&self, balance: &mut Balance) -> Result<()> {
        let Some((giver, bytes, since)) = balance.giving else { return Ok(()) };
        let side = balance.sides[giver];
        if self.is_resized(side.group) {
            balance.giving = None;
        } else if balance.polls - since >= PATIENCE {
            balance.giving = None;
            balance.rests_until = balance.polls + PATIENCE;
            self.take(balance, giver, bytes)?;
        }
        Ok(())
    }

    /// Gives a class so much of the spare, or as much as has pages. Answers whether it got any.
    fn take(&self, balance: &mut Balance, class: usize, most: u64) -> Result<bool> {
        let (side, least) = (balance.sides[class], balance.least_bytes);
        let bytes_of = |group: u32| match self.pools.get(group as usize) {
            Some(pool) => pool.bytes(),
            None => self.bytes_of_workers(group),
        };
        let held: u64 = (0..self.group_count()).map(bytes_of).sum();
        // Blocks that never lost their memory need none.
        let room = bytes_of(side.group) + balance.limit_bytes.saturating_sub(held);
        let room = room.min(side.max_blocks * side.block_bytes);
        let bytes = room.saturating_sub(side.target * side.block_bytes).min(balance.spare_bytes).min(most);
        let bytes = bytes / least * least;
        if bytes == 0 {
            return Ok(false);
        }
        let target = side.target + bytes / side.block_bytes;
        match self.resize_unasked(side.group, Some(side.target as u32), target as u32) {
            Ok(None) => Ok(false),
            Ok(Some(_)) => {
                balance.sides[class].target = target;
                balance.spare_bytes -= bytes;
                self.note_moved(class, bytes, 0);
                Ok(true)
            }
            // Somebody else has the memory at the moment.
            Err(error) if error.status == Status::OutOfMemory => {
                balance.takes_from = balance.polls + LONG_QUIET;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn note_moved(&self, class: usize, gained: u64, given: u64) {
        if let Some(sizes) = &mut self.state().sizes {
            sizes.counts[class].gained_bytes += gained;
            sizes.counts[class].given_bytes += given;
        }
    }
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
