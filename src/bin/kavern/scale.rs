//! Plays the traffic of the internet against the bookkeeping of a cache of any size: hits, memory, latency of steps.
//!
//! Requests come in lists of sixteen, run for some steps and end; nothing is kept of them but their sequence. No bytes
//! move.

use std::collections::VecDeque;

use kavern::sys::clock::now_ns;
use serde::Serialize;

use crate::abi::{Cache, Content, Manager, Op, Outcome, Refusal, Shape};
use crate::failure::Failure;
use crate::internet::{Internet, LONGEST, Sender};
use crate::keys::{self, KEY_BYTES};
use crate::replay::{Replay, unusable};
use crate::screen;
use crate::summary::{Latencies, bytes, grouped};

/// Most requests of a step.
const BATCH: usize = 16;
/// Most requests that run at a time; fewer in a small cache, so that what runs takes half of it at most.
const RUNNING: usize = 256;
/// Blocks below which not even one request is sure to run.
const LEAST_BLOCKS: u64 = 2 * LONGEST as u64;
/// Namespaces at a time; those of tenants that have gone make room.
const NAMESPACES: usize = 1 << 14;

/// What requests of a kind asked for.
#[derive(Clone, Copy, Serialize)]
struct Asked {
    sender: Sender,
    blocks: u64,
    hit_blocks: u64,
}

/// What it came to; the names of the fields are the names in the JSON.
#[derive(Serialize)]
struct Report {
    workload: &'static str,
    policy: String,
    capacity_blocks: u64,
    requests: u64,
    blocks: u64,
    hit_blocks: u64,
    hit_rate: f64,
    senders: [Asked; Sender::ALL.len()],
    evicted_blocks: u64,
    metadata_bytes: u64,
    metadata_bytes_per_block: f64,
    seconds: f64,
    block_touches_per_s: f64,
    requests_per_step: u64,
    step_us_p50: f64,
    step_us_p99: f64,
    step_us_max: f64,
}

/// Plays the traffic and shows what it came to.
pub(crate) fn run(options: &Replay, manager: &Manager, requests: u64) -> Result<(), Failure> {
    if options.capacity() < LEAST_BLOCKS {
        let text =
            format!("--blocks {}: expected at least {LEAST_BLOCKS} for this traffic", options.capacity());
        return Err(Failure::Input(text));
    }
    let shape = Shape {
        policy: &options.policy,
        blocks: options.capacity(),
        block_bytes: options.block_bytes,
        block_tokens: 1,
        longest_blocks: LONGEST,
        sequences: (RUNNING + BATCH) as u32,
        namespaces: NAMESPACES,
        has_bytes: false,
        in_runs: options.in_runs,
        secret: keys::secret(options.seed),
    };
    let what = format!("--blocks {}", shape.blocks);
    let mut cache = Cache::create(manager, &shape).map_err(|refusal| unusable(&what, &refusal))?;
    let mut report = play(options, &mut cache, requests)?;
    cache.validate()?;
    let statistics = cache.statistics()?;
    report.evicted_blocks = statistics.evicted_blocks;
    report.metadata_bytes = statistics.metadata_bytes;
    report.metadata_bytes_per_block = statistics.metadata_bytes as f64 / report.capacity_blocks as f64;
    let text = match options.json {
        true => serde_json::to_string(&report).expect("numbers and strings always serialise") + "\n",
        false => report.table(),
    };
    Ok(screen::show(&text)?)
}

