//! Plans of a step between processes: a cache without memory makes them, caches that own memory apply them.
//!
//! The scheduler's cache notes what changes in its tables, as one with memory does for its device; a plan takes those
//! notes. A worker's cache copies a plan into its own tables and then uploads them as every cache does, so both forms
//! give the device the same words. A worker keeps no books of blocks: its rows are as long as they can be, and what
//! may be handed out, found or evicted is the scheduler's business.
//! Invariant: a worker's tables are those of the plan `number` of its scheduler, or an upload failed and the same plan
//! comes again.

use super::batch::{Batch, BatchEntry};
use super::classes::CLASSES_MAX;
use super::config::{CacheConfig, Geometry, Scrub};
use super::copies::COPY_WORDS;
use super::kv_cache::KvCache;
use super::plan::{
    Counts, GroupShape, Plan, PlanInfo, Shape, Writer, entry_word, message_bytes, split_entry,
};
use super::resize::Sizes;
use super::sequence::Sequence;
use super::session::StepTables;
use super::state::State;
use super::upload::live_entries;
use crate::device::{Device, Stream};
use crate::error::{Error, Result, Status};

/// What a plan tells that is no part of the state.
#[derive(Clone, Copy)]
struct About {
    /// Digest of the geometry.
    geometry: u64,
    /// Blocks of each group that need memory, where workers are told.
    sizes: Option<Sizes>,
}

/// Where a cache stands in the row of plans.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PlanChain {
    /// The cache that makes the plans; 0 for a worker that has applied none.
    scheduler: u64,
    /// The latest plan that was made or applied.
    number: u64,
    /// Step and call of `step` whose outcome the latest plan told.
    told: (u64, u64),
    /// By group: blocks that need memory as the latest plan told them, and the step whose plan told that first.
    sizes: Sizes,
    sizes_since: [u64; CLASSES_MAX],
}

impl PlanChain {
    pub(super) fn new(scheduler: u64) -> Self {
        Self { scheduler: scheduler.max(1), ..Self::default() }
    }

    /// Notes the sizes that a step's plan tells.
    fn tell_sizes(&mut self, sizes: &Sizes, step: u64) {
        let told = self.sizes.iter_mut().zip(&mut self.sizes_since).zip(sizes);
        for ((told, since), &size) in told.filter(|((told, _), size)| *told != *size) {
            (*told, *since) = (size, step);
        }
    }

    /// Whether every worker knows that so many blocks of a group need memory; without plans there is none.
    pub(super) fn has_told(&self, group: usize, blocks: u32, completed: u64) -> bool {
        !self.is_used() || (self.sizes[group] == blocks && self.sizes_since[group] <= completed)
    }

    /// Whether plans were made, so that each step's must be.
    pub(super) fn is_used(&self) -> bool {
        self.number > 0
    }
}

/// What plans of a cache depend on.
pub(super) fn shape(config: &CacheConfig, geometry: &Geometry) -> Shape {
    let copies = super::copies::capacities(geometry, config.max_sequences);
    let group = |(group, copies): (&super::config::GroupGeometry, usize)| GroupShape {
        copies: copies as u32,
        block_tokens: group.block_tokens,
        blocks: group.blocks,
        row_cells: group.row_cells,
        has_slots: group.has_slots(),
        has_holes: group.reach.has_holes(),
    };
    Shape::new(
        config.max_sequences,
        config.max_batch_tokens,
        geometry.max_sequence_tokens,
        config.scrub != Scrub::None,
        geometry.groups.iter().zip(copies).map(group).collect(),
        geometry.classes.len() as u32,
    )
}

/// What a worker needs no room for; and where its memory cannot come and go, all that there may be from the beginning.
pub(super) fn worker_config(config: &CacheConfig, device: &dyn Device) -> Result<CacheConfig> {
    let mut own = CacheConfig { max_leases: 1, max_namespaces: 1, event_capacity: 0, ..config.clone() };
    let can_map = device.description().capabilities.virtual_memory;
    if !can_map || config.groups.iter().any(|group| group.region.is_some()) {
        let geometry = config.geometry()?;
        let groups = own.groups.iter_mut().zip(&geometry.groups);
        groups.for_each(|(group, geometry)| group.capacity_blocks = geometry.blocks.into());
        own.max_blocks = 0;
    }
    Ok(own)
}

impl State {
    /// Makes this the state of a worker: rows as long as they can be, and no books.
    pub(super) fn become_worker(&mut self) {
        self.is_worker = true;
        self.plans = PlanChain::default();
        for row in 0..self.holders.sequences.len() {
            let holder = &mut self.holders.sequences[row].holder;
            (holder.is_live, holder.groups) = (true, self.classes[0]);
            self.holders.rows.iter_mut().for_each(|rows| rows.truncate(row, rows.row_cells()));
        }
    }

