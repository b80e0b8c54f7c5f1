//! A cache on a device of its own with short words for what the tests do; checks every invariant when it goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};

use kavern::cache::{
    CacheConfig, CacheStatistics, Content, Extra, GroupConfig, KvCache, Naming, Op, OpResult, Request, Target,
};
use kavern::device::{Device, DeviceSlice, Stream, registry};
use kavern::error::{Result, Status};
use kavern::event::NoSink;
use kavern::format::{BlockShape, Layout};
use kavern::memory::{Limits, Memory};
use kavern::types::{Dtype, Id};

/// Tells a thread's loop to end however the scope that waits for it is left: a failed check must not hang.
pub(super) struct Stop<'a>(pub(super) &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A group of full attention with small blocks.
pub(super) fn group(block_tokens: u32) -> GroupConfig {
    shaped(BlockShape {
        layers: 1,
        kv_heads: 1,
        head_dim: 4,
        dtype: Dtype::F16,
        block_tokens,
        layout: Layout::Nhd,
    })
}

pub(super) fn shaped(shape: BlockShape) -> GroupConfig {
    GroupConfig::new(Content::Attention(shape), shape.block_tokens)
}

pub(super) fn opaque(block_tokens: u32, block_bytes: u64) -> GroupConfig {
    GroupConfig::new(Content::Opaque { block_bytes }, block_tokens)
}

/// Modest limits; tests change what they are about.
pub(super) fn config(groups: Vec<GroupConfig>, blocks: u64) -> CacheConfig {
    CacheConfig::new(groups, blocks)
}

/// The request of a prompt in namespace 1.
pub(super) fn ask(tokens: &[i32]) -> Request<'_> {
    ask_with(tokens, &[])
}

/// The request of a prompt with what else its tokens depend on.
pub(super) fn ask_with<'a>(tokens: &'a [i32], extras: &'a [Extra]) -> Request<'a> {
    Request::new(1, Naming::Tokens(tokens, extras), tokens.len() as u64)
}

/// The request of caller-chained keys, each for one link of `link_tokens` tokens.
pub(super) fn ask_keys(bytes: &[u8], key_bytes: u32, link_tokens: u64) -> Request<'_> {
    let links = bytes.len() as u64 / u64::from(key_bytes);
    Request { naming: Naming::Keys { bytes, key_bytes }, token_count: links * link_tokens, ..ask(&[]) }
}

/// Tokens that are unlike those of any other seed.
pub(super) fn prompt(seed: i32, count: usize) -> Vec<i32> {
    (0..count as i32).map(|at| seed * 100_000 + at).collect()
}

/// What a lookup found.
#[derive(Debug)]
pub(super) struct Hit {
    pub(super) lease: Id,
    pub(super) tokens: u64,
    pub(super) blocks: Vec<i32>,
}

pub(super) fn lookup(cache: &KvCache, request: &Request<'_>) -> Result<Hit> {
    let mut lookups = cache.lookups();
    let found = lookups.find(request)?;
    let blocks: Vec<i32> = lookups.blocks(found.lease)?.collect();
    assert_eq!(blocks.len() as u64, found.block_count);
    Ok(Hit { lease: found.lease, tokens: found.hit_tokens, blocks })
}

/// The status of a call that must be refused.
#[track_caller]
pub(super) fn refused<T>(result: Result<T>) -> Status {
    match result {
        Ok(_) => panic!("the call must be refused"),
        Err(error) => {
            assert!(!error.text.is_empty());
            error.status
        }
    }
}

/// A cache, its device and its steps.
pub(super) struct Bench {
    pub(super) cache: Arc<KvCache>,
    pub(super) memory: Arc<Memory>,
    pub(super) device: Arc<dyn Device>,
    pub(super) stream: Stream,
    /// The newest step.
    pub(super) step: u64,
}

impl Bench {
    pub(super) fn new(config: &CacheConfig) -> Self {
        let device = registry::open("host").unwrap();
        let memory = Memory::new(Arc::clone(&device), Limits::default(), Arc::new(NoSink));
        Self::of(memory, config)
    }

    pub(super) fn of(memory: Arc<Memory>, config: &CacheConfig) -> Self {
        let device = Arc::clone(memory.device());
        let stream = device.stream_create().unwrap();
        let cache = Arc::new(KvCache::new(&memory, config).unwrap());
        Self { cache, memory, device, stream, step: 0 }
    }

    /// One group of blocks of this many tokens.
    pub(super) fn simple(block_tokens: u32, blocks: u64) -> Self {
        Self::new(&config(vec![group(block_tokens)], blocks))
    }

    pub(super) fn look(&self, request: &Request<'_>) -> Hit {
        // Whatever a cache went through, a probe answers what the match then finds.
        let probed = self.cache.probe(request).unwrap();
        let hit = lookup(&self.cache, request).unwrap();
        assert_eq!(probed, hit.tokens, "{request:?}");
        hit
    }

    /// How many tokens would be found; holds nothing afterwards.
    pub(super) fn hits(&mut self, request: &Request<'_>) -> u64 {
        let hit = self.look(request);
        self.release(hit.lease);
        hit.tokens
    }

    /// Begins the next step.
    pub(super) fn begin(&mut self) {
        self.step += 1;
        drop(self.cache.step(self.step).unwrap());
    }

