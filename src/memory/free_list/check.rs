//! The proof that a free list is what its head says: every invariant, from the nodes themselves.

use super::bins::{BIN_COUNT, bin_of};
use super::{FREE, FreeList, GAP, Kind, NONE, USED};
use crate::error::{Error, Result};

impl FreeList {
    /// Checks every invariant in the head of the file; walks over everything.
    pub fn validate(&self) -> Result<()> {
        let tiles = self.validate_tiles()?;
        self.validate_bins()?;
        let (mut spare, mut spares) = (self.spare, 0);
        while spare != NONE {
            let node = self.nodes.get(spare as usize).filter(|node| node.kind == Kind::Spare);
            spare = node.ok_or_else(|| broken("a spare node that is not one"))?.next;
            spares += 1;
            ensure(spares <= self.nodes.len(), || "the spare nodes go round in a circle".into())?;
        }
        ensure(spares == self.spare_count as usize && BIN_COUNT + spares + tiles == self.nodes.len(), || {
            format!("{tiles} nodes in use and {spares} spare of {}", self.nodes.len())
        })
    }

    /// Walks by address; returns how many nodes there are.
    fn validate_tiles(&self) -> Result<usize> {
        let (mut at, mut below, mut before) = (self.lowest, NONE, Kind::Spare);
        let (mut end, mut tiles, mut marked) = (0, 0, 0);
        let mut totals = [(0, 0); 2];
        while at != NONE {
            let node = self.nodes.get(at as usize).ok_or_else(|| broken("a node that is not there"))?;
            ensure(node.start == end && node.below == below && node.count > 0, || {
                format!("{node:?} does not follow {below}, which ends at {end}")
            })?;
            ensure(node.kind == USED || node.kind != before, || format!("two like {node:?} touch"))?;
            end = end.checked_add(node.count).ok_or_else(|| broken("a node that ends beyond all numbers"))?;
            let is_marked = self.starts.contains(node.start);
            match node.kind {
                Kind::Spare | Kind::Bin => return Err(broken("a node in the range that is no range")),
                FREE => ensure(!is_marked, || format!("free, and in the starts: {node:?}"))?,
                _ => ensure(is_marked && self.node_at[node.start as usize] == at, || {
                    format!("its start does not lead to {node:?}")
                })?,
            }
            marked += u64::from(is_marked);
            for (total, _) in totals.iter_mut().zip([FREE, USED]).filter(|(_, kind)| *kind == node.kind) {
                *total = (total.0 + node.count, total.1 + 1);
            }
            (before, below, at) = (node.kind, at, node.above);
            tiles += 1;
        }
        ensure(end == self.capacity, || format!("the nodes end at {end}, not at {}", self.capacity))?;
        let kept = [(self.free_granules, self.free_ranges), (self.used_granules, self.used_ranges)];
        ensure(totals == kept, || format!("{totals:?} free and used, but the totals say {kept:?}"))?;
        self.starts.validate(marked)?;
        Ok(tiles)
    }

    fn validate_bins(&self) -> Result<()> {
        let mut seen = 0;
        for bin in 0..BIN_COUNT as u32 {
            let (mut at, mut prev) = (self.nodes[bin as usize].next, bin);
            let is_set = self.bins.words[bin as usize / 64] >> (bin % 64) & 1 == 1;
            ensure(is_set == (at != bin), || format!("the bit of bin {bin} says {is_set}"))?;
            while at != bin {
                let node = self.nodes.get(at as usize).ok_or_else(|| broken("a node that is not there"))?;
                let is_right = node.kind == FREE && bin_of(node.count) == bin && node.prev == prev;
                ensure(is_right, || format!("{node:?} behind {prev} in bin {bin}"))?;
                seen += 1;
                ensure(seen <= self.free_ranges, || format!("bin {bin} holds more than there is"))?;
                (prev, at) = (at, node.next);
            }
            ensure(self.nodes[bin as usize].prev == prev, || format!("bin {bin} does not end at {prev}"))?;
        }
        ensure(seen == self.free_ranges, || format!("{seen} in bins of {} free ranges", self.free_ranges))?;
        for (word, bits) in self.bins.words.iter().enumerate() {
            ensure((self.bins.summary >> word & 1 == 1) == (*bits != 0), || {
                format!("the summary is wrong about word {word} of the bins")
            })?;
        }
        // A gap is neither counted nor in a bin; what is neither free nor used has to be one.
        let gaps = self.ranges().filter(|range| Kind::Is(range.state) == GAP);
        let sum = gaps.map(|range| u64::from(range.count)).sum::<u64>();
        ensure(
            sum + u64::from(self.free_granules) + u64::from(self.used_granules) == u64::from(self.capacity),
            || format!("{sum} granules in gaps do not make up the rest"),
        )
    }
}

fn broken(what: &str) -> Error {
    Error::internal(format!("free list: {what}"))
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(broken(&what())) }
}
