//! Random work of several threads on one shared pool: never one page over the limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kavern::device::Stream;
use kavern::error::Status;
use kavern::memory::{SharedConfig, SharedPool, Terms};

use super::support::{device_bytes, devices, memory_of, seed, steps, with};

const THREADS: u64 = 4;
const LIMIT_PAGES: u64 = 100;
const CAPACITY_PAGES: u64 = 120;

/// The host can have smaller pages, which makes a step cheaper.
fn subjects() -> Vec<String> {
    let smaller = |device: String| if device == "host" { with(&device, "page_bytes=4096") } else { device };
    devices().into_iter().map(smaller).collect()
}

#[test]
fn no_step_of_any_thread_goes_one_page_over_the_limit() {
    let seed = seed();
    for device in subjects() {
        let memory = memory_of(&device);
        let unit = memory.device().description().page_bytes;
        let outside = device_bytes(memory.device().as_ref());
        let config =
            SharedConfig { limit_bytes: LIMIT_PAGES * unit, has_slabs: true, ..SharedConfig::default() };
        let pool = Arc::new(SharedPool::new(&memory, config).unwrap());
        let (done, refusals, most) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        for thread in 0..THREADS {
            let terms = Terms { min_bytes: thread * 8 * unit, weight: thread + 1, cap_bytes: 80 * unit };
            pool.register(&thread.to_string(), CAPACITY_PAGES * unit, terms).unwrap();
            let (weak, name) = (Arc::downgrade(&pool), thread.to_string());
            let give = move |bytes: u64| {
                let pool = weak.upgrade().unwrap();
                let first = bytes / unit % 60 * unit;
                pool.decommit(&name, first, bytes.min((CAPACITY_PAGES - 60) * unit), None).unwrap();
            };
            pool.on_reclaim(&thread.to_string(), Some(Arc::new(give))).unwrap();
        }
        let steps = steps(8_000, 1_000_000) / THREADS;
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let (pool, refusals) = (&pool, &refusals);
                    scope.spawn(move || work(pool, thread, seed, steps, unit, refusals))
                })
                .collect();
            // The device itself says what is there: nothing of the pool's own books.
            let (pool, memory, done, most) = (&pool, &memory, &done, &most);
            scope.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    let held = match (device_bytes(memory.device().as_ref()), outside) {
                        (Some(now), Some(before)) => now - before,
                        // One look: between two of them pages change their place.
                        _ => {
                            let books = pool.statistics().physical;
                            books.held_bytes + books.pooled_bytes
                        }
                    };
                    most.fetch_max(held, Ordering::AcqRel);
                    assert!(
                        held <= LIMIT_PAGES * unit,
                        "{held} bytes of {}, seed {seed}",
                        LIMIT_PAGES * unit
                    );
                    std::thread::yield_now();
                }
            });
            let outcomes: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            done.store(true, Ordering::Release);
            assert!(outcomes.iter().all(Result::is_ok), "seed {seed}");
        });
        pool.validate().unwrap();
        let used: u64 = (0..THREADS)
            .map(|thread| pool.model_statistics(&thread.to_string()).unwrap().range.physical_bytes)
            .sum();
        assert_eq!(pool.statistics().used_bytes, used);
        assert!(
            refusals.load(Ordering::Acquire) > 0
                && most.load(Ordering::Acquire) > LIMIT_PAGES * unit * 9 / 10
        );
        for thread in 0..THREADS {
            pool.unregister(&thread.to_string()).unwrap();
        }
        assert_eq!(pool.statistics().used_bytes, 0);
        drop(pool);
        assert_eq!(device_bytes(memory.device().as_ref()), outside);
    }
}

fn work(pool: &SharedPool, thread: u64, seed: u64, steps: u64, unit: u64, refusals: &AtomicU64) {
    let mut random = fastrand::Rng::with_seed(seed * 100 + thread);
    let name = thread.to_string();
    for step in 0..steps {
        let first = random.u64(0..CAPACITY_PAGES);
        let bytes = random.u64(1..=(CAPACITY_PAGES - first).min(40)) * unit;
        if random.u8(0..5) < 2 {
            match pool.commit(&name, first * unit, bytes) {
                Ok(_) => {}
                Err(error) if error.status == Status::OutOfMemory => {
                    refusals.fetch_add(1, Ordering::AcqRel);
                }
                Err(error) => panic!("seed {seed}, thread {thread}, step {step}: {error}"),
            }
        } else {
            // Behind a stream the pages wait for the upkeep, or for another model that takes them before it.
            let stream = random.bool().then_some(Stream::DEFAULT);
            pool.decommit(&name, first * unit, bytes, stream).unwrap();
        }
        let seen = pool.model_statistics(&name).unwrap();
        assert!(seen.range.physical_bytes <= 80 * unit, "over its cap: {seen:?}");
        if step % 512 == 0 {
            pool.validate().unwrap();
        }
    }
}
