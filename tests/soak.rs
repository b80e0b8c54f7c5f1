//! Many operations of the general allocator on the host, with nothing more at the end than after a warm-up: bytes,
//! blocks, pages, handles of the process and threads exactly, the memory of its own that is resident within a bound.
//!
//! Four threads with two streams each allocate and free blocks of mixed sizes, most of them through their front caches;
//! some pass to another thread, some are freed on the other stream, a few are large and make the heap short of memory.
//! What is written to a sample of the blocks is read before they are freed. `KAVERN_SOAK` makes it long: 1 for 10^9
//! operations, or their number. `KAVERN_SEED` starts with another seed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kavern::device::{DeviceSlice, Stream, registry};
use kavern::error::{Error, Status};
use kavern::event::NoSink;
use kavern::memory::front_cache::{self, Answer, Key};
use kavern::memory::{Heap, HeapConfig, Limits, Memory};
use kavern::sys::clock;

const MIB: u64 = 1 << 20;
const THREADS: u64 = 4;
const STREAMS: usize = 2;
/// Places for blocks of one thread, about half of which are live.
const SLOTS: usize = 192;
/// Places through which threads pass blocks to each other.
const SHELF: usize = 32;
const LIMIT_BYTES: u64 = 192 * MIB;
/// What the process may have more of at the end: tables grow with the highest address that was ever in use, and the
/// system's allocator keeps what threads gave back.
const RESIDENT_BOUND: u64 = 3 * MIB;
const ROUNDS: u64 = 8;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn operations() -> u64 {
    match number("KAVERN_SOAK") {
        None | Some(0) => 3_000_000,
        Some(1) => 1_000_000_000,
        Some(count) => count.max(1_000_000),
    }
}

/// A block, with a bit that says whether it is of the sample; 0 is none. Addresses are multiples of 256.
fn packed(address: u64, is_marked: bool) -> u64 {
    address | u64::from(is_marked)
}

struct Shared {
    memory: Arc<Memory>,
    heap: Arc<Heap>,
    shelf: [AtomicU64; SHELF],
    checked: AtomicU64,
    refused: AtomicU64,
}

impl Shared {
    fn word(&self, address: u64) -> DeviceSlice {
        // SAFETY: eight bytes of a live block of this heap, whose owner is the thread that asks.
        unsafe { DeviceSlice::from_foreign(self.memory.device().key(), address, 8) }.unwrap()
    }

    fn mark(&self, address: u64) {
        self.memory.device().write(self.word(address), &(!address).to_le_bytes()).unwrap();
    }

    fn check(&self, address: u64) {
        let mut seen = [0; 8];
        self.memory.device().read(self.word(address), &mut seen).unwrap();
        assert_eq!(u64::from_le_bytes(seen), !address, "a live block holds what was written to it");
        self.checked.fetch_add(1, Ordering::Relaxed);
    }
}

/// One thread's way to the heap, as the C functions go it.
struct Way<'a> {
    shared: &'a Shared,
    token: u64,
    is_alive: &'static AtomicU64,
    streams: [Stream; STREAMS],
}

impl<'a> Way<'a> {
    fn new(shared: &'a Shared, token: u64) -> Self {
        let streams = [(); STREAMS].map(|()| shared.memory.device().stream_create().unwrap());
        // Named by the thread for as long as it lives.
        Self { shared, token, is_alive: Box::leak(Box::new(AtomicU64::new(token))), streams }
    }

    fn key(&self, stream: Stream) -> Key {
        Key { token: self.token, stream: stream.0 }
    }

    fn allocate(&self, at: usize, bytes: u64) -> Result<u64, Error> {
        let (heap, stream) = (&self.shared.heap, self.streams[at]);
        match front_cache::allocate(self.key(stream), bytes, 256, 0, |address| address) {
            Answer::Done(address) => return Ok(address),
            Answer::Miss => {}
            Answer::NoLease => heap.adopt(self.key(stream), self.is_alive, stream)?,
        }
        let address = heap.allocate(stream, bytes, 256, 0)?;
        heap.prefill(self.key(stream), stream, bytes, 256);
        Ok(address)
    }

