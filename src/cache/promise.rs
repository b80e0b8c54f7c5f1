//! Promises: blocks that a sequence does not have yet and that nobody else may take.
//!
//! ADMIT with an expected length promises the blocks up to it, or is refused. A promise is a number, not blocks: what
//! is promised stays free or evictable, and everybody else sees that much less. An operation on a sequence with a
//! promise sees its own, and what it leaves is promised anew: as many blocks as are missing up to the expected length,
//! and one more where an open block may have to be copied, as far as they are there and the namespace may hold them:
//! its limit of held blocks counts what is promised to its sequences.
//!
//! A window takes a bounded number however long the sequence gets, because what it lets go comes back: so many are
//! promised. What somebody else holds too comes back when that one lets it go; until then the sequence has fewer, and
//! an operation that lacks one is refused. To promise more would be to charge a lookup for what it shares. A state
//! takes its two and one that waits for its step. Another input is whole from the beginning.
//!
//! Invariant: in every group the promises of the rows add up to `promised`, and so many blocks are free or evictable.

use super::change::Change;
use super::classes::Groups;
use super::config::GROUPS_MAX;
use super::group::{Reach, STATE_CELLS};
use super::growth::{Grower, Growth};
use super::sequence::{Holder, Pause, Sequence};
use super::state::State;
use super::step::{Op, OpOutcome, Refusal};
use super::store::Store;
use crate::error::{Error, Result, Status};
use crate::sys::reserve::filled;
use crate::types::Id;

/// Blocks promised to each sequence.
pub(super) struct Promises {
    /// `[row][group]`.
    blocks: Vec<u32>,
    groups: usize,
    /// Sequences with an expected length.
    rows: u32,
    /// By group: the promise that the running operation has taken back.
    taken: [u32; GROUPS_MAX],
}

impl Promises {
    pub(super) fn new(max_sequences: u32, groups: usize) -> Result<Self> {
        let blocks = filled(max_sequences as usize * groups, 0)?;
        Ok(Self { blocks, groups, rows: 0, taken: [0; GROUPS_MAX] })
    }

    fn of(&mut self, row: usize, group: usize) -> &mut u32 {
        &mut self.blocks[row * self.groups + group]
    }

    /// Blocks promised to a row, all groups together.
    pub(super) fn of_row(&self, row: usize) -> u64 {
        self.blocks[row * self.groups..][..self.groups].iter().map(|&count| u64::from(count)).sum()
    }

    /// Whether a sequence has an expected length.
    pub(super) fn are_made(&self) -> bool {
        self.rows > 0
    }

    pub(super) fn bytes(&self) -> u64 {
        self.blocks.len() as u64 * 4
    }

    /// Checks that rows with an expected length are counted, and that no other has a promise.
    pub(super) fn validate_rows(&self, sequences: &[Sequence]) -> Result<()> {
        let expects = |row: &usize| sequences[*row].expected_tokens > 0;
        let counted = (0..sequences.len()).filter(expects).count();
        let of_row = |row: usize| &self.blocks[row * self.groups..][..self.groups];
        let is_loose = |row: &usize| !expects(row) && of_row(*row).iter().any(|&promise| promise > 0);
        match counted == self.rows as usize && !(0..sequences.len()).any(|row| is_loose(&row)) {
            true => Ok(()),
            false => Err(Error::internal("promises of rows are counted wrongly, or nobody's")),
        }
    }

    /// Checks that what is promised in a group is there.
    pub(super) fn validate(&self, group: usize, store: &Store) -> Result<()> {
        let sum: u64 =
            self.blocks.iter().skip(group).step_by(self.groups).map(|&count| u64::from(count)).sum();
        let there = store.free_count() + store.inactive_count() - store.retention.pinned_inactive();
        let promised = store.promised;
        if sum == u64::from(promised) && promised <= there {
            return Ok(());
        }
        Err(Error::internal(format!("{promised} blocks are promised, {sum} found, {there} are there")))
    }
}

