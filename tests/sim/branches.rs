//! Forks, edits, rollbacks and acceptances while earlier steps still read: nothing that they let go of is written again
//! before those are over, and copies come before what follows them.
//!
//! The engine overlaps two steps: the attention of a step runs on a side stream that nothing joins before the end of the
//! second one, and the second one's tables and writes go on meanwhile.

use std::sync::Arc;

use fastrand::Rng;
use kavern::cache::{
    CacheConfig, Change, Content, GroupConfig, HashKind, KvCache, Naming, Op, OpResult, Request, Scrub,
    Target,
};
use kavern::device::{Device, DeviceSlice, Report, Stream, registry};
use kavern::error::Status;
use kavern::event::NoSink;
use kavern::format::{BlockShape, Layout};
use kavern::memory::{Limits, Memory};
use kavern::types::{Dtype, Id};

use super::support::{SCHEDULES, kinds};

const BLOCK_TOKENS: usize = 4;
const BLOCKS: u64 = 48;
const MAX_TOKENS: u64 = 64;

fn config() -> CacheConfig {
    let shape = BlockShape {
        layers: 1,
        kv_heads: 1,
        head_dim: 32,
        dtype: Dtype::F16,
        block_tokens: BLOCK_TOKENS as u32,
        layout: Layout::Nhd,
    };
    let group = GroupConfig::new(Content::Attention(shape), BLOCK_TOKENS as u32);
    CacheConfig {
        max_sequences: 12,
        max_sequence_tokens: MAX_TOKENS,
        max_batch_tokens: 256,
        max_namespaces: 8,
        hash: HashKind::Xxh3,
        scrub: Scrub::TenantChange,
        index: kavern::cache::IndexOptions { device: true, chunks: false },
        ..CacheConfig::new(vec![group], BLOCKS)
    }
}

struct Sequence {
    id: u64,
    row: usize,
    length: u64,
    /// First token that this step is to write.
    fresh: u64,
    /// Latest step that read it.
    read_in: u64,
}

struct Engine {
    device: Arc<dyn Device>,
    cache: KvCache,
    main: Stream,
    side: Stream,
    random: Rng,
    live: Vec<Sequence>,
    changes: u64,
    operations: u64,
    token: i32,
}

impl Engine {
    fn new(seed: u64) -> Self {
        let schedule = SCHEDULES[seed as usize % SCHEDULES.len()];
        let device = registry::open(&format!("sim?seed={seed}&schedule={schedule}")).unwrap();
        let memory = Memory::new(Arc::clone(&device), Limits::default(), Arc::new(NoSink));
        let cache = KvCache::new(&memory, &config()).unwrap();
        let [main, side] = [0, 1].map(|_| device.stream_create().unwrap());
        Self {
            device,
            cache,
            main,
            side,
            random: Rng::with_seed(seed),
            live: Vec::new(),
            changes: 0,
            operations: 0,
            token: 0,
        }
    }

    fn apply(&mut self, step: u64, op: &Op<'_>) -> Option<OpResult> {
        let result = self.cache.step(step).unwrap().apply(op);
        self.operations += 1;
        let expected = [Status::Ok, Status::OutOfBlocks, Status::LimitReached, Status::WrongState];
        assert!(expected.contains(&result.status), "{op:?} {result:?}");
        Some(result).filter(|result| result.status == Status::Ok)
    }

    fn change(&mut self, step: u64, id: u64, change: Change<'_>) -> Option<OpResult> {
        let result = self.apply(step, &Op::Change { target: Target::Id(Id(id)), change });
        self.changes += u64::from(result.is_some());
        result
    }

    fn admit(&mut self, step: u64) {
        // Private content: what is shared is shared by forks, and blocks are handed out again soon.
        self.token += 100;
        let prompt: Vec<i32> = (0..self.random.i32(1..20)).map(|at| self.token + at).collect();
        let request = Request {
            namespace_id: self.random.u64(0..2),
            adapter_id: 0,
            salt: b"",
            naming: Naming::Tokens(&prompt, &[]),
            token_count: prompt.len() as u64,
            no_read: false,
            no_store: self.random.bool(),
            drop_last: false,
            keep_one_token: true,
            sizing: Default::default(),
        };
        let lease = self.cache.lookups().find(&request).unwrap().lease;
        let length = prompt.len() as u64;
        match self
            .apply(step, &Op::Admit { lease, tokens: length, lookahead: 2, row: -1, expected_tokens: 0 })
        {
            Some(admitted) => {
                let target = Target::Id(Id(admitted.sequence));
                let naming = Naming::Tokens(&prompt, &[]);
                self.apply(step, &Op::Commit { target, tokens: length, naming }).unwrap();
                let row = admitted.row as usize;
                self.live.push(Sequence { id: admitted.sequence, row, length, fresh: 0, read_in: 0 });
            }
            None => drop(self.apply(step, &Op::Release { lease }).unwrap()),
        }
    }

