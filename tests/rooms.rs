//! Memory goes to where it is needed: from idle pools, shared pools and heaps to whoever would be refused otherwise.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use kavern::device::{Stream, registry};
use kavern::error::Status;
use kavern::event::NoSink;
use kavern::memory::{
    Allocation, ClassConfig, Elastic, ElasticConfig, Heap, HeapConfig, Limits, Memory, Pool, PoolConfig,
    Room, SharedConfig, SharedPool, Sizes, Terms,
};
use kavern::sync::Mutex;

const MIB: u64 = 1 << 20;

fn memory(limit_bytes: u64, soft_bytes: u64) -> Arc<Memory> {
    let limits =
        Limits { device_limit_bytes: limit_bytes, device_soft_limit_bytes: soft_bytes, ..Limits::default() };
    Memory::new(registry::open("host").unwrap(), limits, Arc::new(NoSink))
}

fn heap(memory: &Arc<Memory>) -> Arc<Heap> {
    memory
        .make_heap_with(HeapConfig {
            front_cache_bytes: 32 * MIB,
            patience_ns: 1_000_000,
            ..memory.heap_config()
        })
        .unwrap()
}

fn pool(memory: &Arc<Memory>) -> Arc<Pool> {
    let class = ClassConfig { block_bytes: 8 * MIB, initial_blocks: 0, growth_blocks: 1 };
    let config = PoolConfig { sizes: Sizes::Classes(vec![class]), max_bytes: 0, ..PoolConfig::classes() };
    Arc::new(Pool::new(memory, config, 0).unwrap())
}

fn shared(memory: &Arc<Memory>) -> Arc<SharedPool> {
    let config = SharedConfig { limit_bytes: 64 * MIB, ..SharedConfig::default() };
    let shared = SharedPool::new(memory, config).unwrap();
    shared.register("idle", 64 * MIB, Terms { min_bytes: 0, weight: 1, cap_bytes: 0 }).unwrap();
    Arc::new(shared)
}

fn room<R: Room + 'static>(room: &Arc<R>) -> Weak<dyn Room> {
    let weak: Weak<R> = Arc::downgrade(room);
    weak
}

/// Fills a heap with memory that nobody uses any more and that it keeps.
fn leave_idle(heap: &Arc<Heap>, bytes: u64) {
    let address = heap.allocate(Stream::DEFAULT, bytes, 0, 0).unwrap();
    heap.free(Stream::DEFAULT, address).unwrap();
    assert!(heap.statistics().backed_bytes >= bytes, "the heap keeps what was freed");
}

#[test]
fn an_idle_pool_gives_its_blocks_before_an_allocation_is_refused_and_not_those_in_use() {
    let memory = memory(64 * MIB, 0);
    let (heap, pool) = (heap(&memory), pool(&memory));
    let blocks: Vec<_> = (0..6).map(|_| pool.acquire(8 * MIB, Stream::DEFAULT, 0).unwrap()).collect();
    blocks[1..].iter().for_each(|block| pool.release(block.address, Stream::DEFAULT, 0).unwrap());
    let refused = heap.allocate(Stream::DEFAULT, 48 * MIB, 0, 0).unwrap_err();
    assert_eq!(refused.status, Status::OutOfMemory, "nobody knows the pool yet");
    memory.add_room(room(&pool));
    let asked = heap.statistics().ladder.rooms;
    let address = heap.allocate(Stream::DEFAULT, 48 * MIB, 0, 0).unwrap();
    assert_eq!(heap.statistics().ladder.rooms, asked + 1);
    assert_eq!(pool.statistics().0.in_use, 1, "a block in use stays");
    assert_eq!(pool.statistics().0.blocks, 2, "no more was asked for than was missing");
    pool.validate().unwrap();
    heap.free(Stream::DEFAULT, address).unwrap();
}

