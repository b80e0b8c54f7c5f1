//! Blocks of one stream behind the fences that were recorded after they were freed.
//!
//! What it does: finds the youngest block of a class or of a length, the shortest run, and what a reached fence lets
//! go, without a walk over the blocks that stay. What it does not: ask the device about a fence.
//! Invariants, checked by `validate()`: each block stands behind a fence that is here, each fence has as many as are
//! counted, and the lists of each class are in the order of the fences' numbers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use super::super::fence::Fence;
use super::{Freed, LARGE, is_run, serves_parts};
use crate::error::{Error, Result};

struct Behind {
    fence: Arc<Fence>,
    count: usize,
    /// Class, bytes and id of those whose class says no size; some may have been taken since.
    lengths: Vec<(u32, u64, u64)>,
}

/// Number of the fence, and the block.
type Waiting = (u64, Freed);

/// Bytes, number of the fence, id.
type Sized = (u64, u64, u64);

/// How many points of a stream, of which none is reached before those that are older, are found to be reached. Looks
/// further by twice as much each time, then between by halves: the work grows with what was reached, the questions with
/// its logarithm.
pub(in crate::memory) fn count_reached<E>(
    mut is_reached: impl FnMut(usize) -> std::result::Result<bool, E>,
) -> std::result::Result<usize, E> {
    let (mut count, mut step) = (0, 1);
    while is_reached(count + step - 1)? {
        count += step;
        step *= 2;
    }
    while step > 1 {
        step /= 2;
        count += if is_reached(count + step - 1)? { step } else { 0 };
    }
    Ok(count)
}

#[derive(Default)]
pub(super) struct Closed {
    /// By number. If one has not been reached, neither has any that was begun after it.
    fences: BTreeMap<u64, Behind>,
    /// Blocks of classes of one size, none of them empty.
    classes: BTreeMap<u32, VecDeque<Waiting>>,
    /// Blocks of classes that do not say a size.
    lengths: BTreeMap<u32, BTreeSet<Sized>>,
}

impl Closed {
    pub(super) fn is_empty(&self) -> bool {
        self.fences.is_empty()
    }

    pub(super) fn fence_at(&self, at: usize) -> Option<&Arc<Fence>> {
        self.fences.values().nth(at).map(|behind| &behind.fence)
    }

    pub(super) fn oldest(&self) -> Option<&Arc<Fence>> {
        self.fences.first_key_value().map(|(_, behind)| &behind.fence)
    }

