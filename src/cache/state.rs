//! Everything a cache knows, behind its one lock; pure bookkeeping, no device.
//!
//! The operations live beside their phase of a step: `lookup` (match), `step` (operations), `batch` (what is
//! scheduled), `table` (what the device must learn). This file makes the state, gives completed steps' blocks back
//! and proves the invariants.

use super::batch::Batch;
use super::block::{Counters, Shared};
use super::config::{CacheConfig, Geometry, HashKind};
use super::events::{CacheEvent, CacheEventKind, Events, RemoveReason};
use super::evict;
use super::hash::Key;
use super::namespace::Namespaces;
use super::prefixes::Prefixes;
use super::sequence::Holders;
use super::steps::Steps;
use super::store::{Store, StoreOptions};
use crate::device::Event;
use crate::error::{Error, Result};
use crate::sys::reserve::filled;

/// What a cache holds and did; see the C header for each field.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the fields are those of kavern_kv_statistics, documented there")]
pub struct CacheStatistics {
    pub steps_in_flight: u32,
    pub free_blocks: u64,
    pub used_blocks: u64,
    pub inactive_blocks: u64,
    pub deferred_blocks: u64,
    pub indexed_blocks: u64,
    pub sequences: u64,
    pub leases: u64,
    pub namespaces: u64,
    pub lookups: u64,
    pub lookup_blocks: u64,
    pub hit_blocks: u64,
    pub hit_tokens: u64,
    pub allocated_blocks: u64,
    pub committed_blocks: u64,
    pub duplicate_blocks: u64,
    pub evicted_blocks: u64,
    pub collisions: u64,
    pub refused_ops: u64,
    pub used_tokens: u64,
    pub used_slots: u64,
    pub last_event: u64,
    pub metadata_bytes: u64,
    pub pool_bytes: u64,
    pub last_step: u64,
    pub pinned_blocks: u64,
}

/// What a reset forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetScope {
    /// Everything findable.
    All,
    /// Everything findable of one namespace id, under any salt and adapter.
    Namespace(u64),
}

pub(super) struct State {
    pub(super) hash: HashKind,
    pub(super) link_tokens: u32,
    pub(super) max_sequence_tokens: u64,
    pub(super) stores: Vec<Store>,
    /// By group: whether tokens have slots of their own.
    pub(super) has_slots: Vec<bool>,
    pub(super) holders: Holders,
    pub(super) shared: Shared,
    pub(super) batch: Batch,
    /// Number of the running call of `step`.
    pub(super) call: u64,
    pub(super) prefixes: Prefixes,
    /// Milliseconds of the coarse clock at the latest call that told them.
    pub(super) now_ms: u64,
}

impl State {
    pub(super) fn new(
        config: &CacheConfig,
        geometry: &Geometry,
        events: &[Event],
        seed: [u64; 4],
    ) -> Result<Self> {
        let options = StoreOptions {
            scrub: if config.metadata_only { super::config::Scrub::None } else { config.scrub },
            compares_tokens: config.hash == HashKind::Xxh3,
            keeps_events: config.event_capacity > 0,
            exact_order: config.exact_order,
        };
        let mut stores = Vec::with_capacity(geometry.groups.len());
        for (index, group) in geometry.groups.iter().enumerate() {
            let policy = evict::make(&config.policy, group.blocks)?;
            stores.push(Store::new(index as u32, group, policy, seed, options)?);
        }
        Ok(Self {
            hash: config.hash,
            link_tokens: geometry.hash_block_tokens,
            max_sequence_tokens: geometry.max_sequence_tokens,
            stores,
            has_slots: geometry.groups.iter().map(|group| group.has_slots()).collect(),
            holders: Holders::new(geometry, config.max_sequences, config.max_leases)?,
            shared: Shared {
                namespaces: Namespaces::new(config.hash_secret, config.require_salt, config.max_namespaces)?,
                events: Events::new(config.event_capacity)?,
                steps: Steps::new(config.steps_in_flight, geometry.groups.len(), events),
                counters: Counters::default(),
            },
            batch: Batch::new(geometry, config)?,
            call: 0,
            prefixes: Prefixes::new()?,
            now_ms: 0,
        })
    }

