//! The trait, over the parts of a CUDA device.
//!
//! What it does not: keep state of its own. Invariant: every method enters the context first, which answers a fork, a
//! call from a callback and a lost device.

use std::sync::atomic::Ordering;

use super::stream::is_done;
use super::{Cuda, copy, memory};
use crate::device::{
    Access, Attribute, Copy, Description, Device, DeviceKey, DeviceSlice, Event, Kernel, Launch, MemoryInfo,
    Page, PinnedSlice, Simulator, Stream,
};
use crate::error::{Error, Result, Status};

impl Cuda {
    /// Refuses memory of another device, also of a peer: only its maker frees it.
    fn own(&self, slice: &DeviceSlice) -> Result<()> {
        if slice.device() == self.key {
            return Ok(());
        }
        Err(Error::argument("the memory is of another device; free it there"))
    }

    /// Waits for the work of the streams that this instance knows, one by one, as far as it can. What the driver then
    /// waits for by itself is short: its own waits hold up launches of other threads. An event breaks no capture, and
    /// one that was recorded before the stream's own capture began can be waited for beside it.
    pub(super) fn settle(&self) {
        let Ok(event) = self.event_create() else { return };
        for stream in self.streams.known() {
            let takes_events = || matches!(self.stream_takes_events(stream), Ok(true));
            if takes_events() && self.event_record(event, stream).is_ok() && takes_events() {
                let _ = self.event_synchronize(event);
            }
        }
        let _ = self.event_destroy(event);
    }
}

impl Device for Cuda {
    fn description(&self) -> &Description {
        &self.description
    }

    fn key(&self) -> DeviceKey {
        self.key
    }

    fn memory_info(&self) -> Result<MemoryInfo> {
        let (free_bytes, total_bytes) = memory::info(&self.context.enter()?)?;
        Ok(MemoryInfo { free_bytes, total_bytes })
    }

    fn attribute(&self, attribute: Attribute) -> Result<u64> {
        drop(self.context.enter()?);
        Ok(match attribute {
            Attribute::PageBytes => self.description.page_bytes,
            Attribute::AllocationAlignment => memory::ALIGNMENT,
            Attribute::MultiprocessorCount => u64::from(self.multiprocessors),
            Attribute::ComputeMajor => self.compute.0 as u64,
            Attribute::ComputeMinor => self.compute.1 as u64,
            Attribute::HostNode => {
                let none = || Error::new(Status::Unsupported, "the system knows no node near to this GPU");
                self.host_node.map(u64::from).ok_or_else(none)?
            }
            Attribute::CopyBatchesJoined => self.copies.batched.load(Ordering::Relaxed),
            Attribute::CopyBatchesLooped => self.copies.looped.load(Ordering::Relaxed),
        })
    }

    fn call_count(&self) -> u64 {
        0
    }

    fn race_count(&self) -> u64 {
        0
    }

    fn simulator(&self) -> Option<&dyn Simulator> {
        None
    }

    fn synchronize(&self) -> Result<()> {
        let entered = self.context.enter_relaxed()?;
        self.settle();
        entered.outlast()
    }

    fn stream_create(&self) -> Result<Stream> {
        self.streams.create()
    }

    fn stream_wrap(&self, raw: u64) -> Result<Stream> {
        self.streams.wrap(raw)
    }

    fn stream_destroy(&self, stream: Stream) -> Result<()> {
        self.streams.destroy(stream)
    }

    fn stream_synchronize(&self, stream: Stream) -> Result<()> {
        let entered = self.context.enter_relaxed()?;
        let stream = self.streams.get(stream)?;
        // SAFETY: the stream was looked up and lives until this call ends.
        let code = unsafe { (self.context.driver.api.cuStreamSynchronize)(stream.raw) };
        entered.done("cuStreamSynchronize", code)
    }

