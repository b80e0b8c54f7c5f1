//! Steps in flight and the blocks that wait for them.
//!
//! A step is open from its first operation, done when the engine says that its work is enqueued, and complete when
//! the stream is past that point. Blocks that nobody holds, but which a step that is not complete may still read,
//! wait in that step's list. Steps complete in order: `completed` is the highest id with none open or running below.
//! Invariant: every id that was opened and is above `completed` has a slot; ids rise from slot to slot.

use crate::device::{Event, Stream};
use crate::error::{Error, Result, Status};

/// End of a list of waiting blocks.
pub(super) const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StepState {
    /// The engine may still enqueue work of this step.
    Open,
    /// A later step's end covers this one.
    Covered,
    /// `step_done` is being recorded.
    Recording,
    /// Complete when the event is.
    Running(Stream),
    /// The work is over.
    Complete,
}

/// Head and tail of the blocks of one group that wait for a step, linked through the blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) head: u32,
    pub(super) tail: u32,
}

impl Waiting {
    pub(super) const EMPTY: Self = Self { head: NONE, tail: NONE };
}

pub(super) struct StepSlot {
    pub(super) id: u64,
    pub(super) state: StepState,
    pub(super) event: Option<Event>,
    /// Where its tables were enqueued.
    pub(super) tables_stream: Option<Stream>,
    /// One list for each group.
    pub(super) waiting: Vec<Waiting>,
}

/// The ring of steps in flight. Its size is fixed.
pub(super) struct Steps {
    slots: Vec<StepSlot>,
    first: usize,
    count: usize,
    newest: u64,
    completed: u64,
}

