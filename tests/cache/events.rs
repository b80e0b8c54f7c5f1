//! Numbered news about what is findable, and a mirror that is kept with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kavern::cache::{
    CacheConfig, CacheEvent, CacheEventKind, HashKind, Key, KvCache, Op, RemoveReason, Request, ResetScope,
    Target,
};
use kavern::types::Id;

use super::bench::{Bench, ask, commit, config, group, opaque, prompt};

/// What a consumer keeps of a block: namespace, offset, key, parent.
type Entry = (u64, u64, Key, Key);

/// A picture of the index that only events and snapshots change.
#[derive(Default)]
struct Mirror {
    cursor: u64,
    blocks: BTreeMap<(u32, i32), Entry>,
    /// What a snapshot that others did not wait for already includes, by place.
    included: BTreeMap<(u32, i32), u64>,
    removed: BTreeMap<u32, u64>,
    cleared: u64,
}

fn entry(event: &CacheEvent) -> Entry {
    (event.namespace_id, event.token_offset, event.key, event.parent_key)
}

impl Mirror {
    fn take(&mut self, event: &CacheEvent) {
        let place = (event.group, event.block);
        match event.kind {
            CacheEventKind::Stored => {
                assert_eq!(event.reason, RemoveReason::None);
                assert!(self.blocks.insert(place, entry(event)).is_none(), "{event:?} was there");
            }
            CacheEventKind::Removed => {
                assert_eq!(self.blocks.remove(&place), Some(entry(event)), "{event:?}");
                *self.removed.entry(event.reason as u32).or_default() += 1;
            }
            CacheEventKind::Cleared => {
                assert_eq!(event.block, -1);
                self.cleared += 1;
            }
        }
    }

    /// Reads all news in pieces; answers whether some were lost.
    fn read(&mut self, bench: &Bench, piece: usize) -> bool {
        loop {
            let mut events = Vec::new();
            let (cursor, lost) = bench.cache.read_events(self.cursor, piece, |at, event| {
                assert_eq!(at, events.len());
                events.push(*event);
            });
            if lost {
                return true;
            }
            assert_eq!(cursor, self.cursor + events.len() as u64);
            for event in &events {
                self.cursor += 1;
                assert_eq!(event.number, self.cursor, "numbers rise by one");
                self.take(event);
            }
            if events.len() < piece {
                return false;
            }
        }
    }

    /// Throws the picture away and takes a new one.
    fn repair(&mut self, bench: &Bench, piece: usize) {
        let (mut position, mut is_all) = (0, false);
        self.blocks.clear();
        while !is_all {
            (position, is_all) = bench.cache.snapshot(position, piece, |_, event| {
                assert_eq!(event.kind, CacheEventKind::Stored);
                self.cursor = event.number;
                self.blocks.insert((event.group, event.block), entry(event));
            });
        }
        self.cursor = bench.statistics().last_event;
    }
}

fn eventful(groups: Vec<kavern::cache::GroupConfig>, blocks: u64, event_capacity: u32) -> CacheConfig {
    CacheConfig { event_capacity, ..config(groups, blocks) }
}

#[test]
fn stored_blocks_are_told_with_key_parent_and_offset() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let settings = CacheConfig { hash, ..eventful(vec![group(4), opaque(8, 16)], 32, 64) };
        let mut bench = Bench::new(&settings);
        let tokens = prompt(1, 16);
        let mut keys = Vec::new();
        bench.cache.keys(&ask(&tokens), |_, key| keys.push(key)).unwrap();
        bench.run(&ask(&tokens));
        let mut mirror = Mirror::default();
        assert!(!mirror.read(&bench, 100));
        let of = |group: u32| -> Vec<Entry> {
            let mut all: Vec<Entry> =
                mirror.blocks.iter().filter(|(place, _)| place.0 == group).map(|(_, e)| *e).collect();
            all.sort_by_key(|entry| entry.1);
            all
        };
        let none = Key::default();
        let small: Vec<Entry> =
            (0..4).map(|i| (1, 4 * i as u64, keys[i], if i == 0 { none } else { keys[i - 1] })).collect();
        assert_eq!(of(0), small);
        assert_eq!(of(1), [(1, 0, keys[1], none), (1, 8, keys[3], keys[1])]);
    }
}

