//! How long a piece of a snapshot, of the events and of a reset holds the lock, with a million blocks. Counted in time
//! of the thread, because tests share the machine.

use std::sync::Arc;

use super::*;
use crate::cache::lookup::{Naming, Request};
use crate::cache::namespace::{Home, KeyMode};
use crate::cache::prefix::LinkKeys;
use crate::cache::prefixes::UNPIN_PIECE;
use crate::cache::steps::StepState;
use crate::cache::{CacheConfig, Content, GroupConfig, Op, Target};
use crate::event::NoSink;
use crate::memory::{Limits, Memory};
use crate::sync::ways_given;
use crate::sys::clock::thread_ns;
use crate::types::Id;

const BLOCKS: u64 = 1 << 20;
const GOAL_NS: u64 = 100_000;

fn config(blocks: u64) -> CacheConfig {
    let content = Content::Opaque { block_bytes: 16 };
    let group = GroupConfig::new(content, 1);
    CacheConfig {
        max_sequences: 4,
        max_sequence_tokens: blocks,
        max_batch_tokens: blocks as u32,
        max_leases: 4,
        steps_in_flight: 2,
        event_capacity: 1 << 20,
        metadata_only: true,
        ..CacheConfig::new(vec![group], blocks)
    }
}

fn state() -> State {
    let config = config(BLOCKS);
    State::new(
        &config,
        &config.geometry().unwrap(),
        &[],
        std::array::from_fn(|word| 0x9e37_79b9_7f4a_7c15 ^ word as u64),
    )
    .unwrap()
}

/// Fills the cache half with blocks of one namespace and half with those of another, in turns.
fn filled_state() -> State {
    filled_state_with(0)
}

/// The same, with names for the last prompts.
fn filled_state_with(names: u64) -> State {
    let mut state = state();
    let (piece, mut random) = (1 << 10, fastrand::Rng::with_seed(5));
    for round in 0..BLOCKS / piece {
        state.begin_call(round + 1).unwrap();
        let keys: Vec<u8> = (0..4 * piece).flat_map(|_| random.u64(..).to_le_bytes()).collect();
        let naming = Naming::Keys { bytes: &keys, key_bytes: 32 };
        let request = Request { no_read: true, ..Request::new(round % 2, naming, piece) };
        let keys = LinkKeys::Given { bytes: &keys, key_bytes: 32 };
        let home = Home::new(round % 2, 0, b"", KeyMode::Keys(32));
        let lease = state.match_one(&request, &home, &keys).unwrap().lease;
        let admitted =
            state.apply(&Op::Admit { lease, tokens: piece, lookahead: 0, row: -1, expected_tokens: 0 });
        let target = Target::Id(Id(admitted.sequence));
        let committed = state.apply(&Op::Commit { target, tokens: piece, naming });
        assert_eq!(u64::from(committed.blocks_committed), piece);
        state.apply(&Op::Free { target });
        let (at, _) = state.shared.steps.begin_done(round + 1).unwrap().unwrap();
        state.shared.steps.end_done(at, StepState::Complete);
        state.give_back_complete();
        if round >= BLOCKS / piece - names {
            let lease = state.match_one(&Request { no_read: false, ..request }, &home, &keys).unwrap().lease;
            let mut given = (round.to_string(), vec![Vec::with_capacity(piece as usize)]);
            assert_eq!(state.pin_prefix(&mut given, lease).unwrap().blocks, piece);
            state.apply(&Op::Release { lease });
        }
    }
    state
}

/// The longest of the pieces, each as fast as its fastest of some tries.
fn longest(tries: u32, mut pieces: impl FnMut(&mut dyn FnMut(u64))) -> u64 {
    let mut best: Vec<u64> = Vec::new();
    for attempt in 0..tries {
        let mut at = 0;
        pieces(&mut |took| {
            if attempt == 0 {
                best.push(took);
            } else {
                best[at] = best[at].min(took);
            }
            at += 1;
        });
    }
    best.into_iter().max().unwrap()
}

fn timed<R>(work: impl FnOnce() -> R) -> (u64, R) {
    let start = thread_ns();
    let answer = work();
    (thread_ns() - start, answer)
}

#[test]
#[expect(clippy::disallowed_macros, reason = "a measurement says what it found")]
fn no_piece_of_a_snapshot_or_of_the_events_holds_the_lock_for_long() {
    let state = filled_state();
    let mut buffer = [EMPTY; EVENT_PIECE];
    let snapshot = longest(3, |note| {
        let (mut position, mut count, mut is_all) = (0, 0, false);
        while !is_all {
            let (took, (read, next, end)) = timed(|| state.snapshot_piece(position, &mut buffer));
            note(took);
            (position, count, is_all) = (next, count + read as u64, end);
        }
        assert_eq!(count, BLOCKS);
    });
    let events = longest(3, |note| {
        let mut cursor = 0;
        loop {
            let (took, (read, gap)) = timed(|| state.read_piece(cursor, &mut buffer));
            assert_eq!(gap, None);
            note(took);
            cursor += read as u64;
            if read == 0 {
                break;
            }
        }
        assert_eq!(cursor, BLOCKS);
    });
    println!("longest hold with {BLOCKS} blocks: snapshot {snapshot} ns, events {events} ns");
    assert!(snapshot <= GOAL_NS && events <= GOAL_NS, "snapshot {snapshot} ns, events {events} ns");
}

