//! The trait, over the parts of the host device: check, then enqueue or do.
//!
//! What it does not: keep state of its own. Invariant: every method begins with `ready`, and every check comes before
//! the first change, so that a refused call leaves everything as it was.

use std::sync::Arc;

use super::stream::{LaunchOp, Op};
use super::{Entry, Host, cores, directory};
use crate::device::{
    Access, Arg, Attribute, Copy, Description, Device, DeviceKey, DeviceSlice, Event, Kernel, Launch,
    MemoryInfo, Page, PinnedSlice, Simulator, Stream,
};
use crate::error::{Error, Result, Status};
use crate::sys::shm::os_page_bytes;

impl Host {
    fn enqueue(&self, stream: Stream, op: Op) -> Result<()> {
        self.stream(stream)?.enqueue(std::iter::once(op))
    }

    /// Waits for the default stream before the host touches device memory itself.
    fn settle(&self, slice: &DeviceSlice, bytes: usize) -> Result<()> {
        self.ready()?;
        if slice.bytes() != bytes as u64 {
            return Err(Error::argument(format!(
                "{bytes} bytes of the host for {} bytes of the device; they must be equal",
                slice.bytes()
            )));
        }
        self.reach(slice)?;
        self.default_stream.mark().wait();
        self.loss.check()
    }
}

impl Device for Host {
    fn description(&self) -> &Description {
        &self.description
    }

    fn key(&self) -> DeviceKey {
        self.key
    }

    fn memory_info(&self) -> Result<MemoryInfo> {
        self.ready()?;
        Ok(MemoryInfo { free_bytes: self.physical.free_bytes(), total_bytes: self.physical.limit_bytes() })
    }

