//! What may be done with a live block besides freeing it.
//!
//! What it does: notes uses by other streams, pins, fills with zeros. What it does not: move or free anything.
//! Invariants: a block that is not live is refused; one that is in `pinned` stays live, its record says that it is
//! shared, which sends its free to where that is looked at, and its pages have as many pins of their own. Lock order:
//! `pinned`, then a page table's.

use super::Heap;
use crate::device::Stream;
use crate::error::{Error, Result, Status};

impl Heap {
    /// Says that work on another stream uses the memory too: its free waits for that work as well.
    pub fn record_use(&self, address: u64, stream: Stream) -> Result<()> {
        if let Some(plain) = &self.plain {
            return plain.record_use(address, self.lane(stream));
        }
        let (_, _, record, facts) = self.live(address)?;
        let stream = self.lane(stream);
        let mut shared = self.shared.lock();
        let users = shared.entry(address).or_default();
        if !users.contains(&stream) {
            users.push(stream);
        }
        if !facts.is_shared {
            record.share();
        }
        Ok(())
    }

    /// Keeps an allocation's memory where it is: it is registered with NCCL, RDMA or another process.
    pub fn pin(&self, address: u64) -> Result<()> {
        // Plain memory never moves.
        if let Some(plain) = &self.plain {
            return plain.check(address);
        }
        let (region, _, record, facts) = self.live(address)?;
        let mut pinned = self.pinned.lock();
        region.pin(address - region.base, facts.bytes)?;
        *pinned.entry(address).or_default() += 1;
        if !facts.is_shared {
            record.share();
        }
        Ok(())
    }

    /// Undoes one pin.
    pub fn unpin(&self, address: u64) -> Result<()> {
        if let Some(plain) = &self.plain {
            return plain.check(address);
        }
        let (region, _, _, facts) = self.live(address)?;
        let mut pinned = self.pinned.lock();
        // Neighbours lie in the same pages: only the block's own count tells whose pin would go.
        let Some(count) = pinned.get_mut(&address) else {
            let text = format!("{address:#x} is not pinned; unpin what was pinned");
            return Err(Error::new(Status::NotFound, text));
        };
        region.unpin(address - region.base, facts.bytes)?;
        *count -= 1;
        if *count == 0 {
            pinned.remove(&address);
        }
        Ok(())
    }

    /// Refuses a block that is pinned: nobody could unpin its memory any more.
    pub(super) fn check_unpinned(&self, address: u64) -> Result<()> {
        match self.pinned.lock().get(&address) {
            Some(count) => Err(Error::new(
                Status::InUse,
                format!("{address:#x} is pinned {count} times; undo that before you free it"),
            )),
            None => Ok(()),
        }
    }

    /// Enqueues the filling of a whole allocation with zeros.
    pub fn zero(&self, stream: Stream, address: u64) -> Result<()> {
        if let Some(plain) = &self.plain {
            return self.device.memset(stream, plain.slice(address)?, 0);
        }
        let (region, _, _, facts) = self.live(address)?;
        self.device.memset(stream, region.slice(address - region.base, facts.bytes)?, 0)
    }
}