#[test]
fn the_parent_of_a_block_after_a_private_duplicate_is_the_content_before_it() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let settings = CacheConfig { hash, ..eventful(vec![group(4), opaque(8, 16)], 32, 64) };
        let mut bench = Bench::new(&settings);
        let tokens = prompt(1, 16);
        bench.begin();
        let leases = [bench.look(&ask(&tokens)), bench.look(&ask(&tokens))];
        let [first, second] = leases.map(|hit| bench.admit(hit.lease, 16).sequence);
        bench.commit(first, &tokens[..8]);
        bench.commit(second, &tokens);
        bench.done();
        let mut keys = Vec::new();
        bench.cache.keys(&ask(&tokens), |_, key| keys.push(key)).unwrap();
        let mut mirror = Mirror::default();
        mirror.read(&bench, 100);
        let last = mirror.blocks.iter().find(|(place, entry)| place.0 == 1 && entry.1 == 8).unwrap();
        assert_eq!(*last.1, (1, 8, keys[3], keys[1]), "{hash:?}");
    }
}

#[test]
fn each_removal_says_why() {
    let settings = CacheConfig { hash: HashKind::Xxh3, ..eventful(vec![group(4)], 4, 1000) };
    let mut bench = Bench::new(&settings);
    let mut mirror = Mirror::default();
    let removed = |bench: &Bench, mirror: &mut Mirror, reason: RemoveReason| {
        mirror.removed.clear();
        assert!(!mirror.read(bench, 3));
        (mirror.removed.len() <= 1, mirror.removed.get(&(reason as u32)).copied().unwrap_or(0))
    };
    let (one, two) = (prompt(1, 16), prompt(2, 12));
    bench.run(&ask(&one));
    bench.run(&ask(&two));
    assert_eq!(removed(&bench, &mut mirror, RemoveReason::Evicted), (true, 3));
    bench.cache.evict(0, 1).unwrap();
    assert_eq!(removed(&bench, &mut mirror, RemoveReason::Requested), (true, 1));
    bench.cache.reset(ResetScope::Namespace(1)).unwrap();
    assert_eq!(removed(&bench, &mut mirror, RemoveReason::Reset), (true, 3));
    assert_eq!((mirror.cleared, mirror.blocks.len()), (1, 0));
    bench.cache.reset(ResetScope::All).unwrap();
    assert_eq!(removed(&bench, &mut mirror, RemoveReason::Reset), (true, 0));
    assert_eq!(mirror.cleared, 2);
}

#[test]
fn a_block_whose_ancestor_went_is_found_again_after_its_equal() {
    let settings = CacheConfig { hash: HashKind::Xxh3, ..eventful(vec![group(4)], 16, 1000) };
    let mut bench = Bench::new(&settings);
    let tokens = prompt(1, 8);
    bench.begin();
    let (_, first) = bench.start(&ask(&tokens[..4]), &tokens[..4]);
    let cold = Request { no_read: true, ..ask(&tokens[..4]) };
    let (_, second) = bench.start(&cold, &tokens[..4]);
    bench.free(first);
    bench.done();
    assert_eq!(bench.cache.evict(0, 1).unwrap(), 1);
    // The second sequence goes on from its private copy of what was evicted: what it publishes has no parent.
    bench.begin();
    bench.append(second, 4);
    bench.commit(second, &tokens[4..]);
    bench.free(second);
    bench.done();
    assert_eq!(bench.statistics().indexed_blocks, 1);
    assert_eq!(bench.hits(&ask(&tokens)), 0);
    bench.run(&ask(&tokens[..4]));
    assert_eq!(bench.hits(&ask(&tokens)), 8);
    let mut mirror = Mirror::default();
    mirror.read(&bench, 100);
    assert_eq!(mirror.removed.get(&(RemoveReason::Requested as u32)), Some(&1));
    assert_eq!((mirror.removed.len(), mirror.blocks.len()), (1, 2));
}

