//! What is left when a device is lost for good: in a process of its own, because there it is lost for all of it.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kavern::device::{
    Access, Arg, Copy, CpuArgs, Device, Kernel, Launch, PinnedBuffer, Place, Stream, registry,
};
use kavern::error::Status;
use kavern::event::{Event, EventSink, Level};
use kavern::sync::Mutex;

use super::support::{Subject, each, pattern, refused};

static FAIL: Kernel = Kernel { name: "contract_fail", cpu: nothing };
static NEGATE: Kernel = Kernel { name: "contract_negate", cpu: nothing };

fn nothing(_: &mut CpuArgs<'_>) {}

#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl EventSink for Notes {
    fn wants(&self, level: Level) -> bool {
        level == Level::Error
    }

    fn emit(&self, event: Event<'_>) {
        self.0.lock().push(format!("{}: {}", event.room, event.text));
    }
}

/// How the child loses its device.
const WAYS: [&str; 3] = ["trap", "unmapped", "read_only"];

fn dies(subject: &Subject, way: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "contracts::lost::child_that_loses_its_device", "--ignored", "--test-threads=1"])
        .env("KAVERN_TEST_LOSS", way)
        .env("KAVERN_TEST_SPEC", subject.spec(0, ""))
        .output()
        .unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{way}: {said}");
}

#[test]
fn a_lost_device_says_so_on_every_call_and_pinned_memory_stays_readable() {
    each(|subject| {
        let device = subject.open();
        // A simulator reports such an access and goes on.
        if device.description().capabilities.host_addressable || device.simulator().is_some() {
            return;
        }
        // An access to addresses without memory, or without permission, is found by the device itself.
        for way in WAYS {
            dies(subject, way);
        }
        // The process that started them is not concerned.
        device.synchronize().unwrap();
    });
}

/// Enqueues work that ends the context.
fn lose(device: &dyn Device, stream: Stream, way: &str) {
    let unit = device.description().page_bytes;
    let range = device.virtual_reserve(unit).unwrap();
    let page = device.page_create(unit).unwrap();
    let source = device.memory_allocate(64).unwrap();
    device.virtual_map(range, page).unwrap();
    device.virtual_set_access(range, Access::ReadWrite).unwrap();
    device.memset(stream, range, 1).unwrap();
    device.stream_synchronize(stream).unwrap();
    match way {
        "trap" => {
            let launch = Launch { kernel: &FAIL, grid: 1, block: 1, args: &[] };
            return device.launch(stream, &launch).unwrap();
        }
        "unmapped" => device.virtual_unmap(range).unwrap(),
        _ => device.virtual_set_access(range, Access::Read).unwrap(),
    }
    let args = [Arg::Write(range.part(0, 64).unwrap()), Arg::Read(source)];
    device.launch(stream, &Launch { kernel: &NEGATE, grid: 1, block: 64, args: &args }).unwrap();
}

#[test]
#[ignore = "started by a_lost_device_says_so_on_every_call, in a process of its own"]
fn child_that_loses_its_device() {
    let (Ok(way), Ok(spec)) = (std::env::var("KAVERN_TEST_LOSS"), std::env::var("KAVERN_TEST_SPEC")) else {
        return;
    };
    let notes = Arc::new(Notes::default());
    let device = registry::open_telling(&spec, Arc::<Notes>::clone(&notes)).unwrap();
    device.module_load(&[&FAIL, &NEGATE]).unwrap();
    let stream = device.stream_create().unwrap();
    let event = device.event_create().unwrap();
    let memory = device.memory_allocate(4096).unwrap();
    let page = device.page_create(device.description().page_bytes).unwrap();
    let mut pinned = PinnedBuffer::new(Arc::clone(&device), 4096).unwrap();
    let content = pattern(5, 4096);
    pinned.values_mut::<u8>(0, 4096).unwrap().copy_from_slice(&content);
    let copy = Copy { target: Place::Device(memory), source: Place::Pinned(pinned.slice()) };
    device.copy(stream, copy).unwrap();
    device.stream_synchronize(stream).unwrap();

    lose(&*device, stream, &way);
    let has_run = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&has_run);
    // The loss may be known already.
    let _ = device.stream_callback(stream, Box::new(move || flag.store(true, Ordering::SeqCst)));
    assert_eq!(refused(device.stream_synchronize(stream)), Status::DeviceLost);
    for status in [
        refused(device.synchronize()),
        refused(device.stream_create()),
        refused(device.stream_is_idle(stream)),
        refused(device.stream_destroy(stream)),
        refused(device.event_record(event, stream)),
        refused(device.event_is_done(event)),
        refused(device.event_destroy(event)),
        refused(device.memory_info()),
        refused(device.memory_allocate(64)),
        refused(device.memory_free(memory)),
        refused(device.page_release(page)),
        refused(device.virtual_reserve(device.description().page_bytes)),
        refused(device.pinned_allocate(64)),
        refused(device.pinned_free(pinned.slice())),
        refused(device.write(memory, &[0; 4096])),
        refused(device.memset(stream, memory, 0)),
        refused(device.copy(stream, copy)),
        refused(device.module_load(&[])),
        refused(device.stream_callback(stream, Box::new(|| {}))),
    ] {
        assert_eq!(status, Status::DeviceLost);
    }
    assert_eq!(pinned.values::<u8>(0, 4096).unwrap(), content, "host memory stays readable");
    assert!(!has_run.load(Ordering::SeqCst), "a callback behind the loss does not run");
    assert_eq!(Arc::strong_count(&has_run), 1, "and is dropped");
    assert_eq!(notes.0.lock().len(), 1, "the loss is told once: {:?}", notes.0.lock());
    assert!(notes.0.lock()[0].starts_with("device: ") && notes.0.lock()[0].contains("lost"));
    drop(pinned);
    drop(device);
}
