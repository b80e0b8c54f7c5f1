//! The cache on simulated streams: an engine that keeps its promises sees no finding, one that lies about a step does.

use std::sync::Arc;

use fastrand::Rng;
use kavern::cache::{
    CacheConfig, Content, Extra, GroupConfig, HashKind, KvCache, Naming, Op, Request, Scrub, Sizing, Target,
};
use kavern::device::{Device, DeviceSlice, Report, Stream, registry};
use kavern::error::Status;
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory};
use kavern::types::Id;

use super::support::{SCHEDULES, kinds};

const BLOCK_TOKENS: u32 = 4;
const BLOCK_BYTES: u64 = 256;
const STEPS: u64 = 2000;
/// 16 pages of blocks, of which some come and go where the pool is resized.
const MAX_BLOCKS: u64 = 1024;

pub(super) fn config(max_blocks: u64) -> CacheConfig {
    let group = GroupConfig::new(Content::Opaque { block_bytes: BLOCK_BYTES }, BLOCK_TOKENS);
    CacheConfig {
        max_sequence_tokens: 64,
        max_batch_tokens: 256,
        max_namespaces: 8,
        steps_in_flight: 3,
        hash: HashKind::Xxh3,
        scrub: Scrub::TenantChange,
        max_blocks,
        ..CacheConfig::new(vec![group], 40)
    }
}

struct Sequence {
    id: u64,
    namespace: u64,
    /// The group of its blocks.
    group: usize,
    row: usize,
    tokens: Vec<i32>,
    /// Tokens whose keys and values were there before this step.
    ready: usize,
    /// First block's bytes by position are told by the tables of each step.
    lasts: u32,
}

/// Where the blocks of a group lie.
struct Pool {
    slice: DeviceSlice,
    block_tokens: u32,
    block_bytes: u64,
}

impl Pool {
    /// A token in the blocks of a row.
    fn token(&self, row: &[i32], position: usize) -> DeviceSlice {
        let (each, token_bytes) =
            (self.block_tokens as usize, self.block_bytes / u64::from(self.block_tokens));
        let offset = (position % each) as u64 * token_bytes;
        self.slice.part(row[position / each] as u64 * self.block_bytes + offset, token_bytes).unwrap()
    }
}

pub(super) struct Engine {
    pub(super) device: Arc<dyn Device>,
    pub(super) cache: KvCache,
    pools: Vec<Pool>,
    pub(super) random: Rng,
    live: Vec<Sequence>,
    max_tokens: usize,
    pub(super) hit_tokens: u64,
    pub(super) operations: u64,
    /// Whether full blocks hold patterns that tell what is in them, and later steps compare them.
    pub(super) has_patterns: bool,
    /// Size class that requests name; 0 names none.
    pub(super) class: u32,
    /// Steps for which a sequence lasts, at most.
    pub(super) lasts: u32,
}

impl Engine {
    fn new(seed: u64, max_blocks: u64) -> Self {
        Self::of(seed, 16384, &config(max_blocks))
    }

    pub(super) fn of(seed: u64, page_bytes: u64, config: &CacheConfig) -> Self {
        let schedule = SCHEDULES[seed as usize % SCHEDULES.len()];
        let device =
            registry::open(&format!("sim?seed={seed}&schedule={schedule}&page_bytes={page_bytes}")).unwrap();
        let memory = Memory::new(Arc::clone(&device), Limits::default(), Arc::new(NoSink));
        let cache = KvCache::new(&memory, config).unwrap();
        let pool = |group: u32| {
            let about = cache.describe(group).unwrap();
            let bytes = u64::from(about.max_blocks) * about.block_bytes;
            // SAFETY: the pool of the cache, which lives as long as the engine.
            let slice =
                unsafe { DeviceSlice::from_foreign(device.key(), about.base_address, bytes) }.unwrap();
            Pool { slice, block_tokens: about.block_tokens, block_bytes: about.block_bytes }
        };
        Self {
            pools: (0..cache.group_count()).map(pool).collect(),
            device,
            cache,
            random: Rng::with_seed(seed),
            live: Vec::new(),
            max_tokens: config.max_sequence_tokens as usize,
            hit_tokens: 0,
            operations: 0,
            has_patterns: false,
            class: 0,
            lasts: 12,
        }
    }

