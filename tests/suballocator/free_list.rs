//! Free lists: a model that keeps one state for each granule, and what is refused.

use std::collections::BTreeMap;

use fastrand::Rng;
use kavern::memory::free_list::{FreeList, Range, State};

use super::{play_seeds, refuses};

/// Every granule by itself, and where allocations begin.
struct Naive {
    granules: Vec<State>,
    used: BTreeMap<u32, u32>,
}

impl Naive {
    fn set(&mut self, start: u32, count: u32, state: State) {
        self.granules[start as usize..(start + count) as usize].fill(state);
    }

    fn all(&self, start: u32, count: u32, state: State) -> bool {
        let end = u64::from(start) + u64::from(count);
        count > 0
            && end <= self.granules.len() as u64
            && self.granules[start as usize..end as usize].iter().all(|&granule| granule == state)
    }

    /// Ranges in order: maximal runs of what is free or a gap, and each allocation.
    fn ranges(&self) -> Vec<Range> {
        let (mut ranges, mut start) = (Vec::new(), 0);
        while (start as usize) < self.granules.len() {
            let state = self.granules[start as usize];
            let run = self.granules[start as usize..].iter().take_while(|&&granule| granule == state).count();
            let count = if state == State::Used { self.used[&start] } else { run as u32 };
            ranges.push(Range { start, count, state });
            start += count;
        }
        ranges
    }

    fn lowest_fit(&self, count: u32, alignment: u32) -> Option<u32> {
        let free = self.ranges().into_iter().filter(|range| range.state == State::Free);
        let mut fits = free.filter_map(|range| {
            let start = range.start.next_multiple_of(alignment);
            (start + count <= range.start + range.count).then_some(start)
        });
        fits.next()
    }
}

