//! What the next operations of a step touch, asked for before they come.
//!
//! A step goes once through all running sequences, and the model's work ran since the last one did, so hardly a line
//! of what it reads is in the processor's caches. Its list tells which sequences come, and is gone through in runs: two
//! runs ahead the records of sequences and their last cells are asked for, one run ahead what those lead to. A COMMIT's
//! key decides where its block is entered, so keys are made ahead too and kept until their operation comes. Invariant:
//! what is done here changes nothing that an operation does, however wrong a guess is.

use super::config::{GROUPS_MAX, HashKind};
use super::hash::{self, Extras, Key};
use super::lookup::Naming;
use super::sequence::{Holder, Pause, Sequence};
use super::state::State;
use super::step::{Op, Target};
use crate::error::Result;
use crate::sys::reserve::filled;
use crate::types::Id;

/// Operations of a run.
pub(super) const RUN: usize = 16;
/// Keys that are kept: those of a run that is on, and of the one that is prepared.
const KEPT: usize = 2 * RUN;
/// Free blocks below which the next victims are fetched.
const FREE_FEW: u32 = 8;
/// Victims that are fetched together.
const VICTIMS: u32 = 8;

/// Keys made ahead, and what else that takes. A key stands beside all that it depends on but the cache's hash: parent
/// and tokens of its link. Links with extras have none.
pub(super) struct Ahead {
    /// In the order in which they were made, round and round: row, parent and key. A row has a place however the others
    /// are numbered, and keeps it for more operations than lie between its key and its COMMIT.
    keys: [Option<(u32, Key, Key)>; KEPT],
    /// `[KEPT][link_tokens]`: their tokens.
    links: Vec<i32>,
    link_tokens: usize,
    next: usize,
    /// The place after that of the key that was asked for last.
    wanted: usize,
    /// By group: rows that were about to grow while hardly a block was free.
    growths: [u32; GROUPS_MAX],
}

impl Ahead {
    pub(super) fn new(link_tokens: u32) -> Result<Self> {
        let link_tokens = link_tokens as usize;
        Ok(Self {
            keys: [None; KEPT],
            links: filled(KEPT * link_tokens, 0)?,
            link_tokens,
            next: 0,
            wanted: 0,
            growths: [0; GROUPS_MAX],
        })
    }

    fn link(&self, place: usize) -> &[i32] {
        &self.links[place * self.link_tokens..][..self.link_tokens]
    }

    /// Tokens of the link whose key is made next, to be written; what was there is forgotten.
    fn next_link(&mut self) -> &mut [i32] {
        self.keys[self.next] = None;
        &mut self.links[self.next * self.link_tokens..][..self.link_tokens]
    }

    /// Keeps the key of the link that was written.
    fn keep(&mut self, row: usize, parent: &Key, key: &Key) {
        self.keys[self.next] = Some((row as u32, *parent, *key));
        self.next = (self.next + 1) % KEPT;
    }

    /// Whether the key at this place is of this link.
    #[inline]
    fn is_of(&self, place: usize, row: usize, parent: &Key, tokens: &[i32]) -> bool {
        let is_of = |(of, after, _): &(u32, Key, Key)| *of == row as u32 && after == parent;
        self.keys[place].as_ref().is_some_and(is_of) && self.link(place) == tokens
    }

    /// The key of this link, if it was made. Keys are asked for in the order in which they were made, but for some.
    fn find(&mut self, row: usize, parent: &Key, tokens: &[i32]) -> Option<Key> {
        let place = match self.is_of(self.wanted, row, parent, tokens) {
            true => self.wanted,
            false => (0..KEPT).find(|&place| self.is_of(place, row, parent, tokens))?,
        };
        self.wanted = (place + 1) % KEPT;
        self.keys[place].map(|(.., key)| key)
    }

    /// The key of the first link that a COMMIT completes: the one made ahead, if it is of this link.
    pub(super) fn first_key(
        &mut self,
        hash: HashKind,
        row: usize,
        parent: &Key,
        tokens: &[i32],
        extras: &Extras,
    ) -> Key {
        let made = if *extras == Extras::NONE { self.find(row, parent, tokens) } else { None };
        made.unwrap_or_else(|| hash::link(hash, parent, tokens, extras))
    }
}

impl State {
    /// Operations on these sequences come in two runs; whether each is a COMMIT.
    #[inline]
    pub(super) fn expect(&self, targets: impl Iterator<Item = (Id, bool)> + Clone) {
        let rows = targets.map(|(id, is_commit)| (id.likely_index(), is_commit));
        self.holders.fetch_sequences(rows.clone());
        self.holders.rows.iter().for_each(|of| of.fetch_last(rows.clone().map(|(row, _)| row)));
    }

    /// The first of these operations that is no APPEND or will not find its sequence ready; a guess.
    #[inline]
    pub(super) fn find_unready(&self, mut ops: impl Iterator<Item = Option<(Id, u64)>>) -> Option<usize> {
        let sequences = &self.holders.sequences[..];
        let is_ready = |(id, tokens): (Id, u64)| {
            let sequence = sequences.get(id.likely_index());
            sequence.is_some_and(|sequence| tokens <= u64::from(sequence.ready))
        };
        ops.position(|op| !op.is_some_and(is_ready))
    }

