//! What lookups in the index on a GPU reach, beside the bound from the same run. Prints one JSON object.
//!
//! Run: `index_figures [cuda:0] [blocks ...]`, optimised. The bound reads the same hashes, one random sector of 32 bytes
//! for each in a table of the same size, and writes one word: no lookup can do less. Times are taken on the host around
//! several passes with one wait at the end, in turns with the bound; medians. Every answer is compared with the host's.
#![expect(clippy::disallowed_macros, reason = "a program that prints its result")]

use std::sync::Arc;

use kavern::cache::{
    CacheConfig, Content, DeviceLookup, GroupConfig, HashKind, IndexOptions, KvCache, LookupMode, Naming, Op,
    Reach, Request, SMALL_BYTES, Scrub, Target,
};
use kavern::device::{Arg, CpuArgs, Device, DeviceSlice, Kernel, Launch, Stream, registry};
use kavern::error::{Error, Result, Status};
use kavern::event::NoSink;
use kavern::memory::{Limits, Memory};
use kavern::sys::clock;
use kavern::types::Id;

const PROMPT_BLOCKS: u64 = 8192;
const BLOCK_TOKENS: u64 = 16;
const KEY_BYTES: usize = 16;
/// Prompts of a router's question, and blocks of each.
const ROWS: u32 = 256;
const ROW_HASHES: u32 = 1024;
/// Lookups of one measured pass.
const LOOKUPS: usize = 1 << 22;
const SAMPLES: usize = 31;
const PASSES: u64 = 8;

/// Has no reference: it only costs time.
static GATHER: Kernel = Kernel { name: "contract_gather", cpu: nothing };

fn nothing(_: &mut CpuArgs<'_>) {}

fn config(blocks: u64) -> CacheConfig {
    let tokens = PROMPT_BLOCKS * BLOCK_TOKENS;
    CacheConfig {
        name: "index figures".to_owned(),
        groups: vec![GroupConfig {
            content: Content::Opaque { block_bytes: 16 },
            block_tokens: BLOCK_TOKENS as u32,
            capacity_blocks: 0,
            region: None,
            reach: Reach::All,
        }],
        capacity_blocks: blocks,
        capacity_bytes: 0,
        max_sequences: 4,
        max_sequence_tokens: tokens,
        max_batch_tokens: tokens as u32,
        max_leases: 4,
        max_namespaces: 4,
        steps_in_flight: 2,
        hash_block_tokens: 0,
        hash: HashKind::Blake3,
        scrub: Scrub::None,
        event_capacity: 0,
        policy: "lru".to_owned(),
        hash_secret: [1; 32],
        metadata_only: false,
        ragged: false,
        require_salt: false,
        partial_hits: false,
        worker: false,
        exact_order: true,
        small_bytes: SMALL_BYTES,
        adaptive: None,
        max_blocks: 0,
        index: IndexOptions { device: true, chunks: false },
    }
}

/// Keys of a prompt, unlike those of any other.
fn keys(prompt: u64) -> Vec<u8> {
    let mut state = prompt + 1;
    let words = PROMPT_BLOCKS as usize * KEY_BYTES / 8;
    let next = |_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb).to_le_bytes()
    };
    (0..words).flat_map(next).collect()
}

fn request(bytes: &[u8]) -> Request<'_> {
    Request {
        namespace_id: 1,
        adapter_id: 0,
        salt: b"",
        naming: Naming::Keys { bytes, key_bytes: KEY_BYTES as u32 },
        token_count: PROMPT_BLOCKS * BLOCK_TOKENS,
        no_read: false,
        no_store: false,
        drop_last: false,
        keep_one_token: false,
        sizing: Default::default(),
    }
}

fn good(status: Status) -> Result<()> {
    if status == Status::Ok { Ok(()) } else { Err(Error::new(status, "an operation was refused")) }
}

/// A filled cache, the hashes of its blocks in a random order, and the blocks that they name.
struct Filled {
    device: Arc<dyn Device>,
    cache: KvCache,
    stream: Stream,
    hashes: Vec<[u64; 2]>,
    blocks: Vec<i32>,
    /// Mean time of `tables` for a step that stores 8,192 blocks, until the device is done.
    upload_us: f64,
}

