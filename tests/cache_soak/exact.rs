//! Lookups, operations, evictions, wipes and limits, each answer predicted by the naive cache to the block id.

use std::collections::{HashMap, VecDeque};

use fastrand::Rng;
use kavern::c_api::kv_types::*;
use kavern::error::Status;

use super::STEPS_IN_FLIGHT;
use super::boundary::{Cache, SEQ_OF_OP, Shape, group, op, request, request_keys};
use super::naive::{Block, Group, Naive, Outcome};
use super::picture::Picture;

struct Variant {
    block_tokens: &'static [u32],
    blocks: u64,
    hash: kavern_kv_hash,
    policy: &'static str,
    keys: bool,
}

const VARIANTS: [Variant; 4] = [
    Variant {
        block_tokens: &[4],
        blocks: 48,
        hash: kavern_kv_hash::KAVERN_HASH_BLAKE3,
        policy: "lru",
        keys: false,
    },
    Variant {
        block_tokens: &[4, 8],
        blocks: 40,
        hash: kavern_kv_hash::KAVERN_HASH_XXH3,
        policy: "lru",
        keys: false,
    },
    Variant {
        block_tokens: &[8, 4],
        blocks: 40,
        hash: kavern_kv_hash::KAVERN_HASH_XXH3,
        policy: "fifo",
        keys: false,
    },
    Variant {
        block_tokens: &[1],
        blocks: 64,
        hash: kavern_kv_hash::KAVERN_HASH_BLAKE3,
        policy: "fifo",
        keys: true,
    },
];

const MAX_TOKENS: usize = 64;
const MAX_SEQUENCES: u32 = 10;
const MAX_LEASES: u32 = 6;
const MAX_BATCH: u32 = 96;

fn make(variant: &Variant) -> Cache {
    let one = |&block_tokens: &u32| match variant.keys {
        true => kavern_kv_group {
            block_bytes: 64,
            ..group(kavern_kv_group_kind::KAVERN_GROUP_OPAQUE, block_tokens)
        },
        false => kavern_kv_group {
            layers: 1,
            kv_heads: 1,
            head_dim: 4,
            dtype: kavern_dtype::KAVERN_F16 as u32,
            layout: kavern_kv_layout::KAVERN_NHD as u32,
            ..group(kavern_kv_group_kind::KAVERN_GROUP_FULL, block_tokens)
        },
    };
    Cache::new(&Shape {
        device: "host?memory_bytes=67108864",
        groups: variant.block_tokens.iter().map(one).collect(),
        blocks: variant.blocks,
        max_blocks: 0,
        max_sequences: MAX_SEQUENCES,
        max_tokens: MAX_TOKENS as u64,
        max_batch_tokens: MAX_BATCH,
        max_leases: MAX_LEASES,
        hash: variant.hash,
        flags: kavern_kv_cache_flag::KAVERN_KV_EXACT_ORDER as u32
            | kavern_kv_cache_flag::KAVERN_KV_RAGGED_TABLES as u32,
        policy: variant.policy,
        event_capacity: 64,
    })
}

fn naive(variant: &Variant) -> Naive {
    let group = |&block_tokens: &u32| Group {
        block_tokens: block_tokens as usize,
        blocks: vec![Block::default(); variant.blocks as usize],
        free: (0..variant.blocks as u32).rev().collect(),
        order: VecDeque::new(),
        others: Vec::new(),
        is_fifo: variant.policy == "fifo",
        is_exact: matches!(variant.hash, kavern_kv_hash::KAVERN_HASH_XXH3) && !variant.keys,
        publications: 0,
        index: HashMap::new(),
        waiting: std::collections::BTreeMap::new(),
        evicted: 0,
        cached_order: VecDeque::new(),
        held_order: VecDeque::new(),
        published: vec![0; variant.blocks as usize],
    };
    Naive {
        groups: variant.block_tokens.iter().map(group).collect(),
        leases: HashMap::new(),
        sequences: HashMap::new(),
        max_tokens: MAX_TOKENS,
        max_sequences: MAX_SEQUENCES as usize,
        max_batch_tokens: MAX_BATCH as usize,
        completed: 0,
        step: 0,
        batch: HashMap::new(),
        batch_tokens: 0,
        batch_entries: 0,
        limits: std::collections::BTreeMap::new(),
        now_ms: 0,
        timed: 0,
        expired: 0,
    }
}

