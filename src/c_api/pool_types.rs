//! Structs and numbers of the header for pools, and how a pool's configuration is read.
//!
//! What it does not: make pools; `pool` does. Invariant: no field of a configuration that is read here is ignored.

use std::ffi::c_char;

use super::config::{self, CStruct, CValue};
use super::text;
use crate::error::{Error, Result};
use crate::memory::{ClassConfig, ClassStatistics, PoolConfig, PoolMemory, PoolStatistics, Sizes};

/// How a pool finds the block for a request; for kavern_pool_config.rounding.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_pool_rounding {
    /// The smallest of the size classes that holds it.
    KAVERN_POOL_CLASSES = 0,
    /// Every block has block_bytes.
    KAVERN_POOL_FIXED = 1,
    /// Decimal megabytes: below 1 up to 0.1, below 10 to 1, below 100 to 10, above to 50; then up to 256 bytes.
    KAVERN_POOL_LADDER = 2,
}

/// Where the blocks of a pool lie; for kavern_pool_config.memory_kind.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_pool_memory {
    /// Memory of the device.
    KAVERN_POOL_DEVICE = 0,
    /// Managed memory: the CPU and the device use a block's address, each where the other's work on it is known to be
    /// done. For blocks of at most 1 MiB; counted and limited as other device memory, and never more than is free. What
    /// was touched is missing from the free bytes and counts beside them again, so that about half of a device can be
    /// managed memory in use.
    KAVERN_POOL_MANAGED = 1,
}

/// A size class of a pool. It will never grow, so it carries no size.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_pool_class {
    /// Size of a block; goes up to a multiple of 256.
    pub block_bytes: u64,
    /// Blocks that are made at once.
    pub initial_blocks: u32,
    /// Blocks by which the class grows; 0 takes the pool's growth_blocks.
    pub growth_blocks: u32,
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_pool_class {}

/// How a pool is made; fill with kavern_pool_config_init.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_pool_config {
    /// sizeof(kavern_pool_config).
    pub struct_size: u32,
    /// Zero.
    pub flags: u32,
    /// A KAVERN_POOL_ value.
    pub rounding: u32,
    /// Blocks by which a class grows; 0 for 4, on the ladder 1.
    pub growth_blocks: u32,
    /// Of KAVERN_POOL_FIXED: size of a block.
    pub block_bytes: u64,
    /// Of KAVERN_POOL_FIXED: blocks that are made at once.
    pub initial_blocks: u64,
    /// Of KAVERN_POOL_CLASSES: the classes by rising size; null for 1 KiB x 32, 64 KiB x 16, 1 MiB x 8.
    pub classes: *const kavern_pool_class,
    /// Of KAVERN_POOL_CLASSES: how many.
    pub class_count: u64,
    /// Most bytes that the pool holds; 0 for no limit but the manager's, on the ladder for 2,048,000,000.
    /// UINT64_MAX is no limit there either.
    pub max_bytes: u64,
    /// Batches of blocks that nobody used for so long go back, also while nobody calls the pool: a thread of the
    /// library looks for them, every 0.1 s at most. Where there is none, on a simulated device and on one that cannot
    /// map memory, they go at the pool's next call. UINT64_MAX keeps them until kavern_pool_trim.
    pub idle_ns: u64,
    /// Its name in reports; null for "pool".
    pub name: *const c_char,
    /// Zero.
    pub reserved: [u64; 4],
    /// KAVERN_POOL_DEVICE or KAVERN_POOL_MANAGED.
    pub memory_kind: u32,
    /// Zero.
    pub reserved_tail: u32,
}

// SAFETY: numbers and pointers that are read with checks.
unsafe impl CValue for kavern_pool_config {}
// SAFETY: begins with struct_size.
unsafe impl CStruct for kavern_pool_config {
    const NAME: &'static str = "kavern_pool_config";
    const FIRST_BYTES: usize = 104;

    fn defaults() -> Self {
        Self { idle_ns: PoolConfig::DEFAULT_IDLE_NS, ..config::zeroed() }
    }
}

