//! A scheduler's cache and the caches of its workers: the same tables and the same bytes as one cache that does both.

use std::collections::BTreeMap;

use kavern::cache::{
    AdaptiveBlocks, CacheConfig, Change, Op, PlanInfo, Reach, Request, Scrub, Sizing, Target, TokenCopy,
};
use kavern::error::Status;
use kavern::types::Id;

use super::bench::{Bench, ask, config, group, opaque, prompt, refused};
use super::groups::{cross, reaching, state};

fn settings() -> CacheConfig {
    CacheConfig {
        ragged: true,
        max_batch_tokens: 96,
        max_sequence_tokens: 60,
        scrub: Scrub::TenantChange,
        steps_in_flight: 3,
        ..config(vec![group(4), opaque(16, 32), group(8)], 40)
    }
}

fn scheduler(settings: &CacheConfig) -> Bench {
    Bench::new(&CacheConfig { metadata_only: true, ..settings.clone() })
}

fn worker(settings: &CacheConfig) -> Bench {
    Bench::new(&CacheConfig { worker: true, ..settings.clone() })
}

fn export(bench: &Bench, is_full: bool) -> Vec<u8> {
    let needed = bench.cache.export_plan(bench.step, is_full, &mut []).unwrap();
    let mut message = vec![0xee; needed + 3];
    let bytes = bench.cache.export_plan(bench.step, is_full, &mut message).unwrap();
    // Room for moves was asked for too, where blocks may be above a limit.
    let may_move = (0..bench.cache.group_count()).any(|group| {
        let about = bench.cache.describe(group).unwrap();
        about.blocks < about.max_blocks
    });
    assert!(bytes == needed || (may_move && bytes < needed), "{bytes} of {needed} bytes");
    assert!(message.split_off(bytes).iter().all(|&byte| byte == 0xee));
    message
}

/// Everything that a step's tables are, on the host and on the device, and the bytes of all blocks.
#[derive(Debug, PartialEq)]
struct Seen {
    host: Vec<Vec<i32>>,
    slots: Vec<Vec<i64>>,
    device: BTreeMap<String, Vec<i32>>,
    pools: Vec<Vec<u8>>,
    zeroed: Vec<u64>,
    copies: Vec<TokenCopy>,
}

/// Takes the tables of the step, writes the step's mark into every scheduled slot, and reads all back.
fn see(bench: &Bench, mark: u8, message: Option<&[u8]>) -> kavern::error::Result<Seen> {
    let groups = bench.cache.group_count() as usize;
    let (mut host, mut slots, mut places, mut zeroed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut copies = Vec::new();
    let mut read = |tables: &kavern::cache::StepTables<'_>| {
        host.extend(
            [tables.batch_rows()?, tables.batch_starts()?, tables.sequence_lengths()].map(<[i32]>::to_vec),
        );
        let [rows, starts, lengths] = tables.addresses();
        places.push(("rows".to_owned(), rows, host[0].len()));
        places.push(("starts".to_owned(), starts, host[1].len()));
        places.push(("lengths".to_owned(), lengths, host[2].len()));
        copies.extend_from_slice(tables.copies());
        places.push(("copies".to_owned(), tables.copies_address(), 8 * copies.len()));
        for group in 0..groups {
            let (view, at) = (tables.group(group)?, tables.group_addresses(group));
            let parts = [view.block_table, view.page_indptr, view.page_indices, view.last_page_tokens];
            let parts = parts.map(<[i32]>::to_vec);
            let addresses = [at.block_table, at.page_indptr, at.page_indices, at.last_page_tokens];
            for (index, (part, address)) in parts.iter().zip(addresses).enumerate() {
                places.push((format!("{group} {index}"), address, part.len()));
            }
            if at.slot_mapping != 0 {
                places.push((format!("{group} slots"), at.slot_mapping, 2 * 96));
            }
            host.extend(parts);
            slots.push(view.slot_mapping.to_vec());
            zeroed.push(view.blocks_zeroed);
        }
        Ok(())
    };
    match message {
        Some(message) => bench.cache.apply_plan(bench.stream, message, &mut read)?,
        None => bench.cache.tables(bench.step, bench.stream, &mut read)?,
    }
    let device =
        places.into_iter().map(|(name, address, count)| (name, bench.words(address, count))).collect();
    let mut pools = Vec::new();
    for (group, slots) in slots.iter().enumerate() {
        let place = bench.cache.describe(group as u32).unwrap();
        // Those of tokens in another size class are -1.
        for &slot in slots.iter().filter(|&&slot| slot >= 0) {
            let bytes = place.strides.token;
            let at = slot as u64 / u64::from(place.block_tokens) * place.block_bytes
                + slot as u64 % u64::from(place.block_tokens) * bytes;
            bench
                .device
                .write(bench.slice(place.base_address + at, bytes), &vec![mark; bytes as usize])
                .unwrap();
        }
        pools.push(bench.bytes(place.base_address, u64::from(place.max_blocks) * place.block_bytes));
    }
    Ok(Seen { host, slots, device, pools, zeroed, copies })
}

