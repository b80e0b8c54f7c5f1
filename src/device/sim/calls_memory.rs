//! The memory half of the trait: allocations, frees, mapped addresses, pinned host memory.
//!
//! What it does not: keep state of its own. Invariant: a refused call leaves everything as it was; whatever goes away
//! is checked for work that is in no order with its end.

use super::Sim;
use super::judge::Actor;
use super::memory::{ALIGNMENT, Bytes, Content, Region};
use super::run::Work;
use super::shadow::Access as Touched;
use super::world::{self, Guard};
use crate::device::{Access, DeviceSlice, Page, PinnedSlice, Stream};
use crate::error::{Error, Result, Status};
use crate::sys::shm::Anonymous;

impl Sim {
    /// Waits for all work of the device; the calling thread then knows of it.
    pub(super) fn drain(&self, world: &mut Guard) {
        for mark in world::drain(world, self.index) {
            world.host_learns(self.index, &mark);
        }
    }

    fn host_actor(&self, world: &mut Guard, name: &'static str) -> Actor {
        Actor::new((self.index, self.key), world.host_stamp(self.index), (0, world.next_serial(), 0), name)
    }

    /// Pays for memory, if need be after a wait for what is leaving; answers what was paid.
    fn charge(&self, world: &mut Guard, bytes: u64) -> Result<u64> {
        if bytes == 0 {
            return Err(Error::argument("0 bytes of device memory requested; ask for at least 1"));
        }
        let Some(charged) = bytes.checked_next_multiple_of(ALIGNMENT) else {
            return Err(Error::argument(format!(
                "{bytes} bytes of device memory are more than addresses exist"
            )));
        };
        let physical = std::sync::Arc::clone(&world.gpu(self.index).physical);
        physical.charge(charged).or_else(|refusal| {
            if !world.regions.has_leaving(self.index) {
                return Err(refusal);
            }
            // Memory whose free waits in a stream is only a wait away.
            self.drain(world);
            physical.charge(charged).map_err(|_| refusal)
        })?;
        Ok(charged)
    }

    /// Memory at an address that the processor reaches too.
    pub(super) fn allocate_managed(&self, bytes: u64) -> Result<DeviceSlice> {
        let mut world = self.ready()?;
        let charged = self.charge(&mut world, bytes)?;
        let made = Anonymous::new(bytes);
        let memory = made.inspect_err(|_| world.gpu(self.index).physical.discharge(charged))?;
        let start = memory.address() as u64;
        let content = Content::Block { bytes: Bytes::Mapped(memory), is_async: false };
        world.regions.insert(start, Region::new(self.index, bytes, content, None));
        Ok(DeviceSlice::new(self.key, start, bytes))
    }

    pub(super) fn allocate(&self, bytes: u64, stream: Option<Stream>) -> Result<DeviceSlice> {
        let mut world = self.ready()?;
        let entry = stream.map(|stream| self.stream(&mut world, stream)).transpose()?;
        let charged = self.charge(&mut world, bytes)?;
        let physical = std::sync::Arc::clone(&world.gpu(self.index).physical);
        let made = Bytes::new(bytes).and_then(|real| {
            let world = &mut *world;
            let gpu = world.gpus[self.index].as_mut();
            let gpu = gpu.ok_or_else(|| Error::internal("the device of a call is not in the world"))?;
            Ok((real, world.regions.place(&mut gpu.space, bytes, ALIGNMENT)?))
        });
        let (real, start) = made.inspect_err(|_| physical.discharge(charged))?;
        let born = entry.map(|entry| {
            // Nothing is done then, but its count tells who comes after it.
            world.enqueue(self.index, entry, Work::Allocate(start));
            let stamp = world.mark(entry.slot);
            Touched {
                gpu: (self.index, self.key),
                slot: stamp.slot,
                stream: entry.number,
                count: stamp.count,
                step: 0,
                serial: world.next_serial(),
                name: "memory_allocate_async",
            }
        });
        let content = Content::Block { bytes: real, is_async: born.is_some() };
        world.regions.insert(start, Region::new(self.index, bytes, content, born));
        Ok(DeviceSlice::new(self.key, start, bytes))
    }