    /// Whether workers compute what is scheduled: then plans tell of it, and tables only show it.
    pub(super) fn has_workers(&self) -> bool {
        self.plans.is_used() && !self.is_worker
    }

    /// Refuses what only the cache that decides can do.
    pub(super) fn check_decides(&self) -> Result<()> {
        match self.is_worker {
            true => Err(Error::new(
                Status::Unsupported,
                "a worker's cache applies plans and decides nothing; ask its scheduler's",
            )),
            false => Ok(()),
        }
    }

    /// A worker's lengths are those of its rows, and its blocks are free or retired.
    pub(super) fn validate_worker(&self) -> Result<()> {
        self.stores.iter().try_for_each(|store| store.validate_limit())?;
        let rows = self.holders.sequences.iter().zip(&self.batch.lengths);
        match rows.clone().all(|(sequence, &length)| sequence.length == length as u64) {
            true => Ok(()),
            false => Err(Error::internal("a worker's rows and lengths disagree")),
        }
    }

    /// Words of a plan's body, and what its head counts.
    fn plan_size(&self, is_full: bool, has_sizes: bool) -> (usize, Counts) {
        let batch = live_entries(self).count();
        let lengths = match is_full {
            true => self.holders.sequence_count() as usize,
            false => self.batch.dirty_lengths.len(),
        };
        let mut words = 4 * batch + 2 * lengths + if has_sizes { self.stores.len() } else { 0 };
        for (group, store) in self.stores.iter().enumerate() {
            words += 4 + store.zero_list().len() + COPY_WORDS * self.copies.count(group);
            self.told_ranges(group, is_full).for_each(|(_, from, to)| words += 3 + (to - from) as usize);
        }
        let groups = self.stores.len() as u32;
        (words, Counts { groups, batch: batch as u32, lengths: lengths as u32, has_sizes })
    }