impl Store {
    /// Blocks that a sequence still needs on its way to `expected` tokens, whose row has `cells` cells of which it
    /// holds `held` blocks.
    fn lacking(&self, expected: u64, length: u64, cells: u64, held: u64) -> u32 {
        let left = expected.div_ceil(u64::from(self.block_tokens)).saturating_sub(cells);
        let lacking = match self.reach {
            Reach::All | Reach::Untrimmed => left,
            Reach::Sliding { window_tokens: tokens } | Reach::Chunked { chunk_tokens: tokens } => {
                // As many blocks as a window can touch, and the one before it, which waits for its step.
                let most = u64::from(tokens - 1).div_ceil(u64::from(self.block_tokens)) + 2;
                left.min(most.saturating_sub(held))
            }
            Reach::State { .. } if expected > length => (u64::from(STATE_CELLS) + 1).saturating_sub(held),
            Reach::State { .. } | Reach::Cross { .. } => 0,
        };
        lacking as u32
    }

    /// Whether a findable block is one of those that can make room.
    pub(super) fn is_evictable(&self, index: u32) -> bool {
        self.is_inactive(index) && !self.is_pinned(index)
    }

    /// Whether a found block can be held beside the promises.
    pub(super) fn may_take(&self, index: u32) -> bool {
        !self.is_evictable(index) || self.available() > 0
    }
}

impl State {
    /// As ADMIT, with blocks promised up to a length.
    pub(super) fn admit_expecting(
        &mut self,
        lease: Id,
        tokens: u64,
        lookahead: u32,
        row: i32,
        expected_tokens: u64,
    ) -> OpOutcome {
        if expected_tokens == 0 {
            return self.admit(lease, tokens, lookahead, row);
        }
        let index = self.holders.find_lease(lease)?;
        let Holder { namespace, groups, .. } = self.holders.leases[index].holder;
        let lacking = if self.is_plain {
            let held = |group: usize| self.holders.lease_rows[group].count(index);
            let lacking = self.check_blocks(expected_tokens, groups, held)?;
            // A hit that ends inside a block is copied now or at the first append.
            lacking + self.check_partial(index, tokens.max(1), expected_tokens)?
        } else {
            let length = self.holders.leases[index].hit_tokens;
            let growth = Growth { first: length, length, tokens, lookahead: lookahead.into() };
            self.check_expected(index, &growth, expected_tokens)?
        };
        self.check_limit(namespace, lacking)?;
        let result = self.admit(lease, tokens, lookahead, row)?;
        self.holders.sequences[result.row as usize].expected_tokens = expected_tokens;
        self.promises.rows += 1;
        self.renew_promise(result.row as usize);
        Ok(result)
    }

    /// Checks that every group has what ADMIT takes and, beside it, what can be promised then; answers how many blocks
    /// that is.
    fn check_expected(
        &self,
        lease: usize,
        growth: &Growth,
        expected: u64,
    ) -> std::result::Result<u32, Refusal> {
        if expected > self.max_sequence_tokens {
            return Err(Status::InvalidArgument.into());
        }
        self.check_growth(Grower::Lease(lease), growth)?;
        let (length, mut all) = (growth.length + growth.tokens, 0);
        for (group, store) in self.stores.iter().enumerate() {
            let rows = &self.holders.lease_rows[group];
            let (new, returned) = self.growth_of(Grower::Lease(lease), group, growth)?;
            // A hit that ends inside a block is copied now or at the first append.
            let copied = u32::from(store.ends_inside(growth.length));
            let new = if growth.tokens > 0 { new - copied } else { new };
            let cells = (rows.count(lease) + new as usize) as u64;
            let held = match store.reach.has_holes() {
                true => cells - (growth.cells(store).1.max(rows.first(lease)) as u64).min(cells),
                false => cells,
            };
            let wanted = new + copied + store.lacking(expected, length, cells, held);
            let available = store.available() + returned;
            if wanted > available {
                let (status, missing) = (Status::OutOfBlocks, wanted - available);
                return Err(Refusal { status, missing, group: group as u32 });
            }
            all += wanted;
        }
        Ok(all)
    }