/// What a pool has and did. You set struct_size; the call fills the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_pool_statistics {
    /// sizeof(kavern_pool_statistics).
    pub struct_size: u32,
    /// Size classes, or rungs of the ladder that were asked for.
    pub class_count: u32,
    /// Requests that a held block served.
    pub hits: u64,
    /// Requests that made the pool grow.
    pub misses: u64,
    /// Requests that were refused for lack of memory or by max_bytes.
    pub refusals: u64,
    /// Hits for which a stream was made to wait for another.
    pub stream_waits: u64,
    /// Times that the whole device was waited for, because a stream was gone with blocks behind it.
    pub device_waits: u64,
    /// Bytes held.
    pub held_bytes: u64,
    /// Most that was held at one time.
    pub peak_held_bytes: u64,
    /// Limit, 0 for none.
    pub max_bytes: u64,
    /// Bytes of the blocks in use.
    pub in_use_bytes: u64,
    /// Bytes that were asked for, of the blocks in use.
    pub requested_bytes: u64,
    /// Blocks held.
    pub blocks: u64,
    /// Blocks in use.
    pub blocks_in_use: u64,
    /// Released blocks whose stream is not known to be done with them.
    pub blocks_waiting: u64,
    /// Batches of blocks that were made.
    pub expansions: u64,
    /// Batches of blocks that went back.
    pub evictions: u64,
    /// Hits of all requests that were served, 0 to 1.
    pub hit_rate: f64,
    /// Bytes in use of those held, 0 to 1.
    pub utilisation: f64,
    /// Share of the held bytes that are free and cannot serve a request, the mean over the requests so far.
    pub fragmentation: f64,
    /// Those of the bytes held that lie in managed memory: all or none.
    pub managed_bytes: u64,
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_pool_statistics {}
// SAFETY: begins with struct_size.
unsafe impl CStruct for kavern_pool_statistics {
    const NAME: &'static str = "kavern_pool_statistics";
    const FIRST_BYTES: usize = 152;

    fn defaults() -> Self {
        config::zeroed()
    }
}

/// What one class of a pool has and did. It will never grow, so it carries no size.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_pool_class_statistics {
    /// Size of a block.
    pub block_bytes: u64,
    /// Blocks held.
    pub blocks: u64,
    /// Blocks in use.
    pub blocks_in_use: u64,
    /// Released blocks whose stream is not known to be done with them.
    pub blocks_waiting: u64,
    /// Requests that a held block served.
    pub hits: u64,
    /// Requests that made the class grow.
    pub misses: u64,
    /// Batches of blocks that were made.
    pub expansions: u64,
    /// Batches of blocks that went back.
    pub evictions: u64,
    /// Share of the pool's bytes that are free and cannot serve this class.
    pub fragmentation: f64,
    /// Zero.
    pub reserved: [u64; 3],
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_pool_class_statistics {}

/// What was handed out. It will never grow, so it carries no size.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_pool_block {
    /// First byte on the device, a multiple of 256.
    pub address: u64,
    /// Length, at least what was asked.
    pub bytes: u64,
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_pool_block {}

