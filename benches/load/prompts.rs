//! Whole prompts in a cache without memory, one at a time: stored, looked up, evicted, and what that costs a block.
//!
//! The prompts of a pool are looked up in a random order, so in a large one hardly a cell or a block is in the
//! processor's caches.

use std::sync::Arc;

use kavern::cache::{
    CacheConfig, Content, GroupConfig, HashKind, KvCache, Naming, Op, Reach, Request, Target,
};
use kavern::device::registry;
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory};
use kavern::sys::clock;
use kavern::types::Id;

use crate::blocks;

const BLOCK_TOKENS: u32 = 16;
/// Blocks of the longest prompt, which has 128 Ki tokens.
const PROMPT_BLOCKS: u64 = 8192;
pub(crate) const LONG_TOKENS: u64 = PROMPT_BLOCKS * BLOCK_TOKENS as u64;
const KEY_BYTES: usize = 32;
/// Most blocks that one call evicts.
const EVICTED: u64 = 1024;

/// A second group beside one that needs every block: what it needs, and the tokens of its blocks.
pub(crate) type Beside = (Reach, u32);
pub(crate) const COARSE: Beside = (Reach::All, 2 * BLOCK_TOKENS);
pub(crate) const SLIDING: Beside = (Reach::Sliding { window_tokens: 4096 }, BLOCK_TOKENS);
pub(crate) const WIDE: Beside = (Reach::Sliding { window_tokens: 65_536 }, BLOCK_TOKENS);
pub(crate) const STATE: Beside = (Reach::State { snapshot_blocks: 0 }, BLOCK_TOKENS);

/// How the blocks of a prompt get their names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Named {
    Keys,
    By(HashKind),
}

impl Named {
    fn hash(self) -> HashKind {
        match self {
            Self::Keys => HashKind::Blake3,
            Self::By(hash) => hash,
        }
    }

    fn naming<'a>(self, bytes: &'a [u8], ids: &'a [i32]) -> Naming<'a> {
        match self {
            Self::Keys => Naming::Keys { bytes, key_bytes: KEY_BYTES as u32 },
            Self::By(_) => Naming::Tokens(ids, &[]),
        }
    }
}

/// Keys of a prompt, unlike those of any other.
fn keys(prompt: u64, blocks: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(prompt);
    let mut bytes = vec![0; blocks as usize * KEY_BYTES];
    random.fill(&mut bytes);
    bytes
}

fn request(naming: Naming<'_>, tokens: u64) -> Request<'_> {
    Request::new(1, naming, tokens)
}

struct Prompts {
    cache: KvCache,
    step: u64,
}

impl Prompts {
    /// A cache of one group that needs every block, and of those `beside` it.
    fn new(blocks: u64, hash: HashKind, beside: Option<Beside>) -> Self {
        let tokens = blocks.min(PROMPT_BLOCKS) * u64::from(BLOCK_TOKENS);
        let group = |(reach, block_tokens)| GroupConfig {
            reach,
            ..GroupConfig::new(Content::Opaque { block_bytes: 64 }, block_tokens)
        };
        let config = CacheConfig {
            groups: std::iter::once((Reach::All, BLOCK_TOKENS)).chain(beside).map(group).collect(),
            hash,
            max_sequence_tokens: tokens,
            max_batch_tokens: tokens as u32,
            ..blocks::config(blocks)
        };
        let device = registry::open("host").expect("the host opens");
        let memory = Memory::new(device, Limits::default(), Arc::new(NoSink));
        Self { cache: KvCache::new(&memory, &config).expect("there is memory"), step: 0 }
    }

    fn step(&mut self, op: &Op<'_>) -> u64 {
        self.step += 1;
        let mut step = self.cache.step(self.step).expect("ids rise");
        let result = step.apply(op);
        assert_eq!(result.status, kavern::error::Status::Ok);
        drop(step);
        self.cache.step_done(self.step, None).expect("the step is open");
        result.sequence
    }

    /// Stores a prompt; answers the nanoseconds of its commit.
    fn store(&mut self, request: &Request<'_>) -> u64 {
        let lease = self.cache.lookups().find(request).expect("a lease is free").lease;
        let tokens = request.token_count;
        let sequence = self.step(&Op::Admit { lease, tokens, lookahead: 0, row: -1, expected_tokens: 0 });
        let target = Target::Id(Id(sequence));
        let start = clock::now_ns();
        self.step(&Op::Commit { target, tokens, naming: request.naming });
        let spent = clock::now_ns() - start;
        self.step(&Op::Free { target });
        spent
    }

    /// Looks a stored prompt up and lets go of it; answers the nanoseconds.
    fn visit(&mut self, request: &Request<'_>) -> u64 {
        let start = clock::now_ns();
        let found = self.cache.lookups().find(request).expect("a lease is free");
        self.step(&Op::Release { lease: found.lease });
        let spent = clock::now_ns() - start;
        assert_eq!(found.hit_tokens, request.token_count);
        spent
    }

    /// Fills the cache with blocks that go in random order, so that what is stored next lies in blocks all over it.
    fn scatter(&mut self, blocks: u64, named: Named) {
        let mut visit = |block: u64, is_new: bool| {
            let (bytes, ids) = (keys(block + 2, 1), [block as i32; BLOCK_TOKENS as usize]);
            let request = request(named.naming(&bytes, &ids), BLOCK_TOKENS.into());
            if is_new { self.store(&request) } else { self.visit(&request) }
        };
        let mut order: Vec<u64> = (0..blocks).collect();
        order.iter().for_each(|&block| _ = visit(block, true));
        fastrand::Rng::with_seed(4).shuffle(&mut order);
        order.iter().for_each(|&block| _ = visit(block, false));
    }
}

/// The median and the least.
pub(crate) fn sum_up(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0])
}

