//! The front of the cache: only orchestration.
//!
//! What it does: makes pools, tables and bookkeeping; runs the five calls of a step over them. What it does not:
//! decide anything; that is `lookup`, `step` and `evict`. Lock order: `uploader` is taken out of its lock, never held;
//! `state` is the cache's one lock and is released before any call into the device.

use std::sync::Arc;

use super::balance::Balancer;
use super::config::{CacheConfig, Content, Geometry};
use super::device_index::DeviceIndex;
use super::group::Reach;
use super::kernels::KERNELS;
use super::pattern::Pattern;
use super::plan::Shape;
use super::plan_steps::{self, PlanChain};
use super::pool::Pool;
use super::prefix::Chain;
use super::prefixes::PrefixInfo;
use super::resize::Resizer;
use super::session::{MatchSession, StepSession, StepTables};
use super::state::{CacheStatistics, State};
use super::steps::StepState;
use super::table::Uploader;
use crate::device::{Device, DeviceSlice, Event, OwnedEvent, Stream};
use crate::error::{Error, Result, Status};
use crate::format::Strides;
use crate::memory::Memory;
use crate::sync::{Mutex, MutexGuard, give_way};
use crate::sys::clock::coarse_ms;
use crate::sys::reserve::room;
use crate::types::Id;

/// Most steps in flight.
const STEPS_MAX: usize = 64;
/// Blocks that are evicted at a caller's wish under one hold of the lock: as many as go together.
const EVICT_PIECE: u64 = 64;

/// What an engine needs to write the slots of a group itself.
#[derive(Clone, Copy, Debug)]
pub struct GroupDescription {
    /// What a block holds.
    pub content: Content,
    /// What of the past a token reaches.
    pub reach: Reach,
    /// The block that cells show whose block was let go; `None` where that never happens.
    pub null_block: Option<u32>,
    /// Address of block 0; 0 in a metadata-only cache.
    pub base_address: u64,
    /// Blocks that may be handed out.
    pub blocks: u32,
    /// Blocks to which the group may grow.
    pub max_blocks: u32,
    /// Tokens in a block.
    pub block_tokens: u32,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Distances between neighbours.
    pub strides: Strides,
    /// Cells in a row of the block table.
    pub row_cells: u32,
}

/// A KV cache. Thread-safe.
pub struct KvCache {
    pub(super) geometry: Geometry,
    pub(super) memory: Arc<Memory>,
    pub(super) chain: Chain,
    pub(super) pools: Vec<Pool>,
    pub(super) resizer: Resizer,
    /// Where memory moves between size classes.
    pub(super) balancer: Option<Balancer>,
    pub(super) state: Mutex<State>,
    uploader: Mutex<Option<Box<Uploader>>>,
    pub(super) device_index: Option<Arc<DeviceIndex>>,
    pub(super) pattern: Option<Pattern>,
    /// Owners of the events in the steps.
    _events: Vec<OwnedEvent>,
    metadata_bytes: u64,
    /// What plans depend on.
    pub(super) shape: Shape,
}