    fn free(&self, at: usize, block: u64) {
        let (heap, stream) = (&self.shared.heap, self.streams[at]);
        let address = block & !1;
        if block & 1 == 1 {
            self.shared.check(address);
        }
        match front_cache::free(self.key(stream), address, || ()) {
            Answer::Done(()) => {}
            Answer::Miss | Answer::NoLease => heap.free(stream, address).unwrap(),
        }
    }
}

/// 512 B to 1 MiB, most of them of a few sizes, and rarely a block with pages of its own.
fn some_bytes(random: &mut fastrand::Rng) -> u64 {
    let bits = random.u64(..);
    match bits & 0xffff {
        0 => MIB * (33 + (bits >> 60)),
        1..0x4000 => (512 << ((bits >> 16) % 11)) + (bits >> 40) % 512,
        _ => 512 << ((bits >> 16) % 9),
    }
}

/// So many operations of one thread; it has nothing at the end.
fn work(way: &Way<'_>, seed: u64, count: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut slots = [0u64; SLOTS];
    let mut done = 0;
    while done < count {
        let bits = random.u64(..);
        let (at, slot) = ((bits & 1) as usize, &mut slots[(bits >> 8) as usize % SLOTS]);
        if (bits >> 32).is_multiple_of(256) {
            // What lies on the shelf is whoever's who takes it.
            *slot = way.shared.shelf[(bits >> 48) as usize % SHELF].swap(*slot, Ordering::AcqRel);
            continue;
        }
        done += 1;
        if *slot != 0 {
            way.free(at, std::mem::take(slot));
            continue;
        }
        match way.allocate(at, some_bytes(&mut random)) {
            Ok(address) => {
                let is_marked = (bits >> 40).is_multiple_of(64);
                if is_marked {
                    way.shared.mark(address);
                }
                *slot = packed(address, is_marked);
            }
            Err(error) => {
                assert_eq!(error.status, Status::OutOfMemory, "{error:?}");
                way.shared.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    slots.into_iter().filter(|block| *block != 0).for_each(|block| way.free(0, block));
    way.streams.iter().for_each(|&stream| way.shared.heap.forget_stream(stream).unwrap());
}

/// All that must not drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    live_bytes: u64,
    live_count: u64,
    backed_bytes: u64,
    cached_bytes: u64,
    ordered_bytes: u64,
    /// Handed out by the pool of pages, kept in it, and not given back to the device.
    pages: [u64; 3],
    charged_bytes: u64,
    device_free_bytes: u64,
    files: usize,
    threads: usize,
}

fn state(shared: &Shared) -> State {
    let heap = &shared.heap;
    // What is behind an event goes in the second turn.
    for _ in 0..2 {
        heap.give_back().unwrap();
        shared.memory.device().synchronize().unwrap();
    }
    heap.validate().unwrap();
    shared.memory.validate().unwrap();
    let (found, pages) = (heap.statistics(), shared.memory.physical().unwrap().statistics());
    let alive = pages.classes.iter().map(|class| class.created - class.released).sum();
    let entries = |path: &str| std::fs::read_dir(path).unwrap().count();
    State {
        live_bytes: found.live_bytes,
        live_count: found.live_count,
        backed_bytes: found.backed_bytes,
        cached_bytes: found.front_cache_bytes,
        ordered_bytes: found.ordered_bytes,
        pages: [pages.held_bytes, pages.pooled_bytes, alive],
        charged_bytes: shared.memory.held_bytes().0,
        device_free_bytes: shared.memory.device().memory_info().unwrap().free_bytes,
        files: entries("/proc/self/fd"),
        threads: entries("/proc/self/task"),
    }
}

/// Resident memory that is the process's own, and that of the device, which lies in it: there each page of a block that
/// was ever written to stays while anything of what backs it is live, so that it comes near `backed_bytes` with time.
fn resident_bytes() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
    };
    (bytes("RssAnon:"), bytes("RssShmem:"))
}

