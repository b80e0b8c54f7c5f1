//! What it costs to put memory behind addresses and to move it between models, beside the bare calls of the device in
//! the same run. Prints one JSON object.
//!
//! Run: `memory_figures [cuda:0]`, optimised. A sample is one call timed on the host; the ways take turns, and the
//! median of the samples is shown. A move is the decommit of one live model behind its stream and the commit of another
//! that needs the same memory: map, open, and in a shared pool the zeroing of what changes its model; the old addresses
//! are unmapped after it, which is told apart and waited for before the next sample. On a
//! device of the CPU everything is 64 times smaller: there it shows that the program works, and nothing about a GPU.
#![expect(clippy::disallowed_macros, reason = "a program that prints its result")]

use std::sync::Arc;

use kavern::device::{Access, Device, DeviceSlice, Stream, registry};
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

/// How long a move takes: until the memory may be used where it is now, and until nothing leads to it from where it
/// was. Milliseconds.
#[derive(Default)]
struct Moves {
    ready: Vec<u64>,
    done: Vec<u64>,
}

impl Moves {
    fn time(
        &mut self,
        change: impl FnOnce() -> Result<()>,
        mut finish: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let start = clock::now_ns();
        change()?;
        self.ready.push(clock::now_ns() - start);
        while !finish()? {
            std::thread::yield_now();
        }
        self.done.push(clock::now_ns() - start);
        Ok(())
    }

    fn medians(self) -> [f64; 2] {
        [median(self.ready), median(self.done)]
    }
}

/// The calls of the device alone, in the same order: all pages behind the new addresses, opened by one call, then taken
/// from the old ones by one; and with the old ones first.
fn bare_moves(device: &dyn Device, bytes: u64, unit: u64) -> Result<([f64; 2], f64)> {
    let ranges = [device.virtual_reserve(bytes)?, device.virtual_reserve(bytes)?];
    let pages = (0..bytes / unit).map(|_| device.page_create(unit)).collect::<Result<Vec<_>>>()?;
    let put = |range: DeviceSlice| -> Result<()> {
        for (at, page) in (0..).step_by(unit as usize).zip(&pages) {
            device.virtual_map(range.part(at, unit)?, *page)?;
        }
        device.virtual_set_access(range, Access::ReadWrite)
    };
    put(ranges[0])?;
    let (mut moves, mut unmapped_first) = (Moves::default(), Vec::new());
    for sample in 0..2 * SAMPLES {
        let (from, to) = (ranges[sample % 2], ranges[(sample + 1) % 2]);
        if sample / 2 % 2 == 0 {
            moves.time(|| put(to), || device.virtual_unmap(from).map(|()| true))?;
        } else {
            unmapped_first.push(timed(|| device.virtual_unmap(from).and_then(|()| put(to)))?);
        }
    }
    device.virtual_unmap(ranges[0])?;
    pages.into_iter().try_for_each(|page| device.page_release(page))?;
    ranges.into_iter().try_for_each(|range| device.virtual_release(range))?;
    Ok((moves.medians(), median(unmapped_first)))
}

/// Moves all of a shared pool from one live model to the other and back.
fn moves_of_models(memory: &Arc<Memory>, bytes: u64, has_slabs: bool) -> Result<([f64; 2], u64)> {
    let config = SharedConfig { limit_bytes: bytes, has_slabs, ..SharedConfig::default() };
    let pool = SharedPool::new(memory, config)?;
    for name in ["a", "b"] {
        pool.register(name, bytes, Terms { min_bytes: 0, weight: 1, cap_bytes: 0 })?;
    }
    let stream = memory.device().stream_create()?;
    pool.commit("a", 0, bytes)?;
    let mut moves = Moves::default();
    for (from, to) in [("a", "b"), ("b", "a")].into_iter().cycle().take(SAMPLES) {
        // A model that is alive has just worked on its memory.
        memory.device().memset(stream, pool.slice(from)?.part(0, 4096)?, 1)?;
        memory.device().stream_synchronize(stream)?;
        let change = || {
            pool.decommit(from, 0, bytes, Some(stream))?;
            pool.commit(to, 0, bytes).map(drop)
        };
        moves.time(change, || Ok(pool.statistics().physical.stale_mappings == 0))?;
    }
    let scrubbed = pool.statistics().scrubbed_bytes;
    drop(pool);
    memory.device().stream_destroy(stream)?;
    Ok((moves.medians(), scrubbed / bytes))
}

