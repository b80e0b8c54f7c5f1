//! The index on the device: after any history its answers are those of the host, and only what changed is sent.

use std::collections::HashMap;

use fastrand::Rng;
use kavern::cache::{
    CacheConfig, DeviceLookup, GroupConfig, HashKind, IndexOptions, LookupMode, Naming, Reach, Request,
    ResetScope,
};
use kavern::device::{DeviceSlice, Stream};
use kavern::error::Status;

use super::bench::{Bench, ask, ask_keys, commit_keys, config, group, opaque, refused};

const DEVICE: IndexOptions = IndexOptions { device: true, chunks: false };
const ROW: usize = 40;

/// Memory for lookups of some rows, and their answers.
struct Rows {
    hashes: DeviceSlice,
    counts: DeviceSlice,
    blocks: DeviceSlice,
    rows: usize,
}

impl Rows {
    fn new(bench: &Bench, rows: usize) -> Self {
        let take = |bytes: usize| bench.device.memory_allocate(bytes as u64).unwrap();
        Self { hashes: take(16 * rows * ROW), counts: take(4 * rows), blocks: take(4 * rows * ROW), rows }
    }

    /// Looks rows of at most `ROW` hashes up on a stream.
    fn ask(
        &self,
        bench: &Bench,
        stream: Stream,
        group: u32,
        mode: LookupMode,
        lists: &[Vec<[u64; 2]>],
    ) -> Vec<Vec<i32>> {
        let mut hashes = vec![[u64::MAX; 2]; self.rows * ROW];
        let mut counts = vec![0i32; self.rows];
        for (row, list) in lists.iter().enumerate() {
            hashes[row * ROW..][..list.len()].copy_from_slice(list);
            counts[row] = list.len() as i32;
        }
        let bytes =
            |words: &mut dyn Iterator<Item = u64>| words.flat_map(u64::to_le_bytes).collect::<Vec<_>>();
        bench.device.write(self.hashes, &bytes(&mut hashes.into_iter().flatten())).unwrap();
        let packed: Vec<u8> = counts.iter().flat_map(|count| count.to_le_bytes()).collect();
        bench.device.write(self.counts, &packed).unwrap();
        let lookup = DeviceLookup {
            group,
            mode,
            rows: self.rows as u32,
            row_hashes: ROW as u32,
            hashes: self.hashes,
            counts: Some(self.counts),
            blocks: self.blocks,
        };
        bench.cache.lookup_device(stream, &lookup).unwrap();
        bench.device.stream_synchronize(stream).unwrap();
        let mut seen = vec![0; 4 * self.rows * ROW];
        bench.device.read(self.blocks, &mut seen).unwrap();
        let seen: Vec<i32> = seen.chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect();
        let rows = seen.chunks(ROW).zip(&counts);
        rows.map(|(row, &count)| {
            assert!(row[count as usize..].iter().all(|&block| block == -1), "past the count");
            row[..count as usize].to_vec()
        })
        .collect()
    }
}

/// Findable blocks by group, namespace and key, from the snapshot of events.
fn findable(bench: &Bench) -> HashMap<(u32, u64, [u8; 32]), i32> {
    let (mut found, mut position) = (HashMap::new(), 0);
    loop {
        let (next, is_all) = bench.cache.snapshot(position, 1000, |_, event| {
            found.insert((event.group, event.namespace_id, event.key.to_bytes()), event.block);
        });
        position = next;
        if is_all {
            return found;
        }
    }
}

/// What the host says of each full block of a request.
fn expected(bench: &Bench, request: &Request<'_>, group: u32, mode: LookupMode) -> Vec<i32> {
    let found = findable(bench);
    let links =
        (bench.cache.describe(group).unwrap().block_tokens / bench.cache.hash_block_tokens()) as usize;
    let mut keys = Vec::new();
    bench.cache.keys(request, |_, key| keys.push(key.to_bytes())).unwrap();
    let ends = keys.iter().skip(links - 1).step_by(links);
    let mut blocks: Vec<i32> =
        ends.map(|key| *found.get(&(group, request.namespace_id, *key)).unwrap_or(&-1)).collect();
    if mode == LookupMode::Prefix {
        let hits = blocks.iter().take_while(|&&block| block >= 0).count();
        blocks[hits..].fill(-1);
    }
    blocks
}

