//! Everything a cache knows, behind its one lock; pure bookkeeping, no device.
//!
//! The operations live beside their phase of a step: `lookup` (match), `step` (operations), `batch` (what is
//! scheduled), `table` (what the device must learn). This file makes the state, gives completed steps' blocks back
//! and proves the invariants.

use super::ahead::Ahead;
use super::batch::Batch;
use super::block::{Counters, Shared};
use super::classes::Groups;
use super::config::GROUPS_MAX;
use super::config::{CacheConfig, Geometry, HashKind};
use super::copies::Copies;
use super::events::{CacheEvent, CacheEventKind, Events, RemoveReason};
use super::evict;
use super::group::Reach;
use super::hash::Key;
use super::mirror::{BlockHash, Mirror};
use super::moves::Mover;
use super::namespace::{Namespaces, Uses};
use super::owners::Owners;
use super::plan_steps::PlanChain;
use super::prefixes::Prefixes;
use super::promise::Promises;
use super::retention::Pinner;
use super::sequence::{Holders, Rows};
use super::sizes::Sizes;
use super::steps::{Steps, Waiting};
use super::store::{Store, StoreOptions};
use super::trunks::Trunks;
use super::zeros::Zeros;
use crate::device::Event;
use crate::error::{Error, Result};
use crate::sys::reserve::{filled, room};

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
    pub device_index_cells_sent: u64,
    pub held_tokens: u64,
    pub copied_tokens: u64,
    pub missed_blocks: u64,
    pub skipped_blocks: u64,
    pub pinned_blocks: u64,
    pub capacity_blocks: u64,
    pub promised_blocks: u64,
    pub moved_blocks: u64,
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
    /// Namespaces may name blocks independently of what comes before them.
    pub(super) has_chunks: bool,
    pub(super) holders: Holders,
    pub(super) shared: Shared,
    pub(super) batch: Batch,
    pub(super) copies: Copies,
    pub(super) zeros: Zeros,
    pub(super) trunks: Trunks,
    pub(super) promises: Promises,
    /// New blocks of an edited tail, before they take the place of the old ones.
    pub(super) edited: Vec<u32>,
    /// Number of the running call of `step`.
    pub(super) call: u64,
    pub(super) ahead: Ahead,
    /// All groups are of full attention that nothing trims.
    pub(super) is_plain: bool,
    /// See [`Geometry::anchor`].
    pub(super) anchor: Option<usize>,
    /// Hits may end inside a block.
    pub(super) finds_partial: bool,
    /// Another cache decides, this one has its tables.
    pub(super) is_worker: bool,
    pub(super) plans: PlanChain,
    pub(super) prefixes: Prefixes,
    pub(super) mover: Mover,
    /// Milliseconds of the coarse clock at the latest call that told them.
    pub(super) now_ms: u64,
    /// Classes of which each sequence has one, smallest blocks first.
    pub(super) classes: Vec<Groups>,
    /// Where there are several.
    pub(super) sizes: Option<Sizes>,
}

