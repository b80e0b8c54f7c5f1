//! The cache's kernels with their CPU references: what the host backend runs, and what device code must equal byte
//! for byte.

use half::{bf16, f16};

use super::index_kernels::{LOOKUP, UPDATE};
use crate::device::{CpuArgs, CpuReads, Kernel};
use crate::types::Dtype;

/// What a cache loads when it is made.
pub(super) static KERNELS: &[&Kernel] =
    &[&UPLOAD, &ZERO, &FILL, &CHECK, &COPY, &TOKENS, &APPEND, &UPDATE, &LOOKUP];

/// Every kernel of this room, for loading ahead and for tests that compare a device with the references.
pub fn kernels() -> &'static [&'static Kernel] {
    KERNELS
}

/// Words of the head of a packed upload: segments, first word of the segments, changes, first word of the changes.
pub(super) const UPLOAD_HEAD: usize = 4;

/// Spreads one packed upload over the tables: runs of words, then single words.
///
/// Arguments: tables (written), packed (read).
pub(super) static UPLOAD: Kernel = Kernel { name: "kavern_tables_upload", cpu: upload };

fn upload(args: &mut CpuArgs<'_>) {
    let (tables, reads) = args.write_and_read::<i32>(0);
    let packed = reads.read::<i32>(1);
    let head = |index: usize| packed[index] as usize;
    let (segments, segments_at, changes, changes_at) = (head(0), head(1), head(2), head(3));
    reads.touch(0, 0, 0);
    for segment in packed[segments_at..segments_at + 3 * segments].chunks_exact(3) {
        let (target, source, words) = (segment[0] as u32 as usize, segment[1] as usize, segment[2] as usize);
        reads.touch(0, 4 * target as u64, 4 * words as u64);
        tables[target..target + words].copy_from_slice(&packed[source..source + words]);
    }
    for change in packed[changes_at..changes_at + 2 * changes].chunks_exact(2) {
        let target = change[0] as u32 as usize;
        reads.touch(0, 4 * target as u64, 4);
        tables[target] = change[1];
    }
}

/// Fills listed blocks with zeros.
///
/// Arguments: pool (written), block ids i32 (read), bytes of a block.
pub(super) static ZERO: Kernel = Kernel { name: "kavern_blocks_zero", cpu: zero };

fn zero(args: &mut CpuArgs<'_>) {
    let (pool, reads) = args.write_and_read::<u8>(0);
    let bytes = reads.number(2) as usize;
    for &block in reads.read::<i32>(1) {
        reads.touch(0, (block as usize * bytes) as u64, bytes as u64);
        pool[block as usize * bytes..][..bytes].fill(0);
    }
}

