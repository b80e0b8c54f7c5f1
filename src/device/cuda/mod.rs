//! NVIDIA GPUs through their driver.
//!
//! What it does: everything the trait asks, on the primary context, which the engine's runtime uses too. `calls.rs`
//! implements the trait over the parts made here. What it does not: link anything of CUDA; the driver is looked for
//! when the backend is first asked.
//!
//! Invariants: without a driver, or with one that lacks a function, every call answers an error; nothing panics and
//! nothing is printed. After an error that ends the context every call answers that the device is lost, no further
//! driver call is made, and pinned memory stays readable. Closing gives back whatever the instance still has.
//! Lock order: `virtual_memory`, then the driver; every other table alone.

mod calls;
mod codes;
mod context;
mod copy;
mod driver;
mod kernel;
mod memory;
mod peer;
mod stream;
mod vmm;

use std::sync::Arc;

use self::context::Context;
use self::copy::Copies;
use self::driver::{Driver, Facts};
use self::kernel::Kernels;
use self::memory::{Blocks, Pinned};
use self::peer::Peers;
use self::stream::{Events, Streams};
use self::vmm::VirtualMemory;
use super::registry::Spec;
use super::{Capabilities, Description, Device, DeviceKey};
use crate::error::{Error, Result, Status};
use crate::event::{EventSink, Level};
use crate::sync::Mutex;
use crate::sys::fork;

/// What may follow the question mark in the spec.
pub(super) const PARAMS: &[&str] = &[];

/// Size of the smallest mapping that drivers report on all current GPUs; taken where the driver does not say.
const PAGE_BYTES: u64 = 2 << 20;

/// How many GPUs the driver shows; 0 without a driver. A driver that is there but broken is an error, not a 0.
pub(super) fn count() -> Result<u32> {
    match driver::probe() {
        Ok(driver) => driver.count(),
        Err(error) if error.status == Status::NoDevice => Ok(0),
        Err(error) => Err(error),
    }
}

/// What a GPU is.
pub(super) fn describe(spec: &Spec) -> Result<Description> {
    fork::check()?;
    look(spec.ordinal).map(|(_, _, description)| description)
}

fn look(ordinal: u32) -> Result<(&'static Driver, Facts, Description)> {
    let driver = driver::probe()?;
    if driver.count()? == 0 {
        return Err(Error::new(Status::NoDevice, "the CUDA driver is there, but it shows no GPU"));
    }
    let facts = driver.facts(ordinal)?;
    let page_bytes = match facts.has_virtual_memory {
        true => vmm::granularity(driver, facts.device).unwrap_or(PAGE_BYTES),
        false => PAGE_BYTES,
    };
    let description = Description {
        name: format!("cuda:{ordinal}"),
        model: format!("{} (compute {}.{})", facts.name, facts.compute.0, facts.compute.1),
        backend: "cuda",
        ordinal,
        total_bytes: facts.total_bytes,
        page_bytes,
        capabilities: Capabilities {
            virtual_memory: facts.has_virtual_memory,
            stream_ordered: facts.has_pools,
            host_addressable: false,
            capture: true,
            race_detection: false,
            managed_memory: facts.has_managed && driver.managed.is_some(),
        },
    };
    Ok((driver, facts, description))
}

/// Opens one instance; its news goes to `sink`.
pub(super) fn open(spec: &Spec, sink: Arc<dyn EventSink>) -> Result<Arc<dyn Device>> {
    fork::install()?;
    fork::check()?;
    let (driver, facts, description) = look(spec.ordinal)?;
    let context = Context::open(driver, facts.device, spec.ordinal, sink)?;
    drop(context.enter()?);
    if driver.batch.is_none() {
        context.say(Level::Info, || {
            "the driver has no batch copy, which came with CUDA 12.8; batches go copy by copy".to_owned()
        });
    }
    let key = DeviceKey::fresh();
    let cuda = Arc::new(Cuda {
        key,
        compute: facts.compute,
        multiprocessors: facts.multiprocessors.max(0) as u32,
        host_node: facts.host_node,
        streams: Streams::new(Arc::clone(&context)),
        events: Events::new(Arc::clone(&context)),
        blocks: Blocks::default(),
        pinned: Pinned::default(),
        virtual_memory: Mutex::new(VirtualMemory::new(key, facts.device, description.page_bytes)),
        kernels: Kernels::default(),
        peers: Peers::default(),
        copies: Copies::default(),
        description,
        context,
    });
    peer::add(&cuda);
    Ok(cuda)
}

struct Cuda {
    description: Description,
    key: DeviceKey,
    compute: (i32, i32),
    multiprocessors: u32,
    host_node: Option<u32>,
    context: Arc<Context>,
    streams: Streams,
    events: Events,
    blocks: Blocks,
    pinned: Pinned,
    virtual_memory: Mutex<VirtualMemory>,
    kernels: Kernels,
    peers: Peers,
    copies: Copies,
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if fork::is_forked_child() {
            // The driver and whoever held a lock are in the parent: touch nothing.
            return;
        }
        peer::forget(self.key);
        let context = Arc::clone(&self.context);
        // A lost device, or one that is dropped inside a callback against the rules, keeps what it has.
        let Ok(entered) = context.enter_relaxed() else { return };
        self.settle();
        if let Err(error) = entered.outlast() {
            context.say(Level::Error, || format!("closing {}: {error}", self.description.name));
            return;
        }
        self.streams.clear();
        self.events.clear();
        self.blocks.clear(&entered);
        self.virtual_memory.get_mut().clear(&entered);
        self.pinned.clear(&entered);
        self.kernels.clear(&entered);
    }
}
