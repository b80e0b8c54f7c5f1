//! What a store asks `retention`, and what it need not ask: most blocks are ordinary, and a flag in the block tells.
//!
//! Invariant, proved by `validate`: of a block without the flag `retention` remembers nothing.

use super::block::RETAINED;
use super::retention::Retention;
use super::store::Store;

impl Store {
    /// Gives a held block a priority, for `ttl_ms` milliseconds from now or, if that is 0, without an end.
    pub(super) fn retain(&mut self, index: u32, priority: u8, ttl_ms: u64, now_ms: u64) {
        self.blocks[index as usize].namespace_and_flags |= RETAINED;
        self.retention.retain(index, priority, ttl_ms, now_ms);
    }

    /// Whether a block is pinned.
    #[inline]
    pub(super) fn is_pinned(&self, index: u32) -> bool {
        self.block(index).is_retained() && self.retention.is_pinned(index)
    }

    /// A block becomes inactive or stops being so; answers whether that is `retention`'s business, not the policy's.
    #[inline]
    pub(super) fn is_taken_care_of(
        &mut self,
        index: u32,
        tell: impl FnOnce(&mut Retention, u32) -> bool,
    ) -> bool {
        self.block(index).is_retained() && tell(&mut self.retention, index)
    }

    /// Whether the priority of an inactive block has expired.
    #[inline]
    pub(super) fn has_expired(&self, index: u32) -> bool {
        self.block(index).is_retained() && self.retention.has_expired(index)
    }

    /// The content of a block is gone, and all that was said of it.
    #[inline]
    pub(super) fn clear_retention(&mut self, index: u32) {
        let block = &mut self.blocks[index as usize];
        if block.is_retained() {
            block.namespace_and_flags &= !RETAINED;
            self.retention.clear(index);
        }
    }
}
