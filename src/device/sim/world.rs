//! All simulated devices of the process under one lock: streams as queues, and who knows of whose work.
//!
//! What it does: takes work, says whether a mark is reached, runs work when somebody waits. What it does not: check
//! arguments (`calls`), do the work (`run`). One world for all devices, because streams and memory of several meet.
//!
//! Invariants: nothing runs when it is enqueued; a mark names work that was enqueued before, so waits form no circle;
//! `completed <= submitted` of a slot, and both only grow, also across the streams that take the slot in turn.
//! Lock order: the world, then nothing. A callback runs on a thread of its own without the lock; kernels and copies run
//! under it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::clock::{self, Clock, Stamp};
use super::gpu::{Entry, Gpu};
use super::memory::Regions;
use super::run::{Ran, Touches, Work};
use super::value::Values;
use crate::device::DeviceKey;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// How long a wait leaves everything else alone while a callback runs, so that its duration does not change what runs.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long a question waits for a callback that it has started.
const POLL_PATIENCE: Duration = Duration::from_millis(2);

static WORLD: Mutex<World> = Mutex::new(World::new());
static CHANGED: Condvar = Condvar::new();

/// The world, locked.
pub(super) type Guard = MutexGuard<'static, World>;

thread_local! {
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
    static THREAD: u64 = {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    };
}

/// Whether this thread runs a callback or a kernel just now; it must not call the device.
pub(super) fn is_worker() -> bool {
    IS_WORKER.with(Cell::get)
}

/// Runs what must not call the device.
pub(super) fn as_worker<R>(body: impl FnOnce() -> R) -> R {
    let _reset = Reset(IS_WORKER.with(|is_worker| is_worker.replace(true)));
    body()
}

/// Sets the flag back, also after a panic.
struct Reset(bool);

impl Drop for Reset {
    fn drop(&mut self) {
        IS_WORKER.with(|is_worker| is_worker.set(self.0));
    }
}

/// Locks the world.
pub(super) fn lock() -> Guard {
    WORLD.lock()
}

/// One piece of work in its queue.
pub(super) struct Op {
    /// What it knows.
    pub(super) stamp: Stamp,
    /// Index of the device that enqueued it.
    pub(super) gpu: usize,
    /// Number of the stream there.
    pub(super) number: u32,
    /// Its place among all that was enqueued.
    pub(super) serial: u64,
    /// What to do.
    pub(super) work: Work,
}

/// A stream, or the slot of one that was destroyed.
pub(super) struct Stream {
    /// Index of the device that made it.
    pub(super) gpu: usize,
    pub(super) completed: u64,
    pub(super) is_busy: bool,
    pub(super) queue: VecDeque<Op>,
    submitted: u64,
    known: Arc<Clock>,
    /// Which host thread, and how much it knew, when work was enqueued last.
    host: (u64, u64),
}

/// What a host thread knows.
#[derive(Default)]
struct Host {
    known: Arc<Clock>,
    version: u64,
}

/// What a wait can do next.
enum Step {
    Ran,
    /// A callback runs; it will say when it is done.
    Busy,
}

/// Everything.
pub(super) struct World {
    pub(super) streams: Vec<Stream>,
    pub(super) gpus: Vec<Option<Box<Gpu>>>,
    pub(super) regions: Regions,
    pub(super) values: Values,
    pub(super) touches: Touches,
    free_slots: BTreeSet<u32>,
    /// Streams by raw value: slot.
    by_value: BTreeMap<u64, u32>,
    hosts: BTreeMap<u64, Host>,
    next_value: u64,
    serial: u64,
    ready: Vec<(u32, u32)>,
    numbers: Vec<u32>,
}

/// Below it lie the values with a meaning of their own in CUDA (0 legacy, 1 and 2 per thread).
const FIRST_VALUE: u64 = 16;

impl World {
    const fn new() -> Self {
        Self {
            streams: Vec::new(),
            gpus: Vec::new(),
            regions: Regions::new(),
            values: Values::new(),
            touches: Vec::new(),
            free_slots: BTreeSet::new(),
            by_value: BTreeMap::new(),
            hosts: BTreeMap::new(),
            next_value: FIRST_VALUE,
            serial: 0,
            ready: Vec::new(),
            numbers: Vec::new(),
        }
    }

