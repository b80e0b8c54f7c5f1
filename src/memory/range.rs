//! One reservation of addresses and the memory behind it.
//!
//! What it does: puts physical pages behind parts of the range, the largest that fit, with one change of access for
//! each run, all or nothing; takes them away again once the streams that may use them are past, off the path of whoever
//! gives them up. What it does not: decide what is needed, or who may have how much.
//!
//! A page of 16 or 32 device pages lies at a multiple of its size and is unmapped as a whole: while some of its pages
//! are given up and others not, it stays, and its dead part counts as retained.
//!
//! Invariants: a page that was given up is not used again, and not unmapped, before the point that was told when it was
//! given up. A failed call leaves all as it was. Lock order: the range's one lock, which is held across calls into the
//! device, because two changes of one range must not cross; then the pool's. Never two ranges' at a time.

mod left;
mod moving;
mod passing;
mod stuck;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

pub(super) use self::moving::Movable;
use self::stuck::Stuck;
use super::budget::Payer;
use super::chores::{Chore, Collected, Passed, Skipped};
use super::fence::{Fence, outlasts_work};
use super::page_class::PageClass;
use super::page_table::{PageTable, TableCounts, Told};
use super::physical::{Physical, PhysicalPage};
use crate::device::{Access, DeviceSlice};
use crate::error::{Error, Result, Status};
use crate::event::Level;
use crate::sync::{Mutex, MutexGuard};

/// Mappings that the upkeep removes under one hold of the lock: a third of a millisecond of a driver, for which whoever
/// needs these pages may have to wait.
const BATCH: usize = 16;

/// Whose a range is.
pub(super) struct Holder {
    /// Pages that another tenant had are told from one's own; 0 tells none.
    pub(super) tenant: u64,
    /// What the pages are charged to besides the pool's account.
    pub(super) payer: Option<Arc<dyn Payer>>,
    /// Largest pages that are used.
    pub(super) largest: PageClass,
    /// Whether it takes pages that others have given up before they are unmapped there.
    pub(super) takes_passed: bool,
}

/// Called with ranges that have memory which another tenant had, or the device has just made, before they are used.
pub(super) type Prepare<'a> = &'a dyn Fn(&[DeviceSlice]) -> Result<()>;

/// Addresses with a page table.
pub(super) struct Range {
    physical: Arc<Physical>,
    slice: DeviceSlice,
    page_bytes: u64,
    holder: Holder,
    table: Mutex<PageTable>,
    /// The table's, for a look without its lock.
    told: Arc<Told>,
    /// What the device did not unmap.
    stuck: Stuck,
    /// The device cannot be waited for with work under way on pages: they stay mapped until it is closed.
    is_abandoned: AtomicBool,
}

/// Pages that are mapped and not yet in the table; unmapped on drop.
struct Plan<'a> {
    range: &'a Range,
    made: Vec<(u64, PhysicalPage)>,
    /// Pages that are mapped elsewhere too, at addresses below those of `made`.
    moved: Vec<(u64, Arc<PhysicalPage>)>,
}

impl<'a> Plan<'a> {
    fn new(range: &'a Range) -> Self {
        Self { range, made: Vec::new(), moved: Vec::new() }
    }

    /// Maps a page; it is in the plan or back in the pool.
    fn map(&mut self, start: u64, page: PhysicalPage) -> Result<()> {
        room_for_one(&mut self.made)?;
        self.range.map(start, &page)?;
        self.made.push((start, page));
        Ok(())
    }

    /// Opens what was mapped.
    fn open(&self) -> Result<()> {
        for (first, end) in runs(places(&self.moved).chain(places(&self.made))) {
            self.range.physical.note_change();
            let run = self.range.part(first, end)?;
            self.range.physical.device().virtual_set_access(run, Access::ReadWrite)?;
        }
        Ok(())
    }

    /// Runs of what holds another's bytes, or nobody's.
    fn foreign(&self) -> Result<Vec<DeviceSlice>> {
        let foreign = self.made.iter().filter(|(_, page)| !page.is_used_by_us());
        let foreign = runs(places(foreign));
        foreign.into_iter().map(|(first, end)| self.range.part(first, end)).collect()
    }
}

impl Drop for Plan<'_> {
    fn drop(&mut self) {
        self.range.unmap(std::mem::take(&mut self.made));
        self.range.unmap(std::mem::take(&mut self.moved));
    }
}

fn room_for_one<T>(list: &mut Vec<T>) -> Result<()> {
    list.try_reserve(1)
        .map_err(|_| Error::new(Status::OutOfHostMemory, "no memory for the plan of a mapping"))
}

