//! Simulated devices: streams in an order that a seed chooses, and a search for everything that has no order.
//!
//! What it does: all that the host device does, but nothing runs before somebody waits or asks; which stream runs then
//! is picked from a seed. Vector clocks find accesses without an order, whatever order ran; bytes are checked too. One
//! seed and the same calls give one trace. What it does not: take time, or use threads, but for callbacks.
//!
//! Choices: the default stream is a stream like any other and waits for nobody, so a program that is right here is
//! right under CUDA's legacy default stream too. Threads of the host count as ordered by the order of their calls,
//! because their own locks cannot be seen; `threads=separate` takes them to be unordered. What is written to a mapped
//! page is looked for at each of its addresses.
//!
//! `world` has the devices and the lock, `run` does the work, `judge` finds what is wrong with it, `calls` and
//! `calls_memory` implement the trait, `capture` says what they refuse beside a capture.

mod calls;
mod calls_memory;
mod capture;
mod clock;
mod gpu;
mod judge;
mod memory;
mod report;
mod run;
mod schedule;
mod shadow;
mod value;
mod world;

use std::sync::Arc;

pub use report::{Finding, FindingKind, Party, Report};

use self::gpu::{Entry, Gpu};
use self::memory::Space;
use self::schedule::Schedule;
use self::world::Guard;
use super::registry::Spec;
use super::{Capabilities, Description, Device, DeviceKey, DeviceSlice, Stream};
use crate::error::{Error, Result, Status};
use crate::event::EventSink;
use crate::sys::{fork, shm};

/// Devices of this backend, as many as the host has.
const COUNT: u32 = 8;

/// As the host device's.
const PAGE_BYTES: u64 = 64 << 10;

/// What may follow the question mark in the spec.
pub(super) const PARAMS: &[&str] = &["memory_bytes", "page_bytes", "seed", "schedule", "threads", "capture"];

/// How many there are.
pub(super) fn count() -> Result<u32> {
    Ok(COUNT)
}

/// What `open` would open.
pub(super) fn describe(spec: &Spec) -> Result<Description> {
    let total_bytes = spec.number("memory_bytes")?.unwrap_or_else(shm::physical_bytes);
    let page_bytes = spec.number("page_bytes")?.unwrap_or(PAGE_BYTES);
    if !page_bytes.is_power_of_two() || page_bytes < shm::os_page_bytes() || page_bytes > 1 << 30 {
        return Err(Error::argument(format!(
            "page_bytes={page_bytes} is no power of two from {} to 1 GiB",
            shm::os_page_bytes()
        )));
    }
    Ok(Description {
        name: if spec.ordinal == 0 { "sim".to_owned() } else { format!("sim:{}", spec.ordinal) },
        model: "simulated streams on the CPU".to_owned(),
        backend: "sim",
        ordinal: spec.ordinal,
        total_bytes,
        page_bytes,
        capabilities: Capabilities {
            virtual_memory: true,
            stream_ordered: true,
            host_addressable: false,
            capture: spec.number("capture")?.is_some_and(|value| value != 0),
            race_detection: true,
            managed_memory: true,
        },
    })
}

/// Opens one instance.
pub(super) fn open(spec: &Spec, _sink: Arc<dyn EventSink>) -> Result<Arc<dyn Device>> {
    fork::install()?;
    fork::check()?;
    if world::is_worker() {
        return Err(Error::new(Status::WrongState, "a callback or kernel may not open a device"));
    }
    let description = describe(spec)?;
    let schedule = Schedule::of(spec)?;
    let has_separate_threads = match spec.text("threads") {
        None | Some("ordered") => false,
        Some("separate") => true,
        Some(other) => {
            return Err(Error::argument(format!("threads={other} is unknown; known are ordered, separate")));
        }
    };
    let key = DeviceKey::fresh();
    let mut world = world::lock();
    let index = world.gpus.iter().position(Option::is_none).unwrap_or_else(|| {
        world.gpus.push(None);
        world.gpus.len() - 1
    });
    let sizes = (description.total_bytes, description.page_bytes);
    let mut gpu = Gpu::new(key, description.ordinal, schedule, Space::new(index), sizes);
    gpu.has_separate_threads = has_separate_threads;
    world.gpus[index] = Some(Box::new(gpu));
    world.make_stream(index);
    Ok(Arc::new(Sim { index, key, description }))
}

struct Sim {
    /// Where it is in the world.
    index: usize,
    key: DeviceKey,
    description: Description,
}

impl Sim {
    /// What holds for every call: the process is the one that opened, the thread may call, the device is not lost.
    fn ready(&self) -> Result<Guard> {
        fork::check()?;
        if world::is_worker() {
            return Err(Error::new(Status::WrongState, "a callback or kernel may not call the device"));
        }
        let mut world = world::lock();
        self.check_lost(&mut world)?;
        Ok(world)
    }

    fn check_lost(&self, world: &mut Guard) -> Result<()> {
        lost(world.gpu(self.index))
    }

    /// A stream of this device. One that is not known is a finding, because a driver may crash on it.
    fn stream(&self, world: &mut Guard, stream: Stream) -> Result<Entry> {
        let gpu = world.gpu(self.index);
        let Some(entry) = gpu.stream(stream.0) else {
            let who = Party { stream: None, name: "stream", step: 0 };
            gpu.find(FindingKind::StaleHandle, who, None, (0, 0));
            return Err(Error::argument(format!(
                "stream {} is destroyed or unknown to this device",
                stream.0
            )));
        };
        if entry.is_wrapped {
            // A panic on it has lost the instance that made it; both are the same device.
            let maker = world.streams[entry.slot as usize].gpu;
            lost(world.gpu(maker))?;
        }
        Ok(entry)
    }

    /// Refuses memory of a device that was not made reachable.
    fn reach(&self, world: &mut Guard, slice: &DeviceSlice) -> Result<()> {
        if slice.device() == self.key || world.gpu(self.index).peers.contains(&slice.device()) {
            return Ok(());
        }
        Err(Error::argument("the memory is of another device; enable it as a peer first"))
    }

    /// Refuses memory of another device, also of a peer: only its maker frees it.
    fn own(&self, slice: &DeviceSlice) -> Result<()> {
        if slice.device() == self.key {
            return Ok(());
        }
        Err(Error::argument("the memory is of another device; free it there"))
    }
}

fn lost(gpu: &Gpu) -> Result<()> {
    match &gpu.lost {
        None => Ok(()),
        Some(why) => Err(Error::new(Status::DeviceLost, format!("the device is lost: {why}; open it again"))),
    }
}

/// The world for questions that a lost device answers too.
fn world_of_this_process() -> Result<Guard> {
    fork::check()?;
    if world::is_worker() {
        let text = "a callback or kernel may not call the device";
        return Err(Error::new(Status::WrongState, text));
    }
    Ok(world::lock())
}

impl Drop for Sim {
    fn drop(&mut self) {
        // In a child the lock may be held by a thread that does not exist there; in a callback, waiting could be
        // waiting for oneself. Both leave the device where it is.
        if fork::is_forked_child() || world::is_worker() {
            return;
        }
        let mut world = world::lock();
        world::drain(&mut world, self.index);
        let streams = world.gpu(self.index).streams.clone();
        for entry in streams.iter().filter(|entry| !entry.is_wrapped) {
            world.remove_stream(entry.value);
        }
        world.values.forget_gpu(self.index);
        for range in world.regions.close(self.index) {
            world.values.forget_watches(range);
            world.values.forget_marks(range.0, range.1 - range.0);
        }
        world.gpus[self.index] = None;
    }
}
