//! The work itself: real bytes are moved, each access is noted, what has no order is found.
//!
//! What it does not: choose what runs. Accesses are judged when they run, not when they are enqueued, because only then
//! is it known which parts of a large argument a kernel uses. That loses nothing: an access carries what its stream
//! knew at the enqueue, any order of running is one that the clocks allow, and two accesses without an order are in
//! conflict whichever comes first. Invariant: bytes are touched only where a live piece of memory holds the whole range.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::clock::Stamp;
use super::gpu::Gpu;
use super::memory::{ALIGNMENT, Content, POISON};
use super::report::{FindingKind, Party};
use super::shadow::{Access, Clash};
use super::value::MARK_BYTES;
use super::world::{self, Op, World};
use crate::device::kernel::Touch;
use crate::device::{Arg, CpuArgs, DeviceKey, DeviceSlice, Kernel, Launch};

/// Virtual time of any operation.
const OPERATION_NS: u64 = 1000;
/// Bytes that a device moves in a virtual nanosecond.
const BYTES_PER_NS: u64 = 1024;

/// A kernel with its arguments.
pub(super) struct LaunchWork {
    kernel: &'static Kernel,
    grid: u32,
    block: u32,
    args: Vec<Arg>,
}

/// A range of a declared launch.
pub(super) struct Declared {
    pub(super) address: u64,
    pub(super) bytes: u64,
    pub(super) is_write: bool,
    /// The mark that a read has to find, or that a write leaves.
    pub(super) mark: Option<u64>,
}

/// One piece of work.
pub(super) enum Work {
    /// Copies bytes; with the hash of a pinned source.
    Copy { target: u64, source: u64, bytes: u64, hash: Option<u64>, is_target_pinned: bool },
    /// Fills bytes.
    Fill { target: u64, bytes: u64, value: u8 },
    /// Runs a kernel.
    Launch(LaunchWork),
    /// Accesses ranges without a kernel.
    Declared(Vec<Declared>),
    /// Waits for another stream.
    Wait(Stamp),
    /// Runs a function of the caller's.
    Call(Box<dyn FnOnce() + Send>),
    /// From here on the memory may be used.
    Allocate(u64),
    /// Gives memory back.
    Free(u64),
}

impl Work {
    /// Keeps a launch that was checked.
    pub(super) fn launch(launch: &Launch<'_>) -> Self {
        Self::Launch(LaunchWork {
            kernel: launch.kernel,
            grid: launch.grid,
            block: launch.block,
            args: launch.args.to_vec(),
        })
    }
}

/// How a piece of work went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    Done,
    /// A callback has begun and will end by itself.
    Calling,
}

/// Who accesses memory.
pub(super) struct Actor {
    pub(super) gpu: usize,
    pub(super) stamp: Stamp,
    pub(super) access: Access,
}

impl Actor {
    /// An operation of a stream.
    pub(super) fn new(
        gpu: (usize, DeviceKey),
        stamp: Stamp,
        stream: u32,
        step: u64,
        name: &'static str,
    ) -> Self {
        let access = Access { gpu, slot: stamp.slot, stream, count: stamp.count, step, name };
        Self { gpu: gpu.0, stamp, access }
    }
}

/// An access as people read of it.
pub(super) fn party(access: &Access) -> Party {
    let stream = (access.slot != Stamp::HOST).then_some(access.stream);
    Party { stream, name: access.name, step: access.step }
}

/// Notes a finding with the device of the later access, and with that of the earlier one where it is another.
fn find_both(
    gpus: &mut [Option<Box<Gpu>>],
    kind: FindingKind,
    later: &Access,
    earlier: &Access,
    range: (u64, u64),
) {
    let (who, other) = (party(later), party(earlier));
    for (index, key) in [later.gpu, earlier.gpu].into_iter().take(1 + usize::from(later.gpu != earlier.gpu)) {
        if let Some(gpu) = gpus[index].as_mut().filter(|gpu| gpu.key == key) {
            gpu.find(kind, who, Some(other), range);
        }
    }
}

