//! What the kernels and the device layer reach on a GPU, each beside its bound from the same run. Prints one JSON object.
//!
//! Run: `gpu_figures [cuda:0]`, optimised. Bandwidths: the pool is far larger than any cache and holds patterns, its
//! blocks are listed in a random order, a sample is several whole passes timed on the host around one wait, and the
//! median of the samples is shown; bounds and kernels take turns. Enqueue times: batches of calls without a wait,
//! ours and the driver's own in turns; the wait between batches is not counted.
#![expect(clippy::disallowed_macros, reason = "a program that prints its result")]

use std::ffi::c_void;
use std::sync::Arc;

use kavern::cache;
use kavern::device::{
    Arg, Attribute, Copy, CpuArgs, Device, DeviceSlice, Kernel, Launch, Place, Stream, registry,
};
use kavern::error::{Error, Result};
use kavern::sys::clock;

const POOL_BYTES: u64 = 8 << 30;
const SAMPLES: usize = 15;
const PASSES: u64 = 3;
const CALLS: u64 = 400;
const BATCHES: usize = 61;

/// Has no reference: it only costs time.
static READ: Kernel = Kernel { name: "contract_read", cpu: nothing };

fn nothing(_: &mut CpuArgs<'_>) {}

type Call = unsafe extern "C" fn(u64, u8, usize, u64) -> u32;
type Record = unsafe extern "C" fn(u64, u64) -> u32;

/// The driver's own functions, and an event of its own.
struct Raw {
    memset: Call,
    record: Record,
    event: u64,
}

fn symbol(library: *mut c_void, name: &std::ffi::CStr) -> Result<*mut c_void> {
    // SAFETY: the library is open and the name ends with a zero.
    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
    if found.is_null() { Err(Error::argument(format!("the driver has no {name:?}"))) } else { Ok(found) }
}

/// Makes the primary context current on this thread, as an engine's thread has it, and looks the functions up.
fn raw(ordinal: i32) -> Result<Raw> {
    // SAFETY: the driver is open already, by the device.
    let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
    let retain = symbol(library, c"cuDevicePrimaryCtxRetain")?;
    let set = symbol(library, c"cuCtxSetCurrent")?;
    let create = symbol(library, c"cuEventCreate")?;
    let (memset, record) = (symbol(library, c"cuMemsetD8Async")?, symbol(library, c"cuEventRecord")?);
    // SAFETY: the types are those of the driver's header.
    let retain: unsafe extern "C" fn(*mut u64, i32) -> u32 = unsafe { std::mem::transmute(retain) };
    // SAFETY: as above.
    let set: unsafe extern "C" fn(u64) -> u32 = unsafe { std::mem::transmute(set) };
    // SAFETY: as above.
    let create: unsafe extern "C" fn(*mut u64, u32) -> u32 = unsafe { std::mem::transmute(create) };
    // SAFETY: as above.
    let memset: Call = unsafe { std::mem::transmute(memset) };
    // SAFETY: as above.
    let record: Record = unsafe { std::mem::transmute(record) };
    let (mut context, mut event) = (0, 0);
    // SAFETY: the result is writable.
    let retained = unsafe { retain(&mut context, ordinal) };
    // SAFETY: the context was given just now.
    let current = unsafe { set(context) };
    // SAFETY: the result is writable; 2 switches timing off.
    let created = unsafe { create(&mut event, 2) };
    match retained | current | created {
        0 => Ok(Raw { memset, record, event }),
        _ => Err(Error::argument(format!("the driver answered {retained}, {current}, {created}"))),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Bench {
    device: Arc<dyn Device>,
    stream: Stream,
    pool: DeviceSlice,
    seed: u64,
}

impl Bench {
    fn next(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below
    }

    /// The numbers below `count` in a random order.
    fn shuffled(&mut self, count: u64) -> Vec<i32> {
        let mut list: Vec<i32> = (0..count as i32).collect();
        for at in (1..list.len()).rev() {
            list.swap(at, self.next(at as u64 + 1) as usize);
        }
        list
    }

    fn upload(&self, bytes: &[u8]) -> Result<DeviceSlice> {
        let slice = self.device.memory_allocate(bytes.len() as u64)?;
        self.device.write(slice, bytes)?;
        Ok(slice)
    }

    fn upload_ids(&self, ids: &[i32]) -> Result<DeviceSlice> {
        self.upload(&ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>())
    }

    /// Nanoseconds of one pass, once for each way in turns.
    fn times(&self, ways: &[&dyn Fn() -> Result<()>]) -> Result<Vec<f64>> {
        let mut times = vec![Vec::new(); ways.len()];
        for sample in 0..SAMPLES + 2 {
            for (way, times) in ways.iter().zip(&mut times) {
                self.device.stream_synchronize(self.stream)?;
                let start = clock::now_ns();
                for _ in 0..PASSES {
                    way()?;
                }
                self.device.stream_synchronize(self.stream)?;
                // The first two warm up.
                if sample >= 2 {
                    times.push((clock::now_ns() - start) as f64 / PASSES as f64);
                }
            }
        }
        Ok(times.into_iter().map(median).collect())
    }

    fn launch(&self, kernel: &'static Kernel, grid: u64, args: &[Arg]) -> Result<()> {
        let grid = grid.clamp(1, 1 << 16) as u32;
        self.device.launch(self.stream, &Launch { kernel, grid, block: 256, args })
    }

    /// As many threads as the multiprocessors hold at a time in one block each, which suits a copy best.
    fn launch_full(&self, kernel: &'static Kernel, args: &[Arg]) -> Result<()> {
        let grid = self.device.attribute(Attribute::MultiprocessorCount)?.max(1) as u32;
        self.device.launch(self.stream, &Launch { kernel, grid, block: 1024, args })
    }

    /// Fill, zero, check and copy of blocks of one size beside memset, read and copy of the same bytes.
    fn bandwidths(&mut self, block_bytes: u64) -> Result<String> {
        let blocks = POOL_BYTES / block_bytes;
        // As the cache launches them: a warp for 4 KiB, and a warp or a block of threads for a check.
        let chunks = block_bytes.div_ceil(4 << 10);
        let checks = if block_bytes <= 8 << 10 { blocks.div_ceil(8) } else { blocks };
        let order = self.shuffled(blocks);
        let ids = self.upload_ids(&order)?;
        let pairs = self.upload_ids(&order[..order.len() & !1])?;
        let seeds: Vec<u8> = (1..=blocks).flat_map(|seed| (seed * 0x9e37_79b9).to_le_bytes()).collect();
        let seeds = self.upload(&seeds)?;
        let counters = self.upload(&[0; 24])?;
        let (pool, bytes) = (self.pool, Arg::U64(block_bytes));
        let half = POOL_BYTES / 2;
        let (low, high) = (pool.part(0, half)?, pool.part(half, half)?);
        let [zero, fill, check, copy] =
            ["kavern_blocks_zero", "kavern_blocks_fill", "kavern_blocks_check", "kavern_blocks_copy"]
                .map(find);

        let list = [Arg::Write(pool), Arg::Read(ids), bytes];
        let seeded = [Arg::Write(pool), Arg::Read(ids), Arg::Read(seeds), bytes];
        let checked = [Arg::Write(counters), Arg::Read(pool), Arg::Read(ids), Arg::Read(seeds), bytes];
        let paired = [Arg::Write(pool), Arg::Read(pairs), bytes];
        let read = [Arg::Write(counters), Arg::Read(pool)];
        let halves = Copy { target: Place::Device(high), source: Place::Device(low) };
        let writes = self.times(&[
            &|| self.device.memset(self.stream, pool, 0x5a),
            &|| self.launch(zero, (blocks * chunks).div_ceil(8), &list),
            &|| self.launch(fill, (blocks * chunks).div_ceil(8), &seeded),
        ])?;
        // The fill above came last, so every block holds its pattern now.
        let reads =
            self.times(&[&|| self.launch(&READ, 132 * 16, &read), &|| self.launch(check, checks, &checked)])?;
        let mut sums = [0; 24];
        self.device.read(counters, &mut sums)?;
        let wrong = u64::from_le_bytes(sums[8..16].try_into().unwrap_or_default());
        let copies =
            self.times(&[&|| self.device.copy(self.stream, halves), &|| self.launch_full(copy, &paired)])?;
        for slice in [ids, pairs, seeds, counters] {
            self.device.memory_free(slice)?;
        }
        let rate = |time: f64| POOL_BYTES as f64 / time;
        Ok(format!(
            "{{\"block_bytes\": {block_bytes}, \"memset_gb_s\": {:.0}, \"zero_gb_s\": {:.0}, \"fill_gb_s\": {:.0}, \
             \"fill_of_memset\": {:.3}, \"read_gb_s\": {:.0}, \"check_gb_s\": {:.0}, \"check_of_read\": {:.3}, \
             \"wrong_blocks\": {wrong}, \"copy_dtod_gb_s\": {:.0}, \"copy_blocks_gb_s\": {:.0}, \
             \"copy_of_dtod\": {:.3}}}",
            rate(writes[0]),
            rate(writes[1]),
            rate(writes[2]),
            writes[0] / writes[2],
            rate(reads[0]),
            rate(reads[1]),
            reads[0] / reads[1],
            rate(copies[0]),
            rate(copies[1]),
            copies[0] / copies[1],
        ))
    }

    /// Nanoseconds to enqueue one call, for each way in turns.
    fn enqueue(&self, ways: &[&dyn Fn(u64) -> Result<()>]) -> Result<Vec<f64>> {
        let mut times = vec![Vec::new(); ways.len()];
        for batch in 0..BATCHES + 3 {
            for (way, times) in ways.iter().zip(&mut times) {
                let start = clock::now_ns();
                for call in 0..CALLS {
                    way(call)?;
                }
                let spent = clock::now_ns() - start;
                self.device.stream_synchronize(self.stream)?;
                if batch >= 3 {
                    times.push(spent as f64 / CALLS as f64);
                }
            }
        }
        Ok(times.into_iter().map(median).collect())
    }

    fn overheads(&self, raw: &Raw) -> Result<String> {
        let stream = self.stream.0;
        let at = |call: u64| self.pool.part(call * 4096, 64);
        let done = |code: u32| if code == 0 { Ok(()) } else { Err(Error::argument(format!("code {code}"))) };
        let memset = self.enqueue(&[
            // SAFETY: the range is in the pool, the stream is alive.
            &|call| done(unsafe { (raw.memset)(at(call)?.address(), 7, 64, stream) }),
            &|call| self.device.memset(self.stream, at(call)?, 7),
        ])?;
        let event = self.device.event_create()?;
        let record = self.enqueue(&[
            // SAFETY: event and stream are alive.
            &|_| done(unsafe { (raw.record)(raw.event, stream) }),
            &|_| self.device.event_record(event, self.stream),
        ])?;
        self.device.event_destroy(event)?;
        Ok(format!(
            "{{\"memset_raw_ns\": {:.0}, \"memset_ns\": {:.0}, \"memset_overhead_ns\": {:.0}, \
             \"event_record_raw_ns\": {:.0}, \"event_record_ns\": {:.0}, \"event_record_overhead_ns\": {:.0}}}",
            memset[0],
            memset[1],
            memset[1] - memset[0],
            record[0],
            record[1],
            record[1] - record[0]
        ))
    }
}

fn find(name: &str) -> &'static Kernel {
    let found = cache::kernels().iter().find(|kernel| kernel.name == name);
    found.expect("the cache has these kernels")
}

fn main() -> Result<()> {
    let spec = std::env::args().nth(1).unwrap_or_else(|| "cuda:0".to_owned());
    let device = registry::open(&spec)?;
    device.module_load(cache::kernels())?;
    device.module_load(&[&READ])?;
    let description = device.description().clone();
    let raw = raw(description.ordinal as i32)?;
    let (stream, pool) = (device.stream_create()?, device.memory_allocate(POOL_BYTES)?);
    let mut bench = Bench { device, stream, pool, seed: 1 };
    let sizes: Result<Vec<String>> =
        [4 << 10, 16 << 10, 64 << 10, 1 << 20].into_iter().map(|bytes| bench.bandwidths(bytes)).collect();
    let enqueue = bench.overheads(&raw)?;
    println!(
        "{{\"device\": \"{}\", \"pool_bytes\": {POOL_BYTES}, \"samples\": {SAMPLES}, \"passes\": {PASSES}, \
         \"bandwidth\": [{}], \"enqueue\": {enqueue}}}",
        description.model,
        sizes?.join(", ")
    );
    Ok(())
}
