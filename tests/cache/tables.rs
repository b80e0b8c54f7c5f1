//! Block tables, slot mappings and their ragged form: what the device reads, where, and how little is sent.

use std::sync::Arc;

use kavern::cache::{CacheConfig, Change, GroupAddresses, Op, Scrub, StepTables, Target};
use kavern::types::Id;

use super::bench::{Bench, ask, config, group, opaque, prompt};

/// One group's arrays as the host sees them, with their addresses.
struct Seen {
    addresses: GroupAddresses,
    table: Vec<i32>,
    slots: Vec<i64>,
    indptr: Vec<i32>,
    indices: Vec<i32>,
    last: Vec<i32>,
    uploaded: u64,
}

/// All arrays of a step.
struct Tables {
    addresses: [u64; 3],
    rows: Vec<i32>,
    starts: Vec<i32>,
    lengths: Vec<i32>,
    groups: Vec<Seen>,
}

fn copy(tables: &StepTables<'_>, groups: usize) -> kavern::error::Result<Tables> {
    let mut seen = Vec::new();
    for group in 0..groups {
        let view = tables.group(group)?;
        seen.push(Seen {
            addresses: tables.group_addresses(group),
            table: view.block_table.to_vec(),
            slots: view.slot_mapping.to_vec(),
            indptr: view.page_indptr.to_vec(),
            indices: view.page_indices.to_vec(),
            last: view.last_page_tokens.to_vec(),
            uploaded: view.cells_uploaded,
        });
    }
    assert_eq!(tables.batch_starts()?.last().copied(), Some(tables.token_count() as i32));
    Ok(Tables {
        addresses: tables.addresses(),
        rows: tables.batch_rows()?.to_vec(),
        starts: tables.batch_starts()?.to_vec(),
        lengths: tables.sequence_lengths().to_vec(),
        groups: seen,
    })
}

fn tables(bench: &Bench) -> Tables {
    let groups = bench.cache.group_count() as usize;
    bench.cache.tables(bench.step, bench.stream, |tables| copy(tables, groups)).unwrap()
}

/// The device holds what the host was told: all live cells, all slots up to the end of the array, all lengths.
fn assert_on_device(bench: &Bench, tables: &Tables, batch_tokens: usize) {
    let [rows, starts, lengths] = tables.addresses;
    assert_eq!(bench.words(rows, tables.rows.len()), tables.rows);
    assert_eq!(bench.words(starts, tables.starts.len()), tables.starts);
    assert_eq!(bench.words(lengths, tables.lengths.len()), tables.lengths);
    for (index, seen) in tables.groups.iter().enumerate() {
        let place = bench.cache.describe(index as u32).unwrap();
        let device = bench.words(seen.addresses.block_table, seen.table.len());
        for (row, &length) in tables.lengths.iter().enumerate() {
            let (from, count) =
                (row * place.row_cells as usize, (length as u32).div_ceil(place.block_tokens));
            let cells = from..from + count as usize;
            assert_eq!(device[cells.clone()], seen.table[cells], "row {row} of group {index}");
        }
        if seen.addresses.slot_mapping != 0 {
            let mut expected = seen.slots.clone();
            expected.resize(batch_tokens, -1);
            assert_eq!(bench.slots(seen.addresses.slot_mapping, batch_tokens), expected);
        }
        if seen.addresses.page_indptr != 0 {
            assert_eq!(bench.words(seen.addresses.page_indptr, seen.indptr.len()), seen.indptr);
            assert_eq!(bench.words(seen.addresses.page_indices, seen.indices.len()), seen.indices);
            assert_eq!(bench.words(seen.addresses.last_page_tokens, seen.last.len()), seen.last);
        }
    }
}

