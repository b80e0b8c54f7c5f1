//! Every operation on sequences against lists of tokens, in caches of many kinds: each slot holds the bytes of the
//! token that the tables say lies there, each hit is what the events say is findable, each count is that of the lists.
//!
//! A token's bytes are a number that its whole past determines, so a block that is found under a prompt can only hold
//! what that prompt would have written. Which blocks are handed out is not predicted; `exact` does that. The engine is
//! one of the host: it waits for the tables and then writes and reads the slots itself.

use std::collections::HashSet;

use fastrand::Rng;
use kavern::c_api::kv_types::*;
use kavern::error::Status;

use super::boundary::{Cache, Shape, group, op, request, request_keys};
use super::numbers::{number, numbers};
use super::picture::{Entry, Picture};
use super::positions::{Positions, slot};
use super::unwritten::{Cell, Unwritten, copies, is_open, keep_before};

#[path = "content_work.rs"]
mod work;

use kavern_kv_op_kind::*;
pub(crate) use work::play;

/// Blocks of tokens of the groups, hash, layout.
const SHAPES: [(&[u32], kavern_kv_hash, kavern_kv_layout); 4] = [
    (&[4], kavern_kv_hash::KAVERN_HASH_BLAKE3, kavern_kv_layout::KAVERN_NHD),
    (&[4, 8], kavern_kv_hash::KAVERN_HASH_XXH3, kavern_kv_layout::KAVERN_HND),
    (&[8, 4, 2], kavern_kv_hash::KAVERN_HASH_BLAKE3, kavern_kv_layout::KAVERN_NHD),
    (&[6, 4], kavern_kv_hash::KAVERN_HASH_BLAKE3, kavern_kv_layout::KAVERN_HND),
];
const POLICIES: [&str; 7] = ["lru", "adaptive", "fifo", "lfu", "s3fifo", "cost", "runs-lru"];
const BLOCKS: u64 = 40;
const MAX_BLOCKS: u64 = 64;
const MAX_TOKENS: usize = 72;
const MAX_SEQUENCES: usize = 10;
const HEADS: u64 = 2;
/// The namespace that takes chunks.
const CHUNKS: u64 = 9;

/// What a cache of the soak can do beside the plain things.
#[derive(Clone, Copy, Default)]
struct Features {
    partial: bool,
    promises: bool,
    quotas: bool,
    resizes: bool,
    retains: bool,
    trims: bool,
    chunks: bool,
}

fn features(seed: u64) -> Features {
    let none = Features::default();
    match seed % 8 {
        0 => none,
        1 => Features { partial: true, ..none },
        2 => Features { promises: true, quotas: true, ..none },
        3 => Features { resizes: true, retains: true, ..none },
        4 => Features { partial: true, resizes: true, quotas: true, ..none },
        5 => Features { trims: true, retains: true, ..none },
        6 => Features { promises: true, resizes: true, retains: true, ..none },
        _ => Features { chunks: true, retains: true, quotas: true, ..none },
    }
}

/// What went well, over all seeds.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    by_kind: [u64; 19],
    refused: u64,
    hits: u64,
    predicted: u64,
    promised: u64,
    chunks: u64,
    resizes: u64,
    gaps: u64,
    events: u64,
    /// Edits of what the open step is yet to write, and passages that it stored.
    early: u64,
}

/// Blocks that a COMMIT made findable.
type Published = Vec<((u32, i32), Entry)>;

impl Sums {
    pub(crate) fn check(&self) {
        // All kinds that there are in this version.
        let kinds = (1..16).chain([18]).filter(|&kind| self.by_kind[kind] < 500);
        assert_eq!(kinds.collect::<Vec<_>>(), [], "each operation goes well often: {self:?}");
        let others = [
            self.refused,
            self.hits,
            self.predicted,
            self.promised,
            self.chunks,
            self.resizes,
            self.gaps,
            self.events,
            self.early,
        ];
        assert!(others.iter().all(|&count| count > 100), "{self:?}");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    Keeps,
    Dropped,
}

#[derive(Clone, Default)]
struct Sequence {
    id: u64,
    row: usize,
    namespace: u64,
    tokens: Vec<i32>,
    /// What its slots must hold.
    numbers: Vec<i32>,
    committed: usize,
    /// Tokens whose numbers lie in their slots already.
    written: usize,
    /// Tokens before this one may be gone.
    trimmed: usize,
    /// Tokens up to which it was promised blocks.
    promised: usize,
    pause: Option<Pause>,
    parent: u64,
    /// Cells that it, or who it was forked from, found in the open step, which is yet to write them.
    unwritten: Vec<Cell>,
}

struct Run<'a> {
    random: Rng,
    cache: Cache,
    pools: Vec<kavern_kv_description>,
    block_tokens: Vec<usize>,
    features: Features,
    link: usize,
    live: Vec<Sequence>,
    picture: Picture,
    keys: Vec<[u8; 32]>,
    step: u64,
    operations: u64,
    leases: u64,
    unwritten: Unwritten,
    positions: Positions,
    /// Passages that were stored in steps which are not done.
    early: HashSet<u32>,
    is_shrunk: bool,
    /// Status of the latest operation that was refused.
    refusal: i32,
    sums: &'a mut Sums,
}