    /// The device at an index; it is open while anybody has the index.
    pub(super) fn gpu(&mut self, index: usize) -> &mut Gpu {
        self.gpus[index].as_mut().expect("a device leaves the world after the last use of its index")
    }

    /// The open device with a key.
    pub(super) fn find_gpu(&self, key: DeviceKey) -> Option<usize> {
        self.gpus.iter().position(|gpu| gpu.as_ref().is_some_and(|gpu| gpu.key == key))
    }

    // -------------------------------------------------------------------------------------------- streams

    /// Makes a stream of a device and answers its raw value.
    pub(super) fn make_stream(&mut self, gpu: usize) -> u64 {
        let slot = self.free_slots.pop_first().unwrap_or_else(|| {
            self.streams.push(Stream {
                gpu,
                completed: 0,
                is_busy: false,
                queue: VecDeque::new(),
                submitted: 0,
                known: Arc::default(),
                host: (0, 0),
            });
            (self.streams.len() - 1) as u32
        });
        let stream = &mut self.streams[slot as usize];
        (stream.gpu, stream.known, stream.host) = (gpu, Arc::default(), (0, 0));
        let value = self.next_value;
        self.next_value += 1;
        self.by_value.insert(value, slot);
        let number = self.gpu(gpu).next_number();
        self.gpu(gpu).streams.push(Entry { value, slot, number, is_wrapped: false });
        value
    }

    /// The slot of a live stream of any device.
    pub(super) fn find_stream(&self, value: u64) -> Option<u32> {
        self.by_value.get(&value).copied()
    }

    /// Forgets a stream whose work is done.
    pub(super) fn remove_stream(&mut self, value: u64) {
        let Some(slot) = self.by_value.remove(&value) else { return };
        for gpu in self.gpus.iter_mut().flatten() {
            gpu.streams.retain(|entry| entry.value != value);
        }
        self.free_slots.insert(slot);
    }

    /// The point after all work of a slot so far.
    pub(super) fn mark(&self, slot: u32) -> Stamp {
        let stream = &self.streams[slot as usize];
        Stamp { base: Arc::clone(&stream.known), slot, count: stream.submitted }
    }

    /// Whether the work before a mark was done.
    pub(super) fn is_reached(&self, mark: &Stamp) -> bool {
        self.streams[mark.slot as usize].completed >= mark.count
    }

    // -------------------------------------------------------------------------------------------- who knows what

    fn host_key(&self, gpu: usize) -> u64 {
        let is_separate = self.gpus[gpu].as_ref().is_some_and(|gpu| gpu.has_separate_threads);
        if is_separate { THREAD.with(|&thread| thread) } else { 0 }
    }

    /// What the calling thread knows.
    pub(super) fn host_stamp(&mut self, gpu: usize) -> Stamp {
        let key = self.host_key(gpu);
        Stamp::of_host(&self.hosts.entry(key).or_default().known)
    }

    /// The calling thread has seen that the work before a mark is done.
    pub(super) fn host_learns(&mut self, gpu: usize, mark: &Stamp) {
        let key = self.host_key(gpu);
        let host = self.hosts.entry(key).or_default();
        if clock::join_stamp(&mut host.known, mark) {
            host.version += 1;
            let known = Stamp::of_host(&host.known);
            self.check_pinned(&known);
        }
    }

    fn catch_up(&mut self, gpu: usize, slot: u32) {
        let key = self.host_key(gpu);
        let host = self.hosts.entry(key).or_default();
        let stream = &mut self.streams[slot as usize];
        if stream.host != (key, host.version) {
            clock::join(&mut stream.known, &host.known);
            stream.host = (key, host.version);
        }
    }

    /// Gives an event's mark: the point after all work so far, known by what the host knows now.
    pub(super) fn record(&mut self, gpu: usize, slot: u32) -> Stamp {
        self.catch_up(gpu, slot);
        self.mark(slot)
    }

    /// Begins a piece of work on a stream: what it knows.
    pub(super) fn stamp(&mut self, gpu: usize, slot: u32) -> Stamp {
        self.catch_up(gpu, slot);
        let stream = &mut self.streams[slot as usize];
        stream.submitted += 1;
        self.mark(slot)
    }