#[test]
fn addresses_stay_and_the_device_holds_what_the_host_was_told() {
    let mut random = fastrand::Rng::with_seed(3);
    let groups = vec![group(4), opaque(16, 32), group(8)];
    let settings = CacheConfig {
        ragged: true,
        max_batch_tokens: 64,
        max_sequence_tokens: 60,
        scrub: Scrub::Always,
        ..config(groups, 60)
    };
    let mut bench = Bench::new(&settings);
    let mut addresses = None;
    let mut live: Vec<(u64, u64)> = Vec::new();
    for round in 0..120 {
        bench.begin();
        for _ in 0..random.usize(0..3) {
            let tokens = prompt(random.i32(0..3), random.usize(0..30));
            if live.len() == 8 {
                break;
            }
            let hit = bench.look(&ask(&tokens));
            let rest = tokens.len() as u64 - hit.tokens;
            let result = bench.apply(&Op::Admit {
                lease: hit.lease,
                tokens: rest,
                lookahead: 2,
                row: -1,
                expected_tokens: 0,
            });
            if result.sequence == 0 {
                bench.good(&Op::Release { lease: hit.lease });
                continue;
            }
            bench.commit(result.sequence, &tokens[hit.tokens as usize..]);
            live.push((result.sequence, tokens.len() as u64));
        }
        for (sequence, length) in &mut live {
            let tokens = random.u64(0..3);
            let target = Target::Id(Id(*sequence));
            let op = Op::Append { target, tokens, lookahead: 0 };
            if bench.apply(&op).status == kavern::error::Status::Ok {
                *length += tokens;
            }
        }
        if random.bool() && !live.is_empty() {
            bench.free(live.swap_remove(random.usize(0..live.len())).0);
        }
        let now = tables(&bench);
        assert_eq!(now.lengths.iter().map(|&l| l as u64).sum::<u64>(), live.iter().map(|l| l.1).sum::<u64>());
        assert_on_device(&bench, &now, 64);
        let all: Vec<String> = now.groups.iter().map(|seen| format!("{:?}", seen.addresses)).collect();
        let expected = addresses.get_or_insert((now.addresses, all.clone()));
        assert_eq!((now.addresses, &all), (expected.0, &expected.1), "step {round}");
        bench.cache.step_done(bench.step, Some(bench.stream)).unwrap();
        bench.device.stream_synchronize(bench.stream).unwrap();
    }
}

#[test]
fn only_changed_cells_are_sent() {
    let mut bench = Bench::new(&config(vec![group(4), opaque(8, 16)], 64));
    let uploaded = |bench: &Bench| {
        let now = tables(bench);
        assert_on_device(bench, &now, 1024);
        [now.groups[0].uploaded, now.groups[1].uploaded]
    };
    bench.begin();
    assert_eq!(uploaded(&bench), [0, 0], "nothing happened");
    let lease = bench.look(&ask(&[])).lease;
    let first = bench.admit(lease, 17).sequence;
    assert_eq!(uploaded(&bench), [5, 3]);
    assert_eq!(uploaded(&bench), [0, 0], "the same step again");
    bench.done();
    let expected = [[0, 0], [0, 0], [0, 0], [1, 0], [0, 0], [0, 0], [0, 0], [1, 1]];
    for (length, cells) in (18..).zip(expected) {
        bench.begin();
        bench.append(first, 1);
        assert_eq!(uploaded(&bench), cells, "{length} tokens");
        bench.done();
    }
    bench.begin();
    let tokens = prompt(1, 24);
    bench.start(&ask(&tokens), &tokens);
    bench.done();
    bench.begin();
    bench.start(&ask(&tokens), &tokens);
    assert_eq!(uploaded(&bench), [12, 6], "both rows are new to the device");
    bench.free(first);
    assert_eq!(uploaded(&bench), [0, 0], "a row that ends needs no cell");
    bench.done();
}

