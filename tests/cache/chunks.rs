//! Chunks: blocks found by their own keys wherever they stood, and the public trace of retrieval that asks for it.

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;

use kavern::cache::{
    CacheConfig, CacheEventKind, ChunkHit, HashKind, IndexOptions, KvCache, Match, Naming, Op, Request,
    Stretch, Target,
};
use kavern::error::{Result, Status};
use kavern::types::Id;

use super::bench::{Bench, ask, ask_keys, commit_keys, config, group, opaque, refused};

const CHUNKS: IndexOptions = IndexOptions { device: false, chunks: true };

fn chunks(bytes: &[u8]) -> Request<'_> {
    Request { naming: Naming::Chunks { bytes, key_bytes: 4 }, ..ask_keys(bytes, 4, 4) }
}

fn keys(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Answers of all groups, one group after the other.
fn find(cache: &KvCache, request: &Request<'_>, offsets: &[u64]) -> Result<(Match, Vec<ChunkHit>)> {
    let mut hits = Vec::new();
    let found =
        cache.lookups().find_chunks(request, offsets, |group, key, hit| hits.push((group, key, hit)))?;
    hits.sort_by_key(|&(group, key, _)| (group, key));
    Ok((found, hits.into_iter().map(|(_, _, hit)| hit).collect()))
}

/// Stores a passage in a step of its own and lets go of it.
fn store(bench: &mut Bench, numbers: &[u32]) {
    let bytes = keys(numbers);
    bench.begin();
    let lease = bench.look(&chunks(&bytes)).lease;
    let tokens = numbers.len() as u64 * 4;
    let sequence = bench.admit(lease, tokens).sequence;
    bench.good(&commit_keys(sequence, tokens, &bytes, 4));
    bench.free(sequence);
    bench.done();
}

#[test]
fn chunks_that_are_promised_as_room_are_not_found() {
    let mut bench = Bench::new(&CacheConfig { index: CHUNKS, ..config(vec![group(4), opaque(4, 16)], 8) });
    store(&mut bench, &[10, 11, 12]);
    bench.begin();
    let lease = bench.look(&chunks(&keys(&[50]))).lease;
    let expecting = Op::Admit { lease, tokens: 4, lookahead: 0, row: -1, expected_tokens: 28 };
    let sequence = bench.good(&expecting).sequence;
    let (found, hits) = find(&bench.cache, &chunks(&keys(&[10, 11, 12])), &[]).unwrap();
    assert_eq!((found.hit_tokens, found.block_count), (4, 2), "{hits:?}");
    bench.cache.validate().unwrap();
    assert_eq!(bench.append(sequence, 24).blocks_added, 12);
    bench.release(found.lease);
    bench.done();
}

#[test]
fn a_block_is_found_wherever_it_stood_with_the_way_to_its_new_place() {
    let mut bench = Bench::new(&CacheConfig { index: CHUNKS, ..config(vec![group(4), opaque(4, 16)], 32) });
    store(&mut bench, &[10, 11, 12]);
    store(&mut bench, &[20, 21]);
    let bytes = keys(&[99, 21, 12, 10]);
    let (found, hits) = find(&bench.cache, &chunks(&bytes), &[]).unwrap();
    assert_eq!((found.hit_tokens, found.block_count), (12, 6));
    let shifts: Vec<i64> = hits.iter().map(|hit| hit.shift).collect();
    // 21 stood second and stands second, 12 stood and stands third, 10 stood first and stands fourth.
    assert_eq!(shifts, [0, 0, 0, 12, 0, 0, 0, 12]);
    assert_eq!((hits[0].block, hits[4].block), (-1, -1));
    assert!(hits[1..4].iter().chain(&hits[5..]).all(|hit| hit.block >= 0));
    let (again, hits) = find(&bench.cache, &chunks(&keys(&[11, 11])), &[0, 400]).unwrap();
    assert_eq!((hits[0].block, hits[0].shift, hits[1].shift), (hits[1].block, -4, 396));
    bench.release(found.lease);
    bench.release(again.lease);
}

#[test]
fn what_a_lease_of_chunks_holds_is_neither_evicted_nor_admitted_and_waits_for_its_readers() {
    let mut bench = Bench::new(&CacheConfig { index: CHUNKS, ..config(vec![group(4)], 4) });
    store(&mut bench, &[1, 2, 3]);
    let (found, _) = find(&bench.cache, &chunks(&keys(&[2, 3])), &[]).unwrap();
    assert_eq!(bench.cache.evict(0, 10).unwrap(), 1);
    bench.begin();
    let admit = Op::Admit { lease: found.lease, tokens: 1, lookahead: 0, row: -1, expected_tokens: 0 };
    assert_eq!(bench.apply(&admit).status, Status::WrongState);
    let gate = bench.gate();
    bench.release(found.lease);
    bench.cache.step_done(bench.step, Some(bench.stream)).unwrap();
    // The engine's copy out of the blocks may still run.
    assert_eq!((bench.cache.evict(0, 10).unwrap(), bench.statistics().deferred_blocks), (0, 2));
    drop(gate);
    bench.device.stream_synchronize(bench.stream).unwrap();
    assert_eq!(bench.cache.evict(0, 10).unwrap(), 2);
}

#[test]
fn a_namespace_takes_chunks_or_prefixes_and_the_cache_must_be_made_for_them() {
    let bytes = keys(&[1, 2]);
    let plain = Bench::simple(4, 8);
    assert_eq!(refused(find(&plain.cache, &chunks(&bytes), &[])), Status::Unsupported);
    let uneven = CacheConfig { index: CHUNKS, ..config(vec![group(4), opaque(8, 16)], 8) };
    assert_eq!(refused(KvCache::new(&plain.memory, &uneven).map(drop)), Status::Unsupported);
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let mut bench = Bench::new(&CacheConfig { index: CHUNKS, hash, ..config(vec![group(4)], 8) });
        store(&mut bench, &[1, 2]);
        assert_eq!(refused(super::bench::lookup(&bench.cache, &ask_keys(&bytes, 4, 4))), Status::KeyMode);
        assert_eq!(refused(bench.cache.probe(&ask_keys(&bytes, 4, 4))), Status::KeyMode);
        assert_eq!(refused(find(&bench.cache, &ask_keys(&bytes, 4, 4), &[])), Status::InvalidArgument);
        assert_eq!(refused(find(&bench.cache, &ask(&[1; 8]), &[])), Status::InvalidArgument);
        assert_eq!(refused(find(&bench.cache, &chunks(&bytes), &[0])), Status::InvalidArgument);
        let long = keys(&[7; 200]);
        assert_eq!(refused(find(&bench.cache, &chunks(&long), &[])), Status::InvalidArgument);
        // As a prefix nothing of it is found, and elsewhere neither.
        assert_eq!(bench.hits(&chunks(&bytes)), 0);
        assert_eq!(bench.cache.probe(&chunks(&bytes)).unwrap(), 0);
        for other in [
            Request { namespace_id: 2, ..chunks(&bytes) },
            Request { salt: b"s", ..chunks(&bytes) },
            Request { adapter_id: 4, ..chunks(&bytes) },
            Request { no_read: true, ..chunks(&bytes) },
        ] {
            let (found, hits) = find(&bench.cache, &other, &[]).unwrap();
            assert!(found.hit_tokens == 0 && hits.iter().all(|hit| hit.block == -1), "{other:?}");
            bench.release(found.lease);
        }
        let (found, _) = find(&bench.cache, &chunks(&bytes), &[]).unwrap();
        assert_eq!(found.hit_tokens, 8);
        bench.release(found.lease);
        assert_eq!(bench.statistics().leases, 0);
    }
}

