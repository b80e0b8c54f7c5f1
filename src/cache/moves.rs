//! Moves: what is held above the limit of a group goes below it, so that a shrink need not wait for its holders.
//!
//! A step that begins its tables, or its plan, moves some blocks first: each becomes a listed copy of a whole block,
//! the rows that show it show the new slot from then on, and the old slot waits for the step like any block that was
//! let go. The cells travel as every other change of the tables, at the addresses that captured graphs read; work of
//! earlier steps is enqueued by then and reads the old slot, which nothing writes before the step is over. A step moves
//! a bounded number of blocks and bytes and looks at a bounded number of cells; where it stopped, the next one goes on.
//!
//! Leases that wait to be admitted follow as rows do. What stays: a block under a lease whose block ids were told, as
//! their reader has nothing that tells it of a new place, and a block some holder of which is not found where the
//! others have it. Blocks go as far as there is room below beside what is promised; what is cached there makes room. A
//! reset that is under way walks over the slots: nothing moves meanwhile. Invariant: all references to a moved block
//! are found and changed, or none is.

use super::config::GROUPS_MAX;
use super::config::Geometry;
use super::copies::TokenCopy;
use super::group::Reach;
use super::retention::Pinner;
use super::sequence::{Holders, Rows};
use super::state::State;
use super::store::Store;
use crate::error::Result;
use crate::sys::reserve::{filled, room};

/// Most blocks of a group that a step moves.
pub(super) const MOVES_MOST: usize = 64;
/// Most bytes that a step moves, but one block at least: a fraction of a millisecond on a GPU.
const BYTES_MOST: u64 = 128 << 20;
/// Most cells of a group that a step looks at: some tens of microseconds. The last block looked at is looked for in all
/// rows, so that with more rows than this a step takes one walk over them.
const LOOK: usize = 1 << 17;
/// Most blocks among which a step looks for pinned ones that nobody holds.
const PINNED_LOOK: u32 = 1024;

/// Where looking for blocks of a group goes on.
#[derive(Clone, Copy, Default)]
struct Cursor {
    /// Rows of sequences, and behind them those of leases.
    holder: usize,
    cell: usize,
    pinned: u32,
    /// The slot that was taken last.
    near: Option<u32>,
}

/// What became of a block.
enum Fate {
    Moved,
    Stays,
    /// There is no room below.
    Full,
}

/// How far moving is.
pub(super) struct Mover {
    cursors: [Cursor; GROUPS_MAX],
    /// By group: bytes of a block.
    block_bytes: Vec<u64>,
    /// By trunk: the look in which it was counted last.
    counted: Vec<u64>,
    /// Holders and cells that show the block that is moved; room for all holders.
    shown: Vec<(u32, u32)>,
    look: u64,
    /// The latest step that moved blocks or could have.
    step: u64,
    /// Resets that are under way.
    pub(super) resets: u32,
}

impl Mover {
    pub(super) fn new(geometry: &Geometry, trunks: usize, holders: usize) -> Result<Self> {
        Ok(Self {
            cursors: [Cursor::default(); GROUPS_MAX],
            block_bytes: geometry.groups.iter().map(|group| group.block_bytes.max(1)).collect(),
            counted: filled(trunks, 0)?,
            shown: room(holders)?,
            look: 0,
            step: 0,
            resets: 0,
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.counted.len() + self.shown.capacity()) as u64 * 8
    }
}

/// The rows of a group in which a holder's stands, and which of them it is.
fn shown_by(holders: &Holders, group: usize, holder: usize) -> (&Rows, usize) {
    match holder.checked_sub(holders.sequences.len()) {
        None => (&holders.rows[group], holder),
        Some(lease) => (&holders.lease_rows[group], lease),
    }
}

/// Cells in which a row may show a block that another row shows at `at`.
fn cells_of(store: &Store, at: usize) -> std::ops::Range<usize> {
    if matches!(store.reach, Reach::State { .. }) { 0..2 } else { at..at + 1 }
}

/// The first of these cells that shows the block.
fn cell_of(rows: &Rows, row: usize, mut cells: std::ops::Range<usize>, block: u32) -> Option<usize> {
    cells.find(|&at| at < rows.count(row) && rows.cell(row, at) == block as i32)
}

impl State {
    /// Whether the next tables or plan of the open step look for blocks of a group to move.
    pub(super) fn will_move(&self, group: usize) -> bool {
        let is_begun = self.batch.is_told || self.mover.step == self.batch.step;
        !self.is_worker && !is_begun && self.mover.resets == 0 && self.stores[group].stray_count() > 0
    }

