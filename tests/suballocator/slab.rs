//! Slabs: a model of sorted sets, and what is refused.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use kavern::memory::size_class::{CLASS_COUNT, Class, UNIT_BYTES, bytes_of};
use kavern::memory::slab::{Given, PAGE_BYTES, Slab, Slot, slot_at, slots_in_page};

use super::{play_seeds, refuses};

struct Pair {
    slab: Slab,
    /// The live slots of each page.
    naive: BTreeMap<u32, BTreeSet<u32>>,
    page_limit: u32,
    rng: Rng,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let slots = [1, 2, 8, 10, 32, 63, 64, 65, 128, 1_000, 8_192][rng.usize(..11)];
        let page_limit = [5, 70, 5_000][rng.usize(..3)];
        Self { slab: Slab::new(slots, page_limit).unwrap(), naive: BTreeMap::new(), page_limit, rng }
    }

    fn slots(&self) -> u32 {
        self.slab.slots_per_page()
    }

    /// A page that is here, or any at all.
    fn page(&mut self) -> u32 {
        let near = self.rng.u32(..self.page_limit + 2);
        match self.naive.range(near..).next() {
            Some((&page, _)) if self.rng.u32(..8) > 0 => page,
            _ => near,
        }
    }

    /// A live slot, or any at all.
    fn slot(&mut self) -> Slot {
        let (page, near) = (self.page(), self.rng.u32(..self.slots() + 1));
        let live = self.naive.get(&page).and_then(|live| live.range(near..).next().or(live.first()));
        let index = live.copied().filter(|_| self.rng.u32(..8) > 0).unwrap_or(near);
        Slot { page, index }
    }

    fn lowest_free(&self) -> Option<Slot> {
        let slots = self.slots();
        let (&page, live) = self.naive.iter().find(|(_, live)| (live.len() as u32) < slots)?;
        let index = (0..).zip(live).find(|(at, index)| at != *index).map_or(live.len() as u32, |(at, _)| at);
        Some(Slot { page, index })
    }

    /// Gives it back in the model; None if it is not live.
    fn give(&mut self, slot: Slot) -> Option<Given> {
        let live = self.naive.get_mut(&slot.page)?;
        let was_live = live.remove(&slot.index);
        was_live.then_some(if live.is_empty() { Given::PageEmpty } else { Given::PageLive })
    }

    fn step(&mut self) {
        match self.rng.u32(..100) {
            0..36 => {
                let lowest = self.lowest_free();
                assert_eq!(self.slab.take(), lowest);
                lowest.map(|slot| self.naive.get_mut(&slot.page).unwrap().insert(slot.index));
            }
            36..42 => {
                let (mut slots, count) = (vec![Slot { page: 9, index: 9 }], self.rng.usize(..200));
                let taken = self.slab.take_many(count, &mut slots).unwrap();
                assert_eq!(slots.len(), taken + 1);
                for &slot in &slots[1..] {
                    assert_eq!(Some(slot), self.lowest_free());
                    self.naive.get_mut(&slot.page).unwrap().insert(slot.index);
                }
                assert!(taken == count || self.lowest_free().is_none(), "{taken} of {count}");
            }
            42..74 => {
                let slot = self.slot();
                let expected = self.give(slot);
                assert_eq!(self.slab.is_live(slot), expected.is_some());
                assert_eq!(self.slab.give(slot).ok(), expected, "give {slot:?}");
            }
            74..80 => {
                let slots: Vec<Slot> = (0..self.rng.u32(..12)).map(|_| self.slot()).collect();
                let (before, mut emptied) = (self.naive.clone(), vec![77]);
                let outcomes: Vec<_> = slots.iter().map(|&slot| self.give(slot)).collect();
                let is_fine = outcomes.iter().all(Option::is_some);
                assert_eq!(self.slab.give_many(&slots, &mut emptied).is_ok(), is_fine, "{slots:?}");
                let empty =
                    slots.iter().zip(outcomes).filter(|(_, outcome)| *outcome == Some(Given::PageEmpty));
                let expected: Vec<u32> = empty.map(|(slot, _)| slot.page).filter(|_| is_fine).collect();
                assert_eq!(emptied[1..], expected);
                if !is_fine {
                    self.naive = before;
                }
            }
            80..92 => {
                let page = self.rng.u32(..self.page_limit + 2);
                let is_new = page < self.page_limit && !self.naive.contains_key(&page);
                assert_eq!(self.slab.add_page(page).is_ok(), is_new, "add {page}");
                if is_new {
                    self.naive.insert(page, BTreeSet::new());
                }
            }
            _ => {
                let page = self.page();
                let is_empty = self.naive.get(&page).is_some_and(BTreeSet::is_empty);
                assert_eq!(self.slab.remove_page(page).is_ok(), is_empty, "remove {page}");
                if is_empty {
                    self.naive.remove(&page);
                }
            }
        }
    }

    fn compare(&mut self) {
        self.slab.validate().unwrap();
        let count = |(&page, live): (&u32, &BTreeSet<u32>)| (page, live.len() as u32);
        let expected: Vec<_> = self.naive.iter().map(count).collect();
        let mut pages: Vec<_> = self.slab.pages().collect();
        pages.sort_unstable();
        assert_eq!(pages, expected);
        let slots = self.slots();
        let open: Vec<_> = expected.iter().copied().filter(|(_, live)| *live < slots).collect();
        assert_eq!(self.slab.open_pages().collect::<Vec<_>>(), open);
        let live: u64 = expected.iter().map(|(_, live)| u64::from(*live)).sum();
        let whole = expected.len() as u64 * u64::from(slots);
        assert_eq!((self.slab.live_slots(), self.slab.free_slots()), (live, whole - live));
        assert_eq!(self.slab.page_count() as usize, expected.len());

        let (page, other) = (self.page(), self.page());
        assert_eq!(self.slab.live_in(page).ok(), self.naive.get(&page).map(|live| live.len() as u32));
        let words = self.slab.live_words(page).ok().map(|words| words.collect::<Vec<_>>());
        let bits = words.map(|words| {
            let bits = words.iter().enumerate().flat_map(|(at, word)| {
                (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at as u32 * 64 + bit)
            });
            bits.collect::<BTreeSet<_>>()
        });
        assert_eq!(bits.as_ref(), self.naive.get(&page));
        let both = self.naive.get(&page).zip(self.naive.get(&other)).filter(|_| page != other);
        assert_eq!(self.slab.disjoint(page, other).ok(), both.map(|(live, others)| live.is_disjoint(others)));
    }
}

