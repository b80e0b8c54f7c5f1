//! Who may share with whom: the table of namespaces that hold something.
//!
//! An entry is one exact combination of namespace id, adapter and salt (by its digest). Blocks carry the entry's
//! index and are found only with it, so reuse across entries is impossible by construction. An entry lives while a
//! lease, a sequence or a findable block uses it. `uses == leases + sequences + findable blocks` of the entry.
//! `cached` are those of its findable blocks that nobody holds or pins and no step in flight reads.
//! Entries without leases and sequences are idle. They stand in a list in the order in which they lost the last of
//! them. Those that cannot make room as they are were set aside: with the large ones, of which all may go, or with
//! those that something keeps. They come back as the oldest as soon as they can.

use std::collections::HashMap;

use super::hash::{Key, root_key, tenant_tag};
use super::list::List;
use super::owners::{self, Owners};
use crate::error::{Error, Result, Status};
use crate::sys::reserve::{filled, room};

/// How the blocks of a namespace are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyMode {
    /// The library chains tokens.
    Tokens,
    /// The caller chains keys of this many bytes.
    Keys(u32),
    /// The same, and each key names a block whatever comes before it.
    Chunks(u32),
}

/// Most blocks of a namespace that makes room for another before the large ones do.
const LEAVING_BLOCKS: u64 = 256;

const OTHER_MODE: &str = "the namespace holds blocks named the other way (tokens, or keys of another size)";

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Name {
    id: u64,
    adapter_id: u64,
    salt_digest: [u8; 32],
}

/// Whose content a request is about, and how its blocks are named: the table's key, made before the lock is taken.
#[derive(Clone, Copy)]
pub(super) struct Home<'a> {
    name: Name,
    salt: &'a [u8],
    mode: KeyMode,
}

impl<'a> Home<'a> {
    pub(super) fn new(id: u64, adapter_id: u64, salt: &'a [u8], mode: KeyMode) -> Self {
        let salt_digest = if salt.is_empty() { [0; 32] } else { *blake3::hash(salt).as_bytes() };
        Self { name: Name { id, adapter_id, salt_digest }, salt, mode }
    }
}

/// One namespace that holds something.
pub(super) struct Namespace {
    name: Name,
    pub(super) mode: KeyMode,
    /// Start of the hash chain.
    pub(super) root: Key,
    /// Whose bytes a slot holds, for scrubbing; names the owner too.
    pub(super) tenant: u64,
    pub(super) owner: u32,
    uses: u64,
    /// Those of them that are leases and sequences.
    holders: u64,
    /// Findable blocks that may be evicted, all groups together.
    cached: u64,
}

impl Namespace {
    pub(super) fn id(&self) -> u64 {
        self.name.id
    }

    /// Its findable blocks, all groups together.
    pub(super) fn blocks(&self) -> u64 {
        self.uses - self.holders
    }

    /// Whether an idle one has few blocks, and no pin and no step in flight keeps one of them.
    pub(super) fn can_leave(&self) -> bool {
        self.blocks() <= LEAVING_BLOCKS && !self.is_kept()
    }

    /// Whether a holder, a pin or a step in flight keeps one of its blocks.
    fn is_kept(&self) -> bool {
        self.cached < self.blocks()
    }
}

/// What a walk over all that uses a namespace finds, for `validate`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Uses {
    pub(super) all: u64,
    /// Findable blocks that may be evicted.
    pub(super) cached: u64,
}

/// The table. Its size is fixed; nothing is allocated after creation.
pub(super) struct Namespaces {
    secret: [u8; 32],
    entries: Vec<Option<Namespace>>,
    free: Vec<u32>,
    by_name: HashMap<Name, u32>,
    /// Entries without leases and sequences, the one that was used least recently first.
    idle: List,
    /// Those of them that were the oldest and are large, and of which nothing is kept.
    large: List,
    /// Those of them of which something was kept when they were the oldest, and still is.
    aside: List,
    /// What each namespace id holds and may hold.
    pub(super) owners: Owners,
}

