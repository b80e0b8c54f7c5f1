//! The cache as one would write it on a blackboard: vectors, maps and clones, no care for speed.
//!
//! It predicts every answer of the real cache to the block id: which blocks hit, which are handed out, which wait for
//! a step, which are evicted.

use std::collections::{BTreeMap, HashMap, VecDeque};

use kavern::error::Status;

use super::limits::Limit;

/// Namespace and all tokens up to the end of a block.
pub(crate) type Content = (u64, Vec<i32>);

#[derive(Clone, Default)]
pub(crate) struct Block {
    pub(crate) refs: u32,
    pub(crate) content: Option<Content>,
    pub(crate) waits_for: Option<u64>,
    pub(crate) last_step: u64,
    /// What follows may be published where that is proved.
    pub(crate) is_named: bool,
    /// Priority less 50.
    pub(crate) bias: i32,
    pub(crate) pins: u32,
    /// Tick of the clock from which on the priority is the ordinary one, and the place among those of the same tick.
    pub(crate) expiry: Option<(u64, u64)>,
}

pub(crate) struct Group {
    pub(crate) block_tokens: usize,
    pub(crate) blocks: Vec<Block>,
    pub(crate) free: Vec<u32>,
    /// Released blocks, oldest first (lru), or all findable ones by age, also while they are held (fifo).
    pub(crate) order: VecDeque<u32>,
    /// Released blocks of another priority than 50 that are not pinned, oldest first.
    pub(crate) others: Vec<u32>,
    pub(crate) is_fifo: bool,
    /// What is published must follow something that was.
    pub(crate) is_exact: bool,
    pub(crate) publications: u64,
    pub(crate) index: HashMap<Content, u32>,
    pub(crate) waiting: BTreeMap<u64, Vec<u32>>,
    pub(crate) evicted: u64,
    /// Findable blocks that nobody holds, oldest first.
    pub(crate) cached_order: VecDeque<u32>,
    /// Findable blocks that somebody holds or a step may still read, in the order in which they became that.
    pub(crate) held_order: VecDeque<u32>,
    /// By block: rises with each publication.
    pub(crate) published: Vec<u64>,
}

impl Group {
    pub(crate) fn is_released(&self, block: u32) -> bool {
        let block = &self.blocks[block as usize];
        block.refs == 0 && block.waits_for.is_none() && block.content.is_some()
    }

    pub(crate) fn inactive(&self) -> usize {
        (0..self.blocks.len() as u32).filter(|&block| self.is_released(block)).count()
    }

    fn available(&self) -> usize {
        let is_victim = |block: &u32| self.is_released(*block) && self.blocks[*block as usize].pins == 0;
        self.free.len() + (0..self.blocks.len() as u32).filter(is_victim).count()
    }

    fn victim(&mut self) -> Option<u32> {
        if let Some(block) = self.other_victim(true) {
            return Some(block);
        }
        let goes = |&block: &u32| self.is_released(block) && !self.is_governed(block);
        match self.order.iter().position(goes) {
            Some(at) => self.order.remove(at),
            None => self.other_victim(false),
        }
    }

    pub(crate) fn forget(&mut self, block: u32) {
        self.note_gone(block);
        let content = self.blocks[block as usize].content.take().unwrap();
        assert_eq!(self.index.remove(&content), Some(block));
        self.others.retain(|&listed| listed != block);
        self.order.retain(|&listed| listed != block);
        let block = &mut self.blocks[block as usize];
        (block.bias, block.pins, block.expiry) = (0, 0, None);
    }

    fn allocate(&mut self) -> u32 {
        let block = self.free.pop().unwrap_or_else(|| {
            let victim = self.victim().unwrap();
            self.forget(victim);
            self.evicted += 1;
            victim
        });
        self.blocks[block as usize] = Block { refs: 1, ..Block::default() };
        block
    }

    fn acquire(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        entry.refs += 1;
        if entry.refs > 1 {
            return;
        }
        if let Some(step) = entry.waits_for.take() {
            self.waiting.get_mut(&step).unwrap().retain(|&waiting| waiting != block);
        } else {
            self.note_held(block);
            if self.is_governed(block) {
                self.others.retain(|&listed| listed != block);
            } else if !self.is_fifo {
                self.order.retain(|&listed| listed != block);
            }
        }
    }