/// First page and end of each mapping.
fn places<'a, P: AsRef<PhysicalPage> + 'a>(
    pages: impl IntoIterator<Item = &'a (u64, P)>,
) -> impl Iterator<Item = (u64, u64)> {
    pages.into_iter().map(|(start, page)| (*start, start + page.as_ref().class().pages()))
}

/// First page and end of each run of neighbours.
fn runs(places: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (start, end) in places {
        match runs.last_mut() {
            Some(run) if run.1 == start => run.1 = end,
            _ => runs.push((start, end)),
        }
    }
    runs
}

impl Range {
    /// Reserves addresses, a multiple of the device's page.
    pub(super) fn new(physical: Arc<Physical>, bytes: u64, holder: Holder) -> Result<Arc<Self>> {
        let slice = physical.device().virtual_reserve(bytes)?;
        let page_bytes = physical.page_bytes();
        let table = PageTable::default();
        let told = table.told();
        let range = Arc::new(Self {
            physical,
            slice,
            page_bytes,
            holder,
            table: Mutex::new(table),
            told,
            stuck: Stuck::default(),
            is_abandoned: AtomicBool::new(false),
        });
        range.physical.chores().add(Self::chore(&range));
        Ok(range)
    }

    fn chore(range: &Arc<Self>) -> Weak<dyn Chore> {
        let weak: Weak<Self> = Arc::downgrade(range);
        weak
    }

    /// Takes the range out of the upkeep, so that its owner's drop is its end.
    pub(super) fn leave(range: &Arc<Self>) {
        range.physical.chores().remove(&Self::chore(range));
    }

    /// The addresses.
    pub(super) fn slice(&self) -> DeviceSlice {
        self.slice
    }

    fn part(&self, first: u64, end: u64) -> Result<DeviceSlice> {
        self.slice.part(first * self.page_bytes, (end - first) * self.page_bytes)
    }

    fn map(&self, start: u64, page: &PhysicalPage) -> Result<()> {
        let target = self.part(start, start + page.class().pages())?;
        self.physical.note_change();
        self.physical.device().virtual_map(target, page.page())
    }

    /// Unmaps pages, in order of address, and puts them back; keeps those that the device does not unmap.
    fn unmap<P: AsRef<PhysicalPage> + Into<Arc<PhysicalPage>>>(&self, pages: Vec<(u64, P)>) {
        if self.is_abandoned.load(Ordering::Acquire) {
            pages.into_iter().for_each(|(_, page)| page.as_ref().discard());
            return;
        }
        let runs = runs(places(&pages));
        let mut pages = pages.into_iter().peekable();
        for (first, end) in runs {
            self.physical.note_change();
            let unmapped = self.part(first, end).and_then(|run| self.physical.device().virtual_unmap(run));
            self.physical.note_unmap(unmapped.is_ok());
            if let Err(error) = &unmapped {
                self.physical
                    .say(Level::Error, || format!("pages {first} to {end} of a range stay mapped: {error}"));
            }
            while let Some((start, page)) = pages.next_if(|(start, _)| *start < end) {
                if unmapped.is_err() {
                    self.keep_stuck(start, page.into());
                }
            }
            if unmapped.is_err() {
                self.physical.stir();
            }
        }
    }