#[expect(clippy::disallowed_macros, reason = "a measurement is told to whoever runs it")]
fn tell(text: &str) {
    eprintln!("{text}");
}

// The only test of this binary: another one's memory would be counted too.
#[test]
fn a_thousand_million_operations_leave_nothing_behind() {
    let (count, seed) = (operations(), number("KAVERN_SEED").unwrap_or(1));
    let device = registry::open("host").unwrap();
    let limits = Limits { device_limit_bytes: LIMIT_BYTES, ..Limits::default() };
    let memory = Memory::new(device, limits, Arc::new(NoSink));
    let config = HeapConfig { front_cache_bytes: 4 * MIB, patience_ns: 1_000_000, meshes_when_short: false };
    let heap = memory.make_heap_with(config).unwrap();
    let shelf = [const { AtomicU64::new(0) }; SHELF];
    let shared = Shared { memory, heap, shelf, checked: AtomicU64::new(0), refused: AtomicU64::new(0) };
    // These stay through all of it.
    let held: Vec<u64> = (0..200)
        .map(|at| shared.heap.allocate(Stream::DEFAULT, 512 + at * 700, 256, 0).unwrap())
        .inspect(|&address| shared.mark(address))
        .collect();
    let start = clock::now_ns();
    // The first round is the warm-up.
    let each = count / (ROUNDS * THREADS);
    let ways = (1..=THREADS).map(|token| Way::new(&shared, token));
    let ways: Vec<Way<'_>> = ways.collect();
    let mut first: Option<(State, u64)> = None;
    for round in 0..ROUNDS {
        std::thread::scope(|scope| {
            for way in &ways {
                let seed = seed.wrapping_add(round * THREADS + way.token);
                scope.spawn(move || work(way, seed, each));
            }
        });
        for place in &shared.shelf {
            let block = place.swap(0, Ordering::AcqRel);
            if block != 0 {
                ways[0].free(0, block);
            }
        }
        let (mut now, (resident, of_device)) = (state(&shared), resident_bytes());
        // A thread that was joined may be counted for a moment longer: the first count is the least of a while.
        let while_ns = if first.is_some() { 1_000_000_000 } else { 100_000_000 };
        let until_ns = clock::now_ns() + while_ns;
        while first.as_ref().is_none_or(|(wanted, _)| now != *wanted) && clock::now_ns() < until_ns {
            std::thread::yield_now();
            let threads = if first.is_some() { usize::MAX } else { now.threads };
            now = state(&shared);
            now.threads = now.threads.min(threads);
        }
        held.iter().for_each(|&address| shared.check(address));
        let seconds = (clock::now_ns() - start) as f64 / 1e9;
        let done = (round + 1) * each * THREADS;
        tell(&format!(
            "{done} operations in {seconds:.1} s, {resident} bytes resident, {of_device} of the device"
        ));
        let Some((wanted, before)) = first else {
            first = Some((now, resident));
            continue;
        };
        assert_eq!(now, wanted, "round {round}, seed {seed}");
        assert!(
            resident <= before + RESIDENT_BOUND,
            "round {round}, seed {seed}: {before} bytes resident after the warm-up, {resident} now"
        );
    }
    let (checked, refused) = (shared.checked.load(Ordering::Relaxed), shared.refused.load(Ordering::Relaxed));
    let found = shared.heap.statistics();
    let moved = found.ladder.moved_pages;
    tell(&format!("{checked} blocks compared, {refused} requests refused, {moved} pages moved"));
    assert!(checked > count / 300 && refused < count / 1000, "{checked} compared, {refused} refused");
    held.into_iter().for_each(|address| shared.heap.free(Stream::DEFAULT, address).unwrap());
    let end = state(&shared);
    assert_eq!((end.live_bytes, end.live_count, end.backed_bytes, end.pages), (0, 0, 0, [0; 3]));
    shared.heap.close();
}