    /// This operation comes in the next run.
    pub(super) fn prepare(&mut self, op: &Op<'_>) {
        match *op {
            Op::Append { target: Target::Id(id), tokens, lookahead } => {
                self.prepare_append(id, tokens.saturating_add(lookahead.into()));
            }
            Op::Commit { target: Target::Id(id), tokens, ref naming } => {
                self.prepare_commit(id, tokens, naming);
            }
            _ => {}
        }
    }

    fn prepare_append(&mut self, id: Id, tokens: u64) {
        let Some((row, sequence)) = self.holders.peek_sequence(id) else { return };
        let (length, groups) = (sequence.length.saturating_add(tokens), sequence.holder.groups);
        for group in groups.range() {
            let (store, rows) = (&mut self.stores[group], &self.holders.rows[group]);
            if !store.reach.is_by_token() {
                continue;
            }
            if length <= rows.count(row) as u64 * u64::from(store.block_tokens) {
                continue;
            }
            if let Some(&last) = rows.row(row).last() {
                store.fetch_beside(last as u32);
            }
            if store.free_count() < FREE_FEW {
                let growths = &mut self.ahead.growths[group];
                if growths.is_multiple_of(VICTIMS) {
                    store.fetch_victims(VICTIMS, &self.shared);
                }
                *growths = growths.wrapping_add(1);
            }
        }
    }

    fn prepare_commit(&mut self, id: Id, tokens: u64, naming: &Naming<'_>) {
        let Some((row, sequence)) = self.holders.peek_sequence(id) else { return };
        let Sequence { length, committed, holder: Holder { namespace, groups, .. }, .. } = *sequence;
        let link = u64::from(self.link_tokens);
        let end = (committed / link + 1) * link;
        // What is refused for its count is not read: APPENDs of the list may yet schedule up to a link of its tokens.
        let is_likely = sequence.pause == Pause::Running && tokens <= length - committed + link;
        let key = match is_likely && committed.saturating_add(tokens) >= end {
            true => self.first_key(row, naming),
            false => None,
        };
        for group in groups.range() {
            let (store, blocks) = (&self.stores[group], self.holders.rows[group].row(row));
            let position = (committed / u64::from(store.block_tokens)) as usize;
            let Some(&block) = blocks.get(position) else { continue };
            store.fetch_open(block as u32);
            if let Some(key) = key.as_ref().filter(|_| end.is_multiple_of(store.block_tokens.into())) {
                store.fetch_published(block as u32, key, namespace);
                store.fetch_parent(position.checked_sub(1).map(|before| blocks[before]));
            }
        }
    }

    /// The key of the first link that a COMMIT completes.
    fn first_key(&mut self, row: usize, naming: &Naming<'_>) -> Option<Key> {
        let ids = match *naming {
            Naming::Keys { bytes, key_bytes } | Naming::Chunks { bytes, key_bytes } => {
                return bytes
                    .get(..key_bytes as usize)
                    .filter(|bytes| bytes.len() <= 32)
                    .map(Key::from_bytes);
            }
            Naming::Tokens(_, extras) if !extras.is_empty() => return None,
            Naming::Tokens(ids, _) => ids,
        };
        let Sequence { committed, holder, .. } = self.holders.sequences[row];
        let link = self.link_tokens as usize;
        let offset = (committed % link as u64) as usize;
        let part = ids.get(..link - offset)?;
        let tokens = self.ahead.next_link();
        tokens[..offset].copy_from_slice(&self.holders.open_tokens(row)[..offset]);
        tokens[offset..].copy_from_slice(part);
        let key = hash::link(self.hash, &holder.key, tokens, &holder.extras);
        if holder.extras == Extras::NONE {
            self.ahead.keep(row, &holder.key, &key);
        }
        Some(key)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cache::{CacheConfig, Content, GroupConfig, HashKind, KvCache, Request};
    use crate::error::Status;
    use crate::event::NoSink;
    use crate::memory::{Limits, Memory};
    use crate::types::IdKind;

    pub(in crate::cache) const EACH: u32 = 16;

    /// A cache of so many blocks, of which a sequence takes half.
    pub(in crate::cache) fn cache(hash: HashKind, blocks: u64) -> KvCache {
        let content = Content::Opaque { block_bytes: 16 };
        let group = GroupConfig::new(content, EACH);
        let config = CacheConfig {
            max_sequences: 4,
            max_sequence_tokens: blocks / 2 * u64::from(EACH),
            max_batch_tokens: blocks as u32 / 2 * EACH,
            max_leases: 4,
            max_namespaces: 4,
            steps_in_flight: 2,
            hash,
            metadata_only: true,
            ..CacheConfig::new(vec![group], blocks)
        };
        let device = crate::device::registry::open("host").unwrap();
        KvCache::new(&Memory::new(device, Limits::default(), Arc::new(NoSink)), &config).unwrap()
    }

    pub(in crate::cache) fn request(tokens: &[i32]) -> Request<'_> {
        Request::new(1, Naming::Tokens(tokens, &[]), tokens.len() as u64)
    }

