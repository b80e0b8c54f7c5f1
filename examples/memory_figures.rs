//! What it costs to put memory behind addresses and to move it between models, beside the bare calls of the device in
//! the same run. Prints one JSON object.
//!
//! Run: `memory_figures [cuda:0]`, optimised. A sample is one call timed on the host; the ways take turns, and the
//! median of the samples is shown. A move is the decommit of one live model behind its stream and the commit of another
//! that needs the same memory: unmap, map, open, and in a shared pool the zeroing of what changes its model. On a
//! device of the CPU everything is 64 times smaller: there it shows that the program works, and nothing about a GPU.
#![expect(clippy::disallowed_macros, reason = "a program that prints its result")]

use std::sync::Arc;

use kavern::device::{Access, Device, Stream, registry};
use kavern::error::Result;
use kavern::event::NoSink;
use kavern::memory::{Elastic, ElasticConfig, Limits, Memory, SharedConfig, SharedPool, Terms};
use kavern::sys::clock;

const SAMPLES: usize = 11;

fn median(mut values: Vec<u64>) -> f64 {
    values.sort_unstable();
    values[values.len() / 2] as f64 / 1e6
}

fn timed(body: impl FnOnce() -> Result<()>) -> Result<u64> {
    let start = clock::now_ns();
    body()?;
    Ok(clock::now_ns() - start)
}

fn range(memory: &Arc<Memory>, bytes: u64, has_slabs: bool) -> Result<Arc<Elastic>> {
    Elastic::new(memory, ElasticConfig { capacity_bytes: bytes, page_bytes: 0, has_slabs })
}

/// Commits a range whole from the pool and from the device, and gives it up: milliseconds of each.
struct Commits {
    pooled_ms: f64,
    cold_ms: f64,
    decommit_ms: f64,
}

fn commits(memory: &Arc<Memory>, bytes: u64, has_slabs: bool) -> Result<Commits> {
    let range = range(memory, bytes, has_slabs)?;
    let (mut pooled, mut cold, mut back) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        memory.trim_pages();
        cold.push(timed(|| range.commit(0, bytes).map(drop))?);
        range.decommit(0, bytes, None)?;
        pooled.push(timed(|| range.commit(0, bytes).map(drop))?);
        back.push(timed(|| range.decommit(0, bytes, None).map(drop))?);
    }
    memory.trim_pages();
    Ok(Commits { pooled_ms: median(pooled), cold_ms: median(cold), decommit_ms: median(back) })
}

/// The pattern of kvcached: each page made, mapped and opened by itself.
fn page_by_page(device: &dyn Device, bytes: u64) -> Result<f64> {
    let unit = device.description().page_bytes;
    let mut times = Vec::new();
    for _ in 0..SAMPLES {
        let range = device.virtual_reserve(bytes)?;
        let mut pages = Vec::new();
        times.push(timed(|| {
            for at in (0..bytes).step_by(unit as usize) {
                let page = device.page_create(unit)?;
                let target = range.part(at, unit)?;
                device.virtual_map(target, page)?;
                device.virtual_set_access(target, Access::ReadWrite)?;
                pages.push(page);
            }
            Ok(())
        })?);
        device.virtual_unmap(range)?;
        for page in pages {
            device.page_release(page)?;
        }
        device.virtual_release(range)?;
    }
    Ok(median(times))
}

