//! The manager's totals and reports name all memory, by whatever way it was asked for.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use kavern::cache::{CacheConfig, Content, GroupConfig, KvCache};
use kavern::device::Stream;
use kavern::error::Status;
use kavern::event::NoSink;
use kavern::manager::Manager;
use kavern::memory::{Elastic, ElasticConfig, Limits};

const PAGE: u64 = 2 << 20;

fn cache(manager: &Arc<Manager>, max_blocks: u64) -> KvCache {
    let group = GroupConfig::new(Content::Opaque { block_bytes: PAGE }, 16);
    let config = CacheConfig { max_blocks, ..CacheConfig::new(vec![group], 16) };
    KvCache::new(manager.memory(), &config).unwrap()
}

#[test]
fn a_cache_that_can_grow_counts_in_the_totals_as_one_that_cannot() {
    let manager = Manager::open("host", Limits::default(), Arc::new(NoSink)).unwrap();
    let fixed = cache(&manager, 0);
    let totals = manager.totals();
    assert!(totals.device_bytes() >= 16 * PAGE);
    assert_eq!(totals.elastic_bytes, 0);
    drop(fixed);
    assert_eq!(manager.totals().device_bytes(), 0);
    let growing = cache(&manager, 64);
    for blocks in [16, 64, 1] {
        assert!(growing.resize(0, blocks).unwrap().is_done);
        let totals = manager.totals();
        assert!(totals.elastic_bytes >= blocks * PAGE, "{} bytes for {blocks} blocks", totals.elastic_bytes);
        assert!(totals.device_bytes() >= totals.elastic_bytes);
        let report: serde_json::Value = serde_json::from_str(&manager.report_json()).unwrap();
        let listed = report["elastic"].as_array().unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0]["committed_bytes"].as_u64().unwrap(), totals.elastic_bytes);
        manager.validate().unwrap();
    }
    drop(growing);
    let totals = manager.totals();
    assert_eq!((totals.device_bytes(), totals.elastic_bytes), (0, 0));
}

#[test]
fn an_allocation_that_the_device_made_for_a_stream_names_it() {
    let manager = Manager::open("host?virtual=0", Limits::default(), Arc::new(NoSink)).unwrap();
    let stream = manager.device().stream_create().unwrap();
    let address = manager.heap().unwrap().allocate(stream, 1 << 20, 0, 0).unwrap();
    let batch = manager.memory().allocate(4096, "for all").unwrap();
    let report: serde_json::Value = serde_json::from_str(&manager.report_json()).unwrap();
    let [ordered, direct] = &report["memory"]["live"].as_array().unwrap()[..] else { panic!("{report}") };
    assert_eq!((&ordered["stream"], direct.get("stream")), (&stream.0.into(), None));
    assert_eq!(report["allocator"]["live"][0]["stream"], ordered["stream"]);
    drop(batch);
    manager.heap().unwrap().free(stream, address).unwrap();
}

#[test]
fn the_proof_of_the_books_holds_while_other_threads_allocate_grow_and_free() {
    let limits = Limits { device_limit_bytes: 192 << 20, ..Limits::default() };
    let manager = Manager::open("host", limits, Arc::new(NoSink)).unwrap();
    let heap = manager.heap().unwrap();
    std::thread::scope(|scope| {
        let play = |seed| {
            let manager = &manager;
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                let streams = [Stream::DEFAULT, manager.device().stream_create().unwrap()];
                let config = ElasticConfig { capacity_bytes: 16 << 20, page_bytes: 0, has_slabs: true };
                let range = Elastic::new(manager.memory(), config).unwrap();
                let mut live: Vec<(u64, Stream)> = Vec::new();
                for _ in 0..1500 {
                    let stream = streams[random.usize(0..2)];
                    let is_full = live.len() > 40;
                    let outcome = match random.u32(0..16) {
                        0 => range.commit(0, random.u64(1..16 << 20)).map(drop),
                        1 => range.decommit(0, 16 << 20, None).map(drop),
                        2..8 if !live.is_empty() => {
                            let (address, stream) = live.swap_remove(random.usize(0..live.len()));
                            heap.free(stream, address)
                        }
                        _ if is_full => {
                            live.drain(..).try_for_each(|(address, stream)| heap.free(stream, address))
                        }
                        _ => {
                            let (size, alignment) = (random.u32(9..26), 1 << random.u32(8..17));
                            let bytes = random.u64(1..1 << size);
                            let address = heap.allocate(stream, bytes, alignment, 0);
                            address.map(|address| live.push((address, stream)))
                        }
                    };
                    if let Err(error) = outcome {
                        assert_eq!(error.status, Status::OutOfMemory, "{error}");
                    }
                }
                live.drain(..).for_each(|(address, stream)| heap.free(stream, address).unwrap());
                heap.forget_stream(streams[1]).unwrap();
                manager.device().stream_destroy(streams[1]).unwrap();
            })
        };
        let threads = [0, 1, 2].map(play);
        while threads.iter().any(|thread| !thread.is_finished()) {
            manager.validate().unwrap();
        }
    });
    manager.validate().unwrap();
    assert_eq!(manager.totals().device_bytes(), 0);
}
