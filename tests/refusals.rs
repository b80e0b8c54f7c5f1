//! A device whose calls fail again and again under the allocator, pools, an elastic range, a shared pool, pinned memory
//! and direct allocations: each failure is a status, nobody panics, and at the end nothing is held. Counted are calls
//! that answer a failure which the device injected, and no others. Some devices cannot map memory. `KAVERN_SOAK` makes
//! it long: 1 for 10^6 of them, or their number. `KAVERN_SEED` starts with another seed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use kavern::device::{Device, Event, Stream, registry};
use kavern::error::{Error, Result, Status};
use kavern::event::NoSink;
use kavern::memory::{
    Allocation, ClassConfig, Elastic, ElasticConfig, Heap, HeapConfig, Limits, Memory, PinnedConfig,
    PinnedPool, Pool, PoolConfig, PoolMemory, SharedConfig, SharedPool, Sizes, Terms,
};
use kavern::sys::clock;

const MIB: u64 = 1 << 20;
/// Injected failures of one device; then another seed.
const EACH: u64 = 2_500;
/// What is played; a step belongs to one of them.
const AREAS: [&str; 6] = ["allocator", "elastic", "pools", "shared pools", "pinned", "direct"];
const PINNED: usize = 4;
const MODELS: [&str; 2] = ["one", "other"];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn until<T>(attempt: impl Fn() -> Result<T>) -> T {
    (0..100_000).find_map(|_| attempt().ok()).expect("a device that fails now and then")
}

/// Events of a host that are live, by its numbers: a place in the low half, and how often the place was used above. A
/// new place is only made when no old one is free.
fn live_events(device: &dyn Device) -> u64 {
    let mut made: Vec<Event> = Vec::new();
    let fresh = loop {
        let event = until(|| device.event_create());
        made.push(event);
        if event.0 >> 32 == 1 {
            break event;
        }
    };
    let reused = made.len() as u64 - 1;
    made.into_iter().for_each(|event| device.event_destroy(event).unwrap());
    (fresh.0 & u64::from(u32::MAX)) - reused
}

struct Things {
    heap: Arc<Heap>,
    pools: [Pool; 2],
    /// Not where the device cannot map memory.
    mapped: Option<(Arc<Elastic>, SharedPool)>,
    pinned: PinnedPool,
    memory: Arc<Memory>,
    streams: [Stream; 2],
    blocks: Vec<u64>,
    pooled: [Vec<u64>; 2],
    staged: Vec<u64>,
    direct: Vec<Allocation>,
}

impl Things {
    fn new(device: &Arc<dyn Device>) -> Self {
        let limits = Limits { device_limit_bytes: 448 * MIB, ..Limits::default() };
        let memory = Memory::new(Arc::clone(device), limits, Arc::new(NoSink));
        let config =
            HeapConfig { front_cache_bytes: 8 * MIB, patience_ns: 1_000_000, ..memory.heap_config() };
        let class = ClassConfig { block_bytes: MIB, initial_blocks: 0, growth_blocks: 2 };
        let pool = PoolConfig { sizes: Sizes::Classes(vec![class]), max_bytes: 0, ..PoolConfig::classes() };
        let kinds = [PoolMemory::Device, PoolMemory::Managed];
        let range = ElasticConfig { capacity_bytes: 256 * MIB, page_bytes: 0, has_slabs: true };
        let models = SharedConfig { limit_bytes: 16 * MIB, has_slabs: true, ..SharedConfig::default() };
        let terms = Terms { min_bytes: MIB, weight: 1, cap_bytes: 0 };
        let mapped = device.description().capabilities.virtual_memory.then(|| {
            let shared = until(|| SharedPool::new(&memory, models.clone()));
            for name in MODELS {
                until(|| shared.register(name, 64 * MIB, terms));
            }
            (until(|| Elastic::new(&memory, range)), shared)
        });
        let chunks = PinnedConfig { chunk_bytes: MIB / 4, threads: 1, node: None };
        Self {
            heap: until(|| memory.make_heap_with(config)),
            pools: kinds.map(|memory_kind| {
                until(|| Pool::new(&memory, PoolConfig { memory: memory_kind, ..pool.clone() }, 0))
            }),
            mapped,
            pinned: PinnedPool::new(&memory, chunks),
            streams: [Stream::DEFAULT, until(|| device.stream_create())],
            memory,
            blocks: Vec::new(),
            pooled: [Vec::new(), Vec::new()],
            staged: Vec::new(),
            direct: Vec::new(),
        }
    }

