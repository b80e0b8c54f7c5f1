//! Many operations of caches on simulated streams with the work of an engine between them, and no race.
//!
//! Steps alternate between two streams, or overlap; blocks that are full hold patterns that later steps compare, and
//! every other seed changes the size of its pool meanwhile, or has size classes between which memory moves.
//! `KAVERN_SOAK` makes it long: 1 for 10^7 operations of all engines together, or their number; `KAVERN_SEED` plays one
//! seed.

use kavern::sys::clock;

use super::support::kinds;
use super::{branches, cache, classes};

/// Operations in the gate.
const USUAL: u64 = 60_000;
/// Steps of one seed.
const STEPS: u64 = 1000;

#[expect(clippy::disallowed_macros, reason = "a measurement is told to whoever runs it")]
fn tell(text: &str) {
    eprintln!("{text}");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn play(seed: u64) -> u64 {
    // Two seeds of one engine, then two of the next.
    let (report, operations) = match seed / 2 % 3 {
        0 => cache::soak(seed, STEPS),
        1 => branches::soak(seed, STEPS),
        _ => classes::soak(seed, STEPS),
    };
    assert_eq!(kinds(&report), [], "KAVERN_SEED={seed}: {}", report.to_json());
    operations
}

#[test]
fn ten_million_operations_with_the_work_of_their_steps_have_no_race() {
    if let Some(seed) = number("KAVERN_SEED") {
        assert!(play(seed) > STEPS);
        return;
    }
    let wanted = number("KAVERN_SOAK").map_or(USUAL, |count| if count == 1 { 10_000_000 } else { count });
    let (start, mut done, mut seed) = (clock::now_ns(), 0, 0);
    while done < wanted {
        done += play(seed);
        seed += 1;
        if seed.is_multiple_of(100) || done >= wanted {
            let seconds = (clock::now_ns() - start) as f64 / 1e9;
            let rate = done as f64 / seconds;
            tell(&format!(
                "sim: {done} operations, {seed} seeds, {seconds:.1} s, {rate:.0} a second, 0 races"
            ));
        }
    }
    assert!(seed >= 6, "each engine played, in pools that stay and in others");
}
