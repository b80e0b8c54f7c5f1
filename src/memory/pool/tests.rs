//! A pool against a naive list, on streams whose work says what it touches; and pools with a fault planted in them,
//! which the simulated device has to find.

use super::*;
use crate::device::{DeviceSlice, registry};
use crate::event::NoSink;
use crate::memory::Limits;

fn memory(spec: &str) -> Arc<Memory> {
    Memory::new(registry::open(spec).unwrap(), Limits::default(), Arc::new(NoSink))
}

fn config(classes: &[(u64, u32)], max_bytes: u64) -> PoolConfig {
    let class = |&(block_bytes, growth_blocks): &(u64, u32)| ClassConfig {
        block_bytes,
        initial_blocks: 0,
        growth_blocks,
    };
    let sizes = Sizes::Classes(classes.iter().map(class).collect());
    PoolConfig { sizes, max_bytes, idle_ns: 0, ..PoolConfig::classes() }
}

/// What a block is known as outside of the pool.
#[derive(Clone, Copy)]
struct Held {
    block: PoolBlock,
    stream: Stream,
    since_ns: u64,
}

struct World {
    memory: Arc<Memory>,
    pool: Pool,
    streams: [Stream; 3],
    held: Vec<Held>,
    random: fastrand::Rng,
    clock_ns: u64,
    most_bytes: u64,
}

impl World {
    fn new(spec: &str, seed: u64, config: PoolConfig, ways: impl FnOnce(&mut Ways)) -> Self {
        let memory = memory(spec);
        let streams = [(); 3].map(|()| memory.device().stream_create().unwrap());
        let mut pool = Pool::new(&memory, config, 0).unwrap();
        ways(&mut pool.ways);
        let random = fastrand::Rng::with_seed(seed);
        Self { memory, pool, streams, held: Vec::new(), random, clock_ns: 0, most_bytes: 4096 }
    }

    /// Work that reads and writes a block.
    fn touch(&self, held: &Held) {
        let device = self.memory.device();
        let slice = self.slice(held.block);
        match device.simulator() {
            Some(simulator) => simulator.declare(held.stream, &[], &[slice]).unwrap(),
            None => device.memset(held.stream, slice, held.block.address as u8).unwrap(),
        }
    }

    fn slice(&self, block: PoolBlock) -> DeviceSlice {
        let books = self.pool.books.lock();
        let owner = books.owner(block.address).unwrap();
        let whole = owner.slice();
        whole.part(block.address - whole.address(), block.bytes).unwrap()
    }

    fn acquire(&mut self, bytes: u64, stream: Stream) {
        match self.pool.acquire(bytes, stream, self.clock_ns) {
            Ok(block) => {
                assert!(block.bytes >= bytes && block.address % 256 == 0);
                let end = block.address + block.bytes;
                let overlaps = |other: &Held| {
                    block.address < other.block.address + other.block.bytes && other.block.address < end
                };
                assert!(!self.held.iter().any(overlaps), "handed out twice");
                let held = Held { block, stream, since_ns: self.clock_ns };
                self.held.push(held);
                self.touch(&held);
            }
            Err(error) => assert_eq!(error.status, Status::OutOfMemory, "{error}"),
        }
    }

    fn step(&mut self) {
        self.clock_ns += self.random.u64(0..50);
        let stream = self.streams[self.random.usize(0..3)];
        match self.random.u32(0..20) {
            0..9 => {
                let bytes = self.random.u64(1..=self.most_bytes);
                self.acquire(bytes, stream);
            }
            9..17 if !self.held.is_empty() => {
                let held = self.held.swap_remove(self.random.usize(0..self.held.len()));
                if self.random.bool() {
                    self.touch(&held);
                }
                self.pool.release(held.block.address, held.stream, self.clock_ns).unwrap();
                let again = self.pool.release(held.block.address, held.stream, self.clock_ns).unwrap_err();
                assert_eq!(again.status, Status::WrongState, "{again}");
            }
            17 if self.held.len() > 2 => {
                let mut addresses: Vec<u64> =
                    self.held.iter().filter(|held| held.stream == stream).map(|h| h.block.address).collect();
                addresses.push(addresses.first().copied().unwrap_or(7));
                let before = (self.pool.statistics(), self.pool.live());
                let mut told = Vec::new();
                let refused =
                    self.pool.release_list(&addresses, stream, self.clock_ns, |index, _| told.push(index));
                assert!(refused.is_err(), "the last one stands twice or is nobody's");
                let after = (self.pool.statistics(), self.pool.live());
                assert_eq!((told, after), (vec![addresses.len() - 1], before));
                addresses.pop();
                let quiet = |_: usize, error: &Error| panic!("{error}");
                self.pool.release_list(&addresses, stream, self.clock_ns, quiet).unwrap();
                self.held.retain(|held| held.stream != stream);
            }
            18 => drop(self.pool.trim(self.random.u64(0..400), self.clock_ns)),
            19 => self.memory.device().stream_synchronize(stream).unwrap(),
            _ => {}
        }
    }