    /// The row of the sequence with a promise whose blocks an operation may change; its promise is taken back until
    /// `settle_promise`.
    pub(super) fn take_promise_back(&mut self, op: &Op<'_>) -> Option<usize> {
        if self.promises.rows == 0 {
            return None;
        }
        let target = match *op {
            Op::Append { target, .. }
            | Op::Trim { target, .. }
            | Op::Free { target }
            | Op::Change { target, .. } => target,
            _ => return None,
        };
        let row = self.find_target(target).ok()?;
        let row = match op {
            Op::Change { change: Change::Accept, .. } => self.holders.parent(row)?,
            _ => row,
        };
        if self.holders.sequences[row].expected_tokens == 0 {
            return None;
        }
        let owner = self.owner_of_row(row);
        let counts = self.shared.namespaces.owners.counts(owner);
        for (group, store) in self.stores.iter_mut().enumerate() {
            let promise = std::mem::take(self.promises.of(row, group));
            store.promised -= promise;
            counts.promised_blocks -= u64::from(promise);
            self.promises.taken[group] = promise;
        }
        Some(row)
    }

    /// An operation on a sequence whose promise was taken back is over.
    pub(super) fn settle_promise(&mut self, row: usize, is_refused: bool) {
        if !is_refused {
            self.renew_promise(row);
            return;
        }
        let owner = self.owner_of_row(row);
        let counts = self.shared.namespaces.owners.counts(owner);
        for (group, store) in self.stores.iter_mut().enumerate() {
            let promise = self.promises.taken[group];
            store.promised += promise;
            counts.promised_blocks += u64::from(promise);
            *self.promises.of(row, group) = promise;
        }
    }

    fn owner_of_row(&self, row: usize) -> u32 {
        self.shared.namespaces.get(self.holders.sequences[row].holder.namespace).owner
    }

    /// Promises a sequence what it lacks up to its expected length, as far as it is there and its namespace may hold
    /// it. It has no promise.
    fn renew_promise(&mut self, row: usize) {
        let sequence = &mut self.holders.sequences[row];
        if !sequence.holder.is_live || sequence.pause == Pause::Dropped {
            sequence.expected_tokens = 0;
            self.promises.rows -= 1;
            return;
        }
        let (expected, length, may_share) = (sequence.expected_tokens, sequence.length, sequence.may_share);
        let owner = self.owner_of_row(row);
        let mut quota = self.quota_left(self.holders.sequences[row].holder.namespace);
        for group in self.holders.sequences[row].holder.groups.range() {
            let (store, rows) = (&mut self.stores[group], &self.holders.rows[group]);
            let (cells, held) = (rows.count(row) as u64, rows.held(row).len() as u64);
            let is_open = store.reach.is_by_token() && !length.is_multiple_of(store.block_tokens.into());
            let lacking = store.lacking(expected, length, cells, held) + u32::from(may_share && is_open);
            let promise = lacking.min(store.available()).min(u32::try_from(quota).unwrap_or(u32::MAX));
            quota -= u64::from(promise);
            store.promised += promise;
            self.shared.namespaces.owners.counts(owner).promised_blocks += u64::from(promise);
            *self.promises.of(row, group) = promise;
        }
    }

    /// Shortens the hit of a lookup, not yet acquired, to what can be held beside the promises. Answers whether there
    /// are any.
    pub(super) fn leave_promised(&mut self, lease: usize, groups: Groups) -> bool {
        let mut has_promises = false;
        for group in groups.range() {
            let (store, rows) = (&self.stores[group], &mut self.holders.lease_rows[group]);
            if store.promised == 0 {
                continue;
            }
            has_promises = true;
            let mut left = store.available();
            let fits = |&&block: &&i32| {
                let is_evictable = store.is_evictable(block as u32);
                let is_left = !is_evictable || left > 0;
                left -= u32::from(is_evictable && is_left);
                is_left
            };
            let count = rows.row(lease).iter().take_while(fits).count();
            rows.truncate(lease, count);
        }
        has_promises
    }
}
