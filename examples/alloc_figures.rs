//! What single operations of the general allocator cost at their worst, and what it gets out of scattered free memory.
//! Prints one JSON object on one line.
//!
//! Run: `alloc_figures [cuda:0]`, optimised. Every operation is timed by itself on the host, and the clock is timed the
//! same way in the same run, so that its share can be seen. "cold" is a request for which memory has to be mapped: from
//! pages that the pool holds, or from the device. "holes" is one large request when all free memory lies in single
//! pages of small blocks, between pages that are full; the device counts its copies meanwhile. "mesh" puts half-empty
//! pages together, and every byte of every live block is compared afterwards. "refusal" is a request that cannot be
//! met, after everything was tried. On a device of the CPU what holds much memory is 64 times smaller and there are
//! fewer operations: there it shows that the program works, and nothing about a GPU.
#![expect(clippy::disallowed_macros, reason = "a program that prints its result")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kavern::device::{Device, DeviceSlice, Stream, registry};
use kavern::error::{Error, Result, Status};
use kavern::event::NoSink;
use kavern::memory::front_cache::{self, Answer, Key};
use kavern::memory::size_class::UNIT_BYTES;
use kavern::memory::{Heap, Limits, Memory, PageClass};
use kavern::sys::clock;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Fresh allocations of each size.
const FRESH: usize = 200;
const REFUSALS: usize = 300;
const ROUNDS: usize = 3;
/// A page of small blocks, and the slots of 64 KiB in it.
const PAGE_BYTES: u64 = 2 * MIB;
const SLOT_BYTES: u64 = 64 << 10;
/// What an operation may take where the driver is not called.
const QUICK_NS: u64 = 10_000;
const MIXED_SLOTS: u64 = 1024;

/// The value below which so many of 1,000 lie.
fn rank(sorted: &[u64], per_mille: usize) -> u64 {
    let at = (sorted.len() * per_mille).div_ceil(1000).max(1) - 1;
    sorted.get(at).copied().unwrap_or_default()
}

fn times(mut values: Vec<u64>) -> String {
    values.sort_unstable();
    let us = |per_mille| rank(&values, per_mille) as f64 / 1e3;
    format!(
        "{{\"count\": {}, \"p50_us\": {:.3}, \"p99_us\": {:.3}, \"p999_us\": {:.3}, \"max_us\": {:.3}}}",
        values.len(),
        us(500),
        us(990),
        us(999),
        us(1000)
    )
}

/// The same randomness in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// 512 B to 16 MiB, each doubling equally likely.
    fn size(&mut self) -> u64 {
        let floor = 512 << self.below(15);
        floor + self.below(floor)
    }
}

/// One heap, and the way of one thread and stream to it that the C functions take.
struct Bench {
    memory: Arc<Memory>,
    heap: Arc<Heap>,
    stream: Stream,
    key: Key,
    is_alive: &'static AtomicU64,
}

