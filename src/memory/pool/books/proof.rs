//! The proof that the books of a pool say what is the case.
//!
//! What it does not: mend anything. Invariants: those in the head of the books.

use super::{Books, READY, WAITING};
use crate::error::{Error, Result};

impl<O> Books<O> {
    /// Proves what the file head says.
    pub(in crate::memory::pool) fn validate(&self) -> Result<()> {
        let fail = |what: String| Err(Error::internal(format!("pool: {what}")));
        let mut counts = vec![[0_u64; 4]; self.classes.len()];
        let (mut requested, mut end) = (0, 0);
        for &(start, number) in &self.ranges {
            let Some(batch) = &self.batches[number as usize] else {
                return fail(format!("range {start:#x} has no batch"));
            };
            let class = &self.classes[batch.class as usize];
            if batch.start != start || start < end {
                return fail(format!("the batch at {start:#x} overlaps or is misplaced"));
            }
            end = start + batch.cells.len() as u64 * class.block_bytes;
            let mut ready = 0;
            for cell in &batch.cells {
                let kind = match cell.asked {
                    READY => 0,
                    WAITING => 1,
                    _ => 2,
                };
                counts[batch.class as usize][kind] += 1;
                counts[batch.class as usize][3] += 1;
                ready += usize::from(kind == 0);
                requested += if kind == 2 { cell.asked } else { 0 };
            }
            let is_list_right = batch.ready.iter().all(|&index| batch.cells[index as usize].asked == READY);
            if ready != batch.ready.len() || !is_list_right {
                return fail(format!("{ready} ready blocks at {start:#x}, {} listed", batch.ready.len()));
            }
            let listed = class.stack.iter().filter(|&&other| other == number).count();
            if listed != usize::from(batch.is_listed) || (ready > 0 && listed != 1) {
                return fail(format!("the batch at {start:#x} is listed {listed} times"));
            }
        }
        let (mut held, mut in_use, mut waiting) = (0, 0, 0);
        for (class, [_, waits, uses, all]) in self.classes.iter().zip(counts) {
            let counted = (class.counts.waiting, class.counts.in_use, class.counts.blocks);
            if counted != (waits, uses, all) {
                return fail(format!(
                    "class {}: {counted:?} counted, {:?} seen",
                    class.block_bytes,
                    (waits, uses, all)
                ));
            }
            held += all * class.block_bytes;
            in_use += uses * class.block_bytes;
            waiting += waits;
        }
        let totals = &self.totals;
        if (held, in_use, requested) != (totals.held_bytes, totals.in_use_bytes, totals.requested_bytes) {
            return fail(format!(
                "{held} bytes held, {in_use} in use, {requested} requested, but {totals:?}"
            ));
        }
        if waiting != self.order.count() as u64 + self.moving {
            return fail(format!("{waiting} blocks wait, {} are in the lists", self.order.count()));
        }
        if held + self.growing_bytes > self.max_bytes {
            return fail(format!("{held} bytes held and {} on the way", self.growing_bytes));
        }
        self.order.validate()
    }
}
