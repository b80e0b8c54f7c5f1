//! Where a run goes so that as few pages as possible are begun.
//!
//! A page of a device goes back, or elsewhere, once nothing on it is in use; one that is used in part is lost to all
//! that is larger than its holes. So what a run costs is the pages that it begins: those on which nothing was used
//! before. Gaps count as free here, since memory can be put there, and a page without memory has nobody on it.
//! What it does not: put memory anywhere. Cost: a walk over all ranges, up to the first place that begins no page.

use super::{FREE, FreeList, GAP, NONE, Node, Range, State, USED};

/// A place for a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// First granule of the run.
    pub start: u32,
    /// Pages that it begins.
    pub begun_pages: u32,
    /// Whether a part of it lies in a gap.
    pub is_bare: bool,
}

/// Free ranges and gaps side by side, between two used ranges.
#[derive(Clone, Copy)]
struct Row {
    start: u32,
    end: u32,
    /// Node that it begins with.
    first: u32,
    has_gap: bool,
}

impl Row {
    /// Pages of a run in the row that lie in the row as a whole: nobody else is on them.
    fn begun_pages(&self, start: u32, count: u32, page: u32) -> u32 {
        let (first, last) = (start / page, (start + count - 1) / page);
        let is_shared_below = first * page < self.start;
        let is_shared_above = (last + 1) * page > self.end;
        let shared = match first == last {
            true => u32::from(is_shared_below || is_shared_above),
            false => u32::from(is_shared_below) + u32::from(is_shared_above),
        };
        last - first + 1 - shared
    }

    /// Where a run can begin: at the lower end, with a page, so that it ends with a page, or at the upper end.
    fn starts(&self, count: u32, page: u32) -> impl Iterator<Item = u32> {
        let (low, high) = (self.start, self.end - count);
        let aligned = [Some(low.next_multiple_of(page)), (self.end / page * page).checked_sub(count)];
        let inner = aligned.into_iter().flatten().filter(move |start| (low + 1..high).contains(start));
        [low, high].into_iter().chain(inner)
    }
}

impl FreeList {
    /// The place for a run that begins the fewest pages of so many granules; of several one outside of gaps, of those
    /// the lowest. None if there is none. The capacity has to be whole pages.
    pub fn place(&self, count: u32, page: u32) -> Option<Place> {
        let mut best: Option<(u32, bool, u32)> = None;
        let mut at = self.lowest;
        while at != NONE {
            let mut row = Row { start: self.nodes[at as usize].start, end: 0, first: at, has_gap: false };
            row.end = row.start;
            while let Some(node) = self.nodes.get(at as usize).filter(|node| node.kind != USED) {
                row.end = node.end();
                row.has_gap |= node.kind == GAP;
                at = node.above;
            }
            at = self.nodes.get(at as usize).map_or(NONE, |used| used.above);
            if row.end - row.start < count {
                continue;
            }
            // What lies between gaps has memory, and begins with a page.
            let between = self.nodes_from(row.first).take_while(|node| row.has_gap && node.start < row.end);
            let between =
                between.filter(|node| node.kind == FREE && node.count >= count).map(|node| node.start);
            for start in row.starts(count, page).chain(between) {
                let begun_pages = row.begun_pages(start, count, page);
                if begun_pages == 0 {
                    // A page with somebody on it has memory.
                    return Some(Place { start, begun_pages, is_bare: false });
                }
                if best.is_none_or(|(least, ..)| begun_pages <= least) {
                    let is_bare = row.has_gap && self.meets_gap(row.first, start, count);
                    let found = (begun_pages, is_bare, start);
                    best = Some(best.map_or(found, |best| best.min(found)));
                }
            }
        }
        best.map(|(begun_pages, is_bare, start)| Place { start, begun_pages, is_bare })
    }

    fn nodes_from(&self, first: u32) -> impl Iterator<Item = &Node> {
        std::iter::successors(self.nodes.get(first as usize), |node| self.nodes.get(node.above as usize))
    }