    /// Gives back the blocks that waited for steps which are complete.
    pub(super) fn give_back_complete(&mut self) {
        while let Some(slot) = self.shared.steps.pop_complete() {
            for (store, waiting) in self.stores.iter_mut().zip(&mut slot.waiting) {
                store.give_back_waiting(waiting);
            }
        }
    }

    /// Lets go of a row of blocks, leaf first, so that the root becomes the newest.
    pub(super) fn release_row(&mut self, of_lease: bool, row: usize, last_step: u64) {
        for (group, store) in self.stores.iter_mut().enumerate() {
            let rows = if of_lease { &self.holders.lease_rows[group] } else { &self.holders.rows[group] };
            for &block in rows.row(row).iter().rev() {
                store.release(block as u32, last_step, &mut self.shared);
            }
        }
    }

    /// Everything must go to the device again.
    pub(super) fn mark_all_dirty(&mut self) {
        for row in 0..self.holders.sequences.len() {
            self.batch.set_length(row, self.holders.sequences[row].length);
            for (group, rows) in self.holders.rows.iter().enumerate() {
                self.batch.mark_cells(group, row, 0, rows.count(row));
            }
        }
    }

    /// Evicts up to `count` blocks of a group.
    pub(super) fn evict(&mut self, group: usize, count: u64) -> u64 {
        (0..count)
            .take_while(|_| self.stores[group].evict_one(RemoveReason::Requested, &mut self.shared))
            .count() as u64
    }

    /// Sequences and leases in scope publish nothing more: what they compute belongs to what is being forgotten.
    pub(super) fn silence_holders(&mut self, scope: ResetScope) {
        let sequences = self.holders.sequences.iter_mut().map(|sequence| &mut sequence.holder);
        let leases = self.holders.leases.iter_mut().map(|lease| &mut lease.holder);
        for holder in sequences.chain(leases).filter(|holder| holder.is_live) {
            holder.no_store |= match scope {
                ResetScope::All => true,
                ResetScope::Namespace(id) => self.shared.namespaces.get(holder.namespace).id() == id,
            };
        }
    }

    /// Makes findable blocks of a stretch of one group unfindable; answers how many.
    pub(super) fn reset_stretch(
        &mut self,
        group: usize,
        stretch: std::ops::Range<u32>,
        scope: ResetScope,
    ) -> u64 {
        let mut removed = 0;
        for index in stretch {
            let block = self.stores[group].block(index);
            let in_scope = block.is_findable()
                && match scope {
                    ResetScope::All => true,
                    ResetScope::Namespace(id) => self.shared.namespaces.get(block.namespace()).id() == id,
                };
            if in_scope {
                self.stores[group].remove(index, RemoveReason::Reset, &mut self.shared);
                removed += 1;
            }
        }
        removed
    }

    /// Tells consumers that a reset is over.
    pub(super) fn note_reset(&mut self, scope: ResetScope) {
        if !self.shared.events.is_on() {
            return;
        }
        let (scope, namespace_id) = match scope {
            ResetScope::All => (1, 0),
            ResetScope::Namespace(id) => (2, id),
        };
        self.shared.events.push(CacheEvent {
            number: 0,
            kind: CacheEventKind::Cleared,
            reason: RemoveReason::Reset,
            group: scope,
            block: -1,
            namespace_id,
            token_offset: 0,
            key: Key::default(),
            parent_key: Key::default(),
        });
    }

