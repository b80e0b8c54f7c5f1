//! Ranges of host memory, carved from chunks.
//!
//! What it does: finds the smallest free range that holds a request, takes its front, joins what comes back with its
//! neighbours. A range that is at most an eighth too large is given whole, so that a freed buffer serves the next
//! buffer of about its size and leaves no crumbs. What it does not: touch memory. Cost: logarithmic in the free ranges.
//! Invariants, checked by `validate()`: free ranges lie in their chunk, do not touch each other, and are in both
//! orders; a chunk's free bytes are those of its ranges. A range never reaches from one chunk into the next, though
//! their addresses may be neighbours: no copy may touch two registrations.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};

/// Alignment of every range.
pub(super) const ALIGNMENT: u64 = 256;
/// Ranges of `LARGE` bytes and more are aligned to a page of the system.
const LARGE: u64 = 64 << 10;
const PAGE: u64 = 4096;

struct Chunk {
    bytes: u64,
    free_bytes: u64,
}

#[derive(Clone, Copy)]
struct Free {
    bytes: u64,
    chunk: u64,
}

/// What was carved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) address: u64,
    /// At least what was asked.
    pub(super) bytes: u64,
}

#[derive(Default)]
pub(super) struct Carver {
    chunks: BTreeMap<u64, Chunk>,
    free: BTreeMap<u64, Free>,
    by_size: BTreeSet<(u64, u64)>,
}

impl Carver {
    /// Adds a chunk; all of it is free.
    pub(super) fn insert(&mut self, start: u64, bytes: u64) {
        self.chunks.insert(start, Chunk { bytes, free_bytes: bytes });
        self.list(start, Free { bytes, chunk: start });
    }

    fn list(&mut self, start: u64, free: Free) {
        if free.bytes > 0 {
            self.free.insert(start, free);
            self.by_size.insert((free.bytes, start));
        }
    }

    fn unlist(&mut self, start: u64) -> Option<Free> {
        let free = self.free.remove(&start)?;
        self.by_size.remove(&(free.bytes, start));
        Some(free)
    }

    /// Carves the smallest free range that holds so many bytes.
    pub(super) fn take(&mut self, bytes: u64) -> Option<Piece> {
        let alignment = if bytes >= LARGE { PAGE } else { ALIGNMENT };
        let holds = |&&(size, start): &&(u64, u64)| start.next_multiple_of(alignment) - start + bytes <= size;
        let &(size, start) = self.by_size.range((bytes, 0)..).find(holds)?;
        let Free { chunk, .. } = self.unlist(start)?;
        let address = start.next_multiple_of(alignment);
        let (before, room) = (address - start, size - (address - start));
        let whole = room - bytes <= bytes / 8;
        let taken = if whole { room } else { bytes.next_multiple_of(ALIGNMENT).min(room) };
        self.list(start, Free { bytes: before, chunk });
        self.list(address + taken, Free { bytes: room - taken, chunk });
        if let Some(chunk) = self.chunks.get_mut(&chunk) {
            chunk.free_bytes -= taken;
        }
        Some(Piece { address, bytes: taken })
    }

    /// Takes a piece back, exactly as it was carved.
    pub(super) fn give(&mut self, piece: Piece) -> Result<()> {
        let (mut start, mut bytes) = (piece.address, piece.bytes);
        let around = self.chunks.range_mut(..=start).next_back();
        let Some((&home, chunk)) = around.filter(|(home, chunk)| start + bytes <= **home + chunk.bytes)
        else {
            return Err(Error::internal(format!("{bytes} bytes at {start:#x} lie in no chunk")));
        };
        chunk.free_bytes += bytes;
        let before = self.free.range(..start).next_back();
        if let Some((&other, free)) =
            before.filter(|(other, free)| **other + free.bytes == start && free.chunk == home)
        {
            bytes += free.bytes;
            self.unlist(other);
            start = other;
        }
        if self.free.get(&(start + bytes)).is_some_and(|free| free.chunk == home)
            && let Some(after) = self.unlist(start + bytes)
        {
            bytes += after.bytes;
        }
        self.list(start, Free { bytes, chunk: home });
        Ok(())
    }

    /// Takes out the chunks that are wholly free.
    pub(super) fn take_idle(&mut self) -> Vec<u64> {
        let idle = |(&start, chunk): (&u64, &Chunk)| (chunk.free_bytes == chunk.bytes).then_some(start);
        let idle: Vec<u64> = self.chunks.iter().filter_map(idle).collect();
        for start in &idle {
            self.chunks.remove(start);
            self.unlist(*start);
        }
        idle
    }

    /// Chunks.
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Bytes of all chunks.
    pub(super) fn held_bytes(&self) -> u64 {
        self.chunks.values().map(|chunk| chunk.bytes).sum()
    }

