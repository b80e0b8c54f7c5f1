//! The other half: what ends, what pauses, chunks, the engine's work, and the seeds.

use super::*;
use crate::STEPS_IN_FLIGHT;

/// Passages that are found before the step's work and read after it.
struct Passages {
    lease: u64,
    blocks: Vec<(u32, i32)>,
}

fn key(number: u32) -> [u8; 32] {
    let mut key = [7; 32];
    key[..4].copy_from_slice(&number.to_le_bytes());
    key
}

fn chunk_numbers(number: u32, tokens: usize) -> Vec<i32> {
    numbers(u64::from(number) << 8 | 1, &vec![1; tokens])
}

impl Run<'_> {
    fn resume(&mut self, at: usize) {
        let sequence = self.live[at].clone();
        let mut resume = op(KAVERN_OP_RESUME, sequence.id);
        if sequence.pause != Some(Pause::Dropped) {
            let count = self.random.usize(0..4);
            resume.tokens = count as u64;
            let expected = match sequence.pause {
                None => Status::WrongState,
                Some(_) if count > 0 && self.is_early(at) && sequence.tokens.len() + count <= MAX_TOKENS => {
                    Status::WrongState
                }
                Some(_) if sequence.tokens.len() + count <= MAX_TOKENS => Status::Ok,
                Some(_) => Status::InvalidArgument,
            };
            if self.alone(&resume, Some(expected)).is_some() {
                self.live[at].pause = None;
                self.extend(at, count);
            }
            return;
        }
        if sequence.tokens.is_empty() {
            return self.end(at);
        }
        let Some((lease, hit)) = self.look(sequence.namespace, &sequence.tokens) else { return };
        self.leases += 1;
        let count = self.random.usize(0..=sequence.tokens.len() - hit);
        (resume.tokens, resume.lease) = (count as u64, lease);
        if self.alone(&resume, Some(Status::Ok)).is_none() {
            return self.release(lease);
        }
        self.leases -= 1;
        let sequence = &mut self.live[at];
        sequence.tokens.truncate(hit + count);
        sequence.numbers = numbers(sequence.namespace, &sequence.tokens);
        (sequence.committed, sequence.written, sequence.pause) = (hit, hit, None);
        let unwritten = self.unwritten(&self.live[at].numbers[..hit]);
        self.live[at].unwritten = unwritten;
    }

    fn end(&mut self, at: usize) {
        let sequence = &self.live[at];
        // A freed sequence leaves behind what it committed and nobody writes; a cancelled one does not.
        let is_free = sequence.committed <= sequence.written && self.random.bool();
        let kind = if is_free { KAVERN_OP_FREE } else { KAVERN_OP_CANCEL };
        if self.alone(&op(kind, sequence.id), self.expect(Status::Ok)).is_some() {
            let id = self.live[at].id;
            self.live.remove(at);
            // Its children have no parent any more to be accepted into.
            self.live.iter_mut().filter(|other| other.parent == id).for_each(|other| other.parent = 0);
        }
    }

    fn trim(&mut self, at: usize) {
        let offset = self.random.usize(0..=self.live[at].written);
        let mut trim = op(KAVERN_OP_TRIM, self.live[at].id);
        trim.offset = offset as u64;
        let expected = match (self.features.trims, self.running(at)) {
            (false, _) => None,
            (true, other) => Some(other),
        };
        let trimmed = self.alone(&trim, expected);
        if trimmed.is_some() && self.features.trims {
            let sequence = &mut self.live[at];
            (sequence.trimmed, sequence.promised) = (sequence.trimmed.max(offset), 0);
        }
    }

    fn retain(&mut self, at: usize) {
        let length = self.live[at].tokens.len();
        let (offset, tokens) = match self.random.bool() {
            true => (0, 0),
            false => (self.random.usize(0..24), self.random.usize(0..24)),
        };
        let end = if tokens == 0 { length } else { offset + tokens };
        let expected = match self.running(at) {
            Status::Ok if end > length || offset > end => Some(Status::InvalidArgument),
            Status::Ok => self.expect(Status::Ok),
            _ => None,
        };
        let kind =
            [KAVERN_OP_RETAIN, KAVERN_OP_PIN, KAVERN_OP_UNPIN, KAVERN_OP_UNPIN][self.random.usize(0..4)];
        let mut retain = op(kind, self.live[at].id);
        (retain.offset, retain.tokens) = (offset as u64, tokens as u64);
        if retain.kind == KAVERN_OP_RETAIN as u32 {
            retain.priority = self.random.u32(0..=100);
            retain.ttl_ms = self.random.u64(0..3);
        }
        self.alone(&retain, expected);
    }

    /// Stores passages as chunks: a sequence whose bytes this step writes.
    fn store_chunks(&mut self) {
        let each = self.link;
        let wanted: Vec<u32> = (0..self.random.usize(1..8)).map(|_| self.random.u32(0..24)).collect();
        let keys: Vec<u8> = wanted.iter().flat_map(|&number| key(number)).collect();
        let tokens = wanted.len() * each;
        let flag = kavern_kv_request_flag::KAVERN_REQUEST_CHUNKS as u32;
        let found = self.cache.find(request_keys(CHUNKS, &keys, tokens as u64, flag)).unwrap();
        assert_eq!((found.hit_tokens, found.blocks), (0, &[][..]), "a prefix of chunks is never found");
        let lease = found.lease;
        self.leases += 1;
        let mut admit = op(KAVERN_OP_ADMIT, lease);
        (admit.tokens, admit.row) = (tokens as u64, -1);
        let Some(result) = self.alone(&admit, Some(Status::Ok)) else { return self.release(lease) };
        self.leases -= 1;
        let mut commit = op(KAVERN_OP_COMMIT, result.sequence);
        (commit.tokens, commit.keys) = (tokens as u64, keys.as_ptr());
        (commit.key_count, commit.key_bytes) = (wanted.len() as u64, 32);
        let published = self.publish(&commit, Status::Ok).unwrap();
        let is_new = |number: &&u32| published.iter().any(|(_, (.., of))| *of == key(**number));
        self.early.extend(wanted.iter().filter(is_new));
        self.begin(Sequence {
            id: result.sequence,
            row: result.row as usize,
            namespace: CHUNKS,
            tokens: vec![1; tokens],
            numbers: wanted.iter().flat_map(|&number| chunk_numbers(number, each)).collect(),
            committed: tokens,
            ..Sequence::default()
        });
    }

    /// Finds passages wherever they were stored: all that the picture has, and no other.
    fn find_chunks(&mut self) -> Option<Passages> {
        let wanted: Vec<u32> = (0..self.random.usize(1..8)).map(|_| self.random.u32(0..24)).collect();
        let keys: Vec<u8> = wanted.iter().flat_map(|&number| key(number)).collect();
        self.picture.read(&mut self.cache, false);
        let flag = kavern_kv_request_flag::KAVERN_REQUEST_CHUNKS as u32;
        let tokens = (wanted.len() * self.link) as u64;
        let (lease, blocks) = self.cache.find_chunks(request_keys(CHUNKS, &keys, tokens, flag)).ok()?;
        self.leases += 1;
        for (&number, &block) in wanted.iter().zip(&blocks) {
            // What a step that is not done has stored is not found.
            let is_early = self.early.contains(&number);
            let place = self.picture.place(0, CHUNKS, key(number)).filter(|_| !is_early);
            assert_eq!(block, place.unwrap_or(-1), "passage {number}");
            self.sums.early += u64::from(is_early);
        }
        let hits = wanted.into_iter().zip(blocks).filter(|(_, block)| *block >= 0);
        Some(Passages { lease, blocks: hits.collect() })
    }

    /// The addresses at which the parts of a token lie.
    fn places(&self, group: usize, block: u64, offset: u64) -> impl Iterator<Item = *mut i32> + use<> {
        let pool = self.pools[group];
        let first = pool.base_address + block * pool.block_stride + offset * pool.token_stride;
        let parts = (0..pool.layers.into()).flat_map(|layer| [0, 1].map(|half| (layer, half)));
        parts.flat_map(move |(layer, half)| {
            let part = first + layer * pool.layer_stride + half * pool.kv_stride;
            (0..HEADS).map(move |head| (part + head * pool.head_stride) as *mut i32)
        })
    }

    fn check_token(&self, group: usize, block: i32, offset: usize, number: i32) -> bool {
        self.places(group, block as u64, offset as u64).all(|place| {
            // SAFETY: a slot of the pool, which is memory of the host; the stream was waited for.
            unsafe { place.read() == number }
        })
    }

    /// The step's work: what is scheduled is written, and everything that was written is there.
    fn work(&mut self) {
        let mut tables: Vec<(Vec<i32>, usize, Vec<i64>)> = Vec::new();
        let positions = &mut self.positions;
        let (rows, starts, lengths) = self.cache.tables(self.step, MAX_SEQUENCES, |batch, groups| {
            let copy = |group: super::super::boundary::Tables<'_>| {
                (group.block_table.to_vec(), group.cells, group.slots.to_vec())
            };
            tables.extend(groups.into_iter().map(copy));
            positions.follow(batch.copies);
            (batch.rows.to_vec(), batch.starts.to_vec(), batch.lengths.to_vec())
        });
        self.cache.synchronize();
        let held = || self.live.iter().filter(|sequence| sequence.pause != Some(Pause::Dropped));
        for (group, (table, cells, slots)) in tables.iter().enumerate() {
            let each = self.pools[group].block_tokens as usize;
            for sequence in held() {
                assert_eq!(lengths[sequence.row] as usize, sequence.tokens.len());
                let row = &table[sequence.row * cells..][..*cells];
                let mine = rows.iter().enumerate().filter(|(_, row)| **row as usize == sequence.row);
                let of_step = mine.flat_map(|(at, _)| &slots[starts[at] as usize..starts[at + 1] as usize]);
                let mut token = sequence.written;
                for &slot in of_step {
                    let block = row[token / each];
                    assert_eq!(slot as usize, block as usize * each + token % each);
                    for place in self.places(group, block as u64, (token % each) as u64) {
                        // SAFETY: a slot of this sequence alone, in memory of the host; the stream was waited for.
                        unsafe { place.write(sequence.numbers[token]) };
                    }
                    self.positions.write(group, slot, token);
                    token += 1;
                }
                assert_eq!(token, sequence.tokens.len(), "tokens of {:x} in the batch", sequence.id);
            }
        }
        // After all writes: one may have found what another writes in the same step, and none may be overwritten.
        for (group, (table, cells, _)) in tables.iter().enumerate() {
            let each = self.pools[group].block_tokens as usize;
            for sequence in held() {
                let row = &table[sequence.row * cells..][..*cells];
                for (token, &number) in sequence.numbers.iter().enumerate().skip(sequence.trimmed) {
                    self.positions.check(group, slot(row, each, token), token);
                    let is_there = self.check_token(group, row[token / each], token % each, number);
                    assert!(is_there, "group {group}, token {token} of {:x}", sequence.id);
                }
            }
        }
        for sequence in &mut self.live {
            let is_dropped = sequence.pause == Some(Pause::Dropped);
            sequence.written = if is_dropped { 0 } else { sequence.tokens.len() };
        }
    }

    fn operate(&mut self) {
        if self.live.is_empty() || self.random.u8(0..8) == 0 {
            return self.admit();
        }
        let at = self.random.usize(0..self.live.len());
        if self.live[at].namespace == CHUNKS {
            return self.end(at);
        }
        match self.random.u8(0..26) {
            0..=6 => self.append(at),
            7..=11 => self.commit(at),
            12 | 13 => self.fork(at),
            14 | 15 => self.rollback(at),
            16 => self.edit(at),
            17 => self.accept(at),
            18 => self.preempt(at),
            19 | 20 => self.resume(at),
            21 if self.features.trims || self.random.u8(0..8) == 0 => self.trim(at),
            22 | 23 if self.features.retains => self.retain(at),
            _ => self.end(at),
        }
    }

    fn step(&mut self) {
        self.step += 1;
        assert!(self.cache.apply(self.step, &[]).is_empty());
        self.unwritten.clear();
        self.live.iter_mut().for_each(|sequence| sequence.unwritten.clear());
        for _ in 0..self.random.usize(1..12) {
            self.operate();
            self.compare();
        }
        let mut passages = None;
        if self.features.chunks {
            if self.random.bool() {
                self.store_chunks();
            }
            passages = self.find_chunks();
        }
        self.work();
        if let Some(Passages { lease, blocks }) = passages {
            for (number, block) in blocks {
                let numbers = chunk_numbers(number, self.link).into_iter().enumerate();
                let is_there =
                    numbers.into_iter().all(|(token, number)| self.check_token(0, block, token, number));
                assert!(is_there, "passage {number} in block {block}");
                self.sums.chunks += 1;
            }
            self.release(lease);
        }
        self.compare();
    }

    /// What an operator does between steps.
    fn tend(&mut self) {
        let group = self.random.u32(0..self.pools.len() as u32);
        if self.features.resizes && self.random.u8(0..16) == 0 {
            let blocks = if self.random.bool() { MAX_BLOCKS } else { self.random.u64(24..=MAX_BLOCKS) };
            self.cache.resize(group, blocks);
            self.is_shrunk = true;
            self.sums.resizes += 1;
        }
        if self.random.u8(0..64) == 0 {
            let inactive = self.cache.statistics().inactive_blocks;
            assert!(self.cache.evict(group, 3) <= inactive.min(3));
        }
        if self.random.u8(0..=255) == 0 {
            let namespace = if self.random.bool() { None } else { Some(self.random.u64(1..3)) };
            self.cache.reset(namespace);
            self.picture.read(&mut self.cache, false);
            let is_left = |entry: &Entry| namespace.is_none_or(|wiped| wiped == entry.0);
            assert!(!self.picture.blocks.values().any(is_left), "nothing is findable after a wipe");
        }
    }

    /// Each block of the picture is in one place, and there are as many as the cache counts.
    fn compare_picture(&mut self, anew: bool) {
        self.picture.read(&mut self.cache, anew);
        assert_eq!(self.picture.blocks.len() as u64, self.cache.statistics().indexed_blocks);
    }
}

