//! Resize while serving: how many blocks of a group may be handed out, and the memory behind them.
//!
//! What it does: retires ids from the top down and brings them back from there up, in stretches between which others
//! have the lock; puts memory behind what comes and takes it from a tail that nobody holds, that no list names and that
//! neither a step in flight nor work outside of steps can reach. The memory of a cache without any is that of its
//! workers, whom each plan tells the blocks that need some: these become fewer once nobody uses the rest, and the rest
//! counts as given back when the step of a plan that told so is over. What it does not: move what is held, which is
//! `moves`; until then a block above the limit stays with its holders, findable or not, and is retired when the last
//! of them lets go. Pins count as holders.
//!
//! Invariants: a block at or above `limit` is held, waits, is pinned, or is retired; nothing above it is free, and
//! nothing evictable. A step never waits for a resize: a resize has a lock of its own, and the cache's only for a
//! stretch. Lock order: a group's resize, then the cache's; neither lock of the cache is held across a call into the
//! device, the resize's is; neither while others are asked for memory.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::block::{Block, COPY_TARGET, Shared, ZERO_LISTED};
use super::classes::CLASSES_MAX;
use super::config::Geometry;
use super::events::RemoveReason;
use super::kv_cache::KvCache;
use super::pool::Pool;
use super::store::Store;
use crate::error::{Error, Result};
use crate::sync::{Mutex, give_way};

/// Ids that are retired or brought back under one hold of the cache's lock: some ten microseconds.
const STRETCH: u32 = 256;
/// Retired ids that are looked at under one hold of it.
const SCANNED: u32 = 4096;
/// Whose bytes lie in a slot that got other memory: nobody knows, so that the next tenant gets it zeroed.
const UNKNOWN_TENANT: u64 = u64::MAX;

/// Blocks of each group, where each is a class.
pub(super) type Sizes = [u32; CLASSES_MAX];

impl Store {
    /// Ids below may be handed out.
    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// Blocks that are out of use.
    pub(super) fn retired_count(&self) -> u32 {
        self.retired
    }

    /// Whether nobody holds or pins a block above the limit any more.
    pub(super) fn is_retired(&self, index: u32) -> bool {
        let block = self.block(index);
        index >= self.limit && block.refs == 0 && !block.is_waiting() && !block.is_findable()
    }

    /// A block that holds nothing becomes free, or is out of use.
    pub(super) fn put_free(&mut self, index: u32) {
        if index >= self.limit {
            self.retired += 1;
            return;
        }
        self.free.push(index);
    }

    /// Lowers the limit by at most one stretch, and no further than promises allow. Answers whether it moved.
    fn retire_stretch(&mut self, target: u32, shared: &mut Shared) -> bool {
        let before = self.limit;
        let end = target.max(before.saturating_sub(STRETCH));
        while self.limit > end {
            let index = self.limit - 1;
            let block = *self.block(index);
            let is_pinned = self.retention.is_pinned(index);
            let is_available = block.refs == 0 && !block.is_waiting() && !is_pinned;
            if is_available && self.available() == 0 {
                break;
            }
            if is_available && !block.is_findable() {
                self.free.take(index);
                self.retired += 1;
            }
            self.limit = index;
            if block.is_findable() && is_available {
                self.remove(index, RemoveReason::Requested, shared);
            }
        }
        self.note_room();
        self.limit < before
    }

    /// Raises the limit by at most one stretch.
    fn restore_stretch(&mut self, target: u32, has_new_memory: bool) {
        let end = target.min(self.limit.saturating_add(STRETCH));
        for index in self.limit..end {
            let is_retired = self.is_retired(index);
            self.limit = index + 1;
            if is_retired {
                self.retired -= 1;
                if has_new_memory {
                    self.blocks[index as usize].tenant = UNKNOWN_TENANT;
                }
                self.put_free(index);
            }
        }
        self.note_room();
    }

    /// The lowest id from which on, up to `end`, everything is retired and in no list; looks at one stretch.
    fn quiet_from(&self, end: u32) -> u32 {
        let is_quiet = |&index: &u32| {
            let Block { namespace_and_flags, .. } = self.block(index);
            self.is_retired(index) && namespace_and_flags & (ZERO_LISTED | COPY_TARGET) == 0
        };
        let low = self.limit.max(end.saturating_sub(SCANNED));
        (low..end).rev().take_while(is_quiet).last().unwrap_or(end)
    }

