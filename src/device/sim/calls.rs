//! The trait over the parts of the simulator: streams, events, copies, launches. Memory is in `calls_memory`.
//!
//! What it does not: keep state of its own. Invariant: every method begins with `ready`, and every check comes before
//! the first change, so that a refused call leaves everything as it was.

use super::gpu::Entry;
use super::judge::Actor;
use super::memory::{ALIGNMENT, Content, Region};
use super::report::{FindingKind, Party, Report};
use super::run::{Declared, Work};
use super::schedule::mix;
use super::world::{self, Guard};
use super::{Sim, lost, world_of_this_process};
use crate::device::{
    Access, Arg, Attribute, Copy, Description, Device, DeviceKey, DeviceSlice, Event, Kernel, Launch,
    MemoryInfo, Page, PinnedSlice, Place, Simulator, Stream,
};
use crate::error::{Error, Result, Status};

impl Sim {
    fn synchronize_on(&self, world: &mut Guard, mark: &super::clock::Stamp) {
        world::wait(world, self.index, mark);
        world.host_learns(self.index, mark);
    }

    /// Whether a mark is reached; seeing it orders the host after it.
    fn ask(&self, world: &mut Guard, mark: &super::clock::Stamp) -> bool {
        let is_reached = world::poll(world, self.index, mark);
        if is_reached {
            world.host_learns(self.index, mark);
        }
        is_reached
    }

    fn check_copies(&self, world: &mut Guard, copies: &[Copy]) -> Result<()> {
        let mut targets = Vec::new();
        for (index, copy) in copies.iter().enumerate() {
            let (target, source) = (copy.target.bytes(), copy.source.bytes());
            if target != source {
                return Err(Error::argument(format!(
                    "copy {index}: {source} bytes to a place of {target} bytes; they must be equal"
                )));
            }
            for place in [&copy.target, &copy.source] {
                if let Place::Device(slice) = place {
                    self.reach(world, slice)?;
                }
            }
            if copies.len() > 1 && target > 0 {
                let start = address(&copy.target);
                targets.push((start, start + target));
            }
        }
        targets.sort_unstable();
        match targets.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            Some(pair) => Err(Error::argument(format!("two copies of a batch write to {:#x}", pair[1].0))),
            None => Ok(()),
        }
    }

    fn enqueue_copy(&self, world: &mut Guard, entry: Entry, copy: &Copy) {
        let (target, source, bytes) = (address(&copy.target), address(&copy.source), copy.target.bytes());
        let is_target_pinned = matches!(copy.target, Place::Pinned(_));
        let hash = match copy.source {
            Place::Pinned(_) if bytes > 0 && world.regions.around(source, bytes).is_some_and(is_live) => {
                // SAFETY: live pinned memory holds the range.
                unsafe { world.values.source_hash(source, bytes) }
            }
            _ => None,
        };
        if is_target_pinned {
            world.values.add_device_write(target, bytes);
        }
        world.values.forget_marks(target, bytes);
        let work = Work::Copy { target, source, bytes, hash, is_target_pinned };
        world.enqueue(self.index, entry, work);
    }

    /// Begins an access of the host, which comes after the work of the default stream and is done at once.
    fn host_access(&self, slice: &DeviceSlice, bytes: usize, name: &'static str) -> Result<(Guard, Actor)> {
        let mut world = self.ready()?;
        if slice.bytes() != bytes as u64 {
            return Err(Error::argument(format!(
                "{bytes} bytes of the host for {} bytes of the device; they must be equal",
                slice.bytes()
            )));
        }
        self.reach(&mut world, slice)?;
        let entry = self.stream(&mut world, Stream::DEFAULT)?;
        loop {
            let mark = world.mark(entry.slot);
            if world.is_reached(&mark) {
                break;
            }
            world::wait(&mut world, self.index, &mark);
        }
        self.check_lost(&mut world)?;
        let stamp = world.stamp(self.index, entry.slot);
        // Nothing is queued before it and the lock is held, so it counts as run.
        world.streams[entry.slot as usize].completed = stamp.count;
        world.host_learns(self.index, &stamp);
        let places = (entry.number, world.next_serial(), 0);
        Ok((world, Actor::new((self.index, self.key), stamp, places, name)))
    }
}

fn is_live((start, region): (u64, &mut Region)) -> bool {
    region.real(start).is_some()
}

fn address(place: &Place) -> u64 {
    match place {
        Place::Device(slice) => slice.address(),
        Place::Pinned(slice) => slice.address() as u64,
    }
}

