//! Tickets: ids for "all work enqueued on a stream so far".
//!
//! What it does: hands out ids, tells whether the work is done, waits, makes streams wait. One table for the process,
//! because an id says by itself what it stands for. What it does not: callbacks.
//!
//! Invariants: a slot's generation is that of its latest ticket, or of its next one while it is free; so an id of a
//! lower generation was given out and is done, and one of a higher generation is forged. A failed ticket keeps its slot
//! until somebody has heard of the failure. Each new ticket looks at two others, so that tickets which nobody asks for
//! do not pile up. Lock: the table's, taken alone; no device is called under it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::{Device, DeviceKey, Event, Stream, check_outside};
use crate::error::{Error, Result, Status};
use crate::sync::{Mutex, pause};
use crate::sys::clock;
use crate::types::{Id, IdKind};

/// Most tickets at a time, so that a program which never asks for its tickets hears of it.
const SLOT_LIMIT: usize = 1 << 20;
/// Others that each new ticket looks at: more than one, so that the table shrinks after a burst.
const SWEPT_PER_RECORD: usize = 2;

/// What became of a ticket's work.
#[derive(Clone, Debug)]
pub enum State {
    /// Done.
    Done,
    /// Not yet done.
    Pending,
    /// It will never be done. Told once; afterwards the ticket counts as done.
    Failed(Error),
}

/// A point on a stream. Gives the event back when the last holder has gone.
struct Mark {
    device: Arc<dyn Device>,
    event: Event,
    pending: Arc<AtomicU64>,
}

impl Mark {
    fn new(device: &Arc<dyn Device>, pending: &Arc<AtomicU64>) -> Result<Self> {
        let event = device.event_create()?;
        pending.fetch_add(1, Ordering::Relaxed);
        Ok(Self { device: Arc::clone(device), event, pending: Arc::clone(pending) })
    }

    fn state(&self) -> State {
        match self.device.event_is_done(self.event) {
            Ok(true) => State::Done,
            Ok(false) => State::Pending,
            Err(error) => State::Failed(error),
        }
    }

    fn wait(&self) -> State {
        match self.device.event_synchronize(self.event) {
            Ok(()) => State::Done,
            Err(error) => State::Failed(error),
        }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.pending.fetch_sub(1, Ordering::Relaxed);
        // Only a lost device refuses, and its events are lost with it.
        let _ = self.device.event_destroy(self.event);
    }
}

enum Content {
    Free,
    Pending(Arc<Mark>),
    Failed(Error),
}

struct Slot {
    generation: u32,
    content: Content,
}

struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    cursor: usize,
}

static TABLE: Mutex<Table> = Mutex::new(Table { slots: Vec::new(), free: Vec::new(), cursor: 0 });

fn stale(id: Id, why: &str) -> Error {
    Error::new(Status::StaleId, format!("{:#x} as ticket: {why}", id.0))
}

impl Table {
    fn slot(&mut self, id: Id) -> Result<&mut Slot> {
        let index = id.index(IdKind::Ticket).ok_or_else(|| stale(id, "not the id of a ticket"))?;
        self.slots.get_mut(index).ok_or_else(|| stale(id, "no such ticket was ever made"))
    }

    /// What is known without asking a device; a mark if it has to be asked.
    fn look(&mut self, id: Id) -> Result<std::result::Result<State, Arc<Mark>>> {
        let slot = self.slot(id)?;
        match &slot.content {
            _ if id.generation() == 0 || id.generation() > slot.generation => {
                Err(stale(id, "no such ticket was ever made"))
            }
            _ if id.generation() < slot.generation => Ok(Ok(State::Done)),
            Content::Free => Err(stale(id, "no such ticket was ever made")),
            Content::Pending(mark) => Ok(Err(Arc::clone(mark))),
            Content::Failed(error) => Ok(Ok(State::Failed(error.clone()))),
        }
    }

    /// Ends a ticket, if it has not ended meanwhile, and returns what it held, to be dropped without the lock.
    fn recycle(&mut self, id: Id) -> Option<Content> {
        let index = id.index(IdKind::Ticket)?;
        let slot = self.slots.get_mut(index)?;
        if slot.generation != id.generation() || matches!(slot.content, Content::Free) {
            return None;
        }
        let content = std::mem::replace(&mut slot.content, Content::Free);
        // A slot that has used up its generations stays empty for ever; its old ids still count as done.
        if slot.generation < u32::MAX {
            slot.generation += 1;
            self.free.push(index as u32);
        }
        Some(content)
    }

    fn insert(&mut self, mark: &Arc<Mark>) -> Result<Id> {
        let index = match self.free.pop() {
            Some(index) => index as usize,
            None => self.grow()?,
        };
        let slot = &mut self.slots[index];
        slot.content = Content::Pending(Arc::clone(mark));
        Ok(Id::new(IdKind::Ticket, slot.generation, index as u32))
    }