/// Keys that stand for token prefixes, as a caller would chain them: two bits a token, and the length.
fn keys_of(tokens: &[i32], from: usize) -> Vec<u8> {
    let key = |end: usize| {
        let mut key = [0u8; 32];
        tokens[..=end]
            .iter()
            .enumerate()
            .for_each(|(at, &token)| key[at / 4] |= (token as u8) << (2 * (at % 4)));
        key[24..].copy_from_slice(&(end as u64 + 1).to_le_bytes());
        key
    };
    (from..tokens.len()).flat_map(key).collect()
}

struct Run<'a> {
    variant: &'a Variant,
    random: Rng,
    cache: Cache,
    model: Naive,
    picture: Picture,
    ended: Vec<u64>,
    /// Steps that are begun and not declared done, oldest first.
    open: VecDeque<u64>,
    operations: u64,
}

fn check(op: &kavern_kv_op, result: &kavern_kv_op_result, expected: &Outcome) {
    match expected {
        Ok(answer) => {
            assert_eq!(result.status, Status::Ok as i32, "{op:?}");
            assert_eq!(result.blocks_added as usize, answer.added, "{op:?}");
            assert_eq!(result.blocks_committed as usize, answer.committed, "{op:?}");
        }
        Err((status, missing)) => {
            assert_eq!(result.status, *status as i32, "{op:?}");
            assert_eq!(result.blocks_missing as usize, *missing, "{op:?}");
        }
    }
}

