//! Pools as an engine uses them: order between streams, limits, idle blocks, figures, threads, speed.
//! `KAVERN_TEST_DEVICE` names another device than the host.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use kavern::device::{Stream, registry};
use kavern::error::Status;
use kavern::event::NoSink;
use kavern::manager::Manager;
use kavern::memory::{ClassConfig, Limits, Memory, Pool, PoolConfig, PoolMemory, Sizes};
use kavern::sys::clock;

fn memory() -> Arc<Memory> {
    let device = std::env::var("KAVERN_TEST_DEVICE").unwrap_or_else(|_| "host".to_owned());
    Memory::new(registry::open(&device).unwrap(), Limits::default(), Arc::new(NoSink))
}

fn fixed(block_bytes: u64, growth_blocks: u32, max_bytes: u64) -> PoolConfig {
    let class = ClassConfig { block_bytes, initial_blocks: 0, growth_blocks };
    PoolConfig { sizes: Sizes::Classes(vec![class]), max_bytes, ..PoolConfig::classes() }
}

fn streams<const N: usize>(memory: &Arc<Memory>) -> [Stream; N] {
    [(); N].map(|()| memory.device().stream_create().unwrap())
}

#[test]
fn another_stream_gets_a_block_when_its_work_is_done_and_else_a_new_one_or_behind_a_wait() {
    let memory = memory();
    let [one, other] = streams(&memory);
    let pool = Pool::new(&memory, fixed(4096, 1, 2 * 4096), 0).unwrap();
    let (open, gate) = channel::<()>();
    let hold = Box::new(move || {
        let _ = gate.recv();
    });
    memory.device().stream_callback(one, hold).unwrap();
    let first = pool.acquire(4096, one, 0).unwrap();
    pool.release(first.address, one, 0).unwrap();
    // The stream is held, so nobody knows that it is done with the block: the pool grows.
    let second = pool.acquire(4096, other, 0).unwrap();
    assert_ne!(second.address, first.address);
    assert_eq!(pool.statistics().0.misses, 2);
    // It cannot grow further: now the other stream waits.
    let third = pool.acquire(4096, other, 0).unwrap();
    assert_eq!((third.address, pool.statistics().0.stream_waits), (first.address, 1));
    let refused = pool.acquire(4096, other, 0).unwrap_err();
    assert_eq!(refused.status, Status::OutOfMemory);
    assert!(
        refused.text.contains("4096 bytes requested") && refused.text.contains("limit of 8192"),
        "{refused}"
    );
    assert!(!memory.device().stream_is_idle(other).unwrap(), "it waits for the first");
    drop(open);
    memory.device().stream_synchronize(other).unwrap();
    pool.release(second.address, other, 0).unwrap();
    memory.device().stream_synchronize(other).unwrap();
    let waits = pool.statistics().0.stream_waits;
    assert_eq!(pool.acquire(4096, one, 0).unwrap().address, second.address, "known to be done");
    assert_eq!(pool.statistics().0.stream_waits, waits);
    pool.validate().unwrap();
}

#[test]
fn without_an_upkeep_idle_batches_go_back_at_the_next_call_after_their_time() {
    let memory = memory();
    let [stream] = streams(&memory);
    let minute = 60_000_000_000;
    let pool = Pool::new(&memory, fixed(4096, 1, 0), 0).unwrap();
    let blocks: Vec<_> = (0..3).map(|_| pool.acquire(4096, stream, 0).unwrap()).collect();
    pool.release(blocks[0].address, stream, 0).unwrap();
    pool.release(blocks[1].address, stream, 3 * minute).unwrap();
    memory.device().synchronize().unwrap();
    pool.release(blocks[2].address, stream, 5 * minute - 1).unwrap();
    assert_eq!(pool.statistics().0.held_bytes, 3 * 4096);
    let again = pool.acquire(100, stream, 5 * minute).unwrap();
    let totals = pool.statistics().0;
    assert_eq!((totals.held_bytes, totals.evictions), (2 * 4096, 1), "one was idle for five minutes");
    pool.release(again.address, stream, 5 * minute).unwrap();
    memory.device().synchronize().unwrap();
    assert_eq!(pool.trim(minute, 8 * minute), 2 * 4096, "both for more than one");
    assert_eq!(memory.statistics().device.bytes, 0);
    pool.validate().unwrap();
}