    /// Several blocks or none, or one that is cleared: a refused call leaves nothing.
    fn allocate_all(&mut self, stream: Stream, sizes: &[u64], is_cleared: bool) -> Result<()> {
        let before = (self.heap.statistics().live_count, self.blocks.len());
        let allocate = |&bytes| {
            let address = self.heap.allocate(stream, bytes, 0, 0)?;
            self.blocks.push(address);
            if is_cleared { self.heap.zero(stream, address) } else { Ok(()) }
        };
        let outcome = sizes.iter().try_for_each(allocate);
        if is_cleared {
            // It may be freed on another stream.
            until(|| self.memory.device().stream_synchronize(stream));
        }
        if outcome.is_err() {
            self.blocks.drain(before.1..).for_each(|address| self.heap.take_unused(stream, address));
            assert_eq!(self.heap.statistics().live_count, before.0, "what was refused is live");
        }
        outcome
    }

    /// One call, which the device may fail; `area` says to what it belonged.
    fn step(&mut self, random: &mut fastrand::Rng, area: &mut usize) -> Result<()> {
        let stream = self.streams[random.usize(0..2)];
        let most = 1 << random.u32(1..26);
        let bytes = random.u64(1..most);
        let (offset, length) = (random.u64(0..200) * MIB, random.u64(1..32) * MIB);
        let (place, kind) = (random.u64(0..16) * MIB, random.usize(0..2));
        let step = random.u32(0..22);
        *area = match step {
            0..7 | 20.. => 0,
            7..9 => 1,
            9..12 => 2,
            12..15 => 3,
            15..18 => 4,
            _ => 5,
        };
        match step {
            0..3 => self.blocks.push(self.heap.allocate(stream, bytes, 0, 0)?),
            3 => self.blocks.push(self.heap.allocate(stream, 33 * MIB + bytes, 0, 0)?),
            4 if !self.blocks.is_empty() => {
                let address = self.blocks[random.usize(0..self.blocks.len())];
                self.heap.record_use(address, self.streams[0])?;
                // A refused free leaves the block where it is.
                self.heap.free(stream, address)?;
                self.blocks.retain(|&other| other != address);
            }
            4..6 => {
                while let Some(address) = self.blocks.pop() {
                    self.heap.free(stream, address).inspect_err(|_| self.blocks.push(address))?;
                }
            }
            6 => self.heap.give_back().map(drop)?,
            7 | 8 | 12..15 => {
                // Nothing where there is neither.
                let Some((elastic, shared)) = &self.mapped else { return Ok(()) };
                match step {
                    7 => elastic.commit(offset, length).map(drop)?,
                    8 => elastic.decommit(offset, length, Some(stream)).map(drop)?,
                    14 => shared.decommit(MODELS[kind], place, length, Some(stream)).map(drop)?,
                    _ => shared.commit(MODELS[kind], place, length.min(8 * MIB)).map(drop)?,
                }
            }
            9..11 => {
                let blocks = self.pools[kind].acquire_list(&[bytes.min(MIB); 4], stream, 0);
                let blocks = blocks.map_err(|(_, error)| error)?;
                self.pooled[kind].extend(blocks.iter().map(|block| block.address));
            }
            11 => {
                for address in self.pooled[kind].drain(..) {
                    self.pools[kind].release(address, stream, 0)?;
                }
                self.pools[kind].trim(0, 0);
            }
            15..17 => {
                let slice = self.pinned.allocate(bytes.min(MIB / 4), "staged")?;
                self.staged.push(slice.address() as u64);
            }
            17 => {
                while let Some(address) = self.staged.pop() {
                    // A refused free leaves the range where it is.
                    self.pinned.free(address, Some(stream)).inspect_err(|_| self.staged.push(address))?;
                }
                self.pinned.trim();
            }
            20 => self.allocate_all(stream, &[bytes, 100, 40 * MIB, bytes / 2 + 1], false)?,
            21 => self.allocate_all(stream, &[bytes], true)?,
            _ => {
                self.direct.truncate(random.usize(0..3));
                self.direct.push(self.memory.allocate(bytes, "direct")?);
            }
        }
        Ok(())
    }

    fn validate(&self) {
        self.heap.validate().unwrap();
        self.pools.iter().for_each(|pool| pool.validate().unwrap());
        if let Some((elastic, shared)) = &self.mapped {
            elastic.validate().unwrap();
            shared.validate().unwrap();
        }
        self.pinned.validate().unwrap();
        self.memory.validate().unwrap();
    }