impl Bench {
    fn new(device: &Arc<dyn Device>, device_limit_bytes: u64) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let limits = Limits { device_limit_bytes, ..Limits::default() };
        let memory = Memory::new(Arc::clone(device), limits, Arc::new(NoSink));
        let (heap, stream) = (memory.make_heap()?, device.stream_create()?);
        let token = NEXT.fetch_add(1, Ordering::Relaxed);
        // Named by the thread for as long as it lives.
        let is_alive = Box::leak(Box::new(AtomicU64::new(token)));
        Ok(Self { memory, heap, stream, key: Key { token, stream: stream.0 }, is_alive })
    }

    fn device(&self) -> &dyn Device {
        self.memory.device().as_ref()
    }

    /// Ends the heap with what is still live in it.
    fn end(self) -> Result<()> {
        self.device().synchronize()?;
        self.heap.forget_stream(self.stream)?;
        self.heap.close();
        let (device, stream) = (Arc::clone(self.memory.device()), self.stream);
        drop(self);
        device.stream_destroy(stream)
    }

    fn allocate(&self, bytes: u64) -> Result<u64> {
        match front_cache::allocate(self.key, bytes, UNIT_BYTES, 0, |address| address) {
            Answer::Done(address) => return Ok(address),
            Answer::Miss => {}
            Answer::NoLease => self.heap.adopt(self.key, self.is_alive, self.stream)?,
        }
        let address = self.heap.allocate(self.stream, bytes, UNIT_BYTES, 0)?;
        self.heap.prefill(self.key, self.stream, bytes, UNIT_BYTES);
        Ok(address)
    }

    fn free(&self, address: u64) -> Result<()> {
        match front_cache::free(self.key, address, || ()) {
            Answer::Done(()) => Ok(()),
            Answer::Miss => self.heap.free(self.stream, address),
            Answer::NoLease => {
                self.heap.free(self.stream, address)?;
                self.heap.adopt(self.key, self.is_alive, self.stream)
            }
        }
    }

    /// Past the front cache, which would keep blocks for itself.
    fn allocate_plain(&self, bytes: u64) -> Result<u64> {
        self.heap.allocate(self.stream, bytes, UNIT_BYTES, 0)
    }

    /// Blocks of one size until so many bytes are live.
    fn fill(&self, total_bytes: u64, bytes: u64) -> Result<Vec<u64>> {
        (0..total_bytes / bytes).map(|_| self.allocate_plain(bytes)).collect()
    }

    /// Frees what is not kept, and answers what is.
    fn keep(&self, blocks: Vec<u64>, mut is_kept: impl FnMut(u64) -> bool) -> Result<Vec<u64>> {
        let (kept, freed): (Vec<u64>, Vec<u64>) = blocks.into_iter().partition(|&address| is_kept(address));
        freed.into_iter().try_for_each(|address| self.heap.free(self.stream, address))?;
        Ok(kept)
    }

    /// Gives all free memory to the device: what stands behind an event goes in the second turn.
    fn give_back(&self) -> Result<()> {
        self.heap.give_back()?;
        self.device().synchronize()?;
        self.heap.give_back().map(drop)
    }

    fn slice(&self, address: u64, bytes: u64) -> Result<DeviceSlice> {
        // SAFETY: the range is a live allocation of this heap, and nobody frees it meanwhile.
        unsafe { DeviceSlice::from_foreign(self.device().key(), address, bytes) }
    }

    /// Writes to a block what no other has.
    fn mark(&self, address: u64, bytes: u64) -> Result<()> {
        self.device().memset(self.stream, self.slice(address, bytes)?, byte_of(address))?;
        self.device().stream_synchronize(self.stream)?;
        self.device().write(self.slice(address, 8)?, &address.to_le_bytes())
    }

    /// How many blocks do not hold what was written.
    fn wrong(&self, blocks: &[u64], bytes: u64) -> Result<u64> {
        let mut found = vec![0; bytes as usize];
        let mut wrong = 0;
        for &address in blocks {
            self.device().read(self.slice(address, bytes)?, &mut found)?;
            let (head, tail) = found.split_at(8);
            let is_right = head == address.to_le_bytes() && tail.iter().all(|byte| *byte == byte_of(address));
            wrong += u64::from(!is_right);
        }
        Ok(wrong)
    }
}

/// A byte that neighbours do not share.
fn byte_of(address: u64) -> u8 {
    (address / SLOT_BYTES % 251) as u8
}

fn timed<T>(body: impl FnOnce() -> Result<T>) -> Result<(u64, T)> {
    let start = clock::now_ns();
    let done = body()?;
    Ok((clock::now_ns() - start, done))
}

