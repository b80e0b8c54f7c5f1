//! The pool of physical pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kavern::error::Status;
use kavern::event::NoSink;
use kavern::memory::{
    Elastic, ElasticConfig, Memory, PageClass, Payer, Physical, PhysicalConfig, Quota, Ready,
};
use kavern::sys::clock;

use super::support::{device_bytes, devices, each, refused, with};

/// A pool whose upkeep is done by hand.
fn by_hand(
    memory: &Arc<Memory>,
    limit_pages: u64,
    change: impl FnOnce(&mut PhysicalConfig),
) -> Arc<Physical> {
    let device = memory.device();
    let mut config = PhysicalConfig { has_thread: false, ..PhysicalConfig::of(device.as_ref()) };
    change(&mut config);
    let limit = limit_pages * device.description().page_bytes;
    let quota = Quota::new("pages", 0, limit, vec![memory.payer()]);
    Physical::new(Arc::clone(device), quota, config, Arc::new(NoSink)).unwrap()
}

#[test]
fn a_page_that_was_given_back_is_taken_again_without_the_device() {
    each(|memory, unit| {
        let before = device_bytes(memory.device().as_ref());
        let pool = by_hand(memory, 0, |_| {});
        let taken = PageClass::ALL.map(|class| pool.take(class, 0, None).unwrap());
        let pages = taken.each_ref().map(|page| page.page());
        let seen = pool.statistics();
        assert_eq!((seen.held_bytes, seen.pooled_bytes), (49 * unit, 0));
        drop(taken);
        let again = PageClass::ALL.map(|class| pool.take(class, 0, None).unwrap());
        assert_eq!(again.each_ref().map(|page| page.page()), pages);
        for (counts, class) in pool.statistics().classes.iter().zip(PageClass::ALL) {
            assert_eq!(counts.page_bytes, class.pages() * unit);
            assert_eq!((counts.held, counts.pooled, counts.created, counts.released), (1, 0, 1, 0));
            assert_eq!((counts.hits, counts.misses), (1, 1));
        }
        drop(again);
        assert_eq!(pool.statistics().pooled_bytes, 49 * unit);
        assert_eq!(pool.trim(48 * unit), 32 * unit);
        assert_eq!(pool.trim(0), 17 * unit);
        assert_eq!(pool.trim(0), 0);
        assert_eq!(device_bytes(memory.device().as_ref()), before);
    });
}

#[test]
fn a_page_knows_whether_its_tenant_had_it_before() {
    each(|memory, _| {
        let pool = by_hand(memory, 0, |_| {});
        for (tenant, is_used_by_us) in [(1, false), (1, true), (2, false), (2, true), (0, false), (0, false)]
        {
            // Taken and not adopted: its bytes are still another's.
            drop(pool.take(PageClass::SMALL, tenant, None).unwrap());
            let mut page = pool.take(PageClass::SMALL, tenant, None).unwrap();
            assert_eq!(page.is_used_by_us(), is_used_by_us, "tenant {tenant}");
            page.adopt();
        }
    });
}

#[test]
fn idle_pages_of_another_size_make_room_under_the_limit() {
    each(|memory, unit| {
        let pool = by_hand(memory, 40, |_| {});
        drop(pool.take(PageClass::LARGE, 0, None).unwrap());
        let small: Vec<_> = (0..40).map(|_| pool.take(PageClass::SMALL, 0, None).unwrap()).collect();
        let error = pool.take(PageClass::SMALL, 0, None).err().unwrap();
        assert_eq!(error.status, Status::OutOfMemory);
        let (wanted, left) = (format!("{unit} bytes"), "0 available".to_owned());
        assert!(error.text.contains(&wanted) && error.text.contains(&left), "{}", error.text);
        drop(small);
        assert_eq!(
            refused(pool.take(PageClass::LARGE, 0, None).and(pool.take(PageClass::LARGE, 0, None))),
            { Status::OutOfMemory }
        );
        drop(pool.take(PageClass::LARGE, 0, None).unwrap());
        // Asked for 32 pages of room, the pool gave 32 of 40 pages away.
        let seen = pool.statistics();
        assert!(seen.held_bytes == 0 && seen.pooled_bytes <= 40 * unit, "{seen:?}");
    });
}

