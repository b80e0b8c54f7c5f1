//! The few doors to the machine; safe outside.
//!
//! What it does: time, randomness, memory mappings, knowledge of forks. What it does not: policy; each door opens one
//! kind of thing and gives it an owner. Invariant: no function here can break memory safety for a caller in safe Rust.

pub mod barrier;
pub mod clock;
pub mod desk;
pub mod fork;
pub mod lease;
pub mod numa;
pub mod prefetch;
pub mod random;
pub mod reserve;
pub mod shm;
pub mod steady;
pub mod tally;
pub mod thread_end;
pub mod ticker;