/// The caches that decide; the same is done to all, and all must answer the same.
struct Deciders {
    benches: [Bench; 2],
    /// Size classes that requests name, 0 for none.
    classes: u32,
    live: Vec<(u64, u64)>,
}

impl Deciders {
    fn both<R: PartialEq + std::fmt::Debug>(&mut self, mut act: impl FnMut(&mut Bench) -> R) -> R {
        let [one, two] = &mut self.benches;
        let answer = act(one);
        assert_eq!(act(two), answer);
        answer
    }

    fn act(&mut self, random: &mut fastrand::Rng) {
        for _ in 0..random.usize(0..3) {
            let tokens = prompt(random.i32(0..4), random.usize(0..40));
            let namespace_id = random.u64(0..3);
            if self.live.len() == 8 {
                break;
            }
            let class = if self.classes > 0 { random.u32(0..=self.classes) } else { 0 };
            let sizing = Sizing { class, expected_tokens: 0 };
            let admitted = self.both(|bench| {
                let hit = bench.look(&Request { namespace_id, sizing, ..ask(&tokens) });
                let rest = &tokens[hit.tokens as usize..];
                let op = Op::Admit {
                    lease: hit.lease,
                    tokens: rest.len() as u64,
                    lookahead: 3,
                    row: -1,
                    expected_tokens: 0,
                };
                let result = bench.apply(&op);
                if result.sequence == 0 {
                    bench.good(&Op::Release { lease: hit.lease });
                } else {
                    bench.commit(result.sequence, rest);
                }
                result.sequence
            });
            if admitted != 0 {
                self.live.push((admitted, tokens.len() as u64));
            }
        }
        for at in (0..self.live.len()).rev() {
            let (sequence, length) = self.live[at];
            let target = Target::Id(Id(sequence));
            if random.u8(0..6) == 0 || length > 55 {
                self.both(|bench| bench.free(sequence));
                self.live.swap_remove(at);
            } else if random.u8(0..4) > 0 {
                let op = Op::Append { target, tokens: 1, lookahead: 0 };
                let status = self.both(|bench| bench.apply(&op).status);
                self.live[at].1 += u64::from(status == Status::Ok);
            }
        }
    }
}

fn deciders(settings: &CacheConfig) -> Deciders {
    let classes = settings.adaptive.as_ref().map_or(0, |adaptive| adaptive.classes.len() as u32);
    Deciders { benches: [Bench::new(settings), scheduler(settings)], classes, live: Vec::new() }
}

