//! The cache's kernels on every backend against their references on the host: the same bytes, for odd sizes, odd
//! places and numbers that are none.

use std::sync::Arc;

use fastrand::Rng;
use kavern::cache;
use kavern::device::{Arg, Device, DeviceSlice, Kernel, Launch, Stream, registry};
use kavern::types::Dtype;

use super::support::{bytes_of, each};

/// One argument: bytes at an offset from an aligned address, or a number.
#[derive(Clone)]
enum Value {
    Write(Vec<u8>, u64),
    Read(Vec<u8>, u64),
    Number(u64),
}

fn read<T: Copy>(values: &[T], bytes: impl Fn(T) -> Vec<u8>) -> Value {
    Value::Read(values.iter().flat_map(|&value| bytes(value)).collect(), 0)
}

fn ids(values: &[i32]) -> Value {
    read(values, |value| value.to_le_bytes().to_vec())
}

fn seeds(values: &[u64]) -> Value {
    read(values, |value| value.to_le_bytes().to_vec())
}

fn kernel(name: &str) -> &'static Kernel {
    cache::kernels().iter().find(|kernel| kernel.name == name).unwrap()
}

fn put(device: &dyn Device, bytes: &[u8], offset: u64) -> DeviceSlice {
    let room = device.memory_allocate(bytes.len() as u64 + offset + 1).unwrap();
    let slice = room.part(offset, bytes.len() as u64).unwrap();
    device.write(slice, bytes).unwrap();
    slice
}

/// What the kernel leaves in the arguments that it writes.
fn run(
    device: &dyn Device,
    kernel: &'static Kernel,
    values: &[Value],
    grid: u32,
    block: u32,
) -> Vec<Vec<u8>> {
    device.module_load(&[kernel]).unwrap();
    let mut written = Vec::new();
    let args: Vec<Arg> = values
        .iter()
        .map(|value| match value {
            Value::Write(bytes, offset) => {
                written.push(put(device, bytes, *offset));
                Arg::Write(*written.last().unwrap())
            }
            Value::Read(bytes, offset) => Arg::Read(put(device, bytes, *offset)),
            Value::Number(number) => Arg::U64(*number),
        })
        .collect();
    device.launch(Stream::DEFAULT, &Launch { kernel, grid, block, args: &args }).unwrap();
    written.into_iter().map(|slice| bytes_of(device, slice)).collect()
}

/// Compares every backend with the host, in several grids.
fn compare(name: &'static str, cases: &[(String, Vec<Value>)]) {
    each(|subject| {
        for (what, values) in cases {
            let (device, host) = (subject.open(), registry::open("host").unwrap());
            let expected = run(&*host, kernel(name), values, 1, 1);
            for (grid, block) in [(1, 32), (3, 256), (200, 1024)] {
                let seen = run(&*device, kernel(name), values, grid, block);
                assert!(seen == expected, "{name}, {what}, grid {grid} x {block}");
            }
        }
    });
}

fn noise(random: &mut Rng, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|_| random.u8(..)).collect()
}

/// Bytes of a block, first byte of the pool behind an aligned address.
const SHAPES: [(u64, u64); 12] = [
    (1, 0),
    (7, 3),
    (8, 8),
    (16, 0),
    (17, 0),
    (48, 16),
    (4096, 0),
    (4096, 4),
    (16_385, 0),
    (40_000, 16),
    (65_536, 0),
    (65_541, 1),
];
const BLOCKS: u64 = 9;

/// Different blocks in a random order.
fn some_blocks(random: &mut Rng, count: usize) -> Vec<i32> {
    let mut blocks: Vec<i32> = (0..BLOCKS as i32).collect();
    random.shuffle(&mut blocks);
    blocks.truncate(count);
    blocks
}

fn each_shape(make: impl Fn(&mut Rng, u64, Value) -> Vec<Value>) -> Vec<(String, Vec<Value>)> {
    let mut random = Rng::with_seed(11);
    let cases = SHAPES.iter().map(|&(bytes, offset)| {
        let pool = Value::Write(noise(&mut random, BLOCKS * bytes), offset);
        (format!("blocks of {bytes} bytes at {offset}"), make(&mut random, bytes, pool))
    });
    cases.collect()
}

#[test]
fn listed_blocks_become_zero_and_no_others() {
    compare(
        "kavern_blocks_zero",
        &each_shape(|random, bytes, pool| vec![pool, ids(&some_blocks(random, 5)), Value::Number(bytes)]),
    );
}

