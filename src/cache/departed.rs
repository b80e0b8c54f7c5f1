//! Blocks that are findable no more while the tables of their group still list them.
//!
//! The cells of a block lie scattered over the index, the first children and the image of the device's index: to take
//! them out is a wait for memory each, which is most of what an eviction would cost. So a block that nobody holds only
//! departs. Its cells go when it is handed out again, when another block is published under its key, and those that
//! the device would see before changes go there; in each case of many blocks at once, asked for ahead. Nobody finds
//! it meanwhile: a cell is a hint at a block, and the block says that it is not findable.
//! Part of `store`. Invariants: a departed block is free or out of use and keeps key, namespace and ancestry; each
//! findable or departed block has one cell in the index, under its key, where no other has one, and in the image.

use super::Store;
use super::acquire::{append, unlink};
use super::victims::{FETCH_LEAST, TOGETHER, for_each_row};
use crate::cache::block::{DEPARTED, FINDABLE, NAMESPACE_MASK};
use crate::cache::steps::NONE;
use crate::error::{Error, Result};
use crate::sys::prefetch;

impl Store {
    /// Blocks that can be found.
    pub(in crate::cache) fn findable_count(&self) -> u32 {
        self.index.count() - self.departed
    }

    pub(in crate::cache) fn has_departed(&self) -> bool {
        self.departed > 0
    }

    /// A block is not findable any more; where its siblings are listed, it is not by now.
    pub(super) fn depart(&mut self, index: u32) {
        let block = &mut self.blocks[index as usize];
        block.namespace_and_flags = block.namespace_and_flags & !FINDABLE | DEPARTED;
        self.departed += 1;
        if self.mirror.is_some() {
            append(&mut self.blocks, index, &mut self.departed_list);
        }
    }

    /// Takes a block that is about to depart out of the list of its parent's children if it is not alone there.
    pub(super) fn leave_siblings(&mut self, index: u32) {
        if self.children.as_ref().is_some_and(|children| children.has_siblings(index)) {
            self.leave_children(index);
        }
    }

    /// Has fetched what that reads.
    #[inline]
    pub(super) fn fetch_siblings(&self, index: u32) {
        if let Some(children) = self.children.as_ref().filter(|children| children.has_siblings(index)) {
            children.prepare_to_remove(index, &self.parent_of(index));
        }
    }

    fn leave_children(&mut self, index: u32) {
        let parent = self.parent_of(index);
        if let Some(children) = self.children.as_mut().filter(|children| children.has(index)) {
            children.remove(index, &parent);
        }
    }

    /// Under what the index lists a block that is findable or departed.
    #[inline]
    pub(super) fn key_hash(&self, index: u32) -> u32 {
        let block = self.block(index);
        self.index.hash(&block.key, block.namespace())
    }

    /// Has fetched what `drop_cells` reads of a block, as far as its number and the hash of its key tell.
    #[inline]
    pub(super) fn fetch_cells(&self, index: u32, hash: u32) {
        self.index.fetch_around(hash);
        if let Some(children) = &self.children {
            children.fetch(index);
            self.fetch_ancestry(index);
        }
        if let Some(mirror) = &self.mirror {
            mirror.fetch(index);
        }
    }

    /// The same of what that leads to.
    #[inline]
    pub(super) fn fetch_cells_further(&self, index: u32) {
        if let Some(mirror) = &self.mirror {
            mirror.fetch_around(index);
        }
        if let Some(children) = self.children.as_ref().filter(|children| children.has(index)) {
            children.prepare_to_remove(index, &self.parent_of(index));
        }
    }

    /// Takes a block out of all tables if it has departed.
    pub(super) fn take_out(&mut self, index: u32) {
        if self.block(index).is_departed() {
            self.take_out_under(&[index], &[self.key_hash(index)]);
        }
    }