impl Deciders {
    /// Forks, rewinds and edits running sequences, which makes copies.
    fn branch(&mut self, random: &mut fastrand::Rng) {
        for at in (0..self.live.len()).rev() {
            let ((sequence, length), is_full) = (self.live[at], self.live.len() == 8);
            let target = Target::Id(Id(sequence));
            let mut change = |change: Change<'_>| {
                self.both(|bench| {
                    let result = bench.apply(&Op::Change { target, change });
                    (result.status, result.sequence)
                })
            };
            match random.u8(0..8) {
                0 if !is_full => {
                    let (status, child) = change(Change::Fork { tokens: 0, row: -1 });
                    if status == Status::Ok {
                        assert_ne!(child, sequence);
                        self.live.push((child, length));
                    }
                }
                1 if length > 12 => {
                    let (offset, tokens) = (random.u64(0..8), random.u64(1..4));
                    let (status, _) = change(Change::Edit { offset, tokens });
                    self.live[at].1 -= if status == Status::Ok { tokens } else { 0 };
                }
                2 if length > 1 => {
                    let keep = random.u64(1..length);
                    let back = Change::Rollback { tokens: keep, lookahead: 0, open_tokens: &[], extras: &[] };
                    let (status, _) = change(back);
                    self.live[at].1 = if status == Status::Ok { keep } else { length };
                }
                _ => {}
            }
        }
    }
}

#[test]
fn copies_of_forks_edits_and_moves_are_part_of_the_plan() {
    play_copies(&CacheConfig { groups: vec![group(4), group(8)], ..settings() });
}

#[test]
fn plans_of_size_classes_are_those_of_one_cache_too() {
    let adaptive = AdaptiveBlocks {
        classes: vec![2, 1, 3],
        advisor: "predictive".to_owned(),
        waste_permille: 200,
        table_permille: 100,
    };
    let groups = vec![group(4), group(2), group(12)];
    play_copies(&CacheConfig { groups, adaptive: Some(adaptive), ..settings() });
}

fn play_copies(settings: &CacheConfig) {
    let mut deciders = deciders(settings);
    let mut worker = worker(settings);
    let mut random = fastrand::Rng::with_seed(6);
    let mut copied = 0;
    for round in 0..200 {
        deciders.both(Bench::begin);
        deciders.branch(&mut random);
        deciders.act(&mut random);
        if round % 4 == 3 {
            let (of, blocks) = (random.u32(0..2), random.u64(16..=40));
            deciders.both(|bench| bench.cache.resize(of, blocks).unwrap().held_blocks);
        }
        let message = export(&deciders.benches[1], false);
        let expected = see(&deciders.benches[0], round as u8, None).unwrap();
        copied += expected.copies.len();
        assert_eq!(see(&worker, round as u8, Some(&message)).unwrap(), expected, "round {round}");
        worker.step = deciders.benches[0].step;
        worker.cache.step_done(worker.step, Some(worker.stream)).unwrap();
        deciders.both(|bench| bench.done());
    }
    let moved = deciders.both(|bench| bench.statistics().moved_blocks);
    assert!(copied > 100 && moved > 40, "{copied} copies, {moved} blocks moved");
    // What operations had copied is counted where they are decided, without what moved.
    let of_operations = deciders.both(|bench| bench.statistics().copied_tokens);
    assert!(of_operations > 0);
    assert_eq!(worker.statistics().copied_tokens, 0);
}

#[test]
fn a_step_with_copies_ends_only_after_its_plan() {
    let settings = CacheConfig { groups: vec![group(4)], ..settings() };
    let mut bench = scheduler(&settings);
    bench.begin();
    let tokens = prompt(1, 6);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    export(&bench, false);
    bench.done();
    bench.begin();
    let fork = Op::Change { target: Target::Id(Id(sequence)), change: Change::Fork { tokens: 0, row: -1 } };
    let child = bench.good(&fork).sequence;
    bench.append(child, 1);
    bench.append(sequence, 1);
    assert_eq!(refused(bench.cache.step_done(bench.step, None)), Status::WrongState);
    // Tables of the scheduler's own take nothing away from the plan.
    let seen = bench.cache.tables(bench.step, bench.stream, |tables| Ok(tables.copies().len())).unwrap();
    assert_eq!(seen, 1, "told to whoever has memory of their own");
    assert_eq!(refused(bench.cache.step_done(bench.step, None)), Status::WrongState);
    export(&bench, false);
    bench.done();
}

