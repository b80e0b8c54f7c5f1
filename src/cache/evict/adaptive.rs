//! Adaptive: learns which kinds of blocks come back and when, and lets go of what promises least.
//!
//! Blocks stand in four lists by how often they came back (0, 1, 2, more), each in the order of release. A victim is
//! the oldest of one of the lists: the one whose kind, at its age, has promised the fewest returns for the room it
//! takes, as measured so far, in the cache and (by ghosts) for a while after eviction. `Odds` measures and judges.
//!
//! What it measures may mislead. So it also knows, from ages alone, which returns plain lru would have served with
//! the same room, and keeps account: while its own hits have fallen behind lru's by more than a small share of all
//! touches, the victim is the oldest of all four lists, which is lru itself, with nothing to rebuild.
//!
//! Each path is released leaf first, so within a list and at equal odds an ancestor outlives its descendants.
//! Sources: hit density over age and class (Beckmann et al., LHD, NSDI 2018), ghosts (Megiddo and Modha, ARC, FAST
//! 2003). docs/decisions/0011 has what was measured and what else was tried.

use super::ghosts::Ghosts;
use super::odds::{CLASSES, Odds};
use super::{Facts, Policy};
use crate::cache::lists::Lists;
use crate::error::{Error, Result};
use crate::sys::reserve::filled;

/// Ghosts for each block: the measured span of ages is twelve times the cache, of which some touches are of residents.
const GHOSTS_PER_BLOCK: u64 = 8;
/// From here on fewer ghosts per block, but at least one.
const GHOSTS_ENOUGH: u64 = 1 << 23;

#[derive(Clone, Copy, Default)]
struct Entry {
    fingerprint: u64,
    /// Touch at which it was let go last.
    stamp: u64,
}

struct Adaptive {
    lists: Lists,
    entries: Vec<Entry>,
    classes: Vec<u8>,
    ghosts: Ghosts,
    odds: Odds,
}

pub(super) fn make(blocks: u32) -> Result<Box<dyn Policy>> {
    let count = u64::from(blocks);
    Ok(Box::new(Adaptive {
        lists: Lists::new(blocks, CLASSES)?,
        entries: filled(blocks as usize, Entry::default())?,
        classes: filled(blocks as usize, 0)?,
        ghosts: Ghosts::new((GHOSTS_PER_BLOCK * count).min(GHOSTS_ENOUGH.max(count)))?,
        odds: Odds::new(blocks)?,
    }))
}

impl Adaptive {
    fn class(&self, block: u32) -> usize {
        self.classes[block as usize].into()
    }
}

impl Policy for Adaptive {
    fn committed(&mut self, block: u32, facts: &Facts) {
        let now = self.odds.now();
        let class = match self.ghosts.take(facts.fingerprint, now) {
            Some(ghost) if self.odds.is_in_span(ghost.age) => {
                self.odds.came_back(ghost.class, ghost.age, false);
                (ghost.class + 1).min(CLASSES - 1)
            }
            _ => 0,
        };
        self.odds.hold();
        self.entries[block as usize].fingerprint = facts.fingerprint;
        self.classes[block as usize] = class as u8;
    }

    fn acquired(&mut self, block: u32) {
        let class = self.class(block);
        self.lists.unlink(class, block);
        let age = self.odds.now() - self.entries[block as usize].stamp;
        self.odds.came_back(class, age, true);
        self.odds.hold();
        self.classes[block as usize] = (class + 1).min(CLASSES - 1) as u8;
    }

    fn released(&mut self, block: u32) {
        let class = self.class(block);
        self.entries[block as usize].stamp = self.odds.let_go(class);
        self.lists.push_newest(class, block);
    }

    fn removed(&mut self, block: u32, was_released: bool) {
        let class = self.class(block);
        if was_released {
            self.lists.unlink(class, block);
            let age = self.odds.now() - self.entries[block as usize].stamp;
            self.odds.withdraw(class, age);
        } else {
            self.odds.unhold();
        }
    }

    fn victim(&mut self) -> Option<u32> {
        let now = self.odds.now();
        let judged = (0..CLASSES).filter_map(|class| {
            let oldest = self.lists.oldest(class)?;
            let age = now - self.entries[oldest as usize].stamp;
            Some((self.odds.promise(class, age), age, class))
        });
        // The least promise; the oldest among equals.
        let (_, _, class) = judged.min_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)))?;
        let block = self.lists.pop_oldest(class)?;
        let entry = self.entries[block as usize];
        self.ghosts.insert(entry.fingerprint, entry.stamp, class, now);
        Some(block)
    }

    fn bytes(&self) -> u64 {
        let each = size_of::<Entry>() as u64 + 1;
        self.lists.bytes() + self.entries.len() as u64 * each + self.ghosts.bytes() + self.odds.bytes()
    }

    fn validate(&self, is_released: &dyn Fn(u32) -> bool, is_findable: &dyn Fn(u32) -> bool) -> Result<()> {
        let listed = self.lists.validate()?;
        let mut held = 0;
        for (block, list) in (0..).zip(&listed) {
            if list.is_some() != is_released(block) || list.is_some_and(|list| list != self.class(block)) {
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