    fn run(&mut self, steps: u64) {
        for step in 0..steps {
            self.step();
            if step % 16 == 0 {
                self.pool.validate().unwrap();
            }
            let in_use: u64 = self.held.iter().map(|held| held.block.bytes).sum();
            let (totals, _) = self.pool.statistics();
            assert_eq!((totals.in_use, totals.in_use_bytes), (self.held.len() as u64, in_use));
            let live = self.pool.live();
            assert_eq!(live.iter().map(|block| block.bytes).sum::<u64>(), totals.requested_bytes);
            let is_ours = |block: &PoolLive| {
                block.since_ns <= self.clock_ns
                    && self.held.iter().any(|held| {
                        (held.block.address, held.block.bytes, held.since_ns)
                            == (block.address, block.block_bytes, block.since_ns)
                    })
            };
            assert!(live.len() == self.held.len() && live.iter().all(is_ours), "{live:?}");
            assert_eq!(self.memory.statistics().device.bytes, totals.held_bytes);
        }
    }

    /// Gives all back and answers how many races the device has seen.
    fn finish(mut self) -> u64 {
        let device = Arc::clone(self.memory.device());
        for held in std::mem::take(&mut self.held) {
            self.pool.release(held.block.address, held.stream, self.clock_ns).unwrap();
        }
        device.synchronize().unwrap();
        self.pool.trim(0, self.clock_ns);
        assert_eq!(self.memory.statistics().device.bytes, 0, "all is idle, so all goes back");
        self.pool.validate().unwrap();
        drop(self.pool);
        self.streams.iter().for_each(|&stream| device.stream_destroy(stream).unwrap());
        device.race_count()
    }
}

fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("KAVERN_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..if std::env::var_os("KAVERN_SOAK").is_some() { usual * 50 } else { usual },
    }
}

const TIGHT: &[(u64, u32)] = &[(512, 2), (1024, 3), (4096, 1)];

fn schedule(seed: u64) -> String {
    let names = ["fair", "random", "starve", "latest", "priority"];
    format!("sim?seed={seed}&schedule={}", names[seed as usize % names.len()])
}

#[test]
fn random_use_agrees_with_a_naive_list_and_has_no_race_on_simulated_streams() {
    for seed in seeds(200) {
        let mut world = World::new(&schedule(seed), seed, config(TIGHT, 24 << 10), |_| {});
        world.run(300);
        assert_eq!(world.finish(), 0, "seed {seed}");
    }
}

#[test]
fn random_use_of_managed_blocks_has_no_race_and_gives_all_back() {
    for seed in seeds(20) {
        let managed = PoolConfig { memory: PoolMemory::Managed, ..config(TIGHT, 24 << 10) };
        let mut world = World::new(&schedule(seed), seed, managed, |_| {});
        world.run(300);
        assert_eq!(world.pool.statistics().0.managed_bytes, world.pool.statistics().0.held_bytes);
        assert_eq!(world.finish(), 0, "seed {seed}");
    }
}

#[test]
fn random_use_agrees_with_a_naive_list_on_real_threads() {
    for seed in seeds(20) {
        let mut world = World::new("host", seed, config(TIGHT, 24 << 10), |_| {});
        world.run(500);
        world.finish();
    }
}

#[test]
fn a_ladder_grows_its_rungs_as_they_are_asked_for() {
    for seed in seeds(20) {
        let ladder = PoolConfig { max_bytes: 2_000_000, idle_ns: 100, ..PoolConfig::ladder() };
        let mut world = World::new(&schedule(seed), seed, ladder, |_| {});
        world.most_bytes = 450_000;
        world.run(200);
        let (_, rungs) = world.pool.statistics();
        assert!(rungs.iter().map(|rung| rung.block_bytes).is_sorted() && rungs.len() > 3, "seed {seed}");
        assert_eq!(world.finish(), 0, "seed {seed}");
    }
}

const SEEDS_OF_MUTANTS: u64 = 40;