#[test]
fn slots_name_block_and_place_and_are_padded_after_a_longer_batch() {
    let mut bench = Bench::new(&CacheConfig { max_batch_tokens: 32, ..config(vec![group(4)], 64) });
    bench.begin();
    let leases = [bench.look(&ask(&[])).lease, bench.look(&ask(&[])).lease];
    let first = bench.admit(leases[0], 6).sequence;
    let second = bench.admit(leases[1], 3).sequence;
    bench.append(first, 3);
    let now = tables(&bench);
    assert_eq!((now.rows.as_slice(), now.starts.as_slice()), (&[0, 1][..], &[0, 9, 12][..]));
    let table = &now.groups[0].table;
    let cells = bench.cache.describe(0).unwrap().row_cells as usize;
    let slot = |row: usize, at: usize| i64::from(table[row * cells + at / 4]) * 4 + (at % 4) as i64;
    let expected: Vec<i64> = (0..9).map(|at| slot(0, at)).chain((0..3).map(|at| slot(1, at))).collect();
    assert_eq!(now.groups[0].slots, expected);
    assert_on_device(&bench, &now, 32);
    bench.done();
    bench.begin();
    bench.append(second, 2);
    let now = tables(&bench);
    assert_eq!(now.groups[0].slots, [slot(1, 3), i64::from(now.groups[0].table[cells + 1]) * 4]);
    assert_on_device(&bench, &now, 32);
    bench.done();
    bench.begin();
    let now = tables(&bench);
    assert_eq!((now.groups[0].slots.len(), now.starts.as_slice()), (0, &[0][..]));
    assert_on_device(&bench, &now, 32);
    bench.done();
}

#[test]
fn a_sequence_freed_in_its_step_drops_out_of_the_batch() {
    let mut bench = Bench::new(&CacheConfig { ragged: true, ..config(vec![group(4)], 64) });
    bench.begin();
    let leases = [0, 1, 2].map(|_| bench.look(&ask(&[])).lease);
    let [first, second, third] = leases.map(|lease| bench.admit(lease, 5));
    bench.upload();
    bench.free(second.sequence);
    let now = tables(&bench);
    assert_eq!(now.rows, [first.row, third.row]);
    assert_eq!((now.starts.as_slice(), now.groups[0].slots.len()), (&[0, 5, 10][..], 10));
    assert_eq!(now.lengths[second.row as usize], 0);
    assert_on_device(&bench, &now, 1024);
    // Its row goes to another sequence in the same step.
    let lease = bench.look(&ask(&[])).lease;
    let next = bench.admit(lease, 2);
    assert_eq!(next.row, second.row);
    let now = tables(&bench);
    assert_eq!(now.rows, [first.row, third.row, next.row]);
    assert_eq!(now.groups[0].indptr, [0, 2, 4, 5]);
    assert_on_device(&bench, &now, 1024);
    bench.done();
}

#[test]
fn the_caller_may_choose_rows() {
    let mut bench = Bench::simple(4, 64);
    bench.begin();
    for row in [5, 0, 7] {
        let lease = bench.look(&ask(&[])).lease;
        let result = bench.good(&Op::Admit { lease, tokens: 2, lookahead: 0, row, expected_tokens: 0 });
        assert_eq!(result.row, row);
    }
    let now = tables(&bench);
    assert_eq!(now.rows, [5, 0, 7]);
    assert_eq!(now.lengths, [2, 0, 0, 0, 0, 2, 0, 2]);
    assert_on_device(&bench, &now, 1024);
    bench.done();
}

#[test]
fn the_ragged_form_lists_the_pages_of_each_batch_position() {
    let mut bench = Bench::new(&CacheConfig { ragged: true, ..config(vec![group(4), opaque(8, 16)], 64) });
    bench.begin();
    let leases = [0, 1, 2, 3].map(|_| bench.look(&ask(&[])).lease);
    for (lease, (tokens, lookahead)) in leases.into_iter().zip([(8, 0), (0, 8), (5, 9), (1, 0)]) {
        bench.good(&Op::Admit { lease, tokens, lookahead, row: -1, expected_tokens: 0 });
    }
    let now = tables(&bench);
    let [full, wide] = [&now.groups[0], &now.groups[1]];
    assert_eq!((full.indptr.as_slice(), full.last.as_slice()), (&[0, 2, 2, 4, 5][..], &[4, 0, 1, 1][..]));
    assert_eq!((wide.indptr.as_slice(), wide.last.as_slice()), (&[0, 1, 1, 2, 3][..], &[8, 0, 5, 1][..]));
    let cells = bench.cache.describe(0).unwrap().row_cells as usize;
    let row = |row: usize, count: usize| full.table[row * cells..][..count].to_vec();
    assert_eq!(full.indices, [row(0, 2), row(2, 2), row(3, 1)].concat());
    assert_on_device(&bench, &now, 1024);
    bench.done();
}

