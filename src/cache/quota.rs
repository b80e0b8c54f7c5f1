//! What a namespace may hold and keep, and what it did.
//!
//! Held blocks above the limit: the operation that would hold them is refused. Blocks that are promised to a sequence
//! count as held: what was promised is then not refused for want of quota either. Cached blocks above the limit: the
//! namespace's own oldest go, when the operation or the completion that cached them ends; nobody else's are touched.
//! Each check is O(1), and each block that goes was cached once. Whoever sets a limit sorts the lists of that owner
//! first, in pieces between which others have the lock, so that no operation meets what was held when the limit came.

use super::events::RemoveReason;
use super::kv_cache::KvCache;
use super::owners::{NO_LIMIT, NamespaceStatistics, Sorting, owner_of};
use super::state::State;
use super::step::Refusal;
use crate::error::{Error, Result, Status};
use crate::sync::give_way;
use crate::sys::reserve::filled;

/// Blocks that a new limit makes go under one hold of the lock.
const LIMIT_PIECE: u32 = 32;
/// Blocks that are put where they belong for a new limit under one hold of the lock.
const SORT_PIECE: u32 = 256;
/// Ids that are copied under one hold of the lock.
const ID_PIECE: usize = 256;

impl State {
    /// Puts a piece of an owner's blocks into the lists where they belong, if those are to be sorted. False if none is
    /// left.
    fn sort_piece(&mut self, owner: u32) -> bool {
        let Some(mut sorting) = self.shared.namespaces.owners.sorting(owner) else { return false };
        for _ in 0..SORT_PIECE {
            // Those set aside of each group, then its order list.
            let Some(list) = (2 * self.stores.len()).checked_sub(sorting.lists_done + 1) else {
                self.shared.namespaces.owners.set_sorting(owner, None);
                return false;
            };
            let (group, is_aside) = (list / 2, list % 2 == 1);
            let store = &mut self.stores[group];
            let Some((oldest, newest)) = store.by_owner.ends(owner, is_aside) else {
                sorting = Sorting { lists_done: sorting.lists_done + 1, end: None };
                continue;
            };
            let findable = self.shared.namespaces.owners.get(owner).counts.findable_blocks;
            let (end, left) = sorting.end.unwrap_or((newest, findable));
            // What goes round stays in order.
            match store.may_go(oldest) {
                true => store.by_owner.renew(owner, oldest),
                false => store.by_owner.set_aside(owner, oldest),
            }
            sorting.end = Some((end, left.saturating_sub(1)));
            if oldest == end || left <= 1 {
                sorting = Sorting { lists_done: sorting.lists_done + 1, end: None };
            }
        }
        self.shared.namespaces.owners.set_sorting(owner, Some(sorting));
        true
    }

    /// Checks that a namespace may hold so many blocks more.
    pub(super) fn check_limit(
        &mut self,
        namespace: u32,
        blocks_added: u32,
    ) -> std::result::Result<(), Refusal> {
        let owner = self.shared.namespaces.get(namespace).owner;
        let counts = self.shared.namespaces.owners.counts(owner);
        let wanted = counts.held_blocks + counts.promised_blocks + u64::from(blocks_added);
        if wanted <= counts.max_held_blocks {
            return Ok(());
        }
        counts.refused_ops += 1;
        let missing = u32::try_from(wanted - counts.max_held_blocks).unwrap_or(u32::MAX);
        Err(Refusal { status: Status::LimitReached, missing, group: 0 })
    }

    /// Blocks that a namespace may hold beside what it holds and is promised.
    pub(super) fn quota_left(&self, namespace: u32) -> u64 {
        let owner = self.shared.namespaces.get(namespace).owner;
        let counts = &self.shared.namespaces.owners.get(owner).counts;
        counts.max_held_blocks.saturating_sub(counts.held_blocks + counts.promised_blocks)
    }

    /// Blocks of a group that nobody holds any more when a row lets go of its cells from `first` on.
    pub(super) fn freed_behind(&self, row: usize, group: usize, first: usize) -> u32 {
        let rows = &self.holders.rows[group];
        let own = first.max(self.own_from(row, group)).max(rows.first(row)).min(rows.count(row));
        let is_last = |&&block: &&i32| self.stores[group].block(block as u32).refs == 1;
        rows.row(row)[own..].iter().filter(is_last).count() as u32
    }

    /// Makes the oldest cached blocks of every namespace go that has more than it may.
    pub(super) fn settle_limits(&mut self) {
        while let Some(owner) = self.shared.namespaces.owners.take_over() {
            self.settle_limit(owner, u32::MAX);
        }
    }

    /// Makes up to `most` of an owner's excess blocks go; answers whether it is now within its limit.
    fn settle_limit(&mut self, owner: u32, most: u32) -> bool {
        for _ in 0..most {
            if !self.shared.namespaces.owners.has_excess(owner) {
                return true;
            }
            // The group that caches most tokens of it gives: groups then shrink together.
            let cached = |group: &usize| {
                let store = &self.stores[*group];
                u64::from(store.by_owner.cached(owner)) * u64::from(store.block_tokens)
            };
            let Some(group) = (0..self.stores.len()).max_by_key(cached) else { return true };
            if !self.stores[group].evict_oldest_of(owner, RemoveReason::Limit, &mut self.shared) {
                return true;
            }
        }
        !self.shared.namespaces.owners.has_excess(owner)
    }

