//! Pages that others need before they are unmapped where they were.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kavern::device::{DeviceSlice, Stream};
use kavern::error::Status;
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory, SharedConfig, SharedPool, Terms};
use kavern::sys::clock;

use super::pool::pool;
use super::support::{
    device_bytes, devices, each, mark, marks, memory_of, range, refused, seed, steps, with,
};

const EQUAL: Terms = Terms { min_bytes: 0, weight: 1, cap_bytes: 0 };

/// A pool that both have registered with and that the first has whole.
fn pair(memory: &Arc<Memory>, pages: u64) -> Arc<SharedPool> {
    let unit = memory.device().description().page_bytes;
    let pool = pool(memory, pages);
    for name in ["a", "b"] {
        pool.register(name, 2 * pages * unit, EQUAL).unwrap();
    }
    pool.commit("a", 0, pages * unit).unwrap();
    pool
}

/// The upkeep leaves everything alone until this is called with true: so nobody unmaps before a test has looked.
fn quieten(pool: &SharedPool, is_quiet: bool) {
    pool.physical().set_quiet(Some(Arc::new(move || is_quiet)));
}

/// So much work that asking once does not see its end: without a thread, what is past would be unmapped at once.
fn keep_busy(memory: &Memory, stream: Stream, part: DeviceSlice) {
    let used = part.part(64, 64).unwrap();
    (0..100).for_each(|_| memory.device().memset(stream, used, 0x5e).unwrap());
}

