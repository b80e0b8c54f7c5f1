//! The verb `replay-alloc`: plays a trace of allocations and says how much memory it takes.
//!
//! What it does: plays each event in order through the C functions, finds the smallest limit under which nothing is
//! refused, reports. What it does not: write to the memory; who lies where is all that counts here. Each limit is tried
//! with a manager of its own, so that none profits from the one before.
//! Invariant: when a replay ends, all that it allocated was freed.

use std::fmt::Write;
use std::path::PathBuf;

use clap::{ArgGroup, Args};
use kavern::sys::clock::now_ns;
use serde::Serialize;

use crate::abi::{Manager, Stream};
use crate::alloc_generate::{self, Kind};
use crate::alloc_trace::{AllocationTrace, Event};
use crate::failure::{Failure, unwritable};
use crate::number::whole;
use crate::replay::unusable;
use crate::screen;
use crate::summary::{bytes, grouped};

/// Limits are tried in these steps: a page of the devices of the data centre.
const STEP_BYTES: u64 = 2 << 20;

/// Replay allocations and report the memory that they take, and the least that they could live in
#[derive(Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
#[command(group = ArgGroup::new("source").args(["trace", "generate"]).required(true))]
pub(crate) struct ReplayAlloc {
    /// Trace file: lines "a ID BYTES STREAM" and "f ID"
    #[arg(value_name = "TRACE")]
    trace: Option<PathBuf>,

    /// Make a trace instead of reading one
    #[arg(long, value_name = "KIND")]
    generate: Option<Kind>,

    /// Live MiB that a generated trace comes near at its peak
    #[arg(long, value_name = "MIB", requires = "generate", default_value_t = 1024,
          value_parser = whole(256u64..=1 << 20))]
    peak_mib: u64,

    /// Seed of a generated trace
    #[arg(long, requires = "generate", default_value_t = 1, value_parser = whole(0u64..))]
    seed: u64,

    /// Where the memory lies; "host" needs no GPU
    #[arg(long, default_value = "host")]
    device: String,

    /// Bytes of device memory that may be used [default: what the device has]
    #[arg(long, value_name = "BYTES", value_parser = whole(1u64..),
          conflicts_with = "find_cap")]
    limit: Option<u64>,

    /// Find the smallest limit under which no request is refused, to 2 MiB
    #[arg(long)]
    find_cap: bool,

    /// Microseconds that the program works between two events while it is watched what is held: a program that does
    /// nothing but allocate holds more
    #[arg(long, value_name = "US", default_value_t = 0, value_parser = whole(0u64..=10_000))]
    pace_us: u64,

    /// Write the trace to a file, for other programs that replay it
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,

    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  An inference server's allocations, no GPU
      kavern replay-alloc --generate serving
  The least memory in which a training run of about 2 GiB can live
      kavern replay-alloc --generate training --peak-mib 2048 --find-cap
  The same trace for another program
      kavern replay-alloc --generate serving --seed 7 --write serving.txt
      kavern replay-alloc serving.txt --limit 1200000000 --json

Fragmentation is the smallest limit under which no request is refused, over the most bytes that were live at one time,
minus one.

Exit code: 0 done, refused requests are counted, 1 a call failed for another reason, 2 unusable input.";

/// What a replay came to.
struct Played {
    refused: u64,
    at_peak: Held,
    seconds: f64,
}

/// What the allocator held at one time.
#[derive(Clone, Copy, Default)]
struct Held {
    backed_bytes: u64,
    live_bytes: u64,
    front_cache_bytes: u64,
    ordered_bytes: u64,
}

/// How a trace is played.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// As fast as it goes.
    Timed,
    /// The memory held is read after each allocation.
    Watched,
    /// It ends at the first request that is refused.
    Tried,
}

