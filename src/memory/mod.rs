//! Device memory with an owner.