    /// Whether a run lies in a gap in part; `index` is a node at or below its start.
    fn meets_gap(&self, index: u32, start: u32, count: u32) -> bool {
        let mut within = self.nodes_from(index).take_while(|node| node.start < start + count);
        within.any(|node| node.kind == GAP && node.end() > start)
    }

    /// The parts of gaps that need memory so that a run has it: first granule and count, in whole pages.
    pub fn bare_parts(&self, start: u32, count: u32, page: u32) -> Vec<(u32, u32)> {
        let (low, high) = (start / page * page, (start + count).next_multiple_of(page));
        let ranges = std::iter::successors(self.range_at(start), |range| {
            self.range_at(range.start + range.count).filter(|next| next.start < start + count)
        });
        let part = |gap: Range| {
            let first = gap.start.max(low);
            (first, (gap.start + gap.count).min(high) - first)
        };
        ranges.filter(|range| range.state == State::Gap).map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u32 = 16;
    const PAGES: u32 = 24;

    /// Some pages have memory, and on some of those somebody is.
    fn list(random: &mut fastrand::Rng) -> FreeList {
        let mut list = FreeList::new(PAGE * PAGES).unwrap();
        (0..PAGES).filter(|_| random.u32(..5) < 4).for_each(|page| list.insert(page * PAGE, PAGE).unwrap());
        for _ in 0..random.u32(..20) {
            // Where it is not free the list stays as it is.
            _ = list.carve(random.u32(..PAGE * PAGES - 40), random.u32(1..40));
        }
        list
    }

    fn states(list: &FreeList) -> Vec<State> {
        list.ranges().flat_map(|range| std::iter::repeat_n(range.state, range.count as usize)).collect()
    }

    /// Begun pages and whether there is a gap, for a run at a place; None if somebody is there.
    fn price(states: &[State], start: u32, count: u32) -> Option<(u32, bool)> {
        let run = &states[start as usize..(start + count) as usize];
        let is_open = |states: &[State]| !states.contains(&State::Used);
        let pages = start / PAGE..(start + count).div_ceil(PAGE);
        let begun = pages.filter(|page| is_open(&states[(page * PAGE) as usize..][..PAGE as usize]));
        is_open(run).then(|| (begun.count() as u32, run.contains(&State::Gap)))
    }

    #[test]
    fn no_other_place_begins_fewer_pages_or_as_few_without_a_gap() {
        let mut random = fastrand::Rng::with_seed(7);
        for round in 0..300 {
            let list = list(&mut random);
            let states = states(&list);
            for count in [1, 3, 8, 15, 16, 17, 31, 33, 64, 100, PAGE * PAGES] {
                let prices = (0..=PAGE * PAGES - count).filter_map(|start| price(&states, start, count));
                let place = list.place(count, PAGE);
                let found = place.map(|place| (place.begun_pages, place.is_bare));
                assert_eq!(found, prices.min(), "round {round}, {count} granules");
                let Some(place) = place else { continue };
                assert_eq!(price(&states, place.start, count), found, "round {round}: {place:?}");
            }
        }
    }

    #[test]
    fn a_run_has_memory_once_its_bare_parts_do() {
        let mut random = fastrand::Rng::with_seed(8);
        for round in 0..300 {
            let mut list = list(&mut random);
            let count = random.u32(1..100);
            let Some(place) = list.place(count, PAGE) else { continue };
            let bare = list.bare_parts(place.start, count, PAGE);
            assert_eq!(bare.is_empty(), !place.is_bare, "round {round}: {place:?}");
            for (first, count) in bare {
                assert!(first % PAGE == 0 && count % PAGE == 0, "round {round}: {count} at {first}");
                list.insert(first, count).unwrap();
            }
            list.carve(place.start, count).unwrap();
            list.validate().unwrap();
        }
    }
}
