//! The real cache against a naive one, operation by operation, on a device whose calls fail now and then.
//!
//! `KAVERN_SEED` replays a run; `KAVERN_SOAK` makes it long: 1 for 10^8 operations, or their number.

#![expect(clippy::unwrap_used, reason = "what is missing in a model test is the fault that it looks for")]

#[path = "model/branches.rs"]
mod branches;
#[path = "model/kinds.rs"]
mod kinds;
#[path = "model/limits.rs"]
mod limits;
#[path = "model/naive.rs"]
mod naive;
#[path = "model/numbers.rs"]
mod numbers;
#[path = "model/positions.rs"]
mod positions;
#[path = "model/retain.rs"]
mod retain;
#[path = "model/retain_ops.rs"]
mod retain_ops;
#[path = "model/unwritten.rs"]
mod unwritten;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use fastrand::Rng;
use kavern::cache::{
    AdaptiveBlocks, CacheConfig, Content, Extra, GroupConfig, HashKind, IndexOptions, KvCache, Naming, Op,
    OpResult, Request, ResetScope, SMALL_BYTES, Scrub, Sizing, Target,
};
use kavern::device::{Device, DeviceSlice, Stream, registry};
use kavern::error::{Error, Status};
use kavern::event::NoSink;
use kavern::format::{BlockShape, Layout};
use kavern::memory::{Limits, Memory};
use kavern::types::{Dtype, Id};
use naive::{Group, Naive, Outcome};

struct Variant {
    name: &'static str,
    block_tokens: &'static [u32],
    blocks: u64,
    hash: HashKind,
    policy: &'static str,
    keys: bool,
    ragged: bool,
    /// The groups are size classes; each sequence names one.
    is_adaptive: bool,
}

const VARIANTS: &[Variant] = &[
    Variant {
        name: "one group, blake3, lru",
        block_tokens: &[4],
        blocks: 48,
        hash: HashKind::Blake3,
        policy: "lru",
        keys: false,
        ragged: true,
        is_adaptive: false,
    },
    Variant {
        name: "two groups, xxh3, lru",
        block_tokens: &[4, 8],
        blocks: 40,
        hash: HashKind::Xxh3,
        policy: "lru",
        keys: false,
        ragged: false,
        is_adaptive: false,
    },
    Variant {
        name: "two groups, xxh3, fifo",
        block_tokens: &[8, 4],
        blocks: 40,
        hash: HashKind::Xxh3,
        policy: "fifo",
        keys: false,
        ragged: false,
        is_adaptive: false,
    },
    Variant {
        name: "opaque, keys, fifo",
        block_tokens: &[1],
        blocks: 64,
        hash: HashKind::Blake3,
        policy: "fifo",
        keys: true,
        ragged: false,
        is_adaptive: false,
    },
    Variant {
        name: "three size classes, xxh3, lru",
        block_tokens: &[2, 4, 8],
        blocks: 40,
        hash: HashKind::Xxh3,
        policy: "lru",
        keys: false,
        ragged: true,
        is_adaptive: true,
    },
];

const MAX_TOKENS: usize = 64;
const MAX_SEQUENCES: u32 = 10;
const MAX_LEASES: u32 = 6;
const MAX_BATCH: u32 = 96;
const STEPS_IN_FLIGHT: u32 = 3;

fn make(variant: &Variant, small_bytes: u64, device: &Arc<dyn Device>) -> KvCache {
    let group = |&block_tokens: &u32| {
        GroupConfig::new(
            match variant.keys {
                true => Content::Opaque { block_bytes: 64 },
                false => Content::Attention(BlockShape {
                    layers: 1,
                    kv_heads: 1,
                    head_dim: 4,
                    dtype: Dtype::F16,
                    block_tokens,
                    layout: Layout::Nhd,
                }),
            },
            block_tokens,
        )
    };
    let config = CacheConfig {
        small_bytes,
        max_sequences: MAX_SEQUENCES,
        max_sequence_tokens: MAX_TOKENS as u64,
        max_batch_tokens: MAX_BATCH,
        max_leases: MAX_LEASES,
        steps_in_flight: STEPS_IN_FLIGHT,
        hash: variant.hash,
        scrub: Scrub::TenantChange,
        event_capacity: 64,
        policy: variant.policy.to_owned(),
        ragged: variant.ragged,
        // Its image is held against the index whenever the cache is validated.
        index: IndexOptions { device: true, chunks: false },
        adaptive: variant.is_adaptive.then(|| AdaptiveBlocks {
            classes: (1..=variant.block_tokens.len() as u32).collect(),
            advisor: "reactive".to_owned(),
            waste_permille: 50,
            table_permille: 20,
        }),
        ..CacheConfig::new(variant.block_tokens.iter().map(group).collect(), variant.blocks)
    };
    let memory = Memory::new(Arc::clone(device), Limits::default(), Arc::new(NoSink));
    until_ok(|| KvCache::new(&memory, &config))
}

