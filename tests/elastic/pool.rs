//! Models that share physical memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};

use kavern::device::Stream;
use kavern::error::Status;
use kavern::memory::{Memory, SharedConfig, SharedPool, Terms};

use super::support::{each, mark, marks, refused};

/// A pool of so many pages without slabs.
pub(super) fn pool(memory: &Arc<Memory>, pages: u64) -> Arc<SharedPool> {
    let unit = memory.device().description().page_bytes;
    let config = SharedConfig { limit_bytes: pages * unit, ..SharedConfig::default() };
    Arc::new(SharedPool::new(memory, config).unwrap())
}

fn terms(min_bytes: u64, weight: u64, cap_bytes: u64) -> Terms {
    Terms { min_bytes, weight, cap_bytes }
}

const EQUAL: Terms = Terms { min_bytes: 0, weight: 1, cap_bytes: 0 };

#[test]
fn models_share_one_limit_and_their_counts_are_told() {
    each(|memory, unit| {
        let pool = pool(memory, 10);
        pool.register("a", 100 * unit, EQUAL).unwrap();
        pool.register("b", 100 * unit, terms(0, 2, 6 * unit)).unwrap();
        assert_ne!(pool.slice("a").unwrap().address(), pool.slice("b").unwrap().address());
        // A second commit of the same model works, wherever it is.
        pool.commit("a", 0, 3 * unit).unwrap();
        pool.commit("a", 50 * unit, 2 * unit).unwrap();
        pool.commit("b", 0, 5 * unit).unwrap();
        let error = pool.commit("a", 10 * unit, unit).err().unwrap();
        assert_eq!(error.status, Status::OutOfMemory);
        let (asked, left) = (format!("{unit} bytes"), "0 available");
        assert!(error.text.contains(&asked) && error.text.contains(left), "{}", error.text);
        assert!(error.text.contains("\"a\" has"), "{}", error.text);
        pool.decommit("a", 0, 2 * unit, None).unwrap();
        assert_eq!(refused(pool.commit("b", 5 * unit, 2 * unit)), Status::OutOfMemory);
        pool.commit("b", 5 * unit, unit).unwrap();
        let (a, b, all) =
            (pool.model_statistics("a").unwrap(), pool.model_statistics("b").unwrap(), pool.statistics());
        assert_eq!(
            (a.range.physical_bytes, a.peak_bytes, a.range.capacity_bytes),
            (3 * unit, 5 * unit, 100 * unit)
        );
        assert_eq!((b.range.committed_bytes, b.terms.cap_bytes, b.terms.weight), (6 * unit, 6 * unit, 2));
        assert_eq!((all.limit_bytes, all.used_bytes, all.models), (10 * unit, 9 * unit, 2));
        assert_eq!((all.refusals, all.pooled_bytes), (2, unit));
        assert!(pool.is_committed("a", 50 * unit, 2 * unit).unwrap());
        pool.validate().unwrap();
    });
}

#[test]
fn a_page_that_no_commit_could_have_is_refused() {
    each(|memory, unit| {
        let pool = |limit_bytes, page_bytes| {
            let config = SharedConfig { limit_bytes, page_bytes, ..SharedConfig::default() };
            SharedPool::new(memory, config)
        };
        let wrong = [
            (10 * unit, 7),
            (10 * unit, unit + 1),
            (10 * unit, 11 * unit),
            (unit - 1, 0),
            (2 * unit - 1, 2 * unit),
        ];
        for (limit_bytes, page_bytes) in wrong {
            let error = pool(limit_bytes, page_bytes).err().expect("a page that cannot be");
            assert_eq!(error.status, Status::InvalidArgument, "{error}");
            let asked = if page_bytes % unit == 0 { limit_bytes } else { page_bytes };
            assert!(error.text.contains(&asked.to_string()), "{error}");
            assert!(error.text.contains(&unit.to_string()), "{error}");
        }
        // A limit need not be a multiple of the page.
        for (limit_bytes, page_bytes) in [(10 * unit + 1, 4 * unit), (4 * unit, 4 * unit), (unit, 0)] {
            let pool = pool(limit_bytes, page_bytes).unwrap();
            pool.register("a", 8 * unit, EQUAL).unwrap();
            let page_bytes = page_bytes.max(unit);
            assert_eq!(pool.commit("a", 0, 1).unwrap().changed_bytes, page_bytes);
            pool.validate().unwrap();
        }
    });
}