    /// A place in the order of the program.
    pub(super) fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// Enqueues work.
    pub(super) fn enqueue(&mut self, gpu: usize, entry: Entry, work: Work) {
        let stamp = self.stamp(gpu, entry.slot);
        let op = Op { stamp, gpu, number: entry.number, serial: self.next_serial(), work };
        self.streams[entry.slot as usize].queue.push_back(op);
    }

    /// Makes later work wait for a mark.
    pub(super) fn enqueue_wait(&mut self, gpu: usize, entry: Entry, mark: Stamp) {
        self.catch_up(gpu, entry.slot);
        clock::join_stamp(&mut self.streams[entry.slot as usize].known, &mark);
        if mark.slot != entry.slot && !self.is_reached(&mark) {
            self.enqueue(gpu, entry, Work::Wait(mark));
        }
    }

    // -------------------------------------------------------------------------------------------- running

    /// Runs one piece of work that is on the way to a mark, or any other of the device.
    fn step(&mut self, gpu: usize, mark: &Stamp, is_patient: bool) -> Step {
        let (mut ready, mut numbers) = (std::mem::take(&mut self.ready), std::mem::take(&mut self.numbers));
        ready.clear();
        numbers.clear();
        let mut is_busy = false;
        let it = self.gpus[gpu].as_ref().expect("the device of a call is open");
        for entry in &it.streams {
            let stream = &self.streams[entry.slot as usize];
            is_busy |= stream.is_busy;
            let can_run = match stream.queue.front() {
                _ if stream.is_busy => false,
                None => false,
                Some(Op { work: Work::Wait(mark), .. }) => self.is_reached(mark),
                Some(_) => true,
            };
            if can_run {
                ready.push((entry.number, entry.slot));
                numbers.push(entry.number);
            }
        }
        let is_latest = it.schedule.is_latest();
        let picked = if ready.is_empty() || is_latest || (is_busy && is_patient) {
            None
        } else {
            Some(ready[self.gpu(gpu).schedule.pick(&numbers)].1)
        };
        (self.ready, self.numbers) = (ready, numbers);
        if is_busy && is_patient {
            return Step::Busy;
        }
        match picked.or_else(|| self.first_needed(mark)) {
            Some(slot) => {
                if self.run_head(slot) == Ran::Calling {
                    return Step::Busy;
                }
                Step::Ran
            }
            None => Step::Busy,
        }
    }

    /// The stream that has to run first for a mark; None if a callback has to end first.
    fn first_needed(&self, mark: &Stamp) -> Option<u32> {
        let mut slot = mark.slot;
        loop {
            let stream = &self.streams[slot as usize];
            if stream.is_busy {
                return None;
            }
            match &stream.queue.front()?.work {
                Work::Wait(mark) if !self.is_reached(mark) => slot = mark.slot,
                _ => return Some(slot),
            }
        }
    }

    /// Starts or ends the callback of a stream.
    pub(super) fn end_call(&mut self, slot: u32) {
        let stream = &mut self.streams[slot as usize];
        stream.is_busy = false;
        stream.completed += 1;
        CHANGED.notify_all();
    }
}

/// Runs work until a mark is reached.
pub(super) fn wait(world: &mut Guard, gpu: usize, mark: &Stamp) {
    let mut is_patient = true;
    while !world.is_reached(mark) {
        match world.step(gpu, mark, is_patient) {
            Step::Ran => is_patient = true,
            Step::Busy => is_patient = !CHANGED.wait_for(world, PATIENCE).timed_out(),
        }
    }
}

/// Whether a mark is reached; each question runs one piece of work.
pub(super) fn poll(world: &mut Guard, gpu: usize, mark: &Stamp) -> bool {
    if !world.is_reached(mark)
        && let Step::Busy = world.step(gpu, mark, true)
    {
        CHANGED.wait_for(world, POLL_PATIENCE);
    }
    world.is_reached(mark)
}

/// Waits for all work of a device, also of streams that it has forgotten.
pub(super) fn drain(world: &mut Guard, gpu: usize) -> Vec<Stamp> {
    let mut marks = world.gpu(gpu).lingering.clone();
    let slots: Vec<u32> = world.gpu(gpu).streams.iter().map(|entry| entry.slot).collect();
    marks.extend(slots.into_iter().map(|slot| world.mark(slot)));
    for mark in &marks {
        wait(world, gpu, mark);
    }
    world.gpu(gpu).lingering.clear();
    marks
}