#[test]
fn a_shared_pool_gives_its_pooled_pages_and_then_idle_models_are_asked() {
    let memory = memory(64 * MIB, 0);
    let (heap, shared) = (heap(&memory), shared(&memory));
    memory.add_room(room(&shared));
    shared.commit("idle", 0, 40 * MIB).unwrap();
    shared.decommit("idle", 0, 16 * MIB, None).unwrap();
    assert!(shared.statistics().pooled_bytes >= 16 * MIB, "a shared pool keeps pages for the next model");
    let first = heap.allocate(Stream::DEFAULT, 36 * MIB, 0, 0).unwrap();
    assert_eq!(shared.statistics().requests, 0, "pooled pages were enough");
    let refused = heap.allocate(Stream::DEFAULT, 16 * MIB, 0, 0).unwrap_err();
    assert_eq!(refused.status, Status::OutOfMemory, "the model has no callback");
    let wanted = Arc::new(AtomicU64::new(0));
    let (seen, weak) = (Arc::clone(&wanted), Arc::downgrade(&shared));
    let give = move |bytes| {
        seen.store(bytes, Ordering::Relaxed);
        let shared = weak.upgrade().unwrap();
        shared.decommit("idle", 16 * MIB, 16 * MIB, None).unwrap();
    };
    shared.on_reclaim("idle", Some(Arc::new(give))).unwrap();
    let second = heap.allocate(Stream::DEFAULT, 16 * MIB, 0, 0).unwrap();
    assert!(wanted.load(Ordering::Relaxed) > 0, "the owner was told how much");
    assert_eq!(shared.model_statistics("idle").unwrap().range.committed_bytes, 8 * MIB);
    shared.validate().unwrap();
    for address in [first, second] {
        heap.free(Stream::DEFAULT, address).unwrap();
    }
}

#[test]
fn what_a_heap_keeps_goes_to_direct_allocations_pools_ranges_and_shared_pools() {
    let memory = memory(64 * MIB, 0);
    let (heap, pool) = (heap(&memory), pool(&memory));
    leave_idle(&heap, 60 * MIB);
    drop(memory.allocate(40 * MIB, "direct").unwrap());
    leave_idle(&heap, 60 * MIB);
    let block = pool.acquire(8 * MIB, Stream::DEFAULT, 0).unwrap();
    pool.release(block.address, Stream::DEFAULT, 0).unwrap();
    pool.trim(0, 0);
    leave_idle(&heap, 60 * MIB);
    let config = ElasticConfig { capacity_bytes: 64 * MIB, page_bytes: 0, has_slabs: true };
    let elastic = Elastic::new(&memory, config).unwrap();
    assert_eq!(elastic.commit(0, 48 * MIB).unwrap().changed_bytes, 48 * MIB);
    elastic.decommit(0, 48 * MIB, None).unwrap();
    leave_idle(&heap, 60 * MIB);
    let shared = shared(&memory);
    assert_eq!(shared.commit("idle", 0, 40 * MIB).unwrap().changed_bytes, 40 * MIB);
    // What is in use is nobody else's: refused, and everything stays as it was.
    let kept = heap.allocate(Stream::DEFAULT, 20 * MIB, 0, 0).unwrap();
    let refused = memory.allocate(40 * MIB, "too much").err().unwrap();
    assert_eq!(refused.status, Status::OutOfMemory);
    assert_eq!(heap.block_info(kept).unwrap().bytes, 20 * MIB);
    heap.validate().unwrap();
    memory.validate().unwrap();
}

/// Allocates from the heap that asks it.
struct Greedy {
    heap: Arc<Heap>,
    calls: AtomicU64,
}

impl Room for Greedy {
    fn reclaim(&self, _bytes: u64) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let refused = self.heap.allocate(Stream::DEFAULT, 60 * MIB, 0, 0).unwrap_err();
        assert_eq!(refused.status, Status::OutOfMemory);
        0
    }

    fn rank(&self) -> u32 {
        2
    }
}

#[test]
fn whoever_is_asked_may_allocate_and_nobody_is_asked_for_that() {
    let memory = memory(64 * MIB, 0);
    let heap = heap(&memory);
    let greedy = Arc::new(Greedy { heap: Arc::clone(&heap), calls: AtomicU64::new(0) });
    memory.set_callback(Some(Arc::clone(&greedy) as Arc<dyn Room>));
    let held = heap.allocate(Stream::DEFAULT, 40 * MIB, 0, 0).unwrap();
    assert!(heap.allocate(Stream::DEFAULT, 40 * MIB, 0, 0).is_err());
    assert_eq!(greedy.calls.load(Ordering::Relaxed), 1);
    heap.free(Stream::DEFAULT, held).unwrap();
}