/// Random life of a scheduler with two workers beside one cache that does both.
fn check_workers(settings: CacheConfig) {
    let mut deciders = deciders(&settings);
    let workers = [worker(&settings), worker(&settings)];
    let mut random = fastrand::Rng::with_seed(5);
    let mut zeroed = 0;
    for round in 0..200 {
        deciders.both(Bench::begin);
        deciders.act(&mut random);
        let message = export(&deciders.benches[1], round % 17 == 16);
        let info = PlanInfo::read(&message).unwrap();
        assert_eq!((info.step, info.number), (deciders.benches[1].step, round + 1));
        let expected = see(&deciders.benches[0], round as u8, None).unwrap();
        zeroed += expected.zeroed.iter().sum::<u64>();
        for worker in &workers {
            assert_eq!(see(worker, round as u8, Some(&message)).unwrap(), expected, "round {round}");
            worker.cache.step_done(info.step, Some(worker.stream)).unwrap();
        }
        deciders.benches[0].cache.step_done(info.step, Some(deciders.benches[0].stream)).unwrap();
        deciders.benches[0].device.stream_synchronize(deciders.benches[0].stream).unwrap();
        deciders.benches[1].done();
        deciders.both(|bench| bench.cache.poll().unwrap());
    }
    assert!(zeroed > 20, "{zeroed} blocks were zeroed");
}

#[test]
fn a_full_plan_tells_what_changed_in_rows_that_ended_or_went_back_in_its_step() {
    let mut deciders = deciders(&settings());
    let worker = worker(&settings());
    deciders.both(Bench::begin);
    deciders.both(|bench| {
        let leases = [1, 2].map(|seed| bench.look(&ask(&prompt(seed, 40))).lease);
        let [ended, shorter] = leases.map(|lease| bench.admit(lease, 40).sequence);
        bench.free(ended);
        let back = Change::Rollback { tokens: 3, lookahead: 0, open_tokens: &[], extras: &[] };
        bench.good(&Op::Change { target: Target::Id(Id(shorter)), change: back });
    });
    let message = export(&deciders.benches[1], true);
    let expected = see(&deciders.benches[0], 1, None).unwrap();
    assert!(
        expected.host[3].iter().filter(|&&block| block > 0).count() > 1,
        "cells that nobody reads any more"
    );
    assert_eq!(see(&worker, 1, Some(&message)).unwrap(), expected);
    worker.cache.step_done(1, Some(worker.stream)).unwrap();
    deciders.both(|bench| bench.done());
}

#[test]
fn workers_hold_what_one_cache_would_hold_table_by_table_and_byte_by_byte() {
    check_workers(settings());
}

#[test]
fn workers_of_windows_and_states_hold_what_one_cache_would_hold() {
    let window = reaching(Reach::Sliding { window_tokens: 8 }, group(4));
    let chunked = reaching(Reach::Chunked { chunk_tokens: 8 }, group(4));
    let groups = vec![group(4), window, state(1, 4), chunked, cross(6, 4)];
    check_workers(CacheConfig { groups, ..settings() });
}

#[test]
fn a_worker_that_comes_late_learns_where_a_state_starts_and_what_a_window_let_go() {
    let window = reaching(Reach::Sliding { window_tokens: 8 }, group(4));
    let settings = CacheConfig { groups: vec![group(4), state(4, 4), window], ..settings() };
    let mut bench = scheduler(&settings);
    let tokens = prompt(1, 20);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    export(&bench, false);
    let next = next_plan(&mut bench, sequence);
    let worker = worker(&settings);
    assert_eq!(refused(apply(&worker, &next)), Status::Dependency);
    let row = |bench: &Bench, message: Option<&[u8]>, group: usize| {
        let read = |tables: &kavern::cache::StepTables<'_>| {
            let view = tables.group(group)?;
            Ok(view.block_table[..6.min(view.row_cells as usize)].to_vec())
        };
        match message {
            Some(message) => bench.cache.apply_plan(bench.stream, message, read).unwrap(),
            None => bench.cache.tables(bench.step, bench.stream, read).unwrap(),
        }
    };
    let full = export(&bench, true);
    for group in 0..3 {
        assert_eq!(row(&worker, Some(&full), group), row(&bench, None, group), "group {group}");
    }
    assert_eq!(row(&bench, None, 1)[1], -1, "a state goes on from itself");
    assert_eq!(row(&bench, None, 2)[0], 40, "the null block");
    worker.cache.step_done(2, None).unwrap();
    bench.done();
}

