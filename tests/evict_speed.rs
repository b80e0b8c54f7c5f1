//! What an eviction costs in a cache of a million blocks, by the clock of the wall, which is what a caller waits: with
//! what most caches have on (priorities, times to live, runs, events), and with what makes it touch more: nothing that
//! is served between two evictions, blocks of many namespaces, tokens and pins, partial hits, the index on the device.
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
//!
//! One case may take twice as much: victims that came alone lie alone, each with neighbours of its own in every list.

use std::io::Write;
use std::sync::Arc;

use fastrand::Rng;
use kavern::cache::{
    CacheConfig, Content, GroupConfig, HashKind, IndexOptions, KvCache, Naming, Op, Request, Scrub, Stretch,
    Target,
};
use kavern::device::{Device, Stream, registry};
use kavern::error::Status;
use kavern::event::NoSink;
use kavern::format::{BlockShape, Layout};
use kavern::memory::{Limits, Memory};
use kavern::sys::clock::now_ns;
use kavern::sys::reserve::filled;
use kavern::types::{Dtype, Id};

/// Blocks of the longest prompt.
const PROMPT: usize = 64;
/// Tokens in a block where tokens name it.
const BLOCK_TOKENS: usize = 4;
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
/// Calls before those that are timed, from which the walk gets its length.
const CALIBRATING: usize = 500;

/// What is on, and what is done. Priorities, times to live and events are on in all.
struct Case {
    name: &'static str,
    /// How often the first case's gates it may take.
    most_goals: f64,
    /// Calls that are timed.
    timed: usize,
    /// Blocks of a prompt.
    prompt: usize,
    namespaces: u64,
    /// Prompts between two evictions.
    served: u64,
    /// XXH3 names blocks and tokens are compared, and some prompts are pinned; otherwise callers name blocks.
    has_tokens: bool,
    partial_hits: bool,
    device_index: bool,
}

const PLAIN: Case = Case {
    name: "one namespace, refilled",
    most_goals: 1.0,
    timed: 10_000,
    prompt: PROMPT,
    namespaces: 1,
    served: 2,
    has_tokens: false,
    partial_hits: false,
    device_index: false,
};

/// What has more on than most caches, or less beside it that pays for what an eviction puts off.
const OTHER: Case = Case { timed: 3000, ..PLAIN };

const CASES: &[Case] = &[
    PLAIN,
    Case { name: "nothing refilled", served: 0, ..OTHER },
    Case {
        name: "prompts of one block of 256 namespaces",
        most_goals: 2.0,
        prompt: 1,
        namespaces: 256,
        served: 1,
        ..OTHER
    },
    Case { name: "tokens and pins", has_tokens: true, ..OTHER },
    Case { name: "and partial hits", has_tokens: true, partial_hits: true, ..OTHER },
    Case { name: "and the index on the device", has_tokens: true, device_index: true, ..OTHER },
    ALL,
    Case { name: "all of it, nothing refilled", served: 0, ..ALL },
];

const ALL: Case = Case {
    name: "all of it, of 256 namespaces",
    namespaces: 256,
    has_tokens: true,
    partial_hits: true,
    device_index: true,
    ..OTHER
};

/// A cache that prompts come to.
struct Served {
    case: &'static Case,
    cache: KvCache,
    device: Arc<dyn Device>,
    step: u64,
    random: Rng,
}

impl Served {
    fn new(case: &'static Case, blocks: u64, policy: &str) -> Self {
        let shape = BlockShape {
            layers: 1,
            kv_heads: 1,
            head_dim: 8,
            dtype: Dtype::F16,
            block_tokens: BLOCK_TOKENS as u32,
            layout: Layout::Nhd,
        };
        let group = match case.has_tokens {
            true => GroupConfig::new(Content::Attention(shape), BLOCK_TOKENS as u32),
            false => GroupConfig::new(Content::Opaque { block_bytes: 16 }, 1),
        };
        let config = CacheConfig {
            max_sequences: 4,
            max_sequence_tokens: (PROMPT * BLOCK_TOKENS) as u64,
            max_batch_tokens: 2 * (PROMPT * BLOCK_TOKENS) as u32,
            max_leases: 4,
            max_namespaces: 2 * case.namespaces as u32,
            steps_in_flight: 1,
            hash: HashKind::Xxh3,
            scrub: Scrub::TenantChange,
            event_capacity: 1 << 12,
            policy: policy.to_owned(),
            metadata_only: !case.device_index,
            index: IndexOptions { device: case.device_index, chunks: false },
            partial_hits: case.partial_hits,
            exact_order: false,
            ..CacheConfig::new(vec![group], blocks)
        };
        let device = registry::open("host").expect("the host opens");
        let memory = Memory::new(Arc::clone(&device), Limits::default(), Arc::new(NoSink));
        let cache = KvCache::new(&memory, &config).expect("the configuration is good");
        Self { case, cache, device, step: 0, random: Rng::with_seed(9) }
    }