#[test]
fn changes_larger_than_the_staging_all_arrive() {
    // Rows of shared blocks: many more cells than blocks, so they need more pieces than there are staging slots.
    const TOKENS: usize = 20_000;
    let mut bench = Bench::new(&CacheConfig {
        ragged: true,
        max_sequence_tokens: TOKENS as u64 + 8,
        max_batch_tokens: TOKENS as u32,
        max_sequences: 12,
        max_leases: 12,
        steps_in_flight: 1,
        scrub: Scrub::Always,
        ..config(vec![group(1)], TOKENS as u64 + 100)
    });
    let tokens = prompt(1, TOKENS);
    bench.run(&ask(&tokens));
    bench.begin();
    let leases: Vec<_> = (0..12).map(|_| bench.look(&ask(&tokens))).collect();
    let blocks = leases[0].blocks.clone();
    for hit in leases {
        assert_eq!(bench.admit(hit.lease, 1).blocks_added, 1);
    }
    let now = tables(&bench);
    assert_eq!(now.groups[0].uploaded, 12 * (TOKENS as u64 + 1));
    assert_eq!(now.groups[0].indices.len(), 12 * (TOKENS + 1));
    assert_on_device(&bench, &now, TOKENS);
    let cells = bench.cache.describe(0).unwrap().row_cells as usize;
    (0..12).for_each(|row| assert_eq!(now.groups[0].table[row * cells..][..TOKENS], blocks));
    assert_eq!(tables(&bench).groups[0].uploaded, 0);
    bench.done();
}

#[test]
fn a_cancel_takes_back_what_was_scheduled_while_another_thread_was_inside_the_tables() {
    const CELLS: u64 = 1 << 14;
    let settings = CacheConfig {
        steps_in_flight: 1,
        max_sequences: 16,
        max_sequence_tokens: CELLS,
        max_batch_tokens: 2 * CELLS as u32,
        ..config(vec![opaque(1, 16)], 2 * CELLS)
    };
    let mut bench = Bench::new(&settings);
    let aside = bench.device.stream_create().unwrap();
    bench.begin();
    let lease = bench.look(&ask(&[])).lease;
    let parent = bench.admit(lease, CELLS).sequence;
    let [_, _, lengths] = bench.cache.tables(1, bench.stream, |tables| Ok(tables.addresses())).unwrap();
    bench.done();
    bench.begin();
    // One of the two staging slots is under way, so that tables of more than one piece wait after the first.
    let gate = bench.gate();
    bench.upload();
    let fork = Change::Fork { tokens: 0, row: -1 };
    let target = Target::Id(Id(parent));
    let last = (0..12).map(|_| bench.good(&Op::Change { target, change: fork }).row).last().unwrap();
    let tokens = prompt(1, 8);
    let cache = Arc::clone(&bench.cache);
    let late = std::thread::scope(|scope| {
        let tables = scope.spawn(|| cache.tables(2, aside, |_| Ok(())));
        let mut known = [0; 4];
        while u64::from(u32::from_le_bytes(known)) != CELLS {
            std::thread::yield_now();
            bench.device.read(bench.slice(lengths + 4 * last as u64, 4), &mut known).unwrap();
        }
        let (_, late) = bench.start(&ask(&tokens), &tokens);
        assert!(!tables.is_finished());
        drop(gate);
        tables.join().unwrap().unwrap();
        late
    });
    bench.good(&Op::Change { target: Target::Id(Id(late)), change: Change::Cancel });
    bench.done();
    assert_eq!(bench.hits(&ask(&tokens)), 0, "nobody was told to write it");
}
