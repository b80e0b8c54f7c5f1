//! Which content a block of a store holds, and the block that holds a wanted one.
//!
//! Reads the index, the keys, and what the store keeps to prove that a key's block is the wanted content; asks for
//! memory ahead of all three. What it does not: change who holds a block.

use super::Store;
use crate::cache::block::{
    Ancestry, Block, Counters, FINDABLE, NAMED, NAMESPACE_MASK, NO_SERIAL, Origin, Publication,
};
use crate::cache::children::Parent;
use crate::cache::evict::Facts;
use crate::cache::hash::{Extras, Key};
use crate::sys::prefetch;

/// Tokens in one line of the processor's cache.
const TOKENS_OF_LINE: usize = 16;
/// Lines of a block's tokens that are asked for ahead; reading on in order, the processor asks for the rest itself.
const LINES_MOST: usize = 4;
/// Blocks of which one asks for what the policy keeps of all: not more than a line of the processor's cache.
const NEIGHBOURS: u32 = 4;

/// What proves that a block found by its key is the wanted content.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum Proof {
    /// The key.
    Key,
    /// Its tokens, extras and the identity of the block before it.
    Chain,
    /// The identity of the full group's block that ends with it.
    Anchor,
    /// The digest of the extras.
    Extras,
}

/// Whether both are the same tokens.
#[inline]
fn is_same(kept: &[i32], wanted: &[i32]) -> bool {
    // Of a length that the compiler knows, comparing is a few words side by side and no call.
    match (<&[i32; TOKENS_OF_LINE]>::try_from(kept), <&[i32; TOKENS_OF_LINE]>::try_from(wanted)) {
        (Ok(kept), Ok(wanted)) => {
            kept.iter().zip(wanted).fold(0, |differing, (kept, wanted)| differing | (kept ^ wanted)) == 0
        }
        _ => kept == wanted,
    }
}

impl Store {
    /// The first block under this hash, if there is one, and has all that `find_from` reads of it fetched.
    pub(in crate::cache) fn fetch_found(&self, hash: u32) -> Option<u32> {
        let block = self.index.find(hash, |_| true)?;
        if !self.is_large {
            return Some(block);
        }
        // The policy's links are asked for when the block is about to be acquired.
        prefetch::prefetch(&self.blocks, block as usize);
        if self.proof != Proof::Key {
            self.fetch_origin(block);
        }
        self.fetch_tokens(block);
        Some(block)
    }

    /// Has all fetched that is read of so many blocks that lie one behind the other.
    #[inline]
    pub(in crate::cache) fn fetch_run(&self, first: u32, count: usize) {
        let (blocks, each) = (first as usize..first as usize + count, self.block_tokens as usize);
        prefetch::prefetch_all(&self.blocks, blocks.clone());
        if self.proof != Proof::Key {
            prefetch::prefetch_all(&self.tokens, blocks.start * each..blocks.end * each);
            prefetch::prefetch_all(&self.origins, blocks);
        }
    }

    /// Has all of a block's origin fetched, which may lie in two lines.
    fn fetch_origin(&self, block: u32) {
        prefetch::prefetch(&self.origins, block as usize);
        prefetch::prefetch_part(&self.origins, block as usize, size_of::<Origin>() - 1);
    }

    /// The same of its ancestry.
    pub(super) fn fetch_ancestry(&self, block: u32) {
        prefetch::prefetch(&self.ancestries, block as usize);
        prefetch::prefetch_part(&self.ancestries, block as usize, size_of::<Ancestry>() - 1);
    }

    /// Has the kept tokens of a block fetched, if there are any.
    fn fetch_tokens(&self, block: u32) {
        if self.compares_tokens() {
            let first = block as usize * self.block_tokens as usize;
            let count = (self.block_tokens as usize).min(LINES_MOST * TOKENS_OF_LINE);
            prefetch::prefetch_all(&self.tokens, first..first + count);
        }
    }

    /// Has fetched what is written of a block that is handed out soon.
    pub(super) fn fetch_new(&self, block: u32) {
        prefetch::prefetch(&self.blocks, block as usize);
        prefetch::prefetch(&self.origins, block as usize);
    }

    /// The same of the block after this one, if it can be had.
    pub(in crate::cache) fn fetch_beside(&self, near: u32) {
        if self.free.has(near + 1) {
            self.fetch_new(near + 1);
        }
    }

    /// Has fetched what is written of a held block when tokens in it are committed.
    pub(in crate::cache) fn fetch_open(&self, block: u32) {
        prefetch::prefetch(&self.blocks, block as usize);
        self.fetch_tokens(block);
    }

