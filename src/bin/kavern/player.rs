//! Plays a workload against a cache, request by request, and counts.
//!
//! It plays order, not time: one request a step, each admitted as a whole when the one before is freed. Keys and
//! buffers come before the clock starts; the loop allocates nothing.
//!
//! One request: match; free the request before, admit this one, commit its new blocks; tables; check the bytes of
//! every hit and write those of every new block, in kernels on the stream; step done.

use kavern::sys::clock::now_ns;

use crate::abi::{Admitted, Cache, Content, Manager, Op, Outcome, Refusal, Shape, Stream};
use crate::failure::Failure;
use crate::keys::{self, BLOCK_TOKENS, Keys};
use crate::replay::{Replay, unusable};
use crate::screen;
use crate::summary::{Latencies, Report};
use crate::workload::Workload;

/// Requests between two looks at the counters of the checks and at the progress bar.
const LOOK_EVERY: usize = 256;

/// A replay under way; all buffers are made before it starts.
pub(crate) struct Player<'a> {
    options: &'a Replay,
    workload: &'a Workload,
    manager: &'a Manager,
    keys: Keys,
    cache: Cache,
    /// Absent without bytes.
    stream: Option<Stream>,
    /// Ids of the blocks that the latest request found.
    hits: Vec<i32>,
    /// Ids of the blocks that it got.
    fresh: Vec<i32>,
    /// Tokens of the latest request; empty where keys are replayed.
    tokens: Vec<i32>,
    outcomes: Vec<Outcome>,
    latencies: Latencies,
    hit_blocks: u64,
    verified_blocks: u64,
    mismatches: u64,
    first_mismatch: Option<i64>,
    elapsed_ns: u64,
}

