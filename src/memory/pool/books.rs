//! The books of a pool: which blocks there are, who has them, which can be handed out.
//!
//! What it does: numbers and lists. What it does not: call a device; so all of it may be used under the pool's lock.
//! `O` owns the memory of a batch; only its drop has an effect.
//!
//! Invariants, checked by `validate()`: each block is ready, waiting for its stream, or in use;
//! `held == in use + ready + waiting`; `held + growing <= max`; ranges of batches rise and do not overlap.
//! Cost: a block is taken and given in constant time but for the search of an address among the batches, which is
//! binary over a flat list. A release and an acquire at random places, on a slow machine: 50 ns with 25 batches, 200 ns
//! with 500, 430 ns with 16,384 (`tests/pool.rs` prints them); larger growth makes fewer batches.

mod proof;
mod seen;

use std::sync::Arc;

pub use seen::PoolLive;

use super::config::{PoolConfig, PoolMemory, Sizes};
use super::statistics::{ClassStatistics, PoolStatistics};
use crate::device::Stream;
use crate::error::{Error, Result, Status};
use crate::memory::fence::Fence;
use crate::memory::order::{Freed, Order};
use crate::sys::reserve;

/// Of a block that any stream may have.
const READY: u64 = 0;
/// Of a block that was released and may still be in use by its stream. Any other number: the bytes asked for.
const WAITING: u64 = u64::MAX;

/// What is known of a block.
#[derive(Clone, Copy)]
pub(super) struct Cell {
    /// READY, WAITING, or what was asked for.
    asked: u64,
    /// When it was handed out.
    since_ns: u64,
}

impl Cell {
    fn is_in_use(self) -> bool {
        !matches!(self.asked, READY | WAITING)
    }
}

/// The name of a block inside: the batch's place in the upper half, the block's in the lower.
fn id_of(batch: u32, index: u32) -> u64 {
    u64::from(batch) << 32 | u64::from(index)
}

struct Class {
    block_bytes: u64,
    /// Batches that have ready blocks, the one in use last at the end; stale entries are dropped when met.
    stack: Vec<u32>,
    counts: ClassStatistics,
}

struct Batch<O> {
    start: u64,
    class: u32,
    cells: Vec<Cell>,
    ready: Vec<u32>,
    is_listed: bool,
    last_use_ns: u64,
    owner: O,
}

/// What was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolBlock {
    /// First byte, aligned to 256.
    pub address: u64,
    /// Length of the block, at least what was asked.
    pub bytes: u64,
}

/// Where a block came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The stream itself or one that it was made to wait for.
    Stream,
    /// Anybody may have had it.
    Ready,
    /// A batch that was made for the request.
    Grown,
}

/// The list of a batch's blocks, made before there is a batch, since the system may have no memory for it.
pub(super) struct Cells {
    cells: Vec<Cell>,
    ready: Vec<u32>,
}

impl Cells {
    /// Those of so many blocks, all ready.
    pub(super) fn new(blocks: u32) -> Result<Self> {
        let mut ready = reserve::room(blocks as usize)?;
        ready.extend((0..blocks).rev());
        let cell = Cell { asked: READY, since_ns: 0 };
        Ok(Self { cells: reserve::filled(blocks as usize, cell)?, ready })
    }
}

/// An expansion that is paid for and not made yet.
pub(super) struct Growth {
    pub(super) class: u32,
    pub(super) blocks: u32,
    pub(super) bytes: u64,
}

pub(super) struct Books<O> {
    sizes: Sizes,
    memory: PoolMemory,
    max_bytes: u64,
    classes: Vec<Class>,
    /// Size and number of each class, by size.
    by_bytes: Vec<(u64, u32)>,
    batches: Vec<Option<Batch<O>>>,
    empty: Vec<u32>,
    /// First address and number of each batch, by address.
    ranges: Vec<(u64, u32)>,
    pub(super) order: Order,
    /// Blocks that were taken out of `order` for the time of a call into the device.
    moving: u64,
    growing_bytes: u64,
    totals: PoolStatistics,
}

