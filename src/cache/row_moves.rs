//! Rows of one group that become like another: what a fork copies of its parent's, and what an acceptance hands over.
//!
//! What it does not: count references; the caller holds and lets go. Part of `sequence`, whose invariants hold here
//! too.

use std::ops::Range;

use super::{LetGo, Rows};

impl Rows {
    /// A row that holds nothing shows some cells of another, with holes before them.
    pub(in crate::cache) fn copy_part(&mut self, from: usize, to: usize, cells: Range<usize>, before: LetGo) {
        self.truncate(to, 0);
        let (source, target) = (from * self.row_cells, to * self.row_cells);
        self.cells.copy_within(source + cells.start..source + cells.end, target + cells.start);
        self.open_with_holes(to, cells.start, cells.end);
        if cells.start > 0 {
            self.before[to] = before;
        }
    }

    /// A row becomes what another is, which is left with nothing. What the row held was let go.
    pub(in crate::cache) fn take_row(&mut self, from: usize, to: usize) {
        self.truncate(to, 0);
        let (first, count) = (from * self.row_cells, self.shown(from));
        self.cells.copy_within(first..first + count, to * self.row_cells);
        self.counts[to] = std::mem::take(&mut self.counts[from]);
        self.firsts[to] = std::mem::take(&mut self.firsts[from]);
        if !self.before.is_empty() {
            self.before[to] = self.before[from];
        }
        if !self.start_tokens.is_empty() {
            self.start_tokens[to] = self.start_tokens[from];
        }
    }

    /// A row shows its first `first` cells as holes and what stands in the others; the caller has changed both.
    pub(in crate::cache) fn set_holes(&mut self, row: usize, first: usize) {
        let was = self.first(row);
        self.cells[row * self.row_cells..][..first].fill(self.null_block);
        self.firsts[row] = first as u32;
        self.holes = self.holes + first as u64 - was as u64;
    }
}
