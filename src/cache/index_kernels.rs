//! Kernels of the index on the device, with their CPU references.

use super::mirror::CHANGE_WORDS;
use crate::device::{CpuArgs, CpuReads, Kernel};

/// Brings cells of the table up to date.
///
/// Arguments: table u32 [cells][4] (written), changes i32 [n][5] (read): a cell's number and its four words. No cell is
/// named twice.
pub(super) static UPDATE: Kernel = Kernel { name: "kavern_index_update", cpu: update };

fn update(args: &mut CpuArgs<'_>) {
    let (table, reads) = args.write_and_read::<i32>(0);
    reads.touch(0, 0, 0);
    for change in reads.read::<i32>(1).chunks_exact(CHANGE_WORDS) {
        let at = 4 * change[0] as usize;
        reads.touch(0, 4 * at as u64, 16);
        table[at..at + 4].copy_from_slice(&change[1..]);
    }
}

/// Every hash is looked up by itself; src/c_api/kv_enums.rs has the same numbers.
pub(super) const INDEPENDENT: u64 = 1;
/// What follows the first miss of a row is a miss too.
pub(super) const PREFIX: u64 = 2;

/// Looks rows of hashes up: the block of each, or -1.
///
/// Arguments: blocks i32 [rows][row hashes] (written), table u32 [cells][4] (read), hashes u32 [rows][row hashes][4]
/// (read), counts i32 [rows] (read, or anything), rows, hashes of a row, mode, whether counts are given. Hashes past a
/// row's count are answered with -1 and not read; a count is bounded by 0 and the hashes of a row.
pub(super) static LOOKUP: Kernel = Kernel { name: "kavern_index_lookup", cpu: lookup };

fn lookup(args: &mut CpuArgs<'_>) {
    let (blocks, reads) = args.write_and_read::<i32>(0);
    let number = |index: usize| reads.number(index);
    let (rows, each) = (number(4) as usize, number(5) as usize);
    let (is_prefix, has_counts) = (number(6) == PREFIX, number(7) != 0);
    reads.touch(1, 0, 0);
    for row in 0..rows {
        let count = match has_counts {
            true => reads.read::<i32>(3)[row].clamp(0, each as i32) as usize,
            false => each,
        };
        let out = &mut blocks[row * each..][..each];
        out.fill(-1);
        for (at, cell) in out[..count].iter_mut().enumerate() {
            let hash = &reads.read::<u32>(2)[4 * (row * each + at)..][..4];
            *cell = find(&reads, hash);
            if is_prefix && *cell < 0 {
                break;
            }
        }
    }
}

fn find(reads: &CpuReads<'_>, hash: &[u32]) -> i32 {
    let table = reads.read::<u32>(1);
    let cells = table.len() / 4;
    assert!(cells.is_power_of_two() && cells >= 2, "a table has a power of two of cells");
    let mut at = hash[0] as usize & (cells - 1) & !1;
    for _ in 0..cells {
        reads.touch(1, 16 * at as u64, 16);
        let cell = &table[4 * at..][..4];
        if cell[3] == 0 {
            return -1;
        }
        if cell[..3] == hash[..3] {
            return cell[3] as i32 - 1;
        }
        at = (at + 1) & (cells - 1);
    }
    -1
}

/// Hashes that one thread has under way at a time; kernels/index.cu has the same number.
const EACH: u64 = 4;
/// Threads of a block.
pub(super) const THREADS: u32 = 256;

/// Blocks of threads of a lookup: one for each row where rows end early, else one for what its threads do at once.
pub(super) fn lookup_grid(rows: u64, each: u64, mode: u64) -> u32 {
    let wanted = if mode == PREFIX { rows } else { (rows * each).div_ceil(EACH * u64::from(THREADS)) };
    wanted.clamp(1, 1 << 16) as u32
}

/// Blocks of threads of an update.
pub(super) fn update_grid(changes: usize) -> u32 {
    (changes as u64).div_ceil(THREADS.into()).clamp(1, 1 << 12) as u32
}