impl<O> Books<O> {
    pub(super) fn new(config: &PoolConfig) -> Self {
        let mut books = Self {
            sizes: config.sizes.clone(),
            memory: config.memory,
            max_bytes: if config.max_bytes == 0 { u64::MAX } else { config.max_bytes },
            classes: Vec::new(),
            by_bytes: Vec::new(),
            batches: Vec::new(),
            empty: Vec::new(),
            ranges: Vec::new(),
            order: Order::default(),
            moving: 0,
            growing_bytes: 0,
            totals: PoolStatistics { max_bytes: config.max_bytes, ..PoolStatistics::default() },
        };
        if let Sizes::Classes(classes) = &config.sizes {
            classes.iter().for_each(|class| {
                books.class_at(class.block_bytes);
            });
        }
        books
    }

    fn class_at(&mut self, block_bytes: u64) -> u32 {
        match self.by_bytes.binary_search_by_key(&block_bytes, |&(bytes, _)| bytes) {
            Ok(at) => self.by_bytes[at].1,
            Err(at) => {
                let class = self.classes.len() as u32;
                let counts = ClassStatistics { block_bytes, ..ClassStatistics::default() };
                self.classes.push(Class { block_bytes, stack: Vec::new(), counts });
                self.by_bytes.insert(at, (block_bytes, class));
                class
            }
        }
    }

    /// The class that serves a request.
    pub(super) fn class_of(&mut self, bytes: u64) -> Result<u32> {
        let block_bytes = self.sizes.block_bytes(bytes)?;
        self.memory.check(block_bytes)?;
        if block_bytes > self.max_bytes {
            return Err(self.refusal(bytes, block_bytes));
        }
        Ok(self.class_at(block_bytes))
    }

    fn refusal(&self, bytes: u64, block_bytes: u64) -> Error {
        let (held, used) = (self.totals.held_bytes + self.growing_bytes, self.totals.in_use_bytes);
        Error::new(
            Status::OutOfMemory,
            format!(
                "{bytes} bytes requested, a block of {block_bytes}: the pool holds {held}, {used} of them in use, of \
                 its limit of {}; release blocks or raise max_bytes",
                self.max_bytes
            ),
        )
    }

    // -------------------------------------------------------------------------------------------- taking and giving

    fn batch(&mut self, id: u64) -> Result<&mut Batch<O>> {
        let found = self.batches.get_mut((id >> 32) as usize).and_then(Option::as_mut);
        found.ok_or_else(|| Error::internal("a block of a batch that is gone"))
    }

    fn hand_out(&mut self, id: u64, bytes: u64, now_ns: u64) -> Result<PoolBlock> {
        let batch = self.batch(id)?;
        batch.cells[id as u32 as usize] = Cell { asked: bytes, since_ns: now_ns };
        batch.last_use_ns = now_ns;
        let (start, class) = (batch.start, batch.class);
        let class = &mut self.classes[class as usize];
        class.counts.in_use += 1;
        self.totals.in_use_bytes += class.block_bytes;
        self.totals.requested_bytes += bytes;
        Ok(PoolBlock { address: start + u64::from(id as u32) * class.block_bytes, bytes: class.block_bytes })
    }

    /// A block that the stream itself released, or one that any stream may have.
    pub(super) fn take(
        &mut self,
        class: u32,
        stream: Stream,
        bytes: u64,
        now_ns: u64,
    ) -> Result<Option<(PoolBlock, Source)>> {
        match self.order.take_same(stream, class) {
            Some(freed) => self.take_waiting(freed, bytes, now_ns).map(|block| Some((block, Source::Stream))),
            None => Ok(self.take_ready(class, bytes, now_ns)?.map(|block| (block, Source::Ready))),
        }
    }