    fn operate(&mut self, step: u64, first_in_flight: u64) {
        let at = self.random.usize(0..self.live.len());
        let Sequence { id, length, fresh, read_in, .. } = self.live[at];
        match self.random.u8(0..16) {
            0..=5 if length < MAX_TOKENS - 8 => {
                let tokens = self.random.u64(1..4);
                let append = Op::Append { target: Target::Id(Id(id)), tokens, lookahead: 0 };
                if self.apply(step, &append).is_some() {
                    self.live[at].length += tokens;
                }
            }
            6..=9 => {
                let tokens = self.random.u64(1..=length.max(1)).min(length);
                if let Some(child) = self.change(step, id, Change::Fork { tokens, row: -1 }) {
                    let length = if tokens == 0 { length } else { tokens };
                    let row = child.row as usize;
                    // It reads what the parent's slots hold, and writes none of them.
                    self.live.push(Sequence { id: child.sequence, row, length, fresh: length, read_in: 0 });
                }
            }
            10 | 11 if length > 2 && fresh == length => {
                let offset = self.random.u64(0..length - 1);
                let tokens = self.random.u64(1..=(length - offset).min(4));
                if self.change(step, id, Change::Edit { offset, tokens }).is_some() {
                    let sequence = &mut self.live[at];
                    (sequence.length, sequence.fresh) = (length - tokens, length - tokens);
                }
            }
            // An engine writes a slot again only when what read it is over.
            12 if read_in < first_in_flight => {
                let tokens = self.random.u64(0..=fresh);
                let open_tokens = &[];
                let roll = Change::Rollback { tokens, lookahead: 3, open_tokens, extras: &[] };
                if self.change(step, id, roll).is_some() {
                    let sequence = &mut self.live[at];
                    (sequence.length, sequence.fresh) = (tokens, tokens);
                }
            }
            _ => {
                if fresh == length {
                    self.apply(step, &Op::Free { target: Target::Id(Id(id)) }).unwrap();
                } else {
                    self.change(step, id, Change::Cancel).unwrap();
                }
                self.live.swap_remove(at);
            }
        }
    }

    /// Writes of the step on the main stream, then its attention on the side stream.
    fn run(&mut self, step: u64) {
        let (table, cells) = self
            .cache
            .tables(step, self.main, |tables| {
                let group = tables.group(0)?;
                Ok((group.block_table.to_vec(), group.row_cells as usize))
            })
            .unwrap();
        let about = self.cache.describe(0).unwrap();
        let token = |row: usize, position: u64| {
            let block = table[row * cells + position as usize / BLOCK_TOKENS] as u64;
            let first = about.base_address
                + block * about.block_bytes
                + position % BLOCK_TOKENS as u64 * about.strides.token;
            [0, about.strides.kv].map(|half| {
                // SAFETY: a token in the pool of the cache, which lives as long as the engine.
                unsafe { DeviceSlice::from_foreign(self.device.key(), first + half, about.strides.token) }
                    .unwrap()
            })
        };
        let simulator = self.device.simulator().unwrap();
        let scheduled: Vec<&mut Sequence> = self.live.iter_mut().filter(|s| s.fresh < s.length).collect();
        for sequence in &scheduled {
            let writes: Vec<_> =
                (sequence.fresh..sequence.length).flat_map(|at| token(sequence.row, at)).collect();
            simulator.declare(self.main, &[], &writes).unwrap();
        }
        let event = self.device.event_create().unwrap();
        self.device.event_record(event, self.main).unwrap();
        self.device.stream_wait_event(self.side, event).unwrap();
        self.device.event_destroy(event).unwrap();
        for sequence in scheduled {
            let reads: Vec<_> = (0..sequence.length).flat_map(|at| token(sequence.row, at)).collect();
            simulator.declare(self.side, &reads, &[]).unwrap();
            (sequence.fresh, sequence.read_in) = (sequence.length, step);
        }
    }

    fn join(&self) {
        let event = self.device.event_create().unwrap();
        self.device.event_record(event, self.side).unwrap();
        self.device.stream_wait_event(self.main, event).unwrap();
        self.device.event_destroy(event).unwrap();
    }
}

/// Plays pairs of steps that overlap. A liar says of the first one that it is over.
fn play(seed: u64, steps: u64, is_liar: bool) -> (Report, u64) {
    let (report, engine) = play_on(seed, steps, is_liar);
    (report, engine.changes)
}

/// A long run: what was seen, and operations.
pub(super) fn soak(seed: u64, steps: u64) -> (Report, u64) {
    let (report, engine) = play_on(seed, steps, false);
    (report, engine.operations)
}

fn play_on(seed: u64, steps: u64, is_liar: bool) -> (Report, Engine) {
    let mut engine = Engine::new(seed);
    for step in 1..=steps {
        while engine.cache.step(step).map(drop).is_err() {
            engine.device.synchronize().unwrap();
            engine.cache.poll().unwrap();
        }
        let first_in_flight = step - (step + 1) % 2;
        for _ in 0..engine.random.usize(2..10) {
            if engine.live.is_empty() || engine.random.u8(0..5) == 0 {
                engine.admit(step);
            } else {
                engine.operate(step, first_in_flight);
            }
        }
        engine.run(step);
        if step % 2 == 0 {
            engine.join();
            engine.cache.step_done(step, Some(engine.main)).unwrap();
        } else if is_liar {
            engine.cache.step_done(step, None).unwrap();
        }
    }
    engine.join();
    engine.device.synchronize().unwrap();
    engine.cache.validate().unwrap();
    (engine.device.simulator().unwrap().report().unwrap(), engine)
}

#[test]
fn branches_of_sequences_that_steps_in_flight_read_have_no_race() {
    for seed in 0..10 {
        let (report, changes) = play(seed, 1500, false);
        assert_eq!(kinds(&report), [], "seed {seed}: {}", report.to_json());
        assert!(changes > 1500, "{changes} forks, edits, rollbacks and cancels");
    }
}

#[test]
fn a_step_that_is_said_to_be_over_while_its_branches_are_read_is_found() {
    for seed in 0..50 {
        let (report, _) = play(seed, 600, true);
        assert!(report.races() > 0, "seed {seed}");
    }
}