fn hashes(bench: &Bench, request: &Request<'_>, group: u32) -> Vec<[u64; 2]> {
    let mut hashes = Vec::new();
    let count = bench.cache.block_hashes(request, group, |at, hash| {
        assert_eq!(at, hashes.len());
        hashes.push(hash);
    });
    assert_eq!(count.unwrap() as usize, hashes.len());
    hashes
}

/// A request of tokens, or of keys, by a number; equal numbers share prefixes.
struct Prompts {
    tokens: Vec<i32>,
    bytes: Vec<u8>,
}

impl Prompts {
    fn new(random: &mut Rng) -> Self {
        let links = random.usize(1..=ROW);
        let branch = |random: &mut Rng| if random.u8(0..6) == 0 { random.i32(1..4) } else { 0 };
        Self::of((0..links * 4).map(|_| branch(random)).collect())
    }

    fn of(tokens: Vec<i32>) -> Self {
        // Keys as a caller would chain them: each names all before it.
        let mut hasher = blake3::Hasher::new();
        let bytes = tokens
            .chunks(4)
            .flat_map(|link| {
                link.iter().for_each(|token| _ = hasher.update(&token.to_le_bytes()));
                hasher.finalize().as_bytes()[..16].to_vec()
            })
            .collect();
        Self { tokens, bytes }
    }

    fn request(&self, namespace: u64) -> Request<'_> {
        match namespace {
            3 => Request { namespace_id: 3, ..ask_keys(&self.bytes, 16, 4) },
            _ => Request { namespace_id: namespace, ..ask(&self.tokens) },
        }
    }
}

/// Runs a request in the step that is open.
fn store(bench: &mut Bench, request: &Request<'_>) -> u64 {
    let hit = bench.look(request);
    let tokens = request.token_count - hit.tokens;
    let sequence = bench.admit(hit.lease, tokens).sequence;
    match request.naming {
        Naming::Keys { bytes, .. } => {
            let rest = &bytes[(hit.tokens / 4) as usize * 16..];
            bench.good(&commit_keys(sequence, tokens, rest, 16));
        }
        Naming::Tokens(all, _) => {
            bench.commit(sequence, &all[hit.tokens as usize..]);
        }
        Naming::Chunks { .. } => panic!("none here"),
    }
    sequence
}

#[test]
fn the_device_answers_as_the_host_after_a_hundred_thousand_changes() {
    let mut random = Rng::with_seed(23);
    let groups = vec![group(4), opaque(8, 16)];
    let mut bench = Bench::new(&CacheConfig { index: DEVICE, ..config(groups, 300) });
    let rows = Rows::new(&bench, 3);
    let other = bench.device.stream_create().unwrap();
    let mut held: Vec<u64> = Vec::new();
    let mut step = 0;
    while bench.statistics().committed_blocks + bench.statistics().evicted_blocks < 100_000 {
        step += 1;
        bench.begin();
        for _ in 0..random.usize(1..4) {
            let prompts = Prompts::new(&mut random);
            held.push(store(&mut bench, &prompts.request(random.u64(1..=3))));
        }
        while held.len() > 3 {
            let sequence = held.swap_remove(random.usize(..held.len()));
            bench.free(sequence);
        }
        if step % 50 == 0 {
            bench.cache.evict(random.u32(0..2), random.u64(1..100)).unwrap();
        }
        if step % 300 == 0 {
            bench.cache.reset(ResetScope::Namespace(random.u64(1..=3))).unwrap();
        }
        bench.upload();
        if step % 10 == 0 {
            let stream = if random.bool() { bench.stream } else { other };
            for mode in [LookupMode::Independent, LookupMode::Prefix] {
                let prompts: Vec<_> =
                    (0..3).map(|_| (Prompts::new(&mut random), random.u64(1..=3))).collect();
                for group in 0..2 {
                    let of = |(prompt, namespace): &(Prompts, u64)| {
                        hashes(&bench, &prompt.request(*namespace), group)
                    };
                    let seen =
                        rows.ask(&bench, stream, group, mode, &prompts.iter().map(of).collect::<Vec<_>>());
                    for (row, (prompt, namespace)) in seen.iter().zip(&prompts) {
                        let request = prompt.request(*namespace);
                        assert_eq!(*row, expected(&bench, &request, group, mode), "step {step}, {mode:?}");
                    }
                }
            }
        }
        bench.cache.step_done(bench.step, Some(bench.stream)).unwrap();
        bench.device.stream_synchronize(bench.stream).unwrap();
    }
    let statistics = bench.statistics();
    let changes = statistics.committed_blocks + statistics.evicted_blocks;
    // Half load: a removal moves few cells, and a table would be 1,024 cells a step.
    assert!(statistics.device_index_cells_sent < 2 * changes, "{statistics:?}");
    bench.begin();
    held.into_iter().for_each(|sequence| bench.free(sequence));
    bench.done();
}

