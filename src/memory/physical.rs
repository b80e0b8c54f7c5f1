//! Physical pages of three sizes, kept for reuse: making one costs the driver far more than mapping one.
//!
//! What it does: hands pages out, from the pool or anew; takes them back; gives idle ones to the device when there are
//! too many, when they have been idle for long, or when their bytes are needed for another size. `upkeep` makes pages
//! ahead and lets idle ones go in the background. What it does not: map anything (`range`).
//!
//! Invariants: `created = released + held + pooled + in transit` for each size; a page is charged from before the
//! device is asked until after the device has it back. A failed call leaves all as it was. Lock order: one lock around
//! the pool; no device, payer or sink is called under it.

mod left;
mod page;
mod passing;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

pub(super) use self::left::short_of;
use self::page::Bond;
pub use self::page::PhysicalPage;

use super::budget::{Paid, Payer};
use super::chores::Chores;
use super::fence::Fences;
use super::page_class::{CLASSES, ClassStatistics, PageClass, PhysicalConfig, PhysicalStatistics};
use super::upkeep::{Idlers, Worker};
use crate::device::{Device, Page};
use crate::error::{Error, Result, Status};
use crate::event::{Event, EventSink, Level};
use crate::sync::{Condvar, Mutex};
use crate::sys::clock;

/// A call that finds its room taken by others again and again gives up at last.
const ROUNDS_MAX: u32 = 64;

pub(super) struct Idle {
    page: Page,
    tenant: u64,
    pub(super) since_ns: u64,
    bond: Option<Arc<Bond>>,
}

impl Idle {
    /// Whether addresses that were given up still lead to it: it may be used, and not go to the device.
    pub(super) fn is_tied(&self) -> bool {
        self.bond.as_ref().is_some_and(|bond| bond.is_tied())
    }

    fn is_broken(&self) -> bool {
        self.bond.as_ref().is_some_and(|bond| bond.is_broken())
    }
}

#[derive(Default)]
pub(super) struct Pool {
    /// Longest idle first.
    pub(super) idle: [VecDeque<Idle>; CLASSES],
    /// Created and not released.
    alive: [u64; CLASSES],
    counts: [ClassStatistics; CLASSES],
    /// Pages on their way from or to the device, whose bytes may come free soon.
    transit: u64,
    /// Bytes that there were when the device refused one more page, until there are more again.
    ceiling_bytes: Option<u64>,
    pub(super) is_stopping: bool,
    pub(super) is_stirred: bool,
}

/// Says whether this is a good moment for changes of page tables.
pub type Quiet = Arc<dyn Fn() -> bool + Send + Sync>;

pub(super) struct Core {
    pub(super) device: Arc<dyn Device>,
    pub(super) account: Arc<dyn Payer>,
    pub(super) config: PhysicalConfig,
    pub(super) sink: Arc<dyn EventSink>,
    pub(super) page_bytes: u64,
    pub(super) pool: Mutex<Pool>,
    /// Told when a page is no longer in transit.
    settled: Condvar,
    /// Told when the upkeep has reason to look.
    pub(super) wake: Condvar,
    pub(super) chores: Chores,
    pub(super) idlers: Idlers,
    has_quiet: AtomicBool,
    quiet: Mutex<Option<Quiet>>,
    /// When the upkeep found a moment that is not quiet; 0 for none.
    pub(super) held_since_ns: AtomicU64,
    /// When pooled pages went to the device for the sake of their bytes; 0 for never.
    pub(super) pressed_ns: AtomicU64,
    /// No page was asked for since.
    pub(super) is_pressed: AtomicBool,
    /// By size: the last one that waited was taken, or there was none, since the upkeep made pages ahead.
    pub(super) is_used_up: [AtomicBool; PageClass::ALL.len()],
    table_changes: AtomicU64,
    loud_changes: AtomicU64,
    /// Mappings that are left of pages which were passed on.
    stale: AtomicU64,
    passed_on: AtomicU64,
    unmaps: passing::Unmaps,
    /// What passes over deferred changes ever freed of its old addresses.
    unmapped_bytes: AtomicU64,
    /// Changes that somebody waits for; the upkeep makes none beside them, until it is overdue.
    pub(super) awaited: AtomicU32,
    pub(super) is_overdue: AtomicBool,
}

/// Pages on their way, counted until the drop.
struct Transit<'a> {
    core: &'a Core,
    pages: u64,
}

impl Drop for Transit<'_> {
    fn drop(&mut self) {
        self.core.pool.lock().transit -= self.pages;
        self.core.settled.notify_all();
    }
}

