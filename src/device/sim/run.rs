//! The work itself: real bytes are moved, kernels run, each access is told to the judge.
//!
//! What it does not: choose what runs (`world`), or judge it (`judge`). Invariant: bytes are touched only where
//! `judge` has given a place, and only under the world's lock.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::clock::Stamp;
use super::judge::{Actor, party};
use super::memory::{ALIGNMENT, POISON};
use super::report::FindingKind;
use super::value::MARK_BYTES;
use super::world::{self, Op, World};
use crate::device::kernel::Touch;
use crate::device::{Arg, CpuArgs, DeviceSlice, Kernel, Launch};

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

    /// Runs the first work of a stream's queue.
    pub(super) fn run_head(&mut self, slot: u32) -> Ran {
        let stream = &mut self.streams[slot as usize];
        let maker = stream.gpu;
        let Some(op) = stream.queue.pop_front() else { return Ran::Done };
        let is_lost = self.gpus[maker].as_ref().is_some_and(|gpu| gpu.lost.is_some());
        let Op { stamp, gpu, number, serial, work } = op;
        let (name, address, bytes) = describe(&work);
        let (step, key) = {
            let gpu = self.gpu(gpu);
            gpu.report.steps += 1;
            gpu.report.time_ns += OPERATION_NS + bytes / BYTES_PER_NS;
            let letters = xxhash_rust::xxh3::xxh3_64(name.as_bytes());
            gpu.trace([letters, number.into(), gpu.space.offset(address), bytes]);
            (gpu.report.steps, gpu.key)
        };
        let actor = Actor::new((gpu, key), stamp, (number, serial, step), name);
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
            let is_write = is_write && !touch.is_read;
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
