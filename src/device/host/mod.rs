//! The CPU as a device: real streams, real events, real memory that can be mapped and remapped.
//!
//! What it does: everything the trait asks, on threads and mappings of this process; a kernel is its CPU reference.
//! What it does not: speed of its own; it is the default where there is no GPU, and the truth the other backends are
//! held to.
//! `calls.rs` implements the trait over what is made here.
//!
//! Lock order: streams, then a stream's queue; every other table alone. No table is locked while a stream is waited
//! for.

mod calls;
mod directory;
mod event;
pub(in crate::device) mod memory;
mod stream;
pub(in crate::device) mod vmm;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::event::Events;
use self::memory::{Blocks, Physical, Pinned};
use self::stream::{Loss, Mark};
use self::vmm::VirtualMemory;
use super::registry::Spec;
use super::{Capabilities, Copy, Description, Device, DeviceKey, DeviceSlice, Place, Stream};
use crate::error::{Error, Result, Status};
use crate::event::EventSink;
use crate::sync::{Mutex, MutexGuard, RwLock};
use crate::sys::{fork, shm};

/// Devices of this backend: as many as a usual node has GPUs, so that sharding can be tried anywhere.
const COUNT: u32 = 8;

/// 64 KiB: small enough for real block sizes, large enough to stay far from the system's limit on mappings.
const PAGE_BYTES: u64 = 64 << 10;

/// What may follow the question mark in the spec.
pub(super) const PARAMS: &[&str] = &["memory_bytes", "page_bytes", "virtual", "managed"];

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
    let has = |key: &str, what: &str| match spec.number(key)?.unwrap_or(1) {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Error::argument(format!("{key}={other}; take 0 for a device {what}, or 1"))),
    };
    Ok(Description {
        name: if spec.ordinal == 0 { "host".to_owned() } else { format!("host:{}", spec.ordinal) },
        model: format!("CPU with {} threads", cores()),
        backend: "host",
        ordinal: spec.ordinal,
        total_bytes,
        page_bytes,
        capabilities: Capabilities {
            virtual_memory: has("virtual", "that cannot map memory")?,
            stream_ordered: true,
            host_addressable: true,
            capture: false,
            race_detection: false,
            managed_memory: has("managed", "without managed memory")?,
        },
    })
}

/// Opens one instance. It has no news: a loss is the answer of the next call.
pub(super) fn open(spec: &Spec, _sink: Arc<dyn EventSink>) -> Result<Arc<dyn Device>> {
    fork::install()?;
    fork::check()?;
    let description = describe(spec)?;
    let key = DeviceKey::fresh();
    let loss = Arc::new(Loss::default());
    let physical = Arc::new(Physical::new(description.total_bytes));
    let virtual_memory = VirtualMemory::new(key, description.page_bytes, Arc::clone(&physical));
    directory::add_device(key);
    Ok(Arc::new(Host {
        key,
        default_stream: directory::make_stream(description.ordinal, Arc::clone(&loss)),
        streams: RwLock::new(BTreeMap::new()),
        lingering: Mutex::new(Vec::new()),
        events: Events::default(),
        blocks: Arc::new(Blocks::new(Arc::clone(&physical))),
        pinned: Arc::new(Pinned::default()),
        virtual_memory: Arc::new(Mutex::new(virtual_memory)),
        kernels: RwLock::new(BTreeSet::new()),
        peers: RwLock::new(Vec::new()),
        scratch: Mutex::new(Vec::new()),
        description,
        loss,
        physical,
    }))
}

fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u64)
}

#[derive(Clone)]
struct Entry {
    stream: Arc<stream::Stream>,
    is_wrapped: bool,
}

struct Host {
    description: Description,
    key: DeviceKey,
    loss: Arc<Loss>,
    physical: Arc<Physical>,
    default_stream: Arc<stream::Stream>,
    streams: RwLock<BTreeMap<u64, Entry>>,
    /// Work of ours on streams of others that were forgotten before it was done.
    lingering: Mutex<Vec<Mark>>,
    events: Events,
    blocks: Arc<Blocks>,
    pinned: Arc<Pinned>,
    virtual_memory: Arc<Mutex<VirtualMemory>>,
    kernels: RwLock<BTreeSet<&'static str>>,
    peers: RwLock<Vec<DeviceKey>>,
    /// Room for the check of a batch, kept so that it does not allocate each time.
    scratch: Mutex<Vec<(u64, u64)>>,
}

impl Host {
    /// What holds for every call: the process is the one that opened, the thread may wait, the device is not lost.
    fn ready(&self) -> Result<()> {
        fork::check()?;
        if stream::is_worker() {
            return Err(Error::new(Status::WrongState, "a callback or kernel may not call the device"));
        }
        self.loss.check()
    }