    fn grow(&mut self) -> Result<usize> {
        let index = self.slots.len();
        if index >= SLOT_LIMIT {
            let text = format!("{SLOT_LIMIT} tickets are pending; poll them or synchronise their streams");
            return Err(Error::new(Status::LimitReached, text));
        }
        let no_memory = |_| Error::new(Status::OutOfHostMemory, "no memory for one more ticket");
        self.slots.try_reserve(1).map_err(no_memory)?;
        // Room for the way back, so that ending a ticket never needs memory.
        let missing = self.slots.capacity().saturating_sub(self.free.len());
        self.free.try_reserve(missing).map_err(no_memory)?;
        self.slots.push(Slot { generation: 1, content: Content::Free });
        Ok(index)
    }

    /// The next pending tickets after those that were looked at the last time.
    fn next_pending(&mut self) -> [Option<(Id, Arc<Mark>)>; SWEPT_PER_RECORD] {
        [(); SWEPT_PER_RECORD].map(|()| {
            self.cursor = if self.cursor + 1 < self.slots.len() { self.cursor + 1 } else { 0 };
            let slot = self.slots.get(self.cursor)?;
            let Content::Pending(mark) = &slot.content else { return None };
            Some((Id::new(IdKind::Ticket, slot.generation, self.cursor as u32), Arc::clone(mark)))
        })
    }
}

fn recycle(id: Id) {
    let content = TABLE.lock().recycle(id);
    drop(content);
}

/// Ends a ticket that is done, and keeps the error of one that has failed without anybody listening.
fn settle(id: Id, state: State) {
    match state {
        State::Pending => {}
        State::Done => recycle(id),
        State::Failed(error) => {
            let former = {
                let mut table = TABLE.lock();
                let slot = table.slot(id).ok();
                let slot = slot.filter(|slot| {
                    slot.generation == id.generation() && matches!(slot.content, Content::Pending(_))
                });
                slot.map(|slot| std::mem::replace(&mut slot.content, Content::Failed(error)))
            };
            drop(former);
        }
    }
}

fn sweep() {
    let others = TABLE.lock().next_pending();
    for (id, mark) in others.into_iter().flatten() {
        settle(id, mark.state());
    }
}

/// A ticket for all work enqueued on the stream so far. `pending` counts the device's tickets that are not done.
pub(super) fn record(device: &Arc<dyn Device>, stream: Stream, pending: &Arc<AtomicU64>) -> Result<Id> {
    let advice = "record a stream that launches the graph";
    check_outside(device.as_ref(), stream, advice)?;
    sweep();
    let mark = Arc::new(Mark::new(device, pending)?);
    device.event_record(mark.event, stream)?;
    // A capture may have begun in between: then nobody may ever ask for the event.
    check_outside(device.as_ref(), stream, advice)?;
    TABLE.lock().insert(&mark)
}

/// What became of the work; does not block.
pub fn poll(id: Id) -> Result<State> {
    let looked = TABLE.lock().look(id)?;
    let state = match looked {
        Ok(state) => state,
        Err(mark) => mark.state(),
    };
    if !matches!(state, State::Pending) {
        recycle(id);
    }
    Ok(state)
}

/// Waits for the work, at most so long; `u64::MAX` waits for ever. Blocks.
pub fn wait(id: Id, timeout_ns: u64) -> Result<State> {
    let looked = TABLE.lock().look(id)?;
    let state = match looked {
        Ok(state) => state,
        Err(mark) if timeout_ns == u64::MAX => mark.wait(),
        Err(mark) => wait_until(&mark, clock::now_ns().saturating_add(timeout_ns)),
    };
    if !matches!(state, State::Pending) {
        recycle(id);
    }
    Ok(state)
}

fn wait_until(mark: &Mark, deadline_ns: u64) -> State {
    // No device can wait with a limit, so ask again and again: first soon, later each millisecond.
    let mut pause_ns = 20_000;
    loop {
        let state = mark.state();
        let left_ns = deadline_ns.saturating_sub(clock::now_ns());
        if left_ns == 0 || !matches!(state, State::Pending) {
            return state;
        }
        pause(left_ns.min(pause_ns));
        pause_ns = (pause_ns * 2).min(1_000_000);
    }
}

/// Makes later work on a stream of `device` wait for the ticket.
pub(super) fn stream_wait(device: &Arc<dyn Device>, stream: Stream, id: Id) -> Result<()> {
    let looked = TABLE.lock().look(id)?;
    match looked {
        Ok(State::Failed(error)) => Err(error.context("the ticket's work has failed")),
        Ok(_) => Ok(()),
        Err(mark) if mark.device.key() == device.key() => device.stream_wait_event(stream, mark.event),
        Err(_) => {
            Err(Error::argument("the ticket belongs to another manager; wait for it with kavern_ticket_wait"))
        }
    }
}

