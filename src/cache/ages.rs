//! How long content stays in a store: the ages of its latest victims.
//!
//! An age is in steps, from the last one that used a block to the one in which the block was evicted. What it does not:
//! choose victims, or act; `balance` compares the stores. O(1), and nothing is kept for each block.

/// Victims that count, at most; later ones push earlier ones out by halves.
const VICTIMS_MOST: u32 = 1024;

/// Ages of the victims of one store.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ages {
    sum: u64,
    count: u32,
    /// All victims ever.
    total: u64,
    /// Step of the latest eviction.
    latest: u64,
}

impl Ages {
    /// A block that was used last in one step is evicted in another.
    pub(super) fn note(&mut self, last_step: u64, step: u64) {
        if self.count >= VICTIMS_MOST {
            (self.sum, self.count) = (self.sum / 2, self.count / 2);
        }
        self.sum = self.sum.saturating_add(step.saturating_sub(last_step));
        self.count += 1;
        self.total += 1;
        self.latest = step;
    }

    /// All victims ever.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// About the age of the next victim: what stays while nothing is evicted grows older.
    pub(super) fn next(&self, step: u64) -> u64 {
        let mean = self.sum.checked_div(self.count.into()).unwrap_or(0);
        mean.saturating_add(step.saturating_sub(self.latest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_victim_is_as_old_as_the_latest_were_and_the_time_since() {
        let mut ages = Ages::default();
        assert_eq!(ages.next(40), 40, "nothing was evicted ever");
        (0..10_000).for_each(|_| ages.note(10, 1010));
        assert_eq!((ages.next(1010), ages.next(1510)), (1000, 1500));
        // After a few hundred others the old ones count for nothing.
        (0..4 * VICTIMS_MOST).for_each(|_| ages.note(1980, 2000));
        assert!((20..100).contains(&ages.next(2000)), "{}", ages.next(2000));
        ages.note(u64::MAX, 2000);
        assert!(ages.next(2000) < 100, "a block of a later step has no age");
    }
}