#[test]
fn unknown_and_duplicate_models_and_terms_without_sense_are_refused() {
    each(|memory, unit| {
        let pool = pool(memory, 10);
        pool.register("a", unit, terms(6 * unit, 1, 0)).unwrap();
        assert_eq!(refused(pool.register("a", unit, EQUAL)), Status::AlreadyExists);
        for (name, capacity, wrong) in [
            ("", unit, EQUAL),
            ("b", 0, EQUAL),
            ("b", unit, terms(0, 0, 0)),
            ("b", unit, terms(5 * unit, 1, 0)),
            ("b", unit, terms(2 * unit, 1, unit)),
            ("b", unit, terms(11 * unit, 1, 0)),
            ("b", u64::MAX, EQUAL),
        ] {
            assert_eq!(refused(pool.register(name, capacity, wrong)), Status::InvalidArgument, "{wrong:?}");
        }
        for status in [
            refused(pool.commit("b", 0, 1)),
            refused(pool.decommit("b", 0, 1, None)),
            refused(pool.slice("b")),
            refused(pool.pin("b", 0, 1)),
            refused(pool.unpin("b", 0, 1)),
            refused(pool.model_statistics("b")),
            refused(pool.on_reclaim("b", None)),
            refused(pool.is_committed("b", 0, 1)),
            refused(pool.unregister("b")),
        ] {
            assert_eq!(status, Status::NotFound);
        }
        let shared = |limit_bytes, page_bytes| {
            let config = SharedConfig { limit_bytes, page_bytes, ..SharedConfig::default() };
            SharedPool::new(memory, config).and_then(|pool| pool.register("a", unit, EQUAL))
        };
        assert_eq!(refused(shared(unit - 1, 0)), Status::InvalidArgument);
        assert_eq!(refused(shared(unit, unit + 1)), Status::InvalidArgument);
        assert_eq!(pool.statistics().models, 1);
        pool.validate().unwrap();
    });
}

#[test]
fn memory_is_scrubbed_when_it_changes_its_model() {
    each(|memory, unit| {
        let device = memory.device();
        let pool = pool(memory, 4);
        pool.register("a", 4 * unit, EQUAL).unwrap();
        pool.register("b", 4 * unit, EQUAL).unwrap();
        pool.commit("a", 0, 4 * unit).unwrap();
        let (a, b) = (pool.slice("a").unwrap(), pool.slice("b").unwrap());
        assert_eq!(marks(device.as_ref(), a), [0, 0]);
        mark(device.as_ref(), a, 0x5ec7e7);
        device.memset(Stream::DEFAULT, a.part(unit, unit).unwrap(), 0x77).unwrap();
        device.synchronize().unwrap();
        pool.decommit("a", 0, 4 * unit, None).unwrap();
        pool.commit("b", 0, 4 * unit).unwrap();
        let mut seen = vec![1; 4 * unit as usize];
        device.read(b, &mut seen).unwrap();
        assert!(seen.iter().all(|&byte| byte == 0));
        assert_eq!(pool.statistics().scrubbed_bytes, 8 * unit);
        // What comes back to the same model costs nothing.
        pool.decommit("b", 0, 4 * unit, None).unwrap();
        pool.commit("b", 0, 4 * unit).unwrap();
        assert_eq!(pool.statistics().scrubbed_bytes, 8 * unit);
        assert_eq!(device.race_count(), 0);
    });
}

#[test]
fn a_minimum_is_there_whatever_the_others_do() {
    each(|memory, unit| {
        let pool = pool(memory, 10);
        pool.register("greedy", 20 * unit, EQUAL).unwrap();
        pool.register("modest", 20 * unit, terms(4 * unit, 1, 0)).unwrap();
        assert_eq!(refused(pool.commit("greedy", 0, 7 * unit)), Status::OutOfMemory);
        pool.commit("greedy", 0, 6 * unit).unwrap();
        pool.commit("modest", 0, 4 * unit).unwrap();
        assert_eq!(refused(pool.commit("modest", 4 * unit, unit)), Status::OutOfMemory);
        // No one is asked to go below a minimum, not even for another one.
        assert_eq!(refused(pool.register("late", unit, terms(unit, 1, 0))), Status::OutOfMemory);
        pool.decommit("greedy", 0, unit, None).unwrap();
        pool.register("late", unit, terms(unit, 1, 0)).unwrap();
        pool.commit("late", 0, unit).unwrap();
        pool.validate().unwrap();
    });
}

/// Lets a model give what it is asked for, from its first pages on, and counts how often.
fn gives(pool: &Arc<SharedPool>, name: &'static str, stream: Option<Stream>) -> Arc<AtomicU64> {
    let (calls, weak) = (Arc::new(AtomicU64::new(0)), Arc::downgrade(pool));
    let (counted, next) = (Arc::clone(&calls), AtomicU64::new(0));
    let give = move |bytes: u64| {
        counted.fetch_add(1, Ordering::AcqRel);
        let pool = weak.upgrade().unwrap();
        // Nothing is locked: the owner may ask and give.
        assert!(pool.model_statistics(name).unwrap().wanted_bytes >= bytes);
        pool.decommit(name, next.fetch_add(bytes, Ordering::AcqRel), bytes, stream).unwrap();
    };
    pool.on_reclaim(name, Some(Arc::new(give))).unwrap();
    calls
}

