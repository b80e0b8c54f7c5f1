//! Plays a trace in its own time: requests arrive, wait, run and end by a model of an engine, and hold blocks.
//!
//! The model is the second level of the reference replays: requests start in the order of arrival, each with all
//! blocks of its prompt and its output reserved; only full blocks of the prompt are shared; a prompt that is found
//! whole computes its last block again; the first token comes 10 ms + 0.05 ms for each computed token after the start,
//! each further one 20 ms later. Time is counted, not waited for, and no bytes move. Invariant: the same trace, size
//! and policy give the same numbers in every run.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use kavern::sys::clock::now_ns;
use serde::Serialize;

use crate::abi::{Cache, Content, Manager, Op, Outcome, Refusal, Shape};
use crate::failure::Failure;
use crate::keys::{self, Keys};
use crate::replay::{Replay, unusable};
use crate::screen;
use crate::summary::{Latencies, grouped, percentile};
use crate::workload::{Arrival, Workload};

/// Until the first token, without those for computing.
const OVERHEAD_MS: f64 = 10.0;
/// For each token of the prompt that is computed.
const COMPUTE_MS: f64 = 0.05;
/// From a token of the output to the next.
const TOKEN_MS: f64 = 20.0;

/// A running request; ordered by its end.
#[derive(PartialEq)]
struct Running {
    end_ms: f64,
    request: usize,
    sequence: u64,
}

impl Eq for Running {}

impl Ord for Running {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.end_ms.total_cmp(&other.end_ms).then(self.request.cmp(&other.request))
    }
}

impl PartialOrd for Running {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A timed replay under way.
struct Engine<'a> {
    workload: &'a Workload,
    keys: Keys,
    cache: Cache,
    block_tokens: u64,
    slots: usize,
    step: u64,
    running: BinaryHeap<Reverse<Running>>,
    /// Requests that have arrived; the lease of the first one, once it has been looked up.
    queue: VecDeque<usize>,
    first: Option<(u64, u64)>,
    outcomes: Vec<Outcome>,
    latencies: Latencies,
    waits_ms: Vec<f64>,
    first_tokens_ms: Vec<f64>,
    hit_blocks: u64,
    full_blocks: u64,
    hit_tokens: u64,
    prompt_tokens: u64,
    dropped: u64,
    peak_running: usize,
}

/// What a timed replay came to; the names of the fields are the names in the JSON.
#[derive(Serialize)]
struct Report {
    workload: String,
    policy: String,
    capacity_blocks: u64,
    block_tokens: u64,
    requests: u64,
    dropped: u64,
    full_blocks: u64,
    hit_blocks: u64,
    hit_rate: f64,
    token_hit_rate: f64,
    first_token_s_p50: f64,
    first_token_s_p99: f64,
    wait_s_p99: f64,
    peak_running: u64,
    evicted_blocks: u64,
    metadata_bytes: u64,
    seconds: f64,
    step_us_p50: f64,
    step_us_p99: f64,
}

/// Plays the workload and shows what it came to.
pub(crate) fn run(options: &Replay, manager: &Manager, workload: &Workload) -> Result<(), Failure> {
    if workload.arrivals().len() != workload.requests() {
        let text = "--timed needs requests that arrive one after another and name their blocks; expected JSON lines \
                    with rising timestamps (a CSV has lengths alone)";
        return Err(Failure::Input(text.into()));
    }
    let mut engine = Engine::new(options, manager, workload)?;
    let start = now_ns();
    engine.play()?;
    let seconds = (now_ns() - start) as f64 / 1e9;
    let report = engine.report(options, seconds)?;
    let text = match options.json {
        true => serde_json::to_string(&report).expect("numbers and strings always serialise") + "\n",
        false => report.table(),
    };
    Ok(screen::show(&text)?)
}

