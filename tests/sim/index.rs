//! The index on a simulated device: updates and lookups on several streams have no race, and one that goes around the
//! cache's order is found.

use std::sync::Arc;

use fastrand::Rng;
use kavern::cache::{
    CacheConfig, Content, DeviceLookup, GroupConfig, IndexOptions, KvCache, LookupMode, Naming, Op, Request,
    Target,
};
use kavern::device::{Device, DeviceSlice, Report, registry};
use kavern::error::Status;
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory};
use kavern::types::Id;

use super::support::{SCHEDULES, kinds};

const LINKS: usize = 12;

fn config() -> CacheConfig {
    CacheConfig {
        max_sequences: 4,
        max_sequence_tokens: 64,
        max_batch_tokens: 256,
        max_leases: 4,
        max_namespaces: 4,
        steps_in_flight: 3,
        index: IndexOptions { device: true, chunks: false },
        ..CacheConfig::new(vec![GroupConfig::new(Content::Opaque { block_bytes: 64 }, 4)], 40)
    }
}

fn request(tokens: &[i32]) -> Request<'_> {
    Request::new(1, Naming::Tokens(tokens, &[]), tokens.len() as u64)
}

/// Stores and evicts on one stream, looks up on three. A careless one reads the answers without waiting for its stream.
fn play(seed: u64, steps: u64, is_careless: bool) -> Report {
    let schedule = SCHEDULES[seed as usize % SCHEDULES.len()];
    let device: Arc<dyn Device> = registry::open(&format!("sim?seed={seed}&schedule={schedule}")).unwrap();
    let memory = Memory::new(Arc::clone(&device), Limits::default(), Arc::new(NoSink));
    let cache = KvCache::new(&memory, &config()).unwrap();
    let mut random = Rng::with_seed(seed);
    let streams = [(); 3].map(|()| device.stream_create().unwrap());
    let places: Vec<(DeviceSlice, DeviceSlice)> = (0..3)
        .map(|_| {
            let take = |bytes: usize| device.memory_allocate(bytes as u64).unwrap();
            (take(16 * LINKS), take(4 * LINKS))
        })
        .collect();
    for step in 1..=steps {
        while cache.step(step).map(drop).is_err() {
            streams.iter().for_each(|&stream| device.stream_synchronize(stream).unwrap());
            cache.poll().unwrap();
        }
        let tokens: Vec<i32> = (0..4 * LINKS).map(|_| i32::from(random.u8(0..20) == 0)).collect();
        let found = cache.lookups().find(&request(&tokens)).unwrap();
        let mut session = cache.step(step).unwrap();
        let count = tokens.len() as u64 - found.hit_tokens;
        let admitted = session.apply(&Op::Admit {
            lease: found.lease,
            tokens: count,
            lookahead: 0,
            row: -1,
            expected_tokens: 0,
        });
        if admitted.status == Status::Ok {
            let target = Target::Id(Id(admitted.sequence));
            let naming = Naming::Tokens(&tokens[found.hit_tokens as usize..], &[]);
            assert_eq!(session.apply(&Op::Commit { target, tokens: count, naming }).status, Status::Ok);
            assert_eq!(session.apply(&Op::Free { target }).status, Status::Ok);
        } else {
            assert_eq!(session.apply(&Op::Release { lease: found.lease }).status, Status::Ok);
        }
        drop(session);
        let stream = streams[random.usize(..2)];
        cache.tables(step, stream, |_| Ok(())).unwrap();
        if random.bool() {
            cache.step_done(step, Some(stream)).unwrap();
        }
        for _ in 0..random.usize(..3) {
            let at = random.usize(..3);
            let (hashes, blocks) = places[at];
            device.stream_synchronize(streams[at]).unwrap();
            let mut bytes = Vec::new();
            cache
                .block_hashes(&request(&tokens), 0, |_, hash| {
                    bytes.extend(hash.map(u64::to_le_bytes).concat())
                })
                .unwrap();
            device.write(hashes, &bytes).unwrap();
            let mode = if random.bool() { LookupMode::Prefix } else { LookupMode::Independent };
            let (rows, row_hashes) = (1, LINKS as u32);
            let lookup = DeviceLookup { group: 0, mode, rows, row_hashes, hashes, counts: None, blocks };
            cache.lookup_device(streams[at], &lookup).unwrap();
            if is_careless {
                let other = streams[(at + 1) % 3];
                device.simulator().unwrap().declare(other, &[blocks], &[]).unwrap();
            }
        }
        // Those that were not done above; done twice is refused.
        _ = cache.step_done(step, Some(stream));
    }
    device.synchronize().unwrap();
    cache.validate().unwrap();
    assert!(cache.statistics().evicted_blocks > 0 && cache.statistics().device_index_cells_sent > 0);
    device.simulator().unwrap().report().unwrap()
}

#[test]
fn updates_and_lookups_on_three_streams_have_no_race() {
    for seed in 0..10 {
        let report = play(seed, 600, false);
        assert_eq!(kinds(&report), [], "seed {seed}: {}", report.to_json());
    }
}

#[test]
fn answers_that_are_read_on_another_stream_without_waiting_are_found() {
    for seed in 0..20 {
        assert!(play(seed, 60, true).races() > 0, "seed {seed}");
    }
}
