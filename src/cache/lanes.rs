//! Lists of blocks in the order of time, walked from the oldest on without a wait for each block.
//!
//! A block that is listed gets a stamp, larger than all before it, and becomes the newest of one of the lanes of its
//! list, which take blocks by turns of the stamp. The oldest of a list is the one with the least stamp among the oldest
//! of its lanes. So several are known that go next, and as one goes, the one behind it in its lane is asked for: by the
//! turn of that one it is there, where along a single chain each link would be waited for.
//!
//! A block's links, its stamp and its list lie together. Every call is O(1) and allocates nothing. Invariants: walking
//! `next` from the oldest of a lane visits each block of that lane once, and their stamps rise; `first` is the stamp
//! of a lane's oldest block.

use std::ops::Range;

use super::list::{NONE, UNLINKED};
use crate::error::{Error, Result};
use crate::sys::prefetch;
use crate::sys::reserve::filled;

/// So many waits overlap.
const LANES: usize = 8;
/// Bits of a record that name a list.
const LIST_BITS: u32 = 2;
/// The stamp of the oldest block of an empty lane.
const NO_STAMP: u64 = u64::MAX;

/// What is known of a block: its neighbours in its lane, its stamp, and in the lowest bits its list.
#[derive(Clone, Copy)]
struct Record {
    prev: u32,
    next: u32,
    stamp_and_list: u64,
}

impl Record {
    fn stamp(self) -> u64 {
        self.stamp_and_list >> LIST_BITS
    }

    fn list(self) -> usize {
        (self.stamp_and_list & ((1 << LIST_BITS) - 1)) as usize
    }
}

#[derive(Clone, Copy)]
struct Ends {
    oldest: u32,
    newest: u32,
}

/// The lanes of one list.
#[derive(Clone, Copy)]
struct Run {
    /// Stamps of the oldest blocks.
    first: [u64; LANES],
    ends: [Ends; LANES],
}

impl Run {
    const EMPTY: Self = Self { first: [NO_STAMP; LANES], ends: [Ends { oldest: NONE, newest: NONE }; LANES] };

    /// The stamp of the oldest block, if there is any.
    #[inline]
    fn oldest(&self) -> u64 {
        self.first.into_iter().fold(NO_STAMP, u64::min)
    }
}

#[inline]
fn lane_of(stamp: u64) -> usize {
    stamp as usize % LANES
}

/// Lists of blocks, oldest first.
pub(in crate::cache) struct Lanes {
    records: Vec<Record>,
    lists: Vec<Run>,
}

impl Lanes {
    pub(in crate::cache) fn new(blocks: u32, lists: usize) -> Result<Self> {
        debug_assert!(lists <= 1 << LIST_BITS, "a record has room for the list");
        let unlinked = Record { prev: NONE, next: UNLINKED, stamp_and_list: 0 };
        Ok(Self { records: filled(blocks as usize, unlinked)?, lists: filled(lists, Run::EMPTY)? })
    }

    fn contains(&self, block: u32) -> bool {
        self.records[block as usize].next != UNLINKED
    }

    /// The stamp with which a block was listed last, and the list for which it is meant.
    #[inline]
    pub(in crate::cache) fn stamp_and_list(&self, block: u32) -> (u64, usize) {
        let record = self.records[block as usize];
        (record.stamp(), record.list())
    }

    /// Says for which list a block is meant that is in none.
    pub(in crate::cache) fn assign(&mut self, block: u32, list: usize) {
        debug_assert!(!self.contains(block), "a listed block has its list");
        self.records[block as usize].stamp_and_list = list as u64;
    }

    /// What is known of a block that is in no list holds of another.
    pub(in crate::cache) fn moved(&mut self, from: u32, to: u32) {
        debug_assert!(!self.contains(from) && !self.contains(to), "only what is in no list moves");
        self.records[to as usize] = self.records[from as usize];
    }

    /// The oldest block of a list and its stamp.
    #[inline]
    pub(in crate::cache) fn oldest(&self, list: usize) -> Option<(u32, u64)> {
        let run = &self.lists[list];
        let stamp = run.oldest();
        (stamp != NO_STAMP).then(|| (run.ends[lane_of(stamp)].oldest, stamp))
    }

    /// Gives about so many of the oldest blocks of a list.
    pub(in crate::cache) fn oldest_few(&self, list: usize, most: usize, mut each: impl FnMut(u32)) {
        let mut at = self.lists[list].ends.map(|ends| ends.oldest);
        for turn in 0..most {
            let block = &mut at[turn % LANES];
            if *block != NONE {
                each(*block);
                *block = self.records[*block as usize].next;
            }
        }
    }