    /// The table, once no stream uses the pages of `[first, end)` that were given up. Blocks.
    fn lock_settled(&self, first: u64, end: u64) -> Result<MutexGuard<'_, PageTable>> {
        loop {
            let table = self.table.lock();
            let waits = table.waits(first, end);
            if waits.is_empty() {
                return Ok(table);
            }
            drop(table);
            waits.iter().try_for_each(|fence| fence.wait())?;
        }
    }

    fn try_back(&self, first: u64, end: u64, prepare: Prepare<'_>) -> Result<u64> {
        let mut table = self.lock_settled(first, end)?;
        self.unmap(table.take_stale(first, end));
        self.free_stuck(first, end)?;
        let gaps = table.gaps(first, end);
        let missing_bytes = gaps.iter().map(|(first, end)| end - first).sum::<u64>() * self.page_bytes;
        self.check_left(missing_bytes)?;
        let mut plan = Plan::new(self);
        if let Err(error) = gaps.into_iter().try_for_each(|(first, end)| self.fill(&mut plan, first, end)) {
            drop(plan);
            // What the device says of all that is missing tells more than what it says of a page.
            return match error.status {
                Status::OutOfMemory => self.physical.check_device(missing_bytes).and(Err(error)),
                _ => Err(error),
            };
        }
        plan.open()?;
        let foreign = plan.foreign()?;
        if !foreign.is_empty() {
            prepare(&foreign).inspect_err(|error| self.abandon_if_lost(error))?;
        }
        Ok(table.publish(std::mem::take(&mut plan.made), first, end))
    }

    fn abandon_if_lost(&self, error: &Error) {
        if error.status == Status::DeviceLost {
            self.abandon();
        }
    }

    /// Maps a gap with the largest pages that fit and are to be had.
    fn fill(&self, plan: &mut Plan<'_>, first: u64, end: u64) -> Result<()> {
        let (mut at, mut largest) = (first, self.holder.largest);
        while at < end {
            let fits = |class: &&PageClass| {
                **class <= largest && at.is_multiple_of(class.pages()) && at + class.pages() <= end
            };
            let class = PageClass::ALL.iter().rev().find(fits).copied().unwrap_or(PageClass::SMALL);
            let taken = self.physical.take(class, self.holder.tenant, self.holder.payer.as_ref());
            match (taken, class.smaller()) {
                (Ok(page), _) => {
                    plan.map(at, page)?;
                    at += class.pages();
                }
                // Where whole slabs are not to be had, their parts may be.
                (Err(error), Some(smaller)) if error.status == Status::OutOfMemory => largest = smaller,
                (Err(error), _) => return Err(error),
            }
        }
        Ok(())
    }

    fn check_pins(&self, table: &PageTable, first: u64, end: u64) -> Result<()> {
        let Some((low, high)) = table.pin_in(first, end) else { return Ok(()) };
        let (bytes, offset) = ((high - low) * self.page_bytes, low * self.page_bytes);
        let text =
            format!("{bytes} bytes at offset {offset} are pinned and stay committed; unpin them first");
        Err(Error::new(Status::InUse, text))
    }

    /// Refuses a range that has a pin.
    pub(super) fn check_unpinned(&self, first: u64, end: u64) -> Result<()> {
        self.check_pins(&self.table.lock(), first, end)
    }

    /// Gives the pages of `[first, end)` up; those that have a stream still to pass go once it has. Returns how many
    /// there were.
    pub(super) fn unback(&self, first: u64, end: u64, fence: Option<&Arc<Fence>>) -> Result<u64> {
        let mut table = self.table.lock();
        self.check_pins(&table, first, end)?;
        let given = table.give_up(first, end, fence);
        // With a point to wait for, the upkeep unmaps off this path; and always what is not asked for here.
        let (low, high) = if self.physical.has_thread() { (first, end) } else { (0, u64::MAX) };
        if fence.is_none() || !self.physical.has_thread() {
            let ripe = table.take_ripe(low, high, usize::MAX);
            self.unmap(ripe);
        }
        if table.is_waiting() {
            drop(table);
            self.physical.stir();
        }
        Ok(given)
    }

    /// Puts the physical page of `[source, source + pages)` behind `[target, target + pages)` too, whose own goes back.
    /// What is to stay of the target's bytes was copied before, and no work on the device touches either. Whether it
    /// was done: not if one of them is cut otherwise, pinned, or partly given up.
    pub(super) fn mesh(&self, target: u64, source: u64, pages: u64) -> Result<bool> {
        let mut table = self.table.lock();
        let (Some(kept), Some(gone)) =
            (table.whole(source, source + pages), table.whole(target, target + pages))
        else {
            return Ok(false);
        };
        let (kept, gone) = (Arc::clone(kept), Arc::clone(gone));
        if Arc::ptr_eq(&kept, &gone) {
            return Ok(false);
        }
        let part = self.part(target, target + pages)?;
        let device = self.physical.device();
        self.physical.note_change();
        device.virtual_unmap(part)?;
        let put = |page: &PhysicalPage| {
            device.virtual_map(part, page.page())?;
            device
                .virtual_set_access(part, Access::ReadWrite)
                .inspect_err(|_| drop(device.virtual_unmap(part)))
        };
        if let Err(error) = put(&kept) {
            // Its own page still has all bytes.
            return match put(&gone) {
                Ok(()) => Err(error),
                Err(second) => {
                    Err(second.context("a page that was taken away for a mesh could not be put back"))
                }
            };
        }
        drop(table.exchange(target, kept));
        drop(table);
        drop(gone);
        Ok(true)
    }

    /// How many pages of `[first, end)` have memory that the user has.
    pub(super) fn live_in(&self, first: u64, end: u64) -> u64 {
        self.table.lock().live_in(first, end)
    }

    /// Keeps the pages of `[first, end)` as they are until they are unpinned as often.
    pub(super) fn pin(&self, first: u64, end: u64) -> Result<()> {
        self.table.lock().pin(first, end)
    }

    /// Undoes one pin of exactly this range.
    pub(super) fn unpin(&self, first: u64, end: u64) -> Result<()> {
        self.table.lock().unpin(first, end)
    }

    /// How many pins there are.
    pub(super) fn pins(&self) -> u64 {
        self.table.lock().pins()
    }

    /// `[first, end)` without the mappings that reach beyond it and have something live there; its beginning and end.
    pub(super) fn whole_within(&self, first: u64, end: u64) -> (u64, u64) {
        self.table.lock().whole_within(first, end)
    }

    /// Sums over the table.
    pub(super) fn counts(&self) -> TableCounts {
        self.table.lock().counts()
    }

    /// Pages with memory of their own. Takes no lock: the lock of a table is held across calls into the device.
    pub(super) fn backed_pages(&self) -> u64 {
        self.told.backed_pages.load(Ordering::Relaxed)
    }

    /// Pages that the user has. Takes no lock, and outlives the range.
    pub(super) fn told(&self) -> &Arc<Told> {
        &self.told
    }

    /// Checks the table, and what the device kept beside it.
    pub(super) fn validate(&self) -> Result<()> {
        let table = self.table.lock();
        table.validate()?;
        self.stuck.validate(&table)
    }

    /// Bytes that [`Range::back`] would have to get for `[first, end)`.
    pub(super) fn gap_bytes(&self, first: u64, end: u64) -> u64 {
        self.table.lock().missing(first, end) * self.page_bytes
    }

    /// Waits for the streams that keep given-up pages here. Blocks.
    pub(super) fn await_streams(&self) -> Result<()> {
        let waits = self.table.lock().all_waits();
        waits.iter().try_for_each(|fence| fence.wait())
    }

    /// As `await_streams`, and unmaps those pages. Blocks.
    pub(super) fn settle(&self) -> Result<()> {
        self.await_streams()?;
        self.collect(true);
        Ok(())
    }

    /// Takes all memory away once no stream uses it. Blocks. The addresses stay until the drop.
    pub(super) fn clear(&self) {
        let mut table = self.table.lock();
        for fence in table.all_waits() {
            // Where a point cannot be waited for, nothing on the device may be left that uses the pages; where that
            // cannot be waited for either, they stay mapped. A panic of the device must not stop the way back.
            let waited = catch_unwind(AssertUnwindSafe(|| fence.wait()));
            if !matches!(waited, Ok(Ok(()))) {
                self.drain();
            }
        }
        let pages = table.take_all();
        self.unmap(pages);
        self.retry_all_stuck();
    }

    /// Waits for all work on the device; where that cannot be, pages stay behind their addresses from now on. Blocks.
    pub(super) fn drain(&self) {
        if !outlasts_work(self.physical.device().as_ref()) {
            self.abandon();
        }
    }

    /// Work that cannot be waited for may use the pages: from now on they stay mapped until the device is closed.
    pub(super) fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::Release);
    }
}

