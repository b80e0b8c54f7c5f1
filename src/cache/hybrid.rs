//! Match in a cache whose groups need different parts of a prefix.
//!
//! What it does: has the groups that need every block walked forward (`prefix`), then goes from the longest length that
//! they allow downward: the first one at which each window holds its last blocks and each state a snapshot. A missing
//! block rules out every length that needs it, so each block of a window is looked up at most once, and what promises
//! leave of it is counted once too. What it does not: hold what it finds; that is `lookup`. Lengths are multiples of
//! the blocks of the groups by token alone; a state adds none but those at which its snapshots lie, and none that the
//! open step is yet to write: of two sequences of one step, neither can start from what the other ends with. Inputs of
//! cross-attention are found by their own name.
//!
//! Where hits may end inside blocks, lengths are multiples of a link of the chain instead. A group by token of which
//! none of its blocks ends there needs the block in which the hit ends whole, tokens of the prompt behind the hit
//! included, as its key names all of them; ADMIT copies its first tokens (`partial`).

use super::block::{NO_SERIAL, Publication, ROOT_SERIAL};
use super::config::GROUPS_MAX;
use super::group::Reach;
use super::hash::{self, Extras, Key};
use super::lookup::{Extra, Naming, Request};
use super::prefix::LinkKeys;
use super::publish::anchor_serial;
use super::state::State;
use super::store::Store;
use super::walk;
use std::ops::Range;

/// What is being looked up, and how far each group got.
struct Search<'a> {
    request: &'a Request<'a>,
    keys: &'a LinkKeys<'a>,
    namespace: u32,
    lease: usize,
    /// By group: cells of the lease's row in which found blocks of a window stand.
    found: [(usize, usize); GROUPS_MAX],
    /// By group: the snapshot at the length that is being tried.
    states: [u32; GROUPS_MAX],
    /// The oldest step that may still write what it published.
    open_step: Option<u64>,
}

/// How many blocks of a range of a window's cells can be evicted.
#[derive(Clone, Copy, Default)]
struct Counted {
    first: usize,
    end: usize,
    evictable: usize,
}

/// Digest of what names a sequence's other input: the extras on which already its first token depends.
pub(super) fn input_of(extras: &[Extra]) -> Extras {
    let mut input = Extras::NONE;
    let first = extras.iter().take_while(|extra| extra.token_offset == 0);
    first.for_each(|extra| input.fold(&extra.id, 0));
    input
}

impl Publication {
    /// A block of another input of a sequence: named by `base` and the digest, whatever tokens go with it.
    pub(super) fn of_input(
        kind: super::config::HashKind,
        base: Key,
        namespace: u32,
        input: Extras,
        position: u64,
        has_tokens: bool,
    ) -> Self {
        // A key that the caller chained is compared whole, so what is made of it keeps all of its bits.
        let kind = if has_tokens { kind } else { super::config::HashKind::Blake3 };
        Self {
            key: hash::link(kind, &base, &[position as i32], &input),
            namespace,
            parent_key: Key::default(),
            parent_serial: ROOT_SERIAL,
            extras: input,
            position,
            has_tokens,
        }
    }
}

