//! Blocks of one small class in pages of 2 MiB: which slots of which pages are live.
//!
//! What it does: hands out the lowest free slot of the lowest page that has one, so that high pages run empty and can
//! go back; says when a page has become empty. What it does not: touch memory, lock, or get pages: pages are numbers
//! that come in and go out by `add_page` and `remove_page`. Invariants, all checked by `validate()`: a page is in
//! `open` if and only if it is here and has a free slot; a page's `free` is the number of bits set in its words, and a
//! bit of its `summary` is set if and only if the word is not zero; no bit stands for a slot that a page does not have;
//! `live_slots + sum(free) == pages * slots_per_page`. A refused call changes nothing. Lock order: none, the owner
//! locks.

use crate::error::{Error, Result, Status};
use crate::memory::bitmap::Bitmap;
use crate::memory::size_class::{Class, SMALL_CLASS_COUNT, UNIT_BYTES, bytes_of};
use crate::sys::reserve::Zeroed;

/// What a slab takes pages of.
pub const PAGE_BYTES: u64 = 2 << 20;

/// Slots of the smallest class, and so the most that a page has.
const MOST_SLOTS: u32 = (PAGE_BYTES / UNIT_BYTES) as u32;

/// In `record_of`: the page is not here.
const ABSENT: u32 = 0;

/// A place for one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Number of the page.
    pub page: u32,
    /// Which of its slots.
    pub index: u32,
}

/// What is left of the page of a slot that was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// Other slots of the page are live.
    PageLive,
    /// It was the last one: the page may be removed.
    PageEmpty,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    /// Its page; of a record that waits to be used, the next such record plus 1.
    page: u32,
    free: u32,
    /// Which of its words are not zero.
    summary: u128,
}

/// The pages of one class.
#[derive(Debug)]
pub struct Slab {
    slots_per_page: u32,
    words_per_page: usize,
    page_limit: u32,
    /// Index of a page's record plus 1, or [`ABSENT`].
    record_of: Zeroed<u32>,
    records: Vec<Record>,
    /// Free slots, `words_per_page` for each record.
    words: Vec<u64>,
    /// First record that waits to be used, plus 1.
    spare: u32,
    /// Pages with a free slot.
    open: Bitmap,
    pages: u32,
    live_slots: u64,
}

/// Slots of a page for blocks of a small class; None for a larger class.
pub const fn slots_in_page(class: Class) -> Option<u32> {
    if class.is_small() { Some((PAGE_BYTES / bytes_of(class)) as u32) } else { None }
}

/// For each small class, 2^24 over its units of 256 B, rounded up: one multiplication divides by it.
const RECIPROCALS: [u32; SMALL_CLASS_COUNT] = {
    let (mut table, mut index) = ([0; SMALL_CLASS_COUNT], 0);
    while let Some(class) = Class::at(index)
        && class.is_small()
    {
        table[index] = (1 << 24) / (bytes_of(class) / UNIT_BYTES) as u32 + 1;
        index += 1;
    }
    table
};

/// The slot that begins at a byte of a page; None if none does, or if the class is not a small one.
#[inline]
pub fn slot_at(class: Class, offset_bytes: u64) -> Option<u32> {
    if offset_bytes >= PAGE_BYTES {
        return None;
    }
    // Exact, because the offset has at most 2^13 units and the error of a reciprocal is below 2^10 / 2^24.
    let units = offset_bytes / UNIT_BYTES;
    let index = (units * u64::from(*RECIPROCALS.get(class.index())?)) >> 24;
    let is_slot = index * bytes_of(class) == offset_bytes && Some(index as u32) < slots_in_page(class);
    is_slot.then_some(index as u32)
}

impl Slab {
    /// A slab without pages; their numbers will be below `page_limit`.
    pub fn new(slots_per_page: u32, page_limit: u32) -> Result<Self> {
        if slots_per_page == 0 || slots_per_page > MOST_SLOTS {
            return Err(Error::argument(format!(
                "{slots_per_page} slots in a page; it has 1 to {MOST_SLOTS}"
            )));
        }
        Ok(Self {
            slots_per_page,
            words_per_page: slots_per_page.div_ceil(64) as usize,
            page_limit,
            record_of: Zeroed::new(page_limit as usize)?,
            records: Vec::new(),
            words: Vec::new(),
            spare: 0,
            open: Bitmap::new(page_limit)?,
            pages: 0,
            live_slots: 0,
        })
    }

