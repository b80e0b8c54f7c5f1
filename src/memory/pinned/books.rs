//! The books of a pool of pinned memory: chunks, live ranges, ranges that wait for a stream, ranges of the caller's.
//!
//! What it does: numbers and lists. What it does not: call a device; so all of it may be used under the pool's lock.
//! Invariants, checked by `validate()`: a live range is a piece of one chunk; free and carved bytes of the chunks are
//! all bytes of the chunks; a range is in `leaving` at most once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::carve::{Carver, Piece};
use super::statistics::PinnedStatistics;
use crate::device::{PinnedRegion, PinnedSlice, Registration};
use crate::error::{Error, Result, Status};
use crate::memory::Memory;
use crate::memory::fence::Fence;
use crate::memory::ledger::{Entry, Where};

/// A range that is not free.
struct Live {
    piece: Piece,
    /// What was asked for.
    bytes: u64,
    /// Its number in the ledger.
    entry: u64,
    /// Freed, but a stream may still copy.
    is_leaving: bool,
}

/// A range of the caller's.
pub(super) struct Foreign {
    pub(super) registration: Registration,
    pub(super) entry: u64,
}

#[derive(Default)]
pub(super) struct Books {
    pub(super) carver: Carver,
    chunks: BTreeMap<u64, PinnedRegion>,
    live: BTreeMap<u64, Live>,
    pub(super) leaving: Vec<(u64, Arc<Fence>)>,
    pub(super) foreign: BTreeMap<u64, Foreign>,
    /// Bytes that are wished for and not there yet; the thread that pins ahead runs while there are any.
    pub(super) ahead_bytes: u64,
    /// Why it ended early the last time.
    pub(super) ahead_error: Option<Error>,
    hits: u64,
    misses: u64,
}

fn stranger(address: u64) -> Error {
    let text =
        format!("{address:#x} is no pinned memory of this manager; free the address that was allocated");
    Error::argument(text)
}

impl Books {
    /// Adds a chunk.
    pub(super) fn insert(&mut self, chunk: PinnedRegion) {
        let start = chunk.slice().address() as u64;
        self.carver.insert(start, chunk.slice().bytes());
        self.chunks.insert(start, chunk);
    }

    /// Carves a range and notes it in the ledger.
    pub(super) fn take(
        &mut self,
        memory: &Memory,
        bytes: u64,
        tag: &str,
        is_hit: bool,
    ) -> Result<Option<PinnedSlice>> {
        let Some(piece) = self.carver.take(bytes) else { return Ok(None) };
        let slice = match self.part(piece.address, bytes) {
            Ok(slice) => slice,
            Err(error) => return self.carver.give(piece).and(Err(error)),
        };
        *(if is_hit { &mut self.hits } else { &mut self.misses }) += 1;
        let entry = memory.ledger.add(Entry::new(Where::Pinned, piece.address, bytes, tag));
        self.live.insert(piece.address, Live { piece, bytes, entry, is_leaving: false });
        Ok(Some(slice))
    }

    fn part(&self, address: u64, bytes: u64) -> Result<PinnedSlice> {
        let chunk = self.chunks.range(..=address).next_back();
        let Some((&start, chunk)) = chunk else {
            return Err(Error::internal("a range outside of all chunks"));
        };
        chunk.slice().part(address - start, bytes)
    }

    fn live(&mut self, address: u64) -> Result<&mut Live> {
        let live = self.live.get_mut(&address).ok_or_else(|| stranger(address))?;
        if live.is_leaving {
            let text = format!("the pinned memory at {address:#x} was freed before");
            return Err(Error::new(Status::WrongState, text));
        }
        Ok(live)
    }

    /// The range of live memory.
    pub(super) fn slice(&mut self, address: u64) -> Result<PinnedSlice> {
        let bytes = self.live(address)?.bytes;
        self.part(address, bytes)
    }

    /// Takes a range back at once.
    pub(super) fn free(&mut self, memory: &Memory, address: u64) -> Result<()> {
        let (piece, entry) = {
            let live = self.live(address)?;
            (live.piece, live.entry)
        };
        self.carver.give(piece)?;
        self.live.remove(&address);
        memory.ledger.remove(entry);
        Ok(())
    }