#[test]
fn the_pattern_of_a_seed_fills_exactly_its_block() {
    compare(
        "kavern_blocks_fill",
        &each_shape(|random, bytes, pool| {
            let list: Vec<u64> = (0..6).map(|_| random.u64(..)).collect();
            vec![pool, ids(&some_blocks(random, 6)), seeds(&list), Value::Number(bytes)]
        }),
    );
}

#[test]
fn a_check_counts_blocks_and_finds_every_single_wrong_byte() {
    let fill = kernel("kavern_blocks_fill");
    let host = registry::open("host").unwrap();
    let cases = each_shape(|random, bytes, pool| {
        let (blocks, list) = (some_blocks(random, 8), (0..8).map(|_| random.u64(..)).collect::<Vec<_>>());
        let filled = run(&*host, fill, &[pool, ids(&blocks), seeds(&list), Value::Number(bytes)], 1, 1);
        let mut pool = filled.into_iter().next().unwrap();
        // The first byte of one block, the last of another, some byte of a third.
        for (&block, at) in blocks.iter().zip([0, bytes - 1, random.u64(..bytes)]) {
            pool[(block as u64 * bytes + at) as usize] ^= 1 << random.u32(..8);
        }
        // A pool that is only read may lie anywhere too.
        let counters = Value::Write([7u64, 0, 0].iter().flat_map(|sum| sum.to_le_bytes()).collect(), 0);
        let pool = Value::Read(pool, bytes % 16);
        vec![counters, pool, ids(&blocks), seeds(&list), Value::Number(bytes)]
    });
    compare("kavern_blocks_check", &cases);
    let seen = run(&*host, kernel("kavern_blocks_check"), &cases[6].1, 1, 1);
    let sums: Vec<u64> = seen[0].chunks(8).map(|sum| u64::from_le_bytes(sum.try_into().unwrap())).collect();
    assert_eq!(&sums[..2], [15, 3], "the reference itself finds what was planted");
    assert!(sums[2] > 0);
}

#[test]
fn pairs_of_blocks_are_copied_and_the_rest_stays() {
    let cases = each_shape(|random, bytes, pool| {
        let blocks = some_blocks(random, 6);
        // Two targets share a source.
        let pairs = [blocks[0], blocks[1], blocks[2], blocks[3], blocks[0], blocks[4]];
        vec![pool, ids(&pairs), Value::Number(bytes)]
    });
    compare("kavern_blocks_copy", &cases);
    let (_, values) = &cases[6];
    let (Value::Write(before, _), Value::Read(pairs, _)) = (&values[0], &values[1]) else { unreachable!() };
    let host = registry::open("host").unwrap();
    let after = run(&*host, kernel("kavern_blocks_copy"), values, 1, 1).remove(0);
    let block = |pool: &[u8], index: usize| {
        let id = i32::from_le_bytes(pairs[4 * index..][..4].try_into().unwrap()) as usize;
        pool[id * 4096..][..4096].to_vec()
    };
    assert_eq!(block(&after, 1), block(before, 0));
    assert_eq!(block(&after, 5), block(before, 0));
    assert_eq!(block(&after, 2), block(before, 2), "a source stays");
}

#[test]
fn runs_of_tokens_are_copied_in_every_plane_and_the_rest_stays() {
    let mut random = Rng::with_seed(14);
    let mut cases = Vec::new();
    for (block_tokens, planes, token_bytes, offset) in
        [(4, 1, 16, 0), (16, 6, 256, 0), (5, 3, 7, 1), (3, 2, 40, 8), (1, 1, 9000, 0), (64, 2, 512, 16)]
    {
        let plane = block_tokens * token_bytes;
        // Sources in the lower blocks, and one run to a block of the upper ones.
        let runs: Vec<u64> = (0..4)
            .flat_map(|at| {
                let tokens = if at == 0 { block_tokens } else { random.u64(1..=block_tokens) };
                let slots = [0, 5 + at].map(|block| {
                    let block = if block == 0 { random.u64(..5) } else { block };
                    block * block_tokens + random.u64(0..=block_tokens - tokens)
                });
                [random.u64(..), slots[0], slots[1], tokens | random.u64(..) << 32]
            })
            .collect();
        let pool = Value::Write(noise(&mut random, BLOCKS * planes * plane), offset);
        let numbers = [block_tokens, planes * plane, plane].map(Value::Number);
        let what = format!("{planes} planes of {block_tokens} tokens of {token_bytes} bytes at {offset}");
        cases.push((what, [vec![pool, seeds(&runs)], numbers.to_vec()].concat()));
    }
    compare("kavern_tokens_copy", &cases);
    let (_, values) = &cases[1];
    let (Value::Write(before, _), Value::Read(runs, _)) = (&values[0], &values[1]) else { unreachable!() };
    let host = registry::open("host").unwrap();
    let after = run(&*host, kernel("kavern_tokens_copy"), values, 1, 1).remove(0);
    let word = |at: usize| u64::from_le_bytes(runs[8 * at..][..8].try_into().unwrap()) as usize;
    let mut expected = before.clone();
    for (from, to, tokens) in (0..4).map(|at| (word(4 * at + 1), word(4 * at + 2), word(4 * at + 3) as u32)) {
        for (plane, token) in (0..6).flat_map(|plane| (0..tokens as usize).map(move |token| (plane, token))) {
            let place = |slot: usize| (slot / 16) * 6 * 4096 + plane * 4096 + (slot % 16 + token) * 256;
            expected[place(to)..][..256].copy_from_slice(&before[place(from)..][..256]);
        }
    }
    assert!(after == expected, "the reference itself copies token by token");
}