/// A manager with a pool that the thread of the upkeep looks after; none where the device has no such thread.
fn looked_after(idle_ns: u64) -> Option<(Arc<Manager>, Arc<Pool>)> {
    let device = std::env::var("KAVERN_TEST_DEVICE").unwrap_or_else(|_| "host".to_owned());
    let manager = Manager::open(&device, Limits::default(), Arc::new(NoSink)).unwrap();
    let has_upkeep = manager.device().description().capabilities.virtual_memory;
    if !has_upkeep || manager.device().simulator().is_some() {
        return None;
    }
    let config = PoolConfig { idle_ns, ..fixed(4096, 1, 0) };
    let pool = Arc::new(Pool::new(manager.memory(), config, clock::now_ns()).unwrap());
    manager.attach_pool(&pool);
    Some((manager, pool))
}

#[track_caller]
fn wait_until(is_so: impl Fn() -> bool) {
    let end_ns = clock::now_ns() + 20_000_000_000;
    while !is_so() {
        assert!(clock::now_ns() < end_ns, "not within 20 seconds");
        std::thread::yield_now();
    }
}

#[test]
fn a_pool_that_nobody_calls_is_empty_soon_after_its_idle_time() {
    let idle_ns = 100_000_000;
    let Some((manager, pool)) = looked_after(idle_ns) else { return };
    let [stream] = streams(manager.memory());
    let blocks = [(); 3].map(|()| pool.acquire(4096, stream, clock::now_ns()).unwrap());
    let begin_ns = clock::now_ns();
    blocks[1..].iter().for_each(|block| pool.release(block.address, stream, begin_ns).unwrap());
    wait_until(|| pool.statistics().0.held_bytes == 4096);
    assert!(clock::now_ns() - begin_ns >= idle_ns, "not before their time");
    wait_until(|| manager.memory().statistics().device.bytes == 4096);
    pool.release(blocks[0].address, stream, clock::now_ns()).unwrap();
    wait_until(|| manager.memory().statistics().device.bytes == 0);
    pool.validate().unwrap();
    manager.device().stream_destroy(stream).unwrap();
}

#[test]
fn the_upkeep_keeps_no_pool_and_nobody_else_waits_for_what_it_waits_for() {
    let Some((manager, pool)) = looked_after(1) else { return };
    let memory = manager.memory();
    if memory.device().description().backend != "host" {
        return;
    }
    let [stream, held] = streams(memory);
    let block = pool.acquire(4096, stream, clock::now_ns()).unwrap();
    let (open, gate) = channel::<()>();
    let hold = Box::new(move || {
        let _ = gate.recv();
    });
    memory.device().stream_callback(held, hold).unwrap();
    pool.release(block.address, stream, clock::now_ns()).unwrap();
    // The device takes memory back when all work is done: the upkeep is in the middle of that.
    wait_until(|| pool.statistics().0.held_bytes == 0);
    let manager = &manager;
    std::thread::scope(move |scope| {
        let (say, heard) = channel();
        let (end, ended) = channel();
        scope.spawn(move || {
            let config = PoolConfig { idle_ns: 1, ..fixed(4096, 1, 0) };
            let other = Arc::new(Pool::new(memory, config, clock::now_ns()).unwrap());
            manager.attach_pool(&other);
            say.send(other).unwrap();
            pool.end();
            drop(pool);
            end.send(memory.statistics().device.bytes).unwrap();
        });
        let other = heard.recv_timeout(Duration::from_secs(20)).expect("another pool waits for nothing");
        assert!(ended.recv_timeout(Duration::from_millis(100)).is_err(), "its memory is not back yet");
        drop(open);
        assert_eq!(ended.recv(), Ok(0), "the pool has gone with all that it had");
        other.end();
        manager.validate().unwrap();
    });
}

