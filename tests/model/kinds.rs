//! Every operation in caches of several kinds of groups, with bytes: whatever is forked, cut, moved and found again,
//! each token that the next one reaches lies where the tables say, and each state and other input is the sequence's.
//!
//! A token's number tells its whole past and the input that the sequence is about, and a state is the number of the
//! token that it ends with. The work of a step reads before it writes, as sequences of one step run side by side.

use std::collections::HashSet;
use std::sync::Arc;

use fastrand::Rng;
use kavern::cache::{
    CacheConfig, Change, Content, Extra, GroupConfig, HashKind, IndexOptions, KvCache, Naming, Op, OpResult,
    PreemptMode, Reach, Request, Scrub, Target,
};
use kavern::device::{Device, DeviceSlice, Stream, registry};
use kavern::error::Status;
use kavern::event::NoSink;
use kavern::format::{BlockShape, LatentShape, Layout};
use kavern::memory::{Limits, Memory};
use kavern::types::{Dtype, Id};

const BLOCKS: u64 = 44;
const MAX_TOKENS: usize = 72;

/// What a group reaches and its tokens in a block.
type Kind = (Reach, u32);

const fn sliding(window_tokens: u32) -> Reach {
    Reach::Sliding { window_tokens }
}

const fn state(snapshot_blocks: u32) -> Reach {
    Reach::State { snapshot_blocks }
}

const CACHES: [(HashKind, &[Kind]); 8] = [
    (HashKind::Blake3, &[(Reach::All, 4), (sliding(10), 4), (sliding(24), 8)]),
    (HashKind::Blake3, &[(Reach::All, 4), (state(0), 4)]),
    (HashKind::Xxh3, &[(Reach::All, 4), (state(2), 4), (sliding(9), 4)]),
    (HashKind::Blake3, &[(Reach::Untrimmed, 4), (Reach::All, 8)]),
    (HashKind::Xxh3, &[(Reach::All, 4), (Reach::Chunked { chunk_tokens: 12 }, 4), (Reach::Untrimmed, 8)]),
    (HashKind::Blake3, &[(Reach::All, 4), (Reach::Cross { tokens: 6 }, 4), (sliding(13), 2)]),
    (HashKind::Blake3, &[(sliding(16), 4), (state(1), 4), (Reach::Cross { tokens: 3 }, 2)]),
    (HashKind::Xxh3, &[(Reach::All, 2), (Reach::Cross { tokens: 5 }, 2), (state(3), 4)]),
];

fn group_config(index: usize, &(reach, block_tokens): &Kind) -> GroupConfig {
    let content = match reach {
        Reach::State { .. } => Content::Opaque { block_bytes: 32 },
        _ if index == 1 => Content::Latent(LatentShape { layers: 1, token_bytes: 4, block_tokens }),
        _ => Content::Attention(BlockShape {
            layers: 1,
            kv_heads: 1,
            head_dim: 2,
            dtype: Dtype::F16,
            block_tokens,
            layout: Layout::Nhd,
        }),
    };
    GroupConfig { content, reach, block_tokens, capacity_blocks: 0, region: None }
}

fn config(hash: HashKind, groups: &[Kind]) -> CacheConfig {
    CacheConfig {
        name: "kinds".to_owned(),
        groups: groups.iter().enumerate().map(|(index, kind)| group_config(index, kind)).collect(),
        capacity_blocks: BLOCKS,
        capacity_bytes: 0,
        max_sequences: 9,
        max_sequence_tokens: MAX_TOKENS as u64,
        max_batch_tokens: 128,
        max_leases: 4,
        max_namespaces: 8,
        steps_in_flight: 3,
        hash_block_tokens: 0,
        hash,
        scrub: Scrub::TenantChange,
        event_capacity: 16,
        policy: "lru".to_owned(),
        hash_secret: [9; 32],
        metadata_only: false,
        ragged: true,
        require_salt: false,
        index: IndexOptions::default(),
        partial_hits: false,
        worker: false,
        exact_order: true,
        max_blocks: 0,
        adaptive: None,
    }
}

/// The number of a token that follows one with the number `before`.
fn number(before: i32, token: i32) -> i32 {
    let mixed =
        (i64::from(before) ^ i64::from(token + 77) << 33).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64);
    (mixed >> 29) as i32
}

#[derive(Clone, Default)]
struct Sequence {
    id: u64,
    row: usize,
    /// What it is about, which is also the number before its first token.
    input: u8,
    tokens: Vec<i32>,
    numbers: Vec<i32>,
    committed: usize,
    /// Tokens whose numbers lie in their slots already.
    written: usize,
    /// Tokens before this one are not needed where they can be let go.
    trimmed: usize,
    /// An edit moved windows, which hold nothing before this token.
    edited: usize,
    /// Where it holds tokens from, by group.
    firsts: Vec<usize>,
    /// First token that the open step computes, if it computes any.
    first: Option<usize>,
    /// Tokens in the state from which its latest part started, and whether that is kept for certain.
    start: Option<(usize, bool)>,
    /// Groups whose other input was found, as bits.
    found: u32,
    pause: Option<PreemptMode>,
    parent: u64,
    /// Step in which it, or who it was forked from, found tokens.
    found_in: u64,
}