impl KvCache {
    /// Makes a cache. Allocates everything it will ever need. Blocks.
    pub fn new(memory: &Arc<Memory>, config: &CacheConfig) -> Result<Self> {
        let device = memory.device();
        let for_worker = config.worker.then(|| plan_steps::worker_config(config, device.as_ref()));
        let for_worker = for_worker.transpose()?;
        let config = for_worker.as_ref().unwrap_or(config);
        let geometry = config.geometry()?;
        let mut pools = Vec::new();
        let mut events = Vec::new();
        if !config.metadata_only {
            device.module_load(KERNELS)?;
            for (group, asked) in geometry.groups.iter().zip(&config.groups) {
                pools.push(Pool::new(memory, group, asked, &config.name)?);
            }
            if let Some(at) = (1..pools.len()).find(|&at| pools[..at].iter().any(|p| p.overlaps(&pools[at])))
            {
                return Err(Error::argument(format!(
                    "the region of group {at} overlaps that of an earlier group"
                )));
            }
            for _ in 0..config.steps_in_flight {
                events.push(OwnedEvent::new(device)?);
            }
        }
        let mut uploader = Box::new(Uploader::new(memory, &geometry, config)?);
        uploader.clear(device.as_ref(), &geometry)?;
        let (mut seed, mut name) = ([0u8; 32], [0u8; 8]);
        crate::sys::random::fill(&mut seed)?;
        crate::sys::random::fill(&mut name)?;
        let raw_events: Vec<Event> = events.iter().map(OwnedEvent::event).collect();
        let mut state = State::new(config, &geometry, &raw_events, bytemuck::cast(seed))?;
        // Workers learn the name of their scheduler; the seed stays a secret.
        state.plans = PlanChain::new(u64::from_le_bytes(name));
        if config.worker {
            state.become_worker();
        }
        let pattern = match config.metadata_only {
            true => None,
            false => Some(Pattern::new(memory, &config.name)?),
        };
        let chain = Chain {
            secret: config.hash_secret,
            hash: config.hash,
            link_tokens: geometry.hash_block_tokens,
            max_sequence_tokens: geometry.max_sequence_tokens,
            require_salt: config.require_salt,
            links_beyond: geometry.links_beyond(config.partial_hits),
        };
        let device_index = uploader.index.as_ref().map(|update| Arc::clone(&update.index));
        let metadata_bytes = state.statistics().metadata_bytes + uploader.bytes();
        Ok(Self {
            shape: plan_steps::shape(config, &geometry),
            resizer: Resizer::new(&geometry, config.metadata_only),
            balancer: Balancer::new(config, &geometry, &pools),
            geometry,
            memory: Arc::clone(memory),
            pools,
            chain,
            state: Mutex::new(state),
            uploader: Mutex::new(Some(uploader)),
            device_index,
            pattern,
            _events: events,
            metadata_bytes,
        })
    }

    pub(super) fn device(&self) -> &dyn Device {
        self.memory.device().as_ref()
    }

    /// The pool of a group, for work that touches its blocks.
    pub(super) fn pool(&self, group: u32) -> Result<(DeviceSlice, u64)> {
        let geometry = self.group(group)?;
        match self.pools.get(group as usize) {
            Some(pool) => Ok((pool.slice()?, geometry.block_bytes)),
            None => Err(Error::new(Status::Unsupported, "a metadata-only cache has no blocks in memory")),
        }
    }

    pub(super) fn group(&self, group: u32) -> Result<&super::config::GroupGeometry> {
        let count = self.geometry.groups.len();
        let missing = || Error::argument(format!("group {group} of a cache with {count} groups"));
        self.geometry.groups.get(group as usize).ok_or_else(missing)
    }

    /// How many groups there are.
    pub fn group_count(&self) -> u32 {
        self.geometry.groups.len() as u32
    }

    /// Tokens of one link of the hash chain.
    pub fn hash_block_tokens(&self) -> u32 {
        self.geometry.hash_block_tokens
    }

    /// Whether there is no pool and no device table.
    pub fn is_metadata_only(&self) -> bool {
        self.pools.is_empty()
    }

    /// Where and how the blocks of a group lie.
    pub fn describe(&self, group: u32) -> Result<GroupDescription> {
        let geometry = self.group(group)?;
        Ok(GroupDescription {
            content: geometry.content,
            reach: geometry.reach,
            null_block: geometry.null_block(),
            base_address: self.pools.get(group as usize).map_or(0, Pool::address),
            blocks: self.resizer.target(group),
            max_blocks: geometry.blocks,
            block_tokens: geometry.block_tokens,
            block_bytes: geometry.block_bytes,
            strides: geometry.strides,
            row_cells: geometry.row_cells,
        })
    }