#[test]
fn too_many_and_too_old_pages_go_to_the_device() {
    each(|memory, unit| {
        let pool = by_hand(memory, 0, |config| {
            config.high_bytes = 3 * unit;
            config.idle_ns = 1000;
        });
        let taken: Vec<_> = (0..5).map(|_| pool.take(PageClass::SMALL, 0, None).unwrap()).collect();
        drop(taken);
        assert_eq!(pool.statistics().pooled_bytes, 3 * unit);
        let now_ns = clock::now_ns();
        let pause_ns = pool.poll(0).unwrap();
        assert!(pool.statistics().pooled_bytes == 3 * unit && pause_ns <= now_ns + 1000);
        assert_eq!(pool.poll(now_ns + 1000), None);
        let seen = pool.statistics();
        assert_eq!((seen.pooled_bytes, seen.classes[0].released), (0, 5));
    });
}

#[test]
fn pages_are_made_ahead_by_the_upkeep_and_stay() {
    each(|memory, unit| {
        let pool = by_hand(memory, 100, |config| {
            config.ahead = [2, 1, 1];
            config.idle_ns = 1;
        });
        assert_eq!(pool.poll(clock::now_ns()), None);
        assert_eq!(pool.statistics().pooled_bytes, 50 * unit);
        let one = pool.take(PageClass::MIDDLE, 0, None).unwrap();
        assert_eq!((pool.statistics().classes[1].hits, pool.statistics().classes[1].misses), (1, 0));
        pool.poll(clock::now_ns());
        assert_eq!((pool.statistics().pooled_bytes, pool.statistics().held_bytes), (50 * unit, 16 * unit));
        drop(one);
        pool.poll(u64::MAX);
        assert_eq!(pool.statistics().pooled_bytes, 50 * unit);
    });
}

#[test]
fn between_the_marks_pages_are_made_ahead_and_let_go_of() {
    each(|memory, unit| {
        let pool = by_hand(memory, 1000, |config| {
            let ready = Ready::new(64 * unit, 256 * unit).unwrap();
            config.keep_ready(ready, unit, PageClass::LARGE);
        });
        let pooled = || pool.statistics().pooled_bytes / unit;
        let now_ns = clock::now_ns();
        pool.poll(now_ns);
        assert_eq!((pooled(), pool.statistics().classes.map(|counts| counts.pooled)), (256, [16, 3, 6]));
        // Nobody wants them: what is above the low mark goes.
        pool.poll(now_ns + 20_000_000_000);
        assert_eq!((pooled(), pool.statistics().classes.map(|counts| counts.pooled)), (64, [16, 1, 1]));
        let created = || pool.statistics().classes.map(|counts| counts.created);
        let before = created();
        let held = pool.take(PageClass::LARGE, 0, None).unwrap();
        assert_eq!(created(), before);
        pool.poll(clock::now_ns());
        assert_eq!(pool.statistics().classes.map(|counts| counts.pooled), [16, 3, 6]);
        // Somebody needs the bytes in another form: they are there, and not taken before pages are asked for again.
        assert_eq!(pool.trim(0), 256 * unit);
        for later_ns in [0, 2_000_000_000, 12_000_000_000] {
            pool.poll(clock::now_ns() + later_ns);
            assert_eq!(pooled(), 0, "{later_ns} ns later");
        }
        drop(held);
        let asked = pool.take(PageClass::LARGE, 0, None).unwrap();
        assert!(pool.poll(clock::now_ns()).is_some_and(|ns| ns <= 1_000_000_000) && pooled() == 0);
        pool.poll(clock::now_ns() + 1_000_000_000);
        assert_eq!(pooled(), 256);
        drop(asked);
    });
}

#[test]
fn the_low_mark_is_kept_to_the_page_whatever_the_sizes() {
    each(|memory, unit| {
        for (low, high, stays) in [(1, 96, 1), (5, 96, 5), (32, 96, 32), (43, 44, 44), (44, 44, 44)] {
            let pool = by_hand(memory, 1000, |config| {
                config.keep_ready(Ready::new(low * unit, high * unit).unwrap(), unit, PageClass::LARGE);
            });
            let now_ns = clock::now_ns();
            pool.poll(now_ns);
            assert_eq!(pool.statistics().pooled_bytes, high * unit);
            pool.poll(now_ns + 20_000_000_000);
            assert_eq!(pool.statistics().pooled_bytes, stays * unit, "low {low}, high {high}");
            assert_eq!(pool.poll(now_ns + 40_000_000_000), None, "nothing to do any more");
        }
    });
}