#[test]
fn lost_events_are_reported_and_a_snapshot_repairs_the_picture() {
    let mut bench = Bench::new(&eventful(vec![group(4)], 32, 8));
    let mut mirror = Mirror::default();
    (0..3).for_each(|seed| assert_eq!(bench.run(&ask(&prompt(seed, 12))), 0));
    assert_eq!(bench.statistics().last_event, 9);
    assert!(mirror.read(&bench, 100));
    let mut numbers = Vec::new();
    let (cursor, lost) = bench.cache.read_events(0, 3, |_, event| numbers.push(event.number));
    assert_eq!((cursor, lost, numbers), (4, true, vec![2, 3, 4]), "what is left begins after the gap");
    mirror.repair(&bench, 2);
    assert_eq!(mirror.blocks.len(), 9);
    bench.run(&ask(&prompt(7, 8)));
    assert!(!mirror.read(&bench, 100));
    assert_eq!(mirror.blocks.len(), 11);
    assert_eq!(bench.cache.read_events(11, 3, |_, _| panic!("nothing comes after it")), (11, false));
}

#[test]
fn a_reader_that_knows_more_events_than_there_were_is_told_of_a_gap() {
    let mut bench = Bench::new(&eventful(vec![group(4)], 32, 8));
    // It followed another cache, which this one has taken the place of.
    for strange in [1, 30, u64::MAX] {
        assert_eq!(bench.cache.read_events(strange, 9, |_, _| panic!("there is none")), (0, true));
    }
    bench.run(&ask(&prompt(1, 20)));
    let mut numbers = Vec::new();
    let read = bench.cache.read_events(30, 9, |_, event| numbers.push(event.number));
    assert_eq!((read, numbers), ((5, true), vec![1, 2, 3, 4, 5]));
}

#[test]
fn a_cache_without_events_numbers_nothing_and_still_has_a_snapshot() {
    let mut bench = Bench::simple(4, 32);
    bench.run(&ask(&prompt(1, 12)));
    assert!(!bench.cache.keeps_events());
    assert_eq!(bench.statistics().last_event, 0);
    assert_eq!(bench.cache.read_events(0, 9, |_, _| panic!("there is none")), (0, false));
    let mut count = 0;
    let (_, is_all) = bench.cache.snapshot(0, 99, |_, event| {
        assert_eq!(event.number, 0);
        count += 1;
    });
    assert_eq!((count, is_all), (3, true));
    bench.cache.reset(ResetScope::All).unwrap();
    assert_eq!(bench.statistics().last_event, 0);
}

/// A consumer of its own thread: reads while others go on, and repairs gaps while others go on.
struct Follower {
    cache: Arc<KvCache>,
    mirror: Mirror,
    gaps: u64,
}

impl Follower {
    fn take(&mut self, event: &CacheEvent) {
        let place = (event.group, event.block);
        if self.mirror.included.get(&place).is_some_and(|&number| event.number <= number) {
            return;
        }
        match event.kind {
            CacheEventKind::Stored => _ = self.mirror.blocks.insert(place, entry(event)),
            CacheEventKind::Removed => _ = self.mirror.blocks.remove(&place),
            CacheEventKind::Cleared => {}
        }
    }

    /// Reads until there is no news.
    fn follow(&mut self) {
        loop {
            let mut events = Vec::new();
            let (cursor, lost) =
                self.cache.read_events(self.mirror.cursor, 100, |_, event| events.push(*event));
            if lost {
                self.gaps += 1;
                self.repair();
                continue;
            }
            self.mirror.cursor = cursor;
            events.iter().for_each(|event| self.take(event));
            if events.is_empty() {
                return;
            }
        }
    }

    fn repair(&mut self) {
        let before = self.cache.statistics().last_event;
        let (mut position, mut is_all) = (0, false);
        self.mirror.blocks.clear();
        self.mirror.included.clear();
        while !is_all {
            let mut events = Vec::new();
            (position, is_all) = self.cache.snapshot(position, 7, |_, event| events.push(*event));
            for event in events {
                self.mirror.included.insert((event.group, event.block), event.number);
                self.mirror.blocks.insert((event.group, event.block), entry(&event));
            }
        }
        self.mirror.cursor = before;
    }
}