/// How many of the seeds show a race.
fn races_with(ways: impl Fn(&mut Ways)) -> u64 {
    let guilty = (0..SEEDS_OF_MUTANTS).filter(|&seed| {
        let mut world = World::new(&schedule(seed), seed, config(TIGHT, 24 << 10), &ways);
        world.run(300);
        world.finish() > 0
    });
    guilty.count() as u64
}

#[test]
fn a_pool_that_skips_the_wait_is_found_by_the_simulator() {
    let skip = |ways: &mut Ways| ways.hold_back = |_, _| Ok(());
    assert!(races_with(skip) >= SEEDS_OF_MUTANTS / 2);
}

#[test]
fn a_pool_that_records_on_the_wrong_stream_is_found_by_the_simulator() {
    let stray = |ways: &mut Ways| ways.record = |fences, _| fences.record(Stream::DEFAULT);
    assert!(races_with(stray) >= SEEDS_OF_MUTANTS / 2);
}

/// A scene in which every kind of call of the device happens; its failures are answers, never losses.
fn scene(device: &str, kind: PoolMemory) -> (u64, bool) {
    let memory = memory(device);
    let device = Arc::clone(memory.device());
    let mut has_failed = false;
    let streams: Vec<Stream> = (0..2).filter_map(|_| device.stream_create().ok()).collect();
    has_failed |= streams.len() < 2;
    let streams = [
        streams.first().copied().unwrap_or(Stream::DEFAULT),
        streams.last().copied().unwrap_or(Stream::DEFAULT),
    ];
    let settings = PoolConfig { memory: kind, ..config(&[(1024, 2), (4096, 1)], 8192) };
    if let Ok(pool) = Pool::new(&memory, settings, 0) {
        let mut held: Vec<(u64, Stream)> = Vec::new();
        for round in 0..24_u64 {
            let before = pool.statistics().0;
            let stream = streams[(round / 3 % 2) as usize];
            match pool.acquire(if round % 5 == 4 { 4000 } else { 1000 }, stream, round) {
                Ok(block) => held.push((block.address, stream)),
                Err(error) => {
                    has_failed |= error.text.contains("injected");
                    let after = pool.statistics().0;
                    assert_eq!((after.in_use, after.hits), (before.in_use, before.hits));
                    assert!(after.held_bytes <= before.held_bytes);
                }
            }
            pool.validate().unwrap();
            if round % 4 != 3 && held.len() > 2 {
                let (address, stream) = held.remove(0);
                pool.release(address, stream, round).unwrap();
            }
            let lists = pool.acquire_list(&[1000, 4000, 1000, 1000, 1000, 1000], stream, round);
            if let Ok(blocks) = lists {
                held.extend(blocks.iter().map(|block| (block.address, stream)));
            }
            pool.validate().unwrap();
            assert_eq!(pool.statistics().0.in_use, held.len() as u64);
            assert_eq!(memory.statistics().device.bytes, pool.statistics().0.held_bytes);
        }
        for (address, stream) in held {
            pool.release(address, stream, 30).unwrap();
        }
        pool.trim(0, 30);
        pool.validate().unwrap();
    }
    let calls = device.call_count();
    assert_eq!((memory.statistics().device.bytes, memory.statistics().device.count), (0, 0));
    memory.validate().unwrap();
    (calls, has_failed)
}

#[test]
fn each_call_of_the_device_may_fail_and_the_pool_stays_whole() {
    for kind in [PoolMemory::Device, PoolMemory::Managed] {
        for error in ["oom", "device", "lost"] {
            let calls = scene(&format!("host?fail_nth=0&error={error}"), kind).0;
            assert!(calls > 40, "{calls}");
            for nth in 1..=calls {
                scene(&format!("host?fail_nth={nth}&error={error}"), kind);
            }
        }
    }
}

#[test]
fn a_refusal_that_nobody_can_help_with_asks_the_device_once() {
    let memory = memory("host?memory_bytes=1048576&kind=memory&fail_nth=0");
    let pool = Pool::new(&memory, config(&[(256 << 10, 1)], 0), 0).unwrap();
    let held: Vec<PoolBlock> = (0..4).map(|_| pool.acquire(256 << 10, Stream::DEFAULT, 0).unwrap()).collect();
    let before = memory.device().call_count();
    assert_eq!(pool.acquire(256 << 10, Stream::DEFAULT, 0).err().unwrap().status, Status::OutOfMemory);
    assert_eq!(memory.device().call_count() - before, 1);
    held.into_iter().for_each(|block| pool.release(block.address, Stream::DEFAULT, 0).unwrap());
}