/// Eight seeds in a row have one shape and differ in their features.
fn shape(seed: u64) -> usize {
    (seed / 8) as usize % SHAPES.len()
}

/// Rows with holes prove nothing of tokens, so those caches take the hash that needs no proof.
fn hash(seed: u64, features: Features) -> kavern_kv_hash {
    if features.trims { kavern_kv_hash::KAVERN_HASH_BLAKE3 } else { SHAPES[shape(seed)].1 }
}

fn make(seed: u64, features: Features) -> Cache {
    let (block_tokens, _, layout) = SHAPES[shape(seed)];
    let one = |&block_tokens: &u32| kavern_kv_group {
        layers: 1,
        kv_heads: HEADS as u32,
        head_dim: 2,
        dtype: kavern_dtype::KAVERN_F16 as u32,
        layout: layout as u32,
        flags: if features.trims { kavern_kv_group_flag::KAVERN_GROUP_TRIMMABLE as u32 } else { 0 },
        ..group(kavern_kv_group_kind::KAVERN_GROUP_FULL, block_tokens)
    };
    let flag = |is_set: bool, flag: kavern_kv_cache_flag| if is_set { flag as u32 } else { 0 };
    let max_blocks = if features.resizes { MAX_BLOCKS } else { 0 };
    let cache = Cache::new(&Shape {
        device: "host?memory_bytes=67108864",
        groups: block_tokens.iter().map(one).collect(),
        blocks: BLOCKS,
        max_blocks,
        max_sequences: MAX_SEQUENCES as u32,
        max_tokens: MAX_TOKENS as u64,
        max_batch_tokens: 128,
        max_leases: 4,
        hash: hash(seed, features),
        flags: flag(seed % 5 < 2, kavern_kv_cache_flag::KAVERN_KV_EXACT_ORDER)
            | flag(seed.is_multiple_of(2), kavern_kv_cache_flag::KAVERN_KV_RAGGED_TABLES)
            | flag(!seed.is_multiple_of(5), kavern_kv_cache_flag::KAVERN_KV_DEVICE_INDEX)
            | flag(features.partial, kavern_kv_cache_flag::KAVERN_KV_PARTIAL_HITS)
            | flag(features.chunks, kavern_kv_cache_flag::KAVERN_KV_CHUNK_INDEX),
        policy: POLICIES[seed as usize % POLICIES.len()],
        // Where few are kept, some are lost and the picture is mended.
        event_capacity: if seed.is_multiple_of(3) { 8 } else { 1024 },
    });
    if features.quotas {
        cache.limit(1, 24, 6);
        cache.limit(2, u64::MAX, 10);
    }
    cache
}