#[test]
fn threads_that_are_all_short_end_without_waiting_for_each_other_for_ever() {
    let memory = memory(64 * MIB, 0);
    let (heap, pool, shared) = (heap(&memory), pool(&memory), shared(&memory));
    memory.add_room(room(&pool));
    memory.add_room(room(&shared));
    let weak = Arc::downgrade(&shared);
    let give = move |bytes: u64| {
        if let Some(shared) = weak.upgrade() {
            let _ = shared.decommit("idle", 0, bytes.min(64 * MIB), None);
            // It needs some of it for itself, in the middle of the request.
            let _ = shared.commit("idle", 0, MIB);
        }
    };
    shared.on_reclaim("idle", Some(Arc::new(give))).unwrap();
    let config = ElasticConfig { capacity_bytes: 64 * MIB, page_bytes: 0, has_slabs: true };
    let served = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (heap, pool, shared, memory, served) = (&heap, &pool, &shared, &memory, &served);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                let elastic = Elastic::new(memory, config).unwrap();
                for _ in 0..150 {
                    let bytes = random.u64(1..32) * MIB;
                    let outcome = match random.u32(0..5) {
                        0 => heap
                            .allocate(Stream::DEFAULT, bytes, 0, 0)
                            .and_then(|address| heap.free(Stream::DEFAULT, address)),
                        1 => memory.allocate(bytes, "direct").map(drop),
                        2 => pool
                            .acquire(8 * MIB, Stream::DEFAULT, 0)
                            .and_then(|block| pool.release(block.address, Stream::DEFAULT, 0)),
                        3 => shared.commit("idle", 0, bytes).map(drop),
                        _ => {
                            elastic.commit(0, bytes).and_then(|_| elastic.decommit(0, bytes, None)).map(drop)
                        }
                    };
                    match outcome {
                        Ok(()) => drop(served.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => assert_eq!(error.status, Status::OutOfMemory, "{error}"),
                    }
                }
            });
        }
    });
    assert!(served.load(Ordering::Relaxed) > 100, "{served:?}");
    heap.validate().unwrap();
    shared.validate().unwrap();
    pool.validate().unwrap();
}

/// Counts how often it was asked, and drops what it holds.
struct Cache {
    held: Mutex<Option<Allocation>>,
    was_asked: AtomicBool,
}

impl Room for Cache {
    fn reclaim(&self, _bytes: u64) -> u64 {
        self.was_asked.store(true, Ordering::Relaxed);
        self.held.lock().take().map_or(0, |held| held.bytes())
    }

    fn rank(&self) -> u32 {
        2
    }
}

#[test]
fn above_the_soft_limit_allocations_succeed_and_what_is_idle_goes_back() {
    let memory = memory(128 * MIB, 32 * MIB);
    let heap = heap(&memory);
    let held = memory.allocate(8 * MIB, "cache").unwrap();
    let cache = Arc::new(Cache { held: Mutex::new(Some(held)), was_asked: AtomicBool::new(false) });
    memory.set_callback(Some(Arc::clone(&cache) as Arc<dyn Room>));
    leave_idle(&heap, 20 * MIB);
    assert!(!cache.was_asked.load(Ordering::Relaxed), "28 MiB are under the limit");
    // 24 MiB more would be 52: the heap's idle 20 go, which is enough.
    let direct = memory.allocate(24 * MIB, "direct").unwrap();
    assert!(!cache.was_asked.load(Ordering::Relaxed), "what was idle was enough");
    assert_eq!(heap.statistics().backed_bytes, 0);
    // Now nothing is idle, so that the callback is asked; the allocation succeeds all the same.
    let address = heap.allocate(Stream::DEFAULT, 16 * MIB, 0, 0).unwrap();
    assert!(cache.was_asked.load(Ordering::Relaxed));
    let more = heap.allocate(Stream::DEFAULT, 40 * MIB, 0, 0).unwrap();
    // The hard limit holds.
    assert_eq!(memory.allocate(64 * MIB, "too much").err().unwrap().status, Status::OutOfMemory);
    heap.free(Stream::DEFAULT, address).unwrap();
    heap.free(Stream::DEFAULT, more).unwrap();
    drop(direct);
    heap.give_back().unwrap();
    assert_eq!(heap.statistics().backed_bytes, 0);
}