    fn release(&mut self, block: u32, last_step: u64, completed: u64) {
        let entry = &mut self.blocks[block as usize];
        entry.refs -= 1;
        entry.last_step = entry.last_step.max(last_step);
        if entry.refs > 0 {
            return;
        }
        if entry.last_step > completed {
            entry.waits_for = Some(entry.last_step);
            let step = entry.last_step;
            self.waiting.entry(step).or_default().push(block);
        } else {
            self.give_back(block);
        }
    }

    pub(crate) fn give_back(&mut self, block: u32) {
        if self.blocks[block as usize].content.is_none() {
            let entry = &mut self.blocks[block as usize];
            (entry.bias, entry.pins, entry.expiry) = (0, 0, None);
            self.free.push(block);
            return;
        }
        if self.blocks[block as usize].pins == 0 {
            self.note_cached(block);
        }
        if self.is_governed(block) {
            self.others.extend((self.blocks[block as usize].pins == 0).then_some(block));
        } else if !self.is_fifo {
            self.order.push_back(block);
        }
    }

    fn complete(&mut self, step: u64) {
        for block in self.waiting.remove(&step).unwrap_or_default() {
            self.blocks[block as usize].waits_for = None;
            self.give_back(block);
        }
    }

    fn publish(&mut self, block: u32, content: Content, follows_named: bool) -> bool {
        if self.is_exact && !follows_named {
            return false;
        }
        let entry = &mut self.blocks[block as usize];
        entry.is_named = true;
        if self.index.contains_key(&content) {
            return false;
        }
        entry.content = Some(content.clone());
        self.publications += 1;
        self.index.insert(content, block);
        self.published[block as usize] = self.publications;
        self.note_held(block);
        if self.is_fifo {
            self.order.push_back(block);
        }
        true
    }
}

#[derive(Clone)]
pub(crate) struct Holder {
    pub(crate) namespace: u64,
    pub(crate) no_store: bool,
    pub(crate) blocks: Vec<Vec<u32>>,
    /// Committed tokens, all of them.
    pub(crate) tokens: Vec<i32>,
    pub(crate) length: usize,
    pub(crate) last_step: u64,
    /// The only group that it has blocks of; `None`: all.
    pub(crate) group: Option<usize>,
}

impl Holder {
    fn has(&self, group: usize) -> bool {
        self.group.is_none_or(|own| own == group)
    }
}

#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Answer {
    pub(crate) added: usize,
    pub(crate) missing: usize,
    pub(crate) committed: usize,
}

pub(crate) type Outcome = Result<Answer, (Status, usize)>;

pub(crate) struct Naive {
    pub(crate) groups: Vec<Group>,
    pub(crate) leases: HashMap<u64, Holder>,
    pub(crate) sequences: HashMap<u64, Holder>,
    pub(crate) max_tokens: usize,
    pub(crate) max_sequences: usize,
    pub(crate) max_batch_tokens: usize,
    pub(crate) completed: u64,
    pub(crate) step: u64,
    pub(crate) batch: HashMap<u64, (usize, usize)>,
    pub(crate) batch_tokens: usize,
    pub(crate) batch_entries: usize,
    pub(crate) limits: BTreeMap<u64, Limit>,
    pub(crate) now_ms: u64,
    /// Blocks to which a time to live was given.
    pub(crate) timed: u64,
    /// Priorities that have ended.
    pub(crate) expired: u64,
}

