//! What adaptive blocks waste and what their tables cost on the lengths of real requests, beside single sizes. Prints
//! one line for each trace and choice of blocks.
//!
//! Run: `adaptive_figures FOLDER`, optimised; the folder holds the traces that tests/cli.rs names. Requests come in the
//! order of the trace, 32 run at a time, the one that began first ends first. Prompts are named by the trace's own
//! hashes where it has some, so hits count; answers are made up and found by nobody. Every run has room for 3 million
//! tokens: a single size has it in one pool, the classes begin with a third each and memory moves between them. Waste and
//! cells are those of sequences when they ended.
#![expect(clippy::disallowed_macros, reason = "a program that prints its result")]

use std::collections::VecDeque;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use kavern::cache::{
    AdaptiveBlocks, CacheConfig, Content, DEFAULT_POLICY, GroupConfig, HashKind, IndexOptions, KvCache,
    Naming, Op, Reach, Request, SMALL_BYTES, Scrub, Sizing, Target,
};
use kavern::device::registry;
use kavern::error::{Result, Status};
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory};
use kavern::types::Id;

const SIZES: [u32; 3] = [16, 64, 256];
const TOKENS: u64 = 3_000_000;
const RUNNING: usize = 32;
const KEY_BYTES: usize = 16;

/// File, tokens of a block that it names; 0: it names none.
const TRACES: [(&str, usize); 4] = [
    ("azure_llm_2023_code.csv.zst", 0),
    ("mooncake_conversation.jsonl.zst", 512),
    ("lmcache_agent_miniswe.jsonl.zst", 16),
    ("lmcache_agent_taubench.jsonl.zst", 16),
];

struct Job {
    prompt: u64,
    answer: u64,
    /// One for each link of 16 tokens.
    keys: Vec<u8>,
}

type Failure = Box<dyn std::error::Error>;

fn read(path: &Path, block_tokens: usize) -> std::result::Result<Vec<Job>, Failure> {
    let packed = std::fs::read(path)?;
    let mut text = String::new();
    ruzstd::decoding::StreamingDecoder::new(&packed[..])?.read_to_string(&mut text)?;
    let mut jobs = Vec::new();
    for line in text.lines() {
        let (prompt, answer, ids): (u64, u64, Vec<u64>) = if block_tokens == 0 {
            let mut fields = line.split(',').skip(1).map(str::parse::<u64>);
            let (Some(Ok(prompt)), Some(Ok(answer))) = (fields.next(), fields.next()) else { continue };
            (prompt, answer, Vec::new())
        } else {
            let record: serde_json::Value = serde_json::from_str(line)?;
            let number = |name: &str| record[name].as_u64().ok_or("a record without lengths");
            let ids = record["hash_ids"].as_array().ok_or("a record without hashes")?;
            (
                number("input_length")?,
                number("output_length")?,
                ids.iter().filter_map(|id| id.as_u64()).collect(),
            )
        };
        let links_each = block_tokens / SIZES[0] as usize;
        let links = (prompt as usize / SIZES[0] as usize).min(ids.len() * links_each);
        let key = |link: usize| [ids[link / links_each].to_le_bytes(), (link as u64).to_le_bytes()].concat();
        jobs.push(Job { prompt: prompt.max(1), answer, keys: (0..links).flat_map(key).collect() });
    }
    Ok(jobs)
}

fn cache(class: usize, advisor: &str) -> Result<KvCache> {
    let group = |(at, &block_tokens): (usize, &u32)| GroupConfig {
        content: Content::Opaque { block_bytes: 16 * u64::from(block_tokens) },
        reach: Reach::All,
        block_tokens,
        capacity_blocks: match class {
            0 => TOKENS / 3 / u64::from(block_tokens),
            _ if class == at + 1 => TOKENS / u64::from(block_tokens),
            _ => 1,
        },
        region: None,
    };
    let config = CacheConfig {
        name: "adaptive figures".to_owned(),
        groups: SIZES.iter().enumerate().map(group).collect(),
        capacity_blocks: 0,
        max_blocks: if class == 0 { TOKENS / u64::from(SIZES[0]) } else { 0 },
        capacity_bytes: 0,
        max_sequences: 2 * RUNNING as u32,
        max_sequence_tokens: 262_144,
        max_batch_tokens: 1 << 20,
        max_leases: 4,
        max_namespaces: 4,
        steps_in_flight: 2,
        hash_block_tokens: 0,
        hash: HashKind::Blake3,
        scrub: Scrub::None,
        event_capacity: 0,
        policy: DEFAULT_POLICY.to_owned(),
        hash_secret: [1; 32],
        metadata_only: class > 0,
        ragged: false,
        require_salt: false,
        index: IndexOptions::default(),
        partial_hits: false,
        worker: false,
        exact_order: false,
        small_bytes: SMALL_BYTES,
        adaptive: Some(AdaptiveBlocks {
            classes: vec![1, 2, 3],
            advisor: advisor.to_owned(),
            waste_permille: 50,
            table_permille: 20,
        }),
    };
    KvCache::new(
        &Memory::new(registry::open("host?page_bytes=4096")?, Limits::default(), Arc::new(NoSink)),
        &config,
    )
}