impl Sequence {
    fn numbers(&self) -> Vec<i32> {
        let mut before = i32::from(self.input);
        let next = |&token: &i32| {
            before = number(before, token);
            before
        };
        self.tokens.iter().map(next).collect()
    }

    /// It has what a lookup found and tokens that the step computes.
    fn begin(&mut self, hit: usize, count: usize, found: u32, firsts: Vec<usize>) {
        self.numbers = self.numbers();
        (self.committed, self.written, self.pause) = (hit, hit, None);
        (self.trimmed, self.edited, self.firsts, self.found) = (0, 0, firsts, found);
        self.first = (count > 0).then_some(hit);
        self.start = (count > 0).then_some((hit, true));
    }

    /// The open step computes tokens of it.
    fn is_pending(&self) -> bool {
        self.first.is_some_and(|first| first < self.tokens.len())
    }

    fn is_dropped(&self) -> bool {
        self.pause == Some(PreemptMode::Drop)
    }
}

struct Run {
    random: Rng,
    cache: KvCache,
    device: Arc<dyn Device>,
    stream: Stream,
    groups: Vec<Kind>,
    link: usize,
    live: Vec<Sequence>,
    step: u64,
    is_tabled: bool,
    hits: u64,
    /// Operations that went well, by kind, and those that were refused because something is gone.
    done: [u64; 14],
}