#[test]
fn pages_of_a_size_that_are_used_up_are_made_however_much_waits_of_others() {
    each(|memory, unit| {
        let pool = by_hand(memory, 1000, |config| {
            config.keep_ready(Ready::new(64 * unit, 256 * unit).unwrap(), unit, PageClass::LARGE);
        });
        let mut held = Vec::new();
        for taken in 0..200 {
            if taken % 8 == 0 {
                pool.poll(clock::now_ns());
            }
            held.push(pool.take(PageClass::SMALL, 0, None).unwrap());
        }
        let seen = pool.statistics();
        assert_eq!((seen.classes[0].hits, seen.classes[0].misses), (200, 0));
        assert!(seen.pooled_bytes <= 256 * unit);
    });
}

#[test]
fn what_the_device_refuses_was_never_held() {
    let memory = super::support::memory_of("host?memory_bytes=1048576");
    let pool = by_hand(&memory, 0, |_| {});
    let mut taken = Vec::new();
    let mut refused = 0;
    for class in PageClass::ALL.into_iter().rev() {
        loop {
            match pool.take(class, 0, Some(&memory.payer())) {
                Ok(page) => taken.push(page),
                Err(error) => break assert_eq!(error.status, Status::OutOfMemory),
            }
        }
        refused += 1;
    }
    let (used, peak) = memory.held_bytes();
    // Both the pool and whoever takes pages of it are charged here.
    assert_eq!((used, peak, refused), (2 << 20, 2 << 20, 3));
}

#[test]
fn pages_ahead_stop_at_the_soft_limit_and_at_the_hard_one() {
    each(|memory, unit| {
        for (soft, hard, expected) in [(0, 40, 40), (24, 40, 24), (24, 0, 24)] {
            let device = memory.device();
            let account = Quota::new("pages", soft * unit, hard * unit, vec![memory.payer()]);
            let mut config = PhysicalConfig { has_thread: false, ..PhysicalConfig::of(device.as_ref()) };
            config.keep_ready(Ready::new(64 * unit, 0).unwrap(), unit, PageClass::SMALL);
            let pool = Physical::new(Arc::clone(device), account, config, Arc::new(NoSink)).unwrap();
            for _ in 0..3 {
                pool.poll(clock::now_ns());
                assert_eq!(pool.statistics().classes[0].pooled, expected, "soft {soft}, hard {hard}");
                assert_eq!(pool.statistics().classes[0].released, 0);
            }
        }
    });
}

#[test]
fn a_commit_finds_the_pages_that_were_made_ahead() {
    let memory = super::support::memory_of("host");
    let unit = memory.device().description().page_bytes;
    let pool = memory.physical_with(Ready::new(256 * unit, 512 * unit).unwrap()).unwrap();
    let elastic = ElasticConfig { capacity_bytes: 200 * unit, page_bytes: 0, has_slabs: true };
    let elastic = Elastic::new(&memory, elastic).unwrap();
    while pool.statistics().pooled_bytes < 512 * unit {
        std::thread::yield_now();
    }
    elastic.commit(0, 167 * unit).unwrap();
    let seen = pool.statistics().classes;
    assert_eq!(seen.map(|counts| counts.misses), [0; 3]);
    assert_eq!(seen.iter().map(|counts| counts.hits * counts.page_bytes).sum::<u64>(), 167 * unit);
}

#[test]
fn a_thread_makes_pages_ahead_and_ends_with_the_pool() {
    each(|memory, unit| {
        let pool = by_hand(memory, 0, |config| (config.has_thread, config.ahead) = (true, [4, 0, 0]));
        if memory.device().simulator().is_some() {
            // No thread there: the order of calls must be the same each time.
            assert_eq!(pool.statistics().pooled_bytes, 0);
            return;
        }
        for _ in 0..3 {
            let held = pool.take(PageClass::SMALL, 0, None).unwrap();
            while pool.statistics().pooled_bytes < 4 * unit {
                std::thread::yield_now();
            }
            drop(held);
        }
    });
}

#[test]
fn the_last_page_of_a_size_that_is_taken_wakes_the_thread_however_much_waits_of_others() {
    let memory = super::support::memory_of("host");
    let unit = memory.device().description().page_bytes;
    let pool = by_hand(&memory, 0, |config| {
        config.has_thread = true;
        config.keep_ready(Ready::new(64 * unit, 256 * unit).unwrap(), unit, PageClass::LARGE);
    });
    let waits_for = |count: u64| {
        let end_ns = clock::now_ns() + 10_000_000_000;
        while pool.statistics().classes[0].pooled < count {
            assert!(clock::now_ns() < end_ns, "{} small pages wait", pool.statistics().classes[0].pooled);
            std::thread::yield_now();
        }
    };
    waits_for(16);
    let _held: Vec<_> = (0..16).map(|_| pool.take(PageClass::SMALL, 0, None).unwrap()).collect();
    waits_for(16);
}

