//! What a block costs in a warm match, a commit and an eviction, over pools of a thousand to ten million blocks; and
//! what a warm match of 128 Ki tokens costs with given keys, XXH3 and BLAKE3, in a cache of one group and of two.
//!
//! Prints one JSON object. Every figure is the median of many samples and the least of them; a sample is one prompt of
//! at most 8,192 blocks. `--most N` leaves out larger pools.
#![expect(clippy::disallowed_macros, reason = "a program that prints its result")]

use std::hint::black_box;

use kavern::cache::HashKind;
use kavern::sys::clock;

#[path = "load/blocks.rs"]
#[expect(dead_code, reason = "only its configuration is used here")]
mod blocks;
#[path = "load/prompts.rs"]
mod prompts;

use prompts::{Beside, COARSE, Costs, LONG_TOKENS, LongPrompt, Named, SLIDING, STATE, WIDE, costs, sum_up};

const SAMPLES: usize = 300;

fn pool(blocks: u64) -> String {
    let Costs { visit, commit, evict, metadata_bytes } = costs(blocks, SAMPLES);
    format!(
        "{{\"blocks\": {blocks}, \"match_release_ns\": [{:.1}, {:.1}], \"commit_ns\": [{:.1}, {:.1}], \
         \"evict_ns\": [{:.1}, {:.1}], \"metadata_bytes_per_block\": {metadata_bytes:.1}}}",
        visit.0, visit.1, commit.0, commit.1, evict.0, evict.1,
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

/// Microseconds of a warm match of 128 Ki tokens with the release of its lease; of the walk without a lease, and of the
/// keys alone. The prompt's blocks lie one behind the other or scattered over the pool.
fn long_prompt(
    (name, named): (&str, Named),
    (groups, beside): (&str, Option<Beside>),
    is_scattered: bool,
) -> String {
    let mut prompt = LongPrompt::new(named, beside, is_scattered);
    let (middle, least) = sum_up((0..4 * SAMPLES).map(|_| prompt.visit() as f64 / 1e3).collect());
    let (cache, request) = prompt.parts();
    let (probe, probe_least) =
        sample(|| assert_eq!(cache.probe(&request).expect("a valid request"), LONG_TOKENS));
    let mut last = 0;
    let (chain, chain_least) = sample(|| {
        cache.keys(&request, |_, key| last ^= key.0[0]).expect("a valid request");
    });
    black_box(last);
    format!(
        "{{\"keys\": \"{name}\", \"groups\": \"{groups}\", \"is_scattered\": {is_scattered}, \
         \"match_release_us\": [{middle:.1}, {least:.1}], \
         \"probe_us\": [{probe:.1}, {probe_least:.1}], \"keys_us\": [{chain:.1}, {chain_least:.1}]}}"
    )
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let most = arguments.iter().position(|word| word == "--most").and_then(|at| arguments.get(at + 1));
    let most: u64 = most.and_then(|text| text.parse().ok()).unwrap_or(10_000_000);
    let sizes = [1000, 10_000, 100_000, 1_000_000, 10_000_000];
    let pools: Vec<String> = sizes.into_iter().filter(|&blocks| blocks <= most).map(pool).collect();
    let kinds = [
        ("given_keys", Named::Keys),
        ("xxh3", Named::By(HashKind::Xxh3)),
        ("blake3", Named::By(HashKind::Blake3)),
    ];
    let one = ("full", None);
    let caches = [
        (one, false),
        (("full_full_of_32", Some(COARSE)), false),
        (("full_sliding", Some(SLIDING)), false),
        (("full_wide_window", Some(WIDE)), false),
        (("full_state", Some(STATE)), false),
        (one, true),
    ];
    let prompts: Vec<String> = caches
        .into_iter()
        .flat_map(|(groups, is_scattered)| kinds.map(|kind| long_prompt(kind, groups, is_scattered)))
        .collect();
    println!(
        "{{\"samples\": {SAMPLES}, \"median_and_least\": true, \"pools\": [\n  {}\n], \"prompt_of_128k_tokens\": [\n  {}\n]}}",
        pools.join(",\n  "),
        prompts.join(",\n  ")
    );
}