#[test]
fn a_packed_upload_reaches_its_places() {
    let mut random = Rng::with_seed(12);
    let mut cases = Vec::new();
    for (segments, longest, changes) in [(0, 1, 0), (1, 1, 1), (40, 70, 300), (3, 20_000, 2), (500, 4, 0)] {
        let (mut packed, mut list, mut at) = (vec![0i32; 4], Vec::new(), 0usize);
        for _ in 0..segments {
            let words = random.usize(0..=longest);
            list.extend([at as i32, packed.len() as i32, words as i32]);
            packed.extend((0..words).map(|_| random.i32(..)));
            at += words + random.usize(..3);
        }
        let segments_at = packed.len() as i32;
        packed.extend(list);
        let changes_at = packed.len() as i32;
        for _ in 0..changes {
            packed.extend([at as i32, random.i32(..)]);
            at += 1 + random.usize(..5);
        }
        packed[..4].copy_from_slice(&[segments, segments_at, changes, changes_at]);
        let tables = Value::Write(noise(&mut random, 4 * (at as u64 + 9)), 0);
        cases.push((format!("{segments} segments, {changes} changes"), vec![tables, ids(&packed)]));
    }
    compare("kavern_tables_upload", &cases);
}

/// Random elements, with every kind of number among them: zeros, subnormals, infinities, not-a-numbers, ties.
fn elements(random: &mut Rng, dtype: Dtype, count: u64) -> Vec<u8> {
    let mut bytes = noise(random, count * dtype.bytes());
    let special: &[u32] = match dtype {
        Dtype::F32 => &[
            0,
            1 << 31,
            1,
            0x007f_ffff,
            0x7f80_0000,
            0xff80_0000,
            0x7f80_0001,
            0x7fc1_2345,
            0xffff_ffff,
            0x3f80_8000,
            0x3f81_8000,
            0x7f7f_ffff,
            0x477f_f000,
            0x477f_efff,
            0x3300_0000,
            0x3300_0001,
            0x3380_0000,
            0x387f_e000,
            0x3f80_1000,
            0x3f80_3000,
        ],
        _ => &[
            0, 0x8000, 1, 0x3ff, 0x7c00, 0xfc00, 0x7c01, 0x7e55, 0xffff, 0x7f80, 0x7f81, 0xff80, 0x7fc0,
            0x7bff,
        ],
    };
    let width = dtype.bytes() as usize;
    for (cell, value) in bytes.chunks_exact_mut(width).zip(special).filter(|_| width > 1) {
        cell.copy_from_slice(&value.to_le_bytes()[..width]);
    }
    bytes
}

#[test]
fn appended_tokens_are_rounded_once_and_lie_in_their_slots() {
    let mut random = Rng::with_seed(13);
    let mut cases = Vec::new();
    let wide = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    let mut pairs: Vec<(Dtype, Dtype)> = wide.iter().flat_map(|&from| wide.map(|to| (from, to))).collect();
    pairs.extend([Dtype::F8E4M3, Dtype::F8E5M2, Dtype::I8].map(|dtype| (dtype, dtype)));
    for (from, to) in pairs {
        // Channels that fill whole vectors and that do not; the second also in a pool at an odd place.
        for (channels, offset) in [(64, 0), (5, if from == to { 1 } else { 4 })] {
            let (heads, block_tokens, blocks, layers, tokens) = (3, 4, 5, 2, 11);
            let row = channels * to.bytes();
            let (token, kv) = (heads * row, block_tokens * heads * row);
            let (layer, block) = (2 * kv, layers * 2 * kv);
            let mut places: Vec<i64> = (0..(blocks * block_tokens) as i64).collect();
            random.shuffle(&mut places);
            places.truncate(tokens as usize);
            places[2] = -1;
            let count = tokens * heads * channels;
            let mut values = vec![
                Value::Write(noise(&mut random, blocks * block), offset),
                Value::Read(elements(&mut random, from, count), 0),
                Value::Read(elements(&mut random, from, count), 0),
                read(&places, |place| place.to_le_bytes().to_vec()),
            ];
            let numbers =
                [tokens, heads, channels, block_tokens, block, kv, token, row, layer, from as u64, to as u64];
            values.extend(numbers.map(Value::Number));
            cases.push((format!("{from:?} to {to:?}, {channels} channels at {offset}"), values));
        }
    }
    compare("kavern_kv_append", &cases);
}