    /// Has fetched what is written of a held block when it is published under this key.
    pub(in crate::cache) fn fetch_published(&self, block: u32, key: &Key, namespace: u32) {
        self.fetch_origin(block);
        self.fetch_ancestry(block);
        self.by_owner.fetch(block);
        self.policy.fetch(block);
        self.fetch_key(key, namespace);
    }

    /// Has fetched what the block after this one is published with.
    pub(in crate::cache) fn fetch_parent(&self, block: Option<i32>) {
        let Some(block) = block else { return };
        prefetch::prefetch(&self.origins, block as usize);
    }

    /// Has a block fetched that is acquired or released soon, after this other one.
    #[inline]
    pub(in crate::cache) fn fetch_block(&self, block: Option<i32>, after: Option<i32>) {
        let Some(block) = block else { return };
        if self.is_large {
            prefetch::prefetch(&self.blocks, block as usize);
            // What a policy keeps of neighbours lies in one line.
            if (block as u32).is_multiple_of(NEIGHBOURS)
                || after.is_none_or(|after| block.abs_diff(after) != 1)
            {
                self.policy.fetch(block as u32);
            }
        }
    }

    /// Has fetched what is written when a block is published under this key soon.
    pub(in crate::cache) fn fetch_key(&self, key: &Key, namespace: u32) {
        self.index.fetch(self.index.hash(key, namespace));
        self.policy.fetch_for(&Facts { key: *key, namespace, ..Facts::default() });
    }

    /// Whether a block is findable under this key, whatever came before it.
    pub(in crate::cache) fn has(&self, key: &Key, namespace: u32) -> bool {
        self.find_named(key, namespace).is_some()
    }

    /// The findable block with this key, if it is proved to be this content with these tokens.
    pub(in crate::cache) fn find(
        &self,
        hash: u32,
        wanted: &Publication,
        tokens: &[i32],
        counters: &mut Counters,
    ) -> Option<u32> {
        let found = self.index.find(hash, |block| self.is_named(block, &wanted.key, wanted.namespace))?;
        self.proves(found, wanted, tokens, counters).then_some(found)
    }

    /// The same. This block is looked at first, if there is one with this id.
    #[inline]
    pub(in crate::cache) fn find_near(
        &self,
        likely: u32,
        wanted: &Publication,
        tokens: &[i32],
        counters: &mut Counters,
    ) -> Option<u32> {
        let found = match self.is_named(likely, &wanted.key, wanted.namespace) {
            true => likely,
            false => self.find_named(&wanted.key, wanted.namespace)?,
        };
        self.proves(found, wanted, tokens, counters).then_some(found)
    }

    /// Whether a block with the wanted key is the wanted content.
    fn proves(&self, found: u32, wanted: &Publication, tokens: &[i32], counters: &mut Counters) -> bool {
        !self.compares(wanted)
            || self.prove(found, wanted.parent_serial, &wanted.extras, tokens, counters).is_some()
    }

    /// Whether a block, if there is one with this id, is the one that is findable under this key.
    #[inline]
    pub(in crate::cache) fn is_named(&self, block: u32, key: &Key, namespace: u32) -> bool {
        let is_it = |block: &Block| {
            block.namespace_and_flags & (FINDABLE | NAMESPACE_MASK) == FINDABLE | namespace
                && block.key == *key
        };
        self.blocks.get(block as usize).is_some_and(is_it)
    }

    /// Whether the blocks from this one on, one behind the other, are those that are findable under so many keys.
    #[inline]
    pub(in crate::cache) fn is_run_named(
        &self,
        first: u32,
        count: usize,
        namespace: u32,
        key: impl Fn(usize) -> Key,
    ) -> bool {
        let Some(blocks) = self.blocks.get(first as usize..).and_then(|blocks| blocks.get(..count)) else {
            return false;
        };
        // Nearly always all are, so nothing is gained by a look at each before the next one.
        let differing = blocks.iter().enumerate().fold(0, |differing, (at, block)| {
            let flags = block.namespace_and_flags & (FINDABLE | NAMESPACE_MASK) ^ (FINDABLE | namespace);
            let words = block
                .key
                .0
                .iter()
                .zip(key(at).0)
                .fold(0, |differing, (is, wanted)| differing | (is ^ wanted));
            differing | words | u64::from(flags)
        });
        differing == 0
    }

