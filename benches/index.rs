//! What a block costs in a warm match, a commit and an eviction, over pools of a thousand to ten million blocks; and
//! what a warm match of 128 Ki tokens costs with given keys, XXH3 and BLAKE3.
//!
//! Prints one JSON object. Every figure is the median of many samples and the least of them; a sample is one prompt of
//! at most 8,192 blocks. The prompts of a pool are looked up in a random order, so at ten million blocks hardly one
//! cell or block is in the processor's caches. `--most N` leaves out larger pools.
#![expect(clippy::disallowed_macros, reason = "a program that prints its result")]

use std::hint::black_box;
use std::sync::Arc;

use kavern::cache::{CacheConfig, Content, GroupConfig, HashKind, KvCache, Naming, Op, Request, Target};
use kavern::device::registry;
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory};
use kavern::sys::clock;
use kavern::types::Id;

#[path = "load/blocks.rs"]
#[expect(dead_code, reason = "only its configuration is used here")]
mod blocks;

const BLOCK_TOKENS: u32 = 16;
const PROMPT_BLOCKS: u64 = 8192;
const KEY_BYTES: usize = 32;
const SAMPLES: u64 = 300;

fn cache(blocks: u64, hash: HashKind) -> KvCache {
    let tokens = blocks.min(PROMPT_BLOCKS) * u64::from(BLOCK_TOKENS);
    let config = CacheConfig {
        groups: vec![GroupConfig::new(Content::Opaque { block_bytes: 64 }, BLOCK_TOKENS)],
        hash,
        max_sequence_tokens: tokens,
        max_batch_tokens: tokens as u32,
        ..blocks::config(blocks)
    };
    let device = registry::open("host").expect("the host opens");
    KvCache::new(&Memory::new(device, Limits::default(), Arc::new(NoSink)), &config).expect("there is memory")
}

/// Keys of a prompt, unlike those of any other.
fn keys(prompt: u64, blocks: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(prompt);
    let mut bytes = vec![0; blocks as usize * KEY_BYTES];
    random.fill(&mut bytes);
    bytes
}

fn request<'a>(naming: Naming<'a>, tokens: u64) -> Request<'a> {
    Request {
        namespace_id: 1,
        adapter_id: 0,
        salt: b"",
        naming,
        token_count: tokens,
        no_read: false,
        no_store: false,
        drop_last: false,
        keep_one_token: false,
        sizing: Default::default(),
    }
}

struct Bench {
    cache: KvCache,
    step: u64,
}

impl Bench {
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
}

/// The median and the least.
fn sum_up(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0])
}

fn pool(blocks: u64) -> String {
    let each = PROMPT_BLOCKS.min(blocks / 2);
    let tokens = each * u64::from(BLOCK_TOKENS);
    let mut bench = Bench { cache: cache(blocks, HashKind::Blake3), step: 0 };
    let per_block = |spent: u64| spent as f64 / each as f64;
    let prompts = blocks / each;
    let mut commits = Vec::new();
    for prompt in 0..prompts {
        let bytes = keys(prompt, each);
        let naming = Naming::Keys { bytes: &bytes, key_bytes: KEY_BYTES as u32 };
        commits.push(per_block(bench.store(&request(naming, tokens))));
    }
    let mut random = fastrand::Rng::with_seed(blocks);
    let mut visits = Vec::new();
    for _ in 0..SAMPLES {
        let bytes = keys(random.u64(0..prompts), each);
        let naming = Naming::Keys { bytes: &bytes, key_bytes: KEY_BYTES as u32 };
        visits.push(per_block(bench.visit(&request(naming, tokens))));
    }
    let statistics = bench.cache.statistics();
    let mut evictions = Vec::new();
    while bench.cache.statistics().indexed_blocks >= each && evictions.len() < SAMPLES as usize {
        let start = clock::now_ns();
        let count = bench.cache.evict(0, each.min(1024)).expect("the group exists");
        evictions.push((clock::now_ns() - start) as f64 / count as f64);
    }
    let [visit, commit, evict] = [visits, commits, evictions].map(sum_up);
    format!(
        "{{\"blocks\": {blocks}, \"match_release_ns\": [{:.1}, {:.1}], \"commit_ns\": [{:.1}, {:.1}], \
         \"evict_ns\": [{:.1}, {:.1}], \"metadata_bytes_per_block\": {:.1}}}",
        visit.0,
        visit.1,
        commit.0,
        commit.1,
        evict.0,
        evict.1,
        statistics.metadata_bytes as f64 / blocks as f64
    )
}

