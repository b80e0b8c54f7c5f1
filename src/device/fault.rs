//! A wrapper over any backend that makes chosen calls fail, so that the rooms above can prove what they do then.
//!
//! Parameters of a spec: `fail_nth=N` fails the Nth counted call (from 1; 0 only counts), `fail_from=N` that one and
//! all later ones, `fail_rate=R` with `seed=S` a share of them, `kind=K` counts only one kind,
//! `error=oom|device|lost|panic` says how. What it does not: fail calls that give something back, because code that
//! frees has nobody to tell. `kind=unmap` alone does, for the removal of mappings, which no other kind counts. A failed
//! call never reaches the backend, so it changes nothing; but a wait for the device that fails has waited. Whether call
//! n fails depends on n and the seed alone.
//!
//! The trait has no default bodies, so a method that is forgotten here does not compile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::registry::Spec;
use super::{
    Access, Attribute, Copy, Description, Device, DeviceKey, DeviceSlice, Event, Kernel, Launch, MemoryInfo,
    Page, PinnedSlice, Simulator, Stream,
};
use crate::error::{Error, Result, Status};

/// What may follow the question mark in the spec of any backend.
pub(super) const PARAMS: &[&str] = &["fail_nth", "fail_from", "fail_rate", "seed", "kind", "error"];

const KINDS: &[(&str, Kind)] = &[
    ("memory", Kind::Memory),
    ("virtual", Kind::Virtual),
    ("page", Kind::Page),
    ("pinned", Kind::Pinned),
    ("stream", Kind::Stream),
    ("event", Kind::Event),
    ("copy", Kind::Copy),
    ("launch", Kind::Launch),
    ("module", Kind::Module),
    ("peer", Kind::Peer),
    ("unmap", Kind::Unmap),
];

const FAILURES: &[(&str, Failure)] =
    &[("oom", Failure::Oom), ("device", Failure::Device), ("lost", Failure::Lost), ("panic", Failure::Panic)];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Memory,
    Virtual,
    Page,
    Pinned,
    Stream,
    Event,
    Copy,
    Launch,
    Module,
    Peer,
    Unmap,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Failure {
    Oom,
    Device,
    Lost,
    Panic,
}

/// Which calls fail, and how.
pub(super) struct Plan {
    nth: u64,
    from: Option<u64>,
    /// A call fails when its hash is below this share of 2^64.
    threshold: u64,
    seed: u64,
    kind: Option<Kind>,
    failure: Option<Failure>,
}

fn choose<T: std::marker::Copy>(key: &str, value: Option<&str>, known: &[(&str, T)]) -> Result<Option<T>> {
    let Some(value) = value else { return Ok(None) };
    if let Some((_, found)) = known.iter().find(|(name, _)| *name == value) {
        return Ok(Some(*found));
    }
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    Err(Error::argument(format!("{key}={value} is unknown; known are {}", names.join(", "))))
}

impl Plan {
    /// The plan of a spec, if any parameter asks for one that is not among the backend's own.
    pub(super) fn of(spec: &Spec, own: &[&str]) -> Result<Option<Self>> {
        if PARAMS.iter().all(|key| own.contains(key) || spec.text(key).is_none()) {
            return Ok(None);
        }
        let from = spec.number("fail_from")?;
        if from == Some(0) {
            return Err(Error::argument("fail_from=0: calls are counted from 1"));
        }
        let threshold = match spec.text("fail_rate") {
            None => 0,
            Some(text) => match text.parse::<f64>() {
                Ok(rate) if (0.0..=1.0).contains(&rate) => (rate * u64::MAX as f64) as u64,
                _ => return Err(Error::argument(format!("fail_rate={text} is no number from 0 to 1"))),
            },
        };
        Ok(Some(Self {
            nth: spec.number("fail_nth")?.unwrap_or(0),
            from,
            threshold,
            seed: spec.number("seed")?.unwrap_or(0),
            kind: choose("kind", spec.text("kind"), KINDS)?,
            failure: choose("error", spec.text("error"), FAILURES)?,
        }))
    }

    fn strikes(&self, call: u64) -> bool {
        call == self.nth
            || self.from.is_some_and(|from| call >= from)
            || (self.threshold > 0 && mix(self.seed, call) <= self.threshold)
    }
}