impl State {
    /// Fills the lease's rows with what the longest possible hit needs, not yet acquired; answers what was found before
    /// the request left out its end, the length of the hit, the key of its last link, and the cross-attention groups
    /// whose whole input was found, as bits.
    pub(super) fn find_mixed(
        &mut self,
        request: &Request<'_>,
        keys: &LinkKeys<'_>,
        namespace: u32,
        root: Key,
        lease: usize,
    ) -> (u64, u64, Key, u32) {
        let (found, states) = ([(0, 0); GROUPS_MAX], [0; GROUPS_MAX]);
        let open_step = self.shared.steps.oldest_open().filter(|_| self.finds_partial);
        let mut search = Search { request, keys, namespace, lease, found, states, open_step };
        let reached = self.walk_chain(&search);
        let (inputs, has_all) = self.find_inputs(&search, root);
        let mut length = self.longest(&mut search, if has_all { reached } else { 0 });
        let found = length;
        if request.keep_one_token && length >= request.token_count {
            length = self.longest(&mut search, request.token_count.saturating_sub(1));
        }
        if request.drop_last && length > 0 {
            length = self.longest(&mut search, self.without_last(length));
        }
        if self.stores.iter().any(|store| store.promised > 0) {
            let bound = self.promised_bound(lease, length);
            // Nearly always all of it can be held, and has been found.
            if bound < length {
                length = self.longest(&mut search, bound);
            }
            let mut counted = [Counted::default(); GROUPS_MAX];
            while length > 0 && !self.fits(&search, &mut counted) {
                length = self.longest(&mut search, self.end_before(length));
            }
        }
        for (group, store) in self.stores.iter().enumerate() {
            let rows = &mut self.holders.lease_rows[group];
            let cells = length.div_ceil(u64::from(store.block_tokens)) as usize;
            match store.reach {
                Reach::All | Reach::Untrimmed => rows.truncate(lease, cells),
                Reach::Sliding { .. } | Reach::Chunked { .. } if length > 0 => {
                    rows.open_with_holes(lease, search.found[group].0, cells);
                }
                Reach::State { .. } if length > 0 => rows.push(lease, search.states[group]),
                Reach::Cross { .. } if inputs >> group & 1 == 1 => {
                    rows.truncate(lease, rows.row_cells());
                }
                _ => {}
            }
        }
        let last = (length / u64::from(self.link_tokens)).checked_sub(1);
        (found, length, last.map_or(root, |link| keys.key(link as usize)), inputs)
    }

    /// A length, at most `limit`, above which the groups that need every block cannot be held beside what is promised.
    fn promised_bound(&self, lease: usize, limit: u64) -> u64 {
        let mut bound = limit;
        let prefixes = self.stores.iter().zip(&self.holders.lease_rows);
        for (store, rows) in prefixes.filter(|(store, _)| store.reach.is_prefix() && store.promised > 0) {
            let each = u64::from(store.block_tokens);
            let found = &rows.row(lease)[..bound.div_ceil(each) as usize];
            let mut evictable =
                found.iter().enumerate().filter(|(_, block)| store.is_evictable(**block as u32));
            if let Some((at, _)) = evictable.nth(store.available() as usize) {
                bound = at as u64 * each;
            }
        }
        bound
    }

    /// Whether the hit that was found last, which no group that needs every block rules out, can be held beside what is
    /// promised to sequences. Of other inputs nobody is promised anything.
    fn fits(&self, search: &Search<'_>, counted: &mut [Counted]) -> bool {
        (0..self.stores.len()).all(|group| {
            let (store, rows) = (&self.stores[group], &self.holders.lease_rows[group]);
            if store.promised == 0 {
                return true;
            }
            let is_evictable = |at: usize| store.is_evictable(rows.cell(search.lease, at) as u32);
            match store.reach {
                Reach::State { .. } => store.may_take(search.states[group]),
                Reach::Sliding { .. } | Reach::Chunked { .. } => {
                    let (first, end) = search.found[group];
                    let Counted { first: from, end: to, evictable } = counted[group];
                    let count = |cells: Range<usize>| cells.filter(|&at| is_evictable(at)).count();
                    // A shorter length has most of the window of the one before.
                    let evictable = match (first..=end).contains(&from) && (from..=to).contains(&end) {
                        true => evictable + count(first..from) - count(end..to),
                        false => count(first..end),
                    };
                    counted[group] = Counted { first, end, evictable };
                    evictable <= store.available() as usize
                }
                Reach::All | Reach::Untrimmed | Reach::Cross { .. } => true,
            }
        })
    }