/// A path in a small tree, so that what was evicted soon comes again; at times a block of it is nobody's.
fn path(random: &mut Rng) -> Prompts {
    let links = random.usize(1..=12);
    let branch = |random: &mut Rng| if random.u8(0..8) == 0 { random.i32(1..3) } else { 0 };
    let mut tokens: Vec<i32> = (0..links).flat_map(|_| [branch(random); 4]).collect();
    if random.u8(0..6) == 0 {
        let foreign = random.usize(..tokens.len());
        tokens[foreign] = 9;
    }
    Prompts::of(tokens)
}

/// What follows a history: the device finds of each group the blocks that a match finds, all of them where every group
/// needs all, and each block by itself that is findable. Answers prompts with a block whose parent is not there, and
/// those with a hit.
fn compare_with_matches(
    bench: &mut Bench,
    rows: &Rows,
    groups: &[GroupConfig],
    request: &Request<'_>,
) -> [bool; 2] {
    let hit = bench.look(request);
    bench.release(hit.lease);
    let (mut matched, mut reached, mut has_orphan) = (&hit.blocks[..], u64::MAX, false);
    for (group, settings) in (0..).zip(groups) {
        let each = bench.cache.describe(group).unwrap().block_tokens;
        let list = [hashes(bench, request, group)];
        let [prefix, alone] = [LookupMode::Prefix, LookupMode::Independent].map(|mode| {
            let answers = rows.ask(bench, bench.stream, group, mode, &list).remove(0);
            assert_eq!(answers, expected(bench, request, group, mode), "{mode:?}");
            answers
        });
        let end = (hit.tokens / u64::from(each)) as usize;
        let first = match settings.reach {
            Reach::Sliding { window_tokens } => {
                (hit.tokens + 1).saturating_sub(window_tokens.into()) / u64::from(each)
            }
            _ => 0,
        };
        let needed = &alone[(first as usize).min(end)..end];
        assert_eq!(matched.split_off(..needed.len()), Some(needed), "{hit:?} of group {group}");
        if settings.reach == Reach::All {
            assert_eq!(prefix[..end], *needed);
            let found = prefix.iter().take_while(|&&block| block >= 0).count();
            reached = reached.min(found as u64 * u64::from(each));
        }
        has_orphan |= alone.windows(2).any(|pair| pair[0] < 0 && pair[1] >= 0);
    }
    assert!(matched.is_empty());
    if groups.iter().all(|group| group.reach == Reach::All) {
        let largest =
            (0..groups.len() as u32).map(|group| bench.cache.describe(group).unwrap().block_tokens).max();
        assert_eq!(hit.tokens, reached - reached % u64::from(largest.unwrap()));
    }
    [has_orphan, hit.tokens > 0]
}

#[test]
fn the_device_finds_what_a_match_finds_also_where_parents_were_stored_anew() {
    let window = GroupConfig { reach: Reach::Sliding { window_tokens: 9 }, ..group(4) };
    let caches = [vec![group(4)], vec![group(4), opaque(8, 16)], vec![group(4), window]];
    for (hash, namespace) in [(HashKind::Xxh3, 1), (HashKind::Blake3, 1), (HashKind::Xxh3, 3)] {
        for (groups, policy) in
            caches.iter().flat_map(|groups| ["fifo", "lru", "lfu"].map(|policy| (groups, policy)))
        {
            let mut random = Rng::with_seed(31);
            let settings = CacheConfig { policy: policy.into(), hash, ..config(groups.clone(), 24) };
            let mut bench = Bench::new(&CacheConfig { index: DEVICE, ..settings });
            let rows = Rows::new(&bench, 1);
            let (mut held, mut orphans, mut hits) = (Vec::new(), 0, 0);
            for step in 0..800 {
                bench.begin();
                let prompts = path(&mut random);
                // A cold one brings its own copy of what is there, and goes on from that when the other has gone.
                let no_read = random.u8(0..4) == 0;
                held.push(store(&mut bench, &Request { no_read, ..prompts.request(namespace) }));
                while held.len() > 1 || (step % 2 == 0 && !held.is_empty()) {
                    let sequence = held.swap_remove(random.usize(..held.len()));
                    bench.free(sequence);
                }
                match random.u8(0..40) {
                    0..8 => {
                        let group = random.u32(..groups.len() as u32);
                        bench.cache.evict(group, random.u64(1..4)).unwrap();
                    }
                    8 => _ = bench.cache.reset(ResetScope::Namespace(namespace)).unwrap(),
                    _ => {}
                }
                bench.upload();
                for _ in 0..2 {
                    let asked = path(&mut random);
                    let seen = compare_with_matches(&mut bench, &rows, groups, &asked.request(namespace));
                    (orphans, hits) = (orphans + usize::from(seen[0]), hits + usize::from(seen[1]));
                }
                bench.cache.validate().unwrap();
                bench.cache.step_done(bench.step, Some(bench.stream)).unwrap();
                bench.device.stream_synchronize(bench.stream).unwrap();
            }
            assert!(
                hits > 100 && orphans > 0,
                "{policy}: {orphans} prompts with an orphan, {hits} with a hit"
            );
            bench.begin();
            held.into_iter().for_each(|sequence| bench.free(sequence));
            bench.done();
        }
    }
}

