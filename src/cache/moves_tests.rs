//! What only the inside of a cache shows of moves: who holds them up, and how long a step looks for them.

use std::sync::Arc;

use crate::cache::kv_cache::KvCache;
use crate::cache::lookup::{Naming, Request};
use crate::cache::{CacheConfig, Content, GroupConfig, Op, Target};
use crate::device::registry;
use crate::event::NoSink;
use crate::memory::{Limits, Memory};
use crate::sys::clock::thread_ns;
use crate::types::Id;

/// A step may spend so much on moves, in time of the thread.
const GOAL_NS: u64 = 1_000_000;

fn cache(blocks: u64) -> KvCache {
    let content = Content::Opaque { block_bytes: 16 };
    let group = GroupConfig::new(content, 1);
    let config = CacheConfig {
        max_sequences: 64,
        max_sequence_tokens: blocks,
        max_batch_tokens: blocks as u32,
        max_leases: 4,
        steps_in_flight: 2,
        metadata_only: true,
        ..CacheConfig::new(vec![group], blocks)
    };
    let memory = Memory::new(registry::open("host").unwrap(), Limits::default(), Arc::new(NoSink));
    KvCache::new(&memory, &config).unwrap()
}

/// Two sequences of so many blocks each in step 1, of which the one that has the low blocks ends with it; then only as
/// many blocks are left. Answers the other.
fn with_high_blocks(cache: &KvCache, count: u64) -> Id {
    let mut sequences = [0; 2];
    for sequence in &mut sequences {
        let request = Request::new(1, Naming::Tokens(&[], &[]), 0);
        let lease = cache.lookups().find(&request).unwrap().lease;
        let admit = Op::Admit { lease, tokens: count, lookahead: 0, row: -1, expected_tokens: 0 };
        *sequence = cache.step(1).unwrap().apply(&admit).sequence;
    }
    cache.step(1).unwrap().apply(&Op::Free { target: Target::Id(Id(sequences[0])) });
    cache.step_done(1, None).unwrap();
    assert_eq!(u64::from(cache.resize(0, count).unwrap().held_blocks), count);
    Id(sequences[1])
}

#[test]
fn nothing_moves_while_a_reset_walks_over_the_slots() {
    let cache = cache(16);
    with_high_blocks(&cache, 8);
    drop(cache.step(2).unwrap());
    let mut state = cache.state();
    state.mover.resets += 1;
    state.move_blocks();
    assert_eq!(state.statistics().moved_blocks, 0);
    state.mover.resets -= 1;
    state.move_blocks();
    assert_eq!(state.statistics().moved_blocks, 8);
    drop(state);
    cache.step_done(2, None).unwrap();
    cache.validate().unwrap();
}

#[test]
fn a_step_spends_a_bounded_time_on_moves_however_much_is_held() {
    let cache = cache(1 << 20);
    let sequence = with_high_blocks(&cache, 1 << 19);
    // Shared with a child, every block needs a look at all rows.
    let fork = crate::cache::Change::Fork { tokens: 0, row: -1 };
    let mut took = Vec::new();
    for step in 2..40 {
        let mut session = cache.step(step).unwrap();
        if step == 20 {
            session.apply(&Op::Change { target: Target::Id(sequence), change: fork });
        }
        drop(session);
        let mut state = cache.state();
        let start = thread_ns();
        state.move_blocks();
        took.push(thread_ns() - start);
        drop(state);
        cache.tables(step, crate::device::Stream::DEFAULT, |_| Ok(())).unwrap();
        cache.step_done(step, None).unwrap();
    }
    assert_eq!(cache.statistics().moved_blocks, 38 * super::MOVES_MOST as u64);
    took.sort_unstable();
    assert!(took[19] < GOAL_NS, "{took:?} ns");
}