fn fill(device: &Arc<dyn Device>, blocks: u64) -> Result<Filled> {
    let memory = Memory::new(Arc::clone(device), Limits::default(), Arc::new(NoSink));
    let (cache, stream) = (KvCache::new(&memory, &config(blocks))?, device.stream_create()?);
    let (mut hashes, mut found, mut spent) = (Vec::new(), Vec::new(), 0);
    let prompts = blocks / PROMPT_BLOCKS;
    for prompt in 0..prompts {
        let (bytes, step) = (keys(prompt), prompt + 1);
        let wanted = request(&bytes);
        let lease = cache.lookups().find(&wanted)?.lease;
        let mut list = cache.step(step)?;
        let tokens = wanted.token_count;
        let admitted = list.apply(&Op::Admit { lease, tokens, lookahead: 0, row: -1, expected_tokens: 0 });
        good(admitted.status)?;
        let target = Target::Id(Id(admitted.sequence));
        good(list.apply(&Op::Commit { target, tokens, naming: wanted.naming }).status)?;
        drop(list);
        let start = clock::now_ns();
        cache.tables(step, stream, |tables| {
            let group = tables.group(0)?;
            let first = admitted.row as usize * group.row_cells as usize;
            found.extend_from_slice(&group.block_table[first..first + PROMPT_BLOCKS as usize]);
            Ok(())
        })?;
        device.stream_synchronize(stream)?;
        spent += clock::now_ns() - start;
        good(cache.step(step)?.apply(&Op::Free { target }).status)?;
        cache.step_done(step, None)?;
        cache.block_hashes(&wanted, 0, |_, hash| hashes.push(hash))?;
    }
    // Both lists in the same random order.
    let mut state = 1u64;
    for at in (1..hashes.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let other = ((state >> 33) % (at as u64 + 1)) as usize;
        hashes.swap(at, other);
        found.swap(at, other);
    }
    let upload_us = spent as f64 / 1e3 / prompts as f64;
    Ok(Filled { device: Arc::clone(device), cache, stream, hashes, blocks: found, upload_us })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Filled {
    /// Nanoseconds of one pass, once for each way in turns.
    fn times(&self, passes: u64, ways: &[&dyn Fn() -> Result<()>]) -> Result<Vec<f64>> {
        let mut times = vec![Vec::new(); ways.len()];
        for sample in 0..SAMPLES + 2 {
            for (way, times) in ways.iter().zip(&mut times) {
                self.device.stream_synchronize(self.stream)?;
                let start = clock::now_ns();
                for _ in 0..passes {
                    way()?;
                }
                self.device.stream_synchronize(self.stream)?;
                // The first two warm up.
                if sample >= 2 {
                    times.push((clock::now_ns() - start) as f64 / passes as f64);
                }
            }
        }
        Ok(times.into_iter().map(median).collect())
    }

    fn upload(&self, hashes: &[[u64; 2]]) -> Result<DeviceSlice> {
        let slice = self.device.memory_allocate(16 * hashes.len() as u64)?;
        let bytes: Vec<u8> = hashes.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
        self.device.write(slice, &bytes)?;
        Ok(slice)
    }

    /// How many answers differ from those wanted.
    fn wrong(&self, answers: DeviceSlice, wanted: impl Iterator<Item = i32>) -> Result<usize> {
        let mut bytes = vec![0; answers.bytes() as usize];
        self.device.read(answers, &mut bytes)?;
        let seen = bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(seen.zip(wanted).filter(|(seen, wanted)| seen != wanted).count())
    }

    fn figures(&self) -> Result<String> {
        let count = self.hashes.len();
        let hits: Vec<[u64; 2]> = (0..LOOKUPS).map(|at| self.hashes[at % count]).collect();
        let misses: Vec<[u64; 2]> = hits.iter().map(|&[low, high]| [low.rotate_left(29) ^ 5, high]).collect();
        let (hits_at, misses_at) = (self.upload(&hits)?, self.upload(&misses)?);
        let answers = self.device.memory_allocate(4 * LOOKUPS as u64)?;
        let table = self.device.memory_allocate(16 * (2 * count as u64).next_power_of_two())?;
        let ask = |hashes: DeviceSlice, rows: u32, mode: LookupMode| {
            let row_hashes = ROW_HASHES;
            let blocks = answers.part(0, 4 * u64::from(rows) * u64::from(row_hashes))?;
            let lookup = DeviceLookup { group: 0, mode, rows, row_hashes, hashes, counts: None, blocks };
            self.cache.lookup_device(self.stream, &lookup)
        };
        let bound = |hashes: DeviceSlice, out: DeviceSlice| {
            let grid = (out.bytes() / 4).div_ceil(1024).clamp(1, 1 << 16) as u32;
            let args = [Arg::Write(out), Arg::Read(table), Arg::Read(hashes)];
            self.device.launch(self.stream, &Launch { kernel: &GATHER, grid, block: 256, args: &args })
        };
        let all = (LOOKUPS as u64 / u64::from(ROW_HASHES)) as u32;
        let rates = self.times(
            PASSES,
            &[&|| bound(hits_at, answers), &|| ask(hits_at, all, LookupMode::Independent), &|| {
                ask(misses_at, all, LookupMode::Independent)
            }],
        )?;
        ask(hits_at, all, LookupMode::Independent)?;
        self.device.stream_synchronize(self.stream)?;
        let wrong = self.wrong(answers, (0..LOOKUPS).map(|at| self.blocks[at % count]))?;
        ask(misses_at, all, LookupMode::Independent)?;
        self.device.stream_synchronize(self.stream)?;
        let found = self.wrong(answers, std::iter::repeat(-1))?;
        let small = answers.part(0, 4 * u64::from(ROWS) * u64::from(ROW_HASHES))?;
        let small_hashes = hits_at.part(0, 16 * u64::from(ROWS) * u64::from(ROW_HASHES))?;
        let batch: [&dyn Fn() -> Result<()>; 3] =
            [&|| bound(small_hashes, small), &|| ask(hits_at, ROWS, LookupMode::Prefix), &|| {
                ask(hits_at, ROWS, LookupMode::Independent)
            }];
        let (one, many) = (self.times(1, &batch)?, self.times(PASSES, &batch)?);
        for slice in [hits_at, misses_at, answers, table] {
            self.device.memory_free(slice)?;
        }
        let rate = |time: f64| LOOKUPS as f64 / time;
        Ok(format!(
            "{{\"blocks\": {count}, \"wrong_answers\": {wrong}, \"found_misses\": {found}, \
             \"bound_g_s\": {:.2}, \"hits_g_s\": {:.2}, \"hits_of_bound\": {:.3}, \"misses_g_s\": {:.2}, \
             \"batch_of_256_x_1024_us\": {{\"bound\": {:.1}, \"prefix\": {:.1}, \"independent\": {:.1}}}, \
             \"the_same_enqueued_us\": {{\"bound\": {:.1}, \"prefix\": {:.1}, \"independent\": {:.1}}}, \
             \"tables_of_8192_new_blocks_us\": {:.1}, \"cells_sent_per_block\": {:.3}}}",
            rate(rates[0]),
            rate(rates[1]),
            rates[0] / rates[1],
            rate(rates[2]),
            one[0] / 1e3,
            one[1] / 1e3,
            one[2] / 1e3,
            many[0] / 1e3,
            many[1] / 1e3,
            many[2] / 1e3,
            self.upload_us,
            self.cache.statistics().device_index_cells_sent as f64 / count as f64,
        ))
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let spec = arguments.next().unwrap_or_else(|| "cuda:0".to_owned());
    let mut sizes: Vec<u64> = arguments.filter_map(|text| text.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![100_000, 1_000_000, 10_000_000];
    }
    let device = registry::open(&spec)?;
    device.module_load(&[&GATHER])?;
    let mut lines = Vec::new();
    for blocks in sizes {
        lines.push(fill(&device, blocks)?.figures()?);
    }
    println!(
        "{{\"device\": \"{}\", \"lookups\": {LOOKUPS}, \"samples\": {SAMPLES}, \"tables\": [\n  {}\n]}}",
        device.description().model,
        lines.join(",\n  ")
    );
    Ok(())
}