    /// Commits `parts` in turn, each announced as said by `guesses`; answers the tokens found of what was committed.
    fn found_after(hash: HashKind, parts: &[&[i32]], guesses: &[&[i32]]) -> u64 {
        let cache = cache(hash, 64);
        let lease = cache.lookups().find(&request(&[])).unwrap().lease;
        let all = parts.concat();
        let tokens = all.len() as u64;
        let mut step = cache.step(1).unwrap();
        let admit = step.apply(&Op::Admit { lease, tokens, lookahead: 0, row: -1, expected_tokens: 0 });
        assert_eq!(admit.status, Status::Ok);
        let target = Target::Id(Id(admit.sequence));
        for ids in guesses {
            step.expect([(Id(admit.sequence), true)].into_iter());
            step.prepare(&Op::Commit { target, tokens: ids.len() as u64, naming: Naming::Tokens(ids, &[]) });
        }
        for ids in parts {
            let commit = Op::Commit { target, tokens: ids.len() as u64, naming: Naming::Tokens(ids, &[]) };
            assert_eq!(step.apply(&commit).status, Status::Ok);
        }
        assert_eq!(step.apply(&Op::Free { target }).status, Status::Ok);
        drop(step);
        cache.step_done(1, None).unwrap();
        cache.validate().unwrap();
        let found = cache.lookups().find(&request(&all)).unwrap();
        found.hit_tokens
    }

    #[test]
    fn a_key_made_ahead_serves_only_the_link_that_it_was_made_for() {
        let ids: Vec<i32> = (0..64).collect();
        let (one, two, half) = (&ids[..16], &ids[16..32], &ids[32..40]);
        for hash in [HashKind::Blake3, HashKind::Xxh3] {
            // As announced; announced in the wrong order, so that the second is chained to the wrong parent; others.
            for guesses in [&[one][..], &[two], &[two, one], &[one, two], &[half, two, half], &[]] {
                assert_eq!(found_after(hash, &[one, two], guesses), 32, "{guesses:?}");
                assert_eq!(found_after(hash, &[half, two, half], guesses), 32, "{guesses:?}");
            }
        }
    }

    #[test]
    fn keys_made_ahead_are_kept_for_rows_of_any_number() {
        let mut ahead = Ahead::new(2).unwrap();
        let key = |word: usize| Key([word as u64; 4]);
        let (parent, link) = (key(1), |row: usize| [row as i32, 7]);
        // Rows that agree in their last bits, more than there is room for.
        let rows: Vec<usize> = (0..KEPT + 3).map(|at| at * KEPT).collect();
        for &row in &rows {
            ahead.next_link().copy_from_slice(&link(row));
            ahead.keep(row, &parent, &key(row));
        }
        let (gone, kept) = rows.split_at(3);
        assert!(gone.iter().all(|&row| ahead.find(row, &parent, &link(row)).is_none()));
        for &row in kept {
            assert_eq!(ahead.find(row, &parent, &link(row)), Some(key(row)));
            assert_eq!(ahead.find(row, &key(2), &link(row)), None);
            assert_eq!(ahead.find(row, &parent, &link(row + 1)), None);
        }
    }

    #[test]
    fn announcing_what_does_not_exist_changes_nothing() {
        let cache = cache(HashKind::Xxh3, 64);
        let mut step = cache.step(1).unwrap();
        for target in
            [Id(0), Id(u64::MAX), Id::new(IdKind::Sequence, 1, 3), Id::new(IdKind::Sequence, 1, 1 << 23)]
        {
            step.expect([(target, true)].into_iter());
            let target = Target::Id(target);
            step.prepare(&Op::Append { target, tokens: u64::MAX, lookahead: u32::MAX });
            step.prepare(&Op::Commit { target, tokens: u64::MAX, naming: Naming::Tokens(&[1], &[]) });
            step.prepare(&Op::Free { target });
        }
        drop(step);
        cache.step_done(1, None).unwrap();
        cache.validate().unwrap();
    }

    #[test]
    fn of_a_row_its_last_cell_is_asked_for_and_of_an_empty_one_none() {
        let cache = cache(HashKind::Xxh3, 64);
        let lease = cache.lookups().find(&request(&[])).unwrap().lease;
        let tokens = 2 * u64::from(EACH) + 1;
        let admit = Op::Admit { lease, tokens, lookahead: 0, row: 2, expected_tokens: 0 };
        assert_eq!(cache.step(1).unwrap().apply(&admit).status, Status::Ok);
        let state = cache.state();
        let rows = &state.holders.rows[0];
        assert_eq!([2, 1, 9].map(|row| rows.last_cell(row)), [Some(2 * rows.row_cells() + 2), None, None]);
    }
}
