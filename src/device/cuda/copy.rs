//! Copies and fills: checked here, enqueued by the direction that the driver is told.
//!
//! What it does: one copy, batches (in one call where the driver has it), fills, blocking reads and writes. What it
//! does not: keep anything but two counters and room for the check. Invariant: everything is checked before the first
//! copy is enqueued. Lock order: `room`, then nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use super::context::Entered;
use super::driver::{Batch, BatchAttributes, Raw};
use super::{Cuda, codes};
use crate::device::{Copy, DeviceSlice, Place, Stream};
use crate::error::{Error, Result, Status};
use crate::sync::Mutex;

/// CU_STREAM_LEGACY; it and 0 are the default stream, which the driver's batch copy refuses.
const LEGACY: Raw = 1;
/// CU_MEMCPY_SRC_ACCESS_ORDER_STREAM.
const IN_STREAM_ORDER: u32 = 1;

/// One end of a checked copy.
#[derive(Clone, Copy)]
enum End {
    Device { address: u64, context: Raw },
    Host(u64),
}

impl End {
    fn address(self) -> u64 {
        match self {
            Self::Device { address, .. } | Self::Host(address) => address,
        }
    }
}

/// Room for batches, kept so that they do not allocate each time.
#[derive(Default)]
struct Room {
    ranges: Vec<(u64, u64)>,
    targets: Vec<u64>,
    sources: Vec<u64>,
    sizes: Vec<usize>,
}

/// What copies have in common.
#[derive(Default)]
pub(super) struct Copies {
    room: Mutex<Room>,
    /// Batches that went in one call.
    pub(super) batched: AtomicU64,
    /// Batches that went copy by copy.
    pub(super) looped: AtomicU64,
}

impl Cuda {
    /// Refuses memory of a device that was not made reachable; answers the context it belongs to.
    pub(super) fn reach(&self, slice: &DeviceSlice) -> Result<Raw> {
        if slice.device() == self.key {
            return Ok(self.context.raw);
        }
        let peer = self.peers.context(slice.device());
        peer.ok_or_else(|| Error::argument("the memory is of another device; enable it as a peer first"))
    }

    fn end(&self, place: &Place) -> Result<End> {
        match place {
            Place::Device(slice) => {
                self.reach(slice).map(|context| End::Device { address: slice.address(), context })
            }
            Place::Pinned(slice) => Ok(End::Host(slice.address() as u64)),
        }
    }