impl Steps {
    /// `events` holds one event for each slot, or is empty for a cache without a device.
    pub(super) fn new(slot_count: u32, groups: usize, events: &[Event]) -> Self {
        let slot = |index: u32| StepSlot {
            id: 0,
            state: StepState::Complete,
            event: events.get(index as usize).copied(),
            tables_stream: None,
            waiting: vec![Waiting::EMPTY; groups],
        };
        Self { slots: (0..slot_count).map(slot).collect(), first: 0, count: 0, newest: 0, completed: 0 }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The highest id ever opened, 0 before the first.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    pub(super) fn completed(&self) -> u64 {
        self.completed
    }

    fn at(&self, position: usize) -> usize {
        (self.first + position) % self.slots.len()
    }

    pub(super) fn slot(&self, position: usize) -> &StepSlot {
        &self.slots[self.at(position)]
    }

    fn position(&self, id: u64) -> Option<usize> {
        (0..self.count).rev().find(|&position| self.slot(position).id == id)
    }

    /// The list in which blocks of that group wait for that step, which is in flight.
    pub(super) fn waiting(&mut self, id: u64, group: usize) -> &mut Waiting {
        let position = self.position(id).expect("a block waits only for a step in flight");
        let at = self.at(position);
        &mut self.slots[at].waiting[group]
    }

    /// Whether the step was opened and not declared done.
    pub(super) fn is_open(&self, id: u64) -> bool {
        self.count > 0 && self.newest == id && self.slot(self.count - 1).state == StepState::Open
    }

    /// The oldest step whose work the engine may still enqueue.
    pub(super) fn oldest_open(&self) -> Option<u64> {
        (0..self.count).map(|at| self.slot(at)).find(|slot| slot.state == StepState::Open).map(|slot| slot.id)
    }

    /// Refuses a step that cannot be opened, nor gone on with; else answers whether it would be new.
    pub(super) fn check_open(&self, id: u64) -> Result<bool> {
        if self.is_open(id) {
            return Ok(false);
        }
        if id <= self.newest {
            let text = "step ids rise: use one above every id used before, or go on with the newest before step_done";
            return Err(Error::new(Status::WrongState, text));
        }
        if self.count == self.slots.len() {
            let text = "steps_in_flight steps are not complete; call step_done or wait for the stream";
            return Err(Error::new(Status::TooManySteps, text));
        }
        Ok(true)
    }

    /// Opens a step, or goes on with the newest one. Answers whether it is new.
    pub(super) fn open(&mut self, id: u64) -> Result<bool> {
        if !self.check_open(id)? {
            return Ok(false);
        }
        let at = self.at(self.count);
        self.slots[at].id = id;
        self.slots[at].state = StepState::Open;
        self.slots[at].tables_stream = None;
        self.count += 1;
        self.newest = id;
        Ok(true)
    }

    /// Notes where the tables of the open step are enqueued, and gives the events for which that stream must wait
    /// because other streams ran the steps before it.
    pub(super) fn order_after(&mut self, stream: Stream, mut wait: impl FnMut(Event)) -> Result<()> {
        for position in 0..self.count.saturating_sub(1) {
            let slot = self.slot(position);
            match (slot.state, slot.tables_stream, slot.event) {
                (StepState::Running(other), _, Some(event)) if other != stream => wait(event),
                (StepState::Open | StepState::Recording, Some(other), _) if other != stream => {
                    let text = "an earlier step runs on another stream; call its step_done first";
                    return Err(Error::new(Status::WrongState, text));
                }
                _ => {}
            }
        }
        if let Some(last) = self.count.checked_sub(1) {
            let at = self.at(last);
            self.slots[at].tables_stream = Some(stream);
        }
        Ok(())
    }

    /// Begins `step_done`: the step and the open ones below it wait for one event. `None`: nothing is in flight.
    pub(super) fn begin_done(&mut self, id: u64) -> Result<Option<(usize, Option<Event>)>> {
        if id > self.newest {
            return Err(Error::new(Status::WrongState, "step_done of a step that was not begun"));
        }
        let Some(position) = (0..self.count).rev().find(|&position| self.slot(position).id <= id) else {
            return Ok(None);
        };
        if self.slot(position).state != StepState::Open {
            return Err(Error::new(Status::WrongState, "step_done was called for this step before"));
        }
        let at = self.at(position);
        self.slots[at].state = StepState::Recording;
        Ok(Some((at, self.slots[at].event)))
    }

    /// Ends `step_done` with the state that recording led to; open steps below are covered if it went well.
    pub(super) fn end_done(&mut self, at: usize, state: StepState) {
        self.slots[at].state = state;
        if state == StepState::Open {
            return;
        }
        for position in 0..self.count {
            let below = self.at(position);
            if self.slots[below].id < self.slots[at].id && self.slots[below].state == StepState::Open {
                self.slots[below].state = StepState::Covered;
            }
        }
    }

    /// Notes that the event of a running step was seen to be done. The slot may have moved on: then nothing changes.
    pub(super) fn note_complete(&mut self, id: u64) {
        if let Some(position) = self.position(id) {
            let at = self.at(position);
            if matches!(self.slots[at].state, StepState::Running(_)) {
                self.slots[at].state = StepState::Complete;
            }
        }
    }

    /// Takes the oldest step if it is complete; its blocks have stopped waiting. The caller empties the lists.
    pub(super) fn pop_complete(&mut self) -> Option<&mut StepSlot> {
        let decisive = (0..self.count).find(|&position| self.slot(position).state != StepState::Covered)?;
        if self.slot(decisive).state != StepState::Complete {
            return None;
        }
        let at = self.first;
        self.first = self.at(1);
        self.count -= 1;
        self.completed = self.slots[at].id;
        Some(&mut self.slots[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(steps: &mut Steps, id: u64) {
        let (at, _) = steps.begin_done(id).unwrap().unwrap();
        steps.end_done(at, StepState::Complete);
    }

    #[test]
    fn a_step_completes_only_after_all_below_it() {
        let mut steps = Steps::new(3, 1, &[]);
        steps.open(5).unwrap();
        let (at, _) = steps.begin_done(5).unwrap().unwrap();
        steps.end_done(at, StepState::Running(Stream(9)));
        steps.open(7).unwrap();
        complete(&mut steps, 7);
        assert!(steps.pop_complete().is_none());
        steps.note_complete(5);
        assert_eq!(steps.pop_complete().unwrap().id, 5);
        assert_eq!(steps.pop_complete().unwrap().id, 7);
        assert_eq!((steps.completed(), steps.count()), (7, 0));
    }

    #[test]
    fn step_done_covers_open_steps_below() {
        let mut steps = Steps::new(3, 1, &[]);
        steps.open(1).unwrap();
        steps.open(2).unwrap();
        complete(&mut steps, 2);
        assert_eq!(steps.pop_complete().unwrap().id, 1);
        assert_eq!(steps.pop_complete().unwrap().id, 2);
    }

    #[test]
    fn ids_rise_and_the_ring_is_bounded() {
        let mut steps = Steps::new(2, 1, &[]);
        assert!(steps.open(3).unwrap());
        assert!(!steps.open(3).unwrap());
        assert_eq!(steps.open(2).unwrap_err().status, Status::WrongState);
        steps.open(4).unwrap();
        assert_eq!(steps.open(5).unwrap_err().status, Status::TooManySteps);
        assert_eq!(steps.begin_done(9).unwrap_err().status, Status::WrongState);
        complete(&mut steps, 4);
        assert_eq!(steps.begin_done(4).unwrap_err().status, Status::WrongState);
    }
}
