//! Blocks that a cache without a device tells to be filled with zeros: where the memory is the engine's, only the
//! engine can wipe what another tenant left there.
//!
//! Each store lists its blocks under the lock, at most once each, and knows which of them `tables` told. Told ones stay
//! listed until the step is over, because its plan tells all of them to workers; where plans are made they stay until
//! the next plan. One that is listed again meanwhile, for yet another tenant, is told again. What was not told stays
//! listed from step to step, as in a cache that fills them itself. Fixed capacity: `tables` allocates nothing.

use super::config::{CacheConfig, Geometry, Scrub};
use super::state::State;
use crate::error::Result;
use crate::sys::reserve::room;

/// A block that must be zeros before the step's work; kavern_kv_zero_block of the C header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct ZeroBlock {
    /// The group.
    pub group: u32,
    /// The block.
    pub block: i32,
}

/// What the latest `tables` told, one group after the other.
pub(super) struct Zeros {
    told: Vec<ZeroBlock>,
}

impl Zeros {
    pub(super) fn new(geometry: &Geometry, config: &CacheConfig) -> Result<Self> {
        let blocks = geometry.groups.iter().map(|group| group.blocks as usize).sum();
        let tells = config.metadata_only && config.scrub != Scrub::None;
        Ok(Self { told: room(if tells { blocks } else { 0 })? })
    }

    pub(super) fn told(&self) -> &[ZeroBlock] {
        &self.told
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.told.capacity() * size_of::<ZeroBlock>()) as u64
    }
}

impl State {
    /// A step begins: the one before it was told these, and no plan is to tell them.
    pub(super) fn begin_zeros(&mut self) {
        if !self.plans.is_used() {
            self.stores.iter_mut().for_each(|store| store.forget_told_zeros());
        }
    }

    /// Tells what was listed since the last time, for a cache without a device.
    pub(super) fn tell_zeros(&mut self) {
        let told = &mut self.zeros.told;
        told.clear();
        for (group, store) in (0..).zip(&mut self.stores) {
            told.extend(store.tell_zeros().iter().map(|&block| ZeroBlock { group, block }));
        }
    }
}
