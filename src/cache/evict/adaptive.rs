//! Adaptive: learns which kinds of blocks come back and when, and lets go of what promises least.
//!
//! Blocks stand in four lists by how often they came back (0, 1, 2, more), each in the order of release. A victim is
//! the oldest of one of the lists: the one whose kind, at its age, has promised the fewest returns for the room it
//! takes, as measured so far, in the cache and (by ghosts) for a while after eviction. `Odds` measures and judges.
//!
//! What it measures may mislead. So it also knows, from ages alone, which returns plain lru would have served with
//! the same room, and which its own choice would have. It begins as lru: the victim is the oldest of all four lists.
//! It chooses itself once that would have brought a hundredth of all touches more hits, and keeps account from then on:
//! where its hits have fallen behind lru's by more than a small share of all touches, it is lru again, with nothing to
//! rebuild.
//!
//! Each path is released leaf first, so within a list and at equal odds an ancestor outlives its descendants.
//! Sources: hit density over age and class (Beckmann et al., LHD, NSDI 2018), ghosts (Megiddo and Modha, ARC, FAST
//! 2003). docs/decisions/0011 has what was measured and what else was tried.

use std::cmp::Ordering;
use std::ops::Range;

use super::ghosts::Ghosts;
use super::odds::{CLASSES, Odds};
use super::{Facts, Policy};
use crate::cache::lanes::Lanes;
use crate::error::{Error, Result};
use crate::sys::prefetch;
use crate::sys::reserve::{filled, room};

/// Ghosts for each block: the measured span of ages is twelve times the cache, of which some touches are of residents.
const GHOSTS_PER_BLOCK: u64 = 8;
/// From here on fewer ghosts per block, but at least one.
const GHOSTS_ENOUGH: u64 = 1 << 23;

/// Evictions whose ghosts are still to be written: an eviction should not wait for that part of the memory.
const PENDING_MOST: usize = 256;
/// So many of them are written together once there are that many, the oldest, so that their waits overlap.
const WRITTEN: usize = 64;

/// An evicted block: when it was let go last, and its class then.
#[derive(Clone, Copy)]
struct Gone {
    fingerprint: u64,
    stamp: u64,
    class: usize,
}

/// Of an empty class.
const NO_RANK: u128 = u128::MAX;

/// A number whose order is that of promises: positive ones above negative ones, and those the other way round.
fn order(promise: f64) -> u64 {
    let bits = promise.to_bits();
    if bits >> 63 == 0 { bits | 1 << 63 } else { !bits }
}

/// A number whose order is that in which blocks go: the least promise first, and the oldest among equals.
fn rank(order: u64, stamp: u64) -> u128 {
    u128::from(order) << 64 | u128::from(stamp)
}

struct Adaptive {
    /// Released blocks by class; the stamp is the touch at which one was let go. Of a held one only the class counts.
    lists: Lanes,
    fingerprints: Vec<u64>,
    ghosts: Ghosts,
    pending: Vec<Gone>,
    /// By class, the rank of its oldest block; holds until something but an eviction happens.
    judged: [u128; CLASSES],
    is_judged: bool,
    /// Latest victims, by class.
    gone: [usize; CLASSES],
    odds: Odds,
}

pub(super) fn make(blocks: u32) -> Result<Box<dyn Policy>> {
    let count = u64::from(blocks);
    Ok(Box::new(Adaptive {
        lists: Lanes::new(blocks, CLASSES)?,
        fingerprints: filled(blocks as usize, 0)?,
        ghosts: Ghosts::new((GHOSTS_PER_BLOCK * count).min(GHOSTS_ENOUGH.max(count)))?,
        pending: room(PENDING_MOST + WRITTEN)?,
        judged: [NO_RANK; CLASSES],
        is_judged: false,
        gone: [0; CLASSES],
        odds: Odds::new(blocks)?,
    }))
}

