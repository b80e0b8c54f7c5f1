//! How fast host memory is pinned: by one call of the device, and by the pool with several threads. Prints one JSON line.
//!
//! Run: `pinned_figures [device [GiB]]`, optimised; without arguments 1 GiB on the host device. Each way pins memory of
//! its own and gives it back before the next; the times of giving back are not counted. Memory that a virtual machine
//! has never used costs its host extra, so a first pass touches as much as the ways that are compared need; what bounds
//! the last way, which needs more, is the touch of a quarter as much again while that is held.
#![expect(clippy::disallowed_macros, reason = "a program that prints its result")]

use std::sync::Arc;

use kavern::device::{Device, registry};
use kavern::error::{Error, Result};
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory, PinnedConfig, PinnedPool};
use kavern::sys::clock;
use kavern::sys::numa::HostMemory;

const GIB: u64 = 1 << 30;

fn seconds_since(start_ns: u64) -> f64 {
    (clock::now_ns() - start_ns) as f64 / 1e9
}

/// One call of the device for each GiB.
fn direct(device: &Arc<dyn Device>, gib: u64) -> Result<f64> {
    let start = clock::now_ns();
    let made: Result<Vec<_>> = (0..gib).map(|_| device.pinned_allocate(GIB)).collect();
    let seconds = seconds_since(start);
    made?.into_iter().try_for_each(|slice| device.pinned_free(slice))?;
    Ok(seconds)
}

/// GiB a second that are touched, without a device.
fn touched(threads: usize, gib: u64) -> Result<f64> {
    let start = clock::now_ns();
    let memory = HostMemory::new(gib * GIB, None, threads)?;
    let seconds = seconds_since(start);
    drop(memory);
    Ok(gib as f64 / seconds)
}

/// Seconds until the first GiB serves, and until all do; GiB a second of a quarter more that is touched then.
fn pooled(memory: &Arc<Memory>, threads: usize, gib: u64) -> Result<(f64, f64, f64)> {
    let pool = PinnedPool::new(memory, PinnedConfig { threads, ..PinnedConfig::of(memory) });
    let start = clock::now_ns();
    pool.reserve(gib * GIB)?;
    pool.allocate(GIB, "figures")?;
    let first = seconds_since(start);
    pool.wait_reserved()?;
    let all = seconds_since(start);
    Ok((first, all, touched(threads, gib.div_ceil(4))?))
}

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let spec = words.next().unwrap_or_else(|| "host".to_owned());
    let gib = words.next().map_or(Ok(1), |text| text.parse::<u64>());
    let gib = gib.map_err(|_| Error::argument("the second argument is a number of GiB"))?.max(1);
    let memory = Memory::new(registry::open(&spec)?, Limits::default(), Arc::new(NoSink));
    let few = gib.min(4);
    drop(HostMemory::new(few * GIB, None, 16)?);
    let direct = direct(memory.device(), few)?;
    let mut ways = Vec::new();
    for threads in [1, 4, 8, 16] {
        let touch = touched(threads, 1)?;
        let (first, all, _) = pooled(&memory, threads, few)?;
        ways.push(format!(
            "{{\"threads\": {threads}, \"touch_gib_s\": {:.2}, \"gib_s\": {:.2}, \"first_gib_ms\": {:.0}}}",
            touch,
            few as f64 / all,
            first * 1e3
        ));
    }
    let config = PinnedConfig::of(&memory);
    let (first, all, more) = pooled(&memory, config.threads, gib)?;
    println!(
        "{{\"device\": \"{}\", \"node\": {}, \"gib_each\": {few}, \"device_call_gib_s\": {:.2}, \"pool\": [{}], \
         \"gib\": {gib}, \"threads\": {}, \"first_gib_ms\": {:.0}, \"all_s\": {all:.2}, \
         \"more_touch_gib_s\": {more:.2}}}",
        memory.device().description().model,
        config.node.map_or("null".to_owned(), |node| node.to_string()),
        few as f64 / direct,
        ways.join(", "),
        config.threads,
        first * 1e3
    );
    Ok(())
}