/// Runs all jobs; answers the share of prompt tokens that were found.
fn play(cache: &KvCache, jobs: &[Job], class: u32) -> Result<f64> {
    let mut running = VecDeque::new();
    let (mut asked, mut found) = (0, 0);
    for (job, step) in jobs.iter().zip(1..) {
        let naming = Naming::Keys { bytes: &job.keys, key_bytes: KEY_BYTES as u32 };
        let request = Request {
            namespace_id: 1,
            adapter_id: 0,
            salt: b"",
            naming,
            token_count: job.prompt,
            no_read: false,
            no_store: false,
            drop_last: false,
            keep_one_token: true,
            sizing: Sizing { class, expected_tokens: 0 },
        };
        let end_oldest = |cache: &KvCache, running: &mut VecDeque<u64>| -> Result<()> {
            if let Some(oldest) = running.pop_front() {
                cache.step(step)?.apply(&Op::Free { target: Target::Id(Id(oldest)) });
            }
            Ok(())
        };
        if running.len() == RUNNING {
            end_oldest(cache, &mut running)?;
        }
        let (hit, sequence) = loop {
            let hit = cache.lookups().find(&request)?;
            let tokens = job.prompt - hit.hit_tokens;
            let mut session = cache.step(step)?;
            let admitted = session.apply(&Op::Admit {
                lease: hit.lease,
                tokens,
                lookahead: 0,
                row: -1,
                expected_tokens: 0,
            });
            if admitted.status == Status::Ok {
                break (hit.hit_tokens, admitted.sequence);
            }
            session.apply(&Op::Release { lease: hit.lease });
            drop(session);
            end_oldest(cache, &mut running)?;
        };
        (asked, found) = (asked + job.prompt, found + hit);
        let target = Target::Id(Id(sequence));
        let links = hit as usize / SIZES[0] as usize;
        let named = job.keys.len() as u64 / KEY_BYTES as u64 * u64::from(SIZES[0]);
        let bytes = &job.keys[(links * KEY_BYTES).min(job.keys.len())..];
        let naming = Naming::Keys { bytes, key_bytes: KEY_BYTES as u32 };
        let tokens = named.saturating_sub(hit);
        let mut session = cache.step(step)?;
        session.apply(&Op::Commit { target, tokens, naming });
        let appended = session.apply(&Op::Append { target, tokens: job.answer, lookahead: 0 });
        drop(session);
        if appended.status != Status::Ok {
            end_oldest(cache, &mut running)?;
        }
        running.push_back(sequence);
        cache.step_done(step, None)?;
        cache.poll()?;
    }
    Ok(100.0 * found as f64 / asked as f64)
}

fn main() -> std::result::Result<(), Failure> {
    let folder = std::env::args().nth(1).ok_or("usage: adaptive_figures FOLDER")?;
    for (file, block_tokens) in TRACES {
        let jobs = read(&Path::new(&folder).join(file), block_tokens)?;
        println!("{file}: {} requests", jobs.len());
        let choices = [("16", 1, "reactive"), ("64", 2, "reactive"), ("256", 3, "reactive")];
        for (name, class, advisor) in
            choices.into_iter().chain([("reactive", 0, "reactive"), ("predictive", 0, "predictive")])
        {
            let cache = cache(class as usize, advisor)?;
            let hits = play(&cache, &jobs, class)?;
            let (mut tokens, mut slots, mut cells, mut begun, mut room) = (0, 0, 0, Vec::new(), Vec::new());
            for group in 0..3 {
                let s = cache.class_statistics(group)?;
                (tokens, slots, cells) =
                    (tokens + s.ended_tokens, slots + s.ended_slots, cells + s.ended_cells);
                begun.push(s.begun_sequences);
                room.push(u64::from(cache.describe(group)?.blocks) * u64::from(s.block_tokens) / 1000);
            }
            println!(
                "  {name:>10}: waste {:6.1} per 1000 slots, {:5.1} cells per 1000 tokens, {hits:5.2} % found, begun \
                 {begun:?}, thousands of tokens at the end {room:?}",
                1000.0 * (slots - tokens) as f64 / slots as f64,
                1000.0 * cells as f64 / tokens as f64
            );
            cache.validate()?;
        }
    }
    Ok(())
}