    /// Whether a block is where its state says, for the cache's `validate`.
    pub(super) fn validate_limit(&self) -> Result<()> {
        let retired = (self.limit..self.block_count()).filter(|&index| self.is_retired(index)).count();
        if retired != self.retired as usize {
            return Err(Error::internal(format!("{} blocks retired, {retired} found", self.retired)));
        }
        let is_wrong = |&index: &u32| self.is_inactive(index) && !self.retention.is_pinned(index);
        if let Some(index) = (self.limit..self.block_count()).find(is_wrong) {
            return Err(Error::internal(format!("block {index} is cached above the limit")));
        }
        match self.free.validate()?.iter().find(|&&index| index >= self.limit) {
            Some(index) => Err(Error::internal(format!("block {index} is free above the limit"))),
            None => Ok(()),
        }
    }
}

/// What a resize has led to so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resized {
    /// Blocks that were asked for last.
    pub blocks: u32,
    /// Most that can be asked for.
    pub max_blocks: u32,
    /// Blocks above that are still in use: held, pinned, waiting for a step, or promised to a sequence.
    pub held_blocks: u32,
    /// Bytes of memory behind the group's blocks; 0 in a metadata-only cache.
    pub committed_bytes: u64,
    /// Whether nothing is left to do.
    pub is_done: bool,
}

/// Under way in one group.
struct Progress {
    /// Blocks with memory; those above the pool's usable ones lose it.
    committed: u32,
    /// No step above this one can reach them.
    last_step: u64,
}

/// Blocks of a group that workers have, as far as their scheduler knows.
struct Workers {
    /// With memory from the next plan on. Goes down under the cache's lock; goes up before such blocks can be used.
    usable: AtomicU32,
    /// With memory now, at most.
    committed: AtomicU32,
}

/// The memory that comes and goes with the blocks of a group.
#[derive(Clone, Copy)]
enum Backing<'a> {
    Own(&'a Pool),
    OfWorkers(&'a Workers),
}

impl Backing<'_> {
    fn usable(self) -> u32 {
        match self {
            Self::Own(pool) => pool.usable(),
            Self::OfWorkers(workers) => workers.usable.load(Ordering::SeqCst),
        }
    }

    fn set_usable(self, blocks: u32) {
        match self {
            Self::Own(pool) => pool.set_usable(blocks),
            Self::OfWorkers(workers) => workers.usable.store(blocks, Ordering::SeqCst),
        }
    }

    fn commit(self, blocks: u32) -> Result<()> {
        match self {
            Self::Own(pool) => pool.commit(blocks)?,
            Self::OfWorkers(workers) => workers.committed.store(blocks, Ordering::SeqCst),
        }
        Ok(())
    }

    fn decommit_from(self, block: u32) -> Result<()> {
        match self {
            Self::Own(pool) => pool.decommit_from(block),
            Self::OfWorkers(_) => self.commit(block),
        }
    }
}

/// How far the resize of each group is.
pub(super) struct Resizer {
    groups: Vec<Mutex<Progress>>,
    /// By group: blocks that were asked for last.
    targets: Vec<AtomicU32>,
    /// By group: whether nothing was left to do when somebody looked last.
    are_done: Vec<AtomicBool>,
    /// By group, where workers are told sizes.
    workers: Vec<Workers>,
    is_busy: AtomicBool,
}

impl Resizer {
    pub(super) fn new(geometry: &Geometry, is_metadata_only: bool) -> Self {
        let group = |blocks| Mutex::new(Progress { committed: blocks, last_step: 0 });
        let workers = |blocks: u32| Workers { usable: blocks.into(), committed: blocks.into() };
        let told = if is_metadata_only && geometry.tells_sizes() { &geometry.groups[..] } else { &[] };
        Self {
            groups: geometry.groups.iter().map(|g| group(g.first_blocks)).collect(),
            targets: geometry.groups.iter().map(|g| g.first_blocks.into()).collect(),
            are_done: geometry.groups.iter().map(|_| true.into()).collect(),
            workers: told.iter().map(|g| workers(g.first_blocks)).collect(),
            is_busy: AtomicBool::new(false),
        }
    }

