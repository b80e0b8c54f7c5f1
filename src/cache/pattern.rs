//! Proof of placement: writes a recognisable pattern into blocks and checks it later, on the device.
//!
//! For replays and for engines that look for a misplaced or torn block. Calls take block ids and seeds from the host
//! and enqueue; counts gather on the device until they are read. Each call in progress owns one staging slot; a slot
//! is used again only after its last launch has completed, so its counters are never written twice at a time.
//!
//! These calls belong to no step, so a resize cannot wait for them as it waits for steps: a slot remembers which blocks
//! its last launch named, and the pool knows of calls that are still enqueuing. Invariant: no block loses its memory
//! while a slot that names it is away or its launch is not over.

use std::sync::Arc;

use super::kernels::{CHECK, FILL, check_grid, grid};
use super::kv_cache::KvCache;
use crate::device::{Arg, Copy, Device, Event, Launch, OwnedEvent, Place, Stream};
use crate::error::{Error, Result, Status};
use crate::memory::{Allocation, Memory, PinnedAllocation};
use crate::sync::Mutex;

/// Blocks of one launch.
const CHUNK: usize = 2048;
/// Launches under way.
const SLOTS: usize = 8;
/// Counters of a slot: checked, mismatched, highest mismatched block + 1.
const COUNTER_BYTES: u64 = 24;

/// What the checks found since it was last read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckResult {
    /// Blocks checked.
    pub checked: u64,
    /// Blocks with other bytes than their pattern.
    pub mismatched: u64,
    /// One of them.
    pub mismatch: Option<i32>,
}

/// Seeds, then ids: pinned, with a copy on the device, and the counters.
struct Slot {
    pinned: PinnedAllocation,
    packed: Allocation,
    counters: Allocation,
    event: OwnedEvent,
    /// A stream that may still use the slot, because recording the event failed.
    unrecorded: Option<Stream>,
    /// Group of the latest launch, and the block behind the last one that it named.
    named: (u32, u32),
}

impl Slot {
    fn wait(&mut self, device: &dyn Device) -> Result<()> {
        if let Some(stream) = self.unrecorded {
            device.stream_synchronize(stream)?;
            self.unrecorded = None;
        }
        device.event_synchronize(self.event.event())
    }

    /// Marks the end of the latest launch, where that was not marked; later than needed, but never too early.
    fn settle(&mut self, device: &dyn Device) -> Result<()> {
        if let Some(stream) = self.unrecorded {
            device.event_record(self.event.event(), stream)?;
            self.unrecorded = None;
        }
        Ok(())
    }
}

pub(super) struct Pattern {
    slots: Mutex<Vec<Slot>>,
    /// Counts that were read from the device and not yet answered.
    sum: Mutex<CheckResult>,
}

impl Pattern {
    pub(super) fn new(memory: &Arc<Memory>, tag: &str) -> Result<Self> {
        let mut slots = Vec::with_capacity(SLOTS);
        for _ in 0..SLOTS {
            let counters = memory.allocate(COUNTER_BYTES, tag)?;
            memory.device().memset(Stream::DEFAULT, counters.slice().part(0, COUNTER_BYTES)?, 0)?;
            slots.push(Slot {
                pinned: memory.pinned(CHUNK as u64 * 12, tag)?,
                packed: memory.allocate(CHUNK as u64 * 12, tag)?,
                counters,
                event: OwnedEvent::new(memory.device())?,
                unrecorded: None,
                named: (0, 0),
            });
        }
        memory.device().stream_synchronize(Stream::DEFAULT)?;
        Ok(Self { slots: Mutex::new(slots), sum: Mutex::default() })
    }

    /// Takes the slot that was used longest ago.
    fn take(&self) -> Result<Slot> {
        let mut slots = self.slots.lock();
        if slots.is_empty() {
            return Err(Error::new(
                Status::InUse,
                "eight threads are filling or checking blocks of this cache",
            ));
        }
        Ok(slots.remove(0))
    }

