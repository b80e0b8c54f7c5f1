//! Sizes that blocks are rounded to: the classes of the suballocator.
//!
//! What it does: arithmetic, all of it O(1), without loops. What it does not: know of memory. A class is a multiple of
//! 256 B, and from 2 KiB on there are 8 classes for each doubling: the class of `n` bytes has less than `n / 8 + 256`
//! of waste, and at most `n / 8` above 2 KiB. Invariants, which the tests check for every class:
//! `class_of(bytes_of(c), 1) == c`, and a class that was asked for with an alignment is a multiple of it.

/// What every size is a multiple of, and the alignment that every block has.
pub const UNIT_BYTES: u64 = 256;

/// Size of the largest class.
pub const LARGEST_BYTES: u64 = 32 << 20;

/// Largest alignment that can be asked for.
pub const MOST_ALIGNED_BYTES: u64 = 2 << 20;

/// Largest size of which several blocks lie in one page of a slab.
pub const SMALL_BYTES: u64 = 256 << 10;

/// Number of classes.
pub const CLASS_COUNT: usize = class_of_units(LARGEST_BYTES / UNIT_BYTES) as usize + 1;

/// Number of small classes; they come first.
pub const SMALL_CLASS_COUNT: usize = class_of_units(SMALL_BYTES / UNIT_BYTES) as usize + 1;

/// Number of a size, from 0 for [`UNIT_BYTES`] up to [`CLASS_COUNT`] - 1 for [`LARGEST_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class(u8);

/// With `last` the last unit of a block: the 3 bits behind its leading one tell the step within the doubling, and the
/// place of the leading one the doubling. Below 16 units a step is one unit and the class is `last` itself.
const fn class_of_units(units: u64) -> u64 {
    class_of_last(units - 1)
}

const fn class_of_last(last: u64) -> u64 {
    let shift = (last | 8).ilog2() - 3;
    ((shift as u64) << 3) + (last >> shift)
}

/// The smallest class that holds so many bytes and is a multiple of the alignment. None if there is no such class: for
/// 0 bytes, for more than the largest, for an alignment that is no power of two or larger than 2 MiB.
#[inline]
pub const fn class_of(bytes: u64, alignment_bytes: u64) -> Option<Class> {
    let alignment_fits = alignment_bytes.is_power_of_two() && alignment_bytes <= MOST_ALIGNED_BYTES;
    if bytes == 0 || bytes > LARGEST_BYTES || !alignment_fits {
        return None;
    }
    // A multiple of the alignment: where steps are larger than it, each class is one; where they are smaller, the
    // rounded size is itself a class.
    let mask = if alignment_bytes > UNIT_BYTES { alignment_bytes - 1 } else { UNIT_BYTES - 1 };
    // The last byte of what is rounded up.
    Some(Class(class_of_last(((bytes - 1) | mask) / UNIT_BYTES) as u8))
}

/// Size of the blocks of a class.
#[inline]
pub const fn bytes_of(class: Class) -> u64 {
    let shift = (class.0 >> 3).saturating_sub(1);
    let steps = (class.0 - (shift << 3)) as u64 + 1;
    (steps * UNIT_BYTES) << shift
}

impl Class {
    /// The class of that number.
    pub const fn at(index: usize) -> Option<Self> {
        if index < CLASS_COUNT { Some(Self(index as u8)) } else { None }
    }

    /// Its number.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Whether several of its blocks share a page of a slab.
    #[inline]
    pub const fn is_small(self) -> bool {
        (self.0 as usize) < SMALL_CLASS_COUNT
    }
}