    /// By group, the blocks for which workers need memory; `None` where they are told none. Asked under the cache's
    /// lock.
    pub(super) fn told_sizes(&self) -> Option<Sizes> {
        let mut sizes = Sizes::default();
        let told = sizes.iter_mut().zip(&self.workers);
        told.for_each(|(size, workers)| *size = workers.usable.load(Ordering::SeqCst));
        (!self.workers.is_empty()).then_some(sizes)
    }

    /// Blocks of a group that were asked for last.
    pub(super) fn target(&self, group: u32) -> u32 {
        self.targets[group as usize].load(Ordering::Relaxed)
    }
}

impl KvCache {
    /// The memory that a resize changes.
    fn backing(&self, group: usize) -> Option<Backing<'_>> {
        match self.pools.get(group) {
            Some(pool) => pool.is_elastic().then_some(Backing::Own(pool)),
            None => self.resizer.workers.get(group).map(Backing::OfWorkers),
        }
    }

    /// Bytes of blocks of a group for which workers may have memory, by this cache's bytes of a block.
    pub(super) fn bytes_of_workers(&self, group: u32) -> u64 {
        let group = group as usize;
        let blocks = self.resizer.workers.get(group).map_or(0, |w| w.committed.load(Ordering::SeqCst));
        u64::from(blocks) * self.geometry.groups[group].block_bytes
    }

    /// Changes how many blocks of a group may be handed out, up to the most that the cache was made for. Blocks.
    ///
    /// Growing is all or nothing. Shrinking evicts what nobody holds above the new count and answers how many blocks
    /// there are still in use; calls of this kind and of `poll` finish it.
    pub fn resize(&self, group: u32, blocks: u64) -> Result<Resized> {
        let most = self.group(group)?.blocks;
        if !(1..=u64::from(most)).contains(&blocks) {
            return Err(Error::argument(format!(
                "{blocks} blocks of a group that was made for 1 to {most}; max_blocks of the cache is the bound"
            )));
        }
        let target = blocks as u32;
        // What has come back by now is not told as held.
        self.reap()?.check_decides()?;
        let pool = self.pools.get(group as usize);
        let missing_bytes = pool.map_or(0, |pool| pool.missing_bytes(target));
        let resized = self.memory.with_help(missing_bytes, || self.resize_unasked(group, None, target))?;
        let resized = resized.expect("whoever expects no count is not refused for it");
        self.memory.relax();
        Ok(resized)
    }

    /// Asks nobody for memory: whoever is asked may resize the same group, whose lock is held here. Does nothing if
    /// another count than the expected one was asked for last.
    pub(super) fn resize_unasked(
        &self,
        group: u32,
        expected: Option<u32>,
        target: u32,
    ) -> Result<Option<Resized>> {
        let mut progress = self.resizer.groups[group as usize].lock();
        if expected.is_some_and(|expected| expected != self.resizer.target(group)) {
            return Ok(None);
        }
        if let Some(backing) = self.backing(group as usize) {
            if target > progress.committed {
                backing.commit(target)?;
                progress.committed = target;
            }
            backing.set_usable(backing.usable().max(target));
        }
        self.resizer.targets[group as usize].store(target, Ordering::Relaxed);
        self.resizer.is_busy.store(true, Ordering::Release);
        // The count has changed for good: memory that the device does not take back now is left to `poll`, which tries
        // again and tells what is wrong.
        Ok(Some(self.advance(group, &mut progress).0))
    }

    /// Proves that each block which may be handed out, or is in somebody's hands, has memory.
    pub(super) fn validate_sizes(&self) -> Result<()> {
        for group in 0..self.group_count() as usize {
            let Some(backing) = self.backing(group) else { continue };
            let progress = self.resizer.groups[group].lock();
            let state = self.state.lock();
            let (store, usable, committed) = (&state.stores[group], backing.usable(), progress.committed);
            let is_lacking = match backing {
                Backing::Own(pool) => pool.missing_bytes(committed) > 0,
                Backing::OfWorkers(workers) => workers.committed.load(Ordering::SeqCst) != committed,
            };
            let limit = store.limit();
            if limit > usable || usable > committed || is_lacking {
                let text = format!("group {group}: {limit} blocks, {usable} usable, {committed} with memory");
                return Err(Error::internal(text));
            }
            if let Some(block) = (usable..store.block_count()).find(|&block| !store.is_retired(block)) {
                return Err(Error::internal(format!(
                    "block {block} of group {group} has no memory and is in use"
                )));
            }
        }
        Ok(())
    }

    /// Whether nothing was left to do in a group when somebody went on with its resize last.
    pub(super) fn is_resized(&self, group: u32) -> bool {
        self.resizer.are_done[group as usize].load(Ordering::Acquire)
    }

    /// Goes on with what resizes have left over, unless another thread does.
    pub(super) fn advance_resizes(&self) -> Result<()> {
        if !self.resizer.is_busy.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        for group in 0..self.group_count() {
            let (is_done, outcome) = match self.resizer.groups[group as usize].try_lock() {
                Some(mut progress) => {
                    let (resized, outcome) = self.advance(group, &mut progress);
                    (resized.is_done, outcome)
                }
                None => (false, Ok(())),
            };
            if !is_done {
                self.resizer.is_busy.store(true, Ordering::Release);
            }
            outcome?;
        }
        Ok(())
    }

    /// Goes on with one resize: what it has led to, and whether the device went along.
    fn advance(&self, group: u32, progress: &mut Progress) -> (Resized, Result<()>) {
        let (target, at) = (self.resizer.target(group), group as usize);
        let backing = self.backing(at);
        loop {
            let mut state = self.state.lock();
            let super::state::State { stores, shared, .. } = &mut *state;
            let is_going_on = match stores[at].limit() {
                limit if limit > target => stores[at].retire_stretch(target, shared),
                limit if limit < target => {
                    stores[at].restore_stretch(target, backing.is_some());
                    true
                }
                _ => false,
            };
            if !is_going_on {
                break;
            }
            give_way(state);
        }
        let outcome = backing.map_or(Ok(()), |backing| self.take_tail(at, backing, progress));
        let state = self.state.lock();
        let store = &state.stores[at];
        let above = store.block_count() - target;
        let held_blocks = above - store.retired_count().min(above);
        let has_memory_left = backing.is_some() && progress.committed > target;
        let resized = Resized {
            blocks: target,
            max_blocks: store.block_count(),
            held_blocks,
            committed_bytes: self.pools.get(at).map_or(0, Pool::bytes),
            is_done: held_blocks == 0 && !has_memory_left,
        };
        drop(state);
        self.resizer.are_done[at].store(resized.is_done, Ordering::Release);
        (resized, outcome)
    }

    /// Takes the memory of blocks at the end that nothing uses.
    fn take_tail(&self, group: usize, backing: Backing<'_>, progress: &mut Progress) -> Result<()> {
        let may_go = loop {
            let state = self.state.lock();
            let usable = backing.usable();
            let quiet = state.stores[group].quiet_from(usable);
            let steps = &state.shared.steps;
            if quiet == usable {
                let is_over = match backing {
                    Backing::Own(_) => progress.last_step <= steps.completed(),
                    Backing::OfWorkers(_) => state.plans.has_told(group, usable, steps.completed()),
                };
                break progress.committed > usable && is_over;
            }
            // From here on no step can name them; one that is open by now may have enqueued work that does.
            backing.set_usable(quiet);
            progress.last_step = steps.newest();
        };
        // Work outside of steps: no call that names the tail can begin now, those inside and their work must be over.
        let is_past = may_go
            && match (backing, &self.pattern) {
                (Backing::Own(pool), _) if pool.is_entered() => false,
                (Backing::Own(pool), Some(pattern)) => {
                    pattern.is_past(self.device(), group as u32, pool.usable())?
                }
                _ => true,
            };
        if is_past {
            backing.decommit_from(backing.usable())?;
            progress.committed = backing.usable();
        }
        Ok(())
    }
}
