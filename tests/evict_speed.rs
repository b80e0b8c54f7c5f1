//! What an eviction costs in a cache of a million blocks with everything on: the adaptive policy, priorities, times to
//! live, runs, events; by the clock of the wall, which is what a caller waits.
//!
//! The bound is measured in the same run, in turns with the evictions: [`Walk`], a plain chase through as much memory
//! as the cache's bookkeeping takes, of so many touches that its median is the eviction's. Three gates:
//! - the median. The goal of 10 us is 156 ns for each of 64 blocks: one wait for memory. Where one touch of the walk
//!   takes longer than that, the goal is stretched by as much.
//! - the 99th percentile: ten times the goal, or one and a half times the walk's in this run. A machine that takes
//!   the processor away does so from whoever runs, and both run equally long, so both have such tails; of 10,000 calls
//!   each the 99th percentile rests on a hundred, whose count is sure to a tenth, and tails as long as these (one call
//!   in 50 to 1,000 over 100 us) then differ by less than half between two equal programs. A tail of the cache's own
//!   (a sweep, a rehash, a page taken) is the eviction's alone and is not hidden by it.
//! - the eviction's own 99th percentile, without what the machine does to both: ten times the goal, on any machine. It
//!   is the least time by whose distance from the median at most one eviction in a hundred more is late than walks are.

use std::io::Write;
use std::sync::Arc;

use fastrand::Rng;
use kavern::cache::{
    CacheConfig, Content, GroupConfig, KvCache, Naming, Op, Request, Scrub, Stretch, Target,
};
use kavern::device::registry;
use kavern::error::Status;
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory};
use kavern::sys::clock::now_ns;
use kavern::sys::reserve::filled;
use kavern::types::Id;

/// Blocks of a prompt.
const PROMPT: usize = 64;
/// Blocks that one call evicts.
const EVICTED: u64 = 64;
/// Goal for a call at a million blocks, in nanoseconds.
const GOAL_NS: u64 = 10_000;
/// The same for one block: a wait for memory.
const GOAL_OF_BLOCK_NS: f64 = GOAL_NS as f64 / EVICTED as f64;
/// No 99th percentile is gated below this.
const LEAST_GATE_NS: u64 = 10 * GOAL_NS;
/// What the tails of two equal programs may differ by.
const EQUAL_TAILS: f64 = 1.5;
/// Calls that are timed, and calls before them from which the walk gets its length.
const TIMED: usize = 10_000;
const CALIBRATING: usize = 500;

fn cache(blocks: u64, policy: &str) -> KvCache {
    let config = CacheConfig {
        max_sequences: 4,
        max_sequence_tokens: PROMPT as u64,
        max_batch_tokens: 2 * PROMPT as u32,
        max_leases: 4,
        steps_in_flight: 1,
        scrub: Scrub::TenantChange,
        event_capacity: 1 << 12,
        policy: policy.to_owned(),
        metadata_only: true,
        exact_order: false,
        ..CacheConfig::new(vec![GroupConfig::new(Content::Opaque { block_bytes: 16 }, 1)], blocks)
    };
    let device = registry::open("host").expect("the host opens");
    let memory = Memory::new(device, Limits::default(), Arc::new(NoSink));
    KvCache::new(&memory, &config).expect("the configuration is good")
}

/// One prompt of 64 blocks comes and goes; one in four gets a priority, half of those for a while.
fn request(cache: &KvCache, step: u64, prompt: u64, random: &mut Rng) {
    let keys: Vec<u8> =
        (0..PROMPT as u64).flat_map(|at| (prompt * PROMPT as u64 + at + 1).to_le_bytes()).collect();
    let request = Request {
        namespace_id: 1,
        adapter_id: 0,
        salt: b"",
        naming: Naming::Keys { bytes: &keys, key_bytes: 8 },
        token_count: PROMPT as u64,
        no_read: false,
        no_store: false,
        drop_last: false,
        keep_one_token: false,
        sizing: Default::default(),
    };
    let found = cache.lookups().find(&request).expect("a lease is free");
    let rest = PROMPT as u64 - found.hit_tokens;
    let mut session = cache.step_at(step, step).expect("steps complete at once");
    let admitted = session.apply(&Op::Admit {
        lease: found.lease,
        tokens: rest,
        lookahead: 0,
        row: -1,
        expected_tokens: 0,
    });
    assert_eq!(admitted.status, Status::Ok);
    let target = Target::Id(Id(admitted.sequence));
    let bytes = &keys[8 * found.hit_tokens as usize..];
    let commit = Op::Commit { target, tokens: rest, naming: Naming::Keys { bytes, key_bytes: 8 } };
    assert_eq!(session.apply(&commit).status, Status::Ok);
    if random.u8(0..4) == 0 {
        let stretch = Stretch { target, offset: 0, tokens: 0 };
        let ttl_ms = if random.bool() { 0 } else { random.u64(1..1_000_000) };
        let retain = Op::Retain { stretch, priority: random.u8(0..=100), ttl_ms };
        assert_eq!(session.apply(&retain).status, Status::Ok);
    }
    assert_eq!(session.apply(&Op::Free { target }).status, Status::Ok);
    drop(session);
    cache.step_done(step, None).expect("the step is open");
}

/// The bound: each touch waits for the one before it, in lines that nothing can guess.
struct Walk {
    words: Vec<u64>,
    at: u64,
}