/// Reads a configuration.
///
/// # Safety
/// The pointers of `settings` are as its fields say.
pub(super) unsafe fn pool_config(settings: &kavern_pool_config) -> Result<PoolConfig> {
    config::check_flags(settings.flags, 0, "config")?;
    config::check_reserved(&settings.reserved, "config")?;
    let growth = |usual| if settings.growth_blocks == 0 { usual } else { settings.growth_blocks };
    let mut made = match settings.rounding {
        0 => PoolConfig::classes(),
        1 => {
            let initial_blocks = u32::try_from(settings.initial_blocks)
                .map_err(|_| Error::argument("initial_blocks is larger than 2^32 - 1"))?;
            let (block_bytes, growth_blocks) = (settings.block_bytes, growth(PoolConfig::DEFAULT_GROWTH));
            let class = ClassConfig { block_bytes, initial_blocks, growth_blocks };
            PoolConfig { sizes: Sizes::Classes(vec![class]), ..PoolConfig::classes() }
        }
        2 => PoolConfig { sizes: Sizes::Ladder { growth_blocks: growth(1) }, ..PoolConfig::ladder() },
        other => {
            let text = format!("rounding {other} is unknown; use a KAVERN_POOL_ value");
            return Err(Error::argument(text));
        }
    };
    // SAFETY: the caller's promise.
    let classes = unsafe { config::array_u64(settings.classes, settings.class_count, "classes") }?;
    if settings.rounding != 1 && (settings.block_bytes, settings.initial_blocks) != (0, 0) {
        return Err(Error::argument(
            "block_bytes and initial_blocks belong to KAVERN_POOL_FIXED; leave them 0",
        ));
    }
    match (&mut made.sizes, classes.is_empty()) {
        (Sizes::Classes(made), false) if settings.rounding == 0 => {
            let class = |class: &kavern_pool_class| ClassConfig {
                block_bytes: class.block_bytes,
                initial_blocks: class.initial_blocks,
                growth_blocks: match class.growth_blocks {
                    0 => growth(PoolConfig::DEFAULT_GROWTH),
                    blocks => blocks,
                },
            };
            *made = classes.iter().map(class).collect();
        }
        (Sizes::Classes(made), true) if settings.rounding == 0 => {
            made.iter_mut().for_each(|class| class.growth_blocks = growth(class.growth_blocks));
        }
        (_, true) => {}
        (_, false) => return Err(Error::argument("classes belong to KAVERN_POOL_CLASSES; pass none")),
    }
    made.memory = match (settings.memory_kind, settings.reserved_tail) {
        (0, 0) => PoolMemory::Device,
        (1, 0) => PoolMemory::Managed,
        (_, 0) => {
            let text = "is unknown; use KAVERN_POOL_DEVICE or KAVERN_POOL_MANAGED";
            return Err(Error::argument(format!("memory_kind {} {text}", settings.memory_kind)));
        }
        _ => return Err(Error::argument("config.reserved_tail is not zero")),
    };
    match settings.max_bytes {
        0 => {}
        u64::MAX => made.max_bytes = 0,
        bytes => made.max_bytes = bytes,
    }
    made.idle_ns = if settings.idle_ns == u64::MAX { 0 } else { settings.idle_ns.max(1) };
    // SAFETY: the caller's promise.
    if let Some(name) = unsafe { text::read_optional(settings.name, "name") }? {
        name.clone_into(&mut made.tag);
    }
    Ok(made)
}

impl From<(PoolStatistics, usize)> for kavern_pool_statistics {
    fn from((totals, classes): (PoolStatistics, usize)) -> Self {
        Self {
            struct_size: 0,
            class_count: classes as u32,
            hits: totals.hits,
            misses: totals.misses,
            refusals: totals.refusals,
            stream_waits: totals.stream_waits,
            device_waits: totals.device_waits,
            held_bytes: totals.held_bytes,
            peak_held_bytes: totals.peak_held_bytes,
            max_bytes: totals.max_bytes,
            in_use_bytes: totals.in_use_bytes,
            requested_bytes: totals.requested_bytes,
            blocks: totals.blocks,
            blocks_in_use: totals.in_use,
            blocks_waiting: totals.waiting,
            expansions: totals.expansions,
            evictions: totals.evictions,
            hit_rate: totals.hit_rate,
            utilisation: totals.utilisation,
            fragmentation: totals.fragmentation,
            managed_bytes: totals.managed_bytes,
        }
    }
}

impl From<&ClassStatistics> for kavern_pool_class_statistics {
    fn from(class: &ClassStatistics) -> Self {
        Self {
            block_bytes: class.block_bytes,
            blocks: class.blocks,
            blocks_in_use: class.in_use,
            blocks_waiting: class.waiting,
            hits: class.hits,
            misses: class.misses,
            expansions: class.expansions,
            evictions: class.evictions,
            fragmentation: class.fragmentation,
            reserved: [0; 3],
        }
    }
}
