//! The cache through the C functions against models, for as long as one likes: 10^8 operations and no divergence.
//!
//! Two soaks, each with caches of a few dozen blocks and seeds that rotate. `exact` predicts every answer to the block
//! id. `content` does everything that may be done to sequences, in caches with hits inside blocks, chunks, limits,
//! promises and changing sizes; it holds every slot against its token, every hit against the picture that a reader of
//! events has, and every count against its lists. An operation of a step counts once, and nothing else does.
//!
//! `KAVERN_SOAK` makes it long: 1 for 10^8 operations of both together, or their number; `KAVERN_SEED` plays one seed.
#![expect(clippy::unwrap_used, reason = "what is missing in a soak is the fault that it looks for")]

#[path = "cache_soak/boundary.rs"]
mod boundary;
#[path = "cache_soak/content.rs"]
mod content;
#[path = "cache_soak/exact.rs"]
mod exact;
#[path = "model/limits.rs"]
mod limits;
#[path = "model/naive.rs"]
mod naive;
#[path = "model/numbers.rs"]
mod numbers;
#[path = "cache_soak/picture.rs"]
mod picture;
#[path = "model/positions.rs"]
mod positions;
#[expect(dead_code, reason = "time stands still in this soak")]
#[path = "model/retain.rs"]
mod retain;
#[path = "model/unwritten.rs"]
mod unwritten;

use kavern::sys::clock;

const STEPS_IN_FLIGHT: u32 = 3;
/// Operations of one seed.
const EACH: u64 = 10_000;
/// Operations of one soak in the gate.
const USUAL: u64 = 400_000;
/// How often a long run says how far it is.
const WORD_NS: u64 = 60_000_000_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[expect(clippy::disallowed_macros, reason = "a measurement is told to whoever runs it")]
fn tell(text: &str) {
    eprintln!("{text}");
}

/// Plays seed after seed until there were enough operations.
fn soak(name: &str, mut play: impl FnMut(u64, u64) -> u64) {
    let wanted = match number("KAVERN_SOAK") {
        None | Some(0) => USUAL,
        // Half of them is this soak's.
        Some(1) => 50_000_000,
        Some(count) => count.div_ceil(2),
    };
    if let Some(seed) = number("KAVERN_SEED") {
        play(seed, EACH);
        return;
    }
    let (start, mut done, mut seed) = (clock::now_ns(), 0, 0);
    let mut word = start;
    while done < wanted {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(seed, EACH)));
        match outcome {
            Ok(count) => done += count,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                panic!("{name}: diverged with KAVERN_SEED={seed} after {done} operations: {text}");
            }
        }
        seed += 1;
        let now = clock::now_ns();
        if now - word > WORD_NS || done >= wanted {
            word = now;
            let seconds = (now - start) as f64 / 1e9;
            let rate = done as f64 / seconds;
            tell(&format!("{name}: {done} operations in {seconds:.1} s, {rate:.0} a second, 0 divergences"));
        }
    }
}

#[test]
fn a_hundred_million_operations_answer_to_the_block_as_the_naive_cache_does() {
    soak("exact", exact::play);
}

#[test]
fn whatever_is_done_to_sequences_slots_hits_events_and_counts_are_as_they_should_be() {
    let mut sums = content::Sums::default();
    soak("content", |seed, operations| content::play(seed, operations, &mut sums));
    if number("KAVERN_SEED").is_none() {
        sums.check();
    }
}