    /// The mapped memory, where there is any.
    fn mapped(&self) -> Result<MutexGuard<'_, VirtualMemory>> {
        self.ready()?;
        if !self.description.capabilities.virtual_memory {
            return Err(Error::new(Status::Unsupported, "opened with virtual=0: it cannot map memory"));
        }
        Ok(self.virtual_memory.lock())
    }

    fn stream(&self, stream: Stream) -> Result<Arc<stream::Stream>> {
        if stream == Stream::DEFAULT {
            return Ok(Arc::clone(&self.default_stream));
        }
        let streams = self.streams.read();
        let Some(entry) = streams.get(&stream.0) else {
            return Err(Error::argument(format!(
                "stream {} is destroyed or unknown to this device",
                stream.0
            )));
        };
        if entry.is_wrapped {
            // A panic on it has lost the instance that made it; both are the same device.
            entry.stream.check()?;
        }
        Ok(Arc::clone(&entry.stream))
    }

    /// Waits for all work on all streams, also that of streams which were forgotten.
    fn drain(&self) {
        let mut marks = std::mem::take(&mut *self.lingering.lock());
        marks.push(self.default_stream.mark());
        marks.extend(self.streams.read().values().map(|entry| entry.stream.mark()));
        marks.iter().for_each(Mark::wait);
    }

    /// Refuses memory of a device that was not made reachable.
    fn reach(&self, slice: &DeviceSlice) -> Result<()> {
        if slice.device() == self.key || self.peers.read().contains(&slice.device()) {
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

    fn place(&self, place: &Place) -> Result<u64> {
        match place {
            Place::Device(slice) => self.reach(slice).map(|()| slice.address()),
            Place::Pinned(slice) => Ok(slice.address() as u64),
        }
    }

    fn check_copies(&self, copies: &[Copy]) -> Result<()> {
        for (index, copy) in copies.iter().enumerate() {
            let (target, source) = (copy.target.bytes(), copy.source.bytes());
            if target != source {
                return Err(Error::argument(format!(
                    "copy {index}: {source} bytes to a place of {target} bytes; they must be equal"
                )));
            }
            self.place(&copy.target)?;
            self.place(&copy.source)?;
        }
        if copies.len() > 1 {
            self.check_targets(copies)?;
        }
        Ok(())
    }

    fn check_targets(&self, copies: &[Copy]) -> Result<()> {
        let mut targets = self.scratch.lock();
        targets.clear();
        for copy in copies.iter().filter(|copy| copy.target.bytes() > 0) {
            let start = self.place(&copy.target)?;
            targets.push((start, start + copy.target.bytes()));
        }
        targets.sort_unstable();
        match targets.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            Some(pair) => Err(Error::argument(format!("two copies of a batch write to {:#x}", pair[1].0))),
            None => Ok(()),
        }
    }

    fn allocate(&self, bytes: u64, is_async: bool) -> Result<DeviceSlice> {
        match self.blocks.allocate(self.key, bytes, is_async) {
            Err(error) if error.status == Status::OutOfMemory && self.blocks.has_leaving() => {
                // Memory whose free waits in a stream is only a wait away.
                self.drain();
                self.blocks.allocate(self.key, bytes, is_async)
            }
            other => other,
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if fork::is_forked_child() {
            // The workers and whoever held a lock are in the parent, and page memory is shared with it: touch nothing.
            self.leak();
            return;
        }
        directory::forget_device(self.key);
        if stream::is_worker() {
            // Dropped inside a callback against the rules: waiting here could be waiting for oneself. The workers end
            // by themselves, the memory stays.
            self.leak();
            self.own_streams().iter().for_each(|stream| stream.close());
            return;
        }
        self.drain();
        let streams = self.own_streams();
        streams.iter().for_each(|stream| stream.close());
        streams.iter().for_each(|stream| stream.join());
    }
}

impl Host {
    fn own_streams(&self) -> Vec<Arc<stream::Stream>> {
        let mut streams = vec![Arc::clone(&self.default_stream)];
        let entries = self.streams.read();
        streams.extend(
            entries.values().filter(|entry| !entry.is_wrapped).map(|entry| Arc::clone(&entry.stream)),
        );
        drop(entries);
        streams.iter().for_each(|stream| directory::forget_stream(stream.value()));
        streams
    }

    fn leak(&self) {
        std::mem::forget(Arc::clone(&self.blocks));
        std::mem::forget(Arc::clone(&self.pinned));
        std::mem::forget(Arc::clone(&self.virtual_memory));
    }
}
