//! What must not be found: correct programs. And what must be the same: two runs with one seed.

use fastrand::Rng;
use kavern::device::{FindingKind, Report};

use super::careful::careful;
use super::support::{Engine, SCHEDULES, kinds, spec};

/// Operations of the random programs, all seeds together; `KAVERN_SOAK` makes it long: 1 for 10^7, or their
/// number.
const OPERATIONS: u64 = 1_000_000;
/// Operations of one seed.
const OPERATIONS_EACH: u64 = 5000;

#[test]
fn a_million_careful_operations_are_not_accused() {
    let soak = std::env::var("KAVERN_SOAK").ok().and_then(|count| count.parse::<u64>().ok());
    let wanted = soak.map_or(OPERATIONS, |count| if count == 1 { 10_000_000 } else { count });
    for seed in 0..wanted.div_ceil(OPERATIONS_EACH) {
        let mut engine = Engine::new(&spec(seed));
        careful(&mut engine, &mut Rng::with_seed(seed), OPERATIONS_EACH);
        let report = engine.finish();
        assert_eq!(kinds(&report), [], "seed {seed}: {}", report.to_json());
        assert!(report.steps > OPERATIONS_EACH);
    }
}

/// A program with bugs, so that there is something to compare.
fn careless(spec: &str) -> Report {
    careless_on(Engine::new(spec))
}

fn careless_on(mut engine: Engine) -> Report {
    careful(&mut engine, &mut Rng::with_seed(5), 500);
    for round in 0..20 {
        engine.launch(engine.compute, &[engine.block(round)], &[engine.block(round + 1)]);
        engine.offload(engine.transfer, round, 0);
        engine.noise(3);
    }
    engine.finish()
}

#[test]
fn one_seed_gives_one_trace_and_one_report() {
    for schedule in SCHEDULES {
        let spec = |seed: u64| format!("sim?seed={seed}&schedule={schedule}");
        let comparable = |spec: &str| {
            let mut report = careless(spec);
            // Each open has addresses of its own, and the system chooses those of pinned memory.
            report.findings.iter_mut().for_each(|finding| finding.address = 0);
            report
        };
        let (first, again, other) = (comparable(&spec(1)), comparable(&spec(1)), comparable(&spec(2)));
        assert_eq!(first, again, "{schedule}");
        assert!(first.races() > 0 && other.races() > 0);
        if !matches!(schedule, "fair" | "latest") {
            assert_ne!(first.trace_hash, other.trace_hash, "{schedule}");
        }
    }
}

#[test]
fn another_seed_takes_over_where_it_is_set() {
    let opened = careless("sim?seed=9");
    let engine = Engine::new("sim?seed=1");
    engine.device.simulator().unwrap().reseed(9).unwrap();
    let reseeded = careless_on(engine);
    assert_eq!((reseeded.seed, reseeded.trace_hash), (9, opened.trace_hash));
    assert_ne!(careless("sim?seed=1").trace_hash, opened.trace_hash);
}

#[test]
fn a_destroyed_stream_and_an_unrecorded_event_are_told_but_are_no_races() {
    let engine = Engine::new("sim?seed=3");
    let stream = engine.device.stream_create().unwrap();
    engine.device.stream_destroy(stream).unwrap();
    engine.device.stream_synchronize(stream).unwrap_err();
    engine.device.stream_wait_event(engine.compute, engine.event()).unwrap();
    let report = engine.finish();
    assert_eq!(kinds(&report), [FindingKind::UnrecordedWait, FindingKind::StaleHandle]);
    assert_eq!(report.races(), 0);
}

#[test]
fn a_late_read_sees_poison_and_addresses_are_not_handed_out_again() {
    let engine = Engine::new("sim?seed=3");
    let first = engine.device.memory_allocate(4096).unwrap();
    engine.device.memory_free(first).unwrap();
    for _ in 0..1000 {
        let next = engine.device.memory_allocate(4096).unwrap();
        assert_ne!(next.address(), first.address());
        engine.device.memory_free(next).unwrap();
    }
    let mut bytes = [0; 4096];
    engine.device.read(first, &mut bytes).unwrap();
    assert_eq!(bytes, [0xdb; 4096]);
    engine.device.write(first, &[1; 4096]).unwrap();
    assert_eq!(kinds(&engine.finish()), [FindingKind::UseAfterFree]);
}

#[test]
fn threads_that_hand_over_are_in_order_unless_asked_otherwise() {
    for (threads, races) in [("ordered", false), ("separate", true)] {
        let engine = Engine::new(&format!("sim?seed=1&threads={threads}"));
        engine.launch(engine.compute, &[], &[engine.block(1)]);
        engine.synchronize(engine.compute);
        std::thread::scope(|scope| {
            scope.spawn(|| engine.launch(engine.other, &[engine.block(1)], &[]));
        });
        let report = engine.finish();
        assert_eq!(report.count(FindingKind::ReadAfterWrite) > 0, races, "{threads}");
    }
}
