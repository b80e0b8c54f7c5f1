//! Freed blocks that wait for points on streams.
//!
//! What it does: keeps those that wait for one stream in the order of that stream, so that only the oldest of each is
//! asked for and nothing is walked over that has to wait; keeps the few that wait for several streams apart. What it
//! does not: ask a device. Invariant: a block is in one list, and leaves it when all its points are known to have been
//! reached.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::super::super::Allocation;
use super::super::super::fence::Fence;
use crate::device::Stream;

/// A point, with the lane of its stream: what is behind a point that was not reached was not reached either.
pub(super) type Point = (Stream, Arc<Fence>);

/// All that waits.
#[derive(Default)]
pub(super) struct Leaving {
    /// Oldest first.
    lanes: HashMap<Stream, VecDeque<(Arc<Fence>, Allocation)>>,
    several: Vec<(Vec<Point>, Allocation)>,
}

impl Leaving {
    pub(super) fn push(&mut self, mut points: Vec<Point>, allocation: Allocation) {
        match (points.pop(), points.is_empty()) {
            (Some((lane, fence)), true) => self.lanes.entry(lane).or_default().push_back((fence, allocation)),
            (last, _) => {
                points.extend(last);
                self.several.push((points, allocation));
            }
        }
    }

    pub(super) fn allocations(&self) -> impl Iterator<Item = &Allocation> {
        let one = self.lanes.values().flatten().map(|(_, allocation)| allocation);
        one.chain(self.several.iter().map(|(_, allocation)| allocation))
    }

    pub(super) fn clear(&mut self) {
        self.lanes.clear();
        self.several.clear();
    }

    /// Every point.
    pub(super) fn fences(&self) -> Vec<Arc<Fence>> {
        let one = self.lanes.values().flatten().map(|(fence, _)| Arc::clone(fence));
        let several = self.several.iter().flat_map(|(points, _)| points);
        one.chain(several.map(|(_, fence)| Arc::clone(fence))).collect()
    }

    /// The oldest point of each stream.
    pub(super) fn oldest(&self) -> Vec<Point> {
        let oldest = self.lanes.iter().filter_map(|(lane, line)| Some((*lane, line.front()?)));
        oldest.map(|(lane, (fence, _))| (lane, Arc::clone(fence))).collect()
    }

    /// Points of blocks that wait for several streams.
    pub(super) fn several(&self) -> Vec<Point> {
        self.several.iter().flat_map(|(points, _)| points.iter().cloned()).collect()
    }

    /// Takes out what is over of a stream; the next point to ask for.
    pub(super) fn take_over(&mut self, lane: Stream, gone: &mut Vec<Allocation>) -> Option<Arc<Fence>> {
        let line = self.lanes.get_mut(&lane)?;
        while line.front().is_some_and(|(fence, _)| fence.is_known_reached()) {
            gone.extend(line.pop_front().map(|(_, allocation)| allocation));
        }
        let next = line.front().map(|(fence, _)| Arc::clone(fence));
        if next.is_none() {
            self.lanes.remove(&lane);
        }
        next
    }

    /// Takes out what is over of several streams.
    pub(super) fn take_over_several(&mut self, gone: &mut Vec<Allocation>) {
        let is_over = |points: &[Point]| points.iter().all(|(_, fence)| fence.is_known_reached());
        let taken = self.several.extract_if(.., |(points, _)| is_over(points));
        gone.extend(taken.map(|(_, allocation)| allocation));
    }
}
