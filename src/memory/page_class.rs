//! The three sizes of physical pages, and what is configured and counted of them.
//!
//! They are 1, 16 and 32 of the device's pages, 2, 32 and 64 MiB on GPUs of the data centre: a driver prices the
//! mapping of a handle and not its bytes, up to 64 MiB (docs/decisions/0009-physical-pages-of-three-sizes.md). What it
//! does not: keep or make any.

use crate::device::Device;
use crate::error::{Error, Result};

/// How many sizes there are.
pub const CLASSES: usize = 3;

/// A size of physical pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageClass(u8);

impl PageClass {
    /// One page of the device.
    pub const SMALL: Self = Self(0);
    /// 16 of them.
    pub const MIDDLE: Self = Self(1);
    /// 32 of them.
    pub const LARGE: Self = Self(2);
    /// All sizes, smallest first.
    pub const ALL: [Self; CLASSES] = [Self::SMALL, Self::MIDDLE, Self::LARGE];

    /// The largest that a range with slabs, or without, is made of.
    pub fn largest(has_slabs: bool) -> Self {
        if has_slabs { Self::LARGE } else { Self::SMALL }
    }

    /// In pages of the device.
    pub const fn pages(self) -> u64 {
        [1, 16, 32][self.0 as usize]
    }

    /// The next size below.
    pub fn smaller(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }

    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// How much is kept and for how long.
#[derive(Clone, Copy, Debug)]
pub struct PhysicalConfig {
    /// Pages of each size that are made ahead, once less than `low_bytes` are pooled.
    pub ahead: [u32; CLASSES],
    /// Of each size so many stay however long nobody wants them, and of all of them `low_bytes`.
    pub low: [u32; CLASSES],
    /// As far as `ahead` has so much.
    pub low_bytes: u64,
    /// Pooled bytes above this go to the device at once.
    pub high_bytes: u64,
    /// Pages that nobody has wanted for so long go to the device, but for the `low` ones.
    pub idle_ns: u64,
    /// Whether a thread does the upkeep; without it, [`super::Physical::poll`] does. A simulated device never has one.
    pub has_thread: bool,
}

impl PhysicalConfig {
    /// Nothing ahead, at most a quarter of the device pooled, for 10 seconds.
    pub fn of(device: &dyn Device) -> Self {
        let high_bytes = device.description().total_bytes / 4;
        let low = [u32::MAX; CLASSES];
        let (ahead, low_bytes) = ([0; CLASSES], u64::MAX);
        Self { ahead, low, low_bytes, high_bytes, idle_ns: 10_000_000_000, has_thread: true }
    }

    /// Has pages of the device's `page_bytes` made ahead, none above the size `largest`.
    pub fn keep_ready(&mut self, ready: Ready, page_bytes: u64, largest: PageClass) {
        let page_bytes = page_bytes.max(1);
        self.ahead = split(ready.high_bytes / page_bytes, largest);
        self.low = split(ready.low_bytes.div_ceil(page_bytes), largest);
        self.low_bytes = ready.low_bytes;
        self.high_bytes = self.high_bytes.max(ready.high_bytes);
    }

    /// Pages of a size that stay.
    pub(super) fn low_count(&self, class: PageClass) -> usize {
        self.low[class.index()].min(self.ahead[class.index()]) as usize
    }

    /// Bytes of all sizes below which more are made, and which stay.
    pub(super) fn low_bytes(&self, page_bytes: u64) -> u64 {
        let ahead =
            PageClass::ALL.into_iter().map(|class| u64::from(self.ahead[class.index()]) * class.pages());
        self.low_bytes.min(ahead.sum::<u64>().saturating_mul(page_bytes))
    }
}

/// Three quarters of so many of the device's pages in the largest size, of the rest three quarters in the next one,
/// and what is left in the smallest.
fn split(mut pages: u64, largest: PageClass) -> [u32; CLASSES] {
    let mut counts = [0; CLASSES];
    for class in PageClass::ALL.into_iter().rev().filter(|class| *class <= largest) {
        let share = if class == PageClass::SMALL { pages } else { pages / 4 * 3 };
        let count = share / class.pages();
        pages -= count * class.pages();
        counts[class.index()] = u32::try_from(count).unwrap_or(u32::MAX);
    }
    counts
}

/// How much waits for use before anybody asks for it; all 0 for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// Below this more is made. So much stays, however long nobody wants it, but for whoever needs the bytes.
    pub low_bytes: u64,
    /// Up to this; what of it nobody wants goes in time.
    pub high_bytes: u64,
}