    /// A block that any stream may have.
    pub(super) fn take_ready(&mut self, class: u32, bytes: u64, now_ns: u64) -> Result<Option<PoolBlock>> {
        while let Some(&number) = self.classes[class as usize].stack.last() {
            let batch = self.batch(id_of(number, 0))?;
            if let Some(index) = batch.ready.pop() {
                self.classes[class as usize].counts.hits += 1;
                return self.hand_out(id_of(number, index), bytes, now_ns).map(Some);
            }
            batch.is_listed = false;
            self.classes[class as usize].stack.pop();
        }
        Ok(None)
    }

    /// A block that came out of `order` and that the stream may have by now.
    pub(super) fn take_waiting(&mut self, freed: Freed, bytes: u64, now_ns: u64) -> Result<PoolBlock> {
        let counts = &mut self.classes[freed.class as usize].counts;
        counts.hits += 1;
        counts.waiting -= 1;
        self.hand_out(freed.id, bytes, now_ns)
    }

    /// Whether another stream has released blocks of the class that are not known to be done.
    pub(super) fn has_waiting(&self, class: u32) -> bool {
        self.classes[class as usize].counts.waiting > 0
    }

    fn find(&self, address: u64) -> Result<(u64, Cell)> {
        let after = self.ranges.partition_point(|&(start, _)| start <= address);
        let number = after.checked_sub(1).map(|at| self.ranges[at].1);
        let batch = number.and_then(|number| Some((number, self.batches[number as usize].as_ref()?)));
        let Some((number, batch)) = batch else { return Err(stranger(address)) };
        let block_bytes = self.classes[batch.class as usize].block_bytes;
        let (index, rest) = ((address - batch.start) / block_bytes, (address - batch.start) % block_bytes);
        match batch.cells.get(index as usize) {
            None => Err(stranger(address)),
            Some(_) if rest != 0 => Err(Error::argument(format!(
                "{address:#x} is byte {rest} of the block at {:#x}; release the address that was acquired",
                address - rest
            ))),
            Some(&cell) => Ok((id_of(number, index as u32), cell)),
        }
    }

    /// Takes a block back from its user, whose work on it is all on this stream.
    pub(super) fn release(&mut self, address: u64, stream: Stream, now_ns: u64) -> Result<()> {
        let (id, cell) = self.find(address)?;
        if !cell.is_in_use() {
            let text = format!("the block at {address:#x} is not in use: released before, or never acquired");
            return Err(Error::new(Status::WrongState, text));
        }
        let batch = self.batch(id)?;
        batch.cells[id as u32 as usize].asked = WAITING;
        batch.last_use_ns = now_ns;
        let number = batch.class;
        let class = &mut self.classes[number as usize];
        class.counts.in_use -= 1;
        class.counts.waiting += 1;
        self.totals.in_use_bytes -= class.block_bytes;
        self.totals.requested_bytes -= cell.asked;
        self.order.free(stream, Freed { class: number, id, bytes: class.block_bytes });
        Ok(())
    }

    /// Undoes a release that the same list has just made, of a block that was as `cell` says.
    pub(super) fn undo_release(&mut self, address: u64, cell: Cell, stream: Stream) -> Result<()> {
        let (id, _) = self.find(address)?;
        let class = self.batch(id)?.class;
        // The latest release of the class on the stream is the one to undo: lists are undone from their end.
        match self.order.take_same(stream, class) {
            Some(freed) if freed.id == id => {
                self.take_waiting(freed, cell.asked, cell.since_ns)?;
                self.classes[class as usize].counts.hits -= 1;
                Ok(())
            }
            _ => Err(Error::internal("a release that cannot be undone")),
        }
    }

    /// The memory around a block.
    #[cfg(test)]
    pub(super) fn owner(&self, address: u64) -> Result<&O> {
        let (id, _) = self.find(address)?;
        let batch = self.batches[(id >> 32) as usize].as_ref();
        batch.map(|batch| &batch.owner).ok_or_else(|| Error::internal("found in a batch that is gone"))
    }

