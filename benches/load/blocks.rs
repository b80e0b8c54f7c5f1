//! Allocate and free of blocks inside a step: a sequence gets many at once and lets them go, in an opaque cache.

use std::sync::Arc;

use kavern::cache::{CacheConfig, Content, GroupConfig, KvCache, Naming, Op, Request, Scrub, Target};
use kavern::device::registry;
use kavern::error::Status;
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory};
use kavern::types::Id;

pub(crate) struct Blocks {
    cache: KvCache,
    step: u64,
}

pub(crate) fn config(blocks: u64) -> CacheConfig {
    CacheConfig {
        max_sequences: 4,
        max_sequence_tokens: blocks,
        max_batch_tokens: blocks as u32,
        max_leases: 4,
        steps_in_flight: 2,
        scrub: Scrub::TenantChange,
        metadata_only: true,
        exact_order: false,
        ..CacheConfig::new(vec![GroupConfig::new(Content::Opaque { block_bytes: 64 }, 1)], blocks)
    }
}

impl Blocks {
    pub(crate) fn new(blocks: u64) -> Self {
        let device = registry::open("host").expect("the host opens");
        let memory = Memory::new(device, Limits::default(), Arc::new(NoSink));
        Self { cache: KvCache::new(&memory, &config(blocks)).expect("the cache is small"), step: 0 }
    }

    /// Admits a sequence of `count` blocks and frees it in the same step.
    pub(crate) fn cycle(&mut self, count: u64) -> u64 {
        self.step += 1;
        let request = Request { no_read: true, ..Request::new(1, Naming::Tokens(&[], &[]), 0) };
        let lease = self.cache.lookups().find(&request).expect("a lease is free").lease;
        let mut step = self.cache.step(self.step).expect("steps complete at once");
        let admitted =
            step.apply(&Op::Admit { lease, tokens: count, lookahead: 0, row: -1, expected_tokens: 0 });
        assert_eq!(admitted.status, Status::Ok);
        let free = step.apply(&Op::Free { target: Target::Id(Id(admitted.sequence)) });
        assert_eq!(free.status, Status::Ok);
        drop(step);
        self.cache.step_done(self.step, None).expect("the step is open");
        self.step
    }
}