impl ReplayAlloc {
    /// Runs the verb.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let trace = match (&self.trace, self.generate) {
            (Some(path), _) => AllocationTrace::read(path)?,
            (None, Some(kind)) => alloc_generate::generate(kind, self.peak_mib << 20, self.seed),
            (None, None) => return Err(Failure::Input("expected a trace file or --generate".into())),
        };
        if let Some(path) = &self.write {
            std::fs::write(path, trace.text()).map_err(|error| unwritable("--write", path, &error))?;
        }
        let limit_bytes = self.limit.unwrap_or(0);
        let timed = self.play(&trace, limit_bytes, Mode::Timed)?;
        let watched = self.play(&trace, limit_bytes, Mode::Watched)?;
        let peak_live_bytes = trace.peak_live_bytes();
        let cap_bytes = match self.find_cap {
            true => Some(self.smallest_cap(&trace, peak_live_bytes, watched.at_peak.backed_bytes)?),
            false => None,
        };
        let operations = trace.events.len().max(1) as f64;
        let report = Report {
            trace: trace.name.clone(),
            device: self.device.clone(),
            allocations: trace.blocks.len() as u64,
            events: trace.events.len() as u64,
            streams: trace.stream_count(),
            limit_bytes,
            refused: timed.refused.max(watched.refused),
            peak_live_bytes,
            peak_backed_bytes: watched.at_peak.backed_bytes,
            live_at_that_bytes: watched.at_peak.live_bytes,
            front_cache_at_that_bytes: watched.at_peak.front_cache_bytes,
            ordered_at_that_bytes: watched.at_peak.ordered_bytes,
            cap_bytes,
            fragmentation: cap_bytes.map(|cap| cap as f64 / peak_live_bytes.max(1) as f64 - 1.0),
            ns_per_operation: timed.seconds * 1e9 / operations,
        };
        Ok(screen::show(&if self.json { report.json() } else { report.table() })?)
    }

    fn play(&self, trace: &AllocationTrace, limit_bytes: u64, mode: Mode) -> Result<Played, Failure> {
        let manager = Manager::create_limited(&self.device, limit_bytes).map_err(|refusal| {
            unusable(
                &format!("--device {}: expected a device of this machine, for example host", self.device),
                &refusal,
            )
        })?;
        let streams =
            (0..trace.stream_count()).map(|_| manager.create_stream()).collect::<Result<Vec<Stream>, _>>()?;
        let mut addresses = vec![0u64; trace.blocks.len()];
        let mut played = Played { refused: 0, at_peak: Held::default(), seconds: 0.0 };
        let begin = now_ns();
        let pace_ns = if mode == Mode::Watched { 1000 * self.pace_us } else { 0 };
        for (event, number) in trace.events.iter().zip(1..) {
            let due_ns = begin + pace_ns * number;
            while pace_ns > 0 && now_ns() < due_ns {
                std::hint::spin_loop();
            }
            match *event {
                Event::Allocate { block } => {
                    let at = block as usize;
                    let wanted = trace.blocks[at];
                    match manager.allocate(wanted.bytes, &streams[wanted.stream as usize])? {
                        Some(address) => addresses[at] = address,
                        None => played.refused += 1,
                    }
                    if mode == Mode::Tried && played.refused > 0 {
                        break;
                    }
                    if mode == Mode::Watched {
                        let memory = manager.memory()?;
                        if memory.backed_bytes > played.at_peak.backed_bytes {
                            played.at_peak = Held {
                                backed_bytes: memory.backed_bytes,
                                live_bytes: memory.live_bytes,
                                front_cache_bytes: memory.front_cache_bytes,
                                ordered_bytes: memory.ordered_bytes,
                            };
                        }
                    }
                }
                Event::Free { block } => {
                    let at = block as usize;
                    let address = std::mem::take(&mut addresses[at]);
                    // What was refused has no address, and 0 is freed without an effect.
                    manager.free(address, &streams[trace.blocks[at].stream as usize])?;
                }
            }
        }
        played.seconds = (now_ns() - begin) as f64 / 1e9;
        for (address, block) in addresses.iter().zip(&trace.blocks).filter(|(address, _)| **address != 0) {
            manager.free(*address, &streams[block.stream as usize])?;
        }
        Ok(played)
    }

    /// The smallest limit that suffices, between the live bytes and what is held without a limit.
    fn smallest_cap(
        &self,
        trace: &AllocationTrace,
        live_bytes: u64,
        backed_bytes: u64,
    ) -> Result<u64, Failure> {
        let suffices =
            |steps: u64| self.play(trace, steps * STEP_BYTES, Mode::Tried).map(|played| played.refused == 0);
        // Less than what is live never suffices.
        let mut too_few = (live_bytes / STEP_BYTES).saturating_sub(1);
        let mut enough = backed_bytes.div_ceil(STEP_BYTES).max(too_few + 2);
        while !suffices(enough)? {
            too_few = enough;
            enough += enough.div_ceil(4);
            if enough * STEP_BYTES > live_bytes.saturating_mul(8) {
                let limit = bytes(too_few * STEP_BYTES);
                return Err(Failure::Run(format!(
                    "even with {limit} requests are refused; the device may be too small for the trace"
                )));
            }
        }
        while enough - too_few > 1 {
            let middle = too_few + (enough - too_few) / 2;
            match suffices(middle)? {
                true => enough = middle,
                false => too_few = middle,
            }
        }
        Ok(enough * STEP_BYTES)
    }
}

/// The result; the names of the fields are the names in the JSON.
#[derive(Serialize)]
struct Report {
    trace: String,
    device: String,
    allocations: u64,
    events: u64,
    streams: u32,
    /// 0: the device's own.
    limit_bytes: u64,
    refused: u64,
    peak_live_bytes: u64,
    /// Physical memory behind the allocator's addresses, at most.
    peak_backed_bytes: u64,
    /// Of that, when it was reached first: asked for and not yet freed.
    live_at_that_bytes: u64,
    /// Freed, at the hand of threads.
    front_cache_at_that_bytes: u64,
    /// Freed, for the stream of the free only. What is left is free for all, or rounded up.
    ordered_at_that_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cap_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fragmentation: Option<f64>,
    ns_per_operation: f64,
}

impl Report {
    fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and strings always serialise") + "\n"
    }

    fn table(&self) -> String {
        let mut text = format!("{} on {}\n\n", self.trace, self.device);
        let mut row = |name: &str, value: String, remark: String| {
            let _ = writeln!(text, "{}", format!("  {name:<14} {value:>13}   {remark}").trim_end());
        };
        let held = 100.0 * (self.peak_backed_bytes as f64 / self.peak_live_bytes.max(1) as f64 - 1.0);
        let limit = match self.limit_bytes {
            0 => "no limit but the device's".into(),
            limit => format!("limit {}", bytes(limit)),
        };
        row("allocations", grouped(self.allocations), format!("on {} streams", self.streams));
        row("refused", grouped(self.refused), limit);
        row("live at peak", bytes(self.peak_live_bytes), "as it was asked for".into());
        // Beside all that was asked for, what a refused trace held says nothing.
        let beside = if self.refused == 0 { format!("{held:+.1} %") } else { String::new() };
        row("held at peak", bytes(self.peak_backed_bytes), beside);
        if let (Some(cap), Some(fragmentation)) = (self.cap_bytes, self.fragmentation) {
            let percent = format!("fragmentation {:.2} %", 100.0 * fragmentation);
            row("smallest limit", bytes(cap), percent);
        }
        row("speed", format!("{:.0} ns", self.ns_per_operation), "an operation".into());
        text
    }
}
