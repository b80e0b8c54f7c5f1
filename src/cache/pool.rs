//! The memory of one group's blocks: the engine's, a plain allocation, or an elastic range whose tail comes and goes.
//!
//! What it does: puts memory behind blocks and takes it away behind the last one; names the part that may be used. What
//! it does not: know who uses a block; `resize` asks for a tail only when nobody does. Invariant: every block below
//! `usable` has memory, and so has the null block, which lies behind the most blocks that there can be; a block that is
//! named by a call that entered keeps its memory until the call leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::config::{GroupConfig, GroupGeometry};
use crate::device::{DeviceSlice, Stream};
use crate::error::{Error, Result};
use crate::memory::{Allocation, Elastic, ElasticConfig, Memory, PageClass};

enum Owner {
    Engine,
    /// Held for its memory.
    Plain(#[expect(dead_code, reason = "its drop frees the memory")] Allocation),
    Elastic(Arc<Elastic>),
}

/// Memory of one group's blocks.
pub(super) struct Pool {
    /// The addresses of all blocks.
    slice: DeviceSlice,
    block_bytes: u64,
    blocks: u32,
    /// Blocks that device work may name.
    usable: AtomicU32,
    /// Calls outside of steps that are enqueuing work on blocks.
    entered: AtomicU32,
    owner: Owner,
}

/// A call is enqueuing work on blocks below some bound; it has left when this goes.
pub(super) struct Entered<'a> {
    entered: &'a AtomicU32,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.entered.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // As memory that is freed does: whoever destroys a cache need not have waited for its work.
        if let Owner::Elastic(range) = &self.owner {
            range.drain();
        }
    }
}

impl Pool {
    /// Memory for the blocks that a group begins with; its null block holds zeros once the default stream is past.
    pub(super) fn new(
        memory: &Arc<Memory>,
        group: &GroupGeometry,
        asked: &GroupConfig,
        name: &str,
    ) -> Result<Self> {
        let device = memory.device();
        let bytes = group.pool_blocks() * group.block_bytes;
        let (slice, owner) = match asked.region {
            Some(region) if region.device() == device.key() => (region.part(0, bytes)?, Owner::Engine),
            Some(_) => return Err(Error::argument("the region is memory of another device")),
            None if group.is_elastic => {
                let config = ElasticConfig { capacity_bytes: bytes, page_bytes: 0, has_slabs: true };
                let range = Elastic::new(memory, config)?;
                range.commit(0, u64::from(group.first_blocks) * group.block_bytes)?;
                if let Some(null) = group.null_block() {
                    range.commit(u64::from(null) * group.block_bytes, group.block_bytes)?;
                }
                (range.slice().part(0, bytes)?, Owner::Elastic(range))
            }
            None => {
                let owner = memory.with_help(bytes, || memory.allocate(bytes, name))?;
                (owner.slice().part(0, bytes)?, Owner::Plain(owner))
            }
        };
        if let Some(null) = group.null_block() {
            let first = u64::from(null) * group.block_bytes;
            device.memset(Stream::DEFAULT, slice.part(first, group.block_bytes)?, 0)?;
        }
        let usable = match owner {
            Owner::Elastic(_) => group.first_blocks,
            Owner::Engine | Owner::Plain(_) => group.blocks,
        };
        let (block_bytes, blocks) = (group.block_bytes, group.blocks);
        Ok(Self { slice, block_bytes, blocks, usable: usable.into(), entered: 0.into(), owner })
    }

    /// Whether memory comes and goes with the blocks.
    pub(super) fn is_elastic(&self) -> bool {
        matches!(self.owner, Owner::Elastic(_))
    }

    /// Address of block 0; never changes.
    pub(super) fn address(&self) -> u64 {
        self.slice.address()
    }

    /// Whether two pools share a byte.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.slice.overlaps(&other.slice)
    }

    /// Blocks that device work may name.
    pub(super) fn usable(&self) -> u32 {
        self.usable.load(Ordering::SeqCst)
    }

    pub(super) fn set_usable(&self, blocks: u32) {
        if self.is_elastic() {
            self.usable.store(blocks, Ordering::SeqCst);
        }
    }

    /// Keeps the memory of the first `blocks` blocks where it is until the answer goes. Either this call sees that
    /// fewer may be used, or whoever made them fewer sees this call: both write first, then read what the other wrote.
    pub(super) fn enter(&self, blocks: u32) -> Result<Entered<'_>> {
        self.entered.fetch_add(1, Ordering::SeqCst);
        let entered = Entered { entered: &self.entered };
        match self.usable() {
            usable if blocks <= usable => Ok(entered),
            usable => Err(Error::argument(format!("block {} of a group with {usable} blocks", blocks - 1))),
        }
    }

    /// Whether some call is inside; asked after fewer blocks may be used.
    pub(super) fn is_entered(&self) -> bool {
        self.entered.load(Ordering::SeqCst) > 0
    }

    /// The blocks that device work may name. All addresses where they have memory for good.
    pub(super) fn slice(&self) -> Result<DeviceSlice> {
        match self.is_elastic() {
            true => self.blocks(self.usable()),
            false => Ok(self.slice),
        }
    }

    /// The first blocks.
    pub(super) fn blocks(&self, count: u32) -> Result<DeviceSlice> {
        self.slice.part(0, u64::from(count) * self.block_bytes)
    }

    /// Puts memory behind the first `blocks`, all or nothing; what has some keeps it. May wait for the device, and asks
    /// nobody for memory.
    pub(super) fn commit(&self, blocks: u32) -> Result<()> {
        match &self.owner {
            Owner::Elastic(range) => range.commit_unasked(0, u64::from(blocks) * self.block_bytes).map(drop),
            Owner::Engine | Owner::Plain(_) => Ok(()),
        }
    }

    /// Bytes that the first `blocks` need beyond what there is.
    pub(super) fn missing_bytes(&self, blocks: u32) -> u64 {
        (u64::from(blocks) * self.block_bytes).saturating_sub(self.bytes())
    }

    /// Takes the memory behind the blocks from this one on away, in whole pages; no work on the device may use it.
    pub(super) fn decommit_from(&self, block: u32) -> Result<()> {
        let Owner::Elastic(range) = &self.owner else { return Ok(()) };
        let page = range.page_bytes();
        let first = (u64::from(block) * self.block_bytes).next_multiple_of(page);
        let last = u64::from(self.blocks) * self.block_bytes;
        let end = match self.slice.bytes() > last {
            // The page in which the null block begins stays.
            true => last - last % page,
            false => range.capacity_bytes(),
        };
        if first < end {
            range.decommit(first, end - first, None)?;
        }
        Ok(())
    }

    /// Bytes of the pages that come and go together where there are many.
    pub(super) fn slab_bytes(&self) -> u64 {
        match &self.owner {
            Owner::Elastic(range) => range.page_bytes() * PageClass::LARGE.pages(),
            Owner::Engine | Owner::Plain(_) => 0,
        }
    }

    /// Bytes of memory behind the pool, with what a slab keeps of which a part is still in use.
    pub(super) fn bytes(&self) -> u64 {
        match &self.owner {
            Owner::Elastic(range) => range.physical_bytes(),
            Owner::Engine | Owner::Plain(_) => self.slice.bytes(),
        }
    }
}
