//! The narrow door to devices: one trait, checked slices, kernels with a CPU reference.
//!
//! What it does: streams, events, device memory (direct, stream-ordered, virtual), pinned host memory, copies, kernel
//! launches. What it does not: pooling, accounting, policy; those live in `memory`.
//!
//! Rules for every backend, played by `tests/contracts.rs`:
//! - A call enqueues and returns, unless its doc says that it blocks.
//! - Work on one stream runs in order; streams are ordered only by events and synchronisation.
//! - A failed call changes nothing. Release calls (free, destroy, unmap, release) do not fail for lack of resources.
//! - An asynchronous failure latches the device as lost; every later call answers `DeviceLost`.
//! - Waiting on an event that was never recorded does not wait.
//! - A wait for the whole device, also in a free or in the close, leaves captures of graphs whole, of any stream.
//!
//! [`DeviceSlice`] is the only way to name device memory above this room. A backend hands out slices of what it
//! allocated; [`DeviceSlice::from_foreign`] is the one unsafe constructor, for memory that the engine owns. Copies
//! and launches take slices, so a wrong length is an error and not a fault. A slice is a name, not an owner: whoever
//! holds one past the free of its memory, or past an unmap, breaks the contract; owners live in `memory`.
//!
//! Source of the shape: the device doors of mimalloc (`prim.h`), ggml (backend tables) and RMM (stream-ordered verbs).

mod fault;
mod host;
mod kernel;
mod owned;
mod region;
pub mod registry;
mod sim;
mod slice;

#[cfg(feature = "cuda")]
mod cuda;

pub use kernel::{Arg, CpuArgs, CpuReads, Kernel, Launch, Plain};
pub use owned::OwnedEvent;
pub use region::{HostRange, PinnedRegion, Registration};
pub use sim::{Finding, FindingKind, Party, Report};
pub use slice::{DeviceKey, DeviceSlice, PinnedBuffer, PinnedSlice};

use crate::error::{Error, Result, Status};

/// A stream of one device, by the backend's own value; 0 is the device's default stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream(pub u64);

impl Stream {
    /// The device's default stream.
    pub const DEFAULT: Self = Self(0);
}

/// An event of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event(pub u64);

/// A physical page of one device, made by [`Device::page_create`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Page(pub u64);

/// What may be done to a mapped range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Any access faults.
    None,
    /// Reads only.
    Read,
    /// Reads and writes.
    ReadWrite,
}

/// One end of a copy.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// Memory of a device.
    Device(DeviceSlice),
    /// Pinned host memory.
    Pinned(PinnedSlice),
}

impl Place {
    /// Length of the range.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Device(slice) => slice.bytes(),
            Self::Pinned(slice) => slice.bytes(),
        }
    }
}

/// A copy of `source` to `target`; both have the same length.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    /// Written.
    pub target: Place,
    /// Read.
    pub source: Place,
}

/// What a device is, fixed at open.
#[derive(Clone, Debug)]
pub struct Description {
    /// The string that opens it: "host", "host:1", "cuda:0".
    pub name: String,
    /// The model name for people.
    pub model: String,
    /// Name of the backend: "host", "cuda".
    pub backend: &'static str,
    /// Which device of the backend.
    pub ordinal: u32,
    /// Physical memory.
    pub total_bytes: u64,
    /// Size and alignment of the smallest mapping of virtual memory.
    pub page_bytes: u64,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// What a device can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Reserve, map and remap addresses.
    pub virtual_memory: bool,
    /// Allocate and free in stream order.
    pub stream_ordered: bool,
    /// The host may read and write device addresses.
    pub host_addressable: bool,
    /// Streams can be captured into graphs.
    pub capture: bool,
    /// The backend reports races between streams.
    pub race_detection: bool,
    /// Memory that the host and the device may touch at the same time, under one address.
    pub managed_memory: bool,
}

/// Memory of a device at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Not allocated by anybody.
    pub free_bytes: u64,
    /// Physical memory.
    pub total_bytes: u64,
}

/// Numbers that a device can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// Size of the smallest mapping.
    PageBytes,
    /// Alignment of every allocation.
    AllocationAlignment,
    /// Multiprocessors, or cores of the host.
    MultiprocessorCount,
    /// Major number of the compute capability; 0 on the host.
    ComputeMajor,
    /// Minor number of the compute capability.
    ComputeMinor,
    /// Copy batches that went to the driver in one call.
    CopyBatchesJoined,
    /// The NUMA node of the host that is nearest; an Unsupported answer where there is none.
    HostNode,
    /// Copy batches that went to the driver copy by copy: an old driver, the default stream, a capture.
    CopyBatchesLooped,
}