impl Adaptive {
    /// Ranks the oldest block of a class.
    fn judge(&mut self, class: usize) {
        self.judged[class] = match self.lists.oldest(class) {
            Some((_, stamp)) => rank(order(self.odds.promise(class, stamp).0), stamp),
            None => NO_RANK,
        };
    }

    /// The class of the next victim, as far as classes are judged.
    fn next_class(&self) -> usize {
        (1..CLASSES).fold(0, |least, class| match self.judged[class] < self.judged[least] {
            true => class,
            false => least,
        })
    }

    /// Has fetched what the choice of so many victims of a class reads, if they lie in a row.
    #[inline]
    fn fetch_row(&self, class: usize, most: usize) -> Option<Range<usize>> {
        let row = self.lists.fetch_row(class, most)?;
        prefetch::prefetch_all(&self.fingerprints, row.clone());
        Some(row)
    }

    fn judge_all(&mut self) {
        if !self.is_judged {
            (0..CLASSES).for_each(|class| self.judge(class));
            self.is_judged = true;
        }
    }

    /// Takes the oldest of one class out, as many as there are places and as long as no other class has a block that
    /// goes first; answers how many.
    fn take_oldest(&mut self, class: usize, places: &mut [u32]) -> usize {
        let others = (0..CLASSES).filter(|&other| other != class).map(|other| self.judged[other]);
        let least_other = others.min().unwrap_or(NO_RANK);
        // Blocks of one slot promise the same: those up to one of them go before any other class's.
        let (mut promised, mut until, mut goes_until, mut count) = (0, 0, 0, 0);
        let Self { lists, fingerprints, odds, .. } = self;
        let mut next = NO_RANK;
        lists.pop_while(class, |oldest, stamp| {
            if stamp >= until {
                let promise;
                (promise, until) = odds.promise(class, stamp);
                promised = order(promise);
                goes_until = match promised.cmp(&((least_other >> 64) as u64)) {
                    Ordering::Less => until,
                    Ordering::Equal => until.min((least_other as u64).saturating_add(1)),
                    Ordering::Greater => 0,
                };
            }
            if count == places.len() || stamp >= goes_until {
                next = rank(promised, stamp);
                return false;
            }
            prefetch::prefetch(fingerprints, oldest as usize);
            places[count] = oldest;
            count += 1;
            true
        });
        self.judged[class] = next;
        self.gone[class] += count;
        count
    }

    /// Chooses victims, at most [`WRITTEN`]; answers how many.
    fn choose(&mut self, places: &mut [u32]) -> usize {
        let mut count = 0;
        while count < places.len() {
            let class = self.next_class();
            if self.judged[class] == NO_RANK {
                break;
            }
            count += self.take_oldest(class, &mut places[count..]);
        }
        for &victim in &places[..count] {
            let (stamp, class) = self.lists.stamp_and_list(victim);
            self.pending.push(Gone { fingerprint: self.fingerprints[victim as usize], stamp, class });
        }
        if self.pending.len() >= PENDING_MOST {
            let now = self.odds.now();
            self.pending.drain(..WRITTEN).for_each(|gone| write_ghost(&mut self.ghosts, gone, now));
        }
        // If as many go the next time, these are written then, and are there by then.
        if self.pending.len() + count >= PENDING_MOST {
            self.pending.iter().take(WRITTEN).for_each(|gone| self.ghosts.fetch(gone.fingerprint));
        }
        count
    }

    /// Writes the ghost of an eviction that waits for it, if there is one.
    fn write_ghost(&mut self) {
        if let Some(gone) = self.pending.pop() {
            write_ghost(&mut self.ghosts, gone, self.odds.now());
            self.pending.last().into_iter().for_each(|next| self.ghosts.fetch(next.fingerprint));
        }
    }
}

fn write_ghost(ghosts: &mut Ghosts, gone: Gone, now: u64) {
    ghosts.insert(gone.fingerprint, gone.stamp, gone.class, now);
}

