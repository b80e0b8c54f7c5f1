//! Each call of the device fails in turn: the commit is refused as a whole, and nothing is lost.

use std::panic::{AssertUnwindSafe, catch_unwind};

use kavern::device::Stream;
use kavern::error::Status;
use kavern::memory::{Elastic, ElasticConfig, SharedConfig, SharedPool, Terms};

use super::support::{device_bytes, devices, memory_of, range, with};

const ERRORS: [&str; 2] = ["oom", "device"];
/// More than any scene makes.
const CALLS: u64 = 48;

/// Runs a scene with the first, second, third ... call of one kind failing; returns how often something was refused.
fn each_failure(device: &str, kind: &str, error: &str, scene: impl Fn(&str) -> bool) -> usize {
    let specs = (1..=CALLS).map(|nth| with(device, &format!("fail_nth={nth}&kind={kind}&error={error}")));
    specs.filter(|spec| scene(spec)).count()
}

#[test]
fn a_commit_that_fails_at_any_call_changes_nothing() {
    for device in devices() {
        for error in ERRORS {
            let mut sum = 0;
            for kind in ["virtual", "page"] {
                sum += each_failure(&device, kind, error, |spec| {
                    let memory = memory_of(spec);
                    let unit = memory.device().description().page_bytes;
                    let config = ElasticConfig { capacity_bytes: 128 * unit, page_bytes: 0, has_slabs: true };
                    let Ok(range) = Elastic::new(&memory, config) else { return true };
                    let mut has_failed = false;
                    // Two gaps around what is there, with pages of every size.
                    for (offset, pages) in [(40, 3), (1, 100)] {
                        let before = range.statistics();
                        let held = memory.physical().unwrap().statistics().held_bytes;
                        if let Err(failure) = range.commit(offset * unit, pages * unit) {
                            assert!(failure.text.contains("injected"), "{}", failure.text);
                            assert_eq!(range.statistics(), before, "{spec}");
                            assert_eq!(memory.physical().unwrap().statistics().held_bytes, held, "{spec}");
                            range.commit(offset * unit, pages * unit).unwrap();
                            has_failed = true;
                        }
                        range.validate().unwrap();
                    }
                    drop(range);
                    assert_eq!(memory.physical().unwrap().statistics().held_bytes, 0);
                    memory.trim_pages();
                    if let Some(left) = device_bytes(memory.device().as_ref()) {
                        assert_eq!(left, 0, "{spec}");
                    }
                    has_failed
                });
            }
            assert!(sum > 20, "{device} {error}: {sum} calls failed");
        }
    }
}

#[test]
fn a_decommit_whose_point_cannot_be_marked_gives_nothing_up() {
    for device in devices() {
        for error in ERRORS {
            let failures = each_failure(&device, "event", error, |spec| {
                let memory = memory_of(spec);
                let unit = memory.device().description().page_bytes;
                let range = range(&memory, 4, false);
                range.commit(0, 4 * unit).unwrap();
                let Err(failure) = range.decommit(0, 4 * unit, Some(Stream::DEFAULT)) else {
                    // The point may fail to answer once; the memory is back all the same.
                    drop(range);
                    assert_eq!(memory.physical().unwrap().statistics().held_bytes, 0);
                    return false;
                };
                assert!(failure.text.contains("injected"), "{}", failure.text);
                assert_eq!(range.statistics().committed_bytes, 4 * unit);
                true
            });
            assert_eq!(failures, 2, "{device} {error}: an event is made and recorded");
        }
    }
}

/// Registers two models and moves memory between them; returns whether something was refused.
fn move_between_models(spec: &str) -> bool {
    let memory = memory_of(spec);
    let unit = memory.device().description().page_bytes;
    let config = SharedConfig { limit_bytes: 40 * unit, has_slabs: true, ..SharedConfig::default() };
    let mut has_failed = false;
    let mut note = |error: kavern::error::Error| {
        assert!(error.text.contains("injected"), "{spec}: {}", error.text);
        assert_ne!(error.status, Status::Internal);
        has_failed = true;
    };
    match SharedPool::new(&memory, config) {
        Err(error) => note(error),
        Ok(pool) => {
            let terms = Terms { min_bytes: unit, weight: 1, cap_bytes: 0 };
            for name in ["a", "b"] {
                while let Err(error) = pool.register(name, 64 * unit, terms) {
                    note(error);
                }
            }
            for name in ["a", "b", "a"] {
                while let Err(error) = pool.commit(name, unit, 36 * unit) {
                    note(error);
                    assert_eq!(pool.model_statistics(name).unwrap().range.committed_bytes, 0);
                }
                while let Err(error) = pool.decommit(name, 0, 64 * unit, Some(Stream::DEFAULT)) {
                    note(error);
                    assert_eq!(pool.model_statistics(name).unwrap().range.committed_bytes, 36 * unit);
                }
            }
            pool.validate().unwrap();
        }
    }
    memory.trim_pages();
    if let Some(left) = device_bytes(memory.device().as_ref()) {
        assert_eq!(left, 0, "{spec}");
    }
    has_failed
}

