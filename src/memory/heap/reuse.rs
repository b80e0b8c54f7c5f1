//! What is held already, looked through before more is taken from the device.
//!
//! A block that was freed serves the next request of its class. Programs whose sizes change leave blocks behind that
//! nobody asks for again soon; without more, what is held would be the sum of what each size once needed. So before the
//! heap grows, it looks: neighbours that the request's stream freed become one run, of which the request is cut; then
//! all that was freed and is past is taken back; and pages of slots that ran empty leave their addresses.
//!
//! A look makes the requests after it slower, because it empties the lists in which they are found at once. A program
//! in a steady state has what it needs in those lists, and must not pay for looks. So they have an account: time pays
//! in a share, what is held for the first time pays what its mapping cost; each look takes out what it costs. Where the
//! account is empty the heap grows, as if there were no looks: a program that does nothing but allocate grows fast, one
//! that works between its allocations holds little.
//! What it does not: wait for work in flight, but for a moment; take a block from another stream behind a wait.
//! Invariant: a joined run is a freed run of its stream like any other. Lock order: front caches, `core`, the account.

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::order::Freed;
use super::super::region::{MIDDLE_GRANULE_BYTES, SLAB_PAGE_BYTES};
use super::super::size_class::{self, Class};
use super::core::{CLASS_ALIGNMENT, Core, FITTED};
use super::fitted::granules;
use super::{Heap, MIDDLE, MOVED_MOST};
use crate::device::Stream;
use crate::error::Result;
use crate::sync::Mutex;
use crate::sys::clock;

/// What a mapping of one page costs, in nanoseconds: 20 to 26 microseconds on an H200.
const MAPPING_NS: u64 = 25_000;
/// What each page of 2 MiB that is held for the first time pays in: its part of the mapping of a slab.
const PAID_IN_NS: u64 = MAPPING_NS / 32;
/// The same where no time pays in: its own way in and out.
const PAID_IN_TIMELESS_NS: u64 = 2 * MAPPING_NS;
/// One part in so many of the time may go into looks.
const TIME_SHARE: u64 = 64;
/// More is never in the account: a program that was idle must not pay for it later.
const MOST_NS: i64 = 100_000_000;
/// To have a front cache from its thread, and to put its blocks elsewhere; to put what a stream freed behind an event.
const VISIT_NS: u64 = 5_000;
/// For each block that is taken out of its list: the next request of its size is served more slowly.
const BLOCK_NS: u64 = 300;

/// Pages of slots grow by one part in so many before empty ones are looked for again.
const SMALL_SHARE: u64 = 16;
/// And by no less than this.
const SMALL_LEAST_BYTES: u64 = 16 << 20;

/// How long a look waits for events that were recorded just now: an idle device needs a few microseconds, and to take
/// memory from a driver costs more.
const MOMENT_NS: u64 = 20_000;

/// The account of the looks.
#[derive(Default)]
struct Account {
    /// Below zero where the last look cost more than there was: nobody looks before that has come in.
    left_ns: i64,
    /// Until when time has paid in.
    paid_until_ns: u64,
    /// Most that was ever backed.
    most_bytes: u64,
    #[cfg(test)]
    has_no_clock: bool,
}

impl Account {
    /// What has come in since; whether something is left. `now_ns`: none where looks must not depend on a clock.
    fn pay_in(&mut self, backed_bytes: u64, now_ns: Option<u64>) -> bool {
        let new_bytes = backed_bytes.saturating_sub(self.most_bytes);
        self.most_bytes += new_bytes;
        #[cfg(test)]
        let now_ns = now_ns.filter(|_| !self.has_no_clock);
        let each_ns = if now_ns.is_some() { PAID_IN_NS } else { PAID_IN_TIMELESS_NS };
        self.left_ns += (new_bytes / SLAB_PAGE_BYTES * each_ns) as i64;
        if let Some(now_ns) = now_ns {
            // The first one begins here.
            let since_ns = if self.paid_until_ns == 0 { now_ns } else { self.paid_until_ns };
            self.left_ns += (now_ns.saturating_sub(since_ns) / TIME_SHARE) as i64;
            // Another thread may have read its clock later and been here before.
            self.paid_until_ns = now_ns.max(since_ns);
        }
        self.left_ns = self.left_ns.min(MOST_NS);
        self.left_ns > 0
    }
}

/// What looks may cost, and what they did.
#[derive(Default)]
pub(super) struct Looks {
    account: Mutex<Account>,
    /// What is backed in small pages when empty ones are looked for again.
    next_small_bytes: AtomicU64,
    count: AtomicU64,
}

impl Looks {
    fn spend(&self, ns: u64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.account.lock().left_ns -= ns as i64;
    }

    /// From here on only what is held pays in.
    #[cfg(test)]
    pub(super) fn stop_clock(&self) {
        self.account.lock().has_no_clock = true;
    }

    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

fn next(backed_bytes: u64) -> u64 {
    backed_bytes + (backed_bytes / SMALL_SHARE).max(SMALL_LEAST_BYTES)
}

impl Heap {
    /// Whether the account has something left.
    pub(super) fn may_look(&self) -> bool {
        // What a simulated device does must not depend on a clock.
        let now_ns = self.device.simulator().is_none().then(clock::now_ns);
        self.looks.account.lock().pay_in(self.backed_bytes(), now_ns)
    }