    /// What is known of a block, if it is one.
    pub(super) fn cell(&self, address: u64) -> Option<Cell> {
        self.find(address).ok().map(|(_, cell)| cell)
    }

    /// Gives back what a list acquired before one of its requests was refused; no work has touched it.
    pub(super) fn undo_take(
        &mut self,
        block: PoolBlock,
        from: Source,
        stream: Stream,
        now_ns: u64,
    ) -> Result<u32> {
        self.release(block.address, stream, now_ns)?;
        let (id, _) = self.find(block.address)?;
        let class = self.batch(id)?.class;
        let counts = &mut self.classes[class as usize].counts;
        *(if from == Source::Grown { &mut counts.misses } else { &mut counts.hits }) -= 1;
        // Where the stream has waited or released the block itself, it is the stream's alone; else anybody's again.
        if matches!(from, Source::Ready | Source::Grown)
            && let Some(freed) = self.order.take_same(stream, class)
        {
            self.make_ready(&[freed])?;
        }
        Ok((id >> 32) as u32)
    }

    // -------------------------------------------------------------------------------------------- stream order

    /// Notes blocks that leave `order` for the time of a call into the device, and come back by one of the next two.
    pub(super) fn take_open(&mut self, stream: Stream) -> Vec<Freed> {
        let blocks = self.order.take_all_open(stream);
        self.moving += blocks.len() as u64;
        blocks
    }

    /// As `take_open`, for one block that another stream released.
    pub(super) fn take_other(&mut self, stream: Stream, class: u32) -> Option<(Stream, Arc<Fence>, Freed)> {
        let found = self.order.take_other(stream, class, 0)?;
        self.moving += 1;
        Some(found)
    }

    /// They are in `order` again.
    pub(super) fn moved(&mut self, blocks: usize) {
        self.moving -= blocks as u64;
    }

    /// Lets any stream have blocks that came out of `order`.
    pub(super) fn make_ready(&mut self, blocks: &[Freed]) -> Result<()> {
        for freed in blocks {
            let (number, index) = ((freed.id >> 32) as u32, freed.id as u32);
            let batch = self.batch(freed.id)?;
            batch.cells[index as usize].asked = READY;
            batch.ready.push(index);
            let is_new = !std::mem::replace(&mut batch.is_listed, true);
            let class = &mut self.classes[freed.class as usize];
            class.counts.waiting -= 1;
            if is_new {
                class.stack.push(number);
            }
        }
        Ok(())
    }

    // -------------------------------------------------------------------------------------------- growing, shrinking

    /// Pays for an expansion of at most `wish` blocks (the class's own growth if there is no wish).
    pub(super) fn begin_growth(&mut self, class: u32, bytes: u64, wish: Option<u32>) -> Result<Growth> {
        let block_bytes = self.classes[class as usize].block_bytes;
        let room = self.max_bytes.saturating_sub(self.totals.held_bytes + self.growing_bytes);
        let wish = wish.unwrap_or_else(|| self.sizes.growth(block_bytes));
        let blocks = u64::from(wish).min(room / block_bytes) as u32;
        let Some(growth_bytes) = block_bytes.checked_mul(blocks.into()).filter(|&bytes| bytes > 0) else {
            return Err(self.refusal(bytes, block_bytes));
        };
        self.growing_bytes += growth_bytes;
        Ok(Growth { class, blocks, bytes: growth_bytes })
    }

    /// Bytes by which the class grows at least; nothing where the pool's limit does not allow it.
    pub(super) fn growth_of_one(&self, class: u32) -> Option<u64> {
        let block_bytes = self.classes[class as usize].block_bytes;
        let room = self.max_bytes.saturating_sub(self.totals.held_bytes + self.growing_bytes);
        (block_bytes <= room).then_some(block_bytes)
    }

    /// The memory was refused.
    pub(super) fn cancel_growth(&mut self, growth: &Growth) {
        self.growing_bytes -= growth.bytes;
    }

