//! One simulated device: its streams, events, memory limits, schedule and findings.
//!
//! What it does not: look at other devices; `world` has them all. Invariants: entry 0 of the streams is the default
//! stream; an event's slot is live or free; numbers of streams are never used twice.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::capture::Capture;
use super::clock::Stamp;
use super::memory::Space;
use super::report::{Finding, FindingKind, Party, Report};
use super::schedule::{Schedule, mix};
use super::shadow::Shadow;
use crate::device::host::memory::Physical;
use crate::device::host::vmm::VirtualMemory;
use crate::device::{DeviceKey, Event};
use crate::error::{Error, Result, Status};

/// A stream as a device knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Raw value, unique in the process.
    pub(super) value: u64,
    /// Where it is among all streams.
    pub(super) slot: u32,
    /// For people, and for the schedule: the same in every run.
    pub(super) number: u32,
    /// Made by another instance.
    pub(super) is_wrapped: bool,
}

#[derive(Default)]
struct EventSlot {
    generation: u32,
    is_live: bool,
    mark: Option<Stamp>,
    /// Its latest record is a part of a graph.
    is_captured: bool,
}

/// One device.
pub(super) struct Gpu {
    pub(super) key: DeviceKey,
    pub(super) ordinal: u32,
    pub(super) schedule: Schedule,
    /// Threads of the host are not taken to be in order with each other.
    pub(super) has_separate_threads: bool,
    pub(super) physical: Arc<Physical>,
    pub(super) virtual_memory: VirtualMemory,
    /// Accesses to mapped pages, by whatever address, until the page is released.
    pub(super) page_shadows: HashMap<u64, Shadow>,
    pub(super) space: Space,
    pub(super) streams: Vec<Entry>,
    /// Marks on streams of others that were forgotten before their work was done.
    pub(super) lingering: Vec<Stamp>,
    pub(super) kernels: BTreeSet<&'static str>,
    pub(super) peers: Vec<DeviceKey>,
    /// Why the device is lost.
    pub(super) lost: Option<String>,
    pub(super) report: Report,
    events: Vec<EventSlot>,
    free_events: Vec<u32>,
    pub(super) captures: Vec<Capture>,
    numbers: u32,
}

impl Gpu {
    /// A device without streams.
    pub(super) fn new(
        key: DeviceKey,
        ordinal: u32,
        schedule: Schedule,
        space: Space,
        (total_bytes, page_bytes): (u64, u64),
    ) -> Self {
        let physical = Arc::new(Physical::new(total_bytes));
        let report = Report { seed: schedule.seed(), ..Report::default() };
        Self {
            key,
            ordinal,
            schedule,
            has_separate_threads: false,
            virtual_memory: VirtualMemory::new_open(key, page_bytes, Arc::clone(&physical)),
            physical,
            page_shadows: HashMap::new(),
            space,
            streams: Vec::new(),
            lingering: Vec::new(),
            kernels: BTreeSet::new(),
            peers: Vec::new(),
            lost: None,
            report,
            events: Vec::new(),
            free_events: Vec::new(),
            captures: Vec::new(),
            numbers: 0,
        }
    }

    /// A number for a stream.
    pub(super) fn next_number(&mut self) -> u32 {
        self.numbers += 1;
        self.numbers - 1
    }

    /// A stream by its raw value; 0 is the default stream.
    pub(super) fn stream(&self, value: u64) -> Option<Entry> {
        match value {
            0 => self.streams.first().copied(),
            value => self.streams.iter().find(|entry| entry.value == value).copied(),
        }
    }

    /// Notes a finding.
    pub(super) fn find(
        &mut self,
        kind: FindingKind,
        who: Party,
        other: Option<Party>,
        (address, bytes): (u64, u64),
    ) {
        let offset = self.space.offset(address);
        self.report.add(Finding { kind, who, other, address, offset, bytes });
    }

    /// Folds what ran into the trace.
    pub(super) fn trace(&mut self, words: [u64; 4]) {
        for word in words {
            self.report.trace_hash = mix(self.report.trace_hash, word);
        }
    }

    // -------------------------------------------------------------------------------------------- events

    fn event_slot(&mut self, event: Event) -> Result<&mut EventSlot> {
        let generation = (event.0 >> 32) as u32;
        let index = event.0 as u32 as usize;
        let is_live =
            self.events.get(index).is_some_and(|slot| slot.is_live && slot.generation == generation);
        if !is_live {
            let who = Party { stream: None, name: "event", step: 0 };
            self.find(FindingKind::StaleHandle, who, None, (0, 0));
            return Err(Error::new(Status::StaleId, "the event was destroyed or is of another device"));
        }
        Ok(&mut self.events[index])
    }

    /// An event without a mark.
    pub(super) fn event_create(&mut self) -> Event {
        let index = self.free_events.pop().unwrap_or_else(|| {
            self.events.push(EventSlot::default());
            (self.events.len() - 1) as u32
        });
        let slot = &mut self.events[index as usize];
        slot.is_live = true;
        // Generations start at 1, so that 0 is never an event.
        slot.generation = slot.generation.wrapping_add(1).max(1);
        Event(u64::from(slot.generation) << 32 | u64::from(index))
    }

    /// Sets the latest mark, or none where the stream is captured.
    pub(super) fn event_record(&mut self, event: Event, stream: u64, mark: Stamp) -> Result<()> {
        let is_captured = self.is_captured(stream);
        self.event_slot(event)?;
        self.keep_out(!is_captured && self.is_in_capture(stream), "an event on the default stream")?;
        let slot = self.event_slot(event)?;
        slot.is_captured = is_captured;
        slot.mark = Some(mark).filter(|_| !is_captured);
        Ok(())
    }

    /// The latest mark, if there is one.
    pub(super) fn event_mark(&mut self, event: Event) -> Result<Option<Stamp>> {
        let slot = self.event_slot(event)?;
        let (mark, is_captured) = (slot.mark.clone(), slot.is_captured);
        self.keep_out(is_captured, "to ask for an event of a graph").map(|()| mark)
    }

    /// Forgets the event; marks that were copied out stay good.
    pub(super) fn event_destroy(&mut self, event: Event) -> Result<()> {
        let slot = self.event_slot(event)?;
        slot.is_live = false;
        slot.mark = None;
        self.free_events.push(event.0 as u32);
        Ok(())
    }
}
