//! Every call into the device fails once: the error comes back, nothing is left behind, and the same call then works.
//! And configurations that cannot be: each is refused before anything is allocated.

use std::sync::Arc;

use kavern::cache::{
    Append, CacheConfig, Content, DeviceLookup, IndexOptions, KvCache, LookupMode, Op, Scrub, Target,
};
use kavern::device::{Device, Place, Stream, registry};
use kavern::error::{Error, Result, Status};
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory};
use kavern::types::{Dtype, Id};

use super::bench::{ask, commit, config, group, lookup, opaque, prompt, refused};

fn settings() -> CacheConfig {
    CacheConfig {
        ragged: true,
        scrub: Scrub::Always,
        steps_in_flight: 2,
        max_batch_tokens: 64,
        index: IndexOptions { device: true, chunks: false },
        ..config(vec![group(4), opaque(8, 32)], 16)
    }
}

/// How many faults a run may still meet, and how many it met.
struct Faults {
    met: u64,
}

impl Faults {
    /// Repeats a call that failed by injection.
    fn again<T>(&mut self, mut call: impl FnMut() -> Result<T>) -> T {
        loop {
            match call() {
                Ok(value) => return value,
                Err(Error { text, .. }) if text.contains("injected fault") => self.met += 1,
                Err(error) => panic!("{error}"),
            }
            assert!(self.met < 3, "one call fails, so nothing fails for ever");
        }
    }
}

/// Creates a cache, runs three steps on a stream with everything that touches the device, and drops it.
/// Answers how many faults were met.
fn scenario(device: &Arc<dyn Device>) -> u64 {
    let mut faults = Faults { met: 0 };
    let memory = Memory::new(Arc::clone(device), Limits::default(), Arc::new(NoSink));
    let baseline = device.memory_info().unwrap();
    let stream = faults.again(|| device.stream_create());
    let cache = faults.again(|| {
        let made = KvCache::new(&memory, &settings());
        if made.is_err() {
            let now = memory.statistics();
            assert_eq!(
                (now.device.bytes, now.pinned.bytes, now.device.count, now.pinned.count),
                (0, 0, 0, 0)
            );
            assert_eq!(device.memory_info().unwrap(), baseline, "a failed create keeps memory");
        }
        made
    });
    let source = faults.again(|| memory.allocate(256, "source"));
    let slots = faults.again(|| memory.allocate(64, "slots"));
    faults.again(|| device.write(slots.slice().part(0, 16)?, &[0; 16]));
    let tokens = prompt(1, 13);
    let mut sequence = 0;
    for step in 1..=3u64 {
        drop(faults.again(|| cache.step(step)));
        let op = if step == 1 {
            let lease = lookup(&cache, &ask(&tokens)).unwrap().lease;
            Op::Admit { lease, tokens: 13, lookahead: 0, row: 2, expected_tokens: 0 }
        } else {
            Op::Append { target: Target::Id(Id(sequence)), tokens: 3, lookahead: 0 }
        };
        let result = faults.again(|| cache.step(step)).apply(&op);
        assert_eq!(result.status, Status::Ok);
        sequence = result.sequence;
        let length = 13 + 3 * (step as usize - 1);
        let (address, table, expected) = faults.again(|| {
            cache.tables(step, stream, |tables| {
                let view = tables.group(0)?;
                let row = view.block_table[2 * view.row_cells as usize..][..length.div_ceil(4)].to_vec();
                assert_eq!(tables.batch_rows()?, [2]);
                assert_eq!(view.page_indices, row);
                assert_eq!(view.slot_mapping.len(), if step == 1 { 13 } else { 3 });
                let address = tables.group_addresses(0).block_table + 8 * view.row_cells;
                Ok((tables.addresses()[2] + 8, address, row))
            })
        });
        faults.again(|| device.stream_synchronize(stream));
        assert_eq!(words(device, &mut faults, table, expected.len()), expected, "step {step}");
        assert_eq!(words(device, &mut faults, address, 1), [length as i32]);
        let seeds: Vec<u64> = expected.iter().map(|&block| 1000 + block as u64).collect();
        faults.again(|| cache.fill_pattern(stream, 0, &expected, &seeds));
        faults.again(|| cache.check_pattern(stream, 0, &expected, &seeds));
        let found = faults.again(|| cache.take_check_result());
        assert_eq!((found.checked, found.mismatched), (expected.len() as u64, 0), "step {step}");
        let append = Append {
            group: 0,
            layer: 0,
            dtype: Dtype::F16,
            tokens: 2,
            keys: source.slice(),
            values: source.slice(),
            slots: slots.slice(),
        };
        faults.again(|| cache.append(stream, &append));
        faults.again(|| cache.step_done(step, Some(stream)));
        // How often a running step is asked for would depend on the stream's speed, and with it the number of calls.
        faults.again(|| device.stream_synchronize(stream));
    }
    {
        let mut list = faults.again(|| cache.step(4));
        assert_eq!(list.apply(&commit(sequence, &tokens, &[])).blocks_committed, 3 + 1);
        let free = Op::Free { target: Target::Id(Id(sequence)) };
        assert_eq!(list.apply(&free).status, Status::Ok);
    }
    faults.again(|| cache.tables(4, stream, |_| Ok(())));
    let mut hashes = Vec::new();
    let mut take = |_: usize, hash: [u64; 2]| hashes.extend(hash.iter().flat_map(|word| word.to_le_bytes()));
    assert_eq!(cache.block_hashes(&ask(&tokens), 0, &mut take).unwrap(), 3);
    faults.again(|| device.write(source.slice().part(0, 48)?, &hashes));
    let lookup = DeviceLookup {
        group: 0,
        mode: LookupMode::Prefix,
        rows: 1,
        row_hashes: 3,
        hashes: source.slice(),
        counts: None,
        blocks: slots.slice(),
    };
    faults.again(|| cache.lookup_device(stream, &lookup));
    faults.again(|| device.stream_synchronize(stream));
    let found = words(device, &mut faults, slots.slice().address(), 3);
    assert!(found.iter().all(|&block| block >= 0), "{found:?}");
    faults.again(|| cache.step_done(4, Some(stream)));
    faults.again(|| device.stream_synchronize(stream));
    faults.again(|| cache.poll());
    assert_eq!(faults.again(|| cache.evict(0, 100)), 3);
    assert_eq!((cache.statistics().steps_in_flight, cache.statistics().deferred_blocks), (0, 0));
    cache.validate().unwrap();
    drop((cache, source, slots));
    device.stream_destroy(stream).unwrap();
    let now = memory.statistics();
    assert_eq!((now.device.bytes, now.pinned.bytes, now.device.count, now.pinned.count), (0, 0, 0, 0));
    assert_eq!(device.memory_info().unwrap(), baseline, "a dropped cache keeps memory");
    memory.validate().unwrap();
    faults.met
}