impl Core {
    pub(super) fn bytes_of(&self, class: PageClass) -> u64 {
        self.page_bytes * class.pages()
    }

    pub(super) fn say(&self, level: Level, text: impl FnOnce() -> String) {
        if self.sink.wants(level) {
            self.sink.emit(Event { level, room: "memory", text: &text() });
        }
    }

    /// Asks the device for a page, which counts as in transit until `settle` is dropped.
    fn create(&self, class: PageClass) -> Result<Page> {
        let bytes = self.bytes_of(class);
        {
            let mut pool = self.pool.lock();
            // Room for the way back, so that giving a page back never needs memory.
            let missing = (pool.alive[class.index()] + pool.transit + 1) as usize;
            let missing = missing.saturating_sub(pool.idle[class.index()].len());
            pool.idle[class.index()]
                .try_reserve(missing)
                .map_err(|_| Error::new(Status::OutOfHostMemory, "no memory for one more physical page"))?;
            pool.transit += 1;
        }
        let _transit = Transit { core: self, pages: 1 };
        let paid = Paid::charge(&self.account, bytes)?;
        let page = self.device.page_create(bytes);
        let mut pool = self.pool.lock();
        if page.as_ref().is_err_and(|error| error.status == Status::OutOfMemory) {
            pool.ceiling_bytes = Some(self.alive_bytes(&pool));
        }
        let page = page?;
        paid.keep();
        pool.alive[class.index()] += 1;
        if pool.ceiling_bytes.is_some_and(|ceiling_bytes| self.alive_bytes(&pool) > ceiling_bytes) {
            pool.ceiling_bytes = None;
        }
        pool.counts[class.index()].created += 1;
        Ok(page)
    }

    /// Gives a page to the device, which was taken out of the pool with the transit counted.
    fn release(&self, class: PageClass, page: Page) {
        let released = self.device.page_release(page);
        // The page is no longer ours to use either way; a device that keeps it is lost or has a fault.
        self.account.discharge(self.bytes_of(class));
        {
            let mut pool = self.pool.lock();
            pool.alive[class.index()] -= 1;
            pool.counts[class.index()].released += 1;
        }
        if let Err(error) = released {
            self.say(Level::Error, || format!("the device did not take back a physical page: {error}"));
        }
    }

    /// Releases pooled pages, the longest idle first, as long as `wants` says so; returns their bytes.
    pub(super) fn shed(&self, mut wants: impl FnMut(&Pool, PageClass, &Idle, u64) -> bool) -> u64 {
        let mut shed_bytes = 0;
        for class in PageClass::ALL.into_iter().rev() {
            loop {
                let page = {
                    let mut pool = self.pool.lock();
                    let idle = &pool.idle[class.index()];
                    let oldest = idle.iter().position(|idle| !idle.is_tied());
                    let is_wanted = |at: &usize| wants(&pool, class, &idle[*at], shed_bytes);
                    let Some(at) = oldest.filter(is_wanted) else { break };
                    let Some(idle) = pool.idle[class.index()].remove(at) else { break };
                    pool.transit += 1;
                    idle.page
                };
                let _transit = Transit { core: self, pages: 1 };
                self.release(class, page);
                shed_bytes += self.bytes_of(class);
            }
        }
        shed_bytes
    }

    /// Nothing is made ahead for a while, nor before pages are asked for again.
    fn note_pressure(&self) {
        self.pressed_ns.store(clock::now_ns().max(1), Ordering::Relaxed);
        self.is_pressed.store(true, Ordering::Relaxed);
    }

    /// Gets bytes out of the pool, or waits for those that others are moving; false if there is nothing to get.
    fn make_room(&self, bytes: u64) -> bool {
        self.note_pressure();
        if self.shed(|_, _, _, shed_bytes| shed_bytes < bytes) > 0 {
            return true;
        }
        let mut pool = self.pool.lock();
        let has_transit = pool.transit > 0;
        if has_transit {
            // Whoever moves a page waits for nobody but the device.
            self.settled.wait(&mut pool);
        }
        has_transit
    }

    fn pop(&self, class: PageClass) -> Option<Idle> {
        let mut pool = self.pool.lock();
        let last = pool.idle[class.index()].iter().rposition(|idle| !idle.is_broken())?;
        let idle = pool.idle[class.index()].remove(last)?;
        pool.counts[class.index()].hits += 1;
        if pool.idle[class.index()].is_empty() {
            self.note_used_up(class);
        }
        Some(idle)
    }