fn play(options: &Replay, cache: &mut Cache, requests: u64) -> Result<Report, Refusal> {
    let internet = Internet::new(options.seed, options.capacity());
    let most_running = RUNNING.min((options.capacity() / LEAST_BLOCKS) as usize);
    let batch = BATCH.min(most_running);
    let mut keys: Vec<Vec<u8>> = (0..batch).map(|_| Vec::with_capacity(LONGEST * KEY_BYTES)).collect();
    let mut running: VecDeque<u64> = VecDeque::with_capacity(RUNNING + BATCH);
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut latencies = Latencies::with_room(requests.div_ceil(batch as u64) as usize);
    let mut senders = Sender::ALL.map(|sender| Asked { sender, blocks: 0, hit_blocks: 0 });
    let bar = screen::progress(requests);
    let start = now_ns();
    for step in 1..=requests.div_ceil(batch as u64) {
        let numbers = (step - 1) * batch as u64..requests.min(step * batch as u64);
        let asks: Vec<_> =
            numbers.clone().zip(&mut keys).map(|(number, keys)| internet.ask(number, keys)).collect();
        let begin = now_ns();
        let mut list = Vec::with_capacity(3 * batch);
        let over = (running.len() + asks.len()).saturating_sub(most_running);
        list.extend(running.drain(..over).map(Op::Free));
        for (ask, keys) in asks.iter().zip(&keys) {
            let (lease, hits) = cache.lookup(ask.namespace, Content::Keys(keys), None, &mut [])?;
            let count = (keys.len() / KEY_BYTES) as u64;
            let tokens = count - hits;
            let admit = list.len();
            list.push(Op::Admit { lease, tokens, lookahead: 0 });
            if tokens > 0 {
                let content = Content::Keys(&keys[hits as usize * KEY_BYTES..]);
                list.push(Op::Commit { admit, tokens, content });
            }
            let asked = &mut senders[ask.sender as usize];
            (asked.blocks, asked.hit_blocks) = (asked.blocks + count, asked.hit_blocks + hits);
        }
        cache.step(step, &list, &mut outcomes)?;
        cache.step_done(step, None)?;
        latencies.push(now_ns() - begin);
        for (op, outcome) in list.iter().zip(&outcomes) {
            let admitted = outcome.check()?;
            if matches!(op, Op::Admit { .. }) {
                running.push_back(admitted.sequence);
            }
        }
        bar.set_position(numbers.end);
    }
    bar.finish_and_clear();
    let seconds = (now_ns() - start) as f64 / 1e9;
    let blocks: u64 = senders.iter().map(|asked| asked.blocks).sum();
    let hit_blocks: u64 = senders.iter().map(|asked| asked.hit_blocks).sum();
    Ok(Report {
        workload: "generated internet",
        policy: options.policy.clone(),
        capacity_blocks: options.capacity(),
        requests,
        blocks,
        hit_blocks,
        hit_rate: hit_blocks as f64 / blocks.max(1) as f64,
        senders,
        evicted_blocks: 0,
        metadata_bytes: 0,
        metadata_bytes_per_block: 0.0,
        seconds,
        block_touches_per_s: blocks as f64 / seconds.max(1e-9),
        requests_per_step: batch as u64,
        step_us_p50: latencies.percentile_us(50),
        step_us_p99: latencies.percentile_us(99),
        step_us_max: latencies.percentile_us(100),
    })
}

impl Report {
    fn table(&self) -> String {
        let by_sender = self.senders.map(|asked| {
            format!(
                "{} {:.2}",
                asked.sender.name(),
                100.0 * asked.hit_blocks as f64 / asked.blocks.max(1) as f64
            )
        });
        let memory = format!("{:.1} bytes of bookkeeping a block", self.metadata_bytes_per_block);
        let latency = format!("p50; p99 {:.0} us, most {:.0} us", self.step_us_p99, self.step_us_max);
        let rows = [
            ("requests", grouped(self.requests), format!("{} a step", self.requests_per_step)),
            ("block touches", grouped(self.blocks), String::new()),
            ("hit rate", format!("{:.2} %", 100.0 * self.hit_rate), by_sender.join(", ")),
            ("evictions", grouped(self.evicted_blocks), String::new()),
            ("memory held", bytes(self.metadata_bytes), memory),
            (
                "speed",
                grouped(self.block_touches_per_s as u64),
                "block touches/s, with making the traffic".into(),
            ),
            ("step latency", format!("{:.1} us", self.step_us_p50), latency),
            ("time", format!("{:.2} s", self.seconds), String::new()),
        ];
        let blocks = grouped(self.capacity_blocks);
        let mut text = format!("{}\n{}, {blocks} blocks, bookkeeping only\n\n", self.workload, self.policy);
        for (name, value, remark) in rows {
            text += format!("  {name:<14} {value:>13}   {remark}").trim_end();
            text.push('\n');
        }
        text
    }
}