fn wait_until_tidy(pool: &SharedPool) {
    quieten(pool, true);
    while pool.statistics().physical.stale_mappings > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn a_model_has_the_pages_of_another_before_they_are_unmapped_there() {
    each(|memory, unit| {
        let device = memory.device();
        let pool = pair(memory, 8);
        let (a, b) = (pool.slice("a").unwrap(), pool.slice("b").unwrap());
        let mut passed = 0;
        for round in 0..50 {
            quieten(&pool, false);
            let part = a.part(0, 8 * unit).unwrap();
            mark(device.as_ref(), part, 0x5ec7e7);
            keep_busy(memory, Stream::DEFAULT, part);
            pool.decommit("a", 0, 8 * unit, Some(Stream::DEFAULT)).unwrap();
            assert!(!pool.is_committed("a", 0, unit).unwrap(), "given up at once");
            pool.commit("b", 0, 8 * unit).unwrap();
            let mut seen = vec![1; 8 * unit as usize];
            device.read(b.part(0, 8 * unit).unwrap(), &mut seen).unwrap();
            assert!(seen.iter().all(|&byte| byte == 0), "round {round}");
            let (had, all) = (pool.model_statistics("a").unwrap().range, pool.statistics());
            assert_eq!((had.physical_bytes, had.leaving_bytes, had.handles), (0, 0, 0));
            assert_eq!((all.used_bytes, all.pooled_bytes), (8 * unit, 0), "a page counts once");
            assert_eq!(all.physical.held_bytes, 8 * unit);
            pool.validate().unwrap();
            wait_until_tidy(&pool);
            passed = pool.statistics().physical.passed_on;
            pool.decommit("b", 0, 8 * unit, None).unwrap();
            pool.commit("a", 0, 8 * unit).unwrap();
            // On a busy machine the upkeep may lose its patience before the other model comes.
            if passed > 0 {
                break;
            }
        }
        assert_eq!(passed, 8, "all eight went over mapped");
        assert_eq!(device.race_count(), 0);
        assert_eq!(pool.statistics().physical.failed_unmaps, 0);
    });
}

#[test]
fn work_on_addresses_whose_pages_went_to_another_model_is_found_by_a_simulated_device() {
    if std::env::var_os("KAVERN_TEST_DEVICE").is_some() {
        return;
    }
    let memory = memory_of("sim?seed=3");
    let unit = memory.device().description().page_bytes;
    let pool = pair(&memory, 4);
    let simulator = memory.device().simulator().unwrap();
    let part = pool.slice("a").unwrap().part(0, 4 * unit).unwrap();
    keep_busy(&memory, Stream::DEFAULT, part);
    pool.decommit("a", 0, 4 * unit, Some(Stream::DEFAULT)).unwrap();
    pool.commit("b", 0, 4 * unit).unwrap();
    assert_eq!(memory.device().race_count(), 0);
    assert_eq!(pool.statistics().physical.passed_on, 4);
    let _ = simulator.declare(Stream::DEFAULT, &[part], &[]);
    let _ = memory.device().synchronize();
    assert!(memory.device().race_count() > 0, "nothing is behind those addresses any more");
}

#[test]
fn addresses_are_free_of_passed_pages_before_they_have_memory_again() {
    each(|memory, unit| {
        let device = memory.device();
        let pool = pair(memory, 8);
        let (a, b) = (pool.slice("a").unwrap(), pool.slice("b").unwrap());
        quieten(&pool, false);
        pool.decommit("a", 0, 8 * unit, Some(Stream::DEFAULT)).unwrap();
        device.synchronize().unwrap();
        pool.commit("b", 0, 5 * unit).unwrap();
        mark(device.as_ref(), b.part(0, 5 * unit).unwrap(), 77);
        // Its old addresses lead to pages of the other, and get pages of their own.
        assert_eq!(pool.commit("a", 0, 3 * unit).unwrap().changed_bytes, 3 * unit);
        mark(device.as_ref(), a.part(0, 3 * unit).unwrap(), 78);
        assert_eq!(marks(device.as_ref(), b.part(0, 5 * unit).unwrap()), [77; 2]);
        assert_eq!(refused(pool.commit("a", 3 * unit, unit)), Status::OutOfMemory);
        pool.validate().unwrap();
        // Gone with all addresses that still lead to pages of the other.
        pool.decommit("a", 0, 8 * unit, None).unwrap();
        pool.unregister("a").unwrap();
        assert_eq!(marks(device.as_ref(), b.part(0, 5 * unit).unwrap()), [77; 2]);
        assert_eq!(pool.statistics().used_bytes, 5 * unit);
        pool.unregister("b").unwrap();
        let seen = pool.statistics();
        assert_eq!((seen.used_bytes, seen.pooled_bytes, seen.physical.stale_mappings), (0, 8 * unit, 0));
        drop(pool);
    });
}

#[test]
fn a_trim_unmaps_what_was_passed_on_and_gives_it_to_the_device() {
    each(|memory, unit| {
        let device = memory.device();
        let before = device_bytes(device.as_ref());
        let pool = pair(memory, 8);
        quieten(&pool, false);
        pool.decommit("a", 0, 8 * unit, Some(Stream::DEFAULT)).unwrap();
        device.synchronize().unwrap();
        pool.commit("b", 0, 8 * unit).unwrap();
        // Back to the pool by a way that unmaps at once, while the first model's addresses may still lead there.
        pool.decommit("b", 0, 8 * unit, None).unwrap();
        assert_eq!(pool.physical().trim(0), 8 * unit);
        assert_eq!(pool.statistics().physical.stale_mappings, 0);
        assert_eq!(device_bytes(device.as_ref()), before);
        drop(pool);
    });
}

#[test]
fn pages_of_the_wrong_size_go_through_the_device_after_they_are_unmapped() {
    each(|memory, unit| {
        let limits = Limits { device_limit_bytes: 32 * unit, ..Limits::default() };
        let memory = Memory::new(Arc::clone(memory.device()), limits, Arc::new(NoSink));
        let (slabs, single) = (range(&memory, 32, true), range(&memory, 32, false));
        for _ in 0..3 {
            slabs.commit(0, 32 * unit).unwrap();
            mark(memory.device().as_ref(), slabs.slice(), 9);
            slabs.decommit(0, 32 * unit, Some(Stream::DEFAULT)).unwrap();
            memory.device().synchronize().unwrap();
            single.commit(0, 32 * unit).unwrap();
            mark(memory.device().as_ref(), single.slice(), 10);
            assert_eq!(slabs.statistics().physical_bytes, 0);
            assert_eq!(memory.held_bytes().0, 32 * unit);
            single.decommit(0, 32 * unit, Some(Stream::DEFAULT)).unwrap();
            memory.device().synchronize().unwrap();
        }
        drop((slabs, single));
        assert_eq!(memory.physical().unwrap().statistics().held_bytes, 0);
    });
}

#[test]
fn what_the_upkeep_unmaps_just_before_it_is_asked_for_is_not_refused() {
    each(|memory, unit| {
        let limits = Limits { device_limit_bytes: 64 * unit, ..Limits::default() };
        let memory = Memory::new(Arc::clone(memory.device()), limits, Arc::new(NoSink));
        let (slabs, single) = (range(&memory, 64, true), range(&memory, 64, false));
        for turn in 0..steps(2000, 20_000) {
            let owner = if turn % 2 == 0 { &slabs } else { &single };
            owner.commit(0, 64 * unit).unwrap_or_else(|error| panic!("turn {turn}: {error}"));
            owner.decommit(0, 64 * unit, Some(Stream::DEFAULT)).unwrap();
            memory.device().stream_synchronize(Stream::DEFAULT).unwrap();
        }
        memory.validate().unwrap();
    });
}

#[test]
fn what_is_used_and_what_is_pooled_are_never_more_than_the_limit_while_pages_move() {
    if std::env::var_os("KAVERN_TEST_DEVICE").is_some() {
        return;
    }
    let memory = memory_of("host");
    let unit = memory.device().description().page_bytes;
    let pool = pair(&memory, 256);
    pool.decommit("a", 0, 256 * unit, None).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let seen = pool.statistics();
                assert!(seen.used_bytes + seen.pooled_bytes <= seen.limit_bytes, "{seen:?}");
            }
        });
        for turn in 0..steps(400, 4000) {
            let name = ["a", "b"][turn as usize % 2];
            let stream = Some(Stream::DEFAULT).filter(|_| turn % 3 > 0);
            // One that comes before the other's pages are past is refused.
            let _ = pool.commit(name, 0, 256 * unit);
            pool.decommit(name, 0, 256 * unit, stream).unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    pool.validate().unwrap();
}