impl Namespaces {
    pub(super) fn new(secret: [u8; 32], most: u32) -> Result<Self> {
        let mut by_name = HashMap::new();
        // Twice the entries: removals then never make the map grow.
        by_name.try_reserve(2 * most as usize).map_err(|_| {
            Error::new(Status::OutOfHostMemory, format!("{most} namespaces do not fit into host memory"))
        })?;
        let mut entries = room(most as usize)?;
        entries.resize_with(most as usize, || None);
        let mut free = room(most as usize)?;
        free.extend((0..most).rev());
        Ok(Self {
            secret,
            entries,
            free,
            by_name,
            idle: List::new(most)?,
            large: List::new(most)?,
            aside: List::new(most)?,
            owners: Owners::new(most)?,
        })
    }

    pub(super) fn count(&self) -> usize {
        self.by_name.len()
    }

    pub(super) fn get(&self, index: u32) -> &Namespace {
        self.entries[index as usize].as_ref().expect("an index is handed out only while its entry is used")
    }

    /// What is computed under this epoch may be published while it is the same.
    pub(super) fn epoch(&self, index: u32) -> u64 {
        self.owners.epoch(self.get(index).owner)
    }

    /// The entry, if it holds something; counts no use. Refuses what `open` would refuse.
    pub(super) fn find(&self, home: &Home<'_>) -> Result<Option<u32>> {
        let Some(&index) = self.by_name.get(&home.name) else { return Ok(None) };
        match self.get(index).mode == home.mode {
            true => Ok(Some(index)),
            false => Err(Error::new(Status::KeyMode, OTHER_MODE)),
        }
    }

    /// Finds or makes the entry and counts one use of it.
    pub(super) fn open(&mut self, home: &Home<'_>) -> Result<u32> {
        let Home { name, salt, mode } = *home;
        let Name { id, adapter_id, .. } = name;
        if let Some(&index) = self.by_name.get(&name) {
            if self.get(index).mode != mode {
                return Err(Error::new(Status::KeyMode, OTHER_MODE));
            }
            self.add_use(index);
            return Ok(index);
        }
        let full = "max_namespaces namespaces hold blocks and none has gone yet; ask again, reset one, end what runs \
                    or is pinned in one, or raise the limit";
        let index = self.free.pop().ok_or(Error::new(Status::LimitReached, full))?;
        let root = root_key(&self.secret, id, adapter_id, salt);
        let owner = self.owners.open(id);
        let tenant = owners::tag(tenant_tag(&self.secret, id, salt), owner);
        self.entries[index as usize] =
            Some(Namespace { name, mode, root, tenant, owner, uses: 1, holders: 1, cached: 0 });
        self.by_name.insert(name, index);
        Ok(index)
    }

    /// One more lease or sequence.
    pub(super) fn add_use(&mut self, index: u32) {
        let entry = self.entries[index as usize].as_mut().expect("only a used entry gets another use");
        (entry.uses, entry.holders) = (entry.uses + 1, entry.holders + 1);
        if entry.holders == 1 {
            self.unlink_idle(index);
        }
    }

    pub(super) fn add_uses(&mut self, index: u32, count: u64) {
        self.entries[index as usize].as_mut().expect("only a used entry gets another use").uses += count;
    }

    /// So many blocks more may be evicted, or fewer.
    #[inline]
    pub(super) fn add_cached(&mut self, index: u32, count: i64) {
        let entry =
            self.entries[index as usize].as_mut().expect("an entry lives while a block of it is findable");
        entry.cached = entry.cached.wrapping_add_signed(count);
        if entry.holders == 0 {
            self.take_back(index);
        }
    }

    /// An idle entry is idle no more, or none.
    fn unlink_idle(&mut self, index: u32) {
        let lists = [&mut self.idle, &mut self.large, &mut self.aside];
        lists.into_iter().filter(|list| list.contains(index)).for_each(|list| list.unlink(index));
    }

    /// An idle entry that was set aside is the oldest again if it can leave now, or is large and nothing more.
    fn take_back(&mut self, index: u32) {
        if self.idle.contains(index) || self.get(index).is_kept() {
            return;
        }
        let is_large = self.large.contains(index);
        if self.get(index).can_leave() {
            if is_large {
                self.large.unlink(index)
            } else {
                self.aside.unlink(index)
            }
            self.idle.push_oldest(index);
        } else if !is_large {
            self.aside.unlink(index);
            self.large.push_newest(index);
        }
    }