#[test]
#[expect(clippy::disallowed_macros, reason = "a measurement says what it found")]
fn no_piece_of_a_wipe_holds_the_lock_for_long_and_only_its_own_blocks_are_touched() {
    let mut state = filled_state();
    let mut pieces = Vec::new();
    loop {
        let (took, removed) = timed(|| state.reset_piece_of(0, 1));
        pieces.push(took);
        if removed == 0 {
            break;
        }
    }
    assert_eq!(pieces.len() as u64, BLOCKS / 2 / u64::from(RESET_PIECE) + 1, "none but its own");
    assert_eq!(u64::from(state.stores[0].findable_count()), BLOCKS / 2);
    let mut stretches = Vec::new();
    for from in (0..BLOCKS as u32).step_by(RESET_PIECE as usize) {
        stretches.push(timed(|| state.reset_stretch(0, from..from + RESET_PIECE)).0);
    }
    assert_eq!(state.stores[0].findable_count(), 0);
    for (name, pieces) in [("wipe", &mut pieces), ("reset", &mut stretches)] {
        pieces.sort_unstable();
        let (most, longest) = (pieces[pieces.len() * 99 / 100], pieces[pieces.len() - 1]);
        println!("{name}: 99 of 100 holds at most {most} ns, the longest {longest} ns");
        // Pieces cannot be tried twice: what the system does to a few of them meanwhile is left out.
        assert!(most <= GOAL_NS, "{name}: {most} ns");
    }
}

#[test]
#[expect(clippy::disallowed_macros, reason = "a measurement says what it found")]
fn no_piece_of_names_that_go_holds_the_lock_for_long_though_a_limit_takes_what_they_held() {
    const NAMES: u64 = 64;
    let device = crate::device::registry::open("host").unwrap();
    let memory = Memory::new(device, Limits::default(), Arc::new(NoSink));
    let cache = KvCache::new(&memory, &config(BLOCKS)).unwrap();
    *cache.state.lock() = filled_state_with(NAMES);
    cache.limit_namespace(1, u64::MAX, 0).unwrap();
    let named = |cache: &KvCache| cache.statistics().indexed_blocks - BLOCKS / 2;
    assert_eq!(named(&cache), NAMES / 2 * 1024, "the names of the other namespace keep theirs");
    let (mut pieces, mut left) = (Vec::new(), NAMES);
    while left > 0 {
        let (took, rid) = timed(|| cache.state.lock().unpin_piece(0, UNPIN_PIECE));
        pieces.push(took);
        left -= u64::from(rid.is_some());
    }
    assert_eq!((named(&cache), pieces.len()), (0, NAMES as usize * 1024 / UNPIN_PIECE));
    pieces.sort_unstable();
    let (most, longest) = (pieces[pieces.len() * 99 / 100], pieces[pieces.len() - 1]);
    println!("names: 99 of 100 holds at most {most} ns, the longest {longest} ns");
    assert!(most <= GOAL_NS, "{most} ns");
}

#[test]
fn a_name_that_is_given_between_two_pieces_of_a_reset_lists_nothing_that_the_next_one_takes() {
    let device = crate::device::registry::open("host").unwrap();
    let memory = Memory::new(device, Limits::default(), Arc::new(NoSink));
    let cache = KvCache::new(&memory, &config(64)).unwrap();
    let bytes = [7; 32];
    let naming = Naming::Keys { bytes: &bytes, key_bytes: 32 };
    let request = Request::new(1, naming, 1);
    let find = || cache.lookups().find(&request).unwrap();
    let lease = find().lease;
    let mut step = cache.step(1).unwrap();
    let admitted = step.apply(&Op::Admit { lease, tokens: 1, lookahead: 0, row: -1, expected_tokens: 0 });
    let target = Target::Id(Id(admitted.sequence));
    assert_eq!(step.apply(&Op::Commit { target, tokens: 1, naming }).blocks_committed, 1);
    drop(step);
    assert_eq!(cache.pin_prefix("late", find().lease).unwrap().blocks, 1);
    let wipe = |state: &mut State| state.reset_stretch(0, 0..64);
    assert_eq!(cache.reset_piece(ResetScope::All, &mut Vec::new(), wipe), 1);
    assert_eq!(cache.prefixes(|_, _, _| {}), 0);
    cache.validate().unwrap();
}

/// How often others had the lock while this was done, if they waited for it.
fn turns(work: impl FnOnce()) -> u64 {
    let before = ways_given();
    work();
    ways_given() - before
}

