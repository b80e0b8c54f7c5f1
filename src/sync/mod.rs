//! What threads share: the locks of the crate, in one place so that they can be switched for a checking build, and
//! tables that need none to be read.
//!
//! Lock order, outermost first: handle table, manager, cache, ledger, device tables, stream queue. A lock is never
//! held across a callback, and none but the device's own across a call into the device.

pub mod slots;

pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