    /// Adds a batch of ready blocks.
    pub(super) fn end_growth(&mut self, growth: &Growth, cells: Cells, start: u64, owner: O, now_ns: u64) {
        self.growing_bytes -= growth.bytes;
        let number = self.empty.pop().unwrap_or(self.batches.len() as u32);
        let batch = Batch {
            start,
            class: growth.class,
            cells: cells.cells,
            ready: cells.ready,
            is_listed: true,
            last_use_ns: now_ns,
            owner,
        };
        match self.batches.get_mut(number as usize) {
            Some(place) => *place = Some(batch),
            None => self.batches.push(Some(batch)),
        }
        let at = self.ranges.partition_point(|&(other, _)| other < start);
        self.ranges.insert(at, (start, number));
        let class = &mut self.classes[growth.class as usize];
        class.stack.push(number);
        class.counts.blocks += u64::from(growth.blocks);
        class.counts.expansions += 1;
        self.totals.held_bytes += growth.bytes;
        self.totals.peak_held_bytes = self.totals.peak_held_bytes.max(self.totals.held_bytes);
    }

    /// A block of the batch that was just added: the request that made it grow was no hit.
    pub(super) fn take_grown(&mut self, class: u32, bytes: u64, now_ns: u64) -> Result<PoolBlock> {
        let block = self.take_ready(class, bytes, now_ns)?;
        let counts = &mut self.classes[class as usize].counts;
        counts.hits -= 1;
        counts.misses += 1;
        block.ok_or_else(|| Error::internal("an expansion without blocks"))
    }

    /// Bytes that have to go before a block of the class fits: what the limit lacks, or all where it lacks none and
    /// so the device does.
    pub(super) fn wanted_room(&self, class: u32) -> u64 {
        let room = self.max_bytes.saturating_sub(self.totals.held_bytes + self.growing_bytes);
        match self.classes[class as usize].block_bytes.saturating_sub(room) {
            0 => u64::MAX,
            missing => missing,
        }
    }

    /// Takes out batches that are wholly ready and fit (by number, class and last use), oldest use first, until they
    /// make up `wanted` bytes.
    pub(super) fn take_idle(&mut self, wanted: u64, fits: impl Fn(u32, u32, u64) -> bool) -> Vec<O> {
        let idle = |(number, batch): (usize, &Option<Batch<O>>)| {
            let batch = batch.as_ref()?;
            let is_ready = batch.ready.len() == batch.cells.len();
            let is_idle = is_ready && fits(number as u32, batch.class, batch.last_use_ns);
            is_idle.then_some((batch.last_use_ns, number as u32))
        };
        let mut idle: Vec<(u64, u32)> = self.batches.iter().enumerate().filter_map(idle).collect();
        idle.sort_unstable();
        let (mut owners, mut taken) = (Vec::new(), 0);
        for (_, number) in idle {
            if taken >= wanted {
                break;
            }
            let Some(batch) = self.batches[number as usize].take() else { continue };
            let class = &mut self.classes[batch.class as usize];
            class.stack.retain(|&other| other != number);
            class.counts.blocks -= batch.cells.len() as u64;
            class.counts.evictions += 1;
            let bytes = batch.cells.len() as u64 * class.block_bytes;
            self.totals.held_bytes -= bytes;
            self.ranges.retain(|&(_, other)| other != number);
            self.empty.push(number);
            taken += bytes;
            owners.push(batch.owner);
        }
        owners
    }

    /// Blocks that somebody has, or whose stream may not be done with them.
    pub(super) fn busy_blocks(&self) -> u64 {
        self.classes.iter().map(|class| class.counts.in_use + class.counts.waiting).sum()
    }

    pub(super) fn totals(&mut self) -> &mut PoolStatistics {
        &mut self.totals
    }
}

fn stranger(address: u64) -> Error {
    let text = format!("{address:#x} is no block of this pool; release what was acquired from it");
    Error::argument(text)
}