/// Nanoseconds a block, the median and the least.
pub(crate) struct Costs {
    pub(crate) visit: (f64, f64),
    pub(crate) commit: (f64, f64),
    pub(crate) evict: (f64, f64),
    pub(crate) metadata_bytes: f64,
}

/// A full cache of prompts of the same length, whose keys are given.
pub(crate) struct FullCache {
    pool: Prompts,
    pub(crate) prompts: u64,
    /// Blocks of a prompt.
    each: u64,
}

impl FullCache {
    /// With the nanoseconds a block of each commit.
    pub(crate) fn new(blocks: u64, beside: Option<Beside>) -> (Self, Vec<f64>) {
        let each = PROMPT_BLOCKS.min(blocks / 2);
        let pool = Prompts::new(blocks, HashKind::Blake3, beside);
        let mut full = Self { pool, prompts: blocks / each, each };
        let commits = (0..full.prompts).map(|prompt| full.with(prompt, Prompts::store)).collect();
        (full, commits)
    }

    fn with(&mut self, prompt: u64, work: impl FnOnce(&mut Prompts, &Request<'_>) -> u64) -> f64 {
        let bytes = keys(prompt, self.each);
        let request = request(Named::Keys.naming(&bytes, &[]), self.each * u64::from(BLOCK_TOKENS));
        work(&mut self.pool, &request) as f64 / self.each as f64
    }

    /// Nanoseconds a block of a match with the release of its lease.
    pub(crate) fn visit(&mut self, prompt: u64) -> f64 {
        self.with(prompt, Prompts::visit)
    }
}

/// What a block costs in a full cache of so many; at most so many samples of each.
pub(crate) fn costs(blocks: u64, samples: usize) -> Costs {
    let (mut full, commits) = FullCache::new(blocks, None);
    let mut random = fastrand::Rng::with_seed(blocks);
    let visits = (0..samples).map(|_| full.visit(random.u64(0..full.prompts))).collect();
    let FullCache { pool, each, .. } = full;
    let statistics = pool.cache.statistics();
    let mut evictions = Vec::new();
    while pool.cache.statistics().indexed_blocks >= each && evictions.len() < samples {
        let start = clock::now_ns();
        let count = pool.cache.evict(0, each.min(EVICTED)).expect("the group exists");
        evictions.push((clock::now_ns() - start) as f64 / count as f64);
    }
    let [visit, commit, evict] = [visits, commits, evictions].map(sum_up);
    Costs { visit, commit, evict, metadata_bytes: statistics.metadata_bytes as f64 / blocks as f64 }
}

/// A prompt of 128 Ki tokens that is stored, and a cache of twice its blocks.
pub(crate) struct LongPrompt {
    pool: Prompts,
    named: Named,
    ids: Vec<i32>,
    bytes: Vec<u8>,
}

impl LongPrompt {
    /// In a cache of one group, and of one `beside` it. Its blocks lie one behind the other or scattered over the pool.
    pub(crate) fn new(named: Named, beside: Option<Beside>, is_scattered: bool) -> Self {
        let mut pool = Prompts::new(2 * PROMPT_BLOCKS, named.hash(), beside);
        if is_scattered {
            pool.scatter(2 * PROMPT_BLOCKS, named);
        }
        let ids: Vec<i32> = (0..LONG_TOKENS as i32).map(|i| i.wrapping_mul(2_654_435)).collect();
        let bytes = keys(1, PROMPT_BLOCKS);
        pool.store(&request(named.naming(&bytes, &ids), LONG_TOKENS));
        Self { pool, named, ids, bytes }
    }

    /// Nanoseconds of a match with the release of its lease.
    pub(crate) fn visit(&mut self) -> u64 {
        self.pool.visit(&request(self.named.naming(&self.bytes, &self.ids), LONG_TOKENS))
    }

    pub(crate) fn parts(&self) -> (&KvCache, Request<'_>) {
        (&self.pool.cache, request(self.named.naming(&self.bytes, &self.ids), LONG_TOKENS))
    }
}