#[test]
fn what_goes_past_the_pool_of_pages_above_the_soft_limit_counts_as_given() {
    let memory = memory(128 * MIB, 32 * MIB);
    let heap = heap(&memory);
    let freed = heap.allocate(Stream::DEFAULT, 40 * MIB, 0, 0).unwrap();
    let held = memory.allocate(60 * MIB, "held").unwrap();
    heap.free(Stream::DEFAULT, freed).unwrap();
    memory.device().synchronize().unwrap();
    // 40 of the 100 are the heap's and idle, so that 60 more fit.
    let more = memory.allocate(60 * MIB, "more").unwrap();
    drop(more);
    let freed = heap.allocate(Stream::DEFAULT, 40 * MIB, 0, 0).unwrap();
    heap.free(Stream::DEFAULT, freed).unwrap();
    memory.device().synchronize().unwrap();
    assert_eq!(heap.give_back().unwrap(), 40 * MIB, "a trim says what went");
    drop(held);
}

#[test]
fn what_an_owner_gives_above_the_soft_limit_is_not_asked_of_the_next_one_too() {
    let memory = memory(0, 80 * MIB);
    let config = SharedConfig { limit_bytes: 128 * MIB, ..SharedConfig::default() };
    let shared = Arc::new(SharedPool::new(&memory, config).unwrap());
    memory.add_room(room(&shared));
    for name in ["one", "other"] {
        shared.register(name, 64 * MIB, Terms { min_bytes: 0, weight: 1, cap_bytes: 0 }).unwrap();
        shared.commit(name, 0, 36 * MIB).unwrap();
        let weak = Arc::downgrade(&shared);
        let give = move |_| {
            weak.upgrade().unwrap().decommit(name, 0, 36 * MIB, None).unwrap();
        };
        shared.on_reclaim(name, Some(Arc::new(give))).unwrap();
    }
    let cache = Arc::new(Cache { held: Mutex::default(), was_asked: AtomicBool::new(false) });
    memory.set_callback(Some(Arc::clone(&cache) as Arc<dyn Room>));
    // 116 MiB are 36 above the limit.
    let direct = memory.allocate(44 * MIB, "direct").unwrap();
    assert_eq!(memory.held_bytes().0, 80 * MIB);
    assert_eq!(shared.statistics().requests, 1, "what the first one gave was enough");
    assert!(!cache.was_asked.load(Ordering::Relaxed));
    drop(direct);
}

#[test]
fn others_are_asked_before_a_range_is_refused_and_after_a_resize_has_given_its_own_part_up() {
    let memory = memory(64 * MIB, 0);
    let pool = pool(&memory);
    let blocks: Vec<_> = (0..6).map(|_| pool.acquire(8 * MIB, Stream::DEFAULT, 0).unwrap()).collect();
    blocks.iter().for_each(|block| pool.release(block.address, Stream::DEFAULT, 0).unwrap());
    memory.add_room(room(&pool));
    let config = ElasticConfig { capacity_bytes: 64 * MIB, page_bytes: 0, has_slabs: false };
    let elastic = Elastic::new(&memory, config).unwrap();
    elastic.commit(0, 48 * MIB).unwrap();
    assert_eq!(pool.statistics().0.blocks, 2, "no more was asked for than was missing");
    drop((elastic, pool));
    let memory = self::memory(0, 40 * MIB);
    let cache = Arc::new(Cache { held: Mutex::default(), was_asked: AtomicBool::new(false) });
    memory.set_callback(Some(Arc::clone(&cache) as Arc<dyn Room>));
    let elastic = Elastic::new(&memory, config).unwrap();
    elastic.commit(32 * MIB, 32 * MIB).unwrap();
    // For a moment there are 56 MiB, of which 32 go by themselves.
    elastic.resize(24 * MIB, None).unwrap();
    assert!(!cache.was_asked.load(Ordering::Relaxed), "nobody is asked for what is given up anyway");
    assert_eq!(elastic.statistics().committed_bytes, 24 * MIB);
    assert!(memory.held_bytes().0 <= 40 * MIB, "nothing unused is kept above the limit");
}

/// Says that it gave as much as a number holds.
struct Boaster(AtomicU64);

impl Room for Boaster {
    fn reclaim(&self, _bytes: u64) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed);
        u64::MAX
    }

    fn rank(&self) -> u32 {
        1
    }
}