/// A scheduler with a running sequence of 8 tokens and its open step's plan.
fn running() -> (Bench, Vec<u8>) {
    let mut bench = scheduler(&settings());
    bench.begin();
    let tokens = prompt(1, 8);
    bench.start(&ask(&tokens), &tokens);
    let plan = export(&bench, false);
    (bench, plan)
}

fn apply(worker: &Bench, message: &[u8]) -> kavern::error::Result<Vec<i32>> {
    worker.cache.apply_plan(worker.stream, message, |tables| Ok(tables.sequence_lengths().to_vec()))
}

fn next_plan(bench: &mut Bench, sequence: u64) -> Vec<u8> {
    bench.done();
    bench.begin();
    bench.append(sequence, 1);
    export(bench, false)
}

#[test]
fn a_worker_that_missed_a_plan_says_so_and_a_full_plan_brings_it_up() {
    let mut bench = scheduler(&settings());
    bench.begin();
    let tokens = prompt(1, 8);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    let worker = worker(&settings());
    let plans = [export(&bench, false), next_plan(&mut bench, sequence), next_plan(&mut bench, sequence)];
    assert_eq!(apply(&worker, &plans[0]).unwrap()[0], 8);
    worker.cache.step_done(1, None).unwrap();
    assert_eq!(refused(apply(&worker, &plans[0])), Status::WrongState, "a plan is applied once");
    assert_eq!(refused(apply(&worker, &plans[2])), Status::Dependency);
    let full = export(&bench, true);
    let [told, again] = [&plans[2], &full].map(|message| PlanInfo::read(message).unwrap());
    assert_eq!((again.number, again.step, again.follows, again.is_full), (told.number, told.step, 0, true));
    assert_eq!(apply(&worker, &full).unwrap()[0], 10);
    worker.cache.step_done(3, None).unwrap();
    assert_eq!(refused(apply(&worker, &plans[1])), Status::WrongState);
    assert_eq!(apply(&worker, &next_plan(&mut bench, sequence)).unwrap()[0], 11);
    worker.cache.step_done(4, None).unwrap();
    // Another scheduler begins with a full plan, on step ids that go on rising.
    let mut other = scheduler(&settings());
    other.step = 9;
    other.begin();
    assert_eq!(refused(apply(&worker, &export(&other, false))), Status::Dependency);
    assert_eq!(apply(&worker, &export(&other, true)).unwrap(), [0; 8]);
    worker.cache.step_done(10, None).unwrap();
    other.done();
    bench.done();
}

#[test]
fn a_bad_message_changes_nothing() {
    let (bench, plan) = running();
    let worker = worker(&settings());
    for length in (0..plan.len()).step_by(7) {
        assert_eq!(refused(apply(&worker, &plan[..length])), Status::InvalidArgument);
    }
    for bit in (0..8 * plan.len()).step_by(5) {
        let mut flipped = plan.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refused(apply(&worker, &flipped));
    }
    assert_eq!(worker.statistics().steps_in_flight, 0);
    let others = [
        CacheConfig { groups: vec![group(4), opaque(16, 32)], ..settings() },
        CacheConfig { groups: vec![group(8), opaque(16, 32), group(8)], ..settings() },
        CacheConfig { capacity_blocks: 41, ..settings() },
        CacheConfig { max_sequences: 9, ..settings() },
        CacheConfig { max_batch_tokens: 97, ..settings() },
        CacheConfig { scrub: Scrub::None, ..settings() },
    ];
    for other in others {
        let other = self::worker(&other);
        assert_eq!(refused(apply(&other, &plan)), Status::InvalidArgument);
    }
    assert_eq!(apply(&worker, &plan).unwrap(), [8, 0, 0, 0, 0, 0, 0, 0]);
    worker.cache.step_done(1, None).unwrap();
    bench.done();
}