fn words(device: &Arc<dyn Device>, faults: &mut Faults, address: u64, count: usize) -> Vec<i32> {
    // SAFETY: a table of the cache, which lives while this is read.
    let slice = unsafe { kavern::device::DeviceSlice::from_foreign(device.key(), address, 4 * count as u64) };
    let mut bytes = vec![0u8; 4 * count];
    faults.again(|| device.read(slice.clone()?, &mut bytes));
    bytes.chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn whichever_call_fails_nothing_is_lost_and_the_same_call_then_works() {
    let counting = registry::open("host?fail_nth=0").unwrap();
    assert_eq!(scenario(&counting), 0);
    let calls = counting.call_count();
    assert!(calls > 100, "{calls} calls");
    let mut absorbed = 0;
    for nth in 1..=calls {
        for error in ["oom", "device"] {
            let device = registry::open(&format!("host?fail_nth={nth}&error={error}")).unwrap();
            absorbed += 1 - scenario(&device);
        }
    }
    // A fill or a check whose event cannot be recorded waits for the stream later, and is no failure: three of each.
    assert_eq!(absorbed, 2 * 6);
}

/// Shrinks and grows a group on a device whose removals of mappings fail as said; the cache, and how it went.
fn resized_often(faults: &str) -> (KvCache, Vec<Result<u64>>) {
    let device = registry::open(&format!("host?page_bytes=4096&kind=unmap&{faults}")).unwrap();
    let memory = Memory::new(device, Limits::default(), Arc::new(NoSink));
    let settings = CacheConfig { max_blocks: 200, ..config(vec![opaque(4, 4096)], 200) };
    let cache = KvCache::new(&memory, &settings).unwrap();
    let resize = |blocks: u64| {
        let resized = cache.resize(0, blocks).map(|resized| resized.committed_bytes);
        cache.poll().unwrap();
        cache.validate().unwrap();
        resized
    };
    let outcomes = [40, 200, 64, 200, 1, 200].map(resize).into_iter().collect();
    (cache, outcomes)
}

#[test]
fn a_cache_grows_again_where_the_device_kept_a_mapping_once_and_tells_its_word_where_it_does_for_ever() {
    for nth in 1..=4 {
        let (_, outcomes) = resized_often(&format!("fail_nth={nth}"));
        for grown in outcomes.into_iter().skip(1).step_by(2) {
            assert_eq!(grown.unwrap(), 200 * 4096, "call {nth}");
        }
    }
    let (cache, outcomes) = resized_often("fail_from=1");
    for grown in outcomes.into_iter().skip(1).step_by(2) {
        let error = grown.unwrap_err();
        assert_eq!(error.status, Status::Device);
        assert!(error.text.contains("injected fault"), "{}", error.text);
    }
    // What it has serves on.
    assert_eq!(cache.describe(0).unwrap().blocks, 1);
}

#[test]
fn a_resize_that_cannot_ask_the_device_about_a_fill_has_happened_and_polls_go_on_with_it_and_tell() {
    let filled = |faults: String| {
        let device = registry::open(&format!("host?page_bytes=4096&kind=event&{faults}")).unwrap();
        let memory = Memory::new(Arc::clone(&device), Limits::default(), Arc::new(NoSink));
        let settings = CacheConfig { max_blocks: 200, ..config(vec![opaque(4, 4096)], 200) };
        let cache = KvCache::new(&memory, &settings).unwrap();
        cache.fill_pattern(Stream::DEFAULT, 0, &[150], &[7]).unwrap();
        device.stream_synchronize(Stream::DEFAULT).unwrap();
        (cache, device.call_count())
    };
    let (_, calls) = filled("fail_nth=0".to_owned());
    for (faults, is_lasting) in [("fail_nth", false), ("fail_from", true)] {
        let (cache, _) = filled(format!("{faults}={}", calls + 1));
        let resized = cache.resize(0, 64).unwrap();
        assert_eq!((resized.blocks, resized.committed_bytes, resized.is_done), (64, 200 * 4096, false));
        for _ in 0..3 {
            let polled = cache.poll().map_err(|error| error.status);
            assert_eq!(polled.map(drop), if is_lasting { Err(Status::Device) } else { Ok(()) });
            cache.validate().unwrap();
        }
        let resized = cache.resize(0, 64).unwrap();
        let kept = if is_lasting { 200 } else { 64 };
        assert_eq!((resized.committed_bytes, resized.is_done), (kept * 4096, !is_lasting));
    }
}

#[test]
fn a_lost_device_answers_errors_and_the_cache_can_still_be_dropped() {
    for nth in (1..60).step_by(7) {
        let device = registry::open(&format!("host?fail_nth={nth}&error=lost")).unwrap();
        let memory = Memory::new(Arc::clone(&device), Limits::default(), Arc::new(NoSink));
        let run = || -> Result<()> {
            let cache = KvCache::new(&memory, &settings())?;
            for step in 1.. {
                drop(cache.step(step)?);
                cache.tables(step, Stream::DEFAULT, |_| Ok(()))?;
                cache.step_done(step, Some(Stream::DEFAULT))?;
                device.stream_synchronize(Stream::DEFAULT)?;
            }
            Ok(())
        };
        assert_eq!(refused(run()), Status::DeviceLost, "call {nth}");
        assert_eq!(memory.statistics().device.bytes + memory.statistics().pinned.bytes, 0);
    }
}

#[test]
fn a_slot_beyond_the_pool_loses_the_device_and_not_the_memory_behind_it() {
    let device = registry::open("host").unwrap();
    let memory = Memory::new(Arc::clone(&device), Limits::default(), Arc::new(NoSink));
    let whole = memory.allocate(4096, "region and what is behind").unwrap();
    let region = whole.slice().part(0, 16 * 64).unwrap();
    let mut of_region = config(vec![group(4)], 16);
    of_region.groups[0].region = Some(region);
    let cache = KvCache::new(&memory, &of_region).unwrap();
    let copy = memory.pinned(4096, "copy").unwrap();
    let source = memory.allocate(64, "source").unwrap();
    device.write(source.slice().part(0, 8).unwrap(), &64i64.to_le_bytes()).unwrap();
    let slots = source.slice().part(0, 8).unwrap();
    let keys = source.slice().part(32, 8).unwrap();
    let append = Append { group: 0, layer: 0, dtype: Dtype::F16, tokens: 1, keys, values: keys, slots };
    cache.append(Stream::DEFAULT, &append).unwrap();
    let target = Place::Pinned(copy.slice());
    let seen = kavern::device::Copy { target, source: Place::Device(whole.slice()) };
    let _ = device.copy(Stream::DEFAULT, seen);
    assert_eq!(refused(device.stream_synchronize(Stream::DEFAULT)), Status::DeviceLost);
    assert!(copy.values::<u8>(0, 4096).unwrap().iter().all(|&byte| byte == 0));
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_allocated() {
    let device = registry::open("host?fail_nth=0").unwrap();
    let memory = Memory::new(Arc::clone(&device), Limits::default(), Arc::new(NoSink));
    let base = || config(vec![group(4)], 8);
    let with = |change: &dyn Fn(&mut CacheConfig)| {
        let mut settings = base();
        change(&mut settings);
        settings
    };
    let cases: Vec<(&str, CacheConfig)> = vec![
        ("no group", with(&|c| c.groups.clear())),
        ("17 groups", with(&|c| c.groups = vec![group(4); 17])),
        ("no blocks", with(&|c| c.capacity_blocks = 0)),
        ("too many blocks", with(&|c| c.capacity_blocks = 1 << 29)),
        ("bytes of less than a block", with(&|c| (c.capacity_blocks, c.capacity_bytes) = (0, 63))),
        ("no rows", with(&|c| c.max_sequences = 0)),
        ("no batch", with(&|c| c.max_batch_tokens = 0)),
        ("no leases", with(&|c| c.max_leases = 0)),
        ("no namespaces", with(&|c| c.max_namespaces = 0)),
        ("no steps", with(&|c| c.steps_in_flight = 0)),
        ("too many steps", with(&|c| c.steps_in_flight = 65)),
        ("too many events", with(&|c| c.event_capacity = (1 << 24) + 1)),
        ("a sequence beyond i32", with(&|c| c.max_sequence_tokens = 1 << 31)),
        (
            "tables beyond all bounds",
            with(&|c| (c.max_sequences, c.max_sequence_tokens) = (1 << 20, 1 << 30)),
        ),
        ("a link that divides no block", with(&|c| c.hash_block_tokens = 3)),
        ("a link longer than a block", with(&|c| c.hash_block_tokens = 8)),
        ("an opaque block of odd size", with(&|c| c.groups[0].content = Content::Opaque { block_bytes: 24 })),
        ("an opaque block of nothing", with(&|c| c.groups[0].content = Content::Opaque { block_bytes: 0 })),
        ("a block without tokens", with(&|c| c.groups[0].block_tokens = 0)),
        ("a block of too many tokens", with(&|c| c.groups[0].block_tokens = 65_537)),
    ];
    for (what, settings) in cases {
        assert_eq!(refused(KvCache::new(&memory, &settings)), Status::InvalidArgument, "{what}");
    }
    assert_eq!(device.call_count(), 0, "the device was not asked");
    let unknown = with(&|c| c.policy = "random".to_owned());
    let error = KvCache::new(&memory, &unknown).err().unwrap();
    assert!(kavern::cache::policy_names().all(|name| error.text.contains(name)), "{error}");
    let too_large = Limits { device_limit_bytes: 500, ..Limits::default() };
    let small = Memory::new(device, too_large, Arc::new(NoSink));
    assert_eq!(refused(KvCache::new(&small, &base())), Status::OutOfMemory);
    for memory in [memory, small] {
        assert_eq!(memory.statistics().device.bytes + memory.statistics().pinned.bytes, 0);
    }
}