/// Requests for which memory has to be mapped.
fn cold(device: &Arc<dyn Device>, bytes: u64, is_pooled: bool) -> Result<String> {
    let bench = Bench::new(device, 0)?;
    let physical = bench.memory.physical()?;
    let largest = physical.bytes_of(PageClass::LARGE);
    let mut values = Vec::new();
    let mut misses = 0;
    for sample in 0..=FRESH {
        bench.give_back()?;
        if is_pooled {
            // What a request of up to 64 MiB can need; they are pooled when they are dropped.
            let pages = (64 * MIB).div_ceil(largest);
            let taken: Result<Vec<_>> =
                (0..pages).map(|_| physical.take(PageClass::LARGE, 0, None)).collect();
            drop(taken?);
        }
        let missed = |physical: &kavern::memory::Physical| {
            physical.statistics().classes.iter().map(|class| class.misses).sum::<u64>()
        };
        let before = missed(&physical);
        let (spent, address) = timed(|| bench.allocate_plain(bytes))?;
        // The first one also reserves the addresses.
        if sample > 0 {
            values.push(spent);
            misses += missed(&physical) - before;
        }
        bench.heap.free(bench.stream, address)?;
    }
    bench.end()?;
    Ok(format!(
        "{{\"bytes\": {bytes}, \"is_pooled\": {is_pooled}, \"pages_made\": {misses}, \"times\": {}}}",
        times(values)
    ))
}

/// One large request when all free memory lies in holes of one page.
fn holes(spec: &str, scale: u64) -> Result<String> {
    // A device that counts its copies and memsets.
    let joint = if spec.contains('?') { '&' } else { '?' };
    let device = registry::open(&format!("{spec}{joint}kind=copy&fail_nth=0"))?;
    let (limit, rest, wanted, block) = (40 * GIB / scale, GIB / scale, 16 * GIB / scale, 256 << 10);
    let bench = Bench::new(&device, limit)?;
    // The last GiB is somebody's, so that nothing is free but the holes.
    let rest = bench.allocate_plain(rest)?;
    let mut blocks = bench.fill(limit - GIB / scale, block)?;
    let (mut values, mut copies, mut wrong, mut live, mut unheld) = (Vec::new(), 0, 0, 0, 0);
    for _ in 0..ROUNDS {
        // Every other page of those that are used, wherever they lie.
        let mut pages: Vec<u64> = blocks.iter().map(|address| address / PAGE_BYTES).collect();
        pages.sort_unstable();
        pages.dedup();
        let is_even =
            |address: u64| pages.partition_point(|&page| page < address / PAGE_BYTES).is_multiple_of(2);
        let kept = bench.keep(blocks, is_even)?;
        let looked_at: Vec<u64> = kept.iter().copied().step_by(61).collect();
        looked_at.iter().try_for_each(|&address| bench.mark(address, block))?;
        bench.device().synchronize()?;
        unheld = bench.memory.physical()?.left_bytes();
        let before = device.call_count();
        let (spent, address) = timed(|| bench.allocate_plain(wanted))?;
        values.push(spent as f64 / 1e6);
        copies += device.call_count() - before;
        wrong += bench.wrong(&looked_at, block)?;
        live = kept.len() as u64 * block;
        bench.heap.free(bench.stream, address)?;
        bench.give_back()?;
        // The holes are filled again, with pages of their own.
        blocks = kept;
        blocks.extend(bench.fill(limit - GIB / scale - live, block)?);
    }
    // Those that went into the request without being unmapped first, in all rounds.
    let moved = bench.heap.statistics().ladder.moved_pages;
    bench.heap.free(bench.stream, rest)?;
    bench.end()?;
    values.sort_by(f64::total_cmp);
    Ok(format!(
        "{{\"limit_bytes\": {limit}, \"live_bytes\": {}, \"unheld_bytes\": {unheld}, \
         \"hole_bytes\": {PAGE_BYTES}, \"wanted_bytes\": {wanted}, \
         \"rounds\": {ROUNDS}, \"median_ms\": {:.3}, \"max_ms\": {:.3}, \"copies\": {copies}, \
         \"moved_pages\": {moved}, \
         \"wrong_blocks\": {wrong}}}",
        live + GIB / scale,
        values[ROUNDS / 2],
        values[ROUNDS - 1]
    ))
}

/// Operations one by one: all of them, and those that made no call of the device but such as give something back.
#[derive(Default)]
struct Operations {
    all: Vec<u64>,
    without_driver: Vec<u64>,
}

impl Operations {
    fn with_room(count: usize) -> Self {
        Self { all: Vec::with_capacity(count), without_driver: Vec::with_capacity(count) }
    }

    fn time<T>(&mut self, device: &dyn Device, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let calls = device.call_count();
        let (spent, done) = timed(body)?;
        self.all.push(spent);
        if device.call_count() == calls {
            self.without_driver.push(spent);
        }
        Ok(done)
    }