/// Every other cache takes the ways of large ones.
fn small_bytes(number: u64) -> u64 {
    if number.is_multiple_of(2) { 0 } else { SMALL_BYTES }
}

/// Repeats a call that the fault wrapper fails at random; anything but an injected failure is a fault of ours.
fn until_ok<T>(mut call: impl FnMut() -> Result<T, Error>) -> T {
    loop {
        match call() {
            Ok(value) => return value,
            Err(error) if error.text.contains("inject") => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn naive(variant: &Variant) -> Naive {
    let group = |&block_tokens: &u32| Group {
        block_tokens: block_tokens as usize,
        blocks: vec![naive::Block::default(); variant.blocks as usize],
        free: (0..variant.blocks as u32).rev().collect(),
        order: VecDeque::new(),
        others: Vec::new(),
        is_fifo: variant.policy == "fifo",
        is_exact: variant.hash == HashKind::Xxh3 && !variant.keys,
        publications: 0,
        index: std::collections::HashMap::new(),
        waiting: std::collections::BTreeMap::new(),
        evicted: 0,
        cached_order: VecDeque::new(),
        held_order: VecDeque::new(),
        published: vec![0; variant.blocks as usize],
    };
    Naive {
        groups: variant.block_tokens.iter().map(group).collect(),
        leases: Default::default(),
        sequences: Default::default(),
        max_tokens: MAX_TOKENS,
        max_sequences: MAX_SEQUENCES as usize,
        max_batch_tokens: MAX_BATCH as usize,
        completed: 0,
        step: 0,
        batch: Default::default(),
        batch_tokens: 0,
        batch_entries: 0,
        limits: Default::default(),
        now_ms: 1000,
        timed: 0,
        expired: 0,
    }
}

/// Plays seeds of a model with bytes and adds up what they did: usually so many, in the longest soak so many, in others
/// one for so many operations. Answers too whether it was but one seed, which `KAVERN_SEED` named.
fn play_seeds<const N: usize>(
    [usual, longest, each]: [u64; 3],
    play: impl Fn(u64) -> [u64; N] + std::panic::RefUnwindSafe,
) -> ([u64; N], bool) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let runs =
        number("KAVERN_SOAK").map_or(usual, |count| if count == 1 { longest } else { count.div_ceil(each) });
    let only = number("KAVERN_SEED");
    let mut sums = [0; N];
    for seed in only.map_or(0..runs, |seed| seed..seed + 1) {
        match std::panic::catch_unwind(|| play(seed)) {
            Ok(done) => sums.iter_mut().zip(done).for_each(|(sum, count)| *sum += count),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                panic!("diverged with KAVERN_SEED={seed}: {text}");
            }
        }
    }
    (sums, only.is_some())
}

/// Keys that stand for token prefixes, as a caller would chain them.
fn keys_of(tokens: &[i32], from: usize) -> Vec<u8> {
    (from..tokens.len())
        .flat_map(|end| {
            let prefix = tokens[..=end].iter().map(|t| *t as u8).collect::<Vec<_>>();
            let mut key = [0u8; 32];
            // Two bits a token: prompts have at most 64 tokens of four kinds, and the length tells them apart.
            prefix.iter().enumerate().for_each(|(i, t)| key[i / 4] |= t << (2 * (i % 4)));
            key[24..].copy_from_slice(&(prefix.len() as u64).to_le_bytes());
            key
        })
        .collect()
}

struct Run<'a> {
    /// Steps that were declared done on the gated stream, and what opens the gate. First, so that a panic opens all.
    gated: VecDeque<(u64, Sender<()>)>,
    variant: &'a Variant,
    random: Rng,
    device: Arc<dyn Device>,
    stream: Stream,
    cache: KvCache,
    model: Naive,
    ended: Vec<u64>,
    operations: u64,
    /// Steps that are begun and not declared done.
    open_steps: usize,
}

