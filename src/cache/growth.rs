//! How rows grow and let go in a cache that has other groups than full ones.
//!
//! What it does: counts the blocks that ADMIT and APPEND need in each kind of group, lets go of what a window has left
//! behind, takes the new ones; TRIM; publishes what a link of the chain completes. What it does not: states, which are
//! in `snapshots`. Invariant: a token that the open step computes never loses a block that it reaches, and a block
//! that a step in flight may read waits for it like any other. Caches of full groups alone never come here.

use super::block::{Publication, Published, ROOT_SERIAL};
use super::group::Reach;
use super::hash::{Extras, Key};
use super::hybrid::input_of;
use super::lookup::Extra;
use super::sequence::{Holder, LetGo, Rows};
use super::state::State;
use super::step::{OpOutcome, OpResult, Refusal, Target};
use super::store::Store;
use crate::error::Status;

/// Whose row grows.
#[derive(Clone, Copy)]
pub(super) enum Grower {
    /// A lease that becomes a sequence.
    Lease(usize),
    /// A running sequence.
    Row(usize),
}

/// What ADMIT or APPEND asks of every group.
#[derive(Clone, Copy)]
pub(super) struct Growth {
    /// First token that the open step computes for the sequence.
    pub(super) first: u64,
    /// Tokens before the operation.
    pub(super) length: u64,
    pub(super) tokens: u64,
    pub(super) lookahead: u64,
}

impl Growth {
    /// Cells of a row of a group by token, the blocks in them, and how many of the first are out of reach.
    fn cells(&self, store: &Store) -> (usize, usize) {
        let each = u64::from(store.block_tokens);
        let end = self.length + self.tokens + store.reach.reserve(self.lookahead);
        (end.div_ceil(each) as usize, (store.reach.first_needed(self.first) / each) as usize)
    }
}

/// Identity of the content that ends at token `end`, as the group knows it whose ancestors are never let go.
pub(super) fn anchor_serial(
    anchor: Option<usize>,
    stores: &[Store],
    rows: &[Rows],
    row: usize,
    end: u64,
) -> u64 {
    anchor.map_or(ROOT_SERIAL, |anchor| {
        let position = end / u64::from(stores[anchor].block_tokens) - 1;
        stores[anchor].origin(rows[anchor].cell(row, position as usize) as u32).serial
    })
}

impl State {
    /// First token that the open step computes for a sequence, if it computes any.
    pub(super) fn computed_from(&self, row: usize) -> Option<u64> {
        let sequence = &self.holders.sequences[row];
        let is_in_batch = sequence.last_step == self.batch.step && self.batch.step > 0;
        let entry = is_in_batch.then(|| self.batch.entries[sequence.batch_position as usize]);
        entry.filter(|entry| entry.count > 0).map(|entry| entry.first)
    }

    /// Checks that every group can hold what is asked; answers how many blocks are new.
    pub(super) fn check_growth(&self, who: Grower, growth: &Growth) -> Result<u32, Refusal> {
        let most = growth.length.checked_add(growth.tokens).and_then(|end| end.checked_add(growth.lookahead));
        if most.is_none_or(|tokens| tokens > self.max_sequence_tokens) {
            return Err(Status::InvalidArgument.into());
        }
        let mut added = 0;
        for (group, store) in self.stores.iter().enumerate() {
            let (rows, row, last_step) = match who {
                Grower::Lease(lease) => (&self.holders.lease_rows[group], lease, 0),
                Grower::Row(row) => (&self.holders.rows[group], row, self.holders.sequences[row].last_step),
            };
            let (new, returned) = match store.reach {
                Reach::State { .. } => self.check_states(who, group, growth)?,
                Reach::Cross { .. } => ((rows.row_cells() - rows.count(row)) as u32, 0),
                _ => {
                    let (cells, first) = growth.cells(store);
                    let completed = self.shared.steps.completed();
                    let left = rows.row(row).get(rows.first(row)..first.min(rows.count(row)));
                    let returns = |&&block: &&i32| store.returns_at_once(block as u32, last_step, completed);
                    let returned = left.unwrap_or(&[]).iter().filter(returns).count();
                    (cells.saturating_sub(rows.count(row)) as u32, returned as u32)
                }
            };
            let available = store.available() + returned;
            if new > available {
                let missing = new - available;
                return Err(Refusal { status: Status::OutOfBlocks, missing, group: group as u32 });
            }
            added += new;
        }
        Ok(added)
    }

    /// Lets go of what is out of reach and takes the blocks that `check_growth` found room for.
    pub(super) fn grow_mixed(&mut self, row: usize, growth: &Growth) {
        let tenant = self.shared.namespaces.get(self.holders.sequences[row].holder.namespace).tenant;
        for group in 0..self.stores.len() {
            let store = &self.stores[group];
            let held = self.holders.rows[group].count(row);
            let (cells, first) = match store.reach {
                Reach::State { .. } => {
                    self.advance_states(group, row, growth, tenant);
                    continue;
                }
                Reach::Cross { .. } => (self.holders.rows[group].row_cells(), 0),
                _ => growth.cells(store),
            };
            self.let_go(group, row, first.min(held));
            let (store, rows) = (&mut self.stores[group], &mut self.holders.rows[group]);
            for _ in held..cells {
                let block = store.allocate(tenant, &mut self.shared);
                rows.push(row, block);
            }
            self.batch.used_slots += cells.saturating_sub(held) as u64 * store.slots();
            self.batch.mark_cells(group, row, held, cells);
        }
    }