#[test]
fn answers_are_as_of_the_tables_before_them() {
    let mut bench = Bench::new(&CacheConfig { index: DEVICE, ..config(vec![group(4)], 32) });
    let rows = Rows::new(&bench, 1);
    let prompts = Prompts::of((0..12).collect());
    let request = prompts.request(1);
    let wanted = [hashes(&bench, &request, 0)];
    let seen = |bench: &Bench| rows.ask(bench, bench.stream, 0, LookupMode::Prefix, &wanted).remove(0);
    assert_eq!(seen(&bench), [-1; 3]);
    bench.begin();
    let sequence = store(&mut bench, &request);
    assert_eq!(seen(&bench), [-1; 3]);
    bench.upload();
    let blocks = expected(&bench, &request, 0, LookupMode::Prefix);
    assert_eq!(seen(&bench), blocks);
    assert!(blocks.iter().all(|&block| block >= 0));
    let sent = bench.statistics().device_index_cells_sent;
    assert_eq!(sent, 3);
    bench.upload();
    assert_eq!(bench.statistics().device_index_cells_sent, sent, "what is known is not sent again");
    bench.free(sequence);
    bench.done();
    bench.cache.evict(0, 2).unwrap();
    assert_eq!(seen(&bench), blocks, "evicted, but the device has not been told");
    bench.begin();
    bench.upload();
    assert_eq!(seen(&bench).iter().filter(|&&block| block >= 0).count(), 1);
    bench.done();
}

#[test]
fn a_router_looks_up_while_a_scheduler_reads_its_tables() {
    let mut bench = Bench::new(&CacheConfig { index: DEVICE, ..config(vec![group(4)], 32) });
    let tokens: Vec<i32> = (0..16).collect();
    bench.run(&ask(&tokens));
    bench.begin();
    bench.upload();
    let (rows, router) = (Rows::new(&bench, 1), bench.device.stream_create().unwrap());
    let list = [hashes(&bench, &ask(&tokens), 0)];
    let wanted = expected(&bench, &ask(&tokens), 0, LookupMode::Prefix);
    let seen = bench.cache.tables(bench.step, bench.stream, |_| {
        std::thread::scope(|scope| {
            let lookup = scope.spawn(|| rows.ask(&bench, router, 0, LookupMode::Prefix, &list));
            Ok(lookup.join().unwrap())
        })
    });
    assert_eq!(seen.unwrap(), [wanted]);
    bench.done();
}

#[test]
fn hashes_of_other_namespaces_are_others_also_for_equal_keys() {
    let bench =
        Bench::new(&CacheConfig { index: DEVICE, hash: HashKind::Xxh3, ..config(vec![group(4)], 32) });
    let bytes: Vec<u8> = (0..32).collect();
    let tokens: Vec<i32> = (0..8).collect();
    let mut seen = Vec::new();
    for base in [ask(&tokens), ask_keys(&bytes, 16, 4)] {
        for request in [
            base,
            Request { namespace_id: 2, ..base },
            Request { adapter_id: 2, ..base },
            Request { salt: b"s", ..base },
        ] {
            seen.extend(hashes(&bench, &request, 0));
        }
    }
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!((count, seen.len()), (16, 16));
}