    fn attribute(&self, attribute: Attribute) -> Result<u64> {
        self.ready()?;
        Ok(match attribute {
            Attribute::PageBytes => self.description.page_bytes,
            Attribute::AllocationAlignment => os_page_bytes(),
            Attribute::MultiprocessorCount => cores(),
            Attribute::ComputeMajor | Attribute::ComputeMinor => 0,
            Attribute::HostNode => return Err(Error::new(Status::Unsupported, "the host is near to itself")),
            // There is no driver; the queue takes a batch as a whole.
            Attribute::CopyBatchesJoined | Attribute::CopyBatchesLooped => 0,
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
        self.ready()?;
        self.drain();
        self.loss.check()
    }

    fn stream_create(&self) -> Result<Stream> {
        self.ready()?;
        let stream = directory::make_stream(self.description.ordinal, Arc::clone(&self.loss));
        let value = stream.value();
        self.streams.write().insert(value, Entry { stream, is_wrapped: false });
        Ok(Stream(value))
    }

    fn stream_wrap(&self, raw: u64) -> Result<Stream> {
        self.ready()?;
        if raw == Stream::DEFAULT.0 {
            return Ok(Stream::DEFAULT);
        }
        // Streams of this instance are found there too, and keep the entry that they have.
        let Some(stream) = directory::find_stream(self.description.ordinal, raw) else {
            return Err(Error::argument(format!("{raw} is no live stream of {}", self.description.name)));
        };
        self.streams.write().entry(raw).or_insert(Entry { stream, is_wrapped: true });
        Ok(Stream(raw))
    }

    fn stream_destroy(&self, stream: Stream) -> Result<()> {
        self.ready()?;
        if stream == Stream::DEFAULT {
            return Err(Error::argument("the default stream lives as long as its device"));
        }
        let Some(entry) = self.streams.write().remove(&stream.0) else {
            return Err(Error::argument(format!(
                "stream {} is destroyed or unknown to this device",
                stream.0
            )));
        };
        if entry.is_wrapped {
            let mut lingering = self.lingering.lock();
            lingering.retain(|mark| !mark.is_reached());
            lingering.push(entry.stream.mark());
            return Ok(());
        }
        directory::forget_stream(stream.0);
        entry.stream.close();
        entry.stream.mark().wait();
        entry.stream.join();
        Ok(())
    }

    fn stream_synchronize(&self, stream: Stream) -> Result<()> {
        self.ready()?;
        let stream = self.stream(stream)?;
        stream.mark().wait();
        stream.check()?;
        self.loss.check()
    }

    fn stream_is_idle(&self, stream: Stream) -> Result<bool> {
        self.ready()?;
        Ok(self.stream(stream)?.is_idle())
    }

    fn stream_wait_event(&self, stream: Stream, event: Event) -> Result<()> {
        self.ready()?;
        let stream = self.stream(stream)?;
        match self.events.mark(event)? {
            Some(mark) if !stream.made(&mark) && !mark.is_reached() => {
                stream.enqueue(std::iter::once(Op::Wait(mark)))
            }
            _ => Ok(()),
        }
    }

    fn stream_is_capturing(&self, stream: Stream) -> Result<bool> {
        self.ready()?;
        self.stream(stream).map(|_| false)
    }

    fn stream_takes_events(&self, stream: Stream) -> Result<bool> {
        self.ready()?;
        self.stream(stream).map(|_| true)
    }

    fn stream_callback(&self, stream: Stream, callback: Box<dyn FnOnce() + Send>) -> Result<()> {
        self.ready()?;
        self.enqueue(stream, Op::Call(callback))
    }

    fn event_create(&self) -> Result<Event> {
        self.ready()?;
        Ok(self.events.create())
    }

    fn event_record(&self, event: Event, stream: Stream) -> Result<()> {
        self.ready()?;
        self.events.record(event, self.stream(stream)?.mark())
    }

    fn event_is_done(&self, event: Event) -> Result<bool> {
        self.ready()?;
        Ok(self.events.mark(event)?.is_none_or(|mark| mark.is_reached()))
    }

    fn event_synchronize(&self, event: Event) -> Result<()> {
        self.ready()?;
        if let Some(mark) = self.events.mark(event)? {
            mark.wait();
        }
        self.loss.check()
    }

    fn event_destroy(&self, event: Event) -> Result<()> {
        self.ready()?;
        self.events.destroy(event)
    }

    fn memory_allocate(&self, bytes: u64) -> Result<DeviceSlice> {
        self.ready()?;
        self.allocate(bytes, false)
    }

    fn memory_free(&self, slice: DeviceSlice) -> Result<()> {
        self.ready()?;
        self.own(&slice)?;
        let block = self.blocks.begin_free(slice, false)?;
        self.drain();
        self.blocks.finish_free(block);
        Ok(())
    }

    fn memory_allocate_async(&self, bytes: u64, stream: Stream) -> Result<DeviceSlice> {
        self.ready()?;
        self.stream(stream)?;
        // Memory that is there at once is also there when the stream gets to use it.
        self.allocate(bytes, true)
    }

    fn memory_free_async(&self, slice: DeviceSlice, stream: Stream) -> Result<()> {
        self.ready()?;
        let stream = self.stream(stream)?;
        self.own(&slice)?;
        let block = self.blocks.begin_free(slice, true)?;
        stream.enqueue_free(block, &self.blocks)
    }

    fn managed_allocate(&self, bytes: u64) -> Result<DeviceSlice> {
        self.ready()?;
        if !self.description.capabilities.managed_memory {
            return Err(Error::new(Status::Unsupported, "opened with managed=0: it has no managed memory"));
        }
        // All memory of this device is the processor's.
        self.allocate(bytes, false)
    }

    fn virtual_reserve(&self, bytes: u64) -> Result<DeviceSlice> {
        self.mapped()?.reserve(bytes)
    }

    fn virtual_release(&self, range: DeviceSlice) -> Result<()> {
        self.mapped()?.release(range)
    }

    fn page_create(&self, bytes: u64) -> Result<Page> {
        self.mapped()?.page_create(bytes)
    }

    fn page_release(&self, page: Page) -> Result<()> {
        self.mapped()?.page_release(page)
    }

    fn virtual_map(&self, target: DeviceSlice, page: Page) -> Result<()> {
        self.mapped()?.map(target, page)
    }

    fn virtual_set_access(&self, range: DeviceSlice, access: Access) -> Result<()> {
        self.mapped()?.set_access(range, access)
    }

    fn virtual_unmap(&self, range: DeviceSlice) -> Result<()> {
        self.mapped()?.unmap(range)
    }

    fn pinned_allocate(&self, bytes: u64) -> Result<PinnedSlice> {
        self.ready()?;
        self.pinned.allocate(bytes)
    }

    fn pinned_free(&self, slice: PinnedSlice) -> Result<()> {
        self.ready()?;
        self.pinned.check(slice, false)?;
        self.drain();
        self.pinned.remove(slice, false)
    }

    unsafe fn pinned_register(&self, address: usize, bytes: u64) -> Result<PinnedSlice> {
        self.ready()?;
        self.pinned.register(address, bytes)
    }

    fn pinned_unregister(&self, slice: PinnedSlice) -> Result<()> {
        self.ready()?;
        self.pinned.check(slice, true)?;
        self.drain();
        self.pinned.remove(slice, true)
    }

    fn write(&self, target: DeviceSlice, source: &[u8]) -> Result<()> {
        self.settle(&target, source.len())?;
        // SAFETY: lengths are equal and the slice names live memory of this process (see `DeviceSlice`).
        unsafe { std::ptr::copy(source.as_ptr(), target.address() as *mut u8, source.len()) };
        Ok(())
    }

    fn read(&self, source: DeviceSlice, target: &mut [u8]) -> Result<()> {
        self.settle(&source, target.len())?;
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy(source.address() as *const u8, target.as_mut_ptr(), target.len()) };
        Ok(())
    }

    fn copy(&self, stream: Stream, copy: Copy) -> Result<()> {
        self.copy_batch(stream, &[copy])
    }

    fn copy_batch(&self, stream: Stream, copies: &[Copy]) -> Result<()> {
        self.ready()?;
        let stream = self.stream(stream)?;
        self.check_copies(copies)?;
        if copies.is_empty() {
            return Ok(());
        }
        stream.enqueue(copies.iter().map(Op::copy))
    }

    fn memset(&self, stream: Stream, target: DeviceSlice, value: u8) -> Result<()> {
        self.ready()?;
        self.reach(&target)?;
        self.enqueue(stream, Op::Fill { target: target.address(), bytes: target.bytes(), value })
    }

    fn module_load(&self, kernels: &[&'static Kernel]) -> Result<()> {
        self.ready()?;
        self.kernels.write().extend(kernels.iter().map(|kernel| kernel.name));
        Ok(())
    }

    fn launch(&self, stream: Stream, launch: &Launch<'_>) -> Result<()> {
        self.ready()?;
        launch.check()?;
        for arg in launch.args {
            if let Arg::Read(slice) | Arg::Write(slice) = arg {
                self.reach(slice)?;
            }
        }
        if !self.kernels.read().contains(launch.kernel.name) {
            return Err(Error::argument(format!(
                "kernel {} is not loaded; load it first",
                launch.kernel.name
            )));
        }
        self.enqueue(stream, Op::Launch(LaunchOp::new(launch)))
    }

    fn peer_is_reachable(&self, other: DeviceKey) -> Result<bool> {
        self.ready()?;
        Ok(directory::has_device(other))
    }

    fn peer_enable(&self, other: DeviceKey) -> Result<()> {
        self.ready()?;
        if !directory::has_device(other) {
            return Err(Error::argument("the other device is closed or not of this backend"));
        }
        let mut peers = self.peers.write();
        if other != self.key && !peers.contains(&other) {
            peers.push(other);
        }
        Ok(())
    }
}
