//! What does a pair of allocate and free cost inside the pure structures, and how does it grow with what is live?

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fastrand::Rng;
use kavern::memory::free_list::FreeList;
use kavern::memory::size_class::class_of;
use kavern::memory::slab::{Slab, Slot, slots_in_page};

const LIVE: [usize; 4] = [100, 2_000, 20_000, 65_536];

/// Pairs of one iteration, drawn beforehand: which block goes, and how large the one in its place is.
const PAIRS: usize = 4_096;

/// 512 B to 16 MiB, each doubling equally likely.
fn size_bytes(rng: &mut Rng) -> u64 {
    let doublings = 9.0 + 15.0 * rng.f64();
    doublings.exp2() as u64
}

fn plan(rng: &mut Rng, live: usize, granule_bytes: u64) -> Vec<(u32, u32)> {
    let draw = |rng: &mut Rng| (rng.usize(..live) as u32, size_bytes(rng).div_ceil(granule_bytes) as u32);
    (0..PAIRS * 64).map(|_| draw(rng)).collect()
}

/// A random live block is freed, and one of another size takes its place.
fn free_list(criterion: &mut Criterion) {
    for granule_bytes in [512, 32 << 10] {
        let mut group = criterion.benchmark_group(format!("free_list_granule_{granule_bytes}"));
        group.throughput(Throughput::Elements(PAIRS as u64));
        for live in LIVE {
            let mut rng = Rng::with_seed(live as u64);
            let plan = plan(&mut rng, live, granule_bytes);
            let mut sizes = vec![0u32; live];
            let mut first = || size_bytes(&mut rng).div_ceil(granule_bytes) as u32;
            sizes.fill_with(&mut first);
            // A quarter more than is live on average, as a heap that has run for a while has.
            let granules: u64 = sizes.iter().map(|&size| u64::from(size)).sum();
            let capacity = (granules + granules / 4 + (256 << 20) / granule_bytes) as u32;
            let mut list = FreeList::new(capacity).expect("host memory");
            list.insert(0, capacity).expect("all of it is a gap");
            let mut blocks: Vec<u32> =
                sizes.iter().map(|&size| list.allocate(size, 1).expect("sound").expect("room")).collect();
            let mut at = 0;
            let mut refused = 0u64;
            let mut pairs = |list: &mut FreeList| {
                for &(which, size) in &plan[at..at + PAIRS] {
                    let block = &mut blocks[which as usize];
                    let was = list.free(*block).expect("it is live");
                    *block = match list.allocate(size, 1).expect("sound") {
                        Some(start) => start,
                        None => {
                            refused += 1;
                            list.allocate(was, 1).expect("sound").expect("it has just become free")
                        }
                    };
                }
                at = (at + PAIRS) % plan.len();
            };
            for _ in 0..(20 * live).div_ceil(PAIRS) {
                pairs(&mut list);
            }
            group.bench_function(BenchmarkId::new("live", live), |bencher| bencher.iter(|| pairs(&mut list)));
            list.validate().expect("sound");
            assert!(refused < (40 * live) as u64, "{refused} refusals: the range is too small to tell");
        }
        group.finish();
    }
}

/// A random live slot of 64 KiB is given back, and another is taken.
fn slab(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("slab_64_kib");
    group.throughput(Throughput::Elements(PAIRS as u64));
    for live in LIVE {
        let class = class_of(64 << 10, 1).expect("a class");
        let slots = slots_in_page(class).expect("a small class");
        let pages = (live as u32).div_ceil(slots) * 5 / 4 + 1;
        let mut slab = Slab::new(slots, 1 << 16).expect("host memory");
        (0..pages).for_each(|page| slab.add_page(page).expect("not here yet"));
        let mut taken: Vec<Slot> = (0..live).map(|_| slab.take().expect("a free slot")).collect();
        let mut rng = Rng::with_seed(live as u64);
        let plan = plan(&mut rng, live, 1);
        let mut at = 0;
        group.bench_function(BenchmarkId::new("live", live), |bencher| {
            bencher.iter(|| {
                for &(which, _) in &plan[at..at + PAIRS] {
                    let slot = &mut taken[which as usize];
                    black_box(slab.give(*slot).expect("it is live"));
                    *slot = slab.take().expect("one has just been given");
                }
                at = (at + PAIRS) % plan.len();
            });
        });
        slab.validate().expect("sound");
    }
    group.finish();
}

/// What the load itself costs, in the same run; and the arithmetic of sizes.
fn bound(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bound");
    group.throughput(Throughput::Elements(PAIRS as u64));
    let plan = plan(&mut Rng::with_seed(1), 65_536, 1);
    let mut blocks = vec![0u32; 65_536];
    let mut at = 0;
    group.bench_function("empty_pairs", |bencher| {
        bencher.iter(|| {
            for &(which, size) in &plan[at..at + PAIRS] {
                let block = &mut blocks[which as usize];
                *block = black_box(*block) ^ size;
            }
            at = (at + PAIRS) % plan.len();
        });
    });
    let sum =
        |of: fn(u64) -> u64| plan[..PAIRS].iter().fold(0u64, |sum, &(_, size)| sum ^ of(u64::from(size)));
    group.bench_function("class_of", |bencher| {
        let class = |bytes| class_of(black_box(bytes), 256).map_or(0, |class| class.index() as u64);
        bencher.iter(|| black_box(sum(class)));
    });
    group.finish();
}

criterion_group!(benches, free_list, slab, bound);
criterion_main!(benches);