/// Plays one seed; how many operations it were.
pub(crate) fn play(seed: u64, operations: u64, sums: &mut Sums) -> u64 {
    let (block_tokens, ..) = SHAPES[shape(seed)];
    let mut features = features(seed);
    features.chunks &= block_tokens.len() == 1;
    let cache = make(seed, features);
    let pools: Vec<_> = (0..block_tokens.len() as u32).map(|group| cache.describe(group)).collect();
    let link = block_tokens.iter().fold(0, |link, &tokens| divisor(tokens as usize, link));
    let mut run = Run {
        random: Rng::with_seed(seed),
        cache,
        block_tokens: pools.iter().map(|pool| pool.block_tokens as usize).collect(),
        pools,
        features,
        link,
        live: Vec::new(),
        picture: Picture::default(),
        keys: Vec::new(),
        step: 0,
        operations: 0,
        leases: 0,
        unwritten: Unwritten::default(),
        positions: Positions::default(),
        early: HashSet::new(),
        is_shrunk: false,
        refusal: 0,
        sums,
    };
    while run.operations < operations {
        run.step();
        let step = run.step;
        // Up to three steps are in flight: what they use stays away from everybody else.
        if step.is_multiple_of(STEPS_IN_FLIGHT.into()) || run.random.bool() {
            let on_stream = run.random.u8(0..8) == 0;
            run.cache.step_done(step, on_stream);
            run.early.clear();
        }
        run.tend();
        if step.is_multiple_of(32) {
            run.cache.validate();
            run.compare_picture(step.is_multiple_of(512));
        }
    }
    for sequence in std::mem::take(&mut run.live) {
        let ended = run.cache.apply(run.step + 1, &[op(KAVERN_OP_FREE, sequence.id)])[0];
        assert_eq!(ended.status, Status::Ok as i32);
    }
    run.cache.apply(run.step + 1, &[]);
    run.cache.step_done(run.step + 1, false);
    run.compare_picture(true);
    let totals = run.cache.statistics();
    let left = (totals.used_blocks, totals.deferred_blocks, totals.used_slots, totals.promised_blocks);
    assert_eq!(left, (0, 0, 0, 0));
    run.sums.gaps += run.picture.gaps;
    run.sums.events += run.picture.events;
    run.cache.end();
    run.operations
}

fn divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { divisor(b, a % b) }
}