impl State {
    pub(super) fn new(
        config: &CacheConfig,
        geometry: &Geometry,
        events: &[Event],
        seed: [u64; 4],
    ) -> Result<Self> {
        let options = StoreOptions {
            scrub: config.scrub,
            compares_tokens: config.hash == HashKind::Xxh3,
            // Chunks need the place where a block was stored, as events do, and copies the step.
            keeps_events: config.event_capacity > 0 || config.index.chunks || config.partial_hits,
            mirrors: config.index.device,
            // Among several kinds hits end inside blocks that were found whole, by their keys alone.
            finds_children: config.partial_hits && geometry.is_plain(),
            owners: Owners::capacity(config.max_namespaces),
            namespaces: config.max_namespaces,
            exact_order: config.exact_order,
            small_bytes: config.small_bytes,
        };
        let trunks = Trunks::new(config.max_sequences, geometry.groups.len())?;
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
            has_chunks: config.index.chunks,
            has_slots: geometry.groups.iter().map(|group| group.has_slots()).collect(),
            holders: Holders::new(geometry, config.max_sequences, config.max_leases)?,
            shared: Shared {
                namespaces: Namespaces::new(config.hash_secret, config.max_namespaces)?,
                events: Events::new(config.event_capacity)?,
                steps: Steps::new(config.steps_in_flight, geometry.groups.len(), events),
                counters: Counters::default(),
            },
            batch: Batch::new(geometry, config)?,
            copies: Copies::new(geometry, config.max_sequences, config.metadata_only)?,
            zeros: Zeros::new(geometry, config)?,
            mover: Mover::new(
                geometry,
                trunks.count(),
                config.max_sequences as usize + config.max_leases as usize,
            )?,
            trunks,
            promises: Promises::new(config.max_sequences, geometry.groups.len())?,
            edited: room(geometry.groups.iter().map(|group| group.row_cells as usize).max().unwrap_or(0))?,
            call: 0,
            ahead: Ahead::new(geometry.hash_block_tokens)?,
            is_plain: geometry.is_plain(),
            anchor: geometry.anchor,
            finds_partial: config.partial_hits,
            is_worker: false,
            plans: PlanChain::default(),
            prefixes: Prefixes::new()?,
            now_ms: 0,
            classes: geometry.classes.clone(),
            sizes: Sizes::new(config, geometry)?,
        })
    }

    /// Gives back the blocks that waited for steps which are complete.
    pub(super) fn give_back_complete(&mut self) {
        while let Some(slot) = self.shared.steps.pop_complete() {
            let mut lists = [Waiting::EMPTY; GROUPS_MAX];
            let taken = lists.iter_mut().zip(&mut slot.waiting);
            taken.for_each(|(list, waiting)| *list = std::mem::replace(waiting, Waiting::EMPTY));
            for (store, list) in self.stores.iter_mut().zip(&mut lists) {
                store.give_back_waiting(list, &mut self.shared);
            }
        }
        self.settle_limits();
    }

    /// Lets go of the blocks of a lease, leaf first, so that the root becomes the newest.
    pub(super) fn release_lease(&mut self, lease: usize, last_step: u64) {
        for (group, store) in self.stores.iter_mut().enumerate() {
            store.release_all(self.holders.lease_rows[group].held(lease), last_step, &mut self.shared);
        }
    }

    /// Everything must go to the device again.
    pub(super) fn mark_all_dirty(&mut self) {
        self.stores.iter_mut().filter_map(Store::mirror_mut).for_each(Mirror::mark_all_dirty);
        for row in 0..self.holders.sequences.len() {
            self.batch.set_length(row, self.holders.sequences[row].length);
            for (group, rows) in self.holders.rows.iter().enumerate() {
                self.batch.mark_cells(group, row, 0, rows.shown(row));
            }
        }
    }

    /// Evicts up to `count` blocks of a group.
    pub(super) fn evict(&mut self, group: usize, count: u64) -> u64 {
        self.stores[group].evict_some(count, RemoveReason::Requested, &mut self.shared)
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
            used_blocks: sum(&|s| (s.block_count() - s.retired_count()).into()) - free - inactive - deferred,
            inactive_blocks: inactive,
            deferred_blocks: deferred,
            indexed_blocks: sum(&|s| s.findable_count().into()),
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
            metadata_bytes: sum(&|s| s.bytes())
                + self.holders.bytes()
                + self.batch.bytes()
                + self.shared.namespaces.owners.bytes()
                + self.copies.bytes()
                + self.zeros.bytes()
                + self.trunks.bytes()
                + self.promises.bytes()
                + self.sizes.as_ref().map_or(0, Sizes::bytes)
                + self.mover.bytes(),
            pool_bytes: 0,
            last_step: self.shared.steps.newest(),
            device_index_cells_sent: sum(&|s| s.mirror().map_or(0, Mirror::sent)),
            held_tokens: self.held_tokens(),
            copied_tokens: counters.copied_tokens,
            missed_blocks: counters.missed_blocks,
            skipped_blocks: counters.skipped_blocks,
            pinned_blocks: sum(&|s| s.retention.pinned().into()),
            capacity_blocks: sum(&|s| s.limit().into()),
            promised_blocks: sum(&|s| s.promised.into()),
            moved_blocks: counters.moved_blocks,
        }
    }

    /// Tokens for which a sequence holds a slot, summed over the groups.
    fn held_tokens(&self) -> u64 {
        if self.sizes.is_some() {
            // Each is in one group.
            return self.batch.used_tokens;
        }
        let of_group = |(store, rows): (&Store, &Rows)| match store.reach {
            Reach::State { .. } => 0,
            // A sequence that was stopped without its blocks holds no slot.
            Reach::Cross { tokens } => u64::from(tokens) * rows.rows_in_use(),
            _ => self.batch.used_tokens - rows.holes() * u64::from(store.block_tokens),
        };
        self.stores.iter().zip(&self.holders.rows).map(of_group).sum()
    }

    /// Proves every invariant by walking everything.
    pub(super) fn validate(&self) -> Result<()> {
        if self.is_worker {
            return self.validate_worker();
        }
        self.holders.validate()?;
        self.holders.validate_kin()?;
        self.validate_trunks()?;
        self.validate_classes()?;
        let mut namespace_uses = filled(self.shared.namespaces.capacity(), Uses::default())?;
        let sequences = self.holders.sequences.iter().map(|s| s.holder);
        for holder in sequences.chain(self.holders.leases.iter().map(|l| l.holder)).filter(|h| h.is_live) {
            namespace_uses[holder.namespace as usize].all += 1;
        }
        self.shared.namespaces.validate_holders(&namespace_uses)?;
        for (group, store) in self.stores.iter().enumerate() {
            self.validate_store(group, store, &mut namespace_uses)
                .map_err(|error| error.context(&format!("group {group}")))?;
        }
        self.shared.namespaces.validate(&namespace_uses)?;
        self.validate_owners()?;
        self.promises.validate_rows(&self.holders.sequences)?;
        self.validate_batch()?;
        self.validate_ready()?;
        self.validate_ends()?;
        let Counters { lookup_blocks, hit_blocks, missed_blocks, skipped_blocks, .. } = self.shared.counters;
        if lookup_blocks != hit_blocks + missed_blocks + skipped_blocks {
            return Err(Error::internal(format!(
                "{lookup_blocks} blocks looked up: {hit_blocks} hit, {missed_blocks} missed, {skipped_blocks} skipped"
            )));
        }
        Ok(())
    }

    /// What is counted by hand against the rows and the entries of the batch.
    fn validate_batch(&self) -> Result<()> {
        let live =
            || (0..self.holders.sequences.len()).filter(|&row| self.holders.sequences[row].holder.is_live);
        let tokens: u64 = live().map(|row| self.holders.sequences[row].length).sum();
        let of_group = |(store, rows): (&Store, &Rows)| -> u64 {
            live().map(|row| rows.held(row).len() as u64 * store.slots()).sum()
        };
        let slots: u64 = self.stores.iter().zip(&self.holders.rows).map(of_group).sum();
        let scheduled: u64 = self.batch.entries.iter().map(|entry| u64::from(entry.count)).sum();
        if self.batch.entries.iter().any(|entry| entry.told.max(entry.packed) > entry.count) {
            return Err(Error::internal("more of a sequence's tokens were told than are scheduled"));
        }
        let counted = [self.batch.used_tokens, self.batch.used_slots, self.batch.tokens.into()];
        match counted == [tokens, slots, scheduled] {
            true => Ok(()),
            false => Err(Error::internal(format!(
                "{counted:?} tokens, slots and scheduled tokens counted, {:?} found",
                [tokens, slots, scheduled]
            ))),
        }
    }

    fn validate_store(&self, group: usize, store: &Store, namespace_uses: &mut [Uses]) -> Result<()> {
        self.promises.validate(group, store)?;
        store.validate_namespaces(self.shared.namespaces.capacity() as u32)?;
        let mut refs = filled(store.block_count() as usize, 0u32)?;
        self.count_row_refs(group, &mut refs)?;
        let leases =
            (0..self.holders.leases.len()).flat_map(|lease| self.holders.lease_rows[group].held(lease));
        leases.for_each(|&block| refs[block as usize] += 1);
        self.holders.rows[group].validate(store.reach)?;
        self.holders.lease_rows[group].validate(store.reach)?;
        let mut named = filled(refs.len(), 0u32)?;
        self.prefixes.count_pins(group, &mut named);
        let pins = |block: u32| store.retention.pins(Pinner::Name, block);
        if let Some(block) = (0..store.block_count()).find(|&block| pins(block) != named[block as usize]) {
            let (pins, names) = (pins(block), named[block as usize]);
            return Err(Error::internal(format!(
                "block {block} has {pins} pins of names, {names} names list it"
            )));
        }
        self.copies.validate(group)?;
        let targets = self.copies.listed(group, 0..self.copies.count(group)).map(|copy| copy.target_slot);
        store.validate_lists_of_step(targets.map(|slot| (slot / i64::from(store.block_tokens)) as u32))?;
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
                + u32::from(store.is_retired(index))
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
                let uses = &mut namespace_uses[block.namespace() as usize];
                uses.all += 1;
                uses.cached += u64::from(store.may_go(index));
                let hash = BlockHash::of(self.shared.namespaces.get(block.namespace()), block);
                if store.mirror().is_some_and(|mirror| !mirror.has(hash, index)) {
                    return Err(Error::internal(format!(
                        "block {index} is not in the image of the device's index"
                    )));
                }
            }
        }
        store.validate_departed()?;
        if (inactive, waiting, findable)
            != (store.inactive_count(), store.waiting_count(), store.findable_count())
        {
            return Err(Error::internal("counts of inactive, waiting or findable blocks are wrong"));
        }
        Ok(())
    }
}
