//! How much memory can still be had, and which limit stands in the way. What it does not: take any. Invariant: none of
//! its answers holds for longer than nobody else takes something.

use super::Physical;

impl Physical {
    /// Most that [`Physical::take`] could hand out now; others may be faster.
    pub fn left_bytes(&self) -> u64 {
        let left = self.core.account.left_bytes();
        left.saturating_add(self.core.pooled_bytes(&self.core.pool.lock()))
    }

    /// Bytes that were handed out and have not come back.
    pub(in crate::memory) fn held_bytes(&self) -> u64 {
        let pool = self.core.pool.lock();
        self.core.alive_bytes(&pool) - self.core.pooled_bytes(&pool)
    }

    /// As `left_bytes`, as far as is known: of a device of so many bytes, less what others here have of it, and what
    /// others elsewhere had when it refused a page last.
    pub(in crate::memory) fn likely_left_bytes(&self, total_bytes: u64) -> u64 {
        let (pooled_bytes, alive_bytes, ceiling_bytes) = {
            let pool = self.core.pool.lock();
            (self.core.pooled_bytes(&pool), self.core.alive_bytes(&pool), pool.ceiling_bytes)
        };
        let account = &self.core.account;
        let left_bytes = account.left_bytes().min(total_bytes.saturating_sub(account.used_bytes()));
        let seen_bytes = ceiling_bytes.unwrap_or(total_bytes).saturating_sub(alive_bytes);
        left_bytes.min(seen_bytes).saturating_add(pooled_bytes)
    }

    /// As `left_bytes`, where what has to be found out first counts as used.
    pub(in crate::memory) fn certain_bytes(&self) -> u64 {
        let left = self.core.account.certain_bytes();
        left.saturating_add(self.core.pooled_bytes(&self.core.pool.lock()))
    }

    /// The limit that stands in the way, for people.
    pub(in crate::memory) fn limit_text(&self) -> String {
        self.core.account.limit_text()
    }
}
