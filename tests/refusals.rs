//! A device that fails again and again under the heap, a pool, an elastic range and direct allocations: each failure is
//! a status, nobody panics, and at the end nothing is held. `KAVERN_SOAK` makes it long: 1 for 10^6 failures, or their
//! number. `KAVERN_SEED` starts with another seed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use kavern::device::{Device, Event, Stream, registry};
use kavern::error::{Error, Result, Status};
use kavern::event::NoSink;
use kavern::memory::{
    Allocation, ClassConfig, Elastic, ElasticConfig, Heap, HeapConfig, Limits, Memory, Pool, PoolConfig,
    Sizes,
};
use kavern::sys::clock;

const MIB: u64 = 1 << 20;
/// Failures of one device; then another seed.
const EACH: u64 = 2_500;

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
    pool: Pool,
    elastic: Elastic,
    memory: Arc<Memory>,
    streams: [Stream; 2],
    blocks: Vec<u64>,
    pooled: Vec<u64>,
    direct: Vec<Allocation>,
}

impl Things {
    fn new(device: &Arc<dyn Device>) -> Self {
        let limits = Limits { device_limit_bytes: 192 * MIB, ..Limits::default() };
        let memory = Memory::new(Arc::clone(device), limits, Arc::new(NoSink));
        let config =
            HeapConfig { front_cache_bytes: 8 * MIB, patience_ns: 1_000_000, ..memory.heap_config() };
        let class = ClassConfig { block_bytes: MIB, initial_blocks: 0, growth_blocks: 2 };
        let pool = PoolConfig { sizes: Sizes::Classes(vec![class]), max_bytes: 0, ..PoolConfig::classes() };
        let range = ElasticConfig { capacity_bytes: 256 * MIB, page_bytes: 0, has_slabs: true };
        Self {
            heap: until(|| memory.make_heap_with(config)),
            pool: until(|| Pool::new(&memory, pool.clone(), 0)),
            elastic: until(|| Elastic::new(&memory, range)),
            streams: [Stream::DEFAULT, until(|| device.stream_create())],
            memory,
            blocks: Vec::new(),
            pooled: Vec::new(),
            direct: Vec::new(),
        }
    }

    /// One call, which the device may fail.
    fn step(&mut self, random: &mut fastrand::Rng) -> Result<()> {
        let stream = self.streams[random.usize(0..2)];
        let most = 1 << random.u32(1..26);
        let bytes = random.u64(1..most);
        let (offset, length) = (random.u64(0..200) * MIB, random.u64(1..32) * MIB);
        match random.u32(0..12) {
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
            7 => self.elastic.commit(offset, length).map(drop)?,
            8 => self.elastic.decommit(offset, length, Some(stream)).map(drop)?,
            9 => self.pooled.push(self.pool.acquire(bytes.min(MIB), stream, 0)?.address),
            10 => {
                for address in self.pooled.drain(..) {
                    self.pool.release(address, stream, 0)?;
                }
                self.pool.trim(0, 0);
            }
            _ => {
                self.direct.truncate(random.usize(0..3));
                self.direct.push(self.memory.allocate(bytes, "direct")?);
            }
        }
        Ok(())
    }

    fn validate(&self) {
        self.heap.validate().unwrap();
        self.pool.validate().unwrap();
        self.elastic.validate().unwrap();
        self.memory.validate().unwrap();
    }

    /// Gives everything up, however often the device fails.
    fn end(mut self) {
        for address in std::mem::take(&mut self.blocks) {
            until(|| self.heap.free(Stream::DEFAULT, address));
        }
        for address in std::mem::take(&mut self.pooled) {
            self.pool.release(address, Stream::DEFAULT, 0).unwrap();
        }
        self.direct.clear();
        self.elastic.decommit(0, 256 * MIB, None).unwrap();
        until(|| {
            self.heap.give_back()?;
            self.pool.trim(0, 0);
            until(|| self.elastic.settle());
            self.memory.trim_pages();
            match self.memory.held_bytes().0 {
                0 => Ok(()),
                held => Err(Error::internal(format!("{held} bytes are held"))),
            }
        });
        assert_eq!(self.heap.statistics().live_bytes, 0);
        assert_eq!(self.memory.statistics().device.bytes, 0);
        self.validate();
        self.memory.device().stream_destroy(self.streams[1]).unwrap();
    }
}

/// Plays one device; how long each failed call took, in nanoseconds.
fn play(seed: u64, error: &str, status: Status) -> Vec<u64> {
    let spec = format!("host?memory_bytes={}&fail_rate=0.1&seed={seed}&error={error}", 256 * MIB);
    let device = registry::open(&spec).unwrap();
    let before = (device.memory_info().unwrap().free_bytes, live_events(device.as_ref()));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut things = Things::new(&device);
    let (mut failed_ns, mut injected) = (Vec::new(), 0);
    while (failed_ns.len() as u64) < EACH {
        let start_ns = clock::now_ns();
        let outcome = things.step(&mut random);
        let spent_ns = clock::now_ns() - start_ns;
        if let Err(error) = outcome {
            // Memory may also be short in truth.
            assert!(error.status == status || error.status == Status::OutOfMemory, "{error}");
            injected += u64::from(error.text.contains("injected fault"));
            failed_ns.push(spent_ns);
            if failed_ns.len().is_multiple_of(500) {
                things.validate();
            }
        }
    }
    things.end();
    let after = (device.memory_info().unwrap().free_bytes, live_events(device.as_ref()));
    assert!(injected > EACH / 4, "{injected} of the failures were the device's");
    assert_eq!(after, before, "free bytes and live events of the device");
    failed_ns
}

#[test]
#[expect(clippy::disallowed_macros, reason = "a measurement is shown")]
fn failures_of_the_device_are_statuses_and_nothing_is_held_at_the_end() {
    let wanted = number("KAVERN_SOAK").map_or(20_000, |count| if count == 1 { 1_000_000 } else { count });
    let first = number("KAVERN_SEED").unwrap_or(1);
    let mut failed_ns = Vec::new();
    for seed in first.. {
        let (error, status) =
            if seed % 2 == 0 { ("oom", Status::OutOfMemory) } else { ("device", Status::Device) };
        failed_ns.extend(play(seed, error, status));
        if failed_ns.len() as u64 >= wanted {
            break;
        }
    }
    failed_ns.sort_unstable();
    let at = |share: usize| failed_ns[(failed_ns.len() - 1) * share / 1000] / 1000;
    println!(
        "{} failed calls: p50 {} us, p99 {} us, p99.9 {} us, most {} us",
        failed_ns.len(),
        at(500),
        at(990),
        at(999),
        at(1000)
    );
    assert!(at(990) <= 20_000, "the failure path's p99 is {} us", at(990));
}