    /// Slots of each page.
    pub fn slots_per_page(&self) -> u32 {
        self.slots_per_page
    }

    /// Pages that are here.
    pub fn page_count(&self) -> u32 {
        self.pages
    }

    /// Slots that are taken.
    pub fn live_slots(&self) -> u64 {
        self.live_slots
    }

    /// Slots that are not.
    pub fn free_slots(&self) -> u64 {
        u64::from(self.pages) * u64::from(self.slots_per_page) - self.live_slots
    }

    /// All pages with the number of their live slots, in no order.
    pub fn pages(&self) -> impl Iterator<Item = (u32, u32)> {
        let is_here = |(index, record): &(usize, &Record)| {
            self.record_of.get(record.page as usize) == Some(&(*index as u32 + 1))
        };
        let here = self.records.iter().enumerate().filter(is_here);
        here.map(|(_, record)| (record.page, self.slots_per_page - record.free))
    }

    /// Pages with a free slot, the lowest first, with the number of their live slots.
    pub fn open_pages(&self) -> impl Iterator<Item = (u32, u32)> {
        let next = |page: u32| self.open.at_or_after(page);
        let walk = std::iter::successors(next(0), move |&page| next(page + 1));
        walk.filter_map(|page| Some((page, self.live_in(page).ok()?)))
    }

    /// Takes a page in, with all its slots free.
    pub fn add_page(&mut self, page: u32) -> Result<()> {
        if page >= self.page_limit {
            return Err(Error::argument(format!("page {page}; pages are below {}", self.page_limit)));
        }
        if self.record_of[page as usize] != ABSENT {
            return Err(Error::argument(format!("page {page} is here already")));
        }
        if self.spare == 0 {
            self.new_record()?;
        }
        let record = self.spare as usize - 1;
        let words = &mut self.words[record * self.words_per_page..][..self.words_per_page];
        words.fill(u64::MAX);
        words[self.words_per_page - 1] >>= (64 - self.slots_per_page % 64) % 64;
        self.spare = self.records[record].page;
        let summary = u128::MAX >> (128 - self.words_per_page);
        self.records[record] = Record { page, free: self.slots_per_page, summary };
        self.record_of[page as usize] = record as u32 + 1;
        self.open.insert(page);
        self.pages += 1;
        Ok(())
    }

    /// Takes a page out; none of its slots may be live.
    pub fn remove_page(&mut self, page: u32) -> Result<()> {
        let record = self.record(page)?;
        let live = self.slots_per_page - self.records[record].free;
        if live > 0 {
            return Err(Error::argument(format!(
                "page {page} has {live} live slots; only an empty one can go"
            )));
        }
        self.open.remove(page);
        self.record_of[page as usize] = ABSENT;
        self.records[record] = Record { page: self.spare, free: 0, summary: 0 };
        self.spare = record as u32 + 1;
        self.pages -= 1;
        Ok(())
    }

    /// The lowest free slot of the lowest page that has one; None if all are live.
    #[inline]
    pub fn take(&mut self) -> Option<Slot> {
        let page = self.open.first()?;
        let record = self.record_of[page as usize] as usize - 1;
        let Record { free, summary, .. } = &mut self.records[record];
        let at = summary.trailing_zeros();
        let word = &mut self.words[record * self.words_per_page + at as usize];
        let index = at << 6 | word.trailing_zeros();
        *word &= *word - 1;
        if *word == 0 {
            *summary &= *summary - 1;
        }
        *free -= 1;
        if *free == 0 {
            self.open.remove(page);
        }
        self.live_slots += 1;
        Some(Slot { page, index })
    }

    /// Takes exactly this slot, which has to be free.
    pub fn claim(&mut self, slot: Slot) -> Result<()> {
        self.record(slot.page)?;
        if slot.index >= self.slots_per_page || self.is_live(slot) {
            let Slot { page, index } = slot;
            return Err(Error::argument(format!("slot {index} of page {page} is live, or there is none")));
        }
        self.take_back(slot);
        Ok(())
    }

