//! Who can spare memory, and how they are asked for it.
//!
//! What it does: knows the pools, the shared pools and the program's callback of one [`super::Memory`], asks them in
//! order of rank, and asks nobody twice on one thread, so that whoever is asked may allocate in turn. What it does not:
//! hold memory, or decide when it is short; that is its callers'.
//! Invariants: nobody is asked under a lock; a thread that is inside of somebody who was asked asks nobody.
//! Lock order: each of its locks alone.

use std::sync::{Arc, Weak};
use std::thread::{self, ThreadId};

use super::Memory;
use super::budget::Budget;
use super::heap::Heap;
use crate::error::{Result, Status};
use crate::sync::Mutex;

/// Somebody who holds memory that can be spared.
pub trait Room: Send + Sync {
    /// Gives back at least `bytes` if it can; what was given back. Called without any lock of this room.
    fn reclaim(&self, bytes: u64) -> u64;
    /// Lower numbers are asked first: 0 pools, 1 idle models, 2 callbacks of the program.
    fn rank(&self) -> u32;
}

/// All of one [`super::Memory`].
pub(super) struct Rooms {
    budget: Arc<Budget>,
    others: Mutex<Vec<Weak<dyn Room>>>,
    callback: Mutex<Option<Arc<dyn Room>>>,
    heaps: Mutex<Vec<Weak<Heap>>>,
    /// Threads that are asking.
    asking: Mutex<Vec<ThreadId>>,
}

/// A thread that asks, until the drop, which a panic of the one who is asked reaches too.
struct Asking<'a>(&'a Rooms);

impl<'a> Asking<'a> {
    /// Nothing for a thread that asks already.
    fn begin(rooms: &'a Rooms) -> Option<Self> {
        let here = thread::current().id();
        let mut asking = rooms.asking.lock();
        if asking.contains(&here) {
            return None;
        }
        asking.push(here);
        drop(asking);
        Some(Self(rooms))
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let here = thread::current().id();
        self.0.asking.lock().retain(|&thread| thread != here);
    }
}

impl Rooms {
    pub(super) fn new(budget: Arc<Budget>) -> Arc<Self> {
        Arc::new(Self {
            budget,
            others: Mutex::default(),
            callback: Mutex::default(),
            heaps: Mutex::default(),
            asking: Mutex::default(),
        })
    }

    /// Somebody who can be asked from here on; forgotten when it is dropped.
    pub(super) fn add(&self, room: Weak<dyn Room>) {
        let mut others = self.others.lock();
        others.retain(|other| other.strong_count() > 0);
        others.push(room);
    }

    pub(super) fn add_heap(&self, heap: &Arc<Heap>) {
        let mut heaps = self.heaps.lock();
        heaps.retain(|other| other.strong_count() > 0);
        heaps.push(Arc::downgrade(heap));
    }

    /// The program's own callback; none asks nobody.
    pub(super) fn set_callback(&self, callback: Option<Arc<dyn Room>>) {
        // What it owns is dropped without the lock.
        let former = std::mem::replace(&mut *self.callback.lock(), callback);
        drop(former);
    }

    /// Asks one after the other until `bytes` were given; what was given.
    pub(super) fn ask(&self, bytes: u64) -> u64 {
        Asking::begin(self).map_or(0, |_asking| self.ask_all(bytes))
    }

    fn ask_all(&self, bytes: u64) -> u64 {
        let mut rooms: Vec<Arc<dyn Room>> = self.others.lock().iter().filter_map(Weak::upgrade).collect();
        rooms.extend(self.callback.lock().clone());
        rooms.sort_by_key(|room| room.rank());
        let mut given = 0;
        for room in rooms {
            if given >= bytes {
                break;
            }
            given = room.reclaim(bytes - given).saturating_add(given);
        }
        given
    }

    fn heaps(&self) -> Vec<Arc<Heap>> {
        self.heaps.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Lets the heaps give what is free to the device; the bytes that went. A heap that cannot gives nothing.
    pub(super) fn empty_heaps(&self) -> u64 {
        self.heaps().iter().map(|heap| heap.give_back().unwrap_or(0)).sum()
    }

    /// Lets the heaps leave what is free to the pool of pages, for somebody who draws from it; the bytes that went.
    pub(super) fn loosen_heaps(&self) -> u64 {
        self.heaps().iter().map(|heap| heap.let_go().unwrap_or(0)).sum()
    }

    /// After memory was taken: where that passed the soft limit, further than before, the heaps give back what is free,
    /// and the others are asked for the rest.
    pub(super) fn relax(&self) {
        if !self.budget.is_newly_over() {
            return;
        }
        if let Some(_asking) = Asking::begin(self) {
            self.empty_heaps();
            let over_bytes = self.budget.over_bytes();
            if over_bytes > 0 {
                self.ask_all(over_bytes);
                self.empty_heaps();
            }
            self.budget.note_relief();
        }
    }
}

impl Memory {
    /// Lets the heaps leave what is free to the pool of pages; the bytes that went. Blocks for the driver's calls.
    pub(super) fn loosen_heaps(&self) -> u64 {
        self.rooms.loosen_heaps()
    }

    /// For somebody else than a heap who is short of device memory: takes what is free in the heaps and among the idle
    /// pages; the bytes that went back. Blocks for the driver's calls.
    pub(super) fn make_room(&self) -> u64 {
        self.rooms.empty_heaps() + self.trim_pages()
    }

    /// Tries, and once more where device memory was short and some could be given back.
    pub(super) fn with_room<T>(&self, attempt: impl Fn() -> Result<T>) -> Result<T> {
        match attempt() {
            Err(error) if error.status == Status::OutOfMemory && self.make_room() > 0 => attempt(),
            other => other,
        }
    }

    /// Tries what takes from the heaps by itself, and once more after others were asked for what is missing of `bytes`.
    /// Called without any lock: whoever is asked may use all of the library.
    pub fn with_help<T>(&self, bytes: u64, attempt: impl Fn() -> Result<T>) -> Result<T> {
        match attempt() {
            Err(error) if error.status == Status::OutOfMemory && self.ask_others(bytes) > 0 => attempt(),
            other => other,
        }
    }

    /// After a refusal: asks others for what is missing of `bytes`; what they gave. Called without any lock, as
    /// `with_help` is.
    pub(super) fn ask_others(&self, bytes: u64) -> u64 {
        self.rooms.ask(self.missing_bytes(bytes))
    }

    /// What others have to give so that a request fits; all of it where it is not bytes that are missing.
    fn missing_bytes(&self, bytes: u64) -> u64 {
        let free = self.device.memory_info().map_or(u64::MAX, |info| info.free_bytes);
        match bytes.saturating_sub(self.payer().left_bytes().min(free)) {
            0 => bytes,
            missing => missing,
        }
    }

    /// Memory was taken: if that passed the soft limit, others are asked. Called without any lock: whoever is asked may
    /// use all of the library.
    pub fn relax(&self) {
        self.rooms.relax();
    }
}