    /// Bytes that are free, and the longest run of them.
    pub(super) fn free_bytes(&self) -> (u64, u64) {
        let largest = self.by_size.last().map_or(0, |&(bytes, _)| bytes);
        (self.free.values().map(|free| free.bytes).sum(), largest)
    }

    /// Proves what the file head says.
    pub(super) fn validate(&self) -> Result<()> {
        let fail = |what: String| Err(Error::internal(format!("pinned memory: {what}")));
        let mut sums: BTreeMap<u64, u64> = BTreeMap::new();
        let mut last: Option<(u64, u64)> = None;
        for (&start, free) in &self.free {
            let Some(chunk) = self.chunks.get(&free.chunk) else {
                return fail(format!("the free range at {start:#x} has no chunk"));
            };
            if free.bytes == 0 || start < free.chunk || start + free.bytes > free.chunk + chunk.bytes {
                return fail(format!("the free range at {start:#x} leaves its chunk"));
            }
            if !self.by_size.contains(&(free.bytes, start)) {
                return fail(format!("the free range at {start:#x} is missing among the sizes"));
            }
            if last.is_some_and(|(end, chunk)| start < end || (start == end && chunk == free.chunk)) {
                return fail(format!("the free range at {start:#x} is not joined with the one before"));
            }
            last = Some((start + free.bytes, free.chunk));
            *sums.entry(free.chunk).or_default() += free.bytes;
        }
        for (start, chunk) in &self.chunks {
            let sum = sums.get(start).copied().unwrap_or(0);
            if sum != chunk.free_bytes {
                return fail(format!("{} bytes free at {start:#x}, {sum} in ranges", chunk.free_bytes));
            }
        }
        if self.by_size.len() != self.free.len() {
            return fail("a size without a range".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_carving_never_overlaps_and_all_comes_together_again() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut carver = Carver::default();
            // Two chunks side by side: ranges must not grow together across the border.
            let (first, second) = (1 << 20, (1 << 20) + 200_000 / 256 * 256);
            carver.insert(first, 200_000 / 256 * 256);
            carver.insert(second, 300_001);
            let mut live: Vec<Piece> = Vec::new();
            for _ in 0..400 {
                if random.bool() {
                    let bits = random.u32(1..18);
                    let bytes = random.u64(1..=1 << bits);
                    let Some(piece) = carver.take(bytes) else { continue };
                    assert!(piece.bytes >= bytes && piece.address % ALIGNMENT == 0);
                    assert!(piece.bytes - bytes <= (bytes / 8).max(ALIGNMENT - 1), "{bytes}: {piece:?}");
                    assert!(bytes < LARGE || piece.address % PAGE == 0);
                    let end = piece.address + piece.bytes;
                    assert!(end <= second || piece.address >= second, "over the border");
                    let apart =
                        |other: &Piece| other.address >= end || other.address + other.bytes <= piece.address;
                    assert!(live.iter().all(apart), "seed {seed}");
                    live.push(piece);
                } else if !live.is_empty() {
                    carver.give(live.swap_remove(random.usize(0..live.len()))).unwrap();
                }
                carver.validate().unwrap();
                let used: u64 = live.iter().map(|piece| piece.bytes).sum();
                assert_eq!(carver.free_bytes().0 + used, carver.held_bytes());
            }
            live.into_iter().for_each(|piece| carver.give(piece).unwrap());
            carver.validate().unwrap();
            assert_eq!(carver.take_idle(), [first, second]);
            assert_eq!((carver.chunks(), carver.free_bytes()), (0, (0, 0)));
        }
    }

    #[test]
    fn a_freed_buffer_serves_one_of_about_its_size_and_is_split_for_a_small_one() {
        let mut carver = Carver::default();
        carver.insert(0x10000, 1 << 20);
        let [first, _, third] = [100_000, 5_000, 60_000].map(|bytes| carver.take(bytes).unwrap());
        carver.give(first).unwrap();
        assert_eq!(carver.take(95_000).unwrap(), first, "whole: an eighth more is fine");
        carver.give(first).unwrap();
        carver.give(third).unwrap();
        let small = carver.take(50_000).unwrap();
        assert_eq!(
            (small.address, small.bytes),
            (first.address, 50_176),
            "the smallest that holds it, split"
        );
        assert!(carver.give(Piece { address: 0x200000, bytes: 256 }).is_err());
    }

    #[test]
    fn the_end_of_a_chunk_that_is_no_multiple_of_the_alignment_is_used() {
        let mut carver = Carver::default();
        carver.insert(4096, 1000);
        assert_eq!(carver.take(1000), Some(Piece { address: 4096, bytes: 1000 }));
        assert_eq!(carver.take(1), None);
    }
}