    /// Takes up to `count` slots, as so many calls of `take` would, and puts them behind what is in `slots`. Returns
    /// how many there were; an error only if `slots` cannot grow.
    pub fn take_many(&mut self, count: usize, slots: &mut Vec<Slot>) -> Result<usize> {
        let count = self.free_slots().min(count as u64) as usize;
        if slots.try_reserve(count).is_err() {
            return Err(Error::new(Status::OutOfHostMemory, format!("no host memory for {count} slots")));
        }
        let before = slots.len();
        while slots.len() < before + count
            && let Some(slot) = self.take()
        {
            slots.push(slot);
        }
        Ok(slots.len() - before)
    }

    /// Gives a slot back. That the page has become empty is said once; it stays until it is removed.
    #[inline]
    pub fn give(&mut self, slot: Slot) -> Result<Given> {
        let Some((record, place, bit)) = self.live_place(slot) else { return Err(self.not_live(slot)) };
        let Record { free, summary, .. } = &mut self.records[record];
        self.words[place] |= bit;
        *summary |= 1 << (slot.index >> 6);
        *free += 1;
        if *free == 1 {
            self.open.insert(slot.page);
        }
        self.live_slots -= 1;
        Ok(if *free == self.slots_per_page { Given::PageEmpty } else { Given::PageLive })
    }

    /// Gives several slots back, all or none, and puts the pages that became empty behind what is in `emptied`.
    pub fn give_many(&mut self, slots: &[Slot], emptied: &mut Vec<u32>) -> Result<()> {
        // No more pages can become empty than there are slots or pages.
        let most = slots.len().min(self.pages as usize);
        if emptied.try_reserve(most).is_err() {
            return Err(Error::new(Status::OutOfHostMemory, format!("no host memory for {most} pages")));
        }
        let before = emptied.len();
        for (done, &slot) in slots.iter().enumerate() {
            match self.give(slot) {
                Ok(Given::PageLive) => {}
                Ok(Given::PageEmpty) => emptied.push(slot.page),
                Err(error) => {
                    slots[..done].iter().for_each(|&slot| self.take_back(slot));
                    emptied.truncate(before);
                    return Err(error.context(&format!("slot {done} of {}", slots.len())));
                }
            }
        }
        Ok(())
    }

    /// Whether a slot is taken; false also for one that does not exist.
    #[inline]
    pub fn is_live(&self, slot: Slot) -> bool {
        self.live_place(slot).is_some()
    }

    /// Number of live slots of a page.
    pub fn live_in(&self, page: u32) -> Result<u32> {
        Ok(self.slots_per_page - self.records[self.record(page)?].free)
    }

    /// The live slots of a page as bits, 64 a word, the lowest slot in the lowest bit.
    pub fn live_words(&self, page: u32) -> Result<impl Iterator<Item = u64>> {
        let words = self.words_of(self.record(page)?);
        let slots = self.slots_per_page;
        let live = move |(index, word): (usize, &u64)| {
            let beyond = 64 - (slots - index as u32 * 64).min(64);
            !word & u64::MAX >> beyond
        };
        Ok(words.iter().enumerate().map(live))
    }

    /// Whether no slot is live in both pages, so that their blocks could lie on one physical page.
    pub fn disjoint(&self, page: u32, other: u32) -> Result<bool> {
        if page == other {
            return Err(Error::argument(format!("page {page} is compared with itself")));
        }
        let (words, others) = (self.live_words(page)?, self.live_words(other)?);
        Ok(words.zip(others).all(|(word, other)| word & other == 0))
    }