/// Word `index` of the pattern that a seed gives: cheap, and different for every seed and place.
pub(super) fn pattern_word(seed: u64, index: u64) -> u64 {
    let mut word = seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word ^= word >> 32;
    word.wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// Writes the pattern of a seed into each listed block.
///
/// Arguments: pool (written), block ids i32 (read), seeds u64 (read), bytes of a block.
pub(super) static FILL: Kernel = Kernel { name: "kavern_blocks_fill", cpu: fill };

fn fill(args: &mut CpuArgs<'_>) {
    let (pool, reads) = args.write_and_read::<u8>(0);
    let bytes = reads.number(3) as usize;
    for (&block, &seed) in reads.read::<i32>(1).iter().zip(reads.read::<u64>(2)) {
        reads.touch(0, (block as usize * bytes) as u64, bytes as u64);
        let (words, rest) = pool[block as usize * bytes..][..bytes].as_chunks_mut::<8>();
        for (index, word) in words.iter_mut().enumerate() {
            *word = pattern_word(seed, index as u64).to_le_bytes();
        }
        let last = pattern_word(seed, words.len() as u64).to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// Compares each listed block with the pattern of its seed.
///
/// Arguments: counters u64 [checked, mismatched, highest mismatched block + 1] (written), pool (read), block ids i32
/// (read), seeds u64 (read), bytes of a block.
pub(super) static CHECK: Kernel = Kernel { name: "kavern_blocks_check", cpu: check };

fn check(args: &mut CpuArgs<'_>) {
    let (counters, reads) = args.write_and_read::<u64>(0);
    let bytes = reads.number(4) as usize;
    let pool = reads.read::<u8>(1);
    for (&block, &seed) in reads.read::<i32>(2).iter().zip(reads.read::<u64>(3)) {
        reads.touch(1, (block as usize * bytes) as u64, bytes as u64);
        let (words, rest) = pool[block as usize * bytes..][..bytes].as_chunks::<8>();
        // No early end: a wrong block is rare, and without a branch the loop runs at the speed of memory.
        let differing = words.iter().enumerate().fold(0, |differing, (index, word)| {
            differing | (u64::from_le_bytes(*word) ^ pattern_word(seed, index as u64))
        });
        let last = pattern_word(seed, words.len() as u64).to_le_bytes();
        let is_equal = differing == 0 && *rest == last[..rest.len()];
        counters[0] += 1;
        if !is_equal {
            counters[1] += 1;
            counters[2] = counters[2].max(block as u64 + 1);
        }
    }
}

/// Copies blocks onto others of the same pool.
///
/// Arguments: pool (written), pairs i32 [source, target] (read), bytes of a block. No target stands twice or is a
/// source, so that the order of the pairs does not matter. Fastest with one block of 1,024 threads on each
/// multiprocessor: 128 KiB are then under way there, and more blocks only take turns.
pub(super) static COPY: Kernel = Kernel { name: "kavern_blocks_copy", cpu: copy };

fn copy(args: &mut CpuArgs<'_>) {
    let (pool, reads) = args.write_and_read::<u8>(0);
    let bytes = reads.number(2) as usize;
    for pair in reads.read::<i32>(1).chunks_exact(2) {
        let [source, target] = [pair[0], pair[1]].map(|block| block as usize * bytes);
        [source, target].iter().for_each(|&at| reads.touch(0, at as u64, bytes as u64));
        pool.copy_within(source..source + bytes, target);
    }
}

/// Words of a copied run of tokens: group and row, source slot, target slot, tokens and shift.
const TOKENS_WORDS: usize = 4;

/// Copies runs of tokens from slots to slots of one pool, in every plane of their blocks.
///
/// Arguments: pool (written), runs u64 `[group and row, source slot, target slot, tokens and shift]` (read), tokens of
/// a block, bytes of a block, bytes of a plane: the part of a block in which its tokens lie one after the other. A run
/// lies in one block on either side; one of all tokens of a block copies whole planes. No target is a source or
/// stands twice, so that the order of the runs does not matter.
pub(super) static TOKENS: Kernel = Kernel { name: "kavern_tokens_copy", cpu: copy_tokens };

/// Runs up to which the reference proves that their order does not matter, as a device takes them in any.
const TOKENS_CHECKED: usize = 64;

fn check_independent(runs: &[u64]) {
    let overlap = |a: u64, b: u64, a_tokens: u64, b_tokens: u64| a < b + b_tokens && b < a + a_tokens;
    let tokens = |run: &[u64]| u64::from(run[3] as u32);
    for (at, run) in runs.chunks_exact(TOKENS_WORDS).enumerate() {
        for (other_at, other) in runs.chunks_exact(TOKENS_WORDS).enumerate() {
            let (of_run, of_other) = (tokens(run), tokens(other));
            assert!(!overlap(run[2], other[1], of_run, of_other), "a target of copied tokens is a source");
            let is_twice = at != other_at && overlap(run[2], other[2], of_run, of_other);
            assert!(!is_twice, "a target of copied tokens stands twice");
        }
    }
}

fn copy_tokens(args: &mut CpuArgs<'_>) {
    let (pool, reads) = args.write_and_read::<u8>(0);
    let [block_tokens, block_bytes, plane_bytes] = [2, 3, 4].map(|index| reads.number(index) as usize);
    let runs = reads.read::<u64>(1);
    if runs.len() <= TOKENS_CHECKED * TOKENS_WORDS {
        check_independent(runs);
    }
    reads.touch(0, 0, 0);
    for run in runs.chunks_exact(TOKENS_WORDS) {
        let tokens = run[3] as u32 as usize;
        let bytes = if tokens == block_tokens { plane_bytes } else { tokens * (plane_bytes / block_tokens) };
        let [source, target] = [run[1], run[2]].map(|slot| {
            let (block, offset) = (slot as usize / block_tokens, slot as usize % block_tokens);
            assert!(offset + tokens <= block_tokens, "a run lies in one block");
            block * block_bytes + offset * (plane_bytes / block_tokens)
        });
        for plane in (0..block_bytes).step_by(plane_bytes) {
            reads.touch_read(0, (source + plane) as u64, bytes as u64);
            reads.touch(0, (target + plane) as u64, bytes as u64);
            pool.copy_within(source + plane..source + plane + bytes, target + plane);
        }
    }
}

/// Bytes that a warp does at a time; kernels/types.cuh has the same number.
const CHUNK_BYTES: u64 = 4096;
/// Blocks up to this size are checked by a warp each; kernels/types.cuh has the same number.
const SMALL_BLOCK_BYTES: u64 = 8192;
/// Warps of a block of 256 threads, in which all of these kernels are launched.
const WARPS: u64 = 8;
/// Blocks of threads of one launch: more than any GPU runs at a time; the kernels go on by themselves.
const GRID_MAX: u64 = 1 << 16;

/// Blocks of threads for the zeroing, filling or copying of so many blocks.
pub(super) fn grid(blocks: usize, block_bytes: u64) -> u32 {
    let chunks = blocks as u64 * block_bytes.div_ceil(CHUNK_BYTES);
    chunks.div_ceil(WARPS).clamp(1, GRID_MAX) as u32
}

/// Blocks of threads for the checking of so many blocks.
pub(super) fn check_grid(blocks: usize, block_bytes: u64) -> u32 {
    let each = if block_bytes <= SMALL_BLOCK_BYTES { WARPS } else { 1 };
    (blocks as u64).div_ceil(each).clamp(1, GRID_MAX) as u32
}

/// Writes keys and values of new tokens of one layer into their slots, rounding to the cache's type once.
///
/// Arguments: pool (written), keys, values `[token][head][channel]` (read), slots i64 (read), tokens, heads, channels,
/// tokens of a block, strides in bytes of block, keys to values, token and head, first byte of the layer in a block,
/// source type, cache type. A slot below 0 is skipped.
pub(super) static APPEND: Kernel = Kernel { name: "kavern_kv_append", cpu: append };

fn append(args: &mut CpuArgs<'_>) {
    let (pool, reads) = args.write_and_read::<u8>(0);
    let number = |index: usize| reads.number(index) as usize;
    let (tokens, heads, channels, block_tokens) = (number(4), number(5), number(6), number(7));
    let (block, kv, token_stride, head_stride) = (number(8), number(9), number(10), number(11));
    let layer = number(12);
    let types =
        [13, 14].map(|index| Dtype::try_from(reads.number(index) as u32).expect("checked at the launch"));
    let row_bytes = channels as u64 * types[1].bytes();
    reads.touch(0, 0, 0);
    for token in 0..tokens {
        let slot = reads.read::<i64>(3)[token];
        if slot < 0 {
            continue;
        }
        let (index, offset) = (slot as usize / block_tokens, slot as usize % block_tokens);
        for (argument, half) in [(1, 0), (2, kv)] {
            for head in 0..heads {
                let at = index * block + layer + half + offset * token_stride + head * head_stride;
                let first = (token * heads + head) * channels;
                reads.touch(0, at as u64, row_bytes);
                convert_row(&mut pool[at..], &reads, argument, first, channels, types);
            }
        }
    }
}

fn convert_row(
    target: &mut [u8],
    reads: &CpuReads<'_>,
    argument: usize,
    first: usize,
    channels: usize,
    [from, to]: [Dtype; 2],
) {
    let bytes = to.bytes() as usize;
    if from == to {
        let source = &reads.read::<u8>(argument)[first * bytes..][..channels * bytes];
        target[..source.len()].copy_from_slice(source);
        return;
    }
    for channel in 0..channels {
        let value = match from {
            Dtype::F16 => f16::from_bits(reads.read::<u16>(argument)[first + channel]).to_f32(),
            Dtype::Bf16 => bf16::from_bits(reads.read::<u16>(argument)[first + channel]).to_f32(),
            _ => reads.read::<f32>(argument)[first + channel],
        };
        let cell = &mut target[channel * bytes..][..bytes];
        match to {
            Dtype::F16 => cell.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            Dtype::Bf16 => cell.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            _ => cell.copy_from_slice(&value.to_le_bytes()),
        }
    }
}

/// Whether the append kernel can turn one type into the other.
pub(super) fn can_convert(from: Dtype, to: Dtype) -> bool {
    let is_wide = |dtype| matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16);
    from == to || (is_wide(from) && is_wide(to))
}
