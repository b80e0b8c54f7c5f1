//! What a pool is made of: its sizes, its limit, and when idle blocks go.
//!
//! What it does: checks a configuration and finds the size of the block that serves a request. Invariant: sizes are
//! multiples of 256 bytes, and those of a fixed list rise. Pure.

use crate::error::{Error, Result};
use crate::memory::ladder::{ALIGNMENT, ladder_bytes};

/// Most sizes that a caller may list; blocks of more are kept apart to no use.
const CLASSES_MAX: usize = 256;
/// Most blocks that one expansion makes.
const GROWTH_MAX: u32 = 1 << 20;

/// Blocks of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassConfig {
    /// Size of a block; goes up to a multiple of 256.
    pub block_bytes: u64,
    /// Blocks that are made at once.
    pub initial_blocks: u32,
    /// Blocks by which it grows.
    pub growth_blocks: u32,
}

/// Which sizes a pool has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// These; a request takes the smallest that holds it. One alone makes a pool of fixed blocks.
    Classes(Vec<ClassConfig>),
    /// The rungs of the decimal ladder, each from its first request on.
    Ladder {
        /// Blocks by which a rung grows.
        growth_blocks: u32,
    },
}

/// Where the blocks of a pool lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PoolMemory {
    /// In memory of the device.
    #[default]
    Device,
    /// In managed memory, for small things that the CPU and the device both touch; blocks of at most
    /// [`PoolConfig::MANAGED_MAX_BYTES`].
    Managed,
}

/// How a pool is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Its name in the ledger.
    pub tag: String,
    /// Its sizes.
    pub sizes: Sizes,
    /// Most bytes that it holds; 0 for no limit but the manager's.
    pub max_bytes: u64,
    /// Blocks that nobody used for so long go back; 0 keeps them until a trim.
    pub idle_ns: u64,
    /// Where its blocks lie.
    pub memory: PoolMemory,
}

impl PoolConfig {
    /// 1 MiB. A page of managed memory moves to whoever touches it, which only pays for little.
    pub const MANAGED_MAX_BYTES: u64 = 1 << 20;
    /// 1 KiB x 32, 64 KiB x 16, 1 MiB x 8; grows by 4.
    pub const DEFAULT_CLASSES: [ClassConfig; 3] = [
        ClassConfig { block_bytes: 1 << 10, initial_blocks: 32, growth_blocks: Self::DEFAULT_GROWTH },
        ClassConfig { block_bytes: 64 << 10, initial_blocks: 16, growth_blocks: Self::DEFAULT_GROWTH },
        ClassConfig { block_bytes: 1 << 20, initial_blocks: 8, growth_blocks: Self::DEFAULT_GROWTH },
    ];
    /// Blocks by which a class grows.
    pub const DEFAULT_GROWTH: u32 = 4;
    /// 2,048 MB, decimal as the ladder is.
    pub const DEFAULT_LADDER_MAX: u64 = 2_048_000_000;
    /// Five minutes.
    pub const DEFAULT_IDLE_NS: u64 = 300_000_000_000;

    /// Size classes with the defaults.
    pub fn classes() -> Self {
        Self {
            tag: "pool".to_owned(),
            sizes: Sizes::Classes(Self::DEFAULT_CLASSES.to_vec()),
            max_bytes: 0,
            idle_ns: Self::DEFAULT_IDLE_NS,
            memory: PoolMemory::Device,
        }
    }

    /// The ladder with the defaults. A rung grows by the one block that was asked for: decision 0010 says why.
    pub fn ladder() -> Self {
        Self {
            sizes: Sizes::Ladder { growth_blocks: 1 },
            max_bytes: Self::DEFAULT_LADDER_MAX,
            ..Self::classes()
        }
    }

    /// The same with aligned sizes, if it can be served.
    pub(super) fn checked(mut self) -> Result<Self> {
        match &mut self.sizes {
            Sizes::Ladder { growth_blocks } => check_growth(*growth_blocks)?,
            Sizes::Classes(classes) => {
                if classes.is_empty() || classes.len() > CLASSES_MAX {
                    let text = format!("{} size classes; give 1 to {CLASSES_MAX}", classes.len());
                    return Err(Error::argument(text));
                }
                for class in &mut *classes {
                    check_growth(class.growth_blocks)?;
                    class.block_bytes = aligned(class.block_bytes)?;
                    self.memory.check(class.block_bytes)?;
                }
                if let Some(pair) = classes.windows(2).find(|pair| pair[0].block_bytes >= pair[1].block_bytes)
                {
                    return Err(Error::argument(format!(
                        "size class {} follows {} (in multiples of {ALIGNMENT}); list each size once, rising",
                        pair[1].block_bytes, pair[0].block_bytes
                    )));
                }
            }
        }
        Ok(self)
    }
}

impl PoolMemory {
    /// Refuses blocks that are too large for it.
    pub(super) fn check(self, block_bytes: u64) -> Result<()> {
        let most = PoolConfig::MANAGED_MAX_BYTES;
        if self == Self::Device || block_bytes <= most {
            return Ok(());
        }
        Err(Error::argument(format!(
            "a block of {block_bytes} bytes in managed memory, which is for blocks of at most {most}; use a pool in \
             device memory"
        )))
    }
}

fn check_growth(blocks: u32) -> Result<()> {
    match blocks {
        1..=GROWTH_MAX => Ok(()),
        _ => Err(Error::argument(format!("growth by {blocks} blocks; give 1 to {GROWTH_MAX}"))),
    }
}

fn aligned(bytes: u64) -> Result<u64> {
    match bytes.checked_next_multiple_of(ALIGNMENT) {
        Some(0) => Err(Error::argument("blocks of 0 bytes; give 1 byte or more")),
        Some(aligned) => Ok(aligned),
        None => Err(Error::argument(format!("blocks of {bytes} bytes; no device has that much"))),
    }
}

impl Sizes {
    /// Size of the blocks that serve a request.
    pub(super) fn block_bytes(&self, bytes: u64) -> Result<u64> {
        if bytes == 0 {
            return Err(Error::argument("0 bytes requested of a pool; ask for at least 1"));
        }
        match self {
            Self::Ladder { .. } => {
                ladder_bytes(bytes).ok_or_else(|| Error::argument(format!("{bytes} bytes have no rung")))
            }
            Self::Classes(classes) => {
                let found = classes.partition_point(|class| class.block_bytes < bytes);
                classes.get(found).map(|class| class.block_bytes).ok_or_else(|| {
                    let largest = classes.last().map_or(0, |class| class.block_bytes);
                    Error::argument(format!(
                        "{bytes} bytes requested of a pool whose largest blocks have {largest}; ask for less or \
                         allocate them"
                    ))
                })
            }
        }
    }

    /// Blocks by which the class of this size grows.
    pub(super) fn growth(&self, block_bytes: u64) -> u32 {
        match self {
            Self::Ladder { growth_blocks } => *growth_blocks,
            Self::Classes(classes) => classes
                .iter()
                .find(|class| class.block_bytes == block_bytes)
                .map_or(1, |class| class.growth_blocks),
        }
    }
}
