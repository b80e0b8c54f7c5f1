//! What was freed on one stream: open, and behind fences.
//!
//! What it does: the open blocks, by class, and by length where the class does not say it. What it does not: count
//! over all streams; that is `order`'s. Invariant, checked by `validate()`: `count` and `bytes` are those of the open
//! blocks.

use std::collections::BTreeSet;

use super::super::region::LARGE_GRANULE_BYTES;
use super::super::stretches::Stretches;
use super::closed::Closed;
use super::{Freed, LARGE, is_run, serves_parts};
use crate::error::{Error, Result};

/// Of so many runs that are long enough, the shortest ones, it is asked whether they begin where they have to.
const ALIGNED_MOST: usize = 64;

/// Runs of one class by length.
#[derive(Default)]
struct Runs {
    /// Bytes, stamp and id.
    by_bytes: BTreeSet<(u64, u64, u64)>,
    stamp: u64,
}

impl Runs {
    fn insert(&mut self, block: Freed) {
        self.stamp += 1;
        self.by_bytes.insert((block.bytes, self.stamp, block.id));
    }

    /// The one of this length that came last; of any for 0.
    fn last(&self, bytes: u64) -> Option<(u64, u64, u64)> {
        match bytes {
            0 => self.by_bytes.last().copied(),
            _ => self.by_bytes.range((bytes, 0, 0)..=(bytes, u64::MAX, u64::MAX)).next_back().copied(),
        }
    }

    fn shortest(&self, bytes: u64, alignment: u32) -> Option<(u64, u64, u64)> {
        let mut longer = self.by_bytes.range((bytes, 0, 0)..).take(ALIGNED_MOST);
        longer.find(|(_, _, id)| id & u64::from(alignment - 1) == 0).copied()
    }
}

#[derive(Default)]
pub(super) struct Lane {
    /// By class, but for those below.
    open: Vec<Vec<Freed>>,
    large: Option<Box<Stretches>>,
    /// Of the classes after the large one.
    runs: Vec<Runs>,
    pub(super) count: usize,
    pub(super) bytes: u64,
    pub(super) closed: Closed,
}

