//! What was made on a manager and holds device memory of its own: pools and shared pools. Elastic ranges are in the
//! memory's list, whoever makes them.
//!
//! What it does: notes them for reports and sums, and makes pools and shared pools known to whoever is short of memory.
//! What it does not: keep them alive. Invariant: one that has gone is in no report. Lock order: each list's lock alone.

use std::sync::{Arc, Weak};

use super::Manager;
use crate::error::Result;
use crate::memory::{PhysicalStatistics, Pool, Room, SharedPool};
use crate::sync::Mutex;

/// All of one manager.
#[derive(Default)]
pub(super) struct Holdings {
    pools: Mutex<Vec<Weak<Pool>>>,
    shared: Mutex<Vec<Weak<SharedPool>>>,
}

fn add<T>(list: &Mutex<Vec<Weak<T>>>, new: &Arc<T>) {
    let mut list = list.lock();
    list.retain(|known| known.strong_count() > 0);
    list.push(Arc::downgrade(new));
}

fn living<T>(list: &Mutex<Vec<Weak<T>>>) -> Vec<Arc<T>> {
    list.lock().iter().filter_map(Weak::upgrade).collect()
}

impl Holdings {
    pub(super) fn pools(&self) -> Vec<Arc<Pool>> {
        living(&self.pools)
    }

    pub(super) fn shared(&self) -> Vec<Arc<SharedPool>> {
        living(&self.shared)
    }

    /// Committed by the models of shared pools.
    pub(super) fn shared_bytes(&self) -> u64 {
        self.shared().iter().map(|pool| pool.committed_bytes()).sum()
    }
}

impl Manager {
    /// Checks the invariants of all books: of the memory with its elastic ranges, the pinned pool, the allocator, pools
    /// and shared pools.
    pub fn validate(&self) -> Result<()> {
        self.memory.validate()?;
        self.pinned.validate()?;
        self.heap.get().map_or(Ok(()), |heap| heap.validate())?;
        self.holdings.pools().iter().try_for_each(|pool| pool.validate())?;
        self.holdings.shared().iter().try_for_each(|shared| shared.validate())
    }

    /// What all pools of pages have and did.
    pub(super) fn pages(&self) -> PhysicalStatistics {
        let mut sum = self.memory.page_statistics();
        self.holdings.shared().iter().for_each(|pool| sum.add(&pool.physical().statistics()));
        sum
    }

    /// Takes a pool on this manager's memory into reports and into the upkeep, and lets it be asked when memory is
    /// short. Whoever gives it up calls [`Pool::end`].
    pub fn attach_pool(&self, pool: &Arc<Pool>) {
        add(&self.holdings.pools, pool);
        let room: Weak<Pool> = Arc::downgrade(pool);
        self.memory.add_room(room as Weak<dyn Room>);
        pool.begin_upkeep();
    }

    /// Committed in elastic ranges, those of KV caches too.
    pub(super) fn elastic_bytes(&self) -> u64 {
        self.memory.elastic_bytes()
    }

    /// Takes a shared pool into reports, and lets it be asked when memory is short.
    pub fn attach_shared(&self, shared: &Arc<SharedPool>) {
        add(&self.holdings.shared, shared);
        let room: Weak<SharedPool> = Arc::downgrade(shared);
        self.memory.add_room(room as Weak<dyn Room>);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;
    use crate::event::NoSink;
    use crate::memory::{Elastic, ElasticConfig, Limits};

    #[test]
    fn a_false_entry_of_the_allocator_is_found_by_its_manager() {
        let manager = Manager::open("host", Limits::default(), Arc::new(NoSink)).unwrap();
        manager.validate().unwrap();
        manager.heap().unwrap().plant_false_entry();
        assert!(manager.validate().is_err());
    }

    #[test]
    fn sums_do_not_wait_for_a_range_that_is_being_mapped() {
        let manager = Manager::open("host", Limits::default(), Arc::new(NoSink)).unwrap();
        let memory = manager.memory();
        let page = memory.device().description().page_bytes;
        let config = ElasticConfig { capacity_bytes: 8 * page, page_bytes: 0, has_slabs: false };
        let elastic = Elastic::new(memory, config).unwrap();
        elastic.commit(0, 3 * page).unwrap();
        // The hook is asked in the middle of a change, under the lock of the range.
        let (enter, entered) = channel();
        let (leave, left) = channel::<()>();
        let (enter, left) = (Mutex::new(enter), Mutex::new(left));
        memory.physical().unwrap().set_quiet(Some(Arc::new(move || {
            let _ = enter.lock().send(());
            let _ = left.lock().recv();
            true
        })));
        let (answer, answered) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| elastic.commit(0, 5 * page).unwrap());
            entered.recv().unwrap();
            scope.spawn(|| answer.send(manager.totals().elastic_bytes).unwrap());
            let seen = answered.recv_timeout(Duration::from_secs(20));
            drop(leave);
            assert_eq!(seen, Ok(3 * page), "what is being mapped is not there yet");
        });
        assert_eq!(manager.totals().elastic_bytes, 5 * page);
    }
}
