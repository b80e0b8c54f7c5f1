//! Size classes on simulated streams: memory moves from one class to another while steps that read both are in flight,
//! and an engine that says too early that a step is over is found where that memory went.

use kavern::cache::{AdaptiveBlocks, CacheConfig, Content, GroupConfig, advisor_names};
use kavern::device::{FindingKind, Report};

use super::cache::{Engine, config, play_on};
use super::support::kinds;

const PAGE: u64 = 4096;
/// A token takes a quarter of a page, so that few of them fill what pages come and go in.
const TOKEN_BYTES: u64 = PAGE / 4;
/// Tokens of each class at the beginning: three times 32 pages.
const TOKENS: u64 = 384;
const STEPS: u64 = 2000;
/// Steps for which most requests name the same class.
const PHASE: u64 = 350;

fn classes(advisor: &str) -> CacheConfig {
    let group = |block_tokens: u32| {
        GroupConfig::new(Content::Opaque { block_bytes: TOKEN_BYTES * u64::from(block_tokens) }, block_tokens)
    };
    CacheConfig {
        groups: [4, 8, 16].map(group).to_vec(),
        capacity_blocks: 0,
        capacity_bytes: 3 * TOKENS * TOKEN_BYTES,
        max_blocks: 3 * TOKENS / 4,
        max_sequences: 24,
        max_batch_tokens: 1024,
        adaptive: Some(AdaptiveBlocks {
            classes: vec![1, 2, 3],
            advisor: advisor.to_owned(),
            waste_permille: 100,
            table_permille: 200,
        }),
        ..config(0)
    }
}

fn engine(seed: u64, has_patterns: bool) -> Engine {
    let advisor = advisor_names().nth(seed as usize % 2).unwrap();
    let mut engine = Engine::of(seed, PAGE, &classes(advisor));
    (engine.lasts, engine.has_patterns) = (30, has_patterns);
    engine
}

fn bytes(engine: &Engine) -> [u64; 3] {
    [0, 1, 2].map(|group| {
        let about = engine.cache.describe(group).unwrap();
        u64::from(about.blocks) * about.block_bytes
    })
}

/// What was seen, the engine, and how many bytes each class gave away.
fn play(engine: Engine, steps: u64) -> (Engine, Report, [u64; 3]) {
    // What all classes may have together: a caller's own resizes change it.
    let mut most: u64 = bytes(&engine).iter().sum();
    let (engine, report) = play_on(engine, steps, false, |engine, step| {
        let phase = 1 + (step / PHASE % 3) as u32;
        engine.class = if engine.random.u8(0..8) == 0 { 0 } else { phase };
        // Inside the step, whose work is enqueued by now; other polls come between steps.
        if engine.random.bool() {
            engine.cache.poll().unwrap();
        }
        if engine.random.u16(0..400) == 0 {
            let group = engine.random.u32(0..3);
            let about = engine.cache.describe(group).unwrap();
            let blocks = engine.random.u64(8..=u64::from(about.max_blocks) / 3);
            most = most - u64::from(about.blocks) * about.block_bytes + blocks * about.block_bytes;
            engine.cache.resize(group, blocks).unwrap();
        }
        let now = bytes(engine);
        assert!(now.iter().sum::<u64>() <= most, "{now:?} of {most}");
    });
    let given = [0, 1, 2].map(|group| engine.cache.class_statistics(group).unwrap().given_bytes);
    (engine, report, given)
}

/// A long run with patterns: what was seen, and operations.
pub(super) fn soak(seed: u64, steps: u64) -> (Report, u64) {
    let (engine, report, _) = play(engine(seed, true), steps);
    let checked = engine.cache.take_check_result().unwrap();
    assert_eq!(checked.mismatched, 0, "seed {seed}: of {}", checked.checked);
    assert!(checked.checked > steps, "{} blocks compared", checked.checked);
    (report, engine.operations)
}

#[test]
fn memory_that_moves_between_classes_is_not_touched_by_steps_in_flight() {
    let mut all = [0; 3];
    for seed in 0..6 {
        let (engine, report, given) = play(engine(seed, true), STEPS);
        assert_eq!(kinds(&report), [], "seed {seed}: {}", report.to_json());
        let checked = engine.cache.take_check_result().unwrap();
        assert_eq!(checked.mismatched, 0, "seed {seed}: of {}", checked.checked);
        assert!(checked.checked > STEPS && engine.hit_tokens > STEPS, "{checked:?}, {}", engine.hit_tokens);
        assert!(given.iter().sum::<u64>() > TOKENS * TOKEN_BYTES, "seed {seed}: {given:?} bytes moved");
        all = [0, 1, 2].map(|class| all[class] + given[class]);
    }
    assert!(all.iter().all(|&given| given > 0), "every class gave: {all:?}");
}

/// A step reads all of the small class, whose sequences then end; the large class is short until it has some of that
/// memory. A liar says of the step that it is over when it is only enqueued.
fn plant(seed: u64, is_liar: bool) -> Report {
    let mut engine = engine(seed, false);
    let [one, other] = [0, 1].map(|_| engine.device.stream_create().unwrap());
    let said = if is_liar { None } else { Some(one) };
    let given = |engine: &Engine| engine.cache.class_statistics(0).unwrap().given_bytes;
    (engine.class, engine.lasts) = (1, 1 << 20);
    (0..24).for_each(|_| engine.schedule(1));
    engine.run(1, one);
    engine.cache.step_done(1, Some(one)).unwrap();
    engine.device.synchronize().unwrap();
    drop(engine.cache.step(2).unwrap());
    engine.run(2, one);
    engine.cache.step_done(2, said).unwrap();
    engine.free_all(3);
    engine.cache.step_done(3, said).unwrap();
    engine.class = 3;
    let mut moved_at = None;
    for step in 4u64.. {
        while engine.cache.step(step).map(drop).is_err() {
            engine.device.stream_synchronize(other).unwrap();
            if !is_liar {
                engine.device.stream_synchronize(one).unwrap();
            }
        }
        engine.schedule(step);
        engine.run(step, other);
        engine.cache.step_done(step, Some(other)).unwrap();
        engine.cache.poll().unwrap();
        // Some steps more, in which the large class uses what it got.
        let since = if given(&engine) > 0 { moved_at.get_or_insert(step) } else { &step };
        if step - *since == 8 {
            break;
        }
        assert!(step < 1000, "seed {seed}: nothing moved");
    }
    engine.device.synchronize().unwrap();
    engine.cache.validate().unwrap();
    engine.device.simulator().unwrap().report().unwrap()
}

#[test]
fn memory_that_goes_to_another_class_while_a_step_reads_it_is_found() {
    for seed in 0..20 {
        let honest = plant(seed, false);
        assert_eq!(kinds(&honest), [], "seed {seed}: {}", honest.to_json());
        let found = plant(seed, true);
        assert!(found.count(FindingKind::FreeWhilePending) > 0, "seed {seed}: {}", found.to_json());
    }
}