impl Walk {
    fn new(bytes: u64) -> Self {
        let mut random = Rng::with_seed(3);
        // Made as the cache's tables are, so that it has pages of the same size.
        let mut words = filled(bytes as usize / 8, 0).expect("what the cache takes fits a second time");
        words.fill_with(|| random.u64(..));
        Self { words, at: 1 }
    }

    /// So many touches; answers the nanoseconds that they took.
    fn time(&mut self, touches: usize) -> u64 {
        let (start, count) = (now_ns(), self.words.len() as u128);
        for _ in 0..touches {
            let place = (u128::from(self.at) * count) >> 64;
            self.at = (self.at ^ self.words[place as usize]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        std::hint::black_box(self.at);
        now_ns() - start
    }
}

/// Times in rising order.
struct Times(Vec<u64>);

impl Times {
    fn of(mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    fn percentile(&self, percent: usize) -> u64 {
        self.0[(self.0.len() - 1) * percent / 100]
    }

    fn over(&self, ns: u64) -> usize {
        self.0.len() - self.0.partition_point(|&time| time <= ns)
    }

    /// The least time by whose distance from the median at most one in a hundred more of these are late than of the
    /// others.
    fn own_p99(&self, others: &Self) -> u64 {
        let (median, of_others) = (self.percentile(50), others.percentile(50));
        let most = self.0.len() / 100;
        let is_enough = |ns: &&u64| self.over(**ns) <= others.over(**ns - median + of_others) + most;
        // The gap need not fall steadily: from the longest down, until it is too wide.
        let late = self.0.iter().rev().take_while(|ns| **ns > median);
        late.take_while(is_enough).last().copied().unwrap_or(median)
    }
}

/// What evictions of 64 blocks took, and the walks between them.
struct Figures {
    evictions: Times,
    walks: Times,
    touches: usize,
}

/// Evicts 64 blocks again and again from a full cache that goes on serving, in turns with the walk.
fn evict(blocks: u64, policy: &str) -> Figures {
    let cache = cache(blocks, policy);
    let mut walk = Walk::new(cache.statistics().metadata_bytes);
    let mut random = Rng::with_seed(9);
    let prompts = 2 * blocks / PROMPT as u64;
    let mut step = 0;
    let mut serve = |count: u64, random: &mut Rng| {
        for _ in 0..count {
            step += 1;
            // Some come again often, most do not.
            let prompt = if random.bool() { random.u64(0..prompts / 8) } else { random.u64(0..prompts) };
            request(&cache, step, prompt, random);
        }
    };
    serve(2 * prompts, &mut random);
    let mut evict_once = |random: &mut Rng| {
        serve(2, random);
        let start = now_ns();
        let evicted = cache.evict(0, EVICTED).expect("the group exists");
        let took = now_ns() - start;
        assert_eq!(evicted, EVICTED);
        took
    };
    let first: Vec<_> =
        (0..CALIBRATING).map(|_| (evict_once(&mut random), walk.time(EVICTED as usize))).collect();
    let (evictions, walks): (Vec<_>, Vec<_>) = first.into_iter().unzip();
    let (eviction, of_64) = (Times::of(evictions).percentile(50), Times::of(walks).percentile(50));
    let touches = (EVICTED * eviction).div_ceil(of_64.max(1)) as usize;
    let timed: Vec<_> = (0..TIMED).map(|_| (evict_once(&mut random), walk.time(touches))).collect();
    cache.validate().expect("every invariant holds");
    let (evictions, walks) = timed.into_iter().unzip();
    Figures { evictions: Times::of(evictions), walks: Times::of(walks), touches }
}

#[test]
fn evicting_64_blocks_of_a_million_takes_microseconds_with_everything_on() {
    for policy in ["adaptive", "lru"] {
        for blocks in [1 << 12, 1 << 20] {
            let Figures { evictions, walks, touches } = evict(blocks, policy);
            let wait_ns = walks.percentile(50) as f64 / touches as f64;
            let [p50, p99] = [50, 99].map(|percent| evictions.percentile(percent));
            let [walk_p50, walk_p99] = [50, 99].map(|percent| walks.percentile(percent));
            let own_p99 = evictions.own_p99(&walks);
            let text = format!(
                "{policy}, {EVICTED} of {blocks} blocks: p50 {p50} ns, p99 {p99}, own p99 {own_p99}; a walk of \
                 {touches} touches p50 {walk_p50}, p99 {walk_p99}; over 100 us {} evictions and {} walks of {TIMED}\n",
                evictions.over(LEAST_GATE_NS),
                walks.over(LEAST_GATE_NS),
            );
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
            if blocks < 1 << 20 {
                // The goal is one of large caches; what lies in the processor's own cache is only printed.
                continue;
            }
            let most_p50 = GOAL_NS as f64 * (wait_ns / GOAL_OF_BLOCK_NS).max(1.0);
            let most_p99 = (LEAST_GATE_NS as f64).max(EQUAL_TAILS * walk_p99 as f64);
            assert!(p50 as f64 <= most_p50, "{policy}: p50 {p50} ns, at most {most_p50:.0}");
            assert!(p99 as f64 <= most_p99, "{policy}: p99 {p99} ns, at most {most_p99:.0}");
            assert!(own_p99 <= LEAST_GATE_NS, "{policy}: own p99 {own_p99} ns, at most {LEAST_GATE_NS}");
        }
    }
}
