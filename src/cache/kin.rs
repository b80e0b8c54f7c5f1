//! Who was forked from whom.
//!
//! A child knows the sequence that it was forked from as long as that one runs; a sequence knows its children. Links
//! are rows plus one, 0 is none. Invariant: a child stands once in the list of its parent and in no other.

use super::sequence::Holders;
use crate::error::{Error, Result};

/// What a row has in common with others.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kin {
    /// The shared blocks at its beginning: a trunk's number, 0 if all of its blocks are its own.
    pub(super) tip: u32,
    /// Latest step in which a former holder of what is its own now was scheduled.
    pub(super) release_step: u64,
    parent: u32,
    first_child: u32,
    next: u32,
    prev: u32,
}

impl Holders {
    /// The row of the sequence that this one was forked from, while that one runs.
    pub(super) fn parent(&self, row: usize) -> Option<usize> {
        (self.kin[row].parent as usize).checked_sub(1)
    }

    pub(super) fn first_child(&self, row: usize) -> Option<usize> {
        (self.kin[row].first_child as usize).checked_sub(1)
    }

    pub(super) fn next_sibling(&self, row: usize) -> Option<usize> {
        (self.kin[row].next as usize).checked_sub(1)
    }

    pub(super) fn link_child(&mut self, parent: usize, child: usize) {
        let first = std::mem::replace(&mut self.kin[parent].first_child, child as u32 + 1);
        let kin = &mut self.kin[child];
        (kin.parent, kin.next, kin.prev) = (parent as u32 + 1, first, 0);
        if first != 0 {
            self.kin[first as usize - 1].prev = child as u32 + 1;
        }
    }

    pub(super) fn unlink_child(&mut self, child: usize) {
        let Kin { parent, next, prev, .. } = self.kin[child];
        if parent == 0 {
            return;
        }
        match prev {
            0 => self.kin[parent as usize - 1].first_child = next,
            prev => self.kin[prev as usize - 1].next = next,
        }
        if next != 0 {
            self.kin[next as usize - 1].prev = prev;
        }
        let kin = &mut self.kin[child];
        (kin.parent, kin.next, kin.prev) = (0, 0, 0);
    }

    /// A sequence ends: its children have no parent any more, and its parent has one child less.
    pub(super) fn leave_kin(&mut self, row: usize) {
        self.unlink_child(row);
        while let Some(child) = self.first_child(row) {
            self.unlink_child(child);
        }
    }

    /// The children of one sequence become another's.
    pub(super) fn move_children(&mut self, from: usize, to: usize) {
        while let Some(child) = self.first_child(from) {
            self.unlink_child(child);
            self.link_child(to, child);
        }
    }

    /// The sequence after `row` in a walk over everything that was forked from `root`, leaving out what was forked from
    /// a row that `skip` names. The walk starts at `root` itself.
    pub(super) fn next_descendant(&self, root: usize, row: usize, skip: usize) -> Option<usize> {
        if let Some(child) = self.first_child(row).filter(|_| row != skip) {
            return Some(child);
        }
        let mut at = row;
        while at != root {
            if let Some(next) = self.next_sibling(at) {
                return Some(next);
            }
            at = self.parent(at)?;
        }
        None
    }

    pub(super) fn validate_kin(&self) -> Result<()> {
        let mut listed = 0;
        for (row, sequence) in self.sequences.iter().enumerate() {
            let is_live = |row: usize| self.sequences[row].holder.is_live;
            let kin = self.kin[row];
            if !sequence.holder.is_live && (kin.parent, kin.first_child, kin.tip) != (0, 0, 0) {
                return Err(Error::internal(format!("the free row {row} has kin")));
            }
            let (mut child, mut seen) = (self.first_child(row), 0);
            while let Some(at) = child {
                seen += 1;
                if self.parent(at) != Some(row) || !is_live(at) || seen > self.sequences.len() {
                    return Err(Error::internal(format!("the children of row {row} are not its own")));
                }
                child = self.next_sibling(at);
            }
            listed += seen;
        }
        match listed == self.kin.iter().filter(|kin| kin.parent != 0).count() {
            true => Ok(()),
            false => Err(Error::internal("a child stands in no list, or in two")),
        }
    }
}
