//! Streams of the host device: a queue and a worker thread each, and marks that say how far a stream has come.
//!
//! What it does: takes work in order, runs it, lets hosts and other streams wait for a mark. What it does not: checks
//! of arguments; those come before. The worker is started by the first work, so an unused stream costs no thread.
//!
//! Invariants: `completed <= submitted`, both only grow; a mark names work that was already submitted, so waits between
//! streams cannot form a circle; after a panic every mark is still reached, only the work behind it is skipped.
//! Lock order: queue, then the worker's handle; gate, then nothing. No lock is held while work runs.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::memory::{Block, Blocks};
use crate::device::{Arg, Copy, CpuArgs, Kernel, Launch, Place};
use crate::error::{Error, Result, Status};
use crate::sync::{Condvar, Mutex};
use crate::sys::clock;

/// Work that a queue holds without allocating: more than a step of any engine enqueues (layers x 2 copies).
const QUEUE_OPS: usize = 256;

/// How long a waiter looks before it sleeps: about what it costs to be woken by the system.
const SPIN_NS: u64 = 20_000;
/// The same of a worker whose work comes in a quick rhythm, as steps do: whoever brings it would pay for waking it.
const RHYTHM_NS: u64 = 200_000;

thread_local! {
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is a worker of a host stream; it must not wait for streams.
pub(super) fn is_worker() -> bool {
    IS_WORKER.with(Cell::get)
}

/// Looks between two times that others get the processor: some ten microseconds, in which it leaves a thread on the
/// same core nearly all of that.
const LOOKS: u32 = 8;

/// Looks for a while whether `done` holds.
fn spin(most_ns: u64, done: impl Fn() -> bool) -> bool {
    if done() {
        return true;
    }
    let start_ns = clock::now_ns();
    loop {
        for _ in 0..LOOKS {
            for _ in 0..32 {
                std::hint::spin_loop();
            }
            if done() {
                return true;
            }
            if clock::now_ns() - start_ns > most_ns {
                return false;
            }
        }
        std::thread::yield_now();
    }
}

/// Whether a device is lost, and why.
#[derive(Default)]
pub(super) struct Loss {
    is_lost: AtomicBool,
    text: Mutex<String>,
}

impl Loss {
    fn latch(&self, text: &str) {
        let mut first = self.text.lock();
        if !self.is_lost.load(Ordering::Acquire) {
            first.push_str(text);
            self.is_lost.store(true, Ordering::Release);
        }
    }

    /// The latched error, if there is one.
    pub(super) fn check(&self) -> Result<()> {
        if !self.is_lost.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::new(
            Status::DeviceLost,
            format!("the device is lost: {}; open it again", self.text.lock()),
        ))
    }
}

/// How far a stream has come.
pub(super) struct Progress {
    submitted: AtomicU64,
    completed: AtomicU64,
    /// Least mark that a sleeper waits for; `u64::MAX` without sleepers.
    wanted: AtomicU64,
    gate: Mutex<()>,
    reached: Condvar,
}

impl Progress {
    fn new() -> Self {
        Self {
            submitted: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            wanted: AtomicU64::new(u64::MAX),
            gate: Mutex::new(()),
            reached: Condvar::new(),
        }
    }

    fn advance(&self) {
        let completed = self.completed.load(Ordering::Relaxed) + 1;
        // SeqCst on both sides: either this sees the sleeper's wish, or the sleeper sees this completion.
        self.completed.store(completed, Ordering::SeqCst);
        if completed >= self.wanted.load(Ordering::SeqCst) {
            let gate = self.gate.lock();
            self.wanted.store(u64::MAX, Ordering::SeqCst);
            drop(gate);
            self.reached.notify_all();
        }
    }

    fn has_reached(&self, count: u64) -> bool {
        self.completed.load(Ordering::SeqCst) >= count
    }

    fn wait(&self, count: u64) {
        if spin(SPIN_NS, || self.has_reached(count)) {
            return;
        }
        let mut gate = self.gate.lock();
        loop {
            self.wanted.fetch_min(count, Ordering::SeqCst);
            if self.has_reached(count) {
                return;
            }
            self.reached.wait(&mut gate);
        }
    }
}

/// A point in the work of a stream; outlives the stream.
#[derive(Clone)]
pub(super) struct Mark {
    progress: Arc<Progress>,
    count: u64,
}

impl Mark {
    /// Whether the work before it has been done.
    pub(super) fn is_reached(&self) -> bool {
        self.progress.has_reached(self.count)
    }

