//! Limits of namespaces as one would write them on a blackboard, and the order in which a wipe lets blocks go.

use super::naive::{Group, Naive};
use kavern::error::Status;

/// What a namespace may hold and keep cached.
pub(crate) type Limit = (u64, u64);

impl Group {
    fn namespace_of(&self, block: u32) -> Option<u64> {
        self.blocks[block as usize].content.as_ref().map(|content| content.0)
    }

    /// A block became findable, or a cached one is held again.
    pub(crate) fn note_held(&mut self, block: u32) {
        self.note_gone(block);
        self.held_order.push_back(block);
    }

    /// A findable block is held by nobody.
    pub(crate) fn note_cached(&mut self, block: u32) {
        self.note_gone(block);
        self.cached_order.push_back(block);
    }

    /// A block is findable no more.
    pub(crate) fn note_gone(&mut self, block: u32) {
        self.cached_order.retain(|&listed| listed != block);
        self.held_order.retain(|&listed| listed != block);
    }

    fn cached_of(&self, namespace: u64) -> usize {
        self.cached_order.iter().filter(|&&block| self.namespace_of(block) == Some(namespace)).count()
    }

    /// Blocks of a namespace in the order in which a wipe lets them go.
    pub(crate) fn wiped(&self, namespace: u64, is_ordered: bool) -> Vec<u32> {
        let all = self.cached_order.iter().chain(&self.held_order).copied();
        let mut blocks: Vec<u32> = all.filter(|&block| self.namespace_of(block) == Some(namespace)).collect();
        if !is_ordered {
            blocks.sort_by_key(|&block| self.published[block as usize]);
        }
        blocks
    }
}

impl Naive {
    fn held_of(&self, namespace: u64) -> u64 {
        let holders = || self.leases.values().chain(self.sequences.values());
        let held = |group: usize| {
            let of = holders().filter(|holder| holder.namespace == namespace);
            let mut blocks: Vec<u32> = of.flat_map(|holder| holder.blocks[group].clone()).collect();
            blocks.sort_unstable();
            blocks.dedup();
            blocks.len() as u64
        };
        (0..self.groups.len()).map(held).sum()
    }

    pub(crate) fn check_limit(&self, namespace: u64, added: usize) -> Result<(), (Status, usize)> {
        let limit = self.limits.get(&namespace).map_or(u64::MAX, |limit| limit.0);
        let wanted = self.held_of(namespace) + added as u64;
        if wanted > limit { Err((Status::LimitReached, (wanted - limit) as usize)) } else { Ok(()) }
    }

    /// The oldest cached blocks of each namespace go that has more than it may.
    pub(crate) fn settle_limits(&mut self) {
        for (&namespace, &(_, most)) in &self.limits {
            while self.groups.iter().map(|group| group.cached_of(namespace) as u64).sum::<u64>() > most {
                let cached_tokens = |group: &&mut Group| group.cached_of(namespace) * group.block_tokens;
                let group = self.groups.iter_mut().max_by_key(cached_tokens).unwrap();
                let mine = |&&block: &&u32| group.namespace_of(block) == Some(namespace);
                let oldest = *group.cached_order.iter().find(mine).unwrap();
                group.order.retain(|&listed| listed != oldest);
                group.forget(oldest);
                group.free.push(oldest);
            }
        }
    }
}
