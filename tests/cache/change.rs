//! Short words for changes of a sequence, and bytes that tell which token lies where.

use kavern::cache::{Change, Op, Target};
use kavern::types::Id;

pub(super) fn id(sequence: u64) -> Target {
    Target::Id(Id(sequence))
}

pub(super) fn change(sequence: u64, change: Change<'_>) -> Op<'_> {
    Op::Change { target: id(sequence), change }
}

pub(super) fn rollback(sequence: u64, tokens: u64, lookahead: u32) -> Op<'static> {
    change(sequence, Change::Rollback { tokens, lookahead, open_tokens: &[], extras: &[] })
}

/// Writes and reads one number for each token, in its key and its value, in a group of one layer and head.
pub(super) mod tape {
    use kavern::cache::StepTables;

    use super::super::bench::Bench;

    /// Blocks of a row that hold its first tokens.
    pub(in super::super) fn row(bench: &Bench, group: u32, row: usize, tokens: usize) -> Vec<i32> {
        let each = bench.cache.describe(group).unwrap().block_tokens as usize;
        let view = |tables: &StepTables<'_>| {
            let view = tables.group(group as usize)?;
            Ok(view.block_table[row * view.row_cells as usize..][..tokens.div_ceil(each)].to_vec())
        };
        bench.cache.tables(bench.step, bench.stream, view).unwrap()
    }

    fn places(bench: &Bench, group: u32, row: &[i32], token: usize) -> [u64; 2] {
        let about = bench.cache.describe(group).unwrap();
        let each = about.block_tokens as usize;
        let in_pool =
            row[token / each] as u64 * about.block_bytes + (token % each) as u64 * about.strides.token;
        [0, about.strides.kv].map(|half| about.base_address + in_pool + half)
    }

    /// Gives each of the first tokens of a row a number, from `first` on.
    pub(in super::super) fn write(bench: &Bench, group: u32, row: &[i32], tokens: usize, first: i32) {
        for token in 0..tokens {
            for at in places(bench, group, row, token) {
                bench.device.write(bench.slice(at, 4), &(first + token as i32).to_le_bytes()).unwrap();
            }
        }
    }

    /// The numbers of the first tokens of a row.
    pub(in super::super) fn read(bench: &Bench, group: u32, row: &[i32], tokens: usize) -> Vec<i32> {
        let number = |token: usize| {
            let [key, value] = places(bench, group, row, token).map(|at| bench.words(at, 1)[0]);
            assert_eq!(key, value, "key and value of token {token}");
            key
        };
        (0..tokens).map(number).collect()
    }
}
