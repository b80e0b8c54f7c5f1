//! The verb `replay`: plays request traffic against a cache, with real bytes, and reports.
//!
//! What its options mean is here; the playing itself is in player.rs. Everything is printed at the end and at once.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{ArgGroup, Args};
use kavern::cache::policy_names;

use crate::abi::{Manager, Refusal};
use crate::curve;
use crate::failure::Failure;
use crate::generate::{self, Kind};
use crate::keys::BLOCK_TOKENS;
use crate::number::whole;
use crate::player::Player;
use crate::scale;
use crate::screen;
use crate::timed;
use crate::trace;
use crate::workload::Workload;

/// Blocks of the cache where the workload is generated and nothing is said.
const DEFAULT_BLOCKS: u64 = 20_000;

/// Replay request traffic against a cache and report hits, evictions, speed, and whether every byte was right
#[derive(Args, Clone)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
#[command(group = ArgGroup::new("source").args(["trace", "generate"]).required(true))]
pub(crate) struct Replay {
    /// Trace file: Mooncake JSON lines or Azure CSV, plain or zstd
    #[arg(value_name = "TRACE")]
    trace: Option<PathBuf>,

    /// Make traffic instead of reading a trace
    #[arg(long, value_name = "KIND")]
    generate: Option<Kind>,

    /// How many requests to generate
    #[arg(long, value_name = "N", requires = "generate", default_value_t = generate::DEFAULT_REQUESTS as u64,
          value_parser = whole(1u64..=100_000_000))]
    requests: u64,

    /// Blocks that the cache holds [default with --generate: 20000]
    #[arg(long, value_name = "N", required_unless_present_any = ["generate", "plot"],
          value_parser = whole(1u64..))]
    pub(crate) blocks: Option<u64>,

    /// Which block goes when room is needed: lru, as the reference answers of traces have it, unless told otherwise;
    /// a cache that an engine makes learns (adaptive) unless told otherwise
    #[arg(long, default_value = "lru", value_parser = PossibleValuesParser::new(policy_names()))]
    pub(crate) policy: String,

    /// Where the blocks lie; "host" needs no GPU
    #[arg(long, default_value = "host")]
    pub(crate) device: String,

    /// Bytes of a block, a multiple of 16
    #[arg(long, value_name = "BYTES", default_value_t = 4096, value_parser = whole(16u64..))]
    pub(crate) block_bytes: u64,

    /// Only the bookkeeping: no memory, no kernels, nothing to verify
    #[arg(long)]
    pub(crate) no_bytes: bool,

    /// Hand blocks out in runs of ascending ids, as a cache does unless told otherwise, at a small cost in hits;
    /// without it in exact order, as the reference answers of traces have it
    #[arg(long)]
    pub(crate) in_runs: bool,

    /// Give the cache 512 token ids a block, which it hashes itself, instead of ready keys
    #[arg(long)]
    pub(crate) tokens: bool,

    /// Seed of keys, byte patterns and generated traffic
    #[arg(long, default_value_t = 1, value_parser = whole(0u64..))]
    pub(crate) seed: u64,

    /// Print one JSON object instead of the table
    #[arg(long)]
    pub(crate) json: bool,

    /// Play the trace in its own time: requests wait, run and hold their blocks until they end; no bytes move
    #[arg(long, conflicts_with_all = ["generate", "tokens"])]
    timed: bool,

    /// Tokens of a block of the trace, with --timed
    #[arg(long = "block-tokens", value_name = "N", default_value_t = BLOCK_TOKENS as u32, requires = "timed",
          value_parser = whole(1u32..=65_536))]
    pub(crate) trace_block_tokens: u32,

    /// Requests that run at a time, with --timed
    #[arg(long, value_name = "N", default_value_t = 4096, requires = "timed",
          value_parser = whole(1u32..=65_536))]
    pub(crate) slots: u32,

    /// Draw the hit rate over the capacity for several policies, beside the bound, into this SVG file; no bytes move
    #[arg(long, value_name = "FILE", conflicts_with_all = ["timed", "blocks", "policy"])]
    plot: Option<PathBuf>,

    /// Capacities of the plot, in blocks [default: twelve, up to where everything fits]
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', requires = "plot",
          value_parser = whole(1u64..))]
    pub(crate) capacities: Vec<u64>,

    /// Policies of the plot [default: all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', requires = "plot",
          default_values_t = policy_names().map(String::from), hide_default_value = true,
          value_parser = PossibleValuesParser::new(policy_names()))]
    pub(crate) policies: Vec<String>,

    /// Stop after this many requests
    #[arg(long, value_name = "K", value_parser = whole(1u64..))]
    limit: Option<u64>,
}