/// Moves all of a shared pool from one live model to the other and back.
fn moves_of_models(memory: &Arc<Memory>, bytes: u64, has_slabs: bool) -> Result<(f64, u64)> {
    let config = SharedConfig { limit_bytes: bytes, has_slabs, ..SharedConfig::default() };
    let pool = SharedPool::new(memory, config)?;
    for name in ["a", "b"] {
        pool.register(name, bytes, Terms { min_bytes: 0, weight: 1, cap_bytes: 0 })?;
    }
    let stream = memory.device().stream_create()?;
    pool.commit("a", 0, bytes)?;
    let mut times = Vec::new();
    for (from, to) in [("a", "b"), ("b", "a")].into_iter().cycle().take(SAMPLES) {
        // A model that is alive has just worked on its memory.
        memory.device().memset(stream, pool.slice(from)?.part(0, 4096)?, 1)?;
        memory.device().stream_synchronize(stream)?;
        times.push(timed(|| {
            pool.decommit(from, 0, bytes, Some(stream))?;
            pool.commit(to, 0, bytes).map(drop)
        })?);
    }
    let scrubbed = pool.statistics().scrubbed_bytes;
    drop(pool);
    memory.device().stream_destroy(stream)?;
    Ok((median(times), scrubbed / bytes))
}

/// The same between two ranges of one owner, which are not zeroed.
fn moves_of_ranges(memory: &Arc<Memory>, bytes: u64, has_slabs: bool) -> Result<f64> {
    let limits = Limits { device_limit_bytes: bytes, ..Limits::default() };
    let memory = Memory::new(Arc::clone(memory.device()), limits, Arc::new(NoSink));
    let ranges = [range(&memory, bytes, has_slabs)?, range(&memory, bytes, has_slabs)?];
    ranges[0].commit(0, bytes)?;
    let mut times = Vec::new();
    for sample in 0..SAMPLES {
        let (from, to) = (&ranges[sample % 2], &ranges[(sample + 1) % 2]);
        times.push(timed(|| {
            from.decommit(0, bytes, Some(Stream::DEFAULT))?;
            to.commit(0, bytes).map(drop)
        })?);
    }
    Ok(median(times))
}

fn main() -> Result<()> {
    let spec = std::env::args().nth(1).unwrap_or_else(|| "cuda:0".to_owned());
    let device = registry::open(&spec)?;
    let description = device.description().clone();
    let scale = if description.capabilities.host_addressable { 64 } else { 1 };
    let (commit_bytes, move_bytes) = ((1 << 30) / scale, (8 << 30) / scale);
    let memory = Memory::new(device, Limits::default(), Arc::new(NoSink));
    let slabs = commits(&memory, commit_bytes, true)?;
    let kvcached_ms = page_by_page(memory.device().as_ref(), commit_bytes)?;
    let single = commits(&memory, commit_bytes, false)?;
    let (move_slabs_ms, moved) = moves_of_models(&memory, move_bytes, true)?;
    let (move_single_ms, _) = moves_of_models(&memory, move_bytes, false)?;
    println!(
        "{{\"device\": \"{}\", \"page_bytes\": {}, \"samples\": {SAMPLES}, \"commit_bytes\": {commit_bytes}, \
         \"commit_slabs_pooled_ms\": {:.3}, \"commit_slabs_cold_ms\": {:.3}, \"decommit_slabs_ms\": {:.3}, \
         \"kvcached_pattern_ms\": {kvcached_ms:.3}, \"kvcached_of_pooled_slabs\": {:.1}, \
         \"commit_single_pooled_ms\": {:.3}, \"commit_single_cold_ms\": {:.3}, \"decommit_single_ms\": {:.3}, \
         \"move_bytes\": {move_bytes}, \"move_models_slabs_ms\": {move_slabs_ms:.3}, \
         \"move_models_single_ms\": {move_single_ms:.3}, \"moves_zeroed\": {moved}, \
         \"move_ranges_slabs_ms\": {:.3}, \"move_ranges_single_ms\": {:.3}}}",
        description.model,
        description.page_bytes,
        slabs.pooled_ms,
        slabs.cold_ms,
        slabs.decommit_ms,
        kvcached_ms / slabs.pooled_ms,
        single.pooled_ms,
        single.cold_ms,
        single.decommit_ms,
        moves_of_ranges(&memory, move_bytes, true)?,
        moves_of_ranges(&memory, move_bytes, false)?,
    );
    Ok(())
}