    /// Says that a free of the range is under way.
    pub(super) fn mark_leaving(&mut self, address: u64) -> Result<()> {
        self.live(address)?.is_leaving = true;
        Ok(())
    }

    /// The free was refused.
    pub(super) fn unmark_leaving(&mut self, address: u64) {
        if let Some(live) = self.live.get_mut(&address) {
            live.is_leaving = false;
        }
    }

    /// The range comes back when the fence is reached; to its user it is gone now.
    pub(super) fn leave(&mut self, memory: &Memory, address: u64, fence: Arc<Fence>) -> Result<()> {
        let live =
            self.live.get(&address).ok_or_else(|| Error::internal("a range left while it was freed"))?;
        memory.ledger.remove(live.entry);
        self.leaving.push((address, fence));
        Ok(())
    }

    /// The fence was reached.
    pub(super) fn finish_leaving(&mut self, address: u64) {
        if let Some(live) = self.live.remove(&address) {
            // Only a piece of no chunk is refused, and a chunk stays while a piece of it is not free.
            let _ = self.carver.give(live.piece);
        }
    }

    /// Takes out chunks that are wholly free.
    pub(super) fn take_idle(&mut self) -> Vec<PinnedRegion> {
        let idle = self.carver.take_idle();
        idle.into_iter().filter_map(|start| self.chunks.remove(&start)).collect()
    }

    /// Takes everything out, and says how many ranges were still live, and their bytes.
    pub(super) fn close(&mut self, memory: &Memory) -> (Vec<PinnedRegion>, Vec<Foreign>, (u64, u64)) {
        let mut left = (0, 0);
        for live in std::mem::take(&mut self.live).into_values().filter(|live| !live.is_leaving) {
            memory.ledger.remove(live.entry);
            left = (left.0 + 1, left.1 + live.bytes);
        }
        self.leaving.clear();
        self.carver = Carver::default();
        let foreign = std::mem::take(&mut self.foreign).into_values().collect();
        (std::mem::take(&mut self.chunks).into_values().collect(), foreign, left)
    }

    /// Totals.
    pub(super) fn statistics(&self) -> PinnedStatistics {
        let (free_bytes, largest_free_bytes) = self.carver.free_bytes();
        let mut totals = PinnedStatistics {
            held_bytes: self.carver.held_bytes(),
            chunks: self.carver.chunks() as u64,
            free_bytes,
            largest_free_bytes,
            ahead_bytes: self.ahead_bytes,
            hits: self.hits,
            misses: self.misses,
            ..PinnedStatistics::default()
        };
        for live in self.live.values() {
            if live.is_leaving {
                totals.leaving_bytes += live.piece.bytes;
                continue;
            }
            totals.live += 1;
            totals.live_bytes += live.bytes;
            totals.slack_bytes += live.piece.bytes - live.bytes;
        }
        for foreign in self.foreign.values() {
            totals.registered_bytes += foreign.registration.range().bytes();
            totals.registered_pieces += foreign.registration.pieces() as u64;
        }
        totals
    }

    /// Proves what the file head says.
    pub(super) fn validate(&self) -> Result<()> {
        self.carver.validate()?;
        let carved: u64 = self.live.values().map(|live| live.piece.bytes).sum();
        let (free, _) = self.carver.free_bytes();
        if carved + free != self.carver.held_bytes() || self.chunks.len() != self.carver.chunks() {
            return Err(Error::internal(format!(
                "pinned memory: {carved} bytes carved and {free} free of {}",
                self.carver.held_bytes()
            )));
        }
        let mut end = 0;
        for (&address, live) in &self.live {
            if address != live.piece.address || address < end || live.bytes > live.piece.bytes {
                return Err(Error::internal(format!(
                    "pinned memory: the range at {address:#x} is misplaced"
                )));
            }
            end = address + live.piece.bytes;
        }
        let marked = self.live.values().filter(|live| live.is_leaving).count();
        if self.leaving.len() > marked {
            return Err(Error::internal("pinned memory: a range leaves twice"));
        }
        Ok(())
    }
}