    fn live_rows(&self) -> impl Iterator<Item = usize> + '_ {
        let sequences = self.holders.sequences.iter().enumerate();
        sequences.filter(|(_, sequence)| sequence.holder.is_live).map(|(row, _)| row)
    }

    /// Row, first and end of each range of cells that a plan tells: what changed, and in a full one all that running
    /// sequences show. So a worker that missed nothing has the same cells after either, also of rows that ended since.
    fn told_ranges(&self, group: usize, is_full: bool) -> impl Iterator<Item = (u32, u32, u32)> + '_ {
        let (rows, dirty) = (&self.holders.rows[group], &self.batch.dirty[group]);
        let of_row = |(row, sequence): (usize, &Sequence)| {
            let (from, to) = dirty.range(row);
            match sequence.holder.is_live {
                // A row of states is told whole: that one starts from nothing is news too.
                true => (row as u32, 0, to.max(rows.shown(row) as u32)),
                false => (row as u32, from, to),
            }
        };
        let all = self.holders.sequences.iter().enumerate().map(of_row);
        let all = all.filter(move |range| is_full && range.1 < range.2);
        let changed = dirty.ranges().filter(move |_| !is_full);
        all.chain(changed)
    }

    /// Most words that blocks which the plan would move add to it: their copies, and every cell of the rows.
    fn words_of_moves(&self, is_full: bool) -> usize {
        let of_group = |group: usize| {
            let cells = |(_, from, to): (u32, u32, u32)| 3 + (to - from) as usize;
            let rows = self.told_ranges(group, true).filter(|_| !is_full);
            COPY_WORDS * self.most_moves(group) + rows.map(cells).sum::<usize>()
        };
        (0..self.stores.len()).filter(|&group| self.will_move(group)).map(of_group).sum()
    }

    /// Writes the plan of the open step and forgets what it tells, if it fits; answers its bytes, or how many are
    /// enough. Blocks move only into a plan that has room for all that may be moved.
    fn write_plan(&mut self, step: u64, about: About, is_full: bool, out: &mut [u8]) -> Result<usize> {
        let About { geometry, sizes } = about;
        if !self.shared.steps.is_open(step) {
            let text = "a plan is made of the step that was begun last and is not done";
            return Err(Error::new(Status::WrongState, text));
        }
        let (mut words, mut counts) = self.plan_size(is_full, sizes.is_some());
        let most = message_bytes(words + self.words_of_moves(is_full));
        if most <= out.len() && self.move_blocks() {
            (words, counts) = self.plan_size(is_full, sizes.is_some());
        }
        let bytes = message_bytes(words);
        let Some(out) = out.get_mut(..bytes) else { return Ok(most) };
        let before = self.plans.number;
        // A full plan after the delta of the same state is that plan once more, for those who missed some.
        let is_same = is_full && before > 0 && self.plans.told == (step, self.call);
        let number = before + u64::from(!is_same);
        if let Some(sizes) = sizes.filter(|_| !is_same) {
            self.plans.tell_sizes(&sizes, step);
        }
        let info = PlanInfo {
            bytes: bytes as u64,
            scheduler: self.plans.scheduler,
            geometry,
            step,
            number,
            follows: if is_full { 0 } else { before },
            is_full,
        };
        let mut writer = Writer::new(out, &info, counts);
        for entry in live_entries(self) {
            let length = self.batch.lengths[entry.row as usize] as u32;
            let groups = self.holders.sequences[entry.row as usize].holder.groups;
            let word = entry_word(entry.row, self.class_of(groups));
            writer.words(&[word, entry.count, entry.first as u32, length]);
        }
        match is_full {
            true => {
                self.live_rows().for_each(|row| writer.words(&[row as u32, self.batch.lengths[row] as u32]))
            }
            false => {
                let lengths = &self.batch.lengths;
                let changed = self.batch.dirty_lengths.iter();
                changed.for_each(|&row| writer.words(&[row, lengths[row as usize] as u32]));
            }
        }
        if sizes.is_some() {
            writer.words(&self.plans.sizes[..self.stores.len()]);
        }
        for (group, store) in self.stores.iter().enumerate() {
            let (ranges, cells) = self
                .told_ranges(group, is_full)
                .fold((0, 0), |(ranges, cells), (_, from, to)| (ranges + 1, cells + to - from));
            let copies = self.copies.count(group);
            writer.words(&[ranges, cells, store.zero_list().len() as u32, copies as u32]);
            self.told_ranges(group, is_full)
                .for_each(|(row, from, to)| writer.words(&[row, from, to - from]));
            let rows = &self.holders.rows[group];
            for (row, from, to) in self.told_ranges(group, is_full) {
                let first = row as usize * rows.row_cells();
                writer.cells(&rows.cells()[first + from as usize..first + to as usize]);
            }
            writer.cells(store.zero_list());
            self.copies.listed(group, 0..copies).for_each(|copy| writer.cells(&copy.words()));
        }
        writer.finish();
        self.note_told();
        self.plans.number = number;
        self.plans.told = (step, self.call);
        Ok(bytes)
    }

    /// Everything that changed was told.
    fn note_told(&mut self) {
        self.batch.note_told();
        while self.batch.pop_dirty_length().is_some() {}
        self.batch.dirty.iter_mut().for_each(super::batch::Dirty::clear);
        self.stores.iter_mut().for_each(|store| store.zeroed(store.zero_list().len()));
        self.take_copies(&|_| usize::MAX);
    }

    /// Checks that a plan comes next.
    fn check_chain(&self, info: &PlanInfo) -> Result<()> {
        let PlanChain { scheduler, number, .. } = self.plans;
        let is_known = scheduler == info.scheduler;
        let wrong = |status, text: String| Err(Error::new(status, text));
        if info.is_full {
            return match is_known && info.number < number {
                true => wrong(Status::WrongState, format!("plan {} after plan {number}", info.number)),
                false => Ok(()),
            };
        }
        if scheduler != 0 && !is_known {
            return wrong(
                Status::Dependency,
                "the plan is another scheduler's; begin with a full one".to_owned(),
            );
        }
        if info.number <= number {
            return wrong(
                Status::WrongState,
                format!("plan {} was applied, {number} is the latest", info.number),
            );
        }
        if info.follows != number {
            let text = format!(
                "plan {} follows plan {}, the latest here is {number}; ask for a full plan",
                info.number, info.follows
            );
            return wrong(Status::Dependency, text);
        }
        Ok(())
    }

    /// Takes a checked plan over into the tables; the device learns it with the next upload.
    fn take_plan(&mut self, plan: &Plan<'_>) -> Result<()> {
        self.check_chain(&plan.info)?;
        self.shared.steps.open(plan.info.step)?;
        self.batch.begin(plan.info.step, self.holders.ended);
        self.call += 1;
        if plan.info.is_full {
            (0..self.holders.sequences.len()).for_each(|row| self.take_length(row, 0));
        }
        for [row, length] in plan.lengths.entries() {
            self.take_length(row as usize, length);
        }
        for [word, count, first, length] in plan.batch.entries() {
            let (row, class) = split_entry(word);
            self.holders.sequences[row as usize].holder.groups = self.classes[class];
            self.take_length(row as usize, length);
            let first = first.into();
            self.batch.entries.push(BatchEntry { row, generation: 0, first, count, told: 0, packed: 0 });
            self.batch.tokens += count;
        }
        // Copies that a failed upload left: they come again.
        self.take_copies(&|_| usize::MAX);
        for (group, part) in plan.groups().enumerate() {
            let State { stores, holders, batch, .. } = self;
            let mut cells = part.cells.iter();
            for [row, first, count] in part.ranges.entries() {
                let (row, first, count) = (row as usize, first as usize, count as usize);
                holders.rows[group].set_cells(row, first, cells.by_ref().take(count).map(|cell| cell as i32));
                batch.mark_cells(group, row, first, first + count);
            }
            part.zeros.iter().for_each(|block| stores[group].list_zero(block));
            // Counted by the scheduler, which knows those of operations from those of moves, and told by it with the
            // shifts of all that they read.
            part.copies().for_each(|copy| self.list_run(copy, None));
        }
        Ok(())
    }

    fn take_length(&mut self, row: usize, length: u32) {
        let sequence = &mut self.holders.sequences[row];
        if sequence.length != u64::from(length) {
            let Batch { used_tokens, .. } = &mut self.batch;
            *used_tokens = *used_tokens + u64::from(length) - sequence.length;
            sequence.length = length.into();
            self.batch.set_length(row, length.into());
        }
    }
}

