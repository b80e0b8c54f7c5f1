//! One suite of sentences for every backend that opens here, bare and behind the fault wrapper in counting mode.
//!
//! `KAVERN_REQUIRE=cuda` turns the silent skip of a backend into a failure.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod contracts {
    mod allocations;
    mod cache_kernels;
    mod copies;
    mod faults;
    mod kernels;
    mod lost;
    mod memory;
    mod process;
    mod registry;
    mod streams;
    mod support;
    mod virtual_memory;
    mod virtual_model;
}
