//! How long are the five calls of a step with 1,024 running sequences, and what does a block cost inside it?

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

#[path = "load/engine.rs"]
mod engine;

use engine::{Engine, Naming};
use kavern::sys::clock::now_ns;

fn step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step_of_1024_sequences");
    for (name, naming) in [("keys", Naming::Keys), ("blake3", Naming::Blake3), ("xxh3", Naming::Xxh3)] {
        let mut engine = Engine::new(naming, c"host");
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| {
                let mut total = 0;
                for _ in 0..count {
                    engine.plan();
                    let start = now_ns();
                    engine.run();
                    total += now_ns() - start;
                    engine.settle();
                }
                Duration::from_nanos(total)
            });
        });
    }
    group.finish();
}

#[path = "load/blocks.rs"]
mod blocks;

fn block(criterion: &mut Criterion) {
    let mut pool = blocks::Blocks::new(1 << 16);
    criterion.bench_function("allocate_and_free_1000_blocks_inside_a_step", |bencher| {
        bencher.iter_batched(|| (), |()| black_box(pool.cycle(1000)), BatchSize::SmallInput);
    });
}

#[path = "load/branches.rs"]
mod branches;

fn branch(criterion: &mut Criterion) {
    let mut branches = branches::Branches::new();
    let mut group = criterion.benchmark_group("sequence_of_131072_tokens");
    let sum =
        |count: u64, each: &mut dyn FnMut() -> u64| Duration::from_nanos((0..count).map(|_| each()).sum());
    group.bench_function("fork", |bencher| bencher.iter_custom(|count| sum(count, &mut || branches.fork())));
    group.bench_function("rollback", |bencher| {
        bencher.iter_custom(|count| sum(count, &mut || branches.rollback()));
    });
    group.finish();
}

/// What the machine can do at all, in the same run: an empty guarded call, and a plain copy larger than its caches.
fn bound(criterion: &mut Criterion) {
    let engine = Engine::new(Naming::Keys, c"host");
    criterion.bench_function("bound_empty_call", |bencher| bencher.iter(|| engine.empty_call()));
    let source = vec![7u8; 64 << 20];
    let mut target = vec![0u8; 64 << 20];
    let mut group = criterion.benchmark_group("bound_copy");
    group.throughput(criterion::Throughput::Bytes(64 << 20));
    group.bench_function("64_mib", |bencher| {
        bencher.iter(|| black_box(&mut target).copy_from_slice(black_box(&source)))
    });
    group.finish();
}

criterion_group!(benches, step, block, branch, bound);
criterion_main!(benches);