#[test]
fn past_the_soft_limit_nothing_is_kept_or_made_ahead() {
    each(|memory, unit| {
        let device = memory.device();
        let quota = Quota::new("pages", 2 * unit, 10 * unit, vec![memory.payer()]);
        let account: Arc<dyn Payer> = Arc::<Quota>::clone(&quota);
        let config =
            PhysicalConfig { ahead: [5, 0, 0], has_thread: false, ..PhysicalConfig::of(device.as_ref()) };
        let pool = Physical::new(Arc::clone(device), account, config, Arc::new(NoSink)).unwrap();
        let taken: Vec<_> = (0..4).map(|_| pool.take(PageClass::SMALL, 0, None).unwrap()).collect();
        pool.poll(clock::now_ns());
        assert_eq!(pool.statistics().pooled_bytes, 0);
        drop(taken);
        assert_eq!((pool.statistics().pooled_bytes, quota.used_bytes()), (2 * unit, 2 * unit));
    });
}

#[test]
fn a_quota_below_two_others_charges_all_or_none() {
    let (one, two) = (Quota::new("a", 0, 100, vec![]), Quota::new("b", 0, 50, vec![]));
    let below = Quota::new("c", 0, 80, vec![Arc::<Quota>::clone(&one), two.clone()]);
    below.charge(50).unwrap();
    let error = below.charge(10).err().unwrap();
    assert!(error.text.contains("10 bytes of b requested, 0 available"), "{}", error.text);
    assert_eq!([&one, &two, &below].map(|quota| quota.used_bytes()), [50; 3]);
    assert_eq!(below.left_bytes(), 0);
    below.discharge(50);
    assert_eq!([&one, &two, &below].map(|quota| quota.used_bytes()), [0; 3]);
    assert_eq!(refused(below.charge(u64::MAX)), Status::OutOfMemory);
}

#[test]
fn a_device_that_refuses_pages_leaves_all_counts_as_they_were() {
    for device in devices() {
        for error in ["oom", "device", "panic"] {
            let memory =
                super::support::memory_of(&with(&device, &format!("fail_rate=0.5&kind=page&error={error}")));
            let pool = by_hand(&memory, 0, |_| {});
            let (mut made, mut failures) = (0, 0);
            for _ in 0..40 {
                let before = pool.statistics();
                let attempt = std::panic::AssertUnwindSafe(|| pool.take(PageClass::SMALL, 0, None));
                match std::panic::catch_unwind(attempt) {
                    Ok(Ok(page)) => {
                        made += 1;
                        drop(page);
                        pool.trim(0);
                    }
                    _ => {
                        assert_eq!(pool.statistics(), before);
                        failures += 1;
                    }
                }
            }
            assert!(made > 0 && failures > 0, "{made} {failures}");
            let seen = pool.statistics();
            assert_eq!((seen.classes[0].created, seen.classes[0].released), (made, made));
        }
    }
}

#[test]
fn deferred_unmaps_wait_while_a_copy_runs_and_go_after_it_or_in_the_end_all_the_same() {
    const HELD_NS: u64 = 100_000_000;
    each(|memory, unit| {
        if memory.device().simulator().is_none() {
            // A thread does the upkeep there, at times of its own.
            return;
        }
        let (pool, copies) = (memory.physical().unwrap(), memory.copies());
        let stream = memory.device().stream_create().unwrap();
        let range = super::support::range(memory, 2, false);
        for is_ended in [true, false] {
            range.commit(0, 2 * unit).unwrap();
            let before = pool.statistics();
            copies.begin();
            // So much work that asking once does not see its end: then the pages stay for the upkeep.
            let used = range.slice().part(0, unit).unwrap();
            (0..200).for_each(|_| memory.device().memset(stream, used, 7).unwrap());
            range.decommit(0, 2 * unit, Some(stream)).unwrap();
            memory.device().stream_synchronize(stream).unwrap();
            let leaving = |now_ns| {
                assert!(pool.poll(now_ns).is_some() || range.statistics().leaving_bytes == 0);
                range.statistics().leaving_bytes
            };
            assert_eq!((leaving(7), leaving(7 + HELD_NS - 1)), (2 * unit, 2 * unit));
            assert_eq!(pool.statistics(), before, "nothing was unmapped, given back or made");
            if is_ended {
                copies.end(Some(stream)).unwrap();
                memory.device().stream_synchronize(stream).unwrap();
                assert_eq!((leaving(7 + HELD_NS - 1), copies.running()), (0, 0));
                assert_eq!(pool.statistics().loud_changes, before.loud_changes);
            } else {
                assert_eq!(
                    leaving(7 + HELD_NS),
                    0,
                    "a copy that runs for ever does not keep memory for ever"
                );
                let after = pool.statistics();
                assert!(after.loud_changes > before.loud_changes);
                // What cannot wait is done and counted.
                range.commit(0, unit).unwrap();
                assert!(pool.statistics().loud_changes > after.loud_changes);
                copies.end(None).unwrap();
            }
        }
        memory.device().stream_destroy(stream).unwrap();
    });
}

