//! The names of a manager's caches, for its reports. What it does not: hold the caches. Invariant: a name is in the
//! reports for as long as its note lives.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Manager;

impl Manager {
    /// Notes a cache by name for reports; keeps the manager alive.
    pub fn attach_cache(self: &Arc<Self>, name: &str) -> CacheNote {
        let number = self.next_cache.fetch_add(1, Ordering::Relaxed);
        self.caches.lock().insert(number, name.to_owned());
        CacheNote { manager: Arc::clone(self), number }
    }
}

/// The name of a cache in its manager's reports; leaves them on drop.
pub struct CacheNote {
    manager: Arc<Manager>,
    number: u64,
}

impl CacheNote {
    /// The manager.
    pub fn manager(&self) -> &Arc<Manager> {
        &self.manager
    }
}

impl Drop for CacheNote {
    fn drop(&mut self) {
        self.manager.caches.lock().remove(&self.number);
    }
}
