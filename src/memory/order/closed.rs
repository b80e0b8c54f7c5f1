//! Blocks of one stream behind the fences that were recorded after they were freed.
//!
//! What it does: finds the youngest block of a class or of a length, the shortest run, and what a reached fence lets
//! go, without a walk over the blocks that stay. What it does not: ask the device about a fence.
//! Invariants, checked by `validate()`: each block stands behind a fence that is here, each fence has as many as are
//! counted, and the lists of each class are in the order of the fences' numbers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::super::fence::Fence;
use super::{Freed, LARGE, is_run};
use crate::error::{Error, Result};

struct Behind {
    fence: Arc<Fence>,
    count: usize,
}

/// Number of the fence, and the block.
type Waiting = (u64, Freed);

/// Bytes, number of the fence, id.
type Sized = (u64, u64, u64);

#[derive(Default)]
pub(super) struct Closed {
    /// By number. If one has not been reached, neither has any that was begun after it.
    fences: BTreeMap<u64, Behind>,
    /// Blocks of classes of one size, none of them empty.
    classes: BTreeMap<u32, VecDeque<Waiting>>,
    /// Blocks of classes that do not say a size.
    lengths: BTreeMap<u32, BTreeSet<Sized>>,
    /// The same by number: class, id, bytes.
    ages: BTreeSet<(u64, u32, u64, u64)>,
}

impl Closed {
    pub(super) fn is_empty(&self) -> bool {
        self.fences.is_empty()
    }

    pub(super) fn oldest(&self) -> Option<&Arc<Fence>> {
        self.fences.first_key_value().map(|(_, behind)| &behind.fence)
    }

