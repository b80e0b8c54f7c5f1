//! A resize where memory is short: others are asked, and may use the cache themselves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Weak};
use std::time::Duration;

use kavern::cache::{CacheConfig, KvCache};
use kavern::device::registry;
use kavern::event::NoSink;
use kavern::memory::{Allocation, Limits, Memory, Room};
use kavern::sync::Mutex;

use super::bench::{config, opaque};

const PAGE: u64 = 4096;

fn memory(limit_pages: u64, soft_pages: u64) -> Arc<Memory> {
    let device = registry::open(&format!("host?page_bytes={PAGE}")).unwrap();
    let limits = Limits {
        device_limit_bytes: limit_pages * PAGE,
        device_soft_limit_bytes: soft_pages * PAGE,
        ..Limits::default()
    };
    Memory::new(device, limits, Arc::new(NoSink))
}

/// One block a page.
fn cache(memory: &Arc<Memory>) -> Arc<KvCache> {
    let config = CacheConfig { max_blocks: 700, ..config(vec![opaque(4, PAGE)], 10) };
    Arc::new(KvCache::new(memory, &config).unwrap())
}

/// Shrinks a cache.
struct Shrinker {
    cache: Weak<KvCache>,
    calls: AtomicU64,
}

impl Room for Shrinker {
    fn reclaim(&self, _bytes: u64) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let cache = self.cache.upgrade().unwrap();
        let before = cache.statistics().pool_bytes;
        cache.resize(0, 10).unwrap();
        before.saturating_sub(cache.statistics().pool_bytes)
    }

    fn rank(&self) -> u32 {
        2
    }
}

#[test]
fn whoever_is_asked_because_a_group_grows_may_shrink_that_group() {
    let memory = memory(0, 600);
    let cache = cache(&memory);
    let shrinker = Arc::new(Shrinker { cache: Arc::downgrade(&cache), calls: AtomicU64::new(0) });
    memory.set_callback(Some(Arc::clone(&shrinker) as Arc<dyn Room>));
    let (done, is_done) = channel();
    let growing = Arc::clone(&cache);
    std::thread::spawn(move || done.send(growing.resize(0, 700).unwrap()));
    let resized = is_done.recv_timeout(Duration::from_secs(20));
    assert_eq!(resized.expect("a resize waits for itself").blocks, 700);
    assert_eq!(shrinker.calls.load(Ordering::Relaxed), 1);
    assert_eq!(cache.statistics().capacity_blocks, 10);
    cache.validate().unwrap();
}

/// Holds memory that it can spare.
struct Holder(Mutex<Option<Allocation>>);

impl Room for Holder {
    fn reclaim(&self, _bytes: u64) -> u64 {
        self.0.lock().take().map_or(0, |held| held.bytes())
    }

    fn rank(&self) -> u32 {
        2
    }
}

#[test]
fn others_are_asked_before_a_group_is_refused_its_memory() {
    let memory = memory(2000, 0);
    let cache = cache(&memory);
    // Room for 300 blocks more is left beside what can be spared.
    let spare_bytes = 1700 * PAGE - memory.held_bytes().0;
    let holder = Arc::new(Holder(Mutex::new(Some(memory.allocate(spare_bytes, "spare").unwrap()))));
    memory.set_callback(Some(Arc::clone(&holder) as Arc<dyn Room>));
    assert_eq!(cache.resize(0, 600).unwrap().blocks, 600);
    assert!(holder.0.lock().is_none());
    cache.validate().unwrap();
}