fn counts(totals: &kavern_kv_statistics) -> [u64; 12] {
    [
        totals.free_blocks,
        totals.used_blocks,
        totals.inactive_blocks,
        totals.deferred_blocks,
        totals.indexed_blocks,
        totals.sequences,
        totals.leases,
        totals.used_tokens,
        totals.used_slots,
        totals.allocated_blocks,
        totals.evicted_blocks,
        totals.promised_blocks,
    ]
}

impl Run<'_> {
    fn prompt(&mut self) -> Vec<i32> {
        let length = self.random.usize(1..40);
        (0..length).map(|_| if self.random.u8(0..10) == 0 { self.random.i32(0..3) } else { 0 }).collect()
    }

    /// Tokens of a prompt that the picture has in full blocks of all groups.
    fn predict(&mut self, namespace: u64, prompt: &[i32]) -> (usize, Vec<i32>) {
        self.picture.read(&mut self.cache, false);
        self.unwritten.retain(|place| self.picture.blocks.contains_key(place));
        self.cache.keys(&request(namespace, prompt, 0), &mut self.keys);
        let each: Vec<usize> = self.pools.iter().map(|pool| pool.block_tokens as usize).collect();
        let mut found: Vec<Vec<i32>> = vec![Vec::new(); each.len()];
        'links: for (at, &key) in self.keys.iter().enumerate() {
            let end = (at + 1) * self.link;
            for (group, found) in
                found.iter_mut().enumerate().filter(|(group, _)| end.is_multiple_of(each[*group]))
            {
                match self.picture.place(group, namespace, key) {
                    Some(block) => found.push(block),
                    None => break 'links,
                }
            }
        }
        let reached = found.iter().zip(&each).map(|(found, each)| found.len() * each).min().unwrap();
        let mut hit = reached.min(prompt.len() - 1);
        while each.iter().any(|each| !hit.is_multiple_of(*each)) {
            hit -= 1;
        }
        found.iter_mut().zip(&each).for_each(|(found, each)| found.truncate(hit / each));
        (hit, found.concat())
    }

    fn look(&mut self, namespace: u64, prompt: &[i32]) -> Option<(u64, usize)> {
        let (predicted, blocks) = self.predict(namespace, prompt);
        let keep_one = kavern_kv_request_flag::KAVERN_REQUEST_KEEP_ONE_TOKEN as u32;
        let request = request(namespace, prompt, keep_one);
        let probed = self.cache.probe(&request) as usize;
        let found = match self.cache.find(request) {
            Ok(found) => found,
            Err(status) => {
                assert_eq!(status, Status::LimitReached as i32);
                return None;
            }
        };
        let hit = found.hit_tokens;
        if self.features.promises {
            // What is promised to others is not given to a lookup.
            assert!(hit <= predicted.max(probed));
        } else if !self.features.partial {
            assert_eq!((hit, probed), (predicted, predicted), "{prompt:?}");
            assert_eq!(found.blocks, blocks, "{prompt:?}");
            self.sums.predicted += u64::from(hit > 0);
        } else {
            assert!(hit >= predicted && hit == probed, "{predicted} of {hit}");
        }
        self.sums.hits += u64::from(hit > 0);
        Some((found.lease, hit))
    }

    /// Applies an operation in a call of its own and checks what the lists tell: the status, and all counts.
    fn alone(&mut self, op: &kavern_kv_op, expected: Option<Status>) -> Option<kavern_kv_op_result> {
        self.operations += 1;
        let before = counts(&self.cache.statistics());
        let result = self.cache.apply(self.step, std::slice::from_ref(op))[0];
        if result.status == Status::Ok as i32 {
            assert!(expected.is_none_or(|expected| expected == Status::Ok), "{op:?} {expected:?}");
            self.sums.by_kind[op.kind as usize] += 1;
            return Some(result);
        }
        self.sums.refused += 1;
        self.refusal = result.status;
        assert_eq!(before, counts(&self.cache.statistics()), "{op:?} {result:?}");
        let is = |status: Status| result.status == status as i32;
        assert_eq!(
            is(Status::OutOfBlocks),
            result.blocks_missing > 0 && !is(Status::LimitReached),
            "{result:?}"
        );
        // Blocks, places in the batch and rows may be too few, and somebody may have found what nobody wrote yet.
        let resources = [Status::OutOfBlocks, Status::LimitReached];
        let is_change = matches!(op.kind, 6 | 7 | 9..=12 | 18);
        let is_resource = resources.into_iter().any(is) || is_change && is(Status::InUse);
        match expected {
            Some(expected) => {
                assert!(is_resource || is(expected) && expected != Status::Ok, "{op:?} {result:?}")
            }
            None => assert!(result.status < 0 && result.status > -200, "{op:?} {result:?}"),
        }
        None
    }

    /// The counts that the lists tell.
    fn compare(&mut self) {
        let totals = self.cache.statistics();
        let held = self.live.iter().filter(|sequence| sequence.pause != Some(Pause::Dropped));
        let tokens: usize = held.map(|sequence| sequence.tokens.len()).sum();
        let seen = (totals.sequences, totals.used_tokens, totals.leases);
        assert_eq!(seen, (self.live.len() as u64, tokens as u64, self.leases));
        let [free, used, inactive, deferred, ..] = counts(&totals);
        let sum = free + used + inactive + deferred;
        assert!(if self.is_shrunk { sum >= totals.capacity_blocks } else { sum == totals.capacity_blocks });
        assert_eq!(totals.lookup_blocks, totals.hit_blocks + totals.missed_blocks + totals.skipped_blocks);
        assert!(totals.indexed_blocks >= inactive);
    }

    fn admit(&mut self) {
        let (namespace, prompt) = (self.random.u64(1..3), self.prompt());
        let Some((lease, hit)) = self.look(namespace, &prompt) else { return };
        self.leases += 1;
        self.compare();
        let count = self.random.usize(0..=prompt.len() - hit);
        let mut admit = op(KAVERN_OP_ADMIT, lease);
        (admit.tokens, admit.lookahead, admit.row) = (count as u64, self.random.u32(0..6), -1);
        let least = hit + count + admit.lookahead as usize;
        if self.features.promises && self.random.bool() {
            admit.expected_tokens = self.random.usize(least.max(1)..=MAX_TOKENS.max(least)) as u64;
        }
        let Some(result) = self.alone(&admit, Some(Status::Ok)) else {
            self.release(lease);
            return;
        };
        self.leases -= 1;
        let tokens = prompt[..hit + count].to_vec();
        let numbers = numbers(namespace, &tokens);
        let sequence = Sequence {
            id: result.sequence,
            row: result.row as usize,
            namespace,
            unwritten: self.unwritten(&numbers[..hit]),
            numbers,
            tokens,
            committed: hit,
            written: hit,
            promised: admit.expected_tokens as usize,
            ..Sequence::default()
        };
        self.begin(sequence);
    }

    /// A sequence joins the list: its row is nobody else's.
    fn begin(&mut self, sequence: Sequence) {
        assert!(sequence.row < MAX_SEQUENCES && self.live.iter().all(|other| other.row != sequence.row));
        self.live.push(sequence);
    }

    fn release(&mut self, lease: u64) {
        self.alone(&op(KAVERN_OP_RELEASE, lease), Some(Status::Ok)).unwrap();
        self.leases -= 1;
    }

    /// What of a hit the open step is yet to write.
    fn unwritten(&self, numbers: &[i32]) -> Vec<Cell> {
        let each = self.block_tokens.iter().enumerate();
        each.flat_map(|(group, &each)| self.unwritten.cells(group, each, numbers)).collect()
    }

    /// The open block of a sequence is one that is copied first and that the open step is yet to write.
    fn is_early(&self, at: usize) -> bool {
        let Sequence { tokens, unwritten, .. } = &self.live[at];
        is_open(unwritten, &self.block_tokens, tokens.len())
    }

    /// Applies a COMMIT and hears which blocks became findable by it.
    fn publish(&mut self, commit: &kavern_kv_op, expected: Status) -> Option<Published> {
        self.picture.read(&mut self.cache, false);
        let before = self.picture.blocks.clone();
        self.alone(commit, Some(expected))?;
        self.picture.read(&mut self.cache, false);
        let is_new = |(place, entry): &(&(u32, i32), &Entry)| before.get(place) != Some(entry);
        Some(self.picture.blocks.iter().filter(is_new).map(|(&place, &entry)| (place, entry)).collect())
    }

    /// What an operation on a running sequence answers.
    fn running(&self, at: usize) -> Status {
        if self.live[at].pause.is_some() { Status::WrongState } else { Status::Ok }
    }

    /// Where rows may have holes some changes are refused, and which ones is not said here.
    fn expect(&self, status: Status) -> Option<Status> {
        Some(status).filter(|_| !self.features.trims)
    }

    fn extend(&mut self, at: usize, count: usize) {
        for _ in 0..count {
            let token = if self.random.u8(0..6) == 0 { self.random.i32(0..3) } else { 0 };
            let sequence = &mut self.live[at];
            let before = sequence.numbers.last().copied().unwrap_or(sequence.namespace as i32);
            sequence.tokens.push(token);
            sequence.numbers.push(number(before, token));
        }
    }

    fn append(&mut self, at: usize) {
        let (mut append, count) = (op(KAVERN_OP_APPEND, self.live[at].id), self.random.usize(0..6));
        (append.tokens, append.lookahead) = (count as u64, self.random.u32(0..8));
        let length = self.live[at].tokens.len() + count + append.lookahead as usize;
        let expected = match self.running(at) {
            Status::Ok if length > MAX_TOKENS => Status::InvalidArgument,
            Status::Ok if count > 0 && self.is_early(at) => Status::WrongState,
            other => other,
        };
        let appended = self.alone(&append, Some(expected));
        let is_promised = expected == Status::Ok && length <= self.live[at].promised;
        if appended.is_some() {
            self.extend(at, count);
            self.sums.promised += u64::from(is_promised);
        } else if is_promised {
            assert_ne!(self.refusal, Status::OutOfBlocks as i32, "{length} tokens were promised");
        }
    }

    fn commit(&mut self, at: usize) {
        let sequence = &self.live[at];
        let count = self.random.usize(0..=sequence.tokens.len() - sequence.committed);
        let mut commit = op(KAVERN_OP_COMMIT, sequence.id);
        let ids = sequence.tokens[sequence.committed..][..count].to_vec();
        (commit.tokens, commit.token_ids) = (count as u64, ids.as_ptr());
        let Some(published) = self.publish(&commit, self.running(at)) else { return };
        self.live[at].committed += count;
        for (place, (_, first, _)) in published {
            let (sequence, each) = (&self.live[at], self.block_tokens[place.0 as usize]);
            self.unwritten.store(place, first as usize, each, (&sequence.numbers, sequence.written));
        }
    }

    fn fork(&mut self, at: usize) {
        let parent = self.live[at].clone();
        let tokens = self.random.usize(0..=parent.tokens.len() + 1);
        let expected = match self.running(at) {
            Status::Ok if tokens > parent.tokens.len() => Status::InvalidArgument,
            Status::Ok if parent.written < parent.tokens.len() => Status::WrongState,
            other => other,
        };
        let mut fork = op(KAVERN_OP_FORK, parent.id);
        (fork.tokens, fork.row) = (tokens as u64, -1);
        if let Some(result) = self.alone(&fork, self.expect(expected)) {
            let length = if tokens == 0 { parent.tokens.len() } else { tokens };
            self.live[at].promised = 0;
            self.begin(Sequence {
                id: result.sequence,
                row: result.row as usize,
                namespace: parent.namespace,
                tokens: parent.tokens[..length].to_vec(),
                numbers: parent.numbers[..length].to_vec(),
                committed: parent.committed.min(length),
                written: length,
                trimmed: parent.trimmed,
                promised: 0,
                pause: None,
                parent: parent.id,
                unwritten: keep_before(parent.unwritten, &self.block_tokens, length),
            });
        }
    }

    fn rollback(&mut self, at: usize) {
        let sequence = self.live[at].clone();
        let tokens = self.random.usize(0..=sequence.tokens.len() + 1);
        let mut roll = op(KAVERN_OP_ROLLBACK, sequence.id);
        (roll.tokens, roll.lookahead) = (tokens as u64, self.random.u32(0..8));
        let expected = match self.running(at) {
            Status::Ok if tokens > sequence.tokens.len() => Status::InvalidArgument,
            other => other,
        };
        if self.random.bool() && tokens <= sequence.tokens.len() {
            roll.token_ids = sequence.tokens[tokens - tokens % self.link..].as_ptr();
        }
        if self.alone(&roll, self.expect(expected)).is_some() {
            let sequence = &mut self.live[at];
            sequence.tokens.truncate(tokens);
            sequence.numbers.truncate(tokens);
            sequence.committed = sequence.committed.min(tokens);
            sequence.written = sequence.written.min(tokens);
            sequence.trimmed = sequence.trimmed.min(tokens);
            sequence.promised = 0;
            let found = std::mem::take(&mut sequence.unwritten);
            sequence.unwritten = keep_before(found, &self.block_tokens, tokens);
        }
    }

    fn edit(&mut self, at: usize) {
        let length = self.live[at].tokens.len();
        let (offset, tokens) = (self.random.usize(0..=length), self.random.usize(0..=length / 2 + 1));
        let expected = match self.running(at) {
            Status::Ok if tokens == 0 || offset + tokens > length => Status::InvalidArgument,
            Status::Ok if self.live[at].written < length => Status::WrongState,
            Status::Ok if self.copies_early(at, offset, tokens) => {
                self.sums.early += 1;
                Status::WrongState
            }
            other => other,
        };
        let mut edit = op(KAVERN_OP_EDIT, self.live[at].id);
        (edit.offset, edit.tokens) = (offset as u64, tokens as u64);
        if self.alone(&edit, self.expect(expected)).is_some() {
            let sequence = &mut self.live[at];
            sequence.tokens.drain(offset..offset + tokens);
            sequence.numbers.drain(offset..offset + tokens);
            sequence.written -= tokens;
            sequence.committed = match sequence.committed >= offset + tokens {
                true => sequence.committed - tokens,
                false => sequence.committed.min(offset),
            };
            sequence.trimmed = sequence.trimmed.min(sequence.tokens.len());
            sequence.promised = 0;
            // From the first copied block on all are its own.
            let each = &self.block_tokens;
            sequence.unwritten.retain(|&(group, cell)| cell < offset / each[group]);
        }
    }

    /// An EDIT copies what the open step is yet to write.
    fn copies_early(&self, at: usize, offset: usize, tokens: usize) -> bool {
        let Sequence { unwritten, tokens: all, .. } = &self.live[at];
        let mut each = self.block_tokens.iter().enumerate();
        each.any(|(group, &each)| {
            copies(unwritten, group, each, offset - offset % each, (offset, tokens, all.len()))
        })
    }

    /// The sequence and all that was forked from it leave the list.
    fn forget_family(&mut self, id: u64) {
        let of = |sequence: &&Sequence| sequence.parent == id;
        let children: Vec<u64> = self.live.iter().filter(of).map(|sequence| sequence.id).collect();
        self.live.retain(|sequence| sequence.id != id);
        children.into_iter().for_each(|child| self.forget_family(child));
    }

    fn accept(&mut self, at: usize) {
        let child = self.live[at].clone();
        let parent = self.live.iter().position(|sequence| sequence.id == child.parent);
        let is_pending = |sequence: &Sequence| sequence.written < sequence.tokens.len();
        let expected = match (self.running(at), parent) {
            (Status::Ok, Some(parent)) => match self.running(parent) {
                Status::Ok if is_pending(&child) || is_pending(&self.live[parent]) => Status::WrongState,
                other => other,
            },
            _ => Status::WrongState,
        };
        if self.alone(&op(KAVERN_OP_ACCEPT, child.id), self.expect(expected)).is_none() {
            return;
        }
        let is_other = |sequence: &&Sequence| sequence.parent == child.parent && sequence.id != child.id;
        let others: Vec<u64> = self.live.iter().filter(is_other).map(|sequence| sequence.id).collect();
        others.into_iter().for_each(|other| self.forget_family(other));
        self.live.retain(|sequence| sequence.id != child.id);
        for sequence in self.live.iter_mut().filter(|sequence| sequence.parent == child.id) {
            sequence.parent = child.parent;
        }
        let heir = self.live.iter_mut().find(|sequence| sequence.id == child.parent).unwrap();
        *heir = Sequence { id: heir.id, row: heir.row, parent: heir.parent, promised: 0, ..child };
    }

    fn preempt(&mut self, at: usize) {
        let mut preempt = op(KAVERN_OP_PREEMPT, self.live[at].id);
        let (pause, mode) = match self.random.bool() {
            true => (Pause::Keeps, kavern_kv_preempt_mode::KAVERN_PREEMPT_KEEP),
            false => (Pause::Dropped, kavern_kv_preempt_mode::KAVERN_PREEMPT_DROP),
        };
        preempt.mode = mode as u32;
        if self.alone(&preempt, self.expect(self.running(at))).is_some() {
            let sequence = &mut self.live[at];
            (sequence.pause, sequence.promised) = (Some(pause), 0);
            if pause == Pause::Dropped {
                // The tokens are kept to look them up.
                (sequence.numbers, sequence.committed) = (Vec::new(), 0);
                (sequence.written, sequence.trimmed) = (0, 0);
                sequence.unwritten.clear();
            }
        }
    }
}
