//! Keys of a prompt's links, chained before the cache's lock is taken, and the longest prefix of them.
//!
//! Hashing needs only what never changes: the secret, the kind of hash, the tokens of a link. So it runs outside of the
//! lock, into memory of the thread that is kept, in windows that double: after each window one question under the
//! lock tells whether its last link is there at all. If no group has it, the prefix ends before it, and what follows
//! is not hashed. That question never decides a hit: evictions may have taken ancestors, so the walk (`walk`) looks at
//! every link from the first one on. Nothing is allocated under the lock.

use std::cell::RefCell;

use super::classes::Groups;
use super::config::HashKind;
use super::hash::{self, Extras, Key};
use super::lookup::{Extra, Naming, Request};
use super::namespace::{Home, KeyMode};
use super::sizes::Look;
use super::state::State;
use super::store::Store;
use super::walk::{AHEAD, Search};
use crate::error::{Error, Result, Status};

/// Links that are walked at first in one of several groups, as another may end the prefix after a few. As long as none
/// does, each stretch is as long as all before it.
const FIRST_STRETCH: usize = 8 * AHEAD;
/// Links that are hashed before the first question.
const FIRST_WINDOW: usize = 64;

/// How the tokens of a cache become keys; never changes.
#[derive(Clone, Copy)]
pub(super) struct Chain {
    pub(super) secret: [u8; 32],
    pub(super) hash: HashKind,
    pub(super) link_tokens: u32,
    pub(super) max_sequence_tokens: u64,
    pub(super) require_salt: bool,
    /// Links behind the end of a prefix that are named by the blocks in which a hit may end there.
    pub(super) links_beyond: usize,
}

/// Keys chained from tokens. One for each thread, which keeps its memory.
#[derive(Default)]
pub(super) struct Scratch {
    keys: Vec<Key>,
    /// From which link on which digest of extras holds, in rising order.
    marks: Vec<(usize, Extras)>,
    extras_seen: usize,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Gives the thread's scratch, empty, to `work`, which must not ask for it again.
pub(super) fn with_scratch<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.keys.clear();
        scratch.marks.clear();
        scratch.extras_seen = 0;
        work(scratch)
    })
}

/// Keys of the links of a request.
#[derive(Clone, Copy)]
pub(super) enum LinkKeys<'a> {
    /// Chained from tokens.
    Chained(&'a Scratch),
    /// Chained by the caller.
    Given { bytes: &'a [u8], key_bytes: usize },
}

impl LinkKeys<'_> {
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Chained(scratch) => scratch.keys.len(),
            Self::Given { bytes, key_bytes } => bytes.len() / key_bytes,
        }
    }

    #[inline]
    pub(super) fn key(&self, link: usize) -> Key {
        match self {
            Self::Chained(scratch) => scratch.keys[link],
            Self::Given { bytes, key_bytes } => Key::from_bytes(&bytes[link * key_bytes..][..*key_bytes]),
        }
    }

    /// Digest of all extras up to the end of a link.
    #[inline]
    pub(super) fn extras(&self, link: usize) -> &Extras {
        match self {
            Self::Chained(Scratch { marks, .. }) if !marks.is_empty() => {
                let after = marks.partition_point(|mark| mark.0 <= link);
                after.checked_sub(1).map_or(&Extras::NONE, |at| &marks[at].1)
            }
            _ => &Extras::NONE,
        }
    }
}

impl LinkKeys<'_> {
    /// Digest of all extras before a token, which may lie inside a link.
    pub(super) fn extras_before(&self, request: &Request<'_>, token: u64, link_tokens: u32) -> Extras {
        let Naming::Tokens(_, all) = request.naming else { return Extras::NONE };
        let links = (token / u64::from(link_tokens)) as usize;
        let mut extras = links.checked_sub(1).map_or(Extras::NONE, |last| *self.extras(last));
        let from = links as u64 * u64::from(link_tokens);
        let inside = all.iter().filter(|extra| (from..token).contains(&extra.token_offset));
        inside.for_each(|extra| extras.fold(&extra.id, extra.token_offset));
        extras
    }
}

impl Scratch {
    pub(super) fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Chains on until `to` links are there.
    fn extend(
        &mut self,
        chain: &Chain,
        root: &Key,
        tokens: &[i32],
        extras: &[Extra],
        to: usize,
    ) -> Result<()> {
        let out_of_memory = |_| {
            let text = format!("{to} keys of 32 bytes do not fit into host memory");
            Error::new(Status::OutOfHostMemory, text)
        };
        let each = chain.link_tokens as usize;
        let from = self.keys.len();
        self.keys.try_reserve(to - from).map_err(out_of_memory)?;
        let mut key = *self.keys.last().unwrap_or(root);
        if extras.is_empty() {
            let keys = &mut self.keys;
            hash::chain(chain.hash, key, &tokens[from * each..to * each], each, |key| keys.push(key));
            return Ok(());
        }
        self.marks.try_reserve(extras.len() - self.extras_seen).map_err(out_of_memory)?;
        let mut folded = self.marks.last().map_or(Extras::NONE, |mark| mark.1);
        for link in self.keys.len()..to {
            let end = ((link + 1) * each) as u64;
            let first = self.extras_seen;
            while let Some(extra) = extras.get(self.extras_seen).filter(|extra| extra.token_offset < end) {
                folded.fold(&extra.id, extra.token_offset);
                self.extras_seen += 1;
            }
            if self.extras_seen > first {
                self.marks.push((link, folded));
            }
            key = hash::link(chain.hash, &key, &tokens[link * each..][..each], &folded);
            self.keys.push(key);
        }
        Ok(())
    }
}