impl Ready {
    /// Checked, with the low mark for a high one that was left out.
    pub fn new(low_bytes: u64, high_bytes: u64) -> Result<Self> {
        match (low_bytes, high_bytes) {
            (low_bytes, 0) => Ok(Self { low_bytes, high_bytes: low_bytes }),
            (0, high_bytes) => Err(Error::argument(format!(
                "{high_bytes} bytes of pages are to be made ahead, but below no mark; give the low mark too"
            ))),
            (low_bytes, high_bytes) if low_bytes > high_bytes => Err(Error::argument(format!(
                "the low mark of pages ahead is {low_bytes}, above the high one, which is {high_bytes}"
            ))),
            (low_bytes, high_bytes) => Ok(Self { low_bytes, high_bytes }),
        }
    }
}

/// Counts of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassStatistics {
    /// Bytes of one page.
    pub page_bytes: u64,
    /// Handed out.
    pub held: u64,
    /// Waiting for use.
    pub pooled: u64,
    /// Made by the device.
    pub created: u64,
    /// Given back to the device.
    pub released: u64,
    /// Requests served from the pool.
    pub hits: u64,
    /// Requests for which the device was asked.
    pub misses: u64,
}

/// What a [`super::Physical`] has and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysicalStatistics {
    /// By size, smallest first.
    pub classes: [ClassStatistics; CLASSES],
    /// Bytes handed out.
    pub held_bytes: u64,
    /// Bytes waiting for use.
    pub pooled_bytes: u64,
    /// Calls that changed page tables.
    pub table_changes: u64,
    /// Those of them that were made although [`super::Physical::set_quiet`]'s hook advised against it.
    pub loud_changes: u64,
    /// Mappings of addresses that were given up, whose pages were passed on to the pool and may be in use elsewhere.
    /// They are unmapped off the path of whoever needs the pages, and count as nobody's memory.
    pub stale_mappings: u64,
    /// Mappings whose pages were passed on before they were unmapped.
    pub passed_on: u64,
    /// Calls by which the device was to remove mappings and did not, but for those that try again. Their pages go to
    /// the device and to nobody else.
    pub failed_unmaps: u64,
}

impl PhysicalStatistics {
    /// Adds those of another pool of the same device.
    pub fn add(&mut self, other: &Self) {
        for (sum, one) in self.classes.iter_mut().zip(&other.classes) {
            sum.page_bytes = sum.page_bytes.max(one.page_bytes);
            sum.held += one.held;
            sum.pooled += one.pooled;
            sum.created += one.created;
            sum.released += one.released;
            sum.hits += one.hits;
            sum.misses += one.misses;
        }
        self.held_bytes += other.held_bytes;
        self.pooled_bytes += other.pooled_bytes;
        self.table_changes += other.table_changes;
        self.loud_changes += other.loud_changes;
        self.stale_mappings += other.stale_mappings;
        self.passed_on += other.passed_on;
        self.failed_unmaps += other.failed_unmaps;
    }

    /// Requests served from the pool, and those for which the device was asked.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        self.classes.iter().fold((0, 0), |sum, class| (sum.0 + class.hits, sum.1 + class.misses))
    }

    /// Pages that were made before anybody asked for them.
    pub fn made_ahead(&self) -> u64 {
        self.classes.iter().map(|class| class.created.saturating_sub(class.misses)).sum()
    }

    /// Bytes that the device ever got back, out of the pool or past it.
    pub fn released_bytes(&self) -> u64 {
        self.classes.iter().map(|class| class.released * class.page_bytes).sum()
    }
}