#[test]
fn owners_who_have_more_than_is_due_are_asked_the_greediest_first() {
    each(|memory, unit| {
        let stream = memory.device().stream_create().unwrap();
        for stream in [None, Some(stream)] {
            let pool = pool(memory, 12);
            for (name, weight) in [("a", 1), ("b", 2), ("c", 1)] {
                pool.register(name, 20 * unit, terms(0, weight, 0)).unwrap();
            }
            let (a, b) = (gives(&pool, "a", stream), gives(&pool, "b", stream));
            pool.commit("a", 0, 6 * unit).unwrap();
            pool.commit("b", 0, 6 * unit).unwrap();
            pool.commit("c", 0, 2 * unit).unwrap();
            let used = |name| pool.model_statistics(name).unwrap().range.committed_bytes / unit;
            assert_eq!((used("a"), used("b"), used("c")), (4, 6, 2));
            assert_eq!((a.load(Ordering::Acquire), b.load(Ordering::Acquire)), (1, 0));
            pool.commit("c", 2 * unit, unit).unwrap();
            assert_eq!((used("a"), used("b"), used("c")), (3, 6, 3));
            // Everybody has what is due: nobody is asked.
            assert_eq!(refused(pool.commit("c", 3 * unit, unit)), Status::OutOfMemory);
            assert_eq!((a.load(Ordering::Acquire), b.load(Ordering::Acquire)), (2, 0));
            assert_eq!(
                (pool.statistics().requests, pool.model_statistics("a").unwrap().wanted_bytes),
                (2, 0)
            );
            pool.validate().unwrap();
        }
        memory.device().stream_destroy(stream).unwrap();
    });
}

#[test]
fn an_owner_who_does_not_give_is_asked_once_and_sees_what_is_wanted() {
    each(|memory, unit| {
        let pool = pool(memory, 4);
        pool.register("a", 4 * unit, EQUAL).unwrap();
        pool.register("b", 4 * unit, EQUAL).unwrap();
        pool.commit("a", 0, 4 * unit).unwrap();
        let calls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&calls);
        pool.on_reclaim(
            "a",
            Some(Arc::new(move |_| {
                counted.fetch_add(1, Ordering::AcqRel);
            })),
        )
        .unwrap();
        assert_eq!(refused(pool.commit("b", 0, 2 * unit)), Status::OutOfMemory);
        assert_eq!(calls.load(Ordering::Acquire), 1);
        let seen = pool.model_statistics("a").unwrap();
        assert_eq!((seen.wanted_bytes, seen.requests), (2 * unit, 1));
        // The twin of the callback: the owner looks, and gives when it likes.
        pool.decommit("a", 0, 2 * unit, None).unwrap();
        assert_eq!(pool.model_statistics("a").unwrap().wanted_bytes, 0);
        pool.commit("b", 0, 2 * unit).unwrap();
    });
}

#[test]
fn owners_who_ask_each_other_come_to_an_end() {
    each(|memory, unit| {
        let pool = pool(memory, 4);
        for name in ["a", "b", "c"] {
            pool.register(name, 8 * unit, EQUAL).unwrap();
        }
        pool.commit("a", 0, 2 * unit).unwrap();
        pool.commit("b", 0, 2 * unit).unwrap();
        for name in ["a", "b"] {
            let weak = Arc::downgrade(&pool);
            let ask = move |_| drop(weak.upgrade().unwrap().commit(name, 4 * unit, unit));
            pool.on_reclaim(name, Some(Arc::new(ask))).unwrap();
        }
        assert_eq!(refused(pool.commit("c", 0, unit)), Status::OutOfMemory);
        assert_eq!(pool.statistics().used_bytes, 4 * unit);
    });
}

#[test]
fn a_callback_that_was_taken_away_is_not_running_any_more() {
    each(|memory, unit| {
        let pool = pool(memory, 2);
        pool.register("a", 2 * unit, EQUAL).unwrap();
        pool.register("b", 2 * unit, EQUAL).unwrap();
        pool.commit("a", 0, 2 * unit).unwrap();
        let (entered, has_entered) = channel();
        let (go, may_go) = channel::<()>();
        let state = Arc::new(AtomicU64::new(0));
        let (seen, may_go) = (Arc::clone(&state), Arc::new(kavern::sync::Mutex::new(may_go)));
        let slow = move |_| {
            entered.send(()).unwrap();
            let _ = may_go.lock().recv();
            seen.store(1, Ordering::Release);
        };
        pool.on_reclaim("a", Some(Arc::new(slow))).unwrap();
        std::thread::scope(|scope| {
            // It gets what the other leaves behind, or comes too early.
            let asking = scope.spawn(|| drop(pool.commit("b", 0, unit)));
            has_entered.recv().unwrap();
            let leaving = scope.spawn(|| {
                pool.unregister("a").unwrap();
                state.load(Ordering::Acquire)
            });
            go.send(()).unwrap();
            assert_eq!(leaving.join().unwrap(), 1);
            asking.join().unwrap();
        });
        pool.commit("b", 0, 2 * unit).unwrap();
    });
}

