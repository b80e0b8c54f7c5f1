//! What becomes findable when a link of the chain is complete, in each kind of group.
//!
//! Blocks that end with the link, of which the full groups' come first because they prove the others; states at that
//! token; other inputs, with the first tokens. What it does not: chain the keys, which is `step`. Invariant: what a
//! sequence has let go of is not published, and nothing is published twice.

use super::block::{Publication, Published, ROOT_SERIAL};
use super::group::Reach;
use super::hash::{Extras, Key};
use super::hybrid::input_of;
use super::lookup::Extra;
use super::sequence::{Holder, LetGo, Rows};
use super::state::State;
use super::store::Store;
use super::walk::AHEAD;

/// Identity of the content that ends at token `end`, as the group knows it whose ancestors are never let go.
pub(super) fn anchor_serial(
    anchor: Option<usize>,
    stores: &[Store],
    rows: &[Rows],
    row: usize,
    end: u64,
) -> u64 {
    anchor.map_or(ROOT_SERIAL, |anchor| {
        let position = end / u64::from(stores[anchor].block_tokens) - 1;
        stores[anchor].origin(rows[anchor].cell(row, position as usize) as u32).serial
    })
}

impl State {
    /// Whether what a sequence computes may become findable: its request allows it, and nothing was reset since.
    fn may_publish(&self, row: usize) -> bool {
        let Holder { namespace, no_store, epoch, .. } = self.holders.sequences[row].holder;
        !no_store && epoch == self.shared.namespaces.epoch(namespace)
    }

    /// Links of the chain are complete, from `first` on as long as `key_at` has keys: publishes what ends with them.
    pub(super) fn complete_links(
        &mut self,
        row: usize,
        first: u64,
        key_at: impl Fn(usize) -> Option<Key>,
        has_tokens: bool,
    ) -> u32 {
        if !self.is_plain {
            let keys = (0..).map_while(key_at);
            return (first..)
                .zip(keys)
                .map(|(link, key)| self.complete_link(row, link, key, has_tokens))
                .sum();
        }
        let Holder { namespace, extras, groups, key: mut parent_link_key, .. } =
            self.holders.sequences[row].holder;
        if groups.range().len() == 1 && self.stores[groups.first()].block_tokens == self.link_tokens {
            return self.complete_blocks(row, first, key_at, has_tokens);
        }
        let mut publishes = self.may_publish(row);
        let (unwritten_from, step) = (self.unwritten_from(row), self.batch.step);
        let is_large = self.stores[groups.range()].iter().any(|store| store.is_large);
        let (key, parent_key, parent_serial, position) = (Key::default(), Key::default(), ROOT_SERIAL, 0);
        let mut as_what =
            Publication { key, namespace, parent_key, parent_serial, extras, position, has_tokens };
        let (mut at, mut committed) = (0, 0);
        while let Some(key) = key_at(at) {
            if is_large
                && publishes
                && let Some(ahead) = key_at(at + AHEAD)
            {
                self.stores[groups.range()].iter().for_each(|store| store.fetch_key(&ahead, namespace));
            }
            let end = first + at as u64 + 1;
            for group in groups.range() {
                let (store, rows) = (&mut self.stores[group], &self.holders.rows[group]);
                let links = match store.block_tokens == self.link_tokens {
                    true => 1,
                    false => u64::from(store.block_tokens / self.link_tokens),
                };
                if !publishes || (links > 1 && !end.is_multiple_of(links)) {
                    continue;
                }
                let blocks = rows.row(row);
                as_what.position = if links == 1 { end - 1 } else { end / links - 1 };
                let block = blocks[as_what.position as usize] as u32;
                if store.block(block).is_findable() {
                    // A sequence that shares it was faster. What follows other tokens than it told must not be found.
                    self.holders.sequences[row].holder.no_store |= store.block(block).key != key;
                    continue;
                }
                as_what.key = key;
                (as_what.parent_key, as_what.parent_serial) = match as_what.position.checked_sub(1) {
                    None => (Key::default(), ROOT_SERIAL),
                    Some(before) => {
                        let parent = blocks[before as usize] as u32;
                        let key = if links == 1 { parent_link_key } else { store.block(parent).key };
                        (key, store.origin(parent).serial)
                    }
                };
                let published = store.publish_uncounted(block, &as_what, &mut self.shared);
                committed += u32::from(published == Published::Stored);
                if published == Published::Stored && end * u64::from(self.link_tokens) > unwritten_from {
                    store.note_unwritten(block, step);
                }
            }
            publishes &= !self.holders.sequences[row].holder.no_store;
            parent_link_key = key;
            at += 1;
        }
        self.holders.sequences[row].holder.key = parent_link_key;
        if committed > 0 {
            self.shared.count_stored(committed, namespace);
        }
        committed
    }

