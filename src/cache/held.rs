//! What a sequence must still hold where it goes back to an earlier token or is forked there, in groups that let go.
//!
//! Full groups keep everything, and forks share it by trunks. Of a window the child holds the blocks that its next
//! token reaches, with one more reference each; of a state the one that it starts from, which nobody writes while two
//! hold it, so that a fork copies none; of another input all blocks. Invariant: a row that went back, and a child, hold
//! what their next token needs, or the operation was refused and changed nothing.

use super::block::Published;
use super::group::Reach;
use super::hash::Key;
use super::sequence::{LetGo, Sequence};
use super::state::State;
use super::step::Refusal;
use super::store::Store;
use crate::error::Status;

impl Store {
    /// First token before `at` that a sequence needs whose next one that is, and of which TRIM spoke up to `trimmed`.
    pub(super) fn needed_from(&self, at: u64, trimmed: u64) -> u64 {
        match self.reach.has_holes() {
            true => self.reach.first_needed(at).max(trimmed).min(at),
            false => 0,
        }
    }

    /// Whether a row whose first `holes` cells are empty, and whose windows hold nothing before token `edited`, as an
    /// EDIT moved them, holds a token and what follows it. Only its first block can be filled from its middle on.
    pub(super) fn is_held_from(&self, token: u64, holes: usize, edited: u64) -> bool {
        let cell = (token / u64::from(self.block_tokens)) as usize;
        cell > holes || cell == holes && !(self.reach.is_window() && token < edited)
    }
}

impl Sequence {
    /// Notes that this step published what a group holds of another input.
    pub(super) fn note_input(&mut self, step: u64, group: usize, published: Published) {
        if published == Published::Stored {
            let before = if self.inputs.0 == step { self.inputs.1 } else { 0 };
            self.inputs = (step, before | 1 << group);
        }
    }
}

impl State {
    /// Checks that every group still has what a token needs that follows the first `tokens` of a row.
    pub(super) fn check_kept(&self, row: usize, tokens: u64) -> Result<(), Refusal> {
        if self.is_plain {
            return Ok(());
        }
        let Sequence { trimmed, edited, .. } = self.holders.sequences[row];
        for (group, store) in self.stores.iter().enumerate() {
            let is_kept = match store.reach {
                Reach::State { .. } => self.check_kept_state(group, row, tokens)?,
                Reach::Cross { .. } => true,
                _ => {
                    let holes = self.holders.rows[group].first(row);
                    store.is_held_from(store.needed_from(tokens, trimmed), holes, edited.min(tokens))
                }
            };
            if !is_kept {
                return Err(Refusal { status: Status::WrongState, missing: 0, group: group as u32 });
            }
        }
        Ok(())
    }

    /// What follows the first `first` cells of a row is a child of.
    pub(super) fn let_go_before(&self, group: usize, row: usize, first: usize) -> LetGo {
        let (store, rows) = (&self.stores[group], &self.holders.rows[group]);
        if first == rows.first(row) {
            return rows.before(row);
        }
        let last = rows.row(row)[first - 1] as u32;
        let is_named = first as u64 * u64::from(store.block_tokens) <= self.holders.sequences[row].committed;
        let key = store.block(last).name().filter(|_| is_named).unwrap_or(Key::default());
        LetGo { serial: store.origin(last).serial, key }
    }

    /// Gives a child of `length` tokens what it holds by itself in other groups than full ones. `check_kept` found it.
    pub(super) fn share_held(&mut self, parent: usize, child: usize, length: u64) {
        let trimmed = self.holders.sequences[parent].trimmed;
        for group in 0..self.stores.len() {
            let (store, rows) = (&self.stores[group], &self.holders.rows[group]);
            let each = u64::from(store.block_tokens);
            let cells = match store.reach {
                Reach::All => continue,
                Reach::State { .. } => {
                    self.share_state(group, parent, child, length);
                    continue;
                }
                Reach::Cross { .. } => 0..rows.count(parent),
                _ => {
                    let first = (store.needed_from(length, trimmed) / each) as usize;
                    first.max(rows.first(parent))..length.div_ceil(each) as usize
                }
            };
            let before = match cells.start {
                0 => LetGo::default(),
                first => self.let_go_before(group, parent, first),
            };
            let (store, rows) = (&mut self.stores[group], &mut self.holders.rows[group]);
            rows.copy_part(parent, child, cells, before);
            rows.held(child).iter().for_each(|&block| store.hold_twice(block as u32));
        }
    }
}