    fn stream_is_idle(&self, stream: Stream) -> Result<bool> {
        let entered = self.context.enter_relaxed()?;
        let stream = self.streams.get(stream)?;
        // SAFETY: as above.
        let code = unsafe { (self.context.driver.api.cuStreamQuery)(stream.raw) };
        is_done(&entered, "cuStreamQuery", code)
    }

    fn stream_wait_event(&self, stream: Stream, event: Event) -> Result<()> {
        let entered = self.context.enter()?;
        let (stream, event) = (self.streams.get(stream)?, self.events.get(event)?);
        // SAFETY: both were looked up and live until this call ends.
        let code = unsafe { (self.context.driver.api.cuStreamWaitEvent)(stream.raw, event.raw, 0) };
        entered.done("cuStreamWaitEvent", code)
    }

    fn stream_is_capturing(&self, stream: Stream) -> Result<bool> {
        if stream == Stream::DEFAULT {
            // Whatever is captured beside it: on the default stream itself no graph is recorded.
            return self.context.check().map(|()| false);
        }
        let entered = self.context.enter()?;
        let stream = self.streams.get(stream)?;
        copy::is_capturing(&entered, stream.raw)
    }

    fn stream_takes_events(&self, stream: Stream) -> Result<bool> {
        let entered = self.context.enter()?;
        let stream = self.streams.get(stream)?;
        copy::capture(&entered, stream.raw).map(|capture| capture == copy::Capture::No)
    }

    fn stream_callback(&self, stream: Stream, callback: Box<dyn FnOnce() + Send>) -> Result<()> {
        drop(self.context.enter()?);
        let stream = self.streams.get(stream)?;
        self.context.enqueue_callback(stream.raw, callback)
    }

    fn event_create(&self) -> Result<Event> {
        self.events.create()
    }

    fn event_record(&self, event: Event, stream: Stream) -> Result<()> {
        let entered = self.context.enter()?;
        let (stream, event) = (self.streams.get(stream)?, self.events.get(event)?);
        // SAFETY: both were looked up and live until this call ends.
        let code = unsafe { (self.context.driver.api.cuEventRecord)(event.raw, stream.raw) };
        entered.done("cuEventRecord", code)
    }

    fn event_is_done(&self, event: Event) -> Result<bool> {
        let entered = self.context.enter_relaxed()?;
        let event = self.events.get(event)?;
        // SAFETY: the event was looked up and lives until this call ends.
        let code = unsafe { (self.context.driver.api.cuEventQuery)(event.raw) };
        is_done(&entered, "cuEventQuery", code)
    }

    fn event_synchronize(&self, event: Event) -> Result<()> {
        let entered = self.context.enter_relaxed()?;
        let event = self.events.get(event)?;
        // SAFETY: as above.
        let code = unsafe { (self.context.driver.api.cuEventSynchronize)(event.raw) };
        entered.done("cuEventSynchronize", code)
    }

    fn event_destroy(&self, event: Event) -> Result<()> {
        let _entered = self.context.enter()?;
        self.events.destroy(event)
    }

    fn memory_allocate(&self, bytes: u64) -> Result<DeviceSlice> {
        self.blocks.allocate(&self.context, self.key, bytes, None, || self.settle())
    }

    fn memory_free(&self, slice: DeviceSlice) -> Result<()> {
        let _entered = self.context.enter()?;
        self.own(&slice)?;
        self.blocks.free(&self.context, slice, || self.settle())
    }

    fn memory_allocate_async(&self, bytes: u64, stream: Stream) -> Result<DeviceSlice> {
        let _entered = self.context.enter()?;
        let stream = self.streams.get(stream)?;
        // Where the device has no pools, memory that is there at once is also there when the stream gets to use it.
        let stream = Some(stream.raw).filter(|_| self.description.capabilities.stream_ordered);
        self.blocks.allocate(&self.context, self.key, bytes, stream, || self.settle())
    }

