//! The locks of the crate, in one place so that they can be switched for a checking build.
//!
//! Lock order, outermost first: handle table, manager, cache, ledger, device tables, stream queue. A lock is never
//! held across a callback, and none but the device's own across a call into the device.

pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