    fn check_copies(&self, copies: &[Copy], room: &mut Room) -> Result<()> {
        room.ranges.clear();
        for (index, copy) in copies.iter().enumerate() {
            let (target, source) = (copy.target.bytes(), copy.source.bytes());
            if target != source {
                return Err(Error::argument(format!(
                    "copy {index}: {source} bytes to a place of {target} bytes; they must be equal"
                )));
            }
            let start = self.end(&copy.target)?.address();
            self.end(&copy.source)?;
            if target > 0 {
                room.ranges.push((start, start + target));
            }
        }
        room.ranges.sort_unstable();
        match room.ranges.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            Some(pair) => Err(Error::argument(format!("two copies of a batch write to {:#x}", pair[1].0))),
            None => Ok(()),
        }
    }

    /// One copy.
    pub(super) fn enqueue_copy(&self, stream: Stream, copy: &Copy) -> Result<()> {
        let entered = self.context.enter()?;
        let stream = self.streams.get(stream)?;
        let (target, source) = (copy.target.bytes(), copy.source.bytes());
        if target != source {
            return Err(Error::argument(format!(
                "{source} bytes to a place of {target} bytes; they must be equal"
            )));
        }
        self.transfer(&entered, stream.raw, copy)
    }

    fn transfer(&self, entered: &Entered<'_>, stream: Raw, copy: &Copy) -> Result<()> {
        let (target, source) = (self.end(&copy.target)?, self.end(&copy.source)?);
        let api = &self.context.driver.api;
        let bytes = copy.target.bytes() as usize;
        if bytes == 0 {
            return Ok(());
        }
        match (target, source) {
            (End::Device { address, .. }, End::Host(from)) => {
                // SAFETY: both ranges are live memory of this length (see `DeviceSlice`), the stream was looked up.
                let code = unsafe { (api.cuMemcpyHtoDAsync_v2)(address, from as *const _, bytes, stream) };
                entered.done("cuMemcpyHtoDAsync", code)
            }
            (End::Host(to), End::Device { address, .. }) => {
                // SAFETY: as above.
                let code = unsafe { (api.cuMemcpyDtoHAsync_v2)(to as *mut _, address, bytes, stream) };
                entered.done("cuMemcpyDtoHAsync", code)
            }
            (End::Device { address: to, context: there }, End::Device { address: from, context: here })
                if there != here =>
            {
                // SAFETY: as above; both contexts are retained for the life of the process.
                let code = unsafe { (api.cuMemcpyPeerAsync)(to, there, from, here, bytes, stream) };
                entered.done("cuMemcpyPeerAsync", code)
            }
            (End::Device { address: to, .. }, End::Device { address: from, .. }) => {
                // SAFETY: as above.
                let code = unsafe { (api.cuMemcpyDtoDAsync_v2)(to, from, bytes, stream) };
                entered.done("cuMemcpyDtoDAsync", code)
            }
            (End::Host(to), End::Host(from)) => {
                // SAFETY: as above; addresses of both kinds are unified.
                let code = unsafe { (api.cuMemcpyAsync)(to, from, bytes, stream) };
                entered.done("cuMemcpyAsync", code)
            }
        }
    }

    /// Copies whose order among each other is free.
    pub(super) fn enqueue_batch(&self, stream: Stream, copies: &[Copy]) -> Result<()> {
        let entered = self.context.enter()?;
        let stream = self.streams.get(stream)?;
        let mut room = self.copies.room.lock();
        self.check_copies(copies, &mut room)?;
        if copies.is_empty() {
            return Ok(());
        }
        let is_one_call = copies.len() > 1 && stream.raw > LEGACY && !is_capturing(&entered, stream.raw)?;
        if let Some(batch) = self.context.driver.batch.filter(|_| is_one_call) {
            room.targets.clear();
            room.sources.clear();
            room.sizes.clear();
            for copy in copies.iter().filter(|copy| copy.target.bytes() > 0) {
                room.targets.push(self.end(&copy.target)?.address());
                room.sources.push(self.end(&copy.source)?.address());
                room.sizes.push(copy.target.bytes() as usize);
            }
            if !room.sizes.is_empty() {
                submit(&entered, batch, stream.raw, &mut room)?;
            }
            self.copies.batched.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        drop(room);
        for copy in copies {
            self.transfer(&entered, stream.raw, copy)?;
        }
        self.copies.looped.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Fills a range with one byte.
    pub(super) fn enqueue_fill(&self, stream: Stream, target: DeviceSlice, value: u8) -> Result<()> {
        let entered = self.context.enter()?;
        let stream = self.streams.get(stream)?;
        self.reach(&target)?;
        if target.bytes() == 0 {
            return Ok(());
        }
        let api = &self.context.driver.api;
        // SAFETY: the range is live memory of this length (see `DeviceSlice`), the stream was looked up.
        let code =
            unsafe { (api.cuMemsetD8Async)(target.address(), value, target.bytes() as usize, stream.raw) };
        entered.done("cuMemsetD8Async", code)
    }

    /// Enters for a blocking copy between the device and `bytes` of the host.
    fn enter_blocking(&self, slice: &DeviceSlice, bytes: usize) -> Result<Entered<'_>> {
        let entered = self.context.enter_relaxed()?;
        if slice.bytes() != bytes as u64 {
            return Err(Error::argument(format!(
                "{bytes} bytes of the host for {} bytes of the device; they must be equal",
                slice.bytes()
            )));
        }
        self.reach(slice)?;
        if capture(&entered, 0)? != Capture::No {
            let text = "the default stream waits for one that is being captured; end the capture first";
            return Err(Error::new(Status::WrongState, text));
        }
        Ok(entered)
    }

    /// Host bytes to the device, after the default stream. Waits, because the bytes may leave after this call and
    /// because the driver's own blocking copy may return before the last of them has arrived.
    pub(super) fn write_now(&self, target: DeviceSlice, source: &[u8]) -> Result<()> {
        let entered = self.enter_blocking(&target, source.len())?;
        if source.is_empty() {
            return wait(&entered);
        }
        let api = &self.context.driver.api;
        // SAFETY: both ranges are of this length and stay until the wait below has ended.
        let code =
            unsafe { (api.cuMemcpyHtoDAsync_v2)(target.address(), source.as_ptr().cast(), source.len(), 0) };
        entered.done("cuMemcpyHtoDAsync", code)?;
        wait(&entered)
    }

    /// Device bytes to the host, after the default stream.
    pub(super) fn read_now(&self, source: DeviceSlice, target: &mut [u8]) -> Result<()> {
        let entered = self.enter_blocking(&source, target.len())?;
        if target.is_empty() {
            return wait(&entered);
        }
        let api = &self.context.driver.api;
        // SAFETY: both ranges are of this length and stay until the wait below has ended.
        let code = unsafe {
            (api.cuMemcpyDtoHAsync_v2)(target.as_mut_ptr().cast(), source.address(), target.len(), 0)
        };
        entered.done("cuMemcpyDtoHAsync", code)?;
        wait(&entered)
    }
}

