//! Freed blocks that several streams used: free when all of them are past it.
//!
//! What it does: keeps each block behind one of the points that it waits for, so that of each stream only the oldest
//! one is asked about, and nobody walks over what has to wait longer. What it does not: ask the device.
//! Invariants, checked by `validate()`: a block is behind a point that it waits for, or behind a lane on which no point
//! could be recorded yet, or waits for nothing; `len` and `bytes` are those of all.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::super::fence::Fence;
use super::super::order::Freed;
use super::points::Waits;
use crate::device::Stream;
use crate::error::{Error, Result};

/// A block, and what it waits for.
pub(super) struct Limbo {
    pub(super) waits: Waits,
    pub(super) block: Freed,
}

/// A point and the blocks behind it.
type Behind = (Arc<Fence>, Vec<Limbo>);

/// All of them.
#[derive(Default)]
pub(super) struct Limbos {
    /// By the value of a stream, then by the number of a point on it.
    points: BTreeMap<u64, BTreeMap<u64, Behind>>,
    /// By a lane without a point, in the order in which they came, with the stamp of that.
    unmarked: BTreeMap<u64, VecDeque<(u64, Limbo)>>,
    /// Those that wait for nothing any more.
    past: Vec<Freed>,
    stamp: u64,
    len: usize,
    bytes: u64,
}

impl Limbos {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes a block in.
    pub(super) fn push(&mut self, limbo: Limbo) {
        self.len += 1;
        self.bytes += limbo.block.bytes;
        self.place(limbo);
    }

    fn place(&mut self, mut limbo: Limbo) {
        limbo.waits.fences.retain(|fence| !fence.is_known_reached());
        if let Some(lane) = limbo.waits.unmarked.iter().map(|lane| lane.0).min() {
            self.stamp += 1;
            self.unmarked.entry(lane).or_default().push_back((self.stamp, limbo));
        } else if let Some(fence) = limbo.waits.fences.pop() {
            let points = self.points.entry(fence.stream().0).or_default();
            points.entry(fence.number()).or_insert_with(|| (fence, Vec::new())).1.push(limbo);
        } else {
            self.past.push(limbo.block);
        }
    }

    /// The oldest point of every stream, for the caller to ask about.
    pub(super) fn oldest(&self) -> Vec<Arc<Fence>> {
        let first = self.points.values().filter_map(|points| points.first_key_value());
        first.map(|(_, (fence, _))| Arc::clone(fence)).collect()
    }

    /// All points, for whoever waits for everything.
    pub(super) fn fences(&self) -> Vec<Arc<Fence>> {
        let behind = self.points.values().flat_map(BTreeMap::values);
        let first = behind.clone().map(|(fence, _)| Arc::clone(fence));
        let others = behind.flat_map(|(_, limbos)| limbos).chain(self.late().map(|(_, limbo)| limbo));
        first.chain(others.flat_map(|limbo| limbo.waits.fences.iter().cloned())).collect()
    }

    fn late(&self) -> impl Iterator<Item = &(u64, Limbo)> {
        self.unmarked.values().flatten()
    }

    /// Takes out blocks of which no point is left that is not known to be reached. `is_any_enough` lets them go at the
    /// first one, for a test that plants that mistake.
    pub(super) fn take_past(&mut self, is_any_enough: bool) -> Vec<Freed> {
        let streams: Vec<u64> = self.points.keys().copied().collect();
        for stream in streams {
            while let Some(points) = self.points.get_mut(&stream) {
                let Some(first) = points.first_entry().filter(|first| first.get().0.is_known_reached())
                else {
                    break;
                };
                let (_, limbos) = first.remove();
                if points.is_empty() {
                    self.points.remove(&stream);
                }
                for mut limbo in limbos {
                    if is_any_enough {
                        limbo.waits.fences.clear();
                    }
                    self.place(limbo);
                }
            }
        }
        let past = std::mem::take(&mut self.past);
        self.len -= past.len();
        self.bytes -= past.iter().map(|block| block.bytes).sum::<u64>();
        past
    }

    /// The next lane, from `from` on, on which blocks wait for a point, and the stamp of the last one that came.
    pub(super) fn next_unmarked(&self, from: u64) -> Option<(Stream, u64)> {
        self.unmarked.range(from..).next().map(|(&lane, _)| (Stream(lane), self.stamp))
    }

    /// A lane got a point, or needs none, after the block with this stamp came.
    pub(super) fn mark(&mut self, lane: Stream, until: u64, point: Option<&Arc<Fence>>) {
        let Some(late) = self.unmarked.get_mut(&lane.0) else { return };
        let count = late.partition_point(|(stamp, _)| *stamp <= until);
        let marked: Vec<(u64, Limbo)> = late.drain(..count).collect();
        if late.is_empty() {
            self.unmarked.remove(&lane.0);
        }
        for (_, mut limbo) in marked {
            limbo.waits.unmarked.retain(|other| *other != lane);
            limbo.waits.fences.extend(point.cloned());
            self.place(limbo);
        }
    }

    /// Whether a block waits for a point of such a lane to be recorded.
    pub(super) fn is_any_late(&self, is_it: impl FnMut(&Stream) -> bool) -> bool {
        self.late().flat_map(|(_, limbo)| &limbo.waits.unmarked).any(is_it)
    }

    /// Changes the lanes whose points blocks wait for.
    pub(super) fn change_late(&mut self, mut change: impl FnMut(&mut Vec<Stream>)) {
        let late = std::mem::take(&mut self.unmarked);
        for (_, mut limbo) in late.into_values().flatten() {
            change(&mut limbo.waits.unmarked);
            self.place(limbo);
        }
    }

    /// All blocks, in no order.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Freed> {
        let behind = self.points.values().flat_map(BTreeMap::values).flat_map(|(_, limbos)| limbos);
        let waiting = behind.chain(self.late().map(|(_, limbo)| limbo));
        waiting.map(|limbo| limbo.block).chain(self.past.iter().copied())
    }

    /// Blocks, and how many of them wait for a point to be recorded.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.len, self.late().count())
    }

    pub(super) fn validate(&self) -> Result<()> {
        let counted = (self.blocks().count(), self.blocks().map(|block| block.bytes).sum());
        if counted != (self.len, self.bytes) {
            let text = format!("{counted:?} blocks of several streams, {:?} counted", (self.len, self.bytes));
            return Err(Error::internal(text));
        }
        let is_placed = |(stream, points): (&u64, &BTreeMap<u64, Behind>)| {
            let is_right = |(&number, (fence, limbos)): (&u64, &Behind)| {
                fence.number() == number && fence.stream().0 == *stream && !limbos.is_empty()
            };
            !points.is_empty() && points.iter().all(is_right)
        };
        let is_late = |(lane, late): (&u64, &VecDeque<(u64, Limbo)>)| {
            let is_right = |(_, limbo): &(u64, Limbo)| limbo.waits.unmarked.contains(&Stream(*lane));
            !late.is_empty() && late.iter().all(is_right) && late.iter().is_sorted_by_key(|(stamp, _)| *stamp)
        };
        if !self.points.iter().all(is_placed) || !self.unmarked.iter().all(is_late) {
            return Err(Error::internal("a block of several streams behind what it does not wait for"));
        }
        Ok(())
    }
}
