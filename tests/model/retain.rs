//! What the naive cache makes of RETAIN, PIN and UNPIN.

use kavern::error::Status;

use crate::naive::{Answer, Group, Naive, Outcome};

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

    pub(crate) fn retain(&mut self, id: u64, offset: usize, tokens: usize, priority: u8) -> Outcome {
        let blocks = self.stretch(id, offset, tokens)?;
        for (group, blocks) in self.groups.iter_mut().zip(blocks) {
            blocks.iter().for_each(|&block| group.blocks[block as usize].bias = i32::from(priority) - 50);
        }
        Ok(Answer::default())
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
