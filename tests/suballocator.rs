//! The pure structures of the suballocator against naive models, operation by operation, and what they refuse.
//!
//! `KAVERN_SEED` replays a run; `KAVERN_SOAK` makes it long: 1 for 10^8 operations of each model, or their number.

#![expect(clippy::unwrap_used, reason = "what is missing in a model test is the fault that it looks for")]

#[path = "suballocator/free_list.rs"]
mod free_list;
#[path = "suballocator/size_class.rs"]
mod size_class;
#[path = "suballocator/slab.rs"]
mod slab;

use kavern::error::{Result, Status};

/// Operations of one seed.
const EACH: u64 = 2_000;

/// Plays seeds until so many operations are through, or the one that the environment names.
fn play_seeds(usual: u64, play: fn(u64, u64)) {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    let soak = number("KAVERN_SOAK").map(|count| if count == 1 { 100_000_000 } else { count });
    let seeds = match number("KAVERN_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..soak.unwrap_or(usual) / EACH,
    };
    for seed in seeds {
        if let Err(panic) = std::panic::catch_unwind(|| play(seed, EACH)) {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            panic!("diverged with KAVERN_SEED={seed}: {text}");
        }
    }
}

/// The call was refused because of its arguments, and says why with these words.
fn refuses<T: std::fmt::Debug>(outcome: Result<T>, words: &str) {
    let error = outcome.unwrap_err();
    assert_eq!(error.status, Status::InvalidArgument, "{error}");
    assert!(error.text.contains(words), "not {words:?} but: {error}");
}