    /// The identity of the last of the blocks from this one on, if they are these tokens and extras, block by block,
    /// one after the other behind that parent. Nothing where something else proves content: then each is proved alone.
    #[inline]
    pub(in crate::cache) fn prove_run<'a>(
        &self,
        first: u32,
        parent_serial: u64,
        tokens: &[i32],
        extras: impl Fn(usize) -> &'a Extras,
    ) -> Option<u64> {
        let (first, each) = (first as usize, self.block_tokens as usize);
        let count = tokens.len() / each;
        let is_filled = self.proof == Proof::Chain
            && self.tokens.get(first * each..).and_then(|kept| kept.get(..tokens.len())) == Some(tokens);
        let origins =
            self.origins.get(first..).and_then(|origins| origins.get(..count)).filter(|_| is_filled)?;
        origins.iter().enumerate().try_fold(parent_serial, |parent, (at, origin)| {
            (origin.parent_serial == parent && origin.extras == extras(at).0).then_some(origin.serial)
        })
    }

    /// The block that is findable under this key, whatever it holds.
    pub(in crate::cache) fn find_named(&self, key: &Key, namespace: u32) -> Option<u32> {
        self.index.find(self.index.hash(key, namespace), |block| self.is_named(block, key, namespace))
    }

    /// The identity of a found block's content, if it is these tokens and extras after that parent.
    #[inline(always)]
    pub(in crate::cache) fn prove(
        &self,
        found: u32,
        parent_serial: u64,
        extras: &Extras,
        tokens: &[i32],
        counters: &mut Counters,
    ) -> Option<u64> {
        let has_tokens = self.is_filled_with(found, tokens, extras);
        counters.collisions += u64::from(!has_tokens);
        let origin = self.origins.get(found as usize)?;
        (has_tokens && origin.parent_serial == parent_serial).then_some(origin.serial)
    }

    /// Whether found content is proved by its ancestors too.
    pub(in crate::cache) fn proves_ancestry(&self) -> bool {
        self.proof == Proof::Chain
    }

    /// The newest findable block after a parent. One that departed has no others beside it.
    pub(in crate::cache) fn first_child(&self, parent: &Parent) -> Option<u32> {
        let is_child = |block| self.parent_of(block) == *parent;
        self.children.as_ref()?.first(parent, is_child).filter(|&first| self.block(first).is_findable())
    }

    /// The one after it.
    pub(in crate::cache) fn next_child(&self, block: u32) -> Option<u32> {
        self.children.as_ref()?.next(block)
    }

    /// Whether a block that is findable or departed is listed under this key.
    pub(super) fn has_key(&self, block: u32, wanted: &Publication) -> bool {
        let block = &self.blocks[block as usize];
        block.namespace() == wanted.namespace && block.key == wanted.key
    }

    /// Identity of a block's content, if that is kept.
    #[inline]
    pub(in crate::cache) fn serial(&self, block: u32) -> u64 {
        self.origins.get(block as usize).map_or(NO_SERIAL, |origin| origin.serial)
    }

    /// Whether tokens and ancestry of this content are compared.
    pub(super) fn compares(&self, wanted: &Publication) -> bool {
        self.proof != Proof::Key && wanted.has_tokens
    }

    #[inline(always)]
    pub(super) fn is_filled_with(&self, block: u32, tokens: &[i32], extras: &Extras) -> bool {
        let has_extras = || self.origins.get(block as usize).is_some_and(|origin| origin.extras == extras.0);
        match self.proof {
            Proof::Key | Proof::Anchor => true,
            Proof::Chain => is_same(self.kept_tokens(block), tokens) && has_extras(),
            Proof::Extras => has_extras(),
        }
    }

    #[inline]
    pub(in crate::cache) fn kept_tokens(&self, block: u32) -> &[i32] {
        if !self.compares_tokens() {
            return &[];
        }
        let each = self.block_tokens as usize;
        &self.tokens[block as usize * each..][..each]
    }

    /// Forgets what a block was to be that its only holder fills anew from some token on.
    pub(in crate::cache) fn reopen(&mut self, block: u32) {
        self.blocks[block as usize].namespace_and_flags &= !NAMED;
        if let Some(origin) = self.origins.get_mut(block as usize) {
            origin.serial = NO_SERIAL;
        }
    }

    /// Gives a block the kept tokens of another.
    pub(in crate::cache) fn copy_kept(&mut self, source: u32, target: u32) {
        if self.compares_tokens() {
            let each = self.block_tokens as usize;
            let from = source as usize * each;
            self.tokens.copy_within(from..from + each, target as usize * each);
        }
    }

    /// Keeps tokens of a block that is being filled, if this store compares them. A findable one never changes.
    pub(in crate::cache) fn keep_tokens(&mut self, block: u32, offset: u32, tokens: &[i32]) {
        if self.compares_tokens() && !self.block(block).is_findable() {
            let at = block as usize * self.block_tokens as usize + offset as usize;
            self.tokens[at..at + tokens.len()].copy_from_slice(tokens);
        }
    }
}