impl Simulator for Sim {
    fn declare(&self, stream: Stream, reads: &[DeviceSlice], writes: &[DeviceSlice]) -> Result<()> {
        let mut world = self.ready()?;
        let entry = self.stream(&mut world, stream)?;
        for slice in reads.iter().chain(writes) {
            self.reach(&mut world, slice)?;
            let is_simulated =
                world.gpus.iter().flatten().any(|gpu| gpu.space.holds(slice.address(), slice.bytes()));
            // Managed memory lies at the address that the processor knows.
            let is_managed = |found: Option<(u64, &mut Region)>| {
                matches!(found, Some((_, Region { content: Content::Block { .. }, .. })))
            };
            if !is_simulated && !is_managed(world.regions.around(slice.address(), slice.bytes())) {
                return Err(Error::argument(format!(
                    "{} bytes at {:#x} are no memory of a simulated device",
                    slice.bytes(),
                    slice.address()
                )));
            }
        }
        let mut ranges = Vec::with_capacity(reads.len() + writes.len());
        for slice in reads {
            let (address, bytes) = (slice.address(), slice.bytes());
            let mark = world.values.expected(address, bytes);
            ranges.push(Declared { address, bytes, is_write: false, mark });
        }
        let stamp = world.mark(entry.slot);
        for (index, slice) in writes.iter().enumerate() {
            let (address, bytes) = (slice.address(), slice.bytes());
            let mark = mix(mix(u64::from(stamp.slot), stamp.count), index as u64);
            world.values.expect(address, bytes, mark);
            ranges.push(Declared { address, bytes, is_write: true, mark: Some(mark) });
        }
        world.enqueue(self.index, entry, Work::Declared(ranges));
        Ok(())
    }

    fn reseed(&self, seed: u64) -> Result<()> {
        let mut world = self.ready()?;
        let gpu = world.gpu(self.index);
        gpu.schedule.reseed(seed);
        gpu.report.seed = seed;
        Ok(())
    }

    fn capture(&self, stream: Stream, is_on: bool) -> Result<()> {
        let mut world = self.ready()?;
        self.stream(&mut world, stream)?;
        world.gpu(self.index).capture(stream.0, is_on)
    }

    fn report(&self) -> Result<Report> {
        let mut world = world_of_this_process()?;
        let slots: Vec<u32> = world.gpu(self.index).streams.iter().map(|entry| entry.slot).collect();
        let pending = slots.iter().map(|&slot| world.streams[slot as usize].queue.len() as u64).sum();
        Ok(Report { pending, ..world.gpu(self.index).report.clone() })
    }
}

impl Device for Sim {
    fn description(&self) -> &Description {
        &self.description
    }

    fn key(&self) -> DeviceKey {
        self.key
    }

    fn memory_info(&self) -> Result<MemoryInfo> {
        let mut world = self.ready()?;
        let physical = &world.gpu(self.index).physical;
        Ok(MemoryInfo { free_bytes: physical.free_bytes(), total_bytes: physical.limit_bytes() })
    }

    fn attribute(&self, attribute: Attribute) -> Result<u64> {
        drop(self.ready()?);
        Ok(match attribute {
            Attribute::PageBytes => self.description.page_bytes,
            Attribute::AllocationAlignment => ALIGNMENT,
            Attribute::MultiprocessorCount => 1,
            Attribute::ComputeMajor | Attribute::ComputeMinor => 0,
            Attribute::HostNode => {
                return Err(Error::new(Status::Unsupported, "a simulated device is near to no memory"));
            }
            Attribute::CopyBatchesJoined | Attribute::CopyBatchesLooped => 0,
        })
    }

    fn call_count(&self) -> u64 {
        0
    }

    fn race_count(&self) -> u64 {
        world_of_this_process().map_or(0, |mut world| world.gpu(self.index).report.races())
    }

    fn simulator(&self) -> Option<&dyn Simulator> {
        Some(self)
    }

    fn synchronize(&self) -> Result<()> {
        let mut world = self.ready()?;
        self.drain(&mut world);
        self.check_lost(&mut world)
    }

    fn stream_create(&self) -> Result<Stream> {
        Ok(Stream(self.ready()?.make_stream(self.index)))
    }

    fn stream_wrap(&self, raw: u64) -> Result<Stream> {
        let mut world = self.ready()?;
        if raw == Stream::DEFAULT.0 || world.gpu(self.index).stream(raw).is_some() {
            return Ok(Stream(raw));
        }
        let slot = world.find_stream(raw).filter(|&slot| {
            let maker = world.streams[slot as usize].gpu;
            world.gpus[maker].as_ref().is_some_and(|gpu| gpu.ordinal == self.description.ordinal)
        });
        let Some(slot) = slot else {
            return Err(Error::argument(format!("{raw} is no live stream of {}", self.description.name)));
        };
        let gpu = world.gpu(self.index);
        let number = gpu.next_number();
        gpu.streams.push(Entry { value: raw, slot, number, is_wrapped: true });
        Ok(Stream(raw))
    }