    /// The first `first` cells of a row show the null block from now on.
    fn let_go(&mut self, group: usize, row: usize, first: usize) {
        let (store, rows) = (&mut self.stores[group], &mut self.holders.rows[group]);
        let was = rows.first(row);
        if first <= was {
            return;
        }
        let sequence = &self.holders.sequences[row];
        let last = rows.row(row)[first - 1] as u32;
        let is_named = first as u64 * u64::from(store.block_tokens) <= sequence.committed;
        let key = if is_named { store.block(last).key } else { Key::default() };
        let before = LetGo { serial: store.origin(last).serial, key };
        for &block in &rows.row(row)[was..first] {
            store.release(block as u32, sequence.last_step, &mut self.shared);
        }
        rows.note_let_go(row, first, before);
        self.batch.used_slots -= (first - was) as u64 * store.slots();
        self.batch.mark_cells(group, row, was, first);
    }

    /// Lets go of the blocks that lie wholly before `offset` in every group that can do without them.
    pub(super) fn trim(&mut self, target: Target, offset: u64) -> OpOutcome {
        let row = self.find_ready(target)?;
        if offset > self.holders.sequences[row].length {
            return Err(Status::InvalidArgument.into());
        }
        if self.stores.iter().all(|store| !store.reach.has_holes()) {
            return Err(Status::Unsupported.into());
        }
        // What the open step computes is written, and reads at least itself.
        if self.computed_from(row).is_some_and(|first| offset > first) {
            return Err(Status::WrongState.into());
        }
        for group in 0..self.stores.len() {
            let store = &self.stores[group];
            if store.reach.has_holes() {
                let first = (offset / u64::from(store.block_tokens)) as usize;
                self.let_go(group, row, first.min(self.holders.rows[group].count(row)));
            }
        }
        let sequence = self.holders.sequence_id(row).0;
        Ok(OpResult { row: row as i32, sequence, ..OpResult::DONE })
    }

    /// A link of the chain is complete: publishes the blocks and states that end with it.
    pub(super) fn complete_link_mixed(&mut self, row: usize, link: u64, key: Key, has_tokens: bool) -> u32 {
        let sequence = &mut self.holders.sequences[row];
        let parent_link_key = std::mem::replace(&mut sequence.holder.key, key);
        let Holder { namespace, no_store, extras, .. } = sequence.holder;
        if no_store {
            return 0;
        }
        let end = (link + 1) * u64::from(self.link_tokens);
        let mut committed = 0;
        // Chains first: their blocks prove the others.
        let groups = self.stores.len();
        for turn in 0..2 * groups {
            let (is_prefix, group) = (turn < groups, turn % groups);
            let store = &self.stores[group];
            if store.reach.is_prefix() != is_prefix {
                continue;
            }
            if matches!(store.reach, Reach::Cross { .. }) {
                if link == 0 && !has_tokens {
                    committed += self.publish_cross(row, group, key, Extras::NONE, false);
                }
                continue;
            }
            if !end.is_multiple_of(u64::from(store.block_tokens)) {
                continue;
            }
            let position = (end / u64::from(store.block_tokens) - 1) as usize;
            let rows = &self.holders.rows[group];
            let mut before = None;
            let block = if matches!(store.reach, Reach::State { .. }) {
                let Some(block) = self.state_at(group, row, end) else { continue };
                block
            } else {
                if position < rows.first(row) {
                    continue;
                }
                before = match position.checked_sub(1) {
                    Some(parent) if parent >= rows.first(row) => {
                        let parent = rows.cell(row, parent) as u32;
                        Some(LetGo { serial: store.origin(parent).serial, key: store.block(parent).key })
                    }
                    Some(_) => Some(rows.before(row)),
                    None => None,
                };
                rows.cell(row, position) as u32
            };
            let parent_key = match before {
                Some(_) if store.block_tokens == self.link_tokens => parent_link_key,
                before => before.map_or(Key::default(), |before| before.key),
            };
            let parent_serial = match is_prefix {
                true => before.map_or(ROOT_SERIAL, |before| before.serial),
                false => anchor_serial(self.anchor, &self.stores, &self.holders.rows, row, end),
            };
            let as_what = Publication {
                key,
                namespace,
                parent_key,
                parent_serial,
                extras,
                position: position as u64,
                has_tokens,
            };
            let published = self.stores[group].publish(block, &as_what, &mut self.shared);
            committed += u32::from(published == Published::Stored);
        }
        committed
    }

    /// The first tokens of a sequence are final: publishes what it holds of other inputs, if those have a name.
    pub(super) fn publish_inputs(&mut self, row: usize, extras: &[Extra]) -> u32 {
        let holder = self.holders.sequences[row].holder;
        let input = input_of(extras);
        if input == Extras::NONE || holder.no_store {
            return 0;
        }
        let root = self.shared.namespaces.get(holder.namespace).root;
        let mut committed = 0;
        for group in 0..self.stores.len() {
            if matches!(self.stores[group].reach, Reach::Cross { .. }) {
                committed += self.publish_cross(row, group, root, input, true);
            }
        }
        committed
    }

    fn publish_cross(&mut self, row: usize, group: usize, base: Key, input: Extras, has_tokens: bool) -> u32 {
        let namespace = self.holders.sequences[row].holder.namespace;
        let mut committed = 0;
        for position in 0..self.holders.rows[group].count(row) {
            let block = self.holders.rows[group].cell(row, position) as u32;
            let store = &mut self.stores[group];
            if store.block(block).is_findable() {
                continue;
            }
            let as_what =
                Publication::of_input(self.hash, base, namespace, input, position as u64, has_tokens);
            committed += u32::from(store.publish(block, &as_what, &mut self.shared) == Published::Stored);
        }
        committed
    }
}
