//! Proofs of what a store says of itself, for the cache's `validate`: its lists agree with the flags of its blocks.
//!
//! Slow: each walks all blocks. What it does not: count references and states; `state` does, which knows the holders.
//! Part of `store`.

use super::Store;
use crate::cache::block::{Block, COPY_TARGET, Origin, ZERO_LISTED};
use crate::error::{Error, Result};
use crate::sys::reserve::filled;

impl Store {
    /// Checks that exactly the blocks which the zero list or a listed copy names say so: others keep their memory.
    pub(in crate::cache) fn validate_lists_of_step(&self, targets: impl Iterator<Item = u32>) -> Result<()> {
        let mut flags = filled(self.blocks.len(), 0)?;
        if self.zeros_told > self.zero_list.len() {
            return Err(Error::internal("more blocks to be filled with zeros were told than are listed"));
        }
        for &block in &self.zero_list {
            if flags[block as usize] != 0 {
                return Err(Error::internal(format!("block {block} is to be filled with zeros twice")));
            }
            flags[block as usize] = ZERO_LISTED;
        }
        targets.for_each(|block| flags[block as usize] |= COPY_TARGET);
        let says = |block: &Block| block.namespace_and_flags & (ZERO_LISTED | COPY_TARGET);
        match (0..).zip(&self.blocks).find(|(at, block)| says(block) != flags[*at as usize]) {
            Some((at, _)) => {
                let at: u32 = at;
                Err(Error::internal(format!("block {at} is wrong about the step's lists")))
            }
            None => Ok(()),
        }
    }

    /// Checks that exactly the findable blocks stand in the lists of the namespaces, of which there are so many.
    pub(in crate::cache) fn validate_namespaces(&self, namespaces: u32) -> Result<()> {
        let mut listed = filled(self.blocks.len(), u32::MAX)?;
        for namespace in 0..namespaces {
            self.by_owner.validate_in(namespace, |block| listed[block as usize] = namespace)?;
        }
        let expected = |block: &Block| if block.is_findable() { block.namespace() } else { u32::MAX };
        match self.blocks.iter().zip(listed).position(|(block, listed)| expected(block) != listed) {
            Some(at) => Err(Error::internal(format!("block {at} is in the list of the wrong namespace"))),
            None => Ok(()),
        }
    }

    /// Checks that each findable block is identified by what it holds and follows.
    fn validate_identities(&self) -> Result<()> {
        let is_wrong = |(block, origin): &(u32, &Origin)| {
            let tokens = self.kept_tokens(*block);
            self.block(*block).is_findable()
                && origin.serial != self.identities.after(origin.parent_serial, tokens)
        };
        match (0..).zip(&self.origins).find(is_wrong) {
            Some((block, _)) => Err(Error::internal(format!("block {block} has another content's identity"))),
            None => Ok(()),
        }
    }

    /// Identities, the free list and the policy, for the cache's `validate`.
    pub(in crate::cache) fn validate_lists(&self) -> Result<Vec<u32>> {
        self.validate_identities()?;
        let (is_inactive, is_findable) =
            (|index: u32| self.is_inactive(index), |index: u32| self.block(index).is_findable());
        self.validate_limit()?;
        self.retention.validate(&is_inactive, &is_findable)?;
        let is_unmarked = |index: &u32| self.retention.has_mark(*index) && !self.block(*index).is_retained();
        if let Some(index) = (0..self.block_count()).find(is_unmarked) {
            return Err(Error::internal(format!("block {index} does not tell of its retention")));
        }
        let is_ordinary = |index: u32| self.is_inactive(index) && !self.retention.governs(index);
        self.policy.validate(&is_ordinary, &is_findable)?;
        if let Some(children) = &self.children {
            let is_departed = |index: u32| self.block(index).is_departed();
            let is_listed = |index: u32| is_findable(index) || is_departed(index);
            children.validate(|index| is_listed(index).then(|| self.parent_of(index)), is_departed)?;
        }
        self.free.validate()
    }
}