    fn memory_free_async(&self, slice: DeviceSlice, stream: Stream) -> Result<()> {
        let _entered = self.context.enter()?;
        let stream = self.streams.get(stream)?;
        self.own(&slice)?;
        if !self.description.capabilities.stream_ordered {
            return self.blocks.free(&self.context, slice, || self.settle());
        }
        self.blocks.free_async(&self.context, slice, stream.raw)
    }

    fn managed_allocate(&self, bytes: u64) -> Result<DeviceSlice> {
        let managed = self.context.driver.managed.filter(|_| self.description.capabilities.managed_memory);
        let managed = managed.ok_or_else(|| {
            let text = "no managed memory that the host may touch while the GPU works";
            Error::new(Status::Unsupported, format!("{} has {text}", self.description.name))
        })?;
        self.blocks.allocate_managed(&self.context, self.key, bytes, managed)
    }

    fn virtual_reserve(&self, bytes: u64) -> Result<DeviceSlice> {
        self.virtual_memory.lock().reserve(&self.context.enter_relaxed()?, bytes)
    }

    fn virtual_release(&self, range: DeviceSlice) -> Result<()> {
        self.virtual_memory.lock().release(&self.context.enter_relaxed()?, range)
    }

    fn page_create(&self, bytes: u64) -> Result<Page> {
        self.virtual_memory.lock().page_create(&self.context.enter_relaxed()?, bytes)
    }

    fn page_release(&self, page: Page) -> Result<()> {
        self.virtual_memory.lock().page_release(&self.context.enter_relaxed()?, page)
    }

    fn virtual_map(&self, target: DeviceSlice, page: Page) -> Result<()> {
        self.virtual_memory.lock().map(&self.context.enter_relaxed()?, target, page)
    }

    fn virtual_set_access(&self, range: DeviceSlice, access: Access) -> Result<()> {
        self.virtual_memory.lock().set_access(&self.context.enter_relaxed()?, range, access)
    }

    fn virtual_unmap(&self, range: DeviceSlice) -> Result<()> {
        self.virtual_memory.lock().unmap(&self.context.enter_relaxed()?, range)
    }

    fn pinned_allocate(&self, bytes: u64) -> Result<PinnedSlice> {
        self.pinned.allocate(&self.context, bytes)
    }

    fn pinned_free(&self, slice: PinnedSlice) -> Result<()> {
        self.pinned.remove(&self.context, slice, false, || self.settle())
    }

    unsafe fn pinned_register(&self, address: usize, bytes: u64) -> Result<PinnedSlice> {
        self.pinned.register(&self.context, address, bytes)
    }

    fn pinned_unregister(&self, slice: PinnedSlice) -> Result<()> {
        self.pinned.remove(&self.context, slice, true, || self.settle())
    }

    fn write(&self, target: DeviceSlice, source: &[u8]) -> Result<()> {
        self.write_now(target, source)
    }

    fn read(&self, source: DeviceSlice, target: &mut [u8]) -> Result<()> {
        self.read_now(source, target)
    }

    fn copy(&self, stream: Stream, copy: Copy) -> Result<()> {
        self.enqueue_copy(stream, &copy)
    }

    fn copy_batch(&self, stream: Stream, copies: &[Copy]) -> Result<()> {
        self.enqueue_batch(stream, copies)
    }

    fn memset(&self, stream: Stream, target: DeviceSlice, value: u8) -> Result<()> {
        self.enqueue_fill(stream, target, value)
    }

    fn module_load(&self, kernels: &[&'static Kernel]) -> Result<()> {
        self.kernels.load(&self.context, self.compute, kernels)
    }

    fn launch(&self, stream: Stream, launch: &Launch<'_>) -> Result<()> {
        self.enqueue_launch(stream, launch)
    }

    fn peer_is_reachable(&self, other: DeviceKey) -> Result<bool> {
        self.can_reach(other)
    }

    fn peer_enable(&self, other: DeviceKey) -> Result<()> {
        self.enable(other)
    }
}