    pub(super) fn apply(&mut self, op: &Op<'_>) -> OpResult {
        if self.step == 0 {
            self.step = 1;
        }
        self.cache.step(self.step).unwrap().apply(op)
    }

    #[track_caller]
    pub(super) fn good(&mut self, op: &Op<'_>) -> OpResult {
        let result = self.apply(op);
        assert_eq!(result.status, Status::Ok, "{op:?}");
        result
    }

    #[track_caller]
    pub(super) fn admit(&mut self, lease: Id, tokens: u64) -> OpResult {
        self.good(&Op::Admit { lease, tokens, lookahead: 0, row: -1, expected_tokens: 0 })
    }

    #[track_caller]
    pub(super) fn append(&mut self, sequence: u64, tokens: u64) -> OpResult {
        self.good(&Op::Append { target: Target::Id(Id(sequence)), tokens, lookahead: 0 })
    }

    #[track_caller]
    pub(super) fn commit(&mut self, sequence: u64, ids: &[i32]) -> OpResult {
        self.good(&commit(sequence, ids, &[]))
    }

    #[track_caller]
    pub(super) fn free(&mut self, sequence: u64) {
        self.good(&Op::Free { target: Target::Id(Id(sequence)) });
    }

    #[track_caller]
    pub(super) fn release(&mut self, lease: Id) {
        if self.step == 0 || self.cache.statistics().steps_in_flight == 0 {
            self.begin();
            self.good(&Op::Release { lease });
            self.done();
        } else {
            self.good(&Op::Release { lease });
        }
    }

    /// The step's work is over.
    pub(super) fn done(&self) {
        self.cache.step_done(self.step, None).unwrap();
    }

    /// Uploads the tables of the newest step.
    pub(super) fn upload(&self) {
        self.cache.tables(self.step, self.stream, |_| Ok(())).unwrap();
    }

    /// Admits a prompt with its hits in the running step and commits the rest; answers hits and sequence.
    pub(super) fn start(&mut self, request: &Request<'_>, tokens: &[i32]) -> (Hit, u64) {
        let hit = self.look(request);
        let rest = &tokens[hit.tokens as usize..];
        let sequence = self.admit(hit.lease, rest.len() as u64).sequence;
        self.commit(sequence, rest);
        (hit, sequence)
    }

    /// The whole life of a request in a step of its own; answers its hit tokens.
    pub(super) fn run(&mut self, request: &Request<'_>) -> u64 {
        let Naming::Tokens(tokens, extras) = request.naming else { panic!("a prompt of tokens") };
        self.begin();
        let hit = self.look(request);
        let rest = &tokens[hit.tokens as usize..];
        let sequence = self.admit(hit.lease, rest.len() as u64).sequence;
        let later = extras.partition_point(|extra| extra.token_offset < hit.tokens);
        self.good(&commit(sequence, rest, &extras[later..]));
        self.free(sequence);
        self.done();
        hit.tokens
    }

    pub(super) fn statistics(&self) -> CacheStatistics {
        self.cache.statistics()
    }

    /// Memory of the cache's, by address.
    pub(super) fn slice(&self, address: u64, bytes: u64) -> DeviceSlice {
        // SAFETY: tests name tables and pools of the cache, which live as long as it.
        unsafe { DeviceSlice::from_foreign(self.device.key(), address, bytes) }.unwrap()
    }

    pub(super) fn bytes(&self, address: u64, count: u64) -> Vec<u8> {
        self.device.stream_synchronize(self.stream).unwrap();
        let mut bytes = vec![0; count as usize];
        self.device.read(self.slice(address, count), &mut bytes).unwrap();
        bytes
    }

    pub(super) fn words(&self, address: u64, count: usize) -> Vec<i32> {
        let bytes = self.bytes(address, 4 * count as u64);
        bytes.chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub(super) fn slots(&self, address: u64, count: usize) -> Vec<i64> {
        let bytes = self.bytes(address, 8 * count as u64);
        bytes.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// The slice of one block of a group.
    pub(super) fn block(&self, group: u32, block: i32) -> DeviceSlice {
        let place = self.cache.describe(group).unwrap();
        self.slice(place.base_address + block as u64 * place.block_bytes, place.block_bytes)
    }

    /// Work on the bench's stream that ends when the gate is opened or dropped.
    pub(super) fn gate(&self) -> Sender<()> {
        let (open, wait) = channel::<()>();
        let callback = Box::new(move || wait.recv().unwrap_or(()));
        self.device.stream_callback(self.stream, callback).unwrap();
        open
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.cache.validate().unwrap();
            self.memory.validate().unwrap();
        }
    }
}

pub(super) fn commit<'a>(sequence: u64, ids: &'a [i32], extras: &'a [Extra]) -> Op<'a> {
    Op::Commit {
        target: Target::Id(Id(sequence)),
        tokens: ids.len() as u64,
        naming: Naming::Tokens(ids, extras),
    }
}

pub(super) fn commit_keys(sequence: u64, tokens: u64, bytes: &[u8], key_bytes: u32) -> Op<'_> {
    Op::Commit { target: Target::Id(Id(sequence)), tokens, naming: Naming::Keys { bytes, key_bytes } }
}
