//! The numbers by which records name streams: 16 bits each, and given to others when their streams are gone.
//!
//! What it does: a number for a stream, and the stream of a number. What it does not: order anything; blocks that were
//! freed are kept by the stream itself, so nobody gets another one's with its number.
//! Invariants: `numbers` and `used` say the same. A number is in use, gone or free. One that is gone still names its
//! stream for the blocks that live on, and is given again only when a walk over all live records, and over what graphs
//! keep, has not met it. Nobody allocates on a stream that goes, so no record comes to name it later.
//! Lock order: inside the heap's lock of names, under which those of plain blocks and of captured ones are taken.

use std::collections::BTreeMap;

use super::Heap;
use super::lane::{has_lanes_of_threads, is_of_a_thread};
use super::names::NAMES_MAX;
use crate::device::Stream;
use crate::error::{Error, Result, Status};

/// Streams that are gone before a walk over the records is worth its time: each one pays for this part of it.
const GONE_MAX: usize = 1024;

/// The numbers of one heap.
#[derive(Default)]
pub(super) struct StreamNumbers {
    /// Streams in use, by number.
    used: Vec<Option<Stream>>,
    /// The same the other way round.
    numbers: BTreeMap<u64, u16>,
    gone: BTreeMap<u16, Stream>,
    free: Vec<u16>,
    /// How many of `gone` live blocks named at the last walk: as many again have to go before the next one.
    named: usize,
}

impl StreamNumbers {
    /// The number of a stream that is in use.
    pub(super) fn find(&self, stream: Stream) -> Option<u16> {
        self.numbers.get(&stream.0).copied()
    }

    /// The stream that a record names, whether it is in use or gone.
    pub(super) fn stream(&self, number: u16) -> Option<Stream> {
        self.stream_in_use(number).or_else(|| self.gone.get(&number).copied())
    }

    /// As `stream`, but only if it is in use.
    pub(super) fn stream_in_use(&self, number: u16) -> Option<Stream> {
        self.used.get(usize::from(number)).copied().flatten()
    }

    /// Streams in use.
    pub(super) fn streams(&self) -> Vec<Stream> {
        self.used.iter().copied().flatten().collect()
    }

    /// A number for a stream that has none; `live` tells those that records name.
    fn give(&mut self, stream: Stream, mark: impl FnOnce(&mut [bool])) -> Result<u16> {
        let is_full = self.used.len() >= NAMES_MAX;
        let is_worth_it = self.gone.len() >= GONE_MAX.max(2 * self.named);
        if self.free.is_empty() && (is_worth_it || is_full && !self.gone.is_empty()) {
            let mut named = vec![false; self.used.len()];
            mark(&mut named);
            let (stay, go): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.gone)
                .into_iter()
                .partition(|(number, _)| named[usize::from(*number)]);
            self.named = stay.len();
            self.gone = stay;
            // The lowest is given first.
            self.free.extend(go.into_keys().rev());
        }
        if let Some(number) = self.free.pop() {
            self.used[usize::from(number)] = Some(stream);
            self.numbers.insert(stream.0, number);
            return Ok(number);
        }
        if is_full {
            let text = format!("{NAMES_MAX} streams are in use or hold live blocks; let some of them go");
            return Err(Error::new(Status::LimitReached, text));
        }
        self.used.push(Some(stream));
        let number = (self.used.len() - 1) as u16;
        self.numbers.insert(stream.0, number);
        Ok(number)
    }

    fn retire(&mut self, stream: Stream) {
        let Some(number) = self.numbers.remove(&stream.0) else { return };
        self.used[usize::from(number)] = None;
        self.gone.insert(number, stream);
    }
}

impl Heap {
    /// The number of a stream among those of the heap.
    pub(super) fn stream_number(&self, stream: Stream) -> Result<u16> {
        if let Some(number) = self.names.read().streams.find(stream) {
            return Ok(number);
        }
        let mut names = self.names.write();
        match names.streams.find(stream) {
            Some(number) => Ok(number),
            None => names.streams.give(stream, |named| self.mark_streams(named)),
        }
    }