/// Microseconds of a call, the median and the least.
fn sample(mut work: impl FnMut()) -> (f64, f64) {
    let mut spent = || {
        let start = clock::now_ns();
        work();
        (clock::now_ns() - start) as f64 / 1e3
    };
    sum_up((0..SAMPLES).map(|_| spent()).collect())
}

/// Fills a cache with blocks that go in random order, so that what is stored next lies in blocks all over the pool.
fn scatter(bench: &mut Bench, blocks: u64, name: &str) {
    let mut visit = |block: u64, is_new: bool| {
        let (bytes, ids) = (keys(block + 2, 1), [block as i32; BLOCK_TOKENS as usize]);
        let naming = match name {
            "given_keys" => Naming::Keys { bytes: &bytes, key_bytes: KEY_BYTES as u32 },
            _ => Naming::Tokens(&ids, &[]),
        };
        let request = request(naming, BLOCK_TOKENS.into());
        if is_new { bench.store(&request) } else { bench.visit(&request) }
    };
    let mut order: Vec<u64> = (0..blocks).collect();
    order.iter().for_each(|&block| _ = visit(block, true));
    fastrand::Rng::with_seed(4).shuffle(&mut order);
    order.iter().for_each(|&block| _ = visit(block, false));
}

/// Microseconds of a warm match of 128 Ki tokens with the release of its lease; of the walk without a lease, and of the
/// keys alone. The prompt's blocks lie one behind the other or scattered over the pool.
fn long_prompt(name: &str, is_scattered: bool) -> String {
    let tokens = PROMPT_BLOCKS * u64::from(BLOCK_TOKENS);
    let hash = if name == "xxh3" { HashKind::Xxh3 } else { HashKind::Blake3 };
    let ids: Vec<i32> = (0..tokens as i32).map(|i| i.wrapping_mul(2_654_435)).collect();
    let bytes = keys(1, PROMPT_BLOCKS);
    let naming = match name {
        "given_keys" => Naming::Keys { bytes: &bytes, key_bytes: KEY_BYTES as u32 },
        _ => Naming::Tokens(&ids, &[]),
    };
    let request = request(naming, tokens);
    let mut bench = Bench { cache: cache(2 * PROMPT_BLOCKS, hash), step: 0 };
    if is_scattered {
        scatter(&mut bench, 2 * PROMPT_BLOCKS, name);
    }
    bench.store(&request);
    let visits = (0..4 * SAMPLES).map(|_| bench.visit(&request) as f64 / 1e3).collect();
    let (probe, probe_least) =
        sample(|| assert_eq!(bench.cache.probe(&request).expect("a valid request"), tokens));
    let mut last = 0;
    let (chain, chain_least) = sample(|| {
        bench.cache.keys(&request, |_, key| last ^= key.0[0]).expect("a valid request");
    });
    black_box(last);
    let (middle, least) = sum_up(visits);
    format!(
        "{{\"keys\": \"{name}\", \"is_scattered\": {is_scattered}, \"match_release_us\": [{middle:.1}, {least:.1}], \"probe_us\": [{probe:.1}, {probe_least:.1}], \
         \"keys_us\": [{chain:.1}, {chain_least:.1}]}}"
    )
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let most = arguments.iter().position(|word| word == "--most").and_then(|at| arguments.get(at + 1));
    let most: u64 = most.and_then(|text| text.parse().ok()).unwrap_or(10_000_000);
    let sizes = [1000, 10_000, 100_000, 1_000_000, 10_000_000];
    let pools: Vec<String> = sizes.into_iter().filter(|&blocks| blocks <= most).map(pool).collect();
    let prompts: Vec<String> = [false, true]
        .into_iter()
        .flat_map(|is_scattered| ["given_keys", "xxh3", "blake3"].map(|name| long_prompt(name, is_scattered)))
        .collect();
    println!(
        "{{\"samples\": {SAMPLES}, \"median_and_least\": true, \"pools\": [\n  {}\n], \"prompt_of_128k_tokens\": [\n  {}\n]}}",
        pools.join(",\n  "),
        prompts.join(",\n  ")
    );
}