#[test]
fn a_slab_agrees_with_sorted_sets() {
    play_seeds(300_000, |seed, count| {
        let mut pair = Pair::new(seed);
        for index in 0..count {
            pair.step();
            if index % 16 == 0 {
                pair.compare();
            }
        }
        pair.compare();
    });
}

#[test]
fn high_pages_run_empty_because_low_ones_are_used_first() {
    let mut slab = Slab::new(32, 1_000).unwrap();
    [500, 3, 77].iter().for_each(|&page| slab.add_page(page).unwrap());
    let mut slots = Vec::new();
    assert_eq!(slab.take_many(100, &mut slots).unwrap(), 96);
    let pages: Vec<u32> = slots.iter().map(|slot| slot.page).collect();
    assert!(pages.is_sorted() && slots.is_sorted(), "{slots:?}");
    // One of each page goes and comes back; the places in the low pages are filled first.
    for page in [500, 77, 3] {
        assert_eq!(slab.give(Slot { page, index: 5 }).unwrap(), Given::PageLive);
    }
    let again: Vec<_> = (0..4).map(|_| slab.take().map(|slot| slot.page)).collect();
    assert_eq!(again, [Some(3), Some(77), Some(500), None]);
    let mut emptied = Vec::new();
    slab.give_many(&slots[64..], &mut emptied).unwrap();
    assert_eq!(emptied, [500]);
    slab.remove_page(500).unwrap();
    slab.validate().unwrap();
}

