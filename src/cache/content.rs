//! What the blocks of a store hold: finding by key, the proof that what was found is what was wanted, and the tokens
//! that are kept for it.
//!
//! What it does not: change who holds a block or whether it is findable; that is `store`. Invariant: kept tokens of a
//! findable block never change.

use super::block::{Counters, NAMED, NO_SERIAL, Publication};
use super::children::Parent;
use super::hash::Extras;
use super::store::Store;

/// What proves that a block found by its key is the wanted content.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// The key.
    Key,
    /// Its tokens, extras and the identity of the block before it.
    Chain,
    /// The identity of the full group's block that ends with it.
    Anchor,
    /// The digest of the extras.
    Extras,
}

impl Store {
    /// The findable block with this key, if it is proved to be this content with these tokens.
    pub(super) fn find(&self, wanted: &Publication, tokens: &[i32], counters: &mut Counters) -> Option<u32> {
        let hash = self.index.hash(&wanted.key, wanted.namespace);
        let found = self.index.find(hash, |block| self.has_key(block, wanted))?;
        if !self.compares(wanted) {
            return Some(found);
        }
        let has_tokens = self.is_filled_with(found, tokens, wanted.extras);
        counters.collisions += u64::from(!has_tokens);
        (has_tokens && self.origin(found).parent_serial == wanted.parent_serial).then_some(found)
    }

    /// Whether found content is proved by its ancestors too.
    pub(super) fn proves_ancestry(&self) -> bool {
        self.proof == Proof::Chain
    }

    pub(super) fn parent_of(&self, block: u32) -> Parent {
        Parent { key: self.origin(block).parent_key, namespace: self.block(block).namespace() }
    }

    /// The newest findable block after a parent.
    pub(super) fn first_child(&self, parent: &Parent) -> Option<u32> {
        let is_child = |block| self.parent_of(block) == *parent;
        self.children.as_ref()?.first(parent, is_child)
    }

    /// The one after it.
    pub(super) fn next_child(&self, block: u32) -> Option<u32> {
        self.children.as_ref()?.next(block)
    }

    pub(super) fn has_key(&self, block: u32, wanted: &Publication) -> bool {
        let block = &self.blocks[block as usize];
        block.namespace() == wanted.namespace && block.key == wanted.key
    }

    /// Whether tokens and ancestry of this content are compared.
    pub(super) fn compares(&self, wanted: &Publication) -> bool {
        self.proof != Proof::Key && wanted.has_tokens
    }

    pub(super) fn is_filled_with(&self, block: u32, tokens: &[i32], extras: Extras) -> bool {
        let has_extras = || self.origin(block).extras == extras.0;
        match self.proof {
            Proof::Key | Proof::Anchor => true,
            Proof::Chain => self.kept_tokens(block) == tokens && has_extras(),
            Proof::Extras => has_extras(),
        }
    }

    pub(super) fn kept_tokens(&self, block: u32) -> &[i32] {
        if !self.compares_tokens() {
            return &[];
        }
        let each = self.block_tokens as usize;
        &self.tokens[block as usize * each..][..each]
    }

    /// Forgets what a block was to be that its only holder fills anew from some token on.
    pub(super) fn reopen(&mut self, block: u32) {
        self.blocks[block as usize].namespace_and_flags &= !NAMED;
        if let Some(origin) = self.origins.get_mut(block as usize) {
            origin.serial = NO_SERIAL;
        }
    }

    /// Gives a block the kept tokens of another.
    pub(super) fn copy_kept(&mut self, source: u32, target: u32) {
        if self.compares_tokens() {
            let each = self.block_tokens as usize;
            let from = source as usize * each;
            self.tokens.copy_within(from..from + each, target as usize * each);
        }
    }

    /// Keeps tokens of a block that is being filled, if this store compares them. A findable one never changes.
    pub(super) fn keep_tokens(&mut self, block: u32, offset: u32, tokens: &[i32]) {
        if self.compares_tokens() && !self.block(block).is_findable() {
            let at = block as usize * self.block_tokens as usize + offset as usize;
            self.tokens[at..at + tokens.len()].copy_from_slice(tokens);
        }
    }
}