fn wait(entered: &Entered<'_>) -> Result<()> {
    // SAFETY: 0 is the default stream.
    let code = unsafe { (entered.context().driver.api.cuStreamSynchronize)(0) };
    entered.done("cuStreamSynchronize", code)
}

/// What captures have to do with a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Capture {
    No,
    /// A graph is being recorded on it.
    Yes,
    /// It is the default stream, and a stream that it would wait for is captured: whatever is given to it now fails and
    /// breaks that capture.
    Beside,
}

/// Whether a graph is being recorded on the stream, or on one that it is in order with. The one call that a capture
/// beside it survives.
pub(super) fn capture(entered: &Entered<'_>, stream: Raw) -> Result<Capture> {
    let mut status = 0;
    // SAFETY: the result is writable, the stream was looked up.
    let code = unsafe { (entered.context().driver.api.cuStreamIsCapturing)(stream, &mut status) };
    if code == codes::CAPTURE_IMPLICIT {
        return Ok(Capture::Beside);
    }
    entered.done("cuStreamIsCapturing", code).map(|()| if status == 0 { Capture::No } else { Capture::Yes })
}

/// Whether a graph is being recorded on the stream itself; on the default stream never.
pub(super) fn is_capturing(entered: &Entered<'_>, stream: Raw) -> Result<bool> {
    capture(entered, stream).map(|capture| capture == Capture::Yes)
}

fn submit(entered: &Entered<'_>, batch: Batch, stream: Raw, room: &mut Room) -> Result<()> {
    let Room { targets, sources, sizes, .. } = room;
    let count = sizes.len();
    let mut common =
        BatchAttributes { source_order: IN_STREAM_ORDER, source_hint: [0; 2], target_hint: [0; 2], flags: 0 };
    let (mut first, mut failed) = (0usize, 0usize);
    let (to, from, bytes) = (targets.as_mut_ptr(), sources.as_mut_ptr(), sizes.as_mut_ptr());
    let code = match batch {
        // SAFETY: the three lists have `count` entries; the one set of attributes begins at entry 0; all ranges were
        // checked and none is empty.
        Batch::V1(call) => unsafe {
            call(to, from, bytes, count, &mut common, &mut first, 1, &mut failed, stream)
        },
        // SAFETY: as above.
        Batch::V2(call) => unsafe { call(to, from, bytes, count, &mut common, &mut first, 1, stream) },
    };
    entered.done("cuMemcpyBatchAsync", code)
}
