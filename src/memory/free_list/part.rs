//! Allocations that become several or one, a part of one that goes back, and where it says what granules are.

use super::{FreeList, NONE, Range, State, USED};
use crate::error::{Error, Result};

impl FreeList {
    /// Makes two allocations of one, of which the first has so many granules.
    pub fn split(&mut self, start: u32, count: u32) -> Result<()> {
        let whole =
            self.used_at(start).filter(|&index| 0 < count && count < self.nodes[index as usize].count);
        let Some(upper) = whole else {
            return Err(Error::argument(format!(
                "split {count} granules off at {start}: no allocation has more"
            )));
        };
        self.reserve_nodes(1)?;
        let lower = self.cut(upper, start + count);
        self.mark(lower);
        self.mark(upper);
        self.used_ranges += 1;
        Ok(())
    }

    /// Makes one allocation of the one that begins at `start` and the one behind its end. Needs no host memory.
    pub fn unite(&mut self, start: u32) -> Result<()> {
        let lower = self.used_at(start);
        let above = lower.map(|index| self.nodes[index as usize].above).filter(|&above| above != NONE);
        let (Some(lower), Some(upper)) =
            (lower, above.filter(|&above| self.nodes[above as usize].kind == USED))
        else {
            return Err(Error::argument(format!(
                "unite at {start}: no allocation begins there, or none follows"
            )));
        };
        self.starts.remove(self.nodes[upper as usize].start);
        self.join(lower, upper);
        self.used_ranges -= 1;
        Ok(())
    }

    /// The host memory that says what some granules are, which the system gives as it is first touched: addresses and
    /// bytes.
    pub fn tables_of(&self, start: u32, count: u32) -> [(usize, u64); 2] {
        let nodes = &self.node_at[start as usize..(start + count) as usize];
        [(nodes.as_ptr().addr(), size_of_val(nodes) as u64), self.starts.words_of(start, count)]
    }

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

    #[test]
    fn an_allocation_becomes_two_and_those_become_one_again() {
        let mut list = FreeList::new(64).unwrap();
        list.insert(0, 64).unwrap();
        list.carve(8, 16).unwrap();
        let before: Vec<Range> = list.ranges().collect();
        list.split(8, 6).unwrap();
        list.validate().unwrap();
        assert_eq!((list.size_of(8), list.size_of(14)), (Some(6), Some(10)));
        // None begins there, all of it, nothing of it, and the last one, behind which all is free.
        let refused = [list.split(9, 1), list.split(8, 6), list.split(8, 0), list.unite(9), list.unite(14)];
        assert!(refused.iter().all(Result::is_err));
        list.validate().unwrap();
        list.unite(8).unwrap();
        list.validate().unwrap();
        assert_eq!(list.ranges().collect::<Vec<_>>(), before);
        list.carve(24, 40).unwrap();
        list.unite(8).unwrap();
        assert_eq!(list.size_of(8), Some(56));
        list.unite(8).unwrap_err();
        list.validate().unwrap();
    }
}
