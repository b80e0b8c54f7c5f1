//! The fault wrapper, and what is left behind when the nth call of a scenario fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use kavern::device::{
    Access, Arg, Copy, CpuArgs, Device, DeviceSlice, Event, Kernel, Launch, Page, PinnedSlice, Place, Stream,
    registry,
};
use kavern::error::{Result, Status};

use super::support::{Subject, assert_memory, each, refused};

static NEGATE: Kernel = Kernel { name: "contract_negate", cpu: negate };

fn negate(args: &mut CpuArgs<'_>) {
    let (out, others) = args.write_and_read::<u8>(0);
    for (out, input) in out.iter_mut().zip(others.read::<u8>(1)) {
        *out = !input;
    }
}

enum Held {
    Stream(Stream),
    Event(Event),
    Memory(DeviceSlice),
    Range(DeviceSlice),
    Mapping(DeviceSlice),
    Page(Page),
    Pinned(PinnedSlice),
    Registered(PinnedSlice),
}

/// Gives back what a scenario took as the rooms above do: first the streams, which waits for their work, because an
/// unmap does not wait; then the rest, last first.
struct Holder<'a> {
    device: &'a dyn Device,
    held: Vec<Held>,
}

impl Drop for Holder<'_> {
    fn drop(&mut self) {
        self.held.sort_by_key(|held| matches!(held, Held::Stream(_)));
        while let Some(held) = self.held.pop() {
            match held {
                Held::Stream(stream) => self.device.stream_destroy(stream),
                Held::Event(event) => self.device.event_destroy(event),
                Held::Memory(slice) => self.device.memory_free(slice),
                Held::Range(range) => self.device.virtual_release(range),
                Held::Mapping(range) => self.device.virtual_unmap(range),
                Held::Page(page) => self.device.page_release(page),
                Held::Pinned(slice) => self.device.pinned_free(slice),
                Held::Registered(slice) => self.device.pinned_unregister(slice),
            }
            .expect("what gives back is never failed");
        }
    }
}

/// Every counted method of the trait, in an order that makes sense.
fn scenario(device: &dyn Device, buffer: &mut [u8]) -> Result<()> {
    let address = buffer.as_mut_ptr() as usize;
    let bytes = buffer.len() as u64;
    let mut holder = Holder { device, held: Vec::new() };
    let unit = device.description().page_bytes;
    let stream = device.stream_create()?;
    holder.held.push(Held::Stream(stream));
    let event = device.event_create()?;
    holder.held.push(Held::Event(event));
    let a = device.memory_allocate(bytes)?;
    holder.held.push(Held::Memory(a));
    let b = device.memory_allocate_async(bytes, stream)?;
    holder.held.push(Held::Memory(b));
    let pinned = device.pinned_allocate(bytes)?;
    holder.held.push(Held::Pinned(pinned));
    // SAFETY: the buffer outlives the holder, which unregisters it.
    let registered = unsafe { device.pinned_register(address, bytes) }?;
    holder.held.push(Held::Registered(registered));
    let range = device.virtual_reserve(2 * unit)?;
    holder.held.push(Held::Range(range));
    for index in 0..2 {
        let page = device.page_create(unit)?;
        holder.held.push(Held::Page(page));
        let target = range.part(index * unit, unit)?;
        device.virtual_map(target, page)?;
        holder.held.push(Held::Mapping(target));
    }
    device.virtual_set_access(range, Access::ReadWrite)?;
    let own = device.stream_wrap(stream.0)?;
    device.write(a, &vec![1; bytes as usize])?;
    let copy = |target, source| Copy { target, source };
    device.copy(own, copy(Place::Device(b), Place::Device(a)))?;
    let near = Place::Device(range.part(0, bytes)?);
    device
        .copy_batch(stream, &[copy(near, Place::Device(a)), copy(Place::Pinned(pinned), Place::Device(a))])?;
    device.memset(stream, range.part(unit, bytes)?, 3)?;
    device.module_load(&[&NEGATE])?;
    let args = [Arg::Write(a), Arg::Read(b)];
    device.launch(stream, &Launch { kernel: &NEGATE, grid: 1, block: 1, args: &args })?;
    device.copy(stream, copy(Place::Pinned(registered), Place::Device(b)))?;
    device.stream_callback(stream, Box::new(|| {}))?;
    device.event_record(event, stream)?;
    device.stream_wait_event(Stream::DEFAULT, event)?;
    device.event_is_done(event)?;
    device.stream_is_idle(stream)?;
    device.stream_is_capturing(stream)?;
    device.stream_takes_events(stream)?;
    device.event_synchronize(event)?;
    device.stream_synchronize(stream)?;
    device.synchronize()?;
    device.peer_is_reachable(device.key())?;
    device.peer_enable(device.key())?;
    let mut seen = vec![0; bytes as usize];
    device.read(range.part(unit, bytes)?, &mut seen)?;
    assert_eq!(seen, vec![3; bytes as usize]);
    drop(holder);
    assert_eq!(buffer, vec![1; bytes as usize]);
    Ok(())
}