/// A hash of two numbers (the finaliser of SplitMix64), so that threads cannot change which call fails.
fn mix(seed: u64, call: u64) -> u64 {
    let mut z = seed.wrapping_add(call.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Puts the wrapper around a device.
pub(super) fn wrap(inner: Arc<dyn Device>, plan: Plan) -> Arc<dyn Device> {
    Arc::new(Faulty { inner, plan, calls: AtomicU64::new(0), is_lost: AtomicBool::new(false) })
}

struct Faulty {
    inner: Arc<dyn Device>,
    plan: Plan,
    calls: AtomicU64,
    is_lost: AtomicBool,
}

impl Faulty {
    /// Counts a call that takes something, which by default runs out of memory.
    fn take(&self, kind: Kind, name: &str) -> Result<()> {
        self.strike(kind, name, Failure::Oom)
    }

    /// Counts a call that does something, which by default the device refuses.
    fn act(&self, kind: Kind, name: &str) -> Result<()> {
        self.strike(kind, name, Failure::Device)
    }

    fn strike(&self, kind: Kind, name: &str, default: Failure) -> Result<()> {
        self.check_lost()?;
        if self.plan.kind.is_some_and(|wanted| wanted != kind) {
            return Ok(());
        }
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.plan.strikes(call) {
            return Ok(());
        }
        let text = format!("injected fault: {name}, counted call {call}");
        Err(match self.plan.failure.unwrap_or(default) {
            Failure::Oom => Error::new(Status::OutOfMemory, text),
            Failure::Device => Error::new(Status::Device, text),
            Failure::Lost => {
                self.is_lost.store(true, Ordering::Release);
                Error::new(Status::DeviceLost, text)
            }
            Failure::Panic => panic!("{text}"),
        })
    }

    fn check_lost(&self) -> Result<()> {
        if self.is_lost.load(Ordering::Acquire) {
            return Err(Error::new(Status::DeviceLost, "the device is lost: injected fault; open it again"));
        }
        Ok(())
    }
}

impl Device for Faulty {
    fn description(&self) -> &Description {
        self.inner.description()
    }

    fn key(&self) -> DeviceKey {
        self.inner.key()
    }

    fn memory_info(&self) -> Result<MemoryInfo> {
        self.inner.memory_info()
    }

    fn attribute(&self, attribute: Attribute) -> Result<u64> {
        self.inner.attribute(attribute)
    }

    fn call_count(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    fn race_count(&self) -> u64 {
        self.inner.race_count()
    }

    fn simulator(&self) -> Option<&dyn Simulator> {
        self.inner.simulator()
    }

    fn synchronize(&self) -> Result<()> {
        // Whoever is refused gives memory back all the same, because on a device that is lost nothing runs.
        let waited = self.inner.synchronize();
        self.act(Kind::Stream, "synchronize")?;
        waited
    }

    fn stream_create(&self) -> Result<Stream> {
        self.take(Kind::Stream, "stream_create")?;
        self.inner.stream_create()
    }

    fn stream_wrap(&self, raw: u64) -> Result<Stream> {
        self.act(Kind::Stream, "stream_wrap")?;
        self.inner.stream_wrap(raw)
    }

    fn stream_destroy(&self, stream: Stream) -> Result<()> {
        self.inner.stream_destroy(stream)
    }

    fn stream_synchronize(&self, stream: Stream) -> Result<()> {
        self.act(Kind::Stream, "stream_synchronize")?;
        self.inner.stream_synchronize(stream)
    }

    fn stream_is_idle(&self, stream: Stream) -> Result<bool> {
        self.act(Kind::Stream, "stream_is_idle")?;
        self.inner.stream_is_idle(stream)
    }

    fn stream_wait_event(&self, stream: Stream, event: Event) -> Result<()> {
        self.act(Kind::Stream, "stream_wait_event")?;
        self.inner.stream_wait_event(stream, event)
    }

    fn stream_is_capturing(&self, stream: Stream) -> Result<bool> {
        self.act(Kind::Stream, "stream_is_capturing")?;
        self.inner.stream_is_capturing(stream)
    }

    fn stream_takes_events(&self, stream: Stream) -> Result<bool> {
        self.act(Kind::Stream, "stream_takes_events")?;
        self.inner.stream_takes_events(stream)
    }

    fn stream_callback(&self, stream: Stream, callback: Box<dyn FnOnce() + Send>) -> Result<()> {
        self.act(Kind::Stream, "stream_callback")?;
        self.inner.stream_callback(stream, callback)
    }

    fn event_create(&self) -> Result<Event> {
        self.take(Kind::Event, "event_create")?;
        self.inner.event_create()
    }

    fn event_record(&self, event: Event, stream: Stream) -> Result<()> {
        self.act(Kind::Event, "event_record")?;
        self.inner.event_record(event, stream)
    }

    fn event_is_done(&self, event: Event) -> Result<bool> {
        self.act(Kind::Event, "event_is_done")?;
        self.inner.event_is_done(event)
    }

    fn event_synchronize(&self, event: Event) -> Result<()> {
        self.act(Kind::Event, "event_synchronize")?;
        self.inner.event_synchronize(event)
    }

    fn event_destroy(&self, event: Event) -> Result<()> {
        self.inner.event_destroy(event)
    }

    fn memory_allocate(&self, bytes: u64) -> Result<DeviceSlice> {
        self.take(Kind::Memory, "memory_allocate")?;
        self.inner.memory_allocate(bytes)
    }

    fn memory_free(&self, slice: DeviceSlice) -> Result<()> {
        self.inner.memory_free(slice)
    }

    fn memory_allocate_async(&self, bytes: u64, stream: Stream) -> Result<DeviceSlice> {
        self.take(Kind::Memory, "memory_allocate_async")?;
        self.inner.memory_allocate_async(bytes, stream)
    }

    fn memory_free_async(&self, slice: DeviceSlice, stream: Stream) -> Result<()> {
        self.inner.memory_free_async(slice, stream)
    }

    fn managed_allocate(&self, bytes: u64) -> Result<DeviceSlice> {
        self.take(Kind::Memory, "managed_allocate")?;
        self.inner.managed_allocate(bytes)
    }

    fn virtual_reserve(&self, bytes: u64) -> Result<DeviceSlice> {
        self.take(Kind::Virtual, "virtual_reserve")?;
        self.inner.virtual_reserve(bytes)
    }

    fn virtual_release(&self, range: DeviceSlice) -> Result<()> {
        self.inner.virtual_release(range)
    }

    fn page_create(&self, bytes: u64) -> Result<Page> {
        self.take(Kind::Page, "page_create")?;
        self.inner.page_create(bytes)
    }

    fn page_release(&self, page: Page) -> Result<()> {
        self.inner.page_release(page)
    }

    fn virtual_map(&self, target: DeviceSlice, page: Page) -> Result<()> {
        self.take(Kind::Virtual, "virtual_map")?;
        self.inner.virtual_map(target, page)
    }

    fn virtual_set_access(&self, range: DeviceSlice, access: Access) -> Result<()> {
        self.act(Kind::Virtual, "virtual_set_access")?;
        self.inner.virtual_set_access(range, access)
    }

    fn virtual_unmap(&self, range: DeviceSlice) -> Result<()> {
        if self.plan.kind == Some(Kind::Unmap) {
            self.act(Kind::Unmap, "virtual_unmap")?;
        }
        self.inner.virtual_unmap(range)
    }

    fn pinned_allocate(&self, bytes: u64) -> Result<PinnedSlice> {
        self.take(Kind::Pinned, "pinned_allocate")?;
        self.inner.pinned_allocate(bytes)
    }

    fn pinned_free(&self, slice: PinnedSlice) -> Result<()> {
        self.inner.pinned_free(slice)
    }

    unsafe fn pinned_register(&self, address: usize, bytes: u64) -> Result<PinnedSlice> {
        self.take(Kind::Pinned, "pinned_register")?;
        // SAFETY: the caller vouches for the range, as for this method.
        unsafe { self.inner.pinned_register(address, bytes) }
    }

    fn pinned_unregister(&self, slice: PinnedSlice) -> Result<()> {
        self.inner.pinned_unregister(slice)
    }

    fn write(&self, target: DeviceSlice, source: &[u8]) -> Result<()> {
        self.act(Kind::Copy, "write")?;
        self.inner.write(target, source)
    }

    fn read(&self, source: DeviceSlice, target: &mut [u8]) -> Result<()> {
        self.act(Kind::Copy, "read")?;
        self.inner.read(source, target)
    }

    fn copy(&self, stream: Stream, copy: Copy) -> Result<()> {
        self.act(Kind::Copy, "copy")?;
        self.inner.copy(stream, copy)
    }

    fn copy_batch(&self, stream: Stream, copies: &[Copy]) -> Result<()> {
        self.act(Kind::Copy, "copy_batch")?;
        self.inner.copy_batch(stream, copies)
    }

    fn memset(&self, stream: Stream, target: DeviceSlice, value: u8) -> Result<()> {
        self.act(Kind::Copy, "memset")?;
        self.inner.memset(stream, target, value)
    }

    fn module_load(&self, kernels: &[&'static Kernel]) -> Result<()> {
        self.act(Kind::Module, "module_load")?;
        self.inner.module_load(kernels)
    }

    fn launch(&self, stream: Stream, launch: &Launch<'_>) -> Result<()> {
        self.act(Kind::Launch, "launch")?;
        self.inner.launch(stream, launch)
    }

    fn peer_is_reachable(&self, other: DeviceKey) -> Result<bool> {
        self.act(Kind::Peer, "peer_is_reachable")?;
        self.inner.peer_is_reachable(other)
    }

    fn peer_enable(&self, other: DeviceKey) -> Result<()> {
        self.act(Kind::Peer, "peer_enable")?;
        self.inner.peer_enable(other)
    }
}