    /// A page from the pool or anew.
    fn obtain(&self, class: PageClass) -> Result<Idle> {
        let mut round = 0;
        loop {
            if let Some(idle) = self.pop(class) {
                return Ok(idle);
            }
            match self.create(class) {
                Ok(page) => {
                    self.pool.lock().counts[class.index()].misses += 1;
                    self.note_used_up(class);
                    return Ok(Idle { page, tenant: 0, since_ns: 0, bond: None });
                }
                Err(error) if error.status != Status::OutOfMemory => return Err(error),
                Err(error) => {
                    round += 1;
                    if round > ROUNDS_MAX || !self.make_room(self.bytes_of(class)) {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Makes one page ahead and pools it.
    pub(super) fn stock(&self, class: PageClass) -> Result<()> {
        let page = self.create(class)?;
        let idle = Idle { page, tenant: 0, since_ns: clock::now_ns(), bond: None };
        self.pool.lock().idle[class.index()].push_front(idle);
        Ok(())
    }

    /// Takes a page back; one that addresses still lead to is kept in any case, until it is free of them.
    fn put(&self, class: PageClass, page: Page, tenant: u64, bond: Option<Arc<Bond>>) {
        let (is_strained, bytes) = (self.account.is_strained(), self.bytes_of(class));
        let idle = Idle { page, tenant, since_ns: clock::now_ns(), bond };
        let is_first = {
            let mut pool = self.pool.lock();
            let has_room = !pool.is_stopping
                && !is_strained
                && !idle.is_broken()
                && self.pooled_bytes(&pool) + bytes <= self.config.high_bytes;
            if has_room || idle.is_tied() {
                let is_first = pool.idle.iter().all(VecDeque::is_empty);
                pool.idle[class.index()].push_back(idle);
                Some(is_first)
            } else {
                pool.transit += 1;
                None
            }
        };
        match is_first {
            Some(true) => self.stir(),
            Some(false) => {}
            None => {
                let _transit = Transit { core: self, pages: 1 };
                self.release(class, page);
            }
        }
    }

    /// All pages that there are.
    fn alive_bytes(&self, pool: &Pool) -> u64 {
        PageClass::ALL.iter().map(|&class| pool.alive[class.index()] * self.bytes_of(class)).sum()
    }

    pub(super) fn is_quiet(&self) -> bool {
        if !self.has_quiet.load(Ordering::Acquire) {
            return true;
        }
        let quiet = self.quiet.lock().clone();
        quiet.is_none_or(|quiet| quiet())
    }
}

/// The pool. One per device and purpose; shared by threads.
pub struct Physical {
    core: Arc<Core>,
    fences: Arc<Fences>,
    /// There unless the device is simulated or its thread could not be made.
    worker: Option<Worker>,
}

impl Physical {
    /// An empty pool, whose pages are charged to `account`.
    pub fn new(
        device: Arc<dyn Device>,
        account: Arc<dyn Payer>,
        config: PhysicalConfig,
        sink: Arc<dyn EventSink>,
    ) -> Result<Arc<Self>> {
        let description = device.description();
        if !description.capabilities.virtual_memory {
            let text = format!("{} cannot map physical pages; use plain allocations", description.name);
            return Err(Error::new(Status::Unsupported, text));
        }
        Ok(Self::unused(device, account, config, sink))
    }

    /// As `new`, also for a device that cannot map memory: whoever has it asks for no page.
    pub(super) fn unused(
        device: Arc<dyn Device>,
        account: Arc<dyn Payer>,
        mut config: PhysicalConfig,
        sink: Arc<dyn EventSink>,
    ) -> Arc<Self> {
        let description = device.description();
        config.has_thread &= device.simulator().is_none();
        let page_bytes = description.page_bytes;
        let mut pool = Pool::default();
        for (counts, class) in pool.counts.iter_mut().zip(PageClass::ALL) {
            counts.page_bytes = page_bytes * class.pages();
        }
        let core = Arc::new(Core {
            device: Arc::clone(&device),
            account,
            config,
            sink,
            page_bytes,
            pool: Mutex::new(pool),
            settled: Condvar::new(),
            wake: Condvar::new(),
            chores: Chores::default(),
            idlers: Idlers::default(),
            has_quiet: AtomicBool::new(false),
            quiet: Mutex::default(),
            held_since_ns: AtomicU64::new(0),
            pressed_ns: AtomicU64::new(0),
            is_pressed: AtomicBool::new(false),
            is_used_up: Default::default(),
            table_changes: AtomicU64::new(0),
            loud_changes: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            passed_on: AtomicU64::new(0),
            unmaps: passing::Unmaps::default(),
            unmapped_bytes: AtomicU64::new(0),
            awaited: AtomicU32::new(0),
            is_overdue: AtomicBool::new(false),
        });
        let worker = if config.has_thread { Worker::start(&core) } else { None };
        Arc::new(Self { core, fences: Fences::new(device), worker })
    }

    /// The device below.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.core.device
    }

    /// Size of the smallest page.
    pub fn page_bytes(&self) -> u64 {
        self.core.page_bytes
    }

    /// Size of a page of this class.
    pub fn bytes_of(&self, class: PageClass) -> u64 {
        self.core.bytes_of(class)
    }

    pub(super) fn fences(&self) -> &Arc<Fences> {
        &self.fences
    }

    /// A page for `tenant`, charged to `payer` too, from the pool if there is one. May block.
    pub fn take(
        &self,
        class: PageClass,
        tenant: u64,
        payer: Option<&Arc<dyn Payer>>,
    ) -> Result<PhysicalPage> {
        let paid = payer.map(|payer| Paid::charge(payer, self.bytes_of(class))).transpose()?;
        // Of whatever is done for this page, it counts after.
        self.core.is_pressed.store(false, Ordering::Relaxed);
        let idle = self.core.obtain(class)?;
        paid.iter().for_each(Paid::settle);
        let is_used_by_us = idle.tenant == tenant && tenant != 0;
        if self.core.is_used_up(class) || self.core.is_low() {
            self.core.stir();
        }
        Ok(PhysicalPage {
            core: Arc::clone(&self.core),
            page: idle.page,
            class,
            tenant: idle.tenant,
            taker: tenant,
            is_used_by_us,
            is_broken: AtomicBool::new(false),
            bond: idle.bond,
            is_shadow: false,
            paid,
        })
    }

    /// Makes all deferred page-table changes whose time has come; returns the bytes that are free of their old
    /// addresses by that.
    pub fn collect(&self) -> u64 {
        self.core.chores.collect(true).bytes
    }

    /// Does the upkeep as of `now_ns`, as the thread does where there is one. Returns when it wants to be called again,
    /// as a time from `now_ns` on; none if there is no reason.
    pub fn poll(&self, now_ns: u64) -> Option<u64> {
        self.core.tick(now_ns)
    }

    /// A hook that is asked before page tables change: while it answers false, the upkeep waits for a while, and
    /// changes count as loud. Page tables change slowly while a copy from the device to the host runs.
    pub fn set_quiet(&self, quiet: Option<Quiet>) {
        self.core.has_quiet.store(quiet.is_some(), Ordering::Release);
        *self.core.quiet.lock() = quiet;
    }

    /// Counts a change of page tables that cannot wait.
    pub(super) fn note_change(&self) {
        self.core.table_changes.fetch_add(1, Ordering::Relaxed);
        if !self.core.is_quiet() {
            self.core.loud_changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether somebody else makes deferred changes in time.
    pub(super) fn has_thread(&self) -> bool {
        self.worker.is_some()
    }

    pub(super) fn stir(&self) {
        self.core.stir();
    }

    pub(super) fn say(&self, level: Level, text: impl FnOnce() -> String) {
        self.core.say(level, text);
    }

    pub(super) fn chores(&self) -> &Chores {
        &self.core.chores
    }

    /// What it has and did.
    pub fn statistics(&self) -> PhysicalStatistics {
        let pool = self.core.pool.lock();
        let mut sum = PhysicalStatistics { classes: pool.counts, ..PhysicalStatistics::default() };
        for (at, counts) in sum.classes.iter_mut().enumerate() {
            counts.pooled = pool.idle[at].len() as u64;
            counts.held = pool.alive[at] - counts.pooled;
            sum.held_bytes += counts.held * counts.page_bytes;
            sum.pooled_bytes += counts.pooled * counts.page_bytes;
        }
        drop(pool);
        sum.table_changes = self.core.table_changes.load(Ordering::Relaxed);
        sum.loud_changes = self.core.loud_changes.load(Ordering::Relaxed);
        sum.stale_mappings = self.core.stale.load(Ordering::Acquire);
        sum.passed_on = self.core.passed_on.load(Ordering::Relaxed);
        sum.failed_unmaps = self.core.unmaps.failed();
        sum
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.pool.get_mut().is_stopping = true;
        // No range is left, and so no address that leads to a page.
        self.shed(|_, _, _, _| true);
    }
}