#[test]
fn the_thread_unmaps_what_a_copy_has_held_back() {
    let memory = super::support::memory_of("host");
    let (unit, copies) = (memory.device().description().page_bytes, memory.copies());
    let stream = memory.device().stream_create().unwrap();
    let range = super::support::range(&memory, 2, false);
    range.commit(0, 2 * unit).unwrap();
    copies.begin();
    range.decommit(0, 2 * unit, Some(stream)).unwrap();
    memory.device().stream_synchronize(stream).unwrap();
    copies.end(Some(stream)).unwrap();
    while range.statistics().leaving_bytes > 0 {
        std::thread::yield_now();
    }
    assert_eq!(copies.running(), 0);
}

#[test]
fn copies_of_several_threads_are_counted_and_an_end_too_many_is_refused() {
    each(|memory, _| {
        let (device, copies) = (memory.device(), memory.copies());
        assert_eq!(refused(copies.end(None)), Status::WrongState);
        let stream = device.stream_create().unwrap();
        assert_eq!(refused(copies.end(Some(stream))), Status::WrongState);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for turn in 0..100 {
                        copies.begin();
                        assert!(copies.running() > 0);
                        copies.end(if turn % 2 == 0 { None } else { Some(stream) }).unwrap();
                    }
                });
            }
        });
        device.stream_synchronize(stream).unwrap();
        assert_eq!(copies.running(), 0);
        copies.begin();
        device.stream_destroy(stream).unwrap();
        assert_eq!(refused(copies.end(Some(stream))), Status::InvalidArgument);
        assert_eq!(copies.running(), 1, "a refused end changes nothing");
        copies.end(None).unwrap();
        assert_eq!((copies.running(), refused(copies.end(None))), (0, Status::WrongState));
    });
}

#[test]
fn a_copy_whose_end_lies_on_a_busy_stream_is_running() {
    let memory = super::support::memory_of("host");
    let (device, copies) = (memory.device(), memory.copies());
    let stream = device.stream_create().unwrap();
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let hold = Box::new(move || {
        let _ = told.recv();
    });
    device.stream_callback(stream, hold).unwrap();
    (0..100).for_each(|_| {
        copies.begin();
        copies.end(Some(stream)).unwrap();
    });
    assert_eq!(copies.running(), 100);
    tell.send(()).unwrap();
    device.stream_synchronize(stream).unwrap();
    assert_eq!(copies.running(), 0);
}

#[test]
fn deferred_changes_wait_for_a_quiet_moment() {
    each(|memory, unit| {
        let pool = memory.physical().unwrap();
        let is_quiet = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&is_quiet);
        let range = super::support::range(memory, 1, false);
        range.commit(0, unit).unwrap();
        let before = pool.statistics();
        assert_eq!((before.loud_changes, before.table_changes > 0), (0, true));
        pool.set_quiet(Some(Arc::new(move || asked.load(Ordering::Acquire))));
        range.decommit(0, 1, None).unwrap();
        assert_eq!(pool.statistics().loud_changes, 1);
        is_quiet.store(true, Ordering::Release);
        range.commit(0, 1).unwrap();
        assert_eq!(pool.statistics().loud_changes, 1);
        pool.set_quiet(None);
    });
}

#[test]
fn pages_ahead_are_refused_where_there_are_none_and_where_the_marks_make_no_sense() {
    let memory = super::support::memory_of("host?virtual=0");
    let ready = Ready::new(1 << 20, 0).unwrap();
    assert_eq!((ready.low_bytes, ready.high_bytes), (1 << 20, 1 << 20));
    assert_eq!(refused(memory.physical_with(ready)), Status::Unsupported);
    assert_eq!(Ready::new(0, 0).unwrap(), Ready::default());
    for (low, high) in [(0, 1), (2, 1)] {
        assert_eq!(refused(Ready::new(low, high)), Status::InvalidArgument);
    }
}