    /// Whether no work that these calls enqueued can touch blocks of a group from this one on. No call that names such
    /// a block is inside any more, or begins.
    pub(super) fn is_past(&self, device: &dyn Device, group: u32, first: u32) -> Result<bool> {
        let (mut events, mut count) = ([Event(0); SLOTS], 0);
        let mut unrecorded = None;
        let mut slots = self.slots.lock();
        if slots.len() < SLOTS {
            return Ok(false);
        }
        for (at, slot) in slots.iter().enumerate() {
            if slot.named.0 == group && slot.named.1 > first {
                // A slot that is used again meanwhile was waited for: its event answers for what it marked before.
                events[count] = slot.event.event();
                count += 1;
                unrecorded = slot.unrecorded.map(|_| at).or(unrecorded);
            }
        }
        let unrecorded = unrecorded.map(|at| slots.remove(at));
        drop(slots);
        if let Some(mut slot) = unrecorded {
            let outcome = slot.settle(device);
            self.slots.lock().push(slot);
            return outcome.map(|()| false);
        }
        for event in &events[..count] {
            if !device.event_is_done(*event)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl KvCache {
    fn pattern(&self) -> Result<&Pattern> {
        let missing = || Error::new(Status::Unsupported, "a metadata-only cache has no blocks in memory");
        self.pattern.as_ref().ok_or_else(missing)
    }

    /// Enqueues the writing of each seed's pattern into its block. May wait for earlier calls of its kind.
    pub fn fill_pattern(&self, stream: Stream, group: u32, blocks: &[i32], seeds: &[u64]) -> Result<()> {
        self.run_pattern(stream, group, blocks, seeds, false)
    }

    /// Enqueues the comparison of each block with its seed's pattern. May wait for earlier calls of its kind.
    pub fn check_pattern(&self, stream: Stream, group: u32, blocks: &[i32], seeds: &[u64]) -> Result<()> {
        self.run_pattern(stream, group, blocks, seeds, true)
    }

    fn run_pattern(
        &self,
        stream: Stream,
        group: u32,
        blocks: &[i32],
        seeds: &[u64],
        is_check: bool,
    ) -> Result<()> {
        let count = self.group(group)?.blocks;
        if let Some(block) = blocks.iter().find(|&&block| block < 0 || block as u32 >= count) {
            return Err(Error::argument(format!("block {block} of a group with {count} blocks")));
        }
        let pattern = self.pattern()?;
        let end = blocks.iter().max().map_or(0, |&last| last as u32 + 1);
        let _entered = self.pools[group as usize].enter(end)?;
        for (blocks, seeds) in blocks.chunks(CHUNK).zip(seeds.chunks(CHUNK)) {
            let mut slot = pattern.take()?;
            let outcome = self.run_chunk(&mut slot, stream, group, blocks, seeds, is_check);
            pattern.slots.lock().push(slot);
            outcome?;
        }
        Ok(())
    }

    fn run_chunk(
        &self,
        slot: &mut Slot,
        stream: Stream,
        group: u32,
        blocks: &[i32],
        seeds: &[u64],
        is_check: bool,
    ) -> Result<()> {
        let block_bytes = self.group(group)?.block_bytes;
        let end = blocks.iter().max().map_or(0, |&last| last as u32 + 1);
        // No more than what is named: the rest may lose its memory meanwhile.
        let pool = self.pools[group as usize].blocks(end)?;
        let device = self.device();
        slot.wait(device)?;
        slot.named = (group, end);
        let count = blocks.len();
        slot.pinned.values_mut(0, count)?.copy_from_slice(seeds);
        slot.pinned.values_mut(8 * count as u64, count)?.copy_from_slice(blocks);
        let (source, packed) = (
            slot.pinned.slice().part(0, 12 * count as u64)?,
            slot.packed.slice().part(0, 12 * count as u64)?,
        );
        device.copy(stream, Copy { target: Place::Device(packed), source: Place::Pinned(source) })?;
        let (seeds, ids) =
            (packed.part(0, 8 * count as u64)?, packed.part(8 * count as u64, 4 * count as u64)?);
        let counters = slot.counters.slice().part(0, COUNTER_BYTES)?;
        let check =
            [Arg::Write(counters), Arg::Read(pool), Arg::Read(ids), Arg::Read(seeds), Arg::U64(block_bytes)];
        let fill = [Arg::Write(pool), Arg::Read(ids), Arg::Read(seeds), Arg::U64(block_bytes)];
        let (kernel, args) = if is_check { (&CHECK, &check[..]) } else { (&FILL, &fill[..]) };
        let grid = if is_check { check_grid(count, block_bytes) } else { grid(count, block_bytes) };
        let outcome = device.launch(stream, &Launch { kernel, grid, block: 256, args });
        // Whatever became of the launch, the copy is under way and must be waited for: by the event, or by the stream
        // if it cannot be recorded. That fails no call: its launch would be counted twice when it is repeated.
        let recorded = device.event_record(slot.event.event(), stream);
        slot.unrecorded = recorded.is_err().then_some(stream);
        outcome
    }

    /// Waits for all checks so far, answers what they found and starts again from zero. Blocks.
    pub fn take_check_result(&self) -> Result<CheckResult> {
        let pattern = self.pattern()?;
        let mut slots = std::mem::take(&mut *pattern.slots.lock());
        let mut sum = std::mem::take(&mut *pattern.sum.lock());
        let outcome = self.sum_counters(&mut slots, &mut sum);
        if outcome.is_err() {
            *pattern.sum.lock() = sum;
        }
        pattern.slots.lock().extend(slots);
        outcome.map(|()| sum)
    }

    fn sum_counters(&self, slots: &mut [Slot], sum: &mut CheckResult) -> Result<()> {
        for slot in slots {
            let counters = slot.counters.slice().part(0, COUNTER_BYTES)?;
            slot.wait(self.device())?;
            let mut bytes = [0u8; COUNTER_BYTES as usize];
            self.device().read(counters, &mut bytes)?;
            self.device().write(counters, &[0; COUNTER_BYTES as usize])?;
            let [checked, mismatched, block]: [u64; 3] = bytemuck::cast(bytes);
            // Kept before the next slot may fail: a repeated call then answers it.
            sum.checked += checked;
            sum.mismatched += mismatched;
            sum.mismatch = block.checked_sub(1).map(|block| block as i32).or(sum.mismatch);
        }
        Ok(())
    }
}