    fn shown(self) -> String {
        let slow = |values: &[u64]| values.iter().filter(|value| **value > QUICK_NS).count();
        let (slow_all, slow_without) = (slow(&self.all), slow(&self.without_driver));
        format!(
            "{{\"all\": {}, \"without_driver\": {}, \"over_10_us\": {slow_all}, \
             \"over_10_us_without_driver\": {slow_without}}}",
            times(self.all),
            times(self.without_driver)
        )
    }
}

/// The clock, the cached pair and the mixed load, each operation timed.
fn operations(spec: &str, count: usize) -> Result<String> {
    // A device that counts what is asked of it.
    let joint = if spec.contains('?') { '&' } else { '?' };
    let device = registry::open(&format!("{spec}{joint}fail_nth=0"))?;
    let bench = Bench::new(&device, 0)?;
    let mut timer = Operations::with_room(count);
    let (mut pair, mut mixed) = (Operations::with_room(2 * count), Operations::with_room(count));
    let device = bench.device();
    for _ in 0..count {
        timer.time(device, || Ok(()))?;
    }
    for turn in 0..count + count / 10 {
        // The first ones fill the cache.
        if turn == count / 10 {
            pair = Operations::with_room(2 * count);
        }
        let address = pair.time(device, || bench.allocate(SLOT_BYTES))?;
        pair.time(device, || bench.free(address))?;
    }
    let mut random = Random(7);
    let mut slots = [0u64; MIXED_SLOTS as usize];
    for turn in 0..count + count / 4 {
        if turn == count / 4 {
            mixed = Operations::with_room(count);
        }
        let slot = &mut slots[random.below(MIXED_SLOTS) as usize];
        let bytes = random.size();
        if *slot == 0 {
            *slot = mixed.time(device, || bench.allocate(bytes))?;
        } else {
            let address = std::mem::take(slot);
            mixed.time(device, || bench.free(address))?;
        }
    }
    for address in slots.into_iter().filter(|address| *address != 0) {
        bench.free(address)?;
    }
    bench.heap.validate()?;
    bench.end()?;
    Ok(format!(
        "{{\"timer\": {}, \"pair_64_kib\": {}, \"mixed\": {}}}",
        times(timer.all),
        pair.shown(),
        mixed.shown()
    ))
}

/// Half-empty pages of slots of 64 KiB put together; `is_kept` tells what is live, by page and slot.
fn mesh(
    device: &Arc<dyn Device>,
    total_bytes: u64,
    mut is_kept: impl FnMut(u64, u64) -> bool,
) -> Result<String> {
    let bench = Bench::new(device, 0)?;
    let blocks = bench.fill(total_bytes, SLOT_BYTES)?;
    let place = |address: u64| (address / PAGE_BYTES, address / SLOT_BYTES % (PAGE_BYTES / SLOT_BYTES));
    let live = bench.keep(blocks, |address| {
        let (page, slot) = place(address);
        is_kept(page, slot)
    })?;
    live.iter().try_for_each(|&address| bench.mark(address, SLOT_BYTES))?;
    // What is empty goes first: what remains is the gain of sharing alone.
    bench.give_back()?;
    let held_before = bench.memory.physical()?.statistics().held_bytes;
    let (spent, done) = timed(|| bench.heap.defragment(0))?;
    let held_after = bench.memory.physical()?.statistics().held_bytes;
    let wrong = bench.wrong(&live, SLOT_BYTES)?;
    let floor = (live.len() as u64 * SLOT_BYTES).next_multiple_of(PAGE_BYTES);
    bench.heap.validate()?;
    bench.end()?;
    Ok(format!(
        "{{\"slots_bytes\": {total_bytes}, \"live_blocks\": {}, \"physical_before\": {held_before}, \
         \"physical_after\": {held_after}, \"floor\": {floor}, \"after_of_floor\": {:.3}, \"gained\": {:.3}, \
         \"meshed_pages\": {}, \"copied_bytes\": {}, \"ms\": {:.3}, \"wrong_blocks\": {wrong}}}",
        live.len(),
        held_after as f64 / floor as f64,
        1.0 - held_after as f64 / held_before as f64,
        done.meshed_pages,
        done.copied_bytes,
        spent as f64 / 1e6
    ))
}

