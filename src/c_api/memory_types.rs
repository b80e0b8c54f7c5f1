//! What the functions of device memory answer, as C sees it.
//!
//! What it does not: functions. Invariant: structs grow at their end only.

use std::ffi::c_char;

use super::config::{self, CStruct, CValue};
use super::text;
use crate::memory::{Defragmented, HeapStatistics, LiveBlock};

/// What an address belongs to.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kavern_address_description {
    /// sizeof(kavern_address_description).
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// First byte of the allocation.
    pub address: u64,
    /// Bytes that were asked for.
    pub bytes: u64,
    /// Bytes of the block, with what rounding adds. Only `bytes` of them are yours: once memory is short, the rest is
    /// taken back while the block lives.
    pub block_bytes: u64,
    /// The device's value of the stream of the allocation.
    pub stream: u64,
    /// How long it has been there, in milliseconds, a few of them inexact.
    pub age_ms: u64,
    /// What it is for, cut to what fits, with a zero at its end.
    pub tag: [c_char; 64],
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_address_description {}
// SAFETY: begins with struct_size.
unsafe impl CStruct for kavern_address_description {
    const NAME: &'static str = "kavern_address_description";
    const FIRST_BYTES: usize = 112;

    fn defaults() -> Self {
        config::zeroed()
    }
}

impl From<LiveBlock> for kavern_address_description {
    fn from(block: LiveBlock) -> Self {
        Self {
            struct_size: 0,
            reserved: 0,
            address: block.address,
            bytes: block.bytes,
            block_bytes: block.block_bytes,
            stream: block.stream,
            age_ms: block.age_ms,
            tag: text::fixed(&block.tag),
        }
    }
}

/// What the general allocator of a manager holds and did.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kavern_memory_statistics {
    /// sizeof(kavern_memory_statistics).
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Asked for and not yet freed.
    pub live_bytes: u64,
    /// Live allocations.
    pub live_count: u64,
    /// Allocations ever.
    pub allocations: u64,
    /// Frees ever.
    pub frees: u64,
    /// Physical memory behind the allocator's addresses.
    pub backed_bytes: u64,
    /// Freed blocks in the caches of threads.
    pub front_cache_bytes: u64,
    /// Freed blocks that so far only the stream of their free may have.
    pub ordered_bytes: u64,
    /// Largest piece that is free for every stream.
    pub largest_free_bytes: u64,
    /// When memory was short: caches emptied.
    pub ladder_own_caches: u64,
    /// Finished work looked for.
    pub ladder_fences: u64,
    /// Empty pages taken from behind their addresses.
    pub ladder_trims: u64,
    /// Streams made to wait for others.
    pub ladder_stream_waits: u64,
    /// Pools, idle models and callbacks asked.
    pub ladder_rooms: u64,
    /// Waits of the host for work in flight.
    pub ladder_host_waits: u64,
    /// Requests refused after all of it.
    pub ladder_refusals: u64,
    /// Allocations ever that came straight from the device one by one, because it cannot map memory; 0 where it can.
    pub plain_allocations: u64,
    /// When memory was short: half-empty pages meshed; 0 without KAVERN_MANAGER_MESH_ON_SHORTAGE.
    pub ladder_meshes: u64,
    /// Of the physical memory, what is nobody's and lies in pages of the device of which something else is in use.
    pub retained_bytes: u64,
    /// When memory was short: pages of the device that went from free blocks to a large one as they were.
    pub ladder_moved_pages: u64,
    /// Looks through all that is held, before more was taken: such an allocation takes as long as hundreds of others.
    pub looks: u64,
    /// Mappings that the device did not remove and is asked to again; their memory then goes back to it.
    pub failed_unmaps: u64,
    /// How often something was given back because nobody had allocated or freed for ten seconds.
    pub idle_flushes: u64,
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_memory_statistics {}
// SAFETY: begins with struct_size.
unsafe impl CStruct for kavern_memory_statistics {
    const NAME: &'static str = "kavern_memory_statistics";
    const FIRST_BYTES: usize = 128;

    fn defaults() -> Self {
        config::zeroed()
    }
}

impl From<HeapStatistics> for kavern_memory_statistics {
    fn from(heap: HeapStatistics) -> Self {
        Self {
            struct_size: 0,
            reserved: 0,
            live_bytes: heap.live_bytes,
            live_count: heap.live_count,
            allocations: heap.allocations,
            frees: heap.frees,
            backed_bytes: heap.backed_bytes,
            front_cache_bytes: heap.front_cache_bytes,
            ordered_bytes: heap.ordered_bytes,
            largest_free_bytes: heap.largest_free_bytes,
            ladder_own_caches: heap.ladder.own_caches,
            ladder_fences: heap.ladder.fences,
            ladder_trims: heap.ladder.trims,
            ladder_stream_waits: heap.ladder.stream_waits,
            ladder_rooms: heap.ladder.rooms,
            ladder_host_waits: heap.ladder.host_waits,
            ladder_refusals: heap.ladder.refusals,
            plain_allocations: heap.plain_allocations,
            ladder_meshes: heap.ladder.meshes,
            retained_bytes: heap.retained_bytes,
            ladder_moved_pages: heap.ladder.moved_pages,
            looks: heap.looks,
            failed_unmaps: heap.failed_unmaps,
            idle_flushes: heap.idle_flushes,
        }
    }
}

/// What kavern_manager_defragment did.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kavern_defragment_result {
    /// sizeof(kavern_defragment_result).
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Physical memory behind the allocator before.
    pub before_bytes: u64,
    /// And after.
    pub after_bytes: u64,
    /// Pages of small blocks that share the memory of others now.
    pub meshed_pages: u64,
    /// Live bytes that were copied for that.
    pub copied_bytes: u64,
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_defragment_result {}
// SAFETY: begins with struct_size.
unsafe impl CStruct for kavern_defragment_result {
    const NAME: &'static str = "kavern_defragment_result";
    const FIRST_BYTES: usize = 40;

    fn defaults() -> Self {
        config::zeroed()
    }
}

impl From<Defragmented> for kavern_defragment_result {
    fn from(done: Defragmented) -> Self {
        Self {
            struct_size: 0,
            reserved: 0,
            before_bytes: done.before_bytes,
            after_bytes: done.after_bytes,
            meshed_pages: done.meshed_pages,
            copied_bytes: done.copied_bytes,
        }
    }
}
