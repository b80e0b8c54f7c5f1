//! What users of the KV cache rely on, one sentence a test, on the host device. The random test against a naive cache
//! is `model.rs`; this file's tests say each promise by name.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cache {
    mod bench;
    mod change;
    mod events;
    mod faults;
    mod groups;
    mod groups_model;
    mod isolation;
    mod ops;
    mod partial;
    mod prefix;
    mod promises;
    mod resize;
    mod states;
    mod steps;
    mod tables;
    mod write;
}