    /// Waits for the work before it.
    pub(super) fn wait(&self) {
        self.progress.wait(self.count);
    }
}

/// A launch with its arguments in place.
pub(super) struct LaunchOp {
    kernel: &'static Kernel,
    grid: u32,
    block: u32,
    count: usize,
    args: [Arg; Launch::ARGS_MAX],
}

impl LaunchOp {
    /// Keeps a launch that [`Launch::check`] has passed.
    pub(super) fn new(launch: &Launch<'_>) -> Self {
        let mut args = [Arg::U64(0); Launch::ARGS_MAX];
        args[..launch.args.len()].copy_from_slice(launch.args);
        Self { kernel: launch.kernel, grid: launch.grid, block: launch.block, count: launch.args.len(), args }
    }

    fn run(&self) {
        let args = &self.args[..self.count];
        // SAFETY: the device checked the launch and that it may reach every slice; the slices are addresses of this
        // process, and whoever frees memory waits for the work that uses it.
        let mut args = unsafe { CpuArgs::new(args, self.grid, self.block) };
        (self.kernel.cpu)(&mut args);
    }
}

/// One piece of work.
#[expect(
    clippy::large_enum_variant,
    reason = "arguments lie in the queue so that an enqueue does not allocate"
)]
pub(super) enum Op {
    /// Copies bytes; both ranges were checked.
    Copy { target: u64, source: u64, bytes: u64 },
    /// Fills bytes.
    Fill { target: u64, bytes: u64, value: u8 },
    /// Runs a kernel.
    Launch(LaunchOp),
    /// Waits for another stream.
    Wait(Mark),
    /// Runs a function of the caller's.
    Call(Box<dyn FnOnce() + Send>),
    /// Gives memory back.
    Free { block: Block, blocks: Arc<Blocks> },
}

impl Op {
    /// A checked copy.
    pub(super) fn copy(copy: &Copy) -> Self {
        let address = |place: &Place| match place {
            Place::Device(slice) => slice.address(),
            Place::Pinned(slice) => slice.address() as u64,
        };
        Self::Copy {
            target: address(&copy.target),
            source: address(&copy.source),
            bytes: copy.target.bytes(),
        }
    }

    fn run(self, is_lost: bool) {
        match self {
            // Waits and frees also happen on a lost device: nobody may hang, and memory still in use by another
            // stream must not go away under it.
            Self::Wait(mark) => mark.wait(),
            Self::Free { block, blocks } => blocks.finish_free(block),
            _ if is_lost => {}
            Self::Copy { target, source, bytes } => {
                // SAFETY: lengths and devices were checked at the enqueue; slices name live memory of this process
                // (see `DeviceSlice`); `copy` allows the ranges to overlap.
                unsafe { std::ptr::copy(source as *const u8, target as *mut u8, bytes as usize) }
            }
            Self::Fill { target, bytes, value } => {
                // SAFETY: as for the copy.
                unsafe { std::ptr::write_bytes(target as *mut u8, value, bytes as usize) }
            }
            Self::Launch(launch) => launch.run(),
            Self::Call(callback) => callback(),
        }
    }
}

/// Yields the free of a block, and only takes the block when the queue really asks for it.
struct OneFree<'a> {
    block: &'a mut Option<Block>,
    blocks: &'a Arc<Blocks>,
}

