//! The host's image of one group's index on the device, and which of its cells the device does not know yet.
//!
//! Open addressing over cells of 16 bytes, two to a sector of 32: a block's search starts at an even cell that its hash
//! names, goes on cell by cell, and ends at the first empty one. At most half of the cells are filled. A removal shifts
//! the following cells back, so there are no tombstones; the host does it here and sends the cells that it changed, so
//! the device's table equals this image bit for bit. A cell holds 96 bits of the hash, so a lookup of something that
//! is not there answers a block with a chance of at most blocks / 2^96, for hashes that nobody can choose.
//! Invariants: walking from a cell's home to the cell meets no empty cell; a cell that the device does not know has
//! its bit in `dirty`; a word of `dirty` with a bit is in `queue`, once; a block has at most one cell. A block that
//! departed (`departed`) has one until changes are taken for the device. Nothing is allocated after creation.

use super::block::Block;
use super::hash::Key;
use super::namespace::{KeyMode, Namespace};
use crate::error::Result;
use crate::sys::prefetch;
use crate::sys::reserve::{filled, room};

/// Three words of a hash, then the block + 1; all zero if empty.
pub(super) type Cell = [u32; 4];
/// Words of a change on its way: the cell's number, then the cell.
pub(super) const CHANGE_WORDS: usize = 5;
/// Cells in one sector of device memory.
const SECTOR_CELLS: u32 = 2;
/// How far beyond its home the walk over a block's cell to the next empty one mostly ends: a line holds four cells.
const CELLS_BEYOND: usize = 4;
/// Cells for which one word of `dirty` stands.
const WORD_CELLS: u32 = 64;

/// The 128 bits under which a block is asked for on the device; four words of it, lowest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BlockHash(pub(super) [u32; 4]);

impl BlockHash {
    /// Of a block of a namespace. A key that the library chained starts from the namespace's root and is as good as
    /// random to everybody else; one of the caller's is hashed with the root.
    pub(super) fn new(root: &Key, mode: KeyMode, key: &Key) -> Self {
        let low = |key: Key| Self(bytemuck::cast([key.0[0], key.0[1]]));
        match mode {
            KeyMode::Tokens => low(*key),
            KeyMode::Keys(_) | KeyMode::Chunks(_) => {
                low(Key(bytemuck::cast(*blake3::keyed_hash(&root.to_bytes(), &key.to_bytes()).as_bytes())))
            }
        }
    }

    /// Of a findable block.
    pub(super) fn of(namespace: &Namespace, block: &Block) -> Self {
        Self::new(&namespace.root, namespace.mode, &block.key)
    }

    /// As the two numbers that callers see.
    pub(super) fn words(self) -> [u64; 2] {
        bytemuck::cast(self.0)
    }
}

/// The image.
pub(super) struct Mirror {
    cells: Vec<Cell>,
    /// By block: the first word of the hash under which it is there.
    words: Vec<u32>,
    mask: u32,
    count: u32,
    /// A bit for each cell.
    dirty: Vec<u64>,
    queue: Vec<u32>,
    dirty_cells: usize,
    /// Cells handed to the device since creation.
    sent: u64,
}

/// Cells of the table of a group with so many blocks.
pub(super) fn cell_count(blocks: u32) -> u64 {
    (u64::from(blocks) * 2).next_power_of_two().max(u64::from(WORD_CELLS))
}