impl Chore for Range {
    fn collect(&self, waits: bool) -> Collected {
        let mut bytes = 0;
        loop {
            // Whoever waits for a change waits for the device, which makes one after the other.
            if !waits && self.physical.is_awaited() {
                return Collected { bytes, is_waiting: true, is_stuck: false };
            }
            let table = if waits { Some(self.table.lock()) } else { self.table.try_lock() };
            let Some(mut table) = table else {
                return Collected { bytes, is_waiting: true, is_stuck: false };
            };
            let ripe = table.take_ripe(0, u64::MAX, BATCH);
            let is_last = ripe.len() < BATCH;
            // A page that has moved stays where it is now.
            let going = ripe.iter().filter(|(_, page)| Arc::strong_count(page) == 1);
            let going_bytes = going.map(|(_, page)| page.class().pages() * self.page_bytes).sum::<u64>();
            self.unmap(ripe);
            self.physical.note_unmapped(going_bytes);
            bytes += going_bytes;
            if is_last {
                let (freed_bytes, is_stuck) = self.retry_some_stuck();
                self.physical.note_unmapped(freed_bytes);
                return Collected { bytes: bytes + freed_bytes, is_waiting: table.is_waiting(), is_stuck };
            }
        }
    }

    fn pass_on(&self, bytes: u64, count_max: u64, skipped: Skipped) -> Passed {
        self.pass_pages_on(bytes, count_max, skipped)
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        self.clear();
        if self.is_abandoned.load(Ordering::Acquire) {
            self.physical
                .say(Level::Error, || "a range stays until the device is closed: work may use it".to_owned());
            return;
        }
        if let Err(error) = self.physical.device().virtual_release(self.slice) {
            self.physical.say(Level::Error, || format!("the device did not take back addresses: {error}"));
        }
    }
}