impl Policy for Adaptive {
    fn committed(&mut self, block: u32, facts: &Facts) {
        self.is_judged = false;
        self.write_ghost();
        let fingerprint = facts.fingerprint();
        let class = match self.ghosts.take(fingerprint, self.odds.now()) {
            Some(ghost) if self.odds.is_in_span(ghost.age) => {
                self.odds.came_back(ghost.class, ghost.age, false);
                (ghost.class + 1).min(CLASSES - 1)
            }
            _ => 0,
        };
        self.odds.hold();
        self.fingerprints[block as usize] = fingerprint;
        self.lists.assign(block, class);
    }

    fn room(&mut self, blocks: u32) {
        self.odds.room(blocks);
    }

    fn acquired(&mut self, block: u32) {
        self.is_judged = false;
        let (stamp, class) = self.lists.stamp_and_list(block);
        self.lists.unlink(block);
        self.odds.came_back(class, self.odds.now() - stamp, true);
        self.odds.hold();
        self.lists.assign(block, (class + 1).min(CLASSES - 1));
    }

    fn released(&mut self, block: u32) {
        self.is_judged = false;
        self.write_ghost();
        let (_, class) = self.lists.stamp_and_list(block);
        self.lists.push_newest(class, block, self.odds.let_go(class));
    }

    fn missed(&mut self, block: u32) {
        let (stamp, class) = self.lists.stamp_and_list(block);
        self.odds.missed(class, self.odds.now() - stamp);
    }

    fn moved(&mut self, from: u32, to: u32) {
        self.fingerprints[to as usize] = self.fingerprints[from as usize];
        self.lists.moved(from, to);
    }

    fn removed(&mut self, block: u32, was_released: bool) {
        self.is_judged = false;
        if was_released {
            let (stamp, class) = self.lists.stamp_and_list(block);
            self.lists.unlink(block);
            self.odds.withdraw(class, self.odds.now() - stamp);
        } else {
            self.odds.unhold();
        }
    }

    fn victim(&mut self) -> Option<u32> {
        let mut place = [0];
        (self.victims(&mut place) > 0).then_some(place[0])
    }

    fn victims(&mut self, places: &mut [u32]) -> usize {
        self.judge_all();
        places.chunks_mut(WRITTEN).map(|places| self.choose(places)).sum()
    }

    fn likely_victims(&mut self, most: usize, each: &mut dyn FnMut(u32)) {
        // Classes go on giving as they gave; one more of each, because its promise is read before it goes.
        let all = self.gone.iter().sum::<usize>().max(1);
        for (class, gone) in std::mem::take(&mut self.gone).into_iter().enumerate() {
            self.lists.oldest_few(class, gone * most / all + 1, |block| {
                prefetch::prefetch(&self.fingerprints, block as usize);
                each(block);
            });
        }
    }

    fn fetch_next(&mut self, most: usize) -> Option<Range<usize>> {
        self.judge_all();
        self.fetch_row(self.next_class(), most)
    }

    fn fetch(&self, block: u32) {
        self.lists.fetch(block);
    }

    fn fetch_for(&self, facts: &Facts) {
        self.ghosts.fetch(facts.fingerprint());
    }

    fn bytes(&self) -> u64 {
        self.lists.bytes()
            + (self.fingerprints.len() * size_of::<u64>()) as u64
            + ((PENDING_MOST + WRITTEN) * size_of::<Gone>()) as u64
            + self.ghosts.bytes()
            + self.odds.bytes()
    }

    fn validate(&self, is_released: &dyn Fn(u32) -> bool, is_findable: &dyn Fn(u32) -> bool) -> Result<()> {
        let listed = self.lists.validate()?;
        let mut held = 0;
        for (block, list) in (0..).zip(&listed) {
            if list.is_some() != is_released(block)
                || list.is_some_and(|list| list != self.lists.stamp_and_list(block).1)
            {
                return Err(Error::internal(format!("adaptive is wrong about block {block}")));
            }
            held += u64::from(is_findable(block) && !is_released(block));
        }
        match held == self.odds.held() {
            true => Ok(()),
            false => Err(Error::internal("adaptive has lost count of the held blocks")),
        }
    }
}