impl Iterator for OneFree<'_> {
    type Item = Op;

    fn next(&mut self) -> Option<Op> {
        self.block.take().map(|block| Op::Free { block, blocks: Arc::clone(self.blocks) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let count = usize::from(self.block.is_some());
        (count, Some(count))
    }
}

impl ExactSizeIterator for OneFree<'_> {}

struct Queue {
    ops: VecDeque<Op>,
    is_started: bool,
    is_asleep: bool,
    is_closed: bool,
}

/// What a stream's users and its worker share.
pub(super) struct Stream {
    value: u64,
    loss: Arc<Loss>,
    progress: Arc<Progress>,
    queue: Mutex<Queue>,
    wake: Condvar,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl Stream {
    /// A stream without work and without a thread.
    pub(super) fn new(value: u64, loss: Arc<Loss>) -> Self {
        Self {
            value,
            loss,
            progress: Arc::new(Progress::new()),
            queue: Mutex::new(Queue {
                ops: VecDeque::new(),
                is_started: false,
                is_asleep: false,
                is_closed: false,
            }),
            wake: Condvar::new(),
            worker: Mutex::new(None),
        }
    }

    /// The raw value, unique in the process.
    pub(super) fn value(&self) -> u64 {
        self.value
    }

    /// Whether the device that made the stream is lost.
    pub(super) fn check(&self) -> Result<()> {
        self.loss.check()
    }

    /// The point after all work so far.
    pub(super) fn mark(&self) -> Mark {
        Mark { progress: Arc::clone(&self.progress), count: self.progress.submitted.load(Ordering::Acquire) }
    }

    /// Whether all work is done.
    pub(super) fn is_idle(&self) -> bool {
        self.mark().is_reached()
    }

    /// Whether a mark is one of this stream, which its own order already keeps.
    pub(super) fn made(&self, mark: &Mark) -> bool {
        Arc::ptr_eq(&self.progress, &mark.progress)
    }

    /// Appends work, all or nothing.
    pub(super) fn enqueue(self: &Arc<Self>, ops: impl ExactSizeIterator<Item = Op>) -> Result<()> {
        let count = ops.len() as u64;
        let mut queue = self.queue.lock();
        if queue.is_closed {
            return Err(Error::new(Status::StaleId, "the stream was destroyed; use a live one"));
        }
        if !queue.is_started {
            self.start(&mut queue)?;
        }
        queue.ops.extend(ops);
        let submitted = self.progress.submitted.load(Ordering::Relaxed);
        self.progress.submitted.store(submitted + count, Ordering::Release);
        let is_asleep = std::mem::replace(&mut queue.is_asleep, false);
        drop(queue);
        if is_asleep {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Appends the end of a block, or leaves it live.
    pub(super) fn enqueue_free(self: &Arc<Self>, block: Block, blocks: &Arc<Blocks>) -> Result<()> {
        let mut block = Some(block);
        let result = self.enqueue(OneFree { block: &mut block, blocks });
        if let Some(block) = block {
            blocks.undo_free(block);
        }
        result
    }

    fn start(self: &Arc<Self>, queue: &mut Queue) -> Result<()> {
        queue.ops.reserve(QUEUE_OPS);
        let stream = Arc::clone(self);
        let worker = std::thread::Builder::new().name(format!("kavern-{}", self.value));
        let worker = worker.spawn(move || stream.work());
        *self.worker.lock() =
            Some(worker.map_err(|error| Error::from_io("starting a stream's worker", &error))?);
        queue.is_started = true;
        Ok(())
    }

    /// Refuses further work; the worker ends when it has done what is there.
    pub(super) fn close(&self) {
        self.queue.lock().is_closed = true;
        self.wake.notify_one();
    }

    /// Waits for the end of a closed stream's worker.
    pub(super) fn join(&self) {
        let worker = self.worker.lock().take();
        if let Some(worker) = worker {
            // A worker catches the panics of what it runs; one of its own would be seen by the test suite.
            let _ = worker.join();
        }
    }

    fn work(&self) {
        IS_WORKER.with(|is_worker| is_worker.set(true));
        // Two queues change places, so that users and the worker meet at the lock once per batch.
        let mut batch = VecDeque::with_capacity(QUEUE_OPS);
        let mut spin_ns = SPIN_NS;
        while self.take(&mut batch, &mut spin_ns) {
            while let Some(op) = batch.pop_front() {
                let is_lost = self.loss.is_lost.load(Ordering::Acquire);
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| op.run(is_lost))) {
                    self.loss.latch(panic_text(panic.as_ref()));
                    drop_quietly(panic);
                }
                self.progress.advance();
            }
        }
    }

    /// Waits for work; first awake, for as long as the latest wait says that it is of use.
    fn take(&self, batch: &mut VecDeque<Op>, spin_ns: &mut u64) -> bool {
        let completed = self.progress.completed.load(Ordering::Relaxed);
        let start_ns = clock::now_ns();
        let is_found = spin(*spin_ns, || self.progress.submitted.load(Ordering::Relaxed) != completed);
        let mut queue = self.queue.lock();
        loop {
            if !queue.ops.is_empty() {
                std::mem::swap(&mut queue.ops, batch);
                drop(queue);
                if !is_found {
                    let was_quick = clock::now_ns() - start_ns < RHYTHM_NS;
                    *spin_ns = if was_quick { RHYTHM_NS } else { SPIN_NS };
                }
                return true;
            }
            if queue.is_closed {
                return false;
            }
            queue.is_asleep = true;
            self.wake.wait(&mut queue);
            queue.is_asleep = false;
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a text")
}

/// Dropping a panic's payload may itself panic, if the caller chose such a type.
fn drop_quietly(panic: Box<dyn std::any::Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(again);
    }
}