#[test]
fn free_blocks_of_other_classes_make_room_below_the_limit() {
    let memory = memory();
    let [stream] = streams(&memory);
    let class = |block_bytes| ClassConfig { block_bytes, initial_blocks: 0, growth_blocks: 1 };
    let sizes = Sizes::Classes(vec![class(1024), class(8192)]);
    let config = PoolConfig { sizes, max_bytes: 9216, ..PoolConfig::classes() };
    let pool = Pool::new(&memory, config, 0).unwrap();
    let small: Vec<_> = (0..9).map(|_| pool.acquire(1, stream, 0).unwrap()).collect();
    small[1..].iter().for_each(|block| pool.release(block.address, stream, 0).unwrap());
    let (totals, classes) = pool.statistics();
    assert_eq!(totals.utilisation, 1.0 / 9.0);
    // Eight of nine blocks are free: they serve small requests and no large one.
    assert_eq!((classes[0].fragmentation, classes[1].fragmentation), (0.0, 8.0 / 9.0));
    assert_eq!(totals.fragmentation, 0.0, "nobody has asked for large ones");
    memory.device().synchronize().unwrap();
    let large = pool.acquire(5000, stream, 0).unwrap();
    let totals = pool.statistics().0;
    assert_eq!((large.bytes, totals.held_bytes, totals.evictions), (8192, 9216, 8));
    let refused = pool.acquire(5000, stream, 0).unwrap_err();
    assert_eq!((refused.status, pool.statistics().0.refusals), (Status::OutOfMemory, 1));
    pool.validate().unwrap();
}

#[test]
fn blocks_of_a_stream_that_is_gone_serve_others() {
    let memory = memory();
    let [one, other] = streams(&memory);
    let pool = Pool::new(&memory, fixed(4096, 1, 4096), 0).unwrap();
    let block = pool.acquire(4096, one, 0).unwrap();
    memory.device().stream_destroy(one).unwrap();
    pool.release(block.address, one, 0).unwrap();
    assert_eq!(pool.acquire(4096, other, 0).unwrap(), block);
    let totals = pool.statistics().0;
    assert_eq!((totals.device_waits, totals.stream_waits), (1, 0));
    pool.validate().unwrap();
}

#[test]
fn small_blocks_of_managed_memory_are_counted_limited_and_given_back() {
    let memory = memory();
    let [stream] = streams(&memory);
    let managed = |config| PoolConfig { memory: PoolMemory::Managed, ..config };
    let too_large = Pool::new(&memory, managed(fixed((1 << 20) + 1, 1, 0)), 0).err().unwrap();
    assert_eq!(too_large.status, Status::InvalidArgument, "{too_large}");
    if !memory.device().description().capabilities.managed_memory {
        let refused = Pool::new(&memory, managed(fixed(256, 1, 0)), 0).err().unwrap();
        assert_eq!(refused.status, Status::Unsupported);
        return;
    }
    let pool = Pool::new(&memory, managed(fixed(1 << 20, 1, 2 << 20)), 0).unwrap();
    let blocks: Vec<_> = (0..2).map(|_| pool.acquire(9, stream, 0).unwrap()).collect();
    assert_eq!(pool.acquire(9, stream, 0).unwrap_err().status, Status::OutOfMemory);
    let totals = pool.statistics().0;
    assert_eq!((totals.managed_bytes, totals.held_bytes), (2 << 20, 2 << 20));
    assert_eq!((memory.statistics().device.bytes, memory.held_bytes().0), (2 << 20, 2 << 20));
    for block in &blocks {
        // SAFETY: the block is this test's, the processor reaches it, and the device does nothing.
        unsafe { (block.address as *mut u64).write(block.address) };
        pool.release(block.address, stream, 0).unwrap();
    }
    memory.device().stream_synchronize(stream).unwrap();
    assert_eq!(pool.trim(0, 0), 2 << 20);
    assert_eq!((pool.statistics().0.managed_bytes, memory.held_bytes().0), (0, 0));
    let ladder = Pool::new(&memory, managed(PoolConfig::ladder()), 0).unwrap();
    assert!(ladder.acquire(1_000_000, stream, 0).unwrap().bytes >= 1_000_000);
    let refused = ladder.acquire(1_100_000, stream, 0).unwrap_err();
    assert!(refused.status == Status::InvalidArgument && refused.text.contains("1048576"), "{refused}");
    assert_eq!(Pool::new(&memory, PoolConfig::classes(), 0).unwrap().statistics().0.managed_bytes, 0);
}

#[test]
fn a_device_without_managed_memory_says_so() {
    let device = registry::open("host?managed=0").unwrap();
    let memory = Memory::new(device, Limits::default(), Arc::new(NoSink));
    let config = PoolConfig { memory: PoolMemory::Managed, ..fixed(256, 1, 0) };
    let refused = Pool::new(&memory, config, 0).err().unwrap();
    assert!(refused.status == Status::Unsupported && refused.text.contains("no managed memory"), "{refused}");
    assert_eq!(memory.held_bytes().0, 0);
}