    /// Opens a batch of lookups. Hold it no longer than the batch takes: from where its blocks are read on it holds the
    /// lock up to the next lookup.
    pub fn lookups(&self) -> MatchSession<'_> {
        MatchSession { cache: self, state: None }
    }

    /// Opens a step, or goes on with the newest open one. Hold it no longer than the list of operations takes.
    pub fn step(&self, step: u64) -> Result<StepSession<'_>> {
        self.step_at(step, coarse_ms())
    }

    /// The same, at a time that the caller tells, in milliseconds of a clock that never goes back.
    pub fn step_at(&self, step: u64, now_ms: u64) -> Result<StepSession<'_>> {
        let mut state = self.reap()?;
        state.set_time(now_ms);
        state.begin_call(step)?;
        Ok(StepSession { state })
    }

    /// Gives back the blocks of steps whose work is over; answers with the lock held.
    pub(super) fn reap(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state.lock();
        let mut running = [(0, Event(0)); STEPS_MAX];
        let mut count = 0;
        let steps = &state.shared.steps;
        for slot in (0..steps.count()).map(|position| steps.slot(position)) {
            if let (StepState::Running(_), Some(event)) = (slot.state, slot.event) {
                running[count] = (slot.id, event);
                count += 1;
            }
        }
        if count > 0 {
            drop(state);
            let mut done = [false; STEPS_MAX];
            for (is_done, (_, event)) in done.iter_mut().zip(&running[..count]) {
                *is_done = self.device().event_is_done(*event)?;
            }
            state = self.state.lock();
            for ((id, _), _) in running[..count].iter().zip(done).filter(|(_, is_done)| *is_done) {
                state.shared.steps.note_complete(*id);
            }
        }
        state.give_back_complete();
        Ok(state)
    }

    /// Uploads what the step changed and gives the tables to `read`, which must not call the cache.
    pub fn tables<R>(
        &self,
        step: u64,
        stream: Stream,
        read: impl FnOnce(&StepTables<'_>) -> Result<R>,
    ) -> Result<R> {
        self.tables_by(self.borrow_uploader()?.get(), step, stream, read)
    }

    /// The same, by a thread that has what enqueues the tables.
    pub(super) fn tables_by<R>(
        &self,
        uploader: &mut Uploader,
        step: u64,
        stream: Stream,
        read: impl FnOnce(&StepTables<'_>) -> Result<R>,
    ) -> Result<R> {
        if let Err(error) = self.upload(uploader, step, stream) {
            uploader.forget_known(&mut self.state.lock());
            return Err(error);
        }
        let mut state = self.state.lock();
        for (store, &count) in state.stores.iter_mut().zip(&uploader.blocks_zeroed) {
            store.zeroed(count);
        }
        match self.is_metadata_only() {
            true => {
                state.tell_copies();
                state.tell_zeros();
            }
            false => state.take_copies(&|group| uploader.copies_planned[group]),
        }
        if !state.has_workers() {
            state.batch.note_packed_told();
        }
        read(&StepTables { uploader, state })
    }

    /// Takes what enqueues the tables, for one thread at a time.
    pub(super) fn borrow_uploader(&self) -> Result<Borrowed<'_>> {
        let busy = || Error::new(Status::InUse, "another thread is inside kavern_kv_tables");
        let uploader = self.uploader.lock().take().ok_or_else(busy)?;
        Ok(Borrowed { home: &self.uploader, uploader: Some(uploader) })
    }

    fn upload(&self, uploader: &mut Uploader, step: u64, stream: Stream) -> Result<()> {
        let mut waits = [Event(0); STEPS_MAX];
        let mut is_first = true;
        loop {
            if uploader.arena().is_some() {
                uploader.turn(self.device(), is_first)?;
            }
            let (words, is_all, wait_count) = {
                let mut state = self.state.lock();
                if !state.shared.steps.is_open(step) {
                    let text = "tables are for the step that was begun last and is not done";
                    return Err(Error::new(Status::WrongState, text));
                }
                let mut count = 0;
                if is_first {
                    state.shared.steps.order_after(stream, |event| {
                        waits[count] = event;
                        count += 1;
                    })?;
                    state.move_blocks();
                }
                let (words, is_all) = uploader.pack(&mut state, is_first)?;
                state.batch.is_told = true;
                if is_first && !state.has_workers() {
                    state.batch.note_packed();
                }
                (words, is_all, count)
            };
            for event in &waits[..wait_count] {
                self.device().stream_wait_event(stream, *event)?;
            }
            let pools = |group: usize| Ok((self.pools[group].slice()?, self.geometry.groups[group]));
            uploader.enqueue(self.device(), stream, words, &pools)?;
            if is_all {
                return Ok(());
            }
            is_first = false;
        }
    }

    /// Says that the work of every step up to this one is enqueued on the stream; `None`: it is over.
    pub fn step_done(&self, step: u64, stream: Option<Stream>) -> Result<()> {
        let begun = {
            let mut state = self.state.lock();
            state.copies.check_done(step, state.plans.is_used())?;
            state.shared.steps.begin_done(step)?
        };
        let Some((at, event)) = begun else { return Ok(()) };
        let recorded = match (stream, event) {
            (Some(stream), Some(event)) => {
                self.device().event_record(event, stream).map(|()| StepState::Running(stream))
            }
            _ => Ok(StepState::Complete),
        };
        let mut state = self.state.lock();
        match recorded {
            Ok(new_state) => {
                state.shared.steps.end_done(at, new_state);
                state.give_back_complete();
                Ok(())
            }
            Err(error) => {
                state.shared.steps.end_done(at, StepState::Open);
                Err(error)
            }
        }
    }

    /// Collects finished work of other tiers, of which there is none yet, and the blocks of completed steps; goes on
    /// with resizes, and moves memory between size classes.
    pub fn poll(&self) -> Result<()> {
        self.reap().map(drop)?;
        self.advance_resizes()?;
        self.balance()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Evicts up to `count` blocks that nobody holds; answers how many it were.
    pub fn evict(&self, group: u32, count: u64) -> Result<u64> {
        self.group(group)?;
        self.reap()?.check_decides()?;
        let mut evicted = 0;
        loop {
            // Others have the lock in between.
            let piece = EVICT_PIECE.min(count - evicted);
            let mut state = self.state.lock();
            let gone = state.evict(group as usize, piece);
            evicted += gone;
            if gone < piece || evicted == count {
                return Ok(evicted);
            }
            give_way(state);
        }
    }

    /// Pins the hits of a lease under a name, until `unpin_prefix` or a reset of their namespace. The lease stays.
    pub fn pin_prefix(&self, name: &str, lease: Id) -> Result<PrefixInfo> {
        // Memory is taken before the lock: a lease never grows, so what it needs now is enough.
        let size = {
            let state = self.state.lock();
            state.check_decides()?;
            state.lease_size(lease)?
        };
        let mut blocks = Vec::with_capacity(self.geometry.groups.len());
        for _ in &self.geometry.groups {
            blocks.push(room(size)?);
        }
        let mut given = (name.to_owned(), blocks);
        // What a refusal leaves here goes when the lock is not held any more.
        let info = self.state.lock().pin_prefix(&mut given, lease);
        drop(given);
        info
    }

    /// Gives each named prefix to `take`; answers how many there are.
    pub fn prefixes(&self, take: impl FnMut(usize, &PrefixInfo, &str)) -> usize {
        self.state.lock().prefixes.list(take)
    }

    /// What the cache holds and did.
    pub fn statistics(&self) -> CacheStatistics {
        CacheStatistics {
            pool_bytes: self.pools.iter().map(Pool::bytes).sum(),
            metadata_bytes: self.metadata_bytes,
            ..self.state.lock().statistics()
        }
    }

    /// Proves every invariant by walking everything; slow.
    pub fn validate(&self) -> Result<()> {
        self.state.lock().validate()?;
        self.validate_sizes()
    }
}

/// Puts the uploader back whatever happens.
pub(super) struct Borrowed<'a> {
    home: &'a Mutex<Option<Box<Uploader>>>,
    uploader: Option<Box<Uploader>>,
}

impl Borrowed<'_> {
    pub(super) fn get(&mut self) -> &mut Uploader {
        self.uploader.as_mut().expect("it is put back only on drop")
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        *self.home.lock() = self.uploader.take();
    }
}