struct Pair {
    list: FreeList,
    naive: Naive,
    rng: Rng,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let most = 1 << rng.u32(2..13);
        let capacity = 1 + rng.u32(..most);
        let naive = Naive { granules: vec![State::Gap; capacity as usize], used: BTreeMap::new() };
        Self { list: FreeList::new(capacity).unwrap(), naive, rng }
    }

    /// A granule, now and then one beyond the end.
    fn granule(&mut self) -> u32 {
        self.rng.u32(..self.list.capacity() + self.list.capacity() / 16 + 1)
    }

    fn count(&mut self) -> u32 {
        let widest = 32 - self.list.capacity().leading_zeros();
        let most = 1 << self.rng.u32(..widest);
        self.rng.u32(..most)
    }

    /// The start of an allocation, or anything at all.
    fn start(&mut self) -> u32 {
        let near = self.granule();
        match self.naive.used.range(near..).next() {
            Some((&start, _)) if self.rng.u32(..8) > 0 => start,
            _ => near,
        }
    }

    /// A part of a range of that state, or anything at all.
    fn part(&mut self, state: State) -> (u32, u32) {
        let near = self.granule();
        match self.list.range_at(near) {
            Some(range) if range.state == state && self.rng.u32(..8) > 0 => {
                let skipped = if self.rng.bool() { 0 } else { self.rng.u32(..range.count) };
                let left = range.count - skipped;
                (range.start + skipped, if self.rng.bool() { left } else { self.rng.u32(..left) + 1 })
            }
            _ => (near, self.count()),
        }
    }

    fn took(&mut self, start: u32, count: u32) {
        assert!(self.naive.all(start, count, State::Free), "{count} at {start} are not all free");
        self.naive.set(start, count, State::Used);
        self.naive.used.insert(start, count);
    }

    fn step(&mut self) {
        match self.rng.u32(..100) {
            0..35 => {
                let (count, alignment) = (self.count(), 1 << self.rng.u32(..12).saturating_sub(6));
                let lowest = self.naive.lowest_fit(count, alignment);
                match self.list.allocate(count, alignment) {
                    Err(_) => assert_eq!(count, 0),
                    Ok(None) => assert_eq!(lowest, None, "{count} aligned to {alignment} would fit"),
                    Ok(Some(start)) => {
                        assert_eq!(start % alignment, 0);
                        self.took(start, count);
                    }
                }
            }
            35..40 => {
                let (count, alignment) = (self.count() + 1, 1 << self.rng.u32(..4));
                let lowest = self.naive.lowest_fit(count, alignment);
                assert_eq!(self.list.take_lowest(count, alignment).unwrap(), lowest);
                if let Some(start) = lowest {
                    self.took(start, count);
                }
            }
            40..72 => {
                let start = self.start();
                let known = self.naive.used.remove(&start);
                assert_eq!(self.list.size_of(start), known);
                assert_eq!(self.list.free(start).ok(), known, "free {start}");
                known.inspect(|&count| self.naive.set(start, count, State::Free));
            }
            72..80 => {
                let (start, count) = self.part(State::Free);
                let fits = self.naive.all(start, count, State::Free);
                assert_eq!(self.list.carve(start, count).is_ok(), fits, "carve {count} at {start}");
                if fits {
                    self.took(start, count);
                }
            }
            80..94 => {
                let (start, count) = self.part(State::Gap);
                let fits = self.naive.all(start, count, State::Gap);
                assert_eq!(self.list.insert(start, count).is_ok(), fits, "insert {count} at {start}");
                if fits {
                    self.naive.set(start, count, State::Free);
                }
            }
            94..96 => {
                let (start, count) = (self.start(), self.count());
                let whole = self.naive.used.get(&start).copied().filter(|&whole| 0 < count && count < whole);
                assert_eq!(
                    self.list.split(start, count).is_ok(),
                    whole.is_some(),
                    "split {count} at {start}"
                );
                if let Some(whole) = whole {
                    self.naive.used.extend([(start, count), (start + count, whole - count)]);
                }
            }
            96..98 => {
                let start = self.start();
                let lower = self.naive.used.get(&start).copied();
                let upper = lower.and_then(|lower| Some(lower + self.naive.used.get(&(start + lower))?));
                assert_eq!(self.list.unite(start).is_ok(), upper.is_some(), "unite at {start}");
                if let (Some(lower), Some(both)) = (lower, upper) {
                    self.naive.used.remove(&(start + lower));
                    self.naive.used.insert(start, both);
                }
            }
            _ => {
                let start = self.start();
                let known = self.naive.used.remove(&start);
                assert_eq!(self.list.withdraw(start).ok(), known, "withdraw {start}");
                known.inspect(|&count| self.naive.set(start, count, State::Gap));
            }
        }
    }

    fn compare(&mut self) {
        self.list.validate().unwrap();
        let expected = self.naive.ranges();
        assert_eq!(self.list.ranges().collect::<Vec<_>>(), expected);
        let free = expected.iter().filter(|range| range.state == State::Free);
        assert_eq!(self.list.largest_free(), free.clone().map(|range| range.count).max().unwrap_or(0));
        assert_eq!(self.list.free_granules(), free.clone().map(|range| range.count).sum());
        assert_eq!(self.list.free_range_count() as usize, free.clone().count());
        let places: Vec<_> = free.map(|range| (range.start, range.count)).collect();
        assert_eq!(self.list.free_ranges().collect::<Vec<_>>(), places);
        assert_eq!(self.list.used_granules(), self.naive.used.values().sum());
        assert_eq!(self.list.used_ranges() as usize, self.naive.used.len());
        let asked = self.granule();
        let around =
            expected.into_iter().find(|range| (range.start..range.start + range.count).contains(&asked));
        assert_eq!(self.list.range_at(asked), around, "around {asked}");
    }
}

#[test]
fn a_free_list_agrees_with_one_state_for_each_granule() {
    play_seeds(300_000, |seed, count| {
        let mut pair = Pair::new(seed);
        for index in 0..count {
            pair.step();
            if index % 8 == 0 {
                pair.compare();
            }
        }
        pair.compare();
    });
}

#[test]
fn everything_given_back_is_one_range_again() {
    let mut rng = Rng::with_seed(7);
    let mut list = FreeList::new(1 << 20).unwrap();
    // In pieces and out of order, as a heap that grows does.
    let mut pieces: Vec<u32> = (0..64).collect();
    rng.shuffle(&mut pieces);
    pieces.iter().for_each(|piece| list.insert(piece << 14, 1 << 14).unwrap());
    assert_eq!(list.free_ranges().collect::<Vec<_>>(), [(0, 1 << 20)]);
    let mut live = Vec::new();
    while let Some(start) = list.allocate(1 + rng.u32(..4_096), 1 << rng.u32(..8)).unwrap() {
        live.push(start);
    }
    assert!(live.len() > 400, "{} allocations", live.len());
    rng.shuffle(&mut live);
    live.iter().for_each(|&start| assert!(list.free(start).unwrap() > 0));
    list.validate().unwrap();
    assert_eq!((list.largest_free(), list.used_ranges(), list.free_range_count()), (1 << 20, 0, 1));
}