#[test]
fn configurations_that_cannot_be_served_are_refused() {
    let memory = memory();
    let class = |block_bytes, growth_blocks| ClassConfig { block_bytes, initial_blocks: 2, growth_blocks };
    let classes =
        |list: &[ClassConfig]| PoolConfig { sizes: Sizes::Classes(list.to_vec()), ..fixed(1, 1, 4096) };
    let wrong = [
        classes(&[]),
        classes(&[class(0, 1)]),
        classes(&[class(256, 0)]),
        classes(&[class(u64::MAX, 1)]),
        classes(&[class(300, 1), class(400, 1)]),
        classes(&[class(512, 1), class(256, 1)]),
        classes(&[class(4096, 1)]),
        classes(&vec![class(256, 1); 300]),
        PoolConfig { sizes: Sizes::Ladder { growth_blocks: 0 }, ..PoolConfig::ladder() },
    ];
    for config in wrong {
        let refused = Pool::new(&memory, config.clone(), 0).err().unwrap();
        assert_eq!(refused.status, Status::InvalidArgument, "{config:?}: {refused}");
    }
    assert_eq!(memory.statistics().device.bytes, 0);
    let pool = Pool::new(&memory, classes(&[class(1024, 1)]), 0).unwrap();
    for bytes in [0, 1025, u64::MAX] {
        assert_eq!(pool.acquire(bytes, Stream::DEFAULT, 0).unwrap_err().status, Status::InvalidArgument);
    }
}

#[test]
fn threads_on_their_own_streams_never_share_a_block() {
    let memory = memory();
    let pool = Pool::new(&memory, fixed(4096, 4, 64 * 4096), 0).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let (pool, memory) = (&pool, &memory);
            scope.spawn(move || {
                let [stream] = streams(memory);
                let mut held = Vec::new();
                let mut random = fastrand::Rng::with_seed(thread);
                for round in 0..3000 {
                    if held.len() < 4 && random.bool() {
                        held.push(pool.acquire(4096, stream, round).unwrap().address);
                    } else if !held.is_empty() {
                        let address = held.swap_remove(random.usize(0..held.len()));
                        pool.release(address, stream, round).unwrap();
                    }
                    if random.u32(0..500) == 0 {
                        pool.trim(random.u64(0..1000), round);
                    }
                }
                held.into_iter().for_each(|address| pool.release(address, stream, 3000).unwrap());
                memory.device().stream_destroy(stream).unwrap();
            });
        }
    });
    pool.validate().unwrap();
    let totals = pool.statistics().0;
    assert_eq!((totals.in_use, totals.in_use_bytes, totals.refusals), (0, 0, 0));
    pool.trim(0, 3001);
    assert_eq!(memory.statistics().device.bytes, 0);
}

#[expect(clippy::disallowed_macros, reason = "a measurement is told to whoever runs it")]
fn tell(text: &str) {
    eprintln!("{text}");
}

#[test]
fn a_pair_costs_far_below_a_microsecond_with_few_and_many_blocks() {
    let memory = memory();
    let [stream] = streams(&memory);
    for live in [100_u64, 2_000, 65_536] {
        let pool = Pool::new(&memory, fixed(256, 4, 0), 0).unwrap();
        let mut held: Vec<u64> = (0..live).map(|_| pool.acquire(256, stream, 0).unwrap().address).collect();
        let mut random = fastrand::Rng::with_seed(1);
        let pairs = 200_000;
        let start = clock::now_ns();
        for _ in 0..pairs {
            let place = random.usize(0..held.len());
            pool.release(held[place], stream, 0).unwrap();
            held[place] = pool.acquire(256, stream, 0).unwrap().address;
        }
        let pair_ns = (clock::now_ns() - start) as f64 / f64::from(pairs);
        tell(&format!("{live} blocks live, batches of 4: {pair_ns:.0} ns a pair"));
        // Loose: it says that no device is called and no list walked, on any machine.
        assert!(pair_ns < 5_000.0, "{pair_ns}");
        pool.validate().unwrap();
    }
}