    /// One prompt comes and goes; one in four gets a priority, half of those for a while.
    fn serve(&mut self, prompt: u64) {
        let Self { case, cache, step, random, .. } = self;
        *step += 1;
        let each = if case.has_tokens { BLOCK_TOKENS } else { 1 };
        let first = prompt * (PROMPT * each) as u64 + 1;
        let names = first..first + (case.prompt * each) as u64;
        let keys: Vec<u8> = names.clone().flat_map(u64::to_le_bytes).collect();
        let tokens: Vec<i32> = names.map(|token| token as i32).collect();
        let naming = |from: u64| match case.has_tokens {
            true => Naming::Tokens(&tokens[from as usize..], &[]),
            false => Naming::Keys { bytes: &keys[8 * from as usize..], key_bytes: 8 },
        };
        let request = Request::new(
            1 + (prompt.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % case.namespaces,
            naming(0),
            tokens.len() as u64,
        );
        let found = cache.lookups().find(&request).expect("a lease is free");
        let rest = tokens.len() as u64 - found.hit_tokens;
        let mut session = cache.step_at(*step, *step).expect("steps complete at once");
        let mut apply = |op: &Op<'_>| {
            let result = session.apply(op);
            assert_eq!(result.status, Status::Ok);
            result
        };
        let admit = Op::Admit { lease: found.lease, tokens: rest, lookahead: 0, row: -1, expected_tokens: 0 };
        let target = Target::Id(Id(apply(&admit).sequence));
        apply(&Op::Commit { target, tokens: rest, naming: naming(found.hit_tokens) });
        let stretch = Stretch { target, offset: 0, tokens: 0 };
        if random.u8(0..4) == 0 {
            let ttl_ms = if random.bool() { 0 } else { random.u64(1..1_000_000) };
            apply(&Op::Retain { stretch, priority: random.u8(0..=100), ttl_ms });
        }
        // Once each, so that at most a sixteenth of the blocks are.
        if case.has_tokens && prompt.is_multiple_of(32) && found.hit_tokens == 0 {
            apply(&Op::Pin { stretch });
        }
        apply(&Op::Free { target });
        drop(session);
        let stream = Stream::DEFAULT;
        if case.device_index {
            cache.tables(*step, stream, |_| Ok(())).expect("the step is open");
        }
        cache.step_done(*step, case.device_index.then_some(stream)).expect("the step is open");
        if case.device_index {
            self.device.stream_synchronize(stream).expect("the host does what it is given");
            // As an engine does: the blocks of the step come back here, and not in the next eviction.
            cache.poll().expect("the device is well");
        }
    }

    /// So many prompts of twice as many as the cache holds: some come again often, most do not.
    fn serve_some(&mut self, count: u64, prompts: u64) {
        for _ in 0..count {
            let most = if self.random.bool() { prompts / 8 } else { prompts };
            let prompt = self.random.u64(0..most);
            self.serve(prompt);
        }
    }
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

/// Evicts 64 blocks again and again from a full cache, in turns with the walk.
fn evict(case: &'static Case, blocks: u64, policy: &str) -> Figures {
    let mut served = Served::new(case, blocks, policy);
    let mut walk = Walk::new(served.cache.statistics().metadata_bytes);
    let prompts = 2 * blocks / case.prompt as u64;
    served.serve_some(2 * prompts, prompts);
    let evict_once = |served: &mut Served| {
        served.serve_some(case.served, prompts);
        let start = now_ns();
        let evicted = served.cache.evict(0, EVICTED).expect("the group exists");
        let took = now_ns() - start;
        assert_eq!(evicted, EVICTED);
        took
    };
    let first: Vec<_> =
        (0..CALIBRATING).map(|_| (evict_once(&mut served), walk.time(EVICTED as usize))).collect();
    let (evictions, walks): (Vec<_>, Vec<_>) = first.into_iter().unzip();
    let (eviction, of_64) = (Times::of(evictions).percentile(50), Times::of(walks).percentile(50));
    let touches = (EVICTED * eviction).div_ceil(of_64.max(1)) as usize;
    let timed: Vec<_> = (0..case.timed).map(|_| (evict_once(&mut served), walk.time(touches))).collect();
    served.cache.validate().expect("every invariant holds");
    let (evictions, walks) = timed.into_iter().unzip();
    Figures { evictions: Times::of(evictions), walks: Times::of(walks), touches }
}

#[test]
fn evicting_64_blocks_of_a_million_takes_microseconds_with_everything_on() {
    // The goal is one of large caches; what lies in the processor's own cache is only printed, and only once.
    let small = std::iter::once((&PLAIN, 1 << 12));
    let mut late = Vec::new();
    for (case, blocks) in small.chain(CASES.iter().map(|case| (case, 1 << 20))) {
        for policy in ["adaptive", "lru"] {
            let Figures { evictions, walks, touches } = evict(case, blocks, policy);
            let wait_ns = walks.percentile(50) as f64 / touches as f64;
            let [p50, p99] = [50, 99].map(|percent| evictions.percentile(percent));
            let [walk_p50, walk_p99] = [50, 99].map(|percent| walks.percentile(percent));
            let own_p99 = evictions.own_p99(&walks);
            let name = format!("{policy}, {}", case.name);
            let text = format!(
                "{name}, {EVICTED} of {blocks} blocks: p50 {p50} ns, p99 {p99}, own p99 {own_p99}; a walk of \
                 {touches} touches p50 {walk_p50}, p99 {walk_p99}; over 100 us {} evictions and {} walks of {}\n",
                evictions.over(LEAST_GATE_NS),
                walks.over(LEAST_GATE_NS),
                case.timed,
            );
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
            if blocks < 1 << 20 {
                continue;
            }
            let most_p50 = case.most_goals * GOAL_NS as f64 * (wait_ns / GOAL_OF_BLOCK_NS).max(1.0);
            let most_p99 = (case.most_goals * LEAST_GATE_NS as f64).max(EQUAL_TAILS * walk_p99 as f64);
            let most_own = case.most_goals * LEAST_GATE_NS as f64;
            let gates = [("p50", p50, most_p50), ("p99", p99, most_p99), ("own p99", own_p99, most_own)];
            let late_ones = gates.into_iter().filter(|&(_, took, most)| took as f64 > most);
            late.extend(
                late_ones.map(|(what, took, most)| format!("{name}: {what} {took} ns, at most {most:.0}")),
            );
        }
    }
    assert!(late.is_empty(), "{late:#?}");
}