/// What only a simulated device can do; see [`Device::simulator`].
pub trait Simulator {
    /// Enqueues an operation that reads and writes these ranges and does nothing else: it stands for a kernel of the
    /// engine's. A written range of 16 bytes or more gets a mark in its first bytes, which a later read of the same
    /// range looks for.
    fn declare(&self, stream: Stream, reads: &[DeviceSlice], writes: &[DeviceSlice]) -> Result<()>;
    /// Picks from here on from another seed; what was found so far stays.
    fn reseed(&self, seed: u64) -> Result<()>;
    /// Begins or ends a capture of a stream, of a device that was opened with `capture=1`. Nothing is recorded; what
    /// may not be done beside a capture is refused and breaks it, as its end then says.
    fn capture(&self, stream: Stream, is_on: bool) -> Result<()>;
    /// What was found and done so far.
    fn report(&self) -> Result<Report>;
}

/// A device. Thread-safe; one instance per open.
///
/// No method has a default body: a wrapper that forgets one does not compile.
pub trait Device: Send + Sync {
    /// What the device is.
    fn description(&self) -> &Description;
    /// Tells slices of this instance from those of others.
    fn key(&self) -> DeviceKey;
    /// Free and total memory now.
    fn memory_info(&self) -> Result<MemoryInfo>;
    /// A number about the device.
    fn attribute(&self, attribute: Attribute) -> Result<u64>;
    /// How many fallible calls a fault wrapper has counted; 0 without one.
    fn call_count(&self) -> u64;
    /// How many races between streams the backend has found; 0 where it does not look.
    fn race_count(&self) -> u64;
    /// The door to what only a simulator can do; None elsewhere.
    fn simulator(&self) -> Option<&dyn Simulator>;
    /// Waits for all work on all streams. Blocks; calls of other threads may have to wait too while streams work that
    /// this instance does not know.
    fn synchronize(&self) -> Result<()>;

    /// Makes a stream.
    fn stream_create(&self) -> Result<Stream>;
    /// Takes a stream that somebody else made for the same device, by its raw value; taking it again, or a stream of
    /// this instance, gives the same stream. 0 is the default stream.
    fn stream_wrap(&self, raw: u64) -> Result<Stream>;
    /// Waits for the stream's work, then forgets it; a wrapped stream is only forgotten. Blocks.
    fn stream_destroy(&self, stream: Stream) -> Result<()>;
    /// Waits for the stream's work. Blocks.
    fn stream_synchronize(&self, stream: Stream) -> Result<()>;
    /// Whether the stream has no work left.
    fn stream_is_idle(&self, stream: Stream) -> Result<bool>;
    /// Makes later work on `stream` wait for `event`.
    fn stream_wait_event(&self, stream: Stream, event: Event) -> Result<()>;
    /// Whether the stream is being captured into a graph.
    fn stream_is_capturing(&self, stream: Stream) -> Result<bool>;
    /// Whether an event can be recorded on the stream and asked for, and the stream be made to wait for one, outside of
    /// any graph: not while it is captured, and not on a default stream that a captured stream is in order with. To ask
    /// breaks no capture.
    fn stream_takes_events(&self, stream: Stream) -> Result<bool>;
    /// Runs `callback` on a thread of the backend when the stream gets there; it may not call the device.
    /// On a lost device it is dropped without having run.
    fn stream_callback(&self, stream: Stream, callback: Box<dyn FnOnce() + Send>) -> Result<()>;

    /// Makes an event that was never recorded.
    fn event_create(&self) -> Result<Event>;
    /// Marks this point of the stream; recording again moves the mark.
    fn event_record(&self, event: Event, stream: Stream) -> Result<()>;
    /// Whether the latest mark was reached; true if there is none.
    fn event_is_done(&self, event: Event) -> Result<bool>;
    /// Waits for the latest mark. Blocks.
    fn event_synchronize(&self, event: Event) -> Result<()>;
    /// Forgets the event.
    fn event_destroy(&self, event: Event) -> Result<()>;