    fn stream_destroy(&self, stream: Stream) -> Result<()> {
        let mut world = self.ready()?;
        if stream == Stream::DEFAULT {
            return Err(Error::argument("the default stream lives as long as its device"));
        }
        let Some(entry) = world.gpu(self.index).stream(stream.0) else {
            return self.stream(&mut world, stream).map(drop);
        };
        let mark = world.mark(entry.slot);
        if entry.is_wrapped {
            world.gpu(self.index).streams.retain(|known| known.value != entry.value);
            if !world.is_reached(&mark) {
                world.gpu(self.index).lingering.push(mark);
            }
            return Ok(());
        }
        self.synchronize_on(&mut world, &mark);
        world.remove_stream(entry.value);
        Ok(())
    }

    fn stream_synchronize(&self, stream: Stream) -> Result<()> {
        let mut world = self.ready()?;
        let entry = self.stream(&mut world, stream)?;
        let gpu = world.gpu(self.index);
        gpu.keep_out(gpu.is_in_capture(stream.0), "a wait for a stream")?;
        let mark = world.mark(entry.slot);
        self.synchronize_on(&mut world, &mark);
        let maker = world.streams[entry.slot as usize].gpu;
        world.gpus[maker].as_deref().map_or(Ok(()), lost)?;
        self.check_lost(&mut world)
    }

    fn stream_is_idle(&self, stream: Stream) -> Result<bool> {
        let mut world = self.ready()?;
        let entry = self.stream(&mut world, stream)?;
        let mark = world.mark(entry.slot);
        Ok(self.ask(&mut world, &mark))
    }

    fn stream_wait_event(&self, stream: Stream, event: Event) -> Result<()> {
        let mut world = self.ready()?;
        let entry = self.stream(&mut world, stream)?;
        let gpu = world.gpu(self.index);
        gpu.keep_out(gpu.is_in_capture(stream.0), "a wait for an event from outside")?;
        match gpu.event_mark(event)? {
            Some(mark) => world.enqueue_wait(self.index, entry, mark),
            None => {
                let who = Party { stream: Some(entry.number), name: "wait", step: 0 };
                world.gpu(self.index).find(FindingKind::UnrecordedWait, who, None, (0, 0));
            }
        }
        Ok(())
    }

    fn stream_is_capturing(&self, stream: Stream) -> Result<bool> {
        let mut world = self.ready()?;
        self.stream(&mut world, stream)?;
        Ok(world.gpu(self.index).is_captured(stream.0))
    }

    fn stream_takes_events(&self, stream: Stream) -> Result<bool> {
        let mut world = self.ready()?;
        self.stream(&mut world, stream)?;
        Ok(!world.gpu(self.index).is_in_capture(stream.0))
    }

    fn stream_callback(&self, stream: Stream, callback: Box<dyn FnOnce() + Send>) -> Result<()> {
        let mut world = self.ready()?;
        let entry = self.stream(&mut world, stream)?;
        world.enqueue(self.index, entry, Work::Call(callback));
        Ok(())
    }

    fn event_create(&self) -> Result<Event> {
        Ok(self.ready()?.gpu(self.index).event_create())
    }

    fn event_record(&self, event: Event, stream: Stream) -> Result<()> {
        let mut world = self.ready()?;
        let entry = self.stream(&mut world, stream)?;
        let mark = world.record(self.index, entry.slot);
        world.gpu(self.index).event_record(event, stream.0, mark)
    }

    fn event_is_done(&self, event: Event) -> Result<bool> {
        let mut world = self.ready()?;
        let mark = world.gpu(self.index).event_mark(event)?;
        Ok(mark.is_none_or(|mark| self.ask(&mut world, &mark)))
    }

    fn event_synchronize(&self, event: Event) -> Result<()> {
        let mut world = self.ready()?;
        if let Some(mark) = world.gpu(self.index).event_mark(event)? {
            self.synchronize_on(&mut world, &mark);
        }
        self.check_lost(&mut world)
    }

    fn event_destroy(&self, event: Event) -> Result<()> {
        self.ready()?.gpu(self.index).event_destroy(event)
    }

    fn memory_allocate(&self, bytes: u64) -> Result<DeviceSlice> {
        self.allocate(bytes, None)
    }

    fn memory_free(&self, slice: DeviceSlice) -> Result<()> {
        self.free(slice)
    }

    fn memory_allocate_async(&self, bytes: u64, stream: Stream) -> Result<DeviceSlice> {
        self.allocate(bytes, Some(stream))
    }

    fn memory_free_async(&self, slice: DeviceSlice, stream: Stream) -> Result<()> {
        self.free_async(slice, stream)
    }

    fn managed_allocate(&self, bytes: u64) -> Result<DeviceSlice> {
        self.allocate_managed(bytes)
    }

    fn virtual_reserve(&self, bytes: u64) -> Result<DeviceSlice> {
        self.reserve(bytes)
    }

