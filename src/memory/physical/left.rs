//! How much memory can still be had, and which limit stands in the way. What it does not: take any. Invariant: none of
//! its answers holds for longer than nobody else takes something.

use std::sync::atomic::Ordering;

use super::{Core, Physical, Pool};
use crate::error::{Error, Result, Status};
use crate::memory::page_class::PageClass;

/// The answer to whoever asks for more than there is.
pub(in crate::memory) fn short_of(bytes: u64, left_bytes: u64) -> Error {
    let text = format!("{bytes} bytes of physical memory requested, {left_bytes} available; free something");
    Error::new(Status::OutOfMemory, text)
}

impl Core {
    /// What is pooled, less what nobody can have: pages to which addresses lead that the device does not leave.
    fn usable_bytes(&self, pool: &Pool) -> u64 {
        let pooled_bytes = self.pooled_bytes(pool);
        if self.unmaps.failed() == 0 || self.stale.load(Ordering::Acquire) == 0 {
            return pooled_bytes;
        }
        let kept = |class: PageClass| {
            let idle = pool.idle[class.index()].iter();
            idle.filter(|idle| idle.is_tied() && idle.is_broken()).count() as u64
        };
        pooled_bytes - PageClass::ALL.into_iter().map(|class| kept(class) * self.bytes_of(class)).sum::<u64>()
    }
}

impl Physical {
    /// Most that [`Physical::take`] could hand out now; others may be faster.
    pub fn left_bytes(&self) -> u64 {
        let left = self.core.account.left_bytes();
        left.saturating_add(self.core.usable_bytes(&self.core.pool.lock()))
    }

    /// Bytes of pages that wait for use and can be had.
    pub(in crate::memory) fn usable_bytes(&self) -> u64 {
        self.core.usable_bytes(&self.core.pool.lock())
    }

    /// Refuses so many bytes where the device says that it has fewer with all that is pooled, before any of them is
    /// made. Asks the device.
    pub(in crate::memory) fn check_device(&self, bytes: u64) -> Result<()> {
        let (pooled_bytes, has_transit) = {
            let pool = self.core.pool.lock();
            (self.core.pooled_bytes(&pool), pool.transit > 0)
        };
        // After the look at the pool: what leaves it meanwhile is free then, and counts twice rather than not at all.
        let free_bytes = self.core.device.memory_info()?.free_bytes;
        let left_bytes = free_bytes.saturating_add(pooled_bytes);
        // Pages on their way are in neither.
        if bytes <= left_bytes || has_transit {
            return Ok(());
        }
        let mut pool = self.core.pool.lock();
        pool.ceiling_bytes = Some(self.core.alive_bytes(&pool).saturating_add(free_bytes));
        Err(short_of(bytes, left_bytes))
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
            (self.core.usable_bytes(&pool), self.core.alive_bytes(&pool), pool.ceiling_bytes)
        };
        let account = &self.core.account;
        let left_bytes = account.left_bytes().min(total_bytes.saturating_sub(account.used_bytes()));
        let seen_bytes = ceiling_bytes.unwrap_or(total_bytes).saturating_sub(alive_bytes);
        left_bytes.min(seen_bytes).saturating_add(pooled_bytes)
    }

    /// As `left_bytes`, where what has to be found out first counts as used.
    pub(in crate::memory) fn certain_bytes(&self) -> u64 {
        let left = self.core.account.certain_bytes();
        left.saturating_add(self.core.usable_bytes(&self.core.pool.lock()))
    }

    /// The limit that stands in the way, for people.
    pub(in crate::memory) fn limit_text(&self) -> String {
        self.core.account.limit_text()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::device::registry;
    use crate::event::NoSink;
    use crate::memory::{Limits, Memory};

    #[test]
    fn a_page_that_nobody_can_have_is_not_left() {
        let device = registry::open("sim?page_bytes=2097152").unwrap();
        let limits = Limits { device_limit_bytes: 8 << 20, ..Limits::default() };
        let memory = Memory::new(device, limits, Arc::new(NoSink));
        let physical = memory.physical().unwrap();
        let left = || [physical.left_bytes(), physical.likely_left_bytes(8 << 20), physical.certain_bytes()];
        let all = left();
        let mut page = physical.take(PageClass::SMALL, 0, None).unwrap();
        page.pass_on();
        assert_eq!(left(), all, "others may have it before it is unmapped");
        // The device keeps the mapping.
        page.discard();
        physical.note_unmap(false);
        assert_eq!((left(), physical.usable_bytes()), (all.map(|bytes| bytes - (2 << 20)), 0));
        drop(page);
        assert_eq!(left(), all, "the device gets it, and gives it anew");
        let pages: Vec<_> =
            (0..4).map(|_| physical.take(PageClass::SMALL, 0, None)).collect::<Result<_>>().unwrap();
        assert_eq!((pages.len(), physical.left_bytes()), (4, 0));
    }
}