    /// How many blocks of a group a step may move.
    pub(super) fn most_moves(&self, group: usize) -> usize {
        let blocks = BYTES_MOST / self.mover.block_bytes[group];
        (blocks.clamp(1, MOVES_MOST as u64) as usize).min(self.copies.room(group))
    }

    /// Moves blocks of every group that has some above its limit, before the open step's tables are made for the first
    /// time. Answers whether it moved any.
    pub(super) fn move_blocks(&mut self) -> bool {
        let mut bytes = BYTES_MOST;
        for group in 0..self.stores.len() {
            let each = self.mover.block_bytes[group];
            // A block that is larger than what a step moves is moved by a step that has moved nothing.
            let is_first = bytes == BYTES_MOST;
            let most =
                self.most_moves(group).min((bytes / each) as usize + usize::from(is_first && each > bytes));
            if most > 0 && self.will_move(group) {
                let (left, look) = self.move_held(group, most);
                let left = self.move_pinned(group, left, look);
                bytes = bytes.saturating_sub((most - left) as u64 * each);
            }
        }
        if self.mover.resets == 0 {
            self.mover.step = self.batch.step;
        }
        bytes < BYTES_MOST
    }

    /// Moves up to `most` blocks that rows or leases show; answers how many more there may be, and how many cells may
    /// still be looked at.
    fn move_held(&mut self, group: usize, most: usize) -> (usize, usize) {
        let (mut left, mut look) = (most, LOOK);
        let Cursor { mut holder, mut cell, .. } = self.mover.cursors[group];
        let sequences = self.holders.sequences.len();
        let holders = sequences + self.holders.leases.len();
        let mut holders_left = holders + 1;
        while left > 0 && look > 0 && holders_left > 0 {
            let limit = self.stores[group].limit() as i32;
            let (rows, row) = shown_by(&self.holders, group, holder);
            let stays = holder >= sequences && self.holders.leases[row].is_told;
            let count = if stays { 0 } else { rows.count(row) };
            let from = cell.max(rows.first(row)).min(count);
            let part = &rows.row(row)[from..count.min(from + look)];
            let found = part.iter().position(|&block| block >= limit);
            look -= found.map_or(part.len().max(1), |at| at + 1).min(look);
            let Some(at) = found.map(|at| from + at) else {
                // All of the row was seen, or as much as a step looks at.
                let is_over = from + part.len() == count;
                (holder, cell) = if is_over { (holder + 1, 0) } else { (holder, from + part.len()) };
                holders_left -= usize::from(is_over);
                holder %= holders;
                continue;
            };
            match self.move_one(group, holder, at, &mut look) {
                Fate::Moved => left -= 1,
                Fate::Stays => {}
                Fate::Full => break,
            }
            cell = at + 1;
        }
        let cursor = &mut self.mover.cursors[group];
        (cursor.holder, cursor.cell) = (holder, cell);
        (left, look)
    }

    /// Moves the block that a row or lease shows in a cell.
    fn move_one(&mut self, group: usize, holder: usize, at: usize, look: &mut usize) -> Fate {
        let sequences = self.holders.sequences.len();
        let (rows, row) = shown_by(&self.holders, group, holder);
        let block = rows.cell(row, at) as u32;
        if self.stores[group].is_copy_target(block) {
            // It is whole when the copies are made, and moves with a later step.
            return Fate::Stays;
        }
        let is_alone = self.stores[group].block(block).refs == 1
            && (holder >= sequences || at >= self.own_from(row, group));
        if is_alone {
            self.mover.shown.clear();
            self.mover.shown.push((holder as u32, at as u32));
        } else if !self.finds_all(group, at, block, look) {
            return Fate::Stays;
        }
        if self.stores[group].available() == 0 {
            return Fate::Full;
        }
        let whose = if is_alone && holder < sequences { row as i32 } else { -1 };
        let new = self.take_place(group, block, whose, look) as i32;
        for &(holder, at) in &self.mover.shown {
            let (holder, at) = (holder as usize, at as usize);
            match holder.checked_sub(sequences) {
                None => {
                    self.holders.rows[group].put(holder, at, new);
                    self.batch.mark_cells(group, holder, at, at + 1);
                }
                Some(lease) => self.holders.lease_rows[group].put(lease, at, new),
            }
        }
        Fate::Moved
    }