    fn virtual_release(&self, range: DeviceSlice) -> Result<()> {
        self.release(range)
    }

    fn page_create(&self, bytes: u64) -> Result<Page> {
        self.ready()?.gpu(self.index).virtual_memory.page_create(bytes)
    }

    fn page_release(&self, page: Page) -> Result<()> {
        self.release_page(page)
    }

    fn virtual_map(&self, target: DeviceSlice, page: Page) -> Result<()> {
        self.map(target, page)
    }

    fn virtual_set_access(&self, range: DeviceSlice, access: Access) -> Result<()> {
        self.set_access(range, access)
    }

    fn virtual_unmap(&self, range: DeviceSlice) -> Result<()> {
        self.unmap(range)
    }

    fn pinned_allocate(&self, bytes: u64) -> Result<PinnedSlice> {
        self.allocate_pinned(bytes)
    }

    fn pinned_free(&self, slice: PinnedSlice) -> Result<()> {
        self.free_pinned(slice, false)
    }

    unsafe fn pinned_register(&self, address: usize, bytes: u64) -> Result<PinnedSlice> {
        self.register(address, bytes)
    }

    fn pinned_unregister(&self, slice: PinnedSlice) -> Result<()> {
        self.free_pinned(slice, true)
    }

    fn write(&self, target: DeviceSlice, source: &[u8]) -> Result<()> {
        let (mut world, actor) = self.host_access(&target, source.len(), "write")?;
        world.values.forget_marks(target.address(), target.bytes());
        if let Some(real) = world.access(&actor, (target.address(), target.bytes()), true) {
            // SAFETY: a live piece of memory holds the range, lengths are equal, and the world's lock is held.
            unsafe { std::ptr::copy(source.as_ptr(), real as *mut u8, source.len()) };
        }
        Ok(())
    }

    fn read(&self, source: DeviceSlice, target: &mut [u8]) -> Result<()> {
        let (mut world, actor) = self.host_access(&source, target.len(), "read")?;
        match world.access(&actor, (source.address(), source.bytes()), false) {
            // SAFETY: as in `write`.
            Some(real) => unsafe { std::ptr::copy(real as *const u8, target.as_mut_ptr(), target.len()) },
            None => target.fill(super::memory::POISON),
        }
        Ok(())
    }

    fn copy(&self, stream: Stream, copy: Copy) -> Result<()> {
        self.copy_batch(stream, &[copy])
    }

    fn copy_batch(&self, stream: Stream, copies: &[Copy]) -> Result<()> {
        let mut world = self.ready()?;
        let entry = self.stream(&mut world, stream)?;
        self.check_copies(&mut world, copies)?;
        copies.iter().for_each(|copy| self.enqueue_copy(&mut world, entry, copy));
        Ok(())
    }

    fn memset(&self, stream: Stream, target: DeviceSlice, value: u8) -> Result<()> {
        let mut world = self.ready()?;
        let entry = self.stream(&mut world, stream)?;
        self.reach(&mut world, &target)?;
        world.values.forget_marks(target.address(), target.bytes());
        let work = Work::Fill { target: target.address(), bytes: target.bytes(), value };
        world.enqueue(self.index, entry, work);
        Ok(())
    }

    fn module_load(&self, kernels: &[&'static Kernel]) -> Result<()> {
        self.ready()?.gpu(self.index).kernels.extend(kernels.iter().map(|kernel| kernel.name));
        Ok(())
    }

    fn launch(&self, stream: Stream, launch: &Launch<'_>) -> Result<()> {
        let mut world = self.ready()?;
        launch.check()?;
        for arg in launch.args {
            if let Arg::Read(slice) | Arg::Write(slice) = arg {
                self.reach(&mut world, slice)?;
            }
        }
        let name = launch.kernel.name;
        if !world.gpu(self.index).kernels.contains(name) {
            return Err(Error::argument(format!("kernel {name} is not loaded; load it first")));
        }
        let entry = self.stream(&mut world, stream)?;
        for arg in launch.args {
            if let Arg::Write(slice) = arg {
                world.values.forget_marks(slice.address(), slice.bytes());
            }
        }
        world.enqueue(self.index, entry, Work::launch(launch));
        Ok(())
    }

    fn peer_is_reachable(&self, other: DeviceKey) -> Result<bool> {
        Ok(self.ready()?.find_gpu(other).is_some())
    }

    fn peer_enable(&self, other: DeviceKey) -> Result<()> {
        let mut world = self.ready()?;
        if world.find_gpu(other).is_none() {
            return Err(Error::argument("the other device is closed or not of this backend"));
        }
        let peers = &mut world.gpu(self.index).peers;
        if other != self.key && !peers.contains(&other) {
            peers.push(other);
        }
        Ok(())
    }
}