    /// Keeps the blocks of the groups that need every one; answers how far all of them reach.
    fn walk_chain(&mut self, search: &Search<'_>) -> u64 {
        let Search { request, keys, namespace, lease, .. } = *search;
        self.find_prefix(&walk::Search { request, keys, namespace, row: lease }, self.classes[0]);
        let links = keys.count().min(self.most_links());
        let mut reached = links as u64 * u64::from(self.link_tokens);
        for (store, rows) in self.stores.iter().zip(&self.holders.lease_rows) {
            if store.reach.is_prefix() {
                reached = reached.min(rows.count(search.lease) as u64 * u64::from(store.block_tokens));
            }
        }
        reached
    }

    /// The findable block or state of a group that ends with its `position`th block of the prompt, which may be
    /// `likely`.
    fn probe(
        &mut self,
        search: &Search<'_>,
        group: usize,
        position: usize,
        parent: u64,
        likely: u32,
    ) -> Option<u32> {
        let store = &self.stores[group];
        let each = store.block_tokens as usize;
        let link = (position + 1) * each / self.link_tokens as usize - 1;
        if link >= search.keys.count() {
            return None;
        }
        let tokens = match search.request.naming {
            Naming::Tokens(tokens, _) => &tokens[position * each..][..each],
            Naming::Keys { .. } | Naming::Chunks { .. } => &[],
        };
        let wanted = Publication {
            key: search.keys.key(link),
            namespace: search.namespace,
            parent_key: Key::default(),
            parent_serial: parent,
            extras: *search.keys.extras(link),
            position: position as u64,
            has_tokens: !tokens.is_empty(),
        };
        store.find_near(likely, &wanted, tokens, &mut self.shared.counters)
    }

    /// Looks the inputs of cross-attention up; answers the groups whose input is there, and whether that is all of
    /// them.
    fn find_inputs(&mut self, search: &Search<'_>, root: Key) -> (u32, bool) {
        let (mut inputs, mut has_all) = (0, true);
        for (group, store) in self.stores.iter().enumerate() {
            if !matches!(store.reach, Reach::Cross { .. }) {
                continue;
            }
            let (base, input, has_tokens) = match search.request.naming {
                Naming::Tokens(_, extras) => (Some(root), input_of(extras), true),
                Naming::Keys { .. } | Naming::Chunks { .. } => {
                    ((search.keys.count() > 0).then(|| search.keys.key(0)), Extras::NONE, false)
                }
            };
            let base = base.filter(|_| !has_tokens || input != Extras::NONE);
            let rows = &mut self.holders.lease_rows[group];
            let count = rows.row_cells();
            let is_found = base.is_some_and(|base| {
                (0..count).all(|position| {
                    let wanted = Publication::of_input(
                        self.hash,
                        base,
                        search.namespace,
                        input,
                        position as u64,
                        has_tokens,
                    );
                    let hash = store.index.hash(&wanted.key, wanted.namespace);
                    let found = store.find(hash, &wanted, &[], &mut self.shared.counters);
                    found.map(|block| rows.put(search.lease, position, block as i32)).is_some()
                })
            });
            inputs |= u32::from(is_found) << group;
            has_all &= is_found;
        }
        (inputs, has_all)
    }