impl<'a> Player<'a> {
    /// Makes the cache, the keys and the buffers.
    pub(crate) fn new(
        options: &'a Replay,
        manager: &'a Manager,
        workload: &'a Workload,
    ) -> Result<Player<'a>, Failure> {
        let longest = workload.longest().min(usize::try_from(options.capacity()).unwrap_or(usize::MAX));
        let shape = Shape {
            policy: &options.policy,
            blocks: options.capacity(),
            block_bytes: options.block_bytes,
            block_tokens: options.block_tokens() as u32,
            longest_blocks: longest,
            // The one before, which is freed in the same list, and this one.
            sequences: 2,
            namespaces: workload.tenant_count(),
            has_bytes: !options.no_bytes,
            secret: keys::secret(options.seed),
        };
        let what = format!("--blocks {} --block-bytes {}", shape.blocks, shape.block_bytes);
        let cache = Cache::create(manager, &shape).map_err(|refusal| unusable(&what, &refusal))?;
        let stream = if options.no_bytes { None } else { Some(manager.create_stream()?) };
        Ok(Player {
            options,
            workload,
            manager,
            keys: Keys::of(workload, options.seed),
            cache,
            stream,
            hits: vec![0; longest],
            fresh: vec![0; longest],
            tokens: vec![0; if options.tokens { longest * BLOCK_TOKENS } else { 0 }],
            outcomes: Vec::with_capacity(3),
            latencies: Latencies::with_room(workload.requests()),
            hit_blocks: 0,
            verified_blocks: 0,
            mismatches: 0,
            first_mismatch: None,
            elapsed_ns: 0,
        })
    }

    /// Plays all requests, one a step.
    pub(crate) fn play(&mut self) -> Result<(), Failure> {
        let bar = screen::progress(self.workload.requests() as u64);
        let start = now_ns();
        let mut held = None;
        let mut step = 0;
        for request in 0..self.workload.requests() {
            if !self.workload.range(request).is_empty() {
                step += 1;
                held = Some(self.request(request, step, held)?);
            }
            if request % LOOK_EVERY == LOOK_EVERY - 1 {
                self.count_checks()?;
                bar.set_position(request as u64 + 1);
                if !bar.is_hidden() {
                    bar.set_message(format!("{} hits", self.hit_blocks));
                }
            }
        }
        self.finish(step + 1, held)?;
        self.elapsed_ns = now_ns() - start;
        bar.finish_and_clear();
        Ok(())
    }

    /// One request; answers its sequence, which the next one frees.
    fn request(&mut self, request: usize, step: u64, held: Option<Admitted>) -> Result<Admitted, Refusal> {
        let range = self.workload.range(request);
        // What does not fit is not asked for; those blocks count as misses.
        let range = range.start..range.start + range.len().min(self.hits.len());
        let token_count = if self.options.tokens {
            keys::write_tokens(self.options.seed, &self.workload.nodes()[range.clone()], &mut self.tokens)
        } else {
            0
        };
        let content = |from: usize| match self.options.tokens {
            true => Content::Tokens(&self.tokens[from * BLOCK_TOKENS..token_count]),
            false => Content::Keys(self.keys.slice(range.start + from..range.end)),
        };
        let mut watch = Watch::start();
        let tenant = self.workload.tenant(request);
        let (lease, hit_tokens) = self.cache.lookup(tenant, content(0), None, &mut self.hits)?;
        if let Some(stream) = &self.stream {
            // Blocks of the step before become evictable when its work is over. Waiting here, and not when they are
            // missing, makes the choice of victims the same in every run.
            watch.pause();
            self.manager.synchronize(stream)?;
            watch.resume();
        }
        let block_tokens = self.options.block_tokens();
        let hit_blocks = hit_tokens as usize / block_tokens;
        let new_blocks = range.len() - hit_blocks;
        let tokens = (new_blocks * block_tokens) as u64;
        let mut list = [Op::Admit { lease, tokens, lookahead: 0 }; 3];
        let mut count = 0;
        if let Some(before) = held {
            list[0] = Op::Free(before.sequence);
            count = 1;
        }
        let admit = count;
        list[admit] = Op::Admit { lease, tokens, lookahead: 0 };
        count += 1;
        if new_blocks > 0 {
            list[count] = Op::Commit { admit, tokens, content: content(hit_blocks) };
            count += 1;
        }
        self.cache.step(step, &list[..count], &mut self.outcomes)?;
        self.outcomes.iter().try_for_each(|outcome| outcome.check().map(drop))?;
        let admitted = self.outcomes[admit].admitted;
        let stream = self.stream.as_ref();
        let fresh = if stream.is_some() { &mut self.fresh[..new_blocks] } else { &mut [] };
        self.cache.tables(step, stream, admitted, hit_blocks, fresh)?;
        if let Some(stream) = stream {
            watch.pause();
            let (found, written) = self.keys.patterns[range].split_at(hit_blocks);
            self.cache.check(stream, &self.hits[..hit_blocks], found)?;
            self.cache.fill(stream, &self.fresh[..new_blocks], written)?;
            watch.resume();
        }
        self.cache.step_done(step, stream)?;
        self.latencies.push(watch.stop());
        self.hit_blocks += hit_blocks as u64;
        Ok(admitted)
    }

    /// A last step that only frees.
    fn finish(&mut self, step: u64, held: Option<Admitted>) -> Result<(), Refusal> {
        if let Some(admitted) = held {
            self.cache.step(step, &[Op::Free(admitted.sequence)], &mut self.outcomes)?;
            self.outcomes[0].check()?;
            self.cache.step_done(step, self.stream.as_ref())?;
        }
        self.count_checks()
    }

    /// What the run came to.
    pub(crate) fn report(&self) -> Result<Report, Failure> {
        self.cache.validate()?;
        let statistics = self.cache.statistics()?;
        let (requests, blocks) = (self.workload.requests() as u64, self.workload.blocks() as u64);
        let seconds = self.elapsed_ns as f64 / 1e9;
        Ok(Report {
            workload: self.workload.name.clone(),
            device: self.options.device.clone(),
            policy: self.options.policy.clone(),
            capacity_blocks: self.options.capacity(),
            block_bytes: self.options.block_bytes,
            tokens: self.options.tokens,
            bytes: self.stream.is_some(),
            seed: self.options.seed,
            requests,
            blocks,
            unique_blocks: self.workload.unique_blocks() as u64,
            tenants: self.workload.tenant_count() as u64,
            hit_blocks: self.hit_blocks,
            hit_rate: self.hit_blocks as f64 / blocks.max(1) as f64,
            evicted_blocks: statistics.evicted_blocks,
            verified_blocks: self.verified_blocks,
            mismatches: self.mismatches,
            first_mismatch: self.first_mismatch,
            races: self.manager.races()?,
            pool_bytes: statistics.pool_bytes,
            metadata_bytes: statistics.metadata_bytes,
            seconds,
            block_touches_per_s: blocks as f64 / seconds.max(1e-9),
            step_us_p50: self.latencies.percentile_us(50),
            step_us_p99: self.latencies.percentile_us(99),
        })
    }

    /// Waits for the checks so far and adds up what they found.
    fn count_checks(&mut self) -> Result<(), Refusal> {
        if self.stream.is_none() {
            return Ok(());
        }
        let found = self.cache.pattern_result()?;
        self.verified_blocks += found.checked_blocks - found.mismatched_blocks;
        self.mismatches += found.mismatched_blocks;
        if found.mismatched_blocks > 0 {
            self.first_mismatch.get_or_insert(found.first_mismatch);
        }
        Ok(())
    }
}

/// Time spent in the library's calls of one request.
struct Watch {
    since_ns: u64,
    total_ns: u64,
}

impl Watch {
    fn start() -> Watch {
        Watch { since_ns: now_ns(), total_ns: 0 }
    }

    fn pause(&mut self) {
        self.total_ns += now_ns() - self.since_ns;
    }

    fn resume(&mut self) {
        self.since_ns = now_ns();
    }

    fn stop(self) -> u64 {
        self.total_ns + now_ns() - self.since_ns
    }
}