#[test]
fn a_lookup_that_cannot_be_is_refused() {
    let metadata_only = CacheConfig { index: DEVICE, metadata_only: true, ..config(vec![group(4)], 8) };
    let plain = Bench::simple(4, 8);
    let made = kavern::cache::KvCache::new(&plain.memory, &metadata_only);
    assert_eq!(refused(made.map(drop)), Status::Unsupported);
    let rows = Rows::new(&plain, 1);
    let lookup = DeviceLookup {
        group: 0,
        mode: LookupMode::Independent,
        rows: 1,
        row_hashes: ROW as u32,
        hashes: rows.hashes,
        counts: None,
        blocks: rows.blocks,
    };
    assert_eq!(refused(plain.cache.lookup_device(plain.stream, &lookup)), Status::Unsupported);
    let bench = Bench::new(&CacheConfig { index: DEVICE, ..config(vec![group(4)], 8) });
    let ask = |lookup: DeviceLookup| bench.cache.lookup_device(bench.stream, &lookup);
    assert_eq!(refused(ask(DeviceLookup { group: 1, ..lookup })), Status::InvalidArgument);
    assert_eq!(refused(ask(DeviceLookup { rows: 2, ..lookup })), Status::InvalidArgument);
    let odd = rows.hashes.part(8, 16).unwrap();
    assert_eq!(refused(ask(DeviceLookup { row_hashes: 1, hashes: odd, ..lookup })), Status::InvalidArgument);
    let short = rows.counts.part(0, 2).unwrap();
    assert_eq!(refused(ask(DeviceLookup { counts: Some(short), ..lookup })), Status::InvalidArgument);
    assert!(ask(DeviceLookup { rows: 0, ..lookup }).is_ok());
    assert_eq!(
        refused(bench.cache.block_hashes(&super::bench::ask(&[1]), 7, |_, _| ())),
        Status::InvalidArgument
    );
}

#[test]
fn a_batch_whose_bytes_cannot_be_counted_is_refused() {
    let bench = Bench::new(&CacheConfig { index: DEVICE, ..config(vec![group(4)], 8) });
    let rows = Rows::new(&bench, 1);
    let lookup = DeviceLookup {
        group: 0,
        mode: LookupMode::Prefix,
        rows: 1 << 31,
        row_hashes: 1 << 31,
        hashes: rows.hashes,
        counts: None,
        blocks: rows.blocks,
    };
    assert_eq!(refused(bench.cache.lookup_device(bench.stream, &lookup)), Status::InvalidArgument);
    bench.device.stream_synchronize(bench.stream).unwrap();
}

#[test]
fn what_a_lookup_tells_of_a_moved_block_is_there_on_the_streams_that_it_orders() {
    const BYTES: u64 = 1 << 20;
    let settings = CacheConfig { index: DEVICE, ..config(vec![opaque(4, BYTES)], 80) };
    let mut bench = Bench::new(&settings);
    let [low, tokens] = [1, 2].map(|seed| (0..160).map(|at| seed * 1000 + at).collect::<Vec<i32>>());
    bench.begin();
    let lease = bench.look(&ask(&low)).lease;
    let below = bench.admit(lease, 160).sequence;
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    bench.free(below);
    bench.upload();
    bench.done();
    let rows = Rows::new(&bench, 1);
    let list = [hashes(&bench, &ask(&tokens), 0)];
    let old = rows.ask(&bench, bench.stream, 0, LookupMode::Prefix, &list)[0].clone();
    let filled: Vec<u8> = (0..BYTES).map(|at| at as u8 | 1).collect();
    for &block in &old {
        bench.device.write(bench.block(0, block), &filled).unwrap();
    }
    bench.cache.resize(0, 40).unwrap();
    bench.begin();
    let reader = bench.device.stream_create().unwrap();
    bench.upload();
    // A transfer on a stream of its own, behind a lookup there.
    let new = rows.ask(&bench, reader, 0, LookupMode::Prefix, &list)[0].clone();
    let mut seen = vec![0; BYTES as usize];
    for &block in new.iter().rev() {
        assert!((0..40).contains(&block));
        bench.device.read(bench.block(0, block), &mut seen).unwrap();
        assert!(seen == filled, "block {block} is not there yet");
    }
    bench.device.stream_synchronize(bench.stream).unwrap();
    bench.free(sequence);
    bench.done();
}
