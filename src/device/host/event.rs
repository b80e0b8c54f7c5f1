//! Events of the host device: slots that hold the latest mark.
//!
//! What it does: create, record, look up, destroy; a stale or forged event is an error. What it does not: waiting; a
//! mark is copied out and waited for without the lock. Invariant: a slot is live or in the free list, never both.
//! Lock order: its one lock, then nothing.

use super::stream::Mark;
use crate::device::Event;
use crate::error::{Error, Result, Status};
use crate::sync::Mutex;

#[derive(Default)]
struct Slot {
    generation: u32,
    is_live: bool,
    mark: Option<Mark>,
}

#[derive(Default)]
struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Table {
    fn slot(&mut self, event: Event) -> Result<&mut Slot> {
        let generation = (event.0 >> 32) as u32;
        let slot = self.slots.get_mut(event.0 as u32 as usize);
        slot.filter(|slot| slot.is_live && slot.generation == generation)
            .ok_or_else(|| Error::new(Status::StaleId, "the event was destroyed or is of another device"))
    }
}

/// All events of one device.
#[derive(Default)]
pub(super) struct Events {
    table: Mutex<Table>,
}

impl Events {
    /// An event without a mark.
    pub(super) fn create(&self) -> Event {
        let mut table = self.table.lock();
        let index = match table.free.pop() {
            Some(index) => index,
            None => {
                table.slots.push(Slot::default());
                (table.slots.len() - 1) as u32
            }
        };
        let slot = &mut table.slots[index as usize];
        slot.is_live = true;
        // Generations start at 1, so that 0 is never an event.
        slot.generation = slot.generation.wrapping_add(1).max(1);
        Event(u64::from(slot.generation) << 32 | u64::from(index))
    }

    /// Sets the latest mark.
    pub(super) fn record(&self, event: Event, mark: Mark) -> Result<()> {
        self.table.lock().slot(event)?.mark = Some(mark);
        Ok(())
    }

    /// The latest mark, if there is one.
    pub(super) fn mark(&self, event: Event) -> Result<Option<Mark>> {
        Ok(self.table.lock().slot(event)?.mark.clone())
    }

    /// Forgets the event; marks that were copied out stay good.
    pub(super) fn destroy(&self, event: Event) -> Result<()> {
        let mut table = self.table.lock();
        let slot = table.slot(event)?;
        slot.is_live = false;
        slot.mark = None;
        table.free.push(event.0 as u32);
        Ok(())
    }
}