#[test]
fn moving_memory_between_models_survives_the_failure_of_any_call() {
    for device in devices() {
        for error in ERRORS {
            for kind in ["virtual", "page", "stream", "event", "copy"] {
                let least = if kind == "stream" { 2 } else { 1 };
                // A failure may fall where it is made good: it is enough that the scene ends well.
                let failures = each_failure(&device, kind, error, move_between_models);
                assert!(failures >= least || (error == "oom" && kind != "stream"), "{device} {kind} {error}");
            }
        }
    }
}

#[test]
fn memory_whose_scrubbing_failed_is_scrubbed_the_next_time() {
    for device in devices() {
        for nth in 1..8 {
            let memory = memory_of(&with(&device, &format!("fail_nth={nth}&kind=copy")));
            let unit = memory.device().description().page_bytes;
            let config = SharedConfig { limit_bytes: 4 * unit, ..SharedConfig::default() };
            let pool = SharedPool::new(&memory, config).unwrap();
            for name in ["a", "b"] {
                let terms = Terms { min_bytes: 0, weight: 1, cap_bytes: 0 };
                pool.register(name, 4 * unit, terms).unwrap();
            }
            for name in ["a", "b"] {
                while pool.commit(name, 0, 4 * unit).is_err() {}
                let slice = pool.slice(name).unwrap();
                let mut seen = vec![1; slice.bytes() as usize];
                while memory.device().read(slice, &mut seen).is_err() {}
                assert!(seen.iter().all(|&byte| byte == 0), "{name}, call {nth}");
                while memory.device().memset(Stream::DEFAULT, slice, 0x5e).is_err() {}
                memory.device().synchronize().unwrap();
                pool.decommit(name, 0, 4 * unit, None).unwrap();
            }
        }
    }
}

#[test]
fn pages_that_are_being_cleared_stay_mapped_until_their_stream_was_waited_for() {
    for device in devices() {
        for (faults, is_for_ever) in [("fail_rate=0.6", false), ("fail_from=2&error=device", true)] {
            let memory = memory_of(&with(&device, &format!("{faults}&kind=stream")));
            let unit = memory.device().description().page_bytes;
            // Enough that the clearing is still under way when the wait for it is refused.
            let config = SharedConfig { limit_bytes: 64 * unit, ..SharedConfig::default() };
            let pool = (0..100).find_map(|_| SharedPool::new(&memory, config.clone()).ok()).unwrap();
            let terms = Terms { min_bytes: 0, weight: 1, cap_bytes: 0 };
            ["a", "b"].iter().for_each(|name| pool.register(name, 64 * unit, terms).unwrap());
            for name in ["a", "b", "a", "b", "a", "b", "a", "b"] {
                let committed = pool.commit(name, 0, 64 * unit);
                if is_for_ever {
                    // Nobody knows when the pages are free of it, so nobody gets them again.
                    assert_eq!(committed.unwrap_err().status, Status::DeviceLost);
                    break;
                }
                if let Err(error) = committed {
                    assert!(error.text.contains("injected"), "{error}");
                }
                pool.decommit(name, 0, 64 * unit, None).unwrap();
                pool.validate().unwrap();
            }
            drop(pool);
            assert_eq!(memory.device().race_count(), 0);
        }
    }
}

#[test]
fn a_panic_of_the_device_between_two_models_leaves_nothing_behind() {
    if std::env::var_os("KAVERN_TEST_DEVICE").is_some() {
        return;
    }
    let mut panics = 0;
    for nth in 1..120 {
        let spec = format!("host?fail_nth={nth}&error=panic");
        let memory = memory_of(&spec);
        let unit = memory.device().description().page_bytes;
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let config = SharedConfig { limit_bytes: 40 * unit, has_slabs: true, ..SharedConfig::default() };
            let pool = SharedPool::new(&memory, config).unwrap();
            let terms = Terms { min_bytes: 0, weight: 1, cap_bytes: 0 };
            for name in ["a", "b"] {
                pool.register(name, 64 * unit, terms).unwrap();
                pool.commit(name, unit, 36 * unit).unwrap();
                pool.decommit(name, 0, 64 * unit, Some(Stream::DEFAULT)).unwrap();
            }
        }));
        panics += u32::from(ran.is_err());
        assert_eq!(device_bytes(memory.device().as_ref()), Some(0), "{spec}");
    }
    assert!(panics > 30, "{panics}");
}
