//! What a step may do without the heap: enqueue, record, wait, ask. Counts the allocations of each thread by itself.
//! `KAVERN_TEST_DEVICE` names another device than the host.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use kavern::device::{Arg, Copy, CpuArgs, Event, Kernel, Launch, Place, Stream, registry};
use kavern::sys::clock;

/// Of all threads: the workers count too.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: hands every call to the system's allocator and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

static NEGATE: Kernel = Kernel { name: "contract_negate", cpu: negate };

fn negate(args: &mut CpuArgs<'_>) {
    let (out, others) = args.write_and_read::<u8>(0);
    for (out, input) in out.iter_mut().zip(others.read::<u8>(1)) {
        *out = !input;
    }
}

#[expect(clippy::disallowed_macros, reason = "a measurement is told to whoever runs it")]
fn tell(text: &str) {
    eprintln!("{text}");
}

// The only test of this binary: another one's allocations would be counted too.
#[test]
fn a_step_does_not_touch_the_heap() {
    let device = std::env::var("KAVERN_TEST_DEVICE").unwrap_or_else(|_| "host".to_owned());
    let device = registry::open(&device).unwrap();
    device.module_load(&[&NEGATE]).unwrap();
    let streams = [device.stream_create().unwrap(), device.stream_create().unwrap()];
    let events: [Event; 4] = [0; 4].map(|_| device.event_create().unwrap());
    let memory = device.memory_allocate(4096).unwrap();
    let (a, b) = (memory.part(0, 64).unwrap(), memory.part(64, 64).unwrap());
    let copy = Copy { target: Place::Device(a), source: Place::Device(b) };
    let other = Copy { target: Place::Device(b), source: Place::Device(memory.part(128, 64).unwrap()) };
    let args = [Arg::Write(a), Arg::Read(b)];
    let step = |round: usize| {
        let (first, second) = (streams[round % 2], streams[(round + 1) % 2]);
        let event = events[round % 4];
        for _ in 0..8 {
            device.copy_batch(first, &[copy, other]).unwrap();
            device.launch(first, &Launch { kernel: &NEGATE, grid: 1, block: 1, args: &args }).unwrap();
            device.memset(first, a, 1).unwrap();
        }
        device.event_record(event, first).unwrap();
        device.stream_wait_event(second, event).unwrap();
        device.memset(second, b, 2).unwrap();
        device.event_is_done(event).unwrap();
        if round % 4 == 3 {
            device.event_synchronize(event).unwrap();
            device.stream_synchronize(second).unwrap();
        }
    };
    (0..64).for_each(step);
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    (0..1000).for_each(step);
    let made = ALLOCATIONS.load(Ordering::SeqCst) - before;
    assert_eq!(made, 0, "allocations in 1000 steps");

    // Not a promise, a look: the cost of one enqueue while the worker has something to do.
    let mut best_ns = u64::MAX;
    for _ in 0..20 {
        let start_ns = clock::now_ns();
        for _ in 0..200 {
            device.memset(Stream::DEFAULT, a, 1).unwrap();
        }
        best_ns = best_ns.min((clock::now_ns() - start_ns) / 200);
        device.synchronize().unwrap();
    }
    let start_ns = clock::now_ns();
    for _ in 0..1000 {
        device.memset(Stream::DEFAULT, a, 1).unwrap();
        device.stream_synchronize(Stream::DEFAULT).unwrap();
    }
    let round_trip_ns = (clock::now_ns() - start_ns) / 1000;
    tell(&format!("enqueue {best_ns} ns at best, enqueue and wait {round_trip_ns} ns on average"));
}
