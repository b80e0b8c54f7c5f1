//! What the calls of a step work with while they hold the cache's lock: lookups, a list of operations, the tables.

use super::ahead;
use super::copies::TokenCopy;
use super::kv_cache::KvCache;
use super::lookup::{Match, Request};
use super::prefix;
use super::state::State;
use super::step::{Op, OpResult, Target};
use super::table::{GroupAddresses, GroupView, Uploader};
use super::zeros::ZeroBlock;
use crate::error::{Result, Status};
use crate::sync::MutexGuard;
use crate::types::Id;

/// What `tables` gives.
pub struct StepTables<'a> {
    pub(super) uploader: &'a Uploader,
    pub(super) state: MutexGuard<'a, State>,
}

/// A batch of lookups. Others may come in between two of them.
pub struct MatchSession<'a> {
    pub(super) cache: &'a KvCache,
    /// Held while what a lookup found is read, up to the next one; its lease keeps that in between.
    pub(super) state: Option<MutexGuard<'a, State>>,
}

impl MatchSession<'_> {
    /// Looks one prompt up; its tokens are hashed while others may use the cache.
    pub fn find(&mut self, request: &Request<'_>) -> Result<Match> {
        self.state = None;
        let cache = self.cache;
        prefix::with_scratch(|scratch| {
            let home = cache.chain.home(request)?;
            let keys = cache.prefix_keys(request, &home, scratch)?;
            cache.look_up(&home, |state| state.match_one(request, &home, &keys))
        })
    }

    /// The blocks of a lease, one group after the other.
    pub fn blocks(&mut self, lease: Id) -> Result<impl Iterator<Item = i32> + '_> {
        let cache = self.cache;
        self.state.get_or_insert_with(|| cache.state()).lease_blocks(lease)
    }
}

/// A list of operations of a step.
pub struct StepSession<'a> {
    pub(super) state: MutexGuard<'a, State>,
}

impl StepSession<'_> {
    /// Applies one operation.
    pub fn apply(&mut self, op: &Op<'_>) -> OpResult {
        if let Op::Append { target: Target::Id(id), tokens, lookahead } = *op {
            let mut ready = None;
            let ops = [(Some((id, tokens, lookahead)), ())];
            self.append_ready(ops.into_iter(), |(), result| ready = Some(result));
            if let Some(result) = ready {
                return result;
            }
        }
        self.apply_unready(op)
    }

    /// Applies one operation that is no APPEND, or one at which [`append_ready`](Self::append_ready) ended.
    pub fn apply_unready(&mut self, op: &Op<'_>) -> OpResult {
        self.state.apply(op)
    }

    /// What `apply` tries first with an APPEND, for as many as come: target, tokens and lookahead of each, `None` for
    /// what is no APPEND, beside a place for its result. Ends before the first that takes a closer look, to which
    /// nothing was done; tells the results of those before it at their places, and answers how many there were.
    #[inline]
    pub fn append_ready<P>(
        &mut self,
        ops: impl Iterator<Item = (Option<(Id, u64, u32)>, P)>,
        tell: impl FnMut(P, OpResult),
    ) -> usize {
        self.state.append_ready(ops, tell)
    }

    /// Operations that are best gone through together: two such runs ahead of their turn [`expect`](Self::expect) is of
    /// most use, one run ahead [`prepare`](Self::prepare).
    pub const RUN: usize = ahead::RUN;

    /// Has memory fetched for operations on these sequences that come in this session, and more of those whose flag
    /// says that it is a COMMIT.
    #[inline]
    pub fn expect(&self, targets: impl Iterator<Item = (Id, bool)> + Clone) {
        self.state.expect(targets);
    }

    /// The first of operations that are near which needs [`prepare`](Self::prepare): target and tokens of each, `None`
    /// for what is no APPEND.
    #[inline]
    pub fn find_unready(&self, ops: impl Iterator<Item = Option<(Id, u64)>>) -> Option<usize> {
        self.state.find_unready(ops)
    }

    /// The same once it is near. Token ids that it names stay as they are until it comes or the session ends.
    pub fn prepare(&mut self, op: &Op<'_>) {
        self.state.prepare(op);
    }

    /// Counts an operation that was refused before it reached the cache; later ones on its target depend on it.
    pub fn refuse(&mut self, status: Status, target: Option<Target>) -> OpResult {
        self.state.refuse(status, target)
    }
}

impl StepTables<'_> {
    /// Rows of the batch positions.
    pub fn batch_rows(&self) -> Result<&[i32]> {
        self.uploader.batch_rows()
    }

    /// First token of each batch position, and the end.
    pub fn batch_starts(&self) -> Result<&[i32]> {
        self.uploader.batch_starts()
    }

    /// Tokens of each row's sequence.
    pub fn sequence_lengths(&self) -> &[i32] {
        &self.state.batch.lengths
    }

    /// Tokens scheduled.
    pub fn token_count(&self) -> usize {
        self.uploader.arrays.token_count
    }

    /// Copies that this call enqueued before the step's work, one group after the other.
    pub fn copies(&self) -> &[TokenCopy] {
        self.state.copies.sent()
    }

    /// Blocks that the engine fills with zeros, before these copies, because the cache has no memory of its own.
    pub fn zeros(&self) -> &[ZeroBlock] {
        self.state.zeros.told()
    }

    /// Device address of the copies; 0 without a device.
    pub fn copies_address(&self) -> u64 {
        self.uploader.address(self.uploader.places.copies)
    }

    /// Device addresses of the rows, starts and lengths; 0 without a device.
    pub fn addresses(&self) -> [u64; 3] {
        let places = &self.uploader.places;
        [places.rows, places.starts, places.lengths].map(|first| self.uploader.address(first))
    }

    /// Tables of a group as the host sees them.
    pub fn group(&self, group: usize) -> Result<GroupView<'_>> {
        self.uploader.group_view(&self.state, group)
    }

    /// Tables of a group as the device sees them; 0 for those that do not exist.
    pub fn group_addresses(&self, group: usize) -> GroupAddresses {
        let places = self.uploader.places.groups[group];
        let address = |first: u64| self.uploader.address(first);
        let if_exists = |exists: bool, first: u64| if exists { address(first) } else { 0 };
        let is_ragged = places.indptr != places.indices;
        GroupAddresses {
            block_table: address(places.table),
            slot_mapping: if_exists(places.slots != places.indptr, places.slots),
            page_indptr: if_exists(is_ragged, places.indptr),
            page_indices: if_exists(is_ragged, places.indices),
            last_page_tokens: if_exists(is_ragged, places.last),
        }
    }
}
