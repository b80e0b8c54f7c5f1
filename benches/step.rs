//! How long are the five calls of a step with 1,024 running sequences, and what does a block cost inside it?
//!
//! Warm: one step follows the other. Cold: between two steps something else goes through 64 MiB, as the work of an
//! engine does, so that what the cache keeps of a sequence comes from beyond the processor's second-level cache.
//! `-- --tails` prints percentiles of both instead, and the median of each call; a device may follow (`cuda:0`).
#![expect(clippy::disallowed_macros, reason = "a program that prints its result")]

use std::ffi::{CStr, CString};
use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group};

#[path = "load/engine.rs"]
mod engine;

use engine::{CALLS, Engine, Naming};
use kavern::sys::clock::now_ns;

const NAMINGS: [(&str, Naming); 3] =
    [("keys", Naming::Keys), ("blake3", Naming::Blake3), ("xxh3", Naming::Xxh3)];
/// Steps of which `--tails` tells the percentiles; a fifth of them if they are cold.
const TAIL_STEPS: usize = 2000;
/// Steps before them: the pool is full of what ended sequences left, so that each new block evicts an old one.
const STEPS_BEFORE: usize = 2500;

/// What an engine does between two steps, as far as the processor's caches know it.
struct Elsewhere(Vec<u64>);

impl Elsewhere {
    fn new(is_cold: bool) -> Self {
        Self(vec![1; if is_cold { 8 << 20 } else { 0 }])
    }

    fn work(&mut self) {
        self.0.iter_mut().step_by(8).for_each(|word| *word = word.wrapping_mul(3));
        black_box(&mut self.0);
    }
}

fn step(criterion: &mut Criterion) {
    for (name, is_cold) in [("step_of_1024_sequences", false), ("cold_step_of_1024_sequences", true)] {
        let mut group = criterion.benchmark_group(name);
        let mut elsewhere = Elsewhere::new(is_cold);
        for (name, naming) in NAMINGS {
            let mut engine = Engine::new(naming, c"host");
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|count| {
                    let mut total = 0;
                    for _ in 0..count {
                        elsewhere.work();
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
}

/// The value below which so many thousandths lie.
fn percentile(values: &mut [u64], thousandths: usize) -> f64 {
    values.sort_unstable();
    values[(values.len() - 1) * thousandths / 1000] as f64 / 1e3
}

/// Prints percentiles of a step on a device and the median of each of its calls, in microseconds.
fn tails(device: &CStr) {
    for is_cold in [false, true] {
        let mut elsewhere = Elsewhere::new(is_cold);
        let steps = if is_cold { TAIL_STEPS / 5 } else { TAIL_STEPS };
        for (name, naming) in NAMINGS {
            let mut engine = Engine::new(naming, device);
            let mut parts: [Vec<u64>; CALLS.len()] = std::array::from_fn(|_| Vec::with_capacity(steps));
            let mut all = Vec::with_capacity(steps);
            for _ in 0..STEPS_BEFORE {
                engine.plan();
                engine.run();
                engine.settle();
            }
            for _ in 0..steps {
                elsewhere.work();
                engine.plan();
                let start = now_ns();
                let mut last = start;
                engine.run_in_parts(|call| {
                    let now = now_ns();
                    parts[call].push(now - last);
                    last = now;
                });
                all.push(last - start);
                engine.settle();
            }
            let [p10, p50, p99] = [100, 500, 990].map(|thousandths| percentile(&mut all, thousandths));
            print!(
                "{{\"device\": {device:?}, \"naming\": \"{name}\", \"is_cold\": {is_cold}, \"steps\": {steps}, "
            );
            print!("\"p10_us\": {p10:.1}, \"p50_us\": {p50:.1}, \"p99_us\": {p99:.1}");
            for (name, part) in CALLS.iter().zip(&mut parts) {
                print!(", \"{name}_p50_us\": {:.1}", percentile(part, 500));
            }
            println!("}}");
        }
    }
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

fn main() {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--tails");
    if arguments.next().is_some() {
        let device = arguments.find(|argument| !argument.starts_with('-')).unwrap_or("host".to_owned());
        return tails(&CString::new(device).expect("a device has no zero in its name"));
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