#[test]
fn a_consumer_that_reads_and_repairs_while_others_go_on_ends_with_the_caches_index() {
    let settings = CacheConfig { hash: HashKind::Xxh3, ..eventful(vec![group(4), opaque(8, 16)], 40, 64) };
    let mut bench = Bench::new(&settings);
    bench.begin();
    let is_over = AtomicBool::new(false);
    let mut follower = Follower { cache: Arc::clone(&bench.cache), mirror: Mirror::default(), gaps: 0 };
    let gaps = std::thread::scope(|scope| {
        let following = scope.spawn(|| {
            while !is_over.load(Ordering::Acquire) {
                follower.follow();
            }
            follower
        });
        let mut random = fastrand::Rng::with_seed(31);
        let mut live = Vec::new();
        for _ in 0..1_000_000 {
            act(&mut bench, &mut random, &mut live);
        }
        is_over.store(true, Ordering::Release);
        let mut follower = following.join().unwrap();
        follower.follow();
        let mut fresh = Mirror::default();
        fresh.repair(&bench, 3);
        assert_eq!(follower.mirror.blocks, fresh.blocks);
        follower.gaps
    });
    assert!(gaps > 0, "the ring is small, and the reader slower than the writer");
    bench.done();
}

/// One random operation; sequences that run are in `live` with namespace, tokens and how many are committed.
fn act(bench: &mut Bench, random: &mut fastrand::Rng, live: &mut Vec<(u64, Vec<i32>)>) {
    match random.u8(0..10) {
        0..=3 if live.len() < 6 => {
            let tokens: Vec<i32> = (0..random.usize(0..40)).map(|_| random.i32(0..2)).collect();
            let namespace_id = random.u64(0..3);
            let hit = bench.look(&Request { namespace_id, ..ask(&tokens) });
            let rest = tokens.len() as u64 - hit.tokens;
            let result = bench.apply(&Op::Admit {
                lease: hit.lease,
                tokens: rest,
                lookahead: 0,
                row: -1,
                expected_tokens: 0,
            });
            if result.sequence == 0 {
                bench.good(&Op::Release { lease: hit.lease });
            } else {
                live.push((result.sequence, tokens[hit.tokens as usize..].to_vec()));
            }
        }
        4..=6 if !live.is_empty() => {
            let at = random.usize(0..live.len());
            let (sequence, rest) = &mut live[at];
            let count = random.usize(0..=rest.len());
            let ids: Vec<i32> = rest.drain(..count).collect();
            bench.good(&commit(*sequence, &ids, &[]));
        }
        7..=8 if !live.is_empty() => {
            let (sequence, _) = live.swap_remove(random.usize(0..live.len()));
            bench.good(&Op::Free { target: Target::Id(Id(sequence)) });
        }
        9 => match random.u8(0..20) {
            0 => assert!(bench.cache.reset(ResetScope::Namespace(random.u64(0..3))).unwrap() <= 80),
            1 => assert!(bench.cache.reset(ResetScope::All).unwrap() <= 80),
            2..=6 => assert!(bench.cache.evict(random.u32(0..2), random.u64(0..5)).unwrap() < 5),
            _ => {
                bench.done();
                bench.begin();
            }
        },
        _ => {}
    }
}

#[test]
fn a_mirror_of_the_events_equals_a_snapshot_after_ten_thousand_operations() {
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        for policy in ["lru", "fifo"] {
            let settings = CacheConfig {
                hash,
                policy: policy.to_owned(),
                ..eventful(vec![group(4), opaque(8, 16)], 40, 50)
            };
            let mut bench = Bench::new(&settings);
            let mut random = fastrand::Rng::with_seed(17);
            let (mut mirror, mut repairs, mut live) = (Mirror::default(), 0, Vec::new());
            bench.begin();
            for operation in 0..10_000 {
                act(&mut bench, &mut random, &mut live);
                if operation % 7 == 0 && mirror.read(&bench, 1 + operation % 5) {
                    repairs += 1;
                    mirror.repair(&bench, 1 + operation % 11);
                }
                if operation % 500 == 0 {
                    bench.cache.validate().unwrap();
                    if mirror.read(&bench, 20) {
                        mirror.repair(&bench, 20);
                    }
                    let mut fresh = Mirror::default();
                    fresh.repair(&bench, 3);
                    assert_eq!(mirror.blocks, fresh.blocks, "{hash:?} {policy}, operation {operation}");
                    let findable = bench.statistics().indexed_blocks;
                    assert_eq!(mirror.blocks.len() as u64, findable);
                }
            }
            assert!(bench.statistics().evicted_blocks > 100 && repairs < 200, "{repairs} repairs");
            bench.done();
        }
    }
}
