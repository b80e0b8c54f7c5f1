//! What a range could get: as far as limits and the device go.

use super::Range;
use crate::error::Result;
use crate::memory::page_class::PageClass;
use crate::memory::physical::short_of;

impl Range {
    /// Most that this range could get now.
    pub(super) fn left_bytes(&self) -> u64 {
        let ours = self.holder.payer.as_ref().map_or(u64::MAX, |payer| payer.left_bytes());
        ours.min(self.physical.left_bytes())
    }

    /// Refuses what cannot fit before anything is made for it.
    pub(super) fn check_left(&self, bytes: u64) -> Result<()> {
        let left = self.left_bytes();
        if bytes > left {
            return Err(short_of(bytes, left));
        }
        // To make one mapping costs as much as to ask.
        let most = PageClass::LARGE.pages() * self.page_bytes;
        if bytes <= most { Ok(()) } else { self.physical.check_device(bytes) }
    }
}