    /// Checks every invariant in the file head.
    pub fn validate(&self) -> Result<()> {
        let broken = |what: String| Err(Error::internal(format!("slab: {what}")));
        let (mut free_slots, mut open, mut pages) = (0, 0, 0);
        for page in (0..self.page_limit).filter(|&page| self.record_of[page as usize] != ABSENT) {
            let index = self.record_of[page as usize] as usize - 1;
            let Some(record) = self.records.get(index).filter(|record| record.page == page) else {
                return broken(format!("the record of page {page} is not its own"));
            };
            let words = self.words_of(index);
            let free: u32 = words.iter().map(|word| word.count_ones()).sum();
            let summary = (0..).zip(words).fold(0, |bits, (at, word)| bits | u128::from(*word != 0) << at);
            if (free, summary) != (record.free, record.summary) {
                return broken(format!("page {page} has {free} free slots in words {summary:b}: {record:?}"));
            }
            let in_last = self.slots_per_page - (words.len() as u32 - 1) * 64;
            if in_last < 64 && words[words.len() - 1] >> in_last != 0 {
                return broken(format!("page {page} has slots beyond {}", self.slots_per_page));
            }
            if self.open.contains(page) != (free > 0) {
                return broken(format!("page {page} has {free} free slots and is wrongly open or not"));
            }
            free_slots += u64::from(free);
            open += u64::from(free > 0);
            pages += 1;
        }
        let (mut spare, mut spares) = (self.spare as usize, 0);
        while spare != 0 && spares <= self.records.len() {
            let Some(record) = self.records.get(spare - 1) else {
                return broken("a spare record is lost".into());
            };
            (spare, spares) = (record.page as usize, spares + 1);
        }
        let whole = u64::from(self.pages) * u64::from(self.slots_per_page);
        if pages != self.pages || spares + pages as usize != self.records.len() {
            return broken(format!(
                "{pages} pages and {spares} spare records, the count says {}",
                self.pages
            ));
        }
        if free_slots + self.live_slots != whole {
            return broken(format!("{free_slots} free and {} live slots of {whole}", self.live_slots));
        }
        self.open.validate(open)
    }

    // ------------------------------------------------------------------------------------------------ inside

    fn record(&self, page: u32) -> Result<usize> {
        match self.record_of.get(page as usize) {
            None | Some(&ABSENT) => Err(Error::argument(format!("page {page} is not in this slab"))),
            Some(&record) => Ok(record as usize - 1),
        }
    }

    fn words_of(&self, record: usize) -> &[u64] {
        &self.words[record * self.words_per_page..][..self.words_per_page]
    }

    /// Record, word and bit of a live slot.
    #[inline]
    fn live_place(&self, slot: Slot) -> Option<(usize, usize, u64)> {
        let record = *self.record_of.get(slot.page as usize)?;
        if record == ABSENT || slot.index >= self.slots_per_page {
            return None;
        }
        let record = record as usize - 1;
        let place = record * self.words_per_page + (slot.index >> 6) as usize;
        let bit = 1 << (slot.index & 63);
        (self.words[place] & bit == 0).then_some((record, place, bit))
    }

    #[cold]
    fn not_live(&self, Slot { page, index }: Slot) -> Error {
        let why = match self.record(page) {
            Err(_) => "the page is not in this slab".into(),
            Ok(_) if index >= self.slots_per_page => format!("a page has {} slots", self.slots_per_page),
            Ok(_) => "it is free already".into(),
        };
        Error::argument(format!("give slot {index} of page {page}: {why}"))
    }

    /// Makes a free slot live again.
    fn take_back(&mut self, slot: Slot) {
        let record = self.record_of[slot.page as usize] as usize - 1;
        let place = record * self.words_per_page + (slot.index >> 6) as usize;
        self.words[place] &= !(1 << (slot.index & 63));
        let Record { free, summary, .. } = &mut self.records[record];
        if self.words[place] == 0 {
            *summary &= !(1 << (slot.index >> 6));
        }
        *free -= 1;
        if *free == 0 {
            self.open.remove(slot.page);
        }
        self.live_slots += 1;
    }

    /// A record that waits to be used.
    #[cold]
    fn new_record(&mut self) -> Result<()> {
        let fits = self.records.try_reserve(1).is_ok() && self.words.try_reserve(self.words_per_page).is_ok();
        if !fits || self.records.len() >= u32::MAX as usize - 1 {
            return Err(Error::new(Status::OutOfHostMemory, "no host memory for another page of a slab"));
        }
        self.records.push(Record { page: self.spare, free: 0, summary: 0 });
        self.words.resize(self.words.len() + self.words_per_page, 0);
        self.spare = self.records.len() as u32;
        Ok(())
    }
}

#[cfg(test)]
#[path = "slab_tests.rs"]
mod tests;