impl Mirror {
    pub(super) fn new(blocks: u32) -> Result<Self> {
        let count = cell_count(blocks) as usize;
        let words = count / WORD_CELLS as usize;
        Ok(Self {
            cells: filled(count, [0; 4])?,
            words: filled(blocks as usize, 0)?,
            mask: (count - 1) as u32,
            count: 0,
            dirty: filled(words, 0)?,
            queue: room(words)?,
            dirty_cells: 0,
            sent: 0,
        })
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    fn home(&self, first_word: u32) -> u32 {
        first_word & self.mask & !(SECTOR_CELLS - 1)
    }

    /// Has fetched where a block is.
    #[inline]
    pub(super) fn fetch(&self, block: u32) {
        prefetch::prefetch(&self.words, block as usize);
    }

    /// Has fetched what `remove` of a block looks at: from its cell on to the next empty one, and whether the device
    /// knows them.
    #[inline]
    pub(super) fn fetch_around(&self, block: u32) {
        let home = self.home(self.words[block as usize]) as usize;
        prefetch::prefetch(&self.cells, home);
        prefetch::prefetch(&self.cells, home + CELLS_BEYOND);
        prefetch::prefetch(&self.dirty, home / WORD_CELLS as usize);
    }

    fn set(&mut self, at: u32, cell: Cell) {
        self.cells[at as usize] = cell;
        let (word, bit) = ((at / WORD_CELLS) as usize, 1 << (at % WORD_CELLS));
        let before = self.dirty[word];
        if before == 0 {
            self.queue.push(word as u32);
        }
        self.dirty_cells += usize::from(before & bit == 0);
        self.dirty[word] |= bit;
    }

    /// Whether this block is there.
    pub(super) fn has_any(&self, block: u32) -> bool {
        self.place(block).is_some()
    }

    /// Whether this block is there under this hash.
    pub(super) fn has(&self, hash: BlockHash, block: u32) -> bool {
        let BlockHash([a, b, c, _]) = hash;
        self.place(block).is_some_and(|at| self.cells[at as usize] == [a, b, c, block + 1])
    }

    /// The block under this hash.
    #[cfg(test)]
    pub(super) fn find(&self, hash: BlockHash) -> Option<u32> {
        let BlockHash([a, b, c, _]) = hash;
        let mut at = self.home(a);
        loop {
            match self.cells[at as usize] {
                [.., 0] => return None,
                [x, y, z, block] if [x, y, z] == [a, b, c] => return Some(block - 1),
                _ => at = (at + 1) & self.mask,
            }
        }
    }

    /// Adds a block that is not there.
    pub(super) fn insert(&mut self, hash: BlockHash, block: u32) {
        let BlockHash([a, b, c, _]) = hash;
        let mut at = self.home(a);
        while self.cells[at as usize][3] != 0 {
            at = (at + 1) & self.mask;
        }
        self.set(at, [a, b, c, block + 1]);
        self.words[block as usize] = a;
        self.count += 1;
    }

    /// The place of a block's cell.
    fn place(&self, block: u32) -> Option<u32> {
        let mut at = self.home(self.words[block as usize]);
        loop {
            match self.cells[at as usize][3] {
                0 => return None,
                there if there == block + 1 => return Some(at),
                _ => at = (at + 1) & self.mask,
            }
        }
    }

    /// What this block was found for, another one is.
    pub(super) fn replace(&mut self, from: u32, to: u32) {
        let at = self.place(from).expect("the block is in the image");
        let [a, b, c, _] = self.cells[at as usize];
        self.set(at, [a, b, c, to + 1]);
        self.words[to as usize] = a;
    }

    /// Takes a block out that is there.
    pub(super) fn remove(&mut self, block: u32) {
        let mut hole = self.place(block).expect("the block is in the image");
        let mut at = hole;
        loop {
            at = (at + 1) & self.mask;
            let cell = self.cells[at as usize];
            if cell[3] == 0 {
                break;
            }
            // The cell may move back to the hole unless its home lies after the hole.
            let distance = |from: u32| at.wrapping_sub(from) & self.mask;
            if distance(self.home(cell[0])) >= distance(hole) {
                self.set(hole, cell);
                hole = at;
            }
        }
        self.set(hole, [0; 4]);
        self.count -= 1;
    }

    /// Cells that the device does not know.
    pub(super) fn dirty_cells(&self) -> usize {
        self.dirty_cells
    }

    /// Writes changes for the device, as many as the words hold; at most `dirty_cells`.
    pub(super) fn take_changes(&mut self, words: &mut [i32]) {
        let mut changes = words.chunks_exact_mut(CHANGE_WORDS);
        while let Some(&word) = self.queue.last() {
            let bits = &mut self.dirty[word as usize];
            while *bits != 0 {
                let Some(change) = changes.next() else { return };
                let at = word * WORD_CELLS + bits.trailing_zeros();
                *bits &= *bits - 1;
                change[0] = at as i32;
                change[1..].copy_from_slice(bytemuck::cast_slice(&self.cells[at as usize]));
                self.dirty_cells -= 1;
                self.sent += 1;
            }
            self.queue.pop();
        }
    }

    /// Nobody knows what the device holds: everything goes again.
    pub(super) fn mark_all_dirty(&mut self) {
        self.queue.clear();
        self.queue.extend(0..self.dirty.len() as u32);
        self.dirty.fill(u64::MAX);
        self.dirty_cells = self.cells.len();
    }

    pub(super) fn bytes(&self) -> u64 {
        self.cells.len() as u64 * 16 + self.dirty.len() as u64 * 12 + self.words.len() as u64 * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// What the device would hold after these changes.
    fn apply(table: &mut [Cell], changes: &[i32]) {
        for change in changes.chunks_exact(CHANGE_WORDS) {
            table[change[0] as usize] = [1, 2, 3, 4].map(|word| change[word] as u32);
        }
    }

    #[test]
    fn the_image_answers_as_a_map_does_and_its_changes_make_a_copy() {
        let mut random = fastrand::Rng::with_seed(12);
        let mut mirror = Mirror::new(200).unwrap();
        let mut copy = vec![[0; 4]; mirror.cells.len()];
        let mut model: HashMap<u32, BlockHash> = HashMap::new();
        for round in 0..100_000 {
            let block = random.u32(0..200);
            match model.remove(&block) {
                // It goes, or another block is what it was.
                Some(hash) => {
                    let other = random.u32(0..200);
                    if other == block || model.contains_key(&other) {
                        mirror.remove(block);
                    } else {
                        mirror.replace(block, other);
                        model.insert(other, hash);
                    }
                }
                None => {
                    // Few distinct homes, also at the end of the table: long runs that wrap around.
                    let hash = BlockHash([random.u32(0..40) + 490, random.u32(..), random.u32(0..2), 0]);
                    mirror.insert(hash, block);
                    model.insert(block, hash);
                }
            }
            assert!(!mirror.has_any(block) || model.contains_key(&block));
            for (&block, &hash) in model.iter().take(3) {
                assert!(mirror.has(hash, block));
                assert_eq!(mirror.find(hash), Some(block));
            }
            assert_eq!(mirror.find(BlockHash([random.u32(490..530), random.u32(..), 2, 0])), None);
            if random.u8(0..8) == 0 {
                let most = random.usize(0..20).min(mirror.dirty_cells());
                let mut words = vec![0; most * CHANGE_WORDS];
                mirror.take_changes(&mut words);
                apply(&mut copy, &words);
            }
            if round % 5000 == 0 {
                let mut words = vec![0; mirror.dirty_cells() * CHANGE_WORDS];
                mirror.take_changes(&mut words);
                apply(&mut copy, &words);
                assert_eq!((mirror.dirty_cells(), &copy), (0, &mirror.cells));
            }
        }
        assert_eq!(mirror.count() as usize, model.len());
        mirror.mark_all_dirty();
        let mut words = vec![0; mirror.dirty_cells() * CHANGE_WORDS];
        mirror.take_changes(&mut words);
        let mut fresh = vec![[0; 4]; copy.len()];
        apply(&mut fresh, &words);
        assert_eq!(fresh, mirror.cells);
    }
}
