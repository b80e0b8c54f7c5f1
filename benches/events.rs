//! How many events a second are produced and read, and what do a snapshot and a wipe cost for each block? In time of the
//! thread.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kavern::cache::{CacheConfig, Content, GroupConfig, KvCache, Naming, Op, Request, ResetScope, Target};
use kavern::device::registry;
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory};
use kavern::sys::clock::thread_ns;
use kavern::types::Id;

#[path = "load/blocks.rs"]
#[expect(dead_code, reason = "only its configuration is wanted here")]
mod blocks;

const BLOCKS: u64 = 1 << 16;
const PIECE: u64 = 1024;

/// A cache whose blocks come and go, each with one event when it is stored and one when it is evicted.
struct Churn {
    cache: KvCache,
    step: u64,
    next: u64,
    keys: Vec<u8>,
}

impl Churn {
    fn new() -> Self {
        let base = blocks::config(BLOCKS);
        let group = GroupConfig {
            content: Content::Opaque { block_bytes: 64 },
            block_tokens: 1,
            ..base.groups[0].clone()
        };
        let config = CacheConfig {
            groups: vec![group],
            event_capacity: 1 << 20,
            max_sequence_tokens: BLOCKS,
            max_batch_tokens: BLOCKS as u32,
            ..base
        };
        let device = registry::open("host").expect("the host opens");
        let memory = Memory::new(device, Limits::default(), Arc::new(NoSink));
        let cache = KvCache::new(&memory, &config).expect("the cache is small");
        let mut churn = Self { cache, step: 0, next: 1, keys: vec![0; 32 * PIECE as usize] };
        // From here on every stored block evicts another.
        (0..2 * BLOCKS / PIECE).for_each(|_| churn.run());
        churn
    }

    /// Publishes a piece of new blocks, which evicts as many.
    fn run(&mut self) {
        for key in self.keys.chunks_exact_mut(32) {
            key[..8].copy_from_slice(&self.next.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
            key[8..16].copy_from_slice(&self.next.to_le_bytes());
            self.next += 1;
        }
        let naming = Naming::Keys { bytes: &self.keys, key_bytes: 32 };
        let request = Request { no_read: true, ..Request::new(1, naming, PIECE) };
        let lease = self.cache.lookups().find(&request).expect("a lease is free").lease;
        self.step += 1;
        let mut step = self.cache.step(self.step).expect("ids rise");
        let admitted =
            step.apply(&Op::Admit { lease, tokens: PIECE, lookahead: 0, row: -1, expected_tokens: 0 });
        let target = Target::Id(Id(admitted.sequence));
        step.apply(&Op::Commit { target, tokens: PIECE, naming });
        step.apply(&Op::Free { target });
        drop(step);
        self.cache.step_done(self.step, None).expect("the step is open");
    }
}

fn timed(count: u64, mut work: impl FnMut()) -> Duration {
    let start = thread_ns();
    (0..count).for_each(|_| work());
    Duration::from_nanos(thread_ns() - start)
}

fn events(criterion: &mut Criterion) {
    let mut churn = Churn::new();
    let mut group = criterion.benchmark_group("events");
    group.throughput(Throughput::Elements(2 * PIECE));
    let mut cursor = churn.cache.statistics().last_event;
    group.bench_function("produce_by_committing_and_evicting", |bencher| {
        bencher.iter_custom(|count| timed(count, || churn.run()));
    });
    group.bench_function("produce_and_read", |bencher| {
        cursor = churn.cache.statistics().last_event;
        bencher.iter_custom(|count| {
            timed(count, || {
                churn.run();
                let mut read = 0;
                let (next, lost) = churn.cache.read_events(cursor, usize::MAX, |_, event| {
                    black_box(event.key);
                    read += 1;
                });
                assert!(!lost && read == 2 * PIECE);
                cursor = next;
            })
        });
    });
    group.throughput(Throughput::Elements(1 << 17));
    group.bench_function("read", |bencher| {
        let from = churn.cache.statistics().last_event - (1 << 17);
        bencher.iter_custom(|count| {
            timed(count, || {
                _ = churn.cache.read_events(from, usize::MAX, |_, event| _ = black_box(event.key))
            })
        });
    });
    group.throughput(Throughput::Elements(BLOCKS));
    group.bench_function("snapshot", |bencher| {
        bencher.iter_custom(|count| {
            timed(count, || _ = churn.cache.snapshot(0, usize::MAX, |_, event| _ = black_box(event.key)))
        });
    });
    group.bench_function("wipe", |bencher| {
        bencher.iter_custom(|count| {
            let mut total = Duration::ZERO;
            for _ in 0..count {
                (0..BLOCKS / PIECE).for_each(|_| churn.run());
                total += timed(1, || _ = black_box(churn.cache.reset(ResetScope::Namespace(1))));
            }
            total
        });
    });
    group.finish();
}

criterion_group!(benches, events);
criterion_main!(benches);
