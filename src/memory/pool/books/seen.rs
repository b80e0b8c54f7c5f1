//! What the books show: totals, the blocks in use, when a batch was used.
//!
//! What it does not: change anything.

use super::Books;
use crate::memory::pool::config::PoolMemory;
use crate::memory::pool::statistics::{ClassStatistics, PoolStatistics};

/// A block that somebody has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLive {
    /// First byte.
    pub address: u64,
    /// Bytes asked for.
    pub bytes: u64,
    /// Bytes of its block.
    pub block_bytes: u64,
    /// When it was handed out.
    pub since_ns: u64,
}

impl<O> Books<O> {
    /// Totals and classes by size.
    pub(in crate::memory::pool) fn statistics(&self) -> (PoolStatistics, Vec<ClassStatistics>) {
        let counts = self.by_bytes.iter().map(|&(_, class)| self.classes[class as usize].counts);
        let managed_bytes = if self.memory == PoolMemory::Managed { self.totals.held_bytes } else { 0 };
        PoolStatistics::complete(PoolStatistics { managed_bytes, ..self.totals }, counts.collect())
    }

    /// The blocks in use, by address.
    pub(in crate::memory::pool) fn live(&self) -> Vec<PoolLive> {
        let batches = self.ranges.iter().filter_map(|&(_, number)| self.batches[number as usize].as_ref());
        let blocks = batches.flat_map(|batch| {
            let block_bytes = self.classes[batch.class as usize].block_bytes;
            let used = batch.cells.iter().enumerate().filter(|(_, cell)| cell.is_in_use());
            used.map(move |(index, cell)| PoolLive {
                address: batch.start + index as u64 * block_bytes,
                bytes: cell.asked,
                block_bytes,
                since_ns: cell.since_ns,
            })
        });
        blocks.collect()
    }

    /// When the batch was used that was used longest ago.
    pub(in crate::memory::pool) fn oldest_use_ns(&self) -> Option<u64> {
        self.batches.iter().flatten().map(|batch| batch.last_use_ns).min()
    }
}