const EXAMPLES: &str = "\
Examples:
  No file, no GPU: mixed traffic of chats, agents and batch jobs, each byte checked
      kavern replay --generate mixed
  A public trace against a cache of 10,000 blocks
      kavern replay conversation_trace.jsonl.zst --blocks 10000
  The same, only counting, as JSON
      kavern replay conversation_trace.jsonl.zst --blocks 10000 --no-bytes --json
  The trace in its own time: arrivals, waiting, outputs that hold blocks
      kavern replay conversation_trace.jsonl.zst --blocks 10000 --timed
  Ten million blocks, thousands of tenants, about 10^8 touches
      kavern replay --generate internet --requests 1000000 --blocks 10000000
  Compare policies: one, or all in a picture
      kavern replay --generate chat --blocks 5000 --policy fifo
      kavern replay conversation_trace.jsonl.zst --plot hits.svg

A trace is a file of lines
  {\"timestamp\": 0, \"input_length\": 1024, \"output_length\": 9, \"hash_ids\": [0, 1]}
where each id names a block and all blocks before it, or a CSV with the columns
TIMESTAMP,ContextTokens,GeneratedTokens, which has no reuse.

Exit code: 0 done and every byte right, 1 wrong bytes or a failed call, 2 unusable input.";

impl Replay {
    /// Runs the verb.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let manager = Manager::create(&self.device).map_err(|refusal| {
            unusable(
                &format!("--device {}: expected a device of this machine, for example host", self.device),
                &refusal,
            )
        })?;
        if self.generate == Some(Kind::Internet) {
            if self.tokens || self.plot.is_some() {
                let text =
                    "--generate internet is counted by keys alone; expected neither --tokens nor --plot";
                return Err(Failure::Input(text.into()));
            }
            return scale::run(self, &manager, self.limit.unwrap_or(u64::MAX).min(self.requests));
        }
        if let Some(path) =
            self.plot.as_ref().filter(|path| path.extension().is_none_or(|kind| kind != "svg"))
        {
            let text = format!(
                "--plot {}: expected a name that ends in .svg, the form of the picture",
                path.display()
            );
            return Err(Failure::Input(text));
        }
        let workload = self.workload()?;
        if let Some(path) = &self.plot {
            return curve::run(self, &manager, &workload, path);
        }
        if self.timed {
            return timed::run(self, &manager, &workload);
        }
        let mut player = Player::new(self, &manager, &workload)?;
        player.play()?;
        let report = player.report()?;
        screen::show(&if self.json { report.json() } else { report.table() })?;
        report.verdict()
    }

    fn workload(&self) -> Result<Workload, Failure> {
        let limit = self.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        match (&self.trace, self.generate) {
            (Some(path), _) => trace::read(path, limit),
            (None, Some(_)) if self.requests > generate::MOST_REQUESTS => Err(Failure::Input(format!(
                "--requests {}: expected at most {}, which lie in memory; internet takes any number",
                self.requests,
                generate::MOST_REQUESTS
            ))),
            (None, Some(kind)) => Ok(generate::generate(kind, limit.min(self.requests as usize), self.seed)),
            (None, None) => Err(Failure::Input("expected a trace file or --generate".into())),
        }
    }

    /// The same with another policy and size, bookkeeping only.
    pub(crate) fn counting(&self, policy: &str, blocks: u64) -> Replay {
        Replay { policy: policy.into(), blocks: Some(blocks), no_bytes: true, ..self.clone() }
    }

    /// Blocks of the cache.
    pub(crate) fn capacity(&self) -> u64 {
        self.blocks.unwrap_or(DEFAULT_BLOCKS)
    }

    /// Tokens of a block; with keys a block counts as one token.
    pub(crate) fn block_tokens(&self) -> usize {
        if self.tokens { BLOCK_TOKENS } else { 1 }
    }
}

/// The caller's argument or a missing device is unusable input; all else is a failed run.
pub(crate) fn unusable(what: &str, refusal: &Refusal) -> Failure {
    match refusal.status {
        -99..=-1 | -200 => Failure::Input(format!("{what}: {refusal}")),
        _ => refusal.into(),
    }
}

impl From<&Refusal> for Failure {
    fn from(refusal: &Refusal) -> Failure {
        Failure::Run(refusal.to_string())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure::from(&refusal)
    }
}