    pub(super) fn statistics(&self) -> CacheStatistics {
        let sum = |of: &dyn Fn(&Store) -> u64| self.stores.iter().map(of).sum::<u64>();
        let (free, inactive, deferred) = (
            sum(&|s| s.free_count().into()),
            sum(&|s| s.inactive_count().into()),
            sum(&|s| s.waiting_count().into()),
        );
        let counters = self.shared.counters;
        CacheStatistics {
            steps_in_flight: self.shared.steps.count() as u32,
            free_blocks: free,
            used_blocks: sum(&|s| s.block_count().into()) - free - inactive - deferred,
            inactive_blocks: inactive,
            deferred_blocks: deferred,
            indexed_blocks: sum(&|s| s.index.count().into()),
            sequences: self.holders.sequence_count(),
            leases: self.holders.lease_count(),
            namespaces: self.shared.namespaces.count() as u64,
            lookups: counters.lookups,
            lookup_blocks: counters.lookup_blocks,
            hit_blocks: counters.hit_blocks,
            hit_tokens: counters.hit_tokens,
            allocated_blocks: counters.allocated_blocks,
            committed_blocks: counters.committed_blocks,
            duplicate_blocks: counters.duplicate_blocks,
            evicted_blocks: counters.evicted_blocks,
            collisions: counters.collisions,
            refused_ops: counters.refused_ops,
            used_tokens: self.batch.used_tokens,
            used_slots: self.batch.used_slots,
            last_event: self.shared.events.last(),
            metadata_bytes: sum(&|s| s.bytes()) + self.holders.bytes() + self.batch.bytes(),
            pool_bytes: 0,
            last_step: self.shared.steps.newest(),
            pinned_blocks: sum(&|s| s.retention.pinned().into()),
        }
    }

    /// Proves every invariant by walking everything.
    pub(super) fn validate(&self) -> Result<()> {
        self.holders.validate()?;
        let mut namespace_uses = filled(self.shared.namespaces.capacity(), 0u64)?;
        let sequences = self.holders.sequences.iter().map(|s| s.holder);
        for holder in sequences.chain(self.holders.leases.iter().map(|l| l.holder)).filter(|h| h.is_live) {
            namespace_uses[holder.namespace as usize] += 1;
        }
        for (group, store) in self.stores.iter().enumerate() {
            self.validate_store(group, store, &mut namespace_uses)
                .map_err(|error| error.context(&format!("group {group}")))?;
        }
        self.shared.namespaces.validate(&namespace_uses)
    }

    fn validate_store(&self, group: usize, store: &Store, namespace_uses: &mut [u64]) -> Result<()> {
        let mut refs = filled(store.block_count() as usize, 0u32)?;
        let rows = [&self.holders.rows[group], &self.holders.lease_rows[group]];
        let row_counts = [self.holders.sequences.len(), self.holders.leases.len()];
        for (rows, count) in rows.iter().zip(row_counts) {
            (0..count).flat_map(|row| rows.row(row)).for_each(|&block| refs[block as usize] += 1);
        }
        let mut is_free = filled(refs.len(), false)?;
        for block in store.validate_lists()? {
            if std::mem::replace(&mut is_free[block as usize], true) {
                return Err(Error::internal(format!("block {block} is twice in the free list")));
            }
        }
        let (mut inactive, mut waiting, mut findable) = (0, 0, 0);
        for index in 0..store.block_count() {
            let block = store.block(index);
            let state_count = u32::from(is_free[index as usize])
                + u32::from(block.refs > 0)
                + u32::from(block.is_waiting())
                + u32::from(block.refs == 0 && !block.is_waiting() && block.is_findable());
            if block.refs != refs[index as usize] || state_count != 1 {
                return Err(Error::internal(format!(
                    "block {index}: {} refs counted, {} found, {state_count} states",
                    block.refs, refs[index as usize]
                )));
            }
            inactive += u32::from(block.refs == 0 && !block.is_waiting() && block.is_findable());
            waiting += u32::from(block.is_waiting());
            if block.is_waiting() && block.last_step() <= self.shared.steps.completed() {
                return Err(Error::internal(format!("block {index} waits for a step that is complete")));
            }
            if block.is_findable() {
                findable += 1;
                namespace_uses[block.namespace() as usize] += 1;
                let hash = store.index.hash(&block.key, block.namespace());
                if store.index.find(hash, |found| found == index) != Some(index) {
                    return Err(Error::internal(format!("block {index} is findable but not in the index")));
                }
            }
        }
        if (inactive, waiting, findable)
            != (store.inactive_count(), store.waiting_count(), store.index.count())
        {
            return Err(Error::internal("counts of inactive, waiting or findable blocks are wrong"));
        }
        Ok(())
    }
}
