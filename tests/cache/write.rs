//! Writing keys and values into slots, and the pattern that proves where bytes lie.

use half::{bf16, f16};
use kavern::cache::{Append, CacheConfig, CheckResult};
use kavern::device::DeviceSlice;
use kavern::error::Status;
use kavern::format::{BlockShape, Layout};
use kavern::types::Dtype;

use super::bench::{Bench, config, group, opaque, refused, shaped};

const SHAPE: BlockShape = BlockShape {
    layers: 2,
    kv_heads: 3,
    head_dim: 7,
    dtype: Dtype::F16,
    block_tokens: 4,
    layout: Layout::Nhd,
};

fn of(shape: BlockShape) -> Bench {
    Bench::new(&config(vec![shaped(shape)], 5))
}

/// Device memory with these bytes.
fn upload(bench: &Bench, bytes: &[u8]) -> DeviceSlice {
    let slice = bench.device.memory_allocate(bytes.len().max(1) as u64).unwrap();
    bench.device.write(slice.part(0, bytes.len() as u64).unwrap(), bytes).unwrap();
    slice
}

fn le<const N: usize, T>(values: &[T], to_bytes: impl Fn(&T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(to_bytes).collect()
}

fn random_floats(random: &mut fastrand::Rng, count: usize) -> Vec<f32> {
    let special = [
        0,
        0x8000_0000,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0xffc0_1234,
        0x7f80_0001,
        0x7f80_2000,
        0x0000_0001,
        0x807f_ffff,
        0x0080_0000,
        0x3380_0000,
        0x3380_0001,
        0x3300_0000,
        0x477f_e000,
        0x477f_efff,
        0x477f_f000,
        0x7f7f_ffff,
        0x387f_c000,
        0x3f80_8000,
        0x3f81_8000,
    ];
    let values = (0..count).map(|at| match special.get(at) {
        Some(bits) => *bits,
        // Half of them in the range where 16-bit floats round, overflow and become subnormal.
        None if random.bool() => (random.u32(..) & 0x8fff_ffff) | 0x3000_0000,
        None => random.u32(..),
    });
    values.map(f32::from_bits).collect()
}

fn pool(bench: &Bench) -> Vec<u8> {
    let place = bench.cache.describe(0).unwrap();
    bench.bytes(place.base_address, u64::from(place.blocks) * place.block_bytes)
}

/// Appends random elements of `from` to a fresh cache of `shape` and compares each byte of the pool.
fn assert_written(shape: BlockShape, from: Dtype, convert: impl Fn(&[u8]) -> Vec<u8>) {
    let mut random = fastrand::Rng::with_seed(8);
    let bench = of(shape);
    let place = bench.cache.describe(0).unwrap();
    let (heads, channels) = (shape.kv_heads as usize, shape.head_dim as usize);
    let mut expected = pool(&bench);
    for layer in 0..shape.layers {
        let mut slots: Vec<i64> = (0..20).collect();
        random.shuffle(&mut slots);
        slots.truncate(13);
        slots[4] = -1;
        slots[9] = i64::MIN;
        let halves = [0, 1].map(|_| {
            let floats = random_floats(&mut random, 13 * heads * channels);
            match from {
                Dtype::F32 => le(&floats, |v| v.to_le_bytes()),
                _ => (0..floats.len() * from.bytes() as usize).map(|_| random.u8(..)).collect(),
            }
        });
        let [keys, values] = [0, 1].map(|half| upload(&bench, &halves[half]));
        let slots_on_device = upload(&bench, &le(&slots, |slot| slot.to_le_bytes()));
        let (group, dtype) = (0, from);
        let append = Append { group, layer, dtype, tokens: 13, keys, values, slots: slots_on_device };
        bench.cache.append(bench.stream, &append).unwrap();
        for (token, &slot) in slots.iter().enumerate().filter(|(_, slot)| **slot >= 0) {
            for (half, source) in halves.iter().enumerate() {
                for head in 0..heads {
                    let row_bytes = channels * from.bytes() as usize;
                    let row = convert(&source[(token * heads + head) * row_bytes..][..row_bytes]);
                    let (block, offset) = (slot as u64 / 4, slot as u64 % 4);
                    let at = block * place.strides.block
                        + u64::from(layer) * place.strides.layer
                        + half as u64 * place.strides.kv
                        + offset * place.strides.token
                        + head as u64 * place.strides.head;
                    expected[at as usize..][..row.len()].copy_from_slice(&row);
                }
            }
        }
        assert!(pool(&bench) == expected, "layer {layer} of {shape:?} from {from:?}");
        for slice in [keys, values, slots_on_device] {
            bench.device.memory_free(slice).unwrap();
        }
    }
}

#[test]
fn floats_are_rounded_as_the_half_crate_does_at_the_described_address() {
    let floats = |row: &[u8]| -> Vec<f32> {
        row.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    for layout in [Layout::Nhd, Layout::Hnd] {
        for (kv_heads, head_dim) in [(3, 7), (1, 1), (2, 64), (5, 33)] {
            let shape = |dtype| BlockShape { layout, dtype, kv_heads, head_dim, ..SHAPE };
            assert_written(shape(Dtype::F16), Dtype::F32, |row| {
                le(&floats(row), |v| f16::from_f32(*v).to_le_bytes())
            });
            assert_written(shape(Dtype::Bf16), Dtype::F32, |row| {
                le(&floats(row), |v| bf16::from_f32(*v).to_le_bytes())
            });
            assert_written(shape(Dtype::F32), Dtype::F32, <[u8]>::to_vec);
        }
    }
}

#[test]
fn sixteen_bit_floats_go_through_the_wide_form_and_bytes_stay_bytes() {
    let halves = |row: &[u8]| -> Vec<u16> {
        row.chunks(2).map(|b| u16::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let shape = |dtype| BlockShape { dtype, ..SHAPE };
    assert_written(shape(Dtype::Bf16), Dtype::F16, |row| {
        le(&halves(row), |v| bf16::from_f32(f16::from_bits(*v).to_f32()).to_le_bytes())
    });
    assert_written(shape(Dtype::F16), Dtype::Bf16, |row| {
        le(&halves(row), |v| f16::from_f32(bf16::from_bits(*v).to_f32()).to_le_bytes())
    });
    assert_written(shape(Dtype::F32), Dtype::F16, |row| {
        le(&halves(row), |v| f16::from_bits(*v).to_f32().to_le_bytes())
    });
    for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F8E4M3, Dtype::F8E5M2, Dtype::I8] {
        assert_written(shape(dtype), dtype, <[u8]>::to_vec);
    }
}

#[test]
fn what_cannot_be_written_is_refused_and_touches_nothing() {
    let bench = Bench::new(&config(vec![shaped(SHAPE), opaque(4, 64)], 5));
    let (keys, values) = (upload(&bench, &[0x40; 512]), upload(&bench, &[0x41; 512]));
    let slots = upload(&bench, &le(&[0i64, 1, 2], |slot| slot.to_le_bytes()));
    let good = Append { group: 0, layer: 0, dtype: Dtype::F32, tokens: 3, keys, values, slots };
    let before = pool(&bench);
    let status = |append: Append| refused(bench.cache.append(bench.stream, &append));
    assert_eq!(status(Append { layer: 2, ..good }), Status::InvalidArgument);
    assert_eq!(status(Append { layer: u32::MAX, ..good }), Status::InvalidArgument);
    assert_eq!(status(Append { group: 2, ..good }), Status::InvalidArgument);
    assert_eq!(status(Append { group: 1, ..good }), Status::Unsupported);
    for dtype in [Dtype::I8, Dtype::F8E4M3, Dtype::F8E5M2] {
        assert_eq!(status(Append { dtype, ..good }), Status::Unsupported);
    }
    let part = |slice: DeviceSlice, from: u64, bytes: u64| slice.part(from, bytes).unwrap();
    assert_eq!(status(Append { keys: part(keys, 0, 251), ..good }), Status::InvalidArgument);
    assert_eq!(status(Append { values: part(values, 0, 251), ..good }), Status::InvalidArgument);
    assert_eq!(status(Append { slots: part(slots, 0, 23), ..good }), Status::InvalidArgument);
    assert_eq!(status(Append { keys: part(keys, 2, 252), ..good }), Status::InvalidArgument);
    assert_eq!(status(Append { values: part(values, 1, 252), ..good }), Status::InvalidArgument);
    assert_eq!(status(Append { slots: part(slots, 4, 20), tokens: 2, ..good }), Status::InvalidArgument);
    assert_eq!(status(Append { keys: bench.block(0, 0), tokens: 1, ..good }), Status::InvalidArgument);
    let other = kavern::device::registry::open("host").unwrap();
    let foreign = other.memory_allocate(512).unwrap();
    assert_eq!(status(Append { keys: foreign, ..good }), Status::InvalidArgument);
    bench.cache.append(bench.stream, &Append { tokens: 0, ..good }).unwrap();
    assert!(pool(&bench) == before);
    bench.cache.append(bench.stream, &good).unwrap();
    assert!(pool(&bench) != before);
    other.memory_free(foreign).unwrap();
}

#[test]
fn a_metadata_only_cache_has_no_slots_to_write() {
    let bench = Bench::new(&CacheConfig { metadata_only: true, ..config(vec![shaped(SHAPE)], 5) });
    let memory = upload(&bench, &[0; 512]);
    let append = Append {
        group: 0,
        layer: 0,
        dtype: Dtype::F16,
        tokens: 1,
        keys: memory,
        values: memory,
        slots: memory,
    };
    assert_eq!(refused(bench.cache.append(bench.stream, &append)), Status::Unsupported);
}

#[test]
fn a_check_finds_every_block_with_a_changed_byte() {
    // 4-byte, 6-byte and 24-byte blocks among them: the last word of the pattern is cut.
    let shapes = [(1, 1, Dtype::I8, 3), (1, 3, Dtype::I8, 1), (1, 1, Dtype::F16, 1), (3, 5, Dtype::F16, 4)];
    for (kv_heads, head_dim, dtype, block_tokens) in shapes {
        let layers = 1;
        let shape = BlockShape { layers, kv_heads, head_dim, dtype, block_tokens, layout: Layout::Hnd };
        let bench = of(shape);
        let (blocks, seeds) = ([4, 0, 2], [11, u64::MAX, 0]);
        let check = || {
            bench.cache.check_pattern(bench.stream, 0, &blocks, &seeds).unwrap();
            bench.cache.take_check_result().unwrap()
        };
        bench.cache.fill_pattern(bench.stream, 0, &blocks, &seeds).unwrap();
        assert_eq!(check(), CheckResult { checked: 3, mismatched: 0, mismatch: None });
        assert_eq!(bench.cache.take_check_result().unwrap(), CheckResult::default());
        let place = bench.block(0, 2);
        for at in 0..place.bytes() {
            let byte = place.part(at, 1).unwrap();
            let kept = bench.bytes(byte.address(), 1)[0];
            bench.device.write(byte, &[kept ^ 1]).unwrap();
            assert_eq!(check(), CheckResult { checked: 3, mismatched: 1, mismatch: Some(2) }, "byte {at}");
            bench.device.write(byte, &[kept]).unwrap();
        }
        assert_eq!(check().mismatched, 0);
        let untouched = [bench.block(0, 1), bench.block(0, 3)];
        assert!(untouched.iter().all(|b| bench.bytes(b.address(), b.bytes()).iter().all(|&byte| byte == 0)));
    }
}

#[test]
fn a_block_in_the_place_of_another_is_found_by_its_seed() {
    let bench = Bench::simple(4, 8);
    bench.cache.fill_pattern(bench.stream, 0, &[1, 2], &[100, 200]).unwrap();
    bench.cache.check_pattern(bench.stream, 0, &[1, 2, 1, 2], &[200, 100, 100, 200]).unwrap();
    let found = bench.cache.take_check_result().unwrap();
    assert_eq!((found.checked, found.mismatched), (4, 2));
    assert!(matches!(found.mismatch, Some(1 | 2)));
}

#[test]
fn patterns_of_many_calls_and_long_lists_are_all_counted() {
    let bench = Bench::simple(4, 5000);
    let blocks: Vec<i32> = (0..5000).collect();
    let seeds: Vec<u64> = (0..5000).map(|at| at * at).collect();
    bench.cache.fill_pattern(bench.stream, 0, &blocks, &seeds).unwrap();
    for _ in 0..12 {
        bench.cache.check_pattern(bench.stream, 0, &blocks, &seeds).unwrap();
    }
    assert_eq!(
        bench.cache.take_check_result().unwrap(),
        CheckResult { checked: 60_000, mismatched: 0, mismatch: None }
    );
}

#[test]
fn blocks_that_do_not_exist_are_neither_filled_nor_checked() {
    let bench = Bench::new(&config(vec![group(4), opaque(4, 32)], 8));
    for block in [-1, 8, i32::MAX, i32::MIN] {
        let (blocks, seeds) = ([0, block], [1, 2]);
        assert_eq!(
            refused(bench.cache.fill_pattern(bench.stream, 0, &blocks, &seeds)),
            Status::InvalidArgument
        );
        assert_eq!(
            refused(bench.cache.check_pattern(bench.stream, 1, &blocks, &seeds)),
            Status::InvalidArgument
        );
    }
    assert_eq!(refused(bench.cache.fill_pattern(bench.stream, 2, &[0], &[1])), Status::InvalidArgument);
    bench.cache.fill_pattern(bench.stream, 0, &[], &[]).unwrap();
    assert_eq!(bench.cache.take_check_result().unwrap().checked, 0);
    assert!(pool(&bench).iter().all(|&byte| byte == 0));
}