fn change(id: u64, change: Change<'_>) -> Op<'_> {
    Op::Change { target: Target::Id(Id(id)), change }
}

impl Run {
    fn is_state(&self, group: usize) -> bool {
        matches!(self.groups[group].0, Reach::State { .. })
    }

    fn is_window(&self, group: usize) -> bool {
        matches!(self.groups[group].0, Reach::Sliding { .. } | Reach::Chunked { .. })
    }

    fn is_cross(&self, group: usize) -> bool {
        matches!(self.groups[group].0, Reach::Cross { .. })
    }

    fn has_states(&self) -> bool {
        (0..self.groups.len()).any(|group| self.is_state(group))
    }

    fn extras(&self, input: u8, first: usize) -> Vec<Extra> {
        let has_input = (0..self.groups.len()).any(|group| self.is_cross(group)) && first == 0;
        if has_input { vec![Extra { id: [input; 32], token_offset: 0 }] } else { Vec::new() }
    }

    /// First token that the one at `at` reaches in a group, of those that TRIM left.
    fn needed(&self, group: usize, at: usize, trimmed: usize) -> usize {
        match self.groups[group].0 {
            Reach::Sliding { window_tokens } => (at + 1).saturating_sub(window_tokens as usize).max(trimmed),
            Reach::Chunked { chunk_tokens } => {
                (at / chunk_tokens as usize * chunk_tokens as usize).max(trimmed)
            }
            Reach::Untrimmed => trimmed,
            _ => 0,
        }
        .min(at)
    }

    fn first_cell(&self, group: usize, at: usize, trimmed: usize) -> usize {
        self.needed(group, at, trimmed) / self.groups[group].1 as usize
    }

    fn first_cells(&self, at: usize) -> Vec<usize> {
        (0..self.groups.len()).map(|group| self.first_cell(group, at, 0)).collect()
    }

    /// Whether every window holds what follows the first `at` tokens.
    fn is_held(&self, sequence: &Sequence, at: usize) -> bool {
        let mut groups = 0..self.groups.len();
        groups.all(|group| {
            let needed = self.needed(group, at, sequence.trimmed);
            let is_moved = self.is_window(group) && needed < sequence.edited && needed < at;
            self.first_cell(group, at, sequence.trimmed) >= sequence.firsts[group] && !is_moved
        })
    }

    /// Whether the states allow it, as far as that is certain.
    fn has_state(&self, sequence: &Sequence, at: usize) -> Option<bool> {
        let is_pending = |first: &usize| !self.is_tabled && *first <= at;
        if !self.has_states()
            || at == sequence.tokens.len()
            || at == 0
            || sequence.first.as_ref().is_some_and(is_pending)
        {
            return Some(true);
        }
        let is_start = sequence.start.is_some_and(|(start, _)| start == at);
        let is_kept = sequence.start.is_some_and(|(start, is_kept)| start == at && is_kept);
        let may_be_snapshot = at.is_multiple_of(self.link) && at <= sequence.committed;
        if is_kept { Some(true) } else { (!is_start && !may_be_snapshot).then_some(false) }
    }

    fn counts(&self) -> [u64; 11] {
        let s = self.cache.statistics();
        [
            s.free_blocks,
            s.used_blocks,
            s.inactive_blocks,
            s.deferred_blocks,
            s.indexed_blocks,
            s.sequences,
            s.leases,
            s.used_tokens,
            s.used_slots,
            s.held_tokens,
            s.promised_blocks,
        ]
    }

    /// Applies an operation in a list of its own; `expected` is what its tokens decide, where they do.
    fn alone(&mut self, op: &Op<'_>, expected: Option<Status>) -> Option<OpResult> {
        let before = self.counts();
        let result = self.cache.step(self.step).unwrap().apply(op);
        if result.status == Status::Ok {
            assert!(matches!(expected, None | Some(Status::Ok)), "{op:?} {expected:?}");
            return Some(result);
        }
        assert_eq!(before, self.counts(), "{op:?} {:?}", result.status);
        let is_resource = matches!(result.status, Status::OutOfBlocks | Status::LimitReached);
        assert_eq!(result.blocks_missing > 0, result.status == Status::OutOfBlocks, "{op:?}");
        let is_found = matches!(op, Op::Change { .. }) && result.status == Status::InUse;
        self.done[13] += u64::from(result.status == Status::WrongState);
        match expected {
            _ if is_resource || is_found => {}
            Some(expected) => assert_eq!(result.status, expected, "{op:?}"),
            None => assert_eq!(result.status, Status::WrongState, "{op:?}"),
        }
        None
    }

    /// Looks a prompt up; answers lease, hit tokens, and groups whose other input was found.
    fn look(&mut self, input: u8, prompt: &[i32]) -> Option<(Id, usize, u32)> {
        let extras = self.extras(input, 0);
        let request = Request {
            namespace_id: if extras.is_empty() { input.into() } else { 1 },
            adapter_id: 0,
            salt: b"",
            naming: Naming::Tokens(prompt, if prompt.is_empty() { &[] } else { &extras }),
            token_count: prompt.len() as u64,
            no_read: false,
            no_store: false,
            drop_last: false,
            keep_one_token: true,
            sizing: Default::default(),
        };
        let found = self.cache.lookups().find(&request).ok()?;
        self.hits += found.hit_tokens;
        Some((found.lease, found.hit_tokens as usize, found.cross_groups))
    }

    fn admit(&mut self) {
        let length = self.random.usize(1..40);
        let input = self.random.u8(1..3);
        let prompt: Vec<i32> =
            (0..length).map(|_| if self.random.u8(0..10) == 0 { self.random.i32(0..3) } else { 0 }).collect();
        let Some((lease, hit, found)) = self.look(input, &prompt) else { return };
        let count = self.random.usize(0..=prompt.len() - hit);
        let (tokens, lookahead, row) = (count as u64, self.random.u32(0..6), -1);
        let expected_tokens = self.random.u64(1..=MAX_TOKENS as u64);
        let expected_tokens = if self.random.u8(0..4) == 0 { expected_tokens } else { 0 };
        let op = Op::Admit { lease, tokens, lookahead, row, expected_tokens };
        let Some(result) = self.alone(&op, Some(Status::Ok)) else {
            self.alone(&Op::Release { lease }, Some(Status::Ok)).unwrap();
            return;
        };
        let mut sequence = Sequence {
            id: result.sequence,
            row: result.row as usize,
            input,
            tokens: prompt[..hit + count].to_vec(),
            ..Sequence::default()
        };
        sequence.begin(hit, count, found, self.first_cells(hit));
        sequence.found_in = self.step;
        self.live.push(sequence);
        self.done[0] += 1;
    }

    fn running(&self, at: usize) -> Status {
        if self.live[at].pause.is_some() { Status::WrongState } else { Status::Ok }
    }

    /// The step computes `count` tokens more of a sequence.
    fn extend(&mut self, at: usize, count: usize, lookahead: u32) {
        let length = self.live[at].tokens.len();
        let first = self.live[at].first.unwrap_or(length);
        for group in 0..self.groups.len() {
            let cell = self.first_cell(group, first, 0);
            let held = &mut self.live[at].firsts[group];
            *held = cell.max(*held);
        }
        for _ in 0..count {
            let token = if self.random.u8(0..6) == 0 { self.random.i32(0..3) } else { 0 };
            let sequence = &mut self.live[at];
            let before = sequence.numbers.last().copied().unwrap_or(sequence.input.into());
            sequence.tokens.push(token);
            sequence.numbers.push(number(before, token));
        }
        let sequence = &mut self.live[at];
        if count > 0 && sequence.first.is_none() {
            sequence.first = Some(length);
            sequence.start = Some((length, lookahead > 0));
        }
    }

    fn may_append(&self, at: usize, count: usize, lookahead: u32) -> Option<Status> {
        let sequence = &self.live[at];
        let fits = sequence.tokens.len() + count + lookahead as usize <= MAX_TOKENS;
        let is_taken = self.has_states() && sequence.first.is_some() && count > 0;
        match fits {
            false => Some(Status::InvalidArgument),
            // The state of the open step may be findable already.
            true if is_taken => None,
            true => Some(Status::Ok),
        }
    }

    fn append(&mut self, at: usize) {
        let (target, count) = (Target::Id(Id(self.live[at].id)), self.random.usize(0..6));
        let lookahead = if self.random.bool() { self.random.u32(0..5) } else { 0 };
        let expected = match self.running(at) {
            Status::Ok => self.may_append(at, count, lookahead),
            other => Some(other),
        };
        if self.alone(&Op::Append { target, tokens: count as u64, lookahead }, expected).is_some() {
            self.extend(at, count, lookahead);
            self.done[1] += 1;
        }
    }

    fn commit(&mut self, at: usize) {
        let sequence = self.live[at].clone();
        let count = self.random.usize(0..=sequence.tokens.len() - sequence.committed);
        let ids = &sequence.tokens[sequence.committed..sequence.committed + count];
        let extras = self.extras(sequence.input, sequence.committed);
        let extras = if count == 0 { &[] } else { &extras[..] };
        let op = Op::Commit {
            target: Target::Id(Id(sequence.id)),
            tokens: count as u64,
            naming: Naming::Tokens(ids, extras),
        };
        if self.alone(&op, Some(self.running(at))).is_some() {
            self.live[at].committed += count;
            self.done[2] += 1;
        }
    }

    fn fork(&mut self, at: usize) {
        let parent = self.live[at].clone();
        let tokens = self.random.usize(0..=parent.tokens.len() + 1);
        let tokens = if self.random.bool() { parent.tokens.len() } else { tokens };
        let length = if tokens == 0 { parent.tokens.len() } else { tokens };
        let expected = match self.running(at) {
            Status::Ok if tokens > parent.tokens.len() => Some(Status::InvalidArgument),
            Status::Ok if parent.is_pending() || !self.is_held(&parent, length) => Some(Status::WrongState),
            Status::Ok => match self.has_state(&parent, length) {
                Some(true) => Some(Status::Ok),
                Some(false) => Some(Status::WrongState),
                None => None,
            },
            other => Some(other),
        };
        let op = change(parent.id, Change::Fork { tokens: tokens as u64, row: -1 });
        if let Some(result) = self.alone(&op, expected) {
            let firsts = (0..self.groups.len())
                .map(|group| self.first_cell(group, length, parent.trimmed).max(parent.firsts[group]));
            self.live.push(Sequence {
                id: result.sequence,
                row: result.row as usize,
                tokens: parent.tokens[..length].to_vec(),
                numbers: parent.numbers[..length].to_vec(),
                committed: parent.committed.min(length),
                written: length,
                trimmed: parent.trimmed.min(length),
                edited: parent.edited.min(length),
                firsts: firsts.collect(),
                start: None,
                first: None,
                parent: parent.id,
                ..parent
            });
            self.done[3] += 1;
        }
    }

    fn rollback(&mut self, at: usize) {
        let sequence = self.live[at].clone();
        let length = sequence.tokens.len();
        let tokens = match self.random.u8(0..4) {
            0 => sequence.start.map_or(0, |(start, _)| start),
            1 => length.saturating_sub(self.random.usize(0..4)),
            _ => self.random.usize(0..=length + 1),
        };
        let boundary = (tokens - tokens % self.link).min(length);
        let open = if self.random.bool() { &sequence.tokens[boundary..tokens.min(length)] } else { &[] };
        let extras = self.extras(sequence.input, boundary);
        let expected = match self.running(at) {
            Status::Ok if tokens > length => Some(Status::InvalidArgument),
            Status::Ok if !self.is_held(&sequence, tokens) => Some(Status::WrongState),
            Status::Ok => match self.has_state(&sequence, tokens) {
                Some(true) => Some(Status::Ok),
                Some(false) => Some(Status::WrongState),
                None => None,
            },
            other => Some(other),
        };
        let lookahead = self.random.u32(0..8);
        let extras = if open.is_empty() { &[] } else { &extras[..] };
        let roll = Change::Rollback { tokens: tokens as u64, lookahead, open_tokens: open, extras };
        if self.alone(&change(sequence.id, roll), expected).is_some() {
            let is_pending = !self.is_tabled && sequence.first.is_some_and(|first| tokens > first);
            let sequence = &mut self.live[at];
            sequence.tokens.truncate(tokens);
            sequence.numbers.truncate(tokens);
            sequence.committed = sequence.committed.min(tokens);
            sequence.written = sequence.written.min(tokens);
            sequence.trimmed = sequence.trimmed.min(tokens);
            sequence.edited = sequence.edited.min(tokens);
            sequence.first = sequence.first.filter(|&first| first < tokens);
            if tokens < length && !is_pending {
                sequence.start = None;
            }
            self.done[4] += 1;
        }
    }

    fn edit(&mut self, at: usize) {
        let sequence = self.live[at].clone();
        let length = sequence.tokens.len();
        let (offset, tokens) = (self.random.usize(0..=length), self.random.usize(0..=length / 2 + 1));
        let moved =
            |token: usize| if token <= offset { token } else { offset.max(token.saturating_sub(tokens)) };
        let mut firsts = sequence.firsts.clone();
        let (mut is_held, mut edited) = (true, moved(sequence.edited));
        if offset + tokens <= length {
            for (group, first) in firsts.iter_mut().enumerate() {
                let needed = self.needed(group, length - tokens, moved(sequence.trimmed));
                let each = self.groups[group].1 as usize;
                if !matches!(self.groups[group].0, Reach::All | Reach::Cross { .. } | Reach::State { .. }) {
                    let before = if needed < offset { needed } else { needed + tokens };
                    is_held &= before / each >= *first;
                    if self.is_window(group) && needed < offset {
                        is_held &= needed >= sequence.edited;
                    } else if self.is_window(group) {
                        edited = edited.max(needed);
                    }
                    *first = if needed < offset { *first } else { needed / each };
                }
            }
        }
        let expected = match self.running(at) {
            Status::Ok if tokens == 0 || offset + tokens > length => Status::InvalidArgument,
            Status::Ok if self.has_states() => Status::Unsupported,
            Status::Ok if sequence.is_pending() || !is_held => Status::WrongState,
            other => other,
        };
        let edit = Change::Edit { offset: offset as u64, tokens: tokens as u64 };
        // What it found in this step may be what another one is yet to write; then it is refused.
        let is_fresh = sequence.found_in == self.step && expected == Status::Ok;
        let expected = if is_fresh { None } else { Some(expected) };
        if self.alone(&change(sequence.id, edit), expected).is_some() {
            let sequence = &mut self.live[at];
            sequence.tokens.drain(offset..offset + tokens);
            sequence.numbers.drain(offset..offset + tokens);
            sequence.written -= tokens;
            sequence.committed = match sequence.committed >= offset + tokens {
                true => sequence.committed - tokens,
                false => sequence.committed.min(offset),
            };
            sequence.firsts = firsts;
            (sequence.trimmed, sequence.edited) = (moved(sequence.trimmed), edited);
            sequence.first = None;
            self.done[5] += 1;
        }
    }

    fn trim(&mut self, at: usize) {
        let sequence = self.live[at].clone();
        let offset = self.random.usize(0..=sequence.tokens.len() + 1);
        let lets_go =
            |&(reach, _): &Kind| !matches!(reach, Reach::All | Reach::State { .. } | Reach::Cross { .. });
        let expected = match self.running(at) {
            Status::Ok if offset > sequence.tokens.len() => Status::InvalidArgument,
            Status::Ok if !self.groups.iter().any(lets_go) => Status::Unsupported,
            Status::Ok if sequence.first.is_some_and(|first| offset > first) => Status::WrongState,
            other => other,
        };
        let op = Op::Trim { target: Target::Id(Id(sequence.id)), offset: offset as u64 };
        if self.alone(&op, Some(expected)).is_some() {
            let sequence = &mut self.live[at];
            sequence.trimmed = sequence.trimmed.max(offset);
            for (held, kind) in sequence.firsts.iter_mut().zip(&self.groups) {
                *held = if lets_go(kind) { (*held).max(offset / kind.1 as usize) } else { 0 };
            }
            self.done[12] += 1;
        }
    }

    /// The sequence and all that was forked from it leave the list.
    fn forget_family(&mut self, id: u64) {
        let children: Vec<u64> = self.live.iter().filter(|s| s.parent == id).map(|s| s.id).collect();
        self.live.retain(|sequence| sequence.id != id);
        children.into_iter().for_each(|child| self.forget_family(child));
    }

    fn accept(&mut self, at: usize) {
        let child = self.live[at].clone();
        let parent = self.live.iter().position(|s| s.id == child.parent);
        let expected = match (self.running(at), parent) {
            (Status::Ok, Some(parent)) if self.running(parent) != Status::Ok => Status::WrongState,
            (Status::Ok, Some(parent)) if child.is_pending() || self.live[parent].is_pending() => {
                Status::WrongState
            }
            (Status::Ok, Some(_)) => Status::Ok,
            _ => Status::WrongState,
        };
        if self.alone(&change(child.id, Change::Accept), Some(expected)).is_none() {
            return;
        }
        let others: Vec<u64> =
            self.live.iter().filter(|s| s.parent == child.parent && s.id != child.id).map(|s| s.id).collect();
        others.into_iter().for_each(|other| self.forget_family(other));
        self.live.retain(|sequence| sequence.id != child.id);
        for sequence in &mut self.live {
            if sequence.parent == child.id {
                sequence.parent = child.parent;
            }
        }
        let heir = self.live.iter_mut().find(|s| s.id == child.parent).unwrap();
        *heir = Sequence { id: heir.id, row: heir.row, parent: heir.parent, first: None, ..child };
        self.done[6] += 1;
    }

    fn preempt(&mut self, at: usize) {
        let mode = if self.random.bool() { PreemptMode::Keep } else { PreemptMode::Drop };
        let op = change(self.live[at].id, Change::Preempt { mode });
        if self.alone(&op, Some(self.running(at))).is_some() {
            let sequence = &mut self.live[at];
            sequence.pause = Some(mode);
            if mode == PreemptMode::Drop {
                (sequence.numbers, sequence.committed, sequence.written) = (Vec::new(), 0, 0);
                (sequence.first, sequence.start, sequence.trimmed, sequence.edited) = (None, None, 0, 0);
                sequence.firsts.fill(0);
            }
            self.done[7] += 1;
        }
    }

    fn resume(&mut self, at: usize) {
        let sequence = self.live[at].clone();
        if !sequence.is_dropped() {
            let count = self.random.usize(0..4);
            let expected = match sequence.pause {
                None => Some(Status::WrongState),
                Some(_) => self.may_append(at, count, 0),
            };
            let resume = Change::Resume { lease: None, tokens: count as u64, lookahead: 0 };
            if self.alone(&change(sequence.id, resume), expected).is_some() {
                self.live[at].pause = None;
                self.extend(at, count, 0);
                self.done[8] += 1;
            }
            return;
        }
        let Some((lease, hit, found)) = self.look(sequence.input, &sequence.tokens) else { return };
        let count = self.random.usize(0..=sequence.tokens.len() - hit);
        let resume = Change::Resume { lease: Some(lease), tokens: count as u64, lookahead: 0 };
        // What it is about decides its namespace, so the lease fits.
        if self.alone(&change(sequence.id, resume), Some(Status::Ok)).is_none() {
            self.alone(&Op::Release { lease }, Some(Status::Ok)).unwrap();
            return;
        }
        let (firsts, step) = (self.first_cells(hit), self.step);
        let sequence = &mut self.live[at];
        sequence.tokens.truncate(hit + count);
        sequence.begin(hit, count, found, firsts);
        sequence.found_in = step;
        self.done[9] += 1;
    }

    fn end(&mut self, at: usize) {
        let sequence = self.live[at].clone();
        let target = Target::Id(Id(sequence.id));
        // A freed sequence leaves behind what it committed and nobody writes; a cancelled one does not.
        let op = match sequence.committed <= sequence.written && self.random.bool() {
            true => Op::Free { target },
            false => Op::Change { target, change: Change::Cancel },
        };
        if self.alone(&op, Some(Status::Ok)).is_some() {
            self.live.remove(at);
            for other in &mut self.live {
                if other.parent == sequence.id {
                    other.parent = 0;
                }
            }
            self.done[10] += 1;
        }
    }

    fn pool(&self, group: usize) -> DeviceSlice {
        let about = self.cache.describe(group as u32).unwrap();
        // SAFETY: the pool of the cache, which lives as long as `self`.
        unsafe {
            DeviceSlice::from_foreign(self.device.key(), about.base_address, BLOCKS * about.block_bytes)
        }
        .unwrap()
    }

    /// First bytes of a token in its pool: of its key and its value, or of its row.
    fn places(&self, group: usize, row: &[i32], token: usize) -> [usize; 2] {
        let (strides, each) =
            (self.cache.describe(group as u32).unwrap().strides, self.groups[group].1 as usize);
        assert!((0..BLOCKS as i32).contains(&row[token / each]), "group {group}, token {token}: {row:?}");
        let first = row[token / each] as u64 * strides.block + (token % each) as u64 * strides.token;
        [first as usize, (first + strides.kv) as usize]
    }

    /// The step's work, and a look at everything.
    fn work(&mut self) {
        let (groups, rows, starts, lengths) = self
            .cache
            .tables(self.step, self.stream, |tables| {
                let group = |group: usize| {
                    let view = tables.group(group).unwrap();
                    let cells = view.row_cells as usize;
                    let rows: Vec<Vec<i32>> = view.block_table.chunks(cells).map(<[i32]>::to_vec).collect();
                    (rows, view.slot_mapping.to_vec())
                };
                let rows = tables.batch_rows()?.to_vec();
                let starts = tables.batch_starts()?.to_vec();
                let groups: Vec<_> = (0..self.groups.len()).map(group).collect();
                Ok((groups, rows, starts, tables.sequence_lengths().to_vec()))
            })
            .unwrap();
        self.device.stream_synchronize(self.stream).unwrap();
        let held: Vec<Sequence> = self.live.iter().filter(|s| !s.is_dropped()).cloned().collect();
        held.iter().for_each(|s| assert_eq!(lengths[s.row] as usize, s.tokens.len()));
        for (group, (table, slots)) in groups.iter().enumerate() {
            let mut bytes = vec![0; self.pool(group).bytes() as usize];
            self.device.read(self.pool(group), &mut bytes).unwrap();
            match self.groups[group].0 {
                Reach::State { .. } => self.work_states(group, table, &mut bytes, &held),
                Reach::Cross { tokens } => self.work_input(group, table, &mut bytes, &held, tokens as usize),
                _ => {
                    for sequence in &held {
                        let mut of_step: Vec<i64> = Vec::new();
                        for (at, _) in
                            rows.iter().enumerate().filter(|(_, row)| **row as usize == sequence.row)
                        {
                            of_step.extend(&slots[starts[at] as usize..starts[at + 1] as usize]);
                        }
                        let each = self.groups[group].1 as usize;
                        let row = &table[sequence.row];
                        for (token, slot) in (sequence.written..sequence.tokens.len()).zip(&of_step) {
                            assert_eq!(*slot as usize, row[token / each] as usize * each + token % each);
                        }
                        let pending = sequence.tokens.len() - sequence.written;
                        assert_eq!(of_step.len(), pending, "tokens of {:x} in the batch", sequence.id);
                    }
                    self.work_tokens(group, table, &mut bytes, &held);
                }
            }
            self.device.write(self.pool(group), &bytes).unwrap();
        }
        self.live.iter_mut().for_each(|s| s.written = if s.is_dropped() { 0 } else { s.tokens.len() });
        self.is_tabled = true;
    }

    fn work_tokens(&self, group: usize, table: &[Vec<i32>], bytes: &mut [u8], held: &[Sequence]) {
        for sequence in held {
            for token in sequence.written..sequence.tokens.len() {
                for at in self.places(group, &table[sequence.row], token) {
                    bytes[at..at + 4].copy_from_slice(&sequence.numbers[token].to_le_bytes());
                }
            }
        }
        // After all writes: one may have found what another writes in the same step, and none may be overwritten.
        let null = self.cache.describe(group as u32).unwrap().null_block.map(|block| block as i32);
        for sequence in held {
            let row = &table[sequence.row];
            assert!(row[..sequence.firsts[group]].iter().all(|&cell| Some(cell) == null), "group {group}");
            let length = sequence.tokens.len();
            let first = sequence.first.unwrap_or(length);
            for token in self.needed(group, first, sequence.trimmed)..length {
                for at in self.places(group, row, token) {
                    let seen = i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
                    let of = sequence.id;
                    assert_eq!(seen, sequence.numbers[token], "group {group}, token {token} of {of:x}");
                }
            }
        }
    }

    fn work_states(&self, group: usize, table: &[Vec<i32>], bytes: &mut [u8], held: &[Sequence]) {
        let block_bytes = self.cache.describe(group as u32).unwrap().block_bytes as usize;
        let place = |block: i32| block as usize * block_bytes..block as usize * block_bytes + 4;
        let is_pending = |sequence: &&Sequence| sequence.written < sequence.tokens.len();
        for sequence in held.iter().filter(is_pending).filter(|sequence| sequence.written > 0) {
            let [current, start] = table[sequence.row][..] else { panic!("two cells") };
            let state = &bytes[place(if start >= 0 { start } else { current })];
            let (seen, of) = (i32::from_le_bytes(state.try_into().unwrap()), sequence.id);
            assert_eq!(seen, sequence.numbers[sequence.written - 1], "group {group}: the start of {of:x}");
        }
        let mut written = HashSet::new();
        for sequence in held.iter().filter(is_pending) {
            let current = table[sequence.row][0];
            assert!(written.insert(current), "two write block {current}");
            bytes[place(current)].copy_from_slice(&sequence.numbers[sequence.tokens.len() - 1].to_le_bytes());
        }
        for sequence in held.iter().filter(|sequence| !sequence.tokens.is_empty()) {
            let [current, start] = table[sequence.row][..] else { panic!("two cells") };
            let state = &bytes[place(current)];
            let (seen, of) = (i32::from_le_bytes(state.try_into().unwrap()), sequence.id);
            assert_eq!(
                seen,
                sequence.numbers[sequence.tokens.len() - 1],
                "group {group}: the state of {of:x}"
            );
            assert!(
                start < 0 || !written.contains(&start),
                "group {group}: {of:x} starts from what is written"
            );
        }
    }

    fn work_input(
        &self,
        group: usize,
        table: &[Vec<i32>],
        bytes: &mut [u8],
        held: &[Sequence],
        tokens: usize,
    ) {
        let of = |sequence: &Sequence, token: usize| i32::from(sequence.input) * 1000 + token as i32;
        for sequence in held.iter().filter(|s| s.written == 0 && !s.tokens.is_empty()) {
            for token in (0..tokens).filter(|_| sequence.found >> group & 1 == 0) {
                for at in self.places(group, &table[sequence.row], token) {
                    bytes[at..at + 4].copy_from_slice(&of(sequence, token).to_le_bytes());
                }
            }
        }
        for sequence in held.iter().filter(|s| !s.tokens.is_empty()) {
            for token in 0..tokens {
                for at in self.places(group, &table[sequence.row], token) {
                    let seen = i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
                    assert_eq!(
                        seen,
                        of(sequence, token),
                        "group {group}, input {token} of {:x}",
                        sequence.id
                    );
                }
            }
        }
    }

    /// The counts are those of the tokens that the sequences have and hold.
    fn compare(&self) {
        let s = self.cache.statistics();
        assert_eq!(s.sequences as usize, self.live.len());
        let held = self.live.iter().filter(|s| !s.is_dropped());
        let tokens: usize = held.clone().map(|s| s.tokens.len()).sum();
        assert_eq!(s.used_tokens as usize, tokens);
        let mut held_tokens = 0;
        for (group, &(reach, each)) in self.groups.iter().enumerate() {
            held_tokens += match reach {
                Reach::State { .. } => 0,
                Reach::Cross { tokens } => tokens as usize * held.clone().count(),
                _ => tokens - held.clone().map(|s| s.firsts[group] * each as usize).sum::<usize>(),
            };
        }
        assert_eq!(s.held_tokens as usize, held_tokens);
        self.cache.validate().unwrap();
    }

    fn step(&mut self) {
        drop(self.cache.step(self.step).unwrap());
        self.is_tabled = false;
        self.live.iter_mut().for_each(|sequence| sequence.first = None);
        for _ in 0..self.random.usize(1..12) {
            if self.live.is_empty() || self.random.u8(0..8) == 0 {
                self.admit();
                continue;
            }
            let at = self.random.usize(0..self.live.len());
            match self.random.u8(0..25) {
                0..=6 => self.append(at),
                7..=11 => self.commit(at),
                12..=14 => self.fork(at),
                15 | 16 => self.rollback(at),
                17 => self.edit(at),
                18 => self.accept(at),
                19 => self.preempt(at),
                20 | 21 => self.resume(at),
                22 => self.trim(at),
                _ => self.end(at),
            }
        }
        self.work();
        self.compare();
        // Now that its work may be under way.
        for _ in 0..self.random.usize(0..3) {
            if self.live.is_empty() {
                break;
            }
            let at = self.random.usize(0..self.live.len());
            match self.random.u8(0..5) {
                0 | 1 => self.rollback(at),
                2 => self.commit(at),
                3 => self.preempt(at),
                _ => self.end(at),
            }
        }
        self.compare();
    }
}

fn play(seed: u64, steps: u64) -> [u64; 14] {
    let (hash, groups) = CACHES[seed as usize % CACHES.len()];
    let device = registry::open("host").unwrap();
    let memory = Memory::new(Arc::clone(&device), Limits::default(), Arc::new(NoSink));
    let cache = KvCache::new(&memory, &config(hash, groups)).unwrap();
    let mut run = Run {
        random: Rng::with_seed(seed),
        stream: device.stream_create().unwrap(),
        link: cache.hash_block_tokens() as usize,
        cache,
        device,
        groups: groups.to_vec(),
        live: Vec::new(),
        step: 0,
        is_tabled: false,
        hits: 0,
        done: [0; 14],
    };
    for step in 1..=steps {
        run.step = step;
        run.step();
        // Up to three steps are in flight: what they use stays away from everybody else.
        if step % 3 == 0 || run.random.bool() {
            run.cache.step_done(step, None).unwrap();
        }
    }
    run.done[11] = run.hits;
    run.done
}

#[test]
fn whatever_is_done_to_a_sequence_each_kind_of_group_holds_what_is_its_own() {
    let soak = std::env::var("KAVERN_SOAK").ok().and_then(|count| count.parse::<u64>().ok());
    let first = std::env::var("KAVERN_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let runs = soak.map_or(48, |count| if count == 1 { 8000 } else { count.div_ceil(5000) });
    let mut sums = [0; 14];
    for seed in first.map_or(0..runs, |seed| seed..seed + 1) {
        let outcome = std::panic::catch_unwind(|| play(seed, 400));
        match outcome {
            Ok(done) => sums.iter_mut().zip(done).for_each(|(sum, count)| *sum += count),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                panic!("diverged with KAVERN_SEED={seed}: {text}");
            }
        }
    }
    assert!(
        sums.iter().all(|&count| count > 20 || first.is_some()),
        "each operation goes well often: {sums:?}"
    );
}