    /// Finds the allocation that a slice names exactly, for its free.
    fn block<'a>(
        &self,
        world: &'a mut Guard,
        slice: &DeviceSlice,
        only_async: bool,
    ) -> Result<&'a mut Region> {
        self.own(slice)?;
        let index = self.index;
        let found = world
            .regions
            .get(slice.address())
            .filter(|region| region.gpu == index && region.bytes == slice.bytes() && !region.is_leaving);
        match found {
            Some(region) => match region.content {
                Content::Block { is_async: false, .. } if only_async => {
                    Err(Error::argument("the memory was not allocated in stream order; use memory_free"))
                }
                Content::Block { .. } => Ok(region),
                _ => Err(not_live(slice)),
            },
            None => Err(not_live(slice)),
        }
    }

    pub(super) fn free(&self, slice: DeviceSlice) -> Result<()> {
        let mut world = self.ready()?;
        self.block(&mut world, &slice, false)?.is_leaving = true;
        self.drain(&mut world);
        let actor = self.host_actor(&mut world, "memory_free");
        world.finish_free(&actor, slice.address());
        Ok(())
    }

    pub(super) fn free_async(&self, slice: DeviceSlice, stream: Stream) -> Result<()> {
        let mut world = self.ready()?;
        let entry = self.stream(&mut world, stream)?;
        self.block(&mut world, &slice, true)?.is_leaving = true;
        world.enqueue(self.index, entry, Work::Free(slice.address()));
        Ok(())
    }

    // -------------------------------------------------------------------------------------------- mapped addresses

    pub(super) fn reserve(&self, bytes: u64) -> Result<DeviceSlice> {
        let mut world = self.ready()?;
        let world = &mut *world;
        let gpu = world.gpus[self.index].as_mut();
        let gpu = gpu.ok_or_else(|| Error::internal("the device of a call is not in the world"))?;
        let real = gpu.virtual_memory.reserve(bytes)?;
        let placed = world.regions.place(&mut gpu.space, bytes, self.description.page_bytes);
        let start = placed.or_else(|error| gpu.virtual_memory.release(real).and(Err(error)))?;
        let content = Content::Window(real.address());
        world.regions.insert(start, Region::new(self.index, bytes, content, None));
        Ok(DeviceSlice::new(self.key, start, bytes))
    }

    /// The real range behind reserved addresses; what is not reserved stays as it is, which `vmm` refuses.
    fn real(&self, world: &mut Guard, range: DeviceSlice) -> Result<DeviceSlice> {
        let refuse =
            || Error::argument(format!("{} bytes at {:#x} are not reserved", range.bytes(), range.address()));
        if range.device() != self.key {
            return Err(refuse());
        }
        match world.regions.around(range.address(), range.bytes()) {
            Some((start, Region { content: Content::Window(real), .. })) => {
                Ok(DeviceSlice::new(self.key, *real + (range.address() - start), range.bytes()))
            }
            _ => Err(refuse()),
        }
    }

    pub(super) fn release(&self, range: DeviceSlice) -> Result<()> {
        let mut world = self.ready()?;
        let real = self.real(&mut world, range)?;
        world.gpu(self.index).virtual_memory.release(real).map_err(|error| simulated(error, &range))?;
        let actor = self.host_actor(&mut world, "virtual_release");
        let world = &mut *world;
        if let Some(gpu) = world.gpus[self.index].as_mut() {
            world.regions.bury(&mut gpu.space, range.address(), actor.access);
        }
        Ok(())
    }

    pub(super) fn release_page(&self, page: Page) -> Result<()> {
        let mut world = self.ready()?;
        let gpu = world.gpu(self.index);
        gpu.virtual_memory.page_release(page)?;
        gpu.page_shadows.remove(&page.0);
        Ok(())
    }

    pub(super) fn map(&self, target: DeviceSlice, page: Page) -> Result<()> {
        let mut world = self.ready()?;
        let real = self.real(&mut world, target)?;
        world.gpu(self.index).virtual_memory.map(real, page).map_err(|error| simulated(error, &target))
    }

    pub(super) fn set_access(&self, range: DeviceSlice, access: Access) -> Result<()> {
        let mut world = self.ready()?;
        let real = self.real(&mut world, range)?;
        let result = world.gpu(self.index).virtual_memory.set_access(real, access);
        result.map_err(|error| simulated(error, &range))
    }

    pub(super) fn unmap(&self, range: DeviceSlice) -> Result<()> {
        let mut world = self.ready()?;
        let real = self.real(&mut world, range)?;
        world.gpu(self.index).virtual_memory.unmap(real).map_err(|error| simulated(error, &range))?;
        let actor = self.host_actor(&mut world, "virtual_unmap");
        world.check_end(&actor, (range.address(), range.bytes()));
        world.values.forget_marks(range.address(), range.bytes());
        if let Some((_, region)) = world.regions.around(range.address(), range.bytes()) {
            region.note_unmap(range.address(), range.address() + range.bytes(), actor.access);
        }
        Ok(())
    }

    // -------------------------------------------------------------------------------------------- pinned host memory

    pub(super) fn allocate_pinned(&self, bytes: u64) -> Result<PinnedSlice> {
        let mut world = self.ready()?;
        if bytes == 0 {
            return Err(Error::argument("0 bytes of pinned memory requested; ask for at least 1"));
        }
        let memory = Anonymous::new(bytes)?;
        let address = memory.address();
        let content = Content::Pinned(Some(memory));
        world.regions.insert(address as u64, Region::new(self.index, bytes, content, None));
        Ok(PinnedSlice::new(address, bytes))
    }

    pub(super) fn register(&self, address: usize, bytes: u64) -> Result<PinnedSlice> {
        let mut world = self.ready()?;
        let end = usize::try_from(bytes).ok().and_then(|bytes| address.checked_add(bytes));
        if address == 0 || bytes == 0 || end.is_none() {
            return Err(Error::argument(format!("{bytes} bytes at {address:#x} are no memory range")));
        }
        world.regions.register(self.index, address as u64, bytes)?;
        Ok(PinnedSlice::new(address, bytes))
    }

    pub(super) fn free_pinned(&self, slice: PinnedSlice, is_registered: bool) -> Result<()> {
        let mut world = self.ready()?;
        let start = slice.address() as u64;
        let refuse = || {
            let what = if is_registered { "registered" } else { "allocated" };
            let text =
                format!("{} bytes at {start:#x} are not {what} pinned memory of this device", slice.bytes());
            Error::argument(text)
        };
        self.check_pinned_free(&mut world, &slice, is_registered).ok_or_else(refuse)?;
        self.drain(&mut world);
        // The wait gives up the lock now and then: another thread may have freed it meanwhile.
        self.check_pinned_free(&mut world, &slice, is_registered).ok_or_else(refuse)?;
        let actor =
            self.host_actor(&mut world, if is_registered { "pinned_unregister" } else { "pinned_free" });
        world.check_end(&actor, (start, slice.bytes()));
        world.values.forget_watches((start, start + slice.bytes()));
        if is_registered {
            world.regions.unregister(self.index, start);
        } else {
            world.regions.bury_real(start, actor.access);
        }
        Ok(())
    }

    fn check_pinned_free(&self, world: &mut Guard, slice: &PinnedSlice, is_registered: bool) -> Option<()> {
        let region = world.regions.get(slice.address() as u64)?;
        let is_ours = region.gpu == self.index || region.sharers.contains(&self.index);
        let is_kind = match &region.content {
            Content::Pinned(memory) => memory.is_none() == is_registered,
            _ => false,
        };
        (is_ours && is_kind && region.bytes == slice.bytes()).then_some(())
    }
}

fn not_live(slice: &DeviceSlice) -> Error {
    Error::argument(format!(
        "{} bytes at {:#x} are no live allocation of this device; free exactly what was allocated, once",
        slice.bytes(),
        slice.address()
    ))
}

/// The tables of mapped memory speak of the real range; the caller knows the simulated one.
fn simulated(error: Error, range: &DeviceSlice) -> Error {
    let place = format!("simulated range of {} bytes at {:#x}", range.bytes(), range.address());
    match error.status {
        Status::Internal => error,
        _ => error.context(&place),
    }
}