    /// Has what is known of a block fetched.
    pub(in crate::cache) fn fetch(&self, block: u32) {
        prefetch::prefetch(&self.records, block as usize);
    }

    /// Has what is known of the oldest blocks of a list fetched, at most so many, if those lie in a row, as they do
    /// that came and went together; answers that row.
    #[inline]
    pub(in crate::cache) fn fetch_row(&self, list: usize, most: usize) -> Option<Range<usize>> {
        let run = &self.lists[list];
        let (oldest, stamp) = self.oldest(list)?;
        let (oldest, lane) = (oldest as usize, lane_of(stamp + 1));
        let row = match run.ends[lane].oldest as usize {
            _ if run.first[lane] != stamp + 1 => return None,
            next if next == oldest + 1 => oldest..(oldest + most).min(self.records.len()),
            next if next + 1 == oldest => (oldest + 1).saturating_sub(most)..oldest + 1,
            _ => return None,
        };
        prefetch::prefetch_all(&self.records, row.clone());
        Some(row)
    }

    /// Lists a block that is in no list as the newest; its stamp is larger than all before it.
    #[inline]
    pub(in crate::cache) fn push_newest(&mut self, list: usize, block: u32, stamp: u64) {
        debug_assert!(!self.contains(block), "a block is linked once");
        let (run, lane) = (&mut self.lists[list], lane_of(stamp));
        let newest = std::mem::replace(&mut run.ends[lane].newest, block);
        let stamp_and_list = stamp << LIST_BITS | list as u64;
        self.records[block as usize] = Record { prev: newest, next: NONE, stamp_and_list };
        match newest {
            NONE => (run.ends[lane].oldest, run.first[lane]) = (block, stamp),
            newest => self.records[newest as usize].next = block,
        }
    }

    #[inline]
    pub(in crate::cache) fn unlink(&mut self, block: u32) {
        debug_assert!(self.contains(block), "only a linked block is unlinked");
        let record = self.records[block as usize];
        let (run, lane) = (&mut self.lists[record.list()], lane_of(record.stamp()));
        match record.next {
            NONE => run.ends[lane].newest = record.prev,
            next => self.records[next as usize].prev = record.prev,
        }
        match record.prev {
            NONE => {
                run.ends[lane].oldest = record.next;
                run.first[lane] =
                    self.records.get(record.next as usize).map_or(NO_STAMP, |next| next.stamp());
            }
            prev => self.records[prev as usize].next = record.next,
        }
        self.records[block as usize].next = UNLINKED;
    }

    /// Takes the oldest blocks out of a list as long as `goes` says so of the one that is the oldest then, and of its
    /// stamp.
    #[inline]
    pub(in crate::cache) fn pop_while(&mut self, list: usize, mut goes: impl FnMut(u32, u64) -> bool) {
        let Self { records, lists } = self;
        let run = &mut lists[list];
        let mut stamp = run.oldest();
        while stamp != NO_STAMP {
            let lane = lane_of(stamp);
            let block = run.ends[lane].oldest;
            if !goes(block, stamp) {
                break;
            }
            let next = std::mem::replace(&mut records[block as usize].next, UNLINKED);
            run.ends[lane].oldest = next;
            run.first[lane] = match next {
                NONE => {
                    run.ends[lane].newest = NONE;
                    NO_STAMP
                }
                next => {
                    let next = &mut records[next as usize];
                    next.prev = NONE;
                    let (stamp, after) = (next.stamp(), next.next);
                    prefetch::prefetch(records, after as usize);
                    stamp
                }
            };
            // Nothing is older than what was listed right after this one.
            let beside = stamp + 1;
            stamp = if run.first[lane_of(beside)] == beside { beside } else { run.oldest() };
        }
    }

    pub(in crate::cache) fn bytes(&self) -> u64 {
        (self.records.len() * size_of::<Record>() + self.lists.len() * size_of::<Run>()) as u64
    }