/// Waits for all tickets of a device that is about to be closed; failures stay to be asked for. Blocks.
pub(super) fn settle_device(key: DeviceKey) {
    let mut marks = Vec::new();
    for (index, slot) in TABLE.lock().slots.iter().enumerate() {
        if let Content::Pending(mark) = &slot.content
            && mark.device.key() == key
        {
            marks.push((Id::new(IdKind::Ticket, slot.generation, index as u32), Arc::clone(mark)));
        }
    }
    for (id, mark) in marks {
        settle(id, mark.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::NoSink;
    use crate::manager::Manager;
    use crate::memory::Limits;

    /// The table is one for the process, and a new ticket of one test would look at those of another.
    static ALONE: Mutex<()> = Mutex::new(());

    fn open(spec: &str) -> Arc<Manager> {
        Manager::open(spec, Limits::default(), Arc::new(NoSink)).unwrap()
    }

    fn is_stale(id: Id) -> bool {
        matches!(poll(id), Err(error) if error.status == Status::StaleId)
    }

    #[test]
    fn a_ticket_is_done_once_and_for_ever_and_ids_that_were_never_made_are_stale() {
        let _alone = ALONE.lock();
        let manager = open("host");
        let id = manager.record(Stream::DEFAULT).unwrap();
        assert!(matches!(wait(id, u64::MAX), Ok(State::Done)));
        // The slot is free or another ticket's by now.
        assert!(matches!(poll(id), Ok(State::Done)));
        assert!(matches!(wait(id, 0), Ok(State::Done)));
        let index = id.index(IdKind::Ticket).unwrap() as u32;
        assert!(is_stale(Id::new(IdKind::Ticket, u32::MAX, index)), "a generation of the future");
        assert!(is_stale(Id::new(IdKind::Ticket, 0, index)));
        assert!(is_stale(Id::new(IdKind::Ticket, 1, Id::INDEX_LIMIT - 1)));
        assert!(is_stale(Id::new(IdKind::Lease, id.generation(), index)));
        assert!(is_stale(Id(0)));
    }

    #[test]
    fn a_failure_is_told_once() {
        let _alone = ALONE.lock();
        // Calls of kind event: create, record, then the question whether it is done.
        let manager = open("host?kind=event&fail_nth=3&error=device");
        let id = manager.record(Stream::DEFAULT).unwrap();
        let State::Failed(error) = poll(id).unwrap() else { panic!("the third call fails") };
        assert_eq!(error.status, Status::Device);
        assert!(matches!(poll(id), Ok(State::Done)));
        assert_eq!(manager.totals().pending_tickets, 0);
    }

    #[test]
    fn a_ticket_that_cannot_be_recorded_leaves_nothing_behind() {
        let _alone = ALONE.lock();
        for nth in [1, 2] {
            let manager = open(&format!("host?kind=event&fail_nth={nth}&error=device"));
            assert_eq!(manager.record(Stream::DEFAULT).unwrap_err().status, Status::Device);
            assert_eq!(manager.totals().pending_tickets, 0);
            let id = manager.record(Stream::DEFAULT).unwrap();
            assert!(matches!(wait(id, u64::MAX), Ok(State::Done)));
        }
    }

    #[test]
    fn a_ticket_outlives_its_manager() {
        let _alone = ALONE.lock();
        let manager = open("host");
        let ids: Vec<Id> = (0..100).map(|_| manager.record(Stream::DEFAULT).unwrap()).collect();
        drop(manager);
        assert!(ids.into_iter().all(|id| matches!(poll(id), Ok(State::Done))));
    }

    #[test]
    fn several_threads_may_wait_with_a_limit_at_a_time() {
        let _alone = ALONE.lock();
        let manager = open("host");
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let hold = Box::new(move || {
            let _ = told.recv();
        });
        manager.device().stream_callback(Stream::DEFAULT, hold).unwrap();
        let id = manager.record(Stream::DEFAULT).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!(matches!(wait(id, 5_000_000), Ok(State::Pending))));
            }
        });
        tell.send(()).unwrap();
        assert!(matches!(wait(id, u64::MAX), Ok(State::Done)));
    }

    #[test]
    fn a_wait_with_a_limit_ends_and_says_pending() {
        let _alone = ALONE.lock();
        let manager = open("host");
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let hold = Box::new(move || {
            let _ = told.recv();
        });
        manager.device().stream_callback(Stream::DEFAULT, hold).unwrap();
        let id = manager.record(Stream::DEFAULT).unwrap();
        assert!(matches!(poll(id), Ok(State::Pending)));
        assert!(matches!(wait(id, 2_000_000), Ok(State::Pending)));
        // Another stream waits for the ticket, so its own ticket is pending too.
        let other = manager.create_stream().unwrap();
        let other = manager.own_stream(other).unwrap();
        manager.stream_wait(*other, id).unwrap();
        let second = manager.record(*other).unwrap();
        assert!(matches!(poll(second), Ok(State::Pending)));
        let elsewhere = open("host");
        let refused = elsewhere.stream_wait(Stream::DEFAULT, id).unwrap_err();
        assert_eq!(refused.status, Status::InvalidArgument);
        tell.send(()).unwrap();
        assert!(matches!(wait(second, 60_000_000_000), Ok(State::Done)));
        assert!(matches!(poll(id), Ok(State::Done)));
    }
}