/// Pins a prompt that was published in namespace 0 under a name.
fn name(cache: &KvCache, name: &str, blocks: u64) {
    let keys: Vec<u8> = (0..blocks).flat_map(|at| [0, at].map(u64::to_le_bytes)).flatten().collect();
    let request = Request::new(0, Naming::Keys { bytes: &keys, key_bytes: 16 }, blocks);
    let lease = cache.lookups().find(&request).unwrap().lease;
    assert_eq!(cache.pin_prefix(name, lease).unwrap().blocks, blocks);
    let step = cache.statistics().last_step + 1;
    assert_eq!(cache.step(step).unwrap().apply(&Op::Release { lease }).status, crate::error::Status::Ok);
    cache.step_done(step, None).unwrap();
}

#[test]
fn work_in_pieces_gives_way_after_each_of_them() {
    const PROMPT: u64 = 2000;
    let settings = CacheConfig { max_namespaces: 2, ..config(2 * PROMPT) };
    let device = crate::device::registry::open("host").unwrap();
    let memory = Memory::new(device, Limits::default(), Arc::new(NoSink));
    let cache = KvCache::new(&memory, &settings).unwrap();
    let publish = |namespace_id: u64, blocks: u64| {
        let keys: Vec<u8> =
            (0..blocks).flat_map(|at| [namespace_id, at].map(u64::to_le_bytes)).flatten().collect();
        let naming = Naming::Keys { bytes: &keys, key_bytes: 16 };
        let request = Request::new(namespace_id, naming, blocks);
        let found = cache.lookups().find(&request).unwrap();
        assert_eq!(found.hit_tokens, 0);
        let steps = cache.statistics().last_step + 1;
        let mut step = cache.step(steps).unwrap();
        let admit =
            Op::Admit { lease: found.lease, tokens: blocks, lookahead: 0, row: -1, expected_tokens: 0 };
        let target = Target::Id(Id(step.apply(&admit).sequence));
        let commit = Op::Commit { target, tokens: blocks, naming };
        assert_eq!(u64::from(step.apply(&commit).blocks_committed), blocks);
        step.apply(&Op::Free { target });
        drop(step);
        cache.step_done(steps, None).unwrap();
    };
    publish(0, PROMPT);
    let check = |what: &str, work: &mut dyn FnMut(), least: u64| {
        let turns = turns(work);
        assert!(turns >= least, "{what}: {turns} turns, at least {least}");
    };
    let pieces = |blocks: u64, piece: u64| blocks / piece;
    check(
        "a snapshot",
        &mut || _ = cache.snapshot(0, usize::MAX, |_, _| {}),
        pieces(PROMPT, EVENT_PIECE as u64),
    );
    check(
        "events",
        &mut || _ = cache.read_events(0, PROMPT as usize, |_, _| {}),
        pieces(PROMPT, EVENT_PIECE as u64),
    );
    let limit = || cache.limit_namespace(0, u64::MAX, PROMPT / 2).unwrap();
    check("a limit", &mut || limit(), pieces(PROMPT, 256) + pieces(PROMPT / 2, 32));
    check("evictions", &mut || _ = cache.evict(0, PROMPT / 4).unwrap(), pieces(PROMPT / 4, 64) - 1);
    for blocks in [PROMPT, 2 * PROMPT] {
        check("a resize", &mut || _ = cache.resize(0, blocks).unwrap(), pieces(PROMPT, 256));
    }
    let reset = || _ = cache.reset(ResetScope::Namespace(0)).unwrap();
    check("a wipe", &mut || reset(), pieces(PROMPT / 4, RESET_PIECE.into()));
    let reset = || _ = cache.reset(ResetScope::All).unwrap();
    check("a reset", &mut || reset(), pieces(2 * PROMPT, RESET_PIECE.into()));
    [(0, 200), (1, 1)].into_iter().for_each(|(id, blocks)| publish(id, blocks));
    check("a list of ids", &mut || _ = cache.namespace_ids(0, 2, |_, _| {}), 1);
    check("a place for a third namespace", &mut || publish(2, 1), pieces(200, 32));
    // What a name held is cached when it goes, and as much of it goes as a limit says.
    for (what, limit) in [("a name", u64::MAX), ("a name above a limit", PROMPT / 4)] {
        for is_wipe in [false, true] {
            cache.reset(ResetScope::All).unwrap();
            cache.limit_namespace(0, u64::MAX, u64::MAX).unwrap();
            publish(0, PROMPT);
            name(&cache, "system", PROMPT);
            cache.limit_namespace(0, u64::MAX, limit).unwrap();
            let go = || match is_wipe {
                false => cache.unpin_prefix("system").unwrap(),
                true => _ = cache.reset(ResetScope::Namespace(0)).unwrap(),
            };
            let wiped = if is_wipe { PROMPT.min(limit) } else { 0 };
            check(what, &mut || go(), pieces(PROMPT, 32) + pieces(wiped, RESET_PIECE.into()));
            assert_eq!(cache.prefixes(|_, _, _| {}), 0);
            assert_eq!(u64::from(cache.statistics().indexed_blocks as u32), PROMPT.min(limit) - wiped);
            cache.validate().unwrap();
        }
    }
}