    /// Notes who shows a block. Answers whether every reference to it is one of a row or a lease that shows it in this
    /// cell, and none of them was told where it lies.
    fn finds_all(&mut self, group: usize, at: usize, block: u32, look: &mut usize) -> bool {
        let cells = cells_of(&self.stores[group], at);
        let (sequences, leases) = (self.holders.sequences.len(), self.holders.leases.len());
        self.mover.look += 1;
        self.mover.shown.clear();
        let mut found = 0;
        *look -= (sequences + leases).min(*look);
        for row in 0..sequences {
            let Some(at) = cell_of(&self.holders.rows[group], row, cells.clone(), block) else { continue };
            self.mover.shown.push((row as u32, at as u32));
            if at >= self.own_from(row, group) {
                found += 1;
                continue;
            }
            let Some(trunk) = self.trunk_of(row, group, at) else { return false };
            // A trunk holds its blocks once for all of its rows.
            let counted = std::mem::replace(&mut self.mover.counted[trunk], self.mover.look);
            found += u32::from(counted != self.mover.look);
        }
        for (lease, holder) in self.holders.leases.iter().enumerate() {
            if let Some(at) = cell_of(&self.holders.lease_rows[group], lease, cells.clone(), block) {
                if holder.is_told {
                    return false;
                }
                self.mover.shown.push(((sequences + lease) as u32, at as u32));
                found += 1;
            }
        }
        found == self.stores[group].block(block).refs
    }

    /// Gives a held block a place below the limit, lists the copy and tells everything but rows; answers the place.
    fn take_place(&mut self, group: usize, block: u32, row: i32, look: &mut usize) -> u32 {
        let store = &mut self.stores[group];
        let new = store.take_slot(self.mover.cursors[group].near, &mut self.shared);
        self.mover.cursors[group].near = Some(new);
        let each = store.block_tokens;
        let is_named = store.retention.has_pins(Pinner::Name, block);
        let slot = |block: u32| i64::from(block) * i64::from(each);
        store.forget_sharing(block, self.shared.steps.completed());
        let copy = TokenCopy {
            group: group as u32,
            row,
            source_slot: slot(block),
            target_slot: slot(new),
            tokens: each,
            shift: 0,
        };
        self.list_run(copy, None);
        self.stores[group].relocate(block, new, &mut self.shared);
        if is_named {
            *look -= self.prefixes.replace(group, block, new).min(*look);
        }
        new
    }

    /// Moves up to `most` pinned blocks that nobody holds; answers how many more there may be.
    fn move_pinned(&mut self, group: usize, most: usize, mut look: usize) -> usize {
        let mut left = most;
        for _ in 0..PINNED_LOOK {
            let store = &mut self.stores[group];
            if left == 0 || look == 0 || store.retention.pinned_inactive() == 0 || store.available() == 0 {
                return left;
            }
            let cursor = &mut self.mover.cursors[group];
            let block = cursor.pinned.max(store.limit());
            if block >= store.block_count() {
                cursor.pinned = 0;
                return left;
            }
            cursor.pinned = block + 1;
            if store.is_inactive(block) {
                // Held for the time being, so that it waits at its new place until the copy is over.
                store.acquire(block, &mut self.shared);
                let new = self.take_place(group, block, -1, &mut look);
                self.stores[group].release(new, self.batch.step, &mut self.shared);
                left -= 1;
            }
        }
        left
    }
}

#[cfg(test)]
#[path = "moves_tests.rs"]
mod tests;