    /// Admits, appends, commits and frees.
    pub(super) fn schedule(&mut self, step: u64) {
        let namespace = self.random.u64(0..2);
        let prompt: Vec<i32> = (0..self.random.usize(1..self.max_tokens * 5 / 8))
            .map(|_| if self.random.u8(0..12) == 0 { self.random.i32(0..3) } else { 0 })
            .collect();
        let request = Request {
            namespace_id: namespace,
            adapter_id: 0,
            salt: b"",
            naming: Naming::Tokens(&prompt, &[]),
            token_count: prompt.len() as u64,
            no_read: false,
            no_store: false,
            drop_last: false,
            keep_one_token: true,
            sizing: Sizing { class: self.class, expected_tokens: 0 },
        };
        let found = self.cache.lookups().find(&request).unwrap();
        let no_extras: &[Extra] = &[];
        let mut session = self.cache.step(step).unwrap();
        let count = prompt.len() as u64 - found.hit_tokens;
        let admit =
            Op::Admit { lease: found.lease, tokens: count, lookahead: 0, row: -1, expected_tokens: 0 };
        let admitted = session.apply(&admit);
        // Its commit, or the release of the lease.
        self.operations += 2;
        if admitted.status == Status::Ok {
            let naming = Naming::Tokens(&prompt[found.hit_tokens as usize..], no_extras);
            let target = Target::Id(Id(admitted.sequence));
            let committed = session.apply(&Op::Commit { target, tokens: count, naming });
            assert_eq!(committed.status, Status::Ok);
            self.hit_tokens += found.hit_tokens;
            self.live.push(Sequence {
                id: admitted.sequence,
                namespace,
                group: if self.pools.len() > 1 { admitted.group as usize } else { 0 },
                row: admitted.row as usize,
                tokens: prompt.clone(),
                ready: found.hit_tokens as usize,
                // Whoever commits tokens also writes them, so it lasts to the end of its first step.
                lasts: self.random.u32(2..self.lasts),
            });
        } else {
            assert_eq!(session.apply(&Op::Release { lease: found.lease }).status, Status::Ok);
        }
        let mut kept = Vec::new();
        for mut sequence in std::mem::take(&mut self.live) {
            let target = Target::Id(Id(sequence.id));
            sequence.lasts -= 1;
            if sequence.lasts == 0 {
                assert_eq!(session.apply(&Op::Free { target }).status, Status::Ok);
                self.operations += 1;
                continue;
            }
            let is_new = sequence.ready < sequence.tokens.len();
            if !is_new && sequence.tokens.len() < self.max_tokens - 4 {
                let appended = session.apply(&Op::Append { target, tokens: 1, lookahead: 0 });
                self.operations += 1;
                if appended.status == Status::Ok {
                    sequence.tokens.push(self.random.i32(0..3));
                    let naming = Naming::Tokens(&sequence.tokens[sequence.tokens.len() - 1..], no_extras);
                    let committed = session.apply(&Op::Commit { target, tokens: 1, naming });
                    assert_eq!(committed.status, Status::Ok);
                    self.operations += 1;
                }
            }
            kept.push(sequence);
        }
        self.live = kept;
    }

    /// Ends all sequences.
    pub(super) fn free_all(&mut self, step: u64) {
        let mut session = self.cache.step(step).unwrap();
        for sequence in self.live.drain(..) {
            let target = Target::Id(Id(sequence.id));
            assert_eq!(session.apply(&Op::Free { target }).status, Status::Ok);
        }
    }

    /// The model: reads what was there, writes the new tokens, reads the table.
    pub(super) fn run(&mut self, step: u64, stream: Stream) {
        let groups = self.pools.len();
        let tables: Vec<(Vec<i32>, u64, usize)> = self
            .cache
            .tables(step, stream, |tables| {
                let of_group = |group: usize| {
                    let (view, at) = (tables.group(group)?, tables.group_addresses(group));
                    Ok((view.block_table.to_vec(), at.block_table, view.row_cells as usize))
                };
                (0..groups).map(of_group).collect()
            })
            .unwrap();
        for sequence in &mut self.live {
            let (pool, (table, address, cells)) = (&self.pools[sequence.group], &tables[sequence.group]);
            let row = &table[sequence.row * cells..][..*cells];
            let row_bytes = 4 * *cells as u64;
            let row_address = address + sequence.row as u64 * row_bytes;
            // SAFETY: a row of the cache's table.
            let told =
                unsafe { DeviceSlice::from_foreign(self.device.key(), row_address, row_bytes) }.unwrap();
            let mut reads: Vec<DeviceSlice> = (0..sequence.ready).map(|at| pool.token(row, at)).collect();
            reads.push(told);
            let new = sequence.ready..sequence.tokens.len();
            let writes: Vec<DeviceSlice> = new.map(|at| pool.token(row, at)).collect();
            self.device.simulator().unwrap().declare(stream, &reads, &writes).unwrap();
            if self.has_patterns {
                patterns(&self.cache, stream, sequence, pool.block_tokens as usize, row);
            }
            sequence.ready = sequence.tokens.len();
        }
    }
}

