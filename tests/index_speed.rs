//! What a long warm match costs, and how a block's cost grows with the cache, gated at three times their goals; and what
//! a match costs beside another group, gated by what it costs alone.
//!
//! The bench `index` records the true figures, up to ten million blocks; this machine may be shared, so the least of
//! many samples counts here. What is compared with another cost is measured in turns with it.

use std::io::Write;

use kavern::cache::{HashKind, Reach};

#[path = "../benches/load/blocks.rs"]
#[expect(dead_code, reason = "only its configuration is used here")]
mod blocks;
#[path = "../benches/load/prompts.rs"]
mod prompts;

use prompts::{
    Beside, COARSE, FullCache, LONG_TOKENS, LongPrompt, Named, SLIDING, STATE, WIDE, costs, sum_up,
};

/// Goal for a warm match of 128 Ki tokens with the release of its lease.
const LONG_MATCH_US: u64 = 400;
/// Goal for a block's cost in a cache of a million, by that in a cache of a thousand.
const GROWTH: f64 = 8.0;
/// What a machine that does something else beside may cost.
const ROOM: u64 = 3;

/// Blocks of a cache that does not lie in a core's own caches.
const COLD_BLOCKS: u64 = 1 << 18;
/// The most that a match takes beside another group, by what it takes alone. Beside a full group with four times the
/// tokens in a block it takes 1.24 to 1.35, and 2.4 where stretches are short; beside a wide window 1.65 to 1.80, and
/// 3.0 where each block is looked up in the index; beside a state 0.97 to 1.06, and 6 in steps of a link.
const BESIDE: [(Beside, f64); 3] = [((Reach::All, 64), 1.9), (WIDE, 2.6), (STATE, 2.0)];

/// One test, so that the machine has no other work of this file.
#[test]
fn long_matches_are_fast_and_a_block_costs_about_the_same_in_a_large_cache() {
    let caches = [None, Some(COARSE), Some(SLIDING), Some(WIDE), Some(STATE)];
    let prompts = caches.map(|beside| [(beside, Named::Keys), (beside, Named::By(HashKind::Xxh3))]);
    for (beside, named) in prompts.into_iter().flatten() {
        let mut prompt = LongPrompt::new(named, beside, false);
        let (cache, request) = prompt.parts();
        assert_eq!(cache.probe(&request).expect("a valid request"), LONG_TOKENS);
        let least = (0..300).map(|_| prompt.visit()).min().expect("there were some") / 1000;
        let text =
            format!("a warm match of 128 Ki tokens, {named:?}, beside a full group {beside:?}: {least} us");
        say(&text);
        assert!(least <= ROOM * LONG_MATCH_US, "{text}");
    }
    check_beside();
    let [small, large] = [1000, 1_000_000].map(|blocks| costs(blocks, 300));
    let calls = [
        ("match", small.visit, large.visit),
        ("commit", small.commit, large.commit),
        ("evict", small.evict, large.evict),
    ];
    for (call, (_, small), (_, large)) in calls {
        say(&format!("{call}: {small:.1} ns a block in 10^3, {large:.1} in 10^6"));
        let growth = large / small;
        assert!(growth <= ROOM as f64 * GROWTH, "{call}: a block costs {growth:.1} times as much in 10^6");
    }
    // Fixed parts weigh less in a large cache, and what is kept of each block is the same.
    let (small, large) = (small.metadata_bytes, large.metadata_bytes);
    assert!(large <= small, "{small:.1} bytes of bookkeeping a block in 10^3, {large:.1} in 10^6");
}

/// In turns, so that what else the machine does falls on both, and half of the pairs count.
fn check_beside() {
    let full = |beside| FullCache::new(COLD_BLOCKS, beside).0;
    let (mut alone, mut pairs) = (full(None), BESIDE.map(|(beside, _)| (full(Some(beside)), Vec::new())));
    for round in 0..200 {
        let prompt = 7 * round % alone.prompts;
        let single = alone.visit(prompt);
        pairs.iter_mut().for_each(|(cache, ratios)| ratios.push(cache.visit(prompt) / single));
    }
    for ((beside, most), (_, ratios)) in BESIDE.into_iter().zip(pairs) {
        let (ratio, _) = sum_up(ratios);
        let text = format!("a match beside {beside:?} takes {ratio:.2} times what it takes alone");
        say(&text);
        assert!(ratio <= most, "{text}, at most {most}");
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