#[test]
fn steps_of_a_worker_are_counted_and_end_in_order() {
    let mut bench = scheduler(&settings());
    let worker = worker(&settings());
    let mut plans = Vec::new();
    for _ in 0..4 {
        bench.begin();
        plans.push(export(&bench, false));
        bench.done();
    }
    assert_eq!(refused(bench.cache.export_plan(4, false, &mut [])), Status::WrongState, "the step is over");
    for plan in &plans[..3] {
        apply(&worker, plan).unwrap();
    }
    assert_eq!(refused(apply(&worker, &plans[3])), Status::TooManySteps);
    worker.cache.step_done(3, None).unwrap();
    apply(&worker, &plans[3]).unwrap();
    worker.cache.step_done(4, None).unwrap();
    assert_eq!(worker.statistics().last_step, 4);
}

#[test]
fn only_schedulers_make_plans_and_only_workers_apply_them_and_decide_nothing() {
    let settings = settings();
    let (bench, plan) = running();
    assert_eq!(refused(apply(&bench, &plan)), Status::Unsupported);
    bench.done();
    let whole = Bench::new(&settings);
    drop(whole.cache.step(1).unwrap());
    assert_eq!(refused(whole.cache.export_plan(1, false, &mut [])), Status::Unsupported);
    assert_eq!(refused(apply(&whole, &plan)), Status::Unsupported);
    whole.cache.step_done(1, None).unwrap();
    let worker = worker(&settings);
    let tokens = prompt(1, 8);
    assert_eq!(refused(worker.cache.lookups().find(&ask(&tokens))), Status::Unsupported);
    assert_eq!(refused(worker.cache.keys(&ask(&tokens), |_, _| ())), Status::Unsupported);
    assert_eq!(refused(worker.cache.probe(&ask(&tokens))), Status::Unsupported);
    assert_eq!(refused(worker.cache.pin_prefix("a", Id(1))), Status::Unsupported);
    assert_eq!(refused(worker.cache.unpin_prefix("a")), Status::Unsupported);
    assert_eq!(refused(worker.cache.step(1).map(drop)), Status::Unsupported);
    assert_eq!(refused(worker.cache.evict(0, 1)), Status::Unsupported);
    assert_eq!(refused(worker.cache.reset(kavern::cache::ResetScope::All)), Status::Unsupported);
    assert_eq!(refused(worker.cache.limit_namespace(1, 1, 1)), Status::Unsupported);
    let both = CacheConfig { metadata_only: true, worker: true, ..settings };
    assert_eq!(refused(kavern::cache::KvCache::new(&whole.memory, &both).map(drop)), Status::InvalidArgument);
}

#[test]
fn workers_whose_blocks_have_other_bytes_take_the_same_plans() {
    let (bench, plan) = running();
    let mut sharded = settings();
    sharded.groups = vec![opaque(4, 64), opaque(16, 64), opaque(8, 64)];
    let digest = |settings: &CacheConfig| refused(apply(&worker(settings), &plan));
    assert_eq!(digest(&sharded), Status::InvalidArgument, "groups without slots are another geometry");
    sharded.groups[0] = super::bench::shaped(kavern::format::BlockShape {
        layers: 3,
        kv_heads: 2,
        head_dim: 8,
        dtype: kavern::types::Dtype::F32,
        block_tokens: 4,
        layout: kavern::format::Layout::Hnd,
    });
    sharded.groups[2] = group(8);
    let worker = worker(&sharded);
    assert_eq!(apply(&worker, &plan).unwrap()[0], 8);
    worker.cache.step_done(1, None).unwrap();
    bench.done();
}