    /// A run of so many granules out of what is held.
    pub(super) fn reuse_run(&self, stream: Stream, count: u32, alignment: u32) -> Result<Option<u32>> {
        if !self.may_look() {
            return Ok(None);
        }
        // What lies at the hand of threads stays there if there is enough without it.
        for drains in [false, true] {
            if drains {
                self.drain(stream);
            }
            let joined = self.join(stream)?;
            self.looks.spend(BLOCK_NS * joined);
            if let Some(start) = self.core.lock().take_own_run(stream, count, alignment)? {
                return Ok(Some(start));
            }
        }
        if self.core.lock().order.bytes() < u64::from(count) * MIDDLE_GRANULE_BYTES {
            return Ok(None);
        }
        self.gather()?;
        self.core.lock().middle.allocate(count, alignment)
    }

    /// Lets pages of slots go that are empty once all is taken back that was freed, so that another class gets them.
    pub(super) fn reuse_pages(&self) -> Result<()> {
        let small_bytes: u64 = self
            .regions
            .iter()
            .filter(|(number, _)| *number < MIDDLE)
            .map(|(_, region)| region.range.backed_pages() * region.page_bytes)
            .sum();
        if small_bytes < self.looks.next_small_bytes.load(Ordering::Relaxed) || !self.may_look() {
            return Ok(());
        }
        self.gather()?;
        let bytes = self.trim_small_pages()?;
        self.looks.spend(bytes / SLAB_PAGE_BYTES * MAPPING_NS);
        self.looks.next_small_bytes.store(next(small_bytes.saturating_sub(bytes)), Ordering::Relaxed);
        Ok(())
    }

    /// Takes the blocks of middle classes out of the front caches of a stream.
    fn drain(&self, stream: Stream) {
        let guests = self.caches_of(stream);
        self.looks.spend(VISIT_NS * guests.len() as u64);
        for guest in guests {
            guest.with(|leased| self.take_freed(stream, leased.cache.drain_from(MIDDLE)));
        }
    }

    /// Makes one run of all that were freed on the stream side by side; how many there were.
    fn join(&self, stream: Stream) -> Result<u64> {
        let mut runs = self.core.lock().order.take_own_runs(stream, MIDDLE as u32);
        runs.sort_unstable_by_key(|run| run.id);
        let end = |run: &Freed| run.id + u64::from(granules(run.bytes));
        let mut outcome = Ok(runs.len() as u64);
        // Whoever waits for the lock has it in between.
        for part in runs.chunks(MOVED_MOST) {
            let mut core = self.core.lock();
            for side_by_side in part.chunk_by(|one, next| end(one) == next.id) {
                match outcome {
                    Ok(count) => outcome = core.join(stream, side_by_side).map(|()| count),
                    Err(_) => side_by_side.iter().for_each(|&run| core.order.free(stream, run)),
                }
            }
        }
        outcome
    }

    /// Takes back all that was freed, as far as it is past or will be in a moment.
    pub(super) fn gather(&self) -> Result<()> {
        let (count, lanes) = self.take_back(MOMENT_NS)?;
        self.looks.spend((2 + lanes) * VISIT_NS + BLOCK_NS * count);
        Ok(())
    }

    /// As `gather`, for whoever pays in another way; how many blocks there were, and on how many lanes.
    pub(super) fn take_back(&self, moment_ns: u64) -> Result<(u64, u64)> {
        self.flush(None);
        let (count, lanes) = {
            let core = self.core.lock();
            (core.order.count() as u64, core.order.streams_with(0).len() as u64)
        };
        self.close_lanes()?;
        // What a simulated device does must not depend on a clock.
        let moment_ns = if self.device.simulator().is_none() { moment_ns } else { 0 };
        let deadline_ns = clock::now_ns() + moment_ns;
        loop {
            // Of each stream one event is asked about at a time.
            while self.collect()? {}
            if self.core.lock().order.count() == 0 || clock::now_ns() >= deadline_ns {
                break;
            }
            std::hint::spin_loop();
        }
        Ok((count, lanes))
    }
}

impl Core {
    /// A block of a middle class: of what was joined on the stream, or free for all.
    pub(super) fn take_run_of_class(&mut self, stream: Stream, class: Class) -> Result<Option<u32>> {
        let count = (size_class::bytes_of(class) / MIDDLE_GRANULE_BYTES) as u32;
        match self.take_own_run(stream, count, CLASS_ALIGNMENT)? {
            None => self.middle.allocate(count, CLASS_ALIGNMENT),
            found => Ok(found),
        }
    }

    /// A run of what was joined on the stream before; what is behind it stays there.
    fn take_own_run(&mut self, stream: Stream, count: u32, alignment: u32) -> Result<Option<u32>> {
        let bytes = u64::from(count) * MIDDLE_GRANULE_BYTES;
        match self.order.take_open_run(stream, FITTED, bytes, alignment) {
            Some(block) => self.cut(stream, block, count).map(Some),
            None => Ok(None),
        }
    }

    /// Makes one run of some that were freed side by side.
    fn join(&mut self, stream: Stream, side_by_side: &[Freed]) -> Result<()> {
        let [first, ..] = side_by_side else { return Ok(()) };
        let bytes = side_by_side.iter().map(|run| run.bytes).sum();
        side_by_side.iter().skip(1).try_for_each(|_| self.middle.unite(first.id as u32))?;
        self.order.free(stream, Freed { class: FITTED, id: first.id, bytes });
        Ok(())
    }
}