impl Run<'_> {
    fn prompt(&mut self) -> Vec<i32> {
        // Four kinds of token with a strong favourite: prompts share prefixes often and part often.
        let length = self.random.usize(0..MAX_TOKENS);
        (0..length).map(|_| if self.random.u8(0..8) == 0 { self.random.i32(0..4) } else { 0 }).collect()
    }

    fn lookup(&mut self) {
        let (namespace, prompt) = (self.random.u64(0..3), self.prompt());
        let [keep_one_token, drop_last, no_store, no_read] =
            [6, 8, 8, 10].map(|one_in| self.random.u8(0..one_in) == 0);
        let class =
            if self.variant.is_adaptive { self.random.u32(1..=self.model.groups.len() as u32) } else { 0 };
        let only = (class as usize).checked_sub(1);
        let keys = keys_of(&prompt, 0);
        let request = Request {
            namespace_id: namespace,
            adapter_id: 0,
            salt: b"",
            naming: match self.variant.keys {
                true => Naming::Keys { bytes: &keys, key_bytes: 32 },
                false => Naming::Tokens(&prompt, &[]),
            },
            token_count: prompt.len() as u64,
            no_read,
            no_store,
            drop_last,
            keep_one_token,
            sizing: Sizing { class, expected_tokens: 0 },
        };
        let probed = self.cache.probe(&request).unwrap();
        let mut lookups = self.cache.lookups();
        let found = match lookups.find(&request) {
            Ok(found) => found,
            Err(error) => {
                assert_eq!(error.status, Status::LimitReached);
                assert_eq!(self.model.leases.len(), MAX_LEASES as usize);
                return;
            }
        };
        let (hit, blocks) = match no_read {
            true => (0, vec![Vec::new(); self.model.groups.len()]),
            false => self.model.find(namespace, &prompt, keep_one_token, drop_last, only),
        };
        assert_eq!((found.hit_tokens as usize, probed as usize), (hit, hit), "prompt {prompt:?}");
        let ids: Vec<u32> = lookups.blocks(found.lease).unwrap().map(|block| block as u32).collect();
        assert_eq!(ids, blocks.concat());
        drop(lookups);
        assert_eq!(found.group.map(|group| group as usize), only);
        self.model.hold(found.lease.0, namespace, no_store, &prompt[..hit], blocks, only);
    }

    fn some_id(&mut self, of_leases: bool) -> u64 {
        let mut ids: Vec<u64> = match of_leases {
            true => self.model.leases.keys().copied().collect(),
            false => self.model.sequences.keys().copied().collect(),
        };
        ids.sort_unstable();
        match self.random.u8(0..30) {
            0 => self.ended.get(self.random.usize(0..self.ended.len().max(1))).copied().unwrap_or(7),
            1 => self.random.u64(..),
            _ => self.random.choice(&ids).copied().unwrap_or(0),
        }
    }

    /// A list of random operations, each checked at once.
    fn step(&mut self, step: u64) {
        self.pass(step);
        let cache = std::ptr::from_ref(&self.cache);
        // SAFETY: the cache lives as long as `self`, and the loop below does not replace it.
        let cache: &KvCache = unsafe { &*cache };
        let mut session = until_ok(|| cache.step_at(step, self.model.now_ms));
        if self.model.step != step {
            self.model.begin_step(step);
        }
        self.open_steps = 1;
        for _ in 0..self.random.usize(1..8) {
            self.operations += 1;
            let (tokens, lookahead) = (self.random.usize(0..24), [0, 0, 0, 5][self.random.usize(0..4)]);
            match self.random.u8(0..14) {
                0..=3 => {
                    let lease = self.some_id(true);
                    let op = Op::Admit {
                        lease: Id(lease),
                        tokens: tokens as u64,
                        lookahead: lookahead as u32,
                        row: -1,
                        expected_tokens: 0,
                    };
                    let (result, expected) = (session.apply(&op), self.model.admit(lease, tokens, lookahead));
                    check(&op, &result, &expected);
                    if expected.is_ok() {
                        self.ended.push(lease);
                        self.model.apply_admit(lease, tokens, lookahead, result.sequence);
                        let target = Target::Admitted(Ok(Id(result.sequence)));
                        if !self.commit(&mut session, target, result.sequence) {
                            break;
                        }
                    }
                }
                4..=5 => {
                    let id = self.some_id(false);
                    let tokens = tokens / 4;
                    let op = Op::Append {
                        target: Target::Id(Id(id)),
                        tokens: tokens as u64,
                        lookahead: lookahead as u32,
                    };
                    let (result, expected) = (session.apply(&op), self.model.append(id, tokens, lookahead));
                    check(&op, &result, &expected);
                    if expected.is_err() {
                        // What depends on a refused operation of the same list is refused too.
                        let op = Op::Append { target: Target::Id(Id(id)), tokens: 0, lookahead: 0 };
                        let is_live = self.model.sequences.contains_key(&id);
                        let status = if is_live { Status::Dependency } else { Status::StaleId };
                        assert_eq!(session.apply(&op).status, status);
                        break;
                    }
                }
                6..=7 => {
                    let id = self.some_id(false);
                    if !self.commit(&mut session, Target::Id(Id(id)), id) {
                        break;
                    }
                }
                8..=9 => {
                    let id = self.some_id(false);
                    let op = Op::Free { target: Target::Id(Id(id)) };
                    check(&op, &session.apply(&op), &self.model.free(id));
                    self.ended.push(id);
                }
                10 => self.retain(&mut session),
                _ => {
                    let lease = self.some_id(true);
                    let op = Op::Release { lease: Id(lease) };
                    check(&op, &session.apply(&op), &self.model.release(lease));
                    self.ended.push(lease);
                }
            }
        }
        let keep = self.ended.len().saturating_sub(64);
        self.ended.drain(..keep);
    }

    fn commit(&mut self, session: &mut kavern::cache::StepSession<'_>, target: Target, id: u64) -> bool {
        self.operations += 1;
        let holder = self.model.sequences.get(&id);
        let open = holder.map_or(3, |h| h.length - h.tokens.len());
        let count = if self.random.u8(0..20) == 0 { open + 1 } else { self.random.usize(0..=open) };
        let mut tokens = holder.map_or(Vec::new(), |h| h.tokens.clone());
        let before = tokens.len();
        (0..count)
            .for_each(|_| tokens.push(if self.random.u8(0..8) == 0 { self.random.i32(0..4) } else { 0 }));
        let keys = keys_of(&tokens, before);
        let no_extras: &[Extra] = &[];
        let naming = match self.variant.keys {
            true => Naming::Keys { bytes: &keys, key_bytes: 32 },
            false => Naming::Tokens(&tokens[before..], no_extras),
        };
        let op = Op::Commit { target, tokens: count as u64, naming };
        let (result, expected) = (session.apply(&op), self.model.commit(id, &tokens[before..]));
        check(&op, &result, &expected);
        expected.is_ok()
    }

    /// Ends the step in one of several ways.
    fn end(&mut self, step: u64) {
        self.open_steps = 0;
        match self.random.u8(0..4) {
            // The work is over; what is below and runs still holds it back.
            0 | 1 if self.gated.is_empty() => {
                until_ok(|| self.cache.step_done(step, None));
                self.model.complete(&[step]);
            }
            _ => {
                // A gate that the fault wrapper refuses is gone: make another.
                let open = until_ok(|| {
                    let (open, gate) = channel::<()>();
                    let wait = Box::new(move || gate.recv().unwrap_or(()));
                    self.device.stream_callback(self.stream, wait).map(|()| open)
                });
                until_ok(|| self.cache.step_done(step, Some(self.stream)));
                self.gated.push_back((step, open));
            }
        }
        while self.gated.len() >= STEPS_IN_FLIGHT as usize || (!self.gated.is_empty() && self.random.bool()) {
            self.open_gate();
        }
    }

    fn open_gate(&mut self) {
        let (step, open) = self.gated.pop_front().unwrap();
        drop(open);
        if self.gated.is_empty() {
            until_ok(|| self.device.stream_synchronize(self.stream));
        } else {
            // The mark of this step comes before the next gate; only its event can tell.
            while !self.is_front_complete() {
                std::thread::yield_now();
            }
        }
        until_ok(|| self.cache.poll());
        self.model.complete(&[step]);
    }

    fn is_front_complete(&self) -> bool {
        until_ok(|| self.cache.poll());
        self.cache.statistics().steps_in_flight as usize <= self.gated.len() + self.open_steps
    }

    fn compare(&self) {
        let real = self.cache.statistics();
        let groups = &self.model.groups;
        let sum = |of: &dyn Fn(&Group) -> usize| groups.iter().map(of).sum::<usize>() as u64;
        assert_eq!(real.free_blocks, sum(&|g| g.free.len()), "free");
        assert_eq!(real.inactive_blocks, sum(&|g| g.inactive()), "inactive");
        assert_eq!(real.deferred_blocks, sum(&|g| g.waiting.values().map(Vec::len).sum()), "waiting");
        assert_eq!(real.indexed_blocks, sum(&|g| g.index.len()), "findable");
        assert_eq!(real.evicted_blocks, groups.iter().map(|g| g.evicted).sum::<u64>(), "evicted");
        assert_eq!(
            real.lookup_blocks,
            real.hit_blocks + real.missed_blocks + real.skipped_blocks,
            "outcomes"
        );
        assert_eq!(real.sequences as usize, self.model.sequences.len());
        assert_eq!(real.leases as usize, self.model.leases.len());
        assert_eq!(real.used_tokens as usize, self.model.sequences.values().map(|s| s.length).sum::<usize>());
    }

    /// Host and device tables hold what the model says.
    fn compare_tables(&mut self, step: u64) {
        let tokens: usize = self
            .model
            .batch
            .iter()
            .filter(|(id, _)| self.model.sequences.contains_key(id))
            .map(|(_, b)| b.1)
            .sum();
        let outcome = loop {
            let read = self.cache.tables(step, self.stream, |tables| {
                assert_eq!(tables.token_count(), tokens);
                let [_, _, lengths] = tables.addresses();
                let mut groups = Vec::new();
                for group in 0..self.model.groups.len() {
                    groups.push((tables.group_addresses(group), tables.group(group)?.slot_mapping.to_vec()));
                }
                Ok((lengths, groups))
            });
            match read {
                Ok(outcome) => break outcome,
                Err(error) => {
                    assert!(error.text.contains("inject"), "{error}");
                    // What a failed call left enqueued holds its staging: no gate may stay closed.
                    while !self.gated.is_empty() {
                        self.open_gate();
                    }
                }
            }
        };
        if !self.gated.is_empty() || self.random.clone().u8(0..16) != 0 {
            return;
        }
        until_ok(|| self.device.stream_synchronize(self.stream));
        let (lengths, groups) = outcome;
        let key = self.device.key();
        // SAFETY: the cache's own tables, which live as long as the cache.
        let words = |address: u64, count: usize| unsafe {
            let slice = DeviceSlice::from_foreign(key, address, 4 * count as u64).unwrap();
            let mut bytes = vec![0u8; 4 * count];
            until_ok(|| self.device.read(slice, &mut bytes));
            bytes.chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
        };
        let lengths = words(lengths, MAX_SEQUENCES as usize);
        let live: i64 = lengths.iter().map(|&length| i64::from(length)).sum();
        assert_eq!(live as usize, self.model.sequences.values().map(|s| s.length).sum::<usize>());
        for (index, group) in self.model.groups.iter().enumerate() {
            let cells = MAX_TOKENS.div_ceil(group.block_tokens);
            let table = words(groups[index].0.block_table, cells * MAX_SEQUENCES as usize);
            for (id, holder) in &self.model.sequences {
                let row = (id & 0xff_ffff) as usize;
                assert_eq!(lengths[row] as usize, holder.length);
                let on_device: Vec<u32> =
                    table[row * cells..][..holder.blocks[index].len()].iter().map(|&b| b as u32).collect();
                assert_eq!(on_device, holder.blocks[index], "row {row} of group {index}");
            }
        }
    }
}