    /// Gives everything up, however often the device fails.
    fn end(mut self) {
        for address in std::mem::take(&mut self.blocks) {
            until(|| self.heap.free(Stream::DEFAULT, address));
        }
        for (pool, pooled) in self.pools.iter().zip(&mut self.pooled) {
            pooled.drain(..).for_each(|address| pool.release(address, Stream::DEFAULT, 0).unwrap());
        }
        self.staged.drain(..).for_each(|address| self.pinned.free(address, None).unwrap());
        self.direct.clear();
        if let Some((elastic, shared)) = &self.mapped {
            for name in MODELS {
                shared.decommit(name, 0, 64 * MIB, None).unwrap();
            }
            elastic.decommit(0, 256 * MIB, None).unwrap();
        }
        until(|| {
            self.heap.give_back()?;
            let _ = self.pools.each_ref().map(|pool| pool.trim(0, 0));
            until(|| self.memory.device().synchronize());
            if let Some((elastic, shared)) = &self.mapped {
                until(|| elastic.settle());
                shared.physical().collect();
                shared.physical().trim(0);
            }
            self.pinned.trim();
            self.memory.trim_pages();
            if self.pinned.statistics().held_bytes > 0 {
                return Err(Error::internal("pinned bytes are held"));
            }
            match self.memory.held_bytes().0 {
                0 => Ok(()),
                held => Err(Error::internal(format!("{held} bytes are held"))),
            }
        });
        assert_eq!(self.heap.statistics().live_bytes, 0);
        let left = self.memory.statistics();
        assert_eq!(
            (left.device.bytes, left.device.count, left.pinned.bytes, left.pinned.count),
            (0, 0, 0, 0)
        );
        self.validate();
        self.memory.device().stream_destroy(self.streams[1]).unwrap();
    }
}

/// Injected failures: how long each such call took, in nanoseconds, and how many each area had.
#[derive(Default)]
struct Failures {
    spent_ns: Vec<u64>,
    areas: [u64; AREAS.len()],
    /// Calls that failed because memory was short in truth.
    short: u64,
}

/// Plays one device.
fn play(seed: u64, error: &str, status: Status, failures: &mut Failures) {
    // What lacks memory is tried again in many ways, so that fewer calls fail in the end.
    let rate = if status == Status::OutOfMemory { 0.3 } else { 0.1 };
    // One of four, by both kinds of failures.
    let is_mapped = u8::from(seed % 8 < 6);
    let spec = format!(
        "host?memory_bytes={}&virtual={is_mapped}&fail_rate={rate}&seed={seed}&error={error}",
        512 * MIB
    );
    let device = registry::open(&spec).unwrap();
    let before = (device.memory_info().unwrap().free_bytes, live_events(device.as_ref()));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut things = Things::new(&device);
    let (mut injected, mut area) = (0, 0);
    while injected < EACH {
        let start_ns = clock::now_ns();
        let outcome = things.step(&mut random, &mut area);
        let spent_ns = clock::now_ns() - start_ns;
        match outcome {
            Err(error) if error.text.contains("injected fault") => {
                // Memory that cannot be pinned is the host's that is short.
                let is_host = area == PINNED && error.status == Status::OutOfHostMemory;
                assert!(error.status == status || is_host, "{error}");
                failures.spent_ns.push(spent_ns);
                failures.areas[area] += 1;
                injected += 1;
                if injected % 500 == 0 {
                    things.validate();
                }
            }
            Err(error) => {
                assert_eq!(error.status, Status::OutOfMemory, "{error}");
                failures.short += 1;
            }
            Ok(()) => {}
        }
    }
    things.end();
    let after = (device.memory_info().unwrap().free_bytes, live_events(device.as_ref()));
    assert_eq!(after, before, "free bytes and live events of the device");
}

#[test]
#[expect(clippy::disallowed_macros, reason = "a measurement is shown")]
fn failures_of_the_device_are_statuses_and_nothing_is_held_at_the_end() {
    let wanted = number("KAVERN_SOAK").map_or(20_000, |count| if count == 1 { 1_000_000 } else { count });
    let first = number("KAVERN_SEED").unwrap_or(1);
    let mut failures = Failures::default();
    for seed in first.. {
        let (error, status) =
            if seed % 2 == 0 { ("oom", Status::OutOfMemory) } else { ("device", Status::Device) };
        play(seed, error, status, &mut failures);
        if failures.spent_ns.len() as u64 >= wanted {
            break;
        }
    }
    let Failures { spent_ns: mut failed_ns, areas, short } = failures;
    failed_ns.sort_unstable();
    let at = |share: usize| failed_ns[(failed_ns.len() - 1) * share / 1000] / 1000;
    println!(
        "{} calls that answer an injected failure ({:?}; {short} more for want of memory): p50 {} us, p99 {} us, \
         p99.9 {} us, most {} us",
        failed_ns.len(),
        AREAS.iter().zip(areas).collect::<Vec<_>>(),
        at(500),
        at(990),
        at(999),
        at(1000)
    );
    assert!(areas.iter().all(|&count| count * 200 > failed_ns.len() as u64), "{areas:?}");
    assert!(at(990) <= 20_000, "the failure path's p99 is {} us", at(990));
}