#[test]
fn a_scheduler_resizes_and_its_workers_have_the_memory_from_the_beginning() {
    let settings = CacheConfig { max_blocks: 40, max_batch_tokens: 96, ..config(vec![group(4)], 8) };
    let (mut bench, worker) = (scheduler(&settings), worker(&settings));
    assert_eq!(refused(worker.cache.resize(0, 20)), Status::Unsupported);
    let place = worker.cache.describe(0).unwrap();
    assert_eq!((place.blocks, worker.statistics().pool_bytes), (40, 40 * place.block_bytes));
    assert!(bench.cache.resize(0, 40).unwrap().is_done);
    bench.begin();
    let tokens = prompt(1, 84);
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    assert_eq!(apply(&worker, &export(&bench, true)).unwrap()[0], 84);
    worker.cache.step_done(1, None).unwrap();
    bench.free(sequence);
    bench.done();
}

#[test]
fn tables_of_a_scheduler_tell_the_copies_of_a_step_once_and_leave_them_for_its_plan() {
    let settings = CacheConfig { groups: vec![group(4)], ..settings() };
    let mut bench = scheduler(&settings);
    let worker = worker(&settings);
    let tokens = prompt(1, 6);
    bench.begin();
    let (_, parent) = bench.start(&ask(&tokens), &tokens);
    // Before the first plan too: the tables do not know yet that there will be one.
    bench.done();
    bench.begin();
    let fork = Op::Change { target: Target::Id(Id(parent)), change: Change::Fork { tokens: 0, row: -1 } };
    let child = bench.good(&fork).sequence;
    bench.append(child, 1);
    let told = |bench: &Bench| {
        bench.cache.tables(bench.step, bench.stream, |tables| Ok(tables.copies().to_vec())).unwrap()
    };
    let first = told(&bench);
    assert_eq!((first.len(), told(&bench).len()), (1, 0));
    let plan = export(&bench, false);
    let applied =
        worker.cache.apply_plan(worker.stream, &plan, |tables| Ok(tables.copies().to_vec())).unwrap();
    assert_eq!(applied, first);
    worker.cache.step_done(2, None).unwrap();
    bench.done();
}

#[test]
fn what_a_plan_took_is_told_by_no_tables_and_each_copy_reaches_the_workers_once() {
    let settings = CacheConfig { groups: vec![group(4)], ..settings() };
    let mut bench = scheduler(&settings);
    let worker = worker(&settings);
    let tokens = prompt(1, 6);
    bench.begin();
    let (_, parent) = bench.start(&ask(&tokens), &tokens);
    apply(&worker, &export(&bench, false)).unwrap();
    worker.cache.step_done(1, None).unwrap();
    bench.done();
    bench.begin();
    let fork = Op::Change { target: Target::Id(Id(parent)), change: Change::Fork { tokens: 0, row: -1 } };
    let children = [(); 2].map(|()| bench.good(&fork).sequence);
    let told = |bench: &Bench| {
        bench.cache.tables(bench.step, bench.stream, |tables| Ok(tables.copies().to_vec())).unwrap()
    };
    let applied = |plan: &[u8]| {
        worker.cache.apply_plan(worker.stream, plan, |tables| Ok(tables.copies().to_vec())).unwrap()
    };
    bench.append(children[0], 1);
    let first = applied(&export(&bench, false));
    assert_eq!((first.len(), told(&bench)), (1, vec![]), "the plan has taken it");
    bench.append(children[1], 1);
    let second = told(&bench);
    assert_eq!(second.len(), 1);
    assert_ne!(second, first);
    assert_eq!(applied(&export(&bench, false)), second);
    assert_eq!((applied(&export(&bench, false)), told(&bench)), (vec![], vec![]));
    worker.cache.step_done(2, None).unwrap();
    bench.done();
}