impl KvCache {
    /// Writes the plan of the open step into `out` and forgets the changes that it tells, if it fits there. Answers
    /// the bytes of the message. For a cache without memory.
    pub fn export_plan(&self, step: u64, is_full: bool, out: &mut [u8]) -> Result<usize> {
        if !self.is_metadata_only() {
            let text = "a cache with memory uploads its own tables; plans are made by a metadata-only one";
            return Err(Error::new(Status::Unsupported, text));
        }
        let mut state = self.state.lock();
        let about = About { geometry: self.shape.digest, sizes: self.resizer.told_sizes() };
        state.write_plan(step, about, is_full, out)
    }

    /// Takes a plan over, uploads what it changes and gives the tables to `read`, which must not call the cache. For
    /// a worker's cache.
    pub fn apply_plan<R>(
        &self,
        stream: Stream,
        message: &[u8],
        read: impl FnOnce(&StepTables<'_>) -> Result<R>,
    ) -> Result<R> {
        if !self.reap()?.is_worker {
            let text = "only a cache with the worker's flag applies plans";
            return Err(Error::new(Status::Unsupported, text));
        }
        let plan = Plan::read(message, &self.shape)?;
        // First what only one thread can have: nothing is taken over that another one keeps from being uploaded.
        let mut uploader = self.borrow_uploader()?;
        self.resize_as_told(&plan)?;
        self.state.lock().take_plan(&plan)?;
        let answer = self.tables_by(uploader.get(), plan.info.step, stream, read)?;
        let PlanInfo { scheduler, number, .. } = plan.info;
        self.state.lock().plans = PlanChain { scheduler, number, ..PlanChain::default() };
        Ok(answer)
    }

    /// Gives up what no step names any more, and puts memory behind the blocks that the plan may name. What is given
    /// up goes when the steps so far are over; so a worker that comes late has it for the classes that grew, and where
    /// there is no memory for these, or the device refuses the tables, less is held that its scheduler has left
    /// anyway. Blocks, may ask others for memory.
    fn resize_as_told(&self, plan: &Plan<'_>) -> Result<()> {
        if !self.geometry.tells_sizes() {
            return Ok(());
        }
        let Some(sizes) = plan.sizes() else {
            let text = "the plan does not tell the sizes of its classes; its scheduler is of an older library, or has \
                        no max_blocks";
            return Err(Error::new(Status::Unsupported, text));
        };
        {
            // A plan whose turn it is not, or whose step cannot be begun, changes nothing: it may be a stranger's, and
            // what it tells to go may hold what the own scheduler finds.
            let state = self.state.lock();
            state.check_chain(&plan.info)?;
            state.shared.steps.check_open(plan.info.step)?;
        }
        let told = (0..).zip(plan.sizes().into_iter().flatten());
        for (group, size) in told.filter(|&(group, size)| size < self.resizer.target(group)) {
            self.resize_unasked(group, None, size)?;
        }
        // What was left before, too, is what the others get.
        self.advance_resizes()?;
        for (group, size) in (0..).zip(sizes).filter(|&(group, size)| size > self.resizer.target(group)) {
            let missing_bytes = self.pools[group as usize].missing_bytes(size);
            self.memory.with_help(missing_bytes, || self.resize_unasked(group, None, size))?;
            self.memory.relax();
        }
        Ok(())
    }
}
