//! The vocabulary: ids and element types shared by every room.

use crate::error::{Error, Result};

/// Element type of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32 = 1,
    /// IEEE 754 binary16.
    F16 = 2,
    /// bfloat16.
    Bf16 = 3,
    /// 8-bit float, 4 exponent bits, no infinities.
    F8E4M3 = 4,
    /// 8-bit float, 5 exponent bits.
    F8E5M2 = 5,
    /// Signed byte.
    I8 = 6,
}

impl Dtype {
    /// Size of one element.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::F8E4M3 | Self::F8E5M2 | Self::I8 => 1,
        }
    }
}

impl TryFrom<u32> for Dtype {
    type Error = Error;

    fn try_from(value: u32) -> Result<Self> {
        Ok(match value {
            1 => Self::F32,
            2 => Self::F16,
            3 => Self::Bf16,
            4 => Self::F8E4M3,
            5 => Self::F8E5M2,
            6 => Self::I8,
            _ => return Err(Error::argument(format!("dtype {value} is unknown; use a KAVERN_DTYPE_ value"))),
        })
    }
}

/// What an id stands for; the top byte of the id, so that ids of two kinds never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum IdKind {
    /// A sequence of a KV cache.
    Sequence = 0x51,
    /// A lease on prefix hits.
    Lease = 0x52,
    /// Asynchronous work.
    Ticket = 0x53,
    /// What allocations are for.
    Tag = 0x54,
}

/// An id for things in masses: kind (8 bits), generation (32 bits), index (24 bits). Zero is never an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(pub u64);

impl Id {
    /// Most things of one kind at a time: 24 bits of index.
    pub const INDEX_LIMIT: u32 = 1 << 24;

    /// Packs kind, generation and index.
    pub const fn new(kind: IdKind, generation: u32, index: u32) -> Self {
        Self((kind as u64) << 56 | (generation as u64) << 24 | index as u64)
    }

    /// The index, if the id is of this kind; the caller compares the generation.
    pub const fn index(self, kind: IdKind) -> Option<usize> {
        if self.0 >> 56 == kind as u64 { Some(self.likely_index()) } else { None }
    }

    /// Whether the id is of this kind and generation.
    #[inline]
    pub const fn is_of(self, kind: IdKind, generation: u32) -> bool {
        self.0 >> 24 == (kind as u64) << 32 | generation as u64
    }

    /// The index, whatever the kind: for hints.
    pub const fn likely_index(self) -> usize {
        (self.0 & 0xff_ffff) as usize
    }

    /// The generation that the id carries.
    pub const fn generation(self) -> u32 {
        (self.0 >> 24) as u32
    }
}
