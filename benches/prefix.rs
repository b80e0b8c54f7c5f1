//! How fast is the hash chain, and how fast a warm match of a long prompt?

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kavern::cache::{CacheConfig, Content, GroupConfig, HashKind, KvCache, Naming, Op, Request, Target};
use kavern::device::registry;
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory};
use kavern::types::Id;

#[path = "load/blocks.rs"]
#[expect(dead_code, reason = "only its configuration is used here")]
mod blocks;

/// 128 Ki tokens in blocks of 16.
const TOKENS: usize = 128 * 1024;

fn cache(hash: HashKind) -> KvCache {
    let base = blocks::config(16_384);
    let group = GroupConfig { block_tokens: 16, ..base.groups[0].clone() };
    let config = CacheConfig {
        groups: vec![GroupConfig { content: Content::Opaque { block_bytes: 64 }, ..group }],
        hash,
        max_sequence_tokens: TOKENS as u64,
        max_batch_tokens: TOKENS as u32,
        ..base
    };
    let device = registry::open("host").expect("the host opens");
    KvCache::new(&Memory::new(device, Limits::default(), Arc::new(NoSink)), &config)
        .expect("the cache is small")
}

fn request(tokens: &[i32]) -> Request<'_> {
    Request::new(1, Naming::Tokens(tokens, &[]), tokens.len() as u64)
}

fn prefix(criterion: &mut Criterion) {
    let tokens: Vec<i32> = (0..TOKENS as i32).map(|i| i.wrapping_mul(2_654_435)).collect();
    for (name, hash) in [("blake3", HashKind::Blake3), ("xxh3", HashKind::Xxh3)] {
        let cache = cache(hash);
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(TOKENS as u64));
        group.bench_function("chain_of_128k_tokens", |bencher| {
            bencher.iter(|| {
                cache.keys(&request(&tokens), |_, key| _ = black_box(key.0)).expect("a valid request")
            });
        });
        let lease = cache.lookups().find(&request(&tokens)).expect("a lease is free").lease;
        let mut step = cache.step(1).expect("the first step");
        let sequence = step
            .apply(&Op::Admit { lease, tokens: TOKENS as u64, lookahead: 0, row: -1, expected_tokens: 0 })
            .sequence;
        let (target, naming) = (Target::Id(Id(sequence)), Naming::Tokens(&tokens, &[]));
        assert_eq!(step.apply(&Op::Commit { target, tokens: TOKENS as u64, naming }).blocks_committed, 8192);
        drop(step);
        let mut id = 1;
        group.bench_function("warm_match_of_128k_tokens", |bencher| {
            bencher.iter(|| {
                let found = cache.lookups().find(&request(&tokens)).expect("a lease is free");
                assert_eq!(found.hit_tokens as usize, TOKENS);
                cache.step_done(id, None).expect("the step is open");
                id += 1;
                cache.step(id).expect("ids rise").apply(&Op::Release { lease: found.lease });
            });
        });
        group.finish();
    }
}

criterion_group!(benches, prefix);
criterion_main!(benches);