#[test]
fn the_upkeep_does_not_wait_for_ever_for_somebody_who_waits_for_a_stream() {
    if std::env::var_os("KAVERN_TEST_DEVICE").is_some() {
        return;
    }
    let memory = memory_of("host");
    let (device, unit) = (memory.device(), memory.device().description().page_bytes);
    let [held, other] = [(); 2].map(|()| range(&memory, 2, false));
    let stream = device.stream_create().unwrap();
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let hold = Box::new(move || {
        let _ = gate.recv();
    });
    for range in [&held, &other] {
        range.commit(0, 2 * unit).unwrap();
    }
    device.stream_callback(stream, hold).unwrap();
    held.decommit(0, 2 * unit, Some(stream)).unwrap();
    std::thread::scope(|scope| {
        // Nobody can have these addresses before the stream is past.
        scope.spawn(|| held.commit(0, 2 * unit).unwrap());
        other.decommit(0, 2 * unit, Some(Stream::DEFAULT)).unwrap();
        let deadline_ns = clock::now_ns() + 30_000_000_000;
        while other.statistics().leaving_bytes > 0 && clock::now_ns() < deadline_ns {
            std::thread::yield_now();
        }
        let left = other.statistics().leaving_bytes;
        drop(open);
        assert_eq!(left, 0);
    });
    device.stream_destroy(stream).unwrap();
}