impl Chain {
    /// Whose content a request is about. Refuses one without the salt that the cache requires.
    pub(super) fn home<'a>(&self, request: &Request<'a>) -> Result<Home<'a>> {
        let mode = key_mode(request)?;
        if self.require_salt && request.salt.is_empty() {
            let text = "the namespace has no salt, which this cache requires; give one for each tenant";
            return Err(Error::new(Status::InvalidArgument, text));
        }
        Ok(Home::new(request.namespace_id, request.adapter_id, request.salt, mode))
    }

    /// Keys of at most `most` links of a request, as far as `is_worth_it(links so far, last key)` lets it go.
    pub(super) fn keys<'a>(
        &self,
        request: &Request<'a>,
        scratch: &'a mut Scratch,
        most: usize,
        mut is_worth_it: impl FnMut(usize, &Key) -> bool,
    ) -> Result<LinkKeys<'a>> {
        let (tokens, extras) = match request.naming {
            Naming::Keys { bytes, key_bytes } | Naming::Chunks { bytes, key_bytes } => {
                return Ok(LinkKeys::Given { bytes, key_bytes: key_bytes as usize });
            }
            Naming::Tokens(tokens, extras) => (tokens, extras),
        };
        let links = (tokens.len() / self.link_tokens as usize).min(most);
        let root = hash::root_key(&self.secret, request.namespace_id, request.adapter_id, request.salt);
        let mut to = links.min(FIRST_WINDOW);
        loop {
            scratch.extend(self, &root, tokens, extras, to)?;
            if to == links {
                return Ok(LinkKeys::Chained(scratch));
            }
            if !scratch.keys.last().is_none_or(|key| is_worth_it(to, key)) {
                scratch.extend(self, &root, tokens, extras, links.min(to + self.links_beyond))?;
                return Ok(LinkKeys::Chained(scratch));
            }
            to = links.min(2 * to);
        }
    }

    /// Links that a match of this request can reach at all.
    pub(super) fn longest(&self, request: &Request<'_>) -> usize {
        if request.no_read { 0 } else { (self.max_sequence_tokens / u64::from(self.link_tokens)) as usize }
    }
}

/// How the namespace of a request names its blocks; refuses extras out of order.
pub(super) fn key_mode(request: &Request<'_>) -> Result<KeyMode> {
    match request.naming {
        Naming::Tokens(_, extras) if !extras.is_sorted_by_key(|extra| extra.token_offset) => {
            Err(Error::argument("extras must stand in rising order of token_offset"))
        }
        Naming::Tokens(..) => Ok(KeyMode::Tokens),
        Naming::Keys { key_bytes, .. } => Ok(KeyMode::Keys(key_bytes)),
        Naming::Chunks { key_bytes, .. } => Ok(KeyMode::Chunks(key_bytes)),
    }
}

impl State {
    /// Fills a row of the leases with the blocks of the longest prefix, not yet acquired, in those of these groups that
    /// need every one of them. One may get some blocks further than another.
    pub(super) fn find_prefix(&mut self, search: &Search<'_>, groups: Groups) {
        let links = search.keys.count().min(self.most_links());
        let count = groups.range().filter(|&group| self.stores[group].reach.is_prefix()).count();
        let first = if count == 1 { links } else { FIRST_STRETCH };
        let (mut reached, mut is_all) = (0, count > 0);
        while is_all && reached < links {
            reached = links.min(first.max(2 * reached));
            for group in groups.range() {
                let (store, rows) = (&self.stores[group], &mut self.holders.lease_rows[group]);
                if !store.reach.is_prefix() {
                    continue;
                }
                let links_each = (store.block_tokens / self.link_tokens) as usize;
                let counters = &mut self.shared.counters;
                // One that lies across the end of a stretch too: another group may end inside of it.
                let to = reached.div_ceil(links_each).min(links / links_each);
                is_all &= search.take_blocks(store, rows, links_each, to, counters);
            }
        }
    }

    /// Tokens that a match would find now; takes no lease and counts as no lookup.
    pub(super) fn probe_one(
        &mut self,
        request: &Request<'_>,
        home: &Home<'_>,
        keys: &LinkKeys<'_>,
    ) -> Result<u64> {
        let named = self.class_named(&request.sizing)?;
        let found = self.shared.namespaces.find(home)?;
        let Some(namespace) =
            found.filter(|_| !request.no_read && !matches!(request.naming, Naming::Chunks { .. }))
        else {
            return Ok(0);
        };
        let row = self.holders.probe_row();
        let hit_tokens = if self.is_plain {
            let root = Key::default();
            let look = Look { request, keys, namespace, row, root, is_cold: false };
            self.find_plain(&look, named).hit_tokens
        } else {
            let root = self.shared.namespaces.get(namespace).root;
            self.find_mixed(request, keys, namespace, root, row).1
        };
        self.holders.lease_rows.iter_mut().for_each(|rows| rows.truncate(row, 0));
        Ok(hit_tokens)
    }

    /// False if no group that needs every block of a prefix has the one that ends with this link: none gets there.
    pub(super) fn may_reach(&self, home: &Home<'_>, links: usize, key: &Key) -> bool {
        let Ok(Some(namespace)) = self.shared.namespaces.find(home) else { return false };
        let links_each = |store: &Store| (store.block_tokens / self.link_tokens) as usize;
        let ends_here = |store: &&Store| store.reach.is_prefix() && links.is_multiple_of(links_each(store));
        if self.sizes.is_some() && !self.stores.iter().all(|store| ends_here(&store)) {
            // One class alone may hold what follows.
            return true;
        }
        let mut groups = self.stores.iter().filter(ends_here).peekable();
        groups.peek().is_none() || groups.any(|store| store.has(key, namespace))
    }
}