    /// Device memory of at least this size, aligned to [`Attribute::AllocationAlignment`]. May block.
    fn memory_allocate(&self, bytes: u64) -> Result<DeviceSlice>;
    /// Gives back what either way of allocating returned. Waits for work in flight on this device; work of peers on the
    /// memory is the caller's to wait for. Blocks as [`Device::synchronize`] does.
    fn memory_free(&self, slice: DeviceSlice) -> Result<()>;
    /// Memory usable by work that follows on the stream.
    fn memory_allocate_async(&self, bytes: u64, stream: Stream) -> Result<DeviceSlice>;
    /// Gives back what [`Device::memory_allocate_async`] returned when the stream gets there.
    fn memory_free_async(&self, slice: DeviceSlice, stream: Stream) -> Result<()>;
    /// Memory that the host reaches too, under the address of the slice; never more than is free on the device. Given
    /// back by [`Device::memory_free`]. Who touches it when is ordered by streams and synchronisation, as for pinned
    /// memory. Unsupported where the capability says so. May block.
    fn managed_allocate(&self, bytes: u64) -> Result<DeviceSlice>;

    /// Reserves addresses without memory behind them; access faults.
    fn virtual_reserve(&self, bytes: u64) -> Result<DeviceSlice>;
    /// Gives the addresses back; nothing may be mapped in them.
    fn virtual_release(&self, range: DeviceSlice) -> Result<()>;
    /// Makes a physical page, a multiple of the page size.
    fn page_create(&self, bytes: u64) -> Result<Page>;
    /// Gives a page back; it lives on while it is mapped.
    fn page_release(&self, page: Page) -> Result<()>;
    /// Puts a page behind addresses that have none; a page may be mapped at several addresses. No access yet.
    fn virtual_map(&self, target: DeviceSlice, page: Page) -> Result<()>;
    /// Sets what may be done to mapped addresses; covers whole mappings.
    fn virtual_set_access(&self, range: DeviceSlice, access: Access) -> Result<()>;
    /// Takes the pages away from behind the addresses; covers whole mappings. Does not wait: the caller knows that no
    /// work in flight touches them.
    fn virtual_unmap(&self, range: DeviceSlice) -> Result<()>;

    /// Page-locked host memory, zeroed. May block.
    fn pinned_allocate(&self, bytes: u64) -> Result<PinnedSlice>;
    /// Gives pinned memory back. Waits for work in flight, as [`Device::memory_free`].
    fn pinned_free(&self, slice: PinnedSlice) -> Result<()>;
    /// Page-locks memory of the caller's.
    ///
    /// # Safety
    /// The range must be valid for reads and writes until [`Device::pinned_unregister`].
    unsafe fn pinned_register(&self, address: usize, bytes: u64) -> Result<PinnedSlice>;
    /// Undoes [`Device::pinned_register`]. Waits for work in flight, as [`Device::memory_free`].
    fn pinned_unregister(&self, slice: PinnedSlice) -> Result<()>;

    /// Copies host bytes to the device, after the work of the default stream. Blocks until they are there.
    fn write(&self, target: DeviceSlice, source: &[u8]) -> Result<()>;
    /// Copies device bytes to the host, after the work of the default stream. Blocks until they are there.
    fn read(&self, source: DeviceSlice, target: &mut [u8]) -> Result<()>;
    /// Enqueues one copy.
    fn copy(&self, stream: Stream, copy: Copy) -> Result<()>;
    /// Enqueues copies whose targets do not overlap (an error); their order among each other is free. All are checked
    /// first.
    fn copy_batch(&self, stream: Stream, copies: &[Copy]) -> Result<()>;
    /// Enqueues the filling of a range with one byte.
    fn memset(&self, stream: Stream, target: DeviceSlice, value: u8) -> Result<()>;

    /// Loads kernels so that a later launch does not; launching an unloaded kernel is an error.
    fn module_load(&self, kernels: &[&'static Kernel]) -> Result<()>;
    /// Enqueues a kernel. All arguments are checked first.
    fn launch(&self, stream: Stream, launch: &Launch<'_>) -> Result<()>;

    /// Whether this device can reach memory of the other.
    fn peer_is_reachable(&self, other: DeviceKey) -> Result<bool>;
    /// Lets copies and kernels of this device reach memory of the other. Idempotent.
    fn peer_enable(&self, other: DeviceKey) -> Result<()>;
}

/// Refuses a stream on which no event can be had that can be asked for, because a graph is being captured there, or on
/// one that the default stream waits for. `advice`: what to do instead.
pub fn check_outside(device: &dyn Device, stream: Stream, advice: &str) -> Result<()> {
    if !device.stream_takes_events(stream)? {
        let text = format!(
            "the stream is being captured, or waits for one that is, and a graph cannot be asked how far it is; \
             {advice}"
        );
        return Err(Error::new(Status::WrongState, text));
    }
    Ok(())
}