    /// Walks all lanes; answers for each block the list in which it is.
    pub(in crate::cache) fn validate(&self) -> Result<Vec<Option<usize>>> {
        let mut found = filled(self.records.len(), None)?;
        for (list, run) in self.lists.iter().enumerate() {
            for (lane, ends) in run.ends.iter().enumerate() {
                let (mut at, mut prev, mut stamp) = (ends.oldest, NONE, None);
                while at != NONE {
                    let record = self.records[at as usize];
                    let is_ours = (record.list(), lane_of(record.stamp())) == (list, lane);
                    if record.prev != prev || !is_ours || Some(record.stamp()) <= stamp {
                        return Err(Error::internal(format!(
                            "lane {lane} of list {list} is broken at block {at}"
                        )));
                    }
                    if prev == NONE && run.first[lane] != record.stamp() {
                        return Err(Error::internal(format!(
                            "lane {lane} of list {list} begins with another stamp"
                        )));
                    }
                    found[at as usize] = Some(list);
                    (prev, at, stamp) = (at, record.next, Some(record.stamp()));
                }
                if ends.newest != prev || (prev == NONE) != (run.first[lane] == NO_STAMP) {
                    return Err(Error::internal(format!(
                        "lane {lane} of list {list} does not end at its newest block"
                    )));
                }
            }
        }
        match (0..self.records.len() as u32).find(|&b| self.contains(b) != found[b as usize].is_some()) {
            Some(block) => Err(Error::internal(format!("block {block} is marked as linked and in no list"))),
            None => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of a list, oldest first.
    fn all_of(lists: &mut Lanes, list: usize) -> Vec<u32> {
        let mut gone = Vec::new();
        lists.pop_while(list, |block, _| {
            gone.push(block);
            true
        });
        gone
    }

    /// Stamps with gaps, as they are when other lists took some, and without.
    #[test]
    fn blocks_go_in_the_order_in_which_they_were_listed_whichever_left_before() {
        let mut random = fastrand::Rng::with_seed(5);
        for gap in [1, 1, 2, 8, 40] {
            let mut lists = Lanes::new(100, 2).unwrap();
            let mut model = [const { Vec::<u32>::new() }; 2];
            let (mut stamp, mut popped) = (0, 0);
            for _ in 0..20_000 {
                let block = random.u32(0..100);
                let list = model.iter().position(|listed| listed.contains(&block));
                match (list, random.u8(0..8)) {
                    (None, _) => {
                        let list = random.usize(0..2);
                        stamp += random.u64(1..=gap);
                        lists.assign(block, list);
                        assert_eq!(lists.stamp_and_list(block), (0, list));
                        lists.push_newest(list, block, stamp);
                        assert_eq!(lists.stamp_and_list(block), (stamp, list));
                        model[list].push(block);
                    }
                    (Some(list), 1..) => {
                        lists.unlink(block);
                        model[list].retain(|&other| other != block);
                    }
                    (Some(list), 0) => {
                        let most = random.usize(0..24).min(model[list].len());
                        let mut gone = Vec::new();
                        lists.pop_while(list, |block, stamp| {
                            assert_eq!(model[list].get(gone.len()), Some(&block));
                            let goes = gone.len() < most;
                            if goes {
                                gone.push((block, stamp));
                            }
                            goes
                        });
                        assert!(gone.is_sorted_by_key(|&(_, stamp)| stamp));
                        let expected: Vec<_> = model[list].drain(..most).collect();
                        assert_eq!(gone.iter().map(|&(block, _)| block).collect::<Vec<_>>(), expected);
                        popped += most;
                    }
                }
                for (list, listed) in model.iter().enumerate() {
                    assert_eq!(lists.oldest(list).map(|(block, _)| block), listed.first().copied());
                }
                if random.u8(0..16) == 0 {
                    let found = lists.validate().unwrap();
                    for block in 0..100 {
                        let list = model.iter().position(|listed| listed.contains(&block));
                        assert_eq!(found[block as usize], list, "block {block}");
                    }
                }
            }
            assert!(popped > 1000, "{popped}");
            assert_eq!([all_of(&mut lists, 0), all_of(&mut lists, 1)], model);
        }
    }

    #[test]
    fn a_row_is_seen_whichever_way_it_runs_and_few_of_the_oldest_are_of_the_oldest() {
        let mut lists = Lanes::new(100, 1).unwrap();
        assert_eq!(lists.fetch_row(0, 10), None);
        let blocks = (20..40).rev().chain(60..80).chain([90, 3]);
        blocks.zip(1..).for_each(|(block, stamp)| lists.push_newest(0, block, stamp));
        let mut few = Vec::new();
        lists.oldest_few(0, 12, |block| few.push(block));
        few[..8].sort_unstable();
        assert_eq!(few[..8], (32..40).collect::<Vec<_>>());
        assert!(few.len() == 12 && few[8..].iter().all(|block| (24..32).contains(block)), "{few:?}");
        assert_eq!(lists.fetch_row(0, 10), Some(30..40));
        let some_go = |lists: &mut Lanes, count: u32| {
            let mut seen = 0;
            lists.pop_while(0, |_, _| {
                seen += 1;
                seen <= count
            });
        };
        some_go(&mut lists, 20);
        assert_eq!(lists.fetch_row(0, 10), Some(60..70));
        some_go(&mut lists, 20);
        assert_eq!(lists.fetch_row(0, 10), None, "90 and 3 are no row");
    }
}
