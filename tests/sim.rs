//! The simulated device: planted bugs are found whatever the seed, correct programs are not accused, seeds repeat.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod sim {
    mod branches;
    mod cache;
    mod careful;
    mod classes;
    mod correct;
    mod index;
    mod planted;
    mod soak;
    mod support;
}