    /// Takes those of at most [`TOGETHER`] blocks out of all tables that have departed.
    pub(super) fn take_out_all(&mut self, blocks: &[u32]) {
        if self.departed == 0 {
            return;
        }
        let fetches = blocks.len() >= FETCH_LEAST && self.is_large;
        if fetches {
            for_each_row(blocks, |row| prefetch::prefetch_all(&self.blocks, row));
        }
        let (mut departed, mut hashes, mut count) = ([0; TOGETHER], [0; TOGETHER], 0);
        for &index in blocks.iter().filter(|&&index| self.block(index).is_departed()) {
            (departed[count], hashes[count]) = (index, self.key_hash(index));
            if fetches {
                self.fetch_cells(index, hashes[count]);
            }
            count += 1;
        }
        self.take_out_under(&departed[..count], &hashes[..count]);
    }

    /// Takes departed blocks out of all tables, where the index lists them under these hashes.
    fn take_out_under(&mut self, blocks: &[u32], hashes: &[u32]) {
        if blocks.len() >= FETCH_LEAST && self.is_large {
            blocks.iter().for_each(|&index| self.fetch_cells_further(index));
        }
        for (&index, &hash) in blocks.iter().zip(hashes) {
            self.drop_cells(index, hash);
            if self.mirror.is_some() {
                unlink(&mut self.blocks, index, &mut self.departed_list);
            }
            self.blocks[index as usize].namespace_and_flags &= !(DEPARTED | NAMESPACE_MASK);
        }
        self.departed -= blocks.len() as u32;
    }

    /// Takes the cells of a block out of all tables; the index lists it under this hash.
    #[inline]
    pub(super) fn drop_cells(&mut self, index: u32, hash: u32) {
        self.index.remove(hash, index);
        if let Some(mirror) = &mut self.mirror {
            mirror.remove(index);
        }
        if self.children.is_some() {
            self.leave_children(index);
        }
    }

    /// Takes the blocks that departed last out of all tables, where they stand in a list; answers how many.
    pub(in crate::cache) fn take_out_latest(&mut self) -> usize {
        let (mut blocks, mut count, mut at) = ([0; TOGETHER], 0, self.departed_list.tail);
        while at != NONE && count < TOGETHER {
            (blocks[count], at) = (at, self.block(at).prev);
            count += 1;
        }
        self.take_out_all(&blocks[..count]);
        count
    }

    /// For the cache's `validate`.
    pub(in crate::cache) fn validate_departed(&self) -> Result<()> {
        let mut departed = 0;
        for (index, block) in (0..).zip(&self.blocks) {
            if block.is_departed() && (block.is_findable() || block.refs > 0 || block.is_waiting()) {
                return Err(Error::internal(format!("block {index} departed and is in use")));
            }
            if !block.is_departed() && !block.is_findable() {
                continue;
            }
            departed += u32::from(block.is_departed());
            let is_it = |found: u32| {
                self.block(found).key == block.key && self.block(found).namespace() == block.namespace()
            };
            if self.index.find(self.key_hash(index), is_it) != Some(index) {
                return Err(Error::internal(format!(
                    "block {index} is not in the index, or another under its key"
                )));
            }
            if self.mirror.as_ref().is_some_and(|mirror| !mirror.has_any(index)) {
                return Err(Error::internal(format!(
                    "block {index} is not in the image of the device's index"
                )));
            }
        }
        let (mut listed, mut at) = (0, self.departed_list.head);
        while at != NONE && listed <= departed {
            if !self.block(at).is_departed() {
                return Err(Error::internal(format!("block {at} is in the list of those that departed")));
            }
            (listed, at) = (listed + 1, self.block(at).next);
        }
        let is_right = |mirror: &super::Mirror| listed == departed && mirror.count() == self.index.count();
        match departed == self.departed && self.mirror.as_ref().is_none_or(is_right) {
            true => Ok(()),
            false => Err(Error::internal("counts of blocks that departed are wrong")),
        }
    }
}