fn kind_of(clash: Clash) -> FindingKind {
    match clash {
        Clash::ReadAfterWrite => FindingKind::ReadAfterWrite,
        Clash::WriteAfterRead => FindingKind::WriteAfterRead,
        Clash::WriteAfterWrite => FindingKind::WriteAfterWrite,
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or("a panic without a text".to_owned())
}

impl World {
    /// Notes that a device is lost, for the first reason.
    pub(super) fn lose(&mut self, gpu: usize, panic: Box<dyn std::any::Any + Send>) {
        let text = panic_text(panic.as_ref());
        if let Some(gpu) = self.gpus[gpu].as_mut() {
            gpu.lost.get_or_insert(text);
        }
        // Dropping a panic's payload may itself panic, if the caller chose such a type.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| world::as_worker(|| drop(panic)))) {
            std::mem::forget(again);
        }
    }

    // -------------------------------------------------------------------------------------------- accesses

    /// Where a range really is. A range that may not be accessed is a finding and has no place.
    pub(super) fn locate(
        &mut self,
        actor: &Actor,
        (address, bytes): (u64, u64),
        is_write: bool,
    ) -> Option<u64> {
        let place = self.place(actor, (address, bytes))?;
        self.allow(actor, (address, bytes), is_write).then_some(place)
    }

    /// Where a range really is, whatever its mappings allow.
    fn place(&mut self, actor: &Actor, (address, bytes): (u64, u64)) -> Option<u64> {
        let who = party(&actor.access);
        if let Some((start, region)) = self.regions.around(address, bytes) {
            if let Some(real) = region.real(start) {
                return Some(real + (address - start));
            }
            let kind = match &region.freed {
                Some(freed) if !actor.stamp.knows(freed.slot, freed.count) => FindingKind::FreeWhilePending,
                _ => FindingKind::UseAfterFree,
            };
            let other = region.freed.as_ref().map(party);
            self.gpu(actor.gpu).find(kind, who, other, (address, bytes));
            return None;
        }
        let is_past = self.gpus.iter().flatten().any(|gpu| gpu.space.was_used(address))
            && self.regions.around(address, 1).is_none();
        let kind = if is_past { FindingKind::UseAfterFree } else { FindingKind::InvalidAccess };
        self.gpu(actor.gpu).find(kind, who, None, (address, bytes));
        None
    }

    /// Whether the mappings behind reserved addresses allow an access; a finding if not.
    fn allow(&mut self, actor: &Actor, (address, bytes): (u64, u64), is_write: bool) -> bool {
        let Some((start, region)) = self.regions.around(address, bytes) else { return true };
        let Content::Window(real) = region.content else { return true };
        let owner = region.gpu;
        let is_allowed = self.gpus[owner]
            .as_ref()
            .is_some_and(|gpu| gpu.virtual_memory.allows(real + (address - start), bytes, is_write));
        if !is_allowed {
            let who = party(&actor.access);
            self.gpu(actor.gpu).find(FindingKind::InvalidAccess, who, None, (address, bytes));
        }
        is_allowed
    }

    /// Notes an access and finds what it is in no order with.
    pub(super) fn note(&mut self, actor: &Actor, (address, bytes): (u64, u64), is_write: bool) {
        if bytes == 0 {
            return;
        }
        let Self { regions, gpus, .. } = self;
        let Some((_, region)) = regions.around(address, bytes) else { return };
        let mut last = None;
        let mut tell = |kind, other: &Access| {
            // A range cut into pieces says the same of each.
            if last != Some((kind, other.step, other.slot)) {
                last = Some((kind, other.step, other.slot));
                find_both(gpus, kind, &actor.access, other, (address, bytes));
            }
        };
        if let Some(born) = region.born.filter(|born| !actor.stamp.knows(born.slot, born.count)) {
            tell(FindingKind::UnorderedReuse, &born);
        }
        let range = (address, address + bytes);
        region.shadow.note(range, &actor.access, &actor.stamp, is_write, &mut |clash, other| {
            tell(kind_of(clash), other);
        });
    }

    /// Locates and notes in one; answers where the bytes are.
    pub(super) fn access(&mut self, actor: &Actor, range: (u64, u64), is_write: bool) -> Option<u64> {
        if range.1 == 0 {
            return None;
        }
        let real = self.locate(actor, range, is_write)?;
        self.note(actor, range, is_write);
        Some(real)
    }

    /// Finds accesses to a range that its free or unmap is in no order with.
    pub(super) fn check_end(&mut self, actor: &Actor, (address, bytes): (u64, u64)) {
        let Self { regions, gpus, .. } = self;
        let Some((_, region)) = regions.around(address, bytes) else { return };
        let mut tell = |other: &Access| {
            find_both(gpus, FindingKind::FreeWhilePending, &actor.access, other, (address, bytes));
        };
        if let Some(born) = region.born.filter(|born| !actor.stamp.knows(born.slot, born.count)) {
            tell(&born);
        }
        region.shadow.check_end((address, address + bytes), &actor.stamp, &mut tell);
    }

    /// Ends an allocation.
    pub(super) fn finish_free(&mut self, actor: &Actor, start: u64) {
        let Some(region) = self.regions.get(start) else { return };
        let (bytes, owner) = (region.bytes, region.gpu);
        self.check_end(actor, (start, bytes));
        self.values.forget_marks(start, bytes);
        let Self { regions, gpus, .. } = self;
        if let Some(gpu) = gpus[owner].as_mut() {
            regions.bury(&mut gpu.space, start, actor.access);
            gpu.physical.discharge(bytes.next_multiple_of(ALIGNMENT));
        }
    }

    // -------------------------------------------------------------------------------------------- one operation

    /// Runs the first work of a stream's queue.
    pub(super) fn run_head(&mut self, slot: u32) -> Ran {
        let stream = &mut self.streams[slot as usize];
        let maker = stream.gpu;
        let Some(op) = stream.queue.pop_front() else { return Ran::Done };
        let is_lost = self.gpus[maker].as_ref().is_some_and(|gpu| gpu.lost.is_some());
        let Op { stamp, gpu, number, work } = op;
        let (name, address, bytes) = describe(&work);
        let (step, key) = {
            let gpu = self.gpu(gpu);
            gpu.report.steps += 1;
            gpu.report.time_ns += OPERATION_NS + bytes / BYTES_PER_NS;
            let letters = xxhash_rust::xxh3::xxh3_64(name.as_bytes());
            gpu.trace([letters, number.into(), gpu.space.offset(address), bytes]);
            (gpu.report.steps, gpu.key)
        };
        let actor = Actor::new((gpu, key), stamp, number, step, name);
        match work {
            // Waits and frees also happen on a lost device: nobody may hang, and memory has to come back.
            Work::Wait(_) | Work::Allocate(_) => {}
            Work::Free(start) => self.finish_free(&actor, start),
            Work::Copy { target, bytes, is_target_pinned: true, .. } if is_lost => {
                self.values.end_device_write(target, bytes);
            }
            Work::Call(callback) if is_lost => {
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world::as_worker(|| drop(callback)))) {
                    self.lose(maker, panic);
                }
            }
            _ if is_lost => {}
            Work::Call(callback) => return self.call(slot, maker, callback),
            Work::Copy { target, source, bytes, hash, is_target_pinned } => {
                self.run_copy(&actor, (target, source, bytes), hash);
                if is_target_pinned {
                    self.values.end_device_write(target, bytes);
                }
            }
            Work::Fill { target, bytes, value } => self.fill(&actor, (target, bytes), value),
            Work::Launch(launch) => self.run_launch(&actor, maker, &launch),
            Work::Declared(ranges) => ranges.iter().for_each(|range| self.run_declared(&actor, range)),
        }
        self.streams[slot as usize].completed += 1;
        Ran::Done
    }

    fn call(&mut self, slot: u32, maker: usize, callback: Box<dyn FnOnce() + Send>) -> Ran {
        self.streams[slot as usize].is_busy = true;
        let body = move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| world::as_worker(callback)));
            let mut world = world::lock();
            if let Err(panic) = outcome {
                world.lose(maker, panic);
            }
            world.end_call(slot);
        };
        // Its own thread, because a callback may wait for what the calling thread does next.
        let thread = std::thread::Builder::new().name("kavern-sim".to_owned()).spawn(body);
        if let Err(error) = thread {
            self.lose(maker, Box::new(format!("starting a callback's thread: {error}")));
            self.end_call(slot);
        }
        Ran::Calling
    }

    fn fill(&mut self, actor: &Actor, range: (u64, u64), value: u8) {
        if let Some(real) = self.access(actor, range, true) {
            // SAFETY: a live piece of memory holds the whole range, and the world's lock is held.
            unsafe { std::ptr::write_bytes(real as *mut u8, value, range.1 as usize) };
        }
    }

    fn run_copy(&mut self, actor: &Actor, (target, source, bytes): (u64, u64, u64), hash: Option<u64>) {
        let from = self.access(actor, (source, bytes), false);
        let to = self.access(actor, (target, bytes), true);
        if let (Some(_), Some(hash)) = (from, hash) {
            let who = party(&actor.access);
            // SAFETY: the pinned memory is live, and its watches are forgotten when it is freed.
            unsafe { self.read_pinned(actor.gpu, &actor.stamp, who, (source, bytes), hash) };
        }
        match (from, to) {
            (Some(from), Some(to)) => {
                // SAFETY: live pieces of memory hold both ranges; `copy` allows them to overlap.
                unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes as usize) };
            }
            // SAFETY: as above, for the target.
            (None, Some(to)) => unsafe { std::ptr::write_bytes(to as *mut u8, POISON, bytes as usize) },
            _ => {}
        }
    }

    fn run_declared(&mut self, actor: &Actor, range: &Declared) {
        let Some(real) = self.access(actor, (range.address, range.bytes), range.is_write) else { return };
        let Some(mark) = range.mark.filter(|_| range.bytes >= MARK_BYTES) else { return };
        let words = [mark, range.address];
        let real = real as *mut [u64; 2];
        if range.is_write {
            // SAFETY: a live piece of memory holds the range, which is long enough.
            unsafe { real.write_unaligned(words) };
            return;
        }
        // SAFETY: as above.
        if unsafe { real.read_unaligned() } != words {
            let who = party(&actor.access);
            self.gpu(actor.gpu).find(FindingKind::WrongValue, who, None, (range.address, range.bytes));
        }
    }

    fn run_launch(&mut self, actor: &Actor, maker: usize, launch: &LaunchWork) {
        let mut args = [Arg::U64(0); Launch::ARGS_MAX];
        let mut is_whole = true;
        for (place, arg) in args.iter_mut().zip(&launch.args) {
            *place = match arg {
                Arg::U64(_) => *arg,
                Arg::Read(slice) | Arg::Write(slice) if slice.bytes() == 0 => {
                    // No byte is touched; an address with every alignment.
                    let empty = DeviceSlice::new(slice.device(), ALIGNMENT, 0);
                    if matches!(arg, Arg::Read(_)) { Arg::Read(empty) } else { Arg::Write(empty) }
                }
                Arg::Read(slice) | Arg::Write(slice) => {
                    let range = (slice.address(), slice.bytes());
                    let Some(real) = self.place(actor, range) else {
                        is_whole = false;
                        continue;
                    };
                    let slice = DeviceSlice::new(slice.device(), real, slice.bytes());
                    if matches!(arg, Arg::Read(_)) { Arg::Read(slice) } else { Arg::Write(slice) }
                }
            };
        }
        let touches = RefCell::new(std::mem::take(&mut self.touches));
        touches.borrow_mut().clear();
        if is_whole {
            let args = &args[..launch.args.len()];
            // SAFETY: live pieces of memory hold all ranges, the world's lock keeps them, and the launch was checked.
            let mut cpu = unsafe { CpuArgs::watched(args, launch.grid, launch.block, &touches) };
            let run = AssertUnwindSafe(|| world::as_worker(|| (launch.kernel.cpu)(&mut cpu)));
            if let Err(panic) = catch_unwind(run) {
                self.lose(maker, panic);
            }
        }
        self.touches = touches.into_inner();
        for (index, arg) in launch.args.iter().enumerate() {
            if let Arg::Read(slice) | Arg::Write(slice) = arg {
                self.note_argument(actor, index, slice, matches!(arg, Arg::Write(_)), is_whole);
            }
        }
    }

    /// Notes the parts of an argument that the kernel has named, or all of it.
    fn note_argument(
        &mut self,
        actor: &Actor,
        index: usize,
        slice: &DeviceSlice,
        is_write: bool,
        has_run: bool,
    ) {
        let touches = std::mem::take(&mut self.touches);
        let mut is_named = false;
        for touch in touches.iter().filter(|touch| touch.index == index) {
            is_named = true;
            if let Ok(part) = slice.part(touch.offset, touch.bytes)
                && part.bytes() > 0
                && self.allow(actor, (part.address(), part.bytes()), is_write)
            {
                self.note(actor, (part.address(), part.bytes()), is_write);
            }
        }
        self.touches = touches;
        let range = (slice.address(), slice.bytes());
        if !has_run && is_write {
            self.poison(range);
        } else if has_run && !is_named && range.1 > 0 && self.allow(actor, range, is_write) {
            self.note(actor, range, is_write);
        }
    }

    /// What a kernel that could not run would have written holds nothing of use.
    fn poison(&mut self, (address, bytes): (u64, u64)) {
        if let Some((start, region)) = self.regions.around(address, bytes)
            && let Some(real) = region.real(start)
        {
            let first = (real + (address - start)) as *mut u8;
            // SAFETY: a live piece of memory holds the whole range.
            unsafe { std::ptr::write_bytes(first, POISON, bytes as usize) };
        }
    }
}

/// Name, first address and length of the work, for the trace.
fn describe(work: &Work) -> (&'static str, u64, u64) {
    match work {
        Work::Copy { target, bytes, .. } => ("copy", *target, *bytes),
        Work::Fill { target, bytes, .. } => ("memset", *target, *bytes),
        Work::Launch(launch) => (launch.kernel.name, 0, launch.grid.into()),
        Work::Declared(ranges) => {
            ranges.first().map_or(("sim_launch", 0, 0), |range| ("sim_launch", range.address, range.bytes))
        }
        Work::Wait(_) => ("wait", 0, 0),
        Work::Call(_) => ("callback", 0, 0),
        Work::Allocate(start) => ("memory_allocate_async", *start, 0),
        Work::Free(start) => ("memory_free_async", *start, 0),
    }
}

/// The touches of a launch; kept between launches for its room.
pub(super) type Touches = Vec<Touch>;
