//! Memory that grows and shrinks behind fixed addresses: physical pages, budgets of a machine, elastic ranges, pools
//! that models share.
//!
//! Played on `host` and on simulated streams; `KAVERN_TEST_DEVICE` names another device to play it on instead.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod elastic {
    mod captures;
    mod faults;
    mod machine;
    mod passing;
    mod physical;
    mod pool;
    mod pool_random;
    mod range;
    mod stuck;
    mod support;
}
