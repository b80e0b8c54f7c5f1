//! How fast the simulated device is. In a suite of its own: the simulated devices of a process share one lock, and beside
//! other tests the time would be theirs too.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "sim/careful.rs"]
mod careful;
#[path = "sim/support.rs"]
#[expect(dead_code, reason = "shared with the suite that looks for bugs")]
mod support;

use fastrand::Rng;
use kavern::sys::clock;

use careful::careful;
use support::Engine;

/// Operations of one measurement.
const MEASURED: u64 = 400_000;
/// A third of the million a second that is promised; a quiet machine does two million.
const LEAST_PER_SECOND: u64 = 333_333;

#[expect(clippy::disallowed_macros, reason = "a measurement is told to whoever runs it")]
fn tell(text: &str) {
    eprintln!("{text}");
}

#[test]
fn a_million_operations_take_about_a_second() {
    let mut best = 0;
    for seed in 0..3 {
        let mut engine = Engine::new(&format!("sim?seed={seed}"));
        let start_ns = clock::now_ns();
        careful(&mut engine, &mut Rng::with_seed(seed), MEASURED);
        let steps = engine.finish().steps;
        best = best.max(steps * 1_000_000_000 / (clock::now_ns() - start_ns));
    }
    tell(&format!("{best} simulated operations a second at best"));
    assert!(best >= LEAST_PER_SECOND, "{best} operations a second");
}
