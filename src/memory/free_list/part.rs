//! Giving back a part of an allocation.

use super::{FreeList, Range, State};
use crate::error::{Error, Result};

impl FreeList {
    /// Gives some granules of an allocation back; what is below and above them stay allocations, each of its own.
    pub fn free_part(&mut self, start: u32, count: u32) -> Result<()> {
        let end = start.saturating_add(count);
        let holds = |range: &Range| range.state == State::Used && end <= range.start + range.count;
        let Some(whole) = self.range_at(start).filter(|range| count > 0 && holds(range)) else {
            return Err(Error::argument(format!("free {count} granules at {start}: no allocation has them")));
        };
        // What can fail comes before anything is free for a moment.
        self.reserve_nodes(6)?;
        self.free(whole.start)?;
        let parts = [(whole.start, start - whole.start), (end, whole.start + whole.count - end)];
        parts
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .try_for_each(|(start, count)| self.carve(start, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_around_a_part_that_was_given_back_stays_in_use() {
        for (start, count, left) in [(8, 16, vec![]), (8, 4, vec![(12, 12)]), (20, 4, vec![(8, 12)])] {
            let mut list = FreeList::new(64).unwrap();
            list.insert(0, 64).unwrap();
            list.carve(8, 16).unwrap();
            list.free_part(start, count).unwrap();
            list.validate().unwrap();
            let used = list.ranges().filter(|range| range.state == State::Used);
            assert_eq!(used.map(|range| (range.start, range.count)).collect::<Vec<_>>(), left);
        }
        let mut list = FreeList::new(64).unwrap();
        list.insert(0, 64).unwrap();
        list.carve(8, 16).unwrap();
        list.free_part(12, 4).unwrap();
        assert_eq!((list.size_of(8), list.size_of(16), list.used_granules()), (Some(4), Some(8), 12));
        // Nothing of it, more than it has, and none.
        for (start, count) in [(12, 1), (8, 5), (8, 0), (63, 2)] {
            list.free_part(start, count).unwrap_err();
        }
        list.validate().unwrap();
        assert_eq!(list.used_granules(), 12);
    }
}