#[test]
fn a_mapping_that_the_device_keeps_is_counted_and_its_page_is_nobodys_again() {
    for device in devices() {
        let memory = memory_of(&with(&device, "kind=unmap&fail_nth=1"));
        let unit = memory.device().description().page_bytes;
        if !memory.device().description().capabilities.virtual_memory {
            continue;
        }
        let pool = pair(&memory, 8);
        let b = pool.slice("b").unwrap();
        quieten(&pool, false);
        pool.decommit("a", 0, unit, Some(Stream::DEFAULT)).unwrap();
        memory.device().synchronize().unwrap();
        pool.commit("b", 0, unit).unwrap();
        wait_until_tidy(&pool);
        let seen = pool.statistics().physical;
        if seen.passed_on == 0 {
            // The upkeep has lost its patience and met the fault before the page was passed on.
            assert_eq!(seen.failed_unmaps, 1);
            continue;
        }
        assert_eq!((seen.failed_unmaps, seen.classes[0].released), (1, 0));
        mark(memory.device().as_ref(), b.part(0, unit).unwrap(), 5);
        assert_eq!(marks(memory.device().as_ref(), b.part(0, unit).unwrap()), [5; 2]);
        // Nobody gets a page that somebody may still reach: it goes to the device.
        pool.decommit("b", 0, unit, None).unwrap();
        assert_eq!(pool.statistics().physical.classes[0].released, 1);
        pool.commit("b", unit, unit).unwrap();
        pool.validate().unwrap();
    }
}

#[test]
fn random_moves_between_models_behind_streams_keep_what_was_written() {
    let seed = seed();
    each(|memory, unit| {
        let device = memory.device();
        let config = SharedConfig { limit_bytes: 60 * unit, has_slabs: true, ..SharedConfig::default() };
        let pool = SharedPool::new(memory, config).unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let names = ["a", "b", "c"];
        names.iter().for_each(|name| pool.register(name, 80 * unit, EQUAL).unwrap());
        let stream = device.stream_create().unwrap();
        let mut model = [[None; 80]; 3];
        for step in 0..steps(1200, 50_000) {
            let (who, first) = (random.usize(0..3), random.usize(0..80));
            let pages = random.usize(1..=(80 - first).min(45));
            let (offset, bytes) = (first as u64 * unit, pages as u64 * unit);
            let slice = pool.slice(names[who]).unwrap();
            let page = |at: usize| slice.part(at as u64 * unit, unit).unwrap();
            if random.bool() {
                match pool.commit(names[who], offset, bytes) {
                    Ok(_) => {
                        for (at, held) in model[who].iter_mut().enumerate().skip(first).take(pages) {
                            let number = step * 100 + at as u64;
                            *held = Some(number);
                            mark(device.as_ref(), page(at), number);
                        }
                    }
                    Err(error) => assert_eq!(error.status, Status::OutOfMemory, "seed {seed}, step {step}"),
                }
            } else {
                let stream = *random.choice(&[None, Some(stream), Some(stream)]).unwrap();
                if let (Some(stream), Some(_)) = (stream, model[who][first]) {
                    keep_busy(memory, stream, page(first));
                }
                pool.decommit(names[who], offset, bytes, stream).unwrap();
                model[who][first..first + pages].fill(None);
            }
            let at = random.usize(0..80);
            if let Some(number) = model[who][at] {
                assert_eq!(marks(device.as_ref(), page(at)), [number; 2], "seed {seed}, step {step}, {at}");
            }
            let seen = pool.statistics();
            assert!(seen.used_bytes + seen.pooled_bytes <= 60 * unit, "seed {seed}, step {step}: {seen:?}");
            pool.validate().unwrap();
        }
        // Where a thread does the upkeep it may be faster each time.
        let has_thread = device.simulator().is_none();
        assert!(has_thread || pool.statistics().physical.passed_on > 0);
        names.iter().for_each(|name| pool.unregister(name).unwrap());
        let left = pool.statistics();
        assert_eq!((left.used_bytes, left.physical.stale_mappings, left.physical.held_bytes), (0, 0, 0));
        drop(pool);
        device.stream_destroy(stream).unwrap();
        assert_eq!(device.race_count(), 0, "seed {seed}");
    });
}
