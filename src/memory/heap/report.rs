//! What a heap holds: totals, every live block.
//!
//! What it does not: change anything but visit front caches, which makes their threads wait for a moment.
//! Invariant: the live bytes are the sums over the live records, to the byte, whenever no call is under way.

use std::sync::atomic::Ordering;

use super::super::front_cache::Counts;
use super::super::records::Facts;
use super::super::region::{LARGE_GRANULE_BYTES, MIDDLE_GRANULE_BYTES, Region};
use super::super::size_class::{self, Class};
use super::core::{LENDING, is_run};
use super::plain::PlainCounts;
use super::{Heap, LadderCounts, MIDDLE, PlainBlocks};
use crate::error::Result;
use crate::sys::ticker;

/// Totals.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeapStatistics {
    /// Asked for and not yet freed.
    pub live_bytes: u64,
    /// Blocks behind that, with what rounding adds.
    pub live_block_bytes: u64,
    /// How many.
    pub live_count: u64,
    /// Allocations ever.
    pub allocations: u64,
    /// Frees ever.
    pub frees: u64,
    /// Freed blocks in the front caches of threads.
    pub front_cache_bytes: u64,
    /// Freed blocks that only their stream may have so far.
    pub ordered_bytes: u64,
    /// Physical memory behind the heap's addresses.
    pub backed_bytes: u64,
    /// Of that, free memory in pages of which something else is in use: only what needs the same addresses gets it.
    pub retained_bytes: u64,
    /// Largest piece that is free for all.
    pub largest_free_bytes: u64,
    /// What was done when memory was short.
    pub ladder: LadderCounts,
    /// Looks through what is held before more was taken.
    pub looks: u64,
    /// Mappings that the device did not remove.
    pub failed_unmaps: u64,
    /// How often it gave something back because nobody used it.
    pub idle_flushes: u64,
    /// Allocations straight from the device, because it cannot map memory, ever.
    pub plain_allocations: u64,
    /// Those of them that the device has not got back yet.
    pub plain_count: u64,
    /// Their bytes, with what alignment adds.
    pub plain_bytes: u64,
}

/// One live block.
#[derive(Clone, Debug)]
pub struct LiveBlock {
    /// First byte.
    pub address: u64,
    /// Bytes asked for.
    pub bytes: u64,
    /// Bytes of its block; falls when memory gets short.
    pub block_bytes: u64,
    /// What it is for.
    pub tag: String,
    /// The device's value of the stream of its allocation.
    pub stream: u64,
    /// How long it has been there, in milliseconds, a few of them inexact.
    pub age_ms: u64,
}

impl Heap {
    fn counts(&self) -> (Counts, u64) {
        let slow = &self.slow;
        // Frees first and allocations last: what happens meanwhile is not counted as freed only.
        let mut counts = Counts {
            frees: slow.frees.load(Ordering::Acquire),
            freed_bytes: slow.freed_bytes.load(Ordering::Acquire),
            ..Counts::default()
        };
        let guests = {
            // Under one lock, so that a cache that ends is in one of the two.
            let leases = self.leases.lock();
            counts.add(&self.ended.lock());
            leases.clone()
        };
        let mut cached = 0;
        for (_, guest) in guests {
            let (visited, bytes) = guest.with(|leased| (leased.cache.counts, leased.cache.bytes()));
            counts.add(&visited);
            cached += bytes;
        }
        counts.add(&Counts {
            allocations: slow.allocations.load(Ordering::Relaxed),
            allocated_bytes: slow.allocated_bytes.load(Ordering::Relaxed),
            ..Counts::default()
        });
        (counts, cached)
    }

    /// Allocations and frees ever.
    pub(super) fn activity(&self) -> (u64, u64) {
        let (counts, _) = self.counts();
        (counts.allocations, counts.frees)
    }

    /// Physical memory behind the addresses. Waits for nobody who maps or unmaps at this moment.
    pub(super) fn backed_bytes(&self) -> u64 {
        let backed = |region: &Region| region.range.backed_pages() * region.page_bytes;
        self.regions.iter().map(|(_, region)| backed(region)).sum()
    }

    /// Memory without a user behind addresses of middle and large sizes. Small ones lie on pages that are given up as a
    /// whole, and may be several addresses of one page.
    fn retained_bytes(&self) -> u64 {
        let of = |region: &Region| {
            let live_pages = region.range.told().live_pages.load(Ordering::Relaxed);
            region.range.backed_pages().saturating_sub(live_pages) * region.page_bytes
        };
        self.regions.iter().filter(|(number, _)| *number >= MIDDLE).map(|(_, region)| of(region)).sum()
    }

