//! Pages that were given up go to the pool before they are unmapped.
//!
//! What it does: makes leaving mappings stale, so that their pages can be mapped elsewhere at once and the unmapping is
//! waited for by nobody. What it does not: unmap; that is the range's, at the latest before the addresses have memory
//! again. Invariants: those of the table.

use std::sync::Arc;

use super::{PageTable, past};

impl PageTable {
    /// Passes pages on whose streams are past, at most `count_max` mappings, until there are so many pages; none of
    /// `[skip_first, skip_end)`. Returns mappings and pages.
    pub(in crate::memory) fn pass_on(
        &mut self,
        pages: u64,
        count_max: u64,
        (skip_first, skip_end): (u64, u64),
    ) -> (u64, u64) {
        let (mut count, mut passed) = (0, 0);
        let is_past = past();
        for start in &self.leaving {
            if passed >= pages || count == count_max {
                break;
            }
            let Some(mapping) = self.mappings.get_mut(start).filter(|mapping| !mapping.is_alias) else {
                continue;
            };
            let length = mapping.page.class().pages();
            let is_skipped = *start < skip_end && start + length > skip_first;
            if is_skipped || !mapping.marks.iter().all(|(_, fence)| is_past(fence)) {
                continue;
            }
            // A page that others have too is no more theirs to pass on than ours.
            let Some(page) = Arc::get_mut(&mut mapping.page) else { continue };
            page.pass_on();
            mapping.marks.clear();
            (mapping.is_alias, mapping.is_stale) = (true, true);
            self.alias_pages += length;
            self.stale += 1;
            count += 1;
            passed += length;
        }
        self.tell();
        (count, passed)
    }

    /// Pages of `[first, end)` without memory of the range.
    pub(in crate::memory) fn missing(&self, first: u64, end: u64) -> u64 {
        let had = |(start, mapping): (u64, &super::Mapping)| {
            let low = start.max(first);
            let high = (start + mapping.page.class().pages()).min(end);
            if mapping.is_stale { 0 } else { high.saturating_sub(low) }
        };
        end - first - self.within(first, end).map(had).sum::<u64>()
    }
}