#[test]
fn an_answer_that_no_sum_holds_ends_the_asking() {
    let memory = memory(64 * MIB, 0);
    let (heap, pool) = (heap(&memory), pool(&memory));
    let block = pool.acquire(8 * MIB, Stream::DEFAULT, 0).unwrap();
    pool.release(block.address, Stream::DEFAULT, 0).unwrap();
    let held = heap.allocate(Stream::DEFAULT, 40 * MIB, 0, 0).unwrap();
    let boaster = Arc::new(Boaster(AtomicU64::new(0)));
    let cache = Arc::new(Cache { held: Mutex::default(), was_asked: AtomicBool::new(false) });
    memory.add_room(room(&pool));
    memory.add_room(room(&boaster));
    memory.set_callback(Some(Arc::clone(&cache) as Arc<dyn Room>));
    assert!(heap.allocate(Stream::DEFAULT, 60 * MIB, 0, 0).is_err());
    assert_eq!(boaster.0.load(Ordering::Relaxed), 1);
    assert!(!cache.was_asked.load(Ordering::Relaxed), "so much is enough");
    heap.free(Stream::DEFAULT, held).unwrap();
}

#[test]
fn pages_that_a_heap_leaves_to_a_range_are_not_made_anew() {
    let memory = memory(64 * MIB, 0);
    let heap = heap(&memory);
    leave_idle(&heap, 60 * MIB);
    let made = memory.physical().unwrap().statistics().classes.map(|class| class.created);
    let config = ElasticConfig { capacity_bytes: 64 * MIB, page_bytes: 0, has_slabs: true };
    let elastic = Elastic::new(&memory, config).unwrap();
    elastic.commit(0, 56 * MIB).unwrap();
    let after = memory.physical().unwrap().statistics().classes.map(|class| class.created);
    assert_eq!(made, after, "the range took those of the heap");
}

/// The program's callback, which gives what it holds.
struct Giver {
    held: Mutex<Option<Allocation>>,
    asked: AtomicU64,
}

impl Giver {
    fn new(memory: &Arc<Memory>, bytes: u64) -> Arc<Self> {
        let held = Mutex::new(Some(memory.allocate(bytes, "given when asked").unwrap()));
        Arc::new(Self { held, asked: AtomicU64::new(0) })
    }
}

impl Room for Giver {
    fn reclaim(&self, bytes: u64) -> u64 {
        self.asked.store(bytes, Ordering::Relaxed);
        self.held.lock().take().map_or(0, |allocation| allocation.bytes())
    }

    fn rank(&self) -> u32 {
        2
    }
}

#[test]
fn a_pool_that_cannot_grow_asks_the_program_and_one_that_may_not_does_not() {
    let memory = memory(64 * MIB, 0);
    let giver = Giver::new(&memory, 60 * MIB);
    memory.set_callback(Some(Arc::clone(&giver) as Arc<dyn Room>));
    let class = ClassConfig { block_bytes: 8 * MIB, initial_blocks: 0, growth_blocks: 1 };
    let config =
        PoolConfig { sizes: Sizes::Classes(vec![class]), max_bytes: 8 * MIB, ..PoolConfig::classes() };
    let pool = Pool::new(&memory, config, 0).unwrap();
    let block = pool.acquire(8 * MIB, Stream::DEFAULT, 0).unwrap();
    assert_eq!(giver.asked.swap(0, Ordering::Relaxed), 4 * MIB, "what was missing");
    // Its own limit: nobody could help.
    assert_eq!(pool.acquire(8 * MIB, Stream::DEFAULT, 0).unwrap_err().status, Status::OutOfMemory);
    assert_eq!(giver.asked.load(Ordering::Relaxed), 0);
    pool.release(block.address, Stream::DEFAULT, 0).unwrap();
    pool.validate().unwrap();
}

#[test]
fn the_initial_blocks_of_a_pool_are_asked_for_too() {
    let memory = memory(64 * MIB, 0);
    let giver = Giver::new(&memory, 60 * MIB);
    let class = ClassConfig { block_bytes: 8 * MIB, initial_blocks: 3, growth_blocks: 1 };
    let config = PoolConfig { sizes: Sizes::Classes(vec![class]), max_bytes: 0, ..PoolConfig::classes() };
    let refused = Pool::new(&memory, config.clone(), 0).err().unwrap();
    assert_eq!(refused.status, Status::OutOfMemory, "nobody knows whom to ask");
    memory.set_callback(Some(Arc::clone(&giver) as Arc<dyn Room>));
    let pool = Pool::new(&memory, config, 0).unwrap();
    assert_eq!(giver.asked.load(Ordering::Relaxed), 20 * MIB);
    assert_eq!(pool.statistics().0.blocks, 3);
    pool.validate().unwrap();
}