    /// Nobody allocates on a lane any more: its number may be another one's when no live block names it.
    fn retire(&self, lane: Stream) {
        self.names.write().streams.retire(lane);
    }

    /// Nobody allocates on a stream any more.
    pub(super) fn retire_lanes_of(&self, stream: Stream) {
        // Only this one may have others than itself.
        if !has_lanes_of_threads(stream) {
            return self.retire(stream);
        }
        let known = self.names.read().streams.streams();
        known.into_iter().filter(|lane| self.enqueued(*lane) == stream).for_each(|lane| self.retire(lane));
    }

    /// A thread has no front cache for a stream any more: it has ended, or uses many others. Where that was a lane of
    /// its own, nobody else uses it.
    pub(in crate::memory) fn thread_left(&self, lane: Stream) {
        if is_of_a_thread(lane) {
            self.retire(lane);
            self.core.lock().order.end(lane);
        }
    }

    /// Marks the numbers that live records name, and by which graphs keep memory.
    fn mark_streams(&self, named: &mut [bool]) {
        let mut mark = |number: u16| named[usize::from(number)] = true;
        match &self.plain {
            Some(plain) => plain.named_streams().into_iter().for_each(&mut mark),
            None => {
                let records = self.regions.iter().flat_map(|(_, region)| region.records.live());
                records.for_each(|(_, facts)| mark(facts.stream));
            }
        }
        // After the records: a block goes from there to here.
        self.captured.lock().keys().for_each(|&number| mark(number));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{heap, slice_of};
    use super::*;

    /// Streams of a server that makes one for each request, three times as many as there are numbers.
    const STREAMS: u64 = 200_000;

    #[test]
    fn streams_that_come_and_go_never_run_out_of_numbers_and_live_blocks_keep_theirs() {
        let heap = heap("host", 0);
        let mut kept: Vec<(u64, Stream)> = Vec::new();
        for turn in 0..STREAMS {
            let stream = heap.device.stream_create().unwrap();
            let address = heap.allocate(stream, 512, 0, 0).unwrap();
            assert_eq!(heap.block_info(address).unwrap().stream, stream.0);
            if turn % 1000 == 7 {
                kept.push((address, stream));
            } else {
                heap.free(Stream::DEFAULT, address).unwrap();
            }
            heap.forget_stream(stream).unwrap();
            heap.device.stream_destroy(stream).unwrap();
        }
        let numbers = heap.names.read().streams.used.len();
        assert!(numbers <= GONE_MAX + kept.len() + 1, "{numbers} numbers, {} of them named", kept.len());
        assert_eq!(kept.len() as u64, STREAMS / 1000);
        for (address, stream) in kept {
            let known = heap.block_info(address).unwrap().stream;
            assert_eq!(known, stream.0, "a block that outlives its stream is still told by it");
            heap.free(Stream::DEFAULT, address).unwrap();
        }
        heap.validate().unwrap();
    }

    #[test]
    fn lanes_of_threads_that_ended_leave_their_numbers() {
        let heap = heap("host", 0);
        for thread in 0..STREAMS {
            let lane = Stream(1 << 63 | thread);
            let number = heap.stream_number(lane).unwrap();
            assert_eq!(heap.stream_number(lane).unwrap(), number);
            heap.thread_left(lane);
        }
        assert!(heap.names.read().streams.used.len() <= GONE_MAX + 1);
    }

    #[test]
    fn lanes_of_threads_that_ended_are_closed_and_go() {
        let heap = heap("host", 0);
        for thread in 0..200 {
            // As a thread that serves one request on the per-thread default stream.
            let lane = Stream(1 << 63 | thread);
            let blocks = [(); 3].map(|()| heap.allocate(lane, 1 << 20, 0, 0).unwrap());
            blocks.into_iter().for_each(|address| heap.free(lane, address).unwrap());
            heap.thread_left(lane);
            heap.device.synchronize().unwrap();
            heap.collect().unwrap();
            heap.device.synchronize().unwrap();
            heap.collect().unwrap();
        }
        let lanes = heap.core.lock().order.streams().len();
        assert!(lanes <= 1, "{lanes} lanes of threads that ended");
        assert!(heap.core.lock().order.bytes() <= 8 << 20, "nobody has to run out of memory for that");
        heap.validate().unwrap();
    }

    #[test]
    fn a_number_by_which_a_graph_keeps_memory_is_not_given_again() {
        let heap = heap("host", 0);
        let stream = heap.device.stream_create().unwrap();
        let number = heap.stream_number(stream).unwrap();
        heap.captured.lock().insert(number, Vec::new());
        heap.retire(stream);
        for other in 1..2 * GONE_MAX as u64 {
            assert_ne!(heap.stream_number(Stream(1 << 40 | other)).unwrap(), number);
            heap.retire(Stream(1 << 40 | other));
        }
        heap.captured.lock().clear();
    }

    #[test]
    fn as_many_streams_as_there_are_numbers_may_be_in_use_and_one_that_goes_makes_room() {
        let mut numbers = StreamNumbers::default();
        for stream in 0..NAMES_MAX as u64 {
            assert_eq!(numbers.give(Stream(stream), |_| ()).unwrap(), stream as u16);
        }
        let refused = numbers.give(Stream(1 << 20), |_| ()).unwrap_err();
        assert_eq!(refused.status, Status::LimitReached);
        numbers.retire(Stream(3));
        // A live block names it still.
        assert_eq!(
            numbers.give(Stream(1 << 20), |named| named[3] = true).unwrap_err().status,
            Status::LimitReached
        );
        assert_eq!(numbers.stream(3), Some(Stream(3)));
        assert_eq!(numbers.give(Stream(1 << 20), |named| named[4] = true).unwrap(), 3);
        assert_eq!((numbers.stream(3), numbers.find(Stream(3))), (Some(Stream(1 << 20)), None));
    }

    #[test]
    fn streams_whose_blocks_live_on_do_not_make_each_new_one_walk_over_all_blocks() {
        const KEPT: u64 = 20_000;
        let (mut numbers, mut walks) = (StreamNumbers::default(), 0);
        for stream in 0..KEPT {
            numbers
                .give(Stream(stream), |named| {
                    walks += 1;
                    named.fill(true);
                })
                .unwrap();
            numbers.retire(Stream(stream));
        }
        // 1,024, then twice as many each time.
        assert_eq!(walks, 5);
    }

    #[test]
    fn what_was_freed_on_a_stream_is_not_at_hand_for_the_one_that_gets_its_number() {
        let heap = heap("sim?seed=1", 0);
        let simulator = heap.device.simulator().unwrap();
        let old = heap.device.stream_create().unwrap();
        let address = heap.allocate(old, 1 << 20, 0, 0).unwrap();
        let slice = slice_of(&heap, address, 1 << 20);
        let number = heap.stream_number(old).unwrap();
        simulator.declare(old, &[], &[slice]).unwrap();
        heap.free(old, address).unwrap();
        // As if the number were given away while the work of the old stream goes on.
        heap.retire(old);
        for other in 1..GONE_MAX as u64 {
            heap.stream_number(Stream(1 << 40 | other)).unwrap();
            heap.retire(Stream(1 << 40 | other));
        }
        let heir = heap.device.stream_create().unwrap();
        assert_eq!(heap.stream_number(heir).unwrap(), number);
        let again = heap.allocate(heir, 1 << 20, 0, 0).unwrap();
        let slice = slice_of(&heap, again, 1 << 20);
        simulator.declare(heir, &[], &[slice]).unwrap();
        heap.device.synchronize().unwrap();
        assert_eq!(heap.device.race_count(), 0);
    }
}