fn open(subject: &Subject, params: &str) -> Arc<dyn Device> {
    registry::open(&format!("{}:0?{params}", subject.backend)).unwrap()
}

fn count_calls(subject: &Subject, params: &str) -> u64 {
    let device = open(subject, &format!("fail_nth=0{params}"));
    scenario(&*device, &mut [0; 96]).unwrap();
    device.call_count()
}

#[test]
fn whichever_call_fails_everything_returns_and_the_retry_succeeds() {
    each(|subject| {
        if subject.is_counting {
            return;
        }
        let calls = count_calls(subject, "");
        assert!(calls >= 30, "{calls} calls");
        for nth in 1..=calls {
            for error in ["", "&error=oom", "&error=panic"] {
                let device = open(subject, &format!("fail_nth={nth}{error}"));
                let before = device.memory_info().unwrap();
                let mut buffer = [0; 96];
                match catch_unwind(AssertUnwindSafe(|| scenario(&*device, &mut buffer))) {
                    Ok(Err(failure)) => {
                        assert!(failure.text.contains("injected fault"), "call {nth}: {failure}");
                        assert!(matches!(failure.status, Status::OutOfMemory | Status::Device));
                    }
                    Err(_) => assert_eq!(error, "&error=panic", "call {nth}"),
                    Ok(Ok(())) => panic!("call {nth} of {calls} did not fail"),
                }
                assert_memory(&*device, before);
                buffer.fill(0);
                scenario(&*device, &mut buffer).unwrap();
                assert_memory(&*device, before);
            }
        }
    });
}

#[test]
fn kinds_share_out_the_calls() {
    each(|subject| {
        if subject.is_counting {
            return;
        }
        let kinds =
            ["memory", "virtual", "page", "pinned", "stream", "event", "copy", "launch", "module", "peer"];
        let counts = kinds.map(|kind| count_calls(subject, &format!("&kind={kind}")));
        assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
        assert_eq!(counts.iter().sum::<u64>(), count_calls(subject, ""));
        assert_eq!(counts[2], 2, "two pages");
        let device = open(subject, "fail_nth=2&kind=page");
        let page = device.page_create(device.description().page_bytes).unwrap();
        assert_eq!(refused(device.page_create(device.description().page_bytes)), Status::OutOfMemory);
        device.page_release(page).unwrap();
    });
}

#[test]
fn a_share_of_the_calls_fails_the_same_way_for_the_same_seed() {
    each(|subject| {
        if subject.is_counting {
            return;
        }
        let failures = |seed: u32, rate: &str| {
            let device = open(subject, &format!("fail_rate={rate}&seed={seed}"));
            (0..1000).map(|_| device.event_create().is_err()).collect::<Vec<_>>()
        };
        assert_eq!(failures(1, "0.1"), failures(1, "0.1"));
        assert_ne!(failures(1, "0.1"), failures(2, "0.1"));
        let share = failures(1, "0.1").iter().filter(|failed| **failed).count();
        assert!((50..200).contains(&share), "{share} of 1000");
        assert!(failures(1, "0").iter().all(|failed| !failed));
        assert!(failures(1, "1").iter().all(|failed| *failed));
    });
}

#[test]
fn an_injected_loss_latches_but_still_takes_things_back() {
    each(|subject| {
        if subject.is_counting {
            return;
        }
        let device = open(subject, "fail_nth=2&error=lost");
        let memory = device.memory_allocate(64).unwrap();
        assert_eq!(refused(device.memory_allocate(64)), Status::DeviceLost);
        assert_eq!(refused(device.memory_allocate(64)), Status::DeviceLost);
        assert_eq!(refused(device.synchronize()), Status::DeviceLost);
        assert_eq!(device.call_count(), 2);
        device.memory_free(memory).unwrap();
        let device = open(subject, "fail_from=2");
        device.event_create().unwrap();
        refused(device.event_create());
        refused(device.event_create());
    });
}