    pub(super) fn youngest(&self) -> Option<&Arc<Fence>> {
        self.fences.last_key_value().map(|(_, behind)| &behind.fence)
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = Freed> {
        let lengths = self.ages.iter().map(|&(_, class, id, bytes)| Freed { class, id, bytes });
        self.classes.values().flatten().map(|&(_, block)| block).chain(lengths)
    }

    /// Puts a block behind a fence.
    pub(super) fn put(&mut self, fence: &Arc<Fence>, block: Freed, has_lengths: bool) {
        let number = fence.number();
        let new = || Behind { fence: Arc::clone(fence), count: 0 };
        self.fences.entry(number).or_insert_with(new).count += 1;
        if has_lengths && block.class >= LARGE {
            self.lengths.entry(block.class).or_default().insert((block.bytes, number, block.id));
            self.ages.insert((number, block.class, block.id, block.bytes));
            return;
        }
        let list = self.classes.entry(block.class).or_default();
        // At the end, unless a wait behind an older fence was refused.
        let at = match list.back() {
            Some(&(last, _)) if last > number => list.partition_point(|&(other, _)| other <= number),
            _ => list.len(),
        };
        list.insert(at, (number, block));
    }

    /// One block less behind a fence.
    fn leave(&mut self, number: u64) -> Option<Arc<Fence>> {
        let behind = self.fences.get_mut(&number)?;
        behind.count -= 1;
        if behind.count > 0 {
            return Some(Arc::clone(&behind.fence));
        }
        self.fences.remove(&number).map(|behind| behind.fence)
    }

    fn pop_class(&mut self, class: u32) -> Option<(Arc<Fence>, Freed)> {
        let list = self.classes.get_mut(&class)?;
        let (number, block) = list.pop_back()?;
        if list.is_empty() {
            self.classes.remove(&class);
        }
        Some((self.leave(number)?, block))
    }

    fn remove_sized(&mut self, class: u32, (bytes, number, id): Sized) -> Option<(Arc<Fence>, Freed)> {
        let sizes = self.lengths.get_mut(&class)?;
        sizes.remove(&(bytes, number, id));
        if sizes.is_empty() {
            self.lengths.remove(&class);
        }
        self.ages.remove(&(number, class, id, bytes));
        Some((self.leave(number)?, Freed { class, id, bytes }))
    }

    /// The youngest block of a class, of exactly so many bytes unless 0 are given: the oldest are about to be free for
    /// all anyway.
    pub(super) fn take(&mut self, class: u32, bytes: u64) -> Option<(Arc<Fence>, Freed)> {
        if let Some(sizes) = self.lengths.get(&class) {
            let found = match bytes {
                0 => sizes.last(),
                _ => sizes.range((bytes, 0, 0)..=(bytes, u64::MAX, u64::MAX)).next_back(),
            };
            return self.remove_sized(class, *found?);
        }
        self.pop_class(class)
    }

    /// Class and size of the shortest run of at least so many bytes, of a class from `class` on.
    pub(super) fn shortest_run(&self, class: u32, bytes: u64) -> Option<(u32, u64)> {
        let sizes = self.classes.range(class..).filter_map(|(_, list)| list.back());
        let of_class = sizes.filter(|(_, block)| is_run(block, class, bytes));
        let of_class = of_class.map(|(_, block)| (block.class, block.bytes));
        let lengths = self.lengths.range(class..).filter(|(class, _)| **class != LARGE);
        let fitting = lengths.filter_map(|(&class, sizes)| {
            let &(bytes, ..) = sizes.range((bytes, 0, 0)..).next()?;
            Some((class, bytes))
        });
        of_class.chain(fitting).min_by_key(|&(_, bytes)| bytes)
    }

    pub(super) fn take_run(&mut self, class: u32, bytes: u64) -> Option<(Arc<Fence>, Freed)> {
        let (class, bytes) = self.shortest_run(class, bytes)?;
        self.take(class, bytes)
    }

    /// All runs of a class from `class` on.
    pub(super) fn take_runs(&mut self, class: u32) -> Vec<Freed> {
        let classes: Vec<u32> = self.classes.range(class..).map(|(&class, _)| class).collect();
        let lengths: Vec<u32> = self.lengths.range(class..).map(|(&class, _)| class).collect();
        let mut runs = Vec::new();
        for class in classes.into_iter().chain(lengths).filter(|&class| class != LARGE) {
            runs.extend(std::iter::from_fn(|| self.take(class, 0).map(|(_, run)| run)));
        }
        runs
    }

    /// The first number of which the fence is not known to be reached, or not known to be later than one that is.
    /// `too_many` fences later for a test that plants that mistake.
    fn reached_until(&self, mut too_many: usize) -> u64 {
        // What was recorded before a point that was reached was reached before it.
        let known = self.fences.values().rev().find(|behind| behind.fence.is_known_reached());
        let before = known.map_or(0, |behind| behind.fence.begun());
        for (&number, behind) in self.fences.range(before..) {
            if !behind.fence.is_known_reached() {
                if too_many == 0 {
                    return number;
                }
                too_many -= 1;
            }
        }
        u64::MAX
    }

    /// Takes out blocks behind fences that are known to be reached, `most` at most; whether those were all.
    pub(super) fn take_reached(&mut self, too_many: usize, most: usize, reached: &mut Vec<Freed>) -> bool {
        let until = self.reached_until(too_many);
        let before = reached.len();
        let left = |reached: &Vec<Freed>| most.saturating_sub(reached.len());
        let mut numbers: Vec<u64> = Vec::new();
        self.classes.retain(|_, list| {
            let count = list.partition_point(|&(number, _)| number < until).min(left(reached));
            for (number, block) in list.drain(..count) {
                numbers.push(number);
                reached.push(block);
            }
            !list.is_empty()
        });
        while left(reached) > 0
            && let Some(&(number, class, id, bytes)) = self.ages.first().filter(|age| age.0 < until)
        {
            self.ages.pop_first();
            if let Some(sizes) = self.lengths.get_mut(&class) {
                sizes.remove(&(bytes, number, id));
            }
            numbers.push(number);
            reached.push(Freed { class, id, bytes });
        }
        self.lengths.retain(|_, sizes| !sizes.is_empty());
        debug_assert_eq!(numbers.len(), reached.len() - before);
        for number in numbers {
            self.leave(number);
        }
        self.fences.first_key_value().is_none_or(|(&number, _)| number >= until)
    }

    pub(super) fn take_all(&mut self) -> Vec<Freed> {
        let blocks = self.blocks().collect();
        *self = Self::default();
        blocks
    }

    pub(super) fn validate(&self, has_lengths: bool) -> Result<()> {
        let fail = |text: &'static str| Err(Error::internal(text));
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        for (&class, list) in &self.classes {
            if list.is_empty() || list.iter().any(|(_, block)| block.class != class) {
                return fail("an empty list of blocks behind fences, or one with a block of another class");
            }
            if !list.iter().is_sorted_by_key(|&(number, _)| number) || has_lengths && class >= LARGE {
                return fail("blocks behind fences that are not in the order of those");
            }
            list.iter().for_each(|&(number, _)| *counts.entry(number).or_default() += 1);
        }
        for &(number, class, id, bytes) in &self.ages {
            if !self.lengths.get(&class).is_some_and(|sizes| sizes.contains(&(bytes, number, id))) {
                return fail("a block behind a fence that is not to be found by its length");
            }
            *counts.entry(number).or_default() += 1;
        }
        let by_length: usize = self.lengths.values().map(BTreeSet::len).sum();
        let counted: BTreeMap<u64, usize> =
            self.fences.iter().map(|(&number, behind)| (number, behind.count)).collect();
        if by_length != self.ages.len() || counted != counts {
            return fail("other counts of blocks behind fences than there are");
        }
        Ok(())
    }
}