/// A table of a power of two of cells with some blocks under random hashes, some of them far from their home.
fn table(random: &mut Rng, cells: usize, filled: usize) -> (Vec<u8>, Vec<[u32; 4]>) {
    let mut table = vec![[0u32; 4]; cells];
    let mut hashes = Vec::new();
    for block in 1..=filled as u32 {
        // A third of them meet at the last cells, so searches wrap around.
        let low = if block % 3 == 0 { (cells - 1) as u32 } else { random.u32(..) };
        let hash = [low, random.u32(..), random.u32(..), random.u32(..)];
        let mut at = low as usize & (cells - 1) & !1;
        while table[at][3] != 0 {
            at = (at + 1) % cells;
        }
        table[at] = [hash[0], hash[1], hash[2], block];
        hashes.push(hash);
    }
    (table.iter().flatten().flat_map(|word| word.to_le_bytes()).collect(), hashes)
}

#[test]
fn rows_of_hashes_find_their_blocks_alone_and_as_prefixes() {
    let mut random = Rng::with_seed(15);
    let mut cases = Vec::new();
    for (cells, filled, rows, each) in [(2, 1, 1, 3), (64, 32, 7, 5), (1 << 12, 2048, 5, 3000), (8, 8, 4, 40)]
    {
        let (bytes, known) = table(&mut random, cells, filled);
        for mode in [1u64, 2] {
            for misses in [0, 3, 700] {
                let mut hashes: Vec<[u32; 4]> =
                    (0..rows * each).map(|_| known[random.usize(..known.len())]).collect();
                for _ in 0..misses.min(rows * each / 2) {
                    // Unlike a known one in the last word that counts, or in all.
                    let at = random.usize(..hashes.len());
                    hashes[at][2] ^= 1 << random.u32(..32);
                    if random.bool() {
                        hashes[at] = std::array::from_fn(|_| random.u32(..));
                    }
                }
                let counts: Vec<i32> =
                    (0..rows).map(|row| [each as i32, -3, 1, i32::MAX, 0][row % 5]).collect();
                let out = noise(&mut random, 4 * (rows * each) as u64);
                for has_counts in [0, 1] {
                    let values = vec![
                        Value::Write(out.clone(), 0),
                        Value::Read(bytes.clone(), 0),
                        read(&hashes, |hash| hash.iter().flat_map(|word| word.to_le_bytes()).collect()),
                        ids(&counts),
                        Value::Number(rows as u64),
                        Value::Number(each as u64),
                        Value::Number(mode),
                        Value::Number(has_counts),
                    ];
                    cases.push((
                        format!("{cells} cells, {rows} x {each}, mode {mode}, {misses} misses, {has_counts}"),
                        values,
                    ));
                }
            }
        }
    }
    compare("kavern_index_lookup", &cases);
    let seen = run(&*registry::open("host").unwrap(), kernel("kavern_index_lookup"), &cases[12].1, 1, 1);
    assert!(
        seen[0].chunks(4).all(|id| i32::from_le_bytes(id.try_into().unwrap()) >= 0),
        "known ones are found"
    );
}

#[test]
fn changed_cells_reach_their_places_and_no_others_change() {
    let mut random = Rng::with_seed(16);
    let cases: Vec<_> = [(2u64, 0usize), (64, 64), (4096, 1000)]
        .into_iter()
        .map(|(cells, count)| {
            let mut places: Vec<i32> = (0..cells as i32).collect();
            random.shuffle(&mut places);
            let changes: Vec<i32> = places[..count]
                .iter()
                .flat_map(|&at| [at, random.i32(..), random.i32(..), random.i32(..), random.i32(..)])
                .collect();
            let table = Value::Write(noise(&mut random, 16 * cells), 0);
            (format!("{count} of {cells} cells"), vec![table, ids(&changes)])
        })
        .collect();
    compare("kavern_index_update", &cases);
}

#[test]
fn every_kernel_of_the_cache_loads_ahead() {
    each(|subject| {
        let device: Arc<dyn Device> = subject.open();
        device.module_load(cache::kernels()).unwrap();
        device.module_load(cache::kernels()).unwrap();
    });
}