#[test]
fn a_plan_that_another_apply_keeps_from_its_upload_changes_nothing() {
    let settings = settings();
    let (mut bench, worker) = (scheduler(&settings), worker(&settings));
    // Uploads go on the stream behind the gate until every staging slot is under way.
    let gate = worker.gate();
    let mut full = || {
        bench.begin();
        let plan = export(&bench, true);
        bench.done();
        plan
    };
    for step in 1..=4 {
        apply(&worker, &full()).unwrap();
        worker.cache.step_done(step, None).unwrap();
    }
    let (fifth, sixth) = (full(), full());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| apply(&worker, &fifth).map(drop));
        while worker.statistics().last_step < 5 {
            std::thread::yield_now();
        }
        assert_eq!(refused(apply(&worker, &sixth)), Status::InUse);
        assert_eq!(worker.statistics().last_step, 5);
        drop(gate);
        waiting.join().unwrap().unwrap();
    });
    worker.cache.step_done(5, None).unwrap();
    apply(&worker, &sixth).unwrap();
    worker.cache.step_done(6, None).unwrap();
}

#[test]
fn what_a_plan_told_workers_to_write_is_not_taken_back() {
    let mut bench = scheduler(&settings());
    let tokens = prompt(1, 16);
    bench.begin();
    let (_, sequence) = bench.start(&ask(&tokens), &tokens);
    export(&bench, false);
    let late = prompt(2, 16);
    let (_, other) = bench.start(&ask(&late), &late);
    for sequence in [sequence, other] {
        bench.good(&Op::Change { target: Target::Id(Id(sequence)), change: Change::Cancel });
    }
    export(&bench, false);
    bench.done();
    assert_eq!((bench.hits(&ask(&tokens)), bench.hits(&ask(&late))), (16, 0));
}

/// What the first two rows of each group show, as far as they hold something.
fn shown(bench: &Bench, message: Option<&[u8]>) -> Vec<Vec<i32>> {
    let read = |tables: &kavern::cache::StepTables<'_>| {
        let rows = |(group, count): (usize, usize)| {
            let view = tables.group(group)?;
            let cells = view.row_cells as usize;
            Ok([0, 1].map(|row| view.block_table[row * cells..][..count].to_vec()))
        };
        let rows: kavern::error::Result<Vec<_>> = [(0, 6), (1, 6), (2, 2)].into_iter().map(rows).collect();
        Ok(rows?.concat())
    };
    match message {
        Some(message) => bench.cache.apply_plan(bench.stream, message, read).unwrap(),
        None => bench.cache.tables(bench.step, bench.stream, read).unwrap(),
    }
}

#[test]
fn workers_learn_the_windows_and_states_of_forks() {
    let window = reaching(Reach::Sliding { window_tokens: 8 }, group(4));
    let settings = config(vec![group(4), window, state(1, 4)], 40);
    let mut bench = scheduler(&settings);
    let (follower, late) = (worker(&settings), worker(&settings));
    let lease = bench.look(&ask(&[])).lease;
    bench.begin();
    let parent = bench.admit(lease, 22).sequence;
    let back = Change::Rollback { tokens: 21, lookahead: 0, open_tokens: &[], extras: &[] };
    let message = export(&bench, true);
    assert_eq!(shown(&follower, Some(&message))[4][1], -1, "it starts from nothing");
    let refused = bench.apply(&Op::Change { target: Target::Id(Id(parent)), change: back });
    assert_eq!((refused.status, refused.group), (Status::WrongState, 2), "workers may be at it");
    follower.cache.step_done(1, None).unwrap();
    bench.done();
    bench.begin();
    let fork = Change::Fork { tokens: 0, row: 1 };
    let child = bench.good(&Op::Change { target: Target::Id(Id(parent)), change: fork }).sequence;
    bench.append(child, 1);
    bench.append(parent, 2);
    let message = export(&bench, false);
    let rows = shown(&bench, None);
    assert_eq!(shown(&follower, Some(&message)), rows);
    assert_eq!(rows[4][1], rows[5][1], "both start from one state");
    assert_eq!(rows[3][..3], [40; 3]);
    assert_eq!(shown(&late, Some(&export(&bench, true))), rows);
    for cache in [&follower.cache, &late.cache] {
        cache.step_done(2, None).unwrap();
    }
    bench.done();
}