impl<'a> Engine<'a> {
    fn new(options: &Replay, manager: &Manager, workload: &'a Workload) -> Result<Self, Failure> {
        let block_tokens = u64::from(options.trace_block_tokens);
        for (request, arrival) in workload.arrivals().iter().enumerate() {
            if arrival.input_tokens / block_tokens > workload.range(request).len() as u64 {
                return Err(Failure::Input(format!(
                    "request {} has {} tokens but {} ids; expected --block-tokens to be that of the trace",
                    request + 1,
                    arrival.input_tokens,
                    workload.range(request).len()
                )));
            }
        }
        let blocks = |arrival: &Arrival| arrival.total_tokens().div_ceil(block_tokens) as usize;
        let shape = Shape {
            policy: &options.policy,
            blocks: options.capacity(),
            block_bytes: options.block_bytes,
            block_tokens: options.trace_block_tokens,
            longest_blocks: workload.arrivals().iter().map(blocks).max().unwrap_or(1),
            sequences: options.slots,
            namespaces: workload.tenant_count(),
            has_bytes: false,
            in_runs: options.in_runs,
            secret: keys::secret(options.seed),
        };
        let what = format!("--blocks {} --slots {}", shape.blocks, shape.sequences);
        let cache = Cache::create(manager, &shape).map_err(|refusal| unusable(&what, &refusal))?;
        Ok(Self {
            workload,
            keys: Keys::of(workload, options.seed),
            cache,
            block_tokens,
            slots: options.slots as usize,
            step: 0,
            running: BinaryHeap::new(),
            queue: VecDeque::new(),
            first: None,
            outcomes: Vec::new(),
            latencies: Latencies::with_room(2 * workload.requests()),
            waits_ms: Vec::with_capacity(workload.requests()),
            first_tokens_ms: Vec::with_capacity(workload.requests()),
            hit_blocks: 0,
            full_blocks: 0,
            hit_tokens: 0,
            prompt_tokens: 0,
            dropped: 0,
            peak_running: 0,
        })
    }

    /// From arrival to end, whichever is next, until nothing arrives and nothing runs.
    fn play(&mut self) -> Result<(), Refusal> {
        let bar = screen::progress(self.workload.requests() as u64);
        let mut next = 0;
        loop {
            let arrival_ms = self.workload.arrivals().get(next).map_or(f64::INFINITY, |arrival| arrival.ms);
            let end_ms = self.running.peek().map_or(f64::INFINITY, |running| running.0.end_ms);
            if end_ms.is_finite() && end_ms <= arrival_ms {
                self.end(end_ms)?;
                self.start_all(end_ms)?;
            } else if arrival_ms.is_finite() {
                self.queue.push_back(next);
                next += 1;
                bar.set_position(next as u64);
                self.start_all(arrival_ms)?;
            } else {
                bar.finish_and_clear();
                return Ok(());
            }
        }
    }

    /// Ends all requests that are over by then.
    fn end(&mut self, now_ms: f64) -> Result<(), Refusal> {
        while self.running.peek().is_some_and(|running| running.0.end_ms <= now_ms) {
            let Some(Reverse(over)) = self.running.pop() else { break };
            self.apply(&[Op::Free(over.sequence)])?;
            self.outcomes[0].check()?;
        }
        Ok(())
    }

    /// Starts requests in order of arrival until one does not fit; one that cannot fit even alone is dropped.
    fn start_all(&mut self, now_ms: f64) -> Result<(), Refusal> {
        while let Some(&request) = self.queue.front() {
            if self.running.len() >= self.slots {
                break;
            }
            if !self.start(now_ms, request)? {
                if !self.running.is_empty() {
                    break;
                }
                if let Some((lease, _)) = self.first.take() {
                    self.apply(&[Op::Release(lease)])?;
                }
                self.dropped += 1;
            }
            self.queue.pop_front();
        }
        Ok(())
    }