#[test]
fn meshing_finds_pages_without_a_common_slot() {
    let mut slab = Slab::new(128, 8).unwrap();
    (0..3).for_each(|page| slab.add_page(page).unwrap());
    let mut slots = Vec::new();
    slab.take_many(384, &mut slots).unwrap();
    // Every eighth slot stays; in page 2 at the same phase as in page 0.
    let stays = |slot: &Slot| slot.index % 8 == [1, 6, 1][slot.page as usize];
    for slot in slots.iter().filter(|slot| !stays(slot)) {
        slab.give(*slot).unwrap();
    }
    assert_eq!(
        [(0, 1), (1, 2), (0, 2)].map(|(page, other)| slab.disjoint(page, other).unwrap()),
        [true, true, false]
    );
    assert_eq!(slab.live_words(0).unwrap().collect::<Vec<_>>(), [0x0202_0202_0202_0202; 2]);
    assert_eq!(slab.live_in(1).unwrap(), 16);
}

#[test]
fn a_slab_refuses_what_it_cannot_mean_and_stays_as_it_was() {
    refuses(Slab::new(0, 8), "0 slots in a page");
    refuses(Slab::new(8_193, 8), "it has 1 to 8192");
    let mut slab = Slab::new(10, 8).unwrap();
    assert_eq!(slab.take(), None);
    slab.add_page(2).unwrap();
    refuses(slab.add_page(2), "is here already");
    refuses(slab.add_page(8), "pages are below 8");
    let slot = slab.take().unwrap();
    refuses(slab.remove_page(2), "has 1 live slots");
    refuses(slab.remove_page(3), "is not in this slab");
    refuses(slab.remove_page(8), "is not in this slab");
    refuses(slab.give(Slot { page: 2, index: 1 }), "it is free already");
    refuses(slab.give(Slot { page: 2, index: 10 }), "a page has 10 slots");
    refuses(slab.give(Slot { page: 1, index: 0 }), "the page is not in this slab");
    refuses(slab.give(Slot { page: u32::MAX, index: u32::MAX }), "the page is not in this slab");
    let mut emptied = vec![5];
    refuses(
        slab.give_many(&[slot, slot], &mut emptied),
        "slot 1 of 2: give slot 0 of page 2: it is free already",
    );
    assert_eq!((emptied.as_slice(), slab.live_slots()), ([5].as_slice(), 1));
    refuses(slab.disjoint(2, 2), "compared with itself");
    refuses(slab.disjoint(2, 3), "page 3 is not in this slab");
    refuses(slab.live_in(3), "page 3 is not in this slab");
    slab.validate().unwrap();
    assert_eq!(slab.give(slot).unwrap(), Given::PageEmpty);
    refuses(slab.give(slot), "it is free already");
    slab.remove_page(2).unwrap();
    refuses(slab.give(slot), "the page is not in this slab");
    slab.validate().unwrap();
}

#[test]
fn every_small_class_has_slots_in_its_page_and_an_offset_leads_to_its_own() {
    for class in (0..CLASS_COUNT).filter_map(Class::at) {
        let Some(slots) = slots_in_page(class) else {
            assert!(!class.is_small() && slot_at(class, 0).is_none());
            continue;
        };
        assert!(slots >= 8 && u64::from(slots) * bytes_of(class) <= PAGE_BYTES);
        assert!(Slab::new(slots, 1).is_ok());
        for offset in (0..PAGE_BYTES + UNIT_BYTES).step_by(128) {
            let index = (offset / bytes_of(class)) as u32;
            let is_start = offset % bytes_of(class) == 0 && index < slots;
            assert_eq!(slot_at(class, offset), is_start.then_some(index), "{class:?} at {offset}");
        }
    }
}
