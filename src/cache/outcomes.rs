//! What became of the blocks that a lookup asked for, each counted once.
//!
//! A block is hit, missed, or skipped: found but left out at the request's wish, or not looked for. A group of which only
//! a part of the prefix is needed asks for that part alone. Invariant: hit + missed + skipped equals what was asked for.

use super::hash::Key;
use super::lookup::Request;
use super::state::State;

impl State {
    /// Counts the blocks of a request whose hits stand in the lease's rows.
    pub(super) fn count_lookup(
        &mut self,
        request: &Request<'_>,
        namespace: u32,
        lease: usize,
        found_tokens: u64,
        hit_tokens: u64,
    ) {
        let links = self.walk(request, Key::default()).link_count().min(self.most_links()) as u64;
        let looked_tokens = if request.no_read { 0 } else { links * u64::from(self.link_tokens) };
        let (mut blocks, mut hit, mut missed) = (0, 0, 0);
        for (store, rows) in self.stores.iter().zip(&self.holders.lease_rows) {
            let asked = |tokens: u64| store.reach.wanted_blocks(store.block_tokens, tokens);
            // A block that is copied is no hit; its tokens are.
            let is_copied = self.finds_partial && hit_tokens % u64::from(store.block_tokens) > 0;
            let held = rows.held(lease).len() as u64 - u64::from(is_copied);
            let wanted = asked(request.token_count).max(held);
            let lacking = if request.no_read { 0 } else { asked(looked_tokens) };
            missed += lacking.saturating_sub(asked(found_tokens)).min(wanted - held);
            (blocks, hit) = (blocks + wanted, hit + held);
        }
        let counters = &mut self.shared.counters;
        counters.lookups += 1;
        counters.lookup_blocks += blocks;
        counters.hit_blocks += hit;
        counters.hit_tokens += hit_tokens;
        counters.missed_blocks += missed;
        counters.skipped_blocks += blocks - hit - missed;
        let owner = self.shared.namespaces.get(namespace).owner;
        let counts = self.shared.namespaces.owners.counts(owner);
        counts.lookups += 1;
        counts.lookup_blocks += blocks;
        counts.hit_blocks += hit;
        counts.lookup_tokens += request.token_count;
        counts.hit_tokens += hit_tokens;
    }
}
