//! What the allocator holds without a limit, on generated traces, beside what is live.

use std::process::Command;

/// A machine on which memory never gets short.
const PLENTY: &str = "host?memory_bytes=150000000000";

/// PyTorch's allocator holds 1.1 to 1.5 times what is live; without looks this one held 2.3 to 4.9 times.
#[test]
fn without_a_limit_little_more_is_held_than_is_live() {
    for (kind, most) in [("serving", 1.5), ("training", 1.5)] {
        for seed in ["1", "2"] {
            let replay = ["replay-alloc", "--generate", kind, "--seed", seed, "--device", PLENTY, "--json"];
            // A server or a training run has other work between two of them.
            let paced = replay.iter().chain(&["--pace-us", "30"]);
            let output = Command::new(env!("CARGO_BIN_EXE_kavern")).args(paced).output().unwrap();
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            let of = |field: &str| report[field].as_f64().unwrap();
            let held = of("peak_backed_bytes") / of("peak_live_bytes");
            assert!(held <= most, "{kind} {seed}: {held:.2} times, {report}");
        }
    }
}
