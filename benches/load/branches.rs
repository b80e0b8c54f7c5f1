//! Forks and rollbacks of one long sequence: what each costs by itself, inside the cache.

use std::sync::Arc;

use kavern::cache::{
    CacheConfig, Change, Content, GroupConfig, KvCache, Naming, Op, OpResult, Request, Target,
};
use kavern::device::registry;
use kavern::error::Status;
use kavern::event::NoSink;
use kavern::format::{BlockShape, Layout};
use kavern::memory::{Limits, Memory};
use kavern::sys::clock::now_ns;
use kavern::types::{Dtype, Id};

use crate::blocks;

/// Tokens of the sequence that is forked.
pub(crate) const TOKENS: u64 = 1 << 17;
const BLOCK_TOKENS: u32 = 16;

pub(crate) struct Branches {
    cache: KvCache,
    parent: u64,
    step: u64,
}

fn target(sequence: u64) -> Target {
    Target::Id(Id(sequence))
}

fn good(result: OpResult) -> OpResult {
    assert_eq!(result.status, Status::Ok, "an operation of the load was refused");
    result
}

impl Branches {
    pub(crate) fn new() -> Self {
        let device = registry::open("host").expect("the host opens");
        let memory = Memory::new(device, Limits::default(), Arc::new(NoSink));
        let base = blocks::config(2 * TOKENS / u64::from(BLOCK_TOKENS));
        let shape = BlockShape {
            layers: 1,
            kv_heads: 1,
            head_dim: 8,
            dtype: Dtype::F16,
            block_tokens: BLOCK_TOKENS,
            layout: Layout::Nhd,
        };
        let group = GroupConfig::new(Content::Attention(shape), BLOCK_TOKENS);
        let config = CacheConfig {
            groups: vec![group],
            max_sequence_tokens: TOKENS + 1024,
            max_batch_tokens: TOKENS as u32,
            metadata_only: false,
            ..base
        };
        let cache = KvCache::new(&memory, &config).expect("the cache is small");
        let request = Request { no_read: true, ..Request::new(1, Naming::Tokens(&[], &[]), 0) };
        let lease = cache.lookups().find(&request).expect("a lease is free").lease;
        let admit = Op::Admit { lease, tokens: TOKENS - 5, lookahead: 0, row: -1, expected_tokens: 0 };
        let parent = good(cache.step(1).expect("the first step").apply(&admit)).sequence;
        cache.step_done(1, None).expect("the step is open");
        Self { cache, parent, step: 2 }
    }

    /// Forks all tokens and frees the child; answers the nanoseconds of the fork.
    pub(crate) fn fork(&mut self) -> u64 {
        let mut step = self.cache.step(self.step).expect("steps complete at once");
        let fork = Op::Change { target: target(self.parent), change: Change::Fork { tokens: 0, row: -1 } };
        let start = now_ns();
        let child = step.apply(&fork);
        let elapsed = now_ns() - start;
        good(step.apply(&Op::Free { target: target(good(child).sequence) }));
        elapsed
    }

    /// Appends eight tokens, of which a rollback drops six; answers the nanoseconds of the rollback.
    pub(crate) fn rollback(&mut self) -> u64 {
        let mut step = self.cache.step(self.step).expect("steps complete at once");
        good(step.apply(&Op::Append { target: target(self.parent), tokens: 8, lookahead: 0 }));
        let rollback = |tokens| Op::Change {
            target: target(self.parent),
            change: Change::Rollback { tokens, lookahead: 0, open_tokens: &[], extras: &[] },
        };
        let start = now_ns();
        let result = step.apply(&rollback(TOKENS - 3));
        let elapsed = now_ns() - start;
        good(result);
        good(step.apply(&rollback(TOKENS - 5)));
        drop(step);
        // The block that went waits for its step.
        self.cache.step_done(self.step, None).expect("the step is open");
        self.step += 1;
        elapsed
    }
}