fn check(op: &Op<'_>, result: &OpResult, expected: &Outcome) {
    match expected {
        Ok(answer) => {
            assert_eq!(result.status, Status::Ok, "{op:?}");
            assert_eq!(result.blocks_added as usize, answer.added, "{op:?}");
            assert_eq!(result.blocks_committed as usize, answer.committed, "{op:?}");
        }
        Err((status, missing)) => {
            assert_eq!(result.status, *status, "{op:?}");
            assert_eq!(result.blocks_missing as usize, *missing, "{op:?}");
        }
    }
}

/// Answers how many priorities ended by themselves.
fn play(variant: &Variant, seed: u64, operations: u64) -> u64 {
    // The gate blocks the stream, so its own faults are drawn by the wrapper too.
    let spec = format!("host?memory_bytes=67108864&fail_rate=0.002&seed={seed}&error=oom");
    let device = until_ok(|| registry::open(&spec));
    let stream = until_ok(|| device.stream_create());
    let mut run = Run {
        variant,
        random: Rng::with_seed(seed),
        stream,
        cache: make(variant, small_bytes(seed / (2 * VARIANTS.len() as u64)), &device),
        model: naive(variant),
        device,
        gated: VecDeque::new(),
        ended: Vec::new(),
        operations: 0,
        open_steps: 0,
    };
    if seed / VARIANTS.len() as u64 % 2 == 1 {
        // One that caches within a limit: of two that are over at once, the cache chooses which gives first.
        for (namespace, limit) in [(0, (16, 6)), (1, (24, kavern::cache::NO_LIMIT))] {
            run.cache.limit_namespace(namespace, limit.0, limit.1).unwrap();
            run.model.limits.insert(namespace, limit);
        }
    }
    let mut step = 0;
    while run.operations < operations {
        step += 1 + run.random.u64(0..3);
        for _ in 0..run.random.usize(0..3) {
            run.lookup();
        }
        run.step(step);
        if run.random.bool() {
            run.compare_tables(step);
        }
        if run.random.u8(0..40) == 0 {
            let (group, count) = (run.random.usize(0..run.model.groups.len()), run.random.usize(0..6));
            let evicted = until_ok(|| run.cache.evict(group as u32, count as u64));
            assert_eq!(evicted as usize, run.model.evict(group, count));
        }
        if run.random.u8(0..200) == 0 {
            let scope = if run.random.bool() { None } else { Some(run.random.u64(0..3)) };
            let removed = until_ok(|| run.cache.reset(scope.map_or(ResetScope::All, ResetScope::Namespace)));
            assert_eq!(removed as usize, run.model.reset(scope));
        }
        run.end(step);
        run.compare();
        if step % 64 < 3 {
            run.cache.validate().unwrap();
        }
    }
    while !run.gated.is_empty() {
        run.open_gate();
    }
    run.compare();
    run.cache.validate().unwrap();
    run.model.expired
}

#[test]
fn the_cache_equals_the_naive_one_over_a_million_operations() {
    let soak = std::env::var("KAVERN_SOAK").ok().and_then(|count| count.parse::<u64>().ok());
    let soak = soak.map(|count| if count == 1 { 100_000_000 } else { count });
    let first_seed = std::env::var("KAVERN_SEED").ok().and_then(|seed| seed.parse().ok());
    let each = 10_000;
    let runs = soak.unwrap_or(1_000_000) / each;
    let mut expired = 0;
    for index in 0..first_seed.map_or(runs, |_| VARIANTS.len() as u64) {
        let variant = &VARIANTS[(index % VARIANTS.len() as u64) as usize];
        let seed = first_seed.unwrap_or(index);
        let outcome = std::panic::catch_unwind(|| play(variant, seed, each));
        match outcome {
            Ok(count) => expired += count,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                panic!("{}, diverged with KAVERN_SEED={seed}: {text}", variant.name);
            }
        }
    }
    assert!(expired > 100 || first_seed.is_some(), "{expired} priorities ended");
}