    /// The longest length, at most `limit`, at which every group has what the token there needs.
    fn longest(&mut self, search: &mut Search<'_>, mut limit: u64) -> u64 {
        let has_chain = self.stores.iter().any(|store| store.reach.is_prefix());
        'lengths: loop {
            let length = self.aligned(limit);
            if length == 0 {
                return 0;
            }
            for group in 0..self.stores.len() {
                let (reach, each) = (self.stores[group].reach, u64::from(self.stores[group].block_tokens));
                let cells = length.div_ceil(each) as usize;
                if reach.is_window() {
                    let mut first = (reach.first_needed(length) / each) as usize;
                    if !has_chain {
                        // Something must show that this prefix was here.
                        first = first.min(cells - 1);
                    }
                    if let Some(missing) = self.cover(search, group, first, cells) {
                        limit = missing as u64 * each;
                        continue 'lengths;
                    }
                } else if matches!(reach, Reach::State { .. }) {
                    let parent = self.lease_anchor(search.lease, length);
                    match self.probe(search, group, cells - 1, parent, walk::NONE) {
                        Some(state) if !self.is_being_written(group, state) => search.states[group] = state,
                        _ => {
                            limit = length - 1;
                            continue 'lengths;
                        }
                    }
                }
                if self.stores[group].ends_inside(length) {
                    let last = self.holders.lease_rows[group].cell(search.lease, cells - 1) as u32;
                    if !self.stores[group].is_source(last, search.open_step) {
                        limit = length - length % each;
                        continue 'lengths;
                    }
                }
            }
            return length;
        }
    }

    /// Identity of the content up to a token; that of nothing where the group did not get there that would prove it.
    fn lease_anchor(&self, lease: usize, end: u64) -> u64 {
        let rows = &self.holders.lease_rows;
        let reached = |at: usize| rows[at].count(lease) as u64 * u64::from(self.stores[at].block_tokens);
        match self.anchor {
            Some(anchor) if reached(anchor) < end => NO_SERIAL,
            anchor => anchor_serial(anchor, &self.stores, rows, lease, end),
        }
    }

    /// What a hit is a multiple of because of this group: its blocks, or where they can be copied but links of the
    /// chain, and the tokens between two snapshots.
    pub(super) fn hit_unit(&self, store: &Store) -> u64 {
        match store.reach {
            Reach::Cross { .. } => 1,
            reach if self.finds_partial && reach.is_by_token() => u64::from(self.link_tokens),
            _ => u64::from(store.block_tokens).max(store.snapshot_tokens),
        }
    }

    /// The end of the longest hit that lacks the last block of one of `length` tokens in every group by token.
    fn without_last(&self, length: u64) -> u64 {
        let before =
            |store: &Store| (length - 1) / u64::from(store.block_tokens) * u64::from(store.block_tokens);
        let by_token = self.stores.iter().filter(|store| store.reach.is_by_token());
        by_token.map(before).fold(length - 1, u64::min)
    }

    /// The next shorter length at which a hit needs one block less, or another snapshot. Between it and `length` it
    /// needs no fewer.
    fn end_before(&self, length: u64) -> u64 {
        let in_chain = self.stores.iter().filter(|store| !matches!(store.reach, Reach::Cross { .. }));
        let each = |store: &Store| u64::from(store.block_tokens).max(store.snapshot_tokens);
        in_chain.map(|store| (length - 1) / each(store) * each(store)).fold(0, u64::max)
    }

    /// The largest length, at most `limit`, at which a hit may end in every group.
    fn aligned(&self, limit: u64) -> u64 {
        let mut length = limit;
        loop {
            let before = length;
            for store in &self.stores {
                length -= length % self.hit_unit(store);
            }
            if length == before {
                return length;
            }
        }
    }

    /// Finds the blocks `first..cells` of a window, last first; answers the first one that is missing. Of what it found
    /// before it uses what lies in the range.
    fn cover(&mut self, search: &mut Search<'_>, group: usize, first: usize, cells: usize) -> Option<usize> {
        let (from, to) = search.found[group];
        let mut from = if from < cells && cells <= to { from } else { cells };
        // Blocks of a prompt mostly lie one behind the other, as they were handed out in runs.
        let mut likely = walk::NONE;
        while from > first {
            let each = u64::from(self.stores[group].block_tokens);
            let parent = self.lease_anchor(search.lease, from as u64 * each);
            let Some(block) = self.probe(search, group, from - 1, parent, likely) else {
                search.found[group] = (from, cells);
                return Some(from - 1);
            };
            from -= 1;
            likely = block.wrapping_sub(1);
            self.holders.lease_rows[group].put(search.lease, from, block as i32);
        }
        search.found[group] = (from, cells);
        None
    }
}

#[cfg(test)]
#[path = "hybrid_tests.rs"]
mod tests;