    /// Starts a request if everything that it will ever need is there. Its hits stay leased while it waits.
    fn start(&mut self, now_ms: f64, request: usize) -> Result<bool, Refusal> {
        let arrival = self.workload.arrivals()[request];
        let full = (arrival.input_tokens / self.block_tokens) as usize;
        let range = self.workload.range(request);
        let range = range.start..range.start + full;
        let (lease, hit_tokens) = match self.first {
            Some(known) => known,
            None => {
                let content = Content::Keys(self.keys.slice(range.clone()));
                let prompt = Some(arrival.input_tokens);
                self.cache.lookup(self.workload.tenant(request), content, prompt, &mut [])?
            }
        };
        self.first = Some((lease, hit_tokens));
        let hit_blocks = (hit_tokens / self.block_tokens) as usize;
        let tokens = (full - hit_blocks) as u64 * self.block_tokens;
        // What is not a full block of the prompt is room that nobody shares.
        let rest = arrival.total_tokens() - full as u64 * self.block_tokens;
        let admit = Op::Admit { lease, tokens, lookahead: rest as u32 };
        let keys = self.keys.slice(range.start + hit_blocks..range.end);
        let list = [admit, Op::Commit { admit: 0, tokens, content: Content::Keys(keys) }];
        let count = if tokens > 0 { 2 } else { 1 };
        self.step += 1;
        let begin = now_ns();
        self.cache.step(self.step, &list[..count], &mut self.outcomes)?;
        self.cache.step_done(self.step, None)?;
        self.latencies.push(now_ns() - begin);
        if self.outcomes[0].is_short() {
            return Ok(false);
        }
        self.outcomes.iter().try_for_each(|outcome| outcome.check().map(drop))?;
        self.first = None;
        let computed = arrival.input_tokens - hit_tokens;
        let first_token_ms = OVERHEAD_MS + COMPUTE_MS * computed as f64;
        let rest_ms = TOKEN_MS * arrival.output_tokens.saturating_sub(1) as f64;
        let sequence = self.outcomes[0].admitted.sequence;
        self.running.push(Reverse(Running { end_ms: now_ms + first_token_ms + rest_ms, request, sequence }));
        self.peak_running = self.peak_running.max(self.running.len());
        self.waits_ms.push(now_ms - arrival.ms);
        self.first_tokens_ms.push(now_ms - arrival.ms + first_token_ms);
        self.hit_blocks += hit_blocks as u64;
        self.full_blocks += full as u64;
        self.hit_tokens += hit_tokens;
        self.prompt_tokens += arrival.input_tokens;
        Ok(true)
    }

    fn apply(&mut self, list: &[Op<'_>]) -> Result<(), Refusal> {
        self.step += 1;
        let begin = now_ns();
        self.cache.step(self.step, list, &mut self.outcomes)?;
        self.cache.step_done(self.step, None)?;
        self.latencies.push(now_ns() - begin);
        Ok(())
    }

    fn report(&mut self, options: &Replay, seconds: f64) -> Result<Report, Refusal> {
        self.cache.validate()?;
        let statistics = self.cache.statistics()?;
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        Ok(Report {
            workload: self.workload.name.clone(),
            policy: options.policy.clone(),
            capacity_blocks: options.capacity(),
            block_tokens: self.block_tokens,
            requests: self.workload.requests() as u64,
            dropped: self.dropped,
            full_blocks: self.full_blocks,
            hit_blocks: self.hit_blocks,
            hit_rate: share(self.hit_blocks, self.full_blocks),
            token_hit_rate: share(self.hit_tokens, self.prompt_tokens),
            first_token_s_p50: percentile(&mut self.first_tokens_ms, 50) / 1000.0,
            first_token_s_p99: percentile(&mut self.first_tokens_ms, 99) / 1000.0,
            wait_s_p99: percentile(&mut self.waits_ms, 99) / 1000.0,
            peak_running: self.peak_running as u64,
            evicted_blocks: statistics.evicted_blocks,
            metadata_bytes: statistics.metadata_bytes,
            seconds,
            step_us_p50: self.latencies.percentile_us(50),
            step_us_p99: self.latencies.percentile_us(99),
        })
    }
}

impl Report {
    fn table(&self) -> String {
        let mut text = format!(
            "{}\n{}, {} blocks of {} tokens, in the trace's own time\n\n",
            self.workload,
            self.policy,
            grouped(self.capacity_blocks),
            self.block_tokens
        );
        let rows = [
            ("requests", grouped(self.requests), format!("{} never fitted", self.dropped)),
            ("hit blocks", grouped(self.hit_blocks), format!("of {} full blocks", grouped(self.full_blocks))),
            (
                "hit rate",
                format!("{:.2} %", 100.0 * self.hit_rate),
                format!("{:.2} % of tokens", 100.0 * self.token_hit_rate),
            ),
            (
                "first token",
                format!("{:.2} s", self.first_token_s_p50),
                format!("p50; p99 {:.2} s", self.first_token_s_p99),
            ),
            (
                "waiting",
                format!("{:.2} s", self.wait_s_p99),
                format!("p99; at most {} ran at once", self.peak_running),
            ),
            ("evictions", grouped(self.evicted_blocks), String::new()),
            (
                "step latency",
                format!("{:.1} us", self.step_us_p50),
                format!("p50; p99 {:.1} us", self.step_us_p99),
            ),
            ("time", format!("{:.2} s", self.seconds), String::new()),
        ];
        for (name, value, remark) in rows {
            text += format!("  {name:<14} {value:>13}   {remark}").trim_end();
            text.push('\n');
        }
        text
    }
}
