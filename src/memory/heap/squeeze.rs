//! Live blocks of middle classes, cut to the length that was asked for.
//!
//! A class rounds up by as much as an eighth. While there is plenty, that buys a block that is found again fast; once
//! memory is short (`fitted`), what was rounded up is taken off: the addresses of the block stay, and the end of its
//! run, which was nobody's to write to, becomes a run of its own.
//! What it does not: touch blocks of slots, those above 32 MiB, what a graph captured, or what was allocated on a
//! stream that is gone.
//! A thread frees into its front cache without a lock, going by the class that the record says. So a block is marked as
//! shared first, which sends its free to the heap; then each front cache is visited, after which nobody is left who
//! read the record before; then the record is changed, unless it says something else by now.
//! Invariants: a run and the record of its block agree for whoever holds `core`. Who had the block before may still be
//! working on its end, in the order of the block's stream: there it goes, and not to all.
//! Lock order: front caches first; then `names`, then `core`.

use super::super::free_list::State;
use super::super::order::Freed;
use super::super::records::Facts;
use super::super::size_class::{self, Class};
use super::core::FITTED;
use super::fitted::granules;
use super::planted::Mistake;
use super::{Heap, MIDDLE};
use crate::error::Result;

/// Nodes of the free list that cutting one run may take: those of two parts, each between two others.
const NODES: u32 = 6;

/// The class of a live block whose run is longer than it has to be.
fn loose(facts: &Facts) -> Option<Class> {
    let class = Class::at(facts.class.into()).filter(|class| !class.is_small() && !facts.is_captured)?;
    (granules(size_class::bytes_of(class)) > granules(facts.bytes)).then_some(class)
}

impl Heap {
    /// Cuts all live blocks of middle classes to their lengths.
    pub(super) fn squeeze(&self) -> Result<()> {
        let Some(region) = self.regions.get(MIDDLE) else { return Ok(()) };
        let starts: Vec<u32> = {
            let core = self.core.lock();
            let used = core.middle.ranges().filter(|range| range.state == State::Used);
            used.map(|range| range.start).collect()
        };
        let records = starts.into_iter().filter_map(|start| Some((start, region.records.get(start)?)));
        let found: Vec<_> = {
            // What would not be cut is not marked either: its free would be a slow one for nothing.
            let names = self.names.read();
            let is_known = |facts: &Facts| names.streams.stream_in_use(facts.stream).is_some();
            let is_loose = |facts: &Facts| loose(facts).is_some() && is_known(facts);
            records.filter(|(_, record)| record.facts().as_ref().is_some_and(is_loose)).collect()
        };
        if found.is_empty() {
            return Ok(());
        }
        found.iter().for_each(|(_, record)| record.share());
        let guests = self.leases.lock().clone();
        guests.iter().for_each(|(_, guest)| guest.with(|_| ()));
        for (start, record) in found {
            let names = self.names.read();
            let mut core = self.core.lock();
            core.middle.reserve_nodes(NODES)?;
            // A block that is not marked is another one: the marked one was freed.
            let Some(facts) = record.facts().filter(|facts| facts.is_shared) else { continue };
            let Some(class) = loose(&facts) else { continue };
            // Of a stream that is gone nobody knows any more when its work ends.
            let Some(stream) = names.streams.stream_in_use(facts.stream) else { continue };
            if !record.reclass(&facts, FITTED as u8) {
                continue;
            }
            let bytes = size_class::bytes_of(class);
            core.cut(stream, Freed { class: FITTED, id: start.into(), bytes }, granules(facts.bytes))?;
            // A small request is of a middle class where its alignment is large.
            core.count_rare(facts.bytes, true);
            if self.has(Mistake::TailForAll) {
                core.order.take_stream(stream).into_iter().try_for_each(|block| core.give_free(block))?;
            }
        }
        Ok(())
    }
}