/// The same between two ranges of one owner, which are not zeroed.
fn moves_of_ranges(memory: &Arc<Memory>, bytes: u64, has_slabs: bool) -> Result<[f64; 2]> {
    let limits = Limits { device_limit_bytes: bytes, ..Limits::default() };
    let memory = Memory::new(Arc::clone(memory.device()), limits, Arc::new(NoSink));
    let (physical, ranges) = (memory.physical()?, [(); 2].map(|()| range(&memory, bytes, has_slabs)));
    let [one, two] = ranges;
    let ranges = [one?, two?];
    ranges[0].commit(0, bytes)?;
    let mut moves = Moves::default();
    for sample in 0..SAMPLES {
        let (from, to) = (&ranges[sample % 2], &ranges[(sample + 1) % 2]);
        let change = || {
            from.decommit(0, bytes, Some(Stream::DEFAULT))?;
            to.commit(0, bytes).map(drop)
        };
        moves.time(change, || Ok(physical.statistics().stale_mappings == 0))?;
    }
    Ok(moves.medians())
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
    let unit = description.page_bytes;
    let ([bare_slabs, bare_slabs_done], _) = bare_moves(memory.device().as_ref(), move_bytes, unit * 32)?;
    let ([bare, bare_done], bare_unmap_first) = bare_moves(memory.device().as_ref(), move_bytes, unit)?;
    let ([slabs_ready, slabs_done], moved) = moves_of_models(&memory, move_bytes, true)?;
    let ([single_ready, single_done], _) = moves_of_models(&memory, move_bytes, false)?;
    let [ranges_slabs_ready, ranges_slabs_done] = moves_of_ranges(&memory, move_bytes, true)?;
    let [ranges_ready, ranges_done] = moves_of_ranges(&memory, move_bytes, false)?;
    println!(
        "{{\"device\": \"{}\", \"page_bytes\": {}, \"samples\": {SAMPLES}, \"commit_bytes\": {commit_bytes}, \
         \"commit_slabs_pooled_ms\": {:.3}, \"commit_slabs_cold_ms\": {:.3}, \"decommit_slabs_ms\": {:.3}, \
         \"kvcached_pattern_ms\": {kvcached_ms:.3}, \"kvcached_of_pooled_slabs\": {:.1}, \
         \"commit_single_pooled_ms\": {:.3}, \"commit_single_cold_ms\": {:.3}, \"decommit_single_ms\": {:.3}, \
         \"move_bytes\": {move_bytes}, \"moves_zeroed\": {moved}, \
         \"move_models_slabs_ms\": {slabs_ready:.3}, \"move_models_slabs_unmapped_ms\": {slabs_done:.3}, \
         \"move_models_single_ms\": {single_ready:.3}, \"move_models_single_unmapped_ms\": {single_done:.3}, \
         \"move_ranges_slabs_ms\": {ranges_slabs_ready:.3}, \"move_ranges_slabs_unmapped_ms\": {ranges_slabs_done:.3}, \
         \"move_ranges_single_ms\": {ranges_ready:.3}, \"move_ranges_single_unmapped_ms\": {ranges_done:.3}, \
         \"bare_slabs_ms\": {bare_slabs:.3}, \"bare_slabs_unmapped_ms\": {bare_slabs_done:.3}, \
         \"bare_single_ms\": {bare:.3}, \"bare_single_unmapped_ms\": {bare_done:.3}, \
         \"bare_single_unmap_first_ms\": {bare_unmap_first:.3}}}",
        description.model,
        description.page_bytes,
        slabs.pooled_ms,
        slabs.cold_ms,
        slabs.decommit_ms,
        kvcached_ms / slabs.pooled_ms,
        single.pooled_ms,
        single.cold_ms,
        single.decommit_ms,
    );
    Ok(())
}