impl Naive {
    /// Hit tokens and the blocks of each group.
    pub(crate) fn find(
        &self,
        namespace: u64,
        prompt: &[i32],
        keep_one: bool,
        drop_last: bool,
        only: Option<usize>,
    ) -> (usize, Vec<Vec<u32>>) {
        let has = |group: usize| only.is_none_or(|own| own == group);
        let link = self.groups.iter().map(|g| g.block_tokens).min().unwrap();
        let mut found: Vec<Vec<u32>> = vec![Vec::new(); self.groups.len()];
        'links: for end in (link..=prompt.len().min(self.max_tokens)).step_by(link) {
            for (index, (group, found)) in self.groups.iter().zip(&mut found).enumerate() {
                if end % group.block_tokens != 0 || !has(index) {
                    continue;
                }
                match group.index.get(&(namespace, prompt[..end].to_vec())) {
                    Some(&block) => found.push(block),
                    None => break 'links,
                }
            }
        }
        let own = || (0..self.groups.len()).filter(|&group| has(group));
        let mut hit = own().map(|g| found[g].len() * self.groups[g].block_tokens).min().unwrap();
        let is_aligned = |hit: usize| own().all(|g| hit.is_multiple_of(self.groups[g].block_tokens));
        let lower = |mut hit: usize| {
            while !is_aligned(hit) {
                hit -= 1;
            }
            hit
        };
        if keep_one {
            hit = hit.min(prompt.len().saturating_sub(1));
        }
        hit = lower(hit);
        if drop_last && hit > 0 {
            hit = lower(hit - 1);
        }
        for (group, found) in self.groups.iter().zip(&mut found) {
            found.truncate(found.len().min(hit / group.block_tokens));
        }
        (hit, found)
    }

    pub(crate) fn hold(
        &mut self,
        lease: u64,
        namespace: u64,
        no_store: bool,
        hit: &[i32],
        blocks: Vec<Vec<u32>>,
        group: Option<usize>,
    ) {
        for (group, blocks) in self.groups.iter_mut().zip(&blocks) {
            blocks.iter().for_each(|&block| group.acquire(block));
        }
        let (tokens, length) = (hit.to_vec(), hit.len());
        let holder = Holder { namespace, no_store, blocks, tokens, length, last_step: 0, group };
        self.leases.insert(lease, holder);
    }

    pub(crate) fn begin_step(&mut self, step: u64) {
        self.step = step;
        self.batch.clear();
        self.batch_tokens = 0;
        self.batch_entries = 0;
    }

    fn check_blocks(&self, tokens: usize, holder: &Holder) -> Result<usize, (Status, usize)> {
        if tokens > self.max_tokens {
            return Err((Status::InvalidArgument, 0));
        }
        let mut added = 0;
        for (index, (group, held)) in self.groups.iter().zip(&holder.blocks).enumerate() {
            if !holder.has(index) {
                continue;
            }
            let new = tokens.div_ceil(group.block_tokens).saturating_sub(held.len());
            if new > group.available() {
                return Err((Status::OutOfBlocks, new - group.available()));
            }
            added += new;
        }
        Ok(added)
    }

    fn check_batch(&self, tokens: usize, is_new: bool) -> Result<(), (Status, usize)> {
        if self.batch_tokens + tokens > self.max_batch_tokens
            || (is_new && self.batch_entries == self.max_sequences)
        {
            return Err((Status::LimitReached, 0));
        }
        Ok(())
    }

    fn grow_and_schedule(&mut self, id: u64, reserve: usize, tokens: usize) {
        let holder = self.sequences.get_mut(&id).unwrap();
        let only = holder.group;
        for (index, (group, held)) in self.groups.iter_mut().zip(&mut holder.blocks).enumerate() {
            while only.is_none_or(|own| own == index) && held.len() < reserve.div_ceil(group.block_tokens) {
                held.push(group.allocate());
            }
        }
        holder.last_step = self.step;
        if self.batch.get_mut(&id).map(|entry| entry.1 += tokens).is_none() {
            self.batch.insert(id, (holder.length, tokens));
            self.batch_entries += 1;
        }
        holder.length += tokens;
        self.batch_tokens += tokens;
    }

    /// Whether an admission goes well; `apply_admit` follows with the id that the cache gave.
    pub(crate) fn admit(&self, lease: u64, tokens: usize, lookahead: usize) -> Outcome {
        let holder = self.leases.get(&lease).ok_or((Status::StaleId, 0))?;
        if self.sequences.len() == self.max_sequences {
            return Err((Status::LimitReached, 0));
        }
        let added = self.check_blocks(holder.length + tokens + lookahead, holder)?;
        self.check_limit(holder.namespace, added)?;
        self.check_batch(tokens, true)?;
        Ok(Answer { added, ..Answer::default() })
    }

    pub(crate) fn apply_admit(&mut self, lease: u64, tokens: usize, lookahead: usize, id: u64) {
        let holder = self.leases.remove(&lease).unwrap();
        let reserve = holder.length + tokens + lookahead;
        assert!(self.sequences.insert(id, holder).is_none(), "a sequence id was given twice");
        self.grow_and_schedule(id, reserve, tokens);
    }

    pub(crate) fn append(&mut self, id: u64, tokens: usize, lookahead: usize) -> Outcome {
        let holder = self.sequences.get(&id).ok_or((Status::StaleId, 0))?;
        let reserve = holder.length + tokens + lookahead;
        let added = self.check_blocks(reserve, holder)?;
        self.check_batch(tokens, !self.batch.contains_key(&id))?;
        if added > 0 {
            self.check_limit(holder.namespace, added)?;
        }
        self.grow_and_schedule(id, reserve, tokens);
        Ok(Answer { added, ..Answer::default() })
    }

    pub(crate) fn commit(&mut self, id: u64, tokens: &[i32]) -> Outcome {
        let holder = self.sequences.get_mut(&id).ok_or((Status::StaleId, 0))?;
        if holder.tokens.len() + tokens.len() > holder.length {
            return Err((Status::InvalidArgument, 0));
        }
        let mut committed = 0;
        for &token in tokens {
            holder.tokens.push(token);
            let end = holder.tokens.len();
            for (index, (group, held)) in self.groups.iter_mut().zip(&holder.blocks).enumerate() {
                if end % group.block_tokens != 0 || holder.no_store || !holder.has(index) {
                    continue;
                }
                let at = end / group.block_tokens - 1;
                let follows_named = at == 0 || group.blocks[held[at - 1] as usize].is_named;
                let content = (holder.namespace, holder.tokens.clone());
                committed += usize::from(group.publish(held[at], content, follows_named));
            }
        }
        Ok(Answer { committed, ..Answer::default() })
    }

    pub(crate) fn free(&mut self, id: u64) -> Outcome {
        let holder = self.sequences.remove(&id).ok_or((Status::StaleId, 0))?;
        self.let_go(&holder);
        Ok(Answer::default())
    }

    pub(crate) fn release(&mut self, lease: u64) -> Outcome {
        let holder = self.leases.remove(&lease).ok_or((Status::StaleId, 0))?;
        self.let_go(&Holder { last_step: 0, ..holder });
        Ok(Answer::default())
    }

    fn let_go(&mut self, holder: &Holder) {
        for (group, held) in self.groups.iter_mut().zip(&holder.blocks) {
            for &block in held.iter().rev() {
                group.release(block, holder.last_step, self.completed);
            }
        }
        self.settle_limits();
    }

    pub(crate) fn complete(&mut self, steps: &[u64]) {
        for &step in steps {
            self.groups.iter_mut().for_each(|group| group.complete(step));
            self.completed = step;
        }
        self.settle_limits();
    }

    pub(crate) fn evict(&mut self, group: usize, count: usize) -> usize {
        let group = &mut self.groups[group];
        for evicted in 0..count {
            let Some(victim) = group.victim() else { return evicted };
            group.forget(victim);
            group.free.push(victim);
        }
        count
    }

    pub(crate) fn reset(&mut self, namespace: Option<u64>) -> usize {
        for holder in self.leases.values_mut().chain(self.sequences.values_mut()) {
            holder.no_store |= namespace.is_none_or(|wanted| wanted == holder.namespace);
        }
        let mut removed = 0;
        for group in &mut self.groups {
            let blocks = match namespace {
                None => (0..group.blocks.len() as u32).collect(),
                Some(namespace) => {
                    let is_ordered = self.limits.get(&namespace).is_some_and(|limit| limit.1 != u64::MAX);
                    group.wiped(namespace, is_ordered)
                }
            };
            for block in blocks {
                if group.blocks[block as usize].content.is_none() {
                    continue;
                }
                let was_released = group.is_released(block);
                group.order.retain(|&listed| listed != block);
                group.forget(block);
                if was_released {
                    group.free.push(block);
                }
                removed += 1;
            }
        }
        removed
    }
}
