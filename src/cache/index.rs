//! From a block's key to the block: an open-addressing table at half load.
//!
//! A cell holds 32 bits of hash beside the block, so a probe touches a block only when it is almost surely the one.
//! Removal shifts the following cells back, so there are no tombstones and the cost does not grow with age.
//! The hash is seeded by the process, so nobody can choose keys that crowd one place.
//! Invariants: walking from a cell's home to the cell meets no empty cell; a block has at most one cell. A cell's block
//! is findable, or departed (`departed`): who finds it looks at its record.

use super::hash::Key;
use crate::error;
use crate::sys::prefetch;
use crate::sys::reserve::filled;

/// Hash in the upper half, block + 1 in the lower; 0 is empty.
pub(super) struct Index {
    cells: Vec<u64>,
    mask: u32,
    seed: [u64; 4],
    count: u32,
}

/// An empty cell.
pub(super) struct Place(u32);

/// How far beyond its home the walk over a block's cell to the next empty one nearly always ends, at half load.
const CELLS_BEYOND: usize = 7;

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

impl Index {
    /// Room for every block of a pool.
    pub(super) fn new(blocks: u32, seed: [u64; 4]) -> error::Result<Self> {
        let size = (u64::from(blocks) * 2).next_power_of_two().max(4);
        Ok(Self { cells: filled(size as usize, 0)?, mask: (size - 1) as u32, seed, count: 0 })
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// The hash under which a key is kept.
    pub(super) fn hash(&self, key: &Key, namespace: u32) -> u32 {
        let Key([a, b, c, d]) = *key;
        let low = fold(a ^ self.seed[0], b ^ self.seed[1] ^ u64::from(namespace));
        let high = fold(c ^ self.seed[2], d ^ self.seed[3] ^ low);
        (low ^ high ^ (low >> 32)) as u32
    }

    /// The block under this hash for which `is_it` holds.
    pub(super) fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut at = hash & self.mask;
        loop {
            let cell = self.cells[at as usize];
            if cell == 0 {
                return None;
            }
            let block = cell as u32 - 1;
            if (cell >> 32) as u32 == hash && is_it(block) {
                return Some(block);
            }
            at = (at + 1) & self.mask;
        }
    }

    /// The block under this hash for which `is_it` holds, or else the place where one that is not there belongs as long
    /// as nothing else changes.
    #[inline]
    pub(super) fn find_or_place(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Result<u32, Place> {
        let mut at = hash & self.mask;
        loop {
            let cell = self.cells[at as usize];
            if cell == 0 {
                return Err(Place(at));
            }
            let block = cell as u32 - 1;
            if (cell >> 32) as u32 == hash && is_it(block) {
                return Ok(block);
            }
            at = (at + 1) & self.mask;
        }
    }

    /// Adds a block where it was found to belong.
    #[inline]
    pub(super) fn insert_at(&mut self, Place(at): Place, hash: u32, block: u32) {
        debug_assert_eq!(self.cells[at as usize], 0, "the place is empty");
        self.cells[at as usize] = u64::from(hash) << 32 | u64::from(block + 1);
        self.count += 1;
    }

    /// Has the cell at which this hash is looked for fetched.
    pub(super) fn fetch(&self, hash: u32) {
        prefetch::prefetch(&self.cells, (hash & self.mask) as usize);
    }

    /// Has fetched what `remove` of a block under this hash looks at: from its cell on to the next empty one.
    #[inline]
    pub(super) fn fetch_around(&self, hash: u32) {
        let at = hash & self.mask;
        prefetch::prefetch(&self.cells, at as usize);
        prefetch::prefetch(&self.cells, at as usize + CELLS_BEYOND);
    }

    /// Adds a block that is not there.
    pub(super) fn insert(&mut self, hash: u32, block: u32) {
        let mut at = hash & self.mask;
        while self.cells[at as usize] != 0 {
            at = (at + 1) & self.mask;
        }
        self.cells[at as usize] = u64::from(hash) << 32 | u64::from(block + 1);
        self.count += 1;
    }

    /// Takes a block out that is there.
    pub(super) fn remove(&mut self, hash: u32, block: u32) {
        let wanted = u64::from(hash) << 32 | u64::from(block + 1);
        let cells = self.cells.as_mut_slice();
        // In this form the compiler sees that no place lies beyond the end.
        let Some(mask) = cells.len().checked_sub(1) else { return };
        let mut hole = hash as usize & mask;
        while cells[hole & mask] != wanted {
            assert!(cells[hole & mask] != 0, "the block is in the index");
            hole = (hole + 1) & mask;
        }
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let cell = cells[at & mask];
            if cell == 0 {
                break;
            }
            let home = (cell >> 32) as usize;
            // The cell may move back to the hole unless its home lies after the hole.
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                cells[hole & mask] = cell;
                hole = at;
            }
        }
        cells[hole & mask] = 0;
        self.count -= 1;
    }

    /// What this block was found for, another one is.
    pub(super) fn replace(&mut self, hash: u32, from: u32, to: u32) {
        let wanted = u64::from(hash) << 32 | u64::from(from + 1);
        let mut at = hash & self.mask;
        while self.cells[at as usize] != wanted {
            assert!(self.cells[at as usize] != 0, "the block is in the index");
            at = (at + 1) & self.mask;
        }
        self.cells[at as usize] = u64::from(hash) << 32 | u64::from(to + 1);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.cells.len() as u64 * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn the_index_answers_as_a_map_does_even_when_hashes_crowd() {
        let mut random = fastrand::Rng::with_seed(11);
        let mut index = Index::new(200, [1, 2, 3, 4]).unwrap();
        let mut model: HashMap<u32, u32> = HashMap::new();
        for _ in 0..100_000 {
            let block = random.u32(0..200);
            match model.remove(&block) {
                Some(hash) => index.remove(hash, block),
                None => {
                    // Few distinct homes, also at the end of the table: long runs that wrap around.
                    let hash = random.u32(0..40) + 490 + (random.u32(0..3) << 20);
                    match index.find_or_place(hash, |there| there == block) {
                        Err(place) if random.bool() => index.insert_at(place, hash, block),
                        Err(_) => index.insert(hash, block),
                        Ok(_) => panic!("block {block} is there already"),
                    }
                    model.insert(block, hash);
                }
            }
            let probe = random.u32(0..200);
            let found = model.get(&probe).and_then(|&hash| index.find(hash, |block| block == probe));
            assert_eq!(found, model.get(&probe).map(|_| probe));
        }
        assert_eq!(index.count() as usize, model.len());
    }
}