    /// What it holds and did.
    pub fn statistics(&self) -> HeapStatistics {
        let (counts, front_cache_bytes) = self.counts();
        let plain = self.plain.as_ref().map(PlainBlocks::counts);
        let of_plain = |of: fn(&PlainCounts) -> u64| plain.as_ref().map_or(0, of);
        let (backed_bytes, retained_bytes) = (self.backed_bytes(), self.retained_bytes());
        let pages = self.physical.statistics();
        let mut core = self.core.lock();
        let middle = u64::from(core.middle.largest_free()) * MIDDLE_GRANULE_BYTES;
        let idle = core.idle_large.longest_bytes();
        let mut free_bytes =
            u64::from(core.middle.free_granules()) * MIDDLE_GRANULE_BYTES + core.idle_large_bytes;
        for (class, small) in core.small.iter().enumerate() {
            if let (Some(class), Some(small)) = (Class::at(class), small) {
                free_bytes += small.slab.free_slots() * size_class::bytes_of(class);
            }
        }
        let ordered_bytes = core.order.bytes() + core.limbo.bytes();
        HeapStatistics {
            // Below zero only where a block went from a cache that was visited early to one visited late.
            live_bytes: counts.allocated_bytes.saturating_sub(counts.freed_bytes),
            live_block_bytes: of_plain(|plain| plain.bytes - plain.leaving_bytes)
                + u64::saturating_sub(
                    backed_bytes,
                    free_bytes + ordered_bytes + front_cache_bytes + retained_bytes,
                ),
            live_count: counts.allocations.saturating_sub(counts.frees),
            allocations: counts.allocations,
            frees: counts.frees,
            front_cache_bytes,
            ordered_bytes: ordered_bytes + of_plain(|plain| plain.leaving_bytes),
            backed_bytes,
            retained_bytes,
            largest_free_bytes: middle.max(idle),
            ladder: self.ladder.counts(),
            looks: self.looks.count(),
            failed_unmaps: pages.failed_unmaps,
            idle_flushes: self.resting.flushes(),
            plain_allocations: of_plain(|plain| plain.allocations),
            plain_count: of_plain(|plain| plain.count),
            plain_bytes: of_plain(|plain| plain.bytes),
        }
    }

    /// Every live block, by address of its region.
    pub fn live_blocks(&self) -> Vec<LiveBlock> {
        if let Some(plain) = &self.plain {
            return self.plain_blocks(plain);
        }
        let now = ticker::clock_ms();
        let names = self.names.read();
        let mut blocks = Vec::new();
        for (_, region) in self.regions.iter() {
            for (index, facts) in region.records.live() {
                let block_bytes = block_bytes(&facts);
                blocks.push(LiveBlock {
                    address: region.address_of(index),
                    bytes: facts.bytes,
                    block_bytes,
                    tag: names
                        .tags
                        .get(usize::from(facts.tag))
                        .map(|tag| tag.to_string())
                        .unwrap_or_default(),
                    stream: names.streams.stream(facts.stream).map_or(0, |lane| self.enqueued(lane).0),
                    age_ms: ticker::age_ms(now, facts.born),
                });
            }
        }
        blocks
    }

    /// One live block by its first address.
    pub fn block_info(&self, address: u64) -> Result<LiveBlock> {
        if let Some(plain) = &self.plain {
            return self.plain_block(plain, address);
        }
        let (_, _, _, facts) = self.live(address)?;
        let names = self.names.read();
        let block_bytes = block_bytes(&facts);
        Ok(LiveBlock {
            address,
            bytes: facts.bytes,
            block_bytes,
            tag: names.tags.get(usize::from(facts.tag)).map(|tag| tag.to_string()).unwrap_or_default(),
            stream: names.streams.stream(facts.stream).map_or(0, |lane| self.enqueued(lane).0),
            age_ms: ticker::age_ms(ticker::clock_ms(), facts.born),
        })
    }

    /// Live bytes by number of the tag. Walks all records, and holds nobody up.
    fn bytes_by_tag(&self) -> Vec<u64> {
        let mut sums = Vec::new();
        let mut add = |tag: u16, bytes: u64| {
            let tag = usize::from(tag);
            if tag >= sums.len() {
                sums.resize(tag + 1, 0);
            }
            sums[tag] += bytes;
        };
        if let Some(plain) = &self.plain {
            plain.for_each_tagged(&mut add);
        }
        for (_, region) in self.regions.iter() {
            region.records.live().for_each(|(_, facts)| add(facts.tag, facts.bytes));
        }
        sums
    }

    /// The tags with the most live bytes, for people.
    pub(super) fn top_tags(&self, count: usize) -> String {
        let sums = self.bytes_by_tag();
        let mut tags: Vec<usize> = (0..sums.len()).filter(|&tag| sums[tag] > 0).collect();
        tags.sort_by_key(|&tag| std::cmp::Reverse(sums[tag]));
        let names = self.names.read();
        let name = |tag: usize| names.tags.get(tag).map_or("", |name| name);
        let shown = |&tag: &usize| format!("\"{}\" {}", name(tag), sums[tag]);
        let list: Vec<String> = tags.iter().take(count).map(shown).collect();
        if list.is_empty() { "nothing".to_owned() } else { list.join(", ") }
    }
}

/// Bytes of the block behind a live record.
fn block_bytes(facts: &Facts) -> u64 {
    match Class::at(facts.class.into()) {
        Some(class) => size_class::bytes_of(class),
        None if is_run(facts.class.into()) || u32::from(facts.class) == LENDING => {
            facts.bytes.next_multiple_of(MIDDLE_GRANULE_BYTES)
        }
        None => facts.bytes.next_multiple_of(LARGE_GRANULE_BYTES),
    }
}