const SECOND: u64 = 1_000_000_000;

#[test]
fn the_upkeep_gives_back_what_was_not_used_for_the_idle_time_and_breaks_no_capture() {
    let memory = memory("sim?seed=1&capture=1");
    let (device, physical) = (memory.device(), memory.physical().unwrap());
    let (stream, captured) = (device.stream_create().unwrap(), device.stream_create().unwrap());
    let settings = PoolConfig { idle_ns: SECOND, ..config(&[(4096, 1)], 0) };
    let pool = Arc::new(Pool::new(&memory, settings, 0).unwrap());
    pool.begin_upkeep();
    assert_eq!(physical.poll(0), Some(SECOND), "an empty pool is asked seldom");
    let held = pool.acquire(4096, stream, 0).unwrap();
    let other = pool.acquire(4096, stream, 0).unwrap();
    assert_eq!(physical.poll(SECOND / 4), Some(SECOND * 3 / 4), "when the first is due");
    pool.release(other.address, stream, SECOND / 2).unwrap();
    device.synchronize().unwrap();
    physical.poll(SECOND * 3 / 2 - 1);
    assert_eq!(pool.statistics().0.held_bytes, 2 * 4096, "not so soon");
    assert_eq!(physical.poll(SECOND * 3 / 2), Some(SECOND / 8), "the other is in use for longer than that");
    assert_eq!((pool.statistics().0.held_bytes, memory.statistics().device.bytes), (4096, 4096));
    // Where no thread does the upkeep, calls look as well.
    pool.release(held.address, stream, 2 * SECOND).unwrap();
    device.synchronize().unwrap();
    let late = pool.acquire(4096, captured, 2 * SECOND).unwrap();
    assert_eq!(late.address, held.address);
    let simulator = device.simulator().unwrap();
    simulator.capture(captured, true).unwrap();
    pool.release(late.address, captured, 2 * SECOND).unwrap();
    physical.poll(4 * SECOND);
    assert_eq!(pool.statistics().0.held_bytes, 4096, "its stream is not done");
    simulator.capture(captured, false).expect("nothing broke the capture");
    physical.poll(5 * SECOND);
    device.synchronize().unwrap();
    physical.poll(6 * SECOND);
    assert_eq!((pool.statistics().0.held_bytes, memory.statistics().device.bytes), (0, 0));
    pool.validate().unwrap();
    pool.end();
    assert_eq!(physical.poll(7 * SECOND), None, "nobody is left to be asked");
    assert!(Arc::into_inner(pool).is_some());
}

#[test]
fn a_pool_whose_stream_has_gone_is_trimmed_and_closed_beside_a_capture_that_stays_whole() {
    let memory = memory("sim?seed=1&capture=1");
    let device = memory.device();
    let [gone, captured] = [(); 2].map(|()| device.stream_create().unwrap());
    let pool = Pool::new(&memory, config(&[(4096, 1)], 0), 0).unwrap();
    let [released, busy] = [(); 2].map(|()| pool.acquire(4096, gone, 0).unwrap());
    pool.release(released.address, gone, 0).unwrap();
    device.stream_destroy(gone).unwrap();
    let simulator = device.simulator().unwrap();
    simulator.capture(captured, true).unwrap();
    assert_eq!(pool.trim(0, 0), 4096, "the device was waited for");
    assert_eq!(pool.statistics().0.held_bytes, 4096);
    assert_ne!(busy.address, released.address);
    drop(pool);
    assert_eq!(memory.statistics().device.bytes, 0);
    simulator.capture(captured, false).expect("nothing broke the capture");
}

#[test]
fn a_capture_that_begins_while_a_point_is_recorded_loses_no_block() {
    let memory = memory("sim?seed=1&capture=1");
    let device = memory.device();
    let stream = device.stream_create().unwrap();
    let mut pool = Pool::new(&memory, config(&[(4096, 1)], 0), 0).unwrap();
    let block = pool.acquire(4096, stream, 0).unwrap();
    pool.release(block.address, stream, 0).unwrap();
    pool.ways.record = |fences, stream| {
        fences.device().simulator().unwrap().capture(stream, true).unwrap();
        fences.record(stream)
    };
    assert_eq!(pool.trim(0, 0), 0);
    device.simulator().unwrap().capture(stream, false).unwrap();
    pool.ways.record = Fences::record;
    let at_once = pool.trim(0, 0);
    device.synchronize().unwrap();
    assert_eq!(at_once + pool.trim(0, 0), 4096, "the point in the graph is nobody's");
}