    /// Checks every owner's counts and lists by walking all blocks.
    pub(super) fn validate_owners(&self) -> Result<()> {
        let owners = &self.shared.namespaces.owners;
        let mut found = filled(owners.entry_count(), NamespaceStatistics::default())?;
        for store in &self.stores {
            let mut listed = filled(store.block_count() as usize, u32::MAX)?;
            for (owner, _) in owners.live() {
                store.by_owner.validate(owner, |block| listed[block as usize] = owner)?;
                if owners.get(owner).is_ordered() && owners.sorting(owner).is_none() {
                    let mut count = 0;
                    store
                        .by_owner
                        .validate_order(owner, |block| count += u32::from(store.may_go(block)) + 1)?;
                    if count != 2 * store.by_owner.cached(owner) {
                        return Err(Error::internal(format!(
                            "the order list of owner {owner} is not sorted"
                        )));
                    }
                }
            }
            let mut cached = filled(found.len(), 0)?;
            for index in 0..store.block_count() {
                let block = store.block(index);
                let expected = if block.is_findable() { owner_of(block.tenant) } else { u32::MAX };
                if listed[index as usize] != expected {
                    return Err(Error::internal(format!("block {index} is in the list of the wrong owner")));
                }
                if block.refs > 0 || block.is_findable() {
                    let counts = &mut found[owner_of(block.tenant) as usize];
                    counts.held_blocks += u64::from(block.refs > 0);
                    counts.findable_blocks += u64::from(block.is_findable());
                    let is_cached =
                        block.refs == 0 && !block.is_waiting() && !store.retention.is_pinned(index);
                    counts.cached_blocks += u64::from(is_cached);
                    cached[owner_of(block.tenant) as usize] += u32::from(is_cached);
                }
            }
            if owners.live().any(|(owner, _)| store.by_owner.cached(owner) != cached[owner as usize]) {
                return Err(Error::internal(format!(
                    "group {}: cached blocks of an owner are wrong",
                    store.group
                )));
            }
        }
        for (row, sequence) in self.holders.sequences.iter().enumerate().filter(|(_, s)| s.holder.is_live) {
            let owner = self.shared.namespaces.get(sequence.holder.namespace).owner;
            found[owner as usize].promised_blocks += self.promises.of_row(row);
        }
        for (owner, id) in owners.live() {
            let (counted, found) = (&owners.get(owner).counts, &found[owner as usize]);
            let four = |c: &NamespaceStatistics| {
                [c.held_blocks, c.cached_blocks, c.findable_blocks, c.promised_blocks]
            };
            if four(counted) != four(found) {
                return Err(Error::internal(format!(
                    "namespace {id} counts {:?} held, cached, findable and promised blocks, {:?} were found",
                    four(counted),
                    four(found)
                )));
            }
        }
        Ok(())
    }
}

impl KvCache {
    /// What a namespace id holds and did since it was last unknown; zeros and no limits for one that is unknown now.
    pub fn namespace_statistics(&self, id: u64) -> NamespaceStatistics {
        let state = self.state.lock();
        let owners = &state.shared.namespaces.owners;
        match owners.find(id) {
            Some(owner) => owners.get(owner).counts,
            None => NamespaceStatistics {
                max_held_blocks: NO_LIMIT,
                max_cached_blocks: NO_LIMIT,
                ..NamespaceStatistics::default()
            },
        }
    }

    /// Gives the ids of namespaces that are in use or limited to `take`, from `position` on and at most `most`.
    /// Answers the next position and whether that was all.
    pub fn namespace_ids(&self, position: u64, most: usize, mut take: impl FnMut(usize, u64)) -> (u64, bool) {
        let mut buffer = [0; ID_PIECE];
        let (mut position, mut count) = (position, 0);
        loop {
            let room = ID_PIECE.min(most - count);
            let piece = &mut buffer[..room];
            let state = self.state.lock();
            let (read, next, is_all) = state.shared.namespaces.owners.ids_piece(position, piece);
            give_way(state);
            buffer[..read].iter().enumerate().for_each(|(at, &id)| take(count + at, id));
            (position, count) = (next, count + read);
            if is_all || count == most {
                return (position, is_all);
            }
        }
    }

    /// Sets what a namespace may hold and keep; [`NO_LIMIT`] lifts one. What it has cached beyond that goes at once.
    pub fn limit_namespace(&self, id: u64, max_held_blocks: u64, max_cached_blocks: u64) -> Result<()> {
        let mut state = self.reap()?;
        state.check_decides()?;
        state.shared.namespaces.owners.limit(id, max_held_blocks, max_cached_blocks)?;
        drop(state);
        // Its lists are sorted first, by turns with whoever else is setting a limit, unless it is lifted meanwhile.
        self.in_pieces(id, |state, owner| !state.sort_piece(owner));
        self.in_pieces(id, |state, owner| state.settle_limit(owner, LIMIT_PIECE));
        Ok(())
    }

    /// Works for a namespace as long as there is one and until `is_done`; others have the lock in between.
    fn in_pieces(&self, id: u64, is_done: impl Fn(&mut State, u32) -> bool) {
        loop {
            let mut state = self.state.lock();
            let owner = state.shared.namespaces.owners.find(id);
            if owner.is_none_or(|owner| is_done(&mut state, owner)) {
                return;
            }
            give_way(state);
        }
    }
}
