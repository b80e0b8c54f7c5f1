//! What the default policy reaches beside lru and fifo, on public traces and on traffic that nothing was chosen by.

use crate::{CONVERSATION, MINISWE, TAUBENCH, count, hits, json, say, trace};

/// Hit blocks that the default policy must reach on the conversation trace.
const CONVERSATION_ADAPTIVE: [(u64, u64); 5] =
    [(1_000, 16_400), (3_000, 28_500), (5_859, 45_500), (10_000, 64_200), (30_000, 93_978)];

/// Capacities between which its hits on the conversation trace once differed by ten thousand, by when it was tried.
const CONVERSATION_BETWEEN: [u64; 22] = [
    256, 400, 600, 2_000, 4_000, 4_500, 5_000, 5_100, 5_200, 5_300, 5_400, 5_500, 5_600, 6_300, 7_000, 7_600,
    8_000, 9_000, 12_000, 20_000, 40_000, 60_000,
];

/// Hits, looked-up blocks and the hits in runs of a policy.
fn hits_of(workload: &[&str], blocks: u64, policy: &str) -> (u64, u64, u64) {
    let of = |more: &[&str]| {
        let count_text = blocks.to_string();
        let fixed = ["--blocks", &count_text, "--no-bytes", "--policy", policy];
        let report = json(&[&["replay"], workload, &fixed, more].concat());
        (count(&report, "hit_blocks"), count(&report, "blocks"))
    };
    let (hits, all) = of(&[]);
    (hits, all, of(&["--in-runs"]).0)
}

#[test]
fn the_default_policy_does_not_depend_on_the_moment_at_which_it_is_tried() {
    let Some(conversation) = trace(CONVERSATION) else { return };
    let chats = ["--generate", "chat", "--requests", "20000", "--seed", "1"];
    let agents = ["--generate", "agents", "--requests", "5000", "--seed", "1"];
    let conversation = [conversation.as_str()];
    let cases = CONVERSATION_BETWEEN.into_iter().map(|blocks| (&conversation[..], blocks, 0.5));
    // Traffic that nothing was chosen by; what is free for the sake of runs is a part of the loss there under any policy.
    for (workload, blocks, most_lost) in cases.chain([(&chats[..], 8_000, 1.0), (&agents[..], 8_000, 1.0)]) {
        let (adaptive, all, in_runs) = hits_of(workload, blocks, "adaptive");
        let (lru, _, lru_in_runs) = hits_of(workload, blocks, "lru");
        let points = |one: u64, other: u64| (one as f64 - other as f64) * 100.0 / all as f64;
        let (over, over_in_runs, lost) =
            (points(adaptive, lru), points(in_runs, lru_in_runs), points(adaptive, in_runs));
        say(&format!(
            "{workload:?} {blocks}: adaptive {adaptive}, {over:+.2} points over lru, {over_in_runs:+.2} in runs"
        ));
        assert!(
            over >= -0.3 && over_in_runs >= -0.3,
            "{workload:?} {blocks}: {over} and {over_in_runs} points"
        );
        assert!(lost <= most_lost, "{workload:?} {blocks}: {lost} points lost in runs");
        // Where there is much to gain, it is gained at each.
        if (4_000..=6_300).contains(&blocks) && workload.len() == 1 {
            assert!(over >= 2.5, "{blocks} blocks: {over} points over lru");
        }
    }
}

#[test]
fn the_default_policy_reaches_its_goals_and_never_falls_under_lru_or_fifo() {
    let small = ["--no-bytes", "--policy"];
    let Some(conversation) = trace(CONVERSATION) else { return };
    for (blocks, goal) in CONVERSATION_ADAPTIVE {
        let reached = hits(&conversation, blocks, &[&small[..], &["adaptive"]].concat());
        assert!(reached >= goal, "{blocks} blocks: {reached} hits, the goal is {goal}");
    }
    let cases: [(&str, &[u64]); 3] = [
        (CONVERSATION, &[125, 150, 200, 300, 1_000, 3_000, 5_859, 10_000, 30_000, 97_656, 100_000]),
        (MINISWE, &[300, 1_000, 3_000]),
        (TAUBENCH, &[100, 300]),
    ];
    for (name, capacities) in cases {
        let Some(trace) = trace(name) else { return };
        for &blocks in capacities {
            let count_text = blocks.to_string();
            let of = |policy: &[&str]| {
                let fixed = ["replay", &trace, "--blocks", &count_text, "--no-bytes", "--policy"];
                let report = json(&[&fixed, policy].concat());
                (count(&report, "hit_blocks"), count(&report, "blocks"))
            };
            let ((adaptive, all), (lru, _), (fifo, _)) = (of(&["adaptive"]), of(&["lru"]), of(&["fifo"]));
            let (in_runs, _) = of(&["adaptive", "--in-runs"]);
            let points_over = |other: u64| (adaptive as f64 - other as f64) * 100.0 / all as f64;
            let (points, lost) = (points_over(lru), points_over(in_runs));
            say(&format!(
                "{name} {blocks}: adaptive {adaptive}, {points:+.2} points over lru, {lost:.2} lost in runs"
            ));
            // What blocks in runs may cost.
            assert!(lost <= 0.5, "{name}, {blocks} blocks: {adaptive} hits, {in_runs} in runs");
            assert!(points >= -0.3, "{name}, {blocks} blocks: {points} points under lru");
            assert!(adaptive >= fifo, "{name}, {blocks} blocks: {adaptive} hits, fifo has {fifo}");
        }
    }
}