impl Run<'_> {
    fn token(&mut self) -> i32 {
        if self.random.u8(0..8) == 0 { self.random.i32(0..4) } else { 0 }
    }

    fn lookup(&mut self) {
        let (namespace, length) = (self.random.u64(0..3), self.random.usize(0..MAX_TOKENS));
        let prompt: Vec<i32> = (0..length).map(|_| self.token()).collect();
        let [keep_one, drop_last, no_store, no_read] =
            [6, 8, 8, 10].map(|one_in| self.random.u8(0..one_in) == 0);
        let flag = |is_set: bool, flag: kavern_kv_request_flag| if is_set { flag as u32 } else { 0 };
        let flags = flag(keep_one, kavern_kv_request_flag::KAVERN_REQUEST_KEEP_ONE_TOKEN)
            | flag(drop_last, kavern_kv_request_flag::KAVERN_REQUEST_DROP_LAST)
            | flag(no_store, kavern_kv_request_flag::KAVERN_REQUEST_NO_STORE)
            | flag(no_read, kavern_kv_request_flag::KAVERN_REQUEST_NO_READ);
        let keys = if self.variant.keys { keys_of(&prompt, 0) } else { Vec::new() };
        let request = match self.variant.keys {
            true => request_keys(namespace, &keys, prompt.len() as u64, flags),
            false => request(namespace, &prompt, flags),
        };
        let probed = self.cache.probe(&request);
        let found = match self.cache.find(request) {
            Ok(found) => found,
            Err(status) => {
                assert_eq!(status, Status::LimitReached as i32);
                assert_eq!(self.model.leases.len(), MAX_LEASES as usize);
                return;
            }
        };
        let (hit, blocks) = match no_read {
            true => (0, vec![Vec::new(); self.model.groups.len()]),
            false => self.model.find(namespace, &prompt, keep_one, drop_last, None),
        };
        assert_eq!((found.hit_tokens, probed as usize), (hit, hit), "prompt {prompt:?}");
        let ids = blocks.iter().flatten().map(|&block| block as i32);
        assert!(ids.eq(found.blocks.iter().copied()), "{blocks:?} and {:?}", found.blocks);
        let lease = found.lease;
        self.model.hold(lease, namespace, no_store, &prompt[..hit], blocks, None);
        self.compare();
    }

    fn some_id(&mut self, of_leases: bool) -> u64 {
        let mut ids: Vec<u64> = match of_leases {
            true => self.model.leases.keys().copied().collect(),
            false => self.model.sequences.keys().copied().collect(),
        };
        ids.sort_unstable();
        match self.random.u8(0..30) {
            0 => self.ended.get(self.random.usize(0..self.ended.len().max(1))).copied().unwrap_or(7),
            1 => self.random.u64(..) >> 8,
            _ => self.random.choice(&ids).copied().unwrap_or(0),
        }
    }

    fn apply(&mut self, op: &kavern_kv_op) -> kavern_kv_op_result {
        self.operations += 1;
        self.cache.apply(self.model.step, std::slice::from_ref(op))[0]
    }

    fn operate(&mut self) {
        let (tokens, lookahead) = (self.random.usize(0..24), [0, 0, 0, 5][self.random.usize(0..4)]);
        let number = |tokens: usize| (tokens as u64, lookahead as u32);
        match self.random.u8(0..14) {
            0..=3 => self.admit(tokens, lookahead),
            4 | 5 => {
                let id = self.some_id(false);
                let mut append = op(kavern_kv_op_kind::KAVERN_OP_APPEND, id);
                (append.tokens, append.lookahead) = number(tokens / 4);
                let expected = self.model.append(id, tokens / 4, lookahead);
                let result = self.apply(&append);
                check(&append, &result, &expected);
            }
            6 | 7 => {
                let id = self.some_id(false);
                let (tokens, before) = self.news(id);
                let keys = keys_of(&tokens, before);
                let commit = self.commit_op(id, &tokens[before..], &keys);
                let expected = self.model.commit(id, &tokens[before..]);
                let result = self.apply(&commit);
                check(&commit, &result, &expected);
            }
            8 | 9 => {
                let id = self.some_id(false);
                let free = op(kavern_kv_op_kind::KAVERN_OP_FREE, id);
                let expected = self.model.free(id);
                let result = self.apply(&free);
                check(&free, &result, &expected);
                self.ended.push(id);
            }
            10 => self.retain(),
            _ => {
                let lease = self.some_id(true);
                let release = op(kavern_kv_op_kind::KAVERN_OP_RELEASE, lease);
                let expected = self.model.release(lease);
                let result = self.apply(&release);
                check(&release, &result, &expected);
                self.ended.push(lease);
            }
        }
        self.compare();
    }

    /// Admits a sequence and commits some of its tokens in the same list, by the number of the operation.
    fn admit(&mut self, tokens: usize, lookahead: usize) {
        let lease = self.some_id(true);
        let mut admit = op(kavern_kv_op_kind::KAVERN_OP_ADMIT, lease);
        (admit.tokens, admit.lookahead, admit.row) = (tokens as u64, lookahead as u32, -1);
        let expected = self.model.admit(lease, tokens, lookahead);
        if expected.is_ok() {
            self.model.apply_admit(lease, tokens, lookahead, SEQ_OF_OP);
        }
        let (tokens, before) = self.news(SEQ_OF_OP);
        let keys = keys_of(&tokens, before);
        let commit = self.commit_op(SEQ_OF_OP, &tokens[before..], &keys);
        let results = self.cache.apply(self.model.step, &[admit, commit]);
        let (admitted, committed) = (results[0], results[1]);
        self.operations += 2;
        check(&admit, &admitted, &expected);
        if expected.is_err() {
            // What depends on a refused operation of the same list is refused too.
            assert_eq!(committed.status, Status::Dependency as i32);
            return;
        }
        assert!((0..MAX_SEQUENCES as i32).contains(&admitted.row));
        let expected = self.model.commit(SEQ_OF_OP, &tokens[before..]);
        check(&commit, &committed, &expected);
        let holder = self.model.sequences.remove(&SEQ_OF_OP).unwrap();
        assert!(self.model.sequences.insert(admitted.sequence, holder).is_none(), "an id was given twice");
        let entry = self.model.batch.remove(&SEQ_OF_OP).unwrap();
        self.model.batch.insert(admitted.sequence, entry);
        self.ended.push(lease);
    }

    /// The tokens of a sequence with some that become final, and how many were before; now and then one too many.
    fn news(&mut self, id: u64) -> (Vec<i32>, usize) {
        let holder = self.model.sequences.get(&id);
        let open = holder.map_or(3, |holder| holder.length - holder.tokens.len());
        let mut tokens = holder.map_or(Vec::new(), |holder| holder.tokens.clone());
        let count = if self.random.u8(0..20) == 0 { open + 1 } else { self.random.usize(0..=open) };
        let before = tokens.len();
        for _ in 0..count {
            tokens.push(self.token());
        }
        (tokens, before)
    }

    fn commit_op(&self, id: u64, tokens: &[i32], keys: &[u8]) -> kavern_kv_op {
        let mut commit = op(kavern_kv_op_kind::KAVERN_OP_COMMIT, id);
        commit.tokens = tokens.len() as u64;
        match self.variant.keys {
            true => {
                (commit.keys, commit.key_count, commit.key_bytes) =
                    (keys.as_ptr(), keys.len() as u64 / 32, 32);
            }
            false => commit.token_ids = tokens.as_ptr(),
        }
        commit
    }

    fn retain(&mut self) {
        let of_leases = self.random.bool();
        let id = self.some_id(of_leases);
        let (offset, tokens) = match self.random.bool() {
            true => (0, 0),
            false => (self.random.usize(0..24), self.random.usize(0..24)),
        };
        let (mut retain, expected) = match self.random.u8(0..4) {
            0 | 1 => {
                let priority = [0, 10, 50, 60, 100][self.random.usize(0..5)];
                let retain = op(kavern_kv_op_kind::KAVERN_OP_RETAIN, id);
                let expected = self.model.retain(id, offset, tokens, priority, 0);
                (kavern_kv_op { priority: priority.into(), ..retain }, expected)
            }
            2 => (op(kavern_kv_op_kind::KAVERN_OP_PIN, id), self.model.pin(id, offset, tokens)),
            _ => (op(kavern_kv_op_kind::KAVERN_OP_UNPIN, id), self.model.unpin(id, offset, tokens)),
        };
        (retain.offset, retain.tokens) = (offset as u64, tokens as u64);
        let result = self.apply(&retain);
        check(&retain, &result, &expected);
    }

    fn compare(&self) {
        let real = self.cache.statistics();
        let groups = &self.model.groups;
        let sum = |of: &dyn Fn(&Group) -> usize| groups.iter().map(of).sum::<usize>() as u64;
        let model = [
            sum(&|group| group.free.len()),
            sum(&|group| group.inactive()),
            sum(&|group| group.waiting.values().map(Vec::len).sum()),
            sum(&|group| group.index.len()),
            groups.iter().map(|group| group.evicted).sum(),
            self.model.sequences.len() as u64,
            self.model.leases.len() as u64,
            self.model.sequences.values().map(|holder| holder.length as u64).sum(),
            self.open.len() as u64,
        ];
        let seen = [
            real.free_blocks,
            real.inactive_blocks,
            real.deferred_blocks,
            real.indexed_blocks,
            real.evicted_blocks,
            real.sequences,
            real.leases,
            real.used_tokens,
            real.steps_in_flight.into(),
        ];
        assert_eq!(
            seen, model,
            "free, inactive, deferred, findable, evicted, sequences, leases, tokens, steps"
        );
        assert_eq!(real.lookup_blocks, real.hit_blocks + real.missed_blocks + real.skipped_blocks);
    }

    /// Every row holds the blocks that the model says.
    fn compare_tables(&mut self) {
        let model = &self.model;
        let scheduled = model.batch.iter().filter(|(id, _)| model.sequences.contains_key(id));
        let tokens: usize = scheduled.map(|(_, entry)| entry.1).sum();
        self.cache.tables(model.step, MAX_SEQUENCES as usize, |batch, groups| {
            let live: i64 = batch.lengths.iter().map(|&length| i64::from(length)).sum();
            assert_eq!(live as usize, model.sequences.values().map(|holder| holder.length).sum::<usize>());
            for (group, view) in model.groups.iter().zip(&groups) {
                assert_eq!(view.cells, MAX_TOKENS.div_ceil(group.block_tokens));
                assert!(view.slots.len() == tokens || view.slots.is_empty());
            }
            for (id, holder) in &model.sequences {
                let row = (id & 0xff_ffff) as usize;
                assert_eq!(batch.lengths[row] as usize, holder.length);
                for (view, blocks) in groups.iter().zip(&holder.blocks) {
                    let cells = &view.block_table[row * view.cells..][..blocks.len()];
                    assert!(
                        cells.iter().zip(blocks).all(|(&cell, &block)| cell as u32 == block),
                        "row {row}"
                    );
                }
            }
        });
    }

    /// The picture that a reader of events has is the model's index.
    fn compare_picture(&mut self, anew: bool) {
        self.picture.read(&mut self.cache, anew);
        let groups = &self.model.groups;
        assert_eq!(self.picture.blocks.len(), groups.iter().map(|group| group.index.len()).sum::<usize>());
        for (&(group, block), &(namespace, offset, _)) in &self.picture.blocks {
            let group = &groups[group as usize];
            let content = group.blocks[block as usize].content.as_ref().unwrap();
            assert_eq!((content.0, content.1.len() - group.block_tokens), (namespace, offset as usize));
        }
    }

    fn step(&mut self) {
        while self.open.len() >= STEPS_IN_FLIGHT as usize {
            self.complete();
        }
        let step = self.model.step + self.random.u64(1..4);
        assert!(self.cache.apply(step, &[]).is_empty());
        self.model.begin_step(step);
        self.open.push_back(step);
        for _ in 0..self.random.usize(1..8) {
            self.operate();
        }
        let keep = self.ended.len().saturating_sub(64);
        self.ended.drain(..keep);
    }

    /// Some of the oldest steps are over.
    fn complete(&mut self) {
        let count = self.random.usize(1..=self.open.len());
        let over: Vec<u64> = self.open.drain(..count).collect();
        self.cache.step_done(over[count - 1], self.random.u8(0..16) == 0);
        self.model.complete(&over);
        self.compare();
    }

    fn wipe(&mut self) {
        if self.random.u8(0..40) == 0 {
            let (group, count) = (self.random.usize(0..self.model.groups.len()), self.random.usize(0..6));
            let evicted = self.cache.evict(group as u32, count as u64);
            assert_eq!(evicted as usize, self.model.evict(group, count));
        }
        if self.random.u8(0..200) == 0 {
            let namespace = if self.random.bool() { None } else { Some(self.random.u64(0..3)) };
            assert_eq!(self.cache.reset(namespace) as usize, self.model.reset(namespace));
        }
    }
}