    /// One lease or sequence less.
    pub(super) fn drop_use(&mut self, index: u32) {
        let entry = self.entries[index as usize].as_mut().expect("it has uses");
        entry.holders -= 1;
        if entry.holders == 0 {
            self.idle.push_newest(index);
        }
        self.drop_uses(index, 1);
    }

    pub(super) fn drop_uses(&mut self, index: u32, count: u64) {
        let entry = self.entries[index as usize].as_mut().expect("only a used entry loses a use");
        entry.uses -= count;
        if entry.uses == 0 {
            let (name, owner) = (entry.name, entry.owner);
            self.by_name.remove(&name);
            self.owners.close(owner);
            self.entries[index as usize] = None;
            self.unlink_idle(index);
            self.free.push(index);
        } else if entry.holders == 0 {
            self.take_back(index);
        }
    }

    /// Checks the leases and sequences of each entry against those that the caller found.
    pub(super) fn validate_holders(&self, found: &[Uses]) -> Result<()> {
        let holders = self.entries.iter().map(|entry| entry.as_ref().map_or(0, |entry| entry.holders));
        let (mut idle, large, aside) =
            (self.idle.validate()?, self.large.validate()?, self.aside.validate()?);
        let of_large = large.iter().map(|&index| (index, false));
        let mut set_aside = of_large.chain(aside.iter().map(|&index| (index, true)));
        let is_wrong = |&(index, is_kept): &(u32, bool)| {
            let entry = self.get(index);
            entry.can_leave() || entry.is_kept() != is_kept
        };
        if let Some((index, _)) = set_aside.find(is_wrong) {
            return Err(Error::internal(format!("namespace entry {index} is set aside in the wrong list")));
        }
        idle.extend(large);
        idle.extend(aside);
        idle.sort_unstable();
        let without = |index: &u32| self.entries[*index as usize].as_ref().is_some_and(|e| e.holders == 0);
        if !(0..self.entries.len() as u32).filter(without).eq(idle) {
            return Err(Error::internal("the list of idle namespaces is wrong"));
        }
        match holders.zip(found).position(|(counted, found)| counted != found.all) {
            Some(index) => {
                Err(Error::internal(format!("namespace entry {index} counts its holders wrongly")))
            }
            None => Ok(()),
        }
    }

    /// Checks the counts against those that the caller found by walking everything that uses a namespace.
    pub(super) fn validate(&self, found: &[Uses]) -> Result<()> {
        for (index, (entry, &found)) in self.entries.iter().zip(found).enumerate() {
            let counted = entry
                .as_ref()
                .map_or(Uses::default(), |entry| Uses { all: entry.uses, cached: entry.cached });
            if counted != found {
                let text = format!("namespace entry {index} counts {counted:?}, {found:?} were found");
                return Err(Error::internal(text));
            }
        }
        if self.by_name.len() + self.free.len() != self.entries.len() {
            return Err(Error::internal("namespace table lost an entry"));
        }
        let mut namespaces = filled(self.owners.entry_count(), 0)?;
        self.entries.iter().flatten().for_each(|entry| namespaces[entry.owner as usize] += 1);
        self.owners.validate(&namespaces)
    }

    /// The entry that no lease and no sequence uses and that was used least recently, but for those set aside.
    pub(super) fn oldest_idle(&self) -> Option<u32> {
        self.idle.oldest()
    }

    /// The large entry that was set aside first.
    pub(super) fn oldest_large(&self) -> Option<u32> {
        self.large.oldest()
    }

    /// Whether an entry is in use by nothing but its blocks, of which none is kept as far as is known.
    pub(super) fn is_idle(&self, index: u32) -> bool {
        self.idle.contains(index) || self.large.contains(index)
    }

    /// An idle entry that cannot leave is looked at no more until it can.
    pub(super) fn set_aside(&mut self, index: u32) {
        self.idle.unlink(index);
        let is_kept = self.get(index).is_kept();
        if is_kept { self.aside.push_newest(index) } else { self.large.push_newest(index) }
    }

    /// Whether there is no place for another entry.
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Entries in the table, used or not.
    pub(super) fn capacity(&self) -> usize {
        self.entries.len()
    }
}