/// Objects of each request of the retrieval trace, in the order in which they stand in its prompt.
fn retrieval() -> Option<Vec<Vec<u32>>> {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let shared = std::env::var_os("KAVERN_SHARED").map_or(manifest.join("../shared"), PathBuf::from);
    let path = shared.join("traces/ragpulse.tar.zst");
    let Ok(packed) = std::fs::read(&path) else {
        let required = std::env::var("KAVERN_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "shared"), "{} is not there", path.display());
        return None;
    };
    let mut bytes = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(&packed[..]).unwrap().read_to_end(&mut bytes).unwrap();
    let text = |field: &[u8]| String::from_utf8_lossy(field).trim_matches(['\0', ' ']).to_owned();
    let mut at = 0;
    // A tar archive: a head of 512 bytes with name and size, then the file in whole 512 bytes.
    while bytes[at] != 0 {
        let (name, size) = (text(&bytes[at..at + 100]), text(&bytes[at + 124..at + 136]));
        let size = usize::from_str_radix(&size, 8).unwrap();
        let file = &bytes[at + 512..][..size];
        if name.ends_with("0_trace.jsonl") {
            let lines = std::str::from_utf8(file).unwrap().lines().filter(|line| !line.trim().is_empty());
            return Some(lines.map(objects).collect());
        }
        at += 512 + size.next_multiple_of(512);
    }
    panic!("the archive holds no trace");
}

fn objects(line: &str) -> Vec<u32> {
    let record: HashMap<String, serde_json::Value> = serde_json::from_str(line).unwrap();
    let parts = ["sys_prompt", "passages_ids", "history", "web_search", "user_input"];
    let ids = parts.iter().flat_map(|part| record["hash_ids"][part].as_array().unwrap());
    ids.map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Hits of a replay block by block: a hit becomes the newest, a miss takes the place of the oldest.
fn replay(requests: &[Vec<u32>], blocks: u64, policy: &str) -> u64 {
    replay_in(requests, blocks, policy, true)
}

/// The same in the exact order of blocks, or in runs of them.
fn replay_in(requests: &[Vec<u32>], blocks: u64, policy: &str, exact_order: bool) -> u64 {
    let one = CacheConfig {
        index: CHUNKS,
        policy: policy.to_owned(),
        metadata_only: true,
        max_sequence_tokens: 4,
        exact_order,
        ..config(vec![group(4)], blocks)
    };
    let mut bench = Bench::new(&one);
    for object in requests.iter().flatten() {
        let bytes = object.to_le_bytes();
        let (found, hits) = find(&bench.cache, &chunks(&bytes), &[]).unwrap();
        bench.begin();
        bench.good(&Op::Release { lease: found.lease });
        if hits[0].block < 0 {
            let lease = bench.look(&chunks(&bytes)).lease;
            let sequence = bench.admit(lease, 4).sequence;
            bench.good(&commit_keys(sequence, 4, &bytes, 4));
            bench.good(&Op::Free { target: Target::Id(Id(sequence)) });
        }
        bench.done();
    }
    bench.statistics().hit_blocks
}

#[test]
fn objects_of_the_retrieval_trace_hit_exactly_as_in_the_reference() {
    let Some(requests) = retrieval() else { return };
    let total: usize = requests.iter().map(Vec::len).sum();
    assert_eq!((requests.len(), total), (7106, 71_583));
    for (blocks, hits, percent) in
        [(300, 31_241, "43.64"), (1000, 38_973, "54.44"), (3000, 45_274, "63.25"), (10_000, 49_092, "68.58")]
    {
        assert_eq!(replay(&requests, blocks, "lru"), hits, "{blocks} blocks");
        assert_eq!(format!("{:.2}", 100.0 * hits as f64 / total as f64), percent);
    }
}

#[test]
fn the_default_policy_never_falls_under_lru_or_fifo_on_the_retrieval_trace() {
    let Some(requests) = retrieval() else { return };
    let touches: usize = requests.iter().map(Vec::len).sum();
    for blocks in [300, 1000, 3000, 10_000] {
        let [own, lru, fifo] = ["adaptive", "lru", "fifo"].map(|policy| replay(&requests, blocks, policy));
        assert!(own + touches as u64 * 3 / 1000 >= lru, "{own} hits of {blocks} blocks, {lru} with lru");
        assert!(own >= fifo, "{own} hits of {blocks} blocks, {fifo} with fifo");
        let in_runs = replay_in(&requests, blocks, "adaptive", false);
        assert!(
            in_runs + touches as u64 * 5 / 1000 >= own,
            "{own} hits of {blocks} blocks, {in_runs} in runs"
        );
    }
}

#[test]
fn events_of_chunks_tell_where_they_were_stored() {
    let stored = CacheConfig { index: CHUNKS, event_capacity: 16, ..config(vec![group(4)], 8) };
    let mut bench = Bench::new(&stored);
    store(&mut bench, &[5, 6]);
    let mut offsets = Vec::new();
    bench.cache.read_events(0, 16, |_, event| {
        assert_eq!(event.kind, CacheEventKind::Stored);
        offsets.push(event.token_offset);
    });
    assert_eq!(offsets, [0, 4]);
}

#[test]
fn a_passage_that_a_lookup_names_many_times_is_one_block_to_pin() {
    let mut bench = Bench::new(&CacheConfig { index: CHUNKS, ..config(vec![group(4)], 4) });
    store(&mut bench, &[5]);
    let bytes = keys(&[5; 9]);
    let (found, _) = find(&bench.cache, &chunks(&bytes), &[]).unwrap();
    let stretch = Stretch { target: Target::Id(found.lease), offset: 0, tokens: 0 };
    bench.begin();
    bench.good(&Op::Pin { stretch });
    assert_eq!(bench.cache.pin_prefix("x", found.lease).unwrap().blocks, 9);
    assert_eq!(bench.statistics().pinned_blocks, 1);
    bench.good(&Op::Unpin { stretch });
    bench.cache.unpin_prefix("x").unwrap();
    assert_eq!(bench.statistics().pinned_blocks, 0);
    bench.good(&Op::Release { lease: found.lease });
    bench.done();
}

#[test]
fn a_block_is_pinned_65535_times_at_most_and_a_refused_pin_leaves_none() {
    let longest = 4 << 16;
    let settings = CacheConfig { index: CHUNKS, max_sequence_tokens: longest, ..config(vec![group(4)], 4) };
    let mut bench = Bench::new(&CacheConfig { max_blocks: 0, ..settings });
    store(&mut bench, &[5]);
    let bytes = keys(&[5; 1 << 16]);
    let (found, _) = find(&bench.cache, &chunks(&bytes), &[]).unwrap();
    let stretch = |tokens| Stretch { target: Target::Id(found.lease), offset: 0, tokens };
    bench.begin();
    bench.bad(&Op::Pin { stretch: stretch(0) }, Status::LimitReached);
    assert_eq!(bench.statistics().pinned_blocks, 0);
    bench.good(&Op::Pin { stretch: stretch(longest - 4) });
    bench.good(&Op::Unpin { stretch: stretch(longest - 4) });
    assert_eq!(bench.statistics().pinned_blocks, 0);
    bench.good(&Op::Release { lease: found.lease });
    bench.done();
}

#[test]
fn a_passage_that_an_open_step_is_yet_to_write_is_not_found() {
    let mut bench = Bench::new(&CacheConfig { index: CHUNKS, ..config(vec![group(4), opaque(4, 16)], 8) });
    let bytes = keys(&[5, 6]);
    bench.begin();
    let lease = bench.look(&chunks(&bytes)).lease;
    let sequence = bench.admit(lease, 8).sequence;
    bench.good(&commit_keys(sequence, 8, &bytes, 4));
    let (found, _) = find(&bench.cache, &chunks(&bytes), &[]).unwrap();
    assert_eq!(found.hit_tokens, 0, "an engine that reads it before its work reads what was there before");
    bench.good(&Op::Release { lease: found.lease });
    bench.upload();
    bench.done();
    let (found, _) = find(&bench.cache, &chunks(&bytes), &[]).unwrap();
    assert_eq!(found.hit_tokens, 8);
    bench.begin();
    bench.good(&Op::Release { lease: found.lease });
    bench.free(sequence);
    bench.done();
}
