//! Streams as the heap tells them apart.
//!
//! A stream stands for itself, but for CUDA's per-thread default stream: one value that is another stream in each
//! thread. The heap gives it a *lane* for each thread, so that no thread is handed what another one freed as if both
//! were in one order. An event for such a lane is recorded on the legacy default stream, which waits for the
//! per-thread ones, because only the thread itself could record on its own.
//! A stream that goes although it cannot be waited for leaves a lane of its own too, of which the device knows nothing.
//! Invariant: a lane goes to the device only through `marked` and `enqueued`.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Heap;
use crate::device::Stream;

/// CU_STREAM_PER_THREAD.
const PER_THREAD: u64 = 2;
/// Set in lanes of threads; no stream has it.
const THREAD_LANE: u64 = 1 << 63;
/// Set in lanes that stand for streams which went although their work could not be waited for; no stream has it.
const GONE_LANE: u64 = 1 << 62;

static NEXT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static NUMBER: Cell<Option<u64>> = const { Cell::new(None) };
}

fn thread_number() -> u64 {
    NUMBER.with(|number| {
        let known = number.get().unwrap_or_else(|| NEXT.fetch_add(1, Ordering::Relaxed));
        number.set(Some(known));
        known
    })
}

pub(in crate::memory) fn is_of_a_thread(lane: Stream) -> bool {
    lane.0 & THREAD_LANE != 0
}

/// Whether a stream may be many lanes.
pub(super) fn has_lanes_of_threads(stream: Stream) -> bool {
    stream.0 == PER_THREAD
}

/// A lane for what a stream leaves that is gone: its value may be another stream's from now on.
pub(super) fn gone_lane() -> Stream {
    Stream(GONE_LANE | NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(super) fn is_gone_lane(lane: Stream) -> bool {
    !is_of_a_thread(lane) && lane.0 & GONE_LANE != 0
}

impl Heap {
    /// The lane of a stream that this thread uses.
    pub(super) fn lane(&self, stream: Stream) -> Stream {
        if has_lanes_of_threads(stream) && self.has_thread_streams() {
            Stream(THREAD_LANE | thread_number())
        } else {
            stream
        }
    }

    fn has_thread_streams(&self) -> bool {
        #[cfg(test)]
        if self.has_thread_streams.load(Ordering::Relaxed) {
            return true;
        }
        self.device.description().backend == "cuda"
    }

    /// All lanes of a stream that have a front cache.
    pub(super) fn lanes_of(&self, stream: Stream) -> Vec<Stream> {
        let leases = self.leases.lock();
        leases.iter().map(|(lane, _)| *lane).filter(|lane| self.enqueued(*lane) == stream).collect()
    }

    /// Where an event for a lane is recorded.
    pub(super) fn marked(&self, lane: Stream) -> Stream {
        if is_of_a_thread(lane) { Stream::DEFAULT } else { lane }
    }

    /// What the device knows a lane as, on the thread whose lane it is.
    pub(super) fn enqueued(&self, lane: Stream) -> Stream {
        if is_of_a_thread(lane) { Stream(PER_THREAD) } else { lane }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_a_number_of_its_own_and_keeps_it() {
        let here = thread_number();
        assert_eq!(thread_number(), here);
        let there = std::thread::spawn(thread_number).join().unwrap();
        assert_ne!(there, here);
        assert!(is_of_a_thread(Stream(THREAD_LANE | here)) && !is_of_a_thread(Stream(0x7fff_ffff_ffff)));
    }
}