/// Plays one seed; how many operations it were.
pub(crate) fn play(seed: u64, operations: u64) -> u64 {
    let variant = &VARIANTS[seed as usize % VARIANTS.len()];
    let mut run = Run {
        variant,
        random: Rng::with_seed(seed),
        cache: make(variant),
        model: naive(variant),
        picture: Picture::default(),
        ended: Vec::new(),
        open: VecDeque::new(),
        operations: 0,
    };
    if seed as usize / VARIANTS.len() % 2 == 1 {
        // One that caches within a limit: of two that are over at once, the cache chooses which gives first.
        for (namespace, limit) in [(0, (16, 6)), (1, (24, u64::MAX))] {
            run.cache.limit(namespace, limit.0, limit.1);
            run.model.limits.insert(namespace, limit);
        }
    }
    let mut turn = 0u64;
    while run.operations < operations {
        turn += 1;
        for _ in 0..run.random.usize(0..3) {
            run.lookup();
        }
        run.step();
        if run.random.u8(0..8) == 0 {
            run.compare_tables();
        }
        run.wipe();
        if run.random.bool() {
            run.complete();
        }
        run.compare();
        if turn.is_multiple_of(64) {
            run.cache.validate();
        }
        if turn.is_multiple_of(8) {
            run.compare_picture(turn.is_multiple_of(512));
        }
    }
    while !run.open.is_empty() {
        run.complete();
    }
    run.compare_picture(true);
    run.cache.end();
    run.operations
}