#[test]
fn a_request_is_refused_only_where_nothing_fits() {
    let mut list = FreeList::new(100_000).unwrap();
    list.insert(0, 100_000).unwrap();
    // 1,000 and 1,001 share a bin; the one that fits is behind many that do not.
    let starts: Vec<_> =
        (0..20).map(|_| (list.allocate(1_001, 1).unwrap(), list.allocate(1, 1).unwrap())).collect();
    let rest = list.largest_free();
    list.allocate(rest, 1).unwrap().unwrap();
    let big = starts[10].0.unwrap();
    list.free(big).unwrap();
    for (start, _) in starts.iter().filter(|(start, _)| *start != Some(big)) {
        list.free(start.unwrap()).unwrap();
        list.carve(start.unwrap() + 1_000, 1).unwrap();
    }
    assert_eq!(list.allocate(1_001, 1).unwrap(), Some(big));
    assert_eq!(list.allocate(1_001, 1).unwrap(), None);
    assert!(list.allocate(1_000, 1).unwrap().is_some());
    list.validate().unwrap();
}

#[test]
fn of_two_that_fit_the_smaller_is_taken_and_of_equals_the_lower() {
    let mut list = FreeList::new(4_000).unwrap();
    for (start, count) in [(3_000, 300), (2_000, 260), (1_000, 258), (100, 260)] {
        list.insert(start, count).unwrap();
    }
    let mut take = |count| list.allocate(count, 1).unwrap();
    assert_eq!(
        (take(257), take(260), take(260), take(260)),
        (Some(1_000), Some(100), Some(2_000), Some(3_000))
    );
}

#[test]
fn alignment_is_kept_and_what_it_leaves_in_front_stays_free() {
    let mut list = FreeList::new(4_096).unwrap();
    list.insert(3, 4_000).unwrap();
    assert_eq!(list.allocate(100, 1_024).unwrap(), Some(1_024));
    assert_eq!(list.free_ranges().collect::<Vec<_>>(), [(3, 1_021), (1_124, 2_879)]);
    assert_eq!(list.allocate(1_020, 4).unwrap(), Some(4), "the smaller range, from its first multiple of 4");
    list.validate().unwrap();
}

#[test]
fn a_free_list_refuses_what_it_cannot_mean_and_stays_as_it_was() {
    refuses(FreeList::new(0), "0 granules");
    refuses(FreeList::new(u32::MAX), "a range has 1 to");
    let mut list = FreeList::new(1_000).unwrap();
    list.insert(100, 200).unwrap();
    list.insert(400, 100).unwrap();
    assert_eq!(list.allocate(50, 1).unwrap(), Some(400), "the smaller of the two");
    let before: Vec<_> = list.ranges().collect();

    refuses(list.insert(0, 0), "a part of 0..1000 is needed");
    refuses(list.insert(1_000, 1), "a part of 0..1000 is needed");
    refuses(list.insert(900, 101), "a part of 0..1000 is needed");
    refuses(list.insert(1, u32::MAX), "a part of 0..1000 is needed");
    refuses(list.insert(0, 101), "granule 100 is ours already");
    refuses(list.insert(400, 10), "the first is ours already");
    refuses(list.insert(299, 10), "the first is ours already");

    refuses(list.allocate(0, 1), "0 granules aligned to 1");
    refuses(list.allocate(1, 0), "aligned to 0");
    refuses(list.allocate(1, 3), "aligned to 3");
    refuses(list.take_lowest(1, 12), "aligned to 12");
    assert_eq!(list.allocate(201, 1).unwrap(), None);
    assert_eq!(list.allocate(10, 1 << 31).unwrap(), None);
    assert_eq!(list.take_lowest(u32::MAX, 1).unwrap(), None);

    refuses(list.carve(0, 10), "the first is not free");
    refuses(list.carve(290, 11), "granule 300 is not free");
    refuses(list.carve(400, 50), "the first is not free");
    refuses(list.carve(440, 20), "the first is not free");
    refuses(list.carve(200, 0), "a part of 0..1000 is needed");

    for outcome in [list.free(401), list.withdraw(401)] {
        refuses(outcome, "inside the allocation at 400");
    }
    refuses(list.free(100), "it is free already");
    refuses(list.free(0), "it lies in a gap");
    refuses(list.free(1_000), "the range ends at 1000");
    refuses(list.withdraw(u32::MAX), "the range ends at 1000");
    assert_eq!(list.ranges().collect::<Vec<_>>(), before);

    assert_eq!(list.free(400).unwrap(), 50);
    refuses(list.free(400), "it is free already");
    assert_eq!(list.size_of(400), None);
    list.validate().unwrap();
}
