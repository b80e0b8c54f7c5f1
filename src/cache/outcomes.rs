//! What became of the blocks that a lookup asked for, each counted once.
//!
//! A block is hit, missed, or skipped: found but left out at the request's wish, or not looked for. A group of which
//! only a part of the prefix is needed asks for that part alone. Invariant: hit + missed + skipped equals what was
//! asked for.

use super::classes::Groups;
use super::group::Reach;
use super::hash::Extras;
use super::hybrid::input_of;
use super::lookup::{Naming, Request};
use super::state::State;

/// Blocks of one lookup, all groups together, and its tokens.
pub(super) struct Outcomes {
    pub(super) blocks: u64,
    pub(super) hit: u64,
    pub(super) missed: u64,
    pub(super) tokens: u64,
    pub(super) hit_tokens: u64,
}

impl State {
    /// Counts the blocks of a request whose hits stand in the lease's rows.
    pub(super) fn count_lookup(
        &mut self,
        request: &Request<'_>,
        namespace: u32,
        lease: usize,
        groups: Groups,
        found_tokens: u64,
        hit_tokens: u64,
    ) {
        let links = match request.naming {
            _ if request.no_read => 0,
            Naming::Tokens(tokens, _) => tokens.len() / self.link_tokens as usize,
            Naming::Keys { bytes, key_bytes } => bytes.len() / key_bytes as usize,
            // Nobody looks for the prefix of chunks.
            Naming::Chunks { .. } => 0,
        };
        let looked_tokens = links.min(self.most_links()) as u64 * u64::from(self.link_tokens);
        // Another input is looked for by its own name, if it has one.
        let names_input = !request.no_read
            && match request.naming {
                Naming::Tokens(_, extras) => input_of(extras) != Extras::NONE,
                Naming::Keys { bytes, .. } => !bytes.is_empty(),
                Naming::Chunks { .. } => false,
            };
        let (mut blocks, mut hit, mut missed) = (0, 0, 0);
        for group in groups.range() {
            let (store, rows) = (&self.stores[group], &self.holders.lease_rows[group]);
            let asked = |tokens: u64| store.reach.wanted_blocks(store.block_tokens, tokens);
            // A block that is copied is no hit; its tokens are.
            let copied = u64::from(self.finds_partial && store.ends_inside(hit_tokens));
            let held = rows.held(lease).len() as u64 - copied;
            let wanted = asked(request.token_count).max(held);
            let lacking = match store.reach {
                Reach::Cross { .. } if names_input => wanted - held,
                Reach::Cross { .. } => 0,
                _ if looked_tokens == 0 => 0,
                _ => {
                    // A window asks for as many wherever it ends, and lacks the block in which a hit ends.
                    let is_cut = store.reach.is_window() && store.ends_inside(found_tokens);
                    let lacking = asked(looked_tokens).saturating_sub(asked(found_tokens));
                    lacking.max(u64::from(is_cut))
                }
            };
            missed += lacking.min(wanted - held);
            (blocks, hit) = (blocks + wanted, hit + held);
        }
        let tokens = request.token_count;
        self.count_outcomes(namespace, &Outcomes { blocks, hit, missed, tokens, hit_tokens });
    }

    /// Counts a lookup for the cache and for its namespace.
    pub(super) fn count_outcomes(&mut self, namespace: u32, of: &Outcomes) {
        let counters = &mut self.shared.counters;
        counters.lookups += 1;
        counters.lookup_blocks += of.blocks;
        counters.hit_blocks += of.hit;
        counters.hit_tokens += of.hit_tokens;
        counters.missed_blocks += of.missed;
        counters.skipped_blocks += of.blocks - of.hit - of.missed;
        let owner = self.shared.namespaces.get(namespace).owner;
        let counts = self.shared.namespaces.owners.counts(owner);
        counts.lookups += 1;
        counts.lookup_blocks += of.blocks;
        counts.hit_blocks += of.hit;
        counts.lookup_tokens += of.tokens;
        counts.hit_tokens += of.hit_tokens;
    }
}