    /// The same where each link is one block of one group, as nearly always.
    fn complete_blocks(
        &mut self,
        row: usize,
        first: u64,
        key_at: impl Fn(usize) -> Option<Key>,
        has_tokens: bool,
    ) -> u32 {
        let mut publishes = self.may_publish(row);
        let unwritten_from = self.unwritten_from(row) / u64::from(self.link_tokens);
        let holder = &mut self.holders.sequences[row].holder;
        let Holder { namespace, extras, groups, key: parent_link_key, .. } = *holder;
        let (group, step) = (groups.first(), self.batch.step);
        let (store, blocks) = (&mut self.stores[group], self.holders.rows[group].row(row));
        let (parent_key, parent_serial) = match first.checked_sub(1).filter(|_| publishes) {
            Some(before) => (parent_link_key, store.origin(blocks[before as usize] as u32).serial),
            None => (Key::default(), ROOT_SERIAL),
        };
        let mut as_what = Publication {
            key: parent_link_key,
            namespace,
            parent_key,
            parent_serial,
            extras,
            position: first,
            has_tokens,
        };
        let (mut at, mut committed) = (0, 0);
        while let Some(key) = key_at(at) {
            as_what.key = key;
            if publishes {
                if store.is_large
                    && let Some(ahead) = key_at(at + AHEAD)
                {
                    store.fetch_key(&ahead, namespace);
                }
                let block = blocks[as_what.position as usize] as u32;
                if store.block(block).is_findable() {
                    // A sequence that shares it was faster. What follows other tokens than it told must not be found.
                    holder.no_store |= store.block(block).key != key;
                    publishes = !holder.no_store;
                } else if store.publish_uncounted(block, &as_what, &mut self.shared) == Published::Stored {
                    committed += 1;
                    if as_what.position >= unwritten_from {
                        store.note_unwritten(block, step);
                    }
                }
                as_what.parent_serial = store.serial(block);
            }
            as_what.parent_key = key;
            as_what.position += 1;
            at += 1;
        }
        holder.key = as_what.key;
        if committed > 0 {
            self.shared.count_stored(committed, namespace);
        }
        committed
    }

    /// A link of the chain is complete: publishes the blocks and states that end with it.
    fn complete_link(&mut self, row: usize, link: u64, key: Key, has_tokens: bool) -> u32 {
        let sequence = &mut self.holders.sequences[row];
        let parent_link_key = std::mem::replace(&mut sequence.holder.key, key);
        let Holder { namespace, extras, .. } = sequence.holder;
        if !self.may_publish(row) {
            return 0;
        }
        let end = (link + 1) * u64::from(self.link_tokens);
        let is_unwritten = end > self.unwritten_from(row);
        let mut committed = 0;
        // Chains first: their blocks prove the others.
        let groups = self.stores.len();
        for turn in 0..2 * groups {
            let (is_prefix, group) = (turn < groups, turn % groups);
            let store = &self.stores[group];
            if store.reach.is_prefix() != is_prefix {
                continue;
            }
            if matches!(store.reach, Reach::Cross { .. }) {
                if link == 0 && !has_tokens {
                    committed += self.publish_cross(row, group, key, Extras::NONE, false);
                }
                continue;
            }
            if !end.is_multiple_of(u64::from(store.block_tokens)) {
                continue;
            }
            let position = (end / u64::from(store.block_tokens) - 1) as usize;
            let rows = &self.holders.rows[group];
            let mut before = None;
            let block = if matches!(store.reach, Reach::State { .. }) {
                let Some(block) = self.state_at(group, row, end) else { continue };
                block
            } else {
                if position < rows.first(row) {
                    continue;
                }
                before = match position.checked_sub(1) {
                    Some(parent) if parent >= rows.first(row) => {
                        let parent = rows.cell(row, parent) as u32;
                        Some(LetGo { serial: store.origin(parent).serial, key: store.block(parent).key })
                    }
                    Some(_) => Some(rows.before(row)),
                    None => None,
                };
                rows.cell(row, position) as u32
            };
            if store.block(block).is_findable() {
                // A sequence that shares it was faster. What follows other tokens than it told must not be found.
                self.holders.sequences[row].holder.no_store |= store.block(block).key != key;
                continue;
            }
            let parent_key = match before {
                Some(_) if store.block_tokens == self.link_tokens => parent_link_key,
                before => before.map_or(Key::default(), |before| before.key),
            };
            let parent_serial = match is_prefix {
                true => before.map_or(ROOT_SERIAL, |before| before.serial),
                false => anchor_serial(self.anchor, &self.stores, &self.holders.rows, row, end),
            };
            let as_what = Publication {
                key,
                namespace,
                parent_key,
                parent_serial,
                extras,
                position: position as u64,
                has_tokens,
            };
            let published = self.stores[group].publish(block, &as_what, &mut self.shared);
            committed += u32::from(published == Published::Stored);
            if is_unwritten && published == Published::Stored {
                self.stores[group].note_unwritten(block, self.batch.step);
            }
        }
        committed
    }

    /// The first tokens of a sequence are final: publishes what it holds of other inputs, if those have a name.
    pub(super) fn publish_inputs(&mut self, row: usize, extras: &[Extra]) -> u32 {
        let holder = self.holders.sequences[row].holder;
        let input = input_of(extras);
        if input == Extras::NONE || !self.may_publish(row) {
            return 0;
        }
        let root = self.shared.namespaces.get(holder.namespace).root;
        let mut committed = 0;
        for group in 0..self.stores.len() {
            if matches!(self.stores[group].reach, Reach::Cross { .. }) {
                committed += self.publish_cross(row, group, root, input, true);
            }
        }
        committed
    }

    fn publish_cross(&mut self, row: usize, group: usize, base: Key, input: Extras, has_tokens: bool) -> u32 {
        let namespace = self.holders.sequences[row].holder.namespace;
        let mut committed = 0;
        for position in 0..self.holders.rows[group].count(row) {
            let block = self.holders.rows[group].cell(row, position) as u32;
            let store = &mut self.stores[group];
            if store.block(block).is_findable() {
                continue;
            }
            let as_what =
                Publication::of_input(self.hash, base, namespace, input, position as u64, has_tokens);
            let published = store.publish(block, &as_what, &mut self.shared);
            self.holders.sequences[row].note_input(self.batch.step, group, published);
            committed += u32::from(published == Published::Stored);
        }
        committed
    }
}