    pub(super) fn youngest(&self) -> Option<&Arc<Fence>> {
        self.fences.last_key_value().map(|(_, behind)| &behind.fence)
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = Freed> {
        let of_class = |(&class, sizes): (&u32, &'_ BTreeSet<Sized>)| {
            sizes.iter().map(move |&(bytes, _, id)| Freed { class, id, bytes }).collect::<Vec<Freed>>()
        };
        let lengths = self.lengths.iter().flat_map(of_class);
        self.classes.values().flatten().map(|&(_, block)| block).chain(lengths)
    }

    /// Puts blocks behind a fence.
    pub(super) fn put(&mut self, fence: &Arc<Fence>, blocks: Vec<Freed>, has_lengths: bool) {
        let number = fence.number();
        let new = || Behind { fence: Arc::clone(fence), count: 0, lengths: Vec::new() };
        let behind = self.fences.entry(number).or_insert_with(new);
        behind.count += blocks.len();
        let mut lengths: BTreeMap<u32, Vec<Sized>> = BTreeMap::new();
        for block in blocks {
            if has_lengths && block.class >= LARGE {
                behind.lengths.push((block.class, block.bytes, block.id));
                lengths.entry(block.class).or_default().push((block.bytes, number, block.id));
                continue;
            }
            let list = self.classes.entry(block.class).or_default();
            // At the end, unless a wait behind an older fence was refused.
            let at = match list.back() {
                Some(&(last, _)) if last > number => list.partition_point(|&(other, _)| other <= number),
                _ => list.len(),
            };
            list.insert(at, (number, block));
        }
        for (class, new) in lengths {
            let sizes = self.lengths.entry(class).or_default();
            // A tree of many is made faster than many are put into one.
            match sizes.len() < new.len() {
                true => sizes.append(&mut BTreeSet::from_iter(new)),
                false => sizes.extend(new),
            }
        }
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
        let lengths = self.lengths.range(class..).filter(|(class, _)| serves_parts(**class));
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
        for class in classes.into_iter().chain(lengths).filter(|&class| serves_parts(class)) {
            runs.extend(std::iter::from_fn(|| self.take(class, 0).map(|(_, run)| run)));
        }
        runs
    }

    /// The first number of which the fence is not known to be reached, or not known to be later than one that is.
    /// `too_many` fences later for a test that plants that mistake.
    fn reached_until(&self, mut too_many: usize) -> u64 {
        // What was recorded before a point that was reached was reached before it.
        let is_known = |fence: &&Arc<Fence>| fence.is_known_reached();
        let known = self.youngest().filter(is_known).or_else(|| {
            let Ok(count) = count_reached(|at| {
                Ok::<_, Infallible>(self.fence_at(at).is_some_and(|fence| is_known(&fence)))
            });
            self.fence_at(count.checked_sub(1)?)
        });
        let before = known.map_or(0, |fence| fence.begun());
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

    /// Takes out the blocks behind fences that are known to be reached.
    pub(super) fn take_reached(&mut self, too_many: usize) -> Vec<Freed> {
        let until = self.reached_until(too_many);
        if until == u64::MAX {
            return self.take_all();
        }
        let mut reached = Vec::new();
        while let Some(first) = self.fences.first_entry().filter(|first| *first.key() < until) {
            let (number, behind) = first.remove_entry();
            for (class, bytes, id) in behind.lengths {
                let Some(sizes) = self.lengths.get_mut(&class) else { continue };
                if sizes.remove(&(bytes, number, id)) {
                    reached.push(Freed { class, id, bytes });
                }
            }
        }
        self.lengths.retain(|_, sizes| !sizes.is_empty());
        self.classes.retain(|_, list| {
            let count = list.partition_point(|&(number, _)| number < until);
            reached.extend(list.drain(..count).map(|(_, block)| block));
            !list.is_empty()
        });
        reached
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
        let of = |(&number, behind): (&u64, &Behind)| {
            behind
                .lengths
                .iter()
                .map(move |&(class, bytes, id)| (number, class, bytes, id))
                .collect::<Vec<_>>()
        };
        let known: BTreeSet<(u64, u32, u64, u64)> = self.fences.iter().flat_map(of).collect();
        for (&class, sizes) in &self.lengths {
            if sizes.is_empty() || class < LARGE {
                return fail("no lengths of a class, or of one that says them");
            }
            for &(bytes, number, id) in sizes {
                *counts.entry(number).or_default() += 1;
                if !known.contains(&(number, class, bytes, id)) {
                    return fail("a block that is not known to its fence");
                }
            }
        }
        let counted: BTreeMap<u64, usize> =
            self.fences.iter().map(|(&number, behind)| (number, behind.count)).collect();
        if counted != counts {
            return fail("other counts of blocks behind fences than there are");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_counted_whatever_their_number_and_asked_about_seldom() {
        for reached in (0..200_usize).chain([255, 256, 257, 65_535, 65_536, 100_000]) {
            let mut asked = 0_u32;
            let count = count_reached(|at| {
                asked += 1;
                Ok::<_, Infallible>(at < reached)
            });
            assert_eq!(count, Ok(reached));
            let most = 2 * (reached + 1).ilog2() + 1;
            assert!(asked <= most, "{asked} questions about {reached} points, at most {most}");
        }
        assert_eq!(count_reached(|at| if at < 5 { Ok(true) } else { Err("lost") }), Err("lost"));
    }
}
