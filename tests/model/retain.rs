//! What the naive cache makes of RETAIN, PIN, UNPIN and of time that passes.

use kavern::error::Status;

use crate::naive::{Answer, Group, Naive, Outcome};

/// Milliseconds of a tick: a priority ends with the first tick that begins when its time is over.
pub(crate) const TICK_MS: u64 = 64;

impl Group {
    pub(crate) fn is_governed(&self, block: u32) -> bool {
        let block = &self.blocks[block as usize];
        block.bias != 0 || block.pins > 0
    }

    /// The oldest block of the lowest priority, of those below the ordinary or of all.
    pub(crate) fn other_victim(&mut self, below: bool) -> Option<u32> {
        let bias = |&at: &usize| self.blocks[self.others[at] as usize].bias;
        let wanted = (0..self.others.len()).filter(|at| !below || bias(at) < 0);
        let at = wanted.min_by_key(|at| (bias(at), *at))?;
        Some(self.others.remove(at))
    }

    /// A block's priority ends: if nobody holds it, it is as if it had been let go now.
    fn expire(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        (entry.bias, entry.expiry) = (0, None);
        if !self.is_released(block) || self.blocks[block as usize].pins > 0 {
            return;
        }
        self.others.retain(|&listed| listed != block);
        if !self.is_fifo {
            self.order.push_back(block);
        }
    }

    fn pinned(&self) -> usize {
        self.blocks.iter().filter(|block| block.pins > 0).count()
    }
}

impl Naive {
    /// The blocks of each group that a stretch touches.
    fn stretch(&self, id: u64, offset: usize, tokens: usize) -> Result<Vec<Vec<u32>>, (Status, usize)> {
        let holder = self.leases.get(&id).or(self.sequences.get(&id)).ok_or((Status::StaleId, 0))?;
        let end = if tokens == 0 { holder.length } else { offset + tokens };
        if end > holder.length || offset > end {
            return Err((Status::InvalidArgument, 0));
        }
        let touched = |(group, held): (&Group, &Vec<u32>)| {
            let is_touched =
                |at: &usize| at * group.block_tokens < end && (at + 1) * group.block_tokens > offset;
            (0..held.len()).filter(is_touched).map(|at| held[at]).collect()
        };
        Ok(self.groups.iter().zip(&holder.blocks).map(touched).collect())
    }

    pub(crate) fn retain(
        &mut self,
        id: u64,
        offset: usize,
        tokens: usize,
        priority: u8,
        ttl_ms: u64,
    ) -> Outcome {
        let blocks = self.stretch(id, offset, tokens)?;
        let expiry = (ttl_ms > 0 && priority != 50).then(|| self.expiry(ttl_ms));
        for (group, blocks) in self.groups.iter_mut().zip(blocks) {
            for block in blocks {
                self.timed += u64::from(expiry.is_some());
                let block = &mut group.blocks[block as usize];
                block.bias = i32::from(priority) - 50;
                block.expiry = expiry.map(|tick| (tick, self.timed));
            }
        }
        Ok(Answer::default())
    }

    /// The tick at which a time to live is over that begins now.
    pub(crate) fn expiry(&self, ttl_ms: u64) -> u64 {
        (self.now_ms + ttl_ms) / TICK_MS + 1
    }

    /// Whether some priority ends at a tick.
    pub(crate) fn ends_at(&self, tick: u64) -> bool {
        let blocks = self.groups.iter().flat_map(|group| &group.blocks);
        blocks.filter_map(|block| block.expiry).any(|(other, _)| other == tick)
    }

    /// Priorities end whose time is over, in the order of their times.
    pub(crate) fn pass(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        for group in &mut self.groups {
            let is_over = |block: &u32| {
                group.blocks[*block as usize].expiry.is_some_and(|(tick, _)| tick <= now_ms / TICK_MS)
            };
            let mut over: Vec<u32> = (0..group.blocks.len() as u32).filter(is_over).collect();
            over.sort_by_key(|&block| group.blocks[block as usize].expiry);
            self.expired += over.len() as u64;
            over.into_iter().for_each(|block| group.expire(block));
        }
    }

    pub(crate) fn pin(&mut self, id: u64, offset: usize, tokens: usize) -> Outcome {
        let mut blocks = self.stretch(id, offset, tokens)?;
        for (group, blocks) in self.groups.iter().zip(&mut blocks) {
            blocks.retain(|&block| group.blocks[block as usize].content.is_some());
            let new = blocks.iter().filter(|&&block| group.blocks[block as usize].pins == 0).count();
            if group.pinned() + new > group.blocks.len() / 2 {
                return Err((Status::LimitReached, 0));
            }
        }
        for (group, blocks) in self.groups.iter_mut().zip(blocks) {
            blocks.iter().for_each(|&block| group.blocks[block as usize].pins += 1);
        }
        Ok(Answer::default())
    }

    pub(crate) fn unpin(&mut self, id: u64, offset: usize, tokens: usize) -> Outcome {
        let blocks = self.stretch(id, offset, tokens)?;
        for (group, blocks) in self.groups.iter_mut().zip(blocks) {
            for block in blocks {
                let pins = &mut group.blocks[block as usize].pins;
                *pins = pins.saturating_sub(1);
            }
        }
        Ok(Answer::default())
    }
}