impl Lane {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0 && self.closed.is_empty()
    }

    /// Whether anything was ever open here.
    pub(super) fn has_lists(&self) -> bool {
        !self.open.is_empty() || self.large.is_some() || !self.runs.is_empty()
    }

    pub(super) fn large(&mut self) -> Option<&mut Stretches> {
        self.large.as_deref_mut()
    }

    /// Place among `runs`.
    fn run_index(class: u32) -> Option<usize> {
        class.checked_sub(LARGE + 1).map(|index| index as usize)
    }

    fn class_of_runs(index: usize) -> u32 {
        LARGE + 1 + index as u32
    }

    pub(super) fn free(&mut self, block: Freed, has_lengths: bool) {
        self.count += 1;
        self.bytes += block.bytes;
        if has_lengths && block.class == LARGE {
            let new = || Box::new(Stretches::new(LARGE, LARGE_GRANULE_BYTES));
            self.large.get_or_insert_with(new).insert(block);
        } else if has_lengths && let Some(index) = Self::run_index(block.class) {
            if self.runs.len() <= index {
                self.runs.resize_with(index + 1, Runs::default);
            }
            self.runs[index].insert(block);
        } else {
            let class = block.class as usize;
            if self.open.len() <= class {
                self.open.resize_with(class + 1, Vec::new);
            }
            self.open[class].push(block);
        }
    }

    /// Notes that blocks have left the open ones.
    pub(super) fn left(&mut self, blocks: &[Freed]) {
        self.count -= blocks.len();
        self.bytes -= blocks.iter().map(|block| block.bytes).sum::<u64>();
    }

    fn left_one(&mut self, block: Freed) -> Freed {
        self.left(&[block]);
        block
    }

    /// The open block of a class that came last.
    #[inline]
    pub(super) fn take(&mut self, class: u32) -> Option<Freed> {
        match self.open.get_mut(class as usize).and_then(Vec::pop) {
            Some(block) => Some(self.left_one(block)),
            None => self.take_sized(class, 0),
        }
    }

    /// The open block of a class without a size of its own that came last, of exactly so many bytes; of any for 0.
    pub(super) fn take_sized(&mut self, class: u32, bytes: u64) -> Option<Freed> {
        if class == LARGE {
            let large = self.large.as_mut()?;
            let block = if bytes == 0 { large.take_any() } else { large.take_sized(bytes) };
            return block.map(|block| self.left_one(block));
        }
        let index = Self::run_index(class)?;
        let found = self.runs.get(index)?.last(bytes)?;
        Some(self.take_from_runs(index, found))
    }

    fn take_from_runs(&mut self, index: usize, (bytes, stamp, id): (u64, u64, u64)) -> Freed {
        self.runs[index].by_bytes.remove(&(bytes, stamp, id));
        self.left_one(Freed { class: Self::class_of_runs(index), id, bytes })
    }

    /// The shortest open run of exactly this class that begins at a multiple of `alignment`.
    pub(super) fn take_aligned(&mut self, class: u32, bytes: u64, alignment: u32) -> Option<Freed> {
        let index = Self::run_index(class)?;
        let found = self.runs.get(index)?.shortest(bytes, alignment)?;
        Some(self.take_from_runs(index, found))
    }

    /// The shortest open run of a class from `class` on.
    pub(super) fn take_run(&mut self, class: u32, bytes: u64) -> Option<Freed> {
        let lasts = self.open.iter().skip(class as usize).filter_map(|list| list.last());
        let of_class = lasts.filter(|block| is_run(block, class, bytes)).min_by_key(|block| block.bytes);
        let of_class = of_class.map(|block| (block.bytes, block.class));
        let runs =
            self.runs.iter().enumerate().filter(|(index, _)| serves_parts(Self::class_of_runs(*index)));
        let fitting = runs.filter_map(|(index, runs)| Some((runs.shortest(bytes, 1)?, index)));
        let fitting = fitting.min_by_key(|((bytes, ..), _)| *bytes);
        match (of_class, fitting) {
            (Some((class_bytes, class)), Some(((bytes, ..), _))) if class_bytes <= bytes => self.take(class),
            (_, Some((found, index))) => Some(self.take_from_runs(index, found)),
            (Some((_, class)), None) => self.take(class),
            (None, None) => None,
        }
    }

    /// All runs of a class from `class` on, open or not.
    pub(super) fn take_runs(&mut self, class: u32) -> Vec<Freed> {
        let mut runs = Vec::new();
        for list in self.open.iter_mut().skip(class as usize) {
            runs.append(list);
        }
        let parts = self.runs.iter_mut().enumerate();
        for (index, of_class) in parts.filter(|(index, _)| serves_parts(Self::class_of_runs(*index))) {
            let taken = std::mem::take(&mut of_class.by_bytes).into_iter();
            runs.extend(taken.map(|(bytes, _, id)| Freed { class: Self::class_of_runs(index), id, bytes }));
        }
        self.left(&runs);
        runs.extend(self.closed.take_runs(class));
        runs
    }

    /// All open blocks.
    pub(super) fn take_open(&mut self) -> Vec<Freed> {
        if self.count == 0 {
            return Vec::new();
        }
        let mut blocks = Vec::with_capacity(self.count);
        self.open.iter_mut().for_each(|list| blocks.append(list));
        for (index, runs) in self.runs.iter_mut().enumerate() {
            let taken = std::mem::take(&mut runs.by_bytes);
            let mut taken: Vec<(u64, u64)> = taken.into_iter().map(|(bytes, _, id)| (bytes, id)).collect();
            // Of equals the lowest first, as they come back from behind a fence.
            taken.sort_unstable();
            let class = Self::class_of_runs(index);
            blocks.extend(taken.into_iter().map(|(bytes, id)| Freed { class, id, bytes }));
        }
        blocks.extend(self.large.iter_mut().flat_map(|large| large.take_all()));
        (self.count, self.bytes) = (0, 0);
        blocks
    }

    pub(super) fn open_blocks(&self) -> impl Iterator<Item = Freed> {
        let large = self.large.iter().flat_map(|large| large.blocks());
        let runs = self.runs.iter().enumerate().flat_map(|(index, runs)| {
            let block = move |&(bytes, _, id): &(u64, u64, u64)| Freed {
                class: Self::class_of_runs(index),
                id,
                bytes,
            };
            runs.by_bytes.iter().map(block)
        });
        self.open.iter().flatten().copied().chain(large).chain(runs)
    }

    pub(super) fn validate(&self, has_lengths: bool) -> Result<()> {
        let count = self.open_blocks().count();
        let bytes: u64 = self.open_blocks().map(|block| block.bytes).sum();
        if (count, bytes) != (self.count, self.bytes) {
            let counted = (self.count, self.bytes);
            let text = format!("{count} open blocks of {bytes} bytes, {counted:?} counted");
            return Err(Error::internal(text));
        }
        for (class, list) in self.open.iter().enumerate() {
            if list.iter().any(|block| block.class as usize != class) {
                return Err(Error::internal(format!("a block of another class in the list of {class}")));
            }
        }
        self.large.as_ref().map_or(Ok(()), |large| large.validate())?;
        self.closed.validate(has_lengths)
    }
}