#[test]
fn a_pinned_range_keeps_its_model_registered_and_its_pages_in_place() {
    each(|memory, unit| {
        let pool = pool(memory, 4);
        pool.register("a", 4 * unit, EQUAL).unwrap();
        pool.commit("a", 0, 3 * unit).unwrap();
        pool.pin("a", unit, unit).unwrap();
        assert_eq!(refused(pool.decommit("a", 0, 4 * unit, None)), Status::InUse);
        assert_eq!(refused(pool.unregister("a")), Status::InUse);
        assert_eq!(pool.model_statistics("a").unwrap().range.committed_bytes, 3 * unit);
        pool.unpin("a", unit, unit).unwrap();
        pool.unregister("a").unwrap();
        assert_eq!((pool.statistics().used_bytes, pool.statistics().models), (0, 0));
    });
}

#[test]
fn models_come_and_go_while_others_work() {
    each(|memory, unit| {
        let pool = pool(memory, 8);
        let start = Barrier::new(3);
        std::thread::scope(|scope| {
            for (name, pages) in [("short", 3), ("brief", 2)] {
                let (pool, start) = (&pool, &start);
                scope.spawn(move || {
                    start.wait();
                    for _ in 0..50 {
                        pool.register(name, 8 * unit, terms(unit, 1, 0)).unwrap();
                        pool.commit(name, unit, pages * unit).unwrap();
                        pool.unregister(name).unwrap();
                    }
                });
            }
            let (pool, start, device) = (&pool, &start, memory.device());
            scope.spawn(move || {
                pool.register("long", 8 * unit, EQUAL).unwrap();
                pool.commit("long", 0, 2 * unit).unwrap();
                mark(device.as_ref(), pool.slice("long").unwrap().part(0, 2 * unit).unwrap(), 11);
                start.wait();
                for _ in 0..100 {
                    pool.commit("long", 4 * unit, unit).unwrap();
                    pool.decommit("long", 4 * unit, unit, None).unwrap();
                    let kept = pool.slice("long").unwrap().part(0, 2 * unit).unwrap();
                    assert_eq!(marks(device.as_ref(), kept), [11, 11]);
                }
            });
        });
        assert_eq!((pool.statistics().used_bytes, pool.statistics().models), (2 * unit, 1));
        pool.validate().unwrap();
    });
}

#[test]
fn pools_that_share_a_machines_budget_share_its_limit() {
    each(|memory, unit| {
        let name = format!(
            "test-pools-{}-{}",
            std::process::id(),
            memory.device().description().name.replace(':', "-")
        );
        let make = || {
            let machine = Some((name.clone(), 5 * unit));
            let config = SharedConfig { limit_bytes: 4 * unit, machine, ..SharedConfig::default() };
            let pool = SharedPool::new(memory, config).unwrap();
            pool.register("a", 4 * unit, EQUAL).unwrap();
            pool
        };
        let (one, two) = (make(), make());
        one.commit("a", 0, 4 * unit).unwrap();
        let error = two.commit("a", 0, 2 * unit).err().unwrap();
        assert!(error.status == Status::OutOfMemory && error.text.contains(&name), "{}", error.text);
        two.commit("a", 0, unit).unwrap();
        assert_eq!(one.statistics().machine_used_bytes, 5 * unit);
        drop(one);
        two.commit("a", 0, 2 * unit).unwrap();
        assert_eq!(two.statistics().machine_used_bytes, 2 * unit);
        drop(two);
        kavern::sys::tally::unlink(&name).unwrap();
    });
}

#[test]
fn used_and_pooled_are_never_told_as_more_than_the_limit() {
    let memory = super::support::memory_of("host");
    let unit = memory.device().description().page_bytes;
    let pool = pool(&memory, 64);
    ["one", "other"].iter().for_each(|name| pool.register(name, 64 * unit, EQUAL).unwrap());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| {
            for turn in 0..2_000 {
                let name = ["one", "other"][turn % 2];
                pool.commit(name, 0, 64 * unit).unwrap();
                pool.decommit(name, 0, 64 * unit, None).unwrap();
            }
            is_over.store(true, Ordering::Release);
        });
        while !is_over.load(Ordering::Acquire) && !moving.is_finished() {
            let seen = pool.statistics();
            assert!(seen.used_bytes + seen.pooled_bytes <= 64 * unit, "{seen:?}");
        }
    });
    assert_eq!(pool.statistics().pooled_bytes, 64 * unit);
}