/// Blocks that were full before are compared with what they should hold, and those that this step fills are written.
fn patterns(cache: &KvCache, stream: Stream, sequence: &Sequence, each: usize, row: &[i32]) {
    let group = sequence.group as u32;
    let (ready, full) = (sequence.ready / each, sequence.tokens.len() / each);
    // A chain over all tokens up to the end of each block.
    let mut chain = sequence.namespace;
    let seeds: Vec<u64> = sequence.tokens[..full * each]
        .chunks(each)
        .map(|block| {
            block
                .iter()
                .for_each(|&token| chain = (chain ^ (token as u64 + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            chain
        })
        .collect();
    if ready > 0 {
        cache.check_pattern(stream, group, &row[..ready], &seeds[..ready]).unwrap();
    }
    if full > ready {
        cache.fill_pattern(stream, group, &row[ready..full], &seeds[ready..]).unwrap();
    }
}

/// A long run with patterns, one in two in a pool that changes its size: what was seen, and operations.
pub(super) fn soak(seed: u64, steps: u64) -> (Report, u64) {
    let resizes = seed.is_multiple_of(2);
    let engine = Engine { has_patterns: true, ..Engine::new(seed, if resizes { MAX_BLOCKS } else { 0 }) };
    let (engine, report) = play_on(engine, steps, false, |engine, step| {
        if resizes && step.is_multiple_of(5) {
            let blocks = if engine.random.bool() { 20 } else { engine.random.u64(30..=MAX_BLOCKS) };
            engine.cache.resize(0, blocks).unwrap();
        }
    });
    let checked = engine.cache.take_check_result().unwrap();
    assert_eq!(checked.mismatched, 0, "seed {seed}: of {}", checked.checked);
    assert!(checked.checked > steps, "{} blocks compared", checked.checked);
    (report, engine.operations)
}

/// Plays steps on two streams in turn. A liar says that a step is over when it is only enqueued.
fn play(seed: u64, steps: u64, is_liar: bool) -> (Report, u64) {
    let (engine, report) = play_on(Engine::new(seed, 0), steps, is_liar, |_, _| ());
    (report, engine.hit_tokens)
}

/// The same, with something else after each step.
pub(super) fn play_on(
    mut engine: Engine,
    steps: u64,
    is_liar: bool,
    mut also: impl FnMut(&mut Engine, u64),
) -> (Engine, Report) {
    let streams = [engine.device.stream_create().unwrap(), engine.device.stream_create().unwrap()];
    for step in 1..=steps {
        while engine.cache.step(step).map(drop).is_err() {
            // As many steps are in flight as may be.
            streams.iter().for_each(|&stream| engine.device.stream_synchronize(stream).unwrap());
            engine.cache.poll().unwrap();
        }
        let stream = streams[engine.random.usize(..2)];
        engine.schedule(step);
        engine.run(step, stream);
        also(&mut engine, step);
        engine.cache.step_done(step, if is_liar { None } else { Some(stream) }).unwrap();
    }
    engine.device.synchronize().unwrap();
    engine.cache.validate().unwrap();
    let report = engine.device.simulator().unwrap().report().unwrap();
    (engine, report)
}

#[test]
fn two_streams_in_turn_over_two_thousand_steps_have_no_race() {
    for seed in 0..10 {
        let (report, hit_tokens) = play(seed, STEPS, false);
        assert_eq!(kinds(&report), [], "seed {seed}: {}", report.to_json());
        assert!(report.steps > 2 * STEPS && hit_tokens > STEPS, "{hit_tokens} of {} steps", report.steps);
    }
}

#[test]
fn a_step_that_is_said_to_be_over_too_early_is_found() {
    for seed in 0..100 {
        let (report, _) = play(seed, 40, true);
        assert!(report.races() > 0, "seed {seed}");
    }
}

#[test]
fn memory_that_goes_while_steps_are_in_flight_is_never_touched_again() {
    let pages = MAX_BLOCKS * BLOCK_BYTES / 16384;
    for seed in 0..6 {
        let (mut least, mut most) = (u64::MAX, 0);
        let (engine, report) = play_on(Engine::new(seed, MAX_BLOCKS), STEPS, false, |engine, step| {
            if step % 5 == 0 {
                let blocks = if engine.random.bool() { 20 } else { engine.random.u64(30..=MAX_BLOCKS) };
                engine.cache.resize(0, blocks).unwrap();
            }
            let held = engine.cache.statistics().pool_bytes / 16384;
            (least, most) = (least.min(held), most.max(held));
        });
        assert_eq!(kinds(&report), [], "seed {seed}: {}", report.to_json());
        assert!(engine.hit_tokens > STEPS / 2, "{}", engine.hit_tokens);
        assert!(least < 3 && most == pages, "{least} to {most} of {pages} pages");
        let moved = engine.cache.statistics().moved_blocks;
        assert!(moved > STEPS / 4, "{moved} blocks moved");
    }
}