/// Requests that are refused after everything was tried. Before each, so many blocks are allocated and freed, so that
/// the caches hold something. With `has_pages` these blocks had pages of their own, which go empty to the device in
/// vain; without, one slot of each page is free: many bytes, and no page.
fn refusals(device: &Arc<dyn Device>, scale: u64, has_pages: bool, cached: u64) -> Result<String> {
    let limit = 4 * GIB / scale;
    let bench = Bench::new(device, limit)?;
    let spare = if has_pages { cached * SLOT_BYTES } else { 0 };
    let blocks = bench.fill(limit - spare, SLOT_BYTES)?;
    let live = bench.keep(blocks, |address| {
        has_pages || !(address / SLOT_BYTES).is_multiple_of(PAGE_BYTES / SLOT_BYTES)
    })?;
    let wanted = limit / 4;
    let mut unmapped = 0;
    let mut values = Vec::new();
    for _ in 0..REFUSALS {
        let held: Result<Vec<u64>> = (0..cached).map(|_| bench.allocate(SLOT_BYTES)).collect();
        held?.into_iter().try_for_each(|address| bench.free(address))?;
        let backed = bench.heap.statistics().backed_bytes;
        let start = clock::now_ns();
        let refused = bench.allocate_plain(wanted);
        values.push(clock::now_ns() - start);
        unmapped += backed.saturating_sub(bench.heap.statistics().backed_bytes) / PAGE_BYTES;
        match refused {
            Err(error) if error.status == Status::OutOfMemory => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(Error::internal(format!("{wanted} bytes were free after all"))),
        }
    }
    let statistics = bench.heap.statistics();
    if statistics.ladder.refusals != REFUSALS as u64 || statistics.live_count != live.len() as u64 {
        return Err(Error::internal("a refusal was not counted, or it took something"));
    }
    bench.heap.validate()?;
    bench.end()?;
    Ok(format!(
        "{{\"limit_bytes\": {limit}, \"live_blocks\": {}, \"wanted_bytes\": {wanted}, \"cached\": {cached}, \
         \"pages_unmapped\": {unmapped}, \"times\": {}}}",
        live.len(),
        times(values)
    ))
}

fn main() -> Result<()> {
    let spec = std::env::args().nth(1).unwrap_or_else(|| "cuda:0".to_owned());
    let device = registry::open(&spec)?;
    let description = device.description().clone();
    let (scale, count) =
        if description.capabilities.host_addressable { (64, 100_000) } else { (1, 1_000_000) };
    let operations = operations(&spec, count)?;
    let mut colds = Vec::new();
    for bytes in [2 * MIB, 8 * MIB, 32 * MIB, 64 * MIB] {
        for is_pooled in [true, false] {
            colds.push(cold(&device, bytes, is_pooled)?);
        }
    }
    let holes = holes(&spec, scale)?;
    let phased = mesh(&device, 4 * GIB / scale, |page, slot| slot % 8 == page % 8)?;
    let mut random = Random(11);
    let half = mesh(&device, GIB / scale, |_, _| random.below(2) == 0)?;
    let eighth = mesh(&device, GIB / scale, |_, _| random.below(8) == 0)?;
    let refused = [
        refusals(&device, scale, false, 0)?,
        refusals(&device, scale, false, 32)?,
        // 32 pages, or 4 on the host.
        refusals(&device, scale, true, 1024 / scale.min(8))?,
    ];
    println!(
        "{{\"device\": \"{}\", \"page_bytes\": {}, \"operations\": {operations}, \"cold\": [{}], \
         \"holes\": {holes}, \"mesh_every_eighth\": {phased}, \"mesh_random_half\": {half}, \
         \"mesh_random_eighth\": {eighth}, \"refusal\": [{}]}}",
        description.model,
        description.page_bytes,
        colds.join(", "),
        refused.join(", ")
    );
    Ok(())
}
