//! What users of the KV cache rely on, one sentence a test, on the host device. The random test against a naive cache
//! is `model.rs`; this file's tests say each promise by name.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "model/positions.rs"]
mod positions;

mod cache {
    mod adaptive;
    mod adaptive_memory;
    mod bench;
    mod change;
    mod chunks;
    mod device_index;
    mod events;
    mod faults;
    mod groups;
    mod groups_model;
    mod isolation;
    mod kinds;
    mod limits;
    mod moves;
    mod moves_plans;
    mod namespaces;
    mod ops;
    mod partial;
    mod plan_sizes;
    mod plans;
    mod prefix;
    mod probe;
    mod promises;
    mod resize;
    mod resize_asked;
    mod resize_kept;
    mod retention;
    mod shifts;
    mod states;
    mod steps;
    mod tables;
    mod turns;
    mod write;
    mod zeros;
}
